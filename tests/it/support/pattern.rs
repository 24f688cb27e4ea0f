//! A long body whose every byte is known from its place, and that costs next to nothing to make or check.

use std::sync::OnceLock;

use bytes::Bytes;

/// A prime, so that no chunk size of any layer divides it: a lost, doubled or moved chunk shows.
const PERIOD: usize = 65_521;
const CHUNK: usize = 64 * 1024;

/// A place in the endless pattern.
#[derive(Debug, Clone, Default)]
pub struct Pattern {
    position: u64,
}

impl Pattern {
    /// How many bytes were produced or checked.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, at most `limit`.
    pub fn next(&mut self, limit: u64) -> Bytes {
        let length = usize::try_from(limit).unwrap_or(CHUNK).min(CHUNK);
        let start = self.offset();
        self.position += length as u64;
        two_periods().slice(start..start + length)
    }

    /// Whether `bytes` come next.
    pub fn accepts(&mut self, bytes: &[u8]) -> bool {
        bytes.chunks(CHUNK).all(|part| {
            let start = self.offset();
            self.position += part.len() as u64;
            two_periods()[start..start + part.len()] == *part
        })
    }

    fn offset(&self) -> usize {
        usize::try_from(self.position % PERIOD as u64).expect("smaller than the period")
    }
}

fn two_periods() -> Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    BYTES
        .get_or_init(|| {
            let mut state: u32 = 0x9e37_79b9;
            let period: Vec<u8> = (0..PERIOD)
                .map(|_| {
                    // xorshift32: any bytes without a short cycle will do.
                    state ^= state << 13;
                    state ^= state >> 17;
                    state ^= state << 5;
                    state.to_le_bytes()[1]
                })
                .collect();
            [period.as_slice(), &period, &period].concat().into()
        })
        .clone()
}
