//! OpenSSH to a device, with `edgecloud tcp` as its ProxyCommand.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::{
    BINARY, Browser, Device, Origin, Process, ServiceClient, TestCloud, Topology, free_addr,
    on_both_topologies, program, run_program,
};

on_both_topologies![a_shell_and_a_large_copy_pass_through_the_cloud];

const SSHD: &str = "/usr/sbin/sshd";

/// What is copied, in MiB: a gigabyte once is enough.
fn file_size(topology: Topology) -> usize {
    match topology {
        Topology::Split => 1024,
        Topology::All => 64,
    }
}

/// An sshd of the user who runs the tests, for one key.
struct SshServer {
    addr: SocketAddr,
    home: TempDir,
    _process: Process,
}

impl SshServer {
    async fn spawn() -> Self {
        let home = TempDir::new().expect("a directory");
        for key in ["host", "client"] {
            let file = path(home.path(), key);
            let keygen = program("ssh-keygen", "openssh-client");
            let args = ["-q", "-t", "ed25519", "-N", "", "-f", &file];
            let made = run_program(&keygen, home.path(), &args, &[]).await;
            made.expect_code(0);
        }
        let addr = free_addr();
        let config = format!(
            "ListenAddress {addr}\nHostKey {host}\nAuthorizedKeysFile {client}.pub\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nPidFile none\nPermitRootLogin yes\n\
             Subsystem sftp internal-sftp\n",
            host = path(home.path(), "host"),
            client = path(home.path(), "client"),
        );
        fs::write(home.path().join("config"), config).expect("write the settings");
        // Where root's sshd locks its children in; other users have none.
        let _ = fs::DirBuilder::new().mode(0o755).create("/run/sshd");
        let args = ["-D", "-e", "-f", &path(home.path(), "config")];
        assert!(
            Path::new(SSHD).is_file(),
            "sshd is missing: sudo apt-get install openssh-server"
        );
        let mut process = Process::of_program(SSHD, "sshd", home.path(), &args, &[]);
        process
            .prints("that it listens", |line| {
                line.contains("Server listening").then_some(())
            })
            .await;
        Self {
            addr,
            home,
            _process: process,
        }
    }
}

fn path(home: &Path, name: &str) -> String {
    let path: PathBuf = home.join(name);
    path.to_str().expect("a readable path").to_owned()
}

async fn a_shell_and_a_large_copy_pass_through_the_cloud(topology: Topology) {
    let cloud = TestCloud::builder(topology).spawn().await;
    let server = SshServer::spawn().await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let allowed = server.addr.to_string();
    let device = Device::pair_with(&cloud, &alice, origin.addr(), &["--allow-tcp", &allowed]).await;
    ServiceClient::register(&cloud, &alice, "ssh", "operator").await;
    let port = server.addr.port();
    let proxy = format!("ProxyCommand={BINARY} tcp {} {port}", device.id);
    let key = path(server.home.path(), "client");
    let options = [
        "-F",
        "none",
        "-i",
        &key,
        "-o",
        &proxy,
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ];
    let issuer = format!("http://{}", cloud.issuer_addr());
    let env = [
        ("EDGECLOUD_CLOUD", cloud.public_url()),
        ("EDGECLOUD_ISSUER", &issuer),
        ("EDGECLOUD_CLIENT_ID", "edgecloud-dev-ssh"),
        ("EDGECLOUD_CLIENT_SECRET", "edgecloud-dev-secret"),
    ];
    let home = server.home.path();
    let ssh = program("ssh", "openssh-client");
    let shell = [&options[..], &["box", "echo hello from $((6 * 7)); exit 3"]].concat();
    let said = run_program(&ssh, home, &shell, &env).await.expect_code(3);
    assert_eq!(said.stdout, "hello from 42\n", "{said:?}");

    let block: Vec<u8> = (0_u8..251).cycle().take(1 << 20).collect();
    let sent = block.repeat(file_size(topology));
    fs::write(home.join("sent"), &sent).expect("write a file");
    let scp = program("scp", "openssh-client");
    let there = format!("box:{}", path(home, "there"));
    let back = path(home, "back");
    for (from, to) in [(path(home, "sent"), &there), (there.clone(), &back)] {
        let copy = [&options[..], &[&from, to]].concat();
        run_program(&scp, home, &copy, &env).await.expect_code(0);
    }
    assert!(
        fs::read(home.join("back")).expect("a file") == sent,
        "every byte"
    );
}
