//! A real OpenID provider: npm `oidc-provider` in a process of its own.

use std::net::SocketAddr;
use std::path::Path;

use data_encoding::BASE64;
use http::{Method, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use url::{Position, Url};

use super::browser::{Browser, Jar, text};
use super::cloud::{TestCloud, TestCloudBuilder, Topology, free_addr};
use super::http::{Answer, Request};
use super::process::{Process, program};

/// What access tokens for the cloud's API are meant for.
pub const AUDIENCE: &str = "https://cloud.example.test/api";
/// Most redirects of one sign-in.
const MAX_STEPS: usize = 20;

/// How our client is registered there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Without a secret: PKCE only.
    Public,
    /// With a secret in the `Authorization` field.
    Basic,
    /// With a secret in the body.
    Post,
}

/// A running provider.
pub struct Provider {
    _process: Process,
    issuer: Url,
    _home: TempDir,
}

/// The session of a browser at the provider.
#[derive(Clone, Default)]
pub struct ProviderSession(Jar);

impl Provider {
    /// Starts a provider for a cloud that will be at `cloud`.
    pub async fn spawn(cloud: &str, registration: Registration) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/providers");
        assert!(
            folder.join("node_modules").exists(),
            "the provider is missing: npm ci --prefix tests/providers --ignore-scripts"
        );
        let method = match registration {
            Registration::Post => "client_secret_post",
            Registration::Public | Registration::Basic => "client_secret_basic",
        };
        let settings = json!({"cloud": cloud, "audience": AUDIENCE, "auth_method": method});
        let script = folder.join("server.mjs");
        let args = [script.display().to_string(), settings.to_string()];
        let home = TempDir::new().expect("make a directory");
        let node = program("node", "nodejs");
        let mut process = Process::of_program(&node, "the provider", home.path(), &args, &[]);
        let issuer = process
            .prints("its issuer", |line| {
                line.starts_with("http://").then(|| line.to_owned())
            })
            .await;
        Self {
            _process: process,
            issuer: Url::parse(&issuer).expect("a URL"),
            _home: home,
        }
    }

    /// The provider and a cloud whose people it signs in; `more` settings may change the rest.
    pub async fn with_cloud(
        topology: Topology,
        registration: Registration,
        more: impl FnOnce(TestCloudBuilder) -> TestCloudBuilder,
    ) -> (Self, TestCloud) {
        let api = free_addr();
        let public_url = format!("http://localhost:{}", api.port());
        let provider = Self::spawn(&public_url, registration).await;
        let client = match registration {
            Registration::Public => "public",
            Registration::Basic | Registration::Post => "confidential",
        };
        let mut builder = TestCloud::builder(topology)
            .setting("EDGECLOUD__SERVER__API_LISTEN", api)
            .setting("EDGECLOUD__OIDC__ISSUER", provider.issuer())
            .setting("EDGECLOUD__OIDC__CLIENT_ID", client)
            .setting(
                "EDGECLOUD__OIDC__SCOPES",
                "openid,profile,email,offline_access",
            )
            .setting(
                "EDGECLOUD__OIDC__AUTHORIZE_PARAMS",
                r#"{ prompt = "consent" }"#,
            )
            .setting("EDGECLOUD__OIDC__API__AUDIENCE", AUDIENCE);
        if registration != Registration::Public {
            builder = builder.setting(
                "EDGECLOUD__OIDC__CLIENT_SECRET",
                "confidential-secret-canary",
            );
        }
        let cloud = more(builder).spawn().await;
        (provider, cloud)
    }

    /// Its name.
    pub fn issuer(&self) -> &str {
        self.issuer.as_str().trim_end_matches('/')
    }

    fn addr(&self) -> SocketAddr {
        self.issuer.socket_addrs(|| None).expect("an address")[0]
    }

    fn request(&self, method: Method, target: &str) -> Request {
        Request::new(self.addr(), self.issuer.authority(), method, target)
    }

    /// Asks for something that only tests ask for.
    pub async fn control(&self, method: Method, what: &str) -> Value {
        let target = format!("/test/{what}");
        self.request(method, &target)
            .send()
            .await
            .expect(200)
            .json()
    }

    /// What came to the token endpoint with a grant type.
    pub async fn token_requests(&self, grant_type: &str) -> Vec<Value> {
        let all = self.control(Method::GET, "token-requests").await;
        let all = all.as_array().expect("a list").clone();
        all.into_iter()
            .filter(|request| request["grant_type"] == grant_type)
            .collect()
    }

    /// Signs `user` in at the cloud, as a browser does: every page of the provider on the way.
    pub async fn sign_in(&self, browser: &Browser, user: &str) -> ProviderSession {
        let session = ProviderSession::default();
        let authorize = browser.begin_login("/").await;
        let callback = self.follow(&session, &authorize, user).await;
        let origin = browser.origin();
        let target = callback.as_str().strip_prefix(&origin);
        let target = target.unwrap_or_else(|| panic!("the callback is elsewhere: {callback}"));
        let answer = browser.open_callback(target).await.expect(303);
        assert_eq!(answer.header("location"), "/");
        session
    }

    /// Goes from page to page at the provider until it sends the browser elsewhere.
    pub async fn follow(&self, session: &ProviderSession, start: &Url, user: &str) -> Url {
        let mut at = start.clone();
        for _ in 0..MAX_STEPS {
            let answer = self.open(session, Method::GET, &at, None).await;
            let answer = match answer.status.is_redirection() {
                true => answer,
                false => self.fill_in(session, &at, &answer, user).await,
            };
            at = at.join(answer.header("location")).expect("a URL");
            if at.origin() != self.issuer.origin() {
                return at;
            }
        }
        panic!("the provider goes round in circles: {at}");
    }

    /// Sends the form of a page.
    async fn fill_in(
        &self,
        session: &ProviderSession,
        at: &Url,
        page: &Answer,
        user: &str,
    ) -> Answer {
        let html = page.text();
        let attribute = |before: &str| {
            let (_, rest) = html.split_once(before)?;
            rest.split('"').next().map(str::to_owned)
        };
        let action = attribute("action=\"").unwrap_or_else(|| panic!("no form: {html}"));
        let target = at.join(&action).expect("a URL");
        let form = match (
            attribute("name=\"prompt\" value=\""),
            attribute("name=\"xsrf\" value=\""),
        ) {
            (Some(prompt), _) if prompt == "login" => {
                format!("prompt=login&login={user}&password=any")
            }
            (Some(prompt), _) => format!("prompt={prompt}"),
            (None, Some(xsrf)) => format!("xsrf={xsrf}&logout=yes"),
            (None, None) => panic!("an unknown page: {html}"),
        };
        let answer = self.open(session, Method::POST, &target, Some(form)).await;
        assert!(answer.status.is_redirection(), "{answer:?}");
        answer
    }

    async fn open(
        &self,
        session: &ProviderSession,
        method: Method,
        at: &Url,
        form: Option<String>,
    ) -> Answer {
        let target = &at[Position::BeforePath..Position::AfterQuery];
        let mut request = self
            .request(method, target)
            .with_jar(session.0.clone(), self.issuer.authority());
        if let Some(form) = form {
            request = request
                .header("content-type", "application/x-www-form-urlencoded")
                .bytes(form);
        }
        request.send().await
    }

    /// An access token of a program, meant for `resource`.
    pub async fn access_token(&self, client: &str, resource: &str) -> String {
        let secret = format!("{client}:{client}-secret-canary");
        let basic = format!("Basic {}", BASE64.encode(secret.as_bytes()));
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("scope", "api")
            .append_pair("resource", resource)
            .finish();
        let answer = self
            .request(Method::POST, "/token")
            .header(header::AUTHORIZATION.as_str(), &basic)
            .header("content-type", "application/x-www-form-urlencoded")
            .bytes(form)
            .send()
            .await
            .expect(200);
        text(&answer.json()["access_token"])
    }
}
