"""Verbs for schedules: list them, and steer them through the store."""

from __future__ import annotations

import uuid
from typing import Any, get_args

import click

from fsmworkflow.cli.answers import answer, table
from fsmworkflow.cli.steering import posted
from fsmworkflow.cli.targets import Target, knowing
from fsmworkflow.cli.verbs import Verb, engine_given, given, verb
from fsmworkflow.errors import ScheduleNotFound
from fsmworkflow.records import PAUSE, RERUN, UNPAUSE, Event
from fsmworkflow.schedule import Missed, Overlap

__all__ = ["COMMANDS"]


@verb("list")
@engine_given
async def listed(engine: Target, as_json: bool) -> int:
    """List the schedules of this engine's workflows."""
    async with knowing(engine) as opened:
        found = await opened.schedules()
    ticks = ["" if s.next is None else s.next.strftime("%Y-%m-%d %H:%M %z") for s in found]
    rows = [(s.name, s.workflow, s.cron, s.timezone, tick, s.status) for s, tick in zip(found, ticks, strict=True)]
    names = ("name", "workflow", "cron", "time zone", "next", "status")

    answer(as_json, found, (lambda console: table(console, names, rows)) if rows else "there are no schedules")
    return 0


def _steering(what: str, event: str, payload: Any, done: str) -> Verb:
    """A verb that posts one of the engine's own events to a schedule. It is never driven here."""

    @engine_given
    @click.argument("name")
    async def steer(engine: Target, name: str, as_json: bool) -> int:
        async with knowing(engine) as opened:
            found = [schedule for schedule in await opened.schedules() if schedule.name == name]
            if not found:
                raise ScheduleNotFound(f"the workflows of this engine have no schedule {name!r}")
            events = [Event(name=event, payload=payload, id=uuid.uuid4().hex) for _ in found]
            taken = [
                (await posted(opened, schedule.address, one)).status != "waiting"
                for schedule, one in zip(found, events, strict=True)
            ]
        told = done if all(taken) else f"will be {done} as soon as an engine works"
        answer(as_json, {"name": name, "done": all(taken)}, f"{name} {told}")
        return 0

    steer.__doc__ = f"{what}.\n\nA process that works does it; where none does, it is kept for the next one."
    return steer


STEERING = {
    "pause": _steering("Start no runs by this schedule until `unpause`", PAUSE, None, "paused"),
    "unpause": _steering("Let a paused schedule start runs again", UNPAUSE, None, "unpaused"),
    "remove": _steering("End a schedule for good; the runs that it started go on", RERUN, "removed", "removed"),
}


@verb("add")
@engine_given
@click.argument("name")
@click.argument("workflow")
@click.option("--cron", required=True, metavar="FIELDS", help="Minute hour day month weekday, as '0 3 * * *'.")
@click.option("--timezone", default="UTC", show_default=True, help="Whose clock that is, as Europe/Berlin.")
@click.option("--data", metavar="JSON", help="The data of its runs: JSON, @FILE, or - for stdin.")
@click.option(
    "--missed", default="one", show_default=True, type=click.Choice(get_args(Missed)), help="Ticks nobody saw."
)
@click.option(
    "--overlap", default="skip", show_default=True, type=click.Choice(get_args(Overlap)), help="While one runs."
)
async def add(
    engine: Target, name: str, workflow: str, cron: str, timezone: str, data: str | None, missed: Any, overlap: Any,
    as_json: bool,
) -> int:  # fmt: skip
    """Start a run of a workflow at each tick of a calendar.

    The schedule of that name that is there is changed. An engine that knows the workflow and works starts them.
    """
    value = given(data, "--data")
    async with knowing(engine) as opened:
        try:
            words = {"cron": cron, "timezone": timezone, "data": value, "missed": missed, "overlap": overlap}
            made = await opened.schedule(name, workflow, **words)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    tick = "never" if made.next is None else f"{made.next:%Y-%m-%d %H:%M %z}"
    answer(as_json, made, f"{name} starts {workflow} next at {tick}")
    return 0


schedule = click.Group(
    "schedule",
    help="Add, list, pause and remove calendars that start runs.",
    commands=[add, listed, *(verb(name)(fn) for name, fn in STEERING.items())],
)
COMMANDS = [schedule]
