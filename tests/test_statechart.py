"""Structure, events, time and undoing, in tables over `decide`: no store, no clock but a number, no sleep.

Tests named W3C follow the numbered tests of "SCXML Implementation Report" (W3C, 2015): the facts, written anew. Which
hold here, and which do not apply, is in docs/scxml.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from fsmworkflow import MergeConflict, NoTransition, Retry, Run, To, Transition, Workflow, field, payload
from fsmworkflow.codec import Codec
from fsmworkflow.decide import begin, decide
from fsmworkflow.due import due_next
from fsmworkflow.errors import DeadlineExceeded, NotAccepted
from fsmworkflow.failures import failure
from fsmworkflow.records import CANCEL, DONE, ERROR, PARKED, PAUSE, RERUN, RETRY, UNPAUSE, Event, Move, replace
from tests.tables import NOW, check_move

DAY = 86_400.0


async def nothing(ctx: Any) -> None:
    pass


def hook(name: str) -> Any:
    """An action of that name."""

    async def action(ctx: Any) -> None:
        pass

    action.__qualname__ = name
    return action


ACT = hook("act")


class Play:
    """A run moved by hand. After each event it takes what the run itself has due, as a drive does."""

    def __init__(self, workflow: Workflow, data: dict[str, Any] | None = None) -> None:
        self.workflow = workflow.check()
        self.now = NOW
        self.run: Run = replace(begin(workflow, "k", Codec().encode(data or {}), now=NOW), owner="me", epoch=1)
        self.moves: list[Move] = []

    @property
    def state(self) -> str:
        return self.run.state

    @property
    def data(self) -> dict[str, Any]:
        return dict(self.run.data)

    @property
    def timers(self) -> dict[str, dict[str, float]]:
        """The timers of each active state: after how many seconds from the beginning each is due."""
        return {s: {n: due - NOW for n, due in a.timers.items()} for s, a in self.run.active.items() if a.timers}

    @property
    def acted(self) -> list[str]:
        """The actions named by the moves of the last event."""
        return [action.name for move in self.moves for action in move.after.actions]

    async def take(self, event: Event) -> Move:
        self.moves = []
        move = await self._one(event)
        await self.settle()
        return move

    async def _one(self, event: Event) -> Move:
        before = self.run
        move = await decide(self.workflow, before, event, now=self.now)
        check_move(self.workflow, before, event, move, now=self.now)
        if move.after is not move.before:
            assert move.after.version == before.version + 1
            assert list(move.after.active) == sorted(move.after.active, key=self.workflow.chart.order.__getitem__)
            self.moves.append(move)
            self.run = move.after
        return move

    async def settle(self) -> None:
        asked: int | None = None
        while (event := due_next(self.workflow, self.run, self.now, asked=asked)) is not None:
            if (
                (await self._one(event)).after is not self.run
                or self.run.version == asked
                or self.moves[-1].event is not event
            ):
                asked = self.run.version

    async def send(self, name: str, data: Any = None) -> Move:
        return await self.take(Event(name=name, payload=data, id="e", number=1))

    async def done(self, state: str, base: Run | None = None, trigger: str | None = None, **changes: Any) -> Move:
        """The step of a state ends, which began when the run was `base`, and changed this."""
        seen = (base or self.run).fields
        written, removed = Codec().changes({**dict((base or self.run).data), **changes}, seen)
        return await self.take(
            Event(name=DONE, state=state, trigger=trigger, changes=written, removed=removed, base=seen)
        )

    async def error(self, state: str, error: BaseException) -> Move:
        found = failure(error, self.run, state)
        return await self.take(Event(name=ERROR, state=state, error=error, failure=found))

    async def turn(self, by: float) -> None:
        self.now += by
        self.moves = []
        await self.settle()


def nested() -> Workflow:
    """outer(a, b(b1, b2)) and other(c), all with hooks: >x enters x, <x leaves it."""
    flow = Workflow("nested")

    def hooks(path: str) -> dict[str, Any]:
        return {"enter": hook(f">{path}"), "exit": hook(f"<{path}")}

    outer = flow.state("outer", initial=True, on={"out": "other", "again": "outer"}, **hooks("outer"))
    outer.wait("a", initial=True, on={"in": "b.b2", "into": "b", "self": "a", "up": "outer"}, **hooks("a"))
    b = outer.state("b", **hooks("b"))
    b.wait("b1", initial=True, on={"next": To("b2", after=ACT), "over": "a"}, **hooks("b1"))
    b.wait("b2", on={"away": To("other.c", after=ACT), "stop": "end"}, **hooks("b2"))
    other = flow.state("other", on={"back": "outer"}, **hooks("other"))
    other.wait("c", initial=True, on={"stop": "end"}, **hooks("c"))
    flow.final("end")
    return flow.check()


def regions(**more: Any) -> Workflow:
    """both(one(x1, x2, fx) | two(y1, y2, fy)) -> end."""
    flow = Workflow("regions", **more)
    both = flow.parallel("both", initial=True, then="end", on={"quit": "gone", "each": "gone"}, exit=hook("<both"))
    one, two = both.region("one"), both.region("two")
    one.wait("x1", initial=True, on={"go": To("x2", after=hook("ax")), "x": "fx"}, exit=hook("<x1"))
    one.wait("x2", on={"go": "fx", "x": "fx"}, enter=hook(">x2"))
    one.final("fx")
    two.wait("y1", initial=True, on={"go": To("y2", after=hook("ay")), "y": "fy", "each": "y2"}, exit=hook("<y1"))
    two.wait("y2", on={"y": "fy", "far": "one.x2"}, enter=hook(">y2"))
    two.final("fy")
    flow.final("end", "gone")
    return flow.check()


# -- what is left and what is entered -------------------------------------------------------------------------------

LEFT_AND_ENTERED = [
    ([], "next", None),
    (["in"], "away", "<b2 <b <outer act >other >c"),
    ([], "in", "<a >b >b2"),
    ([], "into", "<a >b >b1"),
    (["into"], "next", "<b1 act >b2"),
    (["into"], "over", "<b1 <b >a"),
    ([], "self", "<a >a"),
    ([], "up", "<a <outer >outer >a"),
    ([], "again", "<a <outer >outer >a"),
    (["in"], "again", "<b2 <b <outer >outer >a"),
    ([], "out", "<a <outer >other >c"),
    (["in"], "out", "<b2 <b <outer >other >c"),
    (["out"], "back", "<c <other >outer >a"),
    (["in"], "stop", "<b2 <b <outer"),
]


@pytest.mark.parametrize(("before", "event", "acted"), LEFT_AND_ENTERED)
async def test_a_transition_leaves_from_inside_out_acts_and_enters_from_outside_in(
    before: list[str], event: str, acted: str | None
) -> None:
    play = Play(nested())
    for name in before:
        await play.send(name)
    if acted is None:
        with pytest.raises(NotAccepted, match=r"takes .*, and not"):
            await play.send(event)
    else:
        await play.send(event)
        assert play.acted == acted.split()


def test_a_run_begins_with_the_entry_of_what_is_around_its_first_state() -> None:
    play = Play(nested())
    assert (play.state, list(play.run.active)) == ("outer.a", ["outer", "outer.a"])
    assert [action.name for action in play.run.actions] == [">outer", ">a"]


async def test_what_stays_active_keeps_its_visit_and_what_is_entered_begins_one() -> None:
    play = Play(nested())
    await play.send("in")
    assert {state: stay.visit for state, stay in play.run.active.items()} == {"outer": 0, "outer.b": 1, "outer.b.b2": 1}
    await play.send("again")
    assert {state: stay.visit for state, stay in play.run.active.items()} == {"outer": 2, "outer.a": 2}


async def test_the_calls_of_what_is_left_are_forgotten_and_of_no_other() -> None:
    play = Play(regions())
    move = await play.send("x")
    assert move.forget == (("both.one.x1", 0),)


async def test_a_target_is_looked_up_beside_its_state_then_around_it_then_inside() -> None:
    flow = Workflow("names")
    flow.wait("a", initial=True, on={"go": "outer", "deep": "outer.b.a"})
    outer = flow.state("outer", on={"inside": "b"})
    outer.wait("start", initial=True, on={"beside": "a", "around": "end"})
    outer.wait("a", on={"beside": "b"})
    b = outer.state("b")
    b.wait("a", initial=True, on={"around": "start", "far": "outer.a", "end": "end"})
    flow.final("end")
    for names, state in {
        "go beside": "outer.a",
        "go around": "end",
        "go beside beside": "outer.b.a",
        "go inside": "outer.b.a",
        "deep": "outer.b.a",
        "deep around": "outer.start",
        "deep far": "outer.a",
        "deep end": "end",
    }.items():
        play = Play(flow)
        for name in names.split():
            await play.send(name)
        assert play.state == state, names


# -- facts of the W3C's tests ---------------------------------------------------------------------------------------


async def test_W3C_364_413_a_state_is_entered_with_its_initial_state_down_to_a_leaf() -> None:
    flow = Workflow("f")
    one = flow.state("one", initial=True)
    one.wait("no", on={"x": "end"})
    two = one.state("two", initial=True)
    three = two.parallel("three", initial=True, on={"no": "one.no"})
    for name in ("p", "q"):
        three.region(name).wait("leaf", initial=True, on={"x": "end"})
    flow.final("end")
    assert Play(flow).state == "one.two.three.p.leaf, one.two.three.q.leaf"


async def test_W3C_372_416_a_state_whose_final_state_is_entered_leads_on_after_the_entry() -> None:
    flow = Workflow("f")
    one = flow.state("one", initial=True, then="end", exit=hook("<one"))
    one.wait("a", initial=True, on={"go": To("f", after=ACT)}, exit=hook("<a"))
    one.final("f")
    flow.final("end")
    play = Play(flow)
    await play.send("go")
    assert play.acted == ["<a", "act", "<one"]
    assert [move.after.state for move in play.moves] == ["one.f", "end"]
    assert play.run.status == "done"


async def test_W3C_407_409_what_is_left_is_no_longer_active_and_its_exit_is_done() -> None:
    play = Play(nested())
    await play.send("in")
    await play.send("out")
    assert list(play.run.active) == ["other", "other.c"]
    assert play.acted == ["<b2", "<b", "<outer", ">other", ">c"]


async def test_W3C_403a_inner_comes_before_outer_and_where_it_does_not_hold_outer_is_asked() -> None:
    flow = Workflow("f")
    one = flow.state("one", initial=True, on={"go": "outer"})
    one.wait("a", initial=True, on={"go": [(field("n") > 1, "inner")]})
    flow.final("inner", "outer")
    for n, end in ((1, "outer"), (2, "inner")):
        play = Play(flow, {"n": n})
        move = await play.send("go")
        assert play.state == end
        assert [seen.answer for seen in move.asked] == [n == 2]


async def test_W3C_403b_an_outer_transition_that_several_leaves_select_is_taken_once() -> None:
    flow = Workflow("f")
    counted = To("both", update=lambda data, event: data.update(n=data["n"] + 1), internal=True)
    both = flow.parallel("both", initial=True, on={"count": [(field("n") < 9, counted)], "end": "end"})
    for name in ("one", "two", "three"):
        both.region(name).wait("w", initial=True, on={"end": "end"})
    flow.final("end")
    play = Play(flow, {"n": 0})
    move = await play.send("count")
    assert play.data == {"n": 1}
    assert len(move.asked) == 1


async def test_W3C_403c_of_two_that_leave_the_same_the_inner_is_taken_else_the_earlier() -> None:
    play = Play(regions())
    await play.send("each")  # inner in region two, and of the parallel state for region one
    assert play.state == "both.one.x1, both.two.y2"
    flow = Workflow("f")
    both = flow.parallel("both", initial=True)
    for name in ("one", "two"):
        both.region(name).wait("w", initial=True, on={"go": f"end_{name}"})
    flow.final("end_one", "end_two")
    play = Play(flow)
    await play.send("go")
    assert play.state == "end_one"


async def test_W3C_404_405_406_regions_leave_in_reverse_order_then_act_then_enter_in_document_order() -> None:
    play = Play(regions())
    move = await play.send("go")
    assert len(play.moves) == 1, "one event, several regions, one move"
    assert play.acted == ["<y1", "<x1", "ax", "ay", ">x2", ">y2"]
    assert move.after.state == "both.one.x2, both.two.y2"


async def test_W3C_415_a_final_state_of_the_workflow_ends_the_run() -> None:
    play = Play(nested())
    await play.send("out")
    await play.send("stop")
    assert (play.run.status, play.run.due, play.run.over) == ("done", play.now, True)  # due for its exits
    with pytest.raises(NotAccepted, match=r"takes nothing, and not 'back'$"):
        await play.send("back")


async def test_W3C_417_570_a_parallel_state_is_complete_when_each_region_is_in_a_final_state() -> None:
    play = Play(regions())
    await play.send("x")
    assert (play.state, play.run.status) == ("both.one.fx, both.two.y1", "waiting")
    await play.send("y")
    assert [move.after.state for move in play.moves] == ["both.one.fx, both.two.fy", "end"]
    assert play.moves[-1].event == Event(name=DONE, state="both")


async def test_W3C_419_what_leads_on_by_itself_comes_before_events() -> None:
    flow = Workflow("f")
    flow.wait("a", initial=True, on={"go": To("b", update=lambda data, event: data.update(n=1))})
    flow.wait("b", on={"go": "wrong"}, then=[(field("n") == 1, "end")])
    flow.final("end", "wrong")
    play = Play(flow)
    await play.send("go")
    assert play.state == "end"


async def test_W3C_503_a_transition_that_is_internal_leaves_and_enters_nothing() -> None:
    flow = Workflow("f")
    flow.wait(
        "a",
        initial=True,
        on={"note": To("a", internal=True, after=ACT), "end": "end"},
        after={"1h": "end"},
        enter=hook(">a"),
        exit=hook("<a"),
    )
    flow.final("end")
    play = Play(flow)
    play.now += 60
    move = await play.send("note")
    assert play.acted == ["act"]
    assert (play.run.visit, play.run.version, move.forget) == (0, 1, ())
    assert play.timers == {"a": {"$after 3600": 3600.0}}


async def test_W3C_504_leading_into_another_region_leaves_the_whole_parallel_state() -> None:
    play = Play(regions())
    await play.send("go")
    await play.send("x")
    assert play.state == "both.one.fx, both.two.y2"
    await play.send("far")
    assert play.acted == ["<both", ">x2"]
    assert play.state == "both.one.x2, both.two.y1"
    assert {stay.visit for stay in play.run.active.values()} == {play.run.version}


async def test_a_transition_to_its_own_state_leaves_and_enters_it() -> None:
    play = Play(nested())
    move = await play.send("self")
    assert play.acted == ["<a", ">a"]
    assert play.run.active["outer.a"].visit == 1
    assert move.forget == (("outer.a", 0),)


async def test_W3C_576_a_target_in_a_region_enters_the_other_regions_by_their_initial_states() -> None:
    flow = Workflow("f")
    flow.wait("start", initial=True, on={"go": "both.two.late", "plain": "both"})
    both = flow.parallel("both", on={"x": "end"})
    one, two = both.region("one"), both.region("two")
    one.wait("w", initial=True, on={"x": "end"})
    two.wait("early", initial=True, on={"x": "late"})
    two.wait("late", on={"x": "early"})
    flow.final("end")
    play = Play(flow)
    await play.send("go")
    assert play.state == "both.one.w, both.two.late"


async def test_W3C_187_a_timer_dies_with_its_run() -> None:
    flow = Workflow("f")
    flow.wait("a", initial=True, on={"go": "end"}, after={"1h": "late"})
    flow.final("end", "late")
    play = Play(flow)
    await play.send("go")
    await play.turn(DAY)
    assert (play.state, play.run.due) == ("end", None)


# -- events ---------------------------------------------------------------------------------------------------------


def order() -> Workflow:
    def take(data: Any, event: Event) -> None:
        data["left"] -= event.payload["qty"]

    flow = Workflow("order")
    flow.wait(
        "open",
        initial=True,
        on={
            "fill": [
                (payload("qty") <= 0, "refused"),
                (payload("qty") == field("left"), To("filled", update=take)),
                (payload("qty") < field("left"), To("open", update=take, internal=True)),
            ],
            "replace": To("open", update=lambda data, event: {"left": event.payload, "new": True}),
            "break": To("open", update=lambda data, event: {"left": object()}),
            "pay": To("open", update=lambda data, event: {"left": event.payload["price"]}),
        },
    )
    flow.final("filled", "refused")
    return flow.check()


@pytest.mark.parametrize(
    ("event", "told", "state", "data", "status"),
    [
        ("fill", {"qty": 4}, "open", {"left": 6}, "waiting"),
        ("fill", {"qty": 10}, "filled", {"left": 0}, "done"),
        ("fill", {"qty": -1}, "refused", {"left": 10}, "done"),
        ("replace", 3, "open", {"left": 3, "new": True}, "waiting"),
    ],
)
async def test_an_event_chooses_by_its_payload_and_changes_the_data(
    event: str, told: Any, state: str, data: dict[str, Any], status: str
) -> None:
    play = Play(order(), {"left": 10})
    move = await play.send(event, told)
    assert (play.state, play.data, play.run.status, move.answer) == (state, data, status, "accepted")


async def test_an_update_that_returns_data_drops_what_it_leaves_out() -> None:
    play = Play(order(), {"left": 10, "old": 1})
    move = await play.send("replace", 3)
    assert (set(move.changes), move.removed) == ({"left", "new"}, ("old",))


async def test_an_event_that_no_condition_lets_through_is_rejected_with_what_each_saw() -> None:
    play = Play(order(), {"left": 10})
    move = await play.send("fill", {"qty": 11})
    assert (move.answer, play.run.version, play.run.visit, play.data) == ("rejected", 1, 0, {"left": 10})
    assert play.run.status == "waiting"
    assert [(one.answer, sorted(map(str, one.values.values()))) for one in move.asked] == [
        (False, ["11"]),
        (False, ["10", "11"]),
        (False, ["10", "11"]),
    ]


async def test_an_event_that_nothing_takes_is_not_accepted_and_told_what_is() -> None:
    with pytest.raises(NotAccepted, match="takes fill, replace, break, pay, and not 'nothing_of_this'"):
        await Play(order(), {"left": 1}).send("nothing_of_this")


@pytest.mark.parametrize(("event", "error"), [("break", "CodecError"), ("pay", "KeyError: 'price'")])
async def test_an_event_whose_update_raises_is_rejected_and_the_run_stays(event: str, error: str) -> None:
    play = Play(order(), {"left": 10})
    move = await play.send(event, {"prise": 1})
    assert (move.answer, play.run.status, play.state, play.data) == ("rejected", "waiting", "open", {"left": 10})
    assert error in (move.asked[-1].error or "")
    assert (await play.send("fill", {"qty": 10})).answer == "accepted", "later events are taken as ever"


async def test_an_event_about_which_a_condition_has_no_answer_is_rejected_and_the_run_stays() -> None:
    play = Play(order(), {"left": 10})
    move = await play.send("fill", {"qty": "x"})
    assert (move.answer, play.run.status, play.state, play.data) == ("rejected", "waiting", "open", {"left": 10})
    assert [(seen.answer, seen.error is not None) for seen in move.asked] == [(None, True)]
    assert (await play.send("fill", {"qty": 10})).answer == "accepted", "later events are taken as ever"


async def test_a_payload_is_merged_before_conditions_and_updates_and_not_where_it_is_rejected() -> None:
    flow = Workflow("f", payload="merge")
    flow.wait("a", initial=True, on={"set": [(field("n") > 5, To("a", update=lambda d, e: d.update(m=d["n"] * 2)))]})
    flow.wait("b")
    flow.transition("end", "a", "b")
    flow.transition("end", "b", None)
    play = Play(flow)
    await play.send("set", {"n": 6, "by": "ann"})
    assert play.data == {"n": 6, "by": "ann", "m": 12}
    assert (await play.send("set", {"n": 1})).answer == "rejected"
    assert play.data["n"] == 6


async def test_an_update_on_the_way_out_of_a_step_is_in_the_steps_own_move() -> None:
    flow = Workflow("f")
    flow.step("a", initial=True, then=To("end", update=lambda data, event: data.update(n=data["n"] + 1)))(nothing)
    flow.final("end")
    play = Play(flow)
    await play.done("a", n=1)
    assert play.data == {"n": 2}


async def test_a_function_of_data_and_event_may_be_a_condition_sync_or_async() -> None:
    async def late(ctx: Any) -> bool:
        return bool(ctx.event.payload > 1 and ctx.data["n"] == 1)

    flow = Workflow("f")
    flow.wait("a", initial=True, on={"go": [(lambda ctx: ctx.event.payload > 5, "far"), (late, "near")]})
    flow.final("far", "near")
    for told, state in ((6, "far"), (2, "near"), (1, "a")):
        play = Play(flow, {"n": 1})
        await play.send("go", told)
        assert play.state == state


async def test_workflow_accepts_lists_the_events_of_all_active_states() -> None:
    play = Play(regions())
    assert sorted(play.workflow.accepts(play.run)) == ["each", "go", "quit", "x", "y"]
    await play.send("go")
    assert sorted(play.workflow.accepts(play.run)) == ["each", "far", "go", "quit", "x", "y"]


# -- time -----------------------------------------------------------------------------------------------------------


def timed() -> Workflow:
    flow = Workflow("timed")
    outer = flow.state("outer", initial=True, after={"1d": "late"}, on={"restart": "outer"})
    outer.wait(
        "a",
        initial=True,
        on={"go": "b"},
        after={"30m": To("a", internal=True, update=lambda d, e: d.update(told=1)), "PT2H": "b"},
    )
    outer.wait("b", on={"back": "a"}, after={"10m": [(field("told") == 2, "late")]})
    flow.final("late")
    return flow.check()


async def test_timers_start_on_entry_and_the_first_is_when_the_run_is_due() -> None:
    play = Play(timed())
    assert play.timers == {"outer": {"$after 86400": DAY}, "outer.a": {"$after 1800": 1800.0, "$after 7200": 7200.0}}
    assert (play.run.status, play.run.due) == ("waiting", NOW + 1800)


async def test_a_timer_strikes_once_and_an_internal_one_lets_the_others_run_on() -> None:
    play = Play(timed())
    await play.turn(1799)
    assert play.moves == []
    await play.turn(1)
    assert (play.data, play.run.visit) == ({"told": 1}, 0)
    assert play.timers["outer.a"] == {"$after 7200": 7200.0}
    assert play.run.due == NOW + 7200
    await play.turn(5400)
    assert play.state == "outer.b"


async def test_timers_die_with_the_visit_of_their_state_and_those_around_it_run_on() -> None:
    play = Play(timed())
    play.now += 60
    await play.send("go")
    assert play.timers == {"outer": {"$after 86400": DAY}, "outer.b": {"$after 600": 660.0}}
    await play.send("back")
    assert play.timers["outer.a"] == {"$after 1800": 1860.0, "$after 7200": 7260.0}
    await play.send("restart")
    assert play.timers["outer"] == {"$after 86400": DAY + 60}


async def test_a_timer_whose_condition_does_not_hold_is_spent() -> None:
    play = Play(timed())
    await play.send("go")
    await play.turn(600)
    assert (play.state, play.moves[-1].answer, len(play.moves)) == ("outer.b", "rejected", 1)
    assert play.timers == {"outer": {"$after 86400": DAY}}
    assert play.run.due == NOW + DAY


async def test_times_that_have_come_meanwhile_strike_late_in_their_order() -> None:
    play = Play(timed())
    await play.turn(2 * DAY)
    assert [move.event.trigger for move in play.moves] == ["$after 1800", "$after 7200", "$after 86400"]
    assert play.state == "late"


async def test_a_deadline_fails_the_run_wherever_it_is_and_retry_lets_it_go_on_without_one() -> None:
    flow = Workflow("f", deadline="1h")
    flow.wait("a", initial=True, on={"go": "end"})
    flow.final("end")
    play = Play(flow)
    assert play.run.due == NOW + 3600
    await play.turn(3600)
    assert play.run.status == "failed"
    assert isinstance(play.moves[-1].error, DeadlineExceeded)
    await play.take(Event(name=RETRY))
    assert (play.run.status, play.run.due) == ("waiting", None)


async def test_a_transition_with_a_delay_is_a_timer_of_its_source() -> None:
    flow = Workflow("f")
    flow.wait("a", initial=True, on={"go": "end"})
    flow.final("end", "late")
    flow.add(Transition(source="a", dest="late", delay="24h"))
    assert Play(flow).timers == {"a": {"$after 86400": DAY}}


# -- steps beside each other ----------------------------------------------------------------------------------------


def beside(merge: Any = None) -> Workflow:
    flow = Workflow("beside", merge=merge)
    both = flow.parallel("both", initial=True, then="end", on={"again": "both"})
    for name in ("one", "two"):
        region = both.region(name)
        region.step("s", initial=True, then="t")(nothing)
        region.step("t", then="f")(nothing)
        region.final("f")
    flow.final("end")
    return flow.check()


async def test_regions_end_one_after_the_other_and_each_writes_only_what_it_changed() -> None:
    play = Play(beside(), {"n": 1})
    base = play.run
    await play.done("both.two.s", base, two=2)
    await play.done("both.one.s", base, one=1)
    assert (play.state, play.data) == ("both.one.t, both.two.t", {"n": 1, "two": 2, "one": 1})
    await play.done("both.one.t")
    await play.done("both.two.t")
    assert (play.state, play.run.status) == ("end", "done")


async def test_a_key_changed_by_two_regions_is_a_conflict_whatever_the_timing() -> None:
    for late in (False, True):
        play = Play(beside())
        base = play.run
        await play.done("both.one.s", base, n=1)
        move = await play.done("both.two.s", play.run if late else base, n=2)
        assert isinstance(move.error, MergeConflict)
        assert (play.run.status, play.data) == ("failed", {"n": 1})


def with_events(payload: Any = None) -> Workflow:
    """Two regions: one waits for events that change the data, the steps of the other change it too."""

    def mark(data: Any, event: Any) -> None:
        data["n"] = 1

    flow = Workflow("events", payload=payload)
    both = flow.parallel("both", initial=True, then="end")
    one, two = both.region("one"), both.region("two")
    here = {"set": To("w", update=mark, internal=True), "put": To("w", internal=True), "both": "v"}
    one.wait("w", initial=True, on=here, after={5: To("v", update=mark)})
    one.wait("v", on={"go": "f"})
    two.step("s", initial=True, then="f", on={"both": "t"})(nothing)
    two.step("t", then="f")(nothing)
    one.final("f")
    two.final("f")
    flow.final("end")
    return flow.check()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("way", ["update", "payload", "timer"])
async def test_a_key_that_an_event_changed_in_one_region_is_a_conflict_for_the_other(way: str, late: bool) -> None:
    play = Play(with_events("merge" if way == "payload" else None))
    base = play.run
    if way == "update":
        await play.send("set")
    elif way == "payload":
        await play.send("put", {"n": 1})
    else:
        await play.take(Event(name="$timeout", state="both.one.w", trigger="$after 5"))
    assert play.data == {"n": 1}
    move = await play.done("both.two.s", play.run if late else base, n=2)
    assert isinstance(move.error, MergeConflict)
    assert (play.run.status, play.data) == ("failed", {"n": 1})


async def test_a_payload_that_several_regions_take_belongs_to_none_of_them() -> None:
    play = Play(with_events("merge"))
    await play.send("both", {"n": 1})
    await play.done("both.two.t", n=2)
    assert play.data == {"n": 2}


async def test_a_region_may_change_its_own_key_again_and_a_new_visit_begins_anew() -> None:
    play = Play(beside())
    await play.done("both.one.s", n=1)
    await play.done("both.one.t", n=2)
    assert play.data == {"n": 2}
    await play.send("again")
    await play.done("both.two.s", n=3)
    assert play.data == {"n": 3}


async def test_two_changes_of_one_key_are_joined_by_the_workflows_merge() -> None:
    play = Play(beside({"seen": lambda old, new: sorted({*old, *new})}), {"seen": [1]})
    base = play.run
    await play.done("both.one.s", base, seen=[1, 2])
    await play.done("both.two.s", base, seen=[1, 3])
    assert (play.data, play.run.status) == ({"seen": [1, 2, 3]}, "running")


async def test_a_key_that_an_internal_move_changed_while_the_step_ran_is_a_conflict() -> None:
    flow = Workflow("f")
    note = To("a", update=lambda data, event: data.update(n=event.payload), internal=True)
    flow.step("a", initial=True, then="end", on={"note": note})(nothing)
    flow.final("end")
    for change, status in (({"n": 2}, "failed"), ({"m": 2}, "done")):
        play = Play(flow, {"n": 0})
        base = play.run
        await play.send("note", 1)
        await play.done("a", base, **change)
        assert play.run.status == status
        assert play.data["n"] == 1


# -- errors ---------------------------------------------------------------------------------------------------------


def careful(**more: Any) -> Workflow:
    flow = Workflow("careful")
    retry = Retry(attempts=2, first_delay=10, jitter=False, never_on=(KeyError,))
    refused = [(field("error.attempt") > 1, "late"), "refused"]
    flow.step("a", initial=True, then="end", retry=retry, on_error={TimeoutError: "late", OSError: refused}, **more)(
        nothing
    )
    flow.final("end", "late", "refused")
    return flow.check()


async def test_a_retry_is_a_time_in_the_same_visit_and_no_rest() -> None:
    play = Play(careful())
    await play.error("a", OSError("no"))
    stay = play.run.active["a"]
    assert (stay.visit, stay.attempt, stay.again) == (0, 2, NOW + 10)
    assert (play.run.status, play.run.due) == ("running", NOW + 10)
    assert play.run.error is not None


@pytest.mark.parametrize(
    ("errors", "state", "status"),
    [
        ([TimeoutError("slow"), TimeoutError("slow")], "late", "done"),  # the first of the list that fits
        ([OSError("no"), ConnectionError("no")], "late", "done"),
        ([KeyError("k")], "a", "failed"),
        ([ValueError("v"), ValueError("v")], "a", "failed"),
    ],
)
async def test_a_step_that_failed_for_good_leads_on_by_its_error(
    errors: list[Exception], state: str, status: str
) -> None:
    play = Play(careful())
    for error in errors:
        await play.error("a", error)
    assert (play.state, play.run.status) == (state, status)
    if status == "done":
        assert play.data["error"]["type"] == type(errors[-1]).__name__
        assert play.data["error"]["attempt"] == len(errors)
        assert play.run.error is None


async def test_an_error_that_has_no_way_of_its_own_takes_that_of_the_state_around() -> None:
    flow = Workflow("f")
    outer = flow.state("outer", initial=True, on={"x": "end"})
    outer.step("a", initial=True, then="end")(nothing)
    flow.add(Transition(source="outer", dest="saved", error=ValueError))
    flow.final("end", "saved")
    play = Play(flow)
    await play.error("outer.a", ValueError("v"))
    assert play.state == "saved"


async def test_a_choice_of_which_nothing_holds_fails_the_run() -> None:
    flow = Workflow("f")
    flow.choice("a", [(field("n") > 1, "end")], initial=True)
    flow.final("end")
    play = Play(flow, {"n": 1})
    await play.turn(0)
    assert play.run.status == "failed"
    assert isinstance(play.moves[-1].error, NoTransition)


# -- undoing --------------------------------------------------------------------------------------------------------


def trip(**more: Any) -> Workflow:
    flow = Workflow("trip", **more)
    flow.step("flight", initial=True, then="hotel", compensate=nothing)(nothing)
    undo = Retry(attempts=2, first_delay=5, jitter=False)
    flow.step("hotel", then="pay", compensate=nothing, undo=undo)(nothing)
    flow.step("pay", then="booked", on={"refuse": "refused"}, compensate=nothing)(nothing)
    flow.final("booked")
    flow.final("refused", outcome="failed")
    return flow.check()


async def at_pay(**more: Any) -> Play:
    play = Play(trip(**more))
    await play.done("flight")
    await play.done("hotel")
    assert [(undo.state, undo.visit) for undo in play.run.undo.left] == [("flight", 0), ("hotel", 1)]
    return play


@pytest.mark.parametrize(
    ("how", "status"),
    [(Event(name=ERROR, state="pay"), "failed"), (Event(name=CANCEL), "cancelled"), (Event(name="refuse"), "failed")],
    ids=["error", "cancel", "outcome"],
)
async def test_finished_visits_are_undone_the_youngest_first_and_then_the_run_ends(how: Event, status: str) -> None:
    play = await at_pay()
    await play.take(how)
    assert (play.run.status, play.run.due, play.run.over) == ("compensating", NOW, False)
    await play.done("hotel", refunded=1)
    assert [undo.state for undo in play.run.undo.left] == ["flight"]
    await play.done("flight")
    assert (play.run.status, play.run.due, play.run.over, play.data) == (status, None, True, {"refunded": 1})
    for again in (RETRY, RERUN, CANCEL, PAUSE):
        assert (await play.take(Event(name=again, payload="flight"))).answer == "rejected"


async def test_an_undoing_that_fails_is_tried_again_and_then_listed_as_lost() -> None:
    play = await at_pay()
    await play.take(Event(name=ERROR, state="pay", error=ValueError()))
    await play.error("hotel", OSError("full"))
    assert (play.run.undo.left[-1].attempt, play.run.undo.left[-1].again, play.run.due) == (2, NOW + 5, NOW + 5)
    await play.error("hotel", OSError("full"))
    assert [undo.state for undo in play.run.undo.lost] == ["hotel"]
    assert (play.run.status, play.run.due) == ("compensating", NOW)
    await play.done("flight")
    assert play.run.status == "failed"


async def test_a_run_that_ends_well_undoes_nothing_and_one_with_nothing_to_undo_fails_at_once() -> None:
    play = await at_pay()
    await play.done("pay")
    assert (play.run.status, play.run.due) == ("done", None)
    play = Play(trip())
    await play.error("flight", ValueError())
    assert (play.run.status, play.run.over, play.run.due) == ("failed", False, None)


async def test_a_parked_run_waits_for_a_person_who_retries_or_cancels() -> None:
    for then, status in ((RETRY, "running"), (CANCEL, "compensating")):
        play = await at_pay(on_failure="park")
        await play.error("pay", ValueError("v"))
        assert (play.run.status, play.run.due, play.run.over) == ("parked", None, False)
        await play.take(Event(name=then))
        assert (play.run.status, len(play.run.undo.left)) == (status, 2)
    play = await at_pay(on_failure="park")
    await play.send("refuse")
    assert play.run.status == "compensating", "an outcome is a decision: there is nothing to try again"


# -- steering -------------------------------------------------------------------------------------------------------


async def test_a_paused_run_accepts_nothing_and_its_timers_strike_when_it_goes_on() -> None:
    play = Play(timed())
    await play.take(Event(name=PAUSE))
    assert (play.run.status, play.run.due) == ("paused", None)
    with pytest.raises(NotAccepted):
        await play.send("go")
    await play.turn(7200)
    assert play.moves == []
    await play.take(Event(name=UNPAUSE))
    assert (play.state, play.data) == ("outer.b", {"told": 1})


async def test_rerun_begins_a_new_visit_of_the_state_that_is_named() -> None:
    play = await at_pay()
    move = await play.take(Event(name=RERUN, payload="hotel"))
    assert (play.state, play.run.visit, play.run.status) == ("hotel", 3, "running")
    assert move.forget == (("pay", 2),)


@pytest.mark.parametrize("state", ["booked", "nowhere"])
async def test_rerun_of_a_state_in_which_nothing_can_go_on_is_rejected(state: str) -> None:
    play = await at_pay()
    assert (await play.take(Event(name=RERUN, payload=state))).answer == "rejected"
    assert play.state == "pay"


async def test_rerun_of_a_run_that_was_parked_while_it_was_undone_is_rejected() -> None:
    play = await at_pay()
    await play.take(Event(name=CANCEL))
    assert (play.run.status, play.run.undo.ends) == ("compensating", "cancelled")
    await play.take(Event(name=PARKED))
    assert (await play.take(Event(name=RERUN, payload="hotel"))).answer == "rejected"
    await play.take(Event(name=RETRY))
    assert (play.run.status, play.run.undo.ends) == ("compensating", "cancelled")


@pytest.mark.parametrize("name", [RETRY, UNPAUSE])
async def test_what_says_nothing_to_a_run_that_goes_on_is_rejected_and_changes_nothing(name: str) -> None:
    play = await at_pay()
    before = play.run
    assert (await play.take(Event(name=name))).answer == "rejected"
    assert replace(play.run, version=before.version) == before


async def test_cancel_ends_a_run_in_every_state_of_rest() -> None:
    for first in ([], [PAUSE]):
        play = Play(timed())
        for name in first:
            await play.take(Event(name=name))
        await play.take(Event(name=CANCEL))
        assert (play.run.status, play.run.due, play.run.over) == ("cancelled", None, True)
