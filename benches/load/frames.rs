//! What a simulated device reads and writes: yamux frames (hashicorp's specification, version 0) inside the binary
//! messages of a WebSocket. Byte by byte where it has to be, so that an idle device keeps no buffer.

use super::websocket::frame_head;

const HEADER: usize = 12;

/// Kinds of yamux frames.
pub const DATA: u8 = 0;
pub const WINDOW_UPDATE: u8 = 1;
pub const PING: u8 = 2;
/// Flags of yamux frames.
pub const SYN: u16 = 1;
pub const ACK: u16 = 2;
pub const FIN: u16 = 4;
pub const RST: u16 = 8;

/// The head of a yamux frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u16,
    pub stream: u32,
    pub length: u32,
}

impl Frame {
    fn parse(bytes: &[u8; HEADER]) -> Self {
        let [_, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }

    /// Writes the frame's head; the body, if it has one, is the caller's next write.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0, self.kind]);
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
    }

    /// Whether a flag is set.
    pub fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What the bytes of a tunnel mean to a device.
pub trait Sink {
    /// A frame's head has come.
    fn on_frame(&mut self, frame: Frame);
    /// A part of a data frame's body has come.
    fn on_data(&mut self, frame: Frame, part: &[u8]);
    /// A data frame is complete.
    fn on_end(&mut self, frame: Frame);
}

/// Follows yamux frames however they are cut.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    body: Option<(Frame, u32)>,
}

impl Frames {
    fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) {
        while !bytes.is_empty() {
            if let Some((frame, left)) = &mut self.body {
                let take = bytes.len().min(*left as usize);
                sink.on_data(*frame, &bytes[..take]);
                *left -= take as u32;
                bytes = &bytes[take..];
                if *left == 0 {
                    sink.on_end(*frame);
                    self.body = None;
                }
                continue;
            }
            let take = bytes.len().min(HEADER - self.have);
            self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == HEADER {
                self.have = 0;
                let frame = Frame::parse(&self.header);
                sink.on_frame(frame);
                match frame.kind {
                    DATA if frame.length > 0 => self.body = Some((frame, frame.length)),
                    DATA => sink.on_end(frame),
                    _ => {}
                }
            }
        }
    }
}

/// Follows a server's WebSocket frames however they are cut, and the yamux frames inside.
#[derive(Debug, Default)]
pub struct Messages {
    head: Vec<u8>,
    left: u64,
    control: Option<(u8, Vec<u8>)>,
    frames: Frames,
}

/// What a WebSocket's own frames ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// To be answered with the same payload.
    Pong(Vec<u8>),
    /// The end, with this code.
    Close(u16),
}

impl Messages {
    /// Takes received bytes in; returns what the WebSocket asks for, in order.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> Vec<Asked> {
        let mut asked = Vec::new();
        while !bytes.is_empty() || self.is_control_complete() {
            if self.is_control_complete() {
                let (opcode, payload) = self.control.take().expect("it is complete");
                match opcode {
                    9 => asked.push(Asked::Pong(payload)),
                    8 => asked.push(Asked::Close(close_code(&payload))),
                    _ => {}
                }
                continue;
            }
            if self.left == 0 {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                self.take_head();
                continue;
            }
            let take = bytes
                .len()
                .min(usize::try_from(self.left).unwrap_or(usize::MAX));
            match &mut self.control {
                Some((_, payload)) => payload.extend_from_slice(&bytes[..take]),
                None => self.frames.feed(&bytes[..take], sink),
            }
            self.left -= take as u64;
            bytes = &bytes[take..];
        }
        asked
    }

    fn is_control_complete(&self) -> bool {
        self.left == 0 && self.control.is_some()
    }

    fn take_head(&mut self) {
        let [first, second, extra @ ..] = self.head.as_slice() else {
            return;
        };
        let wanted = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if extra.len() < wanted {
            return;
        }
        self.left = match wanted {
            0 => u64::from(second & 0x7f),
            _ => extra
                .iter()
                .fold(0, |all, byte| all << 8 | u64::from(*byte)),
        };
        let opcode = first & 0x0f;
        self.control = (opcode >= 8).then(|| (opcode, Vec::new()));
        self.head.clear();
    }
}

fn close_code(payload: &[u8]) -> u16 {
    match payload {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 1005,
    }
}

/// Puts a payload into a WebSocket frame of a client.
pub fn message(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_head(opcode, payload.len());
    frame.extend_from_slice(payload);
    frame
}
