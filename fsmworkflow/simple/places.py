"""Where records of a simple machine come from and go to: by the formats that dataknobs-fsm names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from fsmworkflow.stream import sinks, sources
from fsmworkflow.stream.files import each
from fsmworkflow.stream.packing import TORN, Unpacked, bare, is_packed
from fsmworkflow.stream.words import Sink, StreamError

__all__ = ["Calls", "Dropped", "Format", "sink_of", "source_of"]

SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is read: `input_format` is auto, jsonl, json, csv or text; auto goes by its name, else it is text."""

    input_format: str = "auto"
    text_field_name: str = "text"
    csv_delimiter: str = ","
    csv_has_header: bool = True
    skip_empty_lines: bool = True


def source_of(given: Any, how: Format) -> Any:
    """The source that is meant: of a path by its format; anything else gives records as it is."""
    if not isinstance(given, (str, Path)):
        return given
    named = SUFFIXES.get(bare(given).suffix.lower(), "text")
    kind = named if how.input_format == "auto" else how.input_format
    if kind == "jsonl":
        return sources.JsonLines(given)
    if kind == "text":
        return _Lines(given, how)
    if kind == "csv":
        delimiter = "\t" if bare(given).suffix.lower() == ".tsv" else how.csv_delimiter
        return sources.Csv(given, delimiter=delimiter) if how.csv_has_header else _Columns(given, delimiter)
    if kind == "parquet":
        return sources.source_of(given)
    if kind == "json":
        return _whole(given)
    raise ValueError(f"there is no format {kind!r}: auto, jsonl, json, csv, text")


class _Columns(sources.Csv):
    """A file of rows without names: its columns are col_0, col_1 and so on, as many as the first row has."""

    def __init__(self, path: str | Path, delimiter: str) -> None:
        super().__init__(path, names=(), delimiter=delimiter)

    def _named(self, row: list[str]) -> dict[str, str]:
        self.names = self.names or [f"col_{number}" for number, _ in enumerate(row)]
        return super()._named(row)


def _whole(path: str | Path) -> list[Any]:
    """A file that is one JSON value: the records of a list, or one record."""
    try:
        with closing(Unpacked(str(path)) if is_packed(path) else Path(path).open("rb")) as file:
            found = msgspec.json.decode(file.read(-1))
    except (*TORN, msgspec.DecodeError) as error:
        raise StreamError(f"{path} cannot be read: {error}") from error
    return found if isinstance(found, list) else [found]


class _Lines(sources.Text):
    """Lines of text as the field that is named; empty ones, which other sources pass over, where they are asked for."""

    def __init__(self, path: str | Path, how: Format) -> None:
        super().__init__(path)
        self._how = how

    def _records(self, many: int, until: float) -> tuple[list[Any], int]:
        if self._how.skip_empty_lines:
            return super()._records(many, until)
        found: list[Any] = []
        bad = 0
        for line in self._take(many, until):
            some, wrong = each([line], self._record)
            found += some or [self._record(line)]
            bad += wrong
        return found, bad

    def _record(self, line: Any) -> Any:
        return {self._how.text_field_name: super()._record(line)["line"]}


def sink_of(given: Any) -> Any:
    """The sink that is meant: a path, a function that is called with each record, a list, a Sink, or None."""
    if callable(given) and not isinstance(given, Sink):
        return Calls(given)
    if isinstance(given, (str, Path)) and bare(given).suffix.lower() not in sinks.FORMATS:
        if bare(given).suffix.lower() == ".json":
            raise StreamError(f"{given} would be one JSON value: give a name that ends with .jsonl")
        return sinks.JsonLines(given)
    return given


class Calls(Sink):
    """A function that is called with each record, awaited or not, in the event loop."""

    keeps = False
    awaited = True
    name = "a function"

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    async def put(self, connection: Any, records: list[Any]) -> None:
        for record in records:
            if inspect.isawaitable(result := self._function(record)):
                await result


class Dropped(Sink):
    """Takes what went wrong, of which only the number is kept."""

    name = "nowhere"

    def write(self, records: list[Any]) -> None:
        return
