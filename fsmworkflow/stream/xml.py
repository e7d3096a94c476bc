"""XML: each element of a name is a record, and the other way round. Nothing else of a file is held or expanded."""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import msgspec

from fsmworkflow.errors import log
from fsmworkflow.stream.files import LINE
from fsmworkflow.stream.packing import TORN, Unpacked, is_packed
from fsmworkflow.stream.words import Batch, Source, StreamError

__all__ = ["Xml", "element", "element_name"]

BLOCK = 2**16
DEEP = 1000
TEXT = "#text"
SIGNS = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
ESCAPED = re.compile("[&<>\r]")
FOREIGN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML has no sign for: https://www.w3.org/TR/xml/#charsets."""


class Xml(Source):
    """The elements of a name in an XML file, wherever they stand: a record has its attributes and inner elements.

    An inner element with neither attributes nor elements of its own is its text; several of one name are a list; text
    beside others is `#text`. All values are text. A name that ends with ".gz" or ".zst" is unpacked. It cannot be gone
    on with by a key. Raises StreamError for a file that is not well formed, has a DOCTYPE, elements in each other
    over 1,000 deep, or an element, a tag or a comment over `limit` bytes. One without such an element has no records,
    and the log says so.
    """

    def __init__(self, path: str | Path, element: str, *, limit: int = LINE) -> None:
        self.name = self._path = str(path)
        self._element, self._limit = element, limit
        self._file: Any = None
        self._records: list[Any] = []
        self._stack: list[tuple[str, dict[str, Any], list[str]]] = []
        self._began = self._fed = self._deep = 0
        self._over = False
        self._root, self._found = "", False

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        try:
            # Open until `close`.
            self._file = Unpacked(self._path) if is_packed(self._path) else open(self._path, "rb")  # noqa: SIM115
            self.size = None if is_packed(self._path) else os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise StreamError(f"the source {self.name} cannot be read: {error}") from error
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._begins
        self._parser.EndElementHandler = self._ends
        self._parser.CharacterDataHandler = self._says
        self._parser.StartDoctypeDeclHandler = self._doctype

    def share(self, read: int, records: int) -> float | None:
        return float(self._file.share) if isinstance(self._file, Unpacked) else super().share(read, records)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def read(self, many: int, seconds: float) -> Batch:
        until, read = time.monotonic() + seconds, 0
        while len(self._records) < many and not self._over and time.monotonic() < until:
            read += self._parse()
        records, self._records = self._records[:many], self._records[many:]
        return Batch(records, read, self._over and not self._records)

    def _parse(self) -> int:
        """Read a block, and see that an element that has begun does not go on for ever."""
        try:
            block = self._file.read(BLOCK)
            self._over = not block
            self._parser.Parse(block, self._over)
            self._fed += len(block)
            if self._over and not self._found:
                log.warning("%s has no element %r: its root is %r", self.name, self._element, self._root)
        except (*TORN, expat.ExpatError) as error:
            raise StreamError(f"the source {self.name} cannot be read on: {error}") from error
        if self._stack and self._parser.CurrentByteIndex - self._began > self._limit:
            raise StreamError(f"an element of {self.name} is over the limit of {self._limit:,} bytes")
        if self._fed - self._parser.CurrentByteIndex > self._limit and not self._over:
            raise StreamError(f"a tag or comment of {self.name} is over the limit of {self._limit:,} bytes")
        return len(block)

    # -- what the parser tells ----------------------------------------------------------------------------------------

    def _begins(self, name: str, attributes: dict[str, str]) -> None:
        self._deep += 1
        if self._deep > DEEP:
            raise StreamError(f"{self.name} has elements in each other over {DEEP:,} deep, which no record is")
        if not self._stack:
            self._root = self._root or name
            if name != self._element:
                return
            self._found = True
            self._began = self._parser.CurrentByteIndex
        self._stack.append((name, dict(attributes), []))

    def _says(self, text: str) -> None:
        if self._stack:
            self._stack[-1][2].append(text)

    def _ends(self, name: str) -> None:
        self._deep -= 1
        if not self._stack:
            return
        _, fields, texts = self._stack.pop()
        text = "".join(texts).strip()
        if not self._stack:
            self._records.append({**fields, TEXT: text} if text else fields)
            return
        value: Any = ({**fields, TEXT: text} if text else fields) if fields else text
        around = self._stack[-1][1]
        if name not in around:
            around[name] = value
        elif isinstance(around[name], list):
            around[name].append(value)
        else:
            around[name] = [around[name], value]

    def _doctype(self, *_: Any) -> NoReturn:
        raise StreamError(f"the source {self.name} has a DOCTYPE, of which nothing is expanded here: take it out")


def element(name: str, record: dict[str, Any]) -> str:
    """A record as an element, as Xml reads it: a field is an element in it, a list one for each item, None is none.

    Raises ValueError or TypeError for what XML cannot hold.
    """
    return "".join(_parts(name, msgspec.to_builtins(record)))


def element_name(name: Any) -> str:
    """A name, which may be that of an element. Raises ValueError for another one."""
    if not isinstance(name, str) or not _is_name(name):
        raise ValueError(f"{name!r} cannot be the name of an element")
    return name


def _parts(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    element_name(name)
    if not isinstance(value, dict):
        return [f"<{name}>{_text(value)}</{name}>"]
    parts = [f"<{name}>"]
    for field, inner in value.items():
        if field == TEXT:
            parts.append(_text(inner))
            continue
        for one in inner if isinstance(inner, list) else [inner]:
            parts += _parts(field, one)
    return [*parts, f"</{name}>"]


def _text(value: Any) -> str:
    if isinstance(value, list):
        raise TypeError("a list in a list has no element of its own")
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if (sign := FOREIGN.search(text)) is not None:
        raise ValueError(f"XML has no sign for {sign[0]!r}")
    return ESCAPED.sub(lambda found: SIGNS[found[0]], text)


@lru_cache(1000)
def _is_name(name: str) -> bool:
    """Whether the parser takes it for one."""
    found: list[Any] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda *one: found.append(one)
    try:
        parser.Parse(f"<{name}/>".encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError:
        return False
    return found == [(name, {})] and ":" not in name
