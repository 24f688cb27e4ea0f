//! One listening socket, plain or TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::tls::TlsFiles;

/// Connections that the kernel keeps for us before they are accepted.
const BACKLOG: i32 = 4096;
/// When the kernel begins to ask a silent peer whether it is still there: streams that may be silent
/// for long (WebSocket, server-sent events) have no other time limit.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Pause between two such questions.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
/// How long a peer may take nothing of what waits for it, unless the listener is told otherwise.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The address of the socket's other end (a proxy's, where there is one).
    pub addr: SocketAddr,
    /// Whether this process ended TLS.
    pub tls: bool,
}

/// A bound socket.
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    tls: Option<TlsFiles>,
    stuck_after: Duration,
}

impl Listener {
    /// Binds; with `reuse_port` several processes may share the port.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(addr: SocketAddr, reuse_port: bool, tls: Option<TlsFiles>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from_std(socket.into())?;
        let addr = socket.local_addr()?;
        Ok(Self {
            socket,
            addr,
            tls,
            stuck_after: STUCK_AFTER,
        })
    }

    /// Gives a connection up when its peer takes nothing of what waits for it for so long.
    #[must_use]
    pub fn write_timeout(self, stuck_after: Duration) -> Self {
        Self {
            stuck_after,
            ..self
        }
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, addr) = self.socket.accept().await?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY);
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.stuck_after))?;
        Ok((
            stream,
            Peer {
                addr,
                tls: self.tls.is_some(),
            },
        ))
    }

    pub(super) fn tls(&self) -> Option<TlsFiles> {
        self.tls.clone()
    }
}

/// An accepted connection: plain TCP or TLS over it.
pub struct Connection(Either<TcpStream, Box<TlsStream<TcpStream>>>);

impl Connection {
    /// Shakes hands where there is TLS, for at most `limit`.
    pub(super) async fn establish(
        stream: TcpStream,
        tls: Option<TlsFiles>,
        limit: Duration,
    ) -> io::Result<Self> {
        let Some(tls) = tls else {
            return Ok(Self(Either::Left(stream)));
        };
        let handshake = tls.acceptor().accept(stream);
        let stream = tokio::time::timeout(limit, handshake).await??;
        Ok(Self(Either::Right(Box::new(stream))))
    }

    /// Makes the coming drop reset the connection, so that the other side does not take what it
    /// has received for complete.
    pub fn reset_on_drop(&self) {
        let socket = match &self.0 {
            Either::Left(stream) => SockRef::from(stream),
            Either::Right(stream) => SockRef::from(stream.get_ref().0),
        };
        // A socket that is gone already needs no reset.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
