"""Files of lines as sources: read in blocks, known again by size, time and hashes, and begun anywhere."""

from __future__ import annotations

import hashlib
import os
import select
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsmworkflow.stream.packing import TORN, Unpacked, is_packed
from fsmworkflow.stream.words import Batch, Malformed, Source, StreamError

__all__ = ["GLANCE", "LINE", "File", "Line", "Long", "each", "hash_of", "malformed", "sync_name"]

BLOCK = 2**18
HEAD = 4096
LINE = 16 * 2**20
SHOWN = 10_000
GLANCE = 0.1
"""Seconds between two looks whether who waits at a pipe is to stop."""


class Long:
    """A line over the limit: its beginning, and its length."""

    def __init__(self, head: bytes, length: int) -> None:
        self.head, self.length = head, length

    def __len__(self) -> int:
        return self.length


Line = bytes | Long


class File(Source):
    """A file of lines. `path` "-" is standard input; a name that ends with ".gz" or ".zst" is unpacked.

    A line over `limit` bytes is malformed, and is not held in memory. Raises ValueError for an encoding such as UTF-16,
    in which the byte 10 does not end a line.
    """

    def __init__(self, path: str | Path, *, encoding: str = "utf-8", limit: int = LINE) -> None:
        if not "a\n".encode(encoding).endswith(b"a\n"):
            raise ValueError(f"the lines of a file that is {encoding} do not end with the byte 10: make it UTF-8 first")
        self.path, self.encoding, self.limit = str(path), encoding, limit
        self.name = "standard input" if self.path == "-" else self.path
        self.packed = is_packed(self.path)
        self.position = 0
        self._file: Any = None
        self._pipe = self._halted = False
        self._again: Callable[[int], Any] | None = None

    # -- who it is, and where it stands -------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any] | None:
        try:
            stat = os.stat(self.path)
        except OSError as error:
            if self.path == "-":
                return None
            raise StreamError(f"the source {self.name} cannot be read: {error}") from error
        if not os.path.isfile(self.path):
            return None
        return {"path": self.path, "size": stat.st_size, "time": stat.st_mtime_ns}

    def mark(self) -> dict[str, Any]:
        """The position, with hashes of what the file begins with, and of what stands before it."""
        if self.packed or self._pipe:
            return {"at": self.position}
        return {"at": self.position, **_read(self._file.fileno(), self.position)}

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        at = 0 if position is None else position["at"]
        try:
            self._open()
        except OSError as error:
            raise StreamError(f"the source {self.name} cannot be read: {error}") from error
        if known is not None and not self._pipe:
            self._same(known, at, position)
        self._forget()
        self.begin()
        if at:
            self._seek(at)

    def _open(self) -> None:
        if self.path == "-":
            if (given := getattr(sys.stdin, "buffer", None)) is None:  # closed, or something in its place
                raise StreamError("standard input of this program is no file to read from")
            self._file, self._pipe = getattr(given, "raw", given), True
            return
        self._pipe = not os.path.isfile(self.path)
        # Open until `close`.
        raw = open(self.path, "rb", buffering=0, opener=_at_once) if self._pipe else None  # noqa: SIM115
        if raw is not None:
            os.set_blocking(raw.fileno(), True)
        self._file = Unpacked(self.path, raw) if self.packed else raw or open(self.path, "rb", buffering=0)  # noqa: SIM115
        if not self.packed and not self._pipe:
            self.size = os.fstat(self._file.fileno()).st_size

    def _same(self, known: dict[str, Any], at: int, position: Any) -> None:
        """Raise StreamError unless this is the file that was read so far; that it has grown does no harm."""
        stat, what = os.stat(self.path), None
        if stat.st_size < known["size"]:
            what = f"it has {stat.st_size:,} bytes, and had {known['size']:,}"
        elif self.packed and (stat.st_size, stat.st_mtime_ns) != (known["size"], known["time"]):
            what = "it was written to, and a packed file cannot be compared"
        elif at and not self.packed and {"at": at, **_read(self._file.fileno(), at)} != position:
            what = f"of the {at:,} bytes that were read, the first or the last are others"
        if what is not None:
            self.close()
            raise StreamError(
                f"the source {self.name} is not the one that this stream began with: {what}. Put that one back, or "
                "begin another stream under another key"
            )

    def _forget(self) -> None:
        """Nothing was read that is not given yet."""
        self._lines: list[Line] = []
        self._next, self._rest, self._long, self._over, self._cut = 0, b"", 0, False, False

    def _seek(self, at: int) -> None:
        self._forget()
        try:
            self._file.seek(at)
        except TORN as error:
            raise StreamError(f"the source {self.name} cannot be read at byte {at:,}: {error}") from error
        self.position = at

    def share(self, read: int, records: int) -> float | None:
        if self.packed and self._file is not None and not self._pipe:
            return float(self._file.share)
        return super().share(read, records)

    def begin(self) -> None:
        """Read what stands before the records."""

    def close(self) -> None:
        if self._file is not None and self.path != "-":
            self._file.close()
        self._file = None

    # -- lines --------------------------------------------------------------------------------------------------------

    def _fill(self, until: float) -> bool:
        """Read a block. False where nothing has come by then."""
        if self._pipe and not self._waited(until):
            return False
        try:
            block = self._file.read(BLOCK)
        except TORN as error:  # such as a packed file that is cut off
            raise StreamError(f"the source {self.name} cannot be read after byte {self.position:,}: {error}") from error
        lines = self._lines[self._next :]
        if block:
            self._split(block, lines)
        else:
            self._end(lines)
        self._lines, self._next = lines, 0
        return True

    def _waited(self, until: float) -> bool:
        """Wait until something has come through a pipe."""
        come = select.poll()
        come.register(self._file, select.POLLIN)
        while not self._halted:
            left = until - time.monotonic()
            if come.poll(1000 * max(0.0, min(left, GLANCE))):
                return True
            if left <= GLANCE:
                break
        return False

    def stop(self) -> None:
        self._halted = True

    def _split(self, block: bytes, lines: list[Line]) -> None:
        """Add the lines that end in a block. Of what has not ended, `_rest` is kept; too long, only its beginning."""
        parts = block.split(b"\n")
        if self._long:
            self._long += len(parts[0])
            if len(parts) == 1:
                return
            lines.append(Long(self._rest, self._long))
            self._long, parts = 0, parts[1:]
        else:
            parts[0] = self._rest + parts[0]
        self._rest = parts.pop()
        lines += [part if len(part) <= self.limit else Long(part[:SHOWN], len(part)) for part in parts]
        if len(self._rest) > self.limit:
            self._rest, self._long = self._rest[:SHOWN], len(self._rest)

    def _end(self, lines: list[Line]) -> None:
        self._over = True
        if not self._pipe and not self.packed and os.fstat(self._file.fileno()).st_size < self._file.tell():
            raise StreamError(f"the source {self.name} was cut off while it was read: put it back, and begin again")
        if self._rest or self._long:
            lines.append(Long(self._rest, self._long) if self._long else self._rest)
            self._cut = True

    def _take(self, many: int, until: float) -> list[Line]:
        """Up to so many lines, without their ends."""
        ahead = 0 if self._pipe else 1  # so that the last ones are known to be the last
        while len(self._lines) - self._next < many + ahead and not self._over and self._fill(until):
            pass
        lines = self._lines[self._next : self._next + many]
        if not self.position and lines and isinstance(lines[0], bytes) and lines[0].startswith(BOM_UTF8):
            self.position, lines[0] = len(BOM_UTF8), lines[0].removeprefix(BOM_UTF8)
        self._next += len(lines)
        self.position += sum(map(len, lines)) + len(lines) - (self._cut and self._ended and bool(lines))
        return lines

    @property
    def _ended(self) -> bool:
        return self._over and self._next >= len(self._lines)

    def read(self, many: int, seconds: float) -> Batch:
        began, self._again = self.position, None
        records, bad = self._records(many, time.monotonic() + seconds)
        return Batch(records, self.position - began, self._ended, bad, self._again)

    def _records(self, many: int, until: float) -> tuple[list[Any], int]:
        lines = self._take(many, until)
        return each(lines, self._record)

    def _record(self, line: Line) -> Any:
        raise NotImplementedError

    def _text(self, line: Line) -> str:
        if isinstance(line, Long):
            raise ValueError(f"a line of {line.length:,} bytes is over the limit of {self.limit:,}")
        return line.decode(self.encoding)


def each(lines: list[Line], record: Callable[[Line], Any]) -> tuple[list[Any], int]:
    """A record for each line that is not empty, and how many of them are none."""
    found, bad = [], 0
    for line in lines:
        if isinstance(line, bytes) and (not line or line.isspace()):
            continue
        try:
            found.append(record(line))
        except (ValueError, RecursionError) as error:  # msgspec's errors, and those of text, are ValueErrors
            found.append(malformed(line, error))
            bad += 1
    return found, bad


def malformed(line: Line, error: Exception) -> Malformed:
    text = line.head if isinstance(line, Long) else line
    return Malformed(text[:SHOWN].decode("utf-8", "replace"), f"{error}")


def _at_once(path: str, flags: int) -> int:
    """Open a pipe, also where nobody writes to it yet."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read(descriptor: int, at: int) -> dict[str, str]:
    """Hashes of the first and the last block of what was read."""
    many = min(HEAD, at)
    return {"head": hash_of(os.pread(descriptor, many, 0)), "before": hash_of(os.pread(descriptor, many, at - many))}


def hash_of(data: bytes) -> str:
    """A hash by which data is known again."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def sync_name(path: str) -> None:
    """Make sure that a file or folder of this name is there after a power cut."""
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
