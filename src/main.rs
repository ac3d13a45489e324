//! `autosam-video`: the command line over the library `autosam`.

mod cli;

#[global_allocator]
static ALLOCATOR: autosam::process::Allocator = autosam::process::Allocator;

fn main() -> std::process::ExitCode {
    // SAFETY: this is the first action of the process; no other thread exists.
    unsafe { autosam::process::settle() };
    cli::main()
}
