//! Keys that sign and seal: the first of a ring signs, all verify, and the ring can be replaced
//! while running. Each purpose has its own subkey (HKDF-SHA256, RFC 5869).

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};

use crate::types::random_bytes;

/// Shortest secret that is accepted, in bytes.
pub const MIN_SECRET_BYTES: usize = 32;

/// A secret that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("no key is given")]
    Empty,
    /// One is too short.
    #[error("a key must have at least {MIN_SECRET_BYTES} bytes")]
    TooShort,
    /// The key file can be read by others.
    #[error("{0} can be read by other users; it must have mode 0600")]
    Exposed(PathBuf),
    /// The key file cannot be read or made.
    #[error("cannot use the key file {0}: {1}")]
    File(PathBuf, io::Error),
}

struct Key {
    id: String,
    prk: Prk,
    /// The subkeys that sign, each from when it is first used: there are as many as purposes.
    signing: RwLock<Vec<(&'static str, hmac::Key)>>,
}

impl Key {
    fn with_signing_key<T>(&self, purpose: &'static str, then: impl Fn(&hmac::Key) -> T) -> T {
        let find = |keys: &[(&str, hmac::Key)]| {
            let found = keys.iter().find(|(of, _)| *of == purpose);
            found.map(|(_, key)| then(key))
        };
        let known = self.signing.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = find(&known) {
            return done;
        }
        drop(known);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &subkey(&self.prk, purpose));
        let done = then(&key);
        let mut known = self.signing.write().unwrap_or_else(PoisonError::into_inner);
        if known.iter().all(|(of, _)| *of != purpose) {
            known.push((purpose, key));
        }
        done
    }
}

/// A signature and the key that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Names the key.
    pub key_id: String,
    /// HMAC-SHA256.
    pub mac: [u8; 32],
}

/// Keys by which this installation knows its own. Cheap to clone; clones share replacements.
#[derive(Clone)]
pub struct KeyRing(Arc<ArcSwap<Vec<Key>>>);

impl KeyRing {
    /// A ring of configured secrets.
    ///
    /// # Errors
    /// When there is none or one is shorter than [`MIN_SECRET_BYTES`].
    pub fn from_secrets(secrets: &[SecretString]) -> Result<Self, KeyError> {
        let keys = derive(secrets)?;
        Ok(Self(Arc::new(ArcSwap::from_pointee(keys))))
    }

    /// A ring of the one key in a file, which is made (0600) when it does not exist. Processes that
    /// start at the same time agree on one.
    ///
    /// # Errors
    /// When the file cannot be read or made, or others may read it.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let secret = read_or_create_secret(path, || HEXLOWER.encode(&random_bytes::<64>()))?;
        Self::from_secrets(&[secret])
    }

    /// Puts other secrets in the place of the present ones.
    ///
    /// # Errors
    /// As [`KeyRing::from_secrets`]; the present ones stay then.
    pub fn replace(&self, secrets: &[SecretString]) -> Result<(), KeyError> {
        self.0.store(Arc::new(derive(secrets)?));
        Ok(())
    }

    /// Signs with the first key.
    pub fn sign(&self, purpose: &'static str, message: &[u8]) -> Signature {
        let keys = self.0.load();
        mac(
            keys.first().expect("a ring is never empty"),
            purpose,
            message,
        )
    }

    /// The signature by each key, for look-ups by it.
    pub fn macs(&self, purpose: &'static str, message: &[u8]) -> Vec<Signature> {
        self.0
            .load()
            .iter()
            .map(|key| mac(key, purpose, message))
            .collect()
    }

    /// Whether the named key made this signature; takes the same time wherever it differs.
    pub fn verify(&self, purpose: &'static str, key_id: &str, message: &[u8], mac: &[u8]) -> bool {
        let keys = self.0.load();
        let Some(key) = keys.iter().find(|key| key.id == key_id) else {
            return false;
        };
        key.with_signing_key(purpose, |key| hmac::verify(key, message, mac).is_ok())
    }

    /// Whether a key of this name is in the ring.
    pub fn knows(&self, key_id: &str) -> bool {
        self.0.load().iter().any(|key| key.id == key_id)
    }

    /// Encrypts and authenticates (AES-256-GCM); `aad` is authenticated only.
    pub fn seal(&self, purpose: &str, aad: &[u8], plain: &[u8]) -> String {
        let keys = self.0.load();
        let key = keys.first().expect("a ring is never empty");
        let nonce = random_bytes::<NONCE_LEN>();
        let mut sealed = plain.to_vec();
        aead_key(key, purpose)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut sealed,
            )
            .expect("the text is far shorter than AES-GCM's limit");
        let bytes = [nonce.as_slice(), &sealed].concat();
        format!("{}.{}", key.id, BASE64URL_NOPAD.encode(&bytes))
    }

    /// Opens what [`KeyRing::seal`] made for the same purpose and `aad`.
    pub fn open(&self, purpose: &str, aad: &[u8], text: &str) -> Option<Vec<u8>> {
        let (key_id, body) = text.split_once('.')?;
        let keys = self.0.load();
        let key = keys.iter().find(|key| key.id == key_id)?;
        let mut bytes = BASE64URL_NOPAD.decode(body.as_bytes()).ok()?;
        let nonce = Nonce::try_assume_unique_for_key(bytes.get(..NONCE_LEN)?).ok()?;
        let mut sealed = bytes.split_off(NONCE_LEN);
        let plain = aead_key(key, purpose)
            .open_in_place(nonce, Aad::from(aad), &mut sealed)
            .ok()?;
        Some(plain.to_vec())
    }
}

/// Reads a secret file, or makes it with what `make` returns. Whoever loses a race reads the
/// winner's.
///
/// # Errors
/// When the file cannot be read or made, or others may read it.
pub fn read_or_create_secret(
    path: &Path,
    make: impl FnOnce() -> String,
) -> Result<SecretString, KeyError> {
    let failed = |error| KeyError::File(path.to_owned(), error);
    if !path.try_exists().map_err(failed)? {
        let draft = path.with_extension(format!("tmp-{}", HEXLOWER.encode(&random_bytes::<8>())));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed)?;
        let made = file
            .write_all(make().as_bytes())
            .and_then(|()| file.sync_all());
        let linked = made.and_then(|()| fs::hard_link(&draft, path));
        let removed = fs::remove_file(&draft);
        match linked {
            Ok(()) => removed.map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let mut file = fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(KeyError::Exposed(path.to_owned()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    Ok(SecretString::from(text.trim_end()))
}

fn derive(secrets: &[SecretString]) -> Result<Vec<Key>, KeyError> {
    if secrets.is_empty() {
        return Err(KeyError::Empty);
    }
    let key = |secret: &SecretString| {
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(KeyError::TooShort);
        }
        let prk = Salt::new(HKDF_SHA256, b"edgecloud").extract(secret);
        let id = HEXLOWER.encode(&subkey(&prk, "key-id")[..4]);
        Ok(Key {
            id,
            prk,
            signing: RwLock::default(),
        })
    };
    secrets.iter().map(key).collect()
}

fn subkey(prk: &Prk, purpose: &str) -> [u8; 32] {
    let mut key = [0; 32];
    prk.expand(&[purpose.as_bytes()], HKDF_SHA256)
        .and_then(|output| output.fill(&mut key))
        .expect("32 bytes are within HKDF's limit");
    key
}

fn aead_key(key: &Key, purpose: &str) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, &subkey(&key.prk, purpose));
    LessSafeKey::new(key.expect("32 bytes are the key length of AES-256"))
}

fn mac(key: &Key, purpose: &'static str, message: &[u8]) -> Signature {
    let tag = key.with_signing_key(purpose, |key| hmac::sign(key, message));
    let mut mac = [0; 32];
    mac.copy_from_slice(tag.as_ref());
    Signature {
        key_id: key.id.clone(),
        mac,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(fills: &[&str]) -> KeyRing {
        let secrets: Vec<_> = fills
            .iter()
            .map(|fill| SecretString::from(fill.repeat(32)))
            .collect();
        KeyRing::from_secrets(&secrets).expect("long enough")
    }

    #[test]
    fn a_new_first_key_signs_while_the_old_one_still_verifies() {
        let old = ring(&["a"]);
        let signature = old.sign("p", b"m");
        let sealed = old.seal("p", b"", b"x");
        let rotated = ring(&["b", "a"]);
        assert!(rotated.verify("p", &signature.key_id, b"m", &signature.mac));
        assert_ne!(rotated.sign("p", b"m").key_id, signature.key_id);
        assert_eq!(rotated.open("p", b"", &sealed), Some(b"x".to_vec()));
        let replaced = ring(&["b"]);
        assert!(!replaced.verify("p", &signature.key_id, b"m", &signature.mac));
        assert_eq!(replaced.open("p", b"", &sealed), None);
    }

    #[test]
    fn short_and_missing_secrets_are_refused() {
        assert!(matches!(KeyRing::from_secrets(&[]), Err(KeyError::Empty)));
        let short = [SecretString::from("a".repeat(31))];
        assert!(matches!(
            KeyRing::from_secrets(&short),
            Err(KeyError::TooShort)
        ));
    }

    #[test]
    fn processes_that_race_agree_on_one_key_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cookie.key");
        let ids: Vec<String> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| KeyRing::load_or_create(&path).expect("a ring")))
                .collect();
            racers
                .into_iter()
                .map(|racer| racer.join().expect("no panic").sign("p", b"").key_id)
                .collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
        assert_eq!(
            fs::metadata(&path).expect("it exists").mode() & 0o777,
            0o600
        );
        let left: Vec<_> = fs::read_dir(dir.path()).expect("listing").collect();
        assert_eq!(left.len(), 1, "no drafts are left");
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cookie.key");
        KeyRing::load_or_create(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(
            KeyRing::load_or_create(&path),
            Err(KeyError::Exposed(_))
        ));
    }

    proptest! {
        #[test]
        fn any_change_of_a_sealed_text_is_noticed(
            plain in proptest::collection::vec(any::<u8>(), 0..50),
            at in any::<prop::sample::Index>(),
            with in "[a-zA-Z0-9_.-]",
        ) {
            let ring = ring(&["a"]);
            let sealed = ring.seal("p", b"aad", &plain);
            prop_assert_eq!(ring.open("p", b"aad", &sealed), Some(plain));
            prop_assert_eq!(ring.open("q", b"aad", &sealed), None);
            prop_assert_eq!(ring.open("p", b"other", &sealed), None);
            let at = at.index(sealed.len());
            let mut damaged = sealed.clone();
            damaged.replace_range(at..=at, &with);
            if damaged != sealed {
                prop_assert_eq!(ring.open("p", b"aad", &damaged), None);
            }
        }

        #[test]
        fn any_change_of_a_signed_message_is_noticed(message in ".{1,40}", bit in 0usize..8) {
            let ring = ring(&["a"]);
            let signature = ring.sign("p", message.as_bytes());
            prop_assert!(ring.verify("p", &signature.key_id, message.as_bytes(), &signature.mac));
            let mut other = message.into_bytes();
            other[0] ^= 1 << bit;
            prop_assert!(!ring.verify("p", &signature.key_id, &other, &signature.mac));
        }
    }
}
