"""Nothing is left behind: descriptors, threads and memory after very many requests and reconnects."""

import time

from ..cloud import Ours
from ..crowd import Crowd
from ..processes import descriptors, memory_kib, threads
from ..series import Column, Criterion
from ..subject import Subject

COLUMNS = [
    Column("descriptors_before", "descriptors before"),
    Column("descriptors_after", "after"),
    Column("threads_before", "threads before"),
    Column("threads_after", "after"),
    Column("memory_before", "memory KiB before"),
    Column("memory_after", "after"),
]
#: Idle worker threads and kept connections end by themselves after this time.
REST_SECONDS = 15
DEVICES = 100


def leak(bench):
    requests, reconnects = (20_000, 500) if bench.options.quick else (1_000_000, 10_000)
    ours = Ours(bench.programs.edgecloud, bench.work, bench.origin, "leak")
    crowd = Crowd(bench, "leak", DEVICES, ours.cloud, ours.person)
    processes = {"cloud": ours.cloud.process("api"), "agent": ours.cloud.agents[0]}

    def work(requests, reconnects):
        kept = bench.load.run("rate", *ours.http.entry.args("/1k"), "--connections", 64, "--requests", requests,
                              seconds=3600)
        bench.require(kept["errors"] <= requests / 1000, f"leak: {kept['errors']} errors: {kept['first_error']}")
        devices = crowd.connect(DEVICES, "--reconnects", reconnects)
        devices.process.wait_for("all reconnects", lambda: devices.last()["reconnects_left"] == 0, 3600)
        devices.wait_complete()
        devices.stop()
        crowd.wait_only_agents(len(ours.cloud.agents))
        time.sleep(REST_SECONDS)

    def state():
        return {
            name: {"descriptors": descriptors(process.pid), "threads": threads(process.pid),
                   "memory": memory_kib([process.pid])}
            for name, process in processes.items()
        }

    # Pools, caches and the allocator's arenas fill up first.
    bench.progress("leak: warming up")
    work(requests // 10, reconnects // 10)
    before = state()
    bench.progress(f"leak: {requests} requests, {reconnects} reconnects")
    work(requests, reconnects)
    after = state()
    subjects = [Subject(name, None, [process]) for name, process in processes.items()]
    criteria = []
    for name in processes:
        for key, most in (("descriptors", 1.0), ("threads", 1.0), ("memory", 1.1)):
            criteria.append(Criterion(f"{name}: {key} after against before", f"{key}_ratio", name, most, at_most=True))

    def figures(subject):
        one, two = before[subject.name], after[subject.name]
        found = {}
        for key in one:
            found |= {f"{key}_before": one[key], f"{key}_after": two[key], f"{key}_ratio": two[key] / one[key]}
        return found

    bench.once("leak", f"{requests:,} requests and {reconnects:,} reconnects later", COLUMNS, criteria, subjects, figures)
    ours.cloud.stop()
