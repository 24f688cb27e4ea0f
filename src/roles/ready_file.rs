//! The file that tells where a process listens, written once everything does.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The bound addresses; only what the role has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The REST API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<SocketAddr>,
    /// The tunnel listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<SocketAddr>,
    /// The internal API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal: Option<SocketAddr>,
    /// The development issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<SocketAddr>,
    /// The metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Where people reach the cloud.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
}

/// Writes the file under another name and renames it into place: whoever sees it sees all of it.
pub fn write(path: &Path, addresses: &Addresses) -> anyhow::Result<()> {
    let text = serde_json::to_string(addresses).context("describe the addresses")?;
    let name = path.file_name().context("the ready file needs a name")?;
    let draft = path.with_file_name(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let written = std::fs::File::create(&draft)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&draft, path));
    written.with_context(|| format!("write the ready file {}", path.display()))
}

/// Removes the file: it speaks of a process that has ended.
pub fn remove(path: &Path) {
    // Most often there is none.
    let _ = std::fs::remove_file(path);
}

/// Reads the file.
pub fn read(path: &Path) -> anyhow::Result<Addresses> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read the ready file {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
}
