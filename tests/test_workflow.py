"""Definitions: what can be said with decorators and as data, and what is refused, each with its place."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fsmworkflow import (
    Condition,
    DefinitionError,
    Engine,
    Retry,
    To,
    Transition,
    Workflow,
    WorkflowContext,
    WorkflowDefinition,
    WorkflowStep,
    field,
)


async def nothing(ctx: WorkflowContext) -> None:
    pass


class Methods:
    def tell(self, ctx: WorkflowContext) -> None:
        pass


def workflow(*, name: str = "w", then: Any = "end", initial: bool = True, ends: tuple[str, ...] = ("end",)) -> Workflow:
    """One step `first` and the final states `ends`."""
    made = Workflow(name)
    made.step("first", initial=initial, then=then)(nothing)
    made.final(*ends)
    return made


def problems(made: Workflow) -> tuple[str, ...]:
    with pytest.raises(DefinitionError) as caught:
        made.check()
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    assert repr(made.name)[:30] in str(caught.value)
    return caught.value.problems


def of_definition(steps: list[Any], transitions: list[Transition], functions: Any = None) -> tuple[str, ...]:
    names = [s.name if isinstance(s, WorkflowStep) else s for s in steps]
    given = dict.fromkeys(names, nothing) if functions is None else functions
    with pytest.raises(DefinitionError) as caught:
        WorkflowDefinition("w", steps, transitions).build(given, Methods())
    return caught.value.problems


def one(found: tuple[str, ...], *parts: str) -> None:
    """There is exactly one problem, and it names these."""
    assert len(found) == 1, found
    for part in parts:
        assert part in found[0]


# -- what can be said -----------------------------------------------------------------------------------------------


def test_a_step_has_the_name_of_its_function_unless_it_is_given_one() -> None:
    made = Workflow("w")

    @made.step(initial=True, then="second")
    async def start(ctx: WorkflowContext) -> None: ...

    made.step("second", then="end")(nothing)
    made.final("end")
    assert list(made.check().states) == ["start", "second", "end"]
    assert made.initial == "start"


def test_a_decorated_function_stays_the_function_that_it_was() -> None:
    assert Workflow("w").step("x")(nothing) is nothing


def test_a_checked_workflow_is_immutable() -> None:
    made = workflow().check()
    for change in (
        lambda: made.step("late")(nothing),
        lambda: made.final("late"),
        lambda: made.choice("late", "end"),
        lambda: made.transition("x", "first", "end"),
        lambda: made.add(Transition("x", "first", "end")),
    ):
        with pytest.raises(DefinitionError, match="immutable"):
            change()
    assert made.check() is made


def test_checking_twice_finds_the_same_problems() -> None:
    made = workflow(then="nowhere")
    assert problems(made) == problems(made)


def test_a_definition_error_is_a_value_error_with_a_code() -> None:
    with pytest.raises(ValueError) as caught:
        workflow(then="nowhere").check()
    assert caught.value.code == "definition"  # type: ignore[attr-defined]


def test_a_workflow_may_end_where_it_began() -> None:
    made = Workflow("w")
    made.step("only", initial=True, then=To(None))(nothing)
    assert made.check().initial == "only"


def test_a_definition_may_be_built_many_times() -> None:
    definition = WorkflowDefinition("w", ["a", "b"], [Transition("go", "a", "b")])
    first, second = definition.build({"a": nothing, "b": nothing}), definition.build({"a": nothing, "b": nothing})
    assert first is not second
    assert list(first.states) == list(second.states) == ["a", "b"]


def test_a_definition_takes_steps_as_names_or_as_workflow_steps() -> None:
    step = WorkflowStep("a", nothing, timeout="5s")
    built = WorkflowDefinition(name="w", steps=[step, "b"], transitions=[Transition("go", "a", "b")]).build(
        {"b": nothing}
    )
    assert built.states["a"].step is not None
    assert built.states["a"].step.timeout == "5s"


# -- bad definitions, each named with its place ----------------------------------------------------------------------


def test_an_unknown_target_is_named_with_its_place_and_the_nearest_state() -> None:
    one(problems(workflow(then="ned")), "'first'", "'ned'", "did you mean 'end'")


def test_an_unknown_source_is_named() -> None:
    made = workflow()
    made.transition("go", "frist", "end")
    one(problems(made), "'go'", "'frist'", "did you mean 'first'")


def test_an_unknown_source_among_several_is_named() -> None:
    one(of_definition(["a", "b"], [Transition("go", ["a", "x"], "b")]), "'go'", "no state 'x'")


def test_every_problem_is_listed_at_once() -> None:
    made = workflow(then=["a", "b"], initial=False)
    made.step("", then="end")(nothing)
    assert len(problems(made)) >= 4


def test_no_initial_state_is_refused() -> None:
    assert any("no state is initial" in problem for problem in problems(workflow(initial=False)))


def test_a_state_that_is_to_hold_others_and_holds_none_is_told_what_makes_one_that_waits() -> None:
    made = workflow()
    made.state("cool", after={"1s": "end"})
    made.parallel("both", then="end")
    made.parallel("two", then="end").region("bill")
    assert [problem for problem in problems(made) if "has no" in problem] == [
        "state 'cool' has no state or region in it: one that only waits is made by wait()",
        "state 'both' has no state or region in it: one that only waits is made by wait()",
        "state 'two.bill' has no state or region in it: one that only waits is made by wait()",
    ]


def test_two_initial_states_are_named() -> None:
    made = workflow()
    made.step("other", initial=True, then="end")(nothing)
    one(problems(made), "two initial states", "'first'", "'other'")


def test_a_workflow_without_states_is_refused() -> None:
    assert problems(Workflow("w"))
    assert of_definition([], [])


def test_a_state_that_cannot_be_reached_is_named() -> None:
    made = workflow()
    made.step("island", then="end")(nothing)
    one(problems(made), "'island'", "cannot be reached")
    one(of_definition(["a", "b", "c"], [Transition("x", "a", "c")]), "'b'", "cannot be reached")


def test_a_state_that_leads_to_no_end_is_named() -> None:
    made = workflow(then=[(field("n") > 1, "end"), "loop"])
    made.step("loop", then="again")(nothing)
    made.step("again", then="loop")(nothing)
    found = problems(made)
    assert len(found) == 2
    assert all("no end" in problem for problem in found)
    assert "'loop'" in found[0]
    assert "'again'" in found[1]


def test_a_step_that_leads_nowhere_is_refused() -> None:
    made = workflow(then=[(field("n") > 1, "end"), "stuck"])
    made.step("stuck")(nothing)
    one(problems(made), "'stuck'", "no end")


def test_a_state_that_is_declared_twice_is_named() -> None:
    made = workflow()
    made.step("first", then="end")(nothing)
    assert any("'first' is declared twice" in problem for problem in problems(made))
    assert any("'a'" in problem and "twice" in problem for problem in of_definition(["a", "a"], []))


@pytest.mark.parametrize("function", [None, 5, "draft", []])
def test_a_step_without_a_function_is_named(function: Any) -> None:
    one(of_definition(["a", "b"], [Transition("x", "a", "b")], {"a": function, "b": nothing}), "'a'", "function")
    step = WorkflowStep("a", function)
    one(of_definition(["a", "b"], [Transition("x", "a", "b")], {"a": step, "b": nothing}), "'a'", "function")


def test_a_step_for_which_nothing_is_given_is_named() -> None:
    one(of_definition(["a", "b"], [Transition("x", "a", "b")], {"a": nothing}), "'b'", "no function")


def test_a_class_is_no_function() -> None:
    one(of_definition(["a", "b"], [Transition("x", "a", "b")], {"a": Methods, "b": nothing}), "'a'", "class")


def test_a_function_that_does_not_take_the_context_is_refused() -> None:
    async def bare() -> None: ...

    one(of_definition(["a", "b"], [Transition("x", "a", "b")], {"a": bare, "b": nothing}), "'a'", "argument")


def test_a_function_for_no_step_is_named() -> None:
    functions = {"draft": nothing, "end": nothing, "drfat": nothing}
    found = of_definition(["draft", "end"], [Transition("x", "draft", "end")], functions)
    one(found, "'drfat'", "did you mean 'draft'")


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\0b", "\x7f", "a\tb", "\ud800", 5, None])
def test_a_name_that_is_empty_too_long_or_holds_control_characters_is_refused(name: Any) -> None:
    assert problems(workflow(name=name)) if isinstance(name, str) else True
    made = workflow(ends=("end", name), then=[(field("n") > 1, "end"), name]) if isinstance(name, str) else None
    if made is not None:
        assert problems(made)
    named = workflow()
    named.transition(name or "", "first", "end")
    if name is not None:
        assert problems(named)
    assert of_definition([name, "b"], []) if name is not None else True


def test_names_may_have_200_characters_of_any_language() -> None:
    made = workflow(name="\u00e9" * 200, then="\u7d42 \U0001f600", ends=("\u7d42 \U0001f600",))
    assert made.check()


def test_a_dot_in_the_name_of_a_state_is_refused_and_allowed_elsewhere() -> None:
    one(problems(workflow(ends=("the.end",), then="the.end")), "'the.end'", "dot")
    made = workflow(name="shop.order")
    made.transition("order.paid", "first", "end")
    assert made.check()


def test_a_trigger_of_the_engines_own_is_refused() -> None:
    made = workflow()
    made.transition("$done", "first", "end")
    one(problems(made), "'$done'", "$")


def test_an_unknown_operator_is_named_with_its_place() -> None:
    made = workflow(then=[(Condition("score", "gte", 8), "end"), "end"])
    one(problems(made), "'first'", "'gte'", "'ge'")
    found = of_definition(["a", "b"], [Transition("x", "a", "b", [Condition("n", "equals", 1)])])
    one(found, "'x'", "'equals'")


@pytest.mark.parametrize("guard", [5, "score > 8", True, [5], object()])
def test_what_is_no_condition_is_refused(guard: Any) -> None:
    one(problems(workflow(then=[(guard, "end"), "end"])), "'first'", "condition")


def test_what_follows_a_target_without_a_condition_can_never_be_taken() -> None:
    one(problems(workflow(then=["end", (field("n") > 1, "end")])), "'first'", "never")


@pytest.mark.parametrize("then", [5, {"end": 1}, ("end",), [("end",)], [(None, "end", 3)], [5]])
def test_a_then_that_cannot_be_read_is_refused(then: Any) -> None:
    assert any("'first'" in problem for problem in problems(workflow(then=then)))


def test_nothing_leads_out_of_a_final_state() -> None:
    for dest in ("first", "end", "other"):
        made = workflow(ends=("end", "other"), then=[(field("n") > 1, "end"), "other"])
        made.transition("back", "end", dest)
        one(problems(made), "'end'", "final")


@pytest.mark.parametrize("source", [None, 5, [], [5], ["a", None], ["*", "a"]])
def test_a_source_that_is_no_name_is_refused(source: Any) -> None:
    found = of_definition(["a", "b"], [Transition("y", "a", "b"), Transition("x", source, "b")])
    assert any("'x'" in problem for problem in found)


@pytest.mark.parametrize("dest", [5, ["b"], "", "*"])
def test_a_target_that_is_no_name_is_refused(dest: Any) -> None:
    found = of_definition(["a", "b"], [Transition("y", "a", "b"), Transition("x", "a", dest)])
    assert any("'x'" in problem for problem in found)


def test_an_unknown_action_is_named() -> None:
    one(of_definition(["a", "b"], [Transition("x", "a", "b", after="tel")]), "'tel'")
    made = Workflow("w")
    made.step("first", initial=True, then=To("end", after="unknown"))(nothing)
    made.final("end")
    one(problems(made), "'unknown'")


@pytest.mark.parametrize("timeout", [0, -1, "soon", "5", float("nan"), float("inf"), []])
def test_a_timeout_that_is_no_duration_is_refused(timeout: Any) -> None:
    made = Workflow("w")
    made.step("first", initial=True, then="end", timeout=timeout)(nothing)
    made.final("end")
    one(problems(made), "'first'", "timeout")


@pytest.mark.parametrize("retry", [Retry(attempts=0), Retry(first_delay="soon"), Retry(on=(5,)), 5, "3"])  # type: ignore[arg-type]
def test_a_retry_that_cannot_be_meant_is_refused(retry: Any) -> None:
    made = Workflow("w")
    made.step("first", initial=True, then="end", retry=retry)(nothing)
    made.final("end")
    one(problems(made), "'first'", "retry")


@pytest.mark.parametrize("outcome", ["ok", "failure", None])
def test_an_unknown_outcome_is_refused(outcome: Any) -> None:
    made = workflow(then=[(field("n") > 1, "end"), "refused"])
    made.final("refused", outcome=outcome)
    one(problems(made), "'refused'", "outcome")


def test_two_actions_of_one_name_are_refused() -> None:
    """An action stands on the row by its name: two functions of one name would be taken for each other."""

    def made(number: int) -> Any:
        def act(ctx: WorkflowContext) -> int:
            return number

        return act

    both = workflow(then=[(field("n") > 1, To("end", after=made(1))), To("end", after=made(2))])
    one(problems(both), "act")


async def test_a_bad_definition_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(DefinitionError):
        async with Engine("sqlite:////does/not/exist/x.db", workflows=[workflow(then="nowhere")]):
            pass


async def test_a_bad_definition_is_refused_when_it_is_first_run() -> None:
    async with Engine("memory://") as engine:
        with pytest.raises(DefinitionError):
            await engine.run(workflow(then="nowhere"))
        assert await engine.list() == []


def test_P14_a_large_definition_is_checked_within_two_seconds() -> None:
    made = Workflow("large")
    for number in range(1_000):
        made.step(f"s{number}", initial=number == 0, then=[(field("n") == number, "s0"), f"s{number + 1}"])(nothing)
    made.final("s1000")
    began = time.process_time()
    made.check()
    assert time.process_time() - began < 2


def test_P14_a_thousand_unknown_names_are_told_within_two_seconds() -> None:
    made = Workflow("large")
    for number in range(1_000):
        made.step(f"state number {number}", initial=number == 0, then=f"{'x' * 100} {number}")(nothing)
    began = time.process_time()
    assert len(problems(made)) >= 1_000
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"on": "b"}, "state 'a', on: write on={'event': 'state'}, not on='b'"),
        ({"after": "3d"}, "state 'a', after: write after={'3d': 'state'}, not after='3d'"),
        ({"on": ["b"]}, "state 'a', on: write on={'event': 'state'}, not on=['b']"),
    ],
)
def test_targets_that_are_no_mapping_are_named_with_their_place(how: Any, told: str) -> None:
    flow = Workflow("w")
    flow.wait("a", initial=True, **how)
    flow.final("b")
    with pytest.raises(DefinitionError) as error:
        flow.check()
    assert told in error.value.problems


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"retry": 3}, "state 'a', retry: write Retry(attempts=3), not 3"),
        ({}, "state 'a' leads to no end: lead it to a final state, by then=, on=, after= or dest=None"),
    ],
)
def test_what_a_newcomer_leaves_out_is_told_with_what_to_write(how: Any, told: str) -> None:
    flow = Workflow("w")
    flow.step("a", initial=True, **how)(lambda ctx: None)
    with pytest.raises(DefinitionError) as error:
        flow.check()
    assert told in error.value.problems


def test_a_workflow_of_two_thousand_nested_ones_is_checked() -> None:
    inner = Workflow("w0")
    inner.wait("a", initial=True, on={"go": "end"})
    inner.final("end")
    for number in range(1, 2_000):
        outer = Workflow(f"w{number}")
        outer.child("a", inner, initial=True, then="end")
        outer.final("end")
        inner = outer
    assert inner.check() is inner
    engine = Engine("memory://", workflows=[inner])
    assert engine.known("w0").name == "w0"


def test_a_workflow_is_not_well_formed_where_one_of_its_children_is_not() -> None:
    inner = Workflow("inner")
    inner.step("work", initial=True, then="nowhere")(lambda ctx: None)
    outer = Workflow("outer")
    outer.child("a", inner, initial=True, then="end")
    outer.final("end")
    for _ in range(2):
        with pytest.raises(DefinitionError, match=r"workflow 'inner'.*\n.*nowhere"):
            outer.check()
