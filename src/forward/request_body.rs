//! The body of a request on its way to the device: streamed, watched, and held back until the device
//! asks for it where the client said `Expect: 100-continue` (RFC 9110 §10.1.1).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::framing::pass_trailers;
use super::meter::Counter;

/// How long a device may take to say `100 Continue` before the body is sent all the same.
const CONTINUE_WITHIN: Duration = Duration::from_secs(1);

/// Where a body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing of it was asked for.
    Untouched,
    /// The client has to send more.
    AwaitingClient,
    /// The device has to take what is there.
    AwaitingDevice,
    /// The device has all of it.
    Complete,
    /// The client broke off.
    Aborted,
}

struct State {
    stage: Stage,
    moved_at: Instant,
    held: bool,
    answered: bool,
    waker: Option<Waker>,
}

/// What is known of a body while it is under way. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<State>>);

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the body stands, and since when.
    pub fn stage(&self) -> (Stage, Instant) {
        let state = self.state();
        (state.stage, state.moved_at)
    }

    fn moved(&self, stage: Stage) {
        let mut state = self.state();
        state.stage = stage;
        state.moved_at = Instant::now();
    }

    /// The device said `100 Continue`.
    pub fn release(&self) {
        let waker = {
            let mut state = self.state();
            state.held = false;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The device has answered: a body that is still held back is no longer wanted.
    pub fn answered(&self) {
        self.state().answered = true;
    }
}

/// A request's body.
pub struct RequestBody {
    inner: Body,
    progress: Progress,
    counter: Option<Arc<Counter>>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// Wraps a body; with `hold` nothing is read from the client before the device asks for it. What
    /// passes is added to `counter`.
    pub fn new(inner: Body, hold: bool, counter: Option<Arc<Counter>>) -> (Self, Progress) {
        let stage = match inner.is_end_stream() {
            true => Stage::Complete,
            false => Stage::Untouched,
        };
        let held = hold && stage == Stage::Untouched;
        let progress = Progress(Arc::new(Mutex::new(State {
            stage,
            moved_at: Instant::now(),
            held,
            answered: false,
            waker: None,
        })));
        let body = Self {
            inner,
            progress: progress.clone(),
            counter,
            patience: held.then(|| Box::pin(sleep(CONTINUE_WITHIN))),
        };
        (body, progress)
    }

    fn poll_released(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = &mut self.patience else {
            return Poll::Ready(());
        };
        let mut state = self.progress.state();
        if state.held {
            state.waker = Some(cx.waker().clone());
            // After the answer nobody wants the body: it stays where it is.
            if state.answered || patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            state.held = false;
        }
        drop(state);
        self.patience = None;
        Poll::Ready(())
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.poll_released(cx).is_pending() {
            return Poll::Pending;
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => {
                if self.progress.stage().0 != Stage::AwaitingClient {
                    self.progress.moved(Stage::AwaitingClient);
                }
                Poll::Pending
            }
            Poll::Ready(frame) => {
                if let (Some(counter), Some(Ok(frame))) = (&self.counter, &frame) {
                    counter.add_to_device(frame.data_ref().map_or(0, Bytes::len));
                }
                self.progress.moved(match &frame {
                    Some(Ok(_)) if self.inner.is_end_stream() => Stage::Complete,
                    Some(Ok(_)) => Stage::AwaitingDevice,
                    Some(Err(_)) => Stage::Aborted,
                    None => Stage::Complete,
                });
                Poll::Ready(match frame {
                    Some(Ok(frame)) => pass_trailers(frame).map(Ok),
                    end => end,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    fn body(hold: bool) -> (RequestBody, Progress) {
        RequestBody::new(Body::from("x"), hold, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_body_waits_for_the_device_but_not_for_ever() {
        let (mut held, progress) = body(true);
        assert!(held.frame().now_or_never().is_none());
        assert_eq!(progress.stage().0, Stage::Untouched);
        progress.release();
        assert!(held.frame().now_or_never().is_some());
        let (mut held, _) = body(true);
        assert!(held.frame().await.is_some(), "after a second");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_final_answer_a_held_body_stays_where_it_is() {
        let (mut held, progress) = body(true);
        assert!(held.frame().now_or_never().is_none());
        progress.answered();
        let read = tokio::time::timeout(CONTINUE_WITHIN * 5, held.frame()).await;
        assert!(read.is_err() && progress.stage().0 == Stage::Untouched);
    }

    #[tokio::test]
    async fn progress_tells_who_is_waited_for() {
        let (mut open, progress) = body(false);
        assert!(open.frame().await.is_some());
        assert_eq!(progress.stage().0, Stage::Complete);
        let (_, progress) = RequestBody::new(Body::empty(), true, None);
        assert_eq!(progress.stage().0, Stage::Complete);
        let silent = futures_util::stream::pending::<Result<Bytes, axum::Error>>();
        let (mut waiting, progress) = RequestBody::new(Body::from_stream(silent), false, None);
        assert!(waiting.frame().now_or_never().is_none());
        assert_eq!(progress.stage().0, Stage::AwaitingClient);
    }
}
