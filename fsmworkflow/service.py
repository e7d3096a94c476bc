"""An engine as a service: it works until a signal ends it, tells systemd, and writes its health for probes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from fsmworkflow.contrib.systemd import Systemd
from fsmworkflow.engine import Engine
from fsmworkflow.errors import FSMWorkflowError

__all__ = ["serve"]

HEALTH_SECONDS = 2.0
"""How often the health is written."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(engine: Engine, concurrency: int, file: str | None, told: Callable[[str, str], object]) -> None:
    """Open the engine and let it drive what is due, until SIGTERM or SIGINT; then it drains, and this returns.

    A second signal ends the process at once, with 128 and its number; what was running is taken up by the next engine
    that works. `file` is written with the engine's health every two seconds, and removed at the end. `told` is given
    the events working, stopping and stopped with a text. Raises what ends the work otherwise.
    """
    loop, stop, opened = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, _stop, number, stop)
    try:
        async with Systemd() as systemd, _written(engine, file, opened), engine:
            opened.set()
            systemd.ready(engine)
            told("working", f"on {engine.store.url}, {concurrency} runs at once")
            work = asyncio.create_task(engine.work(concurrency=concurrency), name="fsmworkflow-work")
            await _first(work, asyncio.create_task(stop.wait()))
            systemd.stopping()
            told("stopping", f"running steps have {engine.grace:g} s to end; a second signal ends at once")
            work.cancel()
            await asyncio.wait({work})
        told("stopped", "all runs were handed back")
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def _first(work: asyncio.Task[None], stop: asyncio.Task[Any]) -> None:
    """Wait for the first signal. Where the work has ended by itself, its error is raised."""
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if work.done():
        work.result()


def _stop(number: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        print("ended at once by a second signal", file=sys.stderr, flush=True)  # noqa: T201 (the last word)
        os._exit(128 + number)
    stop.set()


@contextlib.asynccontextmanager
async def _written(engine: Engine, file: str | None, opened: asyncio.Event) -> AsyncIterator[None]:
    """Write the engine's health into a file, whole each time, while it is open, and remove the file at the end."""
    if file is None:
        yield
        return
    writing = asyncio.create_task(_write(engine, Path(file), opened), name="fsmworkflow-health")
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.wait({writing})
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)


async def _write(engine: Engine, file: Path, opened: asyncio.Event) -> None:
    await opened.wait()
    while True:
        with contextlib.suppress(FSMWorkflowError):  # it was just closed
            health = await engine.health()
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_bytes(msgspec.json.encode(health))
            part.replace(file)
            await asyncio.sleep(HEALTH_SECONDS)
        await asyncio.sleep(0.05)
