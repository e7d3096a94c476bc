"""Uses the public API as typed programs do. Checked by mypy in strict mode, never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from fsmworkflow import (
    CodecError,
    Condition,
    DBConfig,
    Engine,
    Entry,
    Health,
    Hook,
    Move,
    PersistentWorkflowStateMachine,
    Plan,
    Retry,
    Run,
    RunFailed,
    Schedule,
    Store,
    To,
    Transition,
    Workflow,
    WorkflowContext,
    WorkflowDefinition,
    WorkflowStep,
    field,
    open_store,
    payload,
    pools,
    simple,
)
from fsmworkflow import functions as checks
from fsmworkflow.config import Functions, functions_of, schema
from fsmworkflow.expressions import Expression


@dataclass
class Order:
    customer: str
    total: int = 0


order = Workflow("order", data=Order)
plain = Workflow("plain", version=2, limit=1_000)


async def llm(prompt: str) -> str:
    return prompt


def tell(ctx: WorkflowContext[Order]) -> None:
    print(ctx.run.key, ctx.state)


@order.step(initial=True, then=[((field("total") >= 8) & ~field("customer").is_none(), To("ship", after=tell)), "ask"])
async def add_up(ctx: WorkflowContext[Order]) -> None:
    assert_type(ctx.data, Order)
    assert_type(ctx.data.total, int)
    assert_type(await ctx.call(llm, "prompt"), str)
    assert_type(await ctx.remember("name", lambda: 5), int)
    assert_type(ctx.attempt, int)
    assert_type(ctx.idempotency_key, str)


@order.step(then="ship", retry=Retry(attempts=5, on=(OSError,)), timeout="5m")
def ask(ctx: WorkflowContext[Order]) -> str:
    return "shipped"


@plain.step("first", initial=True, then=[(field("left") > payload("qty"), "end"), "end"])
async def first(ctx: WorkflowContext) -> tuple[WorkflowContext, str | None]:
    ctx.data["n"] = ctx.data.get("n", 0) + 1
    return ctx, None


order.final("ship")
order.final("refused", outcome="failed")
plain.final("end")


@plain.migrate(1, to=2, states={"first": "b"})
def up(data: dict[str, object]) -> None:
    data["n"] = data.pop("m")


assert_type(up({}), None)
assert_type(Run.at(plain, ["b"], {"n": 1}, since=0.0), Run)


class Counts(Hook):
    def moved(self, move: Move) -> None:
        print(move.after.status, move.event.began)


async def main() -> None:
    async with Engine("sqlite:///x.db", workflows=[order, plain], lease=5.0, hooks=[Counts()]) as engine:
        assert_type(await engine.plan_migration(order), Plan)
        assert_type(await engine.schedule("nightly", order, cron="0 3 * * *", missed="skip"), Schedule)
        assert_type(await engine.schedules(), list[Schedule])
        assert_type(await engine.health(), Health)
        assert_type(await engine.prune(), int)
        assert_type([planned.stuck for planned in await engine.plan_migration()], list[int])
        run = await engine.run(order, Order("Ann"), key="k", different="refuse")
        assert_type(run, Run)
        assert_type(run.state, str)
        assert_type(await engine.start("order", {"customer": "Bob"}), Run)
        assert_type(await engine.result(order, "k"), Run)
        assert_type(await engine.get(order, "k"), Run)
        assert_type(await engine.list(order, status="failed", after=run, limit=5), list[Run])
        assert_type(await engine.history(order, "k"), list[Entry])
        assert_type(await engine.resume(concurrency=5), int)
        try:
            await engine.run(plain)
        except RunFailed as failed:
            print(failed.run.error.message if failed.run.error else failed.__cause__)
        except CodecError as refused:
            print(refused.path)


async def first_style() -> None:
    definition = WorkflowDefinition(
        name="flow",
        steps=["a", WorkflowStep("b", first)],
        transitions=[
            Transition("go", ["a"], "b", [Condition("n", "eq", 1)], "mark_completed"),
            Transition(trigger="stop", source="*", dest=None, after=tell),
        ],
    )
    store: Store = open_store("memory://")
    for db in (DBConfig(url="memory://"), store, "memory://"):
        machine = PersistentWorkflowStateMachine(db, definition, key="k", data={"n": 1})
        machine.steps = {"a": WorkflowStep(name="a", execute=first, retry=None)}
        assert_type(await machine.run_workflow(), Run)
        assert_type(machine.state, str | None)


functions = Functions()


@functions.register
async def paid(ctx: WorkflowContext[Order]) -> None:
    ctx.data.total += 1


@functions.register("large")
def is_large(ctx: WorkflowContext[Order]) -> bool:
    return ctx.data.total > 1_000


async def as_data() -> None:
    loaded = Workflow.load("order.yaml", functions=functions, modules=["shop.orders"])
    assert_type(loaded, Workflow)
    again = Workflow.from_dict(loaded.to_dict(), functions=functions_of(loaded))
    again.wait("more", on={"go": [(Expression("total > 1") & field("customer").is_not_none(), "end")]})
    assert "$defs" in schema()
    assert_type(is_large(WorkflowContext.__new__(WorkflowContext)), bool)


async def connect() -> Connection:
    return Connection()


class Connection:
    async def close(self) -> None: ...


async def shared() -> None:
    """Resources, checks and changes, and the simple use."""
    known = checks.required("email") & checks.ranges(age=(0, 150)) & (field("age") > 17)
    clean = checks.normalise("trim") | checks.convert(age="int")
    flow = Workflow("shared")
    flow.step("clean", initial=True, then=[(known, "asked"), "end"])(clean)
    flow.wait("asked", on={"go": To("end", update=checks.map_fields({"email": "mail"}))})
    flow.final("end")
    problems: list[str] = checks.required("email").problems({})
    given = {
        "db": pools.Pool(connect, max=3, wait="5s"),
        "http": pools.HttpClient(timeout=3),
        "out": pools.Folder("out"),
    }
    async with Engine("memory://", workflows=[flow], resources=given) as engine, engine.resources.use("db") as db:
        print(db, problems, (await engine.health()).resources["db"].used)
    with simple.SimpleFSM({}, custom_functions={"clean": clean}) as machine:
        ended: dict[str, Any] = machine.process({"n": 1}, timeout=3)
        slowest: str = machine.profile({}).slowest
        print(ended, slowest, machine.process_batch([{}], on_progress=print))
    print(await simple.AsyncSimpleFSM(flow, simple.DataHandlingMode.DIRECT).process_stream("in.jsonl", "out.jsonl"))
