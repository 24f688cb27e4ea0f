//! One stream's buffers, windows and halves. Pure but for the time.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::frame::INITIAL_WINDOW;

/// Pieces up to this size are joined with the one before, in bytes: a sender of single bytes must not
/// make us keep a buffer for each.
const SMALL_PIECE: usize = 2048;

/// The state of a stream.
pub struct StreamState {
    received: VecDeque<BytesMut>,
    /// What the other side may still send.
    receive_window: u32,
    /// The size of the receive window when nothing is under way.
    pub max_window: u32,
    /// What the reader has taken and the other side has not been told.
    unannounced: u32,
    announced_at: Instant,
    /// Waits for data.
    pub reader: Option<Waker>,
    /// The other side sends nothing more.
    pub remote_fin: bool,
    /// What we may still send.
    pub send_window: u32,
    /// Waits until more may be sent.
    pub writer: Option<Waker>,
    /// We send nothing more.
    pub local_fin: bool,
    /// The stream was cut off, by either side or with its tunnel.
    pub reset: bool,
    /// Nothing of the stream was sent yet.
    pub syn_due: bool,
    /// The first frame was sent, and the other side has not answered it.
    pub ack_due: bool,
    /// What the window has over its standard size and the other side does not know of.
    extra: u32,
    /// The round of sending in which the stream last took its turn.
    pub round: u64,
}

/// An announcement of more window that is worth a frame.
pub struct Due {
    /// What the reader has taken since the last one.
    pub bytes: u32,
    /// The time since then.
    pub since_last: Duration,
}

impl StreamState {
    /// A stream that this side opens, with a window larger by `extra` than the standard.
    pub fn opened(extra: u32) -> Self {
        Self {
            received: VecDeque::new(),
            receive_window: INITIAL_WINDOW + extra,
            max_window: INITIAL_WINDOW + extra,
            unannounced: 0,
            announced_at: Instant::now(),
            reader: None,
            remote_fin: false,
            send_window: INITIAL_WINDOW,
            writer: None,
            local_fin: false,
            reset: false,
            syn_due: true,
            ack_due: false,
            extra,
            round: 0,
        }
    }

    /// A stream that the other side opens.
    pub fn accepted(extra: u32) -> Self {
        Self {
            syn_due: false,
            ..Self::opened(extra)
        }
    }

    /// The part of the window that the other side does not know of; only once.
    pub fn take_extra(&mut self) -> u32 {
        std::mem::take(&mut self.extra)
    }

    /// Takes a data frame's length off the window; `false` when it is longer than allowed.
    pub fn admit(&mut self, length: u32) -> bool {
        let left = self.receive_window.checked_sub(length);
        self.receive_window = left.unwrap_or(0);
        left.is_some()
    }

    /// Keeps received bytes for the reader.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Waker> {
        match self.received.back_mut() {
            Some(last) if last.len() < SMALL_PIECE && bytes.len() < SMALL_PIECE => {
                last.extend_from_slice(bytes);
            }
            _ => self.received.push_back(BytesMut::from(bytes)),
        }
        self.reader.take()
    }

    /// The next piece for the reader.
    pub fn pop(&mut self) -> Option<BytesMut> {
        self.received.pop_front()
    }

    /// Bytes that wait for the reader.
    #[cfg(test)]
    pub fn buffered(&self) -> usize {
        self.received.iter().map(BytesMut::len).sum()
    }

    /// Counts what the reader has taken; tells when the other side should hear of it.
    pub fn consume(&mut self, bytes: u32) -> Option<Due> {
        self.unannounced += bytes;
        let due = !self.remote_fin && !self.reset && self.unannounced >= self.max_window / 2;
        due.then(|| Due {
            bytes: self.unannounced,
            since_last: self.announced_at.elapsed(),
        })
    }

    /// Notes that the other side hears of `delta` bytes more.
    pub fn tell(&mut self, delta: u32) {
        self.unannounced = 0;
        self.receive_window += delta;
        self.announced_at = Instant::now();
    }

    /// Lets this side send more; `Err` when no window can be so large.
    pub fn open_send_window(&mut self, delta: u32) -> Result<Option<Waker>, ()> {
        self.send_window = self.send_window.checked_add(delta).ok_or(())?;
        Ok(self.writer.take())
    }

    /// Ends both halves at once; returns who waits. What was received can still be read.
    pub fn cut(&mut self) -> [Option<Waker>; 2] {
        self.reset = true;
        [self.reader.take(), self.writer.take()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_are_joined() {
        let mut state = StreamState::accepted(0);
        for byte in 0..=255u8 {
            state.push(&[byte]);
        }
        assert_eq!(state.received.len(), 1);
        state.push(&[0; 4096]);
        state.push(&[1]);
        assert_eq!(state.received.len(), 3);
    }

    #[test]
    fn a_window_is_announced_when_half_of_it_was_read() {
        let mut state = StreamState::accepted(0);
        assert!(state.admit(INITIAL_WINDOW));
        assert!(!state.admit(1));
        assert!(state.consume(INITIAL_WINDOW / 2 - 1).is_none());
        let due = state.consume(1).expect("half was read");
        assert_eq!(due.bytes, INITIAL_WINDOW / 2);
        state.tell(due.bytes);
        assert!(state.admit(INITIAL_WINDOW / 2));
        assert!(!state.admit(1));
    }
}
