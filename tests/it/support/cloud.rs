//! A cloud of one or two processes.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use super::process::{BINARY, Process, program, run_program};
use super::tls::{Authority, TlsClient};
use super::wait::eventually;

/// How a cloud is spread over processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One process with all roles.
    All,
    /// An api and a proxy process with the same data directory.
    Split,
}

/// A part of a cloud, whichever process it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What people talk to.
    Api,
    /// What devices talk to.
    Proxy,
}

/// What a process writes to its ready file.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    pub api: Option<SocketAddr>,
    pub tunnel: Option<SocketAddr>,
    pub internal: Option<SocketAddr>,
    pub issuer: Option<SocketAddr>,
    pub public_url: Option<String>,
}

impl Ready {
    /// Waits until a process has written its ready file.
    pub async fn read(what: &str, file: &Path, process: &mut Process) -> Self {
        eventually(&format!("{what} is ready"), async || {
            process.check_running();
            let text = std::fs::read_to_string(file).ok()?;
            Some(serde_json::from_str(&text).expect("the ready file is complete when it appears"))
        })
        .await
    }
}

/// One process of a cloud.
struct Member {
    role: &'static str,
    process: Process,
    ready: Ready,
}

/// A process that was started beside those of a [`TestCloud`], on the same data.
pub struct Another {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub ready: Ready,
}

impl Another {
    /// Where people's requests go.
    pub fn api_addr(&self) -> SocketAddr {
        self.ready.api.expect("an api listens")
    }

    /// Where devices connect.
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.ready.tunnel.expect("a proxy listens for tunnels")
    }
}

/// How a cloud is to be started.
pub struct TestCloudBuilder {
    topology: Topology,
    settings: Vec<(String, String)>,
    has_proxy: bool,
    tls: Option<TlsClient>,
    has_file_limits: bool,
}

impl TestCloudBuilder {
    /// Adds an environment variable to every process.
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Leaves a setting of all tests' clouds out, because the test has its own way to set it.
    pub fn without_setting(mut self, name: &str) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self
    }

    /// Lets people and devices in over TLS only, at `localhost`; the certificate is what the authority
    /// has issued last.
    pub fn tls(mut self, authority: &Authority) -> Self {
        let (api, tunnel) = (free_addr(), free_addr());
        self.tls = Some(authority.client("localhost"));
        let cert = authority.cert_file();
        let key = authority.key_file();
        self.setting("EDGECLOUD__SERVER__API_LISTEN", api)
            .setting(
                "EDGECLOUD__SERVER__PUBLIC_URL",
                format!("https://localhost:{}", api.port()),
            )
            .setting("EDGECLOUD__TUNNEL__LISTEN", tunnel)
            .setting(
                "EDGECLOUD__TUNNEL__PUBLIC_URL",
                format!("wss://localhost:{}", tunnel.port()),
            )
            .setting("EDGECLOUD__TLS__CERT", cert.display())
            .setting("EDGECLOUD__TLS__KEY", key.display())
    }

    /// Lets [`TestCloud::limit_files`] bound what its processes can write.
    pub fn with_file_limits(mut self) -> Self {
        self.has_file_limits = true;
        self
    }

    /// Does not start the proxy of [`Topology::Split`] yet; [`TestCloud::start_proxy`] does.
    pub fn without_proxy(mut self) -> Self {
        self.has_proxy = false;
        self
    }

    /// Starts it and waits until everything listens.
    pub async fn spawn(self) -> TestCloud {
        let home = TempDir::new().expect("make a directory for a cloud");
        let mut cloud = TestCloud {
            topology: self.topology,
            settings: self.settings,
            tls: self.tls,
            has_file_limits: self.has_file_limits,
            home,
            members: Vec::new(),
        };
        for role in cloud.roles() {
            if role == "proxy" && !self.has_proxy {
                continue;
            }
            let member = cloud.start(role, None).await;
            cloud.members.push(member);
        }
        cloud
    }
}

/// A running cloud in development mode, with its own data directory and ports of its own.
pub struct TestCloud {
    topology: Topology,
    settings: Vec<(String, String)>,
    tls: Option<TlsClient>,
    has_file_limits: bool,
    home: TempDir,
    members: Vec<Member>,
}

impl TestCloud {
    /// A cloud that is not started yet.
    pub fn builder(topology: Topology) -> TestCloudBuilder {
        TestCloudBuilder {
            topology,
            has_proxy: true,
            tls: None,
            has_file_limits: false,
            // Tests pair, sign in and fail far more often than people do, all from one address.
            settings: [
                ("LIMITS__PAIRING_ATTEMPTS_PER_MINUTE", "10000"),
                ("LIMITS__SIGN_IN_STARTS_PER_MINUTE", "10000"),
                ("LIMITS__FAILED_CALLBACKS_PER_MINUTE", "10000"),
                ("LIMITS__FAILED_DEVICE_TOKENS_PER_MINUTE", "10000"),
                ("LOG__LEVEL", "info,edgecloud=debug"),
            ]
            .map(|(name, value)| (format!("EDGECLOUD__{name}"), value.to_owned()))
            .to_vec(),
        }
    }

    /// Where people's requests go.
    pub fn api_addr(&self) -> SocketAddr {
        self.member(Part::Api).ready.api.expect("an api listens")
    }

    /// Where devices connect.
    pub fn tunnel_addr(&self) -> SocketAddr {
        let ready = &self.member(Part::Proxy).ready;
        ready.tunnel.expect("a proxy listens for tunnels")
    }

    /// Where the internal API of the proxy is.
    ///
    /// # Panics
    /// When the cloud is one process, which has none.
    pub fn internal_addr(&self) -> SocketAddr {
        let ready = &self.member(Part::Proxy).ready;
        ready.internal.expect("a proxy has an internal API")
    }

    /// Where the development issuer is.
    pub fn issuer_addr(&self) -> SocketAddr {
        let ready = &self.member(Part::Api).ready;
        ready.issuer.expect("the development issuer listens")
    }

    /// The address that people have.
    pub fn public_url(&self) -> &str {
        let ready = &self.member(Part::Api).ready;
        ready.public_url.as_deref().expect("an api has an address")
    }

    /// Host and port of [`TestCloud::public_url`].
    pub fn public_host(&self) -> &str {
        self.public_url()
            .split_once("://")
            .map(|(_, host)| host)
            .expect("a URL")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The settings of every process.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        let settings = self.settings.iter();
        settings
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    /// Leaves a setting out of every process that is started from now on.
    pub fn forget_setting(&mut self, name: &str) {
        self.settings.retain(|(known, _)| known != name);
    }

    /// Whom people trust, in a cloud with TLS.
    pub fn tls(&self) -> Option<&TlsClient> {
        self.tls.as_ref()
    }

    /// Starts the proxy that [`TestCloudBuilder::without_proxy`] left out.
    pub async fn start_proxy(&mut self) {
        let member = self.start("proxy", None).await;
        self.members.push(member);
    }

    /// Starts one more process on the same data, with more settings. An api process has the
    /// people's address and the provider of the first one.
    pub async fn another(&self, role: &'static str, more: &[(&str, &str)]) -> Another {
        static COUNT: AtomicUsize = AtomicUsize::new(2);
        let name = format!("{role}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut env = self.settings.clone();
        // After the settings: it listens on ports of its own.
        env.extend(listen_settings(role, None));
        if role != "proxy" {
            let public_url = self.public_url().to_owned();
            env.push(("EDGECLOUD__SERVER__PUBLIC_URL".to_owned(), public_url));
            if let Some(issuer) = self.member(Part::Api).ready.issuer {
                let issuer = format!("http://{issuer}");
                let client = "edgecloud-dev".to_owned();
                env.push(("EDGECLOUD__OIDC__ISSUER".to_owned(), issuer));
                env.push(("EDGECLOUD__OIDC__CLIENT_ID".to_owned(), client));
            }
        }
        let more = more.iter();
        env.extend(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let (process, ready) = self.spawn(role, &name, &env).await;
        Another { process, ready }
    }

    /// The database, opened beside the processes: for what takes too long to wait for.
    pub fn database(&self) -> rusqlite::Connection {
        let file = self.data_dir().join("edgecloud.db");
        rusqlite::Connection::open(file).expect("open the database")
    }

    /// The process with a part.
    pub fn process(&mut self, part: Part) -> &mut Process {
        let index = self.index(part);
        &mut self.members[index].process
    }

    /// Lets no file of its processes grow beyond so many bytes, as a full disk would; `None` ends that.
    pub async fn limit_files(&self, bytes: Option<u64>) {
        assert!(self.has_file_limits, "the processes would be killed");
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let prlimit = program("prlimit", "util-linux");
        for process in self.processes() {
            let pid = process.id().to_string();
            // The soft limit alone, which can be raised again.
            let args = ["--pid", &pid, &format!("--fsize={limit}:")];
            let done = run_program(&prlimit, self.home.path(), &args, &[]).await;
            done.expect_code(0);
        }
    }

    /// All processes.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.members.iter().map(|member| &member.process)
    }

    /// The ready file of the process with a part.
    pub fn ready_file(&self, part: Part) -> PathBuf {
        ready_file(self.home.path(), self.member(part).role)
    }

    /// Ends the process with a part at once, as a crash would.
    pub async fn crash(&mut self, part: Part) {
        self.process(part).crash().await;
    }

    /// Asks the process with a part to end.
    pub fn terminate(&mut self, part: Part) {
        self.process(part).signal(Signal::SIGTERM);
    }

    /// Waits for the end of the process with a part.
    pub async fn wait_exit(&mut self, part: Part) -> ExitStatus {
        self.process(part).wait().await
    }

    /// Starts the process with a part again, which has ended, with the same ports and data.
    pub async fn start_again(&mut self, part: Part) {
        let index = self.index(part);
        let (role, ready) = (self.members[index].role, self.members[index].ready.clone());
        self.members[index] = self.start(role, Some(ready)).await;
    }

    /// Ends the process with a part as an operator would, and starts it again.
    pub async fn restart(&mut self, part: Part) {
        self.terminate(part);
        let status = self.wait_exit(part).await;
        assert!(status.success(), "an asked-for end is a success: {status}");
        self.start_again(part).await;
    }

    fn roles(&self) -> Vec<&'static str> {
        match self.topology {
            Topology::All => vec!["all"],
            Topology::Split => vec!["proxy", "api"],
        }
    }

    fn index(&self, part: Part) -> usize {
        let wanted = match (self.topology, part) {
            (Topology::All, _) => "all",
            (Topology::Split, Part::Api) => "api",
            (Topology::Split, Part::Proxy) => "proxy",
        };
        let found = self.members.iter().position(|member| member.role == wanted);
        found.expect("the process was started")
    }

    fn member(&self, part: Part) -> &Member {
        &self.members[self.index(part)]
    }

    async fn start(&self, role: &'static str, before: Option<Ready>) -> Member {
        let mut env = listen_settings(role, before.as_ref());
        env.extend(self.settings.clone());
        let (process, ready) = self.spawn(role, role, &env).await;
        Member {
            role,
            process,
            ready,
        }
    }

    async fn spawn(&self, role: &str, name: &str, env: &[(String, String)]) -> (Process, Ready) {
        let file = ready_file(self.home.path(), name);
        // The file of an earlier life would be taken for that of the new one.
        let _ = std::fs::remove_file(&file);
        let data_dir = self.data_dir();
        let args = [
            "serve".as_ref(),
            "--dev".as_ref(),
            "--role".as_ref(),
            role.as_ref(),
            "--data-dir".as_ref(),
            data_dir.as_os_str(),
            "--ready-file".as_ref(),
            file.as_os_str(),
        ];
        let what = format!("role {name}");
        let mut process = match self.has_file_limits {
            false => Process::spawn(&what, self.home.path(), &args, env),
            true => {
                // Else the kernel's signal ends whoever writes beyond the limit.
                let launcher: [&OsStr; 2] = ["--ignore-signal=XFSZ".as_ref(), BINARY.as_ref()];
                let args = [&launcher[..], &args[..]].concat();
                let program = program("env", "coreutils");
                Process::of_program(&program, &what, self.home.path(), &args, env)
            }
        };
        let ready = Ready::read(&what, &file, &mut process).await;
        (process, ready)
    }
}

/// An address on which nothing listens, for whom it is given to later. No port of the range that the
/// kernel gives out by itself, so that nobody else comes by it.
pub fn free_addr() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize;
    loop {
        let next = start + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(20_000 + next % 10_000).expect("a port");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

fn ready_file(home: &Path, role: &str) -> PathBuf {
    home.join(format!("ready-{role}.json"))
}

/// Any free port at first, the same ones at a restart.
fn listen_settings(role: &str, before: Option<&Ready>) -> Vec<(String, String)> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let addr = |of: fn(&Ready) -> Option<SocketAddr>| before.and_then(of).unwrap_or(any);
    let mut env = vec![
        ("EDGECLOUD__SERVER__API_LISTEN", addr(|ready| ready.api)),
        ("EDGECLOUD__TUNNEL__LISTEN", addr(|ready| ready.tunnel)),
        ("EDGECLOUD__DEV__ISSUER_LISTEN", addr(|ready| ready.issuer)),
    ];
    if role == "proxy" {
        env.push(("EDGECLOUD__INTERNAL__LISTEN", addr(|ready| ready.internal)));
    }
    env.into_iter()
        .map(|(name, addr)| (name.to_owned(), addr.to_string()))
        .collect()
}
