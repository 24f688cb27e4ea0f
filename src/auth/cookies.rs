//! The cookies of a signed-in browser: one on the cloud's host, one on each device's host.

use cookie::{Cookie, SameSite};
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, header};

use crate::device_token::sha256;
use crate::keys::KeyRing;
use crate::types::{DeviceId, LoginId, random_bytes};

const LOGIN_PURPOSE: &str = "login-cookie";
const DEVICE_PURPOSE: &str = "device-host-cookie";
/// Where people reach the cloud by https, a browser takes the cookies from this host alone
/// (RFC 6265bis §4.1.3.2).
const LOGIN_NAME: Name = Name("__Host-edgecloud");
const DEVICE_NAME: Name = Name("__Host-edgecloud-device");
const HOST_PREFIX: &str = "__Host-";

/// A cookie's name, which begins with [`HOST_PREFIX`].
#[derive(Clone, Copy)]
struct Name(&'static str);

impl Name {
    fn without_prefix(self) -> &'static str {
        &self.0[HOST_PREFIX.len()..]
    }
}

/// Makes and reads the cookies. Cheap to clone.
#[derive(Clone)]
pub struct Cookies {
    keys: KeyRing,
    secure: bool,
}

impl Cookies {
    /// Cookies signed by `keys`; `secure` unless people reach the cloud by http on loopback.
    pub fn new(keys: KeyRing, secure: bool) -> Self {
        Self { keys, secure }
    }

    /// The keys behind the cookies.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Whether browsers are told to send the cookies by https only.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    fn name(&self, name: Name) -> &'static str {
        match self.secure {
            true => name.0,
            false => name.without_prefix(),
        }
    }

    fn build(&self, name: Name, value: String, same_site: SameSite) -> Cookie<'static> {
        Cookie::build((self.name(name), value))
            .path("/")
            .http_only(true)
            .secure(self.secure)
            .same_site(same_site)
            .build()
    }

    fn expired(&self, name: Name, same_site: SameSite) -> Cookie<'static> {
        let mut cookie = self.build(name, String::new(), same_site);
        cookie.set_max_age(cookie::time::Duration::ZERO);
        cookie
    }

    /// A fresh secret id: the cookie that holds it, and the hash under which the login is stored.
    pub fn issue_login(&self) -> (Cookie<'static>, [u8; 32]) {
        let secret = random_bytes::<32>();
        let signature = self.keys.sign(LOGIN_PURPOSE, &secret);
        let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let value = format!(
            "{}.{}.{}",
            signature.key_id,
            encode(&secret),
            encode(&signature.mac)
        );
        (
            self.build(LOGIN_NAME, value, SameSite::Strict),
            sha256(&secret),
        )
    }

    /// The cookie that makes a browser forget its login.
    pub fn expired_login(&self) -> Cookie<'static> {
        self.expired(LOGIN_NAME, SameSite::Strict)
    }

    /// The hash of the secret id that a request brought; `None` for no cookie, a doubled one (which
    /// somebody tossed at us) and one that we did not sign.
    pub fn read_login(&self, headers: &HeaderMap) -> Option<[u8; 32]> {
        let value = single(headers, self.name(LOGIN_NAME))?;
        let mut parts = value.splitn(3, '.');
        let (key_id, secret, mac) = (parts.next()?, parts.next()?, parts.next()?);
        let secret = BASE64URL_NOPAD.decode(secret.as_bytes()).ok()?;
        let mac = BASE64URL_NOPAD.decode(mac.as_bytes()).ok()?;
        self.keys
            .verify(LOGIN_PURPOSE, key_id, &secret, &mac)
            .then(|| sha256(&secret))
    }

    /// Whether a request brought something under the login cookie's name.
    pub fn is_sent(&self, headers: &HeaderMap) -> bool {
        pairs(headers).any(|(name, _)| name == self.name(LOGIN_NAME))
    }

    /// The cookie of a login on a device's host.
    pub fn issue_device(&self, login: &LoginId, device: &DeviceId) -> Cookie<'static> {
        let signature = self
            .keys
            .sign(DEVICE_PURPOSE, &device_message(login, device));
        let mac = BASE64URL_NOPAD.encode(&signature.mac);
        let value = format!("{}.{login}.{mac}", signature.key_id);
        self.build(DEVICE_NAME, value, SameSite::Lax)
    }

    /// The login that a request to a device's host brought.
    pub fn read_device(&self, headers: &HeaderMap, device: &DeviceId) -> Option<LoginId> {
        let value = single(headers, self.name(DEVICE_NAME))?;
        let mut parts = value.splitn(3, '.');
        let (key_id, login, mac) = (parts.next()?, parts.next()?, parts.next()?);
        let login: LoginId = login.parse().ok()?;
        let mac = BASE64URL_NOPAD.decode(mac.as_bytes()).ok()?;
        let message = device_message(&login, device);
        self.keys
            .verify(DEVICE_PURPOSE, key_id, &message, &mac)
            .then_some(login)
    }

    /// Whether a cookie name is one of ours, which no device may see or set.
    pub fn is_ours(name: &str) -> bool {
        let name = name.trim().trim_matches('"').to_ascii_lowercase();
        let name = name.strip_prefix("__host-").unwrap_or(&name);
        name == LOGIN_NAME.without_prefix() || name.starts_with("edgecloud-")
    }
}

fn device_message(login: &LoginId, device: &DeviceId) -> Vec<u8> {
    format!("{login}\n{device}").into_bytes()
}

/// Names and values of a request's cookies. What is not text is somebody else's: it must not hide ours.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .filter_map(|pair| std::str::from_utf8(pair).ok())
        .filter_map(|pair| pair.trim().split_once('='))
}

/// The value of a cookie that is there exactly once.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut found = pairs(headers)
        .filter(|(of, _)| *of == name)
        .map(|(_, value)| value);
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;

    fn cookies(secure: bool) -> Cookies {
        let keys = KeyRing::from_secrets(&[SecretString::from("k".repeat(32))]);
        Cookies::new(keys.expect("long enough"), secure)
    }

    fn header(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, text.parse().expect("a header"));
        headers
    }

    #[test]
    fn cs_01_the_login_cookie_is_bound_to_the_host() {
        let (cookie, _) = cookies(true).issue_login();
        let text = cookie.to_string();
        assert!(text.starts_with("__Host-edgecloud="), "{text}");
        for attribute in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/"] {
            assert!(text.contains(attribute), "{text}");
        }
        assert!(!text.contains("Domain"));
        let (cookie, _) = cookies(false).issue_login();
        assert!(cookie.to_string().starts_with("edgecloud="));
    }

    #[test]
    fn cs_02_a_hundred_thousand_secrets_are_distinct_and_evenly_spread() {
        const MANY: usize = 100_000;
        let cookies = cookies(true);
        let (mut seen, mut counts) = (std::collections::HashSet::new(), [0_usize; 256]);
        for _ in 0..MANY {
            let (cookie, _) = cookies.issue_login();
            let secret = cookie.value().split('.').nth(1).expect("three parts");
            let secret = BASE64URL_NOPAD
                .decode(secret.as_bytes())
                .expect("base64url");
            assert_eq!(secret.len(), 32, "256 bits");
            for byte in &secret {
                counts[usize::from(*byte)] += 1;
            }
            assert!(seen.insert(secret));
        }
        // Of 12,500 each on average the standard deviation is 112: ten of them never happen.
        let expected = MANY * 32 / 256;
        for (byte, count) in counts.iter().enumerate() {
            assert!(count.abs_diff(expected) < 1_120, "{byte}: {count}");
        }
    }

    #[test]
    fn cs_04_and_09_only_what_we_signed_and_only_once() {
        let cookies = cookies(true);
        let (cookie, hash) = cookies.issue_login();
        let pair = cookie.stripped().to_string();
        assert_eq!(cookies.read_login(&header(&pair)), Some(hash));
        assert_eq!(
            cookies.read_login(&header(&format!("a=b; {pair}; edgecloud=x"))),
            Some(hash)
        );
        let mut foreign = HeaderMap::new();
        let bytes = [b"a=\xe9; ".as_slice(), pair.as_bytes(), "; b=é".as_bytes()].concat();
        let value = http::HeaderValue::from_bytes(&bytes).expect("a header");
        foreign.insert(header::COOKIE, value);
        assert_eq!(
            cookies.read_login(&foreign),
            Some(hash),
            "others are not text"
        );
        assert_eq!(
            cookies.read_login(&header(&format!("{pair}; {pair}"))),
            None
        );
        assert_eq!(
            cookies.read_login(&header(&pair.replacen('.', "x.", 1))),
            None
        );
        for value in ["", "a", "a.b", "a.b.c", "..", "a.b.c.d"] {
            assert_eq!(
                cookies.read_login(&header(&format!("__Host-edgecloud={value}"))),
                None
            );
        }
    }

    #[test]
    fn ol_06_cookies_of_one_kind_are_not_another() {
        let cookies = cookies(false);
        let (login, device) = (LoginId::random(), DeviceId::random());
        let on_device = cookies.issue_device(&login, &device);
        let pair = on_device.stripped().to_string();
        assert_eq!(cookies.read_device(&header(&pair), &device), Some(login));
        assert_eq!(
            cookies.read_device(&header(&pair), &DeviceId::random()),
            None
        );
        let as_login = format!("edgecloud={}", on_device.value());
        assert_eq!(cookies.read_login(&header(&as_login)), None);
    }

    #[test]
    fn our_cookies_are_known_by_any_spelling() {
        for ours in [
            "edgecloud",
            "__Host-edgecloud",
            "__host-EdgeCloud",
            "edgecloud-pending-abc",
        ] {
            assert!(Cookies::is_ours(ours), "{ours}");
        }
        assert!(!Cookies::is_ours("session") && !Cookies::is_ours("edgecloudy"));
    }

    crate::fuzzing::fuzz_target!(login_cookies, |bytes| {
        let Ok(value) = http::HeaderValue::from_bytes(bytes) else {
            return;
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, value);
        for secure in [true, false] {
            let cookies = cookies(secure);
            assert_eq!(cookies.read_login(&headers), None, "nobody can guess it");
            assert_eq!(cookies.read_device(&headers, &DeviceId::random()), None);
            cookies.is_sent(&headers);
        }
        for (name, _) in pairs(&headers) {
            assert_eq!(
                Cookies::is_ours(name),
                Cookies::is_ours(&name.to_uppercase())
            );
        }
    });
}
