//! A certificate for `localhost`, for measurements with TLS.

use std::path::PathBuf;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use super::stats::print;

/// Arguments of `certificate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for `cert.pem` and `key.pem`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Makes a certificate that signs itself; who trusts it trusts nothing else.
pub fn run(args: &Args) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
    let write = |name: &str, pem: String| {
        let file = args.out.join(name);
        std::fs::write(&file, pem).with_context(|| format!("write {}", file.display()))
    };
    write("cert.pem", certificate.pem())?;
    write("key.pem", key.serialize_pem())?;
    print(&json!({"certificate": args.out.join("cert.pem")}))
}
