//! How much memory the windows of all tunnels of a process may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes by which windows may outgrow their start, over all tunnels that share it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WindowBudget(Arc<AtomicUsize>);

impl WindowBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes bytes out; `false` when there are not so many left.
    pub fn claim(&self, bytes: usize) -> bool {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            });
        taken.is_ok()
    }

    /// Puts bytes back.
    pub fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_there_is() {
        let budget = WindowBudget::new(10);
        assert!(budget.claim(7));
        assert!(!budget.claim(4));
        budget.give_back(7);
        assert!(budget.claim(10));
    }
}
