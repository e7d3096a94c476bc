"""The rules of steering by hand: cancel, retry, rerun, pause, and of parking."""

from __future__ import annotations

from fsmworkflow.beginning import actions_of, new_stay
from fsmworkflow.due import resting
from fsmworkflow.records import Event, Move, Run, replace
from fsmworkflow.statechart import Arc
from fsmworkflow.taking import ended, rejected, remembered
from fsmworkflow.workflow import Workflow

__all__ = ["cancel", "park", "pause", "rerun", "retry", "unpause"]


async def cancel(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A run that is not over ends as cancelled, once what can be undone is."""
    if run.over or run.status == "compensating":
        return rejected(run, event, now, [])
    after = ended(workflow, replace(run, version=run.version + 1, actions=(), updated=now), now, "cancelled")
    return Move(before=run, event=event, after=after, at=now, forget=remembered(run, run.active))


async def retry(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A failed or parked run goes on in the same visit, its attempts counted anew."""
    if run.over or run.status not in ("failed", "parked"):
        return rejected(run, event, now, [])
    active = {state: replace(stay, attempt=1, again=None) for state, stay in run.active.items()}
    after = replace(run, active=active, version=run.version + 1, due=now, deaths=0, updated=now)
    if run.undo.ends is not None:  # it was parked while it was being undone
        return Move(before=run, event=event, after=replace(after, status="compensating"), at=now)
    return Move(before=run, event=event, after=await resting(workflow, after, now), at=now)


async def rerun(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A run that is not over goes on in a new visit of the state that the payload names; not in one that ends it."""
    state = workflow.states.get(event.payload)
    ends = state is None or (state.kind == "final" and "." not in state.name)
    if run.over or run.status == "compensating" or ends:
        return rejected(run, event, now, [])
    arc = Arc(None, run.state, str(event.payload), enters=workflow.chart.entered((str(event.payload),), ""))
    left = tuple(run.active)
    version = run.version + 1
    active = {state: new_stay(workflow, state, version, now) for state in arc.enters}
    actions = actions_of(workflow, left, arc.enters, [], version)
    after = replace(run, active=active, version=version, error=None, actions=actions, due=now, deaths=0, updated=now)
    after = await resting(workflow, after, now)
    return Move(before=run, event=event, after=after, at=now, forget=remembered(run, left))


async def pause(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A run that goes on or waits does nothing more until it is let go on."""
    if run.status not in ("running", "waiting"):
        return rejected(run, event, now, [])
    after = replace(run, status="paused", version=run.version + 1, due=None, updated=now)
    return Move(before=run, event=event, after=after, at=now)


async def unpause(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """A paused run goes on where it was."""
    if run.status != "paused":
        return rejected(run, event, now, [])
    after = replace(run, status="running", version=run.version + 1, due=now, updated=now)
    return Move(before=run, event=event, after=await resting(workflow, after, now), at=now)


async def park(workflow: Workflow, run: Run, event: Event, now: float) -> Move:
    """Processes died while the run was in flight: it keeps its place, and nobody drives it until somebody says so."""
    after = replace(run, status="parked", version=run.version + 1, error=event.failure, updated=now)
    return Move(before=run, event=event, after=replace(after, due=None, owner=None), at=now)
