//! Finds and creates the element `autosam`.

use super::init;
use crate::{Error, Result};
use gst::prelude::*;
use std::path::{Path, PathBuf};

/// The plugin's file.
const PLUGIN: &str = "libgstautosam.so";

/// Creates the element `autosam`: the one known to GStreamer (installed, or by GST_PLUGIN_PATH), otherwise the plugin next to
/// this program or in the neighbouring `lib` folder.
///
/// # Errors
/// [`Error::Video`] with the remedies if no plugin is found.
pub fn autosam_element() -> Result<gst::Element> {
    init()?;
    if gst::ElementFactory::find("autosam").is_none() {
        load()?;
    }
    gst::ElementFactory::make("autosam")
        .build()
        .map_err(|e| Error::Video(format!("the element autosam: {e}")))
}

fn load() -> Result<()> {
    let places = std::env::current_exe().map(|exe| candidates(&exe)).unwrap_or_default();
    let Some(found) = places.into_iter().find(|p| p.is_file()) else {
        return Err(Error::Video(format!(
            "GStreamer has no element autosam; build it (cargo build --release -p gst-autosam) next to this program, install \
             {PLUGIN}, or point GST_PLUGIN_PATH to its folder"
        )));
    };
    let plugin = gst::Plugin::load_file(&found)
        .map_err(|e| Error::Video(format!("{}: the plugin cannot be loaded: {e}", found.display())))?;
    gst::Registry::get().add_plugin(&plugin).map_err(|e| Error::Video(format!("{}: {e}", found.display())))
}

/// Possible paths of the plugin for the program at `exe`: its own folder (`target/release`), and `lib` next to `bin`.
fn candidates(exe: &Path) -> Vec<PathBuf> {
    let Some(folder) = exe.parent() else { return Vec::new() };
    let triplet = format!("lib/{}-linux-gnu/gstreamer-1.0", std::env::consts::ARCH);
    let lib = folder.parent().into_iter().flat_map(|up| [up.join("lib/gstreamer-1.0"), up.join(&triplet)]);
    std::iter::once(folder.to_owned()).chain(lib).map(|dir| dir.join(PLUGIN)).collect()
}

/// Sets a property from text, like `gst-launch-1.0`.
///
/// # Errors
/// If the property is unknown or the value is invalid.
pub(crate) fn set(element: &gst::Element, name: &str, value: &str) -> Result<()> {
    let pspec = element.find_property(name).ok_or_else(|| {
        Error::invalid(format!("the element autosam has no property {name}; see gst-inspect-1.0 autosam"))
    })?;
    let value = gst::glib::Value::deserialize_with_pspec(value, &pspec).map_err(|_| {
        Error::invalid(format!("the property {name} does not accept {value:?}; see gst-inspect-1.0 autosam"))
    })?;
    element.set_property_from_value(name, &value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_searched_next_to_the_program_and_in_lib() {
        let places = candidates(Path::new("/opt/autosam/bin/autosam-video"));
        assert_eq!(places[0], Path::new("/opt/autosam/bin/libgstautosam.so"));
        assert_eq!(places[1], Path::new("/opt/autosam/lib/gstreamer-1.0/libgstautosam.so"));
        assert_eq!(places.len(), 3);
    }

    #[test]
    fn properties_are_set_from_text() {
        init().unwrap();
        let element = gst::ElementFactory::make("identity").build().unwrap();
        set(&element, "sleep-time", "7").unwrap();
        assert_eq!(element.property::<u32>("sleep-time"), 7);
        assert!(set(&element, "sleep-time", "soon").is_err());
        assert!(set(&element, "no-such-thing", "1").unwrap_err().to_string().contains("no-such-thing"));
    }
}
