"""How the fields of typed data come to a condition: who may have written them on the ways that lead there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from fsmworkflow.conditions import Operand, as_guard
from fsmworkflow.sources import touched
from fsmworkflow.statechart import Chart
from fsmworkflow.states import sources_of
from fsmworkflow.workflow import State, Transition, Workflow

__all__ = ["asked", "typed_fields", "unwritten"]


def typed_fields(kind: Any) -> dict[str, bool]:
    """The fields of a data type, each with whether it is None as long as nobody writes it. Empty where any may be."""
    if hasattr(kind, "__required_keys__"):
        return dict.fromkeys(kind.__required_keys__, False) | dict.fromkeys(kind.__optional_keys__, True)
    if hasattr(kind, "__struct_fields__"):
        return {one.name: one.default is None for one in msgspec.structs.fields(kind)}
    if hasattr(kind, "model_fields"):
        loose = kind.model_config.get("extra") == "allow"
        return {} if loose else {name: one.default is None for name, one in kind.model_fields.items()}
    return {name: one.default is None for name, one in getattr(kind, "__dataclass_fields__", {}).items()}


def asked(workflow: Workflow) -> Iterator[tuple[str, str]]:
    """The states that ask for a field of the data, by a condition or by `over=`, with its path."""
    found: dict[tuple[str, str], None] = {}
    for name, children in workflow.families.items():
        over = children.over.path if isinstance(children.over, Operand) else children.over
        found.update({(name, over): None} if isinstance(over, str) else {})
    for t in workflow.transitions:
        guard = None if t.conditions in (None, [], ()) else as_guard(t.conditions)
        for path in () if guard is None else sorted(guard.fields()):
            found.update(dict.fromkeys((source, path) for source in sources_of(workflow, t)))
    yield from found


def unwritten(workflow: Workflow) -> Iterator[tuple[str, str]]:
    """The states that ask for a field which is None unless it is written, where no way there may have written it.

    It may still have been given at the start.
    """
    empty = {name for name, none in typed_fields(workflow.codec.kind).items() if none}
    if not empty or workflow.payload == "merge":
        return
    known = _written(workflow, empty)
    for state, path in asked(workflow):
        name = path.partition(".")[0]
        if name in empty and name not in known[state]:
            yield state, name


def _written(workflow: Workflow, fields: set[str]) -> dict[str, set[str]]:
    """Of each state the fields that may have been written once its step has ended, on any way that leads there.

    What one state around others has seen all of them have, as regions share the data.
    """
    chart, states = workflow.chart, workflow.states
    seen = {name: _by_state(state, fields) for name, state in states.items()}
    ways: dict[str, list[tuple[str, set[str]]]] = {name: [] for name in states}
    for name in states:
        around = name.rpartition(".")[0]
        if around:
            ways[name].append((around, set()))
            ways[around].append((name, set()))
    for t in workflow.transitions:
        changed = _by_transition(t, fields)
        for source in sources_of(workflow, t):
            ways[source] += [(one, changed) for one in _entered(chart, source, t)]
    todo = deque(states)
    while todo:
        name = todo.popleft()
        for dest, changed in ways[name]:
            if not (seen[name] | changed) <= seen[dest]:
                seen[dest] |= seen[name] | changed
                todo.append(dest)
    return seen


def _entered(chart: Chart, source: str, t: Transition) -> Iterable[str]:
    return () if t.dest is None else (source,) if t.internal else chart.entered((t.dest,))


def _by_state(state: State, fields: set[str]) -> set[str]:
    """What a state's step writes, and what its children leave."""
    found: set[str] = set()
    if state.children is not None and state.children.into is not None:
        found.add(state.children.into)
    if state.step is not None:
        names = touched(state.step.execute, context=True)
        found |= fields if names is None else names
    return found & fields


def _by_transition(t: Transition, fields: set[str]) -> set[str]:
    found = {"error"} if t.error is not None else set()
    if t.update is not None:
        names = touched(t.update, context=False)
        found |= fields if names is None else names
    return found & fields
