"""The Store: keeps runs, events and moves, and knows nothing of steps, retries or guards. `open_store(url)` makes one.

Every store passes the same contract, in tests/test_store.py. What a store cannot do for a while (a server that is away,
a locked file, a full disk) it waits for, with a warning in the log; what it never can is a StoreError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fsmworkflow.errors import StoreError
from fsmworkflow.records import Call, Entry, Event, Move, Owner, Run
from fsmworkflow.store.lent import Lent

__all__ = ["Store", "open_store"]

Runs = list[Run]
Owners = list[Owner]
Entries = list[Entry]
Calls = list[Call]
Events = list[Event]
Names = list[str]
Keys = list[tuple[str, str]]
Woken = list[tuple[str, str, int]]
Versions = Mapping[str, int]
Pairs = Sequence[tuple[int, int]]
Limits = Mapping[str, int]
NONE: Limits = {}


class Store(Protocol):
    """What an engine asks of the place where runs are kept. Every method may be cancelled at any await."""

    url: str
    """Where it is, without a password: for messages and logs."""

    @property
    def opened(self) -> bool:
        """Whether it is open."""

    async def open(self) -> None:
        """Connect, and create or upgrade the tables. Raises SchemaError, StoreError or StoreUnavailable."""

    async def close(self) -> None:
        """Finish what was begun, and let go of everything. A closed store may be opened again, in another loop too."""

    def twin(self) -> Store | None:
        """Another store on the same place, not yet open, for another event loop. None where there can be only this."""

    def now(self) -> float:
        """The store's clock, by which leases and due times are judged: seconds since the epoch."""

    async def create(self, run: Run) -> tuple[Run, bool]:
        """Insert a run unless its key is taken. Returns the run that is there, and whether it is the one given."""

    async def commit(self, move: Move) -> Keys | None:
        """Write one move: row, history, inbox, remembered calls that go. Raises LeaseLost, and then wrote nothing.

        Raises Refused, and wrote nothing, where the database does not take it, by a rule or a limit of its own.

        Its children are made and told what it `orders` in the same commit. `$begin` and `$retry` put a count of those
        that have not ended beside the parent's inbox; a child's move that ends it counts down once, gives the next in
        line its turn, and brings `$joined` to the parent where it is the last, or where the first failure is enough.
        Returns the other runs that this made due, as far as is known: after a lost answer they are not.

        An event of the inbox (it has a `number`) is marked with the move's `answer` and version. One with an id and no
        number is new: it is inserted so, and counted in `posted`, if no other has been posted since `before`. Raises
        Stale where one has, where its id is known, or where an event of the inbox is spent, and then wrote nothing.
        A move that ends the run for good drops what still waits. Where an event was posted since `before`, a run is
        left due now, whatever the move says.
        """

    def transaction(self, run: Run) -> Lent:
        """A transaction for a step of this run, not begun yet. Raises TransactionError in a store that has none."""

    async def settle(self, before: Run, after: Run) -> None:
        """Write what is no move: the `actions`, `owner` (kept or None), `due` and `error` of `after`. Raises LeaseLost.

        The row must still be at the version of `before`, held by its owner and epoch. Where the run is over, what still
        waits in its inbox is dropped; where an event was posted since `before`, it is left due now.
        """

    async def children(self, run: Run, state: str, visit: int) -> Runs:
        """The children that one visit has made, in their order."""

    async def below(self, run: Run) -> Keys:
        """The (workflow, key) of the runs below one, on every level, that can move by themselves now."""

    async def post(self, workflow: str, key: str, event: Event) -> Event:
        """Put an event into a run's inbox; durable when it returns, with its `number` and when it is due.

        A known id is answered with the Event as it now is, also where the run has ended, and nothing is written. Raises
        RunNotFound, RunOver for a run that has ended for good, and CodecError for what cannot be stored.
        """

    async def inbox(self, run: Run) -> tuple[int, Events]:
        """How many events were ever posted to a run, and those that wait, the first due first. Raises RunNotFound."""

    async def event(self, run: Run, event_id: str) -> Event | None:
        """One event of a run as it now is, or None."""

    async def taken(self, run: Run, version: int) -> Event | None:
        """The event of the inbox that was accepted by the move of that version, or None."""

    async def woken(self, owner: str, since: float) -> Woken:
        """The (workflow, key, posted) of runs held by this owner in whose inbox something waits that came since then.

        An event bears the time at which its write began, and a write may take as long as it likes: overlap the times.
        What was seen before is known by `posted`, the number of events that were ever posted to the run.
        """

    async def rings(self, names: Names, heard: int, within: float) -> int:
        """A number that has grown past `heard` when something was posted, or became due, elsewhere; within that time.

        `names` are owners whose runs it concerns, "" being those that nobody holds. It need not grow: whoever waits
        looks again after `within` seconds in any case.
        """

    async def release(self, run: Run) -> None:
        """Give up a run that is still held by this owner and epoch, whatever its version; else do nothing."""

    async def remember(self, run: Run, call: Call) -> None:
        """Keep the result of a call. Raises LeaseLost where another has claimed the run."""

    async def recall(self, run: Run, state: str, visit: int) -> Calls:
        """The remembered calls of one visit."""

    async def load(self, workflow: str, key: str) -> Run | None:
        """One run, or None."""

    async def claim(
        self, owner: str, workflows: Versions, many: int, by: float, but: Pairs = (), limits: Limits = NONE
    ) -> Runs:
        """Make up to `many` runs due by then that no live owner holds ours, oldest first, each under a new epoch.

        `workflows` names the newest version of each that can be driven: runs of a newer one are left alone, and so are
        those in `but`, (id, version), for as long as they are at that version. `limits` says how many of a workflow may
        be driven at once: held by live owners, and not at rest. However many claim, there are never more. Raises
        Refused where the oldest cannot be claimed by a rule of the database's own: its `rows` say which it may be.
        """

    async def claim_one(
        self, owner: str, workflow: str, key: str, newest: int | None = None, limit: int | None = None
    ) -> Run | None:
        """Make one run ours, under a new epoch. None where there is none, or a live owner holds it.

        Nor is a child claimed whose turn has not come, but for what a hand has posted to it, nor a run of a newer
        version of the workflow than `newest`, nor one where `limit` runs of the workflow are driven already.
        """

    async def oldest(self, workflow: str, but: Names, newest: int | None = None) -> str | None:
        """The key of the oldest run that may go on and that no live owner holds, `but` those; else None.

        One of a newer version of the workflow than `newest` is passed over, and so is every child.
        """

    async def overdue(self, workflows: Names) -> float | None:
        """Since when the oldest due run of these workflows waits that no live owner holds; None where none does."""

    async def prune(self, workflow: str, statuses: Names, before: float, many: int) -> int:
        """Delete up to `many` ended runs of these statuses that have not moved since then. Returns how many went.

        All that is theirs goes in the same transaction, with the runs below them. A run stays that has children which
        have not ended, a parent that is not over, an owner, or something due. A start of the same key finds the run
        that was there, or makes a new one. Where an id could be given again, the newest run of the store stays too.
        """

    async def trim(self, run: Run, before: int) -> None:
        """Forget the moves of a run of ours between its start and a version, with the events that they took.

        Nothing where another owner has claimed it. For runs that go on for ever and whose old moves nobody needs.
        """

    async def list(self, *, workflow: str | None, status: str | None, state: str | None, after: int, many: int) -> Runs:
        """Runs in the order of their making, after the one with id `after`."""

    async def history(self, run: Run) -> Entries:
        """All moves of a run, from version 0, save what was trimmed. Raises RunNotFound where it has been deleted."""

    async def enrol(self, owner: Owner) -> None:
        """Make an owner known, or its lease longer."""

    async def renew(self, token: str, lease: float) -> bool:
        """Hold a lease until then. False where the owner is no longer known: others may have claimed its runs."""

    async def owners(self) -> Owners:
        """All owners that have not been buried."""

    async def bury(self, token: str) -> None:
        """Forget an owner that has ended: its runs may be claimed at once."""

    async def reset(self) -> None:
        """Delete all runs with all that belongs to them."""


def open_store(url: str, **options: Any) -> Store:
    """The store of a URL, not yet open: `sqlite:///file.db`, `postgresql://...` or `memory://`. Imports its driver.

    Raises StoreError for any other scheme.
    """
    scheme = url.partition(":")[0]
    if url.startswith("memory://"):
        from fsmworkflow.store.memory import MemoryStore

        return MemoryStore(**options)
    if url.startswith("sqlite:///"):
        from fsmworkflow.store.sqlite import SQLiteStore

        return SQLiteStore(url.removeprefix("sqlite:///"), **options)
    if scheme in ("postgresql", "postgres"):
        from fsmworkflow.store.postgres import PostgresStore

        return PostgresStore(url, **options)
    raise StoreError(
        f"no store has a URL like {url.partition('@')[2] or url!r}: use sqlite:///file.db, postgresql://... or memory://"
    )
