"""Processes that the harness starts: their end, their processor time, their memory."""

import os
import pathlib
import signal
import socket
import subprocess
import time

from .machine import TICKS

STOP_SECONDS = 10
START_SECONDS = 30


class Failed(Exception):
    """Something does not work; the text says what, for the person who started the run."""


def free_port():
    """A TCP port of loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A running program; its output goes to a file, whose end is shown when it fails."""

    #: Every one that was started, oldest first.
    all = []

    def __init__(self, name, argv, log_dir, env=None, cwd=None):
        self.name = name
        self.log = pathlib.Path(log_dir) / f"{name}.log"
        self.env = env
        self.argv = [str(arg) for arg in argv]
        self.cwd = cwd
        self.start()
        Process.all.append(self)

    def start(self):
        """Starts it, also again after its end."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=self.cwd,
                # A group of its own, to be ended as a whole; but no session of its own: the kernel shares the
                # processors out by session, and the contestants are to share them as in one.
                process_group=0,
            )

    @property
    def pid(self):
        return self.child.pid

    def check(self):
        if self.child.poll() is not None:
            raise Failed(f"{self.name} has ended with {self.child.returncode}:\n{self.tail()}")

    def tail(self, lines=15):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_for(self, what, ready, seconds=START_SECONDS):
        """Waits until `ready()` returns something true, and returns that."""
        return wait_for(f"{self.name}: {what}", ready, seconds, self.check)

    def wait_port(self, port):
        self.wait_for(f"listens on port {port}", lambda: is_listening(port))

    def pids(self):
        """The process and its descendants."""
        return [self.pid, *descendants(self.pid)]

    def kill(self):
        """Ends it as a crash would."""
        self._signal(signal.SIGKILL)
        self.child.wait()

    def stop(self):
        if self.child.poll() is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def _signal(self, number):
        # Its own process group: an nginx master's workers are in it too.
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass


def wait_for(what, ready, seconds=START_SECONDS, check=lambda: None):
    """Waits until `ready()` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        check()
        found = ready()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def is_listening(port):
    """Whether somebody listens on a port of loopback; asked of the kernel, since a connection would be one."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(wanted):
                    return True
    return False


def stat_fields(pid):
    """The fields of /proc/PID/stat from the state on; None when the process has gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def descendants(pid):
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(name)
            if fields:
                children.setdefault(int(fields[1]), []).append(int(name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found.extend(new)
    return found


def cpu_seconds(pids):
    """User and system time of processes so far."""
    total = 0
    for pid in pids:
        fields = stat_fields(pid)
        if fields:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def own_cpu_seconds():
    """What the harness and everything it ever started have used so far."""
    times = os.times()
    ended = times.children_user + times.children_system
    return cpu_seconds([os.getpid(), *descendants(os.getpid())]) + ended


def memory_kib(pids):
    """Anonymous resident memory of processes: what they have allocated and touched, without their code."""
    total = 0
    for pid in pids:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1])
    return total


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))
