"""A Workflow as plain values that read back as the same Workflow: its code by names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from fsmworkflow.codec import LIMIT
from fsmworkflow.conditions import Condition, Function, Guard, Joined, Not, Operand, as_guard
from fsmworkflow.config.code import Names
from fsmworkflow.errors import CodecError, DefinitionError, cut
from fsmworkflow.expressions import Expression
from fsmworkflow.plain import encode
from fsmworkflow.problems import place_of
from fsmworkflow.retry import Retry
from fsmworkflow.states import UNDO, Children, inside_of, resolve
from fsmworkflow.workflow import State, Transition, Workflow

__all__ = ["written"]


def written(workflow: Workflow) -> tuple[dict[str, Any], dict[str, Any]]:
    """The definition of a workflow and of those of its children, and the code that it names.

    Raises DefinitionError where the workflow is not well formed, or compares with a value that has no plain form.
    """
    workflow.check()
    given = [one.code for one in workflow.family]
    names = Names({name: code for codes in reversed(given) for name, code in codes.items()})
    others = {name: other for name, other in workflow.below.items() if other is not workflow}
    if workflow.name in others:
        raise DefinitionError(workflow.name, ["a workflow of its children has the same name"])
    config = _Writer(workflow, names).config()
    if others:
        config["workflows"] = [_Writer(other, names).config() for other in others.values()]
    return config, names.code


def _shown(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _but(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without the entries that say nothing."""
    return {key: value for key, value in table.items() if value is not None and value is not False}


class _Writer:
    def __init__(self, workflow: Workflow, names: Names) -> None:
        self.workflow, self.names = workflow, names
        self.inside = inside_of(workflow)

    def config(self) -> dict[str, Any]:
        made = self.workflow
        keep = {key: _shown(span) for key, span in made.keep.items()}
        told = {
            "name": made.name, "version": None if made.version == 1 else made.version,
            "data": self._code(made.codec.kind, "data"), "payload": made.payload, "deadline": _shown(made.deadline),
            "merge": {key: self._code(fn, f"merge.{key}") for key, fn in made.merge.items()} or None,
            "on_failure": made.on_failure, "keep": keep or None, "concurrency": made.concurrency,
            "limit": None if made.codec.limit == LIMIT else made.codec.limit, "lenient": made.lenient,
            "endless": made.endless, "initial": made.initial,
            "states": [self._state(state) for state in self.inside[""]],
            "transitions": [self._transition(t) for t in made.transitions] or None,
            "migrations": [
                _but({"version": m.version, "to": m.to, "states": dict(m.states) or None,
                      "data": self._code(m.data, f"migration.{m.version}")})
                for m in made.migrations
            ] or None,
        }  # fmt: skip
        return _but(told)

    def _code(self, code: Any, place: str) -> str | None:
        return None if code is None else self.names.name(code, place)

    # -- states -------------------------------------------------------------------------------------------------------

    def _state(self, state: State) -> dict[str, Any]:
        name, kind, step = state.name.rpartition(".")[2], state.kind, state.step
        inner = self.inside.get(state.name, [])
        told: dict[str, Any] = {"name": name}
        if step is not None:
            retry = None if step.retry is None else self._retry(step.retry, f"{state.name}.retry")
            told |= {"step": self._code(step.execute, f"{state.name}.step"), "retry": retry}
            told |= {"timeout": _shown(step.timeout), "ends": state.ends}
            told["undo"] = None if state.undo == UNDO else self._retry(state.undo, f"{state.name}.undo")
        if kind in ("choice", "final"):
            told |= {kind: True, "outcome": None if state.outcome == "done" else state.outcome}
        if state.children is not None:
            told[kind] = self._children(state.children, state.name)
        for what in ("compensate", "enter", "exit"):
            told[what] = self._code(getattr(state, what), f"{state.name}.{what}")
        if kind in ("state", "region"):
            told["initial"] = next(s.name.rpartition(".")[2] for s in inner if s.initial)
        if kind in ("state", "region", "parallel"):
            told["parallel" if kind == "parallel" else "children"] = [self._state(one) for one in inner]
        return _but(told)

    def _children(self, children: Children, state: str) -> dict[str, Any]:
        over: Any = children.over
        told: dict[str, Any] = {
            "workflow": children.workflow.name,
            "data": self._code(children.data, f"{state}.data"), "into": children.into,
        }  # fmt: skip
        if over is None:
            return _but(told)
        path = over.path if isinstance(over, Operand) else over
        told["over"] = path if isinstance(path, str) else {"function": self._code(over, f"{state}.over")}
        return _but({**told, "concurrency": children.concurrency, "on_failure": children.on_failure})

    def _retry(self, retry: Retry, place: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, default in zip(Retry.__struct_fields__, Retry.__struct_defaults__, strict=True):
            value: Any = getattr(retry, name)
            if name in ("on", "never_on"):
                several = isinstance(value, (tuple, list))
                value = tuple(value) if several else (value,)
                told: Any = [self.names.error(kind, f"{place}.{name}") for kind in value]
            else:
                told = _shown(value)
            if value != default:
                found[name] = told
        return found

    # -- transitions --------------------------------------------------------------------------------------------------

    def _transition(self, t: Transition) -> dict[str, Any]:
        source = t.source if isinstance(t.source, str) else list(t.source)
        by = t.trigger or (None if t.error is None else getattr(t.error, "__name__", "")) or t.delay or "then"
        place = f"{source if isinstance(source, str) else source[0]}.{by}"
        told = {
            "trigger": t.trigger, "delay": _shown(t.delay),
            "error": None if t.error is None else self.names.error(t.error, f"{place}.error"),
            "source": source, "dest": None if t.dest is None else self._dest(t),
            "conditions": self._conditions(t, place), "update": self._code(t.update, f"{place}.update"),
            "after": t.after if isinstance(t.after, str) else self._code(t.after, f"{place}.after"),
            "internal": t.internal,
        }  # fmt: skip
        if isinstance(t.after, str) and t.after in self.workflow.actions:
            told["after"] = self.names.name(self.workflow.actions[t.after], f"{place}.after")
        found = _but(told) | ({"dest": None} if t.dest is None else {})
        return found if t.automatic is None else {**found, "automatic": t.automatic}

    def _dest(self, t: Transition) -> str:
        """The target as it is written beside its source: in full, unless that would be taken for another."""
        dest, source = str(t.dest), t.source if isinstance(t.source, str) else t.source[0]
        parts = dest.split(".")
        spelled = (".".join(parts[number:]) for number in range(len(parts)))
        return next(one for one in spelled if resolve(self.workflow.states, source, one) == dest)

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _conditions(self, t: Transition, place: str) -> Any:
        if t.conditions in (None, [], ()):
            return None
        guard = as_guard(t.conditions)
        parts = guard.parts if isinstance(guard, Joined) and guard.word == "and" and guard.parts else (guard,)
        told = [self._guard(part, t, f"{place}.conditions") for part in parts]
        return told[0] if len(told) == 1 else told

    def _guard(self, guard: Guard, t: Transition, place: str) -> Any:
        if isinstance(guard, Joined):
            word = "all" if guard.word == "and" else "any"
            return {word: [self._guard(part, t, place) for part in guard.parts]}
        if isinstance(guard, Not):
            return {"not": self._guard(guard.parts[0], t, place)}
        if isinstance(guard, Expression):
            return str(guard)
        if isinstance(guard, Function) and guard.of is None:
            return self._code(guard.function, place)
        if isinstance(guard, Function):
            return {**self._operand(guard.of, ""), "custom": self._code(guard.function, place)}
        if isinstance(guard, Condition):
            return self._compared(guard, t, place)
        raise self._unwritten(t, f"a {type(guard).__name__} of your own has no text: use a function")

    def _compared(self, guard: Condition, t: Transition, place: str) -> dict[str, Any]:
        left = self._operand(guard.field, "")
        if guard.custom_function is not None:
            return {**left, "custom": self._code(guard.custom_function, place)}
        told = {**left, "operator": guard.operator}
        if isinstance(guard.value, Operand):
            return {**told, **self._operand(guard.value, "value_")}
        return told if guard.value is None else {**told, "value": self._value(guard, t)}

    def _operand(self, operand: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(operand, Operand):
            return {f"{prefix}field": operand}
        return {f"{prefix}{'field' if operand.of == 'data' else 'payload'}": operand.path}

    def _value(self, guard: Condition, t: Transition) -> Any:
        """A constant as plain values. A pattern is its text; what `in` looks through is a list."""
        value: Any = guard.value
        if isinstance(value, re.Pattern):
            if value.flags != re.compile("").flags:
                raise self._unwritten(t, f"the flags of {cut(value)} have no place: write them into the pattern")
            value = value.pattern
        if guard.operator in ("in", "not_in") and not isinstance(value, list):
            value = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else list(value)
        try:
            return msgspec.json.decode(encode(value, "value"))
        except CodecError as error:
            raise self._unwritten(t, f"condition `{guard}`: {error}") from error

    def _unwritten(self, t: Transition, what: str) -> DefinitionError:
        return DefinitionError(self.workflow.name, [f"{place_of(t)}: {what}"])
