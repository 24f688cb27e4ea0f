"""The machine that is measured on: what it is, what it is set to, and who else takes its processors."""

import os
import pathlib
import platform
import resource
from dataclasses import dataclass

CONGESTION = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control")
PRIORITY = -15
#: Files that a process of the largest measurement has open: 20,000 devices, and what else there is.
DESCRIPTORS = 65536
TICKS = os.sysconf("SC_CLK_TCK")


def describe():
    """What a reader must know of the machine to understand absolute figures."""
    cpu = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    release = {}
    for line in pathlib.Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        release[name] = value.strip('"')
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "system": release.get("PRETTY_NAME", "unknown"),
    }


def raise_descriptor_limit():
    """Lets this process and its children open as many files as they may; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, DESCRIPTORS), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
        except (ValueError, PermissionError):
            # Not everybody, and not every root, may go beyond the hard limit.
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def take_priority():
    """Puts what is measured, all of it alike, in front of everything else on the machine. Needs root."""
    os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    autogroup = pathlib.Path("/proc/self/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(PRIORITY))


class Congestion:
    """Pins TCP's congestion control for the time of a run: BBR halves bulk figures on loopback for everybody."""

    WANTED = "cubic"

    def __init__(self):
        self.before = CONGESTION.read_text().strip()
        self.warning = None

    def pin(self):
        if self.before == self.WANTED:
            return
        try:
            CONGESTION.write_text(self.WANTED)
        except OSError:
            self.warning = (
                f"TCP congestion control is {self.before}, not {self.WANTED}, and only root can change it: bulk "
                f"figures are not comparable. As root: sysctl -w net.ipv4.tcp_congestion_control={self.WANTED}"
            )

    def in_use(self):
        return CONGESTION.read_text().strip()

    def restore(self):
        if self.in_use() != self.before:
            CONGESTION.write_text(self.before)


@dataclass
class Processors:
    """What all processors have done so far, in seconds."""

    busy: float
    stolen: float
    total: float

    @classmethod
    def now(cls):
        with open("/proc/stat") as file:
            fields = [int(field) / TICKS for field in file.readline().split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = fields
        # Interrupts are nobody's: on loopback they are ours, and no process gets them on its account.
        busy = user + nice + system
        return cls(busy, steal, busy + idle + iowait + irq + softirq + steal)
