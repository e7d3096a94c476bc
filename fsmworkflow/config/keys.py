"""The keys of the format: the JSON Schema that ships with the package, by which a source is checked and read.

The reader knows no other list of keys. Of JSON Schema it takes $ref, type, anyOf, enum, properties, required,
additionalProperties and items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fsmworkflow.config.text import Items, Mark, Place, Source, Table
from fsmworkflow.errors import DefinitionError, cut, nearest

__all__ = ["Make", "Reading", "Row", "schema"]

TOLD = 100
"""How many problems are told of one file."""

Make = Callable[[Any, Place], Any]
"""What becomes of a value that the schema calls by a name. LookupError, TypeError and ValueError are problems there."""

_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {  # in messages, and as Python has it
    "string": ("text", (str,)), "boolean": ("true or false", (bool,)), "integer": ("a whole number", (int,)),
    "number": ("a number", (int, float)), "null": ("null", (type(None),)), "array": ("a list", (list, tuple, Items)),
    "object": ("a mapping", (dict, Table)),
}  # fmt: skip
_Kind = tuple[frozenset[type], Any, tuple[str, ...]]
_ANYTHING: dict[str, Any] = {}


class Row(dict[str, Any]):
    """A mapping that was read, and where it stands."""

    __slots__ = ("marks", "place")

    def __init__(self, place: Place, values: Mapping[str, Any], marks: Mapping[Any, Mark] | None = None) -> None:
        super().__init__(values)
        self.place, self.marks = place, marks or {}


def schema() -> dict[str, Any]:
    """The format as JSON Schema (draft 2020-12): editors complete and check by it. A copy, for `json.dumps`."""
    found: dict[str, Any] = json.loads(files(__package__).joinpath("schema.json").read_text(encoding="utf-8"))
    return found


_schema = cache(schema)


class Reading:
    """The values of a source, read by a schema. `makes` are functions by the names of definitions in the schema: what
    such a value holds is made first, and it itself only where nothing in it is wrong.
    """

    def __init__(self, source: Source, makes: Mapping[str, Make], by: Mapping[str, Any] | None = None) -> None:
        self.source, self.makes, self.schema = source, makes, by or _schema()
        self.problems: list[str] = []
        self._kinds: dict[int, list[_Kind]] = {}

    def whole(self) -> Any:
        """All that the source says. Raises DefinitionError, which lists the problems, each with its place."""
        found = self.read(self.source.value, self.schema, None)
        self.close()
        return found

    def close(self) -> None:
        """Raise DefinitionError where there are problems."""
        if self.problems:
            raise DefinitionError(self.source.name, self.problems)

    def problem(self, what: str, place: Place) -> None:
        """Note a problem. Of a source that has very many, only the first are told."""
        self.problems.append(self.source.at(what, place))
        if len(self.problems) >= TOLD:
            self.close()

    def read(self, value: Any, kind: Any, place: Place) -> Any:
        kinds = self._kinds.get(id(kind)) or self._kinds.setdefault(id(kind), list(self._flat(kind, ())))
        fitting, names = next(((one, names) for types, one, names in kinds if _fits(value, types, one)), (None, ()))
        before, made = len(self.problems), value
        if fitting is None:
            spoken = dict.fromkeys(word for _, one, _ in kinds for word in _spoken(one))
            self.problem(f"{cut(value)[:60]} must be {' or '.join(spoken)}", place)
        elif isinstance(value, dict):
            made = self._row(value, fitting, place)
        elif isinstance(value, (list, tuple)) and "items" in fitting:
            made = [self.read(inner, fitting["items"], (place, number, value)) for number, inner in enumerate(value)]
        try:
            for name in names if len(self.problems) == before else ():
                made = self.makes[name](made, place) if name in self.makes else made
        except (LookupError, TypeError, ValueError) as error:
            self.problem(str(error.args[0]), place)
        return made

    def _flat(self, kind: Any, names: tuple[str, ...]) -> Iterator[_Kind]:
        """The schemas of which one must fit: its Python types, itself, and its names, from inside outwards."""
        if "$ref" in kind:
            name = kind["$ref"].rpartition("/")[2]
            yield from self._flat(self.schema["$defs"][name], (name, *names))
        for one in kind.get("anyOf", ()):
            yield from self._flat(one, names)
        if "anyOf" not in kind and "$ref" not in kind:
            yield frozenset(one for name in _types(kind) for one in _TYPES[name][1]), kind, names

    def _row(self, value: dict[str, Any], kind: Any, place: Place) -> Row:
        known, others = kind.get("properties", _ANYTHING), kind.get("additionalProperties", _ANYTHING)
        for key in kind.get("required", ()):
            if key not in value:
                self.problem(f"the key {key!r} is missing", place)
        made = Row(place, {}, getattr(value, "marks", None))
        for key, inner in value.items():
            if key in known or others is not False:
                made[key] = self.read(inner, known.get(key, others), (place, key, value))
            else:
                hint = nearest(key, known) or "; there are " + ", ".join(known)
                self.problem(f"unknown key {key[:100]!r}{hint}", (place, key, value))
        return made


def _types(kind: Any) -> list[str]:
    named = kind.get("type", list(_TYPES))
    return [named] if isinstance(named, str) else named


def _fits(value: Any, types: frozenset[type], kind: Any) -> bool:
    fits = type(value) in types or (type(value) is not bool and isinstance(value, tuple(types)))
    return fits and ("enum" not in kind or value in kind["enum"])


def _spoken(kind: Any) -> list[str]:
    """A kind in messages."""
    if "enum" in kind:
        return [repr(one) for one in kind["enum"]]
    return [kind["title"]] if "title" in kind else [_TYPES[name][0] for name in _types(kind)]
