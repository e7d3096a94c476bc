"""What checks and changes share: how data is given, how a field is named, which types and spellings have a name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from fsmworkflow.conditions import Operand, View, cut
from fsmworkflow.errors import FSMWorkflowError, nearest

__all__ = ["CONVERSIONS", "NORMAL", "TYPES", "Data", "Invalid", "Way", "at", "data_of", "named", "put", "there"]

Data = Mapping[str, Any]
Way = Callable[[Any], Any]
DIGITS = 4300


class Invalid(FSMWorkflowError, ValueError):
    """A value cannot be changed as was asked, or data is not as it must be."""

    code = "invalid"


def data_of(given: Any) -> Data:
    """The data that a function is called with, or that of its context."""
    found: Data | None = given if isinstance(given, Mapping) else getattr(given, "data", None)
    if found is None:
        raise TypeError(f"data is a dict, or what has one as its `data`, not {cut(given)}")
    return found


def at(data: Any, path: str) -> Any:
    """The value of a field, None where it is not there."""
    if isinstance(data, Mapping) and (path in data or "." not in path):
        return data.get(path)
    return Operand("data", path).read(View(data))


def put(around: Any, path: str, value: Any) -> None:
    """Put a value where `at` has found one. Dicts and lists between, which somebody else may hold, are made anew."""
    exact = isinstance(around, dict) and path in around
    name, _, inner = (path, "", "") if exact else path.partition(".")
    place: Any = name if isinstance(around, dict) else int(name)
    if inner:
        within = around[place]
        around[place] = dict(within) if isinstance(within, Mapping) else list(within)
        put(around[place], inner, value)
    else:
        around[place] = value


def there(data: Data, path: str) -> bool:
    """Whether a field is there, be it None."""
    name, _, inner = path.partition(".")
    if path in data or not inner:
        return path in data
    found = data.get(name)
    return isinstance(found, Mapping) and there(found, inner)


def named(name: str, known: Mapping[str, Any], what: str) -> str:
    if name not in known:
        raise ValueError(f"there is no {what} {name!r}{nearest(name, known)}")
    return name


def _truth(text: str) -> bool:
    return text.strip().lower() in ("true", "yes", "1", "on")


def _whole(value: Any) -> int:
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() > DIGITS:
        raise ValueError(f"a number of over {DIGITS:,} digits")  # of which int() would make all
    return int(value)


def _snake(text: str) -> str:
    return re.sub("([a-z0-9])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", text)).lower()


def _words(text: str) -> list[str]:
    return text.replace("-", "_").split("_")


TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "number": (int, float, Decimal), "bool": (bool,),
    "list": (list,), "dict": (dict,), "date": (date,), "datetime": (datetime,), "Decimal": (Decimal,), "UUID": (UUID,),
    "any": (object,),
}  # fmt: skip
CONVERSIONS: dict[str, Way] = {
    "str": str, "int": _whole, "float": float, "list": list, "dict": dict, "json": json.loads, "Decimal": Decimal,
    "UUID": UUID, "date": date.fromisoformat, "datetime": datetime.fromisoformat,
    "bool": lambda value: _truth(value) if isinstance(value, str) else bool(value),
}  # fmt: skip
NORMAL: dict[str, Callable[[str], str]] = {
    "lowercase": str.lower,
    "uppercase": str.upper,
    "trim": str.strip,
    "snake_case": _snake,
    "camel_case": lambda text: "".join([_words(text)[0].lower(), *(word.capitalize() for word in _words(text)[1:])]),
    "pascal_case": lambda text: "".join(word.capitalize() for word in _words(text)),
    "remove_special": lambda text: re.sub(r"[^a-zA-Z0-9\s]", "", text),
    "normalize_spaces": lambda text: " ".join(text.split()),
}
