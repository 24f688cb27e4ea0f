//! x
use super::Failure;
pub fn run(_: crate::cli::CommonArgs) -> Result<(), Failure> {
    Ok(())
}
