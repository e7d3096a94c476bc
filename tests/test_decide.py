"""`decide` in tables: a workflow, a run and an event give a move. No store, no clock, no sleep."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import msgspec
import pytest

from fsmworkflow import (
    CodecError,
    Condition,
    ConditionError,
    DefinitionError,
    Event,
    Failure,
    Move,
    NoTransition,
    Retry,
    Run,
    To,
    Transition,
    Workflow,
    WorkflowContext,
    WorkflowDefinition,
    field,
    payload,
)
from fsmworkflow.codec import Codec, decode
from fsmworkflow.decide import begin, decide
from fsmworkflow.due import due_next
from fsmworkflow.failures import failure
from fsmworkflow.records import DONE, ERROR, RETRY, Active, replace
from tests.tables import NOW, check_move


async def nothing(ctx: WorkflowContext) -> None:
    pass


async def told(ctx: Any) -> None:
    pass


def judged(retry: Retry | None = None) -> Workflow:
    """draft -> judge -> (score >= 8) end, (score == 0) refused, (score < 8) draft; and triggers out of judge."""
    made = Workflow("judged", version=3)
    made.step("draft", initial=True, then="judge", retry=retry)(nothing)
    made.step(
        "judge",
        then=[
            (field("score") >= 8, To("end", after=told)),
            (field("score") == 0, "refused"),
            (field("score") < 8, "draft"),
        ],
    )(nothing)
    made.final("end")
    made.final("refused", outcome="failed")
    made.transition("publish", "judge", "end")
    made.transition("recheck", "judge", "judge", field("score") > 5)
    made.transition("stop", "judge", None)
    return made.check()


def at(workflow: Workflow, state: str, data: dict[str, Any] | None = None, **more: Any) -> Run:
    """A run that entered `state` with its fourth move."""
    run = begin(workflow, "k", Codec().encode(data or {}), now=NOW - 100)
    more = {"active": {state: Active(4)}, "version": 4, "owner": "me", "epoch": 2, **more}
    return replace(run, **more)


def done(run: Run, data: dict[str, Any] | None = None, trigger: str | None = None) -> Event:
    changes, removed = ({}, ()) if data is None else Codec().changes(data, run.fields)
    return Event(name=DONE, state=run.state, trigger=trigger, changes=changes, removed=removed)


async def moved(workflow: Workflow, run: Run, event: Event) -> Move:
    """The move, after checking what holds of every move."""
    before = copy.copy(run)
    move = await decide(workflow, run, event, now=NOW)
    assert run == before
    assert move.after.version == run.version + 1
    check_move(workflow, run, event, move)
    return move


def test_a_run_begins_in_the_initial_state_as_visit_0() -> None:
    run = begin(judged(), "k", Codec().encode({"a": 1}), now=NOW)
    assert (run.workflow, run.key, run.state, run.status) == ("judged", "k", "draft", "running")
    assert (run.version, run.visit, run.attempt, run.definition) == (0, 0, 1, 3)
    assert (run.created, run.updated, run.due) == (NOW, NOW, NOW)
    assert run.data == {"a": 1}


def test_the_same_input_has_the_same_fingerprint_and_another_one_another() -> None:
    one, same, other = (
        begin(judged(), key, Codec().encode(d), now=NOW) for key, d in (("a", {"x": 1}), ("b", {"x": 1}), ("c", {}))
    )
    assert one.input == same.input != other.input


# -- a step's end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "data", "trigger", "dest", "status"),
    [
        ("draft", {}, None, "judge", "running"),
        ("judge", {"score": 8}, None, "end", "done"),
        ("judge", {"score": 9.5}, None, "end", "done"),
        ("judge", {"score": 3}, None, "draft", "running"),
        ("judge", {"score": 0}, None, "refused", "failed"),
        ("judge", {"score": 3}, "publish", "end", "done"),
        ("judge", {}, "publish", "end", "done"),
        ("judge", {"score": 6}, "recheck", "judge", "running"),
        ("judge", {"score": 6}, "stop", "judge", "done"),
    ],
)
async def test_a_steps_end_leads_on_by_its_trigger_else_by_the_first_condition_that_holds(
    state: str, data: dict[str, Any], trigger: str | None, dest: str, status: str
) -> None:
    workflow = judged()
    run = at(workflow, state)
    after = (await moved(workflow, run, done(run, data, trigger))).after
    assert (after.state, after.status) == (dest, status)


async def test_entering_a_state_is_a_new_visit_and_ending_where_it_is_is_none() -> None:
    workflow = judged()
    run = at(workflow, "judge", {"score": 6})
    for trigger in ("recheck", "publish"):
        after = (await moved(workflow, run, done(run, trigger=trigger))).after
        assert (after.visit, after.attempt) == (5, 1)
    assert (await moved(workflow, run, done(run, trigger="stop"))).after.visit == 4


async def test_conditions_see_the_data_as_it_would_be_committed() -> None:
    workflow = judged()
    run = at(workflow, "judge", {"score": 3, "old": 1})
    move = await moved(workflow, run, done(run, {"score": 9}))
    assert move.after.state == "end"
    assert move.after.data == {"score": 9}
    assert (set(move.changes), move.removed) == ({"score"}, ("old",))


async def test_every_condition_that_was_asked_stands_in_the_move_with_what_it_saw() -> None:
    workflow = judged()
    run = at(workflow, "judge", {"score": 3})
    asked = (await moved(workflow, run, done(run))).asked
    assert [(one.condition, one.values, one.answer) for one in asked] == [
        ("score >= 8", {"score": "3"}, False), ("score == 0", {"score": "3"}, False),
        ("score < 8", {"score": "3"}, True),
    ]  # fmt: skip


async def test_a_condition_is_asked_once_per_decision_and_only_until_one_holds() -> None:
    asked: list[str] = []

    def guard(name: str, answer: bool) -> Any:
        async def ask(ctx: Any) -> bool:
            asked.append(name)
            return answer

        return ask

    workflow = Workflow("w")
    workflow.step("a", initial=True, then=[(guard("1", False), "x"), (guard("2", True), "y"), (guard("3", True), "x")])(
        nothing
    )
    workflow.final("x", "y")
    workflow.check()
    run = at(workflow, "a")
    assert (await moved(workflow, run, done(run))).after.state == "y"
    assert asked == ["1", "2"]


async def test_a_guard_sees_data_and_run_and_the_state_that_it_leaves() -> None:
    seen: list[Any] = []
    workflow = Workflow("w")
    workflow.step(
        "a", initial=True, then=[(lambda ctx: seen.append((dict(ctx.data), ctx.run.state)) or True, "x"), "x"]
    )(nothing)
    workflow.final("x")
    workflow.check()
    run = at(workflow, "a")
    await moved(workflow, run, done(run, {"n": 1}))
    assert seen == [({"n": 1}, "a")]


async def test_what_a_guard_changes_in_the_data_is_not_kept() -> None:
    workflow = Workflow("w")
    workflow.step("a", initial=True, then=[(lambda ctx: ctx.data.update(n=2) or True, "x"), "x"])(nothing)
    workflow.final("x")
    workflow.check()
    run = at(workflow, "a", {"n": 1})
    assert (await moved(workflow, run, done(run))).after.data == {"n": 1}


async def test_an_ended_run_has_neither_owner_nor_time() -> None:
    workflow = judged()
    run = at(workflow, "judge", {"score": 3})
    after = (await moved(workflow, run, done(run, trigger="publish"))).after
    assert (after.owner, after.due, after.actions) == (None, None, ())


async def test_an_ended_run_with_an_action_is_due_and_owned_until_that_is_done() -> None:
    workflow = judged()
    run = at(workflow, "judge", {"score": 9})
    after = (await moved(workflow, run, done(run))).after
    assert (after.status, after.owner, after.due) == ("done", "me", NOW)
    assert [action.version for action in after.actions] == [5]


async def test_a_run_that_goes_on_stays_owned_and_due() -> None:
    workflow = judged()
    run = at(workflow, "draft")
    after = (await moved(workflow, run, done(run))).after
    assert after.owner == "me"
    assert after.due is not None
    assert after.due <= NOW


async def test_the_move_that_ends_a_visit_takes_its_remembered_calls_along() -> None:
    workflow = judged()
    run = at(workflow, "draft")
    assert (await moved(workflow, run, done(run))).forget == (("draft", 4),)
    assert (await moved(workflow, run, replace(done(run), remembered=False))).forget == ()


# -- nothing leads on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "trigger", "kind", "parts"),
    [
        ({"score": -0.5}, "recheck", "NoTransition", ("score > 5", "-0.5")),
        ({"score": 3}, "publsh", "NoTransition", ("'publsh'", "did you mean 'publish'")),
        ({"score": 3}, "$done", "NoTransition", ("'$done'",)),
        ({"score": 3}, "", "NoTransition", ()),
        ({}, None, "ConditionError", ("score >= 8", "missing")),
        ({"score": "high"}, None, "ConditionError", ("score >= 8", "'high'")),
    ],
)
async def test_where_nothing_leads_on_the_run_fails_and_says_why(
    data: dict[str, Any], trigger: str | None, kind: str, parts: tuple[str, ...]
) -> None:
    workflow = judged()
    run = at(workflow, "judge", {"before": 1})
    move = await moved(workflow, run, done(run, data, trigger))
    assert move.after.status == "failed"
    assert move.after.error is not None
    assert (move.after.error.type, move.after.error.state) == (kind, "judge")
    assert all(part in move.after.error.message for part in parts)
    assert "judge" in move.after.error.message or kind == "ConditionError"


async def test_an_error_lists_each_condition_with_the_values_it_saw() -> None:
    workflow = Workflow("w")
    workflow.step("a", initial=True, then=[(field("x") > 1, "end"), (field("y") == "b", "end")])(nothing)
    workflow.final("end")
    run = at(workflow.check(), "a", {"x": 0, "y": "c"})
    error = (await moved(workflow, run, done(run))).after.error
    assert error is not None
    assert error.code == "no_transition"
    assert "x > 1: False (x = 0)" in error.message
    assert "y == 'b': False (y = 'c')" in error.message


async def test_a_failed_run_keeps_its_place_and_the_data_of_before() -> None:
    workflow = judged()
    run = at(workflow, "judge", {"before": 1}, active={"judge": Active(4, 2)})
    after = (await moved(workflow, run, done(run, {"score": "high"}))).after
    assert (after.state, after.visit, after.attempt, after.data) == ("judge", 4, 2, {"before": 1})
    assert (after.owner, after.due) == (None, None)


async def test_what_a_guard_raises_fails_the_run_with_that_error() -> None:
    workflow = Workflow("w")
    workflow.step("a", initial=True, then=[(lambda ctx: 1 / 0, "end"), "end"])(nothing)
    workflow.final("end")
    run = at(workflow.check(), "a")
    move = await moved(workflow, run, done(run))
    assert move.after.error is not None
    assert move.after.error.type == "ZeroDivisionError"
    assert isinstance(move.error, ZeroDivisionError)


async def test_a_guard_that_is_cancelled_cancels_the_decision() -> None:
    async def slow(ctx: Any) -> bool:
        await asyncio.sleep(60)
        return True

    workflow = Workflow("w")
    workflow.step("a", initial=True, then=[(slow, "end"), "end"])(nothing)
    workflow.final("end")
    run = at(workflow.check(), "a")
    task = asyncio.create_task(decide(workflow, run, done(run), now=NOW))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("kind", ["event", "timer", "error"])
async def test_a_guard_that_cancels_itself_fails_the_run_and_one_that_is_cancelled_passes(kind: str) -> None:
    itself = True

    async def guard(ctx: Any) -> bool:
        if itself:
            raise asyncio.CancelledError
        await asyncio.sleep(60)
        return True

    workflow = Workflow("w")
    leads = [(guard, "end")]
    workflow.wait("a", initial=True, on={"go": leads}, after={5: leads})
    workflow.step("b", then="end", on_error={OSError: leads})(nothing)
    workflow.final("end")
    workflow.add(Transition(trigger="to_b", source="a", dest="b"))
    run = at(workflow.check(), "b" if kind == "error" else "a")
    event = {
        "event": Event(name="go"),
        "timer": Event(name="$timeout", state="a", trigger="$after 5"),
        "error": Event(name="$error", state="b", error=OSError("no")),
    }[kind]
    move = await decide(workflow, run, event, now=NOW)
    assert isinstance(move.error, asyncio.CancelledError)
    assert move.after.status == "failed"
    itself = False
    task = asyncio.create_task(decide(workflow, run, event, now=NOW))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- choices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "dest"), [({"n": 2}, "many"), ({"n": 1}, "one"), ({"n": 0}, None)])
async def test_a_choice_only_chooses_and_fails_where_nothing_holds(data: dict[str, Any], dest: str | None) -> None:
    workflow = Workflow("w")
    workflow.choice("which", [(field("n") > 1, "many"), (field("n") == 1, "one")], initial=True)
    workflow.final("many", "one")
    run = at(workflow.check(), "which", data)
    after = (await moved(workflow, run, Event(name=DONE, state="which"))).after
    assert (after.state, after.status) == (dest or "which", "done" if dest else "failed")


# -- definitions of the first FSM-Workflow ---------------------------------------------------------------------------


def first_style() -> Workflow:
    definition = WorkflowDefinition(
        "w",
        ["a", "b", "c", "d"],
        [
            Transition("up", "a", "b", [Condition("n", "gt", 1)]),
            Transition("on", ["a", "b"], "c"),
            Transition("abort", "*", None),
            Transition("finish", "*", "d", after="mark_completed"),
            Transition("back", "d", "a"),
            Transition("out", "c", None, [Condition("n", "eq", 9)]),
            Transition("go", "c", "d"),
        ],
    )
    return definition.build(dict.fromkeys("abcd", nothing))


@pytest.mark.parametrize(
    ("state", "data", "trigger", "dest", "status"),
    [
        ("a", {"n": 2}, None, "b", "running"),
        ("a", {"n": 1}, None, "c", "running"),
        ("a", {}, None, "c", "running"),  # about a missing field: False
        ("a", {"n": "2"}, None, "c", "running"),  # and of another kind
        ("a", {"n": 2}, "on", "c", "running"),
        ("a", {}, "abort", "a", "done"),
        ("b", {}, "abort", "b", "done"),
        ("b", {}, "finish", "d", "done"),
        ("c", {"n": 9}, None, "c", "done"),
        ("c", {"n": 9}, "go", "d", "running"),
        ("d", {}, None, "d", "done"),  # the last entry ends, whatever its transitions
        ("d", {}, "back", "a", "running"),
        ("a", {}, "go", "a", "failed"),
        ("a", {"n": 1}, "up", "a", "failed"),
    ],
)
async def test_definitions_as_data_move_as_the_first_ones_did(
    state: str, data: dict[str, Any], trigger: str | None, dest: str, status: str
) -> None:
    workflow = first_style()
    run = at(workflow, state, data)
    after = (await moved(workflow, run, done(run, trigger=trigger))).after
    assert (after.state, after.status) == (dest, status)


# -- errors and retries ---------------------------------------------------------------------------------------------


def raised(run: Run, error: BaseException) -> Event:
    return Event(name=ERROR, state=run.state, error=error, failure=failure(error, run, run.state))


async def test_a_step_that_raises_fails_the_run_which_keeps_type_message_traceback_and_attempt() -> None:
    workflow = judged()
    run = at(workflow, "draft", {"n": 1}, active={"draft": Active(4, 2)})
    try:
        raise OSError("no paper")
    except OSError as error:
        move = await moved(workflow, run, raised(run, error))
    after = move.after
    assert (after.status, after.state, after.data, after.owner) == ("failed", "draft", {"n": 1}, None)
    assert isinstance(after.error, Failure)
    assert (after.error.type, after.error.message, after.error.attempt, after.error.visit) == (
        "OSError",
        "no paper",
        2,
        4,
    )
    assert "test_decide.py" in after.error.traceback
    assert after.error.code is None


@pytest.mark.parametrize("message", ["a\0b", "\ud800", "x" * 100_000, ""])
async def test_any_message_can_be_kept(message: str) -> None:
    workflow = judged()
    run = at(workflow, "draft")
    error = (await moved(workflow, run, raised(run, ValueError(message)))).after.error
    assert error is not None
    kept = msgspec.json.decode(msgspec.json.encode(error), type=Failure)
    assert kept == error
    assert "\0" not in kept.message
    assert len(kept.message) <= 20_000


async def test_an_error_whose_text_cannot_be_made_fails_the_run_too() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    workflow = judged()
    run = at(workflow, "draft")
    after = (await moved(workflow, run, raised(run, Mute()))).after
    assert after.status == "failed"
    assert after.error is not None
    assert "Mute" in after.error.type


@pytest.mark.parametrize(
    ("attempt", "status", "next_attempt", "wait"),
    [(1, "running", 2, 10.0), (2, "running", 3, 20.0), (3, "failed", 3, None)],
)
async def test_a_retry_is_the_same_visit_with_the_next_attempt_after_its_pause(
    attempt: int, status: str, next_attempt: int, wait: float | None
) -> None:
    workflow = judged(Retry(attempts=3, first_delay=10, jitter=False))
    run = at(workflow, "draft", active={"draft": Active(4, attempt)})
    after = (await moved(workflow, run, raised(run, OSError("x")))).after
    assert (after.status, after.visit, after.attempt) == (status, 4, next_attempt)
    assert after.due == (None if wait is None else NOW + wait)
    assert after.error is not None


async def test_what_was_remembered_stays_for_the_next_attempt_and_after_a_failure() -> None:
    for retry in (Retry(attempts=3), None):
        workflow = judged(retry)
        run = at(workflow, "draft")
        assert (await moved(workflow, run, raised(run, OSError("x")))).forget == ()


@pytest.mark.parametrize(
    "error", [CodecError("data.x", "no"), ConditionError("no"), NoTransition("no"), KeyboardInterrupt(), SystemExit()]
)
async def test_what_the_same_step_would_meet_again_is_not_tried_again(error: BaseException) -> None:
    workflow = judged(Retry(attempts=3))
    run = at(workflow, "draft")
    assert (await moved(workflow, run, raised(run, error))).after.status == "failed"


async def test_jitter_is_drawn_without_a_source_of_randomness_and_differs_between_runs() -> None:
    workflow = judged(Retry(attempts=3, first_delay=10))
    dues = set()
    for number in range(20):
        run = at(workflow, "draft", key=str(number))
        first = (await moved(workflow, run, raised(run, OSError("x")))).after.due
        assert first == (await moved(workflow, run, raised(run, OSError("x")))).after.due
        assert first is not None
        assert NOW <= first <= NOW + 10
        dues.add(first)
    assert len(dues) == 20


async def test_the_next_success_forgets_the_error() -> None:
    workflow = judged(Retry(attempts=3))
    run = at(workflow, "draft")
    tried = (await moved(workflow, run, raised(run, OSError("x")))).after
    assert (await moved(workflow, tried, done(tried))).after.error is None


async def test_a_failed_run_goes_on_in_the_same_visit_with_attempts_anew() -> None:
    workflow = judged()
    error = Failure("OSError", "no paper")
    run = at(workflow, "draft", {"n": 1}, active={"draft": Active(4, 3)}, status="failed", due=None, error=error)
    after = (await moved(workflow, run, Event(name=RETRY))).after
    assert (after.status, after.state, after.visit, after.attempt, after.data) == ("running", "draft", 4, 1, {"n": 1})
    assert after.due == NOW
    assert after.owner == "me"


def fillable(data: Any = None) -> Workflow:
    """An order that is filled in parts; a parallel state beside it."""

    def take(data: Any, event: Any) -> None:
        data["left"] -= event.payload["qty"]

    flow = Workflow("order", data=data, deadline="30d")
    fill = [(payload("qty") >= field("left"), To("filled", update=take)), To("open", update=take, internal=True)]
    flow.wait("open", initial=True, on={"fill": fill, "prepare": "prepare"}, after={"1h": "filled"})
    prep = flow.parallel("prepare", then="filled")
    for name in ("pay", "pick"):
        region = prep.region(name)
        region.wait("todo", initial=True, on={name: "done"}, enter=nothing)
        region.final("done")
    flow.final("filled")
    return flow


async def test_a_bare_state_is_all_that_a_decision_needs() -> None:
    flow = fillable()
    run = Run.at(flow, "open", {"left": 100})
    assert (run.state, run.status, run.data, run.active["open"].timers) == ("open", "waiting", {"left": 100}, {})
    assert flow.accepts(run) == ["fill", "prepare"]
    assert due_next(flow, run, NOW) is None, "nothing is known of its timers, nor of its deadline"
    move = await decide(flow, run, Event(name="fill", payload={"qty": 40}), now=NOW)
    assert (move.after.state, move.after.data) == ("open", {"left": 60})
    again = Run.at(flow, move.after.state, move.after.data)
    move = await decide(flow, again, Event(name="fill", payload={"qty": 60}), now=NOW)
    assert (move.after.state, move.after.status, move.after.data) == ("filled", "done", {"left": 0})
    assert (Run.at(flow, "filled").status, flow.accepts(Run.at(flow, "filled"))) == ("done", [])


async def test_a_bare_state_whose_time_of_entry_is_known_has_its_timers() -> None:
    flow = fillable()
    run = Run.at(flow, "open", {"left": 1}, since=NOW - 3_600)
    due = due_next(flow, run, NOW)
    assert due is not None
    assert (await decide(flow, run, due, now=NOW)).after.state == "filled"


@pytest.mark.parametrize("state", ["prepare.pay.done, prepare.pick.todo", ["prepare.pay.done", "prepare.pick.todo"]])
async def test_bare_states_of_a_parallel_state_are_named_by_their_leaves(state: Any) -> None:
    flow = fillable()
    run = Run.at(flow, state, key="o-1")
    assert (run.state, run.key, run.actions) == ("prepare.pay.done, prepare.pick.todo", "o-1", ())
    assert list(run.active) == [
        "prepare", "prepare.pay", "prepare.pay.done", "prepare.pick", "prepare.pick.todo"
    ]  # fmt: skip
    assert flow.accepts(run) == ["pick"]
    move = await decide(flow, run, Event(name="pick"), now=NOW)
    assert move.after.state == "prepare.pay.done, prepare.pick.done"
    done = due_next(flow, move.after, NOW)
    assert done is not None
    assert (await decide(flow, move.after, done, now=NOW)).after.state == "filled"


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ("opne", r"there is no state 'opne' \(did you mean 'open'\?\)"),
        ("open, filled", "'open' and 'filled' are never active together"),
        (["prepare.pay.done", "prepare.pay.todo"], "are never active together"),
        ([], "no state"),
    ],
)
def test_a_bare_state_that_cannot_be_is_refused(state: Any, problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        Run.at(fillable(), state)


def test_the_data_of_a_bare_state_fits_the_workflow() -> None:
    import dataclasses

    @dataclasses.dataclass
    class Order:
        left: int

    with pytest.raises(CodecError):
        Run.at(fillable(Order), "open", {"left": "many"})
    run = Run.at(fillable(Order), "open", Order(left=3))
    assert bytes(run.fields["left"]) == b"3"


async def test_decide_alone_drives_a_run_to_its_end() -> None:
    """Stateless use: no store, no engine."""
    workflow = judged()
    run = begin(workflow, "k", Codec().encode({"score": 1}), now=NOW)
    path = []
    while run.status == "running":
        data = {"score": decode(run.fields["score"]) + 4}
        run = (await decide(workflow, run, done(run, data), now=NOW)).after
        path.append(run.state)
    assert path == ["judge", "end"]
    assert run.data == {"score": 9}
