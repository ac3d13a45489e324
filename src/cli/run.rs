//! `autosam-video run`.

/// Segments a video file, a stream, a camera or a folder of frames.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
