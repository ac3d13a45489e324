//! `autosam-video`: the command line over the library `autosam`.

mod cli;

/// Tensors of megabytes come and go with every layer; glibc gives each back to the system and takes it again,
/// page by page (a fifth of a training step's time).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
