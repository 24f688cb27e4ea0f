"""P11: one event to many subscribers."""

from ..cloud import Ours, Person
from ..crowd import ADDRESSES, largest
from ..processes import free_port
from ..series import Column, Criterion
from ..subject import Subject

COLUMNS = [
    Column("p50_us", "p50 ms", 1, 1000),
    Column("p99_us", "p99 ms", 1, 1000),
    Column("max_us", "max ms", 1, 1000),
    Column("cpu_us", "CPU us/delivery", 1),
    Column("subscribing_seconds", "subscribing s", 2),
]
OURS = "edgecloud"
#: A login may have fifty event streams open.
LOGINS = 20
EVENTS = 10
#: Streams of a round that end a moment after the next has begun.
SPARE_STREAMS = 1_000
#: Of one device's stream, where one process here can have so many files open.
SUBSCRIBERS = 10_000
#: Of the cloud's own events.
OWN_SUBSCRIBERS = 1_000


def events(bench):
    port = free_port()
    origin = bench.load.start("sse-origin", "origin", "--listen", f"127.0.0.1:{port}")
    origin.wait_port(port)
    wanted, own_count = (1000, 200) if bench.options.quick else (SUBSCRIBERS, OWN_SUBSCRIBERS)
    count = largest(bench, wanted)
    settings = {
        "TUNNEL__MAX_STREAMS_PER_SESSION": str(count + SPARE_STREAMS),
        "LIMITS__OPEN_REQUESTS_PER_TENANT": "20000",
    }
    ours = Ours(bench.programs.edgecloud, bench.work, port, "sse", settings=settings,
                more=["--max-streams", count + SPARE_STREAMS])
    subject = Subject(OURS, ours.http.entry, ours.http.processes)
    _series(bench, f"{count:,} subscribers to one device's stream", subject, count, lambda: [
        *subject.entry.args("/"), "--from", ADDRESSES, "--cause", f"127.0.0.1:{port}", "--cause-path", "/",
    ])
    if count < wanted:
        bench.note(f"{wanted:,} were wanted; a process here can have {bench.descriptors:,} files open")
    csrf = "Edgecloud-Csrf: 1"
    logins = [Person(ours.cloud).header_file(ours.cloud.home / f"login-{index}", csrf) for index in range(LOGINS)]
    own = Subject(OURS, subject.entry, [ours.cloud.process("api")])
    number = 0

    def cause():
        # A tag whose value does not change is no event.
        nonlocal number
        number += 1
        return [
            "--target", f"127.0.0.1:{ours.cloud.api_port}", "--path", "/api/events", "--logins", ",".join(logins),
            "--cause", f"127.0.0.1:{ours.cloud.api_port}", "--cause-headers", logins[0],
            "--cause-method", "PUT", "--cause-path", f"/api/devices/{ours.device}/tags/bench",
            "--cause-body", f'{{"value": "{number}-{{n}}"}}',
        ]

    _series(bench, f"{own_count:,} subscribers to /api/events", own, own_count, cause)
    ours.cloud.stop()


def _series(bench, title, subject, count, args):
    def measure(_):
        return bench.load.run("subscribe", *args(), "--count", count, "--events", EVENTS)

    series = bench.turns(
        "P11", title, COLUMNS, [Criterion("p99 delivery in us", "p99_us", OURS, 300_000, at_most=True)],
        [subject], measure,
    )
    for figures in series.rounds[OURS]:
        # The subscribing is in it: it is the share of a subscriber that stays for ten events.
        figures["cpu_us"] = figures["cpu_seconds"] * 1e6 / figures["deliveries"]
