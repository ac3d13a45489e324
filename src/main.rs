//! `autosam-video`: the command line over the library `autosam`.

mod cli;

#[global_allocator]
static ALLOCATOR: autosam::process::Allocator = autosam::process::Allocator;

fn main() -> std::process::ExitCode {
    // SAFETY: nothing has run before.
    unsafe { autosam::process::settle() };
    cli::main()
}
