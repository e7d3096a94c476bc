"""Checks: questions about data, each of which says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from fsmworkflow.conditions import Guard, as_guard, cut
from fsmworkflow.functions.schemas import JsonSchema, compiled
from fsmworkflow.functions.words import TYPES, Data, at, data_of, named, there

__all__ = [
    "Check", "data_valid", "depends_on", "has_required_fields", "lengths", "patterns", "ranges", "required", "schema",
    "types", "unique",
]  # fmt: skip

T = TypeVar("T")
Bounds = Mapping[str, Any] | tuple[Any, Any]
"""The least and the most, both allowed, None for no bound: a pair, or a dict of "min" and "max"."""


class Check:
    """A question about data. Called with it, or with a context, it answers yes or no; `problems` says what is wrong.

    Combines with `&`, `|` and `~`, also with conditions.
    """

    def __init__(self, text: str, ask: Callable[[Data], Iterable[str]]) -> None:
        self.__qualname__ = self.text = text
        self._ask = ask

    def problems(self, given: Any) -> list[str]:
        """What is wrong with the data, each problem with the field; empty where nothing is."""
        return list(self._ask(data_of(given)))

    def __call__(self, given: Any) -> bool:
        return not self.problems(given)

    def __and__(self, other: Any) -> Any:
        if not isinstance(other, Check):
            return as_guard(self) & other
        return Check(f"{self.text} and {other.text}", lambda data: [*self.problems(data), *other.problems(data)])

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, Check):
            return as_guard(self) | other
        both = [self, other]
        return Check(
            f"({self.text} or {other.text})",
            lambda data: [] if any(one(data) for one in both) else [p for one in both for p in one.problems(data)],
        )

    def __rand__(self, other: Any) -> Guard:
        return as_guard(other) & as_guard(self)

    def __ror__(self, other: Any) -> Guard:
        return as_guard(other) | as_guard(self)

    def __invert__(self) -> Check:
        return Check(f"not ({self.text})", lambda data: [] if self.problems(data) else [f"{self.text} holds"])

    def __repr__(self) -> str:
        return f"<Check {self.text}>"


def _each(name: str, asked: Mapping[str, T], wrong: Callable[[Any, T], str]) -> Check:
    """A check of several fields, of which `wrong(value, what was asked)` says what they must, or nothing."""

    def ask(data: Data) -> Iterable[str]:
        for path, wanted in asked.items():
            value = at(data, path)
            if value is not None and (why := wrong(value, wanted)):
                yield f"{path} must {why}, not {cut(value)}"

    return Check(f"{name}({', '.join(asked)})", ask)


def required(*fields: str, allow_none: bool = False) -> Check:
    """Each of these fields is there, and is not None unless `allow_none`."""

    def ask(data: Data) -> Iterable[str]:
        for path in fields:
            if not there(data, path) if allow_none else at(data, path) is None:
                yield f"{path} is missing"

    return Check(f"required({', '.join(fields)})", ask)


def types(**fields: str | type | Iterable[str | type]) -> Check:
    """Each field is of this type, or one of several: a class, or one of TYPES by name. True is no number."""
    known = {
        path: tuple(kind for one in ([told] if isinstance(told, str | type) else told) for kind in _types(one))
        for path, told in fields.items()
    }

    def wrong(value: Any, kinds: tuple[type, ...]) -> str:
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds or object in kinds)
        return "" if fits else f"be of type {' or '.join(kind.__name__ for kind in kinds)}"

    return _each("types", known, wrong)


def ranges(**fields: Bounds) -> Check:
    """Each field is from the least to the most: numbers, texts, dates, whatever has an order with the bounds."""

    def wrong(value: Any, bounds: tuple[Any, Any]) -> str:
        low, high = bounds
        try:
            if (low is None or low <= value) and (high is None or value <= high) and not isinstance(value, bool):
                return ""
        except TypeError:  # kinds without an order
            pass
        return f"be {_span(low, high)}"

    return _each("ranges", {path: _bounds(told) for path, told in fields.items()}, wrong)


def lengths(**fields: int | Bounds) -> Check:
    """Each field has this length, or one between the least and the most: of a text, a list, a dict."""
    asked = {path: (told, told) if isinstance(told, int) else _bounds(told) for path, told in fields.items()}

    def wrong(value: Any, bounds: tuple[Any, Any]) -> str:
        low, high = bounds
        many = len(value) if hasattr(value, "__len__") else None
        fits = many is not None and (low is None or low <= many) and (high is None or many <= high)
        return "" if fits else f"be of length {_span(low, high)}"

    return _each("lengths", asked, wrong)


def patterns(**fields: str) -> Check:
    """Each field is a text that this regular expression fits from its start on, as `matches` asks.

    Matched by google-re2, in time that grows with the text alone. Raises FSMWorkflowError without it, and ValueError
    for what it does not compile.
    """

    def wrong(value: Any, pattern: Any) -> str:
        return "" if isinstance(value, str) and pattern.match(value) else f"match {cut(pattern.pattern)}"

    return _each("patterns", {path: compiled(pattern) for path, pattern in fields.items()}, wrong)


def schema(kind: Any) -> Check:
    """The data fits a JSON Schema, given as a dict, or a dataclass, msgspec.Struct, TypedDict or pydantic model.

    A dict needs jsonschema, and is checked itself; nothing is fetched for it, and its patterns are google-re2's. Raises
    ValueError for one that is no schema.
    """
    if isinstance(kind, Mapping):
        return Check("schema", JsonSchema(kind).problems)

    def ask(data: Data) -> Iterable[str]:
        try:
            if hasattr(kind, "model_validate"):
                kind.model_validate(dict(data))
            else:
                msgspec.convert(dict(data), kind)
        except ValueError as error:  # both libraries' validation errors
            yield str(error)

    return Check(f"schema({getattr(kind, '__name__', kind)})", ask)


def unique(*fields: str, key: str | None = None) -> Check:
    """In each of these lists no item comes twice; with `key` no item's field of that name."""

    def wrong(value: Any, _: None) -> str:
        if not isinstance(value, (list, tuple)):
            return "be a list"
        seen, what = set(), [item if key is None else at(item, key) for item in value]
        for one in what if key is None else (one for one in what if one is not None):
            text = _text(one)
            if text in seen:
                return f"have {cut(one)} once"
            seen.add(text)
        return ""

    return _each("unique", dict.fromkeys(fields), wrong)


def _text(value: Any) -> bytes:
    """Text that is the same for what is equal."""
    try:
        return msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError, RecursionError):  # what is no data
        return repr(value).encode("utf-8", "backslashreplace")


def depends_on(**fields: str | Iterable[str]) -> Check:
    """Where a field is there, so are these others."""
    needs = {path: [told] if isinstance(told, str) else list(told) for path, told in fields.items()}

    def ask(data: Data) -> Iterable[str]:
        for path, others in needs.items():
            if at(data, path) is not None:
                yield from (f"{path} needs {other}" for other in others if at(data, other) is None)

    return Check(f"depends_on({', '.join(needs)})", ask)


def has_required_fields(fields: Iterable[str]) -> Check:
    """As `required`, its fields given as a list."""
    return required(*fields)


def data_valid() -> Check:
    """What an earlier `validate` has found: the field `valid`, and yes where there is none."""
    return Check("data_valid", lambda data: [] if data.get("valid", True) else ["valid is false"])


def _types(told: str | type) -> tuple[type, ...]:
    return TYPES[named(told, TYPES, "type")] if isinstance(told, str) else (told,)


def _bounds(told: Bounds) -> tuple[Any, Any]:
    if isinstance(told, (tuple, list)) and len(told) == 2:
        return told[0], told[1]
    if not isinstance(told, Mapping):
        raise ValueError(f"bounds are the least and the most, as (0, 150), or min and max, not {cut(told)}")
    if unknown := told.keys() - {"min", "max", "exact"}:
        raise ValueError(f"bounds are min and max, not {sorted(unknown)[0]!r}")
    return told.get("exact", told.get("min")), told.get("exact", told.get("max"))


def _span(low: Any, high: Any) -> str:
    if low == high:
        return f"{low}"
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"from {low} to {high}"
