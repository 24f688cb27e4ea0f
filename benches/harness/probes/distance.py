"""Long ways and crowded ones: P8 and P9."""

from ..cloud import Ours
from ..peers import GoOriginal
from ..processes import free_port
from ..relay import Relay, behind
from ..series import Column, Criterion
from ..subject import Missing, Subject

OURS, GO = "edgecloud", "Go original (http)"
SPEED = [
    Column("mib_per_second", "MiB/s", 1),
    Column("steady_mib_per_second", "second half MiB/s", 1),
    Column("cpu_per_gib", "CPU s/GiB", 2),
]
#: 400 Mbit/s in MiB/s.
LINK_MBIT = 400
LINK = LINK_MBIT * 1e6 / 8 / 2**20
#: What is asked of small requests beside a bulk transfer: few enough that they are no load themselves.
SMALL_PER_SECOND = 200


def long_ways(bench):
    seconds = 4 if bench.options.quick else 12
    for round_trip in (50, 100):
        for mbit in (0, LINK_MBIT):
            _long_way(bench, round_trip, mbit, seconds)


def _long_way(bench, round_trip, mbit, seconds):
    name = f"far-{round_trip}-{mbit}"
    ours = Ours(bench.programs.edgecloud, bench.work, bench.origin, name,
                settings=behind(bench, name, round_trip, mbit))
    subjects = [_bulk_subject(ours)]
    go = _go_behind(bench, name, round_trip, mbit)
    if go:
        subjects.append(go.http)

    def measure(subject):
        figures = bench.load.run("bulk", *subject.entry.bulk_args("/bulk"), "--at-most", seconds)
        return figures

    if mbit:
        share = Criterion(f"MiB/s in the second half: 80 % of {LINK:.1f}", "steady_mib_per_second", OURS, 0.8 * LINK)
        criteria = [share]
    else:
        criteria = [Criterion("against a fixed window of 256 KiB (Go original)", "steady_mib_per_second", OURS, 40,
                              peer=GO)]
    rate = f"{mbit} Mbit/s" if mbit else "no limit of the rate"
    series = bench.turns(
        "P8", f"{round_trip} ms round trip, {rate}, one stream, {seconds} s", SPEED, criteria, subjects, measure)
    for rounds in series.rounds.values():
        for figures in rounds:
            figures["cpu_per_gib"] = figures["cpu_seconds"] / (figures["bytes"] / 2**30)
    ours.cloud.stop()
    if go:
        for process in go.http.processes:
            process.stop()


def _bulk_subject(ours):
    """Raw TCP where this build has it, else HTTP; under one name, which the criteria know."""
    subject = ours.tcp if ours.has_tcp() else ours.http
    return Subject(OURS, subject.entry, subject.processes)


def _go_behind(bench, name, round_trip, mbit):
    try:
        far = free_port()
        go = GoOriginal(bench.work, bench.origin, tunnel=far, name=f"{name}-go",
                        before_agent=lambda tunnel: Relay(bench, f"{name}-go-relay", tunnel, round_trip, mbit, far))
    except Missing as missing:
        bench.missing["Go original"] = str(missing)
        return None
    return go


MIXED = [
    Column("ratio", "busy/idle p99", 1),
    Column("idle_p99", "idle p99 ms", 2, 1000),
    Column("busy_p99", "busy p99 ms", 2, 1000),
    Column("idle_p50", "idle p50 ms", 2, 1000),
    Column("busy_p50", "busy p50 ms", 2, 1000),
    Column("mib_per_second", "bulk MiB/s"),
    Column("bulk_gib", "bulk GiB", 1),
]
#: Size of the bulk transfer.
BULK_GIB, QUICK_BULK_GIB = 4, 0.5
#: It goes on for so many seconds beyond those of the requests, which warm up first and have a tool to start.
BULK_MARGIN = 4
#: How long such a transfer may take.
BULK_SECONDS = 300


def beside_bulk(bench):
    for round_trip in (0, 20):
        settings = behind(bench, f"mixed-{round_trip}", round_trip) if round_trip else {}
        ours = Ours(bench.programs.edgecloud, bench.work, bench.origin, f"mixed-{round_trip}", settings=settings)
        subjects = [ours.http]
        go = _go_behind(bench, f"mixed-{round_trip}", round_trip, 0) if round_trip else bench.go()
        if go:
            subjects.append(go.http)
        if not round_trip:
            # What the machine itself does to small requests beside bulk.
            others = [bench.nginx_http(), bench.peer("rathole"), bench.direct()]
            subjects += [subject for subject in others if subject]
        _beside_bulk(bench, round_trip, subjects)
        ours.cloud.stop()
        if go and round_trip:
            for process in go.http.processes:
                process.stop()


def _beside_bulk(bench, round_trip, subjects):
    # As many samples as a 99th percentile needs, whatever the length of other measurements.
    seconds = max(5.0, bench.options.seconds * 2)
    # Enough connections for one to be free when a request is due.
    connections = 4 + round_trip
    small = ["--connections", connections, "--paced", SMALL_PER_SECOND, "--seconds", seconds]
    number = 0
    size = QUICK_BULK_GIB if bench.options.quick else BULK_GIB

    def measure(subject):
        nonlocal number
        number += 1
        whole = ["--seconds", seconds + BULK_MARGIN, "--at-least", int(size * 2**30)]
        # A fixed window would take minutes over a long way: then only as long as the requests need.
        length = ["--at-most", seconds + BULK_MARGIN] if subject.name == GO and round_trip else whole
        idle = bench.load.run("rate", *subject.entry.args("/1k"), *small)
        bulk = bench.load.start(
            f"mixed-{round_trip}-bulk-{number}", "bulk", *subject.entry.args("/bulk"), *length)
        busy = bench.load.run("rate", *subject.entry.args("/1k"), *small)
        # All of these requests were made beside the transfer.
        bulk.check()
        moved = bench.load.finish(bulk, BULK_SECONDS)
        return {
            "ratio": busy["p99_us"] / idle["p99_us"],
            **{f"{name}_{key}": figures[f"{key}_us"]
               for name, figures in (("idle", idle), ("busy", busy)) for key in ("p50", "p99")},
            "mib_per_second": moved["mib_per_second"],
            "bulk_gib": moved["bytes"] / 2**30,
            "errors": idle["errors"] + busy["errors"],
        }

    criterion = Criterion("p99 beside a bulk transfer against idle", "ratio", OURS, 5, at_most=True)
    bench.turns(
        "P9", f"{SMALL_PER_SECOND} small requests/s beside a bulk transfer of {size:g} GiB, {round_trip} ms added",
        MIXED, [criterion], subjects, measure,
    )
