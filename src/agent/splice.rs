//! A stream of the tunnel and a TCP connection, joined byte by byte.
//!
//! Each direction ends on its own. What is cut off on one side is cut off on the other, never ended
//! cleanly: the far end must not take half a body for a whole one.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

/// Copy buffer per direction, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Copy buffer of a stream that carries little, in bytes.
const SMALL_BUFFER_BYTES: usize = 4 * 1024;
/// How much is read away after the last answer on a stream, in bytes.
const DRAIN_BYTES: u64 = 1024 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A TCP connection that is reset when dropped, unless all went well.
pub struct Upstream {
    tcp: TcpStream,
    complete: bool,
}

impl Upstream {
    /// Takes charge of a connection.
    pub fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            complete: false,
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if !self.complete {
            // A socket that is gone already needs no reset.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

/// Where a copy broke off.
enum Broken {
    Source,
    Sink,
}

/// Joins a stream and a connection until both directions have ended; `ahead` was read from the
/// stream already. Returning drops both ends: clean where the bytes were whole, reset otherwise.
pub async fn splice<S>(stream: S, mut upstream: Upstream, ahead: &[u8])
where
    S: AsyncRead + AsyncWrite,
{
    let (mut from_opener, mut to_opener) = tokio::io::split(stream);
    let (mut from_origin, mut to_origin) = upstream.tcp.split();
    let upload = async {
        let copied = match to_origin.write_all(ahead).await {
            Ok(()) => upload(&mut from_opener, &mut to_origin).await,
            Err(_) => Err(Broken::Sink),
        };
        match copied {
            Ok(()) => Ok(true),
            // An origin may answer before it has read everything: its answer still counts.
            Err(Broken::Sink) => Ok(false),
            Err(Broken::Source) => Err(Broken::Source),
        }
    };
    let download = download(&mut from_origin, &mut to_opener);
    if let Ok((read_to_its_end, ())) = tokio::try_join!(upload, download) {
        upstream.complete = true;
        if !read_to_its_end {
            drain(&mut from_opener).await;
        }
    }
}

/// From the opener to the origin.
async fn upload<R, W>(source: &mut R, sink: &mut W) -> Result<(), Broken>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::with_capacity(SMALL_BUFFER_BYTES);
    loop {
        let read = source.read_buf(&mut buffer).await;
        let read = read.map_err(|_| Broken::Source)?;
        if read == 0 {
            return sink.shutdown().await.map_err(|_| Broken::Sink);
        }
        let written = sink.write_all(&buffer).await;
        written.map_err(|_| Broken::Sink)?;
        // Most uploads are heads of requests, and most streams wait for the next one.
        if read == buffer.capacity() {
            buffer = BytesMut::with_capacity(BUFFER_BYTES);
        } else if read <= SMALL_BUFFER_BYTES && buffer.capacity() > SMALL_BUFFER_BYTES {
            buffer = BytesMut::with_capacity(SMALL_BUFFER_BYTES);
        } else {
            buffer.clear();
        }
    }
}

/// From the origin to the opener.
async fn download<R, W>(source: &mut R, sink: &mut W) -> Result<(), Broken>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::new();
    loop {
        let read = read_next(source, &mut buffer).await;
        if read.map_err(|_| Broken::Source)? == 0 {
            return sink.shutdown().await.map_err(|_| Broken::Sink);
        }
        let written = sink.write_all(&buffer).await;
        written.map_err(|_| Broken::Sink)?;
        buffer.clear();
    }
}

/// Reads what comes next into an empty buffer. A quiet origin holds no buffer.
async fn read_next<R>(source: &mut R, buffer: &mut BytesMut) -> io::Result<usize>
where
    R: AsyncRead + Unpin,
{
    poll_fn(|cx| {
        buffer.reserve(BUFFER_BYTES);
        // Not `readable` and `try_read`: after a read that has not filled the buffer those would ask the
        // system once more, for nothing.
        let polled = poll_read_buf(Pin::new(&mut *source), cx, buffer);
        if polled.is_pending() {
            *buffer = BytesMut::new();
        }
        polled
    })
    .await
}

/// Reads away what the opener still sends, within bounds: a stream dropped too early is reset, and
/// the opener could lose an answer that it has not read yet.
pub async fn drain<R: AsyncRead + Unpin>(source: &mut R) {
    let mut sink = tokio::io::sink();
    let mut rest = source.take(DRAIN_BYTES);
    // However this ends, the stream is dropped next.
    let _ = timeout(DRAIN_TIME, tokio::io::copy(&mut rest, &mut sink)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::net::TcpListener;

    /// Reads from a connection on which much has come, in a task that has used up its share of this turn
    /// nearly: a loop that does not give way then would never end.
    async fn download_with_little_left_of_the_turn() -> u64 {
        const BYTES: usize = 4 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("an address");
        let (connected, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (mut origin, mut tcp) = (connected.expect("connected"), accepted.expect("accepted").0);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { origin.write_all(&vec![7; BYTES]).await });
        let (mut source, _) = tcp.split();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(126);
        (0..126).for_each(|number| sender.try_send(number).expect("there is room"));
        source.readable().await.expect("something has come");
        tokio::task::yield_now().await;
        for _ in 0..126 {
            receiver.recv().await.expect("there is one");
        }
        let (mut sink, mut far) = tokio::io::duplex(BYTES);
        let copied = async {
            let copied = download(&mut source, &mut sink).await;
            drop(sink);
            copied
        };
        let counted = async {
            let mut nowhere = tokio::io::sink();
            tokio::io::copy(&mut far, &mut nowhere).await
        };
        let (copied, counted) = tokio::join!(copied, counted);
        assert!(copied.is_ok());
        counted.expect("read")
    }

    #[test]
    fn a_long_download_gives_way_to_others() {
        let (done, end) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.expect("a runtime");
            done.send(runtime.block_on(download_with_little_left_of_the_turn()))
        });
        let bytes = end.recv_timeout(Duration::from_secs(20));
        assert_eq!(bytes, Ok(4 << 20));
    }
}
