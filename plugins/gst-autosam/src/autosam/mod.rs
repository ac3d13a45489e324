//! The element `autosam`.
//!
//! ```text
//! gst-launch-1.0 filesrc location=clip.mp4 ! decodebin ! videoconvert ! autosam ! autovideosink
//! ```

use autosam::engine::segmenter::Segmenter;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use std::path::Path;
use std::sync::Arc;

mod imp;
mod mask_pad;
mod meta;
mod notify;
mod properties;
mod settings;

glib::wrapper! {
    /// Draws polyp masks on video in place; see docs/elements/autosam.md.
    pub struct AutoSam(ObjectSubclass<imp::AutoSam>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

impl AutoSam {
    /// For tests of faults: opens models by `open`, which gets `model-location`, from the next start or replacement on.
    #[doc(hidden)]
    pub fn set_opener(
        &self,
        open: impl Fn(Option<&Path>) -> autosam::Result<Box<dyn Segmenter>> + Send + Sync + 'static,
    ) {
        self.imp().set_opener(Arc::new(open));
    }
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    // Public types show in gst-inspect and in generated documentation with their values.
    settings::Device::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::Precision::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::SyncMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::OverlayMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::OnError::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    meta::register();
    gst::Element::register(Some(plugin), "autosam", gst::Rank::NONE, AutoSam::static_type())
}
