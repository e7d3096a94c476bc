"""Folder: many files as one source, in the order of their names."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsmworkflow.stream.packing import is_packed
from fsmworkflow.stream.words import Batch, Source, StreamError

__all__ = ["Folder"]


class Folder(Source):
    """The files that a pattern names, such as "logs/*.log.gz" or "in/**/*.csv", one after the other by their paths.

    `kind` makes the source of each, where its name does not say what is in it. A stream goes on by key within the file
    that it was at. A file that comes meanwhile is read where its path is behind all others; one between them only by a
    stream that goes on later, and one before them not at all.
    """

    def __init__(self, pattern: str | Path, kind: Callable[[str], Source]) -> None:
        self.name = self._pattern = str(pattern)
        self._kind = kind
        self._left: list[str] = []
        self._sizes: dict[str, int] = {}
        self._packed = False
        self._path = ""
        self._known: dict[str, Any] | None = None
        self._source: Source | None = None
        self._spared: list[str] = []

    def _paths(self) -> list[str]:
        found = sorted(path for path in glob.glob(self._pattern, recursive=True) if os.path.isfile(path))
        if not found:
            raise StreamError(f"there is no file {self._pattern}")
        return found

    def _to_read(self, paths: list[str]) -> list[str]:
        """These paths. Raises StreamError for one that is a sink, whose records would come round for ever."""
        if ours := [path for path in paths if any(_within(path, sink) for sink in self._spared)]:
            raise StreamError(
                f"{ours[0]} is written by this stream, and is among the files {self._pattern} that it reads: give a "
                "sink elsewhere"
            )
        return paths

    def identity(self) -> dict[str, Any] | None:
        self._paths()
        return {"pattern": self._pattern}

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        paths = self._paths()
        self._sizes = {path: os.path.getsize(path) for path in paths}
        self.size, self._packed = sum(self._sizes.values()), any(map(is_packed, paths))
        if position is None:
            self._left = self._to_read(paths)
            self._next(None, None)
            return
        if position["path"] not in paths or (known or {}).get("pattern") != self._pattern:
            raise StreamError(
                f"this stream was at {position['path']}, which is not among the files {self._pattern}: put it back, or "
                "begin another stream under another key"
            )
        self._left = self._to_read(paths[paths.index(position["path"]) :])
        self._next(position["known"], position["at"])

    def _next(self, known: dict[str, Any] | None, at: Any) -> None:
        """Open the next file."""
        self.close()
        self._path = self._left.pop(0)
        self._source = self._kind(self._path)
        self._known = known or self._source.identity()
        self._source.open(known, at)

    def read(self, many: int, seconds: float) -> Batch:
        assert self._source is not None
        batch = self._source.read(many, seconds)
        if batch.ended:
            come = [] if self._left else [path for path in self._paths() if path > self._path]  # meanwhile
            self._left += self._to_read(come)
        if batch.ended and self._left:
            batch.ended = False
            self._next(None, None)
        return batch

    def share(self, read: int, records: int) -> float | None:
        """Where some are packed, by their sizes as they stand there: how long they are unpacked nobody knows."""
        if self._source is None or not self.size or not self._packed:
            return super().share(read, records)
        within = self._source.share(read, records) if is_packed(self._path) else None
        done = sum(size for path, size in self._sizes.items() if path < self._path)
        return min(1.0, (done + (within or 0.0) * self._sizes.get(self._path, 0)) / self.size)

    def spare(self, paths: list[str]) -> None:
        self._spared = paths

    def stop(self) -> None:
        if self._source is not None:
            self._source.stop()

    def mark(self) -> Any:
        assert self._source is not None
        return {"path": self._path, "known": self._known, "at": self._source.mark()}

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source = None


def _within(path: str, sink: str) -> bool:
    """Whether a file is this sink, by whatever name, or in that folder."""
    same = os.path.exists(sink) and os.path.samefile(path, sink)
    return same or os.path.realpath(path).startswith(os.path.realpath(sink) + os.sep)
