//! What a tunnel has to send: frames of all streams in one buffer, which the driver takes as a whole,
//! and whose turn is next when the buffer is full.

use std::collections::VecDeque;
use std::task::Waker;

use super::frame::{HEADER_BYTES, Header, Kind};
use crate::websocket::MAX_HEADER;

/// Bytes that may wait to be sent before streams have to take turns.
pub const LIMIT: usize = 128 * 1024;
/// Largest body of one data frame, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// A stream that has sent nothing in this round may put so little into a full buffer, in bytes: small
/// requests do not queue behind bulk.
const SMALL_BODY: usize = 16 * 1024;
/// Bytes beyond which nothing of any stream is taken.
const HARD_LIMIT: usize = 2 * LIMIT;
/// Streams that are called when a full buffer was taken: as many as may fill it again.
const CALLED_AT_ONCE: usize = LIMIT / MAX_BODY + 1;

/// Frames to send, and the streams that wait to add more.
#[derive(Default)]
pub struct Outbox {
    /// Starts with room for a WebSocket header, unless it is empty.
    buffer: Vec<u8>,
    waiting: VecDeque<(u32, Waker)>,
    round: u64,
}

impl Outbox {
    /// Whether a stream may add `body` bytes; `round` is when it did so last.
    pub fn admits(&self, body: usize, round: u64) -> bool {
        let had_its_turn = round == self.round + 1;
        match self.buffer.len() {
            len if len >= HARD_LIMIT => false,
            len if len < LIMIT => !had_its_turn || self.waiting.is_empty(),
            _ => !had_its_turn && body <= SMALL_BODY,
        }
    }

    /// The round that streams note when they add something; never zero.
    pub fn round(&self) -> u64 {
        self.round + 1
    }

    /// Puts a stream into the queue of those that wait.
    pub fn wait(&mut self, id: u32, waker: &Waker) {
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == id) {
            Some((_, known)) => known.clone_from(waker),
            None => self.waiting.push_back((id, waker.clone())),
        }
    }

    /// Takes a stream out of the queue.
    pub fn forget(&mut self, id: u32) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
    }

    /// Everybody who waits.
    pub fn take_waiting(&mut self) -> Vec<Waker> {
        self.waiting.drain(..).map(|(_, waker)| waker).collect()
    }

    fn make_room(&mut self, bytes: usize) {
        if self.buffer.is_empty() {
            self.buffer.resize(MAX_HEADER, 0);
        }
        self.buffer.reserve(bytes);
    }

    /// Adds a frame without a body.
    pub fn push_header(&mut self, header: Header) {
        self.make_room(HEADER_BYTES);
        self.buffer.extend_from_slice(&header.encode());
    }

    /// Adds a data frame with the first `header.length` bytes of `parts`, which are at least so many.
    pub fn push_data<'a>(&mut self, header: Header, parts: impl Iterator<Item = &'a [u8]>) {
        debug_assert_eq!(header.kind, Kind::Data);
        let mut left = header.length as usize;
        self.make_room(HEADER_BYTES + left);
        self.buffer.extend_from_slice(&header.encode());
        for part in parts {
            let taken = part.len().min(left);
            self.buffer.extend_from_slice(&part[..taken]);
            left -= taken;
        }
    }

    /// Swaps everything that is to be sent with `empty`; returns who may add more now.
    pub fn take(&mut self, empty: &mut Vec<u8>) -> Vec<Waker> {
        debug_assert!(empty.is_empty());
        std::mem::swap(&mut self.buffer, empty);
        self.round += 1;
        let called = match empty.is_empty() {
            // Whoever was called and did not come must not hold up the others.
            true => self.waiting.len(),
            false => self.waiting.len().min(CALLED_AT_ONCE),
        };
        self.waiting
            .drain(..called)
            .map(|(_, waker)| waker)
            .collect()
    }

    /// Lets go of the buffer's memory while there is nothing to send.
    pub fn shrink(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
    }
}
