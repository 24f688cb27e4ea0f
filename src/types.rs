//! Ids, roles, points in time and the clock. Depends on nothing else in the crate.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// Returns `N` bytes from the operating system's secure random source.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the operating system's random source works");
    bytes
}

/// Random bytes for an id. Every request gets one: the system is asked for many at once.
fn id_bytes() -> [u8; 16] {
    thread_local! {
        static DRAWN: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
    }
    DRAWN.with_borrow_mut(|drawn| {
        if drawn.is_empty() {
            let random = random_bytes::<1024>();
            drawn.extend_from_slice(random.as_chunks().0);
        }
        drawn.pop().unwrap_or_else(random_bytes)
    })
}

/// Lower-case base32 without padding (RFC 4648 §6), as in ids and host labels.
pub fn base32_lower(bytes: &[u8]) -> String {
    let mut text = BASE32_NOPAD.encode(bytes);
    text.make_ascii_lowercase();
    text
}

/// A text that is not a valid id of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0} id")]
pub struct InvalidId(pub &'static str);

fn parse_id(text: &str, prefix: &'static str, noun: &'static str) -> Result<(), InvalidId> {
    let Some(rest) = text.strip_prefix(prefix) else {
        return Err(InvalidId(noun));
    };
    let valid = rest.len() == 26 && rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
    valid.then_some(()).ok_or(InvalidId(noun))
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident, $prefix:literal, $noun:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The prefix of every id of this kind.
            pub const PREFIX: &'static str = $prefix;

            /// Makes a new random id (128 bits).
            pub fn random() -> Self {
                Self([$prefix, &base32_lower(&id_bytes())].concat().into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse_id(text, $prefix, $noun)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

id_types! {
    /// A tenant: the owner of devices.
    TenantId, "ten_", "tenant";
    /// A person, found by the provider's (`iss`, `sub`).
    UserId, "usr_", "user";
    /// A device that was paired with a tenant.
    DeviceId, "dev_", "device";
    /// A signed-in browser. This is the public name of the login, never its secret.
    LoginId, "lgn_", "login";
    /// The public name of a pairing code, never the code.
    PairingCodeId, "pc_", "pairing code";
    /// A person's way into a tenant. This is the invitation's public name, never its token.
    InvitationId, "inv_", "invitation";
    /// A program that may call the API. This is its public name here, not its OAuth client id.
    ServiceClientId, "sc_", "service client";
    /// A named set of devices.
    GroupId, "grp_", "group";
    /// One running process that terminates tunnels.
    NodeId, "node_", "node";
    /// One request, in logs, answers and towards the device.
    RequestId, "req_", "request";
}

impl DeviceId {
    /// The first label of the device's own web host: the id with `-` for `_`.
    pub fn host_label(&self) -> String {
        self.as_str().replacen('_', "-", 1)
    }

    /// The inverse of [`DeviceId::host_label`].
    ///
    /// # Errors
    /// When the label is not that of a device.
    pub fn from_host_label(label: &str) -> Result<Self, InvalidId> {
        let Some(rest) = label.strip_prefix("dev-") else {
            return Err(InvalidId("device"));
        };
        format!("dev_{rest}").parse()
    }
}

/// A map by ids. They are random and ours, so that the standard library's slower hashing, which keeps
/// chosen keys from colliding, has nothing to protect.
#[cfg(feature = "_server")]
pub type IdMap<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;

/// What a member may do; each role may also do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads devices, events and metrics.
    Viewer,
    /// Reaches devices.
    Operator,
    /// Pairs, renames, deletes, invites.
    Admin,
    /// Settings, members' roles, deletion.
    Owner,
}

impl Role {
    /// The role's name in the API and the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
            Role::Owner => "owner",
        }
    }
}

impl FromStr for Role {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text {
            "viewer" => Ok(Role::Viewer),
            "operator" => Ok(Role::Operator),
            "admin" => Ok(Role::Admin),
            "owner" => Ok(Role::Owner),
            _ => Err(InvalidId("role")),
        }
    }
}

/// A point in time: milliseconds since the Unix epoch. RFC 3339 UTC text in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This point plus a duration, saturating.
    pub fn plus(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// The time from `earlier` to this point, zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "out of range"),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(time.as_millisecond()))
    }
}

/// The wall clock, passed to whatever needs the time so that tests can turn it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that the owner sets by hand, starting at `start`.
    pub fn manual(start: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicI64::new(start.0))))
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Some(millis) => Timestamp(millis.load(Ordering::Relaxed)),
            None => Timestamp(jiff::Timestamp::now().as_millisecond()),
        }
    }

    /// Moves a manual clock forward; the system clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Some(millis) = &self.0 {
            let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            millis.fetch_add(by, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_prefixed_and_parse_back() {
        let id = DeviceId::random();
        assert_eq!(id.as_str().len(), 30);
        assert_eq!(id.as_str().parse::<DeviceId>(), Ok(id.clone()));
        assert_eq!(DeviceId::from_host_label(&id.host_label()), Ok(id));
    }

    #[test]
    fn foreign_and_damaged_ids_are_refused() {
        let tenant = TenantId::random();
        assert!(tenant.as_str().parse::<DeviceId>().is_err());
        for text in [
            "",
            "dev_",
            "dev_ABC",
            "dev_aaaaaaaaaaaaaaaaaaaaaaaaa1",
            "dev_%61",
        ] {
            assert!(text.parse::<DeviceId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn timestamps_are_rfc_3339_utc_with_milliseconds() {
        let time = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.123Z");
        let json = serde_json::to_string(&time).expect("a timestamp serialises");
        assert_eq!(
            serde_json::from_str::<Timestamp>(&json).expect("and back"),
            time
        );
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(Timestamp::from_millis(5_000));
        clock.advance(Duration::from_secs(2));
        assert_eq!(clock.now().as_millis(), 7_000);
        assert_eq!(
            clock.now().since(Timestamp::from_millis(9_000)),
            Duration::ZERO
        );
    }

    #[test]
    fn roles_are_ordered() {
        assert!(Role::Owner > Role::Admin && Role::Operator > Role::Viewer);
    }

    crate::fuzzing::fuzz_target!(ids, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(id) = text.parse::<DeviceId>() {
            assert_eq!(id.as_str(), text);
            let again = DeviceId::from_host_label(&id.host_label());
            assert_eq!(again, Ok(id));
        }
        if let Ok(id) = DeviceId::from_host_label(&text) {
            assert_eq!(id.host_label(), text.to_ascii_lowercase());
        }
        assert!(text.parse::<TenantId>().is_err() || text.parse::<DeviceId>().is_err());
    });
}
