"""The run that a stream with a key is: each chunk of records is one move of it, and its data is the cursor."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fsmworkflow.conditions import cut, field
from fsmworkflow.context import WorkflowContext
from fsmworkflow.engine import Engine
from fsmworkflow.errors import log
from fsmworkflow.machine import PersistentWorkflowStateMachine
from fsmworkflow.records import RETRY, Event, Run
from fsmworkflow.retry import Duration, seconds
from fsmworkflow.stream.flow import Cursor, Flow
from fsmworkflow.stream.passage import outlets, refused
from fsmworkflow.stream.sources import source_of
from fsmworkflow.stream.words import How, Mode, Progress, Source, StreamError
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow

__all__ = ["PREFIX", "RETRIED", "checked", "meant", "outline", "retry", "stream"]

Told = Callable[[Progress], Awaitable[None] | None]

PREFIX = "$stream:"
"""Before the name of a workflow, that of the workflow whose runs are its streams."""
RETRIED = "`retry(engine, workflow, key)` of fsmworkflow.stream, or `fsmworkflow retry`, lets it go on"
STEERED = {"parked": f". {RETRIED}", "paused": ". `fsmworkflow unpause` lets it go on"}


async def stream(
    engine: Engine | None,
    workflow: Workflow | str,
    source: Any,
    sink: Any,
    *,
    key: str | None = None,
    chunk: int = 10_000,
    every: Duration = "1s",
    workers: int = 1,
    ordered: bool = True,
    errors: Any = None,
    limit: float | None = None,
    mode: Mode = "copy",
    on_progress: Told | None = None,
) -> Progress:
    """Let every record of a source pass through a workflow, into a sink, or one for each final state.

    `source` is a path whose name says what is in it (.jsonl, .csv, .tsv, .txt, .log, each also .gz or .zst; .parquet),
    "-", a Source, or anything that gives dicts one by one, awaited or not. `sink` is a path, "-", a Sink or a list; or
    `{state: sink}` with an entry for each final state, None for what is only counted.

    With a `key` it survives a crash: up to `chunk` records, or what came within `every` of a slow source, are one
    commit, made once the sinks are on disk. Started again with that key it goes on after the last commit, and cuts the
    sinks back to it, so that each record is in them once, in the order of the source; one that has ended is reported,
    and the log says so where it is given another source than it had.
    A sink must be empty at first. Without a key nothing is kept, and `engine` may be None.

    `workers` records are under way at once; with `ordered=False` what is done sooner is written sooner, and the order
    within a commit is lost. A record whose step raises, or whose condition has no answer, goes to `errors` with the
    error, and so does what is malformed; without `errors` it stops the stream. `limit` is the share of those, from 0 to
    1, above which it stops. `mode` says what a step is given: its own "copy" of the data, so that a step that fails has
    changed nothing; a "reference", of which lists and dicts are copied when they are touched; or "direct", the record
    itself. Sync steps run in a thread that is theirs for a whole chunk. `on_progress` is called after each commit.

    Raises StreamError, with the cause: for what cannot be done in a passage (waiting, timers, pauses before a retry,
    children, compensation, remembered calls, transactions), a source or sink that cannot be gone on with, or has been
    changed by somebody else; for a record that failed. All that was committed stays, and it may be started again.
    """
    workflow = meant(engine, workflow)
    how = How(chunk=chunk, every=seconds(every), workers=workers, ordered=ordered, limit=limit, mode=mode)
    resources = None if engine is None else engine.resources
    flow = Flow(workflow, source_of(source), _sinks(workflow, sink), how, errors=errors, resources=resources)
    telling = Telling(flow, key, on_progress)
    try:
        flow.check(key)
        if key is None:
            return await _unkept(flow, telling)
        if engine is None:
            raise StreamError("a stream with a key needs an engine, whose store keeps where it is")
        return await _kept(engine, flow, key, telling)
    finally:
        await flow.close()


def meant(engine: Any, workflow: Any) -> Workflow:
    """The workflow, perhaps by its name as the engine knows it. Raises TypeError for what is neither."""
    if isinstance(engine, Engine | None):
        if isinstance(workflow, Workflow):
            return workflow
        if isinstance(workflow, str) and engine is not None:
            return engine.known(workflow)
    raise TypeError(f"first comes an Engine, or None, then a Workflow: not {cut(engine)} and {cut(workflow)}")


def checked(workflow: Workflow) -> Workflow:
    """The workflow, which can be passed through in memory. Raises StreamError for what cannot be in a passage."""
    workflow.check()
    if problems := refused(workflow):
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise StreamError(f"workflow {workflow.name!r} has what a passage in a stream cannot do:{listed}")
    return workflow


def _sinks(workflow: Workflow, given: Any) -> dict[str, Any]:
    """The sink of each state in which a passage may end. Raises StreamError for what cannot be in a stream."""
    ends = outlets(checked(workflow))
    if not isinstance(given, Mapping):
        return dict.fromkeys(ends, given)
    unknown, missing = [state for state in given if state not in ends], [state for state in ends if state not in given]
    if unknown or missing:
        said = f"no record ends in {', '.join(unknown)}" if unknown else f"there is none for {', '.join(missing)}"
        raise StreamError(f"the sinks of workflow {workflow.name!r} are {{state: sink}} for {', '.join(ends)}: {said}")
    return dict(given)


async def _unkept(flow: Flow, telling: Telling) -> Progress:
    cursor = await flow.begin()
    while not cursor["ended"]:
        cursor = {**cursor, **await flow.chunk(cursor)}
        await telling.tell(cursor)
    for sink in flow.sinks:
        await sink.end()
    return telling.progress(cursor)


async def _kept(engine: Engine, flow: Flow, key: str, telling: Telling) -> Progress:
    engine.worker.check()
    hooks = engine.worker.hooks.given
    machine = PersistentWorkflowStateMachine(_Use(engine.worker), _built_in(flow, telling), key, hooks=hooks)
    run = await machine.run_workflow()
    if run.status != "done":
        raise StreamError(
            f"stream {key!r} is {run.status}, and does not go on: {_why(run)}{STEERED.get(run.status, '')}"
        )
    cursor = dict(run.data)
    if flow.opened:
        await telling.tell(cursor)
    else:
        telling.resumed = cursor["records"]
        _tell_other(flow.source, key, cursor["source"])
    return telling.progress(cursor)


def _tell_other(source: Source, key: str, read: Cursor) -> None:
    """Say in the log that a stream which has ended had read something else than it is given now."""
    now = source.identity() or {}
    other = [name for name in read if name != "time" and read[name] != now.get(name)]
    if other:
        there = ", ".join(f"{name} {read[name]}, now {now.get(name)}" for name in other)
        log.error(
            "stream %r has ended with another source (%s): nothing was read of %s. For that take another key",
            key, there, source.name,
        )  # fmt: skip


def _why(run: Run) -> str:
    known = run.error if run.status in ("failed", "parked") else None
    return known.message if known is not None else "somebody has steered it so"


class _Use:
    """What a machine works with: the owner that the engine is."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def acquire(self) -> Worker:
        return self.worker

    async def release(self) -> None:
        """It stays open."""


def _built_in(flow: Flow, telling: Telling) -> Workflow:
    """The workflow whose run is this stream. It begins with a commit, so that what is in a sink later is its own."""

    async def begin(ctx: WorkflowContext) -> None:
        ctx.data.update(await flow.begin())

    async def go_on(ctx: WorkflowContext) -> None:
        cursor = dict(ctx.data)
        if not flow.opened:
            await flow.open(cursor)
            telling.resumed = cursor["records"]
        elif cursor["chunks"]:
            await telling.tell(cursor)
        ctx.data.update(await flow.chunk(cursor, ctx))

    return outline(PREFIX + flow.workflow.name, begin, go_on)


async def _nothing(ctx: WorkflowContext) -> None:
    """What a step does for those who only steer."""


def outline(name: str, begin: Any = _nothing, go_on: Any = _nothing) -> Workflow:
    """The workflow of this name, whose runs are streams. For those who steer them, its steps may be left out."""
    made = Workflow(name)
    made.step("begin", initial=True, then="flow")(begin)
    made.step("flow", then=[(field("ended") == True, "done"), "flow"])(go_on)  # noqa: E712 (a condition)
    made.final("done")
    return made


class Telling:
    """Tells how far a stream is."""

    def __init__(self, flow: Flow, key: str | None, told: Told | None) -> None:
        self.flow, self.key, self.told = flow, key, told
        self.resumed = 0
        self._began = time.monotonic()

    async def tell(self, cursor: Cursor) -> None:
        if self.told is not None:
            result = self.told(self.progress(cursor))
            if inspect.isawaitable(result):
                await result

    def progress(self, cursor: Cursor) -> Progress:
        past, done = time.monotonic() - self._began, cursor["records"]
        rate = (done - self.resumed) / past if past else 0.0
        share = 1.0 if cursor["ended"] else self.flow.source.share(cursor["read"], done)
        left = (done / share - done) / rate if share and rate else None
        said = {name: cursor[name] for name in Progress.__struct_fields__ if name in cursor}
        return Progress(**said, key=self.key, share=share, rate=rate, left=left, seconds=past, resumed=self.resumed)


async def retry(engine: Engine, workflow: Workflow | str, key: str) -> None:
    """Let the next `stream` with this key go on with one that was parked, as three processes ended while it was on.

    Raises RunNotFound and, for one that has ended, RunOver.
    """
    engine.worker.check()
    await engine.store.post(PREFIX + meant(engine, workflow).name, key, Event(name=RETRY, id=uuid.uuid4().hex))
