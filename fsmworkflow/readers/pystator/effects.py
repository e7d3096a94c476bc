"""Effects of PyStator's: changes of the data that stand among the actions, made in the commit of the move."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from fsmworkflow.readers.places import Node

__all__ = ["EFFECTS", "Effect", "effect", "is_effect", "updated"]

Effect = Callable[[Any], None]

EFFECTS = ("set", "timestamp", "increment", "decrement", "append", "clear")


def is_effect(one: Node) -> bool:
    return isinstance(one.value, dict) and any(kind in one.value for kind in EFFECTS)


def effect(one: Node) -> Effect:
    """What an effect does to the data."""
    kind = next(kind for kind in EFFECTS if kind in one.value)
    told = one.keys((kind,), needed=(kind,))[kind]
    if kind == "set":
        values = dict(told.of(dict))
        return lambda data: data.update(values)
    if kind == "append":
        name, value = told.keys(("field", "value"), needed=("field",))["field"].of(str), told.value.get("value")
        return lambda data: data.update({name: [*(data.get(name) or ()), value]})
    return _field(kind, told.of(str))


def _field(kind: str, name: str) -> Effect:
    if kind == "timestamp":
        return lambda data: data.update({name: datetime.now(UTC).isoformat()})
    if kind == "clear":
        return lambda data: data.pop(name, None)
    by = 1 if kind == "increment" else -1
    return lambda data: data.update({name: (data.get(name) or 0) + by})


def updated(effects: Iterable[Effect]) -> Callable[[Any, Any], None] | None:
    """All of them, one after the other, as the update of a transition."""
    made = list(effects)

    def update(data: Any, event: Any) -> None:
        for one in made:
            one(data)

    return update if made else None
