//! Shell completions and manual pages for packages, generated from the commands.

use super::Cli;
use anyhow::Context;
use clap::CommandFactory;
use std::path::PathBuf;

/// Prints a shell's completions: `autosam-video completions bash > …/bash-completion/completions/autosam-video`.
#[derive(clap::Args)]
pub struct Completions {
    shell: clap_complete::Shell,
}

pub fn completions(args: Completions) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "autosam-video", &mut script);
    print!("{}", String::from_utf8(script)?);
    Ok(())
}

/// Writes manual pages, one per command (autosam-video-run.1, …).
#[derive(clap::Args)]
pub struct Manual {
    /// Folder for the pages
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub fn manual(args: Manual) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), &args.dir).with_context(|| args.dir.display().to_string())
}
