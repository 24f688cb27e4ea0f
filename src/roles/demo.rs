//! `demo`: the whole product in one command. It goes the way of a person and a box: signs in as alice
//! through the development issuer, makes a pairing code and lets a real agent exchange it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use data_encoding::HEXLOWER;
use http::header::{self, HeaderMap};
use http::{Method, Request, Response};
use secrecy::SecretString;
use serde_json::Value;
use tokio::time::timeout;
use url::Url;

use super::server::{Running, start};
use super::{Failure, load_config, print, runtime};
use crate::agent::{Agent, AgentConfig, AgentStatus, SampleOrigin};
use crate::auth::csrf::CSRF_HEADER;
use crate::auth::http::HttpClient;
use crate::cli::CommonArgs;
use crate::config::Flags;
use crate::runtime::{Asked, Signals};
use crate::telemetry::Telemetry;
use crate::types::{Clock, random_bytes};

/// How long the sample box may take to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The user who owns the sample box.
const USER: &str = "alice";

/// Runs the demo until a signal.
pub fn run(args: CommonArgs) -> Result<(), Failure> {
    let mut flags = Flags {
        dev: true,
        ..args.into()
    };
    let data_dir = match &flags.data_dir {
        Some(dir) => DataDir::Kept(dir.clone()),
        None => DataDir::temporary()?,
    };
    flags.data_dir = Some(data_dir.path().to_owned());
    // The ready file says that the whole demo is ready, not only its server.
    let ready_file = flags.ready_file.take();
    let mut config = load_config(&flags)?;
    if config.oidc.is_some() {
        let mistake =
            "oidc.issuer: the demo signs in through the development issuer; leave this setting out";
        return Err(Failure::Usage(mistake.to_owned()));
    }
    // The sample's own words are on standard output; the log tells what is not as it should be.
    if config.log.level == "info" {
        config.log.level = "warn".to_owned();
    }
    Telemetry::start(&config.log);
    runtime()?.block_on(async {
        let mut signals = Signals::listen().context("listen for signals")?;
        let running = start(config).await?;
        let shown = async {
            let box_ = SampleBox::connect(&running, data_dir.path()).await?;
            if let Some(path) = &ready_file {
                super::ready_file::write(path, &running.addresses)?;
            }
            box_.introduce(&running)?;
            anyhow::Ok(())
        };
        let shown = tokio::select! {
            shown = shown => shown,
            () = asked_to_stop(&mut signals) => Err(anyhow!("stopped before the demo was ready")),
        };
        if shown.is_ok() {
            asked_to_stop(&mut signals).await;
        }
        tokio::select! {
            () = running.shut_down() => {}
            () = asked_to_stop(&mut signals) => {}
        }
        if let Some(path) = &ready_file {
            super::ready_file::remove(path);
        }
        Ok(shown?)
    })
}

async fn asked_to_stop(signals: &mut Signals) {
    while signals.next().await == Asked::Reload {}
}

/// Where the demo keeps its things; a temporary place is removed at the end.
enum DataDir {
    Kept(PathBuf),
    Temporary(PathBuf),
}

impl DataDir {
    fn temporary() -> anyhow::Result<Self> {
        let name = format!("edgecloud-demo-{}", HEXLOWER.encode(&random_bytes::<8>()));
        let path = std::env::temp_dir().join(name);
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Self::Temporary(path))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) | Self::Temporary(path) => path,
        }
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Self::Temporary(path) = self {
            // What cannot be removed stays in the system's place for such things.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

/// The sample device: an origin, an agent, and its id.
struct SampleBox {
    device: String,
}

impl SampleBox {
    async fn connect(running: &Running, data_dir: &Path) -> anyhow::Result<Self> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let origin = SampleOrigin::bind(loopback)
            .await
            .context("bind the sample origin")?;
        let origin_url = format!("http://{}", origin.addr());
        let abort = running.lifecycle().abort.clone();
        running
            .lifecycle()
            .spawn_vital("sample origin", origin.serve(abort));
        let api = running.addresses.api.context("the demo has an API")?;
        let mut person = Person::new(api)?;
        person.sign_in().await.context("sign in as alice")?;
        let state_dir = data_dir.join("sample-box");
        if !person.owns_device_of(&state_dir).await? {
            // A box of another database, or none yet: it pairs anew.
            let removed = std::fs::remove_dir_all(&state_dir);
            if removed.is_err() && state_dir.exists() {
                bail!(
                    "cannot remove the old sample box in {}",
                    state_dir.display()
                );
            }
        }
        let pair = match state_dir.exists() {
            true => None,
            false => Some(person.pairing_code().await.context("make a pairing code")?),
        };
        let config = AgentConfig {
            cloud: Some(Url::parse(&format!("http://{api}"))?),
            pair,
            origin: Url::parse(&origin_url)?,
            state_dir,
            allow_tcp: Vec::new(),
            ca_file: None,
            host_header: None,
            max_streams: 64,
        };
        let agent = Agent::prepare(config, Clock::system())
            .await
            .context("pair the sample box")?;
        let device = agent.device_id().to_string();
        let mut status = agent.status();
        // It goes with the first word of the end: nobody else would take it.
        let run = agent.run(running.lifecycle().stop.clone());
        running.lifecycle().spawn(async move {
            if let Err(error) = run.await {
                tracing::error!(%error, "the sample box has stopped");
            }
        });
        let connected = status.wait_for(|status| *status == AgentStatus::Connected);
        timeout(CONNECT_DEADLINE, connected)
            .await
            .context("the sample box did not connect in time")??;
        person.wait_online(&device).await?;
        Ok(Self { device })
    }

    fn introduce(&self, running: &Running) -> anyhow::Result<()> {
        let url = running
            .addresses
            .public_url
            .as_deref()
            .context("the demo has a URL")?;
        let users = crate::auth::issuer::USERS.join(", ");
        let device = &self.device;
        let target = format!("/api/devices/{device}/http/api/hello");
        let text = format!(
            "edgecloud demo is running: the cloud, a sample box and its agent, paired.

  Console   {url}
  Users     {users} (no passwords: pick one; the sample box belongs to {USER})
  Device    {device}
  Try it    curl -sSL -b /tmp/edgecloud.jar -c /tmp/edgecloud.jar -d user={USER} \"$(curl -sS -c /tmp/edgecloud.jar -o /dev/null -w '%{{redirect_url}}' '{url}/api/auth/login?return_to={target}')\"

Press Ctrl+C to stop.
"
        );
        print(&text).context("write to standard output")
    }
}

/// What a person's browser does.
struct Person {
    http: HttpClient,
    api: String,
    cookies: Vec<(String, String)>,
}

impl Person {
    fn new(api: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self {
            http: HttpClient::new(None)?,
            api: format!("http://localhost:{}", api.port()),
            cookies: Vec::new(),
        })
    }

    async fn send(
        &mut self,
        method: Method,
        url: &str,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> anyhow::Result<Response<Vec<u8>>> {
        let ours = url.starts_with(&self.api);
        let mut request = Request::builder().method(method).uri(url);
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if ours && !self.cookies.is_empty() {
            let pairs: Vec<String> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request = request
                .header(header::COOKIE, pairs.join("; "))
                .header(&CSRF_HEADER, "1");
        }
        let response = self.http.call(request.body(body)?).await?;
        if ours {
            self.remember(response.headers());
        }
        Ok(response)
    }

    fn remember(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(header::SET_COOKIE) {
            let pair = value
                .to_str()
                .unwrap_or_default()
                .split(';')
                .next()
                .unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.retain(|(of, _)| of != name);
                if !value.is_empty() {
                    self.cookies.push((name.to_owned(), value.to_owned()));
                }
            }
        }
    }

    async fn sign_in(&mut self) -> anyhow::Result<()> {
        let login = format!("{}/api/auth/login", self.api);
        let to_issuer = location(&self.send(Method::GET, &login, None, Vec::new()).await?)?;
        let choice = format!("user={USER}").into_bytes();
        let form = Some("application/x-www-form-urlencoded");
        let back = location(&self.send(Method::POST, &to_issuer, form, choice).await?)?;
        location(&self.send(Method::GET, &back, None, Vec::new()).await?)?;
        Ok(())
    }

    async fn json(&mut self, method: Method, path: &str) -> anyhow::Result<(u16, Value)> {
        let url = format!("{}{path}", self.api);
        let response = self.send(method, &url, None, Vec::new()).await?;
        let body = serde_json::from_slice(response.body()).unwrap_or_default();
        Ok((response.status().as_u16(), body))
    }

    async fn pairing_code(&mut self) -> anyhow::Result<SecretString> {
        let (status, body) = self.json(Method::POST, "/api/pairing/codes").await?;
        let code = body["code"].as_str();
        let code = code.with_context(|| format!("the cloud answered {status}"))?;
        Ok(SecretString::from(code))
    }

    /// Whether the sample box of an earlier run is still known here.
    async fn owns_device_of(&mut self, state_dir: &Path) -> anyhow::Result<bool> {
        let Ok(text) = std::fs::read_to_string(state_dir.join("agent.json")) else {
            return Ok(false);
        };
        let state: Value = serde_json::from_str(&text).unwrap_or_default();
        let Some(id) = state["device_id"].as_str() else {
            return Ok(false);
        };
        let (status, _) = self
            .json(Method::GET, &format!("/api/devices/{id}"))
            .await?;
        Ok(status == 200)
    }

    async fn wait_online(&mut self, device: &str) -> anyhow::Result<()> {
        let online = async {
            loop {
                let (_, body) = self
                    .json(Method::GET, &format!("/api/devices/{device}"))
                    .await?;
                if body["status"] == "online" {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(CONNECT_DEADLINE, online)
            .await
            .context("the sample box is not online in time")?
    }
}

fn location(response: &Response<Vec<u8>>) -> anyhow::Result<String> {
    let status = response.status();
    let location = response.headers().get(header::LOCATION);
    let location = location.with_context(|| format!("{status} where a redirect is expected"))?;
    Ok(location.to_str()?.to_owned())
}
