//! `autosam-video synth`.

/// Makes labelled synthetic endoscopy sequences in SUN-SEG's layout.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
