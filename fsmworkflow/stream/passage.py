"""A passage: one record through a workflow, from the initial to a final state, in memory.

`Decided` asks `decide` for every move; compiled.py has a shorter way for most workflows.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AbstractAsyncContextManager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, ClassVar, NoReturn
from uuid import UUID

import msgspec

from fsmworkflow.acting import outcome, within
from fsmworkflow.beginning import begin
from fsmworkflow.codec import Data, text_of
from fsmworkflow.conditions import Function, Guard
from fsmworkflow.context import WorkflowContext
from fsmworkflow.decide import by_hand, decide
from fsmworkflow.due import LOOP, due_next
from fsmworkflow.errors import EndlessLoop, FSMWorkflowError
from fsmworkflow.records import DONE, ERROR, OPEN, Event, Move, Run
from fsmworkflow.resources import Resources
from fsmworkflow.retry import seconds
from fsmworkflow.statechart import Arc
from fsmworkflow.stream.words import Failed, StreamError
from fsmworkflow.threads import is_async
from fsmworkflow.workflow import State, Workflow

__all__ = [
    "Borrowed",
    "Decided",
    "End",
    "Glance",
    "Passage",
    "Passing",
    "acted",
    "copied",
    "outlets",
    "refused",
]

End = tuple[str, Any]
"""A final state and the record there; of a record that came to none "" and a Failed."""
_ATOMS = frozenset({str, int, float, bool, type(None), bytes, date, datetime, time, timedelta, Decimal, UUID})


class Passing(WorkflowContext[Any]):
    """What a step is given in a passage: the data, and nothing that would have to be kept."""

    __slots__ = ()

    def _passage(self, *_: Any, **__: Any) -> NoReturn:
        raise StreamError(
            f"state {self.state!r} asks in a stream for what only a run has: a passage has no key, remembers no calls, "
            "emits nothing and has no transaction. Do it before or after the stream, or start runs of their own"
        )

    call = map = remember = emit = transaction = _passage
    run = idempotency_key = property(_passage)
    resources: ClassVar[Resources | None] = None

    def use(self, name: str) -> AbstractAsyncContextManager[Any]:
        """A resource of the engine that the stream was given. Raises StreamError where there was none."""
        if self.resources is None:
            raise StreamError(f"state {self.state!r} uses resource {name!r}: give an engine that has it")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise FSMWorkflowError("ctx.use needs an async step: write `async def`") from None
        return self.resources.use(name, self, f"state {self.state!r} of a record")


class Glance:
    """What a guard that is a function is given in a passage."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def run(self) -> NoReturn:
        raise StreamError("a condition asks in a stream for its run: a passage has none")

    event = run


def copied(value: Any) -> Any:
    """A deep copy of data: dicts, lists, tuples and sets are new, everything else is what it was."""
    kind = type(value)
    if kind is dict:
        fields = value.copy()
        for key, item in value.items():
            if (kind := type(item)) is not str and kind not in _ATOMS:
                fields[key] = copied(item)
        return fields
    if kind is list:
        items = value.copy()
        for place, item in enumerate(value):
            if type(item) not in _ATOMS:
                items[place] = copied(item)
        return items
    if isinstance(value, (dict, list)):  # of a class of its own
        return copied(dict(value) if isinstance(value, dict) else list(value))
    if kind is tuple:
        return tuple(map(copied, value))
    return value.copy() if kind in (set, bytearray) else value


class Borrowed(dict[str, Any]):
    """A record that somebody else holds: a list or dict in it is copied when it is first touched."""

    __slots__ = ("_own",)

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record)
        self._own: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = dict.__getitem__(self, key)
        if type(value) not in _ATOMS and key not in self._own:
            value = copied(value)
            dict.__setitem__(self, key, value)
            self._own.add(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._own.add(key)
        dict.__setitem__(self, key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 (it would ask itself)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *given: Any, **more: Any) -> None:
        for key, value in dict(*given, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def pop(self, key: str, *default: Any) -> Any:
        return copied(dict.pop(self, key, *default))

    def popitem(self) -> tuple[str, Any]:
        key, value = dict.popitem(self)
        return key, copied(value)

    def __iter__(self) -> Any:  # for which `dict()` and `**` ask before they go round `__getitem__`
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def items(self) -> Any:
        return self._owned().items()

    def values(self) -> Any:
        return self._owned().values()

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def _owned(self) -> Any:
        for key in self:
            self[key]
        return super()


# -- what a passage cannot do -----------------------------------------------------------------------------------------


def refused(workflow: Workflow) -> list[str]:
    """What of this workflow cannot be done in a passage, each with its state."""
    found = ["the deadline of its runs"] if workflow.deadline is not None else []
    for state in workflow.states.values():
        found += [f"state {state.name!r}: {what}" for what in _refused(workflow, state)]
    found += [
        f"{t.source!r} to {t.dest!r}: an action after the commit" for t in workflow.transitions if callable(t.after)
    ]
    return found


def _refused(workflow: Workflow, state: State) -> list[str]:
    found = ["it waits for an event"] if state.kind == "wait" else []
    if state.kind in ("child", "each"):
        found.append("it makes runs of another workflow")
    if workflow.chart.delays.get(state.name):
        found.append("a timer")
    if state.enter or state.exit:
        found.append("an action after the commit")
    if state.compensate is not None:
        found.append("a compensation")
    step = state.step
    if step is not None and step.retry is not None and seconds(step.retry.first_delay) > 0:
        found.append("a retry after a pause (first_delay=0 tries again at once)")
    if step is not None and step.timeout is not None and not is_async(step.execute or len):
        found.append("a time-out of a step that is no `async def`")
    names = _attributes(step.execute) if step is not None else set()
    return found + [f"ctx.{name}" for name in sorted(names & _OF_A_RUN)]


_OF_A_RUN = {"call", "map", "remember", "emit", "transaction", "idempotency_key", "run"}


def _attributes(function: Any) -> set[str]:
    """The attributes of its first argument that a function of the user's asks for, as far as its source tells."""
    from fsmworkflow.sources import asked  # which reads sources, and only for this

    return asked(function)


def outlets(workflow: Workflow) -> list[str]:
    """The states in which a passage may end."""
    chart = workflow.chart
    ends = {arc.source for s in workflow.states for arc in chart.automatic(s) if arc.ends and arc.dest is None}
    ends |= {arc.dest for s in workflow.states for arc in chart.automatic(s) if arc.ends and arc.dest is not None}
    return [
        s.name
        for s in workflow.states.values()
        if "." not in s.name and (s.kind == "final" or s.ends or s.name in ends)
    ]


# -- the same `decide` ------------------------------------------------------------------------------------------------


class Passage:
    """How one record goes through. `sync` says that it awaits nothing, so that a thread of its own may do many."""

    sync = False

    def __init__(
        self, workflow: Workflow, resources: Resources | None = None, context: type[Passing] = Passing
    ) -> None:
        self.workflow, self.resources = workflow, resources
        self.context: type[Any] = type("Context", (context,), {"__slots__": (), "resources": resources})

    def ended(self, ctx: Passing) -> None:
        """What a step has used and not given back is taken back."""
        if self.resources is not None:
            self.resources.ended(ctx)

    async def go(self, record: Any) -> End:
        """Where the record comes to. Raises only StreamError, and what asks this task to stop."""
        raise NotImplementedError

    def straight(self, record: Any, ours: bool = False) -> End:
        """The same where nothing is awaited. `ours` says that nobody else holds the record."""
        return by_hand(self.go(record), StreamError, AWAITS)


AWAITS = "a step or condition that is no `async def` gives what must be awaited: write `async def`"


class Decided(Passage):
    """Asks `decide` for every move."""

    def __init__(self, workflow: Workflow, resources: Resources | None = None) -> None:
        super().__init__(workflow, resources)
        self.sync = not _awaits(workflow)

    async def go(self, record: Any) -> End:
        try:
            fields = self.workflow.codec.start(record)
        except FSMWorkflowError as error:
            return "", Failed(self.workflow.initial, error)
        return await self.on(begin(self.workflow, "record", fields, now=0.0), None)

    async def on(self, run: Run, event: Event | None) -> End:
        """Go on from here, at first with this event."""
        workflow, idle, error = self.workflow, 0, None
        while run.status in OPEN:
            if idle == LOOP:
                states = ", ".join(run.active)
                return "", Failed(run.state, EndlessLoop(f"{LOOP} moves without a step, the last one in {states}"))
            move, stepped = await self.next(run, event)
            idle = 0 if stepped else idle + 1
            run, event, error = move.after, None, move.error
        if run.error is not None and run.state not in workflow.finals:
            raised = error or RuntimeError(run.error.message)
            return "", Failed(run.error.state or run.state, raised)
        return run.state, self._record(run)

    async def next(self, run: Run, event: Event | None = None) -> tuple[Move, bool]:
        """The next move, made of this event, of what is due, or of the end of a step; and whether it is of a step."""
        event = event or due_next(self.workflow, run, 0.0)
        ended = await self._step(run) if event is None else event
        return await decide(self.workflow, run, ended, now=0.0), event is None

    def _record(self, run: Run) -> Any:
        if self.workflow.codec.kind is None:
            return dict(Data(run.fields).items())
        return msgspec.json.decode(text_of(run.fields))

    async def _step(self, run: Run) -> Event:
        workflow, codec = self.workflow, self.workflow.codec
        name = next(s for s in run.active if workflow.states[s].kind == "step")
        step = workflow.states[name].step
        assert step is not None
        assert step.execute is not None
        ctx = self.context(codec.decode(run.fields), state=name, stay=run.active[name])
        try:
            result = await acted(name, step.execute, step.timeout, ctx)
            trigger, data = (None, ctx.data) if result is None else outcome(result, ctx)
            changes, removed = codec.changes(data, run.fields)
        except StreamError:
            raise
        except Exception as error:
            return Event(name=ERROR, state=name, error=error)
        finally:
            self.ended(ctx)
        return Event(name=DONE, state=name, trigger=trigger, changes=changes, removed=removed, base=run.fields)


async def acted(name: str, fn: Any, timeout: float | str | None, ctx: Passing) -> Any:
    """What a step returns, within its time-out."""
    result = fn(ctx)
    if timeout is not None:
        return await within(timeout, name, result, True)
    return await result if inspect.isawaitable(result) else result


def _awaits(workflow: Workflow) -> bool:
    """Whether a step or a condition is an `async def`."""
    steps = [s.step.execute for s in workflow.states.values() if s.step is not None]
    guards = [arc.guard for s in workflow.states for arc in _arcs(workflow, s) if arc.guard is not None]
    return any(is_async(fn) for fn in steps if fn) or any(map(_asks_async, guards))


def _asks_async(guard: Guard) -> bool:
    return (isinstance(guard, Function) and is_async(guard.function)) or any(map(_asks_async, guard.parts))


def _arcs(workflow: Workflow, state: str) -> list[Arc]:
    """The transitions of a state that a passage may take."""
    chart = workflow.chart
    return [arc for name in (*chart.triggers, "$automatic", "$failed") for arc in chart.named(state, name)]
