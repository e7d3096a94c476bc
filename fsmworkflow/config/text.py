"""Text to plain values, strictly: YAML 1.2 or JSON, with the place of every value, within limits on size and depth.

PyYAML gives the events of its parser in C, and nothing else of it is used: no constructor, no resolver of YAML 1.1.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from fsmworkflow.errors import DefinitionError, FSMWorkflowError, cut

__all__ = ["Items", "Place", "Source", "Table", "placed"]

LIMIT, DEPTH, VALUES = 4 * 2**20, 64, 150_000
"""The most that a file may hold: bytes, levels, and values."""

WIDTH = 200
"""Of a longer path, only its end is told."""

Place = tuple[Any, str | int, Any] | None
"""Where a value stands: (the place of what it is in, its key or index, what it is in). None is the whole."""
Mark = int
"""A line and a column, both from 1: line * COLUMNS + column. One number, as there are very many."""
COLUMNS = 10_000_000
Marks = dict[int, dict[Any, Mark]]
"""The marks of what is in a value, by its id."""


class Table(dict[str, Any]):
    """A mapping that was read: the line and column of each key, where they are known, and a key that it had twice."""

    __slots__ = ("marks", "twice")
    marks: dict[Any, Mark]
    twice: str


class Items(list[Any]):
    """A list that was read, with the line and column of each item."""

    __slots__ = ("marks",)
    marks: dict[Any, Mark]


class Source:
    """What a definition is read from: its `name` in messages, and its `value`.

    Every problem raises DefinitionError, which names the place: the file, line and column where there are any, and the
    path.
    """

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value
        self.json = ""

    @classmethod
    def of(cls, config: Any) -> Source:
        """Plain values, as a program has them."""
        name = config.get("name") if isinstance(config, dict) else None
        source = cls(name[:100] if isinstance(name, str) else "workflow", config)
        source.bounded()
        return source

    @classmethod
    def of_file(cls, path: str | Path) -> Source:
        """A file whose name ends in .yaml, .yml or .json. Raises OSError where it cannot be read."""
        file = Path(path)
        kind = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}.get(file.suffix.lower())
        if kind is None:
            raise DefinitionError(str(path), [f"{file.name!r} ends neither in .yaml or .yml nor in .json"])
        with file.open("rb") as opened:
            return cls.of_text(opened.read(LIMIT + 1), kind, str(path))

    @classmethod
    def of_text(cls, text: bytes | str, kind: str, name: str) -> Source:
        """The text of a file, whose `kind` is yaml or json."""
        source = cls(name, None)
        if len(text) > LIMIT:
            source.refuse(f"it has more than {LIMIT:,} bytes")
        try:
            decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        except UnicodeDecodeError as error:
            source.refuse(f"it is no UTF-8 text: {error.reason} at byte {error.start}")
        source.value = _yaml(decoded, source) if kind == "yaml" else _json(decoded, source)
        source.bounded()
        return source

    def refuse(self, what: str, place: Place = None, mark: Mark = 0) -> NoReturn:
        raise DefinitionError(self.name, [self.at(what, place, mark)])

    def at(self, what: str, place: Place = None, mark: Mark = 0) -> str:
        """A problem with its place before it."""
        mark = mark or _mark(place, self.marks) or min(_inside(self.value, self.marks).values(), default=0)
        line = f"{self.name}:{mark // COLUMNS}:{mark % COLUMNS}: " if mark else ""
        path = placed(place)
        return f"{line}{path}: {what}" if path else f"{line}{what}"

    @cached_property
    def marks(self) -> Marks:
        """Where the keys and items of a JSON text stand, looked for once there is a problem."""
        return _json_marks(self.json, self.value) if self.json else {}

    def bounded(self) -> None:
        """Refuse what is too deep, too many or too long, and what is no plain value, before anything is built of it."""
        values = size = 0
        todo: list[tuple[Any, Place, int]] = [(self.value, None, 0)]
        while todo:
            value, place, depth = todo.pop()
            many = isinstance(value, (dict, list, tuple))
            values += len(value) if many else 0
            size += len(value) if many or isinstance(value, str) else 0
            if depth > DEPTH or values > VALUES or size > LIMIT:
                self.refuse(f"at most {DEPTH} levels, {VALUES:,} values and {LIMIT:,} characters are allowed", place)
            if not many:
                self._plain(value, place)
            elif isinstance(value, dict) and hasattr(value, "twice"):
                self.refuse(f"the key {value.twice[:100]!r} stands there twice", place)
            else:
                for key in value if isinstance(value, dict) else ():
                    self._plain(key, place, text=True)
                    size += len(key)
                parts = value.items() if isinstance(value, dict) else enumerate(value)
                todo += [(inner, (place, key, value), depth + 1) for key, inner in parts]

    def _plain(self, value: Any, place: Place, text: bool = False) -> None:
        if not isinstance(value, str):
            plain = (
                value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
            )
            if text or not plain:
                what = "a key is text" if text else "a value is text, a finite number, true, false or null"
                self.refuse(f"{what}, not {cut(value)[:60]}", place)
        elif "\0" in value or not (value.isascii() or _unicode(value)):
            self.refuse("a text holds NUL or a lone surrogate, which no store keeps", place)


def _unicode(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _inside(value: Any, marks: Marks) -> dict[Any, Mark]:
    return getattr(value, "marks", None) or marks.get(id(value), {})


def _mark(place: Place, marks: Marks) -> Mark:
    """The line and column of a place, or of the nearest one around it that has one."""
    while place is not None:
        if mark := _inside(place[2], marks).get(place[1]):
            return int(mark)
        place = place[0]
    return 0


def placed(place: Place) -> str:
    """A place as one reads it: `states[3].retry`."""
    text = ""
    while place is not None:
        part = place[1]
        text = (f"[{part}]" if isinstance(part, int) else f".{part[:100]}") + text
        place = place[0]
    return text.removeprefix(".") if len(text) <= WIDTH else f"...{text[-WIDTH:]}"


# -- JSON -------------------------------------------------------------------------------------------------------------


def _json(text: str, source: Source) -> Any:
    try:
        found = json.loads(text, object_pairs_hook=_table)
        source.json = text
        return found
    except json.JSONDecodeError as error:
        source.refuse(error.msg, mark=error.lineno * COLUMNS + error.colno)
    except (ValueError, RecursionError) as error:  # a number of too many digits, or nested too deeply
        source.refuse(f"it cannot be read: {error}"[:200])


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # told with its place, which is not known yet
        found = Table(found)
        found.twice = next(key for key, many in Counter(key for key, _ in pairs).items() if many > 1)
    return found


def _json_marks(text: str, value: Any) -> Marks:
    """The marks of the keys and items of a value that was read from this text, up to a key that stands there twice."""
    lines, marks = [0, *(found.end() for found in re.finditer("\n", text))], Marks()
    around: list[tuple[Any, Any]] = [([value], 0)]  # what is open, and the key or index that comes next in it
    with suppress(LookupError, TypeError):
        for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}\[\],]|[^\s{}\[\],:"]+', text):
            (inside, key), word = around[-1], token[0]
            if word in "}]":
                around.pop()
                continue
            if word == ",":
                around[-1] = (inside, None if key is None or isinstance(key, str) else key + 1)
                continue
            named = key is None
            if named:
                around[-1] = (inside, key := json.loads(word))
            line = bisect(lines, token.start())
            marks.setdefault(id(inside), {}).setdefault(key, line * COLUMNS + token.start() - lines[line - 1] + 1)
            if word in "{[" and not named:
                around.append((inside[key], None if word == "{" else 0))
    return marks


# -- YAML -------------------------------------------------------------------------------------------------------------

_WORDS = {
    word: value
    for spelled, value in (("true", True), ("false", False), ("null", None))
    for word in (spelled, spelled.title(), spelled.upper())
} | {"": None, "~": None}
_NUMBERS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    (r"[-+]?[0-9]+", int),
    (r"0o[0-7]+", lambda text: int(text[2:], 8)),
    (r"0x[0-9a-fA-F]+", lambda text: int(text[2:], 16)),
    (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    (r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", lambda text: float(text.replace(".", ""))),
)


def _resolved(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2.2, section 10.3: `on` and `yes` are text."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "+-.0123456789":
        for pattern, read in _NUMBERS:
            if re.fullmatch(pattern, text):
                return read(text)
    return text


def _yaml(text: str, source: Source) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise FSMWorkflowError("YAML files need the library PyYAML: pip install 'fsmworkflow[yaml]'") from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C, ten times as fast, where it was built
    try:
        return _Composer(yaml.parse(text, Loader=loader), source).document()
    except DefinitionError:  # which is a ValueError, too
        raise
    except yaml.MarkedYAMLError as error:
        source.refuse(str(error.problem or error.context), mark=_mark_of(error.problem_mark or error.context_mark))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a character, or a number of too many digits
        source.refuse(f"it cannot be read: {error}"[:200])


class _Composer:
    """One value from the events of a YAML parser: what is not taken is refused where it is met."""

    def __init__(self, events: Iterator[Any], source: Source) -> None:
        self.events, self.source = events, source
        self.met = 0

    def document(self) -> Any:
        """The only document of a stream."""
        kinds = [type(next(self.events)).__name__ for _ in range(2)]
        if kinds[1] != "DocumentStartEvent":
            self.source.refuse("it is empty")
        found = self._value(next(self.events), 0)
        last = [next(self.events) for _ in range(2)][1]
        if type(last).__name__ != "StreamEndEvent":
            self.source.refuse("a file holds one document", mark=_mark_of(last.start_mark))
        return found

    def _value(self, event: Any, depth: int) -> Any:
        self.met += 1
        self._taken(event, depth)
        kind = type(event).__name__
        if kind == "ScalarEvent":
            return _resolved(event.value) if event.implicit[0] and not event.style else event.value
        return self._table(depth) if kind == "MappingStartEvent" else self._items(depth)

    def _taken(self, event: Any, depth: int) -> None:
        """Refuse what no definition needs."""
        what = None
        if type(event).__name__ == "AliasEvent" or event.anchor is not None:
            what = "anchors and aliases are refused: write the value where it is meant"
        elif event.tag is not None:
            what = "tags are refused: a definition is plain data"
        elif depth > DEPTH or self.met > VALUES:
            what = f"at most {DEPTH} levels and {VALUES:,} values are allowed"
        if what is not None:
            self.source.refuse(what, mark=_mark_of(event.start_mark))

    def _items(self, depth: int) -> Items:
        items, marks = Items(), {}
        while type(event := next(self.events)).__name__ != "SequenceEndEvent":
            marks[len(items)] = _mark_of(event.start_mark)
            items.append(self._value(event, depth + 1))
        items.marks = marks
        return items

    def _table(self, depth: int) -> Table:
        table, marks = Table(), {}
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            key, mark = self._key(event, table), _mark_of(event.start_mark)
            table[key] = self._value(next(self.events), depth + 1)
            marks[key] = mark
        table.marks = marks
        return table

    def _key(self, event: Any, table: Table) -> str:
        self._taken(event, 0)
        what = None
        if type(event).__name__ != "ScalarEvent":
            what = "a key is text, not a list or mapping"
        elif event.value == "<<" and not event.style:
            what = "merge keys are refused: write the keys where they are meant"
        elif event.value in table:
            what = f"the key {event.value[:100]!r} stands there twice"
        if what is not None:
            self.source.refuse(what, mark=_mark_of(event.start_mark))
        return str(event.value)


def _mark_of(at: Any) -> Mark:
    return 0 if at is None else (at.line + 1) * COLUMNS + at.column + 1
