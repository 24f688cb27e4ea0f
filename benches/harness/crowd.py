"""Many simulated devices of one cloud: paired once, connected as often as it takes."""

import sqlite3
import time

from .cloud import Cloud, Person
from .load import events
from .processes import free_port, wait_for

#: Loopback addresses that devices connect from: one address has 28,000 ports for a listener.
ADDRESSES = ",".join(f"127.0.0.{last}" for last in range(2, 10))
#: Descriptors that a process needs besides those of its devices: its own, and of those who are told to come back.
SPARE_DESCRIPTORS = 1000
#: Pairing and connecting a full crowd on a busy machine.
PATIENCE_SECONDS = 300


def largest(bench, wanted):
    """As many devices as one process here can have open, at most `wanted`."""
    return min(wanted, bench.descriptors - SPARE_DESCRIPTORS)


class Devices:
    """A running load tool that holds some devices' tunnels."""

    def __init__(self, bench, name, tunnel, tokens, count, *more):
        self.count = count
        self.process = bench.load.start(
            name, "devices", "--tunnel", f"127.0.0.1:{tunnel}", "--tokens", tokens, "--count", count,
            "--from", ADDRESSES, *more,
        )

    def wait_complete(self, after_ms=0):
        """Waits until all are connected, at a time after the given one; returns the event."""

        def complete():
            for event in reversed(events(self.process)):
                if event["event"] in ("complete", "incomplete"):
                    return event if event["event"] == "complete" and event["at"] >= after_ms else None
            return None

        return self.process.wait_for(f"all {self.count} devices are connected", complete, PATIENCE_SECONDS)

    def last(self):
        """The newest event."""
        return self.process.wait_for("says something", lambda: events(self.process))[-1]

    def stop(self):
        self.process.kill()


class Crowd:
    """A cloud with paired devices that are not connected yet."""

    def __init__(self, bench, name, count, cloud=None, person=None, settings=None):
        self.bench = bench
        self.cloud = cloud or Cloud(bench.programs.edgecloud, bench.work, name, settings=settings)
        person = person or Person(self.cloud)
        self.tokens = self.cloud.home / "tokens"
        headers = person.header_file(self.cloud.home / "headers-pair")
        bench.progress(f"{name}: pairing {count} devices")
        bench.load.run(
            "pair", "--target", f"127.0.0.1:{self.cloud.api_port}", "--headers", headers, "--count", count,
            "--out", self.tokens, seconds=PATIENCE_SECONDS,
        )
        self.names = 0

    def connect(self, count, *more, skip=0):
        """Begins to connect devices."""
        self.names += 1
        name = f"{self.cloud.name}-devices-{self.names}"
        return Devices(self.bench, name, self.cloud.tunnel_port, self.tokens, count, "--skip", skip, *more)

    def sessions(self, since_ms=0):
        """Sessions in the directory that began at or after a time."""
        with sqlite3.connect(f"file:{self.cloud.database}?mode=ro", uri=True, timeout=10) as database:
            asked = database.execute("SELECT count(*) FROM sessions WHERE connected_at >= ?", (since_ms,))
            return asked.fetchone()[0]

    def wait_registered(self, count, since_ms=0):
        """Waits until so many devices are in the directory; returns when that was seen, in ms."""

        def registered():
            # Often enough for the figure, seldom enough not to be part of it.
            time.sleep(0.03)
            return self.sessions(since_ms) >= count

        wait_for(f"{count} devices are in the directory", registered, PATIENCE_SECONDS)
        return time.time() * 1000

    def wait_only_agents(self, count=0):
        """Waits until only so many devices, those of bundled agents, are in the directory."""
        wait_for("the sessions have ended", lambda: self.sessions() == count, PATIENCE_SECONDS)

    def speak_tls(self):
        """Makes the cloud speak TLS from its next start on; returns the certificate to trust."""
        home = self.cloud.home
        self.bench.load.run("certificate", "--out", home)
        api, tunnel = free_port(), free_port()
        settings = {
            "TLS__CERT": home / "cert.pem",
            "TLS__KEY": home / "key.pem",
            "SERVER__PUBLIC_URL": f"https://localhost:{api}",
            "TUNNEL__PUBLIC_URL": f"wss://localhost:{tunnel}",
        }
        self.cloud.env |= {f"EDGECLOUD__{key}": str(value) for key, value in settings.items()}
        self.cloud.ready["all"] |= {"api": f"127.0.0.1:{api}", "tunnel": f"127.0.0.1:{tunnel}"}
        return home / "cert.pem"
