"""One run: its folder, its contestants, and the taking of turns."""

import hashlib
import os
import pathlib
import shutil
import tempfile

from .cloud import Ours
from .load import Load
from .machine import Processors
from .nginx import Nginx
from .peers import GoOriginal, Peers
from .processes import Failed, Process, cpu_seconds, own_cpu_seconds
from .series import Series
from .subject import Entry, Missing, Subject

#: Over so much of the processors' time taken by the host or by strangers, a measurement is repeated ...
MAX_STOLEN = 0.05
MAX_FOREIGN = 0.10
#: ... so many times; then the least disturbed one counts.
REPEATS = 3
TMPFS = pathlib.Path("/dev/shm")


class Bench:
    """Starts what is asked for when it is asked for first, and stops all of it at the end."""

    def __init__(self, options, programs, descriptors):
        self.options = options
        #: Files that a process may have open.
        self.descriptors = descriptors
        self.programs = programs
        self.series = []
        self.missing = {}
        self._subjects = {}
        self._stop = []
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="edgecloud-bench-"))
        self.tmpfs = pathlib.Path(tempfile.mkdtemp(prefix="edgecloud-bench-", dir=TMPFS))
        self.load = Load(programs.load, self.work)
        self.nginx = Nginx(self.work, self.tmpfs)
        self.www = self.tmpfs / "www"
        self._make_files()
        self.origin, self.origin_process = self.nginx.origin(self.www)
        self.peers = Peers(self.work, self.origin)

    def _make_files(self):
        (self.www / "upload").mkdir(parents=True)
        (self.www / "1k").write_bytes(os.urandom(1024))
        digest = hashlib.sha256()
        with (self.www / "bulk").open("wb") as file:
            for _ in range(self.options.bulk_mib):
                block = os.urandom(1 << 20)
                digest.update(block)
                file.write(block)
        self.bulk_sha256 = digest.hexdigest()

    def close(self):
        """Ends every process that was started, newest first, and removes the files."""
        for process in reversed(Process.all):
            process.stop()
        shutil.rmtree(self.tmpfs, ignore_errors=True)
        if self.options.keep:
            print(f"logs are in {self.work}")
        else:
            shutil.rmtree(self.work, ignore_errors=True)

    # Contestants

    def _cached(self, key, make):
        if key not in self._subjects:
            try:
                self._subjects[key] = make()
            except Missing as missing:
                self._subjects[key] = None
                self.missing[key] = str(missing)
        return self._subjects[key]

    def direct(self):
        return Subject("direct", Entry(self.origin), [])

    def nginx_http(self):
        return self._cached("nginx x2 (http)", lambda: self.nginx.http_hops(self.origin))

    def nginx_stream(self):
        return self._cached("nginx x2 (stream)", lambda: self.nginx.stream_hops(self.origin))

    def peer(self, name):
        return self._cached(name, getattr(self.peers, name))

    def go(self):
        return self._cached("Go original", lambda: GoOriginal(self.work, self.origin))

    def ours(self):
        return self._cached("edgecloud", lambda: Ours(self.programs.edgecloud, self.work, self.origin, "all"))

    def split(self):
        return self._cached(
            "edgecloud split", lambda: Ours(self.programs.edgecloud, self.work, self.origin, "split", split=True)
        )

    def http_contestants(self):
        """Everybody who can carry HTTP, ours first; those who are not installed are left out."""
        go = self.go()
        found = [self.ours().http, self.nginx_http(), go and go.http, self.peer("rathole"), self.peer("bore"),
                 self.peer("chisel"), self.peer("frp"), self.direct()]
        return [subject for subject in found if subject]

    # Turns

    def turns(self, probe, title, columns, criteria, subjects, measure, prepare=None):
        """Measures each subject in turn, round after round, and keeps the figures as a series.

        `prepare` is called with the subject before each measurement and takes no part in it."""
        series = Series(probe, title, columns, criteria)
        self.series.append(series)
        for number in range(self.options.rounds):
            for subject in subjects:
                series.add(subject.name, self.measured(subject, measure, prepare))
                self.progress(f"{probe} {title}: round {number + 1}, {subject.name}")
        self.progress("")
        return series

    def once(self, probe, title, columns, criteria, subjects, figures):
        """Keeps figures that are measured once as a series."""
        series = Series(probe, title, columns, criteria)
        self.series.append(series)
        for subject in subjects:
            series.add(subject.name, figures(subject))
        self.progress("")
        return series

    def measured(self, subject, measure, prepare=None):
        """Measures once, again when the machine was busy with other things; adds processor time."""
        tries = []
        for _ in range(REPEATS):
            if prepare:
                prepare(subject)
            subject.check()
            before, own = Processors.now(), own_cpu_seconds()
            cpu = cpu_seconds(subject.pids())
            figures = measure(subject)
            # A measurement that starts processes of its own brings its own figure.
            figures.setdefault("cpu_seconds", cpu_seconds(subject.pids()) - cpu)
            after, own = Processors.now(), own_cpu_seconds() - own
            total = after.total - before.total
            figures["stolen"] = (after.stolen - before.stolen) / total
            figures["foreign"] = max(0.0, (after.busy - before.busy - own) / total)
            tries.append(figures)
            # Strangers get only what is left over when we go first.
            foreign = 0 if self.options.priority else figures["foreign"]
            if figures["stolen"] <= MAX_STOLEN and foreign <= MAX_FOREIGN:
                break
        best = min(tries, key=lambda figures: figures["stolen"] + figures["foreign"])
        best["tries"] = len(tries)
        return best

    def progress(self, text):
        if not self.options.quiet:
            print(f"\r\x1b[K{text}", end="", flush=True)

    def note(self, text):
        self.series[-1].notes.append(text)

    def require(self, condition, text):
        if not condition:
            raise Failed(text)
