"""Batch: the records of a program through a workflow, and what became of each, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from fsmworkflow.conditions import cut
from fsmworkflow.engine import Engine
from fsmworkflow.errors import CodecError, InputDiffers, InvalidKey, Poisoned, RunFailed
from fsmworkflow.records import Run, Status
from fsmworkflow.stream.flow import Flow
from fsmworkflow.stream.pace import together
from fsmworkflow.stream.run import checked, meant
from fsmworkflow.stream.sources import source_of
from fsmworkflow.stream.words import Failed, How, Malformed, Mode, Source, StreamError, whole_number
from fsmworkflow.threads import Threads
from fsmworkflow.workflow import Workflow

__all__ = ["Outcome", "batch"]

PART = 1000
"""So many records are read at once."""
Key = str | Callable[[Any], str]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one record of a batch; `number` is its place, from 0.

    `status` is "done" or "failed", of a run any status of a run: such as "waiting", where only an event moves it.
    `state` and `data` are where it came to. Of what failed, `error` was raised in `state`, and `data` is what it was
    given there; a final state whose outcome is "failed" has no error. `key` is that of its run, which is "parked", with
    Poisoned, where it ended its process three times: `engine.retry` lets it go on.
    """

    number: int
    status: Status
    state: str
    data: Any
    error: BaseException | None = None
    key: str | None = None


async def batch(
    engine: Engine | None,
    workflow: Workflow | str,
    records: Any,
    *,
    concurrency: int = 50,
    durable: bool = False,
    key: Key | None = None,
    mode: Mode = "copy",
) -> list[Outcome]:
    """Let records pass through a workflow, `concurrency` at once, and return what became of each, in their order.

    `records` are a list, anything that gives dicts one by one, awaited or not, or a source of a stream. What one
    of them raises is in its outcome, and stops no other. Each is a passage in memory, as in `stream`, whose
    `mode` this is; nothing is kept, and `engine` may be None.

    With `durable` each is a run of its own, which may wait, retry and have timers; they start and move together, many
    in one commit. It returns once all have ended or rest. With a `key` their keys are `key/0`, `key/1`, ..., or what
    a function makes of each record: given again after a crash, those that ended are reported, the others go on, and a
    record that is not the one from before fails with InputDiffers. Cancelling stops the waiting, not the runs.

    Raises StreamError for what cannot be in a passage, ValueError for numbers that say nothing; what the engine and its
    store cannot do is raised as by `engine.run`.
    """
    workflow = meant(engine, workflow)
    whole_number("concurrency", concurrency)
    if not durable:
        if key is not None:
            raise ValueError("key= is for runs: give durable=True, or leave it out")
        checked(workflow)
    elif engine is None:
        raise StreamError("a durable batch needs an engine, whose store keeps its runs")
    elif not (key is None or isinstance(key, str) or callable(key)):
        raise InvalidKey(f"key {cut(key)} must be text, or a function that makes the key of a record")
    source = source_of(records)
    if not durable or engine is None:
        resources = None if engine is None else engine.resources
        flow = Flow(workflow, source, {}, How(workers=concurrency, mode=mode), resources=resources)
        flow.check(None)
        given = await _all(source)
        ends = enumerate(zip(given, await flow.passed(given, concurrency), strict=True))
        return [_passed(workflow, number, record, *end) for number, (record, end) in ends]
    return await _Runs(engine, workflow, key, await _all(source)).all(concurrency)


async def _all(source: Source) -> list[Any]:
    """Every record of a source."""
    found: list[Any] = []
    threads, ended = Threads(), False
    await threads.call(source.open, None, None)
    try:
        while not ended:
            read = source.gather(PART, 1.0) if source.waits else threads.call(source.read, PART, 1.0)
            some = await read
            found += some.records
            ended = some.ended
    finally:
        source.close()
    return found


def _passed(workflow: Workflow, number: int, record: Any, state: str, what: Any) -> Outcome:
    if state:
        return Outcome(number=number, status=workflow.states[state].outcome, state=state, data=what)
    if isinstance(what, Failed):
        return Outcome(number=number, status="failed", state=what.state, data=record, error=what.error)
    return _malformed(number, what)


def _malformed(number: int, what: Malformed) -> Outcome:
    error = StreamError(f"record {number + 1:,} is malformed: {what.why}")
    return Outcome(number=number, status="failed", state="", data=what.text, error=error)


class _Runs:
    """The runs of a durable batch."""

    def __init__(self, engine: Engine, workflow: Workflow, key: Key | None, records: list[Any]) -> None:
        self.engine, self.workflow, self.key, self.records = engine, workflow, key, records
        self.outcomes: dict[int, Outcome] = {}

    async def all(self, concurrency: int) -> list[Outcome]:
        waiting = iter(enumerate(self.records))
        await together([self._some(waiting) for _ in range(min(concurrency, len(self.records)))])
        return [self.outcomes[number] for number in range(len(self.records))]

    async def _some(self, waiting: Iterator[tuple[int, Any]]) -> None:
        for number, record in waiting:
            malformed = isinstance(record, Malformed)
            self.outcomes[number] = _malformed(number, record) if malformed else await self._one(number, record)

    async def _one(self, number: int, record: Any) -> Outcome:
        name = f"{self.key}/{number}" if isinstance(self.key, str) else self.key and self.key(record)
        try:
            run = await self.engine.run(self.workflow, record, key=name, different="refuse" if name else "log")
            return _ran(number, run, None)
        except RunFailed as error:
            ended = error.run.state in self.workflow.finals
            return _ran(number, error.run, None if ended else error.__cause__ or error)
        except (CodecError, InvalidKey, InputDiffers) as error:
            state = self.workflow.initial
            return Outcome(number=number, status="failed", state=state, data=record, error=error, key=name)


def _ran(number: int, run: Run, error: BaseException | None) -> Outcome:
    if run.status == "parked" and run.error is not None:
        error = Poisoned(run.error.message)
    return Outcome(number=number, status=run.status, state=run.state, data=run.data, error=error, key=run.key)
