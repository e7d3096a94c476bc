"""The frozen records that cross every seam: Run, Event, Move, and what belongs to them.

They know nothing of stores or steps. Change one with `replace(record, field=value)`. Times are seconds since the epoch.
Those that hold nothing which could ever lead back to them are no business of Python's search for garbage (`gc=False`):
with ten thousand runs at once that search is what holds up the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace

from fsmworkflow.codec import Data, Fields, read_back

if TYPE_CHECKING:
    from fsmworkflow.workflow import Workflow

__all__ = [
    "Action", "Active", "Call", "Child", "Entry", "Event", "Failure", "Move", "Order", "Owner", "Post", "Run", "Status",
    "replace",
]  # fmt: skip

Status = Literal["running", "waiting", "paused", "compensating", "done", "failed", "cancelled", "parked"]
OVER = frozenset({"done", "cancelled"})
ENDED = OVER | {"failed"}
STUCK = frozenset({"failed", "parked"})
"""Those that somebody has to let go on."""
COUNTED = OVER | STUCK
"""Those in which a child has ended, as its parent counts them."""
OPEN = frozenset({"running", "waiting"})
"""Those in which a run takes events and its times strike."""
GOING = OPEN | {"paused"}
RESTING = frozenset({"waiting", "paused"})
MOVING = frozenset({"running", "compensating"})
"""Those in which a run goes on by itself."""
UNFINISHED = GOING | MOVING

DONE, ERROR, TIMEOUT, BEGIN, JOINED, PARKED = "$done", "$error", "$timeout", "$begin", "$joined", "$parked"
CANCEL, PAUSE, UNPAUSE, RETRY, RERUN = "$cancel", "$pause", "$unpause", "$retry", "$rerun"
"""The engine's own events."""
STEERING = frozenset({CANCEL, PAUSE, UNPAUSE, RETRY, RERUN})
"""Those of them that somebody sends by hand."""


def sooner(*times: float | None) -> float | None:
    """The first of some times, where each may be None, which is never."""
    return min((time for time in times if time is not None), default=None)


class Active(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One stay in an active state: the version of the move that entered it, and which attempt of its step is on.

    `again` is when the next attempt is due; `timers` are the delays that the state has not yet left behind, each with
    the time when it is due, and `spent` those that have struck here and led nowhere else; `touched` are the keys that a
    region of a parallel state has changed, or, while the state waits for children, that others have; `children` is how
    many were made for it, None where none were yet. `was` is the name of the state when it was entered, where a
    migration has given it another: what is remembered, and the children, stand under it.
    """

    visit: int
    attempt: int = 1
    again: float | None = None
    timers: dict[str, float] = {}
    touched: tuple[str, ...] = ()
    was: str = ""
    children: int | None = None
    spent: tuple[str, ...] = ()


class Child(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Whose child a run is: the id of its parent, with the state and visit that made it, and which of them, from 0.

    `depth` is how many runs are above it. `turn` is 0 while it waits for its turn, 1 when it has it, and 2 once its
    end was counted.
    """

    parent: int
    state: str
    visit: int
    ordinal: int
    depth: int = 1
    turn: int = 0


class Order(msgspec.Struct, frozen=True, gc=False):
    """What a move says to the children of one visit, in its own commit: `$begin`, `$cancel`, `$pause` or `$retry`.

    `$begin` counts them and gives the first `concurrency` their turn. `$retry` lets go on what failed or was paused,
    and counts anew. With `first` the first failure brings `$joined` to the parent, else the last end does.
    """

    name: str
    state: str
    visit: int
    concurrency: int = 1
    first: bool = True


class Undo(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A finished visit that can be compensated; while undoing, which attempt is on and when the next is due.

    `was` is as in Active.
    """

    state: str
    visit: int
    attempt: int = 1
    again: float | None = None
    was: str = ""


class Undoing(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What is to be undone, the oldest first. `ends` is how the run ends once that is done; `lost` could not be."""

    left: tuple[Undo, ...] = ()
    ends: str | None = None
    lost: tuple[Undo, ...] = ()


class Failure(msgspec.Struct, frozen=True, gc=False):
    """What went wrong: an error's type, message and traceback, and the state, visit and attempt that raised it.

    `code` is that of errors.py where the error is one of ours, else None.
    """

    type: str
    message: str
    traceback: str = ""
    state: str = ""
    visit: int = 0
    attempt: int = 1
    code: str | None = None

    def __repr__(self) -> str:  # the traceback is for who asks for it
        return f"<Failure in {self.state}, attempt {self.attempt}: {self.type}: {self.message[:200]!r}>"


class Action(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something to do after a commit: its name in the workflow, and the version of the move that named it."""

    name: str
    version: int


class Run(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One instance of a workflow, as one row of the store holds it.

    `active` maps each active state to its stay, in document order; `state` is its text. `due` is the time from which
    somebody has to drive the run, None while nobody has to. `owner` and `epoch` say who drives it. `fields` is the data
    as text, `hashes` names those over 4 KB, and `typed` is the data as the workflow's own type, where it has one.
    `deaths` counts processes that died while it was in flight in this visit; `flight` is the epoch in which it said
    that it is, which only a suspect does. `undo` is what would be compensated, and `later` when the next event of the
    inbox is due; it is not stored.
    """

    workflow: str
    key: str
    active: dict[str, Active]
    fields: Fields
    hashes: dict[str, str] = {}
    typed: Any = None
    id: int = 0
    status: Status = "running"
    version: int = 0
    definition: int = 1
    structure: str = ""
    due: float | None = None
    owner: str | None = None
    epoch: int = 0
    posted: int = 0
    error: Failure | None = None
    actions: tuple[Action, ...] = ()
    undo: Undoing = Undoing()
    later: float | None = None
    deadline: float | None = None
    input: str = ""
    child: Child | None = None
    deaths: int = 0
    flight: int | None = None
    created: float = 0.0
    updated: float = 0.0

    @classmethod
    def at(
        cls,
        workflow: Workflow,
        state: str | Iterable[str],
        data: Any = None,
        *,
        key: str = "",
        since: float | None = None,
    ) -> Run:
        """A run in a state that a program keeps in a table of its own, for `decide` and `workflow.accepts`.

        `state` is as `run.state` has it, or the leaf states in a list. With `since`, when they were entered, timers
        run. Raises DefinitionError for states that the workflow does not have, or that are never active together, and
        CodecError for data that does not fit.
        """
        run: Run = workflow.at(state, data, key=key, since=since)
        return run

    def __repr__(self) -> str:
        return f"<Run {self.workflow}/{self.key}: {self.status} in {self.state!r}, version {self.version}>"

    @property
    def data(self) -> Any:
        """The run's data: a private copy whose fields are decoded when touched, or the workflow's own type."""
        return Data(self.fields) if self.typed is None else self.typed

    @property
    def state(self) -> str:
        """The active leaf states, dotted paths, in document order, joined by ", "."""
        if len(self.active) == 1:
            return next(iter(self.active))
        return ", ".join(s for s in self.active if not any(other.startswith(s + ".") for other in self.active))

    @property
    def visit(self) -> int:
        """The visit of the active state; where several are active, of the one entered last."""
        return max(stay.visit for stay in self.active.values())

    @property
    def attempt(self) -> int:
        """Which attempt of the active state's step is on, from 1; the highest where several states are active."""
        return max(stay.attempt for stay in self.active.values())

    @property
    def parent(self) -> int | None:
        """The id of the run whose child this is, None for any other."""
        return None if self.child is None else self.child.parent

    @property
    def in_line(self) -> bool:
        """Whether it is a child whose turn has not come."""
        return self.child is not None and self.child.turn == 0

    @property
    def over(self) -> bool:
        """Whether the run has ended for good: in a final state, cancelled, or failed with its undoing begun."""
        return self.status in OVER or (self.status == "failed" and (self.error is None or self.undo.ends is not None))

    def to_dict(self) -> dict[str, Any]:
        """The run as plain values, for json.dumps, logs of your own, and web pages. Typed data becomes plain data."""
        return {
            "workflow": self.workflow,
            "key": self.key,
            "state": self.state,
            "status": self.status,
            "version": self.version,
            "attempt": self.attempt,
            "data": msgspec.to_builtins(_plain(self), str_keys=True),
            "error": None if self.error is None else msgspec.to_builtins(self.error),
            "due": self.due,
            "created": self.created,
            "updated": self.updated,
        }


def _plain(run: Run) -> Any:
    """The data as a plain dict, or as the workflow's own type has it (pydantic models through their own dump)."""
    if run.typed is None:  # of a typed workflow that is not known here, what looks like a tagged value may be none
        return {key: read_back(text) for key, text in run.fields.items()}
    return run.typed.model_dump(mode="json") if hasattr(run.typed, "model_dump") else run.typed


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A named fact addressed to a run, perhaps due later. Names that begin with `$` are the engine's own.

    `status` is waiting, accepted, rejected or dropped; `version` the move that took it. With `visit` it is good for
    that visit only.

    `$done` carries what a step changed (`changes`, `removed`, seen from `base`) and the `trigger` that it returned;
    `$error` the `failure`, and the exception itself as `error`, which is never stored. `remembered` is False where the
    visit surely has no remembered calls, `progress` says that one was remembered in this attempt; `posts` is what the
    step has emitted, and `within` the transaction that it has begun, in which its move is to be committed.
    """

    name: str
    payload: Any = None
    id: str = ""
    state: str = ""
    visit: int | None = None
    due: float | None = None
    trigger: str | None = None
    changes: Fields | None = None
    removed: tuple[str, ...] = ()
    base: Fields | None = None
    status: str = "waiting"
    version: int | None = None
    number: int = 0
    failure: Failure | None = None
    error: BaseException | None = None
    began: float | None = None
    remembered: bool = True
    progress: bool = False
    posts: tuple[Post, ...] = ()
    within: Any = None

    def __repr__(self) -> str:  # without what is the user's: it is printed, and it is logged
        by = "" if self.version is None else f" by version {self.version}"
        return f"<Event {self.name} {self.id!r:.80}: {self.status}{by}>"


class Post(msgspec.Struct, frozen=True):
    """An event, its payload as JSON text, for the inbox of the run of that workflow and key."""

    workflow: str
    key: str
    event: Event


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What one event did to one run: `before`, `event`, `after`, and what is written beside the row in the same commit.

    `changes` and `removed` are the top-level data fields that it changed; `asked` the conditions with what they saw;
    `forget` the visits whose remembered calls go with this move; `posts` the events that go to other runs; `starts` the
    children that it makes, and `orders` what children are told; `detail` is what else history says of it. `error` is
    what failed the run, and is never stored.
    """

    before: Run
    event: Event
    after: Run
    at: float
    changes: Fields = {}
    removed: tuple[str, ...] = ()
    asked: tuple[Any, ...] = ()
    forget: tuple[tuple[str, int], ...] = ()
    answer: str = "accepted"
    posts: tuple[Post, ...] = ()
    starts: tuple[Run, ...] = ()
    orders: tuple[Order, ...] = ()
    detail: str | None = None
    error: BaseException | None = None

    def __repr__(self) -> str:
        run = self.before
        return f"<Move {self.event.name} of {run.workflow}/{run.key}: {run.state} -> {self.after.state}, {self.answer}>"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A move as history keeps it. `began` is when the step began, `at` when it was decided; `owner` who did it.

    `error` is what a step, its undoing or its children brought, also where it led on. `detail` says of a run that went
    on in another definition from which to which, "2 -> 3", and of an undoing which step it was.
    """

    version: int
    event: str
    source: str
    dest: str
    status: Status
    at: float
    began: float | None = None
    attempt: int = 1
    owner: str | None = None
    epoch: int = 0
    changes: dict[str, Any] = {}
    removed: tuple[str, ...] = ()
    asked: tuple[Any, ...] = ()
    error: Failure | None = None
    trigger: str | None = None
    detail: str | None = None

    def __repr__(self) -> str:
        detail = "" if self.detail is None else f", {self.detail}"
        return f"<Entry {self.version}: {self.event}, {self.source or 'start'} -> {self.dest}, {self.status}{detail}>"


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A remembered call: the `nth` one of that name in a visit, with its result as JSON text."""

    run: int
    state: str
    visit: int
    name: str
    nth: int
    result: bytes


class Owner(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One engine that drives runs: a random token, its machine and process, and until when its lease holds.

    `draining` is 1 once it has begun to end: if it dies then, no run is to blame.
    """

    token: str
    machine: str
    process: str
    lease: float
    started: float
    draining: int = 0
