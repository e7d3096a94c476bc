"""Reading a run's history: why it is where it is, and what it was at an earlier version."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fsmworkflow.codec import Fields, encode
from fsmworkflow.decide import begin
from fsmworkflow.inbox import takes
from fsmworkflow.records import MOVING, STUCK, Active, Entry, Event, Run, replace
from fsmworkflow.versions import known, outlook, seen, shifted
from fsmworkflow.workflow import Workflow

__all__ = ["explained", "forked"]

TOLD = 5
"""So many of the events that wait are named."""
CAUSES = {
    "$begin": "the making of its children", "$done": "the end of its step", "$joined": "the end of its children",
    "$error": "an error", "$timeout": "a timer", "$parked": "the death of its processes", "$cancel": "cancel",
    "$pause": "pause", "$unpause": "unpause", "$retry": "retry", "$rerun": "rerun",
}  # fmt: skip
UNITS = ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s"))


def explained(
    workflow: Workflow, run: Run, history: Sequence[Entry], inbox: Sequence[Event],
    children: Mapping[str, Sequence[Run]], *, now: float,
) -> str:  # fmt: skip
    """In words: how the run came to where it is, what its last decision saw, and what it waits for.

    `inbox` is what waits to be taken, `children` are those of its active states.
    """
    last = history[-1]
    lines = [f"{run.workflow}/{run.key} is {run.status} in state {run.state}, at version {run.version}."]
    lines.append(f"Last, {_what(last, history)}, at {_clock(last.at)}.")
    for one in last.asked:
        asked = f"{one.condition} -> {'no answer' if one.answer is None else one.answer}{one.saw}"
        lines.append(f"  asked: {one.error if one.error and run.error is None else asked}")
    if (error := run.error or last.error) is not None:
        lines.append(f"Its last error, in state {error.state}, attempt {error.attempt}: {error.type}: {error.message}")
    if run.definition != workflow.version and not run.over:
        there = outlook(workflow, run)
        becomes = f"goes on in {there.becomes}" if there.becomes else f"is stuck: {there.reasons[0]}"
        lines.append(f"It is of version {run.definition} of the workflow; in version {workflow.version} it {becomes}.")
    lines += _waits(workflow, seen(workflow, run), now)
    lines += [_children(state, found) for state, found in children.items()]
    if inbox:
        lines.append(f"In its inbox: {_waiting(inbox, workflow, run, now)}.")
    if run.undo.lost:
        why = {(e.error.state, e.error.visit): f": {e.error.type}: {e.error.message}" for e in history if e.error}
        lost = (f"{u.state} (visit {u.visit}){why.get((u.state, u.visit), '')}" for u in run.undo.lost)
        lines.append(f"Could not be undone: {', '.join(lost)}.")
    return "\n".join(lines)


def _what(last: Entry, history: Sequence[Entry]) -> str:
    """What the last move was."""
    if len(history) == 1:
        return f"it was started in {last.dest}"
    if history[-2].status == "compensating":
        return (last.detail or "a step was undone").rpartition("; ")[2]
    what = CAUSES.get(last.event, f"the event {last.event}")
    if last.event not in CAUSES and any(one.error for one in last.asked):
        return f"{what} was rejected in {last.dest}"
    if last.source != last.dest:
        return f"{what} led from {last.source} to {last.dest}"
    return f"{what} left it in {last.dest}"


def _waiting(inbox: Sequence[Event], workflow: Workflow, run: Run, now: float) -> str:
    told = []
    for event in inbox[:TOLD]:
        left = (event.due or now) - now
        why = f" (due {_left(left)})" if left > 0 else "" if takes(workflow, run, event) else " (not now)"
        told.append(event.name + ("" if event.visit is None else f" for visit {event.visit}") + why)
    return ", ".join(told) + (f" and {len(inbox) - TOLD:,} more" if len(inbox) > TOLD else "")


def _waits(workflow: Workflow, run: Run, now: float) -> list[str]:
    if run.over or run.status in STUCK:
        on = "retry lets" if run.status == "parked" else "run or retry lets"
        return ["It has ended." if run.over else f"It keeps its place: {on} it go on."]
    lines = ["It is paused: unpause lets it go on."] if run.status == "paused" else []
    if accepts := workflow.accepts(run):
        lines.append(f"It accepts: {', '.join(accepts)}.")
    lines += [] if run.deadline is None else [f"Its deadline is {_clock(run.deadline)}, {_left(run.deadline - now)}."]
    for state, stay in run.active.items():
        lines += [f"A timer of {state} is due {_clock(due)}, {_left(due - now)}." for due in stay.timers.values()]
        if stay.again is not None:
            lines.append(f"Attempt {stay.attempt} of {state} is due {_clock(stay.again)}, {_left(stay.again - now)}.")
    if run.status in MOVING:
        lines.append("No engine drives it: resume does." if run.owner is None else "An engine drives it now.")
    return lines


def _children(state: str, children: Sequence[Run]) -> str:
    left = [run for run in children if run.child is not None and run.child.turn < 2]
    lined = sum(run.child is not None and run.child.turn == 0 for run in left)
    going = Counter(run.status for run in left if run.child is not None and run.child.turn == 1)
    parts = [f"{many:,} {status}" for status, many in going.items()] + ([f"{lined:,} in line"] if lined else [])
    what = f": {', '.join(parts)}" if parts else ""
    if len(children) == 1:
        return f"Its child in {state} has {'not ' if left else ''}ended{what}."
    return f"Of its {len(children):,} children in {state}, {len(left):,} go on{what}."


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _left(seconds: float) -> str:
    size, unit = next(((size, unit) for size, unit in UNITS if abs(seconds) >= 1.99 * size), (1, "s"))
    return f"in {seconds / size:,.0f} {unit}" if seconds >= 0 else f"{-seconds / size:,.0f} {unit} ago"


def forked(
    workflow: Workflow, run: Run, history: Sequence[Entry], key: str, at: int | None, data: Any, *, now: float
) -> Run:
    """A new run with the state and data that `run` had at version `at` (now, where None), folded from its history.

    Raises ValueError for a version that is not there or at which it had ended, DefinitionChanged where the workflow no
    longer has that state, and CodecError for data that does not fit.
    """
    at = run.version if at is None else at
    if not 0 <= at <= run.version:
        raise ValueError(f"run {run.workflow}/{run.key} has versions 0 to {run.version}, not {at}")
    if len(history) <= run.version:
        raise ValueError(
            f"run {run.workflow}/{run.key} has forgotten its old moves, from which its data would be folded"
        )
    if history[at].dest in workflow.finals:
        raise ValueError(f"run {run.workflow}/{run.key} had ended at version {at}, in {history[at].dest!r}")
    then = _as_it_was(run, history, at)
    if then.definition == workflow.version:
        known(workflow, then, then.active)
    elif (shift := shifted(workflow, then)) is not None:
        then = shift.run
    fields = {**then.fields, **_encoded(data or {})}
    workflow.codec.decode(fields)
    return begin(workflow, key, fields, now=now, states=workflow.chart.entered(then.state.split(", ")))


def _as_it_was(run: Run, history: Sequence[Entry], at: int) -> Run:
    """A run at a version: its leaf states, its data, and the definition that it then had."""
    values: dict[str, Any] = {}
    for entry in history[: at + 1]:
        for name in entry.removed:
            values.pop(name, None)
        values.update(entry.changes)
    changed = (re.match(r"(\d+) -> \d+", entry.detail or "") for entry in history[at + 1 :])
    definition = next((int(one[1]) for one in changed if one), run.definition)
    active = {state: Active(at) for state in history[at].dest.split(", ")}
    return replace(run, status="running", definition=definition, active=active, fields=_encoded(values), hashes={})


def _encoded(values: Mapping[str, Any]) -> Fields:
    return {name: msgspec.Raw(encode(value, f"data.{name}")) for name, value in values.items()}
