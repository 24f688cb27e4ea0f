//! The edgecloud binary: parses the command line and hands over to [`edgecloud::roles`].

use std::process::ExitCode;

use clap::Parser;
use edgecloud::cli::Cli;

fn main() -> ExitCode {
    edgecloud::roles::run(Cli::parse())
}
