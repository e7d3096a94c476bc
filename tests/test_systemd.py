"""systemd is told what happens, by a test that plays its part on a notify socket with real child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow
from fsmworkflow.contrib import systemd
from fsmworkflow.contrib.systemd import Systemd
from tests.children import launched
from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent


class Manager:
    """systemd's side of the socket: `heard` are the messages, each as its lines."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[str] = []

    def hear(self, wanted: str, seconds: float = PATIENCE) -> str:
        """The first message from now on that begins so."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                self.heard.append(self.socket.recv(4096).decode())
                if self.heard[-1].startswith(wanted):
                    return self.heard[-1]
        raise AssertionError(f"no {wanted} within {seconds} s: {self.heard}")

    def silence(self) -> None:
        """Take what has come already, so that only what comes later is heard."""
        self.socket.settimeout(0.001)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            while True:
                self.heard.append(self.socket.recv(4096).decode())


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    found = Manager(f"@fsm-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify"))
    yield found
    found.socket.close()


def environ(manager: Manager, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.address, **more}


async def test_what_happens_is_told_in_its_order(manager: Manager) -> None:
    async with Systemd(environ(manager)) as told, Engine("memory://") as engine:
        told.ready(engine)
        assert await asyncio.to_thread(manager.hear, "READY=1") == "READY=1"
        assert await asyncio.to_thread(manager.hear, "STATUS=") == "STATUS=well, 0 runs are driven"
        told.stopping()
    assert manager.hear("STOPPING=1").splitlines() == ["STOPPING=1", "STATUS=stopping: running steps may end"]
    assert not any(message.startswith("WATCHDOG") for message in manager.heard)


async def test_what_is_wrong_with_the_engine_is_its_status(manager: Manager, monkeypatch: Any) -> None:
    monkeypatch.setattr("fsmworkflow.health.LAG", -1.0)
    async with Systemd(environ(manager)) as told, Engine("memory://") as engine:
        told.ready(engine)
        assert "the event loop was" in await asyncio.to_thread(manager.hear, "STATUS=")


async def test_the_watchdog_is_pinged_while_the_loop_turns_and_while_steps_end(manager: Manager) -> None:
    gate = asyncio.Event()
    flow = Workflow("w")

    @flow.step(initial=True, then="end")
    async def work(ctx: Any) -> None:
        await gate.wait()

    flow.final("end")
    words = environ(manager, WATCHDOG_USEC="40000", WATCHDOG_PID=str(os.getpid()))
    async with Systemd(words), Engine("memory://", workflows=[flow]) as engine:
        await engine.start(flow, key="a")
        for _ in range(3):
            await asyncio.to_thread(manager.hear, "WATCHDOG=1")
        closing = asyncio.create_task(engine.close(grace=600))
        await asyncio.sleep(0)
        manager.silence()
        for _ in range(3):
            await asyncio.to_thread(manager.hear, "WATCHDOG=1")
        assert not closing.done()
        gate.set()
        await closing


async def test_a_loop_that_is_blocked_pings_no_more(manager: Manager) -> None:
    async with Systemd(environ(manager, WATCHDOG_USEC="40000")):
        await asyncio.to_thread(manager.hear, "WATCHDOG=1")
        manager.silence()
        heard = len(manager.heard)
        time.sleep(0.3)  # what a stuck step does
        manager.silence()
        assert len(manager.heard) == heard
        await asyncio.to_thread(manager.hear, "WATCHDOG=1")


@pytest.mark.parametrize(
    "words", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"WATCHDOG_USEC": "40000"}]
)
async def test_without_a_socket_nothing_is_told_and_nothing_fails(words: dict[str, str]) -> None:
    before = asyncio.all_tasks()
    async with Systemd(words) as told:
        told.ready()
        assert told.tell("STATUS=x")
        assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("words", "pause"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_waits_for_this_process_or_not(words: dict[str, str], pause: float | None) -> None:
    assert systemd._pause(words) == pause


async def test_a_manager_that_is_gone_is_a_line_in_the_log_and_no_error(tmp_path: Path, caplog: Any) -> None:
    async with Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as told:
        told.ready()
        assert not told.tell("STATUS=x")
    assert "systemd could not be told READY=1" in caplog.text


PROGRAM = """
import asyncio, signal, sys, time
from fsmworkflow import Engine, Workflow
from fsmworkflow.contrib.systemd import Systemd

flow = Workflow("w")

@flow.step(initial=True, then="end")
async def work(ctx):
    if ctx.data["block"]:
        time.sleep(60)
    print("worked", flush=True)

flow.final("end")

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Systemd() as systemd, Engine("sqlite:///x.db", workflows=[flow]) as engine:
        systemd.ready(engine)
        await engine.start(flow, {"block": sys.argv[1] == "block"}, key="a")
        await stop.wait()
        systemd.stopping()

asyncio.run(main())
"""


@contextlib.contextmanager
def service(manager: Manager, directory: Path, *words: str, watchdog: float) -> Iterator[subprocess.Popen[str]]:
    """A real child process with the environment that systemd gives a service."""
    (directory / "program.py").write_text(PROGRAM)
    told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(watchdog * 1e6)), "PYTHONPATH": str(ROOT)}
    command, pipe = [sys.executable, "program.py", *words], subprocess.PIPE
    with launched(command, cwd=directory, env={**os.environ, **told}, stdout=pipe, text=True) as process:
        yield process


def test_a_service_starts_pings_and_stops_as_systemd_expects(manager: Manager, tmp_path: Path) -> None:
    with service(manager, tmp_path, "well", watchdog=0.4) as process:
        manager.hear("READY=1")
        for _ in range(5):
            manager.hear("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert process.wait(PATIENCE) == 0


def test_a_service_whose_loop_is_stuck_goes_silent_and_its_successor_goes_on(manager: Manager, tmp_path: Path) -> None:
    """As systemd does: no ping for WatchdogSec, then SIGABRT, then a new process."""
    with service(manager, tmp_path, "block", watchdog=0.4) as process:
        manager.hear("READY=1")
        with contextlib.suppress(AssertionError):
            while manager.hear("WATCHDOG=1", 1.5):
                pass
        assert process.poll() is None  # it lives, and says nothing
        process.send_signal(signal.SIGABRT)
        assert process.wait(PATIENCE) == -signal.SIGABRT
    manager.silence()
    with service(manager, tmp_path, "well", watchdog=0.4):
        manager.hear("READY=1")
