//! A device on the level of the wire: it writes its own yamux frames, right or wrong, and reads or
//! leaves unread what it likes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::raw_device::RawDevice;
use super::wait::within;

/// The words of the protocol (hashicorp yamux specification, "Framing").
pub mod yamux {
    /// Carries bytes of a stream.
    pub const DATA: u8 = 0;
    /// Allows more bytes of a stream.
    pub const WINDOW_UPDATE: u8 = 1;
    /// Asks for an answer, or is one.
    pub const PING: u8 = 2;
    /// Takes no new streams.
    pub const GO_AWAY: u8 = 3;
    /// Opens a stream, or asks.
    pub const SYN: u16 = 1;
    /// Takes a stream, or answers.
    pub const ACK: u16 = 2;
    /// Ends one direction of a stream.
    pub const FIN: u16 = 4;
    /// Ends a stream.
    pub const RST: u16 = 8;
    /// What may be sent into a new stream.
    pub const INITIAL_WINDOW: u32 = 256 * 1024;

    /// A frame's header, which is a whole frame unless it carries data.
    pub fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
        let mut header = vec![0, kind];
        header.extend(flags.to_be_bytes());
        header.extend(stream.to_be_bytes());
        header.extend(length.to_be_bytes());
        header
    }

    /// A frame with so much data in it.
    pub fn data(flags: u16, stream: u32, bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).expect("a frame's length");
        let mut frame = header(DATA, flags, stream, length);
        frame.extend_from_slice(bytes);
        frame
    }
}

/// A frame that has come.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// Its flags.
    pub flags: u16,
    /// Its stream; 0 for the session.
    pub stream: u32,
    /// What its header says of a length.
    pub length: u32,
    /// Its data.
    pub body: Bytes,
}

/// The device's end of a tunnel, without the control protocol: the cloud says nothing before the first
/// request.
pub struct WireDevice {
    socket: WebSocketStream<TcpStream>,
    unread: BytesMut,
}

impl WireDevice {
    /// Connects with the device's token.
    pub async fn connect(device: &RawDevice) -> Self {
        Self::over(device, TcpSocket::new_v4().expect("a socket")).await
    }

    /// Connects with so little room for what is not read yet that the cloud soon gets nothing rid.
    pub async fn connect_narrowly(device: &RawDevice) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        Self::over(device, socket).await
    }

    async fn over(device: &RawDevice, socket: TcpSocket) -> Self {
        let connecting = socket.connect(device.tunnel_addr());
        let stream = within("a connection", connecting).await.expect("connect");
        let opened = device.handshake().shake_hands(stream).await;
        let Ok(opened) = opened else {
            panic!("a device with its token should be let in");
        };
        Self {
            socket: opened.socket,
            unread: BytesMut::new(),
        }
    }

    /// Sends bytes of frames in one message; whether they were taken.
    pub async fn send(&mut self, frames: impl Into<Bytes>) -> bool {
        let sent = self.socket.send(Message::Binary(frames.into()));
        within("the frames are taken", sent).await.is_ok()
    }

    /// Sends bytes below the WebSocket, as they are; whether they were taken.
    pub async fn send_below(&mut self, bytes: &[u8]) -> bool {
        let sent = self.socket.get_mut().write_all(bytes);
        within("the bytes are taken", sent).await.is_ok()
    }

    /// Sends the same frames again and again, and reads away what comes meanwhile; whether all were
    /// taken.
    pub async fn flood(&mut self, frames: Vec<u8>, times: usize) -> bool {
        let frames = Bytes::from(frames);
        let (mut sink, mut source) = (&mut self.socket).split();
        let sending = async {
            for _ in 0..times {
                let message = Message::Binary(frames.clone());
                if sink.send(message).await.is_err() {
                    return false;
                }
            }
            true
        };
        let reading = async { while let Some(Ok(_)) = source.next().await {} };
        within("the flood is over", async {
            tokio::select! {
                all = sending => all,
                () = reading => false,
            }
        })
        .await
    }

    /// The next frame; `None` when the tunnel has ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        while self.unread.len() < 12 || self.unread.len() < 12 + self.body_length() {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => self.unread.extend_from_slice(&bytes),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
        let body_length = self.body_length();
        let mut header = self.unread.split_to(12);
        let (_version, kind) = (header.get_u8(), header.get_u8());
        Some(Frame {
            kind,
            flags: header.get_u16(),
            stream: header.get_u32(),
            length: header.get_u32(),
            body: self.unread.split_to(body_length).freeze(),
        })
    }

    fn body_length(&self) -> usize {
        let length = u32::from_be_bytes(self.unread[8..12].try_into().expect("four bytes"));
        match self.unread[1] {
            yamux::DATA => length as usize,
            _ => 0,
        }
    }

    /// Waits until the cloud opens a stream, and takes it; its id.
    pub async fn take_stream(&mut self) -> u32 {
        let stream = within("a stream opens", async {
            loop {
                let frame = self.frame().await.expect("the tunnel should live");
                if frame.flags & yamux::SYN != 0 && frame.stream != 0 {
                    return frame.stream;
                }
            }
        })
        .await;
        let taken = yamux::header(yamux::WINDOW_UPDATE, yamux::ACK, stream, 0);
        assert!(self.send(taken).await, "the tunnel should live");
        stream
    }

    /// Waits for the end of the tunnel, and hangs up: its close code, or `None` when the cloud just hangs
    /// up.
    pub async fn ended(mut self) -> Option<u16> {
        within("the end of the tunnel", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => {
                        return frame.map(|frame| frame.code.into());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        })
        .await
    }

    /// Whether the tunnel has ended: asks for an answer, which comes after everything before it was
    /// read, and reads up to it.
    pub async fn has_ended(&mut self) -> bool {
        let nonce = Bytes::from_static(b"has it ended?");
        // Below the limit of pings as long as each is awaited.
        if self
            .socket
            .send(Message::Ping(nonce.clone()))
            .await
            .is_err()
        {
            return true;
        }
        within("an answer or the end", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Pong(answer))) if answer == nonce => return false,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return true,
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }

    /// Says goodbye and waits for the answer, which comes after everything before it was read.
    pub async fn leave(mut self) {
        // The tunnel may have ended already.
        let _ = self.socket.close(None).await;
        self.ended().await;
    }

    /// Takes every stream, never allows a byte more than the first window, answers GETs outside
    /// `/held` at once and everything else only after [`WireServer::release`].
    pub fn serve(self) -> WireServer {
        let (held, release) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let task = tokio::spawn(converse(self, Arc::clone(&held), release.clone()));
        WireServer {
            held,
            release,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// A [`WireDevice`] that serves as long as this lives.
pub struct WireServer {
    held: Arc<AtomicUsize>,
    release: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl WireServer {
    /// How many requests wait for their answer.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Answers what waits.
    pub fn release(&self) {
        self.release.cancel();
    }
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwire";

async fn converse(mut wire: WireDevice, held: Arc<AtomicUsize>, release: CancellationToken) {
    let mut heads: HashMap<u32, BytesMut> = HashMap::new();
    let mut waiting = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = wire.frame() => frame,
            () = release.cancelled(), if !waiting.is_empty() => {
                let answers = waiting.drain(..).map(|stream| yamux::data(0, stream, ANSWER));
                let answers = answers.collect::<Vec<_>>().concat();
                if !wire.send(answers).await {
                    return;
                }
                continue;
            }
        };
        let Some(frame) = frame else {
            return;
        };
        let mut reply = Vec::new();
        if frame.kind == yamux::PING && frame.flags & yamux::SYN != 0 {
            reply = yamux::header(yamux::PING, yamux::ACK, 0, frame.length);
        }
        if frame.stream != 0 && frame.flags & yamux::SYN != 0 {
            reply.extend(yamux::header(
                yamux::WINDOW_UPDATE,
                yamux::ACK,
                frame.stream,
                0,
            ));
        }
        if frame.kind == yamux::DATA && !waiting.contains(&frame.stream) {
            let head = heads.entry(frame.stream).or_default();
            head.extend_from_slice(&frame.body);
            if head.windows(4).any(|end| end == b"\r\n\r\n") {
                if head.starts_with(b"GET ") && !head.starts_with(b"GET /held") {
                    reply.extend(yamux::data(0, frame.stream, ANSWER));
                } else {
                    waiting.push(frame.stream);
                    held.fetch_add(1, Ordering::SeqCst);
                }
                heads.remove(&frame.stream);
            }
        }
        if frame.flags & yamux::FIN != 0 {
            reply.extend(yamux::header(yamux::DATA, yamux::FIN, frame.stream, 0));
        }
        if frame.flags & (yamux::FIN | yamux::RST) != 0 {
            heads.remove(&frame.stream);
            waiting.retain(|stream| *stream != frame.stream);
        }
        if !reply.is_empty() && !wire.send(reply).await {
            return;
        }
    }
}
