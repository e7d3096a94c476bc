"""PersistentWorkflowStateMachine and WorkflowDefinition: programs in the style of the first FSM-Workflow.

Stores are given by URL or as objects here; DBConfig has tests of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import Any

import pytest

from fsmworkflow import (
    CodecError,
    Condition,
    ConditionError,
    DefinitionError,
    Engine,
    InvalidKey,
    NoTransition,
    PersistentWorkflowStateMachine,
    Retry,
    RunFailed,
    Store,
    Transition,
    Workflow,
    WorkflowContext,
    WorkflowDefinition,
    WorkflowStep,
    open_store,
)
from tests.waiting import PATIENCE

Steps = dict[str, Any]


class Log:
    """Functions for steps, which note that they ran. `does[name]` is what a step of that name does besides."""

    def __init__(self, *names: str, **does: Any) -> None:
        self.ran: list[str] = []
        self.does = does
        self.steps: Steps = {name: WorkflowStep(name=name, execute=self.step(name)) for name in names}

    def step(self, name: str) -> Any:
        async def execute(context: WorkflowContext) -> Any:
            self.ran.append(name)
            does = self.does.get(name)
            return does(context) if callable(does) else does

        return execute


def definition(steps: list[Any], *transitions: Transition, name: str = "flow") -> WorkflowDefinition:
    return WorkflowDefinition(name=name, steps=steps, transitions=list(transitions))


def machine(
    store: Any, workflow: Any, steps: Steps | None = None, *, key: str | None = None, data: Any = None
) -> PersistentWorkflowStateMachine:
    made = PersistentWorkflowStateMachine(store, workflow, key=key, data=data)
    made.steps = steps or {}
    return made


LINE = definition(["a", "b", "c"], Transition("to_b", "a", "b"), Transition("to_c", "b", "c"))


# -- driving --------------------------------------------------------------------------------------------------------


async def test_a_definition_runs_from_its_first_entry_to_its_last(store_url: str) -> None:
    log = Log("a", "b", "c")
    flow = machine(store_url, LINE, log.steps)
    assert (flow.state, flow.run, flow.data) == ("a", None, None)
    run = await flow.run_workflow()
    assert log.ran == ["a", "b", "c"]
    assert (run.status, flow.state, run.version) == ("done", "c", 3)


async def test_a_machine_takes_a_store_object_and_leaves_it_open_if_it_was(store_url: str) -> None:
    store: Store = open_store(store_url)
    await machine(store, LINE, Log("a", "b", "c").steps).run_workflow()
    assert not store.opened
    await store.open()
    await machine(store, LINE, Log("a", "b", "c").steps).run_workflow()
    assert store.opened
    await store.close()


async def test_a_machine_takes_a_workflow_in_decorator_style_too(store_url: str) -> None:
    workflow = Workflow("decorated")
    workflow.step("a", initial=True, then="end")(lambda ctx: ctx.data.update(n=1))
    workflow.final("end")
    flow = machine(store_url, workflow)
    assert flow.state == "a"
    await flow.run_workflow()
    assert (flow.state, flow.data) == ("end", {"n": 1})


async def test_an_engine_goes_on_with_what_a_machine_began(durable_url: str) -> None:
    log = Log("a", "b", "c", b=lambda ctx: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await machine(durable_url, LINE, log.steps, key="k").run_workflow()
    log.does.clear()
    workflow = LINE.build(log.steps)
    async with Engine(durable_url, workflows=[workflow]) as engine:
        assert (await engine.run(workflow, key="k")).status == "done"
    assert log.ran == ["a", "b", "b", "c"]


async def test_a_machine_may_be_given_data_and_shows_it(store_url: str) -> None:
    log = Log("a", "b", "c", a=lambda ctx: ctx.data.update(seen=ctx.data["n"]))
    flow = machine(store_url, LINE, log.steps, key="k", data={"n": 5})
    assert (await flow.run_workflow()).data == {"n": 5, "seen": 5}
    assert flow.data == {"n": 5, "seen": 5}


async def test_steps_are_given_as_functions_or_as_workflow_steps() -> None:
    log = Log("a", "b", "c")
    steps = {"a": log.step("a"), "b": WorkflowStep("any name", log.step("b")), "c": log.step("c")}
    await machine("memory://", LINE, steps).run_workflow()
    assert log.ran == ["a", "b", "c"]


# -- what a step may return ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "path"),
    [
        (lambda ctx: None, ["a", "b", "c"]),
        (lambda ctx: ctx, ["a", "b", "c"]),
        (lambda ctx: (ctx, None), ["a", "b", "c"]),
        (lambda ctx: (ctx, "jump"), ["a", "c"]),
        (lambda ctx: "jump", ["a", "c"]),
        (lambda ctx: (ctx, "to_b"), ["a", "b", "c"]),
    ],
)
async def test_a_step_returns_context_and_trigger_or_either_or_nothing(
    store_url: str, returned: Any, path: list[str]
) -> None:
    log = Log("a", "b", "c", a=returned)
    flow = definition(["a", "b", "c"], *LINE.transitions, Transition("jump", "*", "c"))
    await machine(store_url, flow, log.steps).run_workflow()
    assert log.ran == path


async def test_the_data_of_a_returned_context_is_what_is_committed(store_url: str) -> None:
    def changed(ctx: WorkflowContext) -> Any:
        ctx.data["dropped"] = True
        return WorkflowContext(data={"own": 1}), None

    def same(ctx: WorkflowContext) -> Any:
        assert ctx.data == {"own": 1}
        ctx.data["more"] = 2
        return ctx, None

    def bare(ctx: WorkflowContext) -> Any:
        return WorkflowContext(data={**ctx.data, "bare": 3})

    log = Log("a", "b", "c", a=changed, b=same, c=bare)
    run = await machine(store_url, LINE, log.steps, data={"before": 0}).run_workflow()
    assert run.data == {"own": 1, "more": 2, "bare": 3}
    assert list(run.data) == ["own", "more", "bare"]


async def test_the_wrapped_synchronous_step_of_the_first_system_runs_as_it_stands(store_url: str) -> None:
    def blocking(context: WorkflowContext) -> tuple[WorkflowContext, None]:
        time.sleep(0.01)
        context.data["blocking"] = "done"
        return context, None

    async def wrapped(context: WorkflowContext) -> Any:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return await loop.run_in_executor(pool, blocking, context)

    log = Log("a", "b", "c")
    log.steps["b"] = WorkflowStep(name="b", execute=wrapped)
    assert (await machine(store_url, LINE, log.steps).run_workflow()).data == {"blocking": "done"}


# -- conditions ------------------------------------------------------------------------------------------------------


async def is_high(value: Any) -> bool:
    await asyncio.sleep(0)
    return value == "high"


@pytest.mark.parametrize(
    ("condition", "data", "holds"),
    [
        (Condition("n", "eq", 1), {"n": 1}, True), (Condition("n", "ne", 1), {"n": 1}, False),
        (Condition("n", "gt", 1), {"n": 2}, True), (Condition("n", "ge", 2), {"n": 2}, True),
        (Condition("n", "lt", 1), {"n": 2}, False), (Condition("n", "le", 2), {"n": 2}, True),
        (Condition("t", "contains", "b"), {"t": "abc"}, True),
        (Condition("t", "not_contains", "b"), {"t": ["b"]}, False),
        (Condition("t", "starts_with", "a"), {"t": "abc"}, True),
        (Condition("t", "ends_with", "a"), {"t": "abc"}, False),
        (Condition("t", "matches", "a.c"), {"t": "abcd"}, True), (Condition("t", "in", ["a", "b"]), {"t": "b"}, True),
        (Condition("t", "not_in", ["a", "b"]), {"t": "b"}, False), (Condition("t", "is_empty"), {"t": []}, True),
        (Condition("t", "is_not_empty"), {"t": "x"}, True), (Condition("t", "is_none"), {}, True),
        (Condition("t", "is_not_none"), {"t": None}, False),
        (Condition("a.b.c", "eq", 1), {"a": {"b": {"c": 1}}}, True),
        (Condition("a.b", "eq", 1), {"a.b": 1, "a": {"b": 2}}, True), (Condition("missing", "gt", 1), {}, False),
        (Condition("t", "gt", 1), {"t": "2"}, False),
        (Condition("t", "eq", 5, custom_function=is_high), {"t": "high"}, True),
        (Condition("t", "custom", None, lambda value: value is None), {}, True),
        (Condition(field="n", operator="ge", value=2, custom_function=None), {"n": 1}, False),
    ],
)  # fmt: skip
async def test_a_condition_chooses_the_way(condition: Condition, data: dict[str, Any], holds: bool) -> None:
    log = Log("a", "b", "c")
    flow = definition(["a", "b", "c"], Transition("yes", "a", "b", [condition]), Transition("no", ["a", "b"], "c"))
    await machine("memory://", flow, log.steps, data=data).run_workflow()
    assert log.ran == (["a", "b", "c"] if holds else ["a", "c"])


async def test_all_conditions_of_a_transition_must_hold_and_the_first_transition_wins(store_url: str) -> None:
    log = Log("a", "b", "c", "d")
    flow = definition(
        ["a", "b", "c", "d"],
        Transition("both", "a", "b", [Condition("n", "gt", 1), Condition("n", "lt", 3)]),
        Transition("one", "a", "c", [Condition("n", "gt", 1)]),
        Transition("else", "a", "d"),
        Transition("on", ["b", "c"], "d"),
    )
    for n, path in ((2, ["a", "b", "d"]), (5, ["a", "c", "d"]), (0, ["a", "d"])):
        log.ran.clear()
        await machine(store_url, flow, log.steps, key=str(n), data={"n": n}).run_workflow()
        assert log.ran == path


async def test_a_condition_that_raises_fails_the_run_with_that_error(store_url: str) -> None:
    log = Log("a", "b")
    flow = definition(
        ["a", "b"], Transition("x", "a", "b", [Condition("n", "custom", custom_function=lambda n: 1 / 0)])
    )
    with pytest.raises(ZeroDivisionError):
        await machine(store_url, flow, log.steps).run_workflow()


async def test_no_condition_holds_and_the_run_fails_with_what_they_saw(store_url: str) -> None:
    log = Log("a", "b")
    flow = definition(["a", "b"], Transition("x", "a", "b", [Condition("n", "gt", 1)]))
    with pytest.raises(NoTransition, match=r"n > 1: False \(n = 0\)"):
        await machine(store_url, flow, log.steps, data={"n": 0}).run_workflow()


# -- transitions and ends --------------------------------------------------------------------------------------------


async def test_one_transition_may_lead_out_of_many_states(store_url: str) -> None:
    log = Log("a", "b", "c")
    flow = definition(["a", "b", "c"], Transition("on", "a", "b"), Transition("end", ["a", "b"], "c"))
    await machine(store_url, flow, log.steps).run_workflow()
    assert log.ran == ["a", "b", "c"]


async def test_a_transition_from_anywhere_is_taken_only_by_a_returned_trigger(store_url: str) -> None:
    flow = definition(["a", "b", "c"], Transition("abort", "*", "c"), *LINE.transitions)
    log = Log("a", "b", "c")
    await machine(store_url, flow, log.steps, key="1").run_workflow()
    assert log.ran == ["a", "b", "c"]
    log = Log("a", "b", "c", a="abort")
    await machine(store_url, flow, log.steps, key="2").run_workflow()
    assert log.ran == ["a", "c"]


async def test_a_transition_without_a_target_ends_the_run_where_it_is(store_url: str) -> None:
    log = Log("a", "b", "c")
    flow = definition(
        ["a", "b", "c"], Transition("x", "a", "b"), Transition("end", "b", None), Transition("y", "b", "c")
    )
    made = machine(store_url, flow, log.steps)
    run = await made.run_workflow()
    assert (log.ran, made.state, run.status) == (["a", "b"], "b", "done")


async def test_the_last_entry_ends_the_run_when_it_returned_no_trigger_whatever_its_transitions(store_url: str) -> None:
    flow = definition(["a", "b"], Transition("x", "a", "b"), Transition("again", "b", "a"))
    log = Log("a", "b")
    await machine(store_url, flow, log.steps, key="1").run_workflow()
    assert log.ran == ["a", "b"]
    log = Log("a", "b", b=lambda ctx: "again" if len(log.ran) < 4 else None)
    await machine(store_url, flow, log.steps, key="2").run_workflow()
    assert log.ran == ["a", "b", "a", "b"]


async def test_an_entry_without_transitions_ends_the_run(store_url: str) -> None:
    flow = definition(
        ["a", "dead end", "c"], Transition("x", "a", "dead end", [Condition("n", "eq", 1)]), Transition("y", "a", "c")
    )
    log = Log("a", "dead end", "c")
    made = machine(store_url, flow, log.steps, data={"n": 1})
    assert (await made.run_workflow()).status == "done"
    assert (log.ran, made.state) == (["a", "dead end"], "dead end")


async def test_a_returned_trigger_that_nothing_takes_is_an_error_and_no_loop(store_url: str) -> None:
    log = Log("a", "b", "c", b="to_d")
    made = machine(store_url, LINE, log.steps)
    with pytest.raises(NoTransition, match=r"'to_d'.*did you mean 'to_"):
        await made.run_workflow()
    assert log.ran == ["a", "b"]
    assert made.run is not None
    assert (made.run.status, made.state) == ("failed", "b")


async def test_a_definition_of_one_step_runs_it() -> None:
    log = Log("only")
    assert (await machine("memory://", definition(["only"]), log.steps).run_workflow()).status == "done"
    assert log.ran == ["only"]


# -- actions ---------------------------------------------------------------------------------------------------------


class Telling(PersistentWorkflowStateMachine):
    told: list[Any]

    def tell(self, ctx: WorkflowContext) -> None:
        self.told.append(("tell", ctx.state, dict(ctx.data)))

    async def tell_later(self, ctx: WorkflowContext) -> None:
        await asyncio.sleep(0)
        self.told.append(("later", ctx.state, dict(ctx.data)))


async def test_a_transition_may_name_a_method_of_the_machine_to_call_afterwards(store_url: str) -> None:
    log = Log("a", "b", "c", a=lambda ctx: ctx.data.update(n=1))
    flow = definition(
        ["a", "b", "c"], Transition("x", "a", "b", after="tell"), Transition("y", "b", "c", after="tell_later"),
        Transition("z", "c", None, after="tell"),
    )  # fmt: skip
    made = Telling(store_url, flow)
    made.steps, made.told = log.steps, []
    assert (await made.run_workflow()).status == "done"
    assert made.told == [("tell", "b", {"n": 1}), ("later", "c", {"n": 1})]


async def test_an_action_may_be_a_function_and_sees_data_that_it_cannot_change(store_url: str) -> None:
    seen: list[Any] = []

    def act(ctx: WorkflowContext) -> None:
        with pytest.raises(TypeError):
            ctx.data["n"] = 2
        seen.append(ctx.data["n"])

    log = Log("a", "b")
    flow = definition(["a", "b"], Transition("x", "a", "b", after=act))
    assert (await machine(store_url, flow, log.steps, data={"n": 1}).run_workflow()).data == {"n": 1}
    assert seen == [1]


async def test_an_action_runs_again_after_a_failure_until_it_succeeded(durable_url: str) -> None:
    class Failing(PersistentWorkflowStateMachine):
        broken = True
        told = 0

        def tell(self, ctx: WorkflowContext) -> None:
            if self.broken:
                raise OSError("nobody listens")
            Failing.told += 1

    log = Log("a", "b")
    flow = definition(["a", "b"], Transition("x", "a", "b", after="tell"))
    for Failing.broken in (True, False):
        made = Failing(durable_url, flow, key="k")
        made.steps = log.steps
        if made.broken:
            with pytest.raises(OSError, match="nobody listens"):
                await made.run_workflow()
        else:
            assert (await made.run_workflow()).status == "done"
    assert (log.ran, Failing.told) == (["a", "b"], 1)


async def test_mark_completed_ends_the_run_where_the_transition_leads(store_url: str) -> None:
    log = Log("a", "b", "c")
    flow = definition(
        ["a", "b", "c"],
        Transition("x", "a", "b", after="mark_completed"),
        Transition("y", "b", "c"),
        Transition("z", "*", "c"),
    )
    made = machine(store_url, flow, log.steps)
    assert (await made.run_workflow()).status == "done"
    assert (log.ran, made.state) == (["a"], "b")


def test_an_action_that_is_no_method_of_the_machine_is_refused() -> None:
    flow = definition(["a", "b"], Transition("x", "a", "b", after="tel"))
    made = Telling("memory://", flow)
    made.steps = Log("a", "b").steps
    with pytest.raises(DefinitionError, match="'tel'"):
        asyncio.run(made.run_workflow())


# -- which run it takes up -------------------------------------------------------------------------------------------


async def test_without_a_key_a_finished_run_is_followed_by_a_new_one(durable_url: str) -> None:
    log = Log("a", "b", "c")
    runs = [await machine(durable_url, LINE, log.steps).run_workflow() for _ in range(2)]
    assert runs[0].key != runs[1].key
    assert log.ran == ["a", "b", "c"] * 2


async def test_a_program_that_failed_goes_on_at_the_step_that_failed_when_it_runs_again(durable_url: str) -> None:
    log = Log("a", "b", "c", a=lambda ctx: ctx.data.update(n=1), b=lambda ctx: 1 / 0)
    made = machine(durable_url, LINE, log.steps)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await made.run_workflow()
    assert made.state == "b"
    log.does.clear()
    again = machine(durable_url, LINE, log.steps)
    assert (await again.run_workflow()).data == {"n": 1}
    assert log.ran == ["a", "b", "b", "b", "c"]
    async with Engine(durable_url) as engine:
        assert len(await engine.list()) == 1


async def test_the_same_machine_may_be_run_again_after_a_failure(store_url: str) -> None:
    log = Log("a", "b", "c", b=lambda ctx: 1 / 0)
    store = open_store(store_url)
    made = machine(store, LINE, log.steps)
    with pytest.raises(ZeroDivisionError):
        await made.run_workflow()
    log.does.clear()
    assert (await made.run_workflow()).status == "done"
    assert log.ran == ["a", "b", "b", "c"]


async def test_the_oldest_run_that_may_go_on_is_taken_up_first(durable_url: str) -> None:
    log = Log("a", "b", "c", b=lambda ctx: 1 / 0)
    for key in ("first", "second", "third"):
        with pytest.raises(ZeroDivisionError):
            await machine(durable_url, LINE, log.steps, key=key).run_workflow()
    log.does.clear()
    await machine(durable_url, LINE, log.steps, key="second").run_workflow()
    assert [(await machine(durable_url, LINE, log.steps).run_workflow()).key for _ in range(2)] == ["first", "third"]
    assert (await machine(durable_url, LINE, log.steps).run_workflow()).key not in ("first", "second", "third")


async def test_runs_of_another_workflow_name_are_left_alone(durable_url: str) -> None:
    log = Log("a", "b", "c", b=lambda ctx: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await machine(durable_url, LINE, log.steps, key="k").run_workflow()
    other = definition(LINE.steps, *LINE.transitions, name="other")
    assert (await machine(durable_url, other, Log("a", "b", "c").steps).run_workflow()).key != "k"


async def test_a_run_that_ended_as_failed_is_not_taken_up(durable_url: str) -> None:
    workflow = Workflow("refusing")
    workflow.step("a", initial=True, then="refused")(lambda ctx: None)
    workflow.final("refused", outcome="failed")
    keys = []
    for _ in range(2):
        with pytest.raises(RunFailed) as caught:
            await machine(durable_url, workflow).run_workflow()
        keys.append(caught.value.run.key)
    assert keys[0] != keys[1]


async def test_with_a_key_a_finished_run_is_only_reported(durable_url: str) -> None:
    log = Log("a", "b", "c")
    for _ in range(2):
        made = machine(durable_url, LINE, log.steps, key="k")
        assert (await made.run_workflow()).status == "done"
        assert made.state == "c"
    assert log.ran == ["a", "b", "c"]


async def test_a_cancelled_run_stays_where_it_is_and_is_resumed(durable_url: str) -> None:
    hang, inside = True, asyncio.Event()

    async def b(context: WorkflowContext) -> None:
        context.data["b"] = True
        inside.set()
        if hang:
            await asyncio.sleep(60)

    log = Log("a", "b", "c")
    log.steps["b"] = WorkflowStep("b", b)
    task = asyncio.create_task(machine(durable_url, LINE, log.steps).run_workflow())
    await asyncio.wait_for(inside.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with Engine(durable_url) as engine:
        (run,) = await engine.list()
        assert (run.status, run.state, run.owner, run.data) == ("running", "b", None, {})
    hang = False
    assert (await machine(durable_url, LINE, log.steps).run_workflow()).key == run.key
    assert log.ran == ["a", "c"]


# -- several machines ------------------------------------------------------------------------------------------------


async def test_two_machines_without_a_key_drive_two_runs_at_once(store_url: str) -> None:
    meet, store = asyncio.Barrier(2), open_store(store_url)
    log = Log("a", "b", "c")

    async def b(context: WorkflowContext) -> None:
        async with asyncio.timeout(PATIENCE):
            await meet.wait()

    log.steps["b"] = WorkflowStep("b", b)
    runs = await asyncio.gather(*(machine(store, LINE, log.steps).run_workflow() for _ in range(2)))
    assert len({run.key for run in runs}) == 2
    assert not store.opened


async def test_two_machines_of_two_stores_without_a_key_drive_two_runs_at_once(durable_url: str) -> None:
    meet = asyncio.Barrier(2)
    log = Log("a", "b", "c")

    async def b(context: WorkflowContext) -> None:
        async with asyncio.timeout(PATIENCE):
            await meet.wait()

    log.steps["b"] = WorkflowStep("b", b)
    runs = await asyncio.gather(*(machine(durable_url, LINE, log.steps).run_workflow() for _ in range(2)))
    assert len({run.key for run in runs}) == 2


async def test_two_machines_with_one_key_drive_one_run(store_url: str) -> None:
    log, store = Log("a", "b", "c"), open_store(store_url)
    runs = await asyncio.gather(*(machine(store, LINE, log.steps, key="k").run_workflow() for _ in range(5)))
    assert {(run.key, run.status) for run in runs} == {("k", "done")}
    assert log.ran == ["a", "b", "c"]


async def test_machines_that_begin_at_once_take_up_one_unfinished_run_each(durable_url: str) -> None:
    log = Log("a", "b", "c", b=lambda ctx: 1 / 0)
    for key in "123":
        with pytest.raises(ZeroDivisionError):
            await machine(durable_url, LINE, log.steps, key=key).run_workflow()
    log.does.clear()
    store = open_store(durable_url)
    runs = await asyncio.gather(*(machine(store, LINE, log.steps).run_workflow() for _ in range(4)))
    keys = {run.key for run in runs}
    assert len(keys) == 4
    assert {"1", "2", "3"} < keys
    assert (log.ran.count("a"), log.ran.count("c")) == (4, 4)


async def test_machines_of_two_stores_that_begin_at_once_take_up_one_unfinished_run_each(durable_url: str) -> None:
    log = Log("a", "b", "c", b=lambda ctx: 1 / 0)
    for key in "12":
        with pytest.raises(ZeroDivisionError):
            await machine(durable_url, LINE, log.steps, key=key).run_workflow()
    log.does.clear()
    runs = await asyncio.gather(*(machine(durable_url, LINE, log.steps).run_workflow() for _ in range(3)))
    keys = {run.key for run in runs}
    assert len(keys) == 3
    assert {"1", "2"} < keys


async def test_two_workflows_run_at_once_on_one_store(store_url: str) -> None:
    other, store = definition(LINE.steps, *LINE.transitions, name="other"), open_store(store_url)
    log = Log("a", "b", "c")
    runs = await asyncio.gather(
        machine(store, LINE, log.steps).run_workflow(), machine(store, other, log.steps).run_workflow()
    )
    assert {(run.workflow, run.status) for run in runs} == {("flow", "done"), ("other", "done")}


async def test_one_definition_serves_many_machines_with_functions_of_their_own(store_url: str) -> None:
    logs, store = [Log("a", "b", "c") for _ in range(10)], open_store(store_url)
    await asyncio.gather(*(machine(store, LINE, log.steps).run_workflow() for log in logs))
    assert [log.ran for log in logs] == [["a", "b", "c"]] * 10


# -- checked together ------------------------------------------------------------------------------------------------


async def test_definition_and_functions_are_checked_together_before_anything_is_opened(tmp_path: Any) -> None:
    made = machine(f"sqlite:///{tmp_path}/x.db", LINE, Log("a", "b").steps)
    with pytest.raises(DefinitionError, match="'c' has no function"):
        await made.run_workflow()
    assert list(tmp_path.iterdir()) == []
    made.steps = Log("a", "b", "c").steps
    assert (await made.run_workflow()).status == "done"


async def test_a_key_that_cannot_be_kept_is_refused(store_url: str) -> None:
    for key in ("x" * 201, "a\0b", "\ud800", "", 5):
        with pytest.raises(InvalidKey, match="key"):
            await machine(store_url, LINE, Log("a", "b", "c").steps, key=key).run_workflow()  # type: ignore[arg-type]


async def test_data_that_cannot_be_kept_is_refused_before_any_write(durable_url: str) -> None:
    with pytest.raises(CodecError, match=r"data\.x"):
        await machine(durable_url, LINE, Log("a", "b", "c").steps, data={"x": (1,)}).run_workflow()
    async with Engine(durable_url) as engine:
        assert await engine.list() == []


async def test_a_workflow_asks_strictly_where_a_definition_asks_as_the_first_system_did() -> None:
    workflow = Workflow("strict")
    workflow.step("a", initial=True, then=[(Condition("n", "gt", 1), "end"), "end"])(lambda ctx: None)
    workflow.final("end")
    with pytest.raises(ConditionError, match="missing"):
        await machine("memory://", workflow).run_workflow()


async def test_a_step_of_a_definition_may_have_retry_and_timeout(store_url: str) -> None:
    attempts: list[int] = []

    async def a(context: WorkflowContext) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            await asyncio.sleep(60)

    log = Log("a", "b", "c")
    log.steps["a"] = WorkflowStep("a", a, retry=Retry(attempts=2, first_delay=0), timeout=0.3)
    assert (await machine(store_url, LINE, log.steps).run_workflow()).status == "done"
    assert attempts == [1, 2]
