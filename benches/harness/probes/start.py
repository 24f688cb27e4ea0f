"""P15: how soon a cloud is ready, and how large the program is."""

import shutil
import time

from ..cloud import Cloud
from ..processes import memory_kib
from ..series import Column, Criterion
from ..subject import Entry, Subject

COLUMNS = [Column("ready_ms", "ready ms"), Column("memory_mib", "memory MiB", 1), Column("size_mib", "program MB", 1)]


def start(bench):
    size = bench.programs.edgecloud.stat().st_size / 1e6
    bench.start_number = 0

    def measure(_):
        bench.start_number += 1
        began = time.monotonic()
        cloud = Cloud(bench.programs.edgecloud, bench.work, f"start-{bench.start_number}")
        ready = time.monotonic() - began
        memory = memory_kib([cloud.process("api").pid]) / 1024
        cloud.stop()
        shutil.rmtree(cloud.home)
        return {"ready_ms": ready * 1000, "memory_mib": memory, "size_mib": size}

    bench.turns("P15", "start of role all on an empty database", COLUMNS, [
        Criterion("start to ready in ms", "ready_ms", "edgecloud", 300, at_most=True),
        Criterion("program in MB, stripped, all features", "size_mib", "edgecloud", 25, at_most=True),
    ], [Subject("edgecloud", Entry(0), [])], measure)
