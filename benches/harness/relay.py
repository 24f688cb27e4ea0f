"""A slow and long way between a device and its cloud, on one machine."""

from .processes import free_port


class Relay:
    """Passes on to a port what comes to its own, later by half of `round_trip_ms` each way, at most at a rate."""

    def __init__(self, bench, name, to, round_trip_ms, mbit=0, port=None):
        self.port = port or free_port()
        self.process = bench.load.start(
            name, "relay", "--listen", f"127.0.0.1:{self.port}", "--to", f"127.0.0.1:{to}",
            "--delay-ms", round_trip_ms // 2, "--mbit", mbit,
        )
        self.process.wait_port(self.port)


def behind(bench, name, round_trip_ms, mbit=0):
    """Settings that make devices reach a cloud through a relay, which is started."""
    tunnel = free_port()
    relay = Relay(bench, f"{name}-relay", tunnel, round_trip_ms, mbit)
    return {"TUNNEL__LISTEN": f"127.0.0.1:{tunnel}", "TUNNEL__PUBLIC_URL": f"ws://127.0.0.1:{relay.port}"}
