"""The moves themselves: a run with transitions taken, at its end, failed, or as it was."""

from __future__ import annotations

from collections.abc import Iterable

from fsmworkflow.beginning import actions_of, new_stay
from fsmworkflow.choosing import left_by
from fsmworkflow.conditions import Seen
from fsmworkflow.draft import Draft, regions
from fsmworkflow.due import resting
from fsmworkflow.records import DONE, JOINED, TIMEOUT, Active, Event, Failure, Move, Run, Status, Undo, replace
from fsmworkflow.statechart import Arc
from fsmworkflow.workflow import Workflow

__all__ = ["active_after", "ended", "fail", "rejected", "remembered", "take"]


async def take(
    workflow: Workflow, run: Run, event: Event, now: float, arcs: list[Arc], draft: Draft, asked: list[Seen]
) -> Move:
    """The move that takes these transitions, with the data as `draft` has it."""
    version, chart = run.version + 1, workflow.chart
    if arcs[0].plain and event.name == DONE:
        return _step_to_step(workflow, run, event, now, arcs[0], draft, asked)
    if chart.flat:
        left = [] if arcs[0].internal or arcs[0].dest is None else list(run.active)
    else:
        left = [state for arc in arcs for state in left_by(run, arc)]
    entered = [state for arc in arcs for state in arc.enters]
    active = active_after(workflow, run, event, left, entered, draft, version, now)
    ends = any(arc.ends for arc in arcs)
    final = next((s for s in entered if s in workflow.finals and "." not in s), None)
    undo, gone = run.undo, left
    if event.name == DONE and workflow.states[event.state].compensate is not None:
        stay = run.active[event.state]
        undo = replace(undo, left=(*undo.left, Undo(event.state, stay.visit, was=stay.was)))
    after = replace(
        run,
        active=active,
        fields=draft.fields,
        hashes=draft.hashes(),
        status="running",
        version=version,
        definition=workflow.version,
        structure=chart.structure,
        error=None,
        actions=actions_of(workflow, left, entered, arcs, version),
        undo=undo,
        deaths=0,
        updated=now,
    )
    if ends or final is not None:
        after = ended(workflow, after, now, "done" if final is None else workflow.states[final].outcome)
        gone = list(run.active)
    else:
        after = await resting(workflow, after, now)
    return Move(
        before=run,
        event=event,
        after=after,
        at=now,
        changes=draft.changes,
        removed=draft.removed,
        asked=tuple(asked),
        forget=remembered(run, gone) if event.remembered else (),
    )


def _step_to_step(
    workflow: Workflow, run: Run, event: Event, now: float, arc: Arc, draft: Draft, asked: list[Seen]
) -> Move:
    """What most moves are, told shortly: see `Arc.plain`."""
    version = run.version + 1
    after = replace(
        run,
        active={arc.enters[0]: Active(version)},
        fields=draft.fields,
        hashes=draft.hashes(),
        status="running",
        version=version,
        definition=workflow.version,
        structure=workflow.chart.structure,
        due=run.due if run.due is not None and run.due <= now else now,
        error=None,
        actions=(),
        deaths=0,
        updated=now,
    )
    return Move(
        before=run,
        event=event,
        after=after,
        at=now,
        changes=draft.changes,
        removed=draft.removed,
        asked=tuple(asked),
        forget=remembered(run, (event.state,)) if event.remembered else (),
    )


def active_after(
    workflow: Workflow,
    run: Run,
    event: Event,
    left: list[str],
    entered: list[str],
    draft: Draft,
    version: int,
    now: float,
) -> dict[str, Active]:
    """The active states after a move, in document order."""
    active = run.active
    if event.name == TIMEOUT and event.state in active:
        stay = active[event.state]
        timers = {name: due for name, due in stay.timers.items() if name != event.trigger}
        active = {**active, event.state: replace(stay, timers=timers)}
    if workflow.families:
        active = _told(workflow, active, event, draft)
    touched = draft.touched
    if event.name in (DONE, JOINED) and not workflow.chart.flat and (draft.changes or draft.removed):
        touched = [(region, (*draft.changes, *draft.removed)) for region in regions(workflow, event.state)]
    for region, keys in touched:
        all_keys = dict.fromkeys((*active[region].touched, *keys))
        active = {**active, region: replace(active[region], touched=tuple(all_keys))}
    if not left and not entered:
        return active
    stays = {state: new_stay(workflow, state, version, now) for state in entered}
    active = {**{s: stay for s, stay in active.items() if s not in left}, **stays}
    return active if len(active) == 1 else dict(sorted(active.items(), key=lambda one: workflow.chart.order[one[0]]))


def _told(workflow: Workflow, active: dict[str, Active], event: Event, draft: Draft) -> dict[str, Active]:
    """The active states, those that wait for children with the keys that others have changed meanwhile."""
    changed = (*draft.changes, *draft.removed)
    others = [s for s, stay in active.items() if stay.children is not None and s != event.state] if changed else []
    told = {s: replace(active[s], touched=tuple(dict.fromkeys([*active[s].touched, *changed]))) for s in others}
    return {**active, **told} if told else active


def remembered(run: Run, states: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Where the remembered calls of active states stand."""
    return tuple((run.active[state].was or state, run.active[state].visit) for state in states)


def ended(workflow: Workflow, run: Run, now: float, ends: Status) -> Run:
    """The run at its end; where it has not ended well, what can be undone comes first."""
    if ends != "done" and run.undo.left:
        if workflow.on_failure == "park" and ends == "failed" and run.error is not None:
            return replace(run, status="parked", due=None, owner=None)
        return replace(run, status="compensating", undo=replace(run.undo, ends=ends), due=now)
    if run.actions:
        return replace(run, status=ends, due=now)
    return replace(run, status=ends, due=None, owner=None)


def fail(
    workflow: Workflow,
    run: Run,
    event: Event,
    now: float,
    found: Failure,
    error: BaseException | None,
    asked: Iterable[Seen] = (),
) -> Move:
    """The run fails and keeps its place: state, data, visit and remembered calls."""
    after = ended(workflow, replace(run, version=run.version + 1, error=found, updated=now), now, "failed")
    if after.status == "failed":
        after = replace(after, due=None, owner=None)
    return Move(before=run, event=event, after=after, at=now, asked=tuple(asked), error=error)


def rejected(run: Run, event: Event, now: float, asked: list[Seen]) -> Move:
    """The event is spent, the run stays, and history has every condition with what it saw."""
    after = replace(run, version=run.version + 1, updated=now)
    return Move(before=run, event=event, after=after, at=now, asked=tuple(asked), answer="rejected")
