//! The least of WebSocket (RFC 6455) that a load generator needs: its handshake, and the payload of binary frames
//! without a copy.

use anyhow::{Context, Result, bail, ensure};
use data_encoding::BASE64;

use super::http::{Connection, Target};

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Every frame that a client sends is masked; a mask of zeros leaves the payload as it is.
const MASKED: u8 = 0x80;

/// The client's end of a WebSocket that carries a byte stream.
pub struct ByteStream {
    connection: Connection,
    /// Bytes of the frame under way.
    left: u64,
}

impl ByteStream {
    /// Opens a WebSocket.
    pub async fn open(target: &Target) -> Result<Self> {
        let key = BASE64.encode(&[7; 16]);
        let more = format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        );
        let mut connection = Connection::over(target.connect().await?);
        connection.send(&target.request("GET", &more)?).await?;
        let head = connection.read_head().await?;
        ensure!(head.status == 101, "no WebSocket: status {}", head.status);
        Ok(Self {
            connection,
            left: 0,
        })
    }

    /// Sends bytes as one message.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut frame = frame_head(BINARY, bytes.len());
        frame.extend_from_slice(bytes);
        self.connection.send(&frame).await
    }

    /// Payload that was received and not used yet; waits for some. Empty at the end.
    pub async fn fill(&mut self) -> Result<&[u8]> {
        while self.left == 0 {
            if !self.next_frame().await? {
                return Ok(&[]);
            }
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let bytes = self.connection.fill().await?;
        ensure!(!bytes.is_empty(), "the WebSocket ended inside a frame");
        Ok(&bytes[..bytes.len().min(left)])
    }

    /// Marks payload as used.
    pub fn consume(&mut self, count: usize) {
        self.connection.consume(count);
        self.left -= count as u64;
    }

    /// Reads the next frame's head; tells whether there is one.
    async fn next_frame(&mut self) -> Result<bool> {
        if self.connection.fill().await?.is_empty() {
            return Ok(false);
        }
        let bytes = self.connection.fill_to(2).await?;
        let (first, second) = (bytes[0], bytes[1]);
        ensure!(second & MASKED == 0, "a server masked its frame");
        let extra = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let bytes = self.connection.fill_to(2 + extra).await?;
        let length = match extra {
            0 => u64::from(second),
            _ => bytes[2..2 + extra]
                .iter()
                .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        self.connection.consume(2 + extra);
        match first & 0x0f {
            // An empty message is the end of its direction.
            BINARY if length == 0 => return Ok(false),
            BINARY | CONTINUATION => self.left = length,
            CLOSE => return Ok(false),
            opcode @ (PING | PONG) => self.control(opcode, length).await?,
            opcode => bail!("a frame of the kind {opcode} in a byte stream"),
        }
        Ok(true)
    }

    async fn control(&mut self, opcode: u8, length: u64) -> Result<()> {
        let length = usize::try_from(length).context("a control frame that is too long")?;
        ensure!(length < 126, "a control frame that is too long");
        let payload = match length {
            0 => Vec::new(),
            _ => self.connection.fill_to(length).await?[..length].to_vec(),
        };
        self.connection.consume(length);
        if opcode == PING {
            let mut pong = frame_head(PONG, length);
            pong.extend_from_slice(&payload);
            self.connection.send(&pong).await?;
        }
        Ok(())
    }
}

/// The head of a client's frame, mask included.
pub fn frame_head(opcode: u8, length: usize) -> Vec<u8> {
    let mut head = vec![0x80 | opcode];
    match length {
        0..126 => head.push(MASKED | length as u8),
        126..=0xffff => {
            head.push(MASKED | 126);
            head.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            head.push(MASKED | 127);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head.extend_from_slice(&[0; 4]);
    head
}
