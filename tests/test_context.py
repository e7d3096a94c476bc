"""What a step is given: calls that are remembered over a crash, the idempotency key, the attempt, its own data."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fsmworkflow import (
    CodecError,
    Engine,
    FSMWorkflowError,
    PersistentWorkflowStateMachine,
    Retry,
    Run,
    RunFailed,
    Workflow,
    WorkflowContext,
)
from tests.waiting import PATIENCE

QUICK = Retry(attempts=5, first_delay=0, max_delay=0)

paid: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()


async def ask(prompt: str, *, model: str = "small") -> str:
    paid.append(prompt)
    answer = f"answer {len(paid)}"
    await asyncio.sleep(0)
    return answer


def ask_in_a_thread(prompt: str) -> str:
    assert threading.current_thread() is not threading.main_thread()
    paid.append(prompt)
    return f"answer {len(paid)}"


async def answers_badly() -> Any:
    paid.append("bad")
    return (1, 2)


async def refuses() -> None:
    paid.append("refused")
    raise OSError("busy")


class Client:
    async def get(self, what: str) -> str:
        return await ask(what)


def one_step(step: Callable[..., Any], *, retry: Retry | None = QUICK, timeout: Any = None) -> Workflow:
    workflow = Workflow("one step")
    workflow.step("work", initial=True, then="end", retry=retry, timeout=timeout)(step)
    workflow.final("end")
    return workflow


async def run(url: str, step: Callable[..., Any], data: Any = None, retry: Retry | None = QUICK) -> Run:
    workflow = one_step(step, retry=retry)
    async with Engine(url, workflows=[workflow]) as engine:
        return await engine.run(workflow, data, key="k")


# -- remembered calls -----------------------------------------------------------------------------------------------


async def test_a_finished_call_is_not_made_again_by_the_next_attempt(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        ctx.data["first"] = await ctx.call(ask, "a")
        ctx.data["second"] = await ctx.call(ask_in_a_thread, "b")
        ctx.data["third"] = await ctx.remember("third", lambda: ask("c"))
        if ctx.attempt < 3:
            raise OSError("again")

    assert (await run(store_url, step)).data == {"first": "answer 1", "second": "answer 2", "third": "answer 3"}
    assert paid == ["a", "b", "c"]


async def test_a_finished_call_is_not_made_again_by_another_process(durable_url: str) -> None:
    crash = True

    async def step(ctx: WorkflowContext) -> None:
        ctx.data["text"] = await ctx.call(ask, "a")
        if crash:
            raise RuntimeError("crash")

    with pytest.raises(RunFailed):
        await run(durable_url, step, retry=None)
    crash = False
    assert (await run(durable_url, step)).data == {"text": "answer 1"}
    assert paid == ["a"]


async def test_five_samples_of_one_prompt_are_five_calls_and_stay_five(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        ctx.data["samples"] = [await ctx.call(ask, "same") for _ in range(5)]
        if ctx.attempt < 3:
            raise OSError("again")

    assert (await run(store_url, step)).data["samples"] == [f"answer {n}" for n in range(1, 6)]
    assert len(paid) == 5


async def test_calls_may_be_gathered_and_each_gets_its_own_result_again(store_url: str) -> None:
    async def one(number: int) -> int:
        paid.append(number)
        await asyncio.sleep(0.001 * (10 - number))  # they end in another order than they begin
        if number == 3 and paid.count(3) == 1:
            raise OSError("busy")
        return number

    async def step(ctx: WorkflowContext) -> None:
        found = await asyncio.gather(*(ctx.call(one, n) for n in range(10)), return_exceptions=True)
        if any(isinstance(number, OSError) for number in found):
            raise OSError("not all")
        ctx.data["found"] = found

    assert (await run(store_url, step)).data["found"] == list(range(10))
    assert len(paid) == 11
    assert paid.count(3) == 2


async def test_the_order_in_which_calls_are_made_counts_not_the_order_of_waiting(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        first, second = ctx.call(ask, "x"), ctx.call(ask, "x")
        if ctx.attempt == 1:
            ctx.data["never kept"] = (await second, await first)
            raise OSError("again")
        ctx.data["found"] = [await first, await second]

    assert (await run(store_url, step)).data == {"found": ["answer 2", "answer 1"]}
    assert len(paid) == 2


async def test_other_arguments_are_another_call(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        await ctx.call(ask, "a")
        await ctx.call(ask, "b")
        await ctx.call(ask, "a", model="large")
        await ctx.call(ask, "changes" if ctx.attempt == 1 else "with each attempt")
        if ctx.attempt == 1:
            raise OSError("again")

    await run(store_url, step)
    assert paid == ["a", "b", "a", "changes", "with each attempt"]


async def test_what_a_call_raised_is_not_remembered(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        await ctx.call(refuses)

    with pytest.raises(RunFailed) as caught:
        await run(store_url, step)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(paid) == 5


async def test_none_is_a_result_and_is_remembered(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        assert await ctx.remember("log", paid.append, "line") is None
        if ctx.attempt < 3:
            raise OSError("again")

    await run(store_url, step)
    assert paid == ["line"]


async def test_a_result_that_cannot_be_encoded_is_refused_once(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        await ctx.call(answers_badly)

    with pytest.raises(RunFailed) as caught:
        await run(store_url, step)
    assert isinstance(caught.value.__cause__, CodecError)
    assert "answers_badly" in caught.value.__cause__.path
    assert paid == ["bad"]


async def test_the_first_result_is_what_a_store_gives_back_too(store_url: str) -> None:
    """A live object would be another one after a crash."""
    shared = {"list": [1]}
    seen: list[Any] = []

    async def step(ctx: WorkflowContext) -> None:
        found = await ctx.remember("shared", lambda: shared)
        assert found is not shared
        found["list"].append(2)
        seen.append(found)
        if ctx.attempt == 1:
            raise OSError("again")

    await run(store_url, step)
    assert seen == [{"list": [1, 2]}, {"list": [1, 2]}]
    assert shared == {"list": [1]}


async def test_a_new_visit_remembers_nothing_of_the_last(store_url: str) -> None:
    workflow = Workflow("twice")

    @workflow.step(initial=True, then=[(lambda ctx: len(ctx.data["found"]) == 3, "end"), "work"])
    async def work(ctx: WorkflowContext) -> None:
        ctx.data.setdefault("found", []).append(await ctx.call(ask, "same"))

    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        done = await engine.run(workflow, key="k")
    assert done.data["found"] == ["answer 1", "answer 2", "answer 3"]


async def test_runs_remember_apart_from_each_other(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        ctx.data["text"] = await ctx.call(ask, "same")

    workflow = one_step(step)
    async with Engine(store_url, workflows=[workflow]) as engine:
        runs = await asyncio.gather(*(engine.run(workflow, key=str(n)) for n in range(20)))
    assert len({done.data["text"] for done in runs}) == 20


async def test_remembered_calls_are_no_moves(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        for number in range(5):
            await ctx.call(ask, str(number))

    assert (await run(store_url, step)).version == 1


@pytest.mark.parametrize("fn", [lambda: 1, functools.partial(ask, "x"), lambda x: ask(x)])
async def test_what_has_no_stable_name_must_be_given_one(fn: Any) -> None:
    async def step(ctx: WorkflowContext) -> None:
        with pytest.raises(TypeError, match="remember"):
            ctx.call(fn)

    await run("memory://", step)


@pytest.mark.parametrize("argument", [object(), (1,), {1, 2}, float("nan")])
async def test_arguments_without_a_stable_text_are_refused_with_a_hint(argument: Any) -> None:
    async def step(ctx: WorkflowContext) -> None:
        with pytest.raises(CodecError, match=r"ctx\.remember"):
            ctx.call(ask, argument)
        assert await ctx.remember("with an object", ask, argument) == "answer 1"

    await run("memory://", step)


async def test_methods_and_functions_of_one_name_are_told_apart_by_their_class() -> None:
    async def step(ctx: WorkflowContext) -> None:
        ctx.data["by"] = await ctx.call(Client().get, "a")
        if ctx.attempt == 1:
            raise OSError("again")

    assert (await run("memory://", step)).data == {"by": "answer 1"}


async def test_a_large_result_is_remembered_and_one_over_the_limit_refused(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        assert len(await ctx.remember("large", lambda: "x" * 1_000_000)) == 1_000_000
        if ctx.attempt == 1:
            raise OSError("again")
        with pytest.raises(CodecError, match="limit"):
            await ctx.remember("too large", lambda: "x" * 17_000_000)

    await run(store_url, step)


async def test_the_limit_of_a_workflow_holds_for_remembered_results_too() -> None:
    async def step(ctx: WorkflowContext) -> None:
        await ctx.remember("large", lambda: "x" * 2_000)

    workflow = Workflow("small", limit=1_000)
    workflow.step("work", initial=True, then="end")(step)
    workflow.final("end")
    async with Engine("memory://", workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match="limit"):
            await engine.run(workflow, key="k")


# -- what a context says --------------------------------------------------------------------------------------------


async def test_the_idempotency_key_is_the_same_on_every_attempt_and_another_in_every_visit(store_url: str) -> None:
    keys: list[tuple[str, int]] = []
    workflow = Workflow("keys")

    @workflow.step(initial=True, then="second", retry=QUICK)
    async def first(ctx: WorkflowContext) -> None:
        keys.append((ctx.idempotency_key, ctx.attempt))
        if ctx.attempt < 3:
            raise OSError("again")

    @workflow.step(then=[(lambda ctx: ctx.data.get("again"), "end"), "first"])
    async def second(ctx: WorkflowContext) -> None:
        keys.append((ctx.idempotency_key, ctx.attempt))
        ctx.data["again"] = ctx.data.get("again", -1) + 1

    workflow.final("end")
    async with Engine(store_url, workflows=[workflow]) as engine:
        await engine.run(workflow, key="a")
    assert [attempt for _, attempt in keys] == [1, 2, 3, 1, 1, 2, 3, 1]
    visits = [key for key, attempt in keys if attempt == 1]
    assert [key for key, _ in keys] == [*[visits[0]] * 3, visits[1], *[visits[2]] * 3, visits[3]]
    assert len(set(visits)) == 4


async def test_the_idempotency_key_differs_between_runs_and_workflows() -> None:
    seen: list[str] = []

    async def step(ctx: WorkflowContext) -> None:
        seen.append(ctx.idempotency_key)

    workflows = []
    for name in ("a", "a/b"):
        workflows.append(Workflow(name))
        workflows[-1].step("work", initial=True, then="end")(step)
        workflows[-1].final("end")
    async with Engine("memory://", workflows=workflows) as engine:
        await engine.run(workflows[0], key="b/c")
        await engine.run(workflows[1], key="c")
        await engine.run(workflows[1], key="d")
    assert len(set(seen)) == 3


async def test_the_idempotency_key_outlives_the_process(durable_url: str) -> None:
    seen: list[str] = []

    async def step(ctx: WorkflowContext) -> None:
        seen.append(ctx.idempotency_key)
        if len(seen) == 1:
            raise RuntimeError("crash")

    with pytest.raises(RunFailed):
        await run(durable_url, step, retry=None)
    await run(durable_url, step)
    assert seen[0] == seen[1]


async def test_a_context_tells_its_run_state_and_attempt(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        ctx.data["told"] = [ctx.run.workflow, ctx.run.key, ctx.run.state, ctx.state, ctx.run.status, ctx.attempt]

    assert (await run(store_url, step)).data["told"] == ["one step", "k", "work", "work", "running", 1]


async def test_each_attempt_gets_the_data_of_before(store_url: str) -> None:
    async def step(ctx: WorkflowContext) -> None:
        assert ctx.data == {"list": [1]}
        ctx.data["list"].append(2)
        ctx.data["more"] = 1
        if ctx.attempt < 3:
            raise OSError("again")

    assert (await run(store_url, step, {"list": [1]})).data == {"list": [1, 2], "more": 1}


async def test_the_run_of_a_context_shows_the_data_of_before_whatever_the_step_does() -> None:
    async def step(ctx: WorkflowContext) -> None:
        ctx.data["list"].append(2)
        assert ctx.run.data == {"list": [1]}
        ctx.run.data["list"].append(3)

    assert (await run("memory://", step, {"list": [1]})).data == {"list": [1, 2]}


def test_a_context_of_ones_own_has_data_and_no_run() -> None:
    ctx: WorkflowContext = WorkflowContext(data={"a": 1})
    assert (ctx.data, ctx.attempt) == ({"a": 1}, 1)
    assert WorkflowContext().data == {}
    for look in (
        lambda: ctx.run,
        lambda: ctx.idempotency_key,
        lambda: ctx.call(ask, "x"),
        lambda: ctx.remember("x", ask),
    ):
        with pytest.raises(FSMWorkflowError, match="no run"):
            look()


# -- kinds of functions ----------------------------------------------------------------------------------------------

variable = contextvars.ContextVar("variable", default="unset")


class Callable_:
    def __call__(self, ctx: WorkflowContext) -> None:
        ctx.data["by"] = "object"


class Awaitable_:
    async def __call__(self, ctx: WorkflowContext) -> None:
        ctx.data["by"] = "object"


def plain(ctx: WorkflowContext, by: str = "object") -> None:
    ctx.data["by"] = by


async def unplain(by: str, ctx: WorkflowContext) -> None:
    ctx.data["by"] = by


class Steps:
    def work(self, ctx: WorkflowContext) -> None:
        ctx.data["by"] = "object"

    @staticmethod
    async def static(ctx: WorkflowContext) -> None:
        ctx.data["by"] = "object"


@pytest.mark.parametrize(
    "step",
    [Callable_(), Awaitable_(), plain, functools.partial(plain), functools.partial(unplain, "object"), Steps().work,
     Steps.static, lambda ctx: plain(ctx), lambda ctx: unplain("object", ctx)],
)  # fmt: skip
async def test_any_callable_is_a_step(step: Any) -> None:
    assert (await run("memory://", step)).data == {"by": "object"}


async def test_a_plain_function_runs_in_a_thread_with_the_context_variables() -> None:
    def step(ctx: WorkflowContext) -> None:
        ctx.data["thread"] = threading.current_thread() is threading.main_thread()
        ctx.data["variable"] = variable.get()

    variable.set("set")
    assert (await run("memory://", step)).data == {"thread": False, "variable": "set"}


async def test_plain_functions_of_many_runs_run_beside_each_other() -> None:
    meet = threading.Barrier(4, timeout=PATIENCE)

    def step(ctx: WorkflowContext) -> None:
        meet.wait()

    workflow = one_step(step, retry=None)
    async with Engine("memory://", workflows=[workflow]) as engine:
        runs = await asyncio.gather(*(engine.run(workflow) for _ in range(4)))
    assert {done.status for done in runs} == {"done"}


@pytest.mark.parametrize("error", [StopIteration("x"), StopAsyncIteration("x"), GeneratorExit("x"), SystemExit(3)])
@pytest.mark.parametrize("style", ["async", "sync"])
async def test_odd_errors_of_a_step_fail_its_run_or_end_the_program_but_never_hang(
    error: BaseException, style: str
) -> None:
    async def asynchronous(ctx: WorkflowContext) -> None:
        raise error

    def synchronous(ctx: WorkflowContext) -> None:
        raise error

    step: Any = asynchronous if style == "async" else synchronous
    machine = PersistentWorkflowStateMachine("memory://", one_step(step, retry=None), key="k")
    with pytest.raises(BaseException) as caught:
        async with asyncio.timeout(PATIENCE):
            await machine.run_workflow()
    assert not isinstance(caught.value, TimeoutError)


async def test_a_call_that_was_made_in_place_of_being_given_is_told_how_to_write_it() -> None:
    async def fetch(word: str) -> str:
        return word

    async def made(ctx: Any) -> None:
        await ctx.call(fetch("q"))

    async def named(ctx: Any) -> None:
        await ctx.remember("q", fetch("q"))

    async def nothing(ctx: Any) -> None:
        await ctx.call("fetch", "q")

    async def nameless(ctx: Any) -> None:
        await ctx.remember(fetch, "q")

    for step, told in (
        (
            made,
            r"fetch is called for you, and only where it must be: write ctx.call\(fetch, ...\), not ctx.call\(fetch",
        ),
        (named, r"write ctx.remember\('q', fetch, ...\), not"),
        (nameless, r"ctx.remember\('name', fn, ...\) is given a name first, not <function"),
        (nothing, r"ctx.call\(...\) is given a function and its arguments, not 'fetch'"),
    ):
        workflow = one_step(step, retry=None)
        async with Engine("memory://", workflows=[workflow]) as engine:
            with pytest.raises(RunFailed, match=f"TypeError: .*{told}"):
                await engine.run(workflow, {}, key="k")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_call_that_was_not_awaited_is_named_with_its_step(recwarn: pytest.WarningsRecorder) -> None:
    async def fetch(word: str) -> str:
        return word

    async def forgets(ctx: Any) -> None:
        ctx.call(fetch, "q")
        ctx.map(fetch, ["q"])

    workflow = one_step(forgets, retry=None)
    async with Engine("memory://", workflows=[workflow]) as engine:
        with pytest.raises(RunFailed, match="has not awaited what it asked for") as failed:
            await engine.run(workflow, {}, key="k")
    assert "(fetch)" in str(failed.value)
    assert {str(one.message) for one in recwarn} == {
        "coroutine 'ctx.call(fetch)' was never awaited",
        "coroutine 'ctx.map(fetch)' was never awaited",
    }
