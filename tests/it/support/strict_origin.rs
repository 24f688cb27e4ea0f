//! An origin that reads requests by the letter of RFC 9112 and takes nothing in the way of leniency:
//! what it counts is what really crossed the tunnel.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// One complete request, byte by byte.
#[derive(Debug, Clone)]
pub struct Crossed {
    /// The head with its empty line.
    pub head: String,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// Everything that arrived for it.
    pub raw: Vec<u8>,
}

impl Crossed {
    /// The request line's target.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Every value of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1);
        let fields = fields.filter_map(|line| line.split_once(':'));
        fields
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

#[derive(Default)]
struct Record {
    complete: Vec<Crossed>,
    /// What was wrong with a request that was no request.
    wrong: Vec<String>,
}

/// The origin. Answers each complete request with its method and target.
pub struct StrictOrigin {
    addr: SocketAddr,
    record: Arc<Mutex<Record>>,
    _task: AbortOnDropHandle<()>,
}

impl StrictOrigin {
    /// Starts it on any free port.
    pub async fn spawn() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("bind an origin");
        let addr = listener.local_addr().expect("a bound address");
        let record = Arc::<Mutex<Record>>::default();
        let shared = Arc::clone(&record);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(converse(stream, Arc::clone(&shared)));
            }
        });
        Self {
            addr,
            record,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Every complete request so far.
    pub fn complete(&self) -> Vec<Crossed> {
        lock(&self.record).complete.clone()
    }

    /// What arrived that no request may look like; requests that only broke off are not here.
    pub fn wrong(&self) -> Vec<String> {
        lock(&self.record).wrong.clone()
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why there is no further request on a connection.
enum Broken {
    /// It ended, before a request or within one.
    Off,
    /// It is not by the letter.
    Wrong(String),
}

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self::Off
    }
}

async fn converse(stream: TcpStream, record: Arc<Mutex<Record>>) {
    let mut stream = BufReader::new(stream);
    loop {
        match request(&mut stream).await {
            Ok(crossed) => {
                let words: Vec<_> = crossed.head.split(' ').take(2).collect();
                let body = match words[0] {
                    "HEAD" => String::new(),
                    _ => words.join(" "),
                };
                let length = words.join(" ").len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
                lock(&record).complete.push(crossed);
                if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            Err(Broken::Off) => return,
            Err(Broken::Wrong(what)) => return lock(&record).wrong.push(what),
        }
    }
}

/// A line with its CRLF; nothing else ends one.
async fn line(stream: &mut BufReader<TcpStream>, raw: &mut Vec<u8>) -> Result<String, Broken> {
    let start = raw.len();
    stream.read_until(b'\n', raw).await?;
    let Some(line) = raw[start..].strip_suffix(b"\n") else {
        return Err(Broken::Off);
    };
    let wrong = || Broken::Wrong(String::from_utf8_lossy(line).into_owned());
    let text = line.strip_suffix(b"\r").ok_or_else(wrong)?;
    let clean = text.iter().all(|byte| !matches!(byte, b'\r' | 0));
    if !clean {
        return Err(wrong());
    }
    Ok(String::from_utf8_lossy(text).into_owned())
}

async fn request(stream: &mut BufReader<TcpStream>) -> Result<Crossed, Broken> {
    let mut raw = Vec::new();
    let first = line(stream, &mut raw).await?;
    let words: Vec<_> = first.split(' ').collect();
    if words.len() != 3 || words[2] != "HTTP/1.1" || !words[1].starts_with('/') {
        return Err(Broken::Wrong(first));
    }
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    loop {
        let field = line(stream, &mut raw).await?;
        if field.is_empty() {
            break;
        }
        let (name, value) = split_field(&field)?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => lengths.push(value.to_owned()),
            "transfer-encoding" => codings.push(value.to_owned()),
            _ => {}
        }
    }
    let head = String::from_utf8_lossy(&raw).into_owned();
    let body = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Vec::new(),
        ([length], []) => {
            let length = length.parse::<usize>();
            let length = length.map_err(|_| Broken::Wrong(head.clone()))?;
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            raw.extend_from_slice(&body);
            body
        }
        ([], [coding]) if coding == "chunked" => chunks(stream, &mut raw).await?,
        _ => return Err(Broken::Wrong(head)),
    };
    Ok(Crossed { head, body, raw })
}

fn split_field(field: &str) -> Result<(&str, &str), Broken> {
    let token = |name: &str| {
        let mut bytes = name.bytes();
        !name.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    field
        .split_once(':')
        .filter(|(name, _)| token(name))
        .map(|(name, value)| (name, value.trim_matches([' ', '\t'])))
        .ok_or_else(|| Broken::Wrong(field.to_owned()))
}

async fn chunks(stream: &mut BufReader<TcpStream>, raw: &mut Vec<u8>) -> Result<Vec<u8>, Broken> {
    let mut body = Vec::new();
    loop {
        let size = line(stream, raw).await?;
        let digits = size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let length = usize::from_str_radix(&size, 16).ok().filter(|_| digits);
        let Some(length) = length else {
            return Err(Broken::Wrong(size));
        };
        if length == 0 {
            break;
        }
        let start = raw.len();
        raw.resize(start + length, 0);
        stream.read_exact(&mut raw[start..]).await?;
        body.extend_from_slice(&raw[start..]);
        let end = line(stream, raw).await?;
        if !end.is_empty() {
            return Err(Broken::Wrong(end));
        }
    }
    loop {
        let trailer = line(stream, raw).await?;
        if trailer.is_empty() {
            return Ok(body);
        }
        split_field(&trailer)?;
    }
}
