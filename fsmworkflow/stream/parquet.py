"""Parquet: a file, or a folder of part files, as a source; and as a sink a folder that gets a part each checkpoint."""

from __future__ import annotations

import fcntl
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsmworkflow.stream.files import hash_of, sync_name
from fsmworkflow.stream.folder import Folder
from fsmworkflow.stream.words import Batch, Sink, Source, StreamError, Unwritable

__all__ = ["Parquet", "Parts"]

TAIL = 2**14
"""So much of the end of a file, where its schema and the statistics of its columns stand, is what it is known by."""
UNFIT = (TypeError, ValueError, OverflowError, AttributeError, RuntimeError)
"""What pyarrow raises for a record that does not fit: its own errors are of these."""
KEPT: dict[str, set[type]] = {
    **{f"{sign}int{bits}": {int} for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "double": {float, int}, "bool": {bool}, "string": {str}, "binary": {bytes},
}  # fmt: skip
"""Types of columns, and of what pyarrow keeps there as it is or refuses."""
PART = re.compile(r"part-(\d{6,})\.parquet")


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StreamError("Parquet files need: pip install 'fsmworkflow[parquet]'") from error
    return pyarrow


def _tail(path: str) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return hash_of(file.read())


class Parquet(Folder):
    """The rows of a Parquet file, or of all `.parquet` files in a folder, each a record by the names of its columns.

    `columns` are those that are read, None for all. Raises StreamError for a file of another schema than the first one.
    Values are as pyarrow has them: a timestamp is a datetime, a decimal a Decimal, a list or struct a list or dict.
    """

    def __init__(self, path: str | Path, *, columns: list[str] | None = None) -> None:
        _arrow()
        self._schema: Any = None
        pattern = os.path.join(glob.escape(str(path)), "*.parquet") if os.path.isdir(path) else glob.escape(str(path))
        super().__init__(pattern, lambda path: _Part(path, columns))
        self.name = str(path)

    def identity(self) -> dict[str, Any] | None:
        return {**(super().identity() or {}), "schema": str(_schema(self._paths()[0]))}

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        self._schema = _schema(self._paths()[0])
        if known is not None and known["schema"] != str(self._schema):
            raise StreamError(
                f"the first file of {self.name} has another schema than when this stream began. Put that one back, or "
                "begin another stream under another key"
            )
        super().open(known, position)

    def _next(self, known: dict[str, Any] | None, at: Any) -> None:
        path = self._left[0]
        schema = _schema(path)
        if differ := [f"{name}: {ours} and {theirs}" for name, ours, theirs in _differences(self._schema, schema)]:
            raise StreamError(f"{path} has another schema than the first file of {self.name}: {'; '.join(differ)}")
        if len(set(schema.names)) < len(schema.names):
            raise StreamError(f"{path} has columns of the same name: {', '.join(schema.names)}")
        super()._next(known, at)


def _schema(path: str) -> Any:
    arrow = _arrow()
    try:
        return arrow.parquet.read_schema(path).remove_metadata()
    except (arrow.ArrowException, OSError) as error:
        raise StreamError(f"the source {path} cannot be read: {error}") from error


def _differences(ours: Any, theirs: Any) -> Iterator[tuple[str, str, str]]:
    """Each column of which the two do not say the same."""
    one, two = ({field.name: str(field.type) for field in schema} for schema in (ours, theirs))
    for name in {**one, **two}:
        if one.get(name) != two.get(name):
            yield name, one.get(name, "none"), two.get(name, "none")


class _Part(Source):
    """One Parquet file. It stands after so many rows."""

    def __init__(self, path: str, columns: list[str] | None) -> None:
        self.name, self._columns = path, columns
        self._file: Any = None

    def identity(self) -> dict[str, Any] | None:
        return {"path": self.name, "size": os.path.getsize(self.name), "tail": _tail(self.name)}

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        if position and known != self.identity():
            raise StreamError(
                f"the source {self.name} is not the one that this stream began with: its end is another one. Put that "
                "one back, or begin another stream under another key"
            )
        arrow = _arrow()
        try:
            self._file = arrow.parquet.ParquetFile(self.name, buffer_size=2**16, page_checksum_verification=True)
        except (arrow.ArrowException, OSError) as error:
            raise StreamError(f"the source {self.name} cannot be read: {error}") from error
        if unknown := sorted(set(self._columns or ()) - set(self._file.schema_arrow.names)):
            raise StreamError(f"the source {self.name} has no column {', '.join(unknown)}")
        self.size, self._rows = os.path.getsize(self.name), self._file.metadata.num_rows
        self._at, self._batches = position or 0, self._read_on(position or 0)
        self._held: list[Any] = []

    def _read_on(self, skipped: int) -> Iterator[Any]:
        """Blocks of rows, without those that were read before: of the groups that hold only such nothing is read."""
        groups, metadata = list(range(self._file.num_row_groups)), self._file.metadata
        while groups and metadata.row_group(groups[0]).num_rows <= skipped:
            skipped -= metadata.row_group(groups.pop(0)).num_rows
        if not groups:
            return
        for block in self._file.iter_batches(1000, row_groups=groups, columns=self._columns, use_threads=False):
            if skipped < block.num_rows:
                yield block.slice(skipped)
            skipped = max(0, skipped - block.num_rows)

    def read(self, many: int, seconds: float) -> Batch:
        arrow, before = _arrow(), self._share()
        try:
            while not self._held and (block := next(self._batches, None)) is not None:
                self._held = block.to_pylist()
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise StreamError(f"the source {self.name} cannot be read after row {self._at:,}: {error}") from error
        rows, self._held = self._held[:many], self._held[many:]
        self._at += len(rows)
        return Batch(rows, self._share() - before, self._at >= self._rows)

    def _share(self) -> int:
        """How many of its bytes that is."""
        return int((self.size or 0) * self._at / self._rows) if self._rows else 0

    def mark(self) -> Any:
        return self._at

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class Parts(Sink):
    """A folder of Parquet files, `part-000000.parquet` and so on: one for what a commit has for it.

    `schema` is one of pyarrow; without it, it is made of what the first commit has. Raises StreamError for a record
    with another column, or with a value of another type. What a crash left behind after the last commit is taken out.
    """

    late = True

    def __init__(self, path: str | Path, *, schema: Any = None, compression: str = "zstd") -> None:
        _arrow()
        self.path = self.name = str(path)
        self._given, self._schema, self._compression = schema, schema, compression
        self._written: list[Any] = []
        self._mark: dict[str, Any] = {"parts": 0, "bytes": 0, "tail": ""}
        self._lock = -1

    def open(self, mark: Any) -> None:
        self._mark, self._schema = mark or self._mark, self._given
        try:
            os.makedirs(self.path, exist_ok=True)
            sync_name(self.path)
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = self._checked(mark is None)
            for name in left:  # half a part, or one whose commit did not come to be
                os.unlink(os.path.join(self.path, name))
        except BlockingIOError:
            raise StreamError(f"the sink {self.name} is being written to by another stream: wait for its end") from None
        except OSError as error:
            raise StreamError(f"the sink {self.name} cannot be opened: {error}") from error
        if self._mark["parts"]:
            self._schema = _schema(self._part(0))

    def _checked(self, new: bool) -> list[str]:
        """What a crash has left behind. Raises StreamError where what was committed is not there, or others wrote."""
        names, parts = set(os.listdir(self.path)), self._mark["parts"]
        ours = {os.path.basename(self._part(number)) for number in range(parts)}
        left = [name for name in names - ours if _number(name) == parts]
        if others := sorted(names - ours - set(left if not new else ())):
            where = "move it away, or go on under the key with which that was written"
            raise StreamError(f"the sink {self.name} holds {others[0]}, which is not of this stream: {where}")
        size = sum(os.path.getsize(self._part(n)) for n in range(parts)) if ours <= names else -1
        if size != self._mark["bytes"] or (parts and _tail(self._part(parts - 1)) != self._mark["tail"]):
            raise StreamError(
                f"somebody else has changed the sink {self.name}: {parts} parts of {self._mark['bytes']:,} bytes were "
                "committed, and it has others. Put them back, or begin another stream under another key"
            )
        return left

    def _part(self, number: int) -> str:
        return os.path.join(self.path, f"part-{number:06d}.parquet")

    def write(self, records: list[Any]) -> None:
        self._written += records

    def checkpoint(self, *, sync: bool) -> Any:
        records, self._written = self._written, []
        if records:
            self._put(self._table(records), self._part(self._mark["parts"]), sync)
        return self._mark

    def _table(self, records: list[Any]) -> Any:
        """The records as a table. Raises Unwritable for the first that does not fit."""
        arrow = _arrow()
        try:
            schema = self._schema or _inferred(records)
            table = arrow.Table.from_pylist(records, schema=schema)
        except UNFIT as error:
            raise self._unfit(records, error) from error
        self._equal(records, table)
        if untyped := [field.name for field in schema if _untyped(field.type)]:
            raise StreamError(
                f"the sink {self.name} cannot tell the type of {', '.join(untyped)}, which has no value in the "
                f"{len(records):,} records of the first commit: give sinks.Parquet(path, schema=...)"
            )
        self._schema = schema
        return table

    def _equal(self, records: list[Any], table: Any) -> None:
        """Raise Unwritable for a record that the table has otherwise: pyarrow cuts off what does not fit."""
        known = set(table.schema.names)
        for place, record in enumerate(records):
            if not record.keys() <= known:
                raise Unwritable(self.name, place, f"there is no column {', '.join(sorted(record.keys() - known))}")
        for field, column in zip(table.schema, table.columns, strict=True):
            given = [record.get(field.name) for record in records]
            if set(map(type, given)) - {type(None)} <= KEPT.get(str(field.type), set()):
                continue
            for place, (one, other) in enumerate(zip(given, column.to_pylist(), strict=True)):
                if one != other and not _same(one, other):
                    raise Unwritable(
                        self.name, place, f"{field.name} is not as its column has it, which is {field.type}"
                    )

    def _unfit(self, records: list[Any], error: Exception) -> StreamError:
        """Which of the records it was: the first that does not fit with those before it."""
        arrow, schema = _arrow(), self._schema
        for place, record in enumerate(records):
            try:
                schema = schema or _inferred([record])
                arrow.Table.from_pylist([record], schema=schema)
            except UNFIT as failed:
                return Unwritable(self.name, place, f"{failed}. Its columns are {_said(schema)}")
        return StreamError(f"the sink {self.name} cannot write these records: {error}. Give schema=")

    def _put(self, table: Any, path: str, sync: bool) -> None:
        """Write a part whole, or not at all."""
        arrow = _arrow()
        try:
            with open(path, "wb") as file:
                arrow.parquet.write_table(table, file, compression=self._compression, write_page_checksum=True)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            if sync:
                os.fsync(self._lock)
        except (OSError, arrow.ArrowException) as error:
            said = f"the sink {self.name} cannot be written: {error}"
            raise StreamError(f"{said}. What was committed is there: mend that, and go on") from error
        size = self._mark["bytes"] + os.path.getsize(path)
        self._mark = {"parts": self._mark["parts"] + 1, "bytes": size, "tail": _tail(path)}

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def _inferred(records: list[Any]) -> Any:
    """The schema of records, of the columns of all of them."""
    arrow = _arrow()
    names = dict.fromkeys(name for record in records for name in record)
    return arrow.schema([(name, arrow.array([record.get(name) for record in records]).type) for name in names])


def _untyped(kind: Any) -> bool:
    """Whether it is the type of what has no value, such as null or a list of nothing."""
    return str(kind) in ("null", "struct<>") or any(
        _untyped(kind.field(place).type) for place in range(kind.num_fields)
    )


def _same(given: Any, back: Any) -> bool:
    """Whether that is the value that was given: what a dict lacks is None, and floats are as wide as they are."""
    if isinstance(given, dict):
        if not isinstance(back, dict):  # a map
            return given == dict(back)
        return given.keys() <= back.keys() and all(_same(given.get(name), value) for name, value in back.items())
    if isinstance(given, (list, tuple)) and isinstance(back, list):
        return len(given) == len(back) and all(map(_same, given, back))
    return bool(given == back or isinstance(back, float))


def _said(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) if schema is not None else "not known yet"


def _number(name: str) -> int:
    found = PART.fullmatch(name)
    return -1 if found is None else int(found[1])
