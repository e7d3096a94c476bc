"""Verbs for runs: starting one, telling it something, and seeing how it is. Only `run` drives it here."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any, get_args

import click
import msgspec

from fsmworkflow.claims import first, tell
from fsmworkflow.cli.answers import answer, clean, clock, colour, progress, table
from fsmworkflow.cli.steering import REJECTED, posted
from fsmworkflow.cli.targets import Target, knowing, there, workflow_in, workflows_of
from fsmworkflow.cli.verbs import NOT_WELL, engine_given, given, run_given, verb
from fsmworkflow.codec import encode
from fsmworkflow.engine import Different, Engine
from fsmworkflow.errors import InvalidKey, RunFailed, name_problem
from fsmworkflow.hooks import Hook, Hooks
from fsmworkflow.records import UNFINISHED, Entry, Event, Move, Run, Status, Undo
from fsmworkflow.workflow import id_of, known_event

__all__ = ["COMMANDS"]

WIDE = 400
"""How much of a value is shown, in characters."""

data_given = click.option("--data", metavar="JSON", help="The run's data: JSON, @FILE, or - for stdin.")
key_given = click.option("--key", help="Its key: there is one run of each; else one is made.")
different_given = click.option(
    "--different", default="log", type=click.Choice(get_args(Different)), show_default=True,
    help="What follows where the run of that key has other data.",
)  # fmt: skip


# -- starting and telling ---------------------------------------------------------------------------------------------


@verb("run", level=logging.WARNING)
@engine_given
@click.argument("workflow", required=False)
@data_given
@key_given
@different_given
async def run(
    engine: Target, workflow: str | None, data: str | None, key: str | None, different: Any, as_json: bool
) -> int:
    """Start a run, and drive it here until it ends or rests.

    The run of that key that is there is taken up. A failed run goes on where it failed. Exits with 1 where it fails.
    Ctrl-C leaves it where it is: run it again. A single workflow need not be named.
    """
    value, working = given(data, "--data"), knowing(engine)
    name = _named(working, workflow)
    with progress(f"{name}/{key or ''}") as more:
        working.worker.hooks = Hooks([*working.worker.hooks.given, _Watching(more)])
        async with working:
            try:
                found = await working.run(name, value, key=key, different=different)
            except RunFailed as failed:
                found = failed.run
    return _shown(found, as_json)


def _named(engine: Engine, workflow: str | None) -> str:
    return workflow_in(workflows_of(engine), None).name if workflow is None else workflow


class _Watching(Hook):
    """Shows on the bar where a run is."""

    def __init__(self, more: Any) -> None:
        self.more = more

    def moved(self, move: Move) -> None:
        self.more(f"{move.after.workflow}/{move.after.key}: {move.after.state}")


@verb("start", level=logging.WARNING)
@engine_given
@click.argument("workflow", required=False)
@data_given
@key_given
@different_given
async def start(
    engine: Target, workflow: str | None, data: str | None, key: str | None, different: Any, as_json: bool
) -> int:
    """Make a run, and leave it to an engine that works.

    The run that is there wins: the same key starts nothing twice. A single workflow need not be named.
    """
    value, opened = given(data, "--data"), knowing(engine)
    name = _named(opened, workflow)
    async with opened:
        definition = opened.known(name).check()
        if key is not None and (problems := name_problem(key, "key")):
            raise InvalidKey(problems[0])
        fresh = await first(definition, opened.store, key or uuid.uuid4().hex, value)
        found, made = await opened.store.create(fresh)
        tell(found, fresh, value, refuse=different == "refuse")
    what = "was started" if made else f"was there, {found.status} in {found.state}"
    said = {"started": made, **_value(found)}
    answer(as_json, said, f"{found.workflow}/{found.key} {what}")
    return 0


@verb("send")
@run_given
@click.argument("event")
@click.option("--payload", metavar="JSON", help="What it brings: JSON, @FILE, or - for stdin.")
@click.option("--event-id", metavar="ID", help="Its id: a repeated one is the same event.")
@click.option("--visit", type=int, help="Good for this visit of its state only.")
@click.option("--in", "after", metavar="SECONDS", type=click.FloatRange(0), help="Deliver it later.")
async def send(
    engine: Target, workflow: str, key: str, event: str, payload: str | None, event_id: str | None, visit: int | None,
    after: float | None, as_json: bool,
) -> int:  # fmt: skip
    """Send an event to a run. It is durable when this returns.

    An engine that works takes it; where none does, it is kept for the next one. Exits with 1 where it is rejected, as
    no condition holds.
    """
    value = given(payload, "--payload")
    async with knowing(engine) as opened:
        definition = opened.known(workflow).check()
        known_event(definition, event)
        encode(value, "payload", limit=definition.codec.limit)
        due = None if after is None else opened.store.now() + after
        made = Event(name=event, payload=value, id=id_of(event_id), visit=visit, due=due)
        found = await posted(opened, (definition.name, key), made)
    by = "" if found.version is None else f" by version {found.version}"
    told = f"{event} was {found.status}{by}" if found.status != "waiting" else f"{event} waits in the inbox"
    said = {"event": event, "id": found.id, "status": found.status, "version": found.version, "due": found.due}
    answer(as_json, said, told)
    return NOT_WELL if found.status == REJECTED else 0


# -- looking ----------------------------------------------------------------------------------------------------------


@verb("show")
@run_given
async def show(engine: Target, workflow: str, key: str, as_json: bool) -> int:
    """Show a run: where it is, its data, timers and inbox."""
    async with there(engine) as opened:
        found = await opened.get(workflow, key)
        _, inbox = await opened.store.inbox(found)
    return _shown(found, as_json, inbox) and 0


def _shown(found: Run, as_json: bool, inbox: list[Event] | None = None) -> int:
    """Answer with a run. Where it has failed that is not well."""
    waiting = [{"name": e.name, "id": e.id, "due": e.due, "visit": e.visit} for e in inbox or ()]
    answer(as_json, {**_value(found), "inbox": waiting}, lambda console: _draw(console, found, inbox or []))
    return NOT_WELL if found.status in ("failed", "parked", "cancelled") else 0


def _value(found: Run) -> dict[str, Any]:
    stays, undo = msgspec.to_builtins(found.active), msgspec.to_builtins(found.undo)
    return {"id": found.id, **found.to_dict(), "active": stays, "deadline": found.deadline, "undo": undo}


def _draw(console: Any, found: Run, inbox: list[Event]) -> None:
    from rich.text import Text

    place = f"{found.workflow}/{found.key}"
    head = Text.assemble((clean(place), "bold"), " is ", colour(found.status), clean(f" in {found.state}"))
    console.print(head)
    rows: list[tuple[str, object]] = [
        ("version", found.version), ("since", clock(found.updated)), ("started", clock(found.created))
    ]  # fmt: skip
    if found.attempt > 1:
        rows.append(("attempt", found.attempt))
    for state, stay in found.active.items() if found.status in UNFINISHED else ():
        rows += [("timer", f"{clock(due)}, of {state}") for due in sorted(stay.timers.values())]
        rows += [] if stay.again is None else [("next attempt", clock(stay.again))]
    rows += [("to be undone", _to_undo(undo)) for undo in reversed(found.undo.left) if found.undo.ends]
    rows += [("not undone", f"{undo.state} (visit {undo.visit})") for undo in found.undo.lost]
    rows += [] if found.deadline is None else [("deadline", clock(found.deadline))]
    if found.error is not None:
        rows.append(("error", f"{found.error.type}: {found.error.message}"))
    rows += [(f"data.{name}", _cut(value)) for name, value in found.to_dict()["data"].items()]
    for event in inbox:
        bound = "" if event.visit is None else f", for visit {event.visit}"
        rows.append(("in the inbox", f"{event.name}, due {clock(event.due)}{bound}"))
    table(console, ("", ""), rows)


def _to_undo(undo: Undo) -> str:
    later = "" if undo.again is None or undo.attempt == 1 else f", attempt {undo.attempt} at {clock(undo.again)}"
    return f"{undo.state} (visit {undo.visit}){later}"


def _cut(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= WIDE else f"{text[: WIDE - 3]}..."


@verb("list")
@engine_given
@click.argument("workflow", required=False)
@click.option("--status", type=click.Choice(get_args(Status)), help="Only those of this status.")
@click.option("--state", help="Only those in this state.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="So many at the most.")
@click.option("--after", default=0, metavar="ID", help="Those made after this one: see the ids in --json.")
async def listed(
    engine: Target, workflow: str | None, status: Any, state: str | None, limit: int, after: int, as_json: bool
) -> int:
    """List runs, the oldest first."""
    async with there(engine) as opened:
        found = await opened.store.list(workflow=workflow, status=status, state=state, after=after, many=limit)
        found = [opened.shown(run) for run in found]

    def draw(console: Any) -> None:
        names = ("workflow", "key", "status", "state", "moves", "since")
        rows = [(r.workflow, r.key, colour(r.status), r.state, r.version, clock(r.updated)) for r in found]
        skip = 0 if workflow is None else 1
        table(console, names[skip:], [row[skip:] for row in rows], ("moves",))
        if len(found) == limit:
            console.print(f"there may be more: --after {found[-1].id}")

    answer(as_json, [_value(run) for run in found], draw if found else "no runs")
    return 0


@verb("history")
@run_given
@click.option("--data", is_flag=True, help="Show what each move changed.")
async def history(engine: Target, workflow: str, key: str, data: bool, as_json: bool) -> int:
    """Show every move of a run, from its start."""
    async with there(engine) as opened:
        found = await opened.history(workflow, key)

    def draw(console: Any) -> None:
        names = ("", "at", "event", "to", "status", "took")
        rows: list[tuple[object, ...]] = []
        for one in found:
            what = one.event if one.trigger is None else f"{one.event} ({one.trigger})"
            rows.append((one.version, clock(one.at), what, one.dest, colour(one.status), _took(one)))
            rows += [("", "", "", text) for text in _said(one, data)]
        table(console, names, [(*row, *[""] * (len(names) - len(row))) for row in rows], ("", "took"))

    answer(as_json, [_entry(one) for one in found], draw)
    return 0


def _took(one: Entry) -> str:
    return "" if one.began is None else f"{max(0.0, one.at - one.began):,.3f} s"


def _said(one: Entry, data: bool) -> list[str]:
    """What else is shown of a move: its error, what its conditions saw, and what it changed."""
    told = [] if one.error is None else [f"{one.error.type}: {one.error.message}"]
    told += [] if one.detail is None else [one.detail]
    if one.source == one.dest and not one.changes and not any(seen.answer for seen in one.asked):  # it was rejected
        told += [seen.error or f"{seen.condition} -> {seen.answer}{seen.saw}" for seen in one.asked]
    if data:
        told += [f"{name} = {_cut(msgspec.to_builtins(value, str_keys=True))}" for name, value in one.changes.items()]
        told += [f"{name} is gone" for name in one.removed]
    return told


def _entry(one: Entry) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(one, str_keys=True)
    return found


@verb("explain")
@run_given
async def explain(engine: Target, workflow: str, key: str, as_json: bool) -> int:
    """Say in words why a run is where it is, and what it waits for."""
    async with knowing(engine) as opened:
        text = await opened.explain(workflow, key)
    answer(as_json, {"text": text}, text)
    return 0


COMMANDS = [run, start, send, show, listed, history, explain]
