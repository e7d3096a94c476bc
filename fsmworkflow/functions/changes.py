"""Changes: what makes other data of data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from fsmworkflow.conditions import cut
from fsmworkflow.functions.checks import Check
from fsmworkflow.functions.words import CONVERSIONS, NORMAL, Invalid, Way, at, data_of, named, put, there

__all__ = [
    "Change", "add_metadata", "chain", "convert", "enrich", "filter_fields", "flatten", "map_fields", "normalise",
    "replace", "split", "validate",
]  # fmt: skip

UNFIT = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError)
"""What is raised for a value that cannot be changed."""


class Change:
    """Makes other data of data. Called with a dict, and perhaps an event, it returns a new one and changes nothing.

    Called with a context, as a step is, it changes the data of that. `first | second` makes both, one after the other.
    """

    def __init__(self, text: str, make: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.__qualname__ = self.text = text
        self._make = make

    def __call__(self, given: Any, event: Any = None) -> dict[str, Any] | None:
        made = self._make(dict(data_of(given)))
        if isinstance(given, Mapping):
            return made
        for gone in [name for name in given.data if name not in made]:
            del given.data[gone]
        given.data.update(made)
        return None

    def __or__(self, other: Any) -> Change:
        if not isinstance(other, Change):
            return NotImplemented
        return Change(f"{self.text} | {other.text}", lambda data: other._make(self._make(data)))

    def __repr__(self) -> str:
        return f"<Change {self.text}>"


def chain(*changes: Change) -> Change:
    """Several changes, one after the other."""
    made = Change("chain", lambda data: data)
    for change in changes:
        made = made | change
    return made


def validate(check: Check) -> Change:
    """Write down what a check says: `valid`, and its `problems`, a list of texts. Raises TypeError for no check."""
    if not hasattr(check, "problems"):
        raise TypeError(f"validate is given a check, as required('email'), not {cut(check)}")

    def make(data: dict[str, Any]) -> dict[str, Any]:
        problems = check.problems(data)
        return {**data, "valid": not problems, "problems": problems}

    return Change(f"validate {check.text}", make)


def map_fields(mapping: Mapping[str, str], *, drop: bool = False) -> Change:
    """Give fields other names: `{"from": "to"}`, where "from" may look inside; those not named stay, unless `drop`."""

    def make(data: dict[str, Any]) -> dict[str, Any]:
        rest = {} if drop else {name: value for name, value in data.items() if name not in mapping}
        return {**rest, **{to: at(data, name) for name, to in mapping.items() if there(data, name)}}

    return Change("map_fields", make)


def _changed(text: str, ways: Mapping[str, Way], default: Way | None = None) -> Change:
    """A change of the values of fields; `default` is for the texts of all others."""

    def make(data: dict[str, Any]) -> dict[str, Any]:
        for name in ways if default is None else {**ways, **data}:
            way, value = ways.get(name, default), at(data, name)
            if way is not None and value is not None:
                try:
                    put(data, name, way(value))
                except UNFIT as error:
                    raise Invalid(f"{text} of {name} = {cut(value)}: {type(error).__name__}: {error}"[:300]) from error
        return data

    return Change(text, make)


def convert(*, strict: bool = True, **fields: str | Way) -> Change:
    """Make fields of another type: one of TYPES by name, or a function. Raises Invalid; if not `strict` it lets be."""
    ways = {name: CONVERSIONS[named(how, CONVERSIONS, "type")] if isinstance(how, str) else how
            for name, how in fields.items()}  # fmt: skip
    return _changed("convert", ways if strict else {name: _leniently(way) for name, way in ways.items()})


def _leniently(way: Way) -> Way:
    def convert(value: Any) -> Any:
        try:
            return way(value)
        except UNFIT:
            return value

    return convert


def normalise(every: str | Iterable[str] = (), **fields: str | Iterable[str]) -> Change:
    """Spell texts in one way: one of NORMAL by name, or several after each other; `every` is for all other fields."""

    def way(told: str | Iterable[str]) -> Way:
        names = [named(one, NORMAL, "normalization") for one in ([told] if isinstance(told, str) else told)]

        def spell(value: Any) -> Any:
            for name in names if isinstance(value, str) else ():
                value = NORMAL[name](value)
            return value

        return spell

    return _changed("normalise", {name: way(told) for name, told in fields.items()}, way(every) if every else None)


def filter_fields(include: Iterable[str] | None = None, exclude: Iterable[str] | None = None) -> Change:
    """Keep only these fields, or all but those."""
    if include and exclude:
        raise ValueError("it has include or exclude, not both")
    kept, left = set(include or ()), set(exclude or ())
    return Change(
        "filter_fields",
        lambda data: {name: data[name] for name in data if (name in kept if kept else name not in left)},
    )


def replace(**fields: Mapping[Any, Any]) -> Change:
    """Put other values in the place of values: `replace(status={"ok": "done", "err": "failed"})`."""

    def way(told: Mapping[Any, Any]) -> Way:
        return lambda value: told.get(value, value) if value.__hash__ else value

    return _changed("replace", {name: way(told) for name, told in fields.items()})


def flatten(*fields: str, depth: int = 1) -> Change:
    """Lists in a list become its items, `depth` levels deep; the fields of a dict stand alone, as "address.city"."""

    def level(value: list[Any], left: int) -> list[Any]:
        parts = (level(item, left - 1) if isinstance(item, list) and left else [item] for item in value)
        return [item for part in parts for item in part]

    def inner(name: str, value: Any, left: int) -> dict[str, Any]:
        if not isinstance(value, dict) or left < 0:
            return {name: value}
        return {key: one for k, v in value.items() for key, one in inner(f"{name}.{k}", v, left - 1).items()}

    def make(data: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in data.items():
            if name in fields and isinstance(value, list):
                made[name] = level(value, depth)
            else:
                made |= inner(name, value, depth - 1) if name in fields else {name: value}
        return made

    return Change("flatten", make)


def split(field: str, *, at: str | None = None, into: str = "records") -> Change:
    """Make a record for each item of a list, all into the list `into`; with `at`, of a text a list of its parts."""

    def make(data: dict[str, Any]) -> dict[str, Any]:
        value = data.get(field)
        if at is not None:
            return {**data, field: value.split(at)} if isinstance(value, str) else data
        if not isinstance(value, list):
            return data
        rest = {name: one for name, one in data.items() if name != field}
        return {into: [{**rest, **(item if isinstance(item, dict) else {field: item})} for item in value]}

    return Change("split", make)


def enrich(fields: Mapping[str, Any] | None = None, *, overwrite: bool = False, **more: Any) -> Change:
    """Add fields: values, each a copy, or functions of the data. Those that are there stay, unless `overwrite`."""
    added = {**(fields or {}), **more}

    def make(data: dict[str, Any]) -> dict[str, Any]:
        for name, value in added.items():
            if overwrite or name not in data:
                data[name] = value(data) if callable(value) else deepcopy(value)
        return data

    return Change("enrich", make)


def add_metadata(**fields: Any) -> Change:
    """Add to the field `metadata`: what is given, and `processed_at`, the time in UTC."""

    def make(data: dict[str, Any]) -> dict[str, Any]:
        found = data.get("metadata")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = found if isinstance(found, Mapping) else {}
        return {**data, "metadata": {**known, "processed_at": now, **deepcopy(fields)}}

    return Change("add_metadata", make)
