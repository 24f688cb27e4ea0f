//! The least of HTTP/1.1 that a load generator needs: requests that are made once and sent often, answers of a known
//! length.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Read at once, in bytes; large enough that a bulk transfer is not held up by this side's system calls.
const READ_BUFFER: usize = 256 * 1024;
/// The same for one of many connections.
const SMALL_BUFFER: usize = 4 * 1024;
/// Longest answer head that is taken, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// Asked for on every socket: what a machine's default does to loopback traffic differs too much.
const CONGESTION_CONTROL: &[u8] = b"cubic";

/// Where requests go to.
#[derive(Debug, Clone, clap::Args)]
pub struct Target {
    /// Address of the server.
    #[arg(long, value_name = "IP:PORT")]
    pub target: SocketAddr,
    /// Path and query.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// File with header lines to send along (`Name: value`), such as a cookie.
    #[arg(long, value_name = "FILE")]
    pub headers: Option<PathBuf>,
}

impl Target {
    /// A request head without its last empty line; `more` are further header lines, each with its end.
    pub fn head(&self, method: &str, more: &str) -> Result<String> {
        let own = match &self.headers {
            Some(file) => header_lines(file)?,
            None => String::new(),
        };
        let has_host = own.to_ascii_lowercase().contains("host:");
        let host = match has_host {
            true => String::new(),
            false => format!("Host: {}\r\n", self.target),
        };
        let path = &self.path;
        Ok(format!("{method} {path} HTTP/1.1\r\n{host}{own}{more}"))
    }

    /// A whole request without a body.
    pub fn request(&self, method: &str, more: &str) -> Result<Vec<u8>> {
        Ok(format!("{}\r\n", self.head(method, more)?).into_bytes())
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<TcpStream> {
        connect(self.target, None).await
    }
}

fn header_lines(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let lines = text.lines().filter(|line| !line.is_empty());
    Ok(lines.map(|line| format!("{line}\r\n")).collect())
}

/// Connects, from a given address of this machine if there is one.
pub async fn connect(to: SocketAddr, from: Option<SocketAddr>) -> Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .context("make a socket")?;
    socket.set_nodelay(true).context("set TCP_NODELAY")?;
    // The harness has set the whole machine to it where it could; where not, this is better than nothing.
    let _ = socket2::SockRef::from(&socket).set_tcp_congestion(CONGESTION_CONTROL);
    if let Some(from) = from {
        socket.bind(from).with_context(|| format!("bind {from}"))?;
    }
    let connected = socket.connect(to).await;
    connected.with_context(|| format!("connect to {to}"))
}

/// What an answer's head says.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Bytes of the body; `None` when the head does not say.
    pub length: Option<u64>,
    /// Whether the connection ends after it.
    pub closes: bool,
}

/// A connection with what was read from it and not used yet.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Connection {
    /// Reads and writes over a stream.
    pub fn over(stream: TcpStream) -> Self {
        Self::with_buffer(stream, READ_BUFFER)
    }

    /// One of many, which carries little.
    pub fn small(stream: TcpStream) -> Self {
        Self::with_buffer(stream, SMALL_BUFFER)
    }

    /// Goes on over another stream, with the same buffer.
    pub fn go_over(&mut self, stream: TcpStream) {
        self.stream = stream;
        (self.start, self.end) = (0, 0);
    }

    fn with_buffer(stream: TcpStream, bytes: usize) -> Self {
        Self {
            stream,
            buffer: vec![0; bytes],
            start: 0,
            end: 0,
        }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.context("send")
    }

    /// What was received and not used yet; waits for something when there is nothing. Empty at the end.
    pub async fn fill(&mut self) -> Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.read_more().await?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Marks received bytes as used.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "more used than received");
    }

    async fn read_more(&mut self) -> Result<usize> {
        let read = self.stream.read(&mut self.buffer[self.end..]).await;
        let read = read.context("receive")?;
        self.end += read;
        Ok(read)
    }

    /// Receives at least so many bytes without using them. There must be room for them.
    pub async fn fill_to(&mut self, count: usize) -> Result<&[u8]> {
        if self.buffer.len() - self.start < count {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < count {
            ensure!(self.read_more().await? > 0, "the connection ended early");
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Receives the head of an answer.
    pub async fn read_head(&mut self) -> Result<Head> {
        let mut searched = 0;
        loop {
            let have = self.end - self.start;
            let bytes = &self.buffer[self.start..self.end];
            if let Some(at) = find(&bytes[searched..], b"\r\n\r\n") {
                let length = searched + at + 4;
                let head = Head::parse(&bytes[..length])?;
                self.consume(length);
                return Ok(head);
            }
            ensure!(have < MAX_HEAD, "the answer's head is too long");
            searched = have.saturating_sub(3);
            self.fill_to(have + 1).await.context("read a head")?;
        }
    }

    /// Receives a body of a known length and shows its parts to `see`.
    pub async fn read_body(&mut self, head: Head, mut see: impl FnMut(&[u8])) -> Result<u64> {
        let Some(length) = head.length else {
            bail!("the answer does not tell its length");
        };
        let mut left = length;
        while left > 0 {
            let part = self.fill().await?;
            ensure!(!part.is_empty(), "the body ended {left} bytes early");
            let take = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            see(&part[..take]);
            self.consume(take);
            left -= take as u64;
        }
        Ok(length)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}

impl Head {
    /// Understands a head, its last empty line included.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).context("a head that is no text")?;
        let mut lines = text.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok())
            .context("a head without a status")?;
        let mut head = Head {
            status,
            length: (status == 204).then_some(0),
            closes: false,
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.length = Some(value.parse().context("a bad Content-Length")?);
            } else if name.eq_ignore_ascii_case("connection") {
                head.closes = value.eq_ignore_ascii_case("close");
            }
        }
        Ok(head)
    }
}
