//! `autosam-video`: the command line over the library `autosam`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
