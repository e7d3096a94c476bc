"""Walk: one record on its way through a workflow, one transition at a time."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from fsmworkflow.beginning import begin
from fsmworkflow.codec import Data
from fsmworkflow.decide import by_hand
from fsmworkflow.due import LOOP
from fsmworkflow.errors import EndlessLoop
from fsmworkflow.records import OPEN, Run
from fsmworkflow.stream.passage import AWAITS, Decided
from fsmworkflow.stream.words import StreamError
from fsmworkflow.threads import Threads

__all__ = ["StateTime", "Step", "Walk"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One transition: between which states, what the data was and is, and how many seconds it took.

    It is no transition where `from_state` is `to_state`: the walk had ended before, stands at a breakpoint, or has
    failed there with this `error`. `is_complete` says that the walk has ended.
    """

    from_state: str
    to_state: str
    data_before: dict[str, Any]
    data_after: dict[str, Any]
    duration: float = 0.0
    error: BaseException | None = None
    at_breakpoint: bool = False
    is_complete: bool = False

    @property
    def success(self) -> bool:
        """Whether nothing was raised."""
        return self.error is None


class StateTime(msgspec.Struct, frozen=True):
    """How often a walk was in a state, and for how many seconds: its step, its conditions, what led on."""

    visits: int
    seconds: float


class Walk:
    """A record on its way: `current_state`, `path` with every state from the first, `data`, `error`, `states` with the
    time in each. It has no key, and is nowhere but in memory."""

    def __init__(self, way: Decided, data: Any, state: str | None = None) -> None:
        workflow = way.workflow
        fields = workflow.codec.start(data)
        self._way = way
        self._threads = Threads(1)
        self._idle = 0
        self.stopped = 0  # how long its path was when it stopped at a breakpoint
        self._run: Run = begin(workflow, "record", fields, now=0.0) if state is None else workflow.at(state, data)
        self.path = [self.current_state]
        self.states = {self.current_state: StateTime(1, 0.0)}
        self.error: BaseException | None = None

    @property
    def current_state(self) -> str:
        """Where it is: the leaf states, as `run.state` has them."""
        return self._run.state

    @property
    def data(self) -> dict[str, Any]:
        """The data as it now is, a copy."""
        return dict(Data(self._run.fields).items())

    @property
    def is_complete(self) -> bool:
        """Whether nothing comes any more: it has come to its end, or failed."""
        return self.error is not None or self._run.status not in OPEN

    @property
    def success(self) -> bool:
        """Whether it has come to its end, and well."""
        return self._run.status == "done"

    def seen(self, **more: Any) -> Step:
        """Where it stands, as a step that leads nowhere."""
        here, data = self.current_state, self.data
        known = {"error": self.error, "is_complete": self.is_complete, **more}
        return Step(from_state=here, to_state=here, data_before=data, data_after=data, **known)

    async def step(self) -> Step:
        """Go on by one transition; a step whose functions await nothing is run in a thread."""
        if self.is_complete:
            return self.seen()
        before, began = self._run, time.perf_counter()
        await self._in_thread(self._next)
        after, took = self._run, time.perf_counter() - began
        return Step(
            from_state=before.state,
            to_state=after.state,
            data_before=dict(Data(before.fields).items()),
            data_after=self.data,
            duration=took,
            error=self.error,
            is_complete=self.is_complete,
        )

    async def finish(self) -> None:
        """Go on to the end."""
        await self._in_thread(self._finish)

    async def _in_thread(self, go: Any) -> None:
        if self._way.sync:
            await self._threads.call(lambda: by_hand(go(), StreamError, AWAITS))
        else:
            await go()

    async def _finish(self) -> None:
        while not self.is_complete:
            await self._next()

    async def _next(self) -> None:
        """One transition: the move of a step that is tried again leads nowhere, and is followed by the next."""
        before, began = self._run, time.perf_counter()
        while not self.is_complete and (self._run.state, self._run.visit) == (before.state, before.visit):
            move, stepped = await self._way.next(self._run)
            self._run = move.after
            self._idle = 0 if stepped else self._idle + 1
            if self._idle > LOOP:
                self.error = EndlessLoop(f"{LOOP} moves without a step, the last one in {self.current_state}")
            elif self._run.error is not None and self._run.status == "failed":
                self.error = move.error or RuntimeError(self._run.error.message)
        self._note(before, time.perf_counter() - began)

    def _note(self, before: Run, took: float) -> None:
        then = self.states[before.state]
        self.states[before.state] = StateTime(then.visits, then.seconds + took)
        if (self._run.state, self._run.visit) != (before.state, before.visit):
            self.path.append(self.current_state)
            here = self.states.get(self.current_state, StateTime(0, 0.0))
            self.states[self.current_state] = StateTime(here.visits + 1, here.seconds)
