"""A workflow in a file, claim.yaml: its functions are given by name, its conditions are expressions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fsmworkflow import DefinitionError, Engine, Event, Workflow, WorkflowContext
from fsmworkflow.config import Functions

FILE = Path(__file__).with_name("claim.yaml")
functions = Functions()


@functions.register
async def check(ctx: WorkflowContext) -> None:
    ctx.data["limits"] = {"CH": 500, "DE": 400}


@functions.register
def approve(data: Any, event: Event) -> None:
    data["by"] = event.payload["by"]


@functions.register
def remind(data: Any, event: Event) -> None:
    data["asked"] = data.get("asked", 0) + 1


@functions.register
async def pay(ctx: WorkflowContext) -> None:
    ctx.data["paid"] = ctx.data["amount"]


@functions.register
async def take_back(ctx: WorkflowContext) -> None:
    ctx.data["paid"] = 0


async def main() -> None:
    claim = Workflow.load(FILE, functions=functions)
    async with Engine("sqlite:///claims.db", workflows=[claim]) as engine:
        small = await engine.run(claim, {"amount": 20, "country": "CH", "owner": "bob"}, key="small")
        print(f"small: {small.state} {small.data['paid']}")
        large = await engine.run(claim, {"amount": 120, "country": "CH", "owner": "bob"}, key="large")
        print(f"large: {large.state}")
        await engine.send(claim, "large", "approved", {"by": "bob"})  # his own: he is reminded
        await engine.send(claim, "large", "approved", {"by": "ann"})
        large = await engine.result(claim, "large")
        print(f"large: {large.state} {large.data['paid']}, by {large.data['by']}, asked {large.data['asked']} time")
    misspelt = Path("misspelt.yaml")
    misspelt.write_text(FILE.read_text(encoding="utf-8").replace("conditions: amount <= 50", "condition: amount <= 50"))
    try:
        Workflow.load(misspelt, functions=functions)
    except DefinitionError as error:
        print(error.problems[0])


if __name__ == "__main__":
    asyncio.run(main())
