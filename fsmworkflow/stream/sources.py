"""Where records come from: files of JSON lines, CSV or text, gzip and zstd too, standard input, lists, generators.

A source reads in a thread. One that knows who it is and where it stands can be gone on with by a key.
"""

from __future__ import annotations

import asyncio
import csv
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fsmworkflow.conditions import cut
from fsmworkflow.errors import log
from fsmworkflow.stream.files import LINE, File, Line, Long, each, malformed
from fsmworkflow.stream.folder import Folder
from fsmworkflow.stream.packing import named
from fsmworkflow.stream.parquet import Parquet
from fsmworkflow.stream.tables import Rows
from fsmworkflow.stream.words import Batch, Source, StreamError
from fsmworkflow.stream.xml import Xml

__all__ = ["Csv", "Errors", "JsonLines", "Parquet", "Records", "Rows", "Source", "Text", "Xml", "files", "source_of"]


LEAVE = 10.0
"""So many seconds an async generator may take to stop."""


class JsonLines(File):
    """A file with a JSON object in each line, in UTF-8: https://jsonlines.org. Empty lines are passed over."""

    def __init__(self, path: str | Path, *, limit: int = LINE) -> None:
        super().__init__(path, limit=limit)

    def begin(self) -> None:
        self._one = msgspec.json.Decoder(dict[str, Any])

    def _records(self, many: int, until: float) -> tuple[list[Any], int]:
        lines = self._take(many, until)
        try:
            whole: Any = b"\n".join(lines) if self._whole(lines) else b""  # type: ignore[arg-type]
            records: list[Any] = self._one.decode_lines(whole)
            if len(records) == len(lines):
                self._again = lambda place: self._record(lines[place])
                return records, 0
        except (ValueError, TypeError, IndexError, RecursionError):
            pass
        return each(lines, self._record)

    def _whole(self, lines: list[Any]) -> bool:
        """Whether each is from brace to brace, so that as many records as lines are one on each, none on two."""
        ends = {line[-1] for line in lines}
        if ends == {ord("\r")}:
            ends = {line[-2] for line in lines}
        return ends == {ord("}")} and {line[0] for line in lines} == {ord("{")}

    def _record(self, line: Line) -> Any:
        return self._one.decode(self._text(line) if isinstance(line, Long) else line)


class Errors(JsonLines):
    """What a stream has written to `errors=`, as a source of its own: the records, to be driven once more."""

    def _records(self, many: int, until: float) -> tuple[list[Any], int]:
        return each(self._take(many, until), self._record)

    def _record(self, line: Line) -> Any:
        entry = super()._record(line)
        if not isinstance(entry.get("record"), dict):
            what = "it holds no record, only what was malformed" if "text" in entry else "no stream wrote it to errors="
            raise ValueError(what)
        return entry["record"]


class Text(File):
    """A file of text or log lines: each is a record `{"line": ...}`. Empty lines are passed over."""

    def _record(self, line: Line) -> Any:
        return {"line": self._text(line).removesuffix("\r")}


class Csv(File):
    """A file of comma-separated values, as RFC 4180 has it: each row is a record by the names of its first row.

    `names` are those of a file without such a row; `dialect` and what else Python's csv.reader takes say how it is
    written. All values are text. A row with more or fewer values is malformed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        names: Sequence[str] | None = None,
        encoding: str = "utf-8",
        limit: int = LINE,
        dialect: str = "excel",
        **how: Any,
    ) -> None:
        super().__init__(path, encoding=encoding, limit=limit)
        self.names, self._given, self._dialect, self._how = list(names or ()), names is not None, dialect, how
        understood(csv.reader, (), dialect, how)

    def begin(self) -> None:
        self._row: list[Line] = []
        self._until = math.inf
        self._reader = csv.reader(self._texts(), self._dialect, **self._how)
        if not self._given:
            self.names = self._first()
        if len(set(self.names)) < len(self.names):
            raise StreamError(f"the source {self.name} has columns of the same name: {', '.join(self.names)}")

    def _first(self) -> list[str]:
        """The names in the first row."""
        try:
            return [name.removeprefix("\ufeff") for name in next(self._reader, [])]
        except (ValueError, csv.Error) as error:
            hint = "say how it is written: sources.Csv(path, encoding=, delimiter=)"
            what = f"the source {self.name} has no first row that names its columns: {error}"
            raise StreamError(f"{what}: {hint}") from error

    def _seek(self, at: int) -> None:
        super()._seek(at)
        self._reader = csv.reader(self._texts(), self._dialect, **self._how)

    def _texts(self) -> Iterator[str]:
        return _Texts(self)

    def _line(self) -> str:
        """The next line, with its end, for a row of which it is a part: a row that has begun is waited for."""
        if not (lines := self._take(1, math.inf if self._row else self._until)):
            if self._row:
                raise ValueError("the file ends within a value in quotes")
            raise StopIteration
        self._row.append(lines[0])
        return self._text(lines[0]) + "\n"

    def _records(self, many: int, until: float) -> tuple[list[Any], int]:
        records: list[Any] = []
        bad, self._until = 0, until
        while len(records) < many and (time.monotonic() < until or not records):
            self._row.clear()
            try:
                row = next(self._reader, None)
                if row is None:
                    break
                if row:
                    records.append(self._named(row))
            except (ValueError, csv.Error) as error:
                whole: Any = (
                    self._row[0] if len(self._row) == 1 else b"\n".join(x for x in self._row if type(x) is bytes)
                )
                records.append(malformed(whole, error))
                bad += 1
        return records, bad

    def _named(self, row: list[str]) -> dict[str, str]:
        if len(row) != len(self.names):
            raise ValueError(f"it has {len(row)} values, and there are {len(self.names)} columns")
        return dict(zip(self.names, row, strict=True))


class _Texts(Iterator[str]):
    """Lines for csv.reader; unlike a generator, it goes on after a line that was no text."""

    def __init__(self, source: Csv) -> None:
        self._source = source

    def __next__(self) -> str:
        return self._source._line()


def understood(made: Any, given: Any, dialect: str, how: dict[str, Any]) -> None:
    """Raise ValueError for what Python's csv does not take."""
    try:
        made(given, dialect, **how)
    except (csv.Error, TypeError) as error:
        known = ", ".join(csv.list_dialects())
        raise ValueError(f"{error}: a dialect is one of {known}, and the rest as Python's csv module has it") from error


class Records(Source):
    """Records of this program: a list, or anything that gives dicts one by one, awaited or not.

    A list can be gone on with by a key; it must be the same one then. What gives them slowly is an async generator.
    """

    def __init__(self, records: Iterable[Any] | AsyncIterator[Any]) -> None:
        self.name = f"the {type(records).__name__} of records"
        self._records: Any = records
        self._many = len(records) if isinstance(records, Sequence) else None
        self.waits = hasattr(records, "__aiter__")
        self._coming: asyncio.Task[Any] | None = None

    def identity(self) -> dict[str, Any] | None:
        return None if self._many is None else {"records": self._many}

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        if known is not None and known["records"] != self._many:
            raise StreamError(f"{self.name} has {self._many} records, and had {known['records']} when the stream began")
        self._at = position or 0
        if self._many is not None:
            self._iterator: Any = iter(self._records[self._at :]) if self._at else iter(self._records)
        else:
            self._iterator = aiter(self._records) if self.waits else iter(self._records)

    def share(self, read: int, records: int) -> float | None:
        return min(1.0, records / self._many) if self._many else None

    def read(self, many: int, seconds: float) -> Batch:
        records, until = [], time.monotonic() + seconds
        for record in self._iterator:
            records.append(record)
            if len(records) == many or time.monotonic() > until:
                break
        else:
            return self._batch(records, True)
        return self._batch(records, False)

    def mark(self) -> Any:
        return None if self._many is None else self._at

    def _batch(self, records: list[Any], ended: bool) -> Batch:
        self._at += len(records)
        return Batch(records, 0, ended)

    async def gather(self, many: int, seconds: float) -> Batch:
        records: list[Any] = []
        until = time.monotonic() + seconds
        while len(records) < many:
            if self._coming is None:
                self._coming = asyncio.ensure_future(anext(self._iterator))
            done, _ = await asyncio.wait([self._coming], timeout=max(0.0, until - time.monotonic()))
            if not done:
                break
            coming, self._coming = self._coming, None
            try:
                records.append(coming.result())
            except StopAsyncIteration:
                return self._batch(records, True)
        return self._batch(records, False)

    async def leave(self) -> None:
        """Wait for an async generator that was asked for a record, so that whoever made it may close it."""
        if self._coming is None:
            return
        self._coming.cancel()
        await asyncio.wait([self._coming], timeout=LEAVE)
        error = self._coming.exception() if self._coming.done() and not self._coming.cancelled() else None
        if error is not None and not isinstance(error, StopAsyncIteration):
            log.warning("%s, asked to stop, raised %r", self.name, error)


FORMATS: dict[str, Callable[..., Source]] = {
    ".jsonl": JsonLines, ".ndjson": JsonLines, ".csv": Csv, ".tsv": partial(Csv, dialect="excel-tab"),
    ".txt": Text, ".log": Text, ".parquet": Parquet,
}  # fmt: skip


def source_of(given: Any) -> Source:
    """The source that is meant: a Source, a path by the end of its name ("-": JSON lines of standard input), records.

    Raises StreamError for a name that says no format.
    """
    if isinstance(given, Source):
        return given
    if not isinstance(given, (str, Path)):
        if isinstance(given, Mapping) or not (hasattr(given, "__iter__") or hasattr(given, "__aiter__")):
            hint = "call it, and give what it returns" if callable(given) else "give a path, a Source, or records"
            raise StreamError(f"{cut(given)} is no source: {hint}")
        return Records(given)
    return named(given, FORMATS, "sources")(given)


def files(pattern: str | Path, kind: Callable[[str], Source] | None = None) -> Source:
    """The files that a pattern names as one source, by the order of their paths: `sources.files("logs/*.log.gz")`.

    `kind` makes the source of each, as `sources.Text`, where its name does not say what is in it. See Folder.
    """
    return Folder(pattern, source_of if kind is None else kind)
