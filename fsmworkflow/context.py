"""WorkflowContext: what a step is given. Its data, its run, and calls that are remembered over a crash."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload
from urllib.parse import quote

from fsmworkflow.calls import Calls, shown
from fsmworkflow.codec import encode
from fsmworkflow.errors import CodecError, FSMWorkflowError, TransactionError, cut
from fsmworkflow.records import Active, Event, Post, Run
from fsmworkflow.workflow import Workflow

__all__ = ["WorkflowContext"]

T = TypeVar("T")
Item = TypeVar("Item")
P = ParamSpec("P")
if TYPE_CHECKING:
    # A bare WorkflowContext has plain data. Type checkers know defaults; Python does from 3.13 on.
    from typing_extensions import TypeVar as TypeVarWithDefault

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
        return _titled(calls.perform(name, calls.count(name), fn, args, kwargs), f"ctx.call({shown(name)})")

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
