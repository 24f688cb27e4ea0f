//! The edgecloud binary: parses the command line and hands over to [`edgecloud::roles`].

use std::process::ExitCode;

use clap::Parser;
use edgecloud::cli::Cli;

/// Every forwarded request allocates on several threads; the C library's allocator has them wait for each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    edgecloud::roles::run(Cli::parse())
}
