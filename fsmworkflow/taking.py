"""The moves themselves: a run with transitions taken, at its end, or failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fsmworkflow.beginning import actions_of, new_stay
from fsmworkflow.case import Case
from fsmworkflow.choosing import left_by
from fsmworkflow.draft import Draft, regions
from fsmworkflow.due import resting
from fsmworkflow.records import DONE, JOINED, TIMEOUT, Active, Failure, Move, Run, Status, Undo, Undoing, replace
from fsmworkflow.statechart import Arc
from fsmworkflow.workflow import Workflow

__all__ = ["ended", "fail", "over", "remembered", "spent", "take"]


async def take(case: Case, arcs: list[Arc], draft: Draft) -> Move:
    """The move that takes these transitions, with the data as `draft` has it."""
    workflow, run, event = case.workflow, case.run, case.event
    if arcs[0].plain and event.name == DONE:
        return _step_to_step(case, arcs[0], draft)
    left = [state for arc in arcs for state in left_by(run, arc)]
    entered = [state for arc in arcs for state in arc.enters]
    after = replace(
        _after(case, _active_after(case, left, entered, draft), draft),
        actions=actions_of(workflow, left, entered, arcs, run.version + 1),
        undo=_undo_after(case),
    )
    final = next((s for s in entered if s in workflow.finals and "." not in s), None)
    if final is not None or any(arc.ends for arc in arcs):
        after = ended(workflow, after, case.now, "done" if final is None else workflow.states[final].outcome)
        left = list(run.active)
    else:
        after = await resting(case, after)
    return _taken(case, after, draft, left)


def _step_to_step(case: Case, arc: Arc, draft: Draft) -> Move:
    """What most moves are, told shortly: see `Arc.plain`."""
    run, now = case.run, case.now
    after = _after(case, {arc.enters[0]: Active(run.version + 1)}, draft)
    if run.due is None or run.due > now:
        after = replace(after, due=now)
    return _taken(case, after, draft, (case.event.state,))


def _after(case: Case, active: dict[str, Active], draft: Draft) -> Run:
    return replace(
        case.run,
        active=active,
        fields=draft.fields,
        hashes=draft.hashes(),
        version=case.run.version + 1,
        definition=case.workflow.version,
        structure=case.workflow.chart.structure,
        error=None,
        actions=(),
        deaths=0,
        updated=case.now,
    )


def _taken(case: Case, after: Run, draft: Draft, left: Iterable[str]) -> Move:
    return Move(
        before=case.run,
        event=case.event,
        after=after,
        at=case.now,
        changes=draft.changes,
        removed=draft.removed,
        asked=tuple(case.asked),
        forget=remembered(case.run, left) if case.event.remembered else (),
    )


def _undo_after(case: Case) -> Undoing:
    """What can be undone once the move is made: the end of a step with `compensate=` adds its visit."""
    undo, event = case.run.undo, case.event
    if event.name != DONE or case.workflow.states[event.state].compensate is None:
        return undo
    stay = case.run.active[event.state]
    return replace(undo, left=(*undo.left, Undo(event.state, stay.visit, was=stay.was)))


def spent(case: Case) -> dict[str, Active]:
    """The active states without the timer that has struck."""
    active, event = case.run.active, case.event
    if event.name != TIMEOUT:
        return active
    stay = active[event.state]
    timers = {name: due for name, due in stay.timers.items() if name != event.trigger}
    return {**active, event.state: replace(stay, timers=timers, spent=(*stay.spent, event.trigger or ""))}


def _active_after(case: Case, left: list[str], entered: list[str], draft: Draft) -> dict[str, Active]:
    """The active states after a move, in document order."""
    workflow, event, active = case.workflow, case.event, spent(case)
    if workflow.families:
        active = _told(active, event.state, draft)
    touched = draft.touched
    if event.name in (DONE, JOINED) and not workflow.chart.flat and (draft.changes or draft.removed):
        touched = [(region, (*draft.changes, *draft.removed)) for region in regions(workflow, event.state)]
    for region, keys in touched:
        active = {**active, region: _touched(active[region], keys)}
    stays = {state: new_stay(workflow, state, case.run.version + 1, case.now) for state in entered}
    active = {**{s: stay for s, stay in active.items() if s not in left}, **stays}
    if workflow.chart.flat:
        return active
    return dict(sorted(active.items(), key=lambda one: workflow.chart.order[one[0]]))


def _told(active: dict[str, Active], state: str, draft: Draft) -> dict[str, Active]:
    """The active states, those that wait for children with the keys that others have changed meanwhile."""
    changed = (*draft.changes, *draft.removed)
    others = [s for s, stay in active.items() if stay.children is not None and s != state] if changed else []
    return {**active, **{s: _touched(active[s], changed) for s in others}}


def _touched(stay: Active, keys: Iterable[str]) -> Active:
    return replace(stay, touched=tuple(dict.fromkeys((*stay.touched, *keys))))


def remembered(run: Run, states: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Where the remembered calls of active states stand."""
    return tuple((run.active[state].was or state, run.active[state].visit) for state in states)


def ended(workflow: Workflow, run: Run, now: float, ends: Status) -> Run:
    """The run at its end; where it has not ended well, what can be undone comes first."""
    if ends == "done" or not run.undo.left:
        return over(run, ends, now)
    if workflow.on_failure == "park" and ends == "failed" and run.error is not None:
        return replace(run, status="parked", due=None, owner=None)
    return replace(run, status="compensating", undo=replace(run.undo, ends=ends), due=now)


def over(run: Run, ends: Status, now: float) -> Run:
    """The run with its last status: due for the actions that are left, else nobody's."""
    return replace(run, status=ends, due=now) if run.actions else replace(run, status=ends, due=None, owner=None)


def fail(case: Case, found: Failure, error: BaseException | None, **changes: Any) -> Move:
    """The run fails and keeps its place: state, data, visit and remembered calls."""
    after = ended(case.workflow, case.after(error=found, **changes), case.now, "failed")
    if after.status == "failed":
        after = replace(after, due=None, owner=None)
    return case.move(after, error=error)
