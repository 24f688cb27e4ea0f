//! The HTTP client for calls to the provider: bounded in time and size, follows no redirect.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// How long a call may take, all in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// How long a kept connection may idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Kept connections per host.
const IDLE_CONNECTIONS: usize = 4;

/// A call that brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The other side cannot be reached, or stopped half-way.
    #[error("{0} cannot be reached")]
    Unreachable(String),
    /// It took too long.
    #[error("{0} does not answer in time")]
    Timeout(String),
    /// The answer is larger than 1 MiB or was cut off.
    #[error("the answer of {0} is cut off or larger than 1 MiB")]
    BadBody(String),
    /// The certificates to trust cannot be read.
    #[error("cannot read certificates: {0}")]
    Certificates(String),
}

/// A client for a few, small calls. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpClient {
    /// A client that trusts the system's certificates, or those of `ca_file` alone.
    ///
    /// # Errors
    /// When `ca_file` cannot be read.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, HttpError> {
        let certificates = |error: String| HttpError::Certificates(error);
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(path) => {
                for certificate in CertificateDer::pem_file_iter(path)
                    .map_err(|error| certificates(format!("{}: {error}", path.display())))?
                {
                    let certificate =
                        certificate.map_err(|error| certificates(error.to_string()))?;
                    roots
                        .add(certificate)
                        .map_err(|error| certificates(error.to_string()))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| certificates(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(connector);
        Ok(Self(client))
    }

    /// Makes one call.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub async fn call(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, HttpError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answer = async {
            let request = request.map(|body| Full::new(Bytes::from(body)));
            let response = self
                .0
                .request(request)
                .await
                .map_err(|_| HttpError::Unreachable(host.clone()))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|_| HttpError::BadBody(host.clone()))?;
            Ok(Response::from_parts(parts, body.to_bytes().to_vec()))
        };
        tokio::time::timeout(CALL_TIMEOUT, answer)
            .await
            .map_err(|_| HttpError::Timeout(host.clone()))?
    }
}
