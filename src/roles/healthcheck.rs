//! `healthcheck`: asks the process on this machine whether it is ready.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Failure, load_config, ready_file, runtime};
use crate::config::{Config, Flags};

/// How long a process may take to say that it is ready.
const DEADLINE: Duration = Duration::from_secs(3);

/// Succeeds when the process is ready.
pub fn run(flags: &Flags) -> Result<(), Failure> {
    let from_file = match &flags.ready_file {
        Some(path) => Some(ready_file::read(path)?),
        None => None,
    };
    // With the ready file alone, the settings need not be there; without them there is no TLS.
    let config = match (load_config(flags), &from_file) {
        (Ok(config), _) => Some(config),
        (Err(_), Some(_)) => None,
        (Err(failure), None) => return Err(failure),
    };
    let addr = match (&from_file, &config) {
        (Some(addresses), _) => addresses.api.or(addresses.tunnel),
        (None, Some(config)) if config.role.has_api() => Some(config.server.api_listen),
        (None, config) => config.as_ref().map(|config| config.tunnel.listen),
    };
    let addr = addr.context("the ready file names no listener")?;
    let addr = match addr.ip().is_unspecified() {
        true => SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port())),
        false => addr,
    };
    runtime()?.block_on(async {
        let asked = tokio::time::timeout(DEADLINE, ask(addr, config.as_ref())).await;
        match asked.context("the process does not answer in time")?? {
            StatusCode::OK => Ok(()),
            status => bail!("the process at {addr} is not ready: {status}"),
        }
    })?;
    Ok(())
}

async fn ask(addr: SocketAddr, config: Option<&Config>) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect(addr).await;
    let stream = stream.with_context(|| format!("connect to {addr}"))?;
    let Some(tls) = config.and_then(|config| config.tls.as_ref()) else {
        return readiness(stream, addr).await;
    };
    let connector = TlsConnector::from(Arc::new(client_config(&tls.cert)?));
    let name = ServerName::from(addr.ip());
    let stream = connector
        .connect(name, stream)
        .await
        .context("shake hands (TLS)")?;
    readiness(stream, addr).await
}

async fn readiness<S>(stream: S, addr: SocketAddr) -> anyhow::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let request = Request::get("/readyz")
        .header(header::HOST, addr.to_string())
        .body(Empty::<Bytes>::new())?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response?.status()),
        ended = connection => {
            ended.context("ask the process")?;
            bail!("the process at {addr} closed the connection")
        }
    }
}

fn client_config(cert: &Path) -> anyhow::Result<ClientConfig> {
    let read = CertificateDer::from_pem_file(cert);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Pinned {
        certificate: read.with_context(|| format!("read {}", cert.display()))?,
        provider: Arc::clone(&provider),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth())
}

/// Trusts exactly the certificate that the process is configured with: it is asked by address, and
/// the certificate is made out to a name.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match *end_entity == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
