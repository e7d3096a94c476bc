"""Reads the clock, the process's CPU time and the disk's counters round the part of a job that is measured."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

FIRST_LINE = time.monotonic()
"""When this process ran its first line of ours; the start of the interpreter lies before it."""


class Meter:
    """Measures one job in one process. `report` is what the process prints for `run.py`.

    `counts` names the file in which slowdisk.c counts, of this process for SQLite, of the server for PostgreSQL.
    """

    def __init__(self, counts: str | None = None) -> None:
        self.counts = Path(counts) if counts and Path(counts).exists() else None
        self.report: dict[str, float] = {}
        self._began: tuple[float, float, tuple[int, int, int]] | None = None

    def begin(self) -> None:
        """Start measuring; the set-up of the job lies before. A second call starts anew."""
        disk = self._disk()
        self._began = (time.perf_counter(), time.process_time(), disk)

    def end(self, steps: int) -> None:
        """Stop measuring: `steps` durable steps were made since `begin`. CPU is user and system, of all threads."""
        ended, cpu = time.perf_counter(), time.process_time()
        assert self._began is not None, "end() without begin()"
        began, cpu_before, disk_before = self._began
        flushes, writes, size = (now - then for now, then in zip(self._disk(), disk_before, strict=True))
        disk = {"flushes": flushes / steps, "writes": writes / steps, "bytes": size / steps}
        self.report |= {
            "seconds": ended - began,
            "rate": steps / (ended - began),
            "cpu_us": (cpu - cpu_before) * 1e6 / steps,
        }
        self.report |= disk if self.counts else {}

    def note(self, name: str, seconds: float) -> None:
        """A further time of this job, in seconds, shown beside the table."""
        self.report[name] = seconds

    def durable(self) -> None:
        """The first durable step is done: how long since the process was started, and since its first line."""
        now = time.monotonic()
        self.report.setdefault("seconds", now - float(os.environ.get("FSM_BENCH_BORN", FIRST_LINE)))
        self.report.setdefault("without_python", now - FIRST_LINE)

    def _disk(self) -> tuple[int, int, int]:
        if self.counts is None:
            return (0, 0, 0)
        flushes, writes, size = struct.unpack("3Q", self.counts.read_bytes())
        return (flushes, writes, size)
