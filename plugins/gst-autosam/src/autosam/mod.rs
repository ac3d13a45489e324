//! The element `autosam`.
//!
//! ```text
//! gst-launch-1.0 filesrc location=clip.mp4 ! decodebin ! videoconvert ! autosam ! autovideosink
//! ```

use gst::glib;
use gst::prelude::*;

mod imp;
mod settings;

glib::wrapper! {
    /// Draws polyp masks on video in place; see docs/elements/autosam.md.
    pub struct AutoSam(ObjectSubclass<imp::AutoSam>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    // Public types show in gst-inspect and in generated documentation with their values.
    settings::Device::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::SyncMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::OverlayMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::OnError::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    gst::Element::register(Some(plugin), "autosam", gst::Rank::NONE, AutoSam::static_type())
}
