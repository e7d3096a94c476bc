"""The rules of `decide`, one table a rule: a run and an event, and all that the move changes. No store, no sleep.

Each row states everything that differs after the move, so that what is written too much, or left out, shows as well.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from fsmworkflow import (
    CodecError,
    EndlessLoop,
    Event,
    Failure,
    MergeConflict,
    Move,
    Retry,
    Run,
    To,
    Transition,
    Workflow,
    field,
    payload,
)
from fsmworkflow.codec import Codec, Data, digests
from fsmworkflow.decide import begin, decide
from fsmworkflow.due import again, due_next, endless, resting_due
from fsmworkflow.failures import failure
from fsmworkflow.records import (
    CANCEL,
    DONE,
    ERROR,
    PARKED,
    PAUSE,
    RERUN,
    RETRY,
    TIMEOUT,
    UNPAUSE,
    Action,
    Active,
    Order,
    Post,
    Undo,
    Undoing,
    replace,
)
from tests.tables import NOW, check_move, difference

LATE = NOW - 5
LARGE = "x" * 5_000


async def step(ctx: Any) -> None:
    pass


def hook(name: str) -> Any:
    def action(ctx: Any) -> None:
        pass

    action.__qualname__ = name
    return action


def put(data: Any, event: Any) -> None:
    data["got"] = event.payload


def flow(**how: Any) -> Workflow:
    """Every kind of state: work (a step), rest (a wait), pick (a choice), box (a state), both (two regions), ends."""
    made = Workflow("w", **how)
    made.step(
        "work", initial=True, then="rest", retry=Retry(attempts=3, first_delay=10, jitter=False), compensate=step,
        undo=Retry(attempts=2, first_delay=20, jitter=False), exit=hook("exit work"), after={50: "rest"},
        on_error={OSError: "mend", KeyError: "refused", ValueError: [(field("n") > 5, "rest")],
                  TypeError: [(lambda ctx: 1 / 0, "rest")]},
    )(step)  # fmt: skip
    made.step("mend", then="end", on_error={OSError: To("rest", update=put)})(step)
    made.step("plain", then="other")(step)
    made.step("other", then="rest")(step)
    made.wait(
        "rest", enter=hook("enter rest"), then=[(field("n") > 9, "end")],
        on={"go": "end", "deal": To("rest", update=put, internal=True), "ask": [(payload("q") > 1, "end")],
            "bad": [(lambda ctx: 1 / 0, "end")], "back": "work",
            "worse": To("end", update=lambda data, event: 1 / 0)},
        after={100: "pick", 30: [(field("n") > 3, "end")], 40: [(lambda ctx: 1 / 0, "end")],
               60: To("rest", update=put, internal=True)},
    )  # fmt: skip
    made.choice("pick", [(field("n") > 3, "end"), (field("n") < 1, "rest")])
    box = made.state("box", then="end", enter=hook("enter box"), exit=hook("exit box"))
    box.wait("in", initial=True, on={"shut": "out"}, enter=hook("enter in"), exit=hook("exit in"))
    box.final("out")
    both = made.parallel("both", then="end", after={70: "end"})
    for name in ("b", "a"):
        region = both.region(name)
        region.step("s", initial=True, then="f")(step)
        region.final("f")
    made.final("end")
    made.final("refused", outcome="failed")
    made.add(
        *(Transition(None, "pick", name, field("n") == 99) for name in ("work", "plain", "box", "both", "refused"))
    )
    return made.check()


def flat() -> Workflow:
    """Nothing but steps, between which nothing is to be done: what most moves are."""
    made = Workflow("w")
    made.step("plain", initial=True, then="other")(step)
    made.step("other", then="end", on={"skip": "plain"})(step)
    made.final("end")
    return made.check()


FLOW, PARKS, LATER, FLAT = flow(), flow(on_failure="park"), flow(deadline=500, version=4), flat()
UNDO = Undo("work", 1)
ERROR_1 = Failure("OSError", "no paper", state="work", visit=3)


def at(state: str, data: dict[str, Any] | None = None, workflow: Workflow = FLOW, **more: Any) -> Run:
    """A run that entered `state`, and what is entered with it, with its third move, and is now at its seventh."""
    run = begin(workflow, "k", Codec().encode({"n": 2} if data is None else data), now=NOW - 100)
    active = {name: Active(3) for name in workflow.chart.entered((state,), "")}
    return replace(
        run, **{"active": active, "version": 7, "owner": "me", "epoch": 2, "due": LATE, "actions": (), **more}
    )


async def moved(run: Run, event: Event, workflow: Workflow = FLOW) -> Move:
    move = await decide(workflow, run, event, now=NOW)
    check_move(workflow, run, event, move)
    return move


def fresh(*states: str, **timers: dict[str, float]) -> dict[str, Active]:
    return {state: Active(8, timers=timers.get(state, {})) for state in states}


REST_TIMERS = {"$after 30": NOW + 30, "$after 40": NOW + 40, "$after 60": NOW + 60, "$after 100": NOW + 100}
RESTING = {"active": fresh("rest", rest=REST_TIMERS), "actions": (Action("enter rest", 8),)}


# -- how a run begins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "status", "due", "actions"),
    [
        ("work", "running", NOW, ()),
        ("rest", "waiting", NOW, (Action("enter rest", 0),)),
        ("pick", "running", NOW, ()),
        ("box.in", "waiting", NOW, (Action("enter box", 0), Action("enter in", 0))),
        ("both", "running", NOW, ()),
    ],
)
def test_a_run_is_due_from_its_beginning_where_something_is_to_be_done_or_asked(
    state: str, status: str, due: float | None, actions: tuple[Action, ...]
) -> None:
    run = begin(FLOW, "k", Codec().encode({"n": 1}), now=NOW, states=FLOW.chart.entered((state,), ""))
    assert (run.status, run.due, run.actions) == (status, due, actions)


@pytest.mark.parametrize(
    ("then", "after", "enter", "due"),
    [
        (None, None, None, None),
        (None, {40: "end"}, None, NOW + 40),
        ([(field("n") > 9, "end")], {40: "end"}, None, NOW),
        (None, {40: "end"}, hook("enter"), NOW),
    ],
)
def test_a_run_that_begins_by_waiting_is_due_at_its_first_timer_or_at_once_where_it_is_to_be_asked(
    then: Any, after: Any, enter: Any, due: float | None
) -> None:
    made = Workflow("w")
    made.wait("rest", initial=True, on={"go": "end"}, then=then, after=after, enter=enter)
    made.final("end")
    run = begin(made.check(), "k", Codec().encode({}), now=NOW)
    assert (run.status, run.due) == ("waiting", due)


def test_a_run_knows_its_definition_its_deadline_and_what_is_large_in_its_data() -> None:
    run = begin(LATER, "k", Codec().encode({"n": 1, "text": LARGE}), now=NOW)
    assert (run.definition, run.structure, run.deadline) == (4, LATER.chart.structure, NOW + 500)
    assert run.hashes == digests(run.fields)
    assert list(run.hashes) == ["text"]
    assert len(bytes.fromhex(run.input)) == 16


@pytest.mark.parametrize(
    ("state", "since", "status", "timers", "deadline"),
    [
        ("rest", None, "waiting", {}, None),
        ("rest", 0.0, "waiting", {"$after 30": 30.0, "$after 40": 40.0, "$after 60": 60.0, "$after 100": 100.0}, 500.0),
        ("end", None, "done", {}, None),
        ("refused", None, "failed", {}, None),
        ("box.in", None, "waiting", {}, None),
    ],
)
def test_a_run_of_a_bare_state_waits_for_nothing_that_nobody_can_know(
    state: str, since: float | None, status: str, timers: dict[str, float], deadline: float | None
) -> None:
    run = Run.at(LATER, state, {"n": 1}, since=since)
    assert (run.state, run.status, run.due, run.actions, run.deadline) == (state, status, None, (), deadline)
    assert list(run.active.values())[-1].timers == timers
    assert list(run.active) == list(LATER.chart.entered((state,), ""))


# -- what a run has due by itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (at("work"), None),
        (at("pick"), Event(name=DONE, state="pick")),
        (at("rest"), Event(name=DONE, state="rest")),
        (at("box.out"), Event(name=DONE, state="box")),
        (at("box.in"), None),
        (at("both"), None),
        (at("pick", status="paused"), None),
        (at("pick", status="compensating"), None),
        (at("work", deadline=NOW + 1), None),
        (at("work", deadline=LATE), Event(name=TIMEOUT, state="", trigger="", due=LATE)),
        (at("work", active={"work": Active(3, timers={"a": LATE, "b": LATE - 1})}),
         Event(name=TIMEOUT, state="work", trigger="b", due=LATE - 1)),
        (at("work", active={"work": Active(3, timers={"a": NOW})}),
         Event(name=TIMEOUT, state="work", trigger="a", due=NOW)),
        (at("work", active={"work": Active(3, timers={"a": NOW + 0.01})}), None),
    ],
)  # fmt: skip
def test_a_run_has_due_a_choice_a_complete_state_and_the_earliest_time_that_has_come(
    run: Run, found: Event | None
) -> None:
    assert due_next(FLOW, run, NOW) == found


def test_a_waiting_state_that_was_asked_at_this_version_is_not_asked_again() -> None:
    assert due_next(FLOW, at("rest"), NOW, asked=7) is None
    assert due_next(FLOW, at("rest"), NOW, asked=6) is not None


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (at("work", status="running"), None),
        (at("work", status="running", active={"work": Active(3, attempt=2, again=LATE)}), LATE),
        (at("both", status="running", active={
            "both.b.s": Active(3), "both.a.s": Active(3, again=NOW + 9), "both.c.s": Active(3, again=NOW + 5)
        }), NOW + 5),
        (at("work", status="waiting", active={"work": Active(3, attempt=2, again=LATE)}), None),
        (at("work", status="paused", active={"work": Active(3, attempt=2, again=LATE)}), None),
        (at("work", status="compensating", undo=Undoing((replace(UNDO, again=LATE), replace(UNDO, again=NOW)))), NOW),
        (at("work", status="compensating", undo=Undoing((replace(UNDO, again=LATE), UNDO))), None),
        (at("work", status="compensating", active={"work": Active(3, attempt=2, again=LATE)}), None),
    ],
)  # fmt: skip
def test_the_next_attempt_is_that_of_the_step_or_undoing_that_is_on(run: Run, found: float | None) -> None:
    assert again(run) == found


@pytest.mark.parametrize(
    ("passed", "cycle"),
    [
        (["rest", "pick", "mend", "pick"], "pick -> mend -> pick"),
        (["pick", "rest", "pick", "mend", "rest", "pick"], "pick -> mend -> rest -> pick"),
        (["pick", "pick"], "pick -> pick"),
        ([*(f"s{n}" for n in range(30)), "pick"], " -> ".join([*(f"s{n}" for n in range(11, 30)), "pick"])),
    ],
)
def test_a_cycle_of_states_that_do_nothing_is_told_from_its_last_round(passed: list[str], cycle: str) -> None:
    run = at("pick")
    event = endless(run, passed)
    assert (event.name, event.state, type(event.error)) == (ERROR, "pick", EndlessLoop)
    assert str(event.error) == f"1,000 moves without a step, an event or time between them: {cycle}"
    assert event.error is not None
    assert event.failure == failure(event.error, run, "pick")


def test_a_choice_within_other_states_is_due_too() -> None:
    made = Workflow("w")
    box = made.state("box", initial=True, then="end")
    box.choice("pick", "f", initial=True)
    box.final("f")
    made.final("end")
    run = begin(made.check(), "k", {}, now=NOW)
    assert due_next(made, run, NOW) == Event(name=DONE, state="box.pick")


def test_inner_states_come_to_their_end_before_outer_ones_and_regions_in_any_order() -> None:
    made = Workflow("w")
    outer = made.state("outer", initial=True, then="end")
    inner = outer.state("inner", initial=True, then="last")
    inner.wait("rest", initial=True, on={"go": "f"})
    inner.final("f")
    outer.final("last")
    made.final("end")
    made.check()
    run = replace(
        begin(made, "k", {}, now=NOW), active={n: Active(0) for n in ("outer", "outer.inner", "outer.inner.f")}
    )
    assert due_next(made, run, NOW) == Event(name=DONE, state="outer.inner")


@pytest.mark.parametrize(
    ("again", "timers", "deadline", "later", "due"),
    [
        (None, {}, None, None, None),
        (NOW + 5, {"a": NOW + 6}, NOW + 7, NOW + 8, NOW + 5),
        (None, {"a": NOW + 6, "b": NOW + 9}, NOW + 7, NOW + 8, NOW + 6),
        (None, {}, NOW + 7, NOW + 8, NOW + 7),
        (None, {}, None, NOW + 8, NOW + 8),
    ],
)
def test_a_resting_run_is_due_at_the_first_of_retry_timer_deadline_and_event_to_come(
    again: float | None, timers: dict[str, float], deadline: float | None, later: float | None, due: float | None
) -> None:
    run = at("work", active={"work": Active(3, again=again, timers=timers)}, deadline=deadline, later=later)
    assert resting_due(run) == due


# -- a step's end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workflow", [FLOW, FLAT], ids=["nested", "flat"])
@pytest.mark.parametrize("due", [LATE, NOW, NOW + 1, None])
async def test_a_step_that_leads_to_a_step_leaves_the_run_due_since_when_it_was(
    workflow: Workflow, due: float | None
) -> None:
    run = at("plain", workflow=workflow, due=due, error=ERROR_1, deaths=2)
    move = await moved(run, Event(name=DONE, state="plain"), workflow)
    changed = {"active": fresh("other"), "error": None, "deaths": 0} | ({} if due in (LATE, NOW) else {"due": NOW})
    assert difference(move) == changed
    assert move.forget == (("plain", 3),)


@pytest.mark.parametrize("workflow", [FLOW, FLAT], ids=["nested", "flat"])
async def test_a_move_strikes_off_what_was_to_be_done_and_writes_which_definition_made_it(workflow: Workflow) -> None:
    run = at("plain", workflow=workflow, actions=(Action("a", 7),), definition=0, structure="older")
    move = await moved(run, Event(name=DONE, state="plain"), workflow)
    there = {"definition": workflow.version, "structure": workflow.chart.structure}
    assert difference(move) == {"active": fresh("other"), "actions": (), **there}


async def test_an_event_may_lead_from_a_step_to_a_step() -> None:
    move = await moved(at("other", workflow=FLAT), Event(name="skip", id="e"), FLAT)
    assert difference(move) == {"active": fresh("plain")}
    assert move.forget == (("other", 3),)


@pytest.mark.parametrize("state", ["plain", "work"])
async def test_what_is_large_is_hashed_once_and_kept_by_its_hash_until_it_changes(state: str) -> None:
    run = at(state, {"n": 2, "kept": LARGE, "gone": LARGE, "new": LARGE})
    run = replace(run, hashes=digests(run.fields))
    changes, removed = Codec().changes({"n": 3, "kept": LARGE, "new": LARGE + "y"}, run.fields)
    move = await moved(run, Event(name=DONE, state=state, changes=changes, removed=removed))
    assert sorted(move.after.hashes) == ["kept", "new"]
    assert move.after.hashes["kept"] == run.hashes["kept"]
    assert (sorted(move.changes), move.removed) == (["n", "new"], ("gone",))


async def test_a_finished_visit_is_listed_for_undoing_under_the_name_that_it_had() -> None:
    run = at("work", active={"work": Active(3, was="labour")})
    move = await moved(run, Event(name=DONE, state="work"))
    assert difference(move) == {
        **RESTING, "actions": (Action("exit work", 8), Action("enter rest", 8)), "status": "waiting",
        "undo": Undoing((Undo("work", 3, was="labour"),)),
    }  # fmt: skip
    assert move.forget == (("labour", 3),)


async def test_a_step_that_has_remembered_nothing_forgets_nothing() -> None:
    for state in ("plain", "work"):
        assert (await moved(at(state), Event(name=DONE, state=state, remembered=False))).forget == ()


async def test_a_waiting_state_in_which_no_condition_holds_is_no_move() -> None:
    run, event = at("rest"), Event(name=DONE, state="rest")
    move = await moved(run, event)
    assert (move.after is run, move.before is run, move.event is event, move.at) == (True, True, True, NOW)
    assert [seen.answer for seen in move.asked] == [False]


@pytest.mark.parametrize(
    ("state", "data", "dest", "status"),
    [("rest", {"n": 10}, "end", "done"), ("pick", {"n": 4}, "end", "done"), ("pick", {"n": 2}, "pick", "failed")],
)
async def test_what_has_no_step_leads_on_by_its_conditions(state: str, data: Any, dest: str, status: str) -> None:
    move = await moved(at(state, data), Event(name=DONE, state=state))
    assert (move.after.state, move.after.status) == (dest, status)
    assert len(move.asked) == {"end": 1, "pick": 7}[dest]


async def test_the_error_of_a_choice_lists_each_condition_on_a_line_of_its_own() -> None:
    error = (await moved(at("pick"), Event(name=DONE, state="pick"))).after.error
    assert error is not None
    assert error.message.splitlines()[:3] == [
        "state 'pick' ended, and none of its conditions holds:", "  - n > 3: False (n = 2)", "  - n < 1: False (n = 2)",
    ]  # fmt: skip


async def test_the_error_of_a_choice_tells_of_all_that_a_condition_saw_and_of_a_function_its_answer() -> None:
    made = Workflow("w")
    made.choice("pick", [(field("a") > field("b"), "end"), (lambda ctx: False, "end")], initial=True)
    made.final("end")
    run = begin(made.check(), "k", Codec().encode({"a": 1, "b": 2}), now=NOW)
    error = (await decide(made, run, Event(name=DONE, state="pick"), now=NOW)).after.error
    assert error is not None
    lines = error.message.splitlines()
    assert lines[1] == "  - a > b: False (a = 1, b = 2)"
    assert lines[2].endswith("<lambda>: False")


async def test_what_a_step_emits_is_posted_with_its_move_and_not_where_that_fails_the_run() -> None:
    posts = (Post("w", "other", Event(name="go")),)
    assert (await moved(at("plain"), Event(name=DONE, state="plain", posts=posts))).posts == posts
    assert (await moved(at("pick"), Event(name=DONE, state="pick", posts=posts))).posts == ()
    assert (await moved(at("plain"), Event(name=DONE, state="plain"))).posts == ()


# -- the data of a move ---------------------------------------------------------------------------------------------


def changing(update: Any, **how: Any) -> Workflow:
    """A step whose way out changes the data, and a wait beside it for typed data and payloads."""
    made = Workflow("w", **how)
    made.step("work", initial=True, then=To("rest", update=update))(step)
    made.wait("rest", on={"set": To("rest", update=update, internal=True), "go": [(field("n") > 5, "end")]})
    made.final("end")
    return made.check()


@pytest.mark.parametrize(
    ("written", "update", "data", "changes", "removed"),
    [
        ({"n": 2, "k": 7, "new": 1}, {"n": 2, "k": 7}, {"n": 2, "k": 7}, {}, ()),  # it is taken away on the way out
        ({"n": 2, "k": 7, "new": 1}, {"n": 2, "k": 8}, {"n": 2, "k": 8}, {"k": 8}, ()),
        ({"n": 2, "k": 8}, {"n": 3, "k": 8}, {"n": 3, "k": 8}, {"n": 3, "k": 8}, ()),
        ({"n": 3, "k": 7}, {"n": 4, "k": 7}, {"n": 4, "k": 7}, {"n": 4}, ()),
        ({"k": 7, "new": 1}, {"new": 1}, {"new": 1}, {"new": 1}, ("n", "k")),
        ({"k": 7}, {}, {}, {}, ("n", "k")),
        ({"n": 2}, {"n": 2}, {"n": 2}, {}, ("k",)),  # the step only takes away
        ({}, {"n": 5}, {"n": 5}, {"n": 5}, ("n", "k")),
        ({"n": 2, "k": 7}, {"n": 2, "k": 7}, {"n": 2, "k": 7}, {}, ()),
    ],
)
async def test_what_a_step_wrote_and_what_is_changed_on_its_way_out_are_one_change(
    written: dict[str, Any], update: dict[str, Any], data: dict[str, Any], changes: dict[str, Any], removed: Any
) -> None:
    made = changing(lambda before, event: update)
    run = at("work", {"n": 2, "k": 7}, made)
    new, gone = Codec().changes(written, run.fields)
    event = Event(name=DONE, state="work", changes=new, removed=gone, base=run.fields)
    move = await moved(run, event, made)
    assert (move.after.data, dict(Data(move.changes)), sorted(move.removed)) == (data, changes, sorted(removed))
    assert sorted(set(move.removed)) == sorted(move.removed)


def beside(merge: Any = None, outer: str = "") -> Workflow:
    """Steps of two regions, perhaps deep inside another state."""
    made = Workflow("w", merge=merge)
    scope: Any = made.state(outer, initial=True, then="end") if outer else made
    both = scope.parallel("both", initial=True, then="f" if outer else "end")
    for name in ("one", "two"):
        region = both.region(name)
        region.step("s", initial=True, then="f", on={"note": To("s", update=note, internal=True)})(step)
        region.final("f")
    if outer:
        scope.final("f")
    made.final("end")
    return made.check()


def note(data: Any, event: Any) -> None:
    data[event.payload] = data.get(event.payload, 0) + 1


def joined(old: Any, new: Any) -> Any:
    return [old, new]


@pytest.mark.parametrize(
    ("merge", "before", "now", "written", "kept"),
    [
        ({"n": joined}, {"n": 1}, {"n": 2}, {"n": 3}, {"n": [2, 3]}),
        ({"n": joined}, {"m": 1, "n": 1}, {"m": 1, "n": 2}, {"m": 5, "n": 3}, {"m": 5, "n": [2, 3]}),
        (None, {"m": 1, "n": 1}, {"m": 1, "n": 2}, {"m": 5, "n": 1}, {"m": 5, "n": 2}),
        (None, {"n": 1}, {"n": 2}, {"n": 3}, "n"),
        (None, {"m": 1, "n": 1}, {"m": 1, "n": 2}, {"m": 5, "n": 3}, "n"),  # the first key is nobody else's
        ({"m": joined}, {"n": 1}, {"n": 2}, {"n": 3}, "n"),
        ({"n": joined}, {"n": 1}, {"n": 2}, {}, "n"),  # taken away by the step
        ({"n": joined}, {"n": 1, "m": 1}, {"n": 2, "m": 1}, {"m": 3}, "n"),
        ({"n": joined}, {"n": 1}, {}, {"n": 3}, "n"),  # taken away by the other
    ],
)
async def test_keys_that_others_have_changed_are_joined_or_are_a_conflict(
    merge: Any, before: dict[str, Any], now: dict[str, Any], written: dict[str, Any], kept: Any
) -> None:
    made = beside(merge)
    base = Codec().encode(before)
    run = at("both", now, made)
    changes, removed = Codec().changes(written, base)
    event = Event(name=DONE, state="both.one.s", changes=changes, removed=removed, base=base)
    move = await moved(run, event, made)
    if isinstance(kept, dict):
        assert move.after.data == kept
    else:
        assert move.after.error is not None
        assert (move.after.error.type, move.after.data) == ("MergeConflict", now)
        assert move.after.error.message == (
            f"state 'both.one.s' changed '{kept}', which another move had changed meanwhile: "
            f"say how to join them, with Workflow(merge={{'{kept}': fn}})"
        )


async def test_a_key_that_a_step_only_takes_away_meets_what_others_did_with_it() -> None:
    made = beside({"n": joined})
    event = Event(name=DONE, state="both.one.s", removed=("n",), base=Codec().encode({"n": 1}))
    move = await moved(at("both", {"n": 2}, made), event, made)
    assert move.after.error is not None
    assert move.after.error.type == "MergeConflict"


async def test_what_comes_of_joining_must_have_a_text_too() -> None:
    made = beside({"n": lambda old, new: object()})
    event = Event(name=DONE, state="both.one.s", changes=Codec().encode({"n": 3}), base=Codec().encode({"n": 1}))
    move = await moved(at("both", {"n": 2}, made), event, made)
    assert isinstance(move.error, CodecError)
    assert move.error.path == "data.n"


@pytest.mark.parametrize("outer", ["", "outer"])
async def test_what_one_region_has_changed_is_told_to_the_others_also_deep_inside(outer: str) -> None:
    made, prefix = beside(outer=outer), f"{outer}." if outer else ""
    run = at(f"{prefix}both", {}, made)
    ended = Event(name=DONE, state=f"{prefix}both.one.s", changes=Codec().encode({"n": 1}), base=run.fields)
    after = (await moved(run, ended, made)).after
    assert {state: stay.touched for state, stay in after.active.items() if stay.touched} == {
        f"{prefix}both.one": ("n",)
    }
    run = replace(after, version=7)
    other = Event(name=DONE, state=f"{prefix}both.two.s", changes=Codec().encode({"n": 2}), base=run.fields)
    assert isinstance((await moved(run, other, made)).error, MergeConflict)


async def test_an_event_that_changes_data_in_several_regions_is_told_of_in_each() -> None:
    made = beside()
    run = at("both", {}, made)
    after = (await moved(run, Event(name="note", payload="x", id="e"), made)).after
    assert {state: stay.touched for state, stay in after.active.items() if stay.touched} == {
        "both.one": ("x",), "both.two": ("x",),
    }  # fmt: skip
    assert after.data == {"x": 2}


class Asked(msgspec.Struct):
    n: int = 0
    by: str = ""


@pytest.mark.parametrize(
    ("kind", "payload_", "data"),
    [
        (None, {"n": 6}, {"n": 6, "by": ""}),
        (None, {"n": 6, "more": 1}, {"n": 6, "by": "", "more": 1}),
        (Asked, {"n": 6}, Asked(6)),
        (Asked, {"n": 6, "by": "ann"}, Asked(6, "ann")),
    ],
)
async def test_a_payload_is_written_into_the_data_before_it_is_asked_about(kind: Any, payload_: Any, data: Any) -> None:
    made = changing(None, data=kind, payload="merge")
    run = at("rest", {"n": 2, "by": ""}, made, status="waiting")
    move = await moved(run, Event(name="go", payload=payload_, id="e"), made)
    assert (move.answer, move.after.state, made.codec.decode(move.after.fields)) == ("accepted", "end", data)


@pytest.mark.parametrize(
    ("kind", "payload_", "said"),
    [
        (Asked, {"n": "six"}, "does not fit Asked"),
        (Asked, {"n": 6, "more": 1}, "no such field"),
        (None, {"n": object()}, "data.n"),
    ],
)
async def test_a_payload_that_does_not_fit_the_data_is_rejected_and_the_run_stays(
    kind: Any, payload_: Any, said: str
) -> None:
    made = changing(None, data=kind, payload="merge")
    run = at("rest", {"n": 2, "by": ""}, made, status="waiting")
    move = await moved(run, Event(name="go", payload=payload_, id="e"), made)
    assert (difference(move), move.answer) == ({}, "rejected")
    ((condition, values, answer, error),) = [msgspec.structs.astuple(seen) for seen in move.asked]
    assert (condition, values, answer) == ("the payload fits the data", {}, None)
    assert said in error


@pytest.mark.parametrize("payload_", [None, 3, ["n"]])
async def test_a_payload_that_is_no_dict_is_merged_into_nothing(payload_: Any) -> None:
    made = changing(lambda data, event: None, payload="merge")
    move = await moved(at("rest", status="waiting", workflow=made), Event(name="set", payload=payload_, id="e"), made)
    assert (move.answer, move.after.data) == ("accepted", {"n": 2})


# -- the order of what is done --------------------------------------------------------------------------------------


async def test_what_is_left_exits_from_inside_out_whatever_its_names_and_what_is_entered_enters_from_outside_in() -> (
    None
):
    made = Workflow("w")
    outer = made.state("z", initial=True, on={"go": "y"}, exit=hook("exit z"), enter=hook("enter z"))
    outer.wait("b", initial=True, exit=hook("exit b"))
    outer.wait("a")
    made.add(Transition("turn", "z.b", "z.a"))
    inner = made.state("y", on={"back": To("z", after=hook("act"))}, enter=hook("enter y"), exit=hook("exit y"))
    inner.wait("x", initial=True, enter=hook("enter x"), exit=hook("exit x"))
    made.final("end")
    made.add(Transition("stop", ["z", "y"], "end"))
    made.check()
    names = []
    run = replace(begin(made, "k", {}, now=NOW), owner="me")
    for event in ("go", "back"):
        move = await decide(made, run, Event(name=event), now=NOW)
        names.append([action.name for action in move.after.actions])
        run = move.after
    assert names == [
        ["exit b", "exit z", "enter y", "enter x"], ["exit x", "exit y", "act", "enter z"],
    ]  # fmt: skip


async def test_regions_exit_in_reverse_order_of_the_document_whatever_their_names() -> None:
    made = Workflow("w")
    both = made.parallel("both", initial=True, on={"go": "end"})
    for name in "bca":
        both.region(name).wait("r", initial=True, exit=hook(name))
    made.final("end")
    run = begin(made.check(), "k", {}, now=NOW)
    move = await decide(made, run, Event(name="go"), now=NOW)
    assert [action.name for action in move.after.actions] == ["a", "c", "b"]


async def test_active_states_stand_in_the_order_of_the_document_whatever_their_names_and_visits() -> None:
    run = at("both")
    move = await moved(run, Event(name=DONE, state="both.b.s"))
    assert list(move.after.active) == ["both", "both.b", "both.b.f", "both.a", "both.a.s"]
    assert {state: stay.visit for state, stay in move.after.active.items() if stay.visit != 3} == {"both.b.f": 8}


# -- an event -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "changed", "answer"),
    [
        (Event(name="go", id="e"), {"active": fresh("end"), "status": "done", "owner": None, "due": None}, "accepted"),
        (Event(name="deal", payload=4, id="e"), {"fields": {"n": b"2", "got": b"4"}, "due": None}, "accepted"),
        (Event(name="ask", payload={"q": 1}, id="e"), {}, "rejected"),
        (Event(name="ask", payload={"q": 2}, id="e"), {"active": fresh("end"), "status": "done", "owner": None,
         "due": None}, "accepted"),
        (Event(name="ask", id="e"), {}, "rejected"),
        (Event(name="back", id="e"), {"active": fresh("work", work={"$after 50": NOW + 50}), "status": "running"},
         "accepted"),
    ],
)  # fmt: skip
async def test_an_event_is_taken_or_spent_without_effect(event: Event, changed: dict[str, Any], answer: str) -> None:
    run = at("rest", status="waiting")
    move = await moved(run, event)
    found = difference(move)
    if "fields" in found:
        found["fields"] = {key: bytes(text) for key, text in found["fields"].items()}
    assert (found, move.answer, move.event is event) == (changed, answer, True)


async def test_what_a_condition_raises_over_an_event_rejects_the_event_and_stands_in_the_history() -> None:
    event = Event(name="bad", id="e")
    move = await moved(at("rest", status="waiting"), event)
    assert (difference(move), move.answer, move.error, move.event is event) == ({}, "rejected", None, True)
    assert [(seen.answer, seen.error) for seen in move.asked] == [(None, "ZeroDivisionError: division by zero")]


# -- times ----------------------------------------------------------------------------------------------------------


def resting(data: Any = None, **more: Any) -> Run:
    active = {"rest": Active(3, timers=dict.fromkeys(REST_TIMERS, LATE))}
    return at("rest", data, **{"active": active, "status": "waiting", **more})


def timer(seconds: int) -> Event:
    return Event(name=TIMEOUT, state="rest", trigger=f"$after {seconds}", due=LATE)


@pytest.mark.parametrize(
    ("run", "event", "changed", "answer"),
    [
        (resting(), timer(100), {"active": fresh("pick"), "status": "running"}, "accepted"),
        (resting({"n": 4}), timer(30), {"active": fresh("end"), "status": "done", "owner": None, "due": None},
         "accepted"),
        (resting({"n": 3}), timer(30), {"left": 30}, "rejected"),
        (resting({"n": 3}, due=None), timer(30), {"left": 30, "due": LATE}, "rejected"),
        (resting({"n": 3}, status="running"), timer(30), {"left": 30, "status": "waiting"}, "rejected"),
        (resting(), timer(60), {"left": 60, "got": b"null"}, "accepted"),
    ],
)  # fmt: skip
async def test_a_time_leads_on_or_is_spent(run: Run, event: Event, changed: dict[str, Any], answer: str) -> None:
    move = await moved(run, event)
    found, changed = difference(move), dict(changed)
    if "left" in changed:
        struck = f"$after {changed.pop('left')}"
        timers = {name: due for name, due in run.active["rest"].timers.items() if name != struck}
        changed["active"] = {"rest": Active(3, timers=timers, spent=(struck,))}
    if "got" in changed:
        assert bytes(found.pop("fields")["got"]) == changed.pop("got")
    assert (found, move.answer) == (changed, answer)


async def test_what_the_condition_of_a_time_raises_fails_the_run() -> None:
    event = timer(40)
    move = await moved(resting(), event)
    found = difference(move)
    error = found.pop("error")
    assert found == {"status": "failed", "owner": None, "due": None}
    assert (error.type, error.state, error.visit) == ("ZeroDivisionError", "rest", 3)
    assert (move.event is event, isinstance(move.error, ZeroDivisionError)) == (True, True)
    assert [seen.answer for seen in move.asked] == [None]


@pytest.mark.parametrize(("left", "status"), [((), "failed"), ((UNDO,), "compensating")])
async def test_the_deadline_fails_the_run_once(left: tuple[Undo, ...], status: str) -> None:
    event = Event(name=TIMEOUT, state="", trigger="", due=LATE)
    run = at("work", deadline=LATE, undo=Undoing(left))
    move = await moved(run, event)
    found = difference(move)
    error = found.pop("error")
    undo = {"undo": Undoing(left, ends="failed"), "due": NOW} if left else {"owner": None, "due": None}
    assert found == {"status": status, "deadline": None, **undo}
    assert (error.type, error.state, error.visit) == ("DeadlineExceeded", "work", 3)
    assert error.message == "w/k had not ended by its deadline"
    assert move.event is event


@pytest.mark.parametrize("status", ["running", "waiting"])
async def test_a_run_that_rests_again_says_how_it_rests_and_when_it_is_due(status: Any) -> None:
    run = resting({"n": 3}, status=status, actions=(Action("a", 7),))
    after = (await moved(run, timer(30))).after
    assert (after.status, after.due) == ("waiting", LATE)
    after = (await moved(replace(run, due=NOW + 9), timer(30))).after
    assert (after.status, after.due) == ("waiting", NOW)


@pytest.mark.parametrize(("n", "status"), [(9, "waiting"), (10, "running")])
async def test_a_waiting_state_that_is_entered_is_busy_where_it_leads_on_at_once(n: int, status: str) -> None:
    move = await moved(at("other", {"n": n}), Event(name=DONE, state="other"))
    assert difference(move) == {**RESTING, **({} if status == "running" else {"status": status})}


@pytest.mark.parametrize("guard", [lambda ctx: 1 / 0, lambda ctx: ctx.event.name == DONE and ctx.event.state == "rest",
                                   lambda ctx: ctx.run.key == "k" and ctx.run.state == "rest"])  # fmt: skip
async def test_a_waiting_state_is_asked_as_by_its_own_end_and_what_that_raises_is_met_next(guard: Any) -> None:
    made = Workflow("w")
    made.step("work", initial=True, then="rest")(step)
    made.wait("rest", on={"go": "end"}, then=[(guard, "end")])
    made.final("end")
    run = replace(begin(made.check(), "k", {}, now=NOW), owner="me")
    after = (await decide(made, run, Event(name=DONE, state="work"), now=NOW)).after
    assert (after.status, after.due) == ("running", NOW)


async def test_what_a_waiting_state_is_asked_on_its_entry_is_no_part_of_the_move() -> None:
    move = await moved(at("other"), Event(name=DONE, state="other"))
    assert (move.after.state, move.after.status, move.asked) == ("rest", "waiting", ())


async def test_a_question_to_a_waiting_state_that_is_cancelled_from_outside_is_cancelled() -> None:
    async def slow(ctx: Any) -> bool:
        await asyncio.sleep(60)
        return True

    made = Workflow("w")
    made.step("work", initial=True, then="rest")(step)
    made.wait("rest", on={"go": "end"}, then=[(slow, "end")])
    made.final("end")
    run = begin(made.check(), "k", {}, now=NOW)
    task = asyncio.create_task(decide(made, run, Event(name=DONE, state="work"), now=NOW))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- errors ---------------------------------------------------------------------------------------------------------


def raised(run: Run, error: Exception, **more: Any) -> Event:
    state = next(reversed(run.active))
    return Event(name=ERROR, state=state, error=error, failure=failure(error, run, state), **more)


@pytest.mark.parametrize(("progress", "deaths"), [(False, 2), (True, 0)])
async def test_a_step_is_tried_again_in_its_visit_after_a_pause(progress: bool, deaths: int) -> None:
    run = at("work", status="waiting", deaths=2)
    event = raised(run, RuntimeError("no"), progress=progress)
    active = {"work": Active(3, 2, again=NOW + 10)}
    changed = {"active": active, "status": "running", "due": NOW + 10, "error": event.failure}
    move = await moved(run, event)
    assert difference(move) == changed | ({} if deaths == 2 else {"deaths": 0})
    assert move.event is event


async def test_the_pause_before_the_next_attempt_is_a_chance_of_visit_and_attempt() -> None:
    made = Workflow("w")
    made.step("work", initial=True, then="end", retry=Retry(attempts=None, first_delay=100, max_delay=200, factor=1))(
        step
    )
    made.final("end")
    made.check()
    pauses = set()
    for visit, attempt in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)):
        run = replace(begin(made, "k", {}, now=NOW), active={"work": Active(visit, attempt)})
        due = (await decide(made, run, raised(run, OSError("x")), now=NOW)).after.due
        assert due is not None
        pauses.add(due - NOW)
    assert len(pauses) == 6
    assert max(pauses) > 50 > min(pauses)
    assert all(0 <= pause < 100 for pause in pauses)


async def test_an_error_of_which_nothing_is_known_fails_the_run_and_is_not_tried_again() -> None:
    found = difference(await moved(at("work"), Event(name=ERROR, state="work")))
    error = found.pop("error")
    assert (error.type, error.message, error.state, error.visit) == ("RuntimeError", "unknown", "work", 3)
    assert found == {"status": "failed", "owner": None, "due": None}


@pytest.mark.parametrize("error", [OSError("x"), None])
async def test_an_error_of_a_state_without_a_step_fails_the_run(error: Exception | None) -> None:
    """An action that failed for good, and a cycle that comes to no rest, are told so."""
    event = Event(name=ERROR, state="rest", error=error, failure=ERROR_1)
    move = await moved(at("rest", status="waiting", actions=(Action("a", 7),)), event)
    assert difference(move) == {"status": "failed", "error": ERROR_1, "owner": None, "due": None}
    assert move.after.actions == (Action("a", 7),), "it is done when the run goes on"


@pytest.mark.parametrize("due", [LATE, NOW + 9, None])
async def test_a_step_is_tried_again_beside_others_that_run(due: float | None) -> None:
    made = Workflow("w")
    both = made.parallel("both", initial=True, then="end")
    for name in ("one", "two"):
        region = both.region(name)
        region.step("s", initial=True, then="f", retry=Retry(first_delay=10, jitter=False))(step)
        region.final("f")
    made.final("end")
    run = replace(begin(made.check(), "k", {}, now=NOW), due=due)
    move = await decide(made, run, Event(name=ERROR, state="both.one.s", error=OSError("x")), now=NOW)
    assert (move.after.status, move.after.due) == ("running", LATE if due == LATE else NOW)
    assert move.after.active == {**run.active, "both.one.s": Active(0, 2, again=NOW + 10)}


LAST = {"work": Active(3, 3)}


async def test_an_error_for_good_leads_where_on_error_says_with_the_error_as_the_data() -> None:
    run = at("work", active=LAST)
    event = raised(run, OSError("no paper"))
    move = await moved(run, event)
    told = {"type": "OSError", "message": "no paper", "state": "work", "attempt": 3}
    found = difference(move)
    del found["fields"]
    assert found == {"active": fresh("mend"), "actions": (Action("exit work", 8),)}
    assert move.after.data == {"n": 2, "error": told}
    assert (move.event.payload, sorted(move.changes), move.error) == (told, ["error"], None)


async def test_what_updates_on_an_error_is_given_the_error_as_the_payload() -> None:
    run = at("mend")
    after = (await moved(run, raised(run, OSError("x")))).after
    assert (
        after.data["got"] == after.data["error"] == {"type": "OSError", "message": "x", "state": "mend", "attempt": 1}
    )
    assert (after.state, after.status, after.due) == ("rest", "waiting", LATE)


@pytest.mark.parametrize(("left", "status"), [((), "failed"), ((UNDO,), "compensating")])
async def test_an_error_that_leads_into_a_final_state_ends_the_run_for_good(left: Any, status: str) -> None:
    run = at("work", active=LAST, undo=Undoing(left))
    event = raised(run, KeyError("k"))
    move = await moved(run, event)
    after = move.after
    assert (after.state, after.status, after.undo) == ("refused", status, Undoing(left, ends="failed"))
    assert (after.error == event.failure) is (not left)
    assert after.over is (not left)


@pytest.mark.parametrize(
    ("error", "kind", "answers"),
    [(ValueError("v"), "ValueError", [False]), (TypeError("t"), "ZeroDivisionError", [None]), (SystemError("s"),
     "SystemError", [])],
)  # fmt: skip
async def test_where_on_error_leads_nowhere_the_run_fails_and_keeps_its_place(
    error: Exception, kind: str, answers: list[Any]
) -> None:
    run = at("work", active=LAST)
    move = await moved(run, raised(run, error))
    found = difference(move)
    kept = found.pop("error")
    assert found == {"status": "failed", "owner": None, "due": None}
    assert (kept.type, kept.state, kept.attempt, type(move.error).__name__) == (kind, "work", 3, kind)
    assert [seen.answer for seen in move.asked] == answers


# -- ending and undoing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workflow", "left", "changed"),
    [
        (FLOW, (), {"status": "failed", "owner": None, "due": None}),
        (FLOW, (UNDO,), {"status": "compensating", "undo": Undoing((UNDO,), ends="failed"), "due": NOW}),
        (PARKS, (), {"status": "failed", "owner": None, "due": None}),
        (PARKS, (UNDO,), {"status": "parked", "owner": None, "due": None}),
    ],
)
async def test_a_run_that_fails_is_undone_parked_or_left_where_it_is(
    workflow: Workflow, left: Any, changed: dict[str, Any]
) -> None:
    run = at("pick", workflow=workflow, undo=Undoing(left), actions=(Action("a", 7),) if left else ())
    found = difference(await moved(run, Event(name=DONE, state="pick"), workflow))
    found.pop("error")
    found.pop("actions", None)
    assert found == changed


@pytest.mark.parametrize("actions", [(), (Action("exit", 7),)])
@pytest.mark.parametrize(("ends", "status"), [("failed", "failed"), ("cancelled", "cancelled"), (None, "failed")])
async def test_the_last_undoing_ends_the_run_as_it_was_to_end(actions: Any, ends: str | None, status: str) -> None:
    run = at("rest", status="compensating", undo=Undoing((UNDO,), ends=ends), actions=actions)
    event = Event(name=DONE, state="work", changes=Codec().encode({"n": 0}), removed=())
    move = await moved(run, event)
    found = difference(move)
    assert bytes(found.pop("fields")["n"]) == b"0"
    rest = {"due": NOW} if actions else {"due": None, "owner": None}
    assert found == {"status": status, "undo": Undoing((), ends=ends), **rest}
    assert list(move.changes) == ["n"]


async def test_what_is_undone_is_the_youngest_visit_and_may_take_data_away() -> None:
    two = (UNDO, Undo("work", 4), Undo("work", 5))
    run = at("rest", {"n": 2, "x": LARGE}, status="compensating", undo=Undoing(two, ends="failed"))
    run = replace(run, hashes=digests(run.fields))
    move = await moved(run, Event(name=DONE, state="work", changes={}, removed=("x",)))
    assert move.detail == "step work was undone"
    found = difference(move)
    del found["fields"]
    assert found == {"undo": Undoing(two[:-1], ends="failed"), "due": NOW, "hashes": {}}
    assert (dict(move.after.data), move.removed, dict(move.changes)) == ({"n": 2}, ("x",), {})
    assert difference(await moved(run, Event(name=DONE, state="work"))) == {
        "undo": Undoing(two[:-1], ends="failed"),
        "due": NOW,
    }


@pytest.mark.parametrize(
    ("undo", "changed"),
    [
        (Undo("work", 5), {"undo": ((UNDO, Undo("work", 4), Undo("work", 5, 2, NOW + 20)), ()), "due": NOW + 20}),
        (Undo("work", 5, 2, LATE), {"undo": ((UNDO, Undo("work", 4)), (Undo("work", 5, 2, LATE),)), "due": NOW}),
        (Undo("gone", 5), {"undo": ((UNDO, Undo("work", 4)), (Undo("gone", 5),)), "due": NOW}),
    ],
)
async def test_an_undoing_that_raises_is_tried_again_then_lost_and_the_next_is_undone(
    undo: Undo, changed: dict[str, Any]
) -> None:
    run = at("rest", status="compensating", undo=Undoing((UNDO, Undo("work", 4), undo), ends="failed"))
    error = OSError("no line")
    move = await moved(run, Event(name=ERROR, state=undo.state, error=error))
    changed = dict(changed)
    left, lost = changed.pop("undo")
    assert difference(move) == {"undo": Undoing(left, ends="failed", lost=lost), **changed}
    assert move.error is error
    again = f"was not undone at attempt {undo.attempt}"
    assert move.detail == f"step {undo.state} {'could not be undone' if lost else again}"


async def test_the_pauses_between_undoings_are_chances_of_visit_and_attempt() -> None:
    made = Workflow("w")
    made.step(
        "work",
        initial=True,
        then="end",
        compensate=step,
        undo=Retry(attempts=None, first_delay=100, max_delay=200, factor=1),
    )(step)
    made.final("end")
    made.check()
    pauses = set()
    for visit, attempt in ((0, 1), (0, 2), (1, 1), (1, 2)):
        undo = Undoing((Undo("work", visit, attempt),), ends="failed")
        run = replace(begin(made, "k", {}, now=NOW), status="compensating", undo=undo)
        pauses.add((await decide(made, run, Event(name=ERROR, state="work", error=OSError("x")), now=NOW)).after.due)
    assert len(pauses) == 4


# -- steering -------------------------------------------------------------------------------------------------------

FAILED = {"status": "failed", "error": ERROR_1, "due": None, "owner": "me"}
OVER = [
    {"status": "done"},
    {"status": "cancelled"},
    {"status": "failed"},
    {**FAILED, "undo": Undoing((), ends="failed")},
]
UNDOING = {"status": "compensating", "undo": Undoing((UNDO,), ends="failed")}
GONE = {"owner": None, "due": None}
TRIED = {"work": Active(3, 3, again=NOW + 9)}
ANEW = {"work": Active(3, 1)}


@pytest.mark.parametrize(
    ("event", "how", "changed"),
    [
        (CANCEL, {}, {"status": "cancelled", **GONE}),
        (CANCEL, {"status": "waiting"}, {"status": "cancelled", **GONE}),
        (CANCEL, {"status": "paused"}, {"status": "cancelled", **GONE}),
        (CANCEL, FAILED, {"status": "cancelled", "owner": None}),
        (CANCEL, {"status": "parked"}, {"status": "cancelled", **GONE}),
        (CANCEL, {"actions": (Action("a", 7),)}, {"status": "cancelled", "actions": (), **GONE}),
        (CANCEL, {"undo": Undoing((UNDO,))}, {"status": "compensating", "undo": Undoing((UNDO,), "cancelled"),
         "due": NOW}),
        (CANCEL, UNDOING, None),
        (PAUSE, {}, {"status": "paused", "due": None}),
        (PAUSE, {"status": "waiting"}, {"status": "paused", "due": None}),
        (PAUSE, {"status": "paused"}, None),
        (PAUSE, FAILED, None),
        (PAUSE, UNDOING, None),
        (UNPAUSE, {"status": "paused", "due": None}, {"status": "running", "due": NOW}),
        (UNPAUSE, {"status": "paused", "due": None, "active": {"work": Active(3, 2, again=NOW + 9)}},
         {"status": "running", "due": NOW + 9}),
        (UNPAUSE, {}, None),
        (UNPAUSE, FAILED, None),
        (RETRY, FAILED, {"status": "running", "due": NOW}),
        (RETRY, {**FAILED, "active": TRIED, "deaths": 3}, {"status": "running", "due": NOW, "active": ANEW,
         "deaths": 0}),
        (RETRY, {"status": "parked", "due": None}, {"status": "running", "due": NOW}),
        (RETRY, {"status": "parked", "due": None, "deaths": 3, "undo": Undoing((UNDO,), "failed")},
         {"status": "compensating", "due": NOW, "deaths": 0}),
        (RETRY, {}, None),
        (RETRY, {"status": "paused"}, None),
        (RETRY, UNDOING, None),
        *((event, how, None) for event in (CANCEL, PAUSE, UNPAUSE, RETRY) for how in OVER),
    ],
)  # fmt: skip
async def test_a_hand_that_steers_changes_this_and_nothing_else(
    event: str, how: dict[str, Any], changed: dict[str, Any] | None
) -> None:
    run = at("work", **how)
    made = Event(name=event, id="e")
    move = await moved_or_rejected(run, made)
    assert (difference(move), move.answer) == (changed or {}, "rejected" if changed is None else "accepted")
    assert move.event is made
    cancelled = event == CANCEL and changed is not None
    assert move.forget == ((("work", 3),) if cancelled else ())


async def moved_or_rejected(run: Run, event: Event) -> Move:
    """As `moved`, where the run may have ended in this table with an owner, which a rejected event leaves alone."""
    move = await decide(FLOW, run, event, now=NOW)
    if move.answer == "accepted":
        check_move(FLOW, run, event, move)
    else:
        assert (move.before, move.at, move.after.version, move.after.updated) == (run, NOW, 8, NOW)
    return move


BOXED = {"active": fresh("box", "box.in"), "status": "waiting", "due": NOW}


@pytest.mark.parametrize(
    ("state", "how", "changed"),
    [
        ("plain", {}, {"active": fresh("plain"), "due": NOW, "actions": (Action("exit work", 8),)}),
        ("work", {"deaths": 2}, {"active": fresh("work", work={"$after 50": NOW + 50}), "deaths": 0, "due": NOW,
                                 "actions": (Action("exit work", 8),)}),
        ("work", {**FAILED, "due": NOW + 3}, {"active": fresh("work", work={"$after 50": NOW + 50}), "error": None,
                                              "status": "running", "due": NOW, "actions": (Action("exit work", 8),)}),
        ("box", {"due": None},
         {**BOXED, "actions": tuple(Action(n, 8) for n in ("exit work", "enter box", "enter in"))}),
        ("box.out", {}, {"active": fresh("box", "box.out"), "due": NOW,
                         "actions": tuple(Action(n, 8) for n in ("exit work", "enter box"))}),
        ("end", {}, None),
        ("nowhere", {}, None),
        (None, {}, None),
        ("plain", UNDOING, None),
        *(("plain", how, None) for how in OVER),
    ],
)  # fmt: skip
async def test_rerun_is_a_new_visit_of_a_state_that_does_not_end_the_run(
    state: Any, how: dict[str, Any], changed: dict[str, Any] | None
) -> None:
    run, event = at("work", **how), Event(name=RERUN, payload=state, id="e")
    move = await moved_or_rejected(run, event)
    assert (difference(move), move.answer) == (changed or {}, "rejected" if changed is None else "accepted")
    assert (move.event is event, move.forget) == (True, () if changed is None else (("work", 3),))


async def test_a_run_whose_process_died_too_often_is_parked_where_it_is() -> None:
    run = at("work", deaths=3)
    move = await moved(run, Event(name=PARKED, failure=ERROR_1))
    assert difference(move) == {"status": "parked", "error": ERROR_1, "owner": None, "due": None}


# -- children of a state that is none any more ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "said"), [(Event(name="go", id="e"), CANCEL), (Event(name=CANCEL), CANCEL), (Event(name=TIMEOUT), PAUSE)]
)
async def test_children_made_before_a_migration_are_stopped_also_where_no_state_has_children_now(
    event: Event, said: str
) -> None:
    run = at("rest", status="waiting", active={"rest": Active(3, children=2, was="fan")})
    assert (await moved(run, event)).orders == (Order(said, "fan", 3),)


async def test_a_payload_that_is_merged_and_an_update_are_both_known_to_the_region_that_takes_the_event() -> None:
    flow = Workflow("w", payload="merge")
    both = flow.parallel("both", initial=True, on={"end": "end"})
    count = To("s", update=lambda data, event: data.update(n=1), internal=True)
    both.region("a").wait("s", initial=True, on={"set": count})
    both.region("b").wait("s", initial=True, on={"other": count})
    flow.final("end")
    run = begin(flow.check(), "k", Codec().encode({"n": 0}), now=NOW)
    after = (await decide(flow, run, Event(name="set", payload={"q": 2}), now=NOW)).after
    assert {name: after.active[f"both.{name}"].touched for name in ("a", "b")} == {"a": ("n", "q"), "b": ()}


def test_an_error_of_a_state_that_is_not_active_is_told_at_the_version_of_the_run() -> None:
    assert failure(OSError("x"), at("rest"), "nowhere").visit == 7


def test_an_error_is_kept_as_text_that_every_store_takes() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    assert failure(Mute(), at("rest"), "rest").message == ""
    assert failure(OSError("a\0b\ud800"), at("rest"), "rest").message == "a\\0b\\ud800"
    assert failure(OSError("x"), at("rest"), "rest").traceback == "OSError: x\n"


async def test_a_step_out_of_which_nothing_leads_by_itself_fails_the_run_that_ends_it_so() -> None:
    flow = Workflow("w")
    flow.step("work", initial=True, on={"go": "end"})(step)
    flow.final("end")
    run = replace(begin(flow.check(), "k", {}, now=NOW), owner="me")
    move = await decide(flow, run, Event(name=DONE, state="work"), now=NOW)
    assert move.after.status == "failed"
    assert move.after.error.message == "state 'work' ended, and no transition leads on by itself: return a trigger"


async def test_a_large_field_that_a_step_changes_has_a_hash() -> None:
    changes = Codec().encode({"x": LARGE})
    move = await moved(at("plain"), Event(name=DONE, state="plain", changes=changes))
    assert move.after.hashes == digests(changes) != {}
