//! The GStreamer plugin `autosam`: one element of the same name (see [`AutoSam`]).

use gst::glib;

mod autosam;

pub use autosam::AutoSam;

/// Serves only the plugin's own memory, not that of GStreamer or the application.
#[global_allocator]
static ALLOCATOR: autosam_host::process::Allocator = autosam_host::process::Allocator;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    autosam_host::process::keep_freed_memory();
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
