"""Small requests: P4, P5, P6 and P12."""

from ..series import Column, Criterion
from ..subject import Entry, Subject

RATE = [
    Column("per_second", "req/s"),
    Column("cpu_us", "CPU us/req", 1),
    Column("p50_us", "p50 ms", 2, 1000),
    Column("p99_us", "p99 ms", 2, 1000),
    Column("max_us", "max ms", 1, 1000),
]
OURS = "edgecloud"


def rate(bench, subject, path, connections, *more):
    """Requests a second of one subject; the processor time of a request is added by `per_request`."""
    figures = bench.load.run(
        "rate", *subject.entry.args(path), "--connections", connections, "--seconds", bench.options.seconds, *more
    )
    bench.require(
        figures["errors"] <= figures["all_requests"] / 1000,
        f"{subject.name}: {figures['errors']} of {figures['all_requests']} requests failed: {figures['first_error']}",
    )
    return figures


def per_request(series):
    """Adds the processor time of a request to all figures of a series."""
    for rounds in series.rounds.values():
        for figures in rounds:
            figures["cpu_us"] = figures["cpu_seconds"] * 1e6 / figures["all_requests"]
    return series


def kept_alive(bench):
    for connections in (64, 256):
        criteria = [
            Criterion("rate against nginx x2 (http)", "per_second", OURS, 0.8, peer="nginx x2 (http)"),
            Criterion("rate against Go original", "per_second", OURS, 2.5, peer="Go original (http)"),
            Criterion("p99 against nginx x2 (http)", "p99_us", OURS, 1.0, peer="nginx x2 (http)", at_most=True),
        ]
        per_request(bench.turns(
            "P4", f"1 KiB answers, {connections} connections", RATE, criteria, bench.http_contestants(),
            lambda subject: rate(bench, subject, "/1k", connections),
        ))


def new_connections(bench):
    criteria = [
        Criterion("rate against rathole", "per_second", OURS, 2.0, peer="rathole"),
        Criterion("rate against direct", "per_second", OURS, 0.5, peer="direct"),
    ]
    per_request(bench.turns(
        "P5", "1 KiB answers, a new connection each, 64 at once", RATE, criteria, bench.http_contestants(),
        lambda subject: rate(bench, subject, "/1k", 64, "--close"),
    ))


def one_at_a_time(bench):
    columns = [Column("added_us", "added p50 us")] + RATE
    criteria = [Criterion("added p50 against rathole", "added_us", OURS, 1.1, peer="rathole", at_most=True)]
    series = per_request(bench.turns(
        "P6", "1 KiB answers, one request at a time", columns, criteria, bench.http_contestants(),
        lambda subject: rate(bench, subject, "/1k", 1),
    ))
    for rounds in series.rounds.values():
        for figures, direct in zip(rounds, series.rounds["direct"]):
            figures["added_us"] = figures["p50_us"] - direct["p50_us"]


def me(bench):
    ours = bench.ours().http
    entry = Entry(ours.entry.port, "", ours.entry.headers)
    subjects = [Subject("/api/auth/me", entry, ours.processes), Subject("/healthz", entry, ours.processes)]
    criteria = [Criterion("rate against /healthz", "per_second", "/api/auth/me", 0.7, peer="/healthz")]
    per_request(bench.turns(
        "P12", "64 connections, with a cookie", RATE, criteria, subjects,
        lambda subject: rate(bench, subject, subject.name, 64),
    ))
