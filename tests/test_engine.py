"""Engine: run, start, result, get, list, history and resume; keys, failures, cancelled waiting and closing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from typing import Any

import pytest

from fsmworkflow import (
    CodecError,
    DefinitionChanged,
    DefinitionError,
    EndlessLoop,
    Engine,
    EngineClosed,
    InputDiffers,
    InvalidKey,
    NoTransition,
    Retry,
    Run,
    RunFailed,
    RunNotFound,
    StepTimeout,
    StoreError,
    To,
    UnknownWorkflow,
    Workflow,
    WorkflowContext,
    actions,
    field,
)
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE, until


class Bench:
    """A workflow of three steps that can be stopped, failed and watched."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.workflow = Workflow("bench")
        self.workflow.step("one", initial=True, then="two")(self.one)
        self.workflow.step("two", then="three")(self.two)
        self.workflow.step("three", then="end")(self.three)
        self.workflow.final("end")

    async def one(self, ctx: WorkflowContext) -> None:
        self.ran.append("one")
        ctx.data["n"] = ctx.data.get("n", 0) + 1

    async def two(self, ctx: WorkflowContext) -> None:
        self.ran.append("two")
        await self.gate.wait()
        if self.fails:
            raise OSError("no paper")
        ctx.data["n"] += 1

    async def three(self, ctx: WorkflowContext) -> None:
        self.ran.append("three")
        ctx.data["n"] += 1


@pytest.fixture
async def bench() -> Bench:
    return Bench()


# -- run ------------------------------------------------------------------------------------------------------------


async def test_run_drives_to_the_end_and_returns_the_run(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        run = await engine.run(bench.workflow, {"n": 10}, key="k")
    assert (run.workflow, run.key, run.state, run.status, run.version) == ("bench", "k", "end", "done", 3)
    assert run.data == {"n": 13}
    assert (run.error, run.owner, run.due) == (None, None, None)
    assert 0 < run.created <= run.updated
    assert bench.ran == ["one", "two", "three"]


async def test_without_a_key_each_run_is_a_new_one_and_has_a_key(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        runs = await asyncio.gather(*(engine.run(bench.workflow) for _ in range(5)))
        assert len({run.key for run in runs}) == 5
        assert all([(await engine.get(bench.workflow, run.key)).status == "done" for run in runs])


async def test_a_workflow_may_be_named_by_its_name(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        assert (await engine.run("bench", key="k")).status == "done"
        assert (await engine.get("bench", "k")).state == "end"
        assert (await engine.result("bench", "k")).state == "end"
        assert len(await engine.history("bench", "k")) == 4


async def test_a_run_that_is_over_is_only_reported(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        first = await engine.run(bench.workflow, key="k")
        again = await engine.run(bench.workflow, key="k")
    assert again.version == first.version
    assert bench.ran == ["one", "two", "three"]


async def test_P7_one_key_started_many_times_at_once_is_one_run(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        runs = await asyncio.gather(*(engine.run(bench.workflow, {"n": 0}, key="k") for _ in range(20)))
    assert {run.data["n"] for run in runs} == {3}
    assert bench.ran == ["one", "two", "three"]


async def test_P7_two_engines_that_start_one_key_drive_it_once(durable_url: str, bench: Bench) -> None:
    async with (
        Engine(durable_url, workflows=[bench.workflow]) as one,
        Engine(durable_url, workflows=[bench.workflow]) as two,
    ):
        runs = await asyncio.gather(one.run(bench.workflow, key="k"), two.run(bench.workflow, key="k"))
    assert [run.data["n"] for run in runs] == [3, 3]
    assert bench.ran == ["one", "two", "three"]


async def test_the_same_key_of_two_workflows_is_two_runs(store_url: str) -> None:
    one, two = Bench().workflow, Bench().workflow
    two.name = "other"
    async with Engine(store_url, workflows=[one, two]) as engine:
        await engine.run(one, {"n": 1}, key="k")
        assert (await engine.run(two, {"n": 5}, key="k")).data == {"n": 8}
        assert (await engine.get(one, "k")).data == {"n": 4}


@pytest.mark.parametrize("key", ["x" * 201, "a\nb", "a\0b", "\ud800"])
async def test_a_key_that_cannot_be_kept_is_refused(store_url: str, bench: Bench, key: str) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        with pytest.raises(InvalidKey, match=r"^key "):
            await engine.run(bench.workflow, key=key)
        assert await engine.list() == []


@pytest.mark.parametrize("key", ["", 5, b"k"])
async def test_a_key_that_is_no_text_or_empty_is_refused(bench: Bench, key: Any) -> None:
    async with Engine("memory://", workflows=[bench.workflow]) as engine:
        with pytest.raises(InvalidKey, match=r"^key "):
            await engine.run(bench.workflow, key=key)


@pytest.mark.parametrize("key", ["\u00e9", "e\u0301", "a b/c%20'\"?", "\U0001f600" * 100, "K", "k", " k"])
async def test_any_other_key_is_kept_as_it_is(store_url: str, bench: Bench, key: str) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        await engine.run(bench.workflow, key="k2")
        assert (await engine.run(bench.workflow, key=key)).key == key
        assert [run.key for run in await engine.list()] == ["k2", key]


# -- a different input -----------------------------------------------------------------------------------------------


async def test_P7_a_different_input_is_told_in_the_log_and_the_run_that_is_there_wins(
    store_url: str, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        await engine.run(bench.workflow, {"n": 1}, key="k")
        with caplog.at_level(logging.WARNING, "fsmworkflow"):
            assert (await engine.run(bench.workflow, {"n": 2}, key="k")).data == {"n": 4}
            assert (await engine.start(bench.workflow, {"n": 3}, key="k")).data == {"n": 4}
    assert [("bench/k" in line, "different input" in line) for line in caplog.messages] == [(True, True)] * 2


async def test_P7_a_different_input_is_refused_where_that_is_asked_for(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        await engine.run(bench.workflow, {"n": 1}, key="k")
        for verb in (engine.run, engine.start):
            with pytest.raises(InputDiffers, match="bench/k"):
                await verb(bench.workflow, {"n": 2}, key="k", different="refuse")
            assert (await verb(bench.workflow, {"n": 1}, key="k", different="refuse")).data == {"n": 4}
            assert (await verb(bench.workflow, key="k", different="refuse")).data == {"n": 4}


async def test_P7_a_refused_input_does_not_take_up_a_run_that_failed(store_url: str, bench: Bench) -> None:
    bench.fails = True
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        with pytest.raises(RunFailed):
            await engine.run(bench.workflow, {"n": 1}, key="k")
        bench.fails = False
        with pytest.raises(InputDiffers):
            await engine.run(bench.workflow, {"n": 2}, key="k", different="refuse")
        assert (await engine.get(bench.workflow, "k")).status == "failed"


async def test_an_unknown_way_with_different_inputs_is_refused(bench: Bench) -> None:
    async with Engine("memory://", workflows=[bench.workflow]) as engine:
        with pytest.raises(ValueError, match="different"):
            await engine.run(bench.workflow, {"n": 1}, key="k", different="ignore")  # type: ignore[arg-type]


# -- failing --------------------------------------------------------------------------------------------------------


async def test_a_step_that_raises_makes_run_raise_with_the_run_and_the_cause(store_url: str, bench: Bench) -> None:
    bench.fails = True
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        with pytest.raises(RunFailed, match=r"bench/k.*'two'.*OSError: no paper") as caught:
            await engine.run(bench.workflow, key="k")
        run = await engine.get(bench.workflow, "k")
    assert isinstance(caught.value.__cause__, OSError)
    assert (caught.value.run.key, caught.value.run.status, caught.value.run.state) == ("k", "failed", "two")
    assert run.error is not None
    assert (run.error.type, run.error.message, run.error.state, run.error.attempt) == ("OSError", "no paper", "two", 1)
    assert "test_engine.py" in run.error.traceback
    assert run.data == {"n": 1}


async def test_a_failed_run_goes_on_at_the_step_that_failed(store_url: str, bench: Bench) -> None:
    bench.fails = True
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        with pytest.raises(RunFailed):
            await engine.run(bench.workflow, key="k")
        visit = (await engine.get(bench.workflow, "k")).visit
        with pytest.raises(RunFailed):
            await engine.run(bench.workflow, key="k")
        assert (await engine.get(bench.workflow, "k")).visit == visit
        bench.fails = False
        run = await engine.run(bench.workflow, key="k")
    assert (run.status, run.data, run.error) == ("done", {"n": 3}, None)
    assert bench.ran == ["one", "two", "two", "two", "three"]


async def test_a_restarted_program_goes_on_at_the_step_that_failed(durable_url: str, bench: Bench) -> None:
    for bench.fails in (True, False):
        async with Engine(durable_url, workflows=[bench.workflow]) as engine:
            if bench.fails:
                with pytest.raises(RunFailed):
                    await engine.run(bench.workflow, key="k")
            else:
                assert (await engine.run(bench.workflow, key="k")).status == "done"
    assert bench.ran == ["one", "two", "two", "three"]


async def test_start_get_and_result_return_a_failed_run_and_start_does_not_take_it_up(
    store_url: str, bench: Bench
) -> None:
    bench.fails = True
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        await engine.start(bench.workflow, key="k")
        assert (await engine.result(bench.workflow, "k")).status == "failed"
        assert (await engine.get(bench.workflow, "k")).status == "failed"
        bench.fails = False
        assert (await engine.start(bench.workflow, key="k")).status == "failed"
        assert (await engine.result(bench.workflow, "k")).status == "failed"


async def test_other_runs_go_on_when_one_fails(store_url: str) -> None:
    workflow = Workflow("some fail")

    @workflow.step(initial=True, then="end")
    async def step(ctx: WorkflowContext) -> None:
        await asyncio.sleep(0.01)
        if ctx.data["n"] % 2:
            raise ValueError(ctx.data["n"])

    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        found = await asyncio.gather(*(engine.run(workflow, {"n": n}) for n in range(10)), return_exceptions=True)
    assert [isinstance(run, RunFailed) for run in found] == [False, True] * 5
    assert [str(run.__cause__) for run in found if isinstance(run, RunFailed)] == ["1", "3", "5", "7", "9"]


async def test_a_business_failure_is_over_and_has_no_error(store_url: str) -> None:
    workflow = Workflow("refusing")
    ran: list[int] = []
    workflow.step("ask", initial=True, then="refused")(lambda ctx: ran.append(1))
    workflow.final("refused", outcome="failed")
    async with Engine(store_url, workflows=[workflow]) as engine:
        for _ in range(2):
            with pytest.raises(RunFailed, match="'refused'") as caught:
                await engine.run(workflow, key="k")
            assert (caught.value.run.error, caught.value.__cause__) == (None, None)
        assert (await engine.result(workflow, "k")).state == "refused"
        assert await engine.resume() == 0
    assert ran == [1]


@pytest.mark.parametrize(
    ("returned", "kind", "parts"),
    [
        ("nowhere", NoTransition, "'nowhere'"),
        ({"n": 1}, TypeError, "ctx.data"),
        (5, TypeError, "ctx.data"),
        (("a", "b"), TypeError, "ctx.data"),
        ((WorkflowContext(), 5), TypeError, "ctx.data"),
        (WorkflowContext({"n": (1,)}), CodecError, "data.n"),
        (WorkflowContext([1]), CodecError, "dict"),
    ],
)
async def test_a_step_that_returns_what_cannot_be_meant_fails(returned: Any, kind: type[Exception], parts: str) -> None:
    async def step(ctx: WorkflowContext) -> Any:
        return returned

    workflow = Workflow("returning")
    workflow.step("work", initial=True, then="end")(step)
    workflow.final("end")
    async with Engine("memory://", workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match=parts) as caught:
            await engine.run(workflow, key="k")
        assert isinstance(caught.value.__cause__, kind)
        run = await engine.get(workflow, "k")
    assert (run.state, run.data) == ("work", {})


async def test_no_condition_holds_and_the_error_says_what_each_one_saw(store_url: str) -> None:
    workflow = Workflow("stuck")
    workflow.step("work", initial=True, then=[(field("score") >= 8, "end")])(lambda ctx: ctx.data.update(score=3))
    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match=r"score >= 8: False \(score = 3\)") as caught:
            await engine.run(workflow, key="k")
        assert isinstance(caught.value.__cause__, NoTransition)
        (entry,) = (await engine.history(workflow, "k"))[1:]
    assert [(one.condition, one.values, one.answer) for one in entry.asked] == [("score >= 8", {"score": "3"}, False)]


async def test_a_loop_without_a_step_fails_and_names_its_cycle(store_url: str) -> None:
    workflow = Workflow("loop")
    workflow.step("work", initial=True, then="a")(lambda ctx: None)
    workflow.choice("a", [(field("never").is_not_none(), "end"), "b"])
    workflow.choice("b", "a")
    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match=r"a -> b|b -> a") as caught:
            await engine.run(workflow, key="k")
    assert isinstance(caught.value.__cause__, EndlessLoop)


# -- retry and timeout -----------------------------------------------------------------------------------------------


async def test_a_step_is_tried_as_often_as_its_retry_says_and_history_has_every_attempt(store_url: str) -> None:
    workflow = Workflow("trying")

    @workflow.step(initial=True, then="end", retry=Retry(attempts=3, first_delay=0.01))
    async def work(ctx: WorkflowContext) -> None:
        if ctx.attempt < 3:
            raise OSError(f"attempt {ctx.attempt}")

    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        run = await engine.run(workflow, key="k")
        history = await engine.history(workflow, "k")
    assert (run.status, run.error) == ("done", None)
    assert [(e.event, e.attempt, e.error and e.error.message) for e in history] == [
        ("$start", 1, None), ("$error", 1, "attempt 1"), ("$error", 2, "attempt 2"), ("$done", 3, None),
    ]  # fmt: skip


@pytest.mark.parametrize("style", ["async", "sync"])
async def test_a_step_that_takes_longer_than_its_timeout_fails(
    store_url: str, style: str, stopwatch: Stopwatch
) -> None:
    async def slow(ctx: WorkflowContext) -> None:
        await asyncio.sleep(30)

    def blocking(ctx: WorkflowContext) -> None:
        time.sleep(0.5)
        ctx.data["late"] = True

    step: Any = slow if style == "async" else blocking
    workflow = Workflow("slow")
    workflow.step("work", initial=True, then="end", timeout="50ms")(step)
    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        began = time.monotonic()
        with pytest.raises(RunFailed, match=r"0\.05 s") as caught:
            await engine.run(workflow, key="k")
        assert stopwatch.since(began) < 5
        assert (await engine.get(workflow, "k")).data == {}
    assert isinstance(caught.value.__cause__, StepTimeout)


async def test_a_steps_own_timeout_error_is_its_own() -> None:
    async def step(ctx: WorkflowContext) -> None:
        raise TimeoutError("mine")

    workflow = Workflow("own")
    workflow.step("work", initial=True, then="end", timeout=5)(step)
    workflow.final("end")
    async with Engine("memory://", workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match="mine") as caught:
            await engine.run(workflow)
    assert type(caught.value.__cause__) is TimeoutError


# -- start and result ------------------------------------------------------------------------------------------------


async def test_start_is_durable_when_it_returns_and_the_engine_drives_on(durable_url: str, bench: Bench) -> None:
    bench.gate.clear()
    async with Engine(durable_url, workflows=[bench.workflow]) as engine, Engine(durable_url) as other:
        started = await engine.start(bench.workflow, {"n": 5}, key="k")
        assert (started.key, started.version, started.data) == ("k", 0, {"n": 5})
        assert (await other.get("bench", "k")).key == "k"
        await until(lambda: "two" in bench.ran)
        bench.gate.set()
        assert (await engine.result(bench.workflow, "k")).data == {"n": 8}


async def test_starting_what_is_there_starts_nothing_twice(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        await asyncio.gather(*(engine.start(bench.workflow, {"n": 0}, key="k") for _ in range(10)))
        assert (await engine.result(bench.workflow, "k")).status == "done"
        assert len(await engine.list()) == 1
    assert bench.ran == ["one", "two", "three"]


async def test_result_waits_for_a_run_that_another_engine_drives(durable_url: str, bench: Bench) -> None:
    bench.gate.clear()
    async with (
        Engine(durable_url, workflows=[bench.workflow]) as one,
        Engine(durable_url, workflows=[bench.workflow]) as two,
    ):
        await one.start(bench.workflow, key="k")
        waiting = [
            asyncio.create_task(two.result(bench.workflow, "k")),
            asyncio.create_task(two.run(bench.workflow, key="k")),
        ]
        await until(lambda: "two" in bench.ran)
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting)
        bench.gate.set()
        assert [(await task).status for task in waiting] == ["done", "done"]
    assert bench.ran == ["one", "two", "three"]


async def test_what_is_not_there_is_told(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        for verb in (engine.get, engine.result, engine.history):
            with pytest.raises(RunNotFound, match=r"'nobody'.*'bench'"):
                await verb(bench.workflow, "nobody")
        with pytest.raises(UnknownWorkflow, match="'unknown'"):
            await engine.run("unknown")
        with pytest.raises(LookupError):
            await engine.start("unknown")


async def test_an_engine_has_one_workflow_of_a_name(bench: Bench) -> None:
    async with Engine("memory://", workflows=[bench.workflow]) as engine:
        with pytest.raises(DefinitionError, match="'bench'"):
            await engine.run(Bench().workflow)
    with pytest.raises(DefinitionError, match="'bench'"):
        Engine("memory://", workflows=[bench.workflow, Bench().workflow])


# -- get, list, history ----------------------------------------------------------------------------------------------


async def test_runs_are_listed_by_workflow_status_and_state_in_pages(store_url: str, bench: Bench) -> None:
    other = Bench().workflow
    other.name = "other"
    async with Engine(store_url, workflows=[bench.workflow, other]) as engine:
        for number in range(7):
            bench.fails = number % 3 == 0
            await asyncio.gather(engine.run(bench.workflow, key=f"b{number}"), return_exceptions=True)
        await engine.run(other, key="o")
        assert [run.key for run in await engine.list()] == [*(f"b{n}" for n in range(7)), "o"]
        assert [run.key for run in await engine.list(other)] == ["o"]
        assert [run.key for run in await engine.list("bench", status="failed")] == ["b0", "b3", "b6"]
        assert [run.key for run in await engine.list(state="two")] == ["b0", "b3", "b6"]
        assert [run.key for run in await engine.list(status="done", state="end")] == ["b1", "b2", "b4", "b5", "o"]
        assert await engine.list("bench", status="running") == []
        pages: list[list[str]] = []
        last: Run | None = None
        while page := await engine.list("bench", limit=3, after=last):
            pages.append([run.key for run in page])
            last = page[-1]
        assert pages == [["b0", "b1", "b2"], ["b3", "b4", "b5"], ["b6"]]
        with pytest.raises(ValueError, match="'ended'"):
            await engine.list(status="ended")  # type: ignore[arg-type]
        assert await engine.list(limit=0) == []


async def test_P8_history_is_gapless_and_tells_every_move(store_url: str, bench: Bench) -> None:
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        await engine.run(bench.workflow, {"n": 0, "untouched": 1}, key="k")
        history = await engine.history(bench.workflow, "k")
    assert [(e.version, e.event, e.source, e.dest, e.status) for e in history] == [
        (0, "$start", "", "one", "running"), (1, "$done", "one", "two", "running"),
        (2, "$done", "two", "three", "running"), (3, "$done", "three", "end", "done"),
    ]  # fmt: skip
    assert [e.changes for e in history] == [{"n": 0, "untouched": 1}, {"n": 1}, {"n": 2}, {"n": 3}]
    assert len({(e.owner, e.epoch) for e in history}) == 1
    assert all(e.began is None or e.began <= e.at for e in history)
    assert [e.at for e in history] == sorted(e.at for e in history)


async def test_a_run_is_shown_as_plain_values(store_url: str, bench: Bench) -> None:
    bench.fails = True
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        await asyncio.gather(engine.run(bench.workflow, {"when": {"a": [1]}}, key="k"), return_exceptions=True)
        shown = (await engine.get(bench.workflow, "k")).to_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["workflow"], shown["key"], shown["state"], shown["status"]) == ("bench", "k", "two", "failed")
    assert shown["data"] == {"when": {"a": [1]}, "n": 1}
    assert shown["error"]["type"] == "OSError"
    assert "owner" not in shown


@dataclasses.dataclass
class Order:
    customer: str
    total: int = 0
    lines: list[int] = dataclasses.field(default_factory=list)


async def test_typed_data_is_of_its_type_in_steps_conditions_and_results(store_url: str) -> None:
    workflow = Workflow("order", data=Order)

    @workflow.step(initial=True, then=[(field("total") > 2, "end")])
    async def add_up(ctx: WorkflowContext[Order]) -> None:
        assert type(ctx.data) is Order
        ctx.data.total = sum(ctx.data.lines)

    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        assert (await engine.run(workflow, Order("Ann", lines=[1, 2]), key="a")).data == Order("Ann", 3, [1, 2])
        assert (await engine.run(workflow, {"customer": "Bob", "lines": [4]}, key="b")).data == Order("Bob", 4, [4])
        assert [type(run.data) for run in await engine.list()] == [Order, Order]
        assert (await engine.get(workflow, "b")).to_dict()["data"] == {"customer": "Bob", "total": 4, "lines": [4]}
        with pytest.raises(CodecError, match="customer"):
            await engine.start(workflow, {"customer": 5}, key="c")
        with pytest.raises(CodecError, match="customer"):
            await engine.run(workflow, key="c")
        assert len(await engine.list()) == 2


# -- resume ---------------------------------------------------------------------------------------------------------


async def left(url: str, bench: Bench, many: int) -> None:
    """Leave `many` runs in their second step, as an engine does that is closed without grace."""
    bench.gate.clear()
    async with Engine(url, workflows=[bench.workflow], grace=0) as engine:
        for number in range(many):
            await engine.start(bench.workflow, key=str(number))
        await until(lambda: bench.ran.count("two") == many)
    bench.gate.set()


async def test_resume_drives_every_unfinished_run_to_its_end(durable_url: str, bench: Bench) -> None:
    await left(durable_url, bench, 20)
    async with Engine(durable_url, workflows=[bench.workflow]) as engine:
        assert {run.status for run in await engine.list()} == {"running"}
        assert await engine.resume(concurrency=3) == 20
        assert {(run.status, run.data["n"]) for run in await engine.list()} == {("done", 3)}
        assert await engine.resume() == 0
    assert bench.ran.count("one") == 20
    assert bench.ran.count("two") == 40


async def test_resume_holds_to_its_concurrency(durable_url: str) -> None:
    at_once = most = 0
    bench = Bench()
    await left(durable_url, bench, 12)

    async def two(ctx: WorkflowContext) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        ctx.data["n"] += 1

    bench.workflow = Workflow("bench")
    bench.workflow.step("one", initial=True, then="two")(bench.one)
    bench.workflow.step("two", then="three")(two)
    bench.workflow.step("three", then="end")(bench.three)
    bench.workflow.final("end")
    async with Engine(durable_url, workflows=[bench.workflow]) as engine:
        assert await engine.resume(concurrency=4) == 12
    assert most == 4


async def test_resume_leaves_failed_runs_and_other_workflows_alone(durable_url: str, bench: Bench) -> None:
    await left(durable_url, bench, 2)
    bench.fails = True
    async with Engine(durable_url, workflows=[bench.workflow]) as engine:
        assert await engine.resume() == 2
        assert {run.status for run in await engine.list()} == {"failed"}
        bench.fails = False
        assert await engine.resume() == 0
    stranger = Bench().workflow
    stranger.name = "stranger"
    async with Engine(durable_url, workflows=[stranger]) as engine:
        assert await engine.resume() == 0


async def test_whoever_waits_for_a_run_that_nobody_drives_is_told_once_and_it_is_waited_for_all_the_same(
    durable_url: str, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await left(durable_url, bench, 1)
    async with Engine(durable_url, workflows=[bench.workflow], lease=0.1) as engine:
        waiting = asyncio.create_task(engine.result(bench.workflow, "0"))
        await until(lambda: caplog.messages)
        assert await engine.resume() == 1
        assert (await waiting).status == "done"
    said = "run bench/0 is due, and nobody drives it: resume() does, or an engine that works"
    assert [line for line in caplog.messages if "lease" not in line] == [said]


async def test_resume_goes_on_past_a_run_that_no_longer_fits(
    durable_url: str, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await left(durable_url, bench, 3)
    changed = Workflow("bench", version=2)
    changed.step("one", initial=True, then="three")(bench.one)
    changed.step("three", then="end")(bench.three)
    changed.final("end")
    async with Engine(durable_url, workflows=[changed]) as engine:
        await engine.run(changed, key="new")
        await engine.resume()
        assert [run.state for run in await engine.list()] == ["two", "two", "two", "end"]
        assert {run.status for run in await engine.list("bench", state="two")} == {"running"}
        with pytest.raises(DefinitionChanged, match="'two'"):
            await engine.run(changed, key="0")
    assert sum("'two'" in line for line in caplog.messages) >= 3
    async with Engine(durable_url, workflows=[bench.workflow]) as engine:
        assert await engine.resume() == 3


# -- cancelled waiting, and closing ----------------------------------------------------------------------------------


async def test_cancelling_run_stops_the_waiting_and_not_the_run(store_url: str, bench: Bench) -> None:
    bench.gate.clear()
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        waiting = asyncio.create_task(engine.run(bench.workflow, key="k"))
        await until(lambda: "two" in bench.ran)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        bench.gate.set()
        assert (await engine.result(bench.workflow, "k")).status == "done"
    assert bench.ran == ["one", "two", "three"]


async def test_one_of_two_that_wait_may_be_cancelled(store_url: str, bench: Bench) -> None:
    bench.gate.clear()
    async with Engine(store_url, workflows=[bench.workflow]) as engine:
        first, second = (asyncio.create_task(engine.run(bench.workflow, key="k")) for _ in range(2))
        await until(lambda: "two" in bench.ran)
        first.cancel()
        bench.gate.set()
        assert (await second).status == "done"


async def test_closing_lets_a_running_step_end_and_leaves_the_run_at_the_next(durable_url: str, bench: Bench) -> None:
    bench.gate.clear()
    async with Engine(durable_url, workflows=[bench.workflow]) as engine:
        await engine.start(bench.workflow, key="k")
        await until(lambda: "two" in bench.ran)
        asyncio.get_running_loop().call_later(0.1, bench.gate.set)
    async with Engine(durable_url, workflows=[bench.workflow]) as engine:
        run = await engine.get(bench.workflow, "k")
        assert (run.state, run.owner, run.data) == ("three", None, {"n": 2})
        await engine.run(bench.workflow, key="k")
    assert bench.ran == ["one", "two", "three"]


async def test_closing_waits_no_longer_than_its_grace(durable_url: str, bench: Bench, stopwatch: Stopwatch) -> None:
    bench.gate.clear()
    async with Engine(durable_url, workflows=[bench.workflow], grace=0.1) as engine:
        await engine.start(bench.workflow, key="k")
        await until(lambda: "two" in bench.ran)
        began = time.monotonic()
    assert stopwatch.since(began) < 3
    async with Engine(durable_url) as engine:
        assert (await engine.get("bench", "k")).owner is None


async def test_an_error_in_the_block_closes_at_once_and_passes(
    durable_url: str, bench: Bench, stopwatch: Stopwatch
) -> None:
    bench.gate.clear()
    began = time.monotonic()

    async def block() -> None:
        async with Engine(durable_url, workflows=[bench.workflow], grace=600) as engine:
            await engine.start(bench.workflow, key="k")
            await until(lambda: "two" in bench.ran)
            raise KeyError

    with pytest.raises(KeyError):
        await block()
    assert stopwatch.since(began) < 5


async def test_an_engine_that_is_not_open_says_so(bench: Bench) -> None:
    engine = Engine("memory://", workflows=[bench.workflow])
    for verb in (
        lambda: engine.run(bench.workflow), lambda: engine.start(bench.workflow), lambda: engine.get("bench", "k"),
        lambda: engine.result("bench", "k"), lambda: engine.list(), lambda: engine.history("bench", "k"), engine.resume,
    ):  # fmt: skip
        with pytest.raises(EngineClosed, match="async with"):
            await verb()
    async with engine:
        await engine.run(bench.workflow, key="k")
    with pytest.raises(EngineClosed):
        await engine.get("bench", "k")


async def test_an_engine_may_be_opened_again(durable_url: str, bench: Bench) -> None:
    engine = Engine(durable_url, workflows=[bench.workflow])
    for key in ("a", "b"):
        async with engine:
            assert (await engine.run(bench.workflow, key=key)).status == "done"


async def test_making_an_engine_opens_nothing(tmp_path: Any) -> None:
    Engine(f"sqlite:///{tmp_path}/x.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["", "x.db", "mysql://host/db", "sqlite:x.db", "sqlite://x.db"])
def test_an_unknown_url_is_refused_with_what_there_is(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///"):
        Engine(url)


@pytest.mark.parametrize("lease", [0, -1, float("nan")])
def test_a_lease_must_be_above_zero(lease: float) -> None:
    with pytest.raises(ValueError, match="lease"):
        Engine("memory://", lease=lease)


@pytest.mark.parametrize(("said", "given", "length"), [("3.5", None, 3.5), ("3.5", 7.0, 7.0), ("", None, 10.0)])
async def test_the_environment_says_how_long_a_lease_is_where_the_program_does_not(
    store_url: str, monkeypatch: Any, said: str, given: float | None, length: float
) -> None:
    monkeypatch.setenv("FSMWORKFLOW_LEASE", said)
    async with Engine(store_url, lease=given) as engine:
        (owner,) = await engine.store.owners()
        assert owner.lease - owner.started == pytest.approx(length, abs=0.001)


@pytest.mark.parametrize("said", ["soon", "0", "-1", "nan", "1.2.3", "3s"])
def test_a_lease_of_the_environment_that_is_none_is_refused_by_its_name(monkeypatch: Any, said: str) -> None:
    monkeypatch.setenv("FSMWORKFLOW_LEASE", said)
    with pytest.raises(ValueError, match=f"FSMWORKFLOW_LEASE, must be above zero seconds, not '{said}'"):
        Engine("memory://", lease=None)


# -- after the commit ------------------------------------------------------------------------------------------------


async def test_an_action_runs_after_its_move_is_committed_and_before_the_next_step(store_url: str) -> None:
    order: list[str] = []
    workflow = Workflow("acting")
    engine = Engine(store_url, workflows=[workflow])

    async def tell(ctx: Any) -> None:
        run = await engine.get(workflow, "k")
        order.append(f"tell in {ctx.state}, committed {run.state}, n = {ctx.data['n']}")
        with pytest.raises(TypeError):
            ctx.data["n"] = 5

    @workflow.step(initial=True, then=To("two", after=tell))
    async def one(ctx: WorkflowContext) -> None:
        ctx.data["n"] = 1
        order.append("one")

    @workflow.step(then=To("end", after=tell))
    async def two(ctx: WorkflowContext) -> None:
        ctx.data["n"] += 1
        order.append("two")

    workflow.final("end")
    async with engine:
        run = await engine.run(workflow, key="k")
    assert order == ["one", "tell in two, committed two, n = 1", "two", "tell in end, committed end, n = 2"]
    assert (run.version, run.actions, run.owner, run.due) == (2, (), None, None)


@pytest.mark.parametrize("by", ["run", "retry"])
async def test_an_action_that_fails_for_good_fails_the_run_and_runs_again_with_it(store_url: str, by: str) -> None:
    broken, order = True, []
    workflow = Workflow("acting")

    def tell(ctx: Any) -> None:
        order.append("tell")
        if broken:
            raise OSError("nobody listens")

    @workflow.step(initial=True, then=To("two", after=tell))
    async def one(ctx: WorkflowContext) -> None:
        order.append("one")

    @workflow.step(then="end")
    async def two(ctx: WorkflowContext) -> None:
        order.append("two")

    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match="nobody listens") as caught:
            await engine.run(workflow, key="k")
        assert isinstance(caught.value.__cause__, OSError)
        broken = False
        await asyncio.wait_for(getattr(engine, by)(workflow, key="k"), PATIENCE)
        assert (await engine.result(workflow, "k")).status == "done"
    assert order == ["one", *["tell"] * 4, "two"]


async def test_an_ended_run_keeps_its_status_and_lists_the_action_that_failed(store_url: str) -> None:
    workflow = Workflow("acting")

    def tell(ctx: Any) -> None:
        raise OSError("nobody listens")

    workflow.step("one", initial=True, then=To("end", after=tell))(lambda ctx: None)
    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        run = await engine.run(workflow, key="k")
    assert (run.status, run.state) == ("done", "end")
    assert [action.name for action in run.actions] != []
    assert run.error is not None
    assert run.error.message == "nobody listens"


async def test_where_a_step_says_what_its_error_leads_to_an_action_before_it_still_fails_the_run(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "ACTION_RETRY", Retry(attempts=3, first_delay=0, max_delay=0))
    told: list[str] = []
    workflow = Workflow("acting")

    def tell(ctx: Any) -> None:
        told.append("tell")
        if len(told) == 3:
            raise OSError("nobody listens")
        if len(told) < 3:
            raise OSError("nobody listens yet")

    retry = Retry(attempts=2, first_delay=0)
    step = workflow.step("pay", initial=True, then="end", on_error={OSError: "sorry"}, retry=retry, enter=tell)
    step(lambda ctx: told.append("pay"))
    workflow.final("end", "sorry")
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match=r"nobody listens$"):
            await engine.run(workflow, key="k")
        assert (await engine.run(workflow, key="k")).state == "end"
    assert told == [*["tell"] * 4, "pay"]


async def test_an_action_that_fails_for_good_keeps_nothing_from_being_undone(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "ACTION_RETRY", Retry(attempts=3, first_delay=0, max_delay=0))
    order: list[str] = []
    workflow = Workflow("acting")

    def tell(ctx: Any) -> None:
        order.append("tell")
        raise OSError("nobody listens")

    def refund(ctx: Any) -> None:
        order.append(f"undo {ctx.state}")

    workflow.step("pay", initial=True, then="ship", compensate=refund)(lambda ctx: None)
    workflow.step("ship", then=To("refused", after=tell), compensate=refund)(lambda ctx: None)
    workflow.final("refused", outcome="failed")
    async with Engine(store_url, workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match="refused"):
            await engine.run(workflow, key="k")
        run = await engine.get(workflow, "k")
    assert order == [*["tell"] * 3, "undo ship", "undo pay", *["tell"] * 3]
    assert (run.status, run.over, run.undo.left, run.undo.lost) == ("failed", True, (), ())
    assert [action.name for action in run.actions] != []
    assert (run.owner, run.due) == (None, None)


async def test_a_run_asked_for_just_as_it_has_failed_again_goes_on_once_more(store_url: str) -> None:
    bodies, asked = 0, list[asyncio.Task[Any]]()
    workflow = Workflow("failing")

    @workflow.step(initial=True, then="end")
    async def only(ctx: Any) -> None:
        nonlocal bodies
        bodies += 1
        if bodies < 3:
            raise OSError("out of paper")

    workflow.final("end")

    engine = Engine(store_url, workflows=[workflow])
    commit = engine.store.commit

    async def late(move: Any) -> Any:
        due = await commit(move)
        if bodies == 2 and move.after.status == "failed":  # it is durable, and whoever asked before is not told yet
            asked.append(asyncio.create_task(engine.run(workflow, key="k")))
            await asyncio.wait(asked, timeout=0.1)
        return due

    engine.store.commit = late  # type: ignore[method-assign]
    async with engine:
        for _ in range(2):
            with pytest.raises(RunFailed):
                await engine.run(workflow, key="k")
        assert (await asked[0]).status == "done"
    assert bodies == 3
