"""XML as a source: each element of a name is a record. Nothing else of the file is held, and nothing is expanded."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from fsmworkflow.stream.files import LINE
from fsmworkflow.stream.packing import TORN, Unpacked, is_packed
from fsmworkflow.stream.words import Batch, Source, StreamError

__all__ = ["Xml"]

BLOCK = 2**16
TEXT = "#text"


class Xml(Source):
    """The elements of a name in an XML file, wherever they stand: a record has its attributes and inner elements.

    An inner element with neither attributes nor elements of its own is its text; several of one name are a list; text
    beside others is `#text`. All values are text. A name that ends with ".gz" or ".zst" is unpacked. It cannot be gone
    on with by a key. Raises StreamError for a file that is not well formed, has a DOCTYPE, or an element over `limit`
    bytes.
    """

    def __init__(self, path: str | Path, element: str, *, limit: int = LINE) -> None:
        self.name = self._path = str(path)
        self._element, self._limit = element, limit
        self._file: Any = None
        self._records: list[Any] = []
        self._stack: list[tuple[str, dict[str, Any], list[str]]] = []
        self._began = 0
        self._over = False

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
        except (*TORN, expat.ExpatError) as error:
            raise StreamError(f"the source {self.name} cannot be read on: {error}") from error
        if self._stack and self._parser.CurrentByteIndex - self._began > self._limit:
            raise StreamError(f"an element of {self.name} is over the limit of {self._limit:,} bytes")
        return len(block)

    # -- what the parser tells ----------------------------------------------------------------------------------------

    def _begins(self, name: str, attributes: dict[str, str]) -> None:
        if not self._stack:
            if name != self._element:
                return
            self._began = self._parser.CurrentByteIndex
        self._stack.append((name, dict(attributes), []))

    def _says(self, text: str) -> None:
        if self._stack:
            self._stack[-1][2].append(text)

    def _ends(self, name: str) -> None:
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
