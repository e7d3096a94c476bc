"""Flow: reads a chunk of records, lets each pass, writes them, and says where source and sinks stand then."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fsmworkflow.context import WorkflowContext
from fsmworkflow.resources import Resources
from fsmworkflow.stream.compiled import passage
from fsmworkflow.stream.pace import Pace, together
from fsmworkflow.stream.passage import End, Passage
from fsmworkflow.stream.sinks import sink_of
from fsmworkflow.stream.words import Batch, Failed, How, Malformed, Sink, Source, StreamError, Unwritable
from fsmworkflow.threads import Threads
from fsmworkflow.workflow import Workflow

__all__ = ["Cursor", "Flow"]

T = TypeVar("T")
Cursor = dict[str, Any]
"""Where a stream stands, as plain data."""

NONE: End = ("", None)
MESSAGE = 20_000
"""So many characters of an error's text are kept."""
ERRORS = "$errors"
"""The name under which a cursor has the sink of `errors=`."""
EMPTY: Cursor = {
    "position": None, "records": 0, "chunks": 0, "errors": 0, "malformed": 0, "read": 0, "states": {}, "kinds": {},
    "ended": False,
}  # fmt: skip


Piece = tuple[list[End], list[dict[str, Any]], int]
"""What became of some records, the entries of those that went wrong, and how many records came before."""


class Done:
    """What has passed of a chunk: `cursor` is where the stream stands then.

    `written` are the records that the commit is to write itself, and `pieces`, where a sink is late, all that passed.
    """

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = {**cursor, "chunks": cursor["chunks"] + 1}
        self.before: int = cursor["records"]
        self.written: dict[Sink, list[Any]] = {}
        self.pieces: list[Piece] = []
        self.states: Counter[str] = Counter(cursor["states"])
        self.kinds: Counter[str] = Counter(cursor["kinds"])

    @property
    def many(self) -> int:
        """How many records of this chunk have passed."""
        return int(self.cursor["records"]) - self.before

    def count(self, batch: Batch, states: Counter[str], wrong: list[dict[str, Any]]) -> None:
        """Count what has passed now."""
        cursor = self.cursor
        cursor["records"] += len(batch.records)
        cursor["malformed"] += batch.bad
        cursor["errors"] += len(wrong) - batch.bad
        cursor["read"] += batch.read
        cursor["ended"] = cursor["ended"] or batch.ended
        self.states.update(states)
        self.kinds.update(entry["error"]["type"] for entry in wrong if "record" in entry)

    def close(self, position: Any, marks: dict[str, Any]) -> None:
        """All of the chunk has reached the sinks, which stand at these marks."""
        told = {"states": dict(self.states), "kinds": dict(self.kinds)}
        self.cursor.update(position=position, sinks=marks, **told)


class Flow:
    """One life of a stream: its source and sinks, once they are open, and the way through."""

    def __init__(
        self,
        workflow: Workflow,
        source: Source,
        sinks: dict[str, Any],
        how: How,
        *,
        errors: Any = None,
        resources: Resources | None = None,
    ) -> None:
        self.workflow, self.source, self.how = workflow, source, how
        self.passage: Passage = passage(workflow, how.mode, resources)
        self.ordered = how.ordered or how.workers == 1
        alone = self.passage.sync and (how.workers == 1 or not self.ordered)
        least = how.workers if self.ordered else 1
        self.pace = Pace(1, 64, how.every / 8) if alone else Pace(least, max(how.workers, 1000), how.every / 4)
        self.opened = self._stopped = False
        self._threads = Threads()
        self.outlets = _each_once({**sinks, **({} if errors is None else {ERRORS: errors})})
        self.sinks = list(dict.fromkeys(sink for sink in self.outlets.values() if sink is not None))
        self._late = any(sink.late for sink in self.sinks)
        self._last: Done | None = None

    def check(self, key: str | None) -> None:
        """Raise ValueError for what says nothing, StreamError for what a key cannot go on with, or what needs one."""
        self.how.check()
        if key is None:
            if any(sink.within for sink in self.sinks):
                raise StreamError("a table in the run's own database is written by a stream with a key: give key=")
            return
        if self.source.identity() is None:
            raise StreamError(f"{self.source.name} cannot be read again from where a crash left it: leave out key=")
        if lost := dict.fromkeys(sink.name for sink in self.sinks if not sink.keeps):
            raise StreamError(f"{', '.join(lost)} cannot be cut back to what was committed: leave out key=")

    # -- its life -----------------------------------------------------------------------------------------------------

    async def begin(self) -> Cursor:
        """Open what is empty, and return the first cursor."""
        cursor: Cursor = {**EMPTY, "source": self.source.identity(), "sinks": {}}
        await self.open(cursor)
        marks = await self._in_thread(self._marks, True)
        return {**cursor, "sinks": marks}

    async def open(self, cursor: Cursor) -> None:
        """Open everything as the cursor has it. Raises StreamError where it is not so."""
        if self.opened:
            return
        marks = dict(cursor["sinks"])
        if marks and marks.keys() != {name for name, _ in self._named()}:
            there, here = ", ".join(marks), ", ".join(name for name, _ in self._named())
            raise StreamError(
                f"this stream began with sinks for {there}, and now there are some for {here}: give those"
            )
        position, known = cursor["position"], cursor["source"] if marks else None
        for name, sink in self._named():
            await self._in_thread(sink.open, marks.get(name))
        self.source.spare([sink.path for sink in self.sinks if sink.path not in ("", "-")])
        await self._in_thread(self.source.open, known, position)
        self.opened = True

    def _named(self) -> Iterator[tuple[str, Sink]]:
        """Each sink under the first state that leads to it."""
        seen: set[int] = set()
        for name, sink in self.outlets.items():
            if sink is not None and id(sink) not in seen:
                seen.add(id(sink))
                yield name, sink

    async def close(self) -> None:
        """Close what is open."""
        for sink in self.sinks:
            sink.close()
        await self.source.leave()
        self.source.close()
        self._threads.close()

    async def _in_thread(self, fn: Callable[..., T], *args: Any) -> T:
        """Call it in a thread. Whoever is cancelled waits until it has ended, so that nobody writes after us."""
        task = asyncio.ensure_future(self._threads.call(fn, *args))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stopped = True
            self.source.stop()
            for sink in self.sinks:
                sink.stop()
            await asyncio.wait([task])
            task.cancelled() or task.exception()  # which nobody asks for any more
            raise

    # -- one chunk ----------------------------------------------------------------------------------------------------

    async def chunk(self, cursor: Cursor, ctx: WorkflowContext | None = None) -> Cursor:
        """Read, pass and write one chunk, and return what changes in the cursor.

        Where the commit came to nothing, and the same cursor is given again, only what belongs to it is written again.
        """
        done = self._last
        if done is None or done.cursor["chunks"] != cursor["chunks"] + 1:
            done = self._last = await self._next(cursor, sync=ctx is not None)
        await self._put(done, ctx)
        return done.cursor

    async def _put(self, done: Done, ctx: WorkflowContext | None) -> None:
        """Write to tables: to those of other databases first, then to ours, in the transaction of the move."""
        within = [entry for entry in done.written.items() if entry[0].within]
        try:
            for sink, records in done.written.items():
                if not sink.within:
                    await sink.put(None, records)
            if ctx is not None and within:
                async with ctx.transaction() as connection:
                    for sink, records in within:
                        await sink.put(connection, records)
        except Unwritable as error:
            raise self._unwritable(error, done.pieces) from error

    async def _next(self, cursor: Cursor, *, sync: bool) -> Done:
        while True:
            done, until = Done(cursor), time.monotonic() + self.how.every
            if self.passage.sync and self.how.workers == 1 and not self.source.waits:
                await self._in_thread(self._whole, done, until, sync)
            else:
                await (self._shared if self.ordered else self._apart)(done, until)
                await self._in_thread(self._finish, done, sync)
            if done.many or done.cursor["ended"]:
                return done

    def _whole(self, done: Done, until: float, sync: bool) -> None:
        """All of a chunk in one thread, few records at a time, so that Python looks for no garbage among many."""
        while (many := min(self.pace.many, self.how.chunk - done.many)) > 0 and not done.cursor["ended"]:
            if (left := until - time.monotonic()) <= 0:
                break
            batch = self.source.read(many, left)
            self._going()
            began, ends = time.monotonic(), [NONE] * len(batch.records)
            self._straight(iter(enumerate(batch.records)), ends, batch.again is not None)
            self._write(done, batch, ends, done.cursor["records"])
            self.pace.took(len(ends), time.monotonic() - began)
        self._finish(done, sync)

    async def _shared(self, done: Done, until: float) -> None:
        """A chunk that several work at, or whose steps are awaited."""
        while (many := min(self.pace.many, self.how.chunk - done.many)) > 0 and not done.cursor["ended"]:
            if (left := until - time.monotonic()) <= 0:
                break
            batch = await self._read(many, left)
            began, ends = time.monotonic(), await self.passed(batch.records, self.how.workers)
            self._write(done, batch, ends, done.cursor["records"])
            self.pace.took(len(ends), time.monotonic() - began)

    async def _apart(self, done: Done, until: float) -> None:
        """A chunk of which each worker reads, passes and writes pieces of its own, so that none waits for another."""
        turn, taken, ended = asyncio.Lock(), 0, False

        async def work() -> None:
            nonlocal taken, ended
            while True:
                async with turn:
                    many, left = min(self.pace.many, self.how.chunk - taken), until - time.monotonic()
                    if ended or many < 1 or left <= 0:
                        return
                    batch, before = await self._read(many, left), done.before + taken
                    taken, ended = taken + len(batch.records), batch.ended
                began, ends = time.monotonic(), await self.passed(batch.records, 1)
                self._write(done, batch, ends, before)
                self.pace.took(len(ends), time.monotonic() - began)

        await together([work() for _ in range(self.how.workers)])

    async def _read(self, many: int, left: float) -> Batch:
        if self.source.waits:
            return await self.source.gather(many, left)
        return await self._in_thread(self.source.read, many, left)

    def _straight(self, records: Iterator[tuple[int, Any]], ends: list[End], ours: bool = False) -> None:
        straight = self.passage.straight
        for number, record in records:
            ends[number] = ("", record) if type(record) is Malformed else straight(record, ours)
            if self._stopped:
                self._going()

    def _going(self) -> None:
        """Raise in a thread of a stream that was stopped."""
        if self._stopped:
            raise StreamError("the stream was stopped")

    async def passed(self, records: list[Any], workers: int) -> list[End]:
        """What becomes of the records, so many at once."""
        ends = [NONE] * len(records)
        waiting = iter(enumerate(records))
        if self.passage.sync:
            await together([self._in_thread(self._straight, waiting, ends) for _ in range(workers)])
        else:
            await together([self._awaited(waiting, ends) for _ in range(workers)])
        return ends

    async def _awaited(self, records: Iterator[tuple[int, Any]], ends: list[End]) -> None:
        for number, record in records:
            ends[number] = ("", record) if type(record) is Malformed else await self.passage.go(record)

    def _write(self, done: Done, batch: Batch, ends: list[End], before: int) -> None:
        """Hand the records to where they go, and count them."""
        states = Counter([state for state, _ in ends])
        wrong = self._wrong(batch, ends, before) if states.pop("", 0) else []
        done.count(batch, states, wrong)
        if self._late:
            done.pieces.append((ends, wrong, before))
        for sink, records in self._sorted(ends, wrong):
            if sink.awaited:
                done.written.setdefault(sink, []).extend(records)
                continue
            try:
                sink.write(records)
            except Unwritable as error:
                raise self._unwritable(error, [(ends, wrong, before)]) from error

    def _finish(self, done: Done, sync: bool) -> None:
        """Let what was written reach the disk, and say where everything stands."""
        self._bound(done.cursor)
        try:
            done.close(self.source.mark(), self._marks(sync))
        except Unwritable as error:
            raise self._unwritable(error, done.pieces) from error

    def _unwritable(self, error: Unwritable, pieces: list[Piece]) -> StreamError:
        """Which record of the source it was that a sink cannot write."""
        states = {state for state, sink in self.outlets.items() if sink is not None and sink.name == error.sink}
        numbers: list[int] = []
        for ends, wrong, before in pieces:
            numbers += [before + place + 1 for place, (state, _) in enumerate(ends) if state in states]
            numbers += [entry["number"] for entry in wrong] if ERRORS in states else []
        which = f"one of the records {numbers[0]:,} to {numbers[-1]:,}"  # where the sink does not say
        place = f"{which if error.place < 0 else f'record {numbers[error.place]:,}'} of {self.source.name}"
        return StreamError(f"{place} cannot be written to {error.sink}: {error.why}. Mend that, and begin again")

    def _sorted(self, ends: list[End], wrong: list[Any]) -> list[tuple[Sink, list[Any]]]:
        """The records of each sink, in their order."""
        lists: dict[Sink, list[Any]] = {sink: [] for sink in self.sinks}
        dropped: list[Any] = []
        ways = {state: dropped if sink is None else lists[sink] for state, sink in self.outlets.items()}
        ways[""] = dropped
        for state, data in ends:
            ways[state].append(data)
        if wrong and (errors := self.outlets[ERRORS]) is not None:
            lists[errors] += wrong
        return [(sink, records) for sink, records in lists.items() if records]

    def _marks(self, sync: bool) -> dict[str, Any]:
        return {name: sink.checkpoint(sync=sync) for name, sink in self._named()}

    def _wrong(self, batch: Batch, ends: list[End], before: int) -> list[dict[str, Any]]:
        """An entry for each record that came to no final state. Raises for the first where there is no place for it."""
        found = []
        for number, (state, what) in enumerate(ends):
            if not state:
                entry = _entry(batch.given(number), what, before + number + 1)
                if ERRORS not in self.outlets:
                    raise self._stops(entry, what)
                found.append(entry)
        return found

    def _stops(self, entry: dict[str, Any], what: Failed | Malformed) -> StreamError:
        place = f"record {entry['number']:,} of {self.source.name}"
        if isinstance(what, Malformed):
            return StreamError(f"{place} is malformed: {what.why}. Give errors= to keep such ones apart, or mend it")
        said = f"{place} failed in state {what.state!r}: {type(what.error).__name__}: {_message(what.error)[:1000]}"
        error = StreamError(f"{said}. Give errors= to keep such ones apart, or mend the step, and begin again")
        error.__cause__ = what.error
        return error

    def _bound(self, cursor: Cursor) -> None:
        wrong, limit = cursor["errors"] + cursor["malformed"], self.how.limit
        if limit is not None and wrong > limit * cursor["records"]:
            share = f"{100 * limit:.6g}%"
            raise StreamError(
                f"{wrong:,} of {cursor['records']:,} records went wrong, which is above the limit of {share}: "
                "what was committed before is kept, and it goes on from there"
            )


def _entry(record: Any, what: Failed | Malformed, number: int) -> dict[str, Any]:
    """A record that went wrong as `errors` has it."""
    if isinstance(what, Malformed):
        return {"number": number, "error": {"type": "Malformed", "message": what.why}, "text": what.text}
    error = {"type": type(what.error).__qualname__, "message": _message(what.error), "state": what.state}
    return {"number": number, "error": error, "record": record}


def _message(error: BaseException) -> str:
    """What an error says, as it may be written anywhere."""
    try:
        return str(error)[:MESSAGE].encode("utf-8", "backslashreplace").decode()
    except Exception:  # its own text cannot be made
        return ""


def _each_once(given: dict[str, Any]) -> dict[str, Sink | None]:
    """A sink for each outlet: what was given twice, as the same file, is one."""
    made: dict[Any, Sink] = {}
    found: dict[str, Sink | None] = {}
    for name, one in given.items():
        place = os.path.realpath(one) if isinstance(one, (str, Path)) else id(one)
        found[name] = None if one is None else made.setdefault(place, sink_of(one))
    return found
