//! Who uses a tunnel at the same time. Pure: the time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// How long a stream counts as in use after its last data.
const IN_USE_FOR: Duration = Duration::from_millis(100);

/// The two streams that sent or received data last.
#[derive(Debug, Default)]
pub struct Users {
    last: Option<(u32, Instant)>,
    before: Option<(u32, Instant)>,
}

impl Users {
    /// Data of a stream passed.
    pub fn note(&mut self, id: u32, now: Instant) {
        if self.last.is_some_and(|(last, _)| last != id) {
            self.before = self.last;
        }
        self.last = Some((id, now));
    }

    /// Whether a stream other than `id` is in use.
    pub fn others_than(&self, id: u32, now: Instant) -> bool {
        [self.last, self.before]
            .into_iter()
            .flatten()
            .any(|(user, at)| user != id && now.duration_since(at) < IN_USE_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_company_until_the_others_have_been_silent_for_a_while() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut users = Users::default();
        assert!(!users.others_than(1, start));
        users.note(1, start);
        assert!(!users.others_than(1, start), "alone");
        assert!(users.others_than(3, start));
        users.note(3, after(10));
        users.note(1, after(20));
        users.note(1, after(90));
        assert!(users.others_than(1, after(109)), "3 was here 99 ms ago");
        assert!(!users.others_than(1, after(110)));
        assert!(users.others_than(3, after(110)));
    }
}
