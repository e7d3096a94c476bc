"""Resources: what steps share and an engine opens once, such as clients and pools. pools.py has some that are ready."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, ClassVar

import msgspec

from fsmworkflow.errors import FSMWorkflowError, log, nearest
from fsmworkflow.retry import Duration, seconds

__all__ = ["Check", "Kept", "Resource", "ResourceError", "ResourceTimeout", "Resources", "Shared", "Usage", "yes"]

CLOSE_SECONDS = 10.0
"""How long something may take to close, before it is cancelled, and once more before it is left behind."""

Check = Callable[[Any], Any]


class ResourceError(FSMWorkflowError):
    """A resource is not there, cannot be opened, or has ended. In a step it is the step's error, and may be retried."""

    code: ClassVar[str] = "resource"


class ResourceTimeout(ResourceError, TimeoutError):
    """A resource was not to be had in time: others hold all of it, or it does not answer."""

    code = "resource_timeout"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """How a resource is: how many use it, how much of it is open, its bound (None: there is none), what is wrong."""

    used: int
    open: int
    max: int | None
    problem: str | None


class Kept:
    """One thing while it is open: entered and left in a task of its own, as task groups within it ask for."""

    def __init__(self, make: Callable[[], Any], what: str) -> None:
        self.value: Any = None
        self.since = 0.0  # when it was given back
        self.ended = False  # whether it is open no more, or not to be any more
        self._given = False  # whether somebody was given it
        self._what, self._loop = what, asyncio.get_running_loop()
        self._opened, self._closing = self._loop.create_future(), asyncio.Event()
        self.task = asyncio.create_task(self._live(make), name=f"fsmworkflow-{what}")
        self.task.add_done_callback(self._over)

    async def _live(self, make: Callable[[], Any]) -> None:
        async with AsyncExitStack() as stack:
            thing = make()
            if hasattr(type(thing), "__aenter__"):
                self.value = await stack.enter_async_context(thing)
            else:
                self.value = await thing if inspect.isawaitable(thing) else thing
                stack.push_async_callback(_closed, self.value)
            self._opened.set_result(None)
            await self._closing.wait()

    async def open(self) -> None:
        """Wait until it is open. Raises what it raised; where this is cancelled, it is left again."""
        try:
            await asyncio.wait({self.task, self._opened}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.ended = self.task.cancel()
            raise
        if not self._opened.done():
            self.task.result()
        self._given = True

    def close(self) -> asyncio.Task[None]:
        """Begin to close it; what takes longer than 10 s is cancelled, and at once what is not open yet."""
        if not self.ended and self._given:
            self._closing.set()
            late = self._loop.call_later(CLOSE_SECONDS, self.task.cancel)
            self.task.add_done_callback(lambda _: late.cancel())
        elif not self.ended:
            self.task.cancel()
        self.ended = True
        return self.task

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._given and (error is not None or task.cancelled()):
            what = "has not closed well" if self.ended else "has ended"
            log.error("%s %s: %s", self._what, what, "it was cancelled" if error is None else repr(error))
        self.ended = True


async def _closed(value: Any) -> None:
    close = getattr(value, "aclose", None) or getattr(value, "close", None)
    if close is not None and inspect.isawaitable(result := close()):
        await result


async def yes(ask: Check | None, value: Any) -> bool:
    """Whether the answer is not False, awaited or not. Raises what that raises."""
    answer = None if ask is None else ask(value)
    return (await answer if inspect.isawaitable(answer) else answer) is not False


class Resource:
    """Something that an engine opens once and lends to steps, so many at a time. Shared and Pool are such.

    `wait` is for how long a step waits for it, and how long it may take to open. `check(what is lent)` says whether it
    is well: not where it raises, or answers False.
    """

    name = "resource"

    def __init__(self, *, max: int | None, wait: Duration, check: Check | None) -> None:
        if max is not None and (type(max) is not int or max < 1):
            raise ValueError(f"max must be a whole number from 1, or None, not {max!r}")
        self.max, self.wait, self.check = max, seconds(wait), check
        self.used, self.opened = 0, False

    async def open(self) -> None:
        """Open it, for this event loop. Raises ResourceError, with the cause, and ResourceTimeout."""
        if self.opened:
            raise ResourceError(f"{self.name} is open already: each engine has its own")
        self._turns = None if self.max is None else asyncio.Semaphore(self.max)
        self.opened = True
        try:
            async with self.soon("did not open"):
                await self._open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close it, within 20 s. What is wrong then is in the log."""
        self.opened = False
        if (tasks := self._close()) and (left := (await asyncio.wait(tasks, timeout=2 * CLOSE_SECONDS))[1]):
            log.error("%s does not close, and is left behind (%d of it)", self.name, len(left))

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Any]:
        """What a step is given, for as long as it is inside. Raises ResourceError and ResourceTimeout."""
        if not self.opened:
            raise ResourceError(f"{self.name} is not open: it is there while its engine is")
        async with AsyncExitStack() as stack:
            async with self.soon("was not to be had"):
                if self._turns is not None:
                    await self._turns.acquire()
                    stack.callback(self._turns.release)
                self.used += 1
                stack.callback(self._unused)
                value = await self._lent(stack)
            yield value

    @asynccontextmanager
    async def soon(self, what: str) -> AsyncIterator[None]:
        """Within `wait` seconds. Raises ResourceTimeout, and ResourceError for what the thing itself raises."""
        scope = asyncio.timeout(self.wait)
        try:
            async with scope:
                yield
        except ResourceError:
            raise
        except Exception as error:
            if not scope.expired():
                raise ResourceError(f"{self.name} {what}: {type(error).__name__}: {error}") from error
            raise ResourceTimeout(f"{self.name} {what} within {self.wait:g} s: {self._why()}") from error

    def _unused(self) -> None:
        self.used -= 1

    def _why(self) -> str:
        full = self.max is not None and self.used >= self.max
        return f"all {self.max} of it are in use" if full else "it does not answer"

    async def seen(self, within: float) -> Usage:
        """How it is, asked for `within` seconds at the most. One that is used to its bound is not asked."""
        problem = None if self.opened else f"{self.name} is not open"
        if problem is None and not (self.max is not None and self.used >= self.max):
            try:
                async with asyncio.timeout(within):
                    await self._look()
            except TimeoutError:
                problem = f"{self.name} does not answer within {within:g} s"
            except Exception as error:
                problem = str(error) if isinstance(error, ResourceError) else f"{self.name}: {error!r}"
        return Usage(used=self.used, open=self.many, max=self.max, problem=problem)

    async def _look(self) -> None:
        """Raise where it is not well."""
        async with self.lend() as value:
            if not await yes(self.check, value):
                raise ResourceError(f"{self.name} is not well: its check says no")

    many = 0  # how much of it is open

    async def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> list[asyncio.Task[None]]:
        raise NotImplementedError

    async def _lent(self, stack: AsyncExitStack) -> Any:
        raise NotImplementedError


class Shared(Resource):
    """One thing that all steps are given, `max` of them at a time, such as a client.

    `thing` is an async context manager, or a function that makes one, or makes, awaited or not, what has an `aclose` or
    `close`. With `lend`, a step is given what is entered of `lend(thing)`, such as a connection of a pool.
    """

    def __init__(
        self,
        thing: Any,
        *,
        max: int | None = None,
        wait: Duration = 30.0,
        check: Check | None = None,
        lend: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    ) -> None:
        super().__init__(max=max, wait=wait, check=check)
        entered = hasattr(type(thing), "__aenter__")
        if not entered and not callable(thing):
            raise TypeError(f"a resource is an async context manager, or a function that makes one, not {thing!r:.100}")
        self._make, self._lend = (lambda: thing) if entered else thing, lend
        self._kept: Kept | None = None

    async def _open(self) -> None:
        self._kept = Kept(self._make, self.name)
        await self._kept.open()
        self.many = 1

    def _close(self) -> list[asyncio.Task[None]]:
        kept, self._kept, self.many = self._kept, None, 0
        return [] if kept is None else [kept.close()]

    def _value(self) -> Any:
        if self._kept is None or self._kept.ended:
            raise ResourceError(f"{self.name} has ended, and is opened again with its engine: the log says why")
        return self._kept.value

    async def _look(self) -> None:
        self._value()
        if self.check is not None:  # else a pool all of whose connections are lent would seem ill
            await super()._look()

    async def _lent(self, stack: AsyncExitStack) -> Any:
        value = self._value()
        return value if self._lend is None else await stack.enter_async_context(self._lend(value))


def _lender(value: Any) -> AbstractAsyncContextManager[Any]:
    """A connection of what lends some, as pools of asyncpg (`acquire`) and psycopg (`connection`) do, else itself."""
    for name in ("acquire", "connection"):
        lend = getattr(value, name, None)
        if callable(lend) and not inspect.iscoroutinefunction(lend):
            return lend()  # type: ignore[no-any-return]
    return nullcontext(value)


class Resources:
    """The resources of an engine by their names, opened in this order, and closed in the other."""

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self._all: dict[str, Resource] = {}
        self._opened: list[Resource] = []
        self._uses: dict[Any, list[Use]] = {}
        self._taken: set[asyncio.Task[Any]] = set()
        for name, thing in (given or {}).items():
            try:
                resource = self._all[name] = thing if isinstance(thing, Resource) else Shared(thing, lend=_lender)
            except TypeError as error:
                raise TypeError(f"resource {name!r}: {error}") from error
            resource.name = f"resource {name!r}"

    async def open(self) -> None:
        """Open all. Raises ResourceError that names the one that cannot be opened: those before it are to be closed."""
        for resource in self._all.values():
            await resource.open()
            self._opened.append(resource)

    async def close(self) -> None:
        """Close what was opened here, the last one first."""
        while self._opened:
            await self._opened.pop().close()

    def use(self, name: str, holder: Any = None, where: str = "") -> Use:
        """Lend one, to be entered. Raises ResourceError for a name that is not there."""
        if name not in self._all:
            hint = nearest(name, self._all)
            raise ResourceError(f"this engine has no resource {name!r}{hint}: Engine(resources={{{name!r}: ...}})")
        return Use(self._all[name], self._uses, holder, where)

    def ended(self, holder: Any) -> None:
        """Whoever held something has ended: what was not given back is taken back, and the log says so."""
        for use in self._uses.pop(holder, ()):
            log.warning("%s was not given back by %s: use it in `async with`", use.resource.name, use.where)
            task = asyncio.create_task(use.__aexit__(ResourceError, ResourceError("taken back"), None))
            self._taken.add(task)
            task.add_done_callback(self._taken.discard)

    async def seen(self, within: float) -> dict[str, Usage]:
        """How each of them is, asked at once, for `within` seconds at the most."""
        found = await asyncio.gather(*(resource.seen(within) for resource in self._all.values()))
        return dict(zip(self._all, found, strict=True))


class Use(AbstractAsyncContextManager[Any]):
    """A resource while somebody has it. Once it was taken back, leaving the block does nothing."""

    def __init__(self, resource: Resource, uses: dict[Any, list[Use]], holder: Any, where: str) -> None:
        self.resource, self.where = resource, where
        self._uses, self._holder = uses, holder
        self._lent: AbstractAsyncContextManager[Any] | None = None

    async def __aenter__(self) -> Any:
        lent = self.resource.lend()
        value = await lent.__aenter__()
        self._lent = lent
        self._uses.setdefault(self._holder, []).append(self)
        return value

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        lent, self._lent = self._lent, None
        if lent is None:
            return None
        held = self._uses.get(self._holder, [self])
        held.remove(self)
        if not held:
            self._uses.pop(self._holder, None)
        return await lent.__aexit__(kind, error, trace)
