"""Other tunnels, each in the way its documentation recommends for speed, without TLS."""

import os
import pathlib
import secrets
import shutil

from .processes import Process, free_port
from .subject import Entry, Missing, Subject

#: Where `benches/peers/install` puts what it builds.
FOLDER = pathlib.Path(
    os.environ.get("EDGECLOUD_BENCH_PEERS", pathlib.Path.home() / ".cache" / "edgecloud-bench")
)
INSTALL = "benches/peers/install {0}"


def find(program, peer):
    """The path of a peer's program."""
    found = shutil.which(program, path=f"{FOLDER / 'bin'}:{os.environ.get('PATH', '')}")
    if not found:
        raise Missing(f"{program} is not installed: {INSTALL.format(peer)}")
    return found


class Peers:
    """Starts the peers in front of the origin."""

    def __init__(self, work, origin):
        self.work = work
        self.origin = origin

    def _start(self, name, *argv):
        process = Process(name, argv, self.work)
        return process

    def _config(self, name, text):
        file = self.work / name
        file.write_text(text)
        return file

    def rathole(self):
        program = find("rathole", "rathole")
        control, entry, token = free_port(), free_port(), secrets.token_hex(16)
        server = self._config("rathole-server.toml", f"""
            [server]
            bind_addr = "127.0.0.1:{control}"
            default_token = "{token}"
            [server.transport]
            type = "tcp"
            [server.transport.tcp]
            nodelay = true
            [server.services.origin]
            bind_addr = "127.0.0.1:{entry}"
            nodelay = true
        """)
        client = self._config("rathole-client.toml", f"""
            [client]
            remote_addr = "127.0.0.1:{control}"
            default_token = "{token}"
            [client.transport]
            type = "tcp"
            [client.transport.tcp]
            nodelay = true
            [client.services.origin]
            local_addr = "127.0.0.1:{self.origin}"
            nodelay = true
        """)
        first = self._start("rathole-server", program, "--server", server)
        first.wait_port(control)
        second = self._start("rathole-client", program, "--client", client)
        first.wait_port(entry)
        return Subject("rathole", Entry(entry), [first, second])

    def bore(self):
        program = find("bore", "bore")
        entry = free_port()
        first = self._start("bore-server", program, "server", "--bind-addr", "127.0.0.1")
        # Its control port is fixed.
        first.wait_port(7835)
        second = self._start(
            "bore-local", program, "local", self.origin, "--local-host", "127.0.0.1", "--to", "127.0.0.1",
            "--port", entry,
        )
        first.wait_port(entry)
        return Subject("bore", Entry(entry), [first, second])

    def chisel(self):
        program = find("chisel", "chisel")
        control, entry = free_port(), free_port()
        first = self._start(
            "chisel-server", program, "server", "--host", "127.0.0.1", "--port", control, "--reverse")
        first.wait_port(control)
        way = f"R:127.0.0.1:{entry}:127.0.0.1:{self.origin}"
        second = self._start("chisel-client", program, "client", f"http://127.0.0.1:{control}", way)
        first.wait_port(entry)
        return Subject("chisel", Entry(entry), [first, second])

    def frp(self):
        server_program, client_program = find("frps", "frp"), find("frpc", "frp")
        control, entry, token = free_port(), free_port(), secrets.token_hex(16)
        server = self._config("frps.toml", f"""
bindAddr = "127.0.0.1"
bindPort = {control}
proxyBindAddr = "127.0.0.1"
auth.token = "{token}"
log.level = "warn"
""")
        client = self._config("frpc.toml", f"""
serverAddr = "127.0.0.1"
serverPort = {control}
auth.token = "{token}"
transport.tls.enable = false
transport.poolCount = 64
log.level = "warn"
[[proxies]]
name = "origin"
type = "tcp"
localIP = "127.0.0.1"
localPort = {self.origin}
remotePort = {entry}
""")
        first = self._start("frps", server_program, "-c", server)
        first.wait_port(control)
        second = self._start("frpc", client_program, "-c", client)
        first.wait_port(entry)
        return Subject("frp", Entry(entry), [first, second])


class GoOriginal:
    """The design that this product replaces; see benches/peers/go."""

    DEVICE = "device-1"

    def __init__(self, work, origin, tunnel=None, name="go", before_agent=lambda tunnel: None):
        """`tunnel` is the port that the agent connects to, when that is not the server's own; `before_agent` gets
        the server's own and makes sure that the other one leads there."""
        program = find("go-original", "go")
        self.token_file = work / f"{name}-token"
        self.token_file.write_text(secrets.token_hex(16))
        self.token_file.chmod(0o600)
        cookie = work / f"{name}-cookie"
        self.tunnel, http, tcp = free_port(), free_port(), free_port()
        self.server = Process(
            f"{name}-server",
            [program, "server", "--tunnel", f"127.0.0.1:{self.tunnel}", "--http", f"127.0.0.1:{http}",
             "--tcp", f"127.0.0.1:{tcp}", "--token-file", self.token_file, "--cookie-file", cookie],
            work,
        )
        for port in (self.tunnel, http, tcp):
            self.server.wait_port(port)
        processes = [self.server]
        if origin:
            before_agent(self.tunnel)
            processes.append(Process(
                f"{name}-agent",
                [program, "agent", "--tunnel", f"127.0.0.1:{tunnel or self.tunnel}",
                 "--origin", f"127.0.0.1:{origin}", "--token-file", self.token_file],
                work,
            ))
        prefix = f"/devices/{self.DEVICE}/http"
        self.http = Subject("Go original (http)", Entry(http, prefix, str(cookie)), processes)
        self.tcp = Subject("Go original (tcp)", Entry(tcp), processes)
