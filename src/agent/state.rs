//! The device's identity on disk: one file that only its owner can read.
//!
//! A pairing code can be used once, so the place for what it buys is made sure of first:
//! [`StateDir::reserve`] before the exchange, [`Reservation::commit`] after it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::checks::{is_loopback, is_plain_origin};
use crate::types::DeviceId;

const FILE: &str = "agent.json";
const NEW_FILE: &str = "agent.json.new";
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// What a new file takes on disk before there is something to write, in bytes.
const RESERVED_BYTES: usize = 4096;
/// Longest token that is taken, in bytes.
const MAX_TOKEN_BYTES: usize = 1024;

/// Why there is no identity to work with.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file or its directory cannot be used.
    #[error("cannot {action} {path}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The token is open to others.
    #[error("{0} can be read or written by others than its owner: chmod 600 it, or pair anew")]
    Exposed(PathBuf),
    /// The content makes no sense.
    #[error("{0} is damaged: remove it and pair the device again with --cloud and --pair")]
    Damaged(PathBuf),
}

/// Who the device is and where it belongs.
#[derive(Debug, Clone)]
pub struct State {
    /// The device's id.
    pub device_id: DeviceId,
    /// The device's secret.
    pub token: SecretString,
    /// The origin of the tunnel listener, ws or wss.
    pub tunnel_url: Url,
    /// The cloud that the device was paired with.
    pub cloud: Url,
}

/// The file, and what it shares with the answer of an exchange.
#[derive(Serialize, Deserialize)]
struct StateFile {
    device_id: DeviceId,
    token: String,
    tunnel_url: String,
    cloud: String,
}

impl State {
    /// Checks what came from a file or from the cloud. `None` when something is not as it must be.
    pub fn checked(
        device_id: DeviceId,
        token: SecretString,
        tunnel_url: &str,
        cloud: &str,
    ) -> Option<Self> {
        let text = token.expose_secret();
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > MAX_TOKEN_BYTES || !visible {
            return None;
        }
        Some(Self {
            device_id,
            tunnel_url: plain_origin(tunnel_url, ["ws", "wss"])?,
            cloud: plain_origin(cloud, ["http", "https"])?,
            token,
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let file: StateFile = serde_json::from_slice(bytes).ok()?;
        let token = SecretString::from(file.token);
        Self::checked(file.device_id, token, &file.tunnel_url, &file.cloud)
    }

    fn to_json(&self) -> Vec<u8> {
        let file = StateFile {
            device_id: self.device_id.clone(),
            token: self.token.expose_secret().to_owned(),
            tunnel_url: self.tunnel_url.to_string(),
            cloud: self.cloud.to_string(),
        };
        let mut json = serde_json::to_vec_pretty(&file).expect("strings serialise");
        json.push(b'\n');
        json
    }
}

/// An origin whose first, unencrypted scheme is for this machine only.
fn plain_origin(text: &str, schemes: [&str; 2]) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let encrypted = url.scheme() == schemes[1];
    (is_plain_origin(&url, &schemes) && (encrypted || is_loopback(&url))).then_some(url)
}

/// The directory of the identity.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Names the directory; nothing is made yet.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where the identity is, or will be.
    pub fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }

    /// Reads the identity; `None` when the device is not paired.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub fn load(&self) -> Result<Option<State>, StateError> {
        let path = self.file();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let mode = file.metadata().map_err(failed("read", &path))?.mode();
        if mode & 0o077 != 0 {
            return Err(StateError::Exposed(path));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        // The parser's own words would quote the file, and the token with it.
        let state = State::parse(&bytes).ok_or(StateError::Damaged(path))?;
        Ok(Some(state))
    }

    /// Makes the directory and a new file in it, with room on disk for an identity.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn reserve(&self) -> Result<Reservation, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(failed("create", &self.0))?;
        let path = self.0.join(NEW_FILE);
        // What an attempt that was cut short left behind.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace", &path)(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        file.write_all(&[b' '; RESERVED_BYTES])
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &path))?;
        let dir = self.0.clone();
        Ok(Reservation {
            file,
            path,
            dir,
            kept: false,
        })
    }
}

/// A file that waits for an identity; it goes away when none comes.
#[derive(Debug)]
pub struct Reservation {
    file: File,
    path: PathBuf,
    dir: PathBuf,
    kept: bool,
}

impl Reservation {
    /// Writes the identity and puts the file in its place in one step.
    ///
    /// # Errors
    /// When the file system fails now after all.
    pub fn commit(mut self, state: &State) -> Result<(), StateError> {
        let json = state.to_json();
        self.file
            .rewind()
            .and_then(|()| self.file.write_all(&json))
            .and_then(|()| self.file.set_len(json.len() as u64))
            .and_then(|()| self.file.sync_all())
            .map_err(failed("write", &self.path))?;
        let target = self.dir.join(FILE);
        std::fs::rename(&self.path, &target).map_err(failed("write", &target))?;
        self.kept = true;
        // Without this the name could be gone after a power cut.
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("write", &self.dir))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            // One that stays behind is replaced by the next attempt.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError::Io {
        action,
        path,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn state() -> State {
        State::checked(
            DeviceId::random(),
            "edt_secret".into(),
            "ws://127.0.0.1:3800",
            "https://cloud.example.com",
        )
        .expect("valid")
    }

    fn dir() -> (tempfile::TempDir, StateDir) {
        let temp = tempfile::tempdir().expect("a directory");
        let dir = StateDir::new(temp.path().join("state/edgecloud"));
        (temp, dir)
    }

    fn mode(path: &Path) -> u32 {
        let metadata = std::fs::metadata(path).expect("it exists");
        metadata.permissions().mode() & 0o777
    }

    fn names(dir: &StateDir) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(&dir.0).expect("it exists");
        entries
            .map(|entry| entry.expect("readable").file_name())
            .collect()
    }

    #[test]
    fn an_identity_is_read_back_and_is_its_owners_alone() {
        let (_temp, dir) = dir();
        assert!(dir.load().expect("no file is fine").is_none());
        let state = state();
        let reservation = dir.reserve().expect("reserve");
        assert!(dir.load().expect("still none").is_none());
        reservation.commit(&state).expect("commit");
        let read = dir.load().expect("load").expect("there is one");
        assert_eq!(read.device_id, state.device_id);
        assert_eq!(read.token.expose_secret(), "edt_secret");
        assert_eq!(read.tunnel_url, state.tunnel_url);
        assert_eq!(read.cloud, state.cloud);
        assert_eq!((mode(&dir.0), mode(&dir.file())), (0o700, 0o600));
        assert_eq!(names(&dir), [FILE]);
    }

    #[test]
    fn a_reservation_that_is_not_used_leaves_nothing() {
        let (_temp, dir) = dir();
        drop(dir.reserve().expect("reserve"));
        assert!(names(&dir).is_empty());
        std::fs::write(dir.0.join(NEW_FILE), "left by a crash").expect("write");
        let reservation = dir.reserve().expect("the rest is in no one's way");
        assert_eq!(mode(&reservation.path), 0o600);
        reservation.commit(&state()).expect("commit");
        assert!(dir.load().expect("load").is_some());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_temp, dir) = dir();
        dir.reserve()
            .expect("reserve")
            .commit(&state())
            .expect("commit");
        for mode in [0o640, 0o604, 0o620] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(dir.file(), permissions).expect("chmod");
            let error = dir.load().expect_err("refused");
            assert!(matches!(error, StateError::Exposed(_)), "{error}");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_that_does_not_quote_it() {
        let (_temp, dir) = dir();
        dir.reserve()
            .expect("reserve")
            .commit(&state())
            .expect("commit");
        let whole = std::fs::read_to_string(dir.file()).expect("read");
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replace("\"edt_secret\"", "[\"edt_secret\"]"),
            whole.replace("edt_secret", "edt_secret\\n"),
            whole.replace("edt_secret", ""),
            whole.replace("dev_", "edt_secret"),
            whole.replace("ws://127.0.0.1", "ws://tunnel.example.com"),
            whole.replace("https://cloud", "http://cloud"),
        ] {
            assert_ne!(damaged, whole);
            std::fs::write(dir.file(), &damaged).expect("write");
            let error = dir.load().expect_err("damaged");
            assert!(matches!(error, StateError::Damaged(_)), "{damaged}");
            let told = format!("{error} {error:?}");
            assert!(!told.contains("edt_secret"), "{told}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_shows_before_anything_else() {
        let temp = tempfile::tempdir().expect("a directory");
        let in_the_way = temp.path().join("file");
        std::fs::write(&in_the_way, "").expect("write");
        let error = StateDir::new(in_the_way.join("state"))
            .reserve()
            .expect_err("a file is no directory");
        assert!(matches!(error, StateError::Io { .. }), "{error}");
    }
}
