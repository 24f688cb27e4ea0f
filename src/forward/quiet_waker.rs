//! A waker for what a task moves within its own turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Nobody is at it: a wake-up goes to the task.
const RESTING: u8 = 0;
/// The task is at it.
const MOVING: u8 = 1;
/// The task is at it, and there was a wake-up.
const CALLED: u8 = 2;

/// Times that something may call for another look in one turn before other tasks get theirs.
const MAX_LOOKS: usize = 32;

struct Bell {
    task: AtomicWaker,
    state: AtomicU8,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let called =
            self.state
                .compare_exchange(MOVING, CALLED, Ordering::AcqRel, Ordering::Acquire);
        if called == Err(RESTING) {
            self.task.wake();
        }
    }
}

/// Wakes a task on behalf of something that the task itself moves. A wake-up that comes while the task
/// moves it, as one half of it wakes the other, leads to another look in the same turn. The runtime
/// would give the task another turn, and wake another thread, which then takes it over.
#[derive(Clone)]
pub struct QuietWaker {
    bell: Arc<Bell>,
    waker: Waker,
}

impl Default for QuietWaker {
    fn default() -> Self {
        let bell = Arc::new(Bell {
            task: AtomicWaker::new(),
            state: AtomicU8::new(RESTING),
        });
        Self {
            waker: Waker::from(Arc::clone(&bell)),
            bell,
        }
    }
}

impl QuietWaker {
    /// Looks at something with `look`, until it is ready or nothing has called for another look. One task
    /// at a time may do this.
    pub fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Bell { task, state } = &*self.bell;
        task.register(cx.waker());
        for _ in 0..MAX_LOOKS {
            state.store(MOVING, Ordering::Release);
            let polled = look(&mut Context::from_waker(&self.waker));
            let before = state.swap(RESTING, Ordering::AcqRel);
            if polled.is_ready() || before == MOVING {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counting() -> (Arc<Counting>, Waker) {
        let counting = Arc::new(Counting::default());
        (Arc::clone(&counting), Waker::from(counting))
    }

    #[test]
    fn what_wakes_itself_is_looked_at_again_without_waking_the_task() {
        let (wakes, waker) = counting();
        let quiet = QuietWaker::default();
        let mut looks = 0;
        let polled = quiet.poll(&mut Context::from_waker(&waker), |cx| {
            looks += 1;
            cx.waker().wake_by_ref();
            match looks {
                3 => Poll::Ready("done"),
                _ => Poll::Pending,
            }
        });
        assert_eq!(polled, Poll::Ready("done"));
        assert_eq!((looks, wakes.0.load(Ordering::Relaxed)), (3, 0));
    }

    #[test]
    fn a_later_wake_up_reaches_the_task() {
        let (wakes, waker) = counting();
        let quiet = QuietWaker::default();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut receiver = pin!(receiver);
        let mut cx = Context::from_waker(&waker);
        let mut look = || quiet.poll(&mut cx, |cx| receiver.as_mut().poll(cx));
        assert!(look().is_pending());
        sender.send(7).expect("it is waited for");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(look(), Poll::Ready(Ok(7)));
    }

    #[test]
    fn what_never_rests_gives_way_to_others() {
        let (wakes, waker) = counting();
        let polled = QuietWaker::default().poll(&mut Context::from_waker(&waker), |cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_is_lost_between_threads() {
        let quiet = QuietWaker::default();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            for number in 0..20_000 {
                sender.send(number).await.expect("it is waited for");
            }
        });
        let next = |cx: &mut Context<'_>| quiet.poll(cx, |cx| receiver.poll_recv(cx));
        let mut next = next;
        let mut expected = 0;
        while let Some(number) = std::future::poll_fn(&mut next).await {
            assert_eq!(number, expected);
            expected += 1;
        }
        assert_eq!(expected, 20_000);
    }
}
