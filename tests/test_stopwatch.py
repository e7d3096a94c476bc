"""What bounds the seconds of the other tests counts what a test wastes, and nothing that its machine did not give."""

from __future__ import annotations

import os
import signal
import time

from tests.stopwatch import Stopwatch


def test_seconds_that_a_test_spends_are_counted(stopwatch: Stopwatch) -> None:
    began, spent = time.monotonic(), time.process_time()
    while time.process_time() < spent + 0.6:
        pass
    ended = time.monotonic()
    assert 0.3 < stopwatch.between(began, ended) <= ended - began


def test_seconds_without_a_tick_are_not_counted(stopwatch: Stopwatch) -> None:
    began = time.monotonic()
    os.kill(stopwatch.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, stopwatch.pid, os.WSTOPPED | os.WNOWAIT)
    stopped = time.monotonic()
    time.sleep(0.5)
    went_on = time.monotonic()
    os.kill(stopwatch.pid, signal.SIGCONT)
    assert stopwatch.between(stopped, went_on) < 0.1
    assert stopwatch.between(began, went_on) <= went_on - began - 0.4
    assert stopwatch.since(went_on) >= 0
