"""What is said of a stream: how records flow, how far it is, what was malformed, what went wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import msgspec

from fsmworkflow.errors import FSMWorkflowError

__all__ = [
    "Batch",
    "Failed",
    "How",
    "Malformed",
    "Mode",
    "Progress",
    "Sink",
    "Source",
    "StreamError",
    "Unwritable",
    "whole_number",
]


Mode = Literal["copy", "reference", "direct"]


class StreamError(FSMWorkflowError):
    """A stream cannot begin, or cannot go on. What was committed stays; the message says what to do."""

    code: ClassVar[str] = "stream"


class Unwritable(StreamError):
    """A sink cannot write the record at this place, from 0, of those it was given now; a late one, for this commit.

    -1 where it does not know which of them it was.
    """

    def __init__(self, sink: str, place: int, why: str) -> None:
        super().__init__(f"the sink {sink} cannot write a record: {why}")
        self.sink, self.place, self.why = sink, place, why


class Malformed(msgspec.Struct, frozen=True):
    """A piece of a source that is no record: its text, cut at 10,000 characters, and why it is none."""

    text: str
    why: str


class Failed(msgspec.Struct, frozen=True):
    """A record that came to no final state: `error` was raised in `state`."""

    state: str
    error: BaseException


class How(msgspec.Struct, frozen=True, kw_only=True):
    """How records flow, in the words of `stream`; `every` in seconds."""

    chunk: int = 1
    every: float = 1.0
    workers: int = 1
    ordered: bool = True
    limit: float | None = None
    mode: Mode = "copy"

    def check(self) -> None:
        """Raise ValueError for what says nothing."""
        whole_number("chunk", self.chunk)
        whole_number("workers", self.workers)
        if not self.every > 0:
            raise ValueError(f"every is a time over 0, not {self.every:g} s")
        if self.limit is not None and not 0 <= self.limit <= 1:
            raise ValueError(f"limit is a share from 0 to 1, not {self.limit!r}")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is 'copy', 'reference' or 'direct', not {self.mode!r}")


def whole_number(name: str, number: Any) -> None:
    """Raise ValueError for what is no whole number from 1."""
    if type(number) is not int or number < 1:
        raise ValueError(f"{name} must be a whole number from 1, not {number!r}")


class Batch(msgspec.Struct):
    """Some records of a source in their order, some of them perhaps Malformed (`bad` says how many).

    `read` is how many bytes of it that is, where they are counted; `ended` says that there are no more. `again` makes
    the record of a place once more, where nobody else holds the records, so that they may be changed.
    """

    records: list[Any]
    read: int = 0
    ended: bool = False
    bad: int = 0
    again: Callable[[int], Any] | None = None

    def given(self, place: int) -> Any:
        """The record at this place as it was read."""
        return self.records[place] if self.again is None else self.again(place)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream is, over all lives of its key; all of it is committed.

    `records` were read, of which `malformed` were none and `errors` raised; `states` counts where the others ended,
    `kinds` the errors by their class. `read` is in bytes, 0 where they are not counted; `share` is the part of the
    source that is done, from 0 to 1, and `left` the seconds that the rest takes at this `rate` (records a second in
    this life), both None where the size is not known. `resumed` is how many records earlier lives had done.
    """

    key: str | None
    records: int = 0
    chunks: int = 0
    errors: int = 0
    malformed: int = 0
    states: dict[str, int] = {}
    kinds: dict[str, int] = {}
    read: int = 0
    share: float | None = None
    rate: float = 0.0
    left: float | None = None
    seconds: float = 0.0
    resumed: int = 0
    ended: bool = False


class Source:
    """Where records come from. `name` is for messages; `size` in bytes, None where that is not known.

    `waits` says that `gather` is awaited in the event loop; else `read` is called in a thread.
    """

    name = "the source"
    size: int | None = None
    waits = False

    def identity(self) -> dict[str, Any] | None:
        """Who this source is, as plain data, to be known again; None where it cannot be gone on with."""
        return None

    def open(self, known: dict[str, Any] | None, position: Any) -> None:
        """Begin at `position`, None for the beginning. Raises StreamError where it is not the source `known`."""

    def read(self, many: int, seconds: float) -> Batch:
        """Up to `many` records, fewer where `seconds` have passed or nothing more is there."""
        raise NotImplementedError

    async def gather(self, many: int, seconds: float) -> Batch:
        """The same, awaited."""
        raise NotImplementedError

    def mark(self) -> Any:
        """Where it stands after what was read, as plain data, for `open`."""

    def share(self, read: int, records: int) -> float | None:
        """Which part of it is done once so many bytes and records were read, None where nobody knows."""
        return min(1.0, read / self.size) if self.size else None

    def spare(self, paths: list[str]) -> None:
        """Called before `open`: these files and folders are the stream's own sinks, of which nothing is to be read."""

    def stop(self) -> None:
        """Called from elsewhere: who waits in a thread for what may never come is to give up. Then comes `close`."""

    async def leave(self) -> None:
        """Wait until nothing that was begun in the event loop is under way. Then comes `close`."""

    def close(self) -> None:
        """Let go of what is open."""


class Sink:
    """Where records go, one call at a time. `write`, which may be called in the event loop, only takes records up; in
    `checkpoint`, which is called in a thread, they reach their place.

    `keeps` says that it can be cut back to a mark, as a key asks for, or takes what is written twice as once. `awaited`
    says that its records are written by `put` in the event loop, `within` that this is in the stream's own move. `late`
    says that it may refuse a record only at the checkpoint. `path` is its file or folder, if any.
    """

    name = "the sink"
    path = ""
    keeps = True
    awaited = False
    within = False
    late = False

    def open(self, mark: Any) -> None:
        """Begin after `mark`, None for an empty sink. Raises StreamError where it is not what was left there."""

    def write(self, records: list[Any]) -> None:
        """Take records, in this order. Raises Unwritable for one that it cannot write."""
        raise NotImplementedError

    async def put(self, connection: Any, records: list[Any]) -> None:
        """Write records, `within` the move through its connection, of asyncpg or aiosqlite; else there is none."""
        raise NotImplementedError

    def checkpoint(self, *, sync: bool) -> Any:
        """Let what was written reach the place, with `sync` so that it survives a power cut. Returns the mark."""

    async def end(self) -> None:
        """No more will come: the source has ended, and all of it was written."""

    def stop(self) -> None:
        """Called from elsewhere: who waits in a thread for what may never come is to give up. Then comes `close`."""

    def close(self) -> None:
        """Let go of what is open."""
