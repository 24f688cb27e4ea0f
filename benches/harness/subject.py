"""What is measured: some processes between a client and the origin, and where the client enters."""

from dataclasses import dataclass, field


@dataclass
class Entry:
    """Where a client enters a subject."""

    port: int
    #: In front of the path.
    prefix: str = ""
    #: File with header lines that every request carries.
    headers: str | None = None
    #: The path of a WebSocket that carries the bytes, if there is one.
    websocket: str | None = None

    def args(self, path):
        """The load tool's arguments for requests to a path of the origin."""
        args = ["--target", f"127.0.0.1:{self.port}", "--path", self.prefix + path]
        if self.headers:
            args += ["--headers", self.headers]
        return args

    def bulk_args(self, path):
        args = self.args(path)
        return args + ["--websocket", self.websocket] if self.websocket else args


@dataclass
class Subject:
    """One contestant."""

    name: str
    entry: Entry
    processes: list = field(default_factory=list)

    def pids(self):
        return [pid for process in self.processes for pid in process.pids()]

    def check(self):
        for process in self.processes:
            process.check()


class Missing(Exception):
    """A peer is not installed; the text has the command that installs it."""
