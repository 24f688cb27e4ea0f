//! People: a browser that keeps cookies and sends what browsers send, and somebody without any.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cookie::Cookie;
use http::{HeaderMap, Method, header};
use serde_json::{Value, json};
use url::Url;

use super::cloud::TestCloud;
use super::http::{Answer, Request};
use super::tls::TlsClient;
use super::wait::eventually;

/// The login cookie's name where people reach the cloud by plain http on loopback.
pub const LOGIN_COOKIE: &str = "edgecloud";

/// Cookies by host name; ports share them, as in browsers.
#[derive(Clone, Default)]
pub struct Jar(Arc<Mutex<HashMap<String, BTreeMap<String, String>>>>);

impl Jar {
    fn hosts(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<String, String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request to a host carries.
    pub fn header(&self, host: &str) -> Option<String> {
        let hosts = self.hosts();
        let cookies = hosts.get(name_of_host(host))?;
        let pairs: Vec<_> = cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    /// Takes the cookies of an answer.
    pub fn store(&self, host: &str, headers: &HeaderMap) {
        for value in headers.get_all(header::SET_COOKIE) {
            let text = value.to_str().expect("a readable cookie").to_owned();
            let cookie = Cookie::parse(text).expect("a cookie");
            let epoch = |at: cookie::time::OffsetDateTime| at.unix_timestamp() == 0;
            let expired = cookie.max_age().is_some_and(|age| age.is_zero())
                || cookie.expires_datetime().is_some_and(epoch);
            let mut hosts = self.hosts();
            let cookies = hosts.entry(name_of_host(host).to_owned()).or_default();
            if expired {
                cookies.remove(cookie.name());
            } else {
                cookies.insert(cookie.name().to_owned(), cookie.value().to_owned());
            }
        }
    }
}

fn name_of_host(host: &str) -> &str {
    host.split_once(':').map_or(host, |(name, _)| name)
}

/// A browser of one person. Clones share their cookies, like tabs.
#[derive(Clone)]
pub struct Browser {
    api: SocketAddr,
    host: String,
    jar: Jar,
    tls: Option<TlsClient>,
}

impl Browser {
    /// A browser that was never here before.
    pub fn new(cloud: &TestCloud) -> Self {
        Self {
            tls: cloud.tls().cloned(),
            ..Self::at(cloud.api_addr(), cloud.public_host())
        }
    }

    /// A browser that was never at this address before.
    pub fn at(api: SocketAddr, host: &str) -> Self {
        Self {
            api,
            host: host.to_owned(),
            jar: Jar::default(),
            tls: None,
        }
    }

    /// The same browser, whose requests happen to reach another process.
    pub fn through(&self, api: SocketAddr) -> Self {
        Self {
            api,
            ..self.clone()
        }
    }

    /// A browser in which `user` has signed in.
    pub async fn sign_in(cloud: &TestCloud, user: &str) -> Self {
        let browser = Self::new(cloud);
        browser.sign_in_again(user).await;
        browser
    }

    /// Signs in, whoever was signed in before.
    pub async fn sign_in_again(&self, user: &str) {
        let authorize = self.begin_login("/").await;
        let callback = self.choose(&authorize, user).await;
        let answer = self.open_callback(&callback).await.expect(303);
        assert_eq!(answer.header("location"), "/");
    }

    /// Opens the login; returns where the provider wants the browser to go.
    pub async fn begin_login(&self, return_to: &str) -> Url {
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("return_to", return_to)
            .finish();
        let target = format!("/api/auth/login?{query}");
        let answer = self.navigate(&target, "same-origin").send().await;
        assert!(answer.status.is_redirection(), "{answer:?}");
        Url::parse(answer.header("location")).expect("the provider's address")
    }

    /// Presses the button of `user` on the provider's page; returns path and query of the callback.
    pub async fn choose(&self, authorize: &Url, user: &str) -> String {
        let issuer = authorize.socket_addrs(|| None).expect("an address")[0];
        let host = authorize.authority().to_owned();
        let target = &authorize[url::Position::BeforePath..url::Position::AfterQuery];
        let answer = Request::new(issuer, &host, Method::POST, target)
            .header("content-type", "application/x-www-form-urlencoded")
            .bytes(format!("user={user}"))
            .send()
            .await
            .expect(303);
        let callback = answer.header("location");
        let target = callback.strip_prefix(&self.origin());
        target
            .unwrap_or_else(|| panic!("the callback is on another host: {callback}"))
            .to_owned()
    }

    /// Follows the provider back.
    pub async fn open_callback(&self, callback: &str) -> Answer {
        self.navigate(callback, "cross-site").send().await
    }

    /// A page that the person goes to.
    pub fn navigate(&self, target: &str, site: &str) -> Request {
        self.request(Method::GET, target)
            .header("sec-fetch-dest", "document")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-site", site)
    }

    /// A request that a script of the console makes.
    pub fn request(&self, method: Method, target: &str) -> Request {
        self.request_on(&self.host.clone(), method, target)
            .header("sec-fetch-dest", "empty")
            .header("sec-fetch-mode", "cors")
            .header("sec-fetch-site", "same-origin")
    }

    /// A request to another host name of the cloud, with that host's cookies and no other header.
    pub fn request_on(&self, host: &str, method: Method, target: &str) -> Request {
        Request::new(self.api, host, method, target)
            .with_jar(self.jar.clone(), host)
            .over(self.tls.as_ref())
    }

    /// A GET of the console.
    pub fn get(&self, target: &str) -> Request {
        self.request(Method::GET, target)
    }

    /// A POST of the console.
    pub fn post(&self, target: &str) -> Request {
        self.request(Method::POST, target)
    }

    /// A DELETE of the console.
    pub fn delete(&self, target: &str) -> Request {
        self.request(Method::DELETE, target)
    }

    /// A PATCH of the console.
    pub fn patch(&self, target: &str) -> Request {
        self.request(Method::PATCH, target)
    }

    /// A request to a device through the cloud; `path` may have a query.
    pub fn forward(&self, device: &str, method: Method, path: &str) -> Request {
        self.request(method, &format!("/api/devices/{device}/http{path}"))
    }

    /// A WebSocket handshake with a device through the cloud.
    pub fn forward_websocket(&self, device: &str, path: &str) -> Request {
        let target = format!("/api/devices/{device}/http{path}");
        self.request_on(&self.host.clone(), Method::GET, &target)
            .header("origin", &self.origin())
    }

    /// Opens a device's own host; returns the host.
    pub async fn enter(&self, device: &str) -> String {
        let path = format!("/api/devices/{device}/open");
        let link = self.post(&path).json(&json!({})).send().await;
        let link = Url::parse(&text(&link.expect(201).json()["url"])).expect("a URL");
        let host = link.authority().to_owned();
        let ticket = &link[url::Position::BeforePath..url::Position::AfterQuery];
        let entered = self
            .request_on(&host, Method::GET, ticket)
            .header("sec-fetch-dest", "document")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-site", "cross-site");
        entered.send().await.expect(303);
        host
    }

    /// The origin of the console's pages.
    pub fn origin(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.host)
    }

    /// Who is signed in.
    pub async fn me(&self) -> Value {
        self.get("/api/auth/me").send().await.expect(200).json()
    }

    /// Whether anybody is signed in.
    pub async fn is_signed_in(&self) -> bool {
        let answer = self.get("/api/auth/me").send().await;
        assert!(
            answer.status == 200 || answer.status == 401,
            "signed in or not, and nothing else: {answer:?}"
        );
        answer.status == 200
    }

    /// Signs out.
    pub async fn sign_out(&self) -> Answer {
        self.post("/api/auth/logout").send().await.expect(200)
    }

    /// Makes a pairing code: its id and the code.
    pub async fn pairing_code(&self) -> (String, String) {
        let answer = self.post("/api/pairing/codes").json(&json!({}));
        let made = answer.send().await.expect(201).json();
        (text(&made["id"]), text(&made["code"]))
    }

    /// The devices of the tenant.
    pub async fn devices(&self) -> Vec<Value> {
        self.get("/api/devices").send().await.expect(200).items()
    }

    /// One device.
    pub async fn device(&self, id: &str) -> Value {
        let answer = self.get(&format!("/api/devices/{id}")).send().await;
        answer.expect(200).json()
    }

    /// Waits until a device has a status, and returns the device.
    pub async fn wait_for_status(&self, id: &str, status: &str) -> Value {
        eventually(&format!("the device is {status}"), async || {
            let device = self.device(id).await;
            (device["status"] == status).then_some(device)
        })
        .await
    }

    /// The value of a cookie.
    pub fn cookie(&self, host: &str, name: &str) -> Option<String> {
        self.jar.hosts().get(name_of_host(host))?.get(name).cloned()
    }

    /// The names of all cookies of the console's host.
    pub fn cookie_names(&self) -> Vec<String> {
        let hosts = self.jar.hosts();
        let cookies = hosts.get(name_of_host(&self.host));
        cookies.map_or_else(Vec::new, |cookies| cookies.keys().cloned().collect())
    }

    /// The secret of the login, as in `Cookie: edgecloud=...`.
    pub fn login_cookie(&self) -> String {
        let value = self.cookie(&self.host, LOGIN_COOKIE);
        value.expect("somebody has signed in here")
    }

    /// Puts a cookie into the browser, as an attacker or a restored backup would.
    pub fn plant_cookie(&self, host: &str, name: &str, value: &str) {
        let mut hosts = self.jar.hosts();
        hosts
            .entry(name_of_host(host).to_owned())
            .or_default()
            .insert(name.to_owned(), value.to_owned());
    }

    /// Host and port of the console.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// The text of a JSON value that must be one.
#[track_caller]
pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("should be a text: {value}"))
        .to_owned()
}

/// Somebody without credentials.
#[derive(Clone)]
pub struct Anonymous {
    api: SocketAddr,
    host: String,
    tls: Option<TlsClient>,
}

impl Anonymous {
    /// Somebody who knows the cloud's address and nothing else.
    pub fn of(cloud: &TestCloud) -> Self {
        Self {
            api: cloud.api_addr(),
            host: cloud.public_host().to_owned(),
            tls: cloud.tls().cloned(),
        }
    }

    /// The same, whose requests happen to reach another process.
    pub fn through(&self, api: SocketAddr) -> Self {
        Self {
            api,
            ..self.clone()
        }
    }

    /// Any request.
    pub fn request(&self, method: Method, target: &str) -> Request {
        Request::new(self.api, &self.host, method, target).over(self.tls.as_ref())
    }

    /// A GET.
    pub fn get(&self, target: &str) -> Request {
        self.request(Method::GET, target)
    }

    /// A POST.
    pub fn post(&self, target: &str) -> Request {
        self.request(Method::POST, target)
    }

    /// Tries a pairing code.
    pub async fn exchange(&self, code: &str) -> Answer {
        self.post("/api/pairing/exchange")
            .json(&json!({"code": code, "device": {"hostname": "box", "os": "linux"}}))
            .send()
            .await
    }
}
