"""Plain bytes over one TCP stream: P1, and P2 from the same rounds."""

from ..cloud import Ours
from ..nginx import Nginx
from ..peers import GoOriginal, Peers
from ..processes import free_port
from ..series import Column, Criterion, Series
from ..subject import Entry, Missing, Subject
from .bulk import COLUMNS, per_gib

OURS, RATHOLE, GO = "edgecloud (tcp)", "rathole", "Go original (tcp)"


def rate(bench):
    size = bench.options.bulk_mib << 20
    port = free_port()
    source = bench.load.start("tcp-source", "source", "--listen", f"127.0.0.1:{port}")
    source.wait_port(port)
    subjects = _contestants(bench, port)

    def transfer(subject, *more):
        entry = subject.entry
        way = ["--websocket"] if entry.websocket else []
        return bench.load.run("stream", *entry.args(entry.websocket or "/"), *way, "--bytes", size, *more)

    for subject in subjects:
        bench.progress(f"P1: integrity, {subject.name}")
        transfer(subject, "--sha256")
    criteria = [
        Criterion("against rathole", "mib_per_second", OURS, 0.9, 1.2, peer=RATHOLE),
        Criterion("against Go original", "mib_per_second", OURS, 4.0, 5.0, peer=GO),
    ]
    per_gib(bench.turns(
        "P1", f"download of {bench.options.bulk_mib} MiB, one TCP stream", COLUMNS, criteria, subjects, transfer))
    bench.note("integrity: SHA-256 of one transfer of each subject is right")
    # bore's port is fixed: the next measurement needs it.
    for process in [source, *(process for subject in subjects for process in subject.processes)]:
        process.stop()


def _contestants(bench, port):
    """Everybody who carries plain TCP, in front of a source of bytes at a port."""
    work = bench.work / "tcp"
    work.mkdir()
    peers = Peers(work, port)
    makers = {
        "edgecloud": lambda: Ours(bench.programs.edgecloud, work, port, "ours").tcp,
        "nginx x2 (stream)": lambda: Nginx(work, bench.tmpfs).stream_hops(port),
        "Go original": lambda: GoOriginal(work, port).tcp,
        **{name: getattr(peers, name) for name in ("rathole", "bore", "chisel", "frp")},
    }
    subjects = []
    for name, make in makers.items():
        try:
            subject = make()
        except Missing as missing:
            bench.missing[name] = str(missing)
            continue
        subjects.append(Subject(OURS, subject.entry, subject.processes) if name == "edgecloud" else subject)
    return [*subjects, Subject("direct", Entry(port), [])]


def cpu(bench):
    """Judges the processor time of the transfers of P1, which are made if they were not yet."""
    measured = [series for series in bench.series if series.probe == "P1"]
    if not measured:
        rate(bench)
        measured = bench.series[-1:]
    bench.series.append(Series(
        "P2", "processor time of that download, both ends of the tunnel", [Column("cpu_per_gib", "CPU s/GiB", 2)],
        [Criterion("CPU per GiB against rathole", "cpu_per_gib", OURS, 1.0, 0.65, peer=RATHOLE, at_most=True)],
        rounds={name: rounds for name, rounds in measured[0].rounds.items() if name != "direct"},
    ))
