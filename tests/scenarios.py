"""One list of scenarios, from which the fault tests are made: a workflow, its input, and what is true at its end.

A later feature adds its scenarios here and is thereby crashed before and after every write, told that a write failed
which was made, and cancelled at every await, on every store. To add one, write a function that is given a Ledger and
returns a Workflow, and decorate it with what must be true at the end:

    @scenario(state="end", visits="first", data={"n": 1})
    def one_step(ledger: Ledger) -> Workflow:
        flow = Workflow("one_step")

        @flow.step(initial=True, then="end")
        async def first(ctx):
            async with ledger.body(ctx):
                ctx.data["n"] = 1

        flow.final("end")
        return flow

Every body goes through `ledger.body(ctx)`, every action through `ledger.act(ctx, name)`, and every remembered call,
where `place` is `ctx.idempotency_key`, through `ledger.given(place, await ctx.call(ledger.ask, place, ...))`: the
ledger is the world outside, which sees what was really done, and how often. The bodies of children go through
`ledger.child_body(ctx)`. What a step does may depend on its data and
on `ctx.attempt`, never on the time. Keep delays under 20 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from fsmworkflow import (
    Engine,
    Entry,
    PersistentWorkflowStateMachine,
    Retry,
    Run,
    RunFailed,
    Store,
    To,
    Transition,
    Workflow,
    WorkflowContext,
    WorkflowDefinition,
    field,
)
from fsmworkflow.errors import ChildFailed, ConditionError
from fsmworkflow.records import COUNTED
from fsmworkflow.testing import Crash
from tests.waiting import PATIENCE

T = TypeVar("T")

KEY = "one"
SECONDS = PATIENCE
"""How long a scenario may take, after any fault: far less than a lease, so that a run which nobody gave back shows."""


class Refused(Exception):
    """What a step of a scenario raises."""


class Ledger:
    """What the bodies of a scenario have really done, in their order, over all crashes and restarts.

    `dead()` says that the process in which they run is taken to have died: then they do nothing more.
    """

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []  # (state, visit) of each body, as it begins
        self.ended: list[tuple[str, int]] = []
        self.asked: list[str] = []  # the idempotency key of the visit in which each remembered call was really made
        self.answered: list[str] = []  # the same for each answer that a body was given, new or remembered
        self.acted: list[str] = []
        self.kin: list[tuple[str, str, int]] = []  # (key, state, visit) of each body of a child, as it begins
        self.dead: Callable[[], bool] = lambda: False
        self._lock = threading.Lock()

    def _note(self, book: list[Any], entry: Any) -> None:
        with self._lock:
            if self.dead():
                raise Crash("this process has died")
            book.append(entry)

    @contextlib.contextmanager
    def sync_body(self, ctx: WorkflowContext[Any]) -> Iterator[None]:
        """Round the body of a synchronous step."""
        place = ctx.state, int(ctx.idempotency_key.rpartition("/")[2])
        self._note(self.begun, place)
        yield
        self._note(self.ended, place)

    @contextlib.asynccontextmanager
    async def body(self, ctx: WorkflowContext[Any]) -> AsyncIterator[None]:
        """Round the body of a step. It gives others a turn, as real work does."""
        with self.sync_body(ctx):
            await asyncio.sleep(0)
            yield

    @contextlib.asynccontextmanager
    async def child_body(self, ctx: WorkflowContext[Any]) -> AsyncIterator[None]:
        """Round the body of a step of a child."""
        self._note(self.kin, (ctx.run.key, ctx.state, int(ctx.idempotency_key.rpartition("/")[2])))
        await asyncio.sleep(0)
        yield

    async def ask(self, place: str, question: str) -> str:
        """Something that costs money, to be called by `ctx.call(ledger.ask, ctx.idempotency_key, ...)`."""
        self._note(self.asked, place)
        await asyncio.sleep(0)
        return f"answer to {question}"

    def given(self, place: str, answer: T) -> T:
        """What a remembered call returned to the body: from here on it may never be made again."""
        self._note(self.answered, place)
        return answer

    def act(self, ctx: WorkflowContext[Any], name: str) -> None:
        """What an action does."""
        self._note(self.acted, name)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What happens and how it ends. `visits` are the states in the order in which they were completed.

    `bodies` are the states of the bodies that run where nothing goes wrong (the visits unless given), `calls` how many
    remembered calls are really made, `actions` what is done after commits, and undone, in order. `beside` is how many
    bodies one death may repeat; with `waits` the run rests on its way, until a time comes; with `connected` it needs a
    store that has a connection. `kin` are the bodies of its children that run where nothing goes wrong, each by its
    child and state.
    """

    name: str
    make: Callable[[Ledger], Workflow]
    state: str
    visits: tuple[str, ...]
    data: dict[str, Any]
    bodies: tuple[str, ...]
    input: Any = None
    status: str = "done"
    calls: int = 0
    actions: tuple[str, ...] = ()
    beside: int = 1
    waits: bool = False
    connected: bool = False
    kin: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


SCENARIOS: list[Scenario] = []


def scenario(
    *,
    visits: str,
    state: str,
    data: dict[str, Any],
    bodies: str | None = None,
    actions: str = "",
    kin: str = "",
    **more: Any,
) -> Callable[[Callable[[Ledger], Workflow]], Callable[[Ledger], Workflow]]:
    """Put the decorated function on the list, under its own name, which is also that of its workflow."""

    def add(make: Callable[[Ledger], Workflow]) -> Callable[[Ledger], Workflow]:
        ran = visits if bodies is None else bodies
        SCENARIOS.append(
            Scenario(
                name=make.__name__,
                make=make,
                state=state,
                visits=tuple(visits.split()),
                data=data,
                bodies=tuple(ran.split()),
                actions=tuple(actions.split()),
                kin=tuple(kin.split()),
                **more,
            )
        )
        return make

    return add


# -- driving one, and looking at its end ----------------------------------------------------------------------------

Way = Callable[[Store, Scenario, Ledger], Any]


async def by_run(store: Store, scenario: Scenario, ledger: Ledger) -> Run:
    """As a program does that is simply started again: `engine.run`, once more where it failed."""
    flow = scenario.make(ledger)
    async with Engine(store, workflows=[flow], poll=0.01 if scenario.waits else 0.5) as engine:
        for _ in range(3):
            try:
                run = await engine.run(flow, scenario.input, key=KEY)
                while run.status == "waiting":
                    await asyncio.sleep(0.005)
                    run = await engine.run(flow, scenario.input, key=KEY)
                return run
            except RunFailed as failed:
                run = failed.run
                if scenario.status == "failed" and run.state == scenario.state:
                    return run
    return run


async def by_resume(store: Store, scenario: Scenario, ledger: Ledger) -> Run:
    """As a service does that looks after what it finds, and only then after what it is asked for."""
    flow = scenario.make(ledger)
    async with Engine(store, workflows=[flow]) as engine:
        await engine.resume()
    return await by_run(store, scenario, ledger)


async def by_machine(store: Store, scenario: Scenario, ledger: Ledger) -> Run:
    """By a machine in the caller's own task, once more where it failed."""
    for _ in range(3):
        machine = PersistentWorkflowStateMachine(store, scenario.make(ledger), KEY, scenario.input)
        try:
            while (await machine.run_workflow()).status == "waiting":
                await asyncio.sleep(0.005)
        except (Refused, RunFailed, ChildFailed):
            if scenario.status != "failed" or machine.state != scenario.state:
                continue
        break
    assert machine.run is not None
    return machine.run


WAYS: tuple[Way, ...] = (by_run, by_resume, by_machine)


@dataclasses.dataclass(frozen=True)
class Left:
    """What a fault left in the store, and what had been done by then."""

    run: Run | None = None
    done: frozenset[tuple[str, int]] = frozenset()
    remembered: Counter[str] = dataclasses.field(default_factory=Counter)
    begun: int = 0
    asked: int = 0
    answered: int = 0
    kin: int = 0
    kin_done: frozenset[tuple[str, str, int]] = frozenset()


async def left(store: Store, scenario: Scenario, ledger: Ledger) -> Left:
    """Look at what a fault left. The store is open."""
    run = await store.load(scenario.name, KEY)
    begun, asked, answered, kin = (len(b) for b in (ledger.begun, ledger.asked, ledger.answered, ledger.kin))
    if run is None:
        return Left(begun=begun, asked=asked, answered=answered, kin=kin)
    remembered: Counter[str] = Counter()
    for state, stay in run.active.items():
        place = f"{run.workflow}/{run.key}/{state}/{stay.visit}"
        remembered[place] = len(await store.recall(run, state, stay.visit))
    done = frozenset(visits_of(await store.history(run)))
    children = [one for one in await _all(store) if one.parent is not None]
    kin_done = frozenset([(c.key, *visit) for c in children for visit in visits_of(await store.history(c))])
    return Left(run, done, +remembered, begun, asked, answered, kin, kin_done)


async def _all(store: Store) -> list[Run]:
    return await store.list(workflow=None, status=None, state=None, after=0, many=1_000)


def visits_of(history: list[Entry]) -> list[tuple[str, int]]:
    """The visits that their step or its error ended, in their order: each its state and the version of its entry."""
    found: list[tuple[str, int]] = []
    entered: dict[str, int] = {}
    undoing = False
    for entry in history:
        before, after = [leaf for leaf in entry.source.split(", ") if leaf], entry.dest.split(", ")
        left = [leaf for leaf in before if leaf not in after]
        over = entry.event == "$error" and (left or entry.status == "compensating")
        if not left and (entry.event == "$done" or over):  # it leads to itself, or ends where it is
            left = before
        if (entry.event == "$done" or over) and not undoing:
            found += [(leaf, entered[leaf]) for leaf in left]
        entered = {leaf: entered[leaf] if leaf in entered and leaf not in left else entry.version for leaf in after}
        undoing = entry.status == "compensating"
    return found


async def check_end(store: Store, scenario: Scenario, ledger: Ledger, *faults: Left) -> None:
    """Check that the scenario ended as it says, after faults of which each left what is given."""
    runs = await store.list(workflow=scenario.name, status=None, state=None, after=0, many=10)
    assert [run.key for run in runs] == [KEY], "there is one run and no second one"
    (run,) = runs
    assert (run.status, run.state) == (scenario.status, scenario.state), run.error
    assert run.to_dict()["data"] == scenario.data
    assert list(run.to_dict()["data"]) == list(scenario.data), "in the same order"
    assert run.owner is None, "a run that is over belongs to nobody"
    assert run.due is None, "a run that is over is due to nobody"
    assert not run.actions
    history = await store.history(run)
    assert [entry.version for entry in history] == list(range(run.version + 1)), "history has no gap"
    completed = visits_of(history)
    assert tuple(state for state, _ in completed) == scenario.visits
    _check_bodies(scenario, ledger, completed, len(faults) * scenario.beside)
    _check_calls(scenario, ledger, faults)
    _check_actions(scenario, ledger, len(faults))
    _check_kin(scenario, ledger, faults)
    for child in [one for one in await _all(store) if one.parent is not None]:
        assert [entry.version for entry in await store.history(child)] == list(range(child.version + 1))
        told = child.status in COUNTED or any(e.name == "$cancel" for e in (await store.inbox(child))[1])
        assert told, f"a child goes on without its parent: {child}"


def _check_kin(scenario: Scenario, ledger: Ledger, faults: Sequence[Left]) -> None:
    ran = Counter(f"{key.rpartition('/')[2]}.{state}" for key, state, _ in ledger.kin)
    planned = Counter(scenario.kin)
    assert not planned - ran, f"bodies of children that did not run: {planned - ran}"
    assert set(ran) == set(planned), "other bodies of children ran"
    assert (ran - planned).total() <= len(faults) * scenario.beside, f"more repeats than faults: {ran - planned}"
    for left in faults:
        late = set(ledger.kin[left.kin :]) & left.kin_done
        assert not late, f"completed visits of children that ran again: {late}"


def _check_bodies(scenario: Scenario, ledger: Ledger, completed: list[tuple[str, int]], faults: int) -> None:
    ran, planned = Counter(state for state, _ in ledger.begun), Counter(scenario.bodies)
    assert set(ran) == set(planned), "other bodies ran"
    assert not planned - ran, f"bodies that did not run: {planned - ran}"
    repeated = ran - planned
    assert repeated.total() <= faults, f"more repeats than faults: {repeated}"
    ended = [visit for visit in completed if visit[0] in planned]
    assert not set(ended) - set(ledger.ended), "a visit was completed whose body never came to its end"
    assert [state for state, _ in dict.fromkeys(ledger.begun)] == [state for state, _ in ended], "in another order"


def _check_calls(scenario: Scenario, ledger: Ledger, faults: Sequence[Left]) -> None:
    may_repeat, before = 0, Left()
    for left in faults:
        late = set(ledger.begun[left.begun :]) & left.done
        assert not late, f"completed visits that ran again: {late}"
        made, after = Counter(ledger.asked[before.asked : left.asked]), Counter(ledger.asked[left.asked :])
        given = Counter(p for p in ledger.answered[before.answered : left.answered] if p in after)
        assert not given - left.remembered, f"answers that a body was given and that are forgotten: {given}"
        lost = made - (left.remembered - before.remembered)
        may_repeat += sum(number for place, number in lost.items() if place in after)
        before = left
    made_again = len(ledger.asked) - scenario.calls
    assert 0 <= made_again <= may_repeat, f"{made_again} calls were made again, {may_repeat} had not been remembered"


def _check_actions(scenario: Scenario, ledger: Ledger, faults: int) -> None:
    acted, planned = Counter(ledger.acted), Counter(scenario.actions)
    assert not planned - acted, f"actions that were not done: {planned - acted}"
    assert (acted - planned).total() <= faults, f"actions done too often: {acted - planned}"
    assert tuple(dict.fromkeys(ledger.acted)) == tuple(dict.fromkeys(scenario.actions)), "in another order"


# -- the scenarios --------------------------------------------------------------------------------------------------


@scenario(
    visits="draft judge publish", state="published", input={"topic": "x"}, data={"topic": "x", "text": "X", "n": 2}
)
def straight_line(ledger: Ledger) -> Workflow:
    flow = Workflow("straight_line")

    @flow.step(initial=True, then="judge")
    async def draft(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["text"] = ctx.data["topic"].upper()

    @flow.step(then="publish")
    async def judge(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] = 1

    @flow.step(then="published")
    async def publish(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] += 1

    flow.final("published")
    return flow


@scenario(visits="draft judge draft judge draft judge tidy", state="end", data={"score": 3, "seen": [1, 2, 3]})
def branches_and_loop(ledger: Ledger) -> Workflow:
    flow = Workflow("branches_and_loop")

    @flow.step(initial=True, then="judge")
    async def draft(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["score"] = (ctx.data.get("score") or 0) + 1

    @flow.step(then=[(field("score") >= 3, "tidy"), (field("score") < 0, "end"), "draft"])
    async def judge(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["seen"] = [*(ctx.data.get("seen") or []), ctx.data["score"]]

    @flow.step(then="end")
    async def tidy(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    flow.final("end")
    return flow


@scenario(visits="ask left right", state="end", data={"way": ["left", "right"]})
def returned_triggers(ledger: Ledger) -> Workflow:
    flow = Workflow("returned_triggers")

    @flow.step(initial=True)
    async def ask(ctx: WorkflowContext[Any]) -> str:
        async with ledger.body(ctx):
            return "go_left"

    @flow.step()
    async def left(ctx: WorkflowContext[Any]) -> tuple[WorkflowContext[Any], str]:
        async with ledger.body(ctx):
            ctx.data["way"] = ["left"]
            return ctx, "onward"

    @flow.step(then="end")
    async def right(ctx: WorkflowContext[Any]) -> WorkflowContext[Any]:
        async with ledger.body(ctx):
            return WorkflowContext(data={"way": [*ctx.data["way"], "right"]})

    flow.transition("go_left", "ask", "left")
    flow.transition("go_right", "ask", "right")
    flow.transition("onward", ["ask", "left"], "right")
    flow.final("end")
    return flow


@scenario(visits="weigh which heavy or_what", bodies="weigh heavy", state="end", data={"kg": 40})
def choices(ledger: Ledger) -> Workflow:
    flow = Workflow("choices")

    @flow.step(initial=True, then="which")
    async def weigh(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["kg"] = 40

    flow.choice("which", [(field("kg") > 30, "heavy"), "light"])

    @flow.step(then="or_what")
    async def heavy(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    @flow.step(then="end")
    async def light(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    flow.choice("or_what", "end")
    flow.final("end")
    return flow


@scenario(visits="first fetch", bodies="first fetch fetch fetch", state="end", data={"got": "on attempt 3"})
def retried_twice(ledger: Ledger) -> Workflow:
    flow = Workflow("retried_twice")

    @flow.step(initial=True, then="fetch")
    async def first(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    @flow.step(then="end", retry=Retry(attempts=3, first_delay=0.005, max_delay=0.01))
    async def fetch(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["got"] = f"on attempt {ctx.attempt}"
            if ctx.attempt < 3:
                raise Refused("not yet")

    flow.final("end")
    return flow


@scenario(visits="order pay", bodies="order pay pay", state="paid", data={"order": 7, "paid": True})
def failed_then_run_again(ledger: Ledger) -> Workflow:
    flow = Workflow("failed_then_run_again")

    @flow.step(initial=True, then="pay")
    async def order(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["order"] = 7

    @flow.step(then="paid")
    async def pay(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["paid"] = True
            if sum(state == "pay" for state, _ in ledger.begun) == 1:
                raise Refused("the bank is closed the first time that it is asked")

    flow.final("paid")
    return flow


SAMPLES = ["answer to a", *["answer to b"] * 3, "answer to c"]


@scenario(visits="think tell", state="end", calls=6, data={"samples": SAMPLES, "told": "answer to d"})
def remembered_calls(ledger: Ledger) -> Workflow:
    flow = Workflow("remembered_calls")

    @flow.step(initial=True, then="tell")
    async def think(ctx: WorkflowContext[Any]) -> None:
        place = ctx.idempotency_key
        async with ledger.body(ctx):
            first = ledger.given(place, await ctx.call(ledger.ask, place, "a"))
            calls = (ctx.call(ledger.ask, place, "b") for _ in range(3))
            several = [ledger.given(place, answer) for answer in await asyncio.gather(*calls)]
            last = ledger.given(place, await ctx.remember("last", lambda: ledger.ask(place, "c")))
            ctx.data["samples"] = [first, *several, last]

    @flow.step(then="end")
    async def tell(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            place = ctx.idempotency_key
            ctx.data["told"] = ledger.given(place, await ctx.call(ledger.ask, place, "d"))

    flow.final("end")
    return flow


@scenario(visits="count double", state="end", input={"n": 1}, data={"n": 4})
def synchronous_steps(ledger: Ledger) -> Workflow:
    flow = Workflow("synchronous_steps")

    @flow.step(initial=True, then="double")
    def count(ctx: WorkflowContext[Any]) -> None:
        with ledger.sync_body(ctx):
            ctx.data["n"] += 1

    @flow.step(then="end")
    def double(ctx: WorkflowContext[Any]) -> None:
        with ledger.sync_body(ctx):
            ctx.data["n"] *= 2

    flow.final("end")
    return flow


@dataclasses.dataclass
class Order:
    number: int
    lines: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    total: int | None = None


@scenario(
    visits="fill add_up",
    state="end",
    input=Order(7),
    data={"number": 7, "lines": [["tea", 2], ["cup", 3]], "total": 5},
)
def typed_data(ledger: Ledger) -> Workflow:
    flow = Workflow("typed_data", data=Order)

    @flow.step(initial=True, then="add_up")
    async def fill(ctx: WorkflowContext[Order]) -> None:
        async with ledger.body(ctx):
            ctx.data.lines += [("tea", 2), ("cup", 3)]

    @flow.step(then="end")
    async def add_up(ctx: WorkflowContext[Order]) -> None:
        async with ledger.body(ctx):
            ctx.data.total = sum(count for _, count in ctx.data.lines)

    flow.final("end")
    return flow


RECORDS = [{"id": n, "name": f"record {n}"} for n in range(200)]


@scenario(
    visits="beside touch beside_again",
    state="end",
    input={"records": RECORDS, "n": 0},
    data={"records": [{**RECORDS[0], "name": "touched"}, *RECORDS[1:]], "n": 2},
)
def large_field(ledger: Ledger) -> Workflow:
    flow = Workflow("large_field")

    @flow.step(initial=True, then="touch")
    async def beside(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] += 1

    @flow.step(then="beside_again")
    async def touch(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["records"][0]["name"] = "touched"

    @flow.step(then="end")
    async def beside_again(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] += 1

    flow.final("end")
    return flow


@scenario(visits="write send", state="sent", data={"text": "hello"}, actions="tell_writer tell_reader")
def actions_after_commits(ledger: Ledger) -> Workflow:
    flow = Workflow("actions_after_commits")

    def tell_writer(ctx: WorkflowContext[Any]) -> None:
        ledger.act(ctx, "tell_writer")

    async def tell_reader(ctx: WorkflowContext[Any]) -> None:
        ledger.act(ctx, "tell_reader")

    @flow.step(initial=True, then=To("send", after=tell_writer))
    async def write(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["text"] = "hello"

    @flow.step(then=To("sent", after=tell_reader))
    async def send(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    flow.final("sent")
    return flow


def _as_data(ledger: Ledger, name: str, triggers: dict[str, str], transitions: list[Transition]) -> Workflow:
    """A WorkflowDefinition of the steps opened, handled and closed, which return these triggers."""

    class Methods:
        def note(self, ctx: WorkflowContext[Any]) -> None:
            ledger.act(ctx, "note")

    async def body(ctx: WorkflowContext[Any]) -> tuple[WorkflowContext[Any], str | None]:
        async with ledger.body(ctx):
            ctx.data["steps"] = [*(ctx.data.get("steps") or []), ctx.state]
            return ctx, triggers.get(ctx.state)

    names = ["opened", "handled", "closed"]
    return WorkflowDefinition(name=name, steps=names, transitions=transitions).build(
        dict.fromkeys(names, body), Methods()
    )


@scenario(
    visits="opened handled closed",
    state="closed",
    data={"steps": ["opened", "handled", "closed"]},
    actions="note note",
)
def definition_with_star(ledger: Ledger) -> Workflow:
    return _as_data(
        ledger,
        "definition_with_star",
        {"handled": "close"},
        [
            Transition(trigger="handle", source="opened", dest="handled", after="note"),
            Transition(trigger="reopen", source="handled", dest="opened"),
            Transition(trigger="close", source="*", dest="closed", after="note"),
        ],
    )


@scenario(visits="opened handled", state="handled", data={"steps": ["opened", "handled"]})
def definition_that_ends_where_it_is(ledger: Ledger) -> Workflow:
    return _as_data(
        ledger,
        "definition_that_ends_where_it_is",
        {"handled": "enough"},
        [
            Transition(trigger="handle", source="opened", dest="handled"),
            Transition(trigger="close", source="handled", dest="closed"),
            Transition(trigger="enough", source="*", dest=None),
        ],
    )


@scenario(visits="opened", state="closed", data={"steps": ["opened"]})
def definition_marked_completed(ledger: Ledger) -> Workflow:
    return _as_data(
        ledger,
        "definition_marked_completed",
        {"opened": "skip"},
        [
            Transition(trigger="handle", source="opened", dest="handled"),
            Transition(trigger="close", source="handled", dest="closed"),
            Transition(trigger="skip", source="opened", dest="closed", after="mark_completed"),
        ],
    )


@scenario(visits="apply check", state="refused", status="failed", data={"score": 3})
def business_failure(ledger: Ledger) -> Workflow:
    flow = Workflow("business_failure")

    @flow.step(initial=True, then="check")
    async def apply(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["score"] = 3

    @flow.step(then=[(field("score") > 5, "granted"), "refused"])
    async def check(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    flow.final("granted")
    flow.final("refused", outcome="failed")
    return flow


# -- waiting, structure and undoing ---------------------------------------------------------------------------------


@scenario(
    visits="nested.first nested.inner last", bodies="nested.first last", state="end", data={"n": 2}, actions="in out"
)
def nested_states(ledger: Ledger) -> Workflow:
    flow = Workflow("nested_states")

    def enter(ctx: WorkflowContext[Any]) -> None:
        ledger.act(ctx, "in")

    def leave(ctx: WorkflowContext[Any]) -> None:
        ledger.act(ctx, "out")

    nested = flow.state("nested", initial=True, then="last", enter=enter, exit=leave, on={"stop": "end"})

    @nested.step(initial=True, then="inner")
    async def first(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] = 1

    nested.final("inner")

    @flow.step(then="end")
    async def last(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] += 1

    flow.final("end")
    return flow


@scenario(visits="first last", state="end", data={"last": True})
def events_that_came_too_early(ledger: Ledger) -> Workflow:
    flow = Workflow("events_that_came_too_early")

    @flow.step(initial=True, then="one")
    async def first(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            for event in ("third", "second", "first"):
                await ctx.emit(ctx.run.workflow, ctx.run.key, event)

    flow.wait("one", on={"first": "two"})
    flow.wait("two", on={"second": "three"})
    flow.wait("three", on={"third": "last"})

    @flow.step(then="end")
    async def last(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["last"] = True

    flow.final("end")
    return flow


@scenario(visits="ask late", state="end", data={"asked": True, "late": True}, waits=True)
def waiting_for_a_time(ledger: Ledger) -> Workflow:
    flow = Workflow("waiting_for_a_time")

    @flow.step(initial=True, then="review")
    async def ask(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["asked"] = True

    flow.wait("review", on={"approved": "end"}, after={0.01: "late"})

    @flow.step(then="end")
    async def late(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["late"] = True

    flow.final("end")
    return flow


NO_MONEY = {"type": "Refused", "message": "no money", "state": "pay", "attempt": 2}


@scenario(visits="pay told", bodies="pay pay told", state="end", data={"error": NO_MONEY})
def error_that_leads_on(ledger: Ledger) -> Workflow:
    flow = Workflow("error_that_leads_on")

    @flow.step(initial=True, then="end", retry=Retry(attempts=2, first_delay=0.005), on_error={Refused: "told"})
    async def pay(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass
        raise Refused("no money")

    @flow.step(then="end")
    async def told(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    flow.final("end")
    return flow


UNTOLD = {"type": "ConditionError", "message": "nobody listens", "state": "told", "attempt": 1}


@scenario(visits="write told mend", bodies="write mend", state="end", data={"error": UNTOLD}, actions="tell")
def action_that_fails_and_leads_on(ledger: Ledger) -> Workflow:
    flow = Workflow("action_that_fails_and_leads_on")

    def tell(ctx: WorkflowContext[Any]) -> None:
        ledger.act(ctx, "tell")
        raise ConditionError("nobody listens")  # which is not tried again

    @flow.step(initial=True, then="told")
    async def write(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    flow.wait("told", on={"heard": "end"}, enter=tell)
    flow.add(Transition(source="told", dest="mend", error=ConditionError))

    @flow.step(then="end")
    async def mend(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass

    flow.final("end")
    return flow


@scenario(
    visits="both.pay.charge both.pick.collect both.pay.paid both.pick.picked ship",
    bodies="both.pay.charge both.pick.collect ship",
    state="end",
    data={"paid": 1, "picked": 1, "sent": 2},
    beside=2,
)
def regions_at_once(ledger: Ledger) -> Workflow:
    flow = Workflow("regions_at_once")
    both = flow.parallel("both", initial=True, then="ship", on={"stop": "end"})
    pay, pick = both.region("pay"), both.region("pick")

    @pay.step(initial=True, then="paid")
    async def charge(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["paid"] = 1

    @pick.step(initial=True, then="picked")
    async def collect(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            await asyncio.sleep(0.005)
            ctx.data["picked"] = 1

    pay.final("paid")
    pick.final("picked")

    @flow.step(then="end")
    async def ship(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["sent"] = ctx.data["paid"] + ctx.data["picked"]

    flow.final("end")
    return flow


@scenario(
    visits="flight hotel pay",
    state="pay",
    status="failed",
    data={"booked": ["flight", "hotel"], "refunded": ["hotel", "flight"]},
    actions="hotel flight",
)
def undone_in_reverse(ledger: Ledger) -> Workflow:
    flow = Workflow("undone_in_reverse")

    async def book(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["booked"] = [*(ctx.data.get("booked") or []), ctx.state]

    async def give_back(ctx: WorkflowContext[Any]) -> None:
        ledger.act(ctx, ctx.state)
        ctx.data["refunded"] = [*(ctx.data.get("refunded") or []), ctx.state]

    flow.step("flight", initial=True, then="hotel", compensate=give_back)(book)
    flow.step("hotel", then="pay", compensate=give_back)(book)

    @flow.step(then="end")
    async def pay(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            pass
        raise Refused("no money")

    flow.final("end")
    return flow


@scenario(visits="ask answer", state="end", data={"asked": True, "answer": 42}, waits=True)
def emitted_to_itself(ledger: Ledger) -> Workflow:
    flow = Workflow("emitted_to_itself")

    @flow.step(initial=True, then="rest")
    async def ask(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            await ctx.emit(flow, ctx.run.key, "go", 42)
            ctx.data["asked"] = True

    flow.wait("rest", on={"go": "answer"})

    @flow.step(then="end")
    async def answer(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            assert ctx.event is not None
            ctx.data["answer"] = ctx.event.payload

    flow.final("end")
    return flow


async def rows(db: Any, query: str) -> list[Any]:
    """What a query finds, by either driver."""
    return list(await (db.fetch(query) if hasattr(db, "fetch") else db.execute_fetchall(query)))


@scenario(visits="write count", state="end", data={"rows": 1}, connected=True)
def rows_of_its_own(ledger: Ledger) -> Workflow:
    flow = Workflow("rows_of_its_own")

    @flow.step(initial=True, then="count")
    async def write(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx), ctx.transaction() as db:
            await db.execute("CREATE TABLE IF NOT EXISTS tally (made text)")
            await db.execute(f"INSERT INTO tally VALUES ('{ctx.run.created!r}')")

    @flow.step(then="end")
    async def count(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx), ctx.transaction() as db:
            ctx.data["rows"] = len(await rows(db, f"SELECT made FROM tally WHERE made = '{ctx.run.created!r}'"))

    flow.final("end")
    return flow


@scenario(visits="draft judge publish", state="published", calls=1, data={"topic": "x", "words": 3})
def deployed_anew(ledger: Ledger) -> Workflow:
    """Whoever begins after something was done has version 2, in which the text stands in another field."""
    new = bool(ledger.begun)
    text = "body" if new else "text"
    flow = Workflow("deployed_anew", version=1 + new)

    @flow.step(initial=True, then="judge")
    async def draft(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["topic"] = "x"
            answer = await ctx.call(ledger.ask, ctx.idempotency_key, "x")
            ctx.data[text] = ledger.given(ctx.idempotency_key, answer)

    @flow.step(then="publish")
    async def judge(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["words"] = len(ctx.data[text].split())

    @flow.step(then="published")
    async def publish(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            del ctx.data[text]

    flow.final("published")
    if new:

        @flow.migrate(1, to=2)
        def renamed(data: dict[str, Any]) -> None:
            if "text" in data:
                data["body"] = data.pop("text")

    return flow


# -- children -------------------------------------------------------------------------------------------------------


def _double(ledger: Ledger, name: str) -> Workflow:
    """Two steps, of which the second fails for an odd number where it is told to."""
    flow = Workflow(name)

    @flow.step(initial=True, then="twice")
    async def read(ctx: WorkflowContext[Any]) -> None:
        async with ledger.child_body(ctx):
            ctx.data["read"] = ctx.data["item"]

    @flow.step(then="end")
    async def twice(ctx: WorkflowContext[Any]) -> None:
        async with ledger.child_body(ctx):
            ctx.data["twice"] = 2 * ctx.data["read"]
            if ctx.data["item"] == 13 or (ctx.data["item"] == 7 and ledger.kin.count((ctx.run.key, "twice", 1)) == 1):
                raise Refused(f"no {ctx.data['item']}")

    flow.final("end")
    return flow


def _one(item: int, index: int = 0) -> dict[str, int]:
    return {"item": item, "index": index, "read": item, "twice": 2 * item}


@scenario(
    visits="first last", state="end", data={"n": 3, "box": {"item": 4, "read": 4, "twice": 8}}, kin="0.read 0.twice"
)
def one_child(ledger: Ledger) -> Workflow:
    flow = Workflow("one_child")

    @flow.step(initial=True, then="box")
    async def first(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] = 2

    flow.child("box", _double(ledger, "box"), data=lambda data: {"item": data["n"] * 2}, into="box", then="last")

    @flow.step(then="end")
    async def last(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["n"] += 1

    flow.final("end")
    return flow


@scenario(
    visits="",
    state="end",
    input={"items": [1, 2, 3, 4]},
    data={"items": [1, 2, 3, 4], "out": [_one(n, n - 1) for n in (1, 2, 3, 4)]},
    kin="0.read 0.twice 1.read 1.twice 2.read 2.twice 3.read 3.twice",
    beside=2,
)
def each_of_four(ledger: Ledger) -> Workflow:
    flow = Workflow("each_of_four")
    each = {"over": field("items"), "into": "out", "concurrency": 2}
    flow.each("all", _double(ledger, "one_of_four"), initial=True, then="end", **each)
    flow.final("end")
    return flow


@scenario(
    visits="first",
    state="end",
    input={"items": [1, 13, 3]},
    data={
        "items": [1, 13, 3],
        "first": True,
        "out": [
            {"status": "done", "data": _one(1, 0)},
            {"status": "failed", "error": {"type": "Refused", "message": "no 13"}},
            {"status": "done", "data": _one(3, 2)},
        ],
    },
    kin="0.read 0.twice 1.read 1.twice 2.read 2.twice",
    beside=2,
)
def each_collected(ledger: Ledger) -> Workflow:
    flow = Workflow("each_collected")

    @flow.step(initial=True, then="all")
    async def first(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["first"] = True

    each = {"over": field("items"), "into": "out", "concurrency": 2, "on_failure": "collect"}
    flow.each("all", _double(ledger, "collected"), then="end", **each)
    flow.final("end")
    return flow


@scenario(
    visits="",
    state="end",
    input={"items": [1, 7, 3]},
    data={"items": [1, 7, 3], "out": [_one(1, 0), _one(7, 1), _one(3, 2)]},
    kin="0.read 0.twice 1.read 1.twice 1.twice 2.read 2.twice",
    beside=2,
)
def child_that_failed_and_was_run_again(ledger: Ledger) -> Workflow:
    flow = Workflow("child_that_failed_and_was_run_again")
    each = {"over": field("items"), "into": "out", "concurrency": 2}
    flow.each("all", _double(ledger, "failed_once"), initial=True, then="end", **each)
    flow.final("end")
    return flow


@scenario(
    visits="both.right.collect both.left.ready both.right.ready",
    bodies="both.right.collect",
    state="end",
    input={"picked": 0, "box": None},
    data={"picked": 1, "box": {"item": 5, "read": 5, "twice": 10}},
    kin="0.read 0.twice",
    beside=2,
)
def child_in_a_region(ledger: Ledger) -> Workflow:
    flow = Workflow("child_in_a_region")
    both = flow.parallel("both", initial=True, then="end")
    left, right = both.region("left"), both.region("right")
    left.child(
        "box", _double(ledger, "region_box"), data=lambda data: {"item": 5}, into="box", then="ready", initial=True
    )
    left.final("ready")

    @right.step(initial=True, then="ready")
    async def collect(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["picked"] = 1

    right.final("ready")
    flow.final("end")
    return flow


@scenario(visits="late", state="end", data={"late": True}, waits=True)
def children_cancelled_by_a_time(ledger: Ledger) -> Workflow:
    flow, asked = Workflow("children_cancelled_by_a_time"), Workflow("asked")
    asked.wait("answer", initial=True, on={"given": "end"})
    asked.final("end")
    over = {"over": lambda data: [1, 2], "concurrency": 2}
    flow.each("all", asked, initial=True, then="end", after={0.02: "late"}, **over)

    @flow.step(then="end")
    async def late(ctx: WorkflowContext[Any]) -> None:
        async with ledger.body(ctx):
            ctx.data["late"] = True

    flow.final("end")
    return flow
