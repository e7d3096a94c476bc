"""The rules of a family, told again as simply as can be: what tests/test_model_families.py holds stores against.

Like tests/model.py it shares no code with the package, has no store and no tasks, and knows what somebody outside sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Place = tuple[int, int]
"""A child: the visit in which it was made, and its place among the items."""
Told = list[tuple[str, str, str]]
"""A history: event, state and status."""


@dataclass
class Kid:
    """One child: work (a step) -> ask (a wait; not where it asks nothing) -> given or refused."""

    asks: bool
    turn: int = 0  # 0 in line, 1 its turn, 2 counted
    state: str = "work"
    status: str = "running"
    on: bool = False  # its step runs
    kept: bool = False  # it failed and keeps its place
    inbox: list[str] = field(default_factory=list)  # the oldest first; a pause waits for the step that is on
    told: Told = field(default_factory=lambda: [("$start", "work", "running")])

    @property
    def live(self) -> bool:
        return self.status in ("running", "waiting")

    @property
    def over(self) -> bool:
        return not self.live and self.status != "paused" and not self.kept

    def tell(self, event: str, state: str, status: str) -> None:
        self.state, self.status = state, status
        self.told.append((event, state, status))

    def next(self) -> str | None:
        """The oldest that is accepted now."""
        asked = self.state == "ask" and self.status == "waiting"
        return next((name for name in self.inbox if asked or name.startswith("$")), None)

    def steered(self, name: str) -> None:
        """What cannot be is refused, and told all the same: a pause of one that failed while it waited for the step."""
        going = "running" if self.state == "work" else "waiting"
        if name == "$pause":
            self.tell(name, self.state, "paused" if self.live else self.status)
        else:
            self.tell(name, self.state, going if self.status == "paused" else self.status)


@dataclass(frozen=True)
class Kind:
    """Of what kind a family is: its items say who asks, `listens` whether children look up from their step."""

    items: tuple[bool, ...]
    limit: int
    collects: bool = False
    leads_on: bool = False
    listens: bool = False


class Family:
    """A parent and its children. A command changes it, and `settle` lets everything follow that needs nobody else."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.now = 0
        self.state, self.status, self.visit = "all", "running", 0
        self.told: Told = [("$start", "all", "running")]
        self.kids: dict[Place, Kid] = {}
        self.counts = False
        self.joins: int | None = None  # when `$joined` came
        self.skips: int | None = None  # when "skip" was sent
        self.statuses: list[str] | None = None  # what has come back of each child
        self._make()
        self._tell("$begin", "all", "waiting")
        self.settle()

    @property
    def over(self) -> bool:
        return self.status in ("done", "cancelled")

    @property
    def family(self) -> list[Kid]:
        return [kid for (visit, _), kid in self.kids.items() if visit == self.visit]

    @property
    def on(self) -> list[Place]:
        return sorted(place for place, kid in self.kids.items() if kid.on)

    def _tell(self, event: str, state: str, status: str) -> None:
        self.state, self.status = state, status
        self.told.append((event, state, status))

    # -- commands ---------------------------------------------------------------------------------------------------

    def end(self, place: Place) -> None:
        kid = self.kids[place]
        kid.on = False
        kid.tell("$done", *(("ask", "waiting") if kid.asks else ("given", "done")))
        self._ended(kid)

    def fail(self, place: Place) -> None:
        kid = self.kids[place]
        kid.on, kid.kept = False, True
        kid.tell("$error", "work", "failed")
        self._ended(kid)

    def cancel(self, kid: Kid) -> None:
        kid.on = kid.kept = False
        kid.tell("$cancel", kid.state, "cancelled")
        self._ended(kid)

    def let_on(self, kid: Kid) -> None:
        kid.kept = False
        kid.tell("$retry", "work", "running")

    def steer(self, name: str) -> None:
        match name:
            case "pause":
                self._tell("$pause", "all", "paused")
            case "unpause":
                self._tell("$unpause", "all", "waiting")
            case "cancel":
                self._tell("$cancel", "all", "cancelled")
                self._cancel_all()
            case "retry":
                self._tell("$retry", "all", "waiting")
                self._let_all_on()
                self._arm()
            case "rerun":
                self._tell("$rerun", "all", "waiting")
                self._cancel_all()
                self.visit = len(self.told) - 1
                self._make()

    def crash(self) -> None:
        for kid in self.kids.values():
            kid.on = False

    # -- what follows -----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        before: Any = None
        while before != (before := (list(self.told), [len(kid.told) for kid in self.kids.values()])):
            for kid in self.kids.values():
                self._settle(kid)
            self._join_or_skip()

    def _settle(self, kid: Kid) -> None:
        while not (kid.on or kid.over) and (name := kid.next()) is not None:
            kid.inbox.remove(name)
            if name.startswith("$"):
                kid.steered(name)
                continue
            kid.tell(name, *(("given", "done") if name == "yes" else ("refused", "failed")))
            self._ended(kid)
        kid.on |= kid.status == "running" and kid.turn > 0

    def _join_or_skip(self) -> None:
        if self.status != "waiting" or (self.joins is None and self.skips is None):
            return
        if self.joins is None or (self.skips is not None and self.skips < self.joins):
            self._tell("skip", "skipped", "done")
            self._cancel_all()
            return
        self.joins = None
        if not self.kind.collects and any(kid.status != "done" for kid in self.family):
            if self.kind.leads_on:
                self._tell("$joined", "other", "done")
                self._cancel_all()
            else:
                self._tell("$joined", "all", "failed")
                self._pause_all()
            return
        self.statuses = [kid.status for kid in self.family]
        self._tell("$joined", "end", "done")
        self._cancel_all()

    def _make(self) -> None:
        self.kids |= {(self.visit, n): Kid(asks) for n, asks in enumerate(self.kind.items)}
        self._arm()

    def _arm(self) -> None:
        """Count those that have not ended, and give so many of them their turn as may have it."""
        failed = any(kid.turn == 2 and kid.status != "done" for kid in self.family) and not self.kind.collects
        self.counts = not failed and any(kid.turn < 2 for kid in self.family)
        if not self.counts:
            self.joins = self.now
            return
        for _ in range(self.kind.limit - sum(kid.turn == 1 for kid in self.family)):
            self._next()

    def _next(self) -> None:
        for kid in self.family:
            if kid.turn == 0:
                kid.turn = 1
                return

    def _ended(self, kid: Kid) -> None:
        """A child that has ended, or failed, counts once; another one has the turn that it had."""
        if kid.live or kid.turn == 2:
            return
        had, kid.turn = kid.turn, 2
        if not self.counts or kid not in self.family:
            return
        if all(one.turn == 2 for one in self.family) or (kid.status != "done" and not self.kind.collects):
            self.counts, self.joins = False, self.now
        elif had == 1:
            self._next()

    def _cancel_all(self) -> None:
        self.counts, self.joins = False, None
        for kid in self.family:
            if kid.live or kid.status == "paused":
                self.cancel(kid)

    def _pause_all(self) -> None:
        self.counts = False
        for kid in self.family:
            if kid.turn == 1 and kid.live:
                kid.inbox.append("$pause")

    def _let_all_on(self) -> None:
        for kid in self.family:
            if kid.turn == 2 and (kid.live or kid.kept):
                kid.turn = 1
            if kid.kept:
                self.let_on(kid)
            elif kid.turn == 1 and ("$pause" in kid.inbox or kid.status == "paused"):
                kid.inbox.append("$unpause")
