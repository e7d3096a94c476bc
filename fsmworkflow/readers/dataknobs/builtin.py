"""The validators and transformers that configurations of dataknobs-fsm name as builtin: each makes a function.

Left out are those whose parameters are Python objects, that remember what they saw, or that match patterns without
bound: they are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

__all__ = ["BUILTIN"]

Data = Mapping[str, Any]
Make = Callable[..., Callable[[Data], Any]]


def required(fields: list[str], allow_none: bool = False) -> Callable[[Data], bool]:
    return lambda data: all(name in data and (allow_none or data[name] is not None) for name in fields)


def ranges(field_ranges: Mapping[str, Mapping[str, float]]) -> Callable[[Data], bool]:
    def within(value: Any, bounds: Mapping[str, float]) -> bool:
        number = isinstance(value, (int, float))
        return number and bounds.get("min", value) <= value <= bounds.get("max", value)

    return lambda data: all(within(data[name], bounds) for name, bounds in field_ranges.items() if name in data)


def lengths(field_lengths: Mapping[str, Mapping[str, int]]) -> Callable[[Data], bool]:
    def fits(value: Any, bounds: Mapping[str, int]) -> bool:
        many = len(value) if hasattr(value, "__len__") else -1
        least, most = bounds.get("min", 0), bounds.get("max", many)
        return least <= many <= most and many == bounds.get("exact", many)

    return lambda data: all(fits(data[name], bounds) for name, bounds in field_lengths.items() if name in data)


def depends(dependencies: Mapping[str, str | list[str]]) -> Callable[[Data], bool]:
    needs = {name: [on] if isinstance(on, str) else on for name, on in dependencies.items()}
    return lambda data: all(on in data for name, others in needs.items() if name in data for on in others)


def mapped(field_map: Mapping[str, str], drop_unmapped: bool = False, copy_unmapped: bool = True) -> Any:
    for name in (*field_map, *field_map.values()):
        if "." in name:
            raise ValueError(f"paths as {name!r} are not mapped")

    def transform(data: Data) -> dict[str, Any]:
        made = {to: data[name] for name, to in field_map.items() if name in data}
        rest = {} if drop_unmapped or not copy_unmapped else {k: v for k, v in data.items() if k not in field_map}
        return {**rest, **made}

    return transform


_NORMAL: dict[str, Callable[[str], str]] = {
    "lowercase": str.lower,
    "uppercase": str.upper,
    "trim": str.strip,
    "snake_case": lambda text: re.sub(
        "([a-z0-9])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", text)
    ).lower(),
    "camel_case": lambda text: "".join([_words(text)[0].lower(), *(word.capitalize() for word in _words(text)[1:])]),
    "pascal_case": lambda text: "".join(word.capitalize() for word in _words(text)),
    "remove_special": lambda text: re.sub(r"[^a-zA-Z0-9\s]", "", text),
    "normalize_spaces": lambda text: " ".join(text.split()),
}


def _words(text: str) -> list[str]:
    return text.replace("-", "_").split("_")


def normalized(normalizations: Mapping[str, str | list[str]], fields: list[str] | None = None) -> Any:
    ways = {name: [told] if isinstance(told, str) else told for name, told in normalizations.items()}
    if unknown := {way for told in ways.values() for way in told} - _NORMAL.keys():
        raise ValueError(f"there is no normalization {sorted(unknown)[0]!r}")

    def transform(data: Data) -> dict[str, Any]:
        made = dict(data)
        for name in fields or list(data):
            for way in ways.get(name, ways.get("*", ())) if isinstance(made.get(name), str) else ():
                made[name] = _NORMAL[way](made[name])
        return made

    return transform


_TYPES: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda value: value.lower() in ("true", "yes", "1", "on") if isinstance(value, str) else bool(value),
    "list": list,
    "dict": dict,
    "datetime": datetime.fromisoformat,
    "json": json.loads,
}


def converted(conversions: Mapping[str, str], strict: bool = False) -> Any:
    if unknown := set(conversions.values()) - _TYPES.keys():
        raise ValueError(f"there is no type {sorted(unknown)[0]!r}")

    def transform(data: Data) -> dict[str, Any]:
        made = dict(data)
        for name, kind in conversions.items():
            if made.get(name) is None:
                continue
            try:
                made[name] = _TYPES[kind](made[name])
            except (TypeError, ValueError, AttributeError):
                if strict:
                    raise
        return made

    return transform


def enriched(enrichments: Data, overwrite: bool = False) -> Callable[[Data], dict[str, Any]]:
    return lambda data: {**data, **enrichments} if overwrite else {**enrichments, **data}


def filtered(include: list[str] | None = None, exclude: list[str] | None = None) -> Callable[[Data], dict[str, Any]]:
    if include and exclude:
        raise ValueError("it has include or exclude, not both")
    left = exclude or ()
    return lambda data: {k: v for k, v in data.items() if (k in include if include else k not in left)}


def named(make: Make) -> Make:
    """The form whose fields stand among the params themselves: `{"email": "lowercase"}`."""
    return lambda **fields: make(fields)


BUILTIN: dict[str, Make] = {
    "validators.RequiredFieldsValidator": required,
    "validators.RangeValidator": ranges,
    "validators.range_check": named(ranges),
    "validators.LengthValidator": lengths,
    "validators.length": named(lengths),
    "validators.DependencyValidator": depends,
    "validators.depends_on": named(depends),
    "transformers.FieldMapper": mapped,
    "transformers.map_fields": lambda mapping, **more: mapped(mapping, **more),
    "transformers.ValueNormalizer": normalized,
    "transformers.normalize": named(normalized),
    "transformers.TypeConverter": converted,
    "transformers.convert_types": named(converted),
    "transformers.DataEnricher": enriched,
    "transformers.enrich": named(enriched),
    "transformers.FieldFilter": filtered,
    "transformers.filter_fields": filtered,
}
"""By the names that configurations have for them."""
