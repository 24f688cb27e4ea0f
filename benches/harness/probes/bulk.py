"""Large bodies: P3."""

import hashlib

from ..processes import Failed
from ..series import Column, Criterion

COLUMNS = [Column("mib_per_second", "MiB/s"), Column("cpu_per_gib", "CPU s/GiB", 2)]
OURS = "edgecloud"


def transfer(bench, subject, *more):
    figures = bench.load.run("bulk", *subject.entry.bulk_args("/bulk"), *more)
    figures["gib"] = figures["bytes"] / 2**30
    return figures


def upload(bench, subject, *more):
    size = bench.options.bulk_mib << 20
    return bench.load.run("bulk", *subject.entry.args("/upload/bulk"), "--upload", size, *more)


def per_gib(series):
    for rounds in series.rounds.values():
        for figures in rounds:
            figures["cpu_per_gib"] = figures["cpu_seconds"] / (figures["bytes"] / 2**30)
    return series


def check_download(bench, subject):
    """One transfer that is not timed, since the sum takes a share of the processors."""
    found = transfer(bench, subject, "--sha256")["sha256"]
    if found != bench.bulk_sha256:
        raise Failed(f"{subject.name}: the download's SHA-256 is wrong")


def check_upload(bench, subject):
    sent = upload(bench, subject, "--sha256")["sha256"]
    with (bench.www / "upload" / "bulk").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sent:
        raise Failed(f"{subject.name}: the upload's SHA-256 is wrong")


def http_bulk(bench):
    for direction, measure, check in (("download", transfer, check_download), ("upload", upload, check_upload)):
        subjects = bench.http_contestants()
        for subject in subjects:
            bench.progress(f"P3 {direction}: integrity, {subject.name}")
            check(bench, subject)
        criteria = [
            Criterion("against nginx x2 (http)", "mib_per_second", OURS, 1.0, peer="nginx x2 (http)"),
            Criterion("against Go original", "mib_per_second", OURS, 4.0, peer="Go original (http)"),
        ]
        per_gib(bench.turns(
            "P3", f"{direction} of {bench.options.bulk_mib} MiB, one request", COLUMNS, criteria, subjects,
            lambda subject: measure(bench, subject),
        ))
        bench.note("integrity: SHA-256 of one transfer of each subject is right")
