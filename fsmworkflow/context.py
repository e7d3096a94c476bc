"""WorkflowContext: what a step is given. Its data, its run, and calls that are remembered over a crash."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload
from urllib.parse import quote

import msgspec

from fsmworkflow.codec import decode, encode
from fsmworkflow.conditions import cut
from fsmworkflow.errors import CodecError, FSMWorkflowError, RunNotFound, StoreError, TransactionError, UnknownWorkflow
from fsmworkflow.records import Active, Call, Event, Post, Run
from fsmworkflow.transaction import Transaction
from fsmworkflow.workflow import Workflow, known_event

__all__ = ["Calls", "WorkflowContext"]

T = TypeVar("T")
Item = TypeVar("Item")
P = ParamSpec("P")
if TYPE_CHECKING:
    # A bare WorkflowContext has plain data. Type checkers know defaults; Python does from 3.13 on.
    from typing_extensions import TypeVar as TypeVarWithDefault

    from fsmworkflow.drive import Drive

    D = TypeVarWithDefault("D", default=dict[str, Any])
else:
    D = TypeVar("D")


class WorkflowContext(Generic[D]):
    """What a step is given, and may return.

    `data` is a private copy of the run's data: what the step leaves there is committed when it ends, or dropped when it
    fails. A step may also return another context, whose data is committed then: `WorkflowContext(data={...})`.
    """

    __slots__ = ("_calls", "_event", "_run", "_state", "_stay", "_undoing", "data")

    def __init__(
        self,
        data: D | None = None,
        *,
        run: Run | None = None,
        state: str = "",
        stay: Active | None = None,
        calls: Calls | None = None,
        event: Event | None = None,
        undoing: bool = False,
    ) -> None:
        self.data: D = cast(D, {}) if data is None else data
        self._run = run
        self._state = state
        self._stay = stay
        self._calls = calls
        self._event = event
        self._undoing = undoing

    @property
    def event(self) -> Event | None:
        """The event from outside that led into this visit, with its `name` and `payload`, else None."""
        return self._event

    @property
    def run(self) -> Run:
        """The run as it was when the step began. Raises FSMWorkflowError on a context that belongs to no run."""
        if self._run is None:
            raise FSMWorkflowError("this context belongs to no run: it was not given to a step")
        return self._run

    @property
    def state(self) -> str:
        """The name of the state whose step this is."""
        return self._state

    @property
    def attempt(self) -> int:
        """Which attempt of this visit's step is on, from 1."""
        return 1 if self._stay is None else self._stay.attempt

    @property
    def idempotency_key(self) -> str:
        """Text that names this visit of this run: the same on every attempt and after a crash, another in every visit.

        Send it with a request that must not be done twice, as the IETF draft "The Idempotency-Key HTTP Header Field"
        has it.
        """
        run = self.run
        stay = Active(run.visit) if self._stay is None else self._stay
        # Quoted, so that workflow "a" with key "b/c" is not workflow "a/b" with key "c", and fit for a header.
        key = "/".join(
            quote(part, safe="") for part in (run.workflow, run.key, stay.was or self._state, str(stay.visit))
        )
        return f"{key}:undo" if self._undoing else key

    @property
    def stopping(self) -> bool:
        """Whether this process is ending: it begins no other step, and this one has the engine's `grace` left to end.

        A long step looks at it now and then and ends early, for instance by returning a trigger that leads back to it,
        or leaves its work in remembered calls. One that is cut off runs again elsewhere.
        """
        return self._calls is not None and self._calls.drive.stopping

    @overload
    def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...

    @overload
    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call `fn(*args, **kwargs)` once in this visit, and remember what it returned.

        After a crash or an error the n-th same call of the next attempt gets the n-th remembered result: the same
        means the same function and arguments. Only what was returned is remembered, so check an answer inside `fn`.
        A sync `fn` runs in a thread. Raises CodecError for arguments without a stable text (use `remember`), and for a
        result that would not come back equal; TypeError for a lambda or partial, which have no stable name.
        """
        return self._performed(_named(fn, args, kwargs), fn, args, kwargs)

    @overload
    def map(
        self, fn: Callable[[Item], Awaitable[T]], items: Iterable[Item], /, *, concurrency: int = 8
    ) -> Awaitable[list[T]]: ...

    @overload
    def map(self, fn: Callable[[Item], T], items: Iterable[Item], /, *, concurrency: int = 8) -> Awaitable[list[T]]: ...

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any], /, *, concurrency: int = 8) -> Awaitable[list[Any]]:
        """Call `fn(item)` for each item, `concurrency` of them at a time, each remembered as by `call`.

        The results come in the order of the items. The first error cancels the others and is raised; what was returned
        by then is remembered. Raises what `call` raises, and ValueError for a concurrency below 1.
        """
        if type(concurrency) is not int or concurrency < 1:
            raise ValueError(f"concurrency must be a whole number from 1, not {concurrency!r}")
        calls = self._remembering()
        if not isinstance(items, Iterable):
            raise TypeError(f"ctx.map(fn, items) is given the items of its calls, such as a list, not {cut(items)}")
        named = [(_named(fn, (item,), {}), item) for item in items]
        several = calls.several([(name, calls.count(name), item) for name, item in named], fn, concurrency)
        return _titled(several, f"ctx.map({getattr(fn, '__name__', fn)})")

    @overload
    def remember(
        self, name: str, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[T]: ...

    @overload
    def remember(self, name: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...

    def remember(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call `fn(*args, **kwargs)` once in this visit under a name of your own, and remember what it returned.

        As `call`, for lambdas, partials and arguments without a stable text. The n-th use of a name is its own call.
        """
        if not isinstance(name, str):
            raise TypeError(f"ctx.remember('name', fn, ...) is given a name first, not {cut(name)}")
        encode(name, "name")
        _callable(f"ctx.remember({name!r}, ", fn)
        return self._performed(f"={name}", fn, args, kwargs)

    def emit(self, workflow: Workflow | str, key: str, event: str, payload: Any = None) -> Awaitable[None]:
        """Post an event to another run, or to this one, in the commit of this step's move; with its failure it goes.

        In every attempt of a visit the n-th event has the same id. One whose run has ended by then is kept there as
        `dropped`. A name is of a workflow that the engine knows. Raises UnknownWorkflow, UnknownEvent, RunNotFound, and
        CodecError for the payload; FSMWorkflowError in a sync step.
        """
        calls = self._in_step("ctx.emit")
        name, sealed = workflow if isinstance(workflow, str) else workflow.name, calls.sealed(payload)
        made = Event(name=event, payload=sealed, id=f"{self.idempotency_key}:emit:{calls.count('emit')}")
        return calls.post(workflow, Post(name, key, made))

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """The driver's own connection to the run's database, for rows of your own that are written exactly once.

            async with ctx.transaction() as connection:  # of asyncpg or aiosqlite
                await connection.execute("UPDATE accounts ...")

        What is written there is committed with this step's move, or rolled back with its failure; an error that leaves
        the block rolls it back at once. A step has one: a second block goes on in it. Inside, savepoints are yours,
        BEGIN, COMMIT and ROLLBACK are not, and from its begin `call` and `remember` raise TransactionError. On SQLite
        every other write waits for it, so begin it last and keep it short: after 5 s it is rolled back and the step
        fails with TransactionError. That is also raised where the store has no connection (memory://), and
        FSMWorkflowError in a sync step. A commit that fails for a serialization failure, a deadlock or a lost
        connection runs the step again, in the same attempt.
        """
        return self._in_step("ctx.transaction").block()

    def use(self, name: str) -> AbstractAsyncContextManager[Any]:
        """A resource of the engine's, by its name, for the time of a block:

            async with ctx.use("db") as connection:

        What a step has not given back when it ends is taken back, with a line in the log. Raises ResourceError for a
        name that is not there, and on entering where it cannot be had, ResourceTimeout where others hold all of it for
        longer than it may take; FSMWorkflowError in a sync step.
        """
        return self._in_step("ctx.use").lent(name)

    def _in_step(self, what: str) -> Calls:
        """What belongs to the async step that is on. Raises FSMWorkflowError where there is none."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise FSMWorkflowError(f"{what} needs an async step: write `async def`") from None
        if self._calls is None:
            raise FSMWorkflowError(f"{what} is for steps: this context was not given to one")
        return self._calls

    def _performed(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        calls = self._remembering()
        # Counted here, not when it is awaited: the order of the calls in the program is what repeats.
        return _titled(calls.perform(name, calls.count(name), fn, args, kwargs), f"ctx.call({_shown(name)})")

    def _remembering(self) -> Calls:
        """Where calls are remembered now. Raises where they cannot be."""
        if self._calls is None:
            raise FSMWorkflowError("this context belongs to no run: nothing can be remembered in it")
        if self._calls.transaction is not None and self._calls.transaction.on:
            raise TransactionError(
                f"a remembered call in the transaction of {self._calls.where}: it would wait for the transaction, or "
                "outlive its rollback. Make it before the transaction begins"
            )
        return self._calls


def _named(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The name of a call: its function and its arguments. Raises TypeError and CodecError where they have none."""
    _callable("ctx.call(", fn)
    name = getattr(fn, "__qualname__", None)
    if name is None or "<lambda>" in name:
        raise TypeError("ctx.call needs a function with a stable name: use ctx.remember('name', fn, ...)")
    try:
        text = encode([list(args), kwargs], "arguments")
    except CodecError as error:
        raise CodecError(error.path, f"{error.reason}; use ctx.remember('name', fn, ...)") from error
    digest = hashlib.blake2b(text, digest_size=12).hexdigest()
    return f"{getattr(fn, '__module__', '')}.{name} {digest}"


def _titled(coroutine: Any, title: str) -> Awaitable[Any]:
    coroutine.__qualname__ = title  # what Python names where nobody awaits it
    return cast(Awaitable[Any], coroutine)


def _shown(name: str) -> str:
    """A call's name for people: what it calls, or the name that it was given."""
    return name[1:] if name.startswith("=") else name.partition(" ")[0].rpartition(".")[2]


def _callable(way: str, fn: Any) -> None:
    """Raise TypeError for what is no function, such as one that was called already."""
    if inspect.iscoroutine(fn):
        fn.close()
        raise TypeError(
            f"{fn.__name__} is called for you, and only where it must be: write {way}{fn.__name__}, ...), not "
            f"{way}{fn.__name__}(...))"
        )
    if not callable(fn):
        raise TypeError(f"{way}...) is given a function and its arguments, not {cut(fn)}")


class Failed(Exception):
    """Carries an error of the function's own past those of our store."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Calls:
    """The remembered calls of one attempt. `fresh` says that the visit is new, so that nothing has to be looked up.

    `named` is the name of the state under which they stand, where a migration has given it another one since.
    """

    __slots__ = (
        "_begun", "_counts", "_found", "_loading",
        "broken", "drive", "named", "posts", "progress", "run", "state", "transaction", "used", "visit",
    )  # fmt: skip

    def __init__(self, drive: Drive, run: Run, state: str, visit: int, *, fresh: bool, named: str = "") -> None:
        self.drive = drive
        self.transaction: Transaction | None = None
        self.broken: StoreError | None = None  # what our own store raised inside the step
        self._begun: dict[str, int] = {}  # how many calls of a name were awaited
        self.run = run
        self.state = state
        self.named = named or state
        self.visit = visit
        self.posts: tuple[Post, ...] = ()  # what the step has emitted
        self.used = not fresh
        self.progress = False  # whether a call was remembered in this attempt
        self._counts: dict[str, int] | None = None
        self._found: dict[tuple[str, int], bytes] | None = {} if fresh else None
        self._loading: asyncio.Lock | None = None

    def count(self, name: str) -> int:
        """Which call of that name this is in this attempt, from 0."""
        counts = self._counts = self._counts or {}
        nth = counts.get(name, 0)
        counts[name] = nth + 1
        return nth

    async def perform(
        self, name: str, nth: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._begun[name] = self._begun.get(name, 0) + 1
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
                self._begun[name] = self._begun.get(name, 0) + 1
        return results

    def check(self) -> None:
        """Raise where a call was made and never awaited: its result would be missing without a word."""
        if not self._counts:
            return
        self.drive.worker.resources.ended(self)
        if left := [n for n, asked in self._counts.items() if asked > self._begun.get(n, 0)]:
            what = ", ".join(_shown(name) for name in left[:3])
            raise FSMWorkflowError(
                f"{self.where} has not awaited what it asked for ({what}): write `await ctx.call(...)`, and `async def`"
            )

    @property
    def where(self) -> str:
        """The state and the run, for messages."""
        return f"state {self.state!r} of {self.run.workflow}/{self.run.key}"

    def lent(self, name: str) -> AbstractAsyncContextManager[Any]:
        """A resource, counted as a call is, so that the end of a step without any has nothing to look for."""
        self._begun["use"] = self.count("use") + 1
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
        self._begun["emit"] = self._begun.get("emit", 0) + 1
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
