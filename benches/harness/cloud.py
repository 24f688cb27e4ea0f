"""edgecloud itself: the cloud in one process or two, a person who is signed in, a device with the bundled agent."""

import http.client
import json
import os
import urllib.parse

from .processes import Failed, Process, wait_for
from .subject import Entry, Subject

#: Limits that exist to slow people down, out of the way of a load tool that does everything from one address; and one
#: that 256 connections to one device would meet.
SETTINGS = {
    "LOG__LEVEL": "warn",
    "TUNNEL__MAX_STREAMS_PER_SESSION": "1024",
    "LIMITS__PAIRING_ATTEMPTS_PER_MINUTE": "10000",
    "LIMITS__PAIRING_ATTEMPTS_GLOBAL_PER_MINUTE": "10000",
    "LIMITS__SIGN_IN_STARTS_PER_MINUTE": "10000",
    "LIMITS__FAILED_CALLBACKS_PER_MINUTE": "10000",
}


class Cloud:
    """A running cloud of role all, or of the roles api and proxy, in development mode."""

    def __init__(self, program, work, name, split=False, settings=None):
        self.program = program
        self.name = name
        self.home = work / name
        self.home.mkdir()
        self.env = {
            "PATH": os.environ.get("PATH", ""),
            "EDGECLOUD__SERVER__API_LISTEN": "127.0.0.1:0",
            "EDGECLOUD__TUNNEL__LISTEN": "127.0.0.1:0",
            "EDGECLOUD__DEV__ISSUER_LISTEN": "127.0.0.1:0",
        }
        self.env |= {f"EDGECLOUD__{key}": value for key, value in (SETTINGS | (settings or {})).items()}
        self.processes, self.ready = {}, {}
        for role in ("proxy", "api") if split else ("all",):
            self._start(role)
        self.agents = []

    def _start(self, role):
        ready = self.home / f"{role}.ready"
        env = dict(self.env)
        if role == "proxy":
            env["EDGECLOUD__INTERNAL__LISTEN"] = "127.0.0.1:0"
        argv = [self.program, "serve", "--dev", "--role", role, "--data-dir", self.home / "data",
                "--ready-file", ready]
        process = self.processes.get(role)
        if process:
            process.env = env
            process.start()
        else:
            process = self.processes[role] = Process(f"{self.name}-{role}", argv, self.home, env)
        process.wait_for("is ready", ready.exists)
        self.ready[role] = json.loads(ready.read_text())

    def process(self, part):
        """The process that has a part: `api` or `proxy`."""
        return self.processes.get(part) or self.processes["all"]

    def port(self, part, listener):
        role = part if part in self.ready else "all"
        return int(self.ready[role][listener].rpartition(":")[2])

    @property
    def api_port(self):
        return self.port("api", "api")

    @property
    def tunnel_port(self):
        return self.port("proxy", "tunnel")

    @property
    def database(self):
        return self.home / "data" / "edgecloud.db"

    def restart(self, part):
        """Ends the process with a part as a crash would and starts it again, at the same addresses."""
        role = part if part in self.processes else "all"
        self.processes[role].kill()
        addresses = self.ready[role]
        names = {"api": "SERVER__API_LISTEN", "tunnel": "TUNNEL__LISTEN", "issuer": "DEV__ISSUER_LISTEN",
                  "internal": "INTERNAL__LISTEN"}
        for listener, name in names.items():
            if addresses.get(listener):
                self.env[f"EDGECLOUD__{name}"] = addresses[listener]
        (self.home / f"{role}.ready").unlink(missing_ok=True)
        self._start(role)

    def stop(self):
        for process in [*self.agents, *self.processes.values()]:
            process.stop()


class Person:
    """Somebody who signs in as a browser does, and calls the API with the cookie."""

    def __init__(self, cloud, user="alice"):
        self.cloud = cloud
        self.public = cloud.ready.get("api", cloud.ready.get("all"))["public_url"]
        self.host = urllib.parse.urlsplit(self.public).netloc
        self.cookies = {}
        self._sign_in(user)

    def request(self, method, path, body=None):
        """Calls the API; returns status and what the JSON says."""
        headers = {"Host": self.host, "Edgecloud-Csrf": "1"}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(body)
        answer, text = self._send(self.cloud.api_port, method, path, headers, body)
        for name, value in answer.getheaders():
            if name.lower() == "set-cookie":
                pair, _, rest = value.partition(";")
                cookie, _, value = pair.partition("=")
                if "max-age=0" in rest.lower() or not value:
                    self.cookies.pop(cookie, None)
                else:
                    self.cookies[cookie] = value
        return answer, text

    def json(self, method, path, body=None):
        answer, text = self.request(method, path, body)
        if answer.status >= 300:
            raise Failed(f"{self.cloud.name}: {method} {path} answers {answer.status}: {text[:300]}")
        return json.loads(text) if text else None

    @staticmethod
    def _send(port, method, target, headers, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer, text

    def _sign_in(self, user):
        begun, _ = self.request("GET", "/api/auth/login")
        provider = urllib.parse.urlsplit(begun.getheader("location"))
        form = {"Host": provider.netloc, "Content-Type": "application/x-www-form-urlencoded"}
        target = f"{provider.path}?{provider.query}"
        chosen, _ = self._send(provider.port, "POST", target, form, f"user={user}")
        back = urllib.parse.urlsplit(chosen.getheader("location"))
        done, text = self.request("GET", f"{back.path}?{back.query}")
        if done.status != 303:
            raise Failed(f"the sign-in is answered with {done.status}: {text[:300]}")

    def header_file(self, file, *more):
        """Writes the header lines that make a request this person's; the load tool reads them."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        lines = [f"Host: {self.host}", f"Cookie: {cookies}", *more]
        file.touch(0o600)
        file.write_text("\n".join(lines) + "\n")
        return str(file)

    def pair_agent(self, origin, name="agent", more=(), env=None):
        """Pairs a device of this person's and starts the bundled agent; returns the device's id."""
        cloud = self.cloud
        code = self.json("POST", "/api/pairing/codes", {})
        argv = [cloud.program, "agent", "--cloud", self.public, "--pair", code["code"], "--origin",
                f"http://127.0.0.1:{origin}", "--state-dir", cloud.home / name, *more]
        process = Process(f"{cloud.name}-{name}", argv, cloud.home, env)
        cloud.agents.append(process)
        code_path = f"/api/pairing/codes/{code['id']}"

        def online():
            device = self.json("GET", code_path)["device"]
            found = device and self.json("GET", f"/api/devices/{device['id']}")
            return found and found["status"] == "online" and found["id"]

        return process.wait_for("is online", online)


class Ours:
    """A cloud with one device, as a contestant."""

    def __init__(self, program, work, origin, name, split=False, settings=None, title=None, more=()):
        self.cloud = Cloud(program, work, name, split, settings)
        self.person = Person(self.cloud)
        more = ["--allow-tcp", f"127.0.0.1:{origin}", *more]
        self.device = self.person.pair_agent(origin, more=more)
        self.origin = origin
        title = title or ("edgecloud split" if split else "edgecloud")
        headers = self.person.header_file(self.cloud.home / "headers")
        prefix = f"/api/devices/{self.device}/http"
        processes = [*self.cloud.processes.values(), *self.cloud.agents]
        self.http = Subject(title, Entry(self.cloud.api_port, prefix, headers), processes)
        with_origin = self.person.header_file(self.cloud.home / "headers-ws", f"Origin: {self.person.public}")
        websocket = f"/api/devices/{self.device}/tcp/{origin}"
        entry = Entry(self.cloud.api_port, "", with_origin, websocket)
        self.tcp = Subject(f"{title} (tcp)", entry, processes)

    def has_tcp(self):
        """Whether this build has raw TCP to devices."""
        answer, _ = self.person.request("GET", self.tcp.entry.websocket)
        return answer.status != 404
