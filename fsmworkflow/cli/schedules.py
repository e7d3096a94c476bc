"""Verbs for schedules: list them, and steer them through the store."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import click

from fsmworkflow.cli.answers import answer, table
from fsmworkflow.cli.targets import knowing
from fsmworkflow.cli.verbs import Verb, engine_given, verb
from fsmworkflow.engine import Engine
from fsmworkflow.errors import ScheduleNotFound
from fsmworkflow.records import PAUSE, RERUN, UNPAUSE, Event

__all__ = ["COMMANDS"]

TAKEN_SECONDS = 3.0
"""How long a steering verb waits for an engine that works to take its event."""


@verb("list")
@engine_given
async def listed(engine: str, as_json: bool) -> int:
    """List the schedules of this engine's workflows."""
    async with knowing(engine) as opened:
        found = await opened.schedules()
    ticks = ["" if s.next is None else s.next.strftime("%Y-%m-%d %H:%M %z") for s in found]
    rows = [(s.name, s.workflow, s.cron, s.timezone, tick, s.status) for s, tick in zip(found, ticks, strict=True)]
    names = ("name", "workflow", "cron", "time zone", "next", "status")

    def draw(console: Any) -> None:
        table(console, names, rows) if rows else console.print("there are no schedules")

    answer(as_json, found, draw)
    return 0


def _steering(what: str, event: str, payload: Any, done: str) -> Verb:
    """A verb that posts one of the engine's own events to a schedule. It is never driven here."""

    @engine_given
    @click.argument("name")
    async def steer(engine: str, name: str, as_json: bool) -> int:
        async with knowing(engine) as opened:
            found = [schedule for schedule in await opened.schedules() if schedule.name == name]
            if not found:
                raise ScheduleNotFound(f"the workflows of this engine have no schedule {name!r}")
            taken = [await _posted(opened, schedule.address, event, payload) for schedule in found]
        told = done if all(taken) else f"will be {done} as soon as an engine works"
        answer(
            as_json, {"name": name, "done": all(taken)}, lambda console: console.print(f"{name} {told}", markup=False)
        )
        return 0

    steer.__doc__ = f"{what}.\n\nA process that works does it; where none does, it is kept for the next one."
    return steer


async def _posted(engine: Engine, address: tuple[str, str], name: str, payload: Any) -> bool:
    """Post an event, and wait a while for the engine that holds the run. Whether it was taken."""
    event = await engine.store.post(*address, Event(name=name, payload=payload, id=uuid.uuid4().hex))
    end = time.monotonic() + TAKEN_SECONDS
    while event.status == "waiting" and time.monotonic() < end:
        await asyncio.sleep(0.05)
        event = await engine.event(*address, event.id)
    return event.status != "waiting"


STEERING = {
    "pause": _steering("Start no runs by this schedule until `unpause`", PAUSE, None, "paused"),
    "unpause": _steering("Let a paused schedule start runs again", UNPAUSE, None, "unpaused"),
    "remove": _steering("End a schedule for good; the runs that it started go on", RERUN, "removed", "removed"),
}
schedule = click.Group(
    "schedule",
    help="List, pause, unpause and remove the calendars that start runs.",
    commands=[listed, *(verb(name)(fn) for name, fn in STEERING.items())],
)
COMMANDS = [schedule]
