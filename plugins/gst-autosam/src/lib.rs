//! The GStreamer plugin `autosam`: one element of the same name (see [`AutoSam`]).

use gst::glib;

mod autosam;

pub use autosam::AutoSam;

/// For the plugin's own memory; the host's and GStreamer's stays where it is.
#[global_allocator]
static ALLOCATOR: ::autosam::process::Allocator = ::autosam::process::Allocator;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    ::autosam::process::keep_freed_memory();
    autosam::register(plugin)
}

gst::plugin_define!(
    autosam,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    "MIT/X11",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_REPOSITORY"),
    env!("BUILD_REL_DATE")
);
