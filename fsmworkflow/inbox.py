"""The inbox of a run: which of the events that wait there it takes next."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fsmworkflow.children import awaiting
from fsmworkflow.records import JOINED, OPEN, PAUSE, STEERING, UNPAUSE, Event, Move, Run, replace
from fsmworkflow.workflow import Workflow

__all__ = ["later", "left_due", "oldest", "pausing", "takes"]


def oldest(
    workflow: Workflow, run: Run, inbox: Sequence[Event], now: float, *, before: float = math.inf, busy: bool = False
) -> Event | None:
    """The oldest event due by now, and `before`, that the run accepts. Of one that is over all are only dropped.

    A pause, and its end, wait for steps that are on (`busy`).
    """
    held = (PAUSE, UNPAUSE) if busy and pausing(inbox) else ()
    for event in () if run.over else inbox:
        due = event.due is None or (event.due <= now and event.due < before)
        if due and event.name not in held and takes(workflow, run, event):
            return event
    return None


def takes(workflow: Workflow, run: Run, event: Event) -> bool:
    """Whether the run, where it now is, accepts an event that is due."""
    if event.visit is not None and event.visit not in {stay.visit for stay in run.active.values()}:
        return False
    if event.name in STEERING:
        return True
    if run.status not in OPEN:
        return False
    if event.name == JOINED:
        return awaiting(run, event) in workflow.families
    return workflow.chart.accepted(run.active, event.name)


def pausing(inbox: Sequence[Event]) -> bool:
    """Whether a pause waits there, so that no step is begun."""
    return any(event.name == PAUSE for event in inbox)


def later(inbox: Sequence[Event], now: float) -> float | None:
    """When the next of the events is due that are not due yet."""
    return min((event.due for event in inbox if event.due is not None and event.due > now), default=None)


def left_due(workflow: Workflow, inbox: Sequence[Event], move: Move) -> Move:
    """Where the inbox has something for the run, the move leaves it due and ours, lest a crash leave it there."""
    rest = [event for event in inbox if event.id != move.event.id]
    if oldest(workflow, move.after, rest, move.at) is None:
        return move
    return replace(move, after=replace(move.after, owner=move.before.owner, due=move.at))
