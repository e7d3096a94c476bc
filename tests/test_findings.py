"""What a check finds beside errors: each rule where it speaks, and where it keeps silent."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from examples import approval, article, order, parcel, thumbs, trip
from fsmworkflow import Retry, To, Workflow, field, payload
from fsmworkflow.expressions import Expression
from fsmworkflow.findings import REFUSED, Finding, findings


def nothing(ctx: Any) -> None:
    pass


def maybe(ctx: Any) -> bool:
    return bool(ctx.data)


def flow(then: Any = ((maybe, "other"), "end"), function: Any = nothing, *, data: Any = None, **words: Any) -> Workflow:
    """A workflow of one step that leads somewhere, and its end."""
    made = Workflow("flow", data=data)
    made.step("work", initial=True, then=list(then) if isinstance(then, tuple) else then, **words)(function)
    made.final("end", "other")
    return made


def codes(workflow: Workflow) -> list[tuple[str, str, str]]:
    return [(one.level, one.code, one.state) for one in findings(workflow)]


def shadowed(*ways: Any) -> list[str]:
    made = flow([*((one, "end") for one in ways), "other"])
    return [one.message for one in findings(made) if one.code == "shadowed"]


# -- errors -----------------------------------------------------------------------------------------------------------


def test_what_check_refuses_is_found_as_errors_with_codes_and_states() -> None:
    made = Workflow("wrong")
    made.wait("first", initial=True, on={"go": "end"}, after={"1h": "trap"})
    made.wait("lost", on={"go": "end"})
    made.wait("trap", after={"1h": "trap"})
    made.final("end")
    assert codes(made) == [("error", "unreachable", "lost"), ("error", "no-end", "trap")]
    made = Workflow("worse")
    made.wait("first", initial=True, on={"go": "nowhere"})
    (found,) = findings(made)
    assert (found.level, found.code) == ("error", "definition")
    assert "there is no state 'nowhere'" in found.message


def test_what_only_answers_events_may_have_no_end_and_what_leads_into_such_a_circle_is_told() -> None:
    door = Workflow("door", endless=True)
    door.wait("open", initial=True, on={"close": "closed"})
    door.wait("closed", on={"open": "open"})
    assert [one for one in codes(door) if one[1] == "no-end"] == [("note", "no-end", "")]
    door = Workflow("door", endless=True)
    door.wait("open", initial=True, on={"close": "closed", "break": "broken"})
    door.wait("closed", on={"knock": "closed"})
    door.final("broken")
    assert [one for one in codes(door) if one[1] == "no-end"] == [("warning", "no-end", "closed")]


def test_what_does_not_say_that_it_is_endless_leads_to_an_end() -> None:
    door = Workflow("door")
    door.wait("open", initial=True, on={"close": "closed"})
    door.wait("closed", on={"open": "open"})
    assert codes(door) == [("error", "no-end", "open"), ("error", "no-end", "closed")]


def test_a_circle_in_which_nothing_waits_for_an_event_is_refused() -> None:
    made = Workflow("made", endless=True)
    made.wait("first", initial=True, on={"go": "one", "stop": "end"})
    made.step("one", then="two")(lambda ctx: None)
    made.step("two", then="one")(lambda ctx: None)
    made.final("end")
    assert codes(made) == [("error", "no-end", "one"), ("error", "no-end", "two")]


def test_errors_of_a_childs_workflow_bear_its_name() -> None:
    made, child = Workflow("made"), Workflow("child")
    made.child("pack", child, initial=True, then="end")
    made.final("end")
    assert {one.workflow for one in findings(made)} == {"child"}


@pytest.mark.parametrize(
    "workflow", [approval.leave, article.article, order.order, parcel.parcel, thumbs.album, trip.trip],
    ids=lambda one: str(one.name),
)  # fmt: skip
def test_the_examples_are_free_of_errors_and_shadows(workflow: Workflow) -> None:
    assert {one.code for one in findings(workflow)} <= {"no-timeout"}


# -- shadows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (field("n") >= 3, field("n") >= 8),
        (field("n") > 3, field("n") > 3),
        (field("n") >= 3, field("n") > 3),
        (field("n") < 8, field("n") <= 7),
        (field("n") > 3, field("n") == 4),
        (field("n").in_([1, 2, 3]), field("n") == 2),
        (field("n").in_([1, 2, 3]), field("n").in_([3, 1])),
        (field("n") > 3, (field("n") > 5) & (field("m") == 1)),
        ((field("n") > 3) | (field("m") == 1), field("m") == 1),
        ((field("n") > 3) & (field("m") > 0), (field("m") > 1) & (field("n") > 3)),
        (field("n") > 0, (field("n") > 1) | (field("n") == 7)),
        (field("n") > field("m"), field("n") > field("m")),
        (field("n").is_none(), field("n").is_none()),
        (Expression("n >= 3"), Expression("n >= 8 and m == 1")),
        (Expression("len(a) > 3"), Expression("m == 1 and len(a) > 3")),
        (Expression("event.n in [1, 2]"), Expression("event.n == 2")),
        (field("a.b") > 1, Expression("a.b > 2")),
    ],
)
def test_a_condition_that_holds_only_where_one_before_it_does_is_shadowed(first: Any, later: Any) -> None:
    (said,) = shadowed(first, later)
    assert said == f"[{later}] to end is never taken: [{first}] to end stands before it, and holds whenever it does"


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (field("n") >= 8, field("n") >= 3),
        (field("n") > 3, field("n") >= 3),
        (field("n") > 3, field("m") > 5),
        (field("n") > 3, field("n") < 5),
        (field("n") > 3, field("n") == 3),
        (field("n") == "4", field("n") == 4),
        (field("n") != 4, field("n").is_none()),
        ((field("n") > 3) & (field("m") == 1), field("n") > 5),
        (field("n") > field("m"), field("n") > 5),
        (field("n") > 3, payload("n") > 5),
        (lambda ctx: True, lambda ctx: False),
        (field("n").in_([1, 2]), field("n").in_([2, 3])),
        (field("n") > 3, (field("n") > 5) | (field("m") == 1)),
        (~(field("n") > 3), field("n") > 5),
        (Expression("n >= 8"), Expression("n >= 3")),
        (Expression("not n >= 3"), Expression("n >= 8")),
        (Expression("1 < n < 9"), Expression("n == 10")),
        (Expression("event.n > 1"), Expression("n > 2")),
        (Expression("len(a) > 3"), Expression("len(b) > 3")),
    ],
)
def test_a_condition_that_may_hold_alone_is_not_shadowed(first: Any, later: Any) -> None:
    assert shadowed(first, later) == []


def test_what_follows_an_unconditional_way_or_a_wider_error_is_shadowed() -> None:
    made = flow(on={"go": "end"}, on_error={Exception: "end", ValueError: "other", KeyError: "end"})
    made.transition("go", "work", "other", field("n") > 1)
    made.transition("other", "*", None)
    made.transition("other", "*", "other")
    found = [one.message.partition(" is never")[0] for one in findings(made) if one.code == "shadowed"]
    assert found == ["go [n > 1] to other", "ValueError to other", "KeyError to end", "other to other"]


# -- no end in time ---------------------------------------------------------------------------------------------------


def waiting(**words: Any) -> Workflow:
    made = Workflow("waiting", **words)
    made.step("work", initial=True, then="ask")(nothing)
    return made


def test_a_process_that_waits_without_a_time_out_is_warned_of() -> None:
    made = waiting()
    made.wait("ask", on={"yes": "end", "later": To("ask", internal=True)}, after={"1d": To("ask", internal=True)})
    made.final("end")
    assert codes(made) == [("warning", "no-timeout", "ask")]


def test_a_time_on_it_or_around_it_or_a_deadline_will_do() -> None:
    made = waiting()
    made.wait("ask", on={"yes": "outer"}, after={"1d": "end"})
    outer = made.state("outer", then="end", after={"2d": "end"})
    outer.wait("inner", initial=True, on={"yes": "over"})
    outer.final("over")
    made.final("end")
    assert codes(made) == []
    made = waiting(deadline="30d")
    made.wait("ask", on={"yes": "end"})
    made.final("end")
    assert codes(made) == []


def test_what_only_answers_events_is_meant_to_wait() -> None:
    made = Workflow("entity")
    made.wait("open", initial=True, on={"close": "end"})
    made.final("end")
    assert codes(made) == [("note", "no-timeout", "open")]


def test_a_retry_without_bound_is_warned_of_unless_a_time_ends_it() -> None:
    assert codes(flow(retry=Retry(attempts=None))) == [("warning", "no-bound", "work")]
    assert codes(flow(retry=Retry(attempts=None), after={"1d": "other"})) == []
    assert codes(flow(retry=Retry(attempts=5))) == []
    assert codes(flow(compensate=nothing, undo=Retry(attempts=None))) == [("warning", "no-bound", "work")]


# -- events that nobody takes -----------------------------------------------------------------------------------------


receiver = Workflow("receiver")
receiver.wait("open", initial=True, on={"paid": "end"}, after={"1d": "end"})
receiver.final("end")


def decides(ctx: Any) -> Any:
    def inner() -> str:
        return "not mine"

    if ctx.data["n"] > 1:
        return "aproved"
    return (ctx, "approved") if inner() else "approved" if ctx.data["m"] else "denied"


async def emits(ctx: Any) -> None:
    await ctx.emit(receiver, "key", "payd")
    await ctx.emit(receiver, "key", "paid")
    await ctx.emit("elsewhere", "key", "anything")


def test_a_step_that_returns_what_no_transition_takes_is_warned_of() -> None:
    made = flow(function=decides, on={"approved": "other", "denied": "end"})
    (found,) = findings(made)
    assert (found.level, found.code, found.state) == ("warning", "unhandled", "work")
    assert "may return 'aproved'" in found.message
    assert "did you mean 'approved'?" in found.todo


def test_a_returned_trigger_that_a_state_around_takes_is_none() -> None:
    made = Workflow("made")
    outer = made.state("outer", initial=True, on={"aproved": "end", "approved": "end", "denied": "end"}, then="end")
    outer.step("work", initial=True, then="over")(decides)
    outer.final("over")
    made.final("end")
    assert codes(made) == []


def test_an_event_that_is_emitted_to_who_has_none_of_that_name_is_warned_of() -> None:
    (found,) = findings(flow(function=emits))
    assert found.message == "its step emits 'payd' to 'receiver', which has no such event: the step would fail"
    assert "did you mean 'paid'?" in found.todo


def test_a_choice_takes_no_event() -> None:
    made = flow("pick")
    made.choice("pick", [(field("n") > 1, "end"), "other"])
    made.transition("hurry", "pick", "end")
    made.transition("stop", "*", "end")
    assert codes(made) == [("warning", "unhandled", "pick")]


# -- fields -----------------------------------------------------------------------------------------------------------


@dataclass
class Order:
    qty: int
    score: int | None = None
    note: str = ""


class Struct(msgspec.Struct):
    qty: int
    score: int | None = None


class Strict(TypedDict):
    qty: int


class Loose(Strict, total=False):
    score: int


class Model(pydantic.BaseModel):
    qty: int
    score: int | None = None


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    qty: int


KINDS = [Order, Struct, Loose, Model]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))


def by_attribute(ctx: Any) -> None:
    ctx.data.score = 1


def by_name(ctx: Any) -> None:
    ctx.data["score"] = 1


def by_alias(ctx: Any) -> None:
    data = ctx.data
    data.score = 1


def by_another(ctx: Any) -> None:
    by_attribute(ctx)


def by_update(data: Any, event: Any) -> None:
    data.score = event.payload


@each_kind
def test_a_field_that_nothing_writes_before_it_is_asked_for_is_warned_of(kind: Any) -> None:
    made = flow([(field("score") > 1, "end"), (field("qty") > 1, "end"), "other"], data=kind)
    (found,) = findings(made)
    assert (found.level, found.code, found.state) == ("warning", "unwritten", "work")
    assert "asks for 'score'" in found.message


@each_kind
@pytest.mark.parametrize("function", [by_attribute, by_name, by_alias, by_another, len, lambda ctx: None])
def test_a_field_that_a_step_may_write_is_written(kind: Any, function: Any) -> None:
    assert codes(flow([(field("score") > 1, "end"), "other"], function, data=kind)) == []


def test_what_is_written_on_one_way_reaches_all_that_follow() -> None:
    made = Workflow("long", data=Order)
    made.step("first", initial=True, then="outer")(nothing)
    outer = made.state("outer", then="last", after={"1d": "last"})
    outer.wait("inner", initial=True, on={"scored": To("over", update=by_update)})
    outer.final("over")
    made.step("last", then=[(field("score") > 1, "end"), "end"])(nothing)
    made.final("end")
    assert codes(made) == []


def test_what_is_only_written_afterwards_is_not_written_before() -> None:
    made = Workflow("late", data=Order)
    made.step("first", initial=True, then=[(field("score") > 1, "end"), "after"])(nothing)
    made.step("after", then="end")(by_attribute)
    made.final("end")
    assert codes(made) == [("warning", "unwritten", "first")]
    made = Workflow("again", data=Order)
    made.step("first", initial=True, then=[(field("score") > 1, "end"), "after"])(nothing)
    made.step("after", then="first")(by_attribute)
    made.final("end")
    assert codes(made) == []


def test_a_payload_that_is_merged_and_what_children_leave_may_be_anything() -> None:
    made = Workflow("merged", data=Order, payload="merge", deadline="1d")
    made.wait("ask", initial=True, on={"go": [(field("score") > 1, "end")]})
    made.final("end")
    assert codes(made) == []
    made = Workflow("family", data=Order)
    made.child("ask", receiver, into="score", initial=True, then=[(field("score") > 1, "end"), "end"])
    made.final("end")
    assert codes(made) == []


@each_kind
def test_a_field_that_the_data_does_not_have_is_an_error(kind: Any) -> None:
    (found,) = findings(flow([(field("scoer.deep") > 1, "end"), "other"], data=kind))
    assert (found.level, found.code, found.state) == ("error", "unknown-field", "work")
    assert "did you mean 'score'?" in found.todo


@each_kind
def test_the_list_that_children_are_made_of_is_asked_for_too(kind: Any) -> None:
    made = Workflow("family", data=kind)
    made.each("all", receiver, over="score", initial=True, then="end")
    made.final("end")
    assert codes(made) == [("warning", "unwritten", "all")]
    made = Workflow("family", data=kind)
    made.each("all", receiver, over=field("scores"), initial=True, then="end")
    made.final("end")
    assert codes(made) == [("error", "unknown-field", "all")]


def test_of_data_that_may_have_any_field_nothing_is_said() -> None:
    made = [flow([(field("any") > 1, "end"), "other"], data=kind) for kind in (None, dict, Open)]
    assert [findings(one) for one in made] == [[], [], []]


# -- all of them ------------------------------------------------------------------------------------------------------


def test_findings_come_in_the_order_of_the_states_and_are_records() -> None:
    made = waiting()
    made.wait("ask", on={"yes": "again"})
    made.step("again", then="end", retry=Retry(attempts=None))(nothing)
    made.final("end")
    found = findings(made)
    assert [one.state for one in found] == ["ask", "again"]
    assert found[0] == Finding(
        "warning", "no-timeout", "waiting", "ask", "it waits for an event without a time-out",
        "give it, or a state around it, after={...}, or the workflow a deadline",
    )  # fmt: skip
    assert all(one.todo for one in found)


def test_every_code_is_in_the_documentation() -> None:
    page = Path(__file__).parent.parent / "docs" / "checks.md"
    told = set(re.findall(r"^\| [a-z, ]+ \| `([a-z-]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE))
    source = (Path(__file__).parent.parent / "fsmworkflow" / "findings.py").read_text(encoding="utf-8")
    said = set(re.findall(r'Finding\([^,]+, "([a-z-]+)"', source)) | {*REFUSED.values(), "definition"}
    assert told == said


def spent_on(many: int) -> float:
    """Seconds of this process's own that a workflow of so many states takes."""
    made = Workflow("large", data=Order)
    for number in range(many):
        ways = [(field("score") > number, f"s{number + 1}"), (field("qty") > 1, f"s{many}")]
        made.wait(f"s{number}", initial=number == 0, on={f"go{number}": ways, "stop": f"s{many}"})
    made.final(f"s{many}")
    made.check()
    began = time.process_time()
    assert len(findings(made)) == 2 * many
    return time.process_time() - began


def test_ten_thousand_states_are_looked_through_in_a_time_that_grows_as_they_do() -> None:
    spent = spent_on(10_000)
    assert spent < 2.0
    assert spent < 60 * spent_on(1_000), "ten times as many, each with every other, take a hundred times"
