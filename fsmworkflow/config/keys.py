"""The keys of the format, in one table: the reader checks by it, and the JSON Schema is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, get_args

import msgspec

from fsmworkflow.conditions import cut
from fsmworkflow.config.text import Place, Source
from fsmworkflow.operators import OPERATORS
from fsmworkflow.records import ENDED
from fsmworkflow.workflow import OnFailure, Outcome, nearest

__all__ = ["TABLES", "Key", "checked", "schema"]

TOLD = 100
"""How many problems are told of one file."""

Kind = Any
"""What a value may be: the name of a simple kind or of a table, a `frozenset` of texts, a tuple of kinds of which any
will do, a list of the kind of its items, or `{"": kind}` for a mapping of names of the user's own."""


class Key(msgspec.Struct, frozen=True):
    """One key of a table: what its value may be, and what it says."""

    kind: Kind
    doc: str
    required: bool = False


_SPAN = ("number", "text")
_CODE = "code"
_GUARD = ("text", "condition", ["guard"])
_TARGET = ("text", "null", "target", [("text", "null", "target")])
_LEADS = {
    "then": Key(_TARGET, "Where it leads by itself: when its step or what it holds has ended, or as soon as it holds."),
    "on": Key({"": _TARGET}, "Where an event leads, by its name."),
    "after": Key({"": _TARGET}, 'Where it leads after a time, as "30m" or "3d", that it has been active.'),
    "on_error": Key({"": _TARGET}, "Where an error leads, by the name of its class, once nothing is tried again."),
}
_WAY = {
    "dest": Key(("text", "null"), "The state that is entered; null ends the run where it is."),
    "conditions": Key(_GUARD, "What must hold: an expression, the name of a function, or a list of which all must."),
    "unless": Key(_GUARD, "What must not hold: of a list, none."),
    "update": Key(_CODE, "A function (data, event) that changes the data in the same commit."),
    "internal": Key("boolean", "Whether it stays in the state and its visit."),
    "after": Key(_CODE, "An action, run after the commit, at least once."),
}
_CHILD = {
    "workflow": Key("text", "The name of the other workflow: this one, one of `workflows`, or a given one.", True),
    "data": Key(_CODE, "A function that gives the child its input."),
    "into": Key("text", "The field to which the child's final data is written."),
}

TABLES: dict[str, dict[str, Key]] = {
    "workflow": {
        "name": Key("text", "Its name, which stands on every run.", True),
        "version": Key("whole", "Its version, from 1."),
        "data": Key(_CODE, "The type of its data; without one it is a plain mapping."),
        "initial": Key("text", "The state in which every run begins.", True),
        "states": Key([("text", "state")], "Its states. A text is one that waits for an event.", True),
        "transitions": Key(["transition"], "Transitions beside those that the states name themselves."),
        "merge": Key({"": _CODE}, "How two changes of one field become one: functions (old, new) by fields."),
        "payload": Key(frozenset({"merge"}), "Whether the payload of every event that is taken goes into the data."),
        "deadline": Key(_SPAN, "After what time a run that has not ended fails."),
        "on_failure": Key(frozenset({"park"}), "Whether a failed run is parked before its undoing begins."),
        "keep": Key((*_SPAN, {"": _SPAN}), f"How long runs are kept after their end: {', '.join(sorted(ENDED))}."),
        "concurrency": Key("whole", "How many of its runs are driven at once."),
        "limit": Key("whole", "The largest JSON text of its data, in bytes."),
        "migrations": Key(["migration"], "How runs of an older version become runs of a newer one."),
        "lenient": Key("boolean", "Whether a condition without an answer is false, as in a WorkflowDefinition."),
        "workflows": Key(["workflow"], "Other workflows, whose runs are its children."),
    },
    "state": {
        "name": Key("text", "Its name, without a dot.", True),
        "step": Key(_CODE, "What it does: a function of the context."),
        "retry": Key("retry", "How the step is tried again."),
        "timeout": Key(_SPAN, "How long one attempt may take."),
        "compensate": Key(_CODE, "A function that undoes the step when the run fails for good."),
        "undo": Key("retry", "How the undoing is tried again."),
        "ends": Key("boolean", "Whether the run ends here when the step returns no trigger."),
        "child": Key("child", "The run of another workflow that it starts, and whose end it waits for."),
        "each": Key("each", "The runs of another workflow, one for each item of a list."),
        "choice": Key("boolean", "Whether it only chooses where to go on."),
        "final": Key(("boolean", frozenset(get_args(Outcome))), "Whether it is an end, and how the run ends there."),
        "initial": Key("text", "The child that is entered at first."),
        "children": Key([("text", "state")], "The states that it holds."),
        "parallel": Key(["region"], "Its regions, all active together."),
        "enter": Key(_CODE, "An action, run after the commit that entered it."),
        "exit": Key(_CODE, "An action, run after the commit that left it."),
        **_LEADS,
    },
    "region": {
        "name": Key("text", "Its name, without a dot.", True),
        "initial": Key("text", "The child that is entered at first.", True),
        "children": Key([("text", "state")], "The states that it holds.", True),
    },
    "transition": {
        "trigger": Key("text", "The event that takes it, or the text that a step returns; else it is automatic."),
        "source": Key(("text", ["text"]), 'The state that it leads out of, several, or "*" for every one.', True),
        **_WAY,
        "automatic": Key("boolean", "Whether it is taken by itself, too, or, without a trigger, is not."),
        "delay": Key(_SPAN, "Takes it when the source has been active for that long."),
        "error": Key(_CODE, "Takes it when the step has failed for good with an error of that class."),
    },
    "target": _WAY,
    "condition": {
        "function": Key(_CODE, "A function of the context."),
        "field": Key("text", "The field of the data that is looked at."),
        "payload": Key("text", "The part of the payload that is looked at; an empty text is the whole."),
        "operator": Key(frozenset(OPERATORS), "How it is compared; else `eq`."),
        "value": Key("anything", "What it is compared with."),
        "value_field": Key("text", "The field that it is compared with."),
        "value_payload": Key("text", "The part of the payload that it is compared with."),
        "custom": Key(_CODE, "A function that is given the value, in place of an operator."),
        "all": Key(["guard"], "Conditions that must all hold."),
        "any": Key(["guard"], "Conditions of which one must hold."),
        "not": Key("guard", "A condition that must not hold."),
    },
    "retry": {
        "attempts": Key(("whole", "null"), "How often in all; null is without bound."),
        "first_delay": Key(_SPAN, "The longest pause after the first attempt."),
        "factor": Key("number", "By what it grows with each further one."),
        "max_delay": Key(_SPAN, "What it never exceeds."),
        "jitter": Key("boolean", "Whether each pause is drawn evenly between nothing and that."),
        "on": Key((_CODE, [_CODE]), "On which errors, by the names of their classes."),
        "never_on": Key((_CODE, [_CODE]), "On which not."),
    },
    "child": _CHILD,
    "each": {
        **_CHILD,
        "over": Key(("text", "call"), "The field that holds the list, or the function that gives it.", True),
        "concurrency": Key("whole", "How many at once."),
        "on_failure": Key(frozenset(get_args(OnFailure)), "Whether the first failure leads on, or all are collected."),
    },
    "call": {"function": Key(_CODE, "A function of the data.", True)},
    "migration": {
        "version": Key("whole", "From which version.", True),
        "to": Key("whole", "To which version.", True),
        "states": Key({"": "text"}, "The new names of states, by the old ones."),
        "data": Key(_CODE, "A function that changes the data, as a plain mapping."),
    },
}
_ALIASES: dict[str, Kind] = {"guard": ("text", "condition")}
_SIMPLE: dict[str, tuple[str, Any, dict[str, Any]]] = {  # in messages, as a test, and in JSON Schema
    "text": ("text", lambda v: isinstance(v, str), {"type": "string"}),
    _CODE: ("the name of a function or class", lambda v: isinstance(v, str), {"type": "string", "minLength": 1}),
    "boolean": ("true or false", lambda v: isinstance(v, bool), {"type": "boolean"}),
    "whole": ("a whole number", lambda v: type(v) is int, {"type": "integer"}),
    "number": ("a number", lambda v: type(v) in (int, float), {"type": "number"}),
    "null": ("null", lambda v: v is None, {"type": "null"}),
    "anything": ("anything", lambda v: True, {}),
}


# -- checking ---------------------------------------------------------------------------------------------------------


def checked(source: Source, kind: str = "workflow", tables: Mapping[str, Mapping[str, Key]] = TABLES) -> list[str]:
    """What is wrong with the keys and kinds of a source, each with its place; a reader of its own gives its tables."""
    return list(islice(_Check(source, tables).problems(source.value, kind, None), TOLD))


class _Check:
    def __init__(self, source: Source, tables: Mapping[str, Mapping[str, Key]]) -> None:
        self.source = source
        self.tables = tables

    def problems(self, value: Any, kind: Kind, place: Place) -> Iterator[str]:
        fitting = next((one for one in self._any(kind) if self._fits(value, one)), None)
        if fitting is None:
            yield self.source.at(f"{cut(value)[:60]} must be {self._spoken(kind)}", place)
        elif isinstance(value, dict) and isinstance(fitting, str) and fitting in self.tables:
            yield from self._table(value, self.tables[fitting], place)
        elif isinstance(fitting, dict):
            for key, inner in value.items():
                yield from self.problems(inner, fitting[""], (place, key, value))
        elif isinstance(fitting, list):
            for number, inner in enumerate(value):
                yield from self.problems(inner, fitting[0], (place, number, value))

    def _table(self, value: dict[str, Any], keys: Mapping[str, Key], place: Place) -> Iterator[str]:
        for key, inner in value.items():
            if key in keys:
                yield from self.problems(inner, keys[key].kind, (place, key, value))
            else:
                hint = nearest(key, keys) or "; there are " + ", ".join(keys)
                yield self.source.at(f"unknown key {key[:100]!r}{hint}", (place, key, value))
        for key, entry in keys.items():
            if entry.required and key not in value:
                yield self.source.at(f"the key {key!r} is missing", place)

    def _any(self, kind: Kind) -> Iterator[Kind]:
        """The kinds of which one will do."""
        for one in kind if isinstance(kind, tuple) else (kind,):
            if isinstance(one, str) and one in _ALIASES:
                yield from self._any(_ALIASES[one])
            elif isinstance(one, tuple):
                yield from self._any(one)
            else:
                yield one

    def _fits(self, value: Any, kind: Kind) -> bool:
        if isinstance(kind, frozenset):
            return isinstance(value, str) and value in kind
        if isinstance(kind, list):
            return isinstance(value, (list, tuple))
        if isinstance(kind, dict) or kind in self.tables:
            return isinstance(value, dict)
        return bool(_SIMPLE[kind][1](value))

    def _spoken(self, kind: Kind) -> str:
        """A kind in messages."""
        spoken: list[str] = []
        for one in self._any(kind):
            if isinstance(one, frozenset):
                spoken.append(" or ".join(map(repr, sorted(one))))
            elif isinstance(one, list):
                spoken.append("a list")
            elif isinstance(one, dict) or one in self.tables:
                spoken.append("a mapping" if isinstance(one, dict) else f"a mapping, a {one}")
            else:
                spoken.append(_SIMPLE[one][0])
        return " or ".join(dict.fromkeys(spoken))


# -- schema -----------------------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The format as JSON Schema (draft 2020-12): editors complete and check by it. Values, for `json.dumps`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A workflow of fsmworkflow",
        "$ref": "#/$defs/workflow",
        "$defs": {name: _object(keys) for name, keys in TABLES.items()},
    }


def _object(keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {**_described(key.kind), "description": key.doc} for name, key in keys.items()},
        "required": [name for name, key in keys.items() if key.required],
        "additionalProperties": False,
    }


def _described(kind: Kind) -> dict[str, Any]:
    if isinstance(kind, tuple):
        return {"anyOf": [_described(one) for one in kind]}
    if isinstance(kind, frozenset):
        return {"enum": sorted(kind)}
    if isinstance(kind, list):
        return {"type": "array", "items": _described(kind[0])}
    if isinstance(kind, dict):
        return {"type": "object", "additionalProperties": _described(kind[""])}
    if kind in TABLES:
        return {"$ref": f"#/$defs/{kind}"}
    return _described(_ALIASES[kind]) if kind in _ALIASES else dict(_SIMPLE[kind][2])
