"""Seconds as a machine counts them that never stands still: what is promised in seconds is bounded by these."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.children import launched
from tests.waiting import until_now

STALL = 0.05
"""Seconds without a tick that are still counted: more were not given to anybody, or the disk took nothing."""

# Every tick is written and flushed, at the beginning of the file, and behind it from when to when there was none.
TICKING = f"""
import os, struct, sys, time
parent, file, stalls, last = os.getppid(), os.open(sys.argv[1], os.O_RDWR), 0, time.monotonic()
while os.getppid() == parent:
    os.pwrite(file, struct.pack("d", last), 0)
    os.fsync(file)
    time.sleep(0.01)
    now = time.monotonic()
    if now > last + {STALL}:
        stalls += 1
        os.pwrite(file, struct.pack("dd", last, now), 16 * stalls)
    last = now
"""


class Stopwatch:
    """Counts between two times of `time.monotonic`, of whichever process, without those in which nothing moved.

    It is a process of its own that ticks: a test that blocks its own one is counted in full.
    """

    def __init__(self, ticks: Path, pid: int) -> None:
        self.pid = pid
        self._ticks = ticks

    def since(self, began: float) -> float:
        """Seconds until now."""
        return self.between(began, time.monotonic())

    def between(self, began: float, ended: float) -> float:
        return ended - began - self.stood(began, ended)

    def stood(self, began: float, ended: float) -> float:
        """The seconds in which nothing moved."""
        until_now(lambda: self._told()[0][0] > ended)
        stood = [min(end, ended) - max(start + STALL, began) for start, end in self._told()[1:]]
        return sum(seconds for seconds in stood if seconds > 0)

    def _told(self) -> list[tuple[float, float]]:
        told = self._ticks.read_bytes()
        return list(struct.iter_unpack("dd", told[: len(told) // 16 * 16])) or [(0.0, 0.0)]


@contextmanager
def stopwatch(place: Path) -> Iterator[Stopwatch]:
    """One that ticks within the block, and writes into that directory."""
    ticks = place / "ticks"
    ticks.write_bytes(bytes(16))
    with launched([sys.executable, "-SEc", TICKING, str(ticks)]) as process:
        watch, now = Stopwatch(ticks, process.pid), time.monotonic()
        watch.between(now, now)
        yield watch
