"""The load tool: builds it and the product, runs its subcommands, reads their JSON."""

import json
import pathlib
import subprocess

from .processes import Failed, Process

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Programs:
    """What is built from this repository."""

    def __init__(self, edgecloud, load):
        self.edgecloud = edgecloud
        self.load = load

    @classmethod
    def build(cls, edgecloud=None, load=None):
        """Builds both as they are meant to run, which takes minutes the first time."""
        print("building edgecloud and the load tool ...", flush=True)
        edgecloud = edgecloud or _cargo_executable("edgecloud", "build", "--release", "--bin", "edgecloud")
        return cls(edgecloud, load or _cargo_executable("load", "bench", "--no-run", "--bench", "load"))


def _cargo(*args):
    done = subprocess.run(["cargo", *args, "--locked"], cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        raise Failed(f"cargo {' '.join(args)} failed")
    return done.stdout


def _cargo_executable(name, *args):
    for line in _cargo(*args, "--message-format=json-render-diagnostics").splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return pathlib.Path(message["executable"])
    raise Failed(f"cargo {' '.join(args)} built no program")


class Load:
    """Runs the load tool."""

    def __init__(self, program, log_dir):
        self.program = program
        self.log_dir = log_dir

    def run(self, *args, seconds=300):
        """Runs a subcommand to its end and returns the last object it printed."""
        argv = [str(self.program), *map(str, args)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"load {args[0]} did not end within {seconds} s") from None
        if done.returncode:
            raise Failed(f"load {args[0]}: {done.stderr.strip()}")
        return json.loads(done.stdout.splitlines()[-1])

    def finish(self, process, seconds=60):
        """Waits for the end of what `start` has started and returns the last object it printed."""
        if process.child.wait(seconds):
            raise Failed(f"{process.name}: {process.tail()}")
        return events(process)[-1]

    def start(self, name, *args):
        """Starts a subcommand that stays; its log has what it prints."""
        return Process(name, [self.program, *args], self.log_dir)


def events(process):
    """The objects that a staying subcommand has printed so far."""
    lines = process.log.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
