"""Whatever a Workflow says in Python, its plain values say too: the same states, transitions, code and structure."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmworkflow import DefinitionError, Retry, StepTimeout, Workflow, WorkflowDefinition, WorkflowStep, field, payload
from fsmworkflow.conditions import Condition, Function, Guard, Joined, Operand
from fsmworkflow.expressions import Expression
from fsmworkflow.operators import OPERATORS
from fsmworkflow.states import Children
from fsmworkflow.workflow import State, Transition
from tests.test_config import again


class Declined(Exception):
    """An error of the user's own."""


@dataclass
class Order:
    left: int = 0


class Shop:
    async def pay(self, ctx: Any) -> None: ...
    def tell(self, ctx: Any) -> None: ...


def one(ctx: Any) -> bool:
    return True


def two(data: Any, event: Any = None, index: Any = None) -> Any:
    return data


def a_step() -> Any:
    async def work(ctx: Any) -> None: ...

    return work


STEPS = [one, Shop().pay, a_step(), a_step(), lambda ctx: None, Shop().tell]
CHANGES = [two, lambda data, event: None, lambda data, event: data]
ERRORS: list[Any] = [ValueError, Declined, StepTimeout, ConnectionError]

durations = st.sampled_from([1, 2.5, "5m", "P1D", "1h30m"])
names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0.", exclude_categories=["Cc"]), min_size=1, max_size=8
)
tagged = [dt.date(2026, 1, 31), dt.datetime(2026, 1, 31, tzinfo=dt.UTC), Decimal("1.50"), b"x"]
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)
constants = st.recursive(
    scalars | st.text("ab$", max_size=4) | st.sampled_from(tagged),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab$", max_size=3), inner, max_size=3),
    max_leaves=4,
)
operands = st.builds(field, names) | st.builds(payload, names | st.just(""))


@st.composite
def compared(draw: Any) -> Guard:
    operator = draw(st.sampled_from(sorted(set(OPERATORS) - {"matches"})))
    value: Any = draw({
        "in": st.lists(constants, max_size=3), "not_in": st.sets(st.integers(), max_size=3),
        "starts_with": st.text(max_size=3), "ends_with": operands,
    }.get(operator, st.integers() if operator in ("gt", "ge", "lt", "le") else constants | operands))  # fmt: skip
    return Condition(draw(names | operands), operator, value)


guards = st.recursive(
    compared()
    | st.sampled_from([Expression("left >= 1 and event.b in ['x']"), Function(one), Function(one, field("a"))])
    | st.just(Function(STEPS[4]))
    | st.builds(lambda left: Condition(left, "custom", custom_function=one), names),
    lambda inner: st.builds(Joined, st.sampled_from(["and", "or"]), st.lists(inner, max_size=3))
    | st.builds(lambda guard: ~guard, inner),
    max_leaves=5,
)  # fmt: skip
retries = st.builds(
    Retry, attempts=st.none() | st.integers(1, 9), first_delay=st.sampled_from(["1s", dt.timedelta(seconds=2)]),
    factor=st.floats(1, 9), jitter=st.booleans(), on=st.lists(st.sampled_from(ERRORS), max_size=2).map(tuple),
    never_on=st.sampled_from([(), Declined]),
)  # fmt: skip
actions = st.none() | st.sampled_from([STEPS[0], STEPS[2], STEPS[5]])


def add_states(draw: Any, flow: Workflow, around: str, depth: int, child: Workflow) -> None:
    """Some states, the first of them initial, in what holds them."""
    for number, simple in enumerate(draw(st.lists(names, min_size=1, max_size=3, unique=True))):
        path = f"{around}.{simple}" if around else simple
        kinds = ["step", "wait", "choice", "final", "child", "each"] + ["state", "parallel"] * (depth < 2)
        kind = draw(st.sampled_from([one for one in kinds if one != "final" or (around and number)]))
        told: dict[str, Any] = {"enter": draw(actions), "exit": draw(actions)} if kind != "final" else {}
        if kind == "step":
            step = WorkflowStep(
                simple, draw(st.sampled_from(STEPS)), draw(st.none() | retries), draw(st.none() | durations)
            )
            told |= {"step": step, "compensate": draw(actions), "undo": draw(retries), "ends": draw(st.booleans())}
        if kind == "final":
            told["outcome"] = draw(st.sampled_from(["done", "failed"]))
        if kind in ("child", "each"):
            told["children"] = draw(children(child, kind))
        flow.add(State(name=path, kind=kind, initial=number == 0, **told))
        if kind == "state":
            add_states(draw, flow, path, depth + 1, child)
        for region in draw(st.lists(names, min_size=1, max_size=2, unique=True)) if kind == "parallel" else ():
            flow.add(State(name=f"{path}.{region}", kind="region"))
            add_states(draw, flow, f"{path}.{region}", depth + 1, child)


def children(child: Workflow, kind: str) -> Any:
    if kind == "child":
        return st.builds(lambda into: Children(workflow=child, data=lambda data: data, into=into), st.none() | names)
    over = st.sampled_from([field("items"), "items", lambda data: []])
    told = {
        "into": st.none() | names,
        "concurrency": st.integers(1, 9),
        "on_failure": st.sampled_from(["first", "collect"]),
    }
    return st.builds(Children, workflow=st.just(child), over=over, data=st.sampled_from([None, two]), **told)


@st.composite
def workflows(draw: Any) -> Workflow:
    child = Workflow("child")
    child.wait("rest", initial=True, on={"go": "over"})
    child.final("over")
    flow = Workflow(
        "flow", version=draw(st.integers(3, 5)), data=draw(st.sampled_from([None, Order])),
        merge=draw(st.dictionaries(names, st.just(max), max_size=1)), payload=draw(st.sampled_from([None, "merge"])),
        deadline=draw(st.none() | durations), on_failure=draw(st.sampled_from([None, "park"])),
        keep=draw(st.none() | durations | st.dictionaries(st.sampled_from(["done", "failed"]), durations)),
        concurrency=draw(st.none() | st.integers(1, 9)), limit=draw(st.sampled_from([10_000, 16 * 2**20])),
    )  # fmt: skip
    add_states(draw, flow, "", 0, child)
    flow.add(State(name="the end", kind="final"))
    sources = [s.name for s in flow.states.values() if s.kind not in ("final", "region")]
    for number, path in enumerate(s.name for s in flow.states.values() if s.kind != "region"):
        flow.add(Transition(f"to {number}", "*", path))  # so that each is reached, and leads to an end
    for _ in range(draw(st.integers(0, 6))):
        flow.add(draw(transitions(sources)))
    if draw(st.booleans()):
        flow.migrate(1, to=2, states={"old": "the new one"}, data=draw(st.sampled_from([None, one])))
        flow.migrate(2, to=3, states={"the new one": sources[0]})
    return flow


@st.composite
def transitions(draw: Any, sources: list[str]) -> Transition:
    by = draw(
        st.sampled_from([{"trigger": "go"}, {"delay": draw(durations)}, {"error": draw(st.sampled_from(ERRORS))}, {}])
    )
    source = draw(st.sampled_from(["*", *sources]) | st.lists(st.sampled_from(sources), min_size=1, unique=True))
    internal = isinstance(source, str) and source != "*" and draw(st.booleans())
    dest = source if internal else draw(st.sampled_from([None, "the end", sources[0]]))
    return Transition(
        source=source, dest=dest, internal=internal, conditions=draw(st.none() | guards | st.lists(guards, max_size=2)),
        after=draw(actions | st.just("mark_completed")), update=draw(st.none() | st.sampled_from(CHANGES)),
        automatic=draw(st.sampled_from([None, True])), **by,
    )  # fmt: skip


def plain(value: Any) -> Any:
    """What a workflow consists of, for comparing: guards and operands by what they say and call."""
    if isinstance(value, Condition) and value.parts:
        return plain(value.parts[0])
    if isinstance(value, Condition):
        left = value.field if isinstance(value.field, Operand) else field(value.field)
        right = sorted(value.value, key=repr) if isinstance(value.value, set) else value.value
        return ("condition", plain(left), value.operator, plain(right))
    if isinstance(value, Function):
        return ("function", value.function, plain(value.of))
    if isinstance(value, Operand):
        return (value.of, value.path)
    if isinstance(value, Guard):
        return (
            type(value).__name__,
            getattr(value, "word", str(value) if not value.parts else ""),
            [plain(p) for p in value.parts],
        )
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


# -- the property -----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(flow=workflows())
def test_plain_values_say_all_that_a_workflow_says(flow: Workflow) -> None:
    try:
        flow.check()
    except DefinitionError:  # such as a constant of a kind that its operator does not take; but most are well formed
        return
    read = again(flow)
    assert list(read.chart.order) == list(flow.chart.order)
    for name, state in flow.states.items():
        assert_same_state(read.states[name], state)
    assert len(read.transitions) == len(flow.transitions)
    for mine, theirs in zip(read.transitions, flow.transitions, strict=True):
        assert_same_transition(mine, theirs)
    for what in ("name", "version", "merge", "payload", "deadline", "on_failure", "keep", "concurrency", "migrations"):
        assert getattr(read, what) == getattr(flow, what), what
    assert (read.codec.kind, read.codec.limit) == (flow.codec.kind, flow.codec.limit)


def assert_same_state(mine: State, theirs: State) -> None:
    for what in ("name", "kind", "initial", "outcome", "ends", "enter", "exit", "compensate"):
        assert getattr(mine, what) == getattr(theirs, what), what
    assert retry_of(mine.undo) == retry_of(theirs.undo)
    assert (mine.step is None) == (theirs.step is None)
    if mine.step is not None and theirs.step is not None:
        assert (mine.step.execute, mine.step.timeout) == (theirs.step.execute, theirs.step.timeout)
        assert retry_of(mine.step.retry) == retry_of(theirs.step.retry)
    if mine.children is not None and theirs.children is not None:
        for what in ("data", "into", "concurrency", "on_failure"):
            assert getattr(mine.children, what) == getattr(theirs.children, what)
        assert mine.children.workflow.name == theirs.children.workflow.name
        paths = [
            over.path if isinstance(over, Operand) else over for over in (mine.children.over, theirs.children.over)
        ]
        assert paths[0] == paths[1]


def retry_of(retry: Retry | None) -> Any:
    def classes(given: Any) -> tuple[Any, ...]:
        return tuple(given) if isinstance(given, tuple) else (given,)

    if retry is None:
        return None
    delays = [
        one.total_seconds() if isinstance(one, dt.timedelta) else one for one in (retry.first_delay, retry.max_delay)
    ]
    return (retry.attempts, delays, retry.factor, retry.jitter, classes(retry.on), classes(retry.never_on))


def assert_same_transition(mine: Transition, theirs: Transition) -> None:
    for what in ("trigger", "dest", "after", "automatic", "delay", "update", "internal", "error"):
        assert getattr(mine, what) == getattr(theirs, what), what
    assert plain(mine.source) == plain(theirs.source)
    assert said(mine.conditions) == said(theirs.conditions)


def said(conditions: Any) -> Any:
    """Conditions that must all hold, as one list: which of the ways to write that was taken says nothing."""
    given = conditions if isinstance(conditions, list) else [] if conditions is None else [conditions]
    flat = [
        part
        for guard in given
        for part in (guard.parts if isinstance(guard, Joined) and guard.word == "and" else [guard])
    ]
    return [plain(guard) for guard in flat]


def test_most_of_these_workflows_are_well_formed() -> None:
    """Else the property above would say nothing."""
    checked: list[bool] = []

    @settings(max_examples=50, deadline=None, database=None, derandomize=True)
    @given(flow=workflows())
    def count(flow: Workflow) -> None:
        try:
            checked.append(flow.check() is flow)
        except DefinitionError:
            checked.append(False)

    count()
    assert sum(checked) > len(checked) / 2, f"{sum(checked)} of {len(checked)}"


# -- what has a form of its own ---------------------------------------------------------------------------------------


def test_a_definition_of_the_first_vocabulary_comes_back_as_it_is() -> None:
    rows = [
        Transition("go", "first", "second", Condition("n", "gt", 1), after="tell"),
        Transition("back", "*", "first"),
    ]
    made = WorkflowDefinition("w", [WorkflowStep("first", one), WorkflowStep("second", two)], rows).build({}, Shop())
    read = again(made)
    assert read.lenient
    assert [t.after for t in read.transitions] == ["tell", None]
    assert read.actions["tell"] == made.actions["tell"]
    assert [t.automatic for t in read.transitions] == [True, False]
    assert [state.ends for state in read.states.values()] == [False, True]


def test_a_target_is_written_so_that_no_other_state_is_taken_for_it() -> None:
    made = Workflow("w")
    outer = made.state("a", initial=True, on={"out": "end"})
    outer.wait("b", initial=True, on={"go": "c"})
    outer.wait("c", on={"go": "d"})
    inner = outer.state("a", on={"go": "c"})
    inner.wait("c", initial=True)
    outer.wait("d", on={"go": "a"})
    made.final("end")
    read = again(made)
    assert [(t.source, t.dest) for t in read.transitions] == [(t.source, t.dest) for t in made.transitions]


def test_a_workflow_that_is_its_own_child_comes_back() -> None:
    made = Workflow("tree")
    made.choice("more", [(field("depth") > 0, "below"), "leaf"], initial=True)
    made.child("below", made, data=lambda data: {"depth": data["depth"] - 1}, then="leaf")
    made.final("leaf")
    read = again(made)
    assert read.states["below"].children is not None
    assert read.states["below"].children.workflow is read


def test_what_has_no_plain_form_is_refused_by_its_place() -> None:
    for value, told in (
        (field("x") == (1, 2), "tuple"),
        (field("x").matches(re.compile("a", re.I)), "flags"),
        (Mine(), "Mine"),
    ):
        made = Workflow("w")
        made.wait("a", initial=True, on={"go": [(value, "b")]})
        made.final("b")
        with pytest.raises(DefinitionError, match=told) as caught:
            made.to_dict()
        assert "transition 'go' of 'a'" in caught.value.problems[0]


class Mine(Guard):
    async def ask(self, view: Any) -> bool:
        return True
