//! The control stream: newline-separated JSON on the first stream of a tunnel whose ends agreed on
//! [`super::SUBPROTOCOL`]. Unknown message types are ignored, so that either end may be newer.

use std::io;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest line of the control stream, in bytes.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// One line of the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ControlMessage {
    /// The first message of either end.
    Hello {
        /// From the device: the `Host` that its origin expects.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        origin_host: Option<String>,
        /// From the proxy: the id of its node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node_id: Option<String>,
        /// From the device, if it says so: which device it is. Never believed, its token tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device_id: Option<String>,
        /// From the device, if it says so: whose it is. Never believed either.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant_id: Option<String>,
    },
    /// From the proxy: open a new tunnel after this time, then let this one drain.
    Move {
        /// Milliseconds to wait first, so that a fleet does not move at once.
        after_ms: u64,
    },
    /// From the proxy: the device is no longer welcome; do not come back before an hour.
    Revoked,
    /// A type of a newer version.
    #[serde(other)]
    Unknown,
}

/// The control stream of one tunnel. It keeps no buffer between two messages: nearly all tunnels are idle.
pub struct ControlStream<S> {
    stream: S,
    /// What was received of the next lines.
    received: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ControlStream<S> {
    /// Speaks the control protocol over a stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send(&mut self, message: &ControlMessage) -> io::Result<()> {
        let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        self.stream.flush().await
    }

    /// Receives the next message of a known type; `None` at the end of the stream. Nothing is lost when
    /// it is dropped before it is ready.
    ///
    /// # Errors
    /// On lines that are too long or not messages, and when the stream fails.
    pub async fn receive(&mut self) -> io::Result<Option<ControlMessage>> {
        let mut searched = 0;
        loop {
            let end = self.received[searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| searched + end) {
                let line = self.received.split_to(end + 1);
                if self.received.is_empty() {
                    self.received = BytesMut::new();
                }
                searched = 0;
                match parse(&line[..end])? {
                    ControlMessage::Unknown => continue,
                    message => return Ok(Some(message)),
                }
            }
            searched = self.received.len();
            if searched > MAX_LINE_BYTES {
                let error = "control line is too long";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return match self.received.is_empty() {
                    true => Ok(None),
                    // The last line may lack its end.
                    false => parse(&self.received.split()).map(Some),
                };
            }
        }
    }
}

fn parse(line: &[u8]) -> io::Result<ControlMessage> {
    Ok(serde_json::from_slice(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn receive_all(text: &str) -> Vec<io::Result<Option<ControlMessage>>> {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        near.write_all(text.as_bytes())
            .await
            .expect("the pipe takes it");
        drop(near);
        let mut control = ControlStream::new(far);
        let mut received = Vec::new();
        loop {
            let message = control.receive().await;
            let last = !matches!(message, Ok(Some(_)));
            received.push(message);
            if last {
                return received;
            }
        }
    }

    #[tokio::test]
    async fn unknown_types_and_unknown_fields_are_ignored() {
        let text =
            "{\"type\":\"weather\",\"sun\":true}\n{\"type\":\"move\",\"after_ms\":7,\"x\":1}\n";
        let received = receive_all(text).await;
        assert!(matches!(
            received[0],
            Ok(Some(ControlMessage::Move { after_ms: 7 }))
        ));
        assert!(matches!(received[1], Ok(None)));
    }

    #[tokio::test]
    async fn garbage_and_long_lines_are_errors() {
        assert!(receive_all("not json\n").await[0].is_err());
        assert!(receive_all(&"a".repeat(MAX_LINE_BYTES + 1)).await[0].is_err());
    }

    #[tokio::test]
    async fn messages_cross_the_stream() {
        let (near, far) = tokio::io::duplex(1024);
        let hello = ControlMessage::Hello {
            origin_host: Some("box:80".into()),
            node_id: None,
            device_id: None,
            tenant_id: None,
        };
        ControlStream::new(near).send(&hello).await.expect("send");
        assert_eq!(
            ControlStream::new(far).receive().await.expect("receive"),
            Some(hello)
        );
    }
}
