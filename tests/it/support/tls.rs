//! Certificates of the tests' own, and who trusts them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::wait::within;

/// An authority that issues certificates; its files live as long as it does.
pub struct Authority {
    home: TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// A new authority that nobody trusts yet.
    pub fn new() -> Self {
        let home = TempDir::new().expect("make a directory");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of the tests");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(home.path().join("ca.pem"), certificate.pem()).expect("write");
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            home,
        }
    }

    /// The file that those who trust it are given.
    pub fn ca_file(&self) -> PathBuf {
        self.home.path().join("ca.pem")
    }

    /// Where [`Authority::issue`] puts a certificate.
    pub fn cert_file(&self) -> PathBuf {
        self.home.path().join("cert.pem")
    }

    /// Where [`Authority::issue`] puts its key.
    pub fn key_file(&self) -> PathBuf {
        self.home.path().join("key.pem")
    }

    /// Puts a certificate for a host into the files, in the place of an earlier one.
    pub fn issue(&self, host: &str) {
        let params = CertificateParams::new([host.to_owned()]).expect("a host name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(self.cert_file(), certificate.pem()).expect("write");
        std::fs::write(self.key_file(), key.serialize_pem()).expect("write");
    }

    /// A server with the certificate that was issued last.
    pub fn server(&self) -> TlsAcceptor {
        let read = |path: &Path| std::fs::read(path).expect("it was issued");
        let certificate = CertificateDer::from_pem_slice(&read(&self.cert_file())).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key_file())).expect("PEM");
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("they go together");
        TlsAcceptor::from(Arc::new(config))
    }

    /// Somebody who trusts this authority and no other, and knows the server as `host`.
    pub fn client(&self, host: &str) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a certificate");
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsClient {
            connector: TlsConnector::from(Arc::new(config)),
            name: ServerName::try_from(host.to_owned()).expect("a host name"),
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Whom a client trusts, and the name under which it knows the server.
#[derive(Clone)]
pub struct TlsClient {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl TlsClient {
    /// Shakes hands.
    pub async fn connect(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let shaken = self.connector.connect(self.name.clone(), stream);
        within("a TLS handshake", shaken).await
    }
}
