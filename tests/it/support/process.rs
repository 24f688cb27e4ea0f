//! Processes of the built binary.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::wait::{eventually, within};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_edgecloud");
/// How long a program that should end may run; a whole test in a browser is the longest.
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
/// Lines of output that are kept of a process.
const KEPT_LINES: usize = 100_000;
/// Of those the last ones that are shown when a test fails.
const SHOWN_LINES: usize = 400;

/// The last lines that a process printed.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// A running process; killed when dropped. What it printed is shown when the test fails.
pub struct Process {
    name: String,
    child: Child,
    log: Log,
}

impl Process {
    /// Starts the binary with nothing in its environment but what is given.
    pub fn spawn<A: AsRef<OsStr>>(
        name: &str,
        home: &Path,
        args: &[A],
        env: &[(String, String)],
    ) -> Self {
        Self::of_program(BINARY, name, home, args, env)
    }

    /// Starts any program in the same way.
    pub fn of_program<A: AsRef<OsStr>>(
        program: &str,
        name: &str,
        home: &Path,
        args: &[A],
        env: &[(String, String)],
    ) -> Self {
        let mut child = command(program, home, env)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("start {program}: {error}"));
        let log = Log::default();
        keep_lines(child.stdout.take().expect("piped"), log.clone());
        keep_lines(child.stderr.take().expect("piped"), log.clone());
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// The process id, while it runs.
    pub fn id(&self) -> u32 {
        self.child.id().expect("the process runs")
    }

    /// Its anonymous memory, in KiB.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("the process runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.expect("the kernel tells the memory").trim();
        let kib = kib.trim_end_matches(" kB").parse();
        kib.expect("a number of KiB")
    }

    /// Everything that it printed lately.
    pub fn output(&self) -> String {
        self.log.text()
    }

    /// The last lines that it printed.
    fn last_lines(&self) -> String {
        let output = self.output();
        let skipped = output.lines().count().saturating_sub(SHOWN_LINES);
        let lines = output.lines().skip(skipped);
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// Waits until it has printed a line that `find` likes, and returns what `find` made of it.
    pub async fn prints<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let name = self.name.clone();
        eventually(&format!("{name} prints {what}"), async || {
            self.check_running();
            self.output().lines().find_map(&find)
        })
        .await
    }

    /// Fails the test when the process has ended.
    pub fn check_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("ask for the process's state") {
            panic!(
                "{} ended early, {status}; it printed:\n{}",
                self.name,
                self.last_lines()
            );
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("send a signal");
    }

    /// Waits for the end.
    pub async fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        within(&what, self.child.wait())
            .await
            .expect("wait for a process")
    }

    /// Ends it with SIGKILL, as a crash would.
    pub async fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait().await;
    }

    /// Most memory that it ever had in use, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(&path).expect("the process's state can be read");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .expect("the kernel tells the peak");
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>();
        kib.expect("a number of KiB") * 1024
    }
}

impl Drop for Process {
    #[expect(
        clippy::print_stderr,
        reason = "the test harness shows it with the failure"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}---", self.name, self.last_lines());
        }
    }
}

fn keep_lines(output: impl AsyncRead + Unpin + Send + 'static, log: Log) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            log.push(line);
        }
    });
}

/// How a process ended, and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails the test unless the exit code is the expected one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// Runs the binary to its end.
pub async fn run(home: &Path, args: &[&str], env: &[(&str, &str)]) -> Finished {
    run_program(BINARY, home, args, env).await
}

/// Runs any program to its end, with nothing in its environment but what is given.
pub async fn run_program(
    program: &str,
    home: &Path,
    args: &[&str],
    env: &[(&str, &str)],
) -> Finished {
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let output = command(program, home, &env)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PROGRAM_LIMIT, output)
        .await
        .unwrap_or_else(|_| panic!("{program} {args:?} does not end"))
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the binary to its end with something on its standard input.
pub async fn converse(
    home: &Path,
    args: &[String],
    env: &[(String, String)],
    input: &[u8],
) -> Finished {
    let mut child = command(BINARY, home, env)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("start the binary");
    let mut stdin = child.stdin.take().expect("piped");
    let talking = async {
        // A program that ends early does not read it all.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let both = async { tokio::join!(child.wait_with_output(), talking).0 };
    let output = timeout(PROGRAM_LIMIT, both)
        .await
        .unwrap_or_else(|_| panic!("{args:?} does not end"))
        .expect("wait for the binary");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn command(program: &str, home: &Path, env: &[(String, String)]) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("RUST_BACKTRACE", "1")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(home);
    command
}

/// The path of a program.
///
/// # Panics
/// When it is not installed; says how to install it.
pub fn program(name: &str, package: &str) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    let file = found.unwrap_or_else(|| panic!("{name} is missing: sudo apt-get install {package}"));
    file.to_str().expect("a readable path").to_owned()
}
