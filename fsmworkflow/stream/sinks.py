"""Where records go: files of JSON lines, CSV or text, gzip and zstd too, standard output, lists.

A file sink knows how long it was at each checkpoint, and what its last block was: what a crash left behind that is cut
off, and what somebody else has changed is refused. It is locked while it is written to.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fsmworkflow.conditions import cut
from fsmworkflow.stream.files import GLANCE, hash_of, sync_name
from fsmworkflow.stream.packing import is_packed, named, packed
from fsmworkflow.stream.parquet import Parts as Parquet
from fsmworkflow.stream.sources import understood
from fsmworkflow.stream.tables import Table
from fsmworkflow.stream.words import Sink, StreamError, Unwritable
from fsmworkflow.stream.xml import element, element_name

__all__ = ["Csv", "Into", "JsonLines", "Parquet", "Table", "Text", "Xml", "sink_of"]

TAIL = 4096
UNFIT = (ValueError, TypeError, KeyError, RecursionError, csv.Error)
"""What is raised for a record that cannot be written."""
NESTED = {list, dict}


class _File(Sink):
    """A file that grows. `path` "-" is standard output; ".gz" or ".zst" at its end: a member or frame a checkpoint."""

    def __init__(self, path: str | Path, encoding: str = "utf-8") -> None:
        self.path, self.encoding = str(path), encoding
        self.name = "standard output" if self.path == "-" else self.path
        self.packed = is_packed(self.path)
        self.keeps = self._stays = self.path != "-" and (not os.path.exists(self.path) or os.path.isfile(self.path))
        self._descriptor = -1
        self._length, self._tail, self._halted = 0, b"", False
        self._written: list[bytes] = []

    def open(self, mark: Any) -> None:
        if self.path == "-":
            try:
                sys.stdout.flush()
                self._descriptor = os.dup(sys.stdout.fileno())
            except (OSError, ValueError, AttributeError) as error:  # closed, or something in its place
                raise StreamError("standard output of this program is no file to write to") from error
            return
        if self.packed:
            packed(self.path, b"")  # which says that an extra is missing, before anything is there
        try:
            self._descriptor = self._opened() if self._stays else self._opened_pipe()
            if self._stays:
                self._lock()
                self._length, self._tail = self._checked(mark)
                self._cut()
        except OSError as error:
            self.close()
            raise StreamError(f"the sink {self.name} cannot be opened: {error}") from error
        except StreamError:
            self.close()
            raise

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _opened_pipe(self) -> int:
        """Wait until somebody reads there."""
        while not self._halted:
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                time.sleep(GLANCE)
            else:
                os.set_blocking(descriptor, True)
                return descriptor
        raise StreamError(f"the stream was stopped before somebody read from {self.name}")

    def stop(self) -> None:
        self._halted = True

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StreamError(f"the sink {self.name} is being written to by another stream: wait for its end") from None

    def _checked(self, mark: Any) -> tuple[int, bytes]:
        """The length and the last block that were committed. Raises StreamError where the file does not have them."""
        size = os.fstat(self._descriptor).st_size
        if mark is None:
            if size:
                raise StreamError(
                    f"the sink {self.name} holds {size:,} bytes already, not of this stream: move it away, or "
                    "go on under the key with which they were written"
                )
            return 0, b""
        length = mark["length"]
        tail = os.pread(self._descriptor, min(TAIL, length), length - min(TAIL, length))
        if size < length or hash_of(tail) != mark["tail"]:
            what = f"it has {size:,} bytes" if size < length else "the last of those are others"
            raise StreamError(
                f"somebody else has changed the sink {self.name}: {length:,} bytes of it were committed, and {what}. "
                "Put it back, or begin another stream under another key"
            )
        return length, tail

    def _cut(self) -> None:
        """Take off what was written after the last commit, and make sure that the file itself is there."""
        os.ftruncate(self._descriptor, self._length)
        os.lseek(self._descriptor, self._length, os.SEEK_SET)
        os.fsync(self._descriptor)
        sync_name(self.path)

    def write(self, records: list[Any]) -> None:
        try:
            self._written.append(self._text(records))
        except UNFIT:
            for place, record in enumerate(records):
                try:
                    self._written.append(self._text([record]))
                except UNFIT as error:
                    raise Unwritable(self.name, place, _why(error)) from error
            raise

    def _text(self, records: list[Any]) -> bytes:
        raise NotImplementedError

    def _encoded(self, text: str) -> bytes:
        """Text as bytes; the mark with which some encodings begin stands where the file does, and there alone."""
        begun = self._length or self._written
        return text.encode(self.encoding)[len("".encode(self.encoding)) if begun else 0 :]

    def checkpoint(self, *, sync: bool) -> Any:
        data = b"".join(self._written)
        self._written.clear()
        if data:
            self._put(packed(self.path, data) if self.packed else data)
        if self._stays and data:
            self._there()
        if sync and data:
            self._flush()
        return self._mark() if self.keeps else None

    def _flush(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._full(error) from error

    def _there(self) -> None:
        """Raise StreamError where the file that is written to is no more the one of that name."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            same = False
        if not same:
            raise StreamError(
                f"the sink {self.name} was moved or deleted while it was written to: put it back, and go on"
            )

    def _full(self, error: OSError) -> StreamError:
        said = f"the sink {self.name} cannot be written: {error}"
        return StreamError(f"{said}. What was committed is there: mend that, and go on")

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left if self._stays else self._room(left)) :]
        except OSError as error:
            raise self._full(error) from error
        self._length += len(data)
        self._tail = (self._tail + data)[-TAIL:]

    def _room(self, left: memoryview) -> memoryview:
        """Wait until a pipe takes more, and return what it takes at once. Raises StreamError where it is to stop."""
        taken = select.poll()
        taken.register(self._descriptor, select.POLLOUT)
        while not taken.poll(1000 * GLANCE):
            if self._halted:
                raise StreamError(f"the stream was stopped while nobody read from {self.name}")
        return left[: select.PIPE_BUF]

    def _mark(self) -> dict[str, Any]:
        return {"length": self._length, "tail": hash_of(self._tail)}

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _cell(value: Any) -> Any:
    """A value as CSV has it: lists and dicts as JSON text."""
    return msgspec.json.encode(value).decode() if type(value) in NESTED else value


def _why(error: BaseException) -> str:
    return f"it has no field {error}" if isinstance(error, KeyError) else str(error)


class JsonLines(_File):
    """A file with a JSON object in each line: https://jsonlines.org."""

    def _text(self, records: list[Any]) -> bytes:
        return _lines(records)


_lines = msgspec.json.Encoder().encode_lines


class Text(_File):
    """A file of lines: what each record has in `field`, which is one line."""

    def __init__(self, path: str | Path, *, field: str = "line", encoding: str = "utf-8") -> None:
        super().__init__(path, encoding)
        self.field = field

    def _text(self, records: list[Any]) -> bytes:
        text = "".join([f"{record[self.field]}\n" for record in records])
        if text.count("\n") > len(records):
            raise ValueError(f"its {self.field} has several lines")
        return self._encoded(text)


class Csv(_File):
    """A file of comma-separated values, as RFC 4180 has it, its first row being `names`, or those of the first record.

    A record with another name is refused; one that lacks a name has nothing there. Lists and dicts are JSON text.
    `dialect` and what else Python's csv.writer takes say how it is written.
    """

    def __init__(
        self, path: str | Path, *, names: Sequence[str] | None = None, encoding: str = "utf-8",
        dialect: str = "excel", **how: Any,
    ) -> None:  # fmt: skip
        super().__init__(path, encoding)
        self.names, self._dialect, self._how = list(names or ()), dialect, how
        understood(csv.writer, io.StringIO(), dialect, how)

    def open(self, mark: Any) -> None:
        super().open(mark)
        if mark is not None:
            self.names = mark["names"]

    def _text(self, records: list[Any]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, self._dialect, **self._how)
        if not self._length and not self._written:
            self.names = self.names or list(records[0])
            writer.writerow(self.names)
        known = set(self.names)
        for record in records:
            if not record.keys() <= known:
                other = ", ".join(sorted(record.keys() - known))
                raise ValueError(f"there is no column for {other}: give sinks.Csv(path, names=[...])")
            row = [record.get(name) for name in self.names]
            writer.writerow(row if NESTED.isdisjoint(map(type, row)) else map(_cell, row))
        return self._encoded(text.getvalue())

    def _mark(self) -> dict[str, Any]:
        return {**super()._mark(), "names": self.names}


class Xml(_File):
    """A file of elements of one name, one for each record, within a root: what `sources.Xml` reads.

    A field is an element in it, a list one for each item, a dict one that holds others; None is left out. It has an
    end, and so cannot be cut back: no key. Raises ValueError for a name that XML does not have.
    """

    def __init__(self, path: str | Path, element: str, *, root: str = "records") -> None:
        super().__init__(path)
        self.keeps, self._element, self._root = False, element_name(element), element_name(root)

    def _text(self, records: list[Any]) -> bytes:
        head = "" if self._length or self._written else f'<?xml version="1.0" encoding="utf-8"?>\n<{self._root}>\n'
        return self._encoded(head + "".join([f"{element(self._element, record)}\n" for record in records]))

    async def end(self) -> None:
        self._written.append(self._text([]) + f"</{self._root}>\n".encode())
        self.checkpoint(sync=False)


class Into(Sink):
    """A list of this program, which grows."""

    keeps = False
    name = "a list"

    def __init__(self, records: list[Any]) -> None:
        self._records = records

    def write(self, records: list[Any]) -> None:
        self._records += records


FORMATS: dict[str, Callable[[str | Path], Sink]] = {
    ".jsonl": JsonLines, ".ndjson": JsonLines, ".csv": Csv, ".tsv": partial(Csv, dialect="excel-tab"),
    ".txt": Text, ".log": Text, ".parquet": Parquet,
}  # fmt: skip


def sink_of(given: Any) -> Sink:
    """The sink that is meant: a Sink, a path by the end of its name ("-": JSON lines to standard output), or a list.

    Raises StreamError for a name that says no format.
    """
    if isinstance(given, Sink):
        return given
    if isinstance(given, list):
        return Into(given)
    if not isinstance(given, (str, Path)):
        raise StreamError(f"{cut(given)} is no sink: give a path, a Sink of sinks.py, or a list")
    return named(given, FORMATS, "sinks")(given)
