//! The body of a device's response on its way to the caller: streamed, cut when the login or the
//! device's place in the tenant ends, and at its end the connection goes back into the pool.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::connection::OriginConnection;
use super::framing::pass_trailers;
use super::meter::Counter;
use super::pool::{Pool, SessionKey};
use super::request_body::{Progress, Stage};
use crate::auth::live::LiveStream;

/// The last words of an event stream whose login has ended.
const BYE: &[u8] = b"event: bye\ndata: {\"reason\":\"login_ended\"}\n\n";

/// Why a body was cut off; the caller sees a broken connection, never a clean end.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// The device or its tunnel broke off.
    #[error("the device broke off")]
    Device(#[from] hyper::Error),
    /// The device sent nothing for too long.
    #[error("the device paused for too long")]
    Idle,
    /// The login or the device's place in the tenant ended.
    #[error("the login or the device is no longer valid")]
    Ended,
}

/// What a response keeps alive while it runs.
pub struct Keep {
    /// Cut when this ends.
    pub live: LiveStream,
    /// The connection that the response comes over.
    pub connection: OriginConnection,
    /// Where the connection goes afterwards.
    pub pool: Pool,
    /// In which place.
    pub key: SessionKey,
    /// Cuts the connection when `live` ends, also while nobody reads the response.
    #[expect(dead_code, reason = "it only has to be dropped with the response")]
    pub watch: Option<AbortOnDropHandle<()>>,
    /// The request's body, which must be complete before the connection can be used again.
    pub progress: Progress,
    /// Counts what passes.
    pub counter: Arc<Counter>,
}

/// What kind of body a response has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Any.
    Plain,
    /// Server-sent events: pauses have no limit, and there are last words.
    Events,
    /// None, whatever the fields say: it answers HEAD, or is 204 or 304. Its length is not zero but
    /// unknown, so that nobody states one.
    None,
}

type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A response's body.
pub struct ResponseBody {
    inner: Incoming,
    keep: Option<Keep>,
    /// Waits for the end of `keep.live`, from when somebody waits for the device.
    ended: Option<Ended>,
    pause: Option<Pause>,
    events: Option<EventTail>,
    kind: BodyKind,
    /// What ends the body as soon as what came before has left.
    cut: Option<Cut>,
    over: bool,
}

struct Pause {
    limit: Duration,
    waiting_since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pause {
    /// Counts only the time in which the device is waited for.
    fn poll_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = since + self.limit;
        let sleep = &mut self.sleep;
        let sleep = sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() < deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

/// The last two bytes of an event stream: between two events there is an empty line.
struct EventTail([u8; 2]);

impl EventTail {
    fn follow(&mut self, bytes: &[u8]) {
        // Two line ends are four bytes at most.
        let last = &bytes[bytes.len().saturating_sub(4)..];
        for byte in last.iter().filter(|byte| **byte != b'\r') {
            self.0 = [self.0[1], *byte];
        }
    }

    fn is_between_events(&self) -> bool {
        self.0 == *b"\n\n"
    }
}

impl ResponseBody {
    /// Wraps a body. `idle` limits the device's pauses.
    pub fn new(inner: Incoming, keep: Keep, idle: Duration, kind: BodyKind) -> Self {
        let is_event_stream = kind == BodyKind::Events;
        let pause = (!is_event_stream).then(|| Pause {
            limit: idle,
            waiting_since: None,
            sleep: None,
        });
        let mut body = Self {
            cut: None,
            over: false,
            ended: None,
            pause,
            kind,
            events: is_event_stream.then_some(EventTail(*b"\n\n")),
            keep: Some(keep),
            inner,
        };
        if body.inner.is_end_stream() {
            body.finish();
        }
        body
    }

    /// Puts the connection back if both directions are complete.
    fn finish(&mut self) {
        if let Some(keep) = self.keep.take()
            && keep.progress.stage().0 == Stage::Complete
        {
            keep.pool.put(keep.key, keep.connection);
        }
    }

    fn poll_inner(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { inner, keep, .. } = self;
        match keep {
            Some(keep) => {
                let driver = &keep.connection.driver;
                driver.poll_for(cx, |cx| Pin::new(&mut *inner).poll_frame(cx))
            }
            None => Pin::new(inner).poll_frame(cx),
        }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(keep) = &self.keep else {
            return Poll::Pending;
        };
        let ended = &mut self.ended;
        let ended = ended.get_or_insert_with(|| Box::pin(keep.live.ended_owned()));
        ended.as_mut().poll(cx)
    }

    /// Ends the body early. hyper drops what it has not written when a body fails, so it gets a turn to
    /// write the head, and what else there is, before it hears of the failure.
    fn cut(&mut self, cut: Cut, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        // The stream is reset with its connection.
        self.keep = None;
        self.cut = Some(cut);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn finish_cut(&mut self, cut: Cut) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.over = true;
        if let (Cut::Ended, Some(events)) = (&cut, &self.events)
            && events.is_between_events()
        {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(BYE)))));
        }
        Poll::Ready(Some(Err(cut)))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(cut) = self.cut.take() {
            return self.finish_cut(cut);
        }
        if self.keep.as_ref().is_some_and(|keep| keep.live.is_ended()) {
            return self.cut(Cut::Ended, cx);
        }
        match self.poll_inner(cx) {
            Poll::Pending => {
                if self.poll_ended(cx).is_ready() {
                    return self.cut(Cut::Ended, cx);
                }
                let too_long = self
                    .pause
                    .as_mut()
                    .is_some_and(|pause| pause.poll_too_long(cx));
                if too_long {
                    return self.cut(Cut::Idle, cx);
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(pause) = &mut self.pause {
                    pause.waiting_since = None;
                }
                if let (Some(keep), Some(data)) = (&self.keep, frame.data_ref()) {
                    keep.counter.add_from_device(data.len());
                }
                let this = &mut *self;
                if let (Some(events), Some(data)) = (&mut this.events, frame.data_ref()) {
                    events.follow(data);
                }
                if self.inner.is_end_stream() {
                    self.finish();
                }
                let passed = pass_trailers(frame);
                self.over |= passed.is_none();
                Poll::Ready(passed.map(Ok))
            }
            Poll::Ready(Some(Err(error))) => self.cut(error.into(), cx),
            Poll::Ready(None) => {
                self.over = true;
                self.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.kind {
            BodyKind::None => SizeHint::default(),
            BodyKind::Plain | BodyKind::Events => self.inner.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_come_between_events_only() {
        let mut tail = EventTail(*b"\n\n");
        assert!(tail.is_between_events(), "before the first event");
        for (bytes, between) in [
            (&b"data: 1\n"[..], false),
            (b"\n", true),
            (b"", true),
            (b"data: 2\r\n\r", false),
            (b"\n", true),
            (b"da", false),
        ] {
            tail.follow(bytes);
            assert_eq!(tail.is_between_events(), between, "{bytes:?}");
        }
    }

    crate::fuzzing::fuzz_target!(event_tail, |bytes| {
        let mut tail = EventTail(*b"\n\n");
        bytes.chunks(3).for_each(|piece| tail.follow(piece));
        let mut sent = b"\n\n".to_vec();
        sent.extend(bytes.iter().filter(|byte| **byte != b'\r'));
        assert_eq!(tail.is_between_events(), sent.ends_with(b"\n\n"));
    });
}
