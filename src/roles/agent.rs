//! x
use super::Failure;
pub fn run(_: crate::cli::AgentArgs) -> Result<(), Failure> {
    Ok(())
}
