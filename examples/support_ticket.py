"""A support ticket in the style of the first FSM-Workflow: priorities, escalation, customer feedback, a reopening loop.

    python support_ticket.py [--seed 19]

What the customer and the desk do is drawn by chance, the same for the same seed, also when a step runs again.
"""

from __future__ import annotations

import argparse
import asyncio
import random

from fsmworkflow import (
    Condition,
    DBConfig,
    PersistentWorkflowStateMachine,
    Transition,
    WorkflowContext,
    WorkflowDefinition,
    WorkflowStep,
)


def content(stars: int) -> bool:
    return stars >= 4


ticket = WorkflowDefinition(
    name="support ticket",
    steps=["receive", "sort", "first_line", "specialist", "ask_customer", "reopen", "close"],
    transitions=[
        Transition("received", "receive", "sort"),
        Transition("urgent", "sort", "specialist", [Condition("priority", "in", ["high", "urgent"])]),
        Transition("ordinary", "sort", "first_line"),
        Transition("escalate", "first_line", "specialist", [Condition("solution", "is_none")]),
        Transition("solved", ["first_line", "specialist"], "ask_customer"),
        Transition("content", "ask_customer", "close", [Condition("stars", "custom", custom_function=content)]),
        Transition("enough", "ask_customer", "close", [Condition("reopened", "ge", 2)]),
        Transition("discontent", "ask_customer", "reopen"),
        Transition("reopened", "reopen", "specialist"),
        Transition("closed", "close", None),
    ],
)


def chance(ctx: WorkflowContext, what: str) -> random.Random:
    """Dice that fall the same for the same ticket, question and round."""
    return random.Random(f"{ctx.data['seed']} {what} {ctx.data.get('reopened', 0)}")


async def receive(ctx: WorkflowContext) -> None:
    ctx.data["subject"] = chance(ctx, "subject").choice(["login fails", "bill is wrong", "data is lost"])
    ctx.data["reopened"] = 0
    print(f"received: {ctx.data['subject']}")


async def sort(ctx: WorkflowContext) -> None:
    serious = "lost" in ctx.data["subject"]
    ctx.data["priority"] = "urgent" if serious else chance(ctx, "priority").choice(["low", "normal", "high"])
    print(f"priority: {ctx.data['priority']}")


async def first_line(ctx: WorkflowContext) -> None:
    ctx.data["solution"] = chance(ctx, "first line").choice(["restarted it", None])
    print(f"first line: {ctx.data['solution'] or 'no idea, on to a specialist'}")


async def specialist(ctx: WorkflowContext) -> tuple[WorkflowContext, str]:
    ctx.data["solution"] = chance(ctx, "specialist").choice(["mended the cause", "found a way round it"])
    print(f"specialist: {ctx.data['solution']}")
    return ctx, "solved"  # a step may also name its trigger; where it returns nothing, the conditions choose


async def ask_customer(ctx: WorkflowContext) -> None:
    ctx.data["stars"] = chance(ctx, "stars").randint(1, 5)
    print(f"customer: {ctx.data['stars']} of 5 stars")


async def reopen(ctx: WorkflowContext) -> None:
    ctx.data["reopened"] += 1
    print("reopened")


async def close(ctx: WorkflowContext) -> None:
    print(f"closed: {ctx.data['stars']} stars, reopened {ctx.data['reopened']} times")


async def main(seed: int) -> None:
    machine = PersistentWorkflowStateMachine(DBConfig(), ticket, data={"seed": seed})
    functions = [receive, sort, first_line, specialist, ask_customer, reopen, close]
    machine.steps = {fn.__name__: WorkflowStep(name=fn.__name__, execute=fn) for fn in functions}
    await machine.run_workflow()
    print(f"ended in {machine.state}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A support ticket from its receipt to its end.")
    parser.add_argument("--seed", type=int, default=19, help="which ticket, and how it goes")
    asyncio.run(main(parser.parse_args().seed))
