"""The rules of children, one table a rule: what they are given, what moves say to them, what their ends come to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fsmworkflow import CodecError, Event, Failure, MergeConflict, Move, Run, To, Workflow, field
from fsmworkflow.children import DEPTH, KEY_BYTES, awaiting, awaits, joined
from fsmworkflow.codec import Codec, Data
from fsmworkflow.decide import begin, decide
from fsmworkflow.due import due_next
from fsmworkflow.errors import ChildFailed, TooDeep
from fsmworkflow.records import (
    BEGIN,
    CANCEL,
    DONE,
    ERROR,
    JOINED,
    PARKED,
    PAUSE,
    RERUN,
    RETRY,
    TIMEOUT,
    UNPAUSE,
    Active,
    Child,
    Order,
    Undo,
    Undoing,
    replace,
)
from tests.tables import NOW, check_move, difference


async def step(ctx: Any) -> None:
    pass


def put(data: Any, event: Any) -> None:
    data["got"] = event.payload


def wrong(*args: Any) -> Any:
    raise ZeroDivisionError("no input")


LEAF = Workflow("leaf", deadline=100)
LEAF.wait("rest", initial=True, after={10: "end"})
LEAF.final("end")


def family(kind: str = "each", *, how: dict[str, Any] | None = None, **more: Any) -> Workflow:
    """start (a step) -> all (children) -> end, beside it a wait and ways out."""
    made = Workflow("w", **more)
    made.step("start", initial=True, then="all", compensate=step)(step)
    ways: dict[str, Any] = {
        "then": "end",
        "on": {"skip": "rest", "note": To("all", update=put, internal=True), "no": [(field("n") > 99, "rest")],
               "again": "all"},
        "after": {30: To("all", update=put, internal=True)},
        "on_error": {ChildFailed: "mend", TooDeep: "mend"},
    }  # fmt: skip
    if kind == "each":
        made.each("all", LEAF, **{"over": field("items"), "into": "out", "concurrency": 3, **ways, **(how or {})})
    else:
        made.child("all", LEAF, **{"into": "out", **ways, **(how or {})})
    made.wait("rest", on={"back": "all"})
    made.step("mend", then="end")(step)
    made.final("end")
    return made.check()


FAMILY, COLLECTS, SINGLE = family(), family(how={"on_failure": "collect"}), family("child")
ITEMS = {"items": ["a", "b"], "n": 1}
TIMER = {"$after 30": NOW + 30}


def at(state: str, workflow: Workflow = FAMILY, data: dict[str, Any] | None = None, **more: Any) -> Run:
    """A run at its seventh move, which entered its state with the third, and has two children there."""
    run = begin(workflow, "k", Codec().encode(ITEMS if data is None else data), now=NOW - 100)
    there = {"all": Active(3, children=2)} if state == "all" else {state: Active(3)}
    waits = "waiting" if state in ("all", "rest") else "running"
    parts = {"active": there, "version": 7, "owner": "me", "epoch": 2, "id": 5, "status": waits, "due": None}
    return replace(run, **{**parts, **more})


async def moved(run: Run, event: Event, workflow: Workflow = FAMILY) -> Move:
    move = await decide(workflow, run, event, now=NOW)
    check_move(workflow, run, event, move)
    return move


def started(ordinal: int, given: dict[str, Any], *, visit: int = 8, depth: int = 1) -> Run:
    made = begin(LEAF, f"k/all/{visit}/{ordinal}", Codec().encode(given), now=NOW)
    return replace(made, due=None, child=Child(5, "all", visit, ordinal, depth))


# -- what the children are given ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "how", "inputs"),
    [
        ("each", {}, [{"item": "a", "index": 0}, {"item": "b", "index": 1}]),
        ("each", {"over": "items"}, [{"item": "a", "index": 0}, {"item": "b", "index": 1}]),
        ("each", {"over": lambda data: tuple(data["items"][1:])}, [{"item": "b", "index": 0}]),
        ("each", {"over": lambda data: []}, []),
        ("each", {"data": lambda data, item, n: {"x": [data["n"], item, n]}}, [{"x": [1, "a", 0]}, {"x": [1, "b", 1]}]),
        ("child", {}, [ITEMS]),
        ("child", {"data": lambda data: {"x": data["n"]}}, [{"x": 1}]),
    ],
)
async def test_the_move_that_enters_a_state_makes_its_children_and_begins_them(
    kind: str, how: dict[str, Any], inputs: list[dict[str, Any]]
) -> None:
    workflow = family(kind, how=how)
    move = await moved(at("start", workflow), Event(name=DONE, state="start"), workflow)
    assert move.starts == tuple(started(n, given) for n, given in enumerate(inputs))
    assert move.orders == (Order(BEGIN, "all", 8, 3 if kind == "each" else 1, True),)
    assert difference(move) == {
        "active": {"all": Active(8, timers=TIMER, children=len(inputs))}, "status": "waiting", "due": NOW + 30,
        "undo": Undoing((Undo("start", 3),)),
    }  # fmt: skip


async def test_a_state_that_collects_says_that_its_children_all_come_to_their_end() -> None:
    move = await moved(at("start", COLLECTS), Event(name=DONE, state="start"), COLLECTS)
    assert move.orders == (Order(BEGIN, "all", 8, 3, False),)


async def test_children_count_the_runs_above_them() -> None:
    run = at("start", child=Child(2, "s", 1, 0, depth=DEPTH - 1))
    move = await moved(run, Event(name=DONE, state="start"))
    assert [child.child for child in move.starts] == [Child(5, "all", 8, n, DEPTH) for n in (0, 1)]


def unmade(move: Move) -> None:
    """The move leaves it to `$begin` to say what is wrong."""
    assert (move.after.status, move.after.due, move.after.active) == ("running", NOW, {"all": Active(8, timers=TIMER)})
    assert (move.starts, move.orders, move.after.error) == ((), (), None)


@pytest.mark.parametrize(
    ("how", "data", "kind", "message"),
    [
        ({"data": wrong}, ITEMS, "ZeroDivisionError", "no input"),
        ({"over": wrong}, ITEMS, "ZeroDivisionError", "no input"),
        ({"data": lambda data, item, n: {"x": 1 if n == 0 else object()}}, ITEMS, "CodecError",
         "input of child 1, data.x: a value of type object"),
        ({}, {"items": 5}, "TypeError", "over= must come to a list, and 'items' is 5"),
        ({}, {}, "TypeError", "over= must come to a list, and 'items' is None"),
        ({"over": lambda data: "ab"}, {}, "TypeError", "over= must come to a list, and its function gave 'ab'"),
    ],
)  # fmt: skip
async def test_children_that_cannot_be_made_fail_the_run_in_their_own_state(
    how: dict[str, Any], data: dict[str, Any], kind: str, message: str
) -> None:
    workflow = family(how=how)
    move = await moved(at("start", workflow, data), Event(name=DONE, state="start"), workflow)
    unmade(move)
    event = due_next(workflow, move.after, NOW)
    assert event == Event(name=BEGIN, state="all")
    failed = await moved(move.after, event, workflow)
    found = difference(failed)
    error = found.pop("error")
    assert found == {"status": "compensating", "undo": Undoing((Undo("start", 3),), "failed")}
    assert (error.type, error.state, error.visit, error.message.startswith(message)) == (kind, "all", 8, True)
    assert type(failed.error).__name__ == kind
    assert (failed.starts, failed.orders) == ((), ())


@pytest.mark.parametrize(
    ("key", "depth", "message"),
    [
        ("k", DEPTH, "state 'all' of w/k would make children 17 deep; 16 are allowed"),
        ("é" + "k" * (KEY_BYTES - 5), 0, f"state 'all' of w/é{'k' * 99} would make children whose keys begin with "
         "1,751 bytes; 1,750 are allowed: give states shorter names"),
    ],
)  # fmt: skip
async def test_children_too_deep_or_with_keys_too_long_are_an_error_that_may_lead_on(
    key: str, depth: int, message: str
) -> None:
    run = at("start", key=key, child=Child(2, "s", 1, 0, depth=depth))
    after = (await moved(run, Event(name=DONE, state="start"))).after
    move = await moved(after, Event(name=BEGIN, state="all"))
    assert (move.after.state, move.after.status) == ("mend", "running")
    assert move.after.data["error"]["type"] == "TooDeep"
    assert move.after.data["error"]["message"] == message
    assert move.event.name == BEGIN


async def test_keys_may_be_as_long_as_stores_take_them() -> None:
    run = at("start", key="é" + "k" * (KEY_BYTES - 6))
    assert len((await moved(run, Event(name=DONE, state="start"))).starts) == 2


async def test_a_run_that_begins_with_children_makes_them_in_its_first_move() -> None:
    workflow = Workflow("w")
    workflow.each("all", LEAF, over=field("items"), concurrency=4, initial=True, then="end")
    workflow.final("end")
    run = replace(begin(workflow.check(), "k", Codec().encode(ITEMS), now=NOW), id=5, owner="me")
    event = due_next(workflow, run, NOW)
    assert (run.status, run.due, event) == ("running", NOW, Event(name=BEGIN, state="all"))
    assert event is not None
    move = await moved(run, event, workflow)
    assert move.starts == tuple(started(n, {"item": i, "index": n}, visit=0) for n, i in enumerate("ab"))
    assert move.orders == (Order(BEGIN, "all", 0, 4, True),)
    assert difference(move) == {"active": {"all": Active(0, children=2)}, "status": "waiting", "due": None}
    assert due_next(workflow, move.after, NOW) is None


async def test_children_of_several_regions_are_all_made_and_those_that_are_there_stay() -> None:
    workflow = Workflow("w")
    both = workflow.parallel("both", initial=True, then="end", on={"quit": "end"})
    for name in ("one", "two"):
        region = both.region(name)
        region.wait("s", initial=True, on={"go": "all", f"go {name}": "all"})
        region.each("all", LEAF, over=lambda data: [1], then="f")
        region.final("f")
    workflow.final("end")
    run = replace(begin(workflow.check(), "k", {}, now=NOW), id=5)
    move = await moved(run, Event(name="go", id="e"), workflow)
    states = ["both.one.all", "both.two.all"]
    assert [child.key for child in move.starts] == [f"k/{state}/1/0" for state in states]
    assert move.orders == tuple(Order(BEGIN, state, 1, 8, True) for state in states)
    first = await moved(run, Event(name="go one", id="e"), workflow)
    second = await moved(first.after, Event(name="go two", id="f"), workflow)
    assert ([child.key for child in second.starts], second.orders) == (
        ["k/both.two.all/2/0"],
        (Order(BEGIN, "both.two.all", 2, 8, True),),
    )
    last = await moved(second.after, Event(name="quit", id="g"), workflow)
    assert last.orders == (Order(CANCEL, states[0], 1, 8, True), Order(CANCEL, states[1], 2, 8, True))


# -- what a move says to the children that are there ----------------------------------------------------------------

ERROR_1 = Failure("OSError", "no paper", state="all", visit=3)
FAILED = {"status": "failed", "error": ERROR_1}
LEFT = Undoing((Undo("start", 1),))


@pytest.mark.parametrize(
    ("event", "how", "said"),
    [
        (Event(name="skip", id="e"), {}, CANCEL),
        (Event(name="note", id="e"), {}, None),
        (Event(name="no", id="e"), {}, None),
        (Event(name=TIMEOUT, state="all", trigger="$after 30"), {}, None),
        (Event(name=TIMEOUT, state=""), {}, PAUSE),
        (Event(name=TIMEOUT, state=""), {"undo": LEFT}, CANCEL),
        (Event(name=DONE, state="all"), {}, CANCEL),
        (Event(name=ERROR, state="all"), {}, PAUSE),
        (Event(name=JOINED, state="all"), {}, CANCEL),
        (Event(name=CANCEL), {}, CANCEL),
        (Event(name=CANCEL), {"undo": LEFT}, CANCEL),
        (Event(name=CANCEL), FAILED, CANCEL),
        (Event(name=CANCEL), {"status": "paused"}, CANCEL),
        (Event(name=CANCEL), {"status": "cancelled", "owner": None}, None),
        (Event(name=RETRY), {"status": "cancelled", "owner": None}, None),
        (Event(name=PAUSE), {}, None),
        (Event(name=UNPAUSE), {"status": "paused"}, None),
        (Event(name=PARKED, failure=ERROR_1), {}, PAUSE),
        (Event(name=PARKED, failure=ERROR_1), FAILED, None),
        (Event(name=RETRY), FAILED, RETRY),
        (Event(name=RETRY), {"status": "parked"}, RETRY),
        (Event(name=PAUSE), {**FAILED, "owner": None}, None),
        (Event(name=RERUN, payload="mend"), {}, CANCEL),
        (Event(name=RERUN, payload="mend"), FAILED, CANCEL),
        (Event(name=DONE, state="start"), {"status": "compensating", "undo": replace(LEFT, ends="failed")}, None),
        (Event(name=ERROR, state="start"), {"status": "compensating", "undo": replace(LEFT, ends="failed")}, None),
    ],
)
async def test_children_are_told_to_stop_or_to_go_on_with_their_parent(
    event: Event, how: dict[str, Any], said: str | None
) -> None:
    move = await moved(at("all", **how), event)
    assert move.orders == (() if said is None else (Order(said, "all", 3, 3, True),))
    assert move.starts == ()


@pytest.mark.parametrize("event", [Event(name="again", id="e"), Event(name=RERUN, payload="all")])
async def test_a_new_visit_of_the_same_state_stops_the_children_of_the_old_one_and_makes_others(event: Event) -> None:
    move = await moved(at("all"), event)
    assert move.orders == (Order(CANCEL, "all", 3, 3, True), Order(BEGIN, "all", 8, 3, True))
    assert [child.key for child in move.starts] == ["k/all/8/0", "k/all/8/1"]


async def test_children_stand_under_the_name_that_their_state_had_when_it_was_entered() -> None:
    run = at("all", active={"all": Active(3, children=2, was="fan")})
    assert (await moved(run, Event(name="skip", id="e"))).orders == (Order(CANCEL, "fan", 3, 3, True),)


@pytest.mark.parametrize("status", ["failed", "paused"])
async def test_a_run_that_does_not_go_on_makes_no_children(status: Any) -> None:
    run = at("all", status=status, active={"all": Active(3)}, error=ERROR_1)
    move = await moved(run, Event(name=PARKED, failure=ERROR_1))
    assert (move.starts, move.orders) == ((), ())


async def test_a_new_run_that_is_retried_makes_the_children_that_it_has_not_made_yet() -> None:
    run = at("all", **FAILED, active={"all": Active(3)})
    move = await moved(run, Event(name=RETRY))
    assert [child.key for child in move.starts] == ["k/all/3/0", "k/all/3/1"]
    assert move.orders == (Order(BEGIN, "all", 3, 3, True),)


# -- what their ends come to ----------------------------------------------------------------------------------------


def end(ordinal: int, status: Any = "done", data: dict[str, Any] | None = None, error: Any = None) -> Run:
    made = begin(LEAF, f"k/all/3/{ordinal}", Codec().encode({"n": ordinal} if data is None else data), now=NOW)
    return replace(made, status=status, error=error, child=Child(5, "all", 3, ordinal))


EVENT = Event(name=JOINED, state="all", visit=3, id="j")
BAD = Failure("OSError", "no paper")
ONE = {"all": Active(3, children=1)}


def told(workflow: Workflow, ended: list[Run], run: Run | None = None, event: Event = EVENT) -> Event:
    return joined(workflow, at("all", workflow) if run is None else run, event, ended)


@pytest.mark.parametrize(
    ("workflow", "ended", "out"),
    [
        (SINGLE, [end(0)], {"n": 0}),
        (FAMILY, [end(1), end(0)], [{"n": 0}, {"n": 1}]),
        (COLLECTS, [end(1), end(0)], [{"status": "done", "data": {"n": 0}}, {"status": "done", "data": {"n": 1}}]),
        (COLLECTS, [end(1, "failed", error=BAD), end(0)],
         [{"status": "done", "data": {"n": 0}},
          {"status": "failed", "error": {"type": "OSError", "message": "no paper"}}]),
        (COLLECTS, [end(1, "cancelled")],
         [{"status": "failed", "error": {"type": "ChildFailed", "message": "its key is taken by another run"}},
          {"status": "cancelled", "error": {"type": "", "message": "it ended in state 'rest'"}}]),
    ],
)  # fmt: skip
def test_the_data_of_the_children_come_back_in_their_order(workflow: Workflow, ended: list[Run], out: Any) -> None:
    run = at("all", workflow, **({"active": ONE} if workflow is SINGLE else {}))
    event = told(workflow, ended, run)
    assert event.changes is not None
    assert (dict(Data(event.changes)), event.base, event.error) == ({"out": out}, dict(run.fields), None)
    assert replace(event, changes=None, base=None) == EVENT


def test_no_children_come_to_an_empty_list() -> None:
    for workflow in (FAMILY, COLLECTS):
        event = told(workflow, [], at("all", workflow, active={"all": Active(3, children=0)}))
        assert event.changes is not None
        assert (dict(Data(event.changes)), event.error) == ({"out": []}, None)


@pytest.mark.parametrize(
    ("ended", "key", "status"),
    [
        ([end(0, "failed", error=BAD), end(1)], "k/all/3/0", "failed"),
        ([end(0, "cancelled"), end(1, "failed", error=BAD)], "k/all/3/1", "failed"),
        ([end(0, "cancelled"), end(1, "parked", error=BAD)], "k/all/3/1", "parked"),
        ([end(0, "paused"), end(1, "cancelled")], "k/all/3/1", "cancelled"),
        ([end(1, "failed", error=BAD), end(0, "failed", error=BAD)], "k/all/3/0", "failed"),
        ([end(1, "paused"), end(0)], "k/all/3/1", "paused"),
        ([end(0)], "k/all/3/1", None),
        ([end(1, "failed", error=BAD)], "k/all/3/0", None),
        ([], "k/all/3/0", None),
    ],
)
def test_the_first_child_that_did_not_end_well_is_named_those_only_stopped_last(
    ended: list[Run], key: str, status: str | None
) -> None:
    event = told(FAMILY, ended)
    assert isinstance(event.error, ChildFailed)
    assert (event.error.key, event.error.run and event.error.run.status) == (key, status)
    assert replace(event, error=None) == EVENT


def test_children_that_nobody_wants_to_know_of_change_nothing() -> None:
    workflow = family(how={"into": None})
    assert told(workflow, [end(0), end(1)]) == EVENT
    assert isinstance(told(workflow, [end(0)]).error, ChildFailed)


def test_an_end_is_told_to_the_state_by_its_new_name() -> None:
    run = at("all", active={"all": Active(3, children=2, was="fan")})
    event = told(FAMILY, [end(0)], run, replace(EVENT, state="fan"))
    assert (event.state, event.name) == ("all", JOINED)
    assert isinstance(event.error, ChildFailed)
    assert event.error.key == "k/fan/3/1"
    collected = told(COLLECTS, [end(0)], run, replace(EVENT, state="fan"))
    assert collected.changes is not None


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (EVENT, "all"),
        (replace(EVENT, visit=2), None),
        (replace(EVENT, state="fan"), None),
        (replace(EVENT, visit=4, state="fan"), "other"),
        (replace(EVENT, visit=4, state="other"), None),
    ],
)
def test_an_end_is_about_a_visit_that_is_still_active(event: Event, state: str | None) -> None:
    run = at("all", active={"all": Active(3, children=2), "other": Active(4, children=1, was="fan")})
    assert awaiting(run, event) == state


@pytest.mark.parametrize(
    ("status", "children", "waits"),
    [("waiting", 2, True), ("waiting", 0, False), ("waiting", None, False), ("running", 2, False)],
)
def test_a_run_waits_for_children_while_it_rests_and_has_some(status: Any, children: int | None, waits: bool) -> None:
    run = at("all", status=status, active={"rest": Active(3), "all": Active(3, children=children)})
    assert awaits(run) is waits


# -- how the run goes on --------------------------------------------------------------------------------------------


async def test_ends_that_are_well_are_the_end_of_the_state() -> None:
    event = told(FAMILY, [end(0), end(1)])
    move = await moved(at("all"), event)
    found = difference(move)
    del found["fields"]
    assert found == {"active": {"end": Active(8)}, "status": "done", "owner": None}
    assert (dict(Data(move.changes)), move.event) == ({"out": [{"n": 0}, {"n": 1}]}, event)


async def test_an_end_that_is_not_well_leads_on_as_the_error_of_a_step() -> None:
    event = told(FAMILY, [end(0), end(1, "failed", error=BAD)])
    move = await moved(at("all"), event)
    assert (move.after.state, move.after.status) == ("mend", "running")
    told_ = {"type": "ChildFailed", "state": "all", "attempt": 1,
             "message": "child leaf/k/all/3/1 failed in state 'rest': OSError: no paper"}  # fmt: skip
    assert move.after.data["error"] == told_
    workflow = family(how={"on_error": {KeyError: "mend"}})
    move = await moved(at("all", workflow), event, workflow)
    assert move.after.error is not None
    assert (move.after.status, move.after.state, move.error) == ("failed", "all", event.error)
    assert (move.after.error.type, move.after.error.state, move.after.error.visit) == ("ChildFailed", "all", 3)
    assert move.orders == (Order(PAUSE, "all", 3, 3, True),)


class Total(msgspec.Struct):
    items: list[str] = []
    n: int = 0
    out: int = 0


async def test_what_does_not_fit_the_data_of_the_parent_fails_it() -> None:
    workflow = family("child", data=Total)
    run = at("all", workflow, active=ONE)
    move = await moved(run, told(workflow, [end(0)], run), workflow)
    assert (move.after.status, move.after.state) == ("failed", "all")
    assert isinstance(move.error, CodecError)
    assert "does not fit Total" in str(move.error)


async def test_what_makes_the_data_too_large_fails_the_parent() -> None:
    workflow = family("child")
    workflow.codec.limit = 200
    run = at("all", workflow, active=ONE)
    for size, status in ((100, "done"), (200, "failed")):
        event = told(workflow, [end(0, data={"x": "x" * size})], run)
        move = await moved(run, event, workflow)
        assert (move.after.status, isinstance(move.error, CodecError)) == (status, status == "failed")


async def test_a_key_that_was_changed_while_the_children_were_on_is_a_conflict() -> None:
    workflow = family(how={"into": "got"})
    noted = await moved(at("all", workflow), Event(name="note", payload=1, id="e"), workflow)
    assert noted.after.active == {"all": Active(3, children=2, touched=("got",))}
    ended = told(workflow, [end(0), end(1)], noted.after)
    assert isinstance((await moved(noted.after, ended, workflow)).error, MergeConflict)


def beside() -> Workflow:
    """Children in one region; what another region and its events do to the data."""
    made = Workflow("w")
    both = made.parallel("both", initial=True, then="end")
    one, two = both.region("one"), both.region("two")
    one.each("all", LEAF, over=field("items"), into="out", initial=True, then="f")
    two.wait("w", initial=True, on={"put": To("w", update=put, internal=True), "same": To("w", internal=True),
                                    "cut": To("w", update=lambda data, event: {"n": 1}, internal=True)})  # fmt: skip
    two.step("s", then="w")(step)
    one.final("f")
    two.final("f")
    made.add(*())
    made.transition("end", "both.two.w", "both.two.f")
    made.transition("step", "both.two.w", "both.two.s")
    made.final("end")
    return made.check()


@pytest.mark.parametrize(
    ("event", "touched", "region"),
    [
        (Event(name="put", payload=1, id="e"), ("got",), ("got",)),
        (Event(name="cut", id="e"), ("items",), ("items",)),
        (Event(name="same", id="e"), (), ()),
    ],
)
async def test_a_state_that_waits_for_children_is_told_what_others_change_meanwhile(
    event: Event, touched: tuple[str, ...], region: tuple[str, ...]
) -> None:
    workflow = beside()
    run = begin(workflow, "k", Codec().encode(ITEMS), now=NOW)
    run = replace(run, active={**run.active, "both.one.all": Active(0, children=2)}, status="waiting")
    after = (await moved(run, event, workflow)).after
    assert {state: stay.touched for state, stay in after.active.items() if stay.touched} == (
        {"both.one.all": touched, "both.two": region} if touched else {}
    )
    if touched:
        again = (await moved(after, Event(name="put", payload=2, id="f"), workflow)).after
        assert again.active["both.one.all"].touched == tuple(dict.fromkeys((*touched, "got")))
        assert again.active["both.one.all"].children == 2


async def test_what_the_children_themselves_bring_is_told_to_no_state_but_to_their_region() -> None:
    workflow = beside()
    run = begin(workflow, "k", Codec().encode(ITEMS), now=NOW)
    active = {**run.active, "both.one.all": Active(0, children=1)}
    run = replace(run, active=active, status="waiting", id=5)
    child = replace(end(0), child=Child(5, "both.one.all", 0, 0))
    event = joined(workflow, run, Event(name=JOINED, state="both.one.all", visit=0, id="j"), [child])
    after = (await moved(run, event, workflow)).after
    assert after.active == {
        "both": Active(0), "both.one": Active(0, touched=("out",)), "both.one.f": Active(1), "both.two": Active(0),
        "both.two.w": Active(0),
    }  # fmt: skip
