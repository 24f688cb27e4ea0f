//! A sign-in under way, kept in a sealed cookie, so that any api process can finish it.

use std::time::Duration;

use cookie::{Cookie, SameSite};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use super::cookies::Cookies;
use crate::device_token::sha256;
use crate::keys::KeyRing;
use crate::types::{Timestamp, base32_lower};

/// How long a sign-in may take.
pub const PENDING_FOR: Duration = Duration::from_secs(600);
/// Sign-ins of one browser that may be under way at once.
const MAX_PENDING: usize = 5;
/// Cookies that one answer makes a browser forget, at most.
const MAX_FORGOTTEN: usize = 20;
const PREFIX: &str = "edgecloud-pending-";
/// By https: a browser takes such a name from this very host only.
const SECURE_PREFIX: &str = "__Host-edgecloud-pending-";
const PURPOSE: &str = "pending-login";

/// What must be remembered between leaving for the provider and coming back.
#[derive(Serialize, Deserialize)]
pub struct PendingLogin {
    /// Comes back with the answer.
    pub state: String,
    /// Comes back in the ID token.
    pub nonce: String,
    /// Proves that the answer is ours (PKCE, RFC 7636).
    pub verifier: String,
    /// Where to go then.
    pub return_to: String,
    /// When it began.
    pub created_at: Timestamp,
}

fn prefix(secure: bool) -> &'static str {
    match secure {
        true => SECURE_PREFIX,
        false => PREFIX,
    }
}

/// The name of the cookie for a state.
pub fn cookie_name(state: &str, secure: bool) -> String {
    let mut hash = base32_lower(&sha256(state.as_bytes()));
    hash.truncate(8);
    format!("{}{hash}", prefix(secure))
}

impl PendingLogin {
    /// The cookie that holds this sign-in.
    pub fn to_cookie(&self, keys: &KeyRing, secure: bool) -> Cookie<'static> {
        let name = cookie_name(&self.state, secure);
        let plain = serde_json::to_vec(self).expect("texts and a time are JSON");
        let sealed = keys.seal(PURPOSE, name.as_bytes(), &plain);
        let age = cookie::time::Duration::try_from(PENDING_FOR).expect("ten minutes fit");
        base(name, sealed, secure).max_age(age).build()
    }
}

fn base<'c>(name: String, value: String, secure: bool) -> cookie::CookieBuilder<'c> {
    Cookie::build((name, value))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(secure)
}

/// The cookie that makes a browser forget a pending one.
pub fn expired_cookie(name: &str, secure: bool) -> Cookie<'static> {
    base(name.to_owned(), String::new(), secure)
        .max_age(cookie::time::Duration::ZERO)
        .build()
}

/// The pending cookies of a request.
pub struct PendingCookies {
    secure: bool,
    found: Vec<(String, Option<PendingLogin>)>,
}

impl PendingCookies {
    /// Opens what a request brought; what cannot be opened or is too old counts as damaged.
    pub fn from_headers(headers: &HeaderMap, cookies: &Cookies, now: Timestamp) -> Self {
        let (keys, secure) = (cookies.keys(), cookies.is_secure());
        let mut found = Vec::new();
        for value in headers.get_all(header::COOKIE) {
            // What is not text is somebody else's.
            let pairs = value.as_bytes().split(|byte| *byte == b';');
            let texts = pairs.filter_map(|pair| std::str::from_utf8(pair).ok());
            for cookie in texts.filter_map(|text| Cookie::parse(text.trim()).ok()) {
                if cookie.name().starts_with(prefix(secure)) {
                    let pending = open(keys, &cookie)
                        .filter(|pending| now.since(pending.created_at) < PENDING_FOR);
                    found.push((cookie.name().to_owned(), pending));
                }
            }
        }
        Self { secure, found }
    }

    /// Takes out the sign-in with this state.
    pub fn take(&mut self, state: &str) -> Option<PendingLogin> {
        let name = cookie_name(state, self.secure);
        let mut matching = self.found.iter_mut().filter(|(found, _)| *found == name);
        let (first, second) = (matching.next()?, matching.next());
        // Two cookies of one name: somebody tossed one at us.
        if second.is_some() {
            return None;
        }
        first.1.take().filter(|pending| pending.state == state)
    }

    /// Names to forget, so that with one more there are not too many: damaged ones, then the oldest.
    pub fn surplus(&self) -> Vec<&str> {
        let mut good: Vec<(&str, Timestamp)> = Vec::new();
        let mut surplus = Vec::new();
        for (name, pending) in &self.found {
            match pending {
                Some(pending) => good.push((name, pending.created_at)),
                None => surplus.push(name.as_str()),
            }
        }
        good.sort_by_key(|(_, created_at)| *created_at);
        let too_many = (good.len() + 1).saturating_sub(MAX_PENDING);
        surplus.extend(good.iter().take(too_many).map(|(name, _)| *name));
        surplus.truncate(MAX_FORGOTTEN);
        surplus
    }
}

fn open(keys: &KeyRing, cookie: &Cookie<'_>) -> Option<PendingLogin> {
    let plain = keys.open(PURPOSE, cookie.name().as_bytes(), cookie.value())?;
    serde_json::from_slice(&plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn cookies(secure: bool) -> Cookies {
        let keys = KeyRing::from_secrets(&[SecretString::from("k".repeat(32))]);
        Cookies::new(keys.expect("long enough"), secure)
    }

    fn pending(state: &str, created_at: Timestamp) -> PendingLogin {
        PendingLogin {
            state: state.into(),
            nonce: "n".into(),
            verifier: "v".into(),
            return_to: "/".into(),
            created_at,
        }
    }

    fn headers(cookies: &[Cookie<'_>]) -> HeaderMap {
        let text: Vec<_> = cookies
            .iter()
            .map(|cookie| cookie.stripped().to_string())
            .collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, text.join("; ").parse().expect("a header"));
        headers
    }

    #[test]
    fn a_sign_in_is_found_by_its_state_alone() {
        let ours = cookies(true);
        let cookies = [
            pending("one", NOW).to_cookie(ours.keys(), true),
            pending("two", NOW).to_cookie(ours.keys(), true),
        ];
        let mut found = PendingCookies::from_headers(&headers(&cookies), &ours, NOW);
        assert_eq!(
            found.take("two").map(|pending| pending.state).as_deref(),
            Some("two")
        );
        assert!(found.take("two").is_none(), "taken");
        assert!(found.take("three").is_none());
        assert!(found.take("").is_none());
    }

    #[test]
    fn ol_06_a_damaged_swapped_doubled_or_old_cookie_is_nothing() {
        let ours = cookies(true);
        let good = pending("one", NOW).to_cookie(ours.keys(), true);
        let take = |cookies: &[Cookie<'_>], at| {
            PendingCookies::from_headers(&headers(cookies), &ours, at)
                .take("one")
                .is_some()
        };
        assert!(take(std::slice::from_ref(&good), NOW));
        assert!(!take(std::slice::from_ref(&good), NOW.plus(PENDING_FOR)));
        assert!(!take(&[good.clone(), good.clone()], NOW));
        let other = pending("two", NOW).to_cookie(ours.keys(), true);
        let swapped = Cookie::new(good.name().to_owned(), other.value().to_owned());
        assert!(!take(&[swapped], NOW));
        for index in 0..good.value().len() {
            let mut value = good.value().to_owned().into_bytes();
            value[index] = if value[index] == b'A' { b'B' } else { b'A' };
            let value = String::from_utf8(value).expect("ASCII");
            assert!(
                !take(&[Cookie::new(good.name().to_owned(), value)], NOW),
                "byte {index}"
            );
        }
    }

    #[test]
    fn with_a_further_one_there_are_five_at_most() {
        let ours = cookies(false);
        let at = |second| NOW.plus(Duration::from_secs(second));
        let mut cookies: Vec<_> = (0..6u64)
            .map(|second| pending(&second.to_string(), at(second)).to_cookie(ours.keys(), false))
            .collect();
        cookies.push(Cookie::new(format!("{PREFIX}damaged"), "x"));
        let found = PendingCookies::from_headers(&headers(&cookies), &ours, at(9));
        let expected = [
            format!("{PREFIX}damaged"),
            cookie_name("0", false),
            cookie_name("1", false),
        ];
        assert_eq!(found.surplus(), expected);
    }

    #[test]
    fn cs_01_and_10_by_https_the_name_is_bound_to_the_host_and_a_flood_is_bounded() {
        let ours = cookies(true);
        let good = pending("one", NOW).to_cookie(ours.keys(), true);
        let text = good.to_string();
        assert!(text.starts_with("__Host-edgecloud-pending-"), "{text}");
        for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/;"] {
            assert!(text.contains(attribute), "{text}");
        }
        assert!(!text.contains("Domain"));
        let bare = pending("one", NOW).to_cookie(ours.keys(), false);
        let mut found = PendingCookies::from_headers(&headers(&[bare]), &ours, NOW);
        assert!(found.take("one").is_none(), "tossed from elsewhere");
        let flood: Vec<_> = (0..2000)
            .map(|number| Cookie::new(format!("{SECURE_PREFIX}{number}"), "x"))
            .collect();
        let found = PendingCookies::from_headers(&headers(&flood), &ours, NOW);
        assert_eq!(found.surplus().len(), MAX_FORGOTTEN);
    }
}
