//! Another implementation at the other end: the yamux crate over tungstenite.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::io::AsyncWriteExt as _;
use futures_util::{Sink, Stream};
use tokio::task::JoinSet;

use super::*;

/// A WebSocket as the byte stream that the crate wants; each write is a message.
struct Bytewise {
    ws: WebSocketStream<DuplexStream>,
    rest: Bytes,
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}

impl futures_util::io::AsyncRead for Bytewise {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        while self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.ws).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(0)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let taken = self.rest.len().min(buf.len());
        buf[..taken].copy_from_slice(&self.rest.split_to(taken));
        Poll::Ready(Ok(taken))
    }
}

impl futures_util::io::AsyncWrite for Bytewise {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut ws = Pin::new(&mut self.ws);
        std::task::ready!(ws.as_mut().poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(buf));
        ws.start_send(message).map_err(broken)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_flush(cx).map_err(broken)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_close(cx).map_err(broken)
    }
}

/// A device on the yamux crate that sends every stream's bytes back, and their end after them.
async fn echoing_device(io: DuplexStream) {
    let ws = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    let rest = Bytes::new();
    let mut connection = yamux::Connection::new(
        Bytewise { ws, rest },
        yamux::Config::default(),
        yamux::Mode::Server,
    );
    let mut streams = JoinSet::new();
    while let Some(Ok(stream)) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        streams.spawn(async move {
            let (mut reader, mut writer) = futures_util::io::AsyncReadExt::split(stream);
            let copied = futures_util::io::copy(&mut reader, &mut writer).await;
            copied.expect("copy");
            writer.close().await.expect("close");
        });
    }
}

#[tokio::test]
async fn a_device_on_the_yamux_crate_gets_and_sends_every_byte() {
    let (near, far) = duplex(64 * 1024);
    let proxy = end_over(near, Side::Proxy);
    let device = tokio::task::spawn(echoing_device(far));
    let mut exchanges = JoinSet::new();
    for byte in 0..4u8 {
        let stream = proxy.tunnel.open().expect("open");
        exchanges.spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let body = vec![byte; 3_000_000];
            let sending = async {
                writer.write_all(&body).await.expect("write");
                writer.shutdown().await.expect("half-close");
            };
            let mut echo = Vec::new();
            let (read, ()) = tokio::join!(reader.read_to_end(&mut echo), sending);
            read.expect("a clean end");
            assert!(echo == body);
        });
    }
    while let Some(exchange) = exchanges.join_next().await {
        exchange.expect("no panic");
    }
    proxy.tunnel.close(CloseReason::Done);
    device.await.expect("no panic");
}
