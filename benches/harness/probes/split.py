"""P10: api and proxy as two processes against one."""

from ..series import Column, Criterion
from ..subject import Subject
from .bulk import COLUMNS, per_gib, transfer
from .requests import RATE, per_request, rate

ALL, SPLIT = "role all", "api + proxy"


def split(bench):
    one, two = bench.ours(), bench.split()
    http = [Subject(ALL, one.http.entry, one.http.processes), Subject(SPLIT, two.http.entry, two.http.processes)]
    per_request(bench.turns(
        "P10", "1 KiB answers, 64 connections", RATE,
        [Criterion("rate against role all", "per_second", SPLIT, 0.75, peer=ALL)], http,
        lambda subject: rate(bench, subject, "/1k", 64),
    ))
    bulk = http
    if one.has_tcp():
        bulk = [Subject(ALL, one.tcp.entry, one.tcp.processes), Subject(SPLIT, two.tcp.entry, two.tcp.processes)]
    way = "raw TCP" if one.has_tcp() else "HTTP (this build has no raw TCP)"
    per_gib(bench.turns(
        "P10", f"download of {bench.options.bulk_mib} MiB, {way}", COLUMNS,
        [Criterion("rate against role all", "mib_per_second", SPLIT, 0.70, peer=ALL)], bulk,
        lambda subject: transfer(bench, subject),
    ))
