"""One record through a workflow: the compiled way comes to what `decide` comes to, whatever the two are."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmworkflow import Retry, To, Workflow, WorkflowContext, field
from fsmworkflow.expressions import Expression
from fsmworkflow.stream import StreamError, stream
from fsmworkflow.stream.compiled import Compiled, passage
from fsmworkflow.stream.passage import Decided, copied
from fsmworkflow.stream.words import Failed

MODES = ["copy", "reference", "direct"]
NAMES = ["a", "b", "c"]
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, "", "x", "xy"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
    max_leaves=4,
)
records = st.dictionaries(st.sampled_from(NAMES), plain, max_size=3)


# -- what a step may do: each function is given the context and two drawn values --------------------------------------


def _set(ctx: Any, name: str, value: Any) -> Any:
    ctx.data[name] = value


def _remove(ctx: Any, name: str, value: Any) -> Any:
    ctx.data.pop(name, None)


def _deep(ctx: Any, name: str, value: Any) -> Any:
    found = ctx.data.get(name)
    if isinstance(found, list):
        found.append(value)
    elif isinstance(found, dict):
        found["deep"] = value


def _around(ctx: Any, name: str, value: Any) -> Any:
    for taken in (dict(ctx.data), {**ctx.data}, ctx.data | {}, {} | ctx.data):
        found = taken.get(name)
        if isinstance(found, list):
            found.append(value)


def _fail(ctx: Any, name: str, value: Any) -> Any:
    ctx.data["half"] = "done"
    raise ValueError(f"no {name}")


def _strict(ctx: Any, name: str, value: Any) -> Any:
    ctx.data["n"] = ctx.data[name] + 1


def _trigger(ctx: Any, name: str, value: Any) -> Any:
    return "go"


def _unknown(ctx: Any, name: str, value: Any) -> Any:
    return "nowhere"


def _both(ctx: Any, name: str, value: Any) -> Any:
    ctx.data[name] = value
    return ctx, "go"


def _other(ctx: Any, name: str, value: Any) -> Any:
    return WorkflowContext(data={"only": value})


def _wrong(ctx: Any, name: str, value: Any) -> Any:
    return 7


def _spoil(ctx: Any, name: str, value: Any) -> Any:
    ctx.data = value


def _nested(ctx: Any, name: str, value: Any) -> Any:
    return ctx, None


ACTS = [
    _set, _remove, _deep, _around, _fail, _strict, _trigger, _unknown, _both, _other, _wrong, _spoil, _nested,
]  # fmt: skip
acts = st.tuples(st.sampled_from(ACTS), st.sampled_from(NAMES), plain)


def _truth(name: str) -> Any:
    return lambda look: look.data.get(name)  # None is no answer


fields = st.sampled_from([*NAMES, "a.b", "a.0"])
expressions = st.sampled_from(
    [
        "a >= 1", "a.b == 'x'", "has(b) and not has(c)", "a < b or c", "a in b",
        "len(a) > 0 and lower(a) == 'x'", "a + 1",
        "event.by == a", "has(event.by)", "true", "(a if has(a) else 0) >= 0", "not (a == b)",
    ]
)  # fmt: skip
guards = st.recursive(
    st.one_of(
        st.builds(Expression, expressions),
        st.builds(Expression, expressions),
        st.builds(lambda f, v: field(f) == v, fields, plain),
        st.builds(lambda f, v: field(f) != v, fields, plain),
        st.builds(lambda f, v: field(f) >= v, fields, st.integers(-2, 2)),
        st.builds(lambda f, v: field(f) < v, fields, st.sampled_from(["", "x"])),
        st.builds(lambda f, g: field(f) > field(g), fields, fields),
        st.builds(lambda f, g: field(f) == field(g), fields, fields),
        st.builds(lambda f: field(f).is_empty(), fields),
        st.builds(lambda f: field(f).is_none(), fields),
        st.builds(lambda f: field(f).in_([0, "x", None]), fields),
        st.builds(lambda f: field(f).contains("x"), fields),
        st.builds(lambda f: field(f).matches("x+"), fields),
        st.builds(_truth, st.sampled_from(NAMES)).map(lambda fn: field("c").is_none() | fn),
    ),
    lambda inner: st.builds(lambda p, q: p & q, inner, inner) | st.builds(lambda p, q: p | q, inner, inner)
    | st.builds(lambda p: ~p, inner),
    max_leaves=3,
)  # fmt: skip


def _updated(data: Any, event: Any) -> Any:
    data["by"] = [event.name, event.state, event.trigger]


def _instead(data: Any, event: Any) -> Any:
    return {"instead": data.get("a")}


def _nothing(data: Any, event: Any) -> Any:
    return [data]


@st.composite
def workflows(draw: Any) -> Workflow:
    """A flat workflow that leads forward only, over steps and choices, to two final states."""
    flow = Workflow("drawn")
    many = draw(st.integers(1, 4))
    names = [f"s{n}" for n in range(many)]
    for number, name in enumerate(names):
        onward = st.sampled_from([*names[number + 1 :], "good", "bad"])
        updates = st.sampled_from([_updated, _instead, _nothing])
        way = onward | st.builds(lambda to, update: To(to, update=update), onward, updates)
        ways = [(draw(guards), draw(way)) for _ in range(draw(st.integers(0, 2)))]
        then: Any = [*ways, draw(way)] if draw(st.booleans()) or not ways else ways
        if number < many - 1 and draw(st.integers(0, 3)) == 0:
            everywhere = [(draw(guards), to) for to in names[1:]] if not number else []
            flow.choice(name, [*everywhere, *ways, *([] if then is ways else then[-1:])], initial=not number)
            continue
        act, place, value = draw(acts)
        # What no step returns leads everywhere, as a state that cannot be reached is an error.
        more: dict[str, Any] = {"on": {f"to {to}": to for to in [*names[number + 1 :], "good", "bad"]}}
        if draw(st.booleans()):
            more["on"]["go"] = draw(way)
        if draw(st.booleans()):
            more["on_error"] = {draw(st.sampled_from([ValueError, Exception])): draw(onward)}
        flow.step(name, initial=not number, then=then, **more)(_made(act, place, value))
    flow.final("good")
    flow.final("bad", outcome="failed")
    return flow.check()


def _made(act: Any, name: str, value: Any) -> Any:
    return lambda ctx: act(ctx, name, copy.deepcopy(value))


def told(end: Any) -> Any:
    """An end as it can be compared: the state and the data in its order, or the error with its place and words."""
    state, what = end
    if isinstance(what, Failed):
        return what.state, type(what.error), str(what.error)
    return state, list(what.items())


@settings(max_examples=400, deadline=None)
@given(workflows(), records)
def test_the_compiled_way_comes_to_what_decide_comes_to(flow: Workflow, record: dict[str, Any]) -> None:
    short, whole = passage(flow, "copy"), Decided(flow)
    assert isinstance(short, Compiled)
    given = copy.deepcopy(record)
    assert told(short.straight(record)) == told(whole.straight(record))
    assert record == given, "the record that was given was touched"
    assert told(short.straight(given, True)) == told(whole.straight(record)), "where nobody else holds the record"


@settings(max_examples=200, deadline=None)
@given(workflows(), records)
def test_where_nothing_fails_all_modes_come_to_the_same(flow: Workflow, record: dict[str, Any]) -> None:
    ends = [passage(flow, mode).straight(copy.deepcopy(record)) for mode in MODES]  # type: ignore[arg-type]
    if "half" not in repr(ends) and not any(isinstance(what, Failed) for _, what in ends):
        assert told(ends[0]) == told(ends[1]) == told(ends[2])


@settings(max_examples=200, deadline=None)
@given(workflows(), records)
def test_a_reference_never_touches_the_record_that_was_given(flow: Workflow, record: dict[str, Any]) -> None:
    given = copy.deepcopy(record)
    passage(flow, "reference").straight(record)
    assert record == given


@pytest.mark.parametrize(
    "taken", [dict, lambda data: {**data}, lambda data: data | {}, lambda data: {} | data, lambda data: data.copy()]
)
def test_what_is_made_of_a_reference_touches_the_record_that_was_given_no_more_than_itself(taken: Any) -> None:
    flow = Workflow("flow")
    flow.step("first", initial=True, then="good")(lambda ctx: taken(ctx.data)["a"].append(2))
    flow.final("good")
    record = {"a": [1], "b": {}}
    passage(flow.check(), "reference").straight(record)
    assert record == {"a": [1], "b": {}}


def test_a_step_that_fails_after_a_choice_has_changed_nothing() -> None:
    flow = Workflow("flow")
    flow.choice("first", [(field("a") == 1, "second"), "good"], initial=True)

    @flow.step(then="good", on_error={ValueError: "bad"})
    def second(ctx: Any) -> None:
        ctx.data["a"] = 2
        raise ValueError("too late")

    flow.final("good", "bad")
    state, data = passage(flow.check(), "copy").straight({"a": 1}, True)
    assert (state, data["a"]) == ("bad", 1)


ASKED: list[Any] = [
    dict, dict.copy, copy.copy, copy.deepcopy, lambda data: {**data}, lambda data: data | {}, lambda data: {} | data,
    lambda data: {name: data[name] for name in data}, lambda data: dict(data.items()),
    lambda data: dict(zip(data.keys(), data.values(), strict=True)), lambda data: pickle.loads(pickle.dumps(data)),
]  # fmt: skip


@pytest.mark.parametrize("asked", range(len(ASKED)))
async def test_a_reference_is_the_records_own_in_whatever_way_it_is_asked(asked: int) -> None:
    flow = Workflow("flow")

    @flow.step(initial=True, then="over")
    def look(ctx: Any) -> None:
        mine = ASKED[asked](ctx.data) if asked != 1 else ctx.data.copy()
        mine["tags"].append("new")
        mine["deep"]["tags"].append("new")
        ctx.data = mine

    flow.final("over")
    record, out = {"tags": [], "deep": {"tags": []}}, []
    await stream(None, flow, [record], out, mode="reference")
    assert record == {"tags": [], "deep": {"tags": []}}
    assert out == [{"tags": ["new"], "deep": {"tags": ["new"]}}]


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_step_puts_into_its_data_is_there_itself_until_it_ends(mode: Any) -> None:
    flow = Workflow("flow")

    @flow.step(initial=True, then="over")
    def collect(ctx: Any) -> None:
        one, two, three = [], [], []
        ctx.data["one"] = one
        ctx.data.update({"two": two})
        ctx.data |= {"three": three}
        assert [ctx.data[name] for name in ("one", "two", "three")] == [[], [], []]
        for found in (one, two, three):
            found.append(1)

    flow.final("over")
    out: list[Any] = []
    await stream(None, flow, [{"n": 1}], out, mode=mode)
    assert out == [{"n": 1, "one": [1], "two": [1], "three": [1]}]


@pytest.mark.parametrize("awaited", [False, True])
async def test_what_a_step_keeps_and_gives_again_is_not_that_of_another_record(awaited: bool) -> None:
    flow, kept = Workflow("flow"), {"tags": []}

    def keep(ctx: Any) -> Any:
        kept["n"] = ctx.data["n"]
        kept["tags"].append(ctx.data["n"])
        return WorkflowContext(data=kept)

    async def awaits(ctx: Any) -> Any:
        return keep(ctx)

    flow.step("keep", initial=True, then="over")(awaits if awaited else keep)
    flow.final("over")
    out: list[Any] = []
    await stream(None, flow, [{"n": n} for n in range(3)], out)
    assert out == [{"n": n, "tags": list(range(n + 1))} for n in range(3)]


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("value", [[1, 2], None, "text", 5])
def test_a_step_whose_data_is_no_dict_fails_as_by_decide(value: Any, awaited: bool) -> None:
    flow = Workflow("flow")

    def spoil(ctx: Any) -> None:
        ctx.data = value

    async def awaits(ctx: Any) -> None:
        spoil(ctx)

    flow.step("spoil", initial=True, then="good", on_error={TypeError: "good"})(awaits if awaited else spoil)
    flow.final("good")
    for mode in MODES:
        short = passage(flow, mode)  # type: ignore[arg-type]
        assert told(asyncio.run(short.go({"a": 1}))) == told(asyncio.run(Decided(flow).go({"a": 1})))


@given(plain)
def test_a_copy_is_equal_and_shares_nothing(value: Any) -> None:
    new = copied(value)
    assert new == value
    if isinstance(value, (list, dict)):
        assert new is not value
        new.clear()
        assert new != value or not value


async def test_a_workflow_with_awaited_steps_comes_to_the_same() -> None:
    flow = Workflow("awaited")

    @flow.step(initial=True, then=[(field("a") > 1, "good"), "more"], on_error={ValueError: "bad"})
    async def first(ctx: Any) -> None:
        if ctx.data["a"] < 0:
            raise ValueError("below zero")
        ctx.data["seen"] = [ctx.state]

    @flow.step(then="good")
    async def more(ctx: Any) -> None:
        ctx.data["seen"].append(ctx.state)

    flow.final("good", "bad")
    short = passage(flow.check(), "copy")
    assert isinstance(short, Compiled)
    assert not short.sync
    for record in ({"a": 2}, {"a": 0}, {"a": -1}, {"a": "x"}, {}):
        assert told(await short.go(dict(record))) == told(await Decided(flow).go(dict(record)))


async def test_nested_and_parallel_states_pass_by_decide() -> None:
    flow = Workflow("nested")
    both = flow.parallel("both", initial=True, then="good")
    for side in ("left", "right"):
        region = both.region(side)

        @region.step("work", initial=True, then="over")
        def work(ctx: Any, side: str = side) -> None:
            ctx.data[side] = True

        region.final("over")
    flow.final("good")
    way = passage(flow.check(), "copy")
    assert isinstance(way, Decided)
    assert told(way.straight({"a": 1})) == ("good", [("a", 1), ("left", True), ("right", True)])


# -- what cannot be in a passage --------------------------------------------------------------------------------------


def _waits(flow: Workflow) -> None:
    flow.step("first", initial=True, then="rest")(lambda ctx: None)
    flow.wait("rest", on={"go": "good"})


def _times(flow: Workflow) -> None:
    flow.step("first", initial=True, then="good", after={"3d": "good"})(lambda ctx: None)


def _retries(flow: Workflow) -> None:
    flow.step("first", initial=True, then="good", retry=Retry(attempts=2))(lambda ctx: None)


def _undoes(flow: Workflow) -> None:
    flow.step("first", initial=True, then="good", compensate=lambda ctx: None)(lambda ctx: None)


def _child(flow: Workflow) -> None:
    child = Workflow("child")
    child.step("one", initial=True, then="over")(lambda ctx: None)
    child.final("over")
    flow.child("first", child, initial=True, then="good")


def _remembers(flow: Workflow) -> None:
    @flow.step(initial=True, then="good")
    async def first(ctx: Any) -> None:
        await ctx.call(print, "once")


def _maps(flow: Workflow) -> None:
    @flow.step(initial=True, then="good")
    async def first(ctx: Any) -> None:
        await ctx.map(print, "ab")


def _names(flow: Workflow) -> None:
    @flow.step(initial=True, then="good")
    async def first(ctx: Any) -> None:
        ctx.data["key"] = ctx.run.key


def _transacts(flow: Workflow) -> None:
    @flow.step(initial=True, then="good")
    async def first(ctx: Any) -> None:
        async with ctx.transaction():
            pass


def _acts(flow: Workflow) -> None:
    flow.step("first", initial=True, then=To("good", after=print))(lambda ctx: None)


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (_waits, "state 'rest': it waits for an event"),
        (_times, "state 'first': a timer"),
        (_retries, "state 'first': a retry after a pause"),
        (_undoes, "state 'first': a compensation"),
        (_child, "state 'first': it makes runs of another workflow"),
        (_remembers, "state 'first': ctx.call"),
        (_maps, "state 'first': ctx.map"),
        (_names, "state 'first': ctx.run"),
        (_transacts, "state 'first': ctx.transaction"),
        (_acts, "'first' to 'good': an action after the commit"),
    ],
)
async def test_what_a_passage_cannot_do_is_refused_by_name_before_anything_is_read(declare: Any, said: str) -> None:
    flow = Workflow("flow")
    declare(flow)
    flow.final("good")

    def never() -> Any:
        raise AssertionError("it was read")
        yield

    with pytest.raises(StreamError, match=said):
        await stream(None, flow, never(), [])


@pytest.mark.parametrize("workers", [1, 3])
async def test_what_was_not_seen_at_the_start_stops_the_stream_and_is_no_error_of_a_record(workers: int) -> None:
    flow, kept = Workflow("flow"), []
    flow.step("first", initial=True, then="good")(lambda ctx: getattr(ctx, "call")(print))  # noqa: B009
    flow.final("good")
    with pytest.raises(StreamError, match="a passage has no key, remembers no calls"):
        await stream(None, flow, [{"a": 1}], [], errors=kept, workers=workers)
    assert kept == []


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_retry_without_a_pause_tries_again_at_once(attempts: int) -> None:
    flow, tried, good, bad = Workflow("flow"), [], [], []

    @flow.step(initial=True, then="good", retry=Retry(attempts=attempts, first_delay=0))
    def first(ctx: Any) -> None:
        tried.append(ctx.attempt)
        if ctx.attempt < 3:
            raise OSError("not yet")

    flow.final("good")
    await stream(None, flow, [{"a": 1}], good, errors=bad)
    assert tried == list(range(1, attempts + 1))
    assert (len(good), len(bad)) == ((1, 0) if attempts == 3 else (0, 1))
