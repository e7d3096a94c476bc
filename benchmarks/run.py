"""Measures every subject on every job and disk, in fresh processes and interleaved rounds, and prints the tables.

python benchmarks/run.py [--quick] [--rounds N] [--only WORD ...] [--json FILE] [--directory DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.disk import Disk, compiled  # noqa: E402
from benchmarks.jobs import JOBS, Size  # noqa: E402
from benchmarks.plan import Measurement, measurements  # noqa: E402
from benchmarks.report import Results, machine, markdown  # noqa: E402

MEMORY = Path("/dev/shm")
"""Where the disk is that takes a given time for a flush: in memory, so that it takes no longer."""
IMPORTS = ("import fsmworkflow", "from fsmworkflow import Engine, Workflow")
TIMED = "import asyncio, time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
LONGEST = 180.0
"""Seconds after which a measurement is given up."""


class Bench:
    """Makes databases and servers on the disks that are asked for, and measures in child processes."""

    def __init__(self, directory: Path, slow: Path, exit_stack: ExitStack) -> None:
        self.directory, self.slow, self.exit_stack = directory, slow, exit_stack
        self.shim = compiled(directory)
        if self.shim is None:
            sys.stderr.write("no C compiler: only the disk as it is, and what is written and flushed is not counted\n")
        self.servers: dict[int, Any] = {}
        self.made = 0

    def measure(self, cell: Measurement, size: Size) -> dict[str, float]:
        """One measurement on a database of its own; empty, with the reason on stderr, if it did not work."""
        self.made += 1
        place = (self.slow if cell.least else self.directory) / f"{self.made}"
        place.mkdir()
        try:
            if cell.subject.store == "SQLite":
                counts = place / "counts"
                url, environment = f"sqlite:///{place / 'bench.db'}", Disk(self.shim, cell.least).environment(counts)
            else:
                url, counts, environment = self._database(cell.least), self._counts(cell.least), {}
            if cell.job == "resume" and cell.subject.name == "fsmworkflow":
                self._child(cell, "unfinished", url, size, counts, environment)
            return self._child(cell, cell.job, url, size, counts, environment)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _child(
        self, cell: Measurement, job: str, url: str, size: Size, counts: Path, environment: dict[str, str]
    ) -> dict[str, float]:
        arguments = [cell.subject.module, job, url, *map(str, size), str(counts)]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.child", *arguments]
        born = {"FSM_BENCH_BORN": repr(time.monotonic()), "PYTHONDONTWRITEBYTECODE": ""}  # modules are compiled once
        try:
            done = subprocess.run(
                command,
                check=False,
                cwd=ROOT,
                env=os.environ | environment | born,
                capture_output=True,
                text=True,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            _failed(cell, f"took longer than {LONGEST:g} s")
            return {}
        if done.returncode != 0:
            _failed(cell, done.stderr)
            return {}
        lines = done.stdout.splitlines()
        return json.loads(lines[-1]) if lines else {}

    def _database(self, least: int) -> str:
        """A new database on the server that lives on this disk; started when it is first asked for."""
        if least not in self.servers:
            from tests.postgres_server import Server

            environment = Disk(self.shim, least).environment(self._counts(least))
            directory = self.slow if least else self.directory
            server = Server(directory / f"postgres-{least}", environment=environment)
            server.start()
            self.exit_stack.callback(server.stop)
            self.servers[least] = server
        return str(self.servers[least].create_database(f"bench{self.made}"))

    def _counts(self, least: int) -> Path:
        return self.directory / f"counts-{least}"


def imports(times: int) -> dict[str, list[float]]:
    """Seconds that each of IMPORTS takes after `import asyncio`, in fresh processes, the statements taking turns."""
    spent: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    for _ in range(times):
        for statement in IMPORTS:
            command = [sys.executable, "-c", TIMED.format(statement)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            spent[statement].append(float(done.stdout))
    return spent


def decisions() -> dict[str, float]:
    """Microseconds of CPU that a decision costs, by the kind of workflow."""
    command = [sys.executable, "-m", "benchmarks.decisions"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _slow(stack: ExitStack) -> Path | None:
    """A directory in memory, where this system has one."""
    if not MEMORY.is_dir():
        return None
    name = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY, prefix="bench-", ignore_cleanup_errors=True))
    Path(name).chmod(0o755)
    return Path(name)


def _failed(cell: Measurement, why: str) -> None:
    sys.stderr.write(f"{cell.subject.store}, {cell.subject.name}, {cell.job}: failed\n{why[-2000:]}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, smaller jobs")
    parser.add_argument("--rounds", type=int, help="how often each measurement is made (5; 1 with --quick)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="as in: --only sqlite bulk 1ms")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all rounds, as JSON")
    parser.add_argument("--directory", type=Path, help="where the databases are made: a real disk (/var/tmp)")
    parser.add_argument("--commit-us", type=int, default=1_000, help="microseconds a commit takes on the slow disk")
    return parser.parse_args()


def main() -> None:
    """Run the plan and print what came out of it."""
    options = _arguments()
    rounds = options.rounds or (1 if options.quick else 5)
    sizes = {name: job.quick if options.quick else job.size for name, job in JOBS.items()}
    above = options.directory or (Path("/var/tmp") if Path("/var/tmp").is_dir() else Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(dir=above, prefix="bench-", ignore_cleanup_errors=True) as name,
        ExitStack() as stack,
    ):
        Path(name).chmod(0o755)
        bench = Bench(Path(name), _slow(stack) or Path(name), stack)
        cells = list(measurements([0, options.commit_us] if bench.shim else [0], options.only))
        results: Results = {cell: [] for cell in cells}
        for number in range(rounds):
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
            for cell in cells:
                results[cell].append(bench.measure(cell, sizes[cell.job]))
    spent = imports(5 if options.quick else 20) if not options.only else {}
    decided = decisions() if not options.only else {}
    sys.stdout.write(markdown(results, sizes, spent, decided, rounds) + "\n")
    if options.json:
        options.json.write_text(_json(results, spent))


def _json(results: Results, spent: dict[str, list[float]]) -> str:
    rows = [
        {
            "store": cell.subject.store,
            "subject": cell.subject.name,
            "job": cell.job,
            "sync_us": cell.least,
            "rounds": kept,
        }
        for cell, kept in results.items()
    ]
    return json.dumps({"machine": machine(), "import_s": spent, "measurements": rows}, indent=1) + "\n"


if __name__ == "__main__":
    main()
