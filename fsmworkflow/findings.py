"""What is wrong with a workflow, or may be: what `check()` refuses as errors, and beside it warnings and notes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from fsmworkflow.errors import DefinitionError, nearest
from fsmworkflow.flow import asked, typed_fields, unwritten
from fsmworkflow.problems import Paths
from fsmworkflow.shadows import implies
from fsmworkflow.sources import emitted, returned
from fsmworkflow.statechart import Arc, triggers
from fsmworkflow.states import sources_of
from fsmworkflow.workflow import State, Workflow

__all__ = ["Finding", "Level", "findings", "refused"]

Level = Literal["error", "warning", "note"]
REFUSED = {"cannot be reached": "unreachable", "leads to no end": "no-end"}
"""Errors of `check()` that have a code of their own; all others are "definition"."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was found: how bad it is, its code, the state where it is, what it is, and what to do.

    An error keeps the workflow, or a run of it, from going on; a warning is probably a mistake; a note may be meant so.
    `state` is empty where it is of the whole workflow.
    """

    level: Level
    code: str
    workflow: str
    state: str
    message: str
    todo: str = ""


def findings(workflow: Workflow) -> list[Finding]:
    """All findings about a workflow, by state in the order of the document. Never raises for one that is malformed.

    Of functions what their source says is read, where it can be; none is called. What is not certain is not told.
    """
    try:
        workflow.check()
    except DefinitionError as error:
        return refused(error)
    found = [finding for rule in RULES for finding in rule(workflow)]
    order = {name: number for number, name in enumerate(workflow.states)}
    return sorted(found, key=lambda one: order.get(one.state, -1))


def refused(error: DefinitionError) -> list[Finding]:
    """What was refused, as findings: that of a check, or of a file that was read."""
    return [_error(error.workflow, problem) for problem in error.problems]


def _error(workflow: str, problem: str) -> Finding:
    code = next((code for said, code in REFUSED.items() if said in problem), "definition")
    place = re.search(r"\bstate '([^']*)'", problem)
    return Finding("error", code, workflow, "" if place is None else place[1], problem)


# -- what is never taken ----------------------------------------------------------------------------------------------


def _shadowed(workflow: Workflow) -> Iterator[Finding]:
    """A transition whose condition holds only where that of one before it does."""
    told = set()
    for state, trigger in _asked(workflow):
        arcs = workflow.chart.named(state, trigger)
        for number, arc in enumerate(arcs):
            first = next((one for one in arcs[:number] if _covers(one, arc)), None)
            if first is not None and (pair := (state, _way(first), _way(arc))) not in told:
                told.add(pair)
                what = f"{_way(arc)} is never taken: {_way(first)} stands before it, and holds whenever it does"
                todo = "put it first, or take one of them away"
                yield Finding("warning", "shadowed", workflow.name, state, what, todo)


def _asked(workflow: Workflow) -> Iterable[tuple[str, str]]:
    """The states and triggers that have transitions; those of "*" are looked at in one state."""
    found: dict[tuple[str, str], None] = {}
    for t in workflow.transitions:
        sources = sources_of(workflow, t)
        found.update(((s, name), None) for s in (sources[:1] if t.source == "*" else sources) for name in triggers(t))
    return found


def _way(arc: Arc) -> str:
    by = getattr(arc.error, "__name__", None) if arc.trigger is None else arc.trigger
    when = f"[{arc.guard}]" if arc.guard is not None else "without a condition" if by is None else ""
    return " ".join(part for part in (by, when, f"to {arc.dest or 'the end'}") if part)


def _covers(first: Arc, later: Arc) -> bool:
    """Whether an earlier transition is taken whenever a later one could be."""
    if first.error is not None and not issubclass(later.error, first.error):
        return False
    return first.guard is None or (later.guard is not None and implies(later.guard, first.guard))


# -- what never ends --------------------------------------------------------------------------------------------------


def _endless_waits(workflow: Workflow) -> Iterator[Finding]:
    """A state that waits, with no time that leads out of it. Who only answers events is meant to."""
    works = any(state.kind in ("step", "child", "each") for state in workflow.states.values())
    for state in workflow.states.values():
        if state.kind == "wait" and not _timed(workflow, state):
            todo = "give it, or a state around it, after={...}, or the workflow a deadline"
            what = "it waits for an event without a time-out"
            yield Finding("warning" if works else "note", "no-timeout", workflow.name, state.name, what, todo)


def _without_end(workflow: Workflow) -> Iterator[Finding]:
    """A state from which no end can be reached. Where nothing ends, the whole is a thing that only answers events."""
    names = Paths(workflow).endless()
    level: Level = "warning" if workflow.finals else "note"
    for name in names if workflow.finals else names[:1]:
        what, todo = "from here no end can be reached", "lead it to a final state, where it is to end"
        yield Finding(level, "no-end", workflow.name, name if workflow.finals else "", what, todo)


def _timed(workflow: Workflow, state: State) -> bool:
    """Whether a time ends the stay in a state."""
    chart = workflow.chart
    ways = (arc for one in chart.outward(state.name) for name, _ in chart.delays.get(one, ())
            for arc in chart.named(one, name))  # fmt: skip
    return workflow.deadline is not None or any(not arc.internal for arc in ways)


def _endless_retries(workflow: Workflow) -> Iterator[Finding]:
    for state in workflow.states.values():
        retry = None if state.step is None else state.step.retry
        if retry is not None and retry.attempts is None and not _timed(workflow, state):
            todo = "say Retry(attempts=...), give it after={...}, or the workflow a deadline"
            yield Finding("warning", "no-bound", workflow.name, state.name, "its step is retried for ever", todo)
        if state.compensate is not None and state.undo.attempts is None:
            what, todo = "its undoing is retried for ever, and nothing else ends it", "say undo=Retry(attempts=...)"
            yield Finding("warning", "no-bound", workflow.name, state.name, what, todo)


# -- what nobody takes ------------------------------------------------------------------------------------------------


def _unhandled(workflow: Workflow) -> Iterator[Finding]:
    """Events that are named, returned or emitted where nothing can take them."""
    for t in workflow.transitions:
        for source in () if t.trigger is None or t.automatic or t.source == "*" else sources_of(workflow, t):
            if workflow.states[source].kind == "choice":
                what = f"it is left at once, so it never takes the event {t.trigger!r}"
                yield Finding("warning", "unhandled", workflow.name, source, what, "let a state that waits take it")
    for state in workflow.states.values():
        if state.step is not None:
            yield from _returns(workflow, state, state.step.execute)
            yield from _emits(workflow, state, state.step.execute)


def _returns(workflow: Workflow, state: State, function: Any) -> Iterator[Finding]:
    chart = workflow.chart
    taken = [name for name in chart.triggers if any(chart.named(one, name) for one in chart.outward(state.name))]
    for trigger in returned(function):
        if trigger not in taken:
            what = f"its step may return {trigger!r}, and no transition of it takes that: the run would fail"
            todo = f"it takes {', '.join(taken) or 'none'}{nearest(trigger, taken)}"
            yield Finding("warning", "unhandled", workflow.name, state.name, what, todo)


def _emits(workflow: Workflow, state: State, function: Any) -> Iterator[Finding]:
    for receiver, event in emitted(function):
        if isinstance(receiver, Workflow) and event not in (known := [t.trigger for t in receiver.transitions]):
            what = f"its step emits {event!r} to {receiver.name!r}, which has no such event: the step would fail"
            todo = f"name one of its events{nearest(event, [one for one in known if one])}"
            yield Finding("warning", "unhandled", workflow.name, state.name, what, todo)


# -- what nobody has written ------------------------------------------------------------------------------------------


def _unknown_fields(workflow: Workflow) -> Iterator[Finding]:
    fields = typed_fields(workflow.codec.kind)
    for state, path in asked(workflow) if fields else ():
        name = path.partition(".")[0]
        if not {path, name} & fields.keys() and not hasattr(workflow.codec.kind, name):
            what = f"it asks for {path!r}, and the data has no such field: it reads as None"
            todo = f"the data has {', '.join(list(fields)[:20])}{nearest(name, fields)}"
            yield Finding("error", "unknown-field", workflow.name, state, what, todo)


def _unwritten(workflow: Workflow) -> Iterator[Finding]:
    for state, name in unwritten(workflow):
        what = f"it asks for {name!r}, which nothing has written on any way there: it may be None"
        todo = "write it before, give it a default that is not None, or require it at the start"
        yield Finding("warning", "unwritten", workflow.name, state, what, todo)


RULES = (_shadowed, _without_end, _endless_waits, _endless_retries, _unhandled, _unknown_fields, _unwritten)
