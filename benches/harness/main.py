"""The command line of `benches/run`."""

import argparse
import datetime
import json
import pathlib
import signal
import subprocess
import sys

from . import machine, report
from .bench import Bench
from .load import ROOT, Programs
from .probes import PROBES
from .processes import Failed
from .subject import Missing


def arguments():
    parser = argparse.ArgumentParser(
        prog="benches/run",
        description="Measures edgecloud and its peers in turns on this machine, prints a table and writes JSON.",
    )
    parser.add_argument("--list", action="store_true", help="list what can be measured, and end")
    parser.add_argument("--only", metavar="P1,P4", help="measure these only")
    parser.add_argument("--rounds", type=int, help="rounds of turns (5; at least 5 for figures to be shown)")
    parser.add_argument("--seconds", type=float, help="length of one measurement of small requests (3)")
    parser.add_argument("--bulk-mib", type=int, help="size of a large body (1024)")
    parser.add_argument("--quick", action="store_true", help="for development: 3 rounds of 1 s, 256 MiB")
    parser.add_argument("--priority", action="store_true",
                        help="for a machine that is in use: everything measured goes first (as root)")
    parser.add_argument("--edgecloud", type=pathlib.Path, metavar="FILE", help="a program to measure, not built here")
    parser.add_argument("--load", type=pathlib.Path, metavar="FILE", help="a load tool, not built here")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where the JSON goes (benches/results/)")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE",
                        help="print the tables of such a JSON as Markdown, and end")
    parser.add_argument("--keep", action="store_true", help="keep the processes' logs")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args()
    rounds, seconds, bulk = (3, 1.0, 256) if options.quick else (5, 3.0, 1024)
    options.rounds = options.rounds or rounds
    options.seconds = options.seconds or seconds
    options.bulk_mib = options.bulk_mib or bulk
    names = options.only.upper().split(",") if options.only else list(PROBES)
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PROBES)}")
    options.names = [name for name in PROBES if name in names]
    return options


def commit():
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main():
    options = arguments()
    if options.list:
        for name, (title, _) in PROBES.items():
            print(f"{name:6} {title}")
        return 0
    if options.markdown:
        print(report.markdown(json.loads(options.markdown.read_text())))
        return 0
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return measure(options)
    except (Failed, Missing) as failed:
        print(f"\n{failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 1


def measure(options):
    started = datetime.datetime.now().astimezone()
    descriptors = machine.raise_descriptor_limit()
    programs = Programs.build(options.edgecloud, options.load)
    if options.priority:
        machine.take_priority()
    congestion = machine.Congestion()
    congestion.pin()
    bench, failures = None, []
    try:
        bench = Bench(options, programs, descriptors)
        facts = {
            "date": started.isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine.describe(),
            "congestion_control": congestion.in_use(),
            "descriptors": descriptors,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "bulk_mib": options.bulk_mib,
        }
        print("\n".join(report.heading(facts)), flush=True)
        for name in options.names:
            seen = len(bench.series)
            try:
                PROBES[name][1](bench)
            except Failed as failed:
                failures.append(f"{name} failed: {failed}")
                print(f"\n{failures[-1]}", flush=True)
            for series in bench.series[seen:]:
                print(f"\n{report.table(series)}", flush=True)
    finally:
        # A second one must not leave processes behind.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        congestion.restore()
        if bench:
            bench.close()
    print(f"\n{report.summary(bench.series)}")
    for warning in [congestion.warning, *failures, *(f"left out: {text}" for text in bench.missing.values())]:
        if warning:
            print(f"\n{warning}")
    file = options.json or ROOT / "benches" / "results" / f"{started:%Y-%m-%d-%H%M}.json"
    report.write_json(file, {**facts, "missing": bench.missing, "failures": failures}, bench.series)
    print(f"\nwritten to {file}")
    return 1 if failures else 0
