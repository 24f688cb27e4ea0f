//! Connections to the cloud: TCP, with TLS where the URL says so, and one HTTP exchange over them.
//!
//! The cloud proves who it is, by certificate and host name, before a byte of a secret leaves.
//! Redirects are answers like any other here: nobody follows them.

use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use url::Url;

use super::address::Address;
use crate::tunnel::Metered;
use crate::types::Timestamp;

/// Largest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The certificates to trust cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot trust certificates: {0}")]
pub struct TrustError(String);

/// Why there is no connection, or no answer on it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The certificate is not trusted, or is another host's.
    #[error("{0}'s certificate is refused: {1}")]
    Untrusted(String, rustls::Error),
    /// There is no connection.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// The connection ended before the answer.
    #[error("{0} gives no answer: {1}")]
    NoAnswer(String, String),
}

/// Opens connections to the cloud. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    tls: TlsConnector,
}

impl Links {
    /// Trusts the system's certificates, or those of `ca_file` alone.
    ///
    /// # Errors
    /// When `ca_file` cannot be read or has no certificate.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(path) => add_file(&mut roots, path)?,
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TrustError(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Self { tls })
    }

    /// Connects to a URL's host; `https` and `wss` mean TLS. The caller sets the deadline.
    ///
    /// # Errors
    /// When there is no connection, or none to be trusted.
    pub async fn connect(&self, url: &Url) -> Result<Link, LinkError> {
        let Some(address) = Address::of_url(url) else {
            return Err(unreachable(url, "the URL has no host"));
        };
        let dial_host = address.dial_host();
        let tcp = TcpStream::connect((dial_host.as_str(), address.port)).await;
        let tcp = tcp.map_err(|error| unreachable(url, error))?;
        tcp.set_nodelay(true)
            .map_err(|error| unreachable(url, error))?;
        if matches!(url.scheme(), "http" | "ws") {
            return Ok(Link::Left(tcp));
        }
        let name = ServerName::try_from(dial_host).map_err(|error| unreachable(url, error))?;
        let tls = self.tls.connect(name, tcp).await;
        let tls = tls.map_err(|error| refused(url, error))?;
        Ok(Link::Right(Box::new(tls)))
    }

    /// Sends one request and returns the head of the answer, its body still to come, and with it
    /// the connection, which must be polled for that. The caller sets the deadline.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn exchange(
        &self,
        url: &Url,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Exchange), LinkError> {
        let link = Metered::new(self.connect(url).await?);
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(link))
            .await
            .map_err(|error| unreachable(url, error))?;
        let mut connection: Exchange = Box::pin(async move {
            // What goes wrong shows at the request and its body.
            let _ = connection.with_upgrades().await;
        });
        let mut answer = pin!(sender.send_request(request));
        let answer = tokio::select! {
            biased;
            answer = answer.as_mut() => answer,
            () = connection.as_mut() => {
                connection = Box::pin(std::future::ready(()));
                answer.await
            }
        };
        let answer = answer.map_err(|error| LinkError::NoAnswer(shown(url), error.to_string()))?;
        Ok((answer, connection))
    }
}

/// The connection of an exchange, ended when it is done or dropped.
pub type Exchange = Pin<Box<dyn Future<Output = ()> + Send>>;

fn unreachable(url: &Url, error: impl ToString) -> LinkError {
    LinkError::Unreachable(shown(url), error.to_string())
}

fn refused(url: &Url, error: io::Error) -> LinkError {
    let reason = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(reason @ rustls::Error::InvalidCertificate(_)) => {
            LinkError::Untrusted(shown(url), reason.clone())
        }
        _ => unreachable(url, error),
    }
}

/// A URL in messages: scheme, host and port.
pub fn shown(url: &Url) -> String {
    match Address::of_url(url) {
        Some(address) if url.port().is_some() => format!("{}://{address}", url.scheme()),
        Some(address) => format!("{}://{}", url.scheme(), address.host),
        None => "the cloud".to_owned(),
    }
}

/// The `Host` header for a URL.
pub fn host_header(url: &Url) -> String {
    let shown = shown(url);
    match shown.split_once("://") {
        Some((_, host)) => host.to_owned(),
        None => shown,
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TrustError> {
    let failed = |error: &dyn ToString| {
        TrustError(format!(
            "--ca-file {}: {}",
            path.display(),
            error.to_string()
        ))
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    match roots.is_empty() {
        true => Err(failed(&"there is no certificate in it")),
        false => Ok(()),
    }
}

/// How long an answer asks to wait (RFC 9110 §10.2.3): seconds, or a date.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<std::time::Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = value.parse() {
        return Some(std::time::Duration::from_secs(secs));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(value)
        .ok()?;
    Some(Timestamp::from_millis(date.as_millisecond()).since(now))
}

/// A connection to the cloud: plain on this machine, TLS everywhere else.
pub type Link = Either<TcpStream, Box<TlsStream<TcpStream>>>;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    fn asked(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, value.parse().expect("a value"));
        // 2015-10-21T07:28:00Z
        retry_after(&headers, Timestamp::from_millis(1_445_412_480_000))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(asked("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            asked("Wed, 21 Oct 2015 07:29:00 GMT"),
            Some(Duration::from_secs(60))
        );
        assert_eq!(asked("Wed, 21 Oct 2015 07:27:00 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("soon"), None);
        assert_eq!(asked("-1"), None);
    }

    #[test]
    fn the_host_header_has_a_port_only_where_it_is_not_the_schemes_own() {
        assert_eq!(host_header(&url("https://c.example/x")), "c.example");
        assert_eq!(host_header(&url("wss://c.example:443")), "c.example");
        assert_eq!(host_header(&url("ws://[::1]:3800")), "[::1]:3800");
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = Links::new(Some(file.path())).err().expect("refused");
        assert!(error.to_string().contains("no certificate"), "{error}");
        assert!(Links::new(Some(Path::new("/does/not/exist"))).is_err());
    }

    crate::fuzzing::fuzz_target!(answers_to_wait, |bytes| {
        if let Ok(value) = http::HeaderValue::from_bytes(bytes) {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value);
            for now in [i64::MIN, 0, i64::MAX] {
                retry_after(&headers, Timestamp::from_millis(now));
            }
        }
    });
}
