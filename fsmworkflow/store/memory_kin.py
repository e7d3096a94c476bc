"""The tables of the store in dicts, and what its moves do to other runs: the twin of kin.py."""

from __future__ import annotations

import time
from collections.abc import Callable

from fsmworkflow import records
from fsmworkflow.codec import read_back
from fsmworkflow.errors import StoreError
from fsmworkflow.records import Call, Child, Entry, Event, Move, Order, Owner, Run, replace, sooner
from fsmworkflow.store import Events, Keys, Runs
from fsmworkflow.store.rows import ends, posted

__all__ = ["Kin"]


class Count:
    """How many children of one visit have not ended, and the ids of those in line, the next one last."""

    __slots__ = ("first", "id", "line", "remaining")

    def __init__(self, event_id: str, remaining: int, first: bool, line: list[int]) -> None:
        self.id, self.remaining, self.first, self.line = event_id, remaining, first, line


class Kin:
    """The tables of the store in dicts, and what a move does in them to other runs. `clock` gives the time."""

    url = "memory://"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.opened = False
        self._clear()

    def _clear(self) -> None:
        self._runs: dict[int, Run] = {}
        self._last = 0  # the id that was given last
        self._keys: dict[tuple[str, str], int] = {}
        self._moves: dict[int, list[Entry]] = {}
        self._calls: dict[tuple[int, str, int], dict[tuple[str, int], Call]] = {}
        self._events: dict[int, dict[str, Event]] = {}
        self._children: dict[tuple[int, str, int], list[int]] = {}  # by the visit that made them, in their order
        self._live: dict[int, set[int]] = {}  # the children of a run that have their turn
        self._counts: dict[tuple[int, str, int], Count] = {}  # of visits whose children are waited for
        self._created: list[float] = []  # when each event was posted, by its number
        self._owners: dict[str, Owner] = getattr(self, "_owners", {})

    def _open(self) -> None:
        if not self.opened:
            raise StoreError(f"{self.url} is not open")

    def _make(self, run: Run) -> Run:
        self._last += 1
        run = replace(run, id=self._last)
        self._runs[run.id] = run
        self._keys[run.workflow, run.key] = run.id
        self._moves[run.id] = [_start(run)]
        return run

    def _insert(self, run: Run, event: Event, now: float) -> Event:
        self._created.append(now)
        return self._events.setdefault(run.id, {}).setdefault(event.id, posted(event, len(self._created), now))

    def _posted(self, row: Run, event: Event) -> None:
        """One more was posted, and the run is due for it: a child that waits for its turn only for the engine's own."""
        due = row.due if row.in_line and not event.name.startswith("$") else sooner(row.due, event.due)
        self._runs[row.id] = replace(row, posted=row.posted + 1, due=due)

    def _waiting(self, run: Run) -> Events:
        return [event for event in self._events.get(run.id, {}).values() if event.status == "waiting"]

    # -- children ---------------------------------------------------------------------------------------------------

    def _related(self, move: Move) -> Keys:
        """All that a move does to other runs. Returns those that it made due."""
        now, due = self._clock(), list[Run]()
        for child in move.starts:
            if (child.workflow, child.key) not in self._keys and (of := child.child) is not None:
                self._children.setdefault((of.parent, of.state, of.visit), []).append(self._make(child).id)
        for order in move.orders:
            if order.name in ("$cancel", "$pause"):
                self._uncount(move, order)
            if order.name != "$begin":
                due += [run for run in self._siblings(move.before.id, order) if self._tell(run, order.name, move, now)]
            if order.name in ("$begin", "$retry"):
                due += self._arm(move, order, now)
        if move.after.child is not None and ends(move):
            due += self._end(move, move.after.child, now)
        return [(run.workflow, run.key) for run in due]

    def _siblings(self, run: int, order: Order) -> list[Run]:
        return [self._runs[child] for child in self._children.get((run, order.state, order.visit), ())]

    def _uncount(self, move: Move, order: Order) -> None:
        """The count of a visit that is left, or whose run has failed, is no more."""
        self._counts.pop((move.before.id, order.state, order.visit), None)
        for event in self._waiting(move.before):
            if (event.name, event.state, event.visit) == ("$joined", order.state, order.visit):
                dropped = replace(event, status="dropped", version=move.after.version)
                self._events[move.before.id][event.id] = dropped

    def _tell(self, run: Run, name: str, move: Move, now: float) -> bool:
        """One of the engine's own events to a child to whom it says something. True where it is due for it."""
        child, version = run.child, move.after.version
        assert child is not None
        if name == "$cancel" and child.turn == 0 and not (run.version or run.posted or run.owner):
            self._cancel_unbegun(run, child, now)
            return False
        waiting = {event.name for event in self._waiting(run)}
        again = run.status in records.STUCK and not waiting.isdisjoint(("$retry", "$rerun"))
        if name == "$retry":
            name = "$retry" if child.turn == 2 else "$unpause"
        says = {
            "$cancel": run.status in records.GOING or again,
            "$pause": child.turn == 1 and (run.status in records.OPEN or again),
            "$unpause": child.turn == 1 and (run.status == "paused" or "$pause" in waiting),
            "$retry": child.turn == 2 and (run.status == "parked" or (run.status == "failed" and not run.over)),
        }
        if name == "$retry" and run.status in records.UNFINISHED:  # it was let go on by hand, and counts again
            self._take_turn(run.id, 1)
        if not says[name]:
            return False
        event = self._insert(run, Event(name=name, id=f"{name}/{version}"), now)
        self._runs[run.id] = replace(run, posted=run.posted + 1, due=sooner(run.due, event.due))
        if name == "$retry":
            self._take_turn(run.id, 1)
        return True

    def _cancel_unbegun(self, run: Run, child: Child, now: float) -> None:
        """A child that has never moved is cancelled at once."""
        cancelled = replace(run, status="cancelled", version=1, due=None, actions=(), updated=now)
        self._runs[run.id] = replace(cancelled, child=replace(child, turn=2))
        told = Entry(version=1, event="$cancel", source=run.state, dest=run.state, status="cancelled", at=now)
        self._moves[run.id].append(told)

    def _take_turn(self, number: int, turn: int) -> None:
        run = self._runs[number]
        assert run.child is not None
        self._runs[number] = replace(run, child=replace(run.child, turn=turn))
        live = self._live.setdefault(run.child.parent, set())
        live.add(number) if turn == 1 else live.discard(number)

    def _arm(self, move: Move, order: Order, now: float) -> list[Run]:
        """Count the children that have not ended, and give so many of them their turn as may have it."""
        visit, family = (move.before.id, order.state, order.visit), self._siblings(move.before.id, order)
        turns = [run.child.turn for run in family if run.child is not None]
        line = [run.id for run, turn in zip(family, turns, strict=True) if turn == 0]
        failed = order.first and any(r.status != "done" and t == 2 for r, t in zip(family, turns, strict=True))
        count = Count(
            f"$joined/{order.state}/{move.after.version}", len(line) + turns.count(1), order.first, line[::-1]
        )
        if failed or not count.remaining:
            return self._bring(visit, count, now)
        self._counts[visit] = count
        return [self._turn(count, now) for _ in range(min(len(line), max(0, order.concurrency - turns.count(1))))]

    def _turn(self, count: Count, now: float) -> Run:
        """The next in line has its turn."""
        number = count.line.pop()
        self._take_turn(number, 1)
        run = self._runs[number]
        run = self._runs[number] = run if run.status == "paused" else replace(run, due=now)
        return run

    def _bring(self, visit: tuple[int, str, int], count: Count, now: float) -> list[Run]:
        """`$joined` comes into the parent's inbox."""
        parent, state, number = visit
        self._counts.pop(visit, None)
        event = Event(name="$joined", id=count.id, state=state, visit=number)
        self._posted(self._runs[parent], self._insert(self._runs[parent], event, now))
        return [self._runs[parent]]

    def _end(self, move: Move, child: Child, now: float) -> list[Run]:
        """A child has ended. It counts once, however often it is retried."""
        row, visit = self._runs[move.before.id], (child.parent, child.state, child.visit)
        of = row.child
        if of is None or of.turn == 2:
            return []
        self._take_turn(row.id, 2)
        count = self._counts.get(visit)
        if count is None:
            return []
        if of.turn == 0:  # in line, from which it goes without giving its turn on
            count.line.remove(row.id)
        count.remaining -= 1
        if not count.remaining or (count.first and move.after.status != "done"):
            return self._bring(visit, count, now)
        return [self._turn(count, now)] if of.turn == 1 and count.line else []

    async def children(self, run: Run, state: str, visit: int) -> Runs:
        self._open()
        return [self._runs[child] for child in self._children.get((run.id, state, visit), ())]

    async def below(self, run: Run) -> Keys:
        self._open()
        found, todo = list[Run](), [run.id]
        while todo:
            parent = todo.pop()
            live = [self._runs[number] for number in sorted(self._live.get(parent, ()))]
            todo += [one.id for one in live]
            found += [r for r in live if r.due is not None and (r.status in records.MOVING or r.due <= self._clock())]
        return [(one.workflow, one.key) for one in found]


def _start(run: Run) -> Entry:
    return Entry(
        version=0, event="$start", source="", dest=run.state, status=run.status, at=run.created, owner=run.owner,
        epoch=run.epoch, changes={k: read_back(v) for k, v in run.fields.items()},
    )  # fmt: skip
