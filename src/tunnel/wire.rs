//! The in-memory ends between the yamux crate and the WebSocket.
//!
//! The crate writes a header and a body per frame and flushes after each; here they only pile up,
//! and the driver sends them as one message when the crate has nothing more to say. Both ends are
//! polled by the driver's task alone, so nothing registers a waker and the lock never waits.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::io::{AsyncRead, AsyncWrite};

/// Outbound bytes that make the crate wait, and about the size of the largest message.
pub const OUTBOUND_LIMIT: usize = 128 * 1024;
/// Inbound bytes that make the driver stop reading from the WebSocket.
pub const INBOUND_LIMIT: usize = 256 * 1024;

const HEADER_BYTES: usize = 12;
const TYPE_DATA: u8 = 0;
const TYPE_GO_AWAY: u8 = 3;

/// Follows the frames of a yamux byte stream by their headers (hashicorp yamux spec, "Framing").
#[derive(Debug, Default)]
struct FrameFollower {
    header: [u8; HEADER_BYTES],
    header_len: usize,
    body_left: usize,
    go_away: Option<u32>,
}

impl FrameFollower {
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let skip = self.body_left.min(bytes.len());
                self.body_left -= skip;
                bytes = &bytes[skip..];
                continue;
            }
            let take = (HEADER_BYTES - self.header_len).min(bytes.len());
            self.header[self.header_len..self.header_len + take].copy_from_slice(&bytes[..take]);
            self.header_len += take;
            bytes = &bytes[take..];
            if self.header_len == HEADER_BYTES {
                self.header_len = 0;
                self.on_header();
            }
        }
    }

    fn on_header(&mut self) {
        let [.., a, b, c, d] = self.header;
        let length = u32::from_be_bytes([a, b, c, d]);
        match self.header[1] {
            TYPE_DATA => self.body_left = length as usize,
            TYPE_GO_AWAY => self.go_away = Some(length),
            _ => {}
        }
    }
}

#[derive(Debug, Default)]
struct State {
    inbound: VecDeque<Bytes>,
    inbound_len: usize,
    outbound: BytesMut,
    follower: FrameFollower,
}

/// The driver's end.
#[derive(Debug, Clone, Default)]
pub struct Wire(Arc<Mutex<State>>);

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end that the yamux crate reads and writes.
    pub fn mux_end(&self) -> MuxEnd {
        MuxEnd(self.clone())
    }

    /// Hands received bytes to the crate.
    pub fn push_inbound(&self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        state.inbound_len += bytes.len();
        state.inbound.push_back(bytes);
    }

    /// Whether so much waits for the crate that nothing more should be read.
    pub fn inbound_is_full(&self) -> bool {
        self.state().inbound_len >= INBOUND_LIMIT
    }

    /// Takes what the crate wants to send, if there is anything.
    pub fn take_outbound(&self) -> Option<Bytes> {
        let mut state = self.state();
        (!state.outbound.is_empty()).then(|| state.outbound.split().freeze())
    }

    /// Whether the crate waits until something was sent.
    pub fn outbound_is_full(&self) -> bool {
        self.state().outbound.len() >= OUTBOUND_LIMIT
    }

    /// The code of a GoAway that the crate has written, if it has.
    pub fn go_away(&self) -> Option<u32> {
        self.state().follower.go_away
    }
}

/// The crate's end.
#[derive(Debug)]
pub struct MuxEnd(Wire);

impl AsyncRead for MuxEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.state();
        let mut copied = 0;
        while copied < buf.len() {
            let Some(front) = state.inbound.front_mut() else {
                break;
            };
            let take = front.len().min(buf.len() - copied);
            buf[copied..copied + take].copy_from_slice(&front[..take]);
            copied += take;
            front.advance(take);
            if front.is_empty() {
                state.inbound.pop_front();
            }
        }
        state.inbound_len -= copied;
        if copied > 0 || buf.is_empty() {
            return Poll::Ready(Ok(copied));
        }
        Poll::Pending
    }
}

impl AsyncWrite for MuxEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.state();
        if state.outbound.len() >= OUTBOUND_LIMIT {
            return Poll::Pending;
        }
        state.outbound.extend_from_slice(buf);
        state.follower.follow(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, length: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, kind, 0, 0, 0, 0, 0, 1];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_go_away_is_seen_behind_data_that_looks_like_one() {
        let mut follower = FrameFollower::default();
        let decoy = frame(TYPE_GO_AWAY, 7, &[]);
        follower.follow(&frame(TYPE_DATA, decoy.len() as u32, &decoy));
        assert_eq!(follower.go_away, None);
        follower.follow(&frame(TYPE_GO_AWAY, 1, &[]));
        assert_eq!(follower.go_away, Some(1));
    }

    proptest! {
        #[test]
        fn frames_are_followed_however_they_are_cut(
            bodies in proptest::collection::vec(0usize..70, 0..20),
            cut in 1usize..40,
        ) {
            let mut bytes = Vec::new();
            for body in bodies {
                bytes.extend(frame(TYPE_DATA, body as u32, &vec![3; body]));
                bytes.extend(frame(1, 3, &[]));
            }
            let mut follower = FrameFollower::default();
            bytes.chunks(cut).for_each(|chunk| follower.follow(chunk));
            prop_assert_eq!(follower.go_away, None);
            frame(TYPE_GO_AWAY, 2, &[]).chunks(cut).for_each(|chunk| follower.follow(chunk));
            prop_assert_eq!(follower.go_away, Some(2));
        }
    }
}
