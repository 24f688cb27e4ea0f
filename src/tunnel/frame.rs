//! yamux frames: a header of twelve bytes, and a body for data only (hashicorp/yamux specification,
//! version 0). Pure.

/// Length of a header, in bytes.
pub const HEADER_BYTES: usize = 12;
/// What each side may send on a fresh stream before it hears more, in bytes.
pub const INITIAL_WINDOW: u32 = 256 * 1024;

/// The first frame of a stream.
pub const SYN: u16 = 1;
/// The answer to [`SYN`].
pub const ACK: u16 = 2;
/// The sender will send nothing more on the stream.
pub const FIN: u16 = 4;
/// The stream ends at once, in both directions.
pub const RST: u16 = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of a stream; the length is that of the body.
    Data,
    /// More bytes may be sent on a stream; the length says how many.
    WindowUpdate,
    /// A question, or with [`ACK`] its answer; the length is an opaque value.
    Ping,
    /// No new streams; the length is a reason.
    GoAway,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// [`SYN`], [`ACK`], [`FIN`] and [`RST`].
    pub flags: u16,
    /// Zero for the connection as a whole.
    pub stream: u32,
    /// See [`Kind`].
    pub length: u32,
}

impl Header {
    /// The header on the wire.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let kind = match self.kind {
            Kind::Data => 0,
            Kind::WindowUpdate => 1,
            Kind::Ping => 2,
            Kind::GoAway => 3,
        };
        let [f0, f1] = self.flags.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [0, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3]
    }

    /// Reads a header; `None` for another version or an unknown type.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = bytes;
        let kind = match (version, kind) {
            (0, 0) => Kind::Data,
            (0, 1) => Kind::WindowUpdate,
            (0, 2) => Kind::Ping,
            (0, 3) => Kind::GoAway,
            _ => return None,
        };
        Some(Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Whether a flag is set.
    pub fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_is_laid_out_as_specified() {
        let header = Header {
            kind: Kind::WindowUpdate,
            flags: SYN | FIN,
            stream: 0x0102_0304,
            length: 0x0a0b_0c0d,
        };
        let bytes = [0, 1, 0, 5, 1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(bytes), Some(header));
    }

    proptest! {
        #[test]
        fn what_is_understood_is_written_the_same(bytes in any::<[u8; HEADER_BYTES]>()) {
            match Header::decode(bytes) {
                Some(header) => prop_assert_eq!(header.encode(), bytes),
                None => prop_assert!(bytes[0] != 0 || bytes[1] > 3),
            }
        }
    }
}
