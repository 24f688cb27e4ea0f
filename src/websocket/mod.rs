//! WebSocket frames (RFC 6455 §5) as a filter over a byte stream.
//!
//! Nobody here cares for the boundaries of messages, so none is ever put together: what arrives of a
//! payload is handed on at once, and an idle connection needs no buffer.

pub mod masks;
#[cfg(test)]
mod tests;

/// Longest header of a frame, in bytes.
pub const MAX_HEADER: usize = 14;
/// Longest payload of a control frame, in bytes (RFC 6455 §5.5).
const MAX_CONTROL: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A key to mask with, or none.
pub type Mask = Option<[u8; 4]>;

/// How the other side breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// Not a frame that may come here.
    Protocol,
    /// A message that is longer than allowed.
    TooLong,
    /// A text message.
    Text,
}

/// What a piece of input says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// More of the byte stream; nothing for an empty message.
    Data(&'a [u8]),
    /// To be answered with the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping.
    Pong(&'a [u8]),
    /// The end, with its code if there was one.
    Close(Option<u16>),
}

#[derive(Debug)]
enum State {
    Header,
    Payload { left: u64 },
    Control { opcode: u8, left: usize },
}

/// Reads frames.
#[derive(Debug)]
pub struct Decoder {
    /// Clients mask what they send, servers do not (RFC 6455 §5.1).
    peer_masks: bool,
    max_message: u64,
    state: State,
    /// The header so far; then the control frame's payload so far.
    kept: [u8; MAX_CONTROL],
    kept_len: usize,
    mask: Mask,
    /// Payload bytes of this message, and whether it goes on in the next frame.
    message: u64,
    continued: bool,
}

impl Decoder {
    /// Reads frames of a client (`peer_masks`) or of a server, with messages of at most `max_message` bytes.
    pub fn new(peer_masks: bool, max_message: usize) -> Self {
        Self {
            peer_masks,
            max_message: max_message as u64,
            state: State::Header,
            kept: [0; MAX_CONTROL],
            kept_len: 0,
            mask: None,
            message: 0,
            continued: false,
        }
    }

    /// Takes from the front of `input` what makes the next event, or all of it for `None`; tells how
    /// many bytes that is. Masked bytes are unmasked in place.
    ///
    /// # Errors
    /// When the other side breaks the protocol; nothing more can be read then.
    pub fn next<'s>(
        &'s mut self,
        input: &'s mut [u8],
    ) -> Result<(usize, Option<Event<'s>>), Violation> {
        let mut at = 0;
        loop {
            match self.state {
                State::Header => {
                    let (taken, complete) = self.read_header(&input[at..])?;
                    at += taken;
                    if !complete {
                        return Ok((at, None));
                    }
                    if let State::Payload { left: 0 } = self.state
                        && self.message == 0
                        && !self.continued
                    {
                        self.state = State::Header;
                        return Ok((at, Some(Event::Data(&[]))));
                    }
                }
                State::Payload { left: 0 } => self.state = State::Header,
                State::Payload { left } => {
                    if at == input.len() {
                        return Ok((at, None));
                    }
                    let whole = usize::try_from(left).unwrap_or(usize::MAX);
                    let bytes = &mut input[at..];
                    let take = bytes.len().min(whole);
                    let bytes = &mut bytes[..take];
                    self.state = State::Payload {
                        left: left - take as u64,
                    };
                    if let Some(key) = &mut self.mask {
                        apply_mask(bytes, *key);
                        key.rotate_left(take % 4);
                    }
                    return Ok((at + take, Some(Event::Data(bytes))));
                }
                State::Control { opcode, left } => {
                    let take = (input.len() - at).min(left);
                    self.keep(&input[at..at + take]);
                    at += take;
                    if take < left {
                        let left = left - take;
                        self.state = State::Control { opcode, left };
                        return Ok((at, None));
                    }
                    self.state = State::Header;
                    let len = std::mem::take(&mut self.kept_len);
                    let payload = &mut self.kept[..len];
                    if let Some(key) = self.mask {
                        apply_mask(payload, key);
                    }
                    return control(opcode, payload).map(|event| (at, Some(event)));
                }
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept[self.kept_len..self.kept_len + bytes.len()].copy_from_slice(bytes);
        self.kept_len += bytes.len();
    }

    /// Goes on with a header; tells how much of the input it takes and whether it is complete.
    fn read_header(&mut self, input: &[u8]) -> Result<(usize, bool), Violation> {
        let mut at = 0;
        // Its first two bytes tell how long it is.
        loop {
            let need = header_len(&self.kept[..self.kept_len]) - self.kept_len;
            if need == 0 {
                break;
            }
            let take = need.min(input.len() - at);
            self.keep(&input[at..at + take]);
            at += take;
            if take < need {
                return Ok((at, false));
            }
        }
        let len = std::mem::take(&mut self.kept_len);
        let header = self.kept;
        self.begin(&header[..len])?;
        Ok((at, true))
    }

    fn begin(&mut self, header: &[u8]) -> Result<(), Violation> {
        let (last, reserved, opcode) = (header[0] & 0x80 != 0, header[0] & 0x70, header[0] & 0x0f);
        let masked = header[1] & 0x80 != 0;
        if reserved != 0 || masked != self.peer_masks {
            return Err(Violation::Protocol);
        }
        let (length, rest) = match header[1] & 0x7f {
            126 => (
                u64::from(u16::from_be_bytes([header[2], header[3]])),
                &header[4..],
            ),
            127 => {
                let bytes = header[2..10].try_into().unwrap_or([0xff; 8]);
                (u64::from_be_bytes(bytes), &header[10..])
            }
            short => (u64::from(short), &header[2..]),
        };
        self.mask = rest.try_into().ok();
        match opcode {
            CLOSE | PING | PONG => {
                if !last || length > MAX_CONTROL as u64 {
                    return Err(Violation::Protocol);
                }
                let left = usize::try_from(length).unwrap_or(MAX_CONTROL);
                self.state = State::Control { opcode, left };
                return Ok(());
            }
            TEXT => return Err(Violation::Text),
            BINARY if !self.continued => self.message = 0,
            CONTINUATION if self.continued => {}
            _ => return Err(Violation::Protocol),
        }
        self.continued = !last;
        self.message = self.message.saturating_add(length);
        if self.message > self.max_message {
            return Err(Violation::TooLong);
        }
        self.state = State::Payload { left: length };
        Ok(())
    }
}

/// How long a header is, as far as its first two bytes tell.
fn header_len(start: &[u8]) -> usize {
    let Some(second) = start.get(1) else {
        return 2;
    };
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    2 + length + mask
}

fn control(opcode: u8, payload: &[u8]) -> Result<Event<'_>, Violation> {
    Ok(match (opcode, payload) {
        (PING, _) => Event::Ping(payload),
        (PONG, _) => Event::Pong(payload),
        (_, []) => Event::Close(None),
        (_, [_]) => return Err(Violation::Protocol),
        (_, [a, b, ..]) => Event::Close(Some(u16::from_be_bytes([*a, *b]))),
    })
}

/// Masks or unmasks in place (RFC 6455 §5.3).
pub fn apply_mask(bytes: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Turns `buffer`, whose first [`MAX_HEADER`] bytes are free and whose rest is a payload, into one
/// binary message; returns where it begins.
pub fn seal_binary(buffer: &mut [u8], mask: Mask) -> usize {
    let (front, payload) = buffer.split_at_mut(MAX_HEADER);
    if let Some(key) = mask {
        apply_mask(payload, key);
    }
    let mut header = [0; MAX_HEADER];
    let len = header_of(&mut header, BINARY, payload.len(), mask);
    front[MAX_HEADER - len..].copy_from_slice(&header[..len]);
    MAX_HEADER - len
}

fn header_of(into: &mut [u8; MAX_HEADER], opcode: u8, length: usize, mask: Mask) -> usize {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    into[0] = 0x80 | opcode;
    let mut len = match length {
        0..=125 => {
            into[1] = masked | length as u8;
            2
        }
        126..=0xffff => {
            into[1] = masked | 126;
            into[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            into[1] = masked | 127;
            into[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    if let Some(key) = mask {
        into[len..len + 4].copy_from_slice(&key);
        len += 4;
    }
    len
}

fn push_control(into: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: Mask) {
    let payload = &payload[..payload.len().min(MAX_CONTROL)];
    let mut header = [0; MAX_HEADER];
    let len = header_of(&mut header, opcode, payload.len(), mask);
    into.extend_from_slice(&header[..len]);
    let start = into.len();
    into.extend_from_slice(payload);
    if let Some(key) = mask {
        apply_mask(&mut into[start..], key);
    }
}

/// Appends a ping.
pub fn push_ping(into: &mut Vec<u8>, payload: &[u8], mask: Mask) {
    push_control(into, PING, payload, mask);
}

/// Appends the answer to a ping.
pub fn push_pong(into: &mut Vec<u8>, payload: &[u8], mask: Mask) {
    push_control(into, PONG, payload, mask);
}

/// Appends the close frame. 1005 says "no code" and never goes over the wire (RFC 6455 §7.4.1), like
/// other codes that are reserved.
pub fn push_close(into: &mut Vec<u8>, code: u16, mask: Mask) {
    let code: u16 = match code {
        1000..=1003 | 1007..=1011 | 1012..=1014 | 3000..=4999 => code,
        _ => 1000,
    };
    push_control(into, CLOSE, &code.to_be_bytes(), mask);
}
