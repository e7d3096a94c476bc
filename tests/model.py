"""The rules of a run, told a second time as simply as can be: what tests/test_model.py holds the package against.

A machine is plain data (`Machine`, of `State` and `Way`), of which `built` makes a Workflow. `Model` is one run of it
in ordinary dicts and lists, written from the rules and from nothing else: it shares no code with `decide`, has no store
and no tasks, and knows only what somebody outside can see. Time is a number that `turn` adds to.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

from fsmworkflow import Retry, Transition, Workflow, WorkflowStep, field, payload
from fsmworkflow import workflow as words
from fsmworkflow.records import replace

KEY = "one"
BEGAN = 1_750_000_000.0
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {">=": operator.ge, "<": operator.lt, "==": operator.eq}


class Oops(Exception):
    """What a step of a machine raises, and may be tried again for."""


class Never(Exception):
    """What no step is tried again for."""


ERRORS: dict[str, type[Exception]] = {"Oops": Oops, "Never": Never}


@dataclass(frozen=True)
class If:
    """A condition: a field of the data, or `q` of the payload, compared with a number or with a field."""

    left: str
    sign: str
    right: int | str

    def holds(self, data: dict[str, Any], q: Any) -> bool:
        left = q if self.left == "q" else data[self.left]
        if left is None:
            raise Fails("ConditionError")  # a step returned the trigger, so that there is no payload
        return OPERATORS[self.sign](left, data[self.right] if isinstance(self.right, str) else self.right)

    def built(self) -> Any:
        left = payload("q") if self.left == "q" else field(self.left)
        return OPERATORS[self.sign](left, field(self.right) if isinstance(self.right, str) else self.right)


@dataclass(frozen=True)
class Way:
    """Where a transition leads (None: the run ends where it is), and what it adds to `n`: `q` times this number."""

    to: str | None
    only: If | None = None
    adds: int = 0
    internal: bool = False


Ways = list[Way]


@dataclass
class State:
    """One state by its dotted path. `tries` is how often its step is tried, 10 s and then 20 s apart, for an Oops."""

    name: str
    kind: str = "step"
    initial: bool = False
    then: Ways = default(default_factory=list)
    on: dict[str, Ways] = default(default_factory=dict)
    after: dict[float, Ways] = default(default_factory=dict)
    errors: dict[str, Ways] = default(default_factory=dict)
    tries: int = 1
    undo: bool = False
    acts: bool = False
    fails: bool = False
    was: str = ""  # its name in the first version, which its actions keep

    @property
    def label(self) -> str:
        return self.was or self.name


@dataclass
class Machine:
    """The definition: its states in document order. `renamed` maps the names of the version before to the new ones."""

    name: str
    states: list[State]
    park: bool = False
    deadline: float | None = None
    merge: tuple[str, ...] = ()  # keys of which the greater value is kept
    version: int = 1
    migrations: tuple[dict[str, str], ...] = ()  # what each version after the first says of states
    renamed: dict[str, str] = default(default_factory=dict)

    def next(self) -> Machine:
        """The next version: every second state has another name, and the data tell the version."""
        version = self.version + 1
        ends = {s.name for s in self.states if s.kind == "final" and "." not in s.name}
        chosen = {s.name for place, s in enumerate(self.states) if (place + version) % 2} - ends

        def new(name: str) -> str:
            paths = [name, *around(name)[:-1]]
            return ".".join(p.rpartition(".")[2] + f"v{version}" * (p in chosen) for p in reversed(paths))

        def led(ways: Ways) -> Ways:
            return [dataclasses.replace(way, to=None if way.to is None else new(way.to)) for way in ways]

        states = [
            dataclasses.replace(
                s, name=new(s.name), was=s.label, then=led(s.then), on={e: led(w) for e, w in s.on.items()},
                after={d: led(w) for d, w in s.after.items()}, errors={e: led(w) for e, w in s.errors.items()},
            )
            for s in self.states
        ]  # fmt: skip
        said = {name: new(name) for name in chosen}
        renamed = {s.name: new(s.name) for s in self.states}
        migrations = (*self.migrations, said)
        return dataclasses.replace(self, states=states, version=version, migrations=migrations, renamed=renamed)

    def __post_init__(self) -> None:
        self.of = {state.name: state for state in self.states}
        self.order = {name: place for place, name in enumerate(self._document(""))}
        self.events = sorted({event for state in self.states for event in state.on})

    def inside(self, name: str) -> list[str]:
        return [state.name for state in self.states if above(state.name) == name]

    def _document(self, name: str) -> Iterable[str]:
        for one in self.inside(name):
            yield one
            yield from self._document(one)

    def ordered(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self.order.__getitem__)

    # -- as a Workflow ----------------------------------------------------------------------------------------------

    def built(self, name: str, step: Callable[..., Any], act: Callable[[str], Callable[..., Any]]) -> Workflow:
        """The Workflow: `step` is every step and every undoing, `act(name)` the action of that name."""
        merge = dict.fromkeys(self.merge, max)
        park: Any = "park" if self.park else None
        flow = Workflow(name, version=self.version, merge=merge, deadline=self.deadline, on_failure=park)
        for before, said in enumerate(self.migrations, 1):
            flow.migrate(before, to=before + 1, states=said, data=telling(before + 1))
        retry = Retry(first_delay=10, jitter=False, on=(Oops,))
        for s in self.states:
            tried = None if s.tries == 1 else replace(retry, attempts=s.tries)
            flow.add(
                words.State(
                    name=s.name, kind=s.kind, initial=s.initial, outcome="failed" if s.fails else "done",
                    step=WorkflowStep(s.name, step, tried) if s.kind == "step" else None,
                    enter=act(f"enter {s.label}") if s.acts else None,
                    exit=act(f"exit {s.label}") if s.acts else None,
                    compensate=step if s.undo else None, undo=Retry(attempts=2, first_delay=10, jitter=False),
                )
            )  # fmt: skip
            for by, ways in self._ways(s):
                for way in ways:
                    only = None if way.only is None else way.only.built()
                    update = adding(way.adds) if way.adds else None
                    way_there = Transition(None, s.name, way.to, only, update=update, internal=way.internal)
                    flow.add(replace(way_there, **by))
        return flow

    def _ways(self, s: State) -> Iterable[tuple[dict[str, Any], Ways]]:
        yield {}, s.then
        yield from (({"trigger": event}, ways) for event, ways in s.on.items())
        yield from (({"delay": delay}, ways) for delay, ways in s.after.items())
        yield from (({"error": ERRORS[error]}, ways) for error, ways in s.errors.items())


def adding(times: int) -> Callable[[Any, Any], None]:
    def update(data: Any, event: Any) -> None:
        data["n"] += times * (event.payload or {}).get("q", 1)

    return update


def telling(version: int) -> Callable[[Any], None]:
    def tell(data: Any) -> None:
        data["v"] = version

    return tell


def above(name: str) -> str:
    return name.rpartition(".")[0]


def around(name: str) -> list[str]:
    """The states around one, from inside outwards, and at last the workflow."""
    return [] if not name else [above(name), *around(above(name))]


def within(name: str, other: str) -> bool:
    return not other or name.startswith(other + ".")


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Stay:
    """One stay in an active state."""

    visit: int
    attempt: int = 1
    again: float | None = None
    timers: dict[float, float] = default(default_factory=dict)  # by delay: when it is due
    touched: set[str] = default(default_factory=set)


@dataclass
class Sent:
    """An event of the inbox. `due` and then `number` say which one is the oldest."""

    name: str
    due: float
    number: int
    q: int | None = None
    visit: int | None = None
    state: str | None = None
    status: str = "waiting"
    version: int | None = None


class Fails(Exception):
    """The run fails, with an error of this type."""


Place = tuple[str, int, int]
"""A body that runs: state (with ":undo" where it is undone), visit and attempt."""


class Model:
    """One run of a machine. A command changes it, and `settle` lets everything follow that needs nobody else."""

    def __init__(self, machine: Machine, data: dict[str, Any]) -> None:
        self.machine = machine
        self.now = BEGAN
        self.version = 0
        self.status = "running"
        self.data = dict(data)
        self.error: str | None = None
        self.deadline = None if machine.deadline is None else self.now + machine.deadline
        self.active: dict[str, Stay] = {}
        self.inbox: list[Sent] = []
        self.on: dict[Place, dict[str, Any]] = {}  # the bodies that run, and the data that each was given
        self.left: list[tuple[str, int]] = []  # finished visits that can be undone, the oldest first
        self.tried, self.again = 1, None  # which attempt of an undoing is on, and when the next one is due
        self.lost: list[tuple[str, int]] = []
        self.ends: str | None = None
        self.acts: list[tuple[str, int]] = []
        self.history: list[dict[str, Any]] = []
        self.shift: tuple[str, dict[str, Any]] | None = None  # what a new version made of it, and no move has told yet
        first = next(s.name for s in machine.states if s.initial and "." not in s.name)
        self._enter(self._entered(first, ""))
        self.status = self._resting()
        self._tell("$start", "", self.data, (), 1)
        self.settle()

    # -- what can be asked ------------------------------------------------------------------------------------------

    @property
    def leaves(self) -> list[str]:
        return [name for name in self.active if not self.machine.inside(name)]

    @property
    def state(self) -> str:
        return ", ".join(self.leaves)

    @property
    def over(self) -> bool:
        return self.status in ("done", "cancelled") or (
            self.status == "failed" and (self.error is None or self.ends is not None)
        )

    @property
    def live(self) -> bool:
        return self.status in ("running", "waiting")

    @property
    def pausing(self) -> bool:
        return any(sent.name == "$pause" and sent.status == "waiting" for sent in self.inbox)

    def accepts(self, event: str) -> bool:
        return any(event in self.machine.of[name].on for name in self.active)

    def wakes(self) -> float | None:
        """The next time at which something happens by itself."""
        if self.status == "compensating":
            return self.again
        if not self.live:
            return None
        times = [due for stay in self.active.values() for due in stay.timers.values()]
        times += [stay.again for stay in self.active.values() if stay.again is not None]
        times += [sent.due for sent in self.inbox if sent.status == "waiting"]
        times += [] if self.deadline is None else [self.deadline]
        return min((time for time in times if time > self.now), default=None)

    # -- commands ---------------------------------------------------------------------------------------------------

    def end(self, place: Place, writes: dict[str, int], trigger: str | None = None) -> None:
        state, base = place[0], self.on.pop(place)
        changes = {key: value for key, value in writes.items() if base.get(key, ...) != value}
        if self.status == "compensating":
            self.data.update(changes)
            self.version += 1
            self.left.pop()
            self.tried, self.again = 1, None
            self._undone()
            self._tell("$done", self.state, changes, (), attempt=self._attempt(state))
        else:
            self._done(state, changes, trigger, base)
        self.settle()

    def fail(self, place: Place, error: str) -> None:
        del self.on[place]
        self.version += 1
        if self.status == "compensating":
            self._not_undone(place[0], place[2], error)
        else:
            self._raised(place[0], error)
        self.settle()

    def send(self, event: str, q: int | None = None, after: float = 0.0, visit: int | None = None) -> Sent:
        sent = Sent(event, self.now + after, len(self.inbox), q, visit)
        self.inbox.append(sent)
        self.settle()
        return sent

    def steer(self, name: str, state: str | None = None) -> Sent:
        sent = Sent(name, self.now, len(self.inbox), state=state)
        self.inbox.append(sent)
        self.settle()
        return sent

    def run_again(self) -> None:
        """The program is started again: a failed run goes on where it failed."""
        if self.status == "failed" and not self.over:
            self._go_on()
        self.settle()

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    def crash(self) -> None:
        """What was on is gone, and begins again with the data as it now is."""
        self.on.clear()
        self.settle()

    def migrate(self) -> None:
        """Another process goes on with the next version: what it makes of the run is told with the next move."""
        self.on.clear()
        if self.over:
            return
        machine, source = self.machine.next(), self.state if self.shift is None else self.shift[0]
        new = machine.renamed
        self.machine, self.shift = machine, (source, {"v": machine.version})
        self.data["v"] = machine.version
        self.active = {new[name]: stay for name, stay in self.active.items()}
        self.left = [(new[state], visit) for state, visit in self.left]
        self.lost = [(new[state], visit) for state, visit in self.lost]
        self.settle()

    # -- what follows by itself -------------------------------------------------------------------------------------

    def settle(self) -> None:
        self._stop()
        while self._automatic() or self._oldest():
            self._stop()
        for place in set() if self.live and self.pausing else self._wanted() - self.on.keys():
            self.on[place] = dict(self.data)

    def _stop(self) -> None:
        """Bodies whose visit has ended, or that are not to run now, are gone."""
        for place in self.on.keys() - self._wanted():
            del self.on[place]

    def _automatic(self) -> bool:
        """A choice, a waiting state whose condition holds, or a state around others that has come to its end."""
        if not self.live:
            return False
        of = self.machine.of
        for name in self.leaves:
            waits = of[name].kind == "wait"
            if of[name].kind == "choice" or (waits and any(self._hold(way, None) for way in of[name].then)):
                self._done(name, {}, None, None)
                return True
        for name in reversed(self.active):
            if self.machine.inside(name) and of[name].then and self._complete(name):
                self._done(name, {}, None, None)
                return True
        return False

    def _oldest(self) -> bool:
        """The oldest of what is due: a timer, or an event that is accepted."""
        timers = [(due, name, delay) for name, stay in self.active.items() for delay, due in stay.timers.items()]
        timers += [] if self.deadline is None else [(self.deadline, "", 0.0)]
        first = min(timers) if timers and self.live and min(timers)[0] <= self.now else None
        for sent in sorted(self.inbox, key=lambda one: (one.due, one.number)):
            if not self._takes(sent):
                continue
            if first is not None and first[0] <= sent.due:
                break
            self._take(sent)
            return True
        if first is None:
            return False
        self._strike(first[1], first[2])
        return True

    def _takes(self, sent: Sent) -> bool:
        if sent.status != "waiting" or sent.due > self.now or self.over:
            return False
        if self.status == "compensating":
            return sent.name.startswith("$") and not self.on  # to be refused
        if sent.visit is not None and sent.visit not in {stay.visit for stay in self.active.values()}:
            return False
        if sent.name in ("$pause", "$unpause") and self.on and self.pausing:
            return False  # after the steps that are on
        return sent.name.startswith("$") or (self.live and self.accepts(sent.name))

    def _wanted(self) -> set[Place]:
        """The bodies that are to run."""
        wanted: set[Place] = set()
        if self.live:
            for name, stay in self.active.items():
                if self.machine.of[name].kind == "step" and (stay.again is None or stay.again <= self.now):
                    wanted.add((name, stay.visit, stay.attempt))
        if self.status == "compensating" and (self.again is None or self.again <= self.now):
            wanted.add((f"{self.left[-1][0]}:undo", self.left[-1][1], self.tried))
        return wanted

    # -- moves ------------------------------------------------------------------------------------------------------

    def _done(self, state: str, changes: dict[str, Any], trigger: str | None, base: dict[str, Any] | None) -> None:
        """A step has ended, or a state without one leads on."""
        self.version += 1
        attempt, source, asked = self.active[state].attempt, self.state, []
        data = dict(self.data)
        try:
            for key, value in changes.items():
                data[key] = changes[key] = self._joined(state, key, value, base or {})
            way, at = self._choose(state, trigger, data, asked)
        except Fails as failed:
            self._failed(str(failed))
            self._tell("$done", source, {}, asked, attempt, trigger, str(failed))
            return
        changes.update(self._updates([(at, way)], 1, data))
        for region in self._regions(state):
            self.active[region].touched |= changes.keys()
        if self.machine.of[state].undo:
            self.left.append((state, self.active[state].visit))
        self._go([(at, way)], data)
        self._tell("$done", source, changes, asked, attempt, trigger)

    def _joined(self, state: str, key: str, value: Any, base: dict[str, Any]) -> Any:
        """What a step leaves in a key that another move, or another region, has changed meanwhile."""
        touched = set()
        for region in self._regions(state):
            for other in self.machine.inside(above(region)):
                if other != region and other in self.active:
                    touched |= self.active[other].touched
        if base.get(key, ...) == self.data.get(key, ...) and key not in touched:
            return value
        if key not in self.machine.merge or key not in self.data:
            raise Fails("MergeConflict")
        return max(self.data[key], value)

    def _choose(
        self, state: str, trigger: str | None, data: dict[str, Any], asked: list[bool | None]
    ) -> tuple[Way, str]:
        ways = [(way, state) for way in self.machine.of[state].then]
        if trigger is not None:
            ways = [
                (way, name)
                for name in [state, *around(state)[:-1]]
                for way in self.machine.of[name].on.get(trigger, [])
            ]
        for way, at in ways:
            if self._asked(way, None, data, asked):
                return way, at
        raise Fails("NoTransition")

    def _asked(self, way: Way, q: Any, data: dict[str, Any], asked: list[bool | None]) -> bool:
        if way.only is None:
            return True
        asked.append(None)
        asked[-1] = way.only.holds(data, q)
        return asked[-1]

    def _hold(self, way: Way, q: Any) -> bool:
        return way.only is None or way.only.holds(self.data, q)

    def _raised(self, state: str, error: str) -> None:
        stay, found = self.active[state], self.machine.of[state]
        source, attempt = self.state, stay.attempt
        if error == "Oops" and attempt < found.tries:
            stay.again = self.now + 10 * 2 ** (attempt - 1)
            stay.attempt += 1
            self.error, self.status = error, self._resting()
            self._tell("$error", source, {}, [], attempt, error=error)
            return
        for name in [state, *around(state)[:-1]]:
            for way in self.machine.of[name].errors.get(error, []):
                told = {"type": error, "message": error, "state": state, "attempt": attempt}
                data = {**self.data, "error": told}
                changes = {"error": told, **self._updates([(name, way)], 1, data)}
                self._go([(name, way)], data)
                failed = self.status == "failed"
                self.error = error if failed else None
                self.ends = "failed" if failed else self.ends
                self._tell("$error", source, changes, [], attempt, error=error)
                return
        self._failed(error)
        self._tell("$error", source, {}, [], attempt, error=error)

    def _take(self, sent: Sent) -> None:
        self.version += 1
        sent.status, sent.version = "accepted", self.version
        if sent.name.startswith("$"):
            self._steered(sent)
            return
        asked: list[bool | None] = []
        source, attempt = self.state, self._attempt("")
        chosen: list[tuple[str, Way]] = []
        answers: dict[int, bool] = {}
        for leaf in self.leaves:
            ways = [(n, way) for n in [leaf, *around(leaf)[:-1]] for way in self.machine.of[n].on.get(sent.name, [])]
            for name, way in ways:
                if id(way) not in answers:
                    answers[id(way)] = self._asked(way, sent.q, self.data, asked)
                if answers[id(way)]:
                    if (name, way) not in chosen:
                        chosen.append((name, way))
                    break
        if not chosen:
            sent.status = "rejected"
            self._tell(sent.name, source, {}, asked, attempt)
            return
        chosen = self._agreeing(chosen)
        data = dict(self.data)
        changes = self._updates(chosen, 1 if sent.q is None else sent.q, data)
        self._go(chosen, data)
        self._tell(sent.name, source, changes, asked, attempt)

    def _agreeing(self, chosen: list[tuple[str, Way]]) -> list[tuple[str, Way]]:
        """Of transitions that leave a common state the inner one is kept, else the earlier one."""
        kept: list[tuple[str, Way]] = []
        for name, way in chosen:
            rivals = [one for one in kept if self._leaves(*one) & self._leaves(name, way)]
            if all(within(name, rival) for rival, _ in rivals):
                kept = [one for one in kept if one not in rivals] + [(name, way)]
        return kept

    def _strike(self, state: str, delay: float) -> None:
        """A timer, or (without a state) the deadline of the run."""
        self.version += 1
        source = self.state
        if not state:
            self.deadline = None
            attempt = self._attempt("")
            self._failed("DeadlineExceeded")
            self._tell("$timeout", source, {}, [], attempt, "", "DeadlineExceeded")
            return
        attempt, asked, trigger = self.active[state].attempt, [], f"$after {delay:g}"
        del self.active[state].timers[delay]
        for way in self.machine.of[state].after[delay]:
            if self._asked(way, None, self.data, asked):
                data = dict(self.data)
                changes = self._updates([(state, way)], 1, data)
                self._go([(state, way)], data)
                self._tell("$timeout", source, changes, asked, attempt, trigger)
                return
        self.status = self._resting()
        self._tell("$timeout", source, {}, asked, attempt, trigger)

    def _steered(self, sent: Sent) -> None:
        source, attempt = self.state, self._attempt("")
        over, status = self.over or self.status == "compensating", self.status
        if sent.name == "$cancel" and not over:
            self._ended("cancelled")
        elif sent.name == "$pause" and self.live:
            self.status = "paused"
        elif sent.name == "$unpause" and status == "paused":
            self.status = self._resting()
        elif sent.name == "$retry" and not over and status in ("failed", "parked"):
            self.version -= 1
            self._go_on()
            return
        elif sent.name == "$rerun" and not over and not self._final(sent.state or ""):
            self._leave(set(self.active))
            self.error = None
            self._enter(self._entered(sent.state or "", ""))
            self.status = self._resting()
        else:
            sent.status = "rejected"
        self._tell(sent.name, source, {}, [], attempt)

    def _go_on(self) -> None:
        """Same visits, attempts anew."""
        self.version += 1
        source, attempt = self.state, self._attempt("")
        for stay in self.active.values():
            stay.attempt, stay.again = 1, None
        self.status = self._resting()
        self._tell("$retry", source, {}, [], attempt)

    def _failed(self, error: str) -> None:
        self.error = error
        self._ended("failed")

    def _ended(self, how: str) -> None:
        self.on.clear()
        if how == "done" or not self.left:
            self.status = how
        elif how == "failed" and self.error is not None and self.machine.park:
            self.status = "parked"
        else:
            self.status, self.ends = "compensating", how
        self._drop()

    def _drop(self) -> None:
        for sent in self.inbox if self.over else ():
            if sent.status == "waiting":
                sent.status, sent.version = "dropped", self.version

    def _undone(self) -> None:
        if not self.left:
            self.status = self.ends or "failed"
            self._drop()

    def _not_undone(self, place: str, attempt: int, error: str) -> None:
        if attempt < 2:
            self.tried, self.again = attempt + 1, self.now + 10
        else:
            self.lost.append(self.left.pop())
            self.tried, self.again = 1, None
            self._undone()
        self._tell("$error", self.state, {}, [], self._attempt(place), error=error)

    # -- what is left and entered -----------------------------------------------------------------------------------

    def _go(self, ways: list[tuple[str, Way]], data: dict[str, Any]) -> None:
        """Take transitions: leave and enter, in one move."""
        self.data, self.error = data, None
        left = set().union(*(self._leaves(name, way) for name, way in ways))
        entered = [state for name, way in ways for state in self._enters(name, way)]
        self._leave(left)
        final = next((state for state in entered if self._final(state)), None)
        self._enter(entered)
        if final is not None:
            self._ended("failed" if self.machine.of[final].fails else "done")
        elif any(way.to is None for _, way in ways):
            self._ended("done")
        else:
            self.status = self._resting()

    def _final(self, name: str) -> bool:
        return self.machine.of[name].kind == "final" and "." not in name

    def _domain(self, name: str, to: str) -> str:
        """The nearest state round both, which is no parallel one."""
        both = [one for one in around(name) if one in around(to)]
        return next(one for one in both if not one or self.machine.of[one].kind != "parallel")

    def _leaves(self, name: str, way: Way) -> set[str]:
        if way.internal or way.to is None:
            return set()
        return {one for one in self.active if within(one, self._domain(name, way.to))}

    def _enters(self, name: str, way: Way) -> list[str]:
        if way.internal or way.to is None:
            return []
        return self._entered(way.to, self._domain(name, way.to))

    def _entered(self, to: str, domain: str) -> list[str]:
        """The target, what is round it below the domain, and what is entered with them at first."""
        found = {one for one in [to, *around(to)] if one and within(one, domain)}
        grown: set[str] = set()
        while grown != found:
            grown = set(found)
            for name in grown:
                inside = self.machine.inside(name)
                if self.machine.of[name].kind == "parallel":
                    found.update(inside)
                elif inside and not found.intersection(inside):
                    found.update(one for one in inside if self.machine.of[one].initial)
        return self.machine.ordered(found)

    def _leave(self, names: set[str]) -> None:
        for name in reversed(self.machine.ordered(names)):
            del self.active[name]
            if self.machine.of[name].acts:
                self.acts.append((f"exit {self.machine.of[name].label}", self.version))

    def _enter(self, names: list[str]) -> None:
        for name in names:
            state = self.machine.of[name]
            self.active[name] = Stay(self.version, timers={delay: self.now + delay for delay in state.after})
            if state.acts:
                self.acts.append((f"enter {state.label}", self.version))
        self.active = {name: self.active[name] for name in self.machine.ordered(self.active)}

    def _complete(self, name: str) -> bool:
        inside = self.machine.inside(name)
        if self.machine.of[name].kind == "parallel":
            return all(self._complete(region) for region in inside)
        return any(one in self.active and self.machine.of[one].kind == "final" for one in inside)

    def _regions(self, name: str) -> list[str]:
        return [one for one in around(name)[:-1] if self.machine.of[one].kind == "region"]

    def _resting(self) -> str:
        """Running while a step is to be done, or something leads on by itself."""
        of = self.machine.of
        for name in self.active:
            if of[name].kind in ("step", "choice"):
                return "running"
            if of[name].kind == "wait" and any(self._hold(way, None) for way in of[name].then):
                return "running"
            if self.machine.inside(name) and of[name].then and self._complete(name):
                return "running"
        return "waiting"

    # -- telling ----------------------------------------------------------------------------------------------------

    def _attempt(self, state: str) -> int:
        stay = self.active.get(state)
        return max(one.attempt for one in self.active.values()) if stay is None else stay.attempt

    def _updates(self, ways: list[tuple[str, Way]], q: int, data: dict[str, Any]) -> dict[str, Any]:
        """What the transitions add to `n`. It counts as a change of the regions out of whose states they lead."""
        before = data["n"]
        for name, way in ways:
            data["n"] += way.adds * q
            for region in self._regions(name) if way.adds * q else ():
                self.active[region].touched.add("n")
        return {} if data["n"] == before else {"n": data["n"]}

    def _tell(
        self,
        event: str,
        source: str,
        changes: dict[str, Any],
        asked: Iterable[bool | None],
        attempt: int,
        trigger: str | None = None,
        error: str | None = None,
    ) -> None:
        shifted, self.shift = self.shift, None
        if shifted is not None:
            source, changes = shifted[0], {**shifted[1], **changes}
        self.history.append(
            {
                "version": self.version, "event": event, "source": source, "dest": self.state, "status": self.status,
                "at": self.now, "attempt": attempt, "trigger": trigger, "changes": deepcopy(changes),
                "asked": list(asked), "error": error, "shifted": shifted is not None,
            }
        )  # fmt: skip


# -- the machines -----------------------------------------------------------------------------------------------------


def leads(*ways: Way | str) -> Ways:
    return [Way(way) if isinstance(way, str) else way for way in ways]


PIPELINE = Machine(
    "pipeline",
    [
        State("draft", initial=True, then=leads("judge"), tries=3),
        State("judge", then=leads(Way("review", If("n", ">=", 3)), Way("draft", If("n", "<", 2), adds=1))),
        State(
            "review", "wait", after={100.0: leads("expired")},
            on={"approve": leads("publish"), "reject": leads("draft"), "maybe": leads(Way("publish", If("q",
                ">=", 3)))},
        ),
        State("publish", then=leads("published"), errors={"Oops": leads("review")}, tries=2),
        State("published", "final"),
        State("expired", "final", fails=True),
    ],
)  # fmt: skip

ORDER = Machine(
    "order",
    [
        State(
            "open", "wait", initial=True, then=leads(Way("filled", If("n", ">=", 6))),
            on={
                "fill": leads(Way("filled", If("q", ">=", "m"), adds=1), Way("open", adds=1, internal=True)),
                "amend": leads("open"),
                "check": leads(Way("split", If("n", ">=", 1))),
                "drop": leads(Way(None)),
            },
            after={50.0: leads(Way("stale", If("n", "<", 2)))},
        ),
        State("split", "choice", then=leads(Way("open", If("n", "<", 3), adds=-1), Way("filled", If("n", ">=", 4)))),
        State("filled", "final"),
        State("stale", "wait", on={"amend": leads("open"), "fill": leads(Way("stale", adds=1, internal=True))},
              after={20.0: leads("filled"), 45.0: leads("open")}),
    ],
    deadline=400.0,
)  # fmt: skip


def trip(name: str, *, park: bool) -> Machine:
    return Machine(
        name,
        [
            State("flight", initial=True, then=leads("hotel"), undo=True, acts=True),
            State("hotel", then=leads(Way("flight", If("n", "<", 1)), Way("ask")), undo=True, tries=2),
            State("ask", "wait", on={"go": leads("pay"), "back": leads("hotel")}, after={30.0: leads("refused")}),
            State("pay", then=leads("paid"), undo=True, errors={"Never": leads("ask"), "Oops": leads("refused")},
                  on={"stop": leads("refused")}, acts=True),
            State("paid", "final"),
            State("refused", "final", fails=True),
        ],
        park=park,
        deadline=300.0,
    )  # fmt: skip


PREPARE = Machine(
    "prepare",
    [
        State("both", "parallel", initial=True, then=leads("ship"), after={90.0: leads("late")}, acts=True,
              on={"stop": leads("late"), "hurry": leads("ship")}),
        State("both.pay", "region"),
        State("both.pay.charge", initial=True, then=leads("both.pay.paid"), tries=2, acts=True,
              on={"note": leads(Way("both.pay.charge", adds=1, internal=True)), "again": leads("both.pay.charge")}),
        State("both.pay.paid", "final"),
        State("both.pick", "region"),
        State("both.pick.seek", "wait", initial=True, acts=True, after={20.0: leads("both.pick.take")},
              on={"found": leads("both.pick.take"), "again": leads("both.pick.seek"),
                  "hurry": leads("both.pick.take")}),
        State("both.pick.take", then=leads(Way("both.pick.seek", If("m", ">=", 4)), Way("both.pick.packed")),
              on={"stop": leads("both.pick.seek")}, errors={"Oops": leads("both.pick.seek")}),
        State("both.pick.packed", "final"),
        State("ship", then=leads("shipped"), on={"again": leads("both.pick.take"), "note": leads(Way("both"))}),
        State("shipped", "final"),
        State("late", "final", fails=True),
    ],
    merge=("m",),
)  # fmt: skip

NESTED = Machine(
    "nested",
    [
        State("desk", "wait", initial=True, on={"open": leads("review"), "deep": leads("review.talk.ask")}),
        State("review", "state", acts=True, after={80.0: leads("end")},
              then=leads(Way("desk", If("n", "<", 3)), Way("end", If("m", ">=", 1))),
              on={"quit": leads("desk"), "redo": leads("review.talk"),
                  "note": leads(Way("review", adds=1, internal=True))}),
        State("review.read", initial=True, acts=True, then=leads(Way("review.talk", If("m", "<", 3)), Way("review.ok")),
              errors={"Oops": leads("review.talk")}),
        State("review.talk", "state", acts=True, then=leads("review.ok"), on={"redo": leads("review.read")},
              after={25.0: leads(Way("review.talk.ask", If("n", "<", 4), adds=1))}),
        State("review.talk.ask", "wait", initial=True, acts=True,
              on={"say": leads("review.talk.weigh"), "quit": leads(Way("review.talk.over", If("q", ">=", 2)))}),
        State("review.talk.weigh", "choice", then=leads(Way("review.talk.ask", If("n",
            "<", 2)), Way("review.talk.over"))),
        State("review.talk.over", "final"),
        State("review.ok", "final"),
        State("end", "final"),
    ],
)  # fmt: skip

LONG = Machine(
    "long",
    [
        State("work", initial=True, then=leads("rest"), tries=3, undo=True,
              on={"stop": leads(Way("rest", If("q", ">=", 2))), "note": leads(Way("work", adds=1, internal=True)),
                  "again": leads("work")},
              after={15.0: leads(Way("work", adds=1, internal=True)), 60.0: leads("rest")}),
        State("rest", "wait", on={"go": leads("work"), "end": leads("ended"), "stop": leads("failed")}),
        State("ended", "final"),
        State("failed", "final", fails=True),
    ],
)  # fmt: skip

GUARDS = Machine(
    "guards",
    [
        State("all", "parallel", initial=True, on={"flip": leads("over")}),
        *(
            one
            for name, low in (("all.a", 1), ("all.b", 3), ("all.c", 2))
            for one in (
                State(name, "region"),
                State(f"{name}.off", "wait", initial=True, acts=True, then=leads(Way(f"{name}.end", If("n", ">=", 7))),
                      on={"flip": leads(Way(f"{name}.on", If("q", ">=", low), adds=1))}),
                State(f"{name}.on", "wait", acts=True,
                      on={"flip": leads(Way(f"{name}.off", If("n", "<", low + 2), adds=1)),
                          "quit": leads(Way(f"{name}.end"))}),
                State(f"{name}.end", "final"),
            )
        ),
        State("over", "wait", on={"back": leads("all.b.on"), "quit": leads("end")}),
        State("end", "final"),
    ],
)  # fmt: skip

PARKED, TRIP = trip("parked", park=True), trip("trip", park=False)
MACHINES = {one.name: one for one in (PIPELINE, ORDER, TRIP, PARKED, PREPARE, NESTED, LONG, GUARDS)}
