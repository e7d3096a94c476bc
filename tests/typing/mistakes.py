"""Mistakes that a type checker finds, each marked. Checked by mypy in strict mode, never run."""

from __future__ import annotations

from dataclasses import dataclass

from fsmworkflow import Engine, Retry, Workflow, WorkflowContext
from fsmworkflow.functions import ranges
from fsmworkflow.pools import Pool
from fsmworkflow.simple import SimpleFSM


@dataclass
class Order:
    total: int = 0


async def step(ctx: WorkflowContext[Order]) -> None:
    ctx.data.totl = 5  # wrong
    ctx.data.total = "five"  # wrong
    ctx.attempt = 2  # wrong
    await ctx.call("llm")  # wrong


async def main() -> None:
    workflow = Workflow("order", data=Order, versoin=2)  # wrong
    workflow.final("end", outcome="bad")  # wrong
    workflow.step(retry="3")  # wrong
    Retry(attempts="many")  # wrong
    async with Engine("memory://", workflows=[workflow]) as engine:
        await engine.run(workflow, key=5)  # wrong
        await engine.run(workflow, different="ignore")  # wrong
        await engine.list(status="ended")  # wrong
        print((await engine.get(workflow, "k")).stat)  # wrong


def simply(machine: SimpleFSM) -> None:
    machine.process({}, timeout="soon")  # wrong
    machine.process_batch({}, max_workers="many")  # wrong
    print(machine.profile({}).slow)  # wrong
    ranges(age="high")  # wrong
    Pool(max=3)  # wrong
