"""A machine for records: one, several, a stream of them, or one step by step. From async code and from synchronous."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from fsmworkflow.conditions import cut
from fsmworkflow.engine import Engine
from fsmworkflow.errors import DefinitionError, FSMWorkflowError, UnknownState, log, nearest
from fsmworkflow.readers.dataknobs import load
from fsmworkflow.resources import Resource
from fsmworkflow.simple.places import Dropped, Format, sink_of, source_of
from fsmworkflow.simple.runner import Runner, synchronous
from fsmworkflow.simple.walk import Step, Walk
from fsmworkflow.simple.words import BatchProgress, DataHandlingMode, ExecutionMode, Profile, Result, StreamProgress
from fsmworkflow.stream.pace import together
from fsmworkflow.stream.passage import Decided, outlets
from fsmworkflow.stream.run import checked, stream
from fsmworkflow.stream.words import Progress, whole_number
from fsmworkflow.workflow import Workflow

__all__ = ["AdvancedFSM", "AsyncSimpleFSM", "SimpleFSM"]


Told = Callable[[Any], Any]
Config = str | Path | Mapping[str, Any] | Workflow


def _loaded(config: str | Path | Mapping[str, Any], **words: Any) -> Workflow:
    """As the reader has it, with the word of a machine for the functions that it is given."""
    try:
        return load(config, **words)
    except DefinitionError as error:
        told = [problem.replace("in functions=", "in custom_functions=") for problem in error.problems]
        raise DefinitionError(error.workflow, told) from None


class AsyncSimpleFSM:
    """A machine made of a configuration, for async code. Records pass in memory: what must survive is a run.

    `config` is a configuration of dataknobs-fsm, a file or plain values, or a Workflow. `custom_functions` are those
    that it calls by name, `modules` those that it may take functions from, `resources` open things that its functions
    are given, and what an Engine may have as such, for `ctx.use`. Code that stands in it is run only with
    `allow_inline_code=True`. Raises DefinitionError for what it cannot mean, StreamError for what cannot be done in
    memory: waiting, timers, children, compensation, remembered calls.
    """

    def __init__(
        self,
        config: Config,
        data_mode: DataHandlingMode | Literal["copy", "reference", "direct"] = DataHandlingMode.COPY,
        resources: Mapping[str, Any] | None = None,
        custom_functions: Mapping[str, Callable[..., Any]] | None = None,
        *,
        modules: Iterable[str] = (),
        allow_inline_code: bool = False,
    ) -> None:
        given = dict(resources or {})
        if isinstance(config, Workflow):
            self.workflow = config
        else:
            self.workflow = _loaded(
                config,
                functions=custom_functions,
                modules=modules,
                resources=given,
                allow_inline_code=allow_inline_code,
            )
        checked(self.workflow)
        self.data_mode = DataHandlingMode(data_mode)
        self.breakpoints: set[str] = set()
        self._names = list(given)
        opened = {name: one for name, one in given.items() if _entered(name, one)}
        self._engine = Engine("memory://", resources=opened) if opened else None
        self._way = Decided(self.workflow, None if self._engine is None else self._engine.resources)
        self._opening: asyncio.Lock | None = None
        self._opened = False

    # -- records ------------------------------------------------------------------------------------------------------

    async def process(
        self, data: Mapping[str, Any], initial_state: str | None = None, timeout: float | None = None
    ) -> Result:
        """Let one record pass, and say what became of it; what its functions raise is told, not raised.

        A dict: `final_state`, `data`, `path` (every state from the first), `success`, and `error` as text, else None.
        """
        return (await self._walked(data, initial_state, timeout))[0]

    async def process_batch(
        self,
        data: Iterable[Mapping[str, Any]],
        batch_size: int = 10,
        max_workers: int = 4,
        on_progress: Told | None = None,
    ) -> list[Result]:
        """Let records pass, `max_workers` at once, and return what became of each, in their order.

        `on_progress` is called with a BatchProgress after every `batch_size` records, and at the end. Raises ValueError
        for numbers below 1.
        """
        whole_number("batch_size", batch_size)
        whole_number("max_workers", max_workers)
        records = list(data)
        results: list[Result] = [{}] * len(records)
        done = wells = 0

        async def some(waiting: Iterator[tuple[int, Mapping[str, Any]]]) -> None:
            nonlocal done, wells
            for number, record in waiting:
                results[number] = result = await self.process(record)
                done, wells = done + 1, wells + bool(result["success"])
                if done % batch_size == 0 or done == len(records):
                    await _told(on_progress, BatchProgress(total=len(records), completed=done, succeeded=wells))

        waiting = iter(enumerate(records))
        await together([some(waiting) for _ in range(min(max_workers, len(records)))])
        return results

    async def process_stream(
        self,
        source: Any,
        sink: Any = None,
        chunk_size: int = 1000,
        on_progress: Told | None = None,
        input_format: str = "auto",
        text_field_name: str = "text",
        csv_delimiter: str = ",",
        csv_has_header: bool = True,
        skip_empty_lines: bool = True,
        use_streaming: bool = True,
        *,
        errors: Any = None,
        max_workers: int = 1,
    ) -> Result:
        """Let the records of a source pass, in constant memory, and write what they become to a sink.

        `source` is a path, or gives records one by one, awaited or not; `sink` a path, a function that is called with
        each record, a list, one of these for each final state, or None. Records that fail go to `errors`, a sink too;
        without it they are counted, and the log says how many. `use_streaming` makes no difference: nothing is held.
        See `fsmworkflow.stream`, which this calls, and which also goes on after a crash.

        A dict: `total_processed`, `successful`, `failed`, `states` (how many ended in each), `duration` in seconds,
        `throughput`, records a second. Raises StreamError.
        """
        how = Format(
            input_format=input_format,
            text_field_name=text_field_name,
            csv_delimiter=csv_delimiter,
            csv_has_header=csv_has_header,
            skip_empty_lines=skip_empty_lines,
        )
        engine = await self._open()

        async def tell(progress: Progress) -> None:
            await _told(on_progress, StreamProgress.of(progress))

        done = await stream(
            engine,
            self.workflow,
            source_of(source, how),
            self._sinks(sink),
            chunk=chunk_size,
            workers=max_workers,
            errors=Dropped() if errors is None else sink_of(errors),
            mode=self.data_mode.value,
            on_progress=None if on_progress is None else tell,
        )
        wrong = done.errors + done.malformed
        if wrong and errors is None:
            log.warning("%d of %d records went wrong (%s): errors= keeps them", wrong, done.records, done.kinds)
        return {
            "total_processed": done.records,
            "total_records": done.records,
            "successful": done.records - wrong,
            "failed": wrong,
            "states": done.states,
            "duration": done.seconds,
            "throughput": done.rate,
        }

    def _sinks(self, sink: Any) -> Any:
        if isinstance(sink, Mapping):
            return {state: sink_of(one) for state, one in sink.items()}
        made = sink_of(sink)
        return dict.fromkeys(outlets(self.workflow)) if made is None else made

    # -- step by step -------------------------------------------------------------------------------------------------

    def create_context(self, data: Mapping[str, Any], initial_state: str | None = None) -> Walk:
        """A record on its way, in its first state or in another one, with which nothing has been done yet."""
        if not isinstance(data, Mapping):
            raise FSMWorkflowError(f"a record is a dict, not {cut(data)}")
        return Walk(self._way, dict(data), initial_state)

    async def step(self, context: Walk) -> Step:
        """Go on by one transition."""
        await self._open()
        return await context.step()

    def add_breakpoint(self, state: str) -> None:
        """Let `run_until_breakpoint` stop in this state. Raises UnknownState for one that is not there."""
        if state not in (states := self.workflow.states):
            raise UnknownState(f"workflow {self.workflow.name!r} has no state {state!r}{nearest(state, states)}")
        self.breakpoints.add(state)

    def remove_breakpoint(self, state: str) -> None:
        """Stop there no more."""
        self.breakpoints.discard(state)

    async def run_until_breakpoint(self, context: Walk, max_steps: int = 1000) -> Step:
        """Go on until a breakpoint, the end, or so many transitions. From where it has stopped before it goes on."""
        for _ in range(max_steps):
            if context.current_state in self.breakpoints and context.stopped != len(context.path):
                context.stopped = len(context.path)
                return context.seen(at_breakpoint=True)
            if (result := await self.step(context)).is_complete:
                return result
        return context.seen()

    async def profile(self, data: Mapping[str, Any], initial_state: str | None = None) -> Profile:
        """Let one record pass, and say how long it was in each state."""
        began = time.perf_counter()
        result, walk = await self._walked(data, initial_state, None)
        states = {} if walk is None else walk.states
        transitions = len(result["path"]) - 1
        return Profile(total=time.perf_counter() - began, transitions=transitions, states=states, result=result)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def get_states(self) -> list[str]:
        """The names of all states."""
        return list(self.workflow.states)

    def get_resources(self) -> list[str]:
        """The names of what was given as resources."""
        return list(self._names)

    async def close(self) -> None:
        """Close what was opened."""
        if self._engine is not None and self._opened:
            self._opened = False
            await self._engine.close()

    aclose = close

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _open(self) -> Engine | None:
        """The engine whose resources are open, where there are any."""
        if self._engine is not None and not self._opened:
            self._opening = self._opening or asyncio.Lock()
            async with self._opening:
                if not self._opened:
                    await self._engine.__aenter__()
                    self._opened = True
        return self._engine

    async def _walked(
        self, data: Mapping[str, Any], state: str | None, timeout: float | None
    ) -> tuple[Result, Walk | None]:
        await self._open()
        walk: Walk | None = None
        error: BaseException | None = None
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                walk = self.create_context(data, state)
                await walk.finish()
                error = walk.error
        except (TimeoutError, FSMWorkflowError) as raised:
            error = TimeoutError(f"it took longer than {timeout:g} s") if scope.expired() else raised
        return _result(walk, data, error), walk


class AdvancedFSM(AsyncSimpleFSM):
    """The same by the name that dataknobs-fsm has for it. `execution_mode` is not asked: each is always there."""

    def __init__(self, config: Config, execution_mode: ExecutionMode = ExecutionMode.STEP_BY_STEP, **more: Any) -> None:
        super().__init__(config, **more)
        self.execution_mode = ExecutionMode(execution_mode)


class SimpleFSM:
    """An AsyncSimpleFSM for synchronous code: `machine`, driven by an event loop in a thread of its own.

    Its arguments are those of AsyncSimpleFSM, and so are its methods, which return when all is done. It may be used
    from several threads. The thread ends with `close()`, with the block of `with`, or with this object.
    """

    def __init__(self, config: Config, *args: Any, **more: Any) -> None:
        self.machine = AsyncSimpleFSM(config, *args, **more)
        self.runner = Runner()

    process = synchronous(AsyncSimpleFSM.process)
    process_batch = synchronous(AsyncSimpleFSM.process_batch)
    process_stream = synchronous(AsyncSimpleFSM.process_stream)
    step = synchronous(AsyncSimpleFSM.step)
    run_until_breakpoint = synchronous(AsyncSimpleFSM.run_until_breakpoint)
    profile = synchronous(AsyncSimpleFSM.profile)

    def __getattr__(self, name: str) -> Any:
        """What needs no event loop is the machine's own: `create_context`, `add_breakpoint`, `get_states`."""
        if name in ("machine", "runner"):
            raise AttributeError(name)
        return getattr(self.machine, name)

    def close(self) -> None:
        """Close what was opened, and end the thread."""
        self.runner(self.machine.close())
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _entered(name: str, one: Any) -> bool:
    """Whether it is opened and lent by an engine. Raises ValueError for what only describes a resource."""
    if isinstance(one, Mapping) and isinstance(one.get("type"), str):
        raise ValueError(f"resource {name!r} is described: give the connection, client or pool itself")
    return isinstance(one, Resource) or hasattr(type(one), "__aenter__")


def _result(walk: Walk | None, data: Any, error: BaseException | None) -> Result:
    return {
        "final_state": None if walk is None else walk.current_state,
        "data": walk.data if walk is not None else dict(data) if isinstance(data, Mapping) else data,
        "path": [] if walk is None else list(walk.path),
        "success": walk is not None and walk.success and error is None,
        "error": None if error is None else f"{type(error).__name__}: {error}",
        "metadata": {},
    }


async def _told(tell: Told | None, progress: Any) -> None:
    if tell is not None and inspect.isawaitable(result := tell(progress)):
        await result
