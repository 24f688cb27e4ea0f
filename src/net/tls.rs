//! TLS of the public listeners, with certificates that can be read again while running.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read or is not PEM.
    #[error("cannot read {what} from {path}: {detail}")]
    File {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
    /// Key and certificate do not go together, or are of an unknown kind.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Certificate and key files; the current content serves new connections.
#[derive(Clone)]
pub struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
    acceptor: Arc<ArcSwap<TlsAcceptorCell>>,
}

struct TlsAcceptorCell(TlsAcceptor);

impl TlsFiles {
    /// Reads both files.
    ///
    /// # Errors
    /// When one cannot be read or they do not go together.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let acceptor = read_acceptor(cert, key)?;
        Ok(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            acceptor: Arc::new(ArcSwap::from_pointee(TlsAcceptorCell(acceptor))),
        })
    }

    /// Reads both files again; open connections keep what they have.
    ///
    /// # Errors
    /// As [`TlsFiles::load`]; the old certificate stays in use then.
    pub fn reload(&self) -> Result<(), TlsError> {
        let acceptor = read_acceptor(&self.cert, &self.key)?;
        self.acceptor.store(Arc::new(TlsAcceptorCell(acceptor)));
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.load().0.clone()
    }
}

fn read_acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let failed = |what, path: &Path, detail: String| TlsError::File {
        what,
        path: path.to_owned(),
        detail,
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed("a certificate chain", cert, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| failed("a private key", key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
