//! The element `autosam`.
//!
//! ```text
//! gst-launch-1.0 filesrc location=clip.mp4 ! decodebin ! videoconvert ! autosam ! autovideosink
//! ```

use autosam_engine::segmenter::Segmenter;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use std::path::Path;
use std::sync::{Arc, LazyLock};

mod drawing;
mod imp;
mod input;
mod latency;
mod mask_pad;
mod meta;
mod notify;
mod pointing;
mod properties;
mod settings;
mod signals;
mod state;
mod statistics;

/// The element's debug category: `GST_DEBUG=autosam:LEVEL`.
static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("autosam", gst::DebugColorFlags::empty(), Some("Polyp masks on live video"))
});

glib::wrapper! {
    /// Draws polyp masks on video in place; see docs/elements/autosam.md.
    pub struct AutoSam(ObjectSubclass<imp::AutoSam>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

impl AutoSam {
    /// For fault tests: from the next start or replacement on, models are loaded by `open`, which receives `model-location`.
    #[doc(hidden)]
    pub fn set_model_factory(
        &self,
        open: impl Fn(Option<&Path>) -> autosam_frame::Result<Box<dyn Segmenter>> + Send + Sync + 'static,
    ) {
        self.imp().set_model_factory(Arc::new(open));
    }
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    // Makes gst-inspect and generated documentation list the values of these types.
    settings::Device::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::Precision::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::SyncMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::OverlayMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    settings::OnError::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    meta::register();
    gst::Element::register(Some(plugin), "autosam", gst::Rank::NONE, AutoSam::static_type())
}
