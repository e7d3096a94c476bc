"""A step fails; the program is simply started again and goes on at that step.

Start it three times. The first time the road is closed, and the run fails at `deliver`. The second time it goes on
there: `bake` does not run again. The third time there is nothing left to do.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from fsmworkflow import Engine, RunFailed, Workflow, WorkflowContext

ROAD = Path("road-is-open")  # a file that stands for the world outside

bread = Workflow("bread")


@bread.step(initial=True, then="deliver")
async def bake(ctx: WorkflowContext) -> None:
    print("baking 20 loaves")
    ctx.data["loaves"] = 20


@bread.step(then="eaten")
async def deliver(ctx: WorkflowContext) -> None:
    if not ROAD.exists():
        raise ConnectionError("the road is closed")
    print(f"delivering {ctx.data['loaves']} loaves")


bread.final("eaten")


async def main() -> None:
    async with Engine("sqlite:///bread.db", workflows=[bread]) as engine:
        try:
            run = await engine.run(bread, {}, key="monday")
        except RunFailed as failed:
            print(f"{failed.run.key} failed at {failed.run.state}: {failed.__cause__}")
            print("the road is opened; start this program again")
            ROAD.touch()
        else:
            print(f"{run.key}: {run.state}")


if __name__ == "__main__":
    logging.getLogger("fsmworkflow").setLevel(logging.CRITICAL)  # the failure is told above, in our own words
    asyncio.run(main())
