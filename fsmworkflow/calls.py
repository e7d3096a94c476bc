"""Calls: what one attempt of a step remembers over a crash, emits, and has in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from fsmworkflow.codec import decode, encode
from fsmworkflow.errors import FSMWorkflowError, RunNotFound, StoreError, UnknownWorkflow
from fsmworkflow.records import Call, Post, Run
from fsmworkflow.transaction import Transaction
from fsmworkflow.workflow import Workflow, known_event

if TYPE_CHECKING:
    from fsmworkflow.drive import Drive

__all__ = ["Calls", "shown"]


class Failed(Exception):
    """Carries an error of the function's own past those of our store."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Calls:
    """The remembered calls of one attempt. `fresh` says that the visit is new, so that nothing has to be looked up.

    `named` is the name of the state under which they stand, where a migration has given it another one since.
    """

    __slots__ = (
        "_counts", "_found", "_loading", "broken", "drive", "named", "posts", "progress", "run", "state", "transaction",
        "used", "visit",
    )  # fmt: skip

    def __init__(self, drive: Drive, run: Run, state: str, visit: int, *, fresh: bool, named: str = "") -> None:
        self.drive = drive
        self.transaction: Transaction | None = None
        self.broken: StoreError | None = None  # what our own store raised inside the step
        self.run = run
        self.state = state
        self.named = named or state
        self.visit = visit
        self.posts: tuple[Post, ...] = ()  # what the step has emitted
        self.used = not fresh
        self.progress = False  # whether a call was remembered in this attempt
        self._counts: dict[str, list[int]] = {}  # how many calls of a name were made, and awaited
        self._found: dict[tuple[str, int], bytes] | None = {} if fresh else None
        self._loading: asyncio.Lock | None = None

    def count(self, name: str) -> int:
        """Which call of that name this is in this attempt, from 0."""
        counts = self._counts.setdefault(name, [0, 0])
        counts[0] += 1
        return counts[0] - 1

    async def perform(
        self, name: str, nth: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._counts[name][1] += 1
        try:
            return await self._perform(name, nth, fn, args, kwargs)
        except Failed as failed:
            raise failed.error from None
        except StoreError as error:
            self.broken = error
            raise

    async def several(
        self, calls: Sequence[tuple[str, int, Any]], fn: Callable[[Any], Any], concurrency: int
    ) -> list[Any]:
        """Calls of one argument each, so many at a time. The first error cancels the others, and is raised."""
        results: list[Any] = [None] * len(calls)
        waiting = iter(enumerate(calls))

        async def work() -> None:
            for place, (name, nth, item) in waiting:
                try:
                    results[place] = await self.perform(name, nth, fn, (item,), {})
                except asyncio.CancelledError as error:
                    if (task := asyncio.current_task()) is None or task.cancelling():
                        raise
                    raise Failed(error) from error  # which the function brought on itself

        tasks = [asyncio.create_task(work()) for _ in range(min(concurrency, len(calls)))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION) if tasks else (set(), None)
            for error in (task.exception() for task in done):
                if error is not None:
                    raise error.error if isinstance(error, Failed) else error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _, (name, *_) in waiting:  # what was not begun any more is not missing
                self._counts[name][1] += 1
        return results

    def check(self) -> None:
        """Raise where a call was made and never awaited: its result would be missing without a word."""
        if not self._counts:
            return
        self.drive.worker.resources.ended(self)
        if left := [name for name, (made, begun) in self._counts.items() if made > begun]:
            what = ", ".join(shown(name) for name in left[:3])
            raise FSMWorkflowError(
                f"{self.where} has not awaited what it asked for ({what}): write `await ctx.call(...)`, and `async def`"
            )

    @property
    def where(self) -> str:
        """The state and the run, for messages."""
        return f"state {self.state!r} of {self.run.workflow}/{self.run.key}"

    def lent(self, name: str) -> AbstractAsyncContextManager[Any]:
        """A resource, counted as a call is, so that the end of a step without any has nothing to look for."""
        self.count("use")
        self._counts["use"][1] += 1
        return self.drive.worker.resources.use(name, self, self.where)

    def block(self) -> AbstractAsyncContextManager[Any]:
        """A block of the step's transaction."""
        if self.transaction is None:
            self.transaction = Transaction(self)
        return self.transaction.block()

    def sealed(self, payload: Any) -> msgspec.Raw | None:
        """A payload as text, so that it is what it was when it was emitted."""
        limit = self.drive.workflow.codec.limit
        return None if payload is None else msgspec.Raw(encode(payload, "payload", limit=limit))

    async def post(self, workflow: Workflow | str, post: Post) -> None:
        """Add an event to what goes with the step's move, once its run and its name are known."""
        self._counts["emit"][1] += 1
        known = self.drive.worker.workflows
        if post.workflow not in known:
            if isinstance(workflow, str) and workflow != self.drive.workflow.name:
                raise UnknownWorkflow(workflow)
            known[post.workflow] = self.drive.workflow if isinstance(workflow, str) else workflow
        known_event(known[post.workflow], post.event.name)
        try:
            there = await self.drive.store.load(post.workflow, post.key)
        except StoreError as error:
            self.broken = error
            raise
        if there is None:
            raise RunNotFound(post.workflow, post.key)
        self.posts = (*self.posts, post)

    async def _perform(
        self, name: str, nth: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        found = self._found if self._found is not None else await self._load()
        text = found.get((name, nth))
        if text is None:
            await self.drive.worker.hold(self.run)
            try:
                result = await self.drive.worker.threads.invoke(fn, *args, **kwargs)
            except StoreError as error:  # of a store of the user's: the step's own error
                raise Failed(error) from error
            text = encode(result, f"result of {name.split(' ')[0].lstrip('=')}", limit=self.drive.workflow.codec.limit)
            self.used = True
            call = Call(run=self.run.id, state=self.named, visit=self.visit, name=name, nth=nth, result=text)
            await self.drive.store.remember(self.run, call)
            self.progress = True
        return decode(text)

    async def _load(self) -> dict[tuple[str, int], bytes]:
        if self._loading is None:
            self._loading = asyncio.Lock()
        async with self._loading:
            if self._found is None:
                calls = await self.drive.store.recall(self.run, self.named, self.visit)
                self._found = {(call.name, call.nth): call.result for call in calls}
        return self._found


def shown(name: str) -> str:
    """A call's name for people: what it calls, or the name that it was given."""
    return name[1:] if name.startswith("=") else name.partition(" ")[0].rpartition(".")[2]
