"""Verbs that steer a run. What they say is kept in the store, and an engine that works does it."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import click

from fsmworkflow.claims import tell
from fsmworkflow.cli.answers import answer
from fsmworkflow.cli.targets import Target, knowing
from fsmworkflow.cli.verbs import NOT_WELL, Verb, given, run_given, verb
from fsmworkflow.decide import decide
from fsmworkflow.engine import Engine
from fsmworkflow.errors import RunOver, UnknownState, nearest
from fsmworkflow.explain import forked
from fsmworkflow.records import CANCEL, PAUSE, RERUN, RETRY, UNPAUSE, Event, replace
from fsmworkflow.stream.run import PREFIX as STREAMS
from fsmworkflow.stream.run import outline

__all__ = ["COMMANDS", "REJECTED", "posted"]

REJECTED = "rejected"
TAKEN_SECONDS = 3.0
"""How long a verb waits for an engine that works to take its event, where there is one."""


async def posted(engine: Engine, address: tuple[str, str], event: Event) -> Event:
    """Post an event, and wait a while for the engine that works. The Event as it then is.

    Raises RunNotFound, and RunOver for a run that has ended for good.
    """
    try:
        event = await engine.store.post(*address, event)
    except RunOver as error:
        run = await engine.get(*address)
        raise RunOver(run.workflow, run.key, error.status, undone=run.undo.ends is not None) from None
    end = time.monotonic() + (TAKEN_SECONDS if await _worked(engine) else 0.0)
    while event.status == "waiting" and time.monotonic() < end:
        await asyncio.sleep(0.05)
        event = await engine.event(*address, event.id)
    return event


async def _worked(engine: Engine) -> bool:
    """Whether another engine is there."""
    now, own = engine.store.now(), engine.worker.token
    return any(owner.lease > now and owner.token != own for owner in await engine.store.owners())


def steered(what: str, name: str, done: str) -> Verb:
    """A verb that posts one of the engine's own events to a run."""

    async def steer(engine: Target, workflow: str, key: str, as_json: bool) -> int:
        return await _steer(engine, workflow, key, name, done, as_json)

    steer.__doc__ = f"{what}.\n\nAn engine that works does it; where none does, it is kept for the next one."
    return run_given(steer)


async def _steer(
    engine: Target, workflow: str, key: str, name: str, done: str, as_json: bool, payload: Any = None
) -> int:  # fmt: skip
    async with knowing(engine) as opened:
        streams = workflow.startswith(STREAMS)  # which no engine knows: they are driven by their own call
        known = outline(workflow) if streams else opened.known(workflow)
        address = known.check().name, key
        if payload is not None and payload not in known.states:
            hint = nearest(payload, known.states)
            raise UnknownState(f"workflow {workflow!r} has no state {payload!r}{hint}")
        event, run = Event(name=name, payload=payload, id=uuid.uuid4().hex), await opened.get(*address)
        move = await decide(known, run, event, now=opened.store.now())
        if not run.over and move.answer == REJECTED and not (await opened.store.inbox(run))[1]:
            event = replace(event, status=REJECTED)  # it would wait for an engine, and come to nothing
        else:
            event = await posted(opened, address, event)
            run = await opened.get(*address)
    told = {
        "accepted": f"was {done}, and is {run.status} in {run.state}",
        "waiting": f"will be {done} as soon as {'it is started again' if streams else 'an engine works'}",
    }.get(event.status, f"is {run.status} in {run.state}: it cannot be {done}")
    said = {"done": event.status == "accepted", "answer": event.status, "status": run.status, "state": run.state}
    said = {"workflow": workflow, "key": key, **said}
    answer(as_json, said, f"{workflow}/{key} {told}")
    return 0 if event.status in ("accepted", "waiting") else NOT_WELL


@verb("rerun")
@run_given
@click.argument("state")
async def rerun(engine: Target, workflow: str, key: str, state: str, as_json: bool) -> int:
    """Let a run go on in a new visit of a state.

    Nothing is remembered there. An engine that works does it; where none does, it is kept for the next one.
    """
    return await _steer(engine, workflow, key, RERUN, "rerun", as_json, state)


@verb("fork")
@run_given
@click.argument("new_key")
@click.option("--at", type=int, metavar="VERSION", help="As it was at this version; else as it is.")
@click.option("--data", metavar="JSON", help="Fields to put in place of its own: JSON, @FILE, or - for stdin.")
async def fork(
    engine: Target, workflow: str, key: str, new_key: str, at: int | None, data: str | None, as_json: bool
) -> int:
    """Make a new run of what a run is, or was.

    It begins in that state, with that data, and nothing is remembered. An engine that works drives it.
    """
    value = given(data, "--data")
    async with knowing(engine) as opened:
        definition = opened.known(workflow).check()
        run = await opened.get(workflow, key)
        entries, now = await opened.history(workflow, key), opened.store.now()
        try:
            made = forked(definition, run, entries, new_key, at, value, now=now)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        found, fresh = await opened.store.create(made)
        tell(found, made, made, refuse=True)
    what = "was made" if fresh else "was there"
    said = {"made": fresh, "workflow": workflow, "key": new_key, "state": found.state, "status": found.status}
    answer(as_json, said, f"{workflow}/{new_key} {what}, in {found.state}")
    return 0


VERBS = {
    "cancel": steered("Cancel a run, and undo what it has finished", CANCEL, "cancelled"),
    "retry": steered("Let a failed or parked run go on in the same visit", RETRY, "retried"),
    "pause": steered("Stop a run after the step that is on, until `unpause`", PAUSE, "paused"),
    "unpause": steered("Let a paused run go on", UNPAUSE, "unpaused"),
}
COMMANDS = [*(verb(name)(fn) for name, fn in VERBS.items()), rerun, fork]
