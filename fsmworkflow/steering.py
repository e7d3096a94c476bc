"""The rules of steering by hand: cancel, retry, rerun, pause, and of parking."""

from __future__ import annotations

from fsmworkflow.beginning import actions_of, new_stay
from fsmworkflow.case import Case
from fsmworkflow.due import resting
from fsmworkflow.records import OPEN, STUCK, Move, replace
from fsmworkflow.taking import ended, remembered

__all__ = ["cancel", "park", "pause", "rerun", "retry", "unpause"]


async def cancel(case: Case) -> Move:
    """A run that is not over ends as cancelled, once what can be undone is."""
    run = case.run
    if run.over or run.status == "compensating":
        return case.rejected()
    after = ended(case.workflow, case.after(actions=()), case.now, "cancelled")
    return case.move(after, forget=remembered(run, run.active))


async def retry(case: Case) -> Move:
    """A failed or parked run goes on in the same visit, its attempts counted anew."""
    run = case.run
    if run.over or run.status not in STUCK:
        return case.rejected()
    active = {state: replace(stay, attempt=1, again=None) for state, stay in run.active.items()}
    after = case.after(active=active, due=case.now, deaths=0)
    if run.undo.ends is not None:  # it was parked while it was being undone
        return case.move(replace(after, status="compensating"))
    return case.move(await resting(case, after))


async def rerun(case: Case) -> Move:
    """A run that is not over goes on in a new visit of the state that the payload names; not in one that ends it."""
    workflow, run, version = case.workflow, case.run, case.run.version + 1
    state = workflow.states.get(case.event.payload)
    ends = state is None or (state.kind == "final" and "." not in state.name)
    if run.over or run.undo.ends is not None or state is None or ends:
        return case.rejected()
    left, entered = tuple(run.active), workflow.chart.entered((state.name,))
    active = {one: new_stay(workflow, one, version, case.now) for one in entered}
    actions = actions_of(workflow, left, entered, (), version)
    after = case.after(active=active, error=None, actions=actions, due=None, deaths=0)
    return case.move(await resting(case, after), forget=remembered(run, left))


async def pause(case: Case) -> Move:
    """A run that goes on or waits does nothing more until it is let go on."""
    if case.run.status not in OPEN:
        return case.rejected()
    return case.move(case.after(status="paused", due=None))


async def unpause(case: Case) -> Move:
    """A paused run goes on where it was."""
    if case.run.status != "paused":
        return case.rejected()
    return case.move(await resting(case, case.after()))


async def park(case: Case) -> Move:
    """Processes died while the run was in flight: it keeps its place, and nobody drives it until somebody says so."""
    return case.move(case.after(status="parked", error=case.event.failure, due=None, owner=None))
