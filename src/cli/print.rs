//! The commands' `println!`, `print!` and `eprintln!`. Those of the standard library panic if a write fails. With these, a
//! command whose reader has left (`autosam-video models list | head -1`) goes on without output and keeps its exit status, so
//! that a run or a training does not lose its work. Other failures of standard output, such as a full disk, are an error at the
//! end.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// The first failure of standard output, other than a closed pipe.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

fn record(result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != ErrorKind::BrokenPipe
    {
        // Later failures have the same cause.
        let _ = FAILURE.set(error);
    }
}

/// Writes to standard output.
pub fn out(text: Arguments<'_>) {
    record(io::stdout().lock().write_fmt(text));
}

/// Writes to standard error. Without it there is nowhere to report a failure.
pub fn err(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_all(text.to_string().as_bytes());
}

/// The exit status of a command that ends with `status`: a failure if its output could not be written.
pub fn finish(status: ExitCode) -> ExitCode {
    record(io::stdout().lock().flush());
    let Some(error) = FAILURE.get() else { return status };
    err(format_args!("error: cannot write to standard output: {error}\n"));
    ExitCode::FAILURE
}

macro_rules! print {
    ($($text:tt)*) => { $crate::cli::print::out(format_args!($($text)*)) };
}

macro_rules! println {
    () => { $crate::cli::print::out(format_args!("\n")) };
    ($($text:tt)*) => { $crate::cli::print::out(format_args!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprintln {
    () => { $crate::cli::print::err(format_args!("\n")) };
    ($($text:tt)*) => { $crate::cli::print::err(format_args!("{}\n", format_args!($($text)*))) };
}
