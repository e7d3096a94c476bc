"""Tasks: the steps of a run that are on, each in one of its own, or, where nothing can come between, in the drive's."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from fsmworkflow.acting import act
from fsmworkflow.errors import FSMWorkflowError, log
from fsmworkflow.inbox import pausing
from fsmworkflow.records import CANCEL, JOINED, RERUN, Event

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive

__all__ = ["LEFT_BEHIND", "Named", "alone", "begin_steps", "ended_step", "peek_for_stop", "stop_steps"]

Named = tuple[str, int]
"""A step that is on: its state and visit."""

LEFT_BEHIND = 10.0
"""Seconds that a cancelled step has to end, before the move that leaves its state is committed without it."""
STOPPING = frozenset({CANCEL, RERUN})
"""What stops a running step, also one that accepts no event."""


async def begin_steps(drive: Drive, now: float) -> Event | None:
    """Begin the steps of all active states. One that nothing can interrupt is run here, and its end returned."""
    run, workflow = drive.run, drive.workflow
    if pausing(drive.inbox):  # it is taken once those that are on have ended
        return None
    ready = [
        state
        for state, stay in run.active.items()
        if workflow.states[state].step is not None
        and (state, stay.visit) not in drive.steps
        and (stay.again is None or stay.again <= now)
    ]
    if not ready:
        return None
    await drive.worker.hold(run)
    drive.passed = ()
    if len(run.active) == 1 and not workflow.chart.listens(ready[0]) and run.deadline is None:
        return await alone(drive, ready[0])
    for visit in {run.active[state].visit for state in ready} if run.posted else ():
        await _read_entered(drive, visit)
    for state in ready:
        drive.steps[state, run.active[state].visit] = asyncio.create_task(_step(drive, state), name=f"step {state}")
    return None


def _step(drive: Drive, state: str) -> Coroutine[Any, Any, Event]:
    run, stay = drive.run, drive.run.active[state]
    fresh = drive.fresh and stay.attempt == 1 and stay.visit == run.version
    return act(drive, run, state, stay, fresh=fresh, event=drive.entered_by.get(stay.visit))


async def _read_entered(drive: Drive, visit: int) -> None:
    """Know the event that led into this visit, also after a crash."""
    if visit and visit not in drive.entered_by:
        found = await drive.store.taken(drive.run, visit)
        if found is not None and found.name != JOINED:
            drive.entered_by[visit] = found


async def alone(drive: Drive, state: str) -> Event | None:
    """A step that accepts no event needs no task of its own. Returns its end, or the event that has stopped it."""
    if drive.run.posted:
        await _read_entered(drive, drive.run.active[state].visit)
    if drive.unread:  # something came while the inbox was being read
        return None
    task = asyncio.current_task()
    drive.inline, drive.stopped = (task,), False
    try:
        return await _step(drive, state)
    except asyncio.CancelledError:
        if not drive.stopped or task is None or task.uncancel() > 0:
            raise
        drive.inline = None
        await drive.look()
        return next((event for event in drive.inbox if event.name in STOPPING), None)
    finally:
        drive.inline = None


async def peek_for_stop(drive: Drive) -> None:
    """A step that accepts nothing runs in the drive's task: only a steering hand stops it, and only while it is on."""
    try:
        while drive.rung and (step := drive.inline) is not None and not drive.stopped:
            drive.rung = False
            _, waiting = await drive.store.inbox(drive.run)
            if step is drive.inline and step[0] is not None and any(event.name in STOPPING for event in waiting):
                drive.stopped = True
                step[0].cancel()
    except FSMWorkflowError as error:
        log.warning("the inbox of run %s/%s could not be read: %s", drive.run.workflow, drive.run.key, error)


def ended_step(drive: Drive, only: Named | None = None) -> Event | None:
    """The end of a step that has ended, of this one where one is named; None where none has."""
    for name, task in list(drive.steps.items()):
        if task.done() and only in (None, name):
            del drive.steps[name]
            if not task.cancelled():
                return task.result()
    return None


async def stop_steps(drive: Drive, names: list[Named]) -> None:
    """Cancel steps and wait until they have ended; after 10 s they are left behind, and what they do is dropped."""
    tasks = [drive.steps.pop(name) for name in names]
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(tasks, timeout=LEFT_BEHIND)
    for task in tasks:
        task.add_done_callback(_let_go)
    for task in left:
        name, run = task.get_name(), drive.run
        log.warning("%s of run %s/%s does not end: it is left behind", name, run.workflow, run.key)


def _let_go(task: asyncio.Task[Event]) -> None:
    """What a step did that was stopped is dropped, also where it came to its end all the same."""
    if not task.cancelled() and task.exception() is None and (lent := task.result().within) is not None:
        lent.drop()
