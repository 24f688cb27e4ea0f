//! One stream of the tunnel: to the origin, or by `CONNECT` to what else is allowed.
//!
//! The agent speaks HTTP only where the origin cannot: when it is not there, and for `CONNECT`.
//! Everything else is the origin's own, keep-alive and upgrades included, on one connection for the
//! life of the stream.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::Address;
use super::connect_head::{Opening, head_len, opening, target};
use super::splice::{Upstream, drain, splice};

/// Largest head of a `CONNECT`, in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// How long it may take from its first byte to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection to the origin may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Names the reason to the cloud, which tells its caller.
const ERROR_HEADER: &str = "Edgecloud-Agent-Error";

/// What streams may lead to.
#[derive(Debug)]
pub struct Routes {
    /// The device's own HTTP server.
    pub origin: Address,
    /// What else may be reached by `CONNECT`.
    pub allow_tcp: Vec<Address>,
}

impl Routes {
    /// The address to connect to for a `CONNECT`, as the owner of the device wrote it.
    fn allowed(&self, wanted: &Address) -> Option<&Address> {
        std::iter::once(&self.origin)
            .chain(&self.allow_tcp)
            .find(|allowed| allowed.is_same_place(wanted))
    }
}

/// An answer of the agent's own.
struct Answer {
    status: &'static str,
    /// The value of [`ERROR_HEADER`].
    reason: Option<&'static str>,
    text: &'static str,
}

const BAD_REQUEST: Answer = Answer {
    status: "400 Bad Request",
    reason: None,
    text: "a CONNECT must name HOST:PORT, within 8 KiB and 10 seconds\n",
};
const FORBIDDEN: Answer = Answer {
    status: "403 Forbidden",
    reason: None,
    text: "the agent does not allow this address; see its --allow-tcp\n",
};
const REFUSED: Answer = bad_gateway("refused", "nothing listens at this address\n");
const TIMEOUT: Answer = bad_gateway("timeout", "no connection within 10 seconds\n");
const UNREACHABLE: Answer = bad_gateway("unreachable", "there is no way to this address\n");

const fn bad_gateway(reason: &'static str, text: &'static str) -> Answer {
    Answer {
        status: "502 Bad Gateway",
        reason: Some(reason),
        text,
    }
}

/// Serves one stream from its first byte to its last. Cancelling it cuts both sides off.
pub async fn serve<S>(mut stream: S, routes: &Routes)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ahead = BytesMut::new();
    // Idle streams wait here, for as long as they like and without a connection to the origin.
    match stream.read_buf(&mut ahead).await {
        Ok(0) => {
            // An opener that has gone meanwhile needs no end.
            let _ = stream.shutdown().await;
        }
        Ok(_) => match timeout(HEAD_TIMEOUT, read_opening(&mut stream, &mut ahead)).await {
            Ok(Ok(Opening::Origin)) => forward(stream, &routes.origin, &ahead).await,
            Ok(Ok(Opening::Connect)) => connect(stream, routes, ahead).await,
            Ok(Err(_)) => {}
            Err(_) => answer(stream, &BAD_REQUEST, true).await,
        },
        Err(_) => {}
    }
}

async fn read_opening<S>(stream: &mut S, ahead: &mut BytesMut) -> io::Result<Opening>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(opening) = opening(ahead) {
            return Ok(opening);
        }
        if stream.read_buf(ahead).await? == 0 {
            // Not a whole CONNECT: the origin may make of it what it can.
            return Ok(Opening::Origin);
        }
    }
}

async fn forward<S>(stream: S, origin: &Address, ahead: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match dial(origin).await {
        Ok(upstream) => splice(stream, upstream, ahead).await,
        Err(refusal) => answer(stream, &refusal, !ahead.starts_with(b"HEAD ")).await,
    }
}

async fn connect<S>(mut stream: S, routes: &Routes, mut ahead: BytesMut)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = match timeout(HEAD_TIMEOUT, read_head(&mut stream, &mut ahead)).await {
        Ok(Ok(Some(head))) => head,
        Ok(Err(_)) => return,
        Ok(Ok(None)) | Err(_) => return answer(stream, &BAD_REQUEST, true).await,
    };
    let Some(wanted) = target(&head) else {
        return answer(stream, &BAD_REQUEST, true).await;
    };
    let Some(allowed) = routes.allowed(&wanted) else {
        tracing::warn!(address = %wanted, "a TCP connection was not allowed");
        return answer(stream, &FORBIDDEN, true).await;
    };
    let upstream = match dial(allowed).await {
        Ok(upstream) => upstream,
        Err(refusal) => return answer(stream, &refusal, true).await,
    };
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    if stream.write_all(established).await.is_ok() {
        splice(stream, upstream, &ahead).await;
    }
}

/// Reads a head and leaves what follows it in `ahead`; `None` when it is too long or cut short.
async fn read_head<S>(stream: &mut S, ahead: &mut BytesMut) -> io::Result<Option<Bytes>>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(len) = head_len(ahead) {
            let head = ahead.split_to(len).freeze();
            return Ok((len <= MAX_HEAD_BYTES).then_some(head));
        }
        if ahead.len() >= MAX_HEAD_BYTES || stream.read_buf(ahead).await? == 0 {
            return Ok(None);
        }
    }
}

async fn dial(address: &Address) -> Result<Upstream, Answer> {
    let host = address.dial_host();
    let connecting = TcpStream::connect((host.as_str(), address.port));
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(tcp)) => {
            // Only speed is lost without it.
            let _ = tcp.set_nodelay(true);
            Ok(Upstream::new(tcp))
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "no connection on the device");
            Err(match error.kind() {
                io::ErrorKind::ConnectionRefused => REFUSED,
                io::ErrorKind::TimedOut => TIMEOUT,
                _ => UNREACHABLE,
            })
        }
        Err(_) => Err(TIMEOUT),
    }
}

/// Gives an answer of the agent's own and ends the stream so that the opener can read all of it.
async fn answer<S>(mut stream: S, answer: &Answer, with_body: bool)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Answer { status, text, .. } = answer;
    let reason = answer
        .reason
        .map(|reason| format!("{ERROR_HEADER}: {reason}\r\n"))
        .unwrap_or_default();
    let length = text.len();
    let body = if with_body { text } else { "" };
    let bytes = format!(
        "HTTP/1.1 {status}\r\n{reason}Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    if stream.write_all(bytes.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        drain(&mut stream).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connect_that_stalls_is_refused() {
        let origin: Address = "127.0.0.1:1".parse().expect("an address");
        let routes = Routes {
            origin,
            allow_tcp: Vec::new(),
        };
        for stalled in ["C", "CONNECT ", "CONNECT 127.0.0.1:1 HTTP/1.1\r\n"] {
            let (mut opener, stream) = tokio::io::duplex(1024);
            let asking = async {
                opener.write_all(stalled.as_bytes()).await.expect("write");
                let mut answer = String::new();
                opener.read_to_string(&mut answer).await.expect("read");
                answer
            };
            let (answer, ()) = tokio::join!(asking, serve(stream, &routes));
            assert!(answer.starts_with("HTTP/1.1 400 "), "{stalled}: {answer}");
        }
    }
}
