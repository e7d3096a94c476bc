"""A new version of a workflow is deployed while orders are in flight: the old process finishes its own, the new one
takes over the rest, with a state that has another name now and an amount that is kept in cents.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fsmworkflow import Engine, Workflow, WorkflowContext

# -- version 1 --------------------------------------------------------------------------------------------------------

old = Workflow("order")
old.wait("review", initial=True, on={"approved": "ship"})


@old.step("ship", then="shipped")
async def ship_1(ctx: WorkflowContext) -> None:
    ctx.data["label"] = f"{ctx.data['euros']} EUR"


old.final("shipped")

# -- version 2 --------------------------------------------------------------------------------------------------------

new = Workflow("order", version=2)
new.wait("approval", initial=True, on={"approved": "ship"}, after={"3d": "expired"})


@new.step("ship", then="shipped")
async def ship_2(ctx: WorkflowContext) -> None:
    ctx.data["label"] = f"{ctx.data['cents']} cents"


new.final("shipped", "expired")


@new.migrate(1, to=2, states={"review": "approval"})
def in_cents(data: dict[str, Any]) -> None:
    data["cents"] = data.pop("euros") * 100


async def main() -> None:
    Path("orders.db").unlink(missing_ok=True)
    async with Engine("sqlite:///orders.db", workflows=[old]) as first:
        for number in (1, 2, 3):
            await first.start(old, {"euros": number * 10}, key=f"o-{number}")
        async with Engine("sqlite:///orders.db", workflows=[new], poll=0.05) as second:
            await second.send(new, "o-1", "approved")  # the old engine holds it, and takes the event
            await second.result(new, "o-1")
            await second.run(new, {"cents": 4000}, key="o-4")
            print(f"{await first.resume()} newer runs were taken by the old engine")
            await first.close()
            print(await second.plan_migration(new))
            for number in (2, 3, 4):
                await second.send(new, f"o-{number}", "approved")
            for number in (1, 2, 3, 4):
                run = await second.result(new, f"o-{number}")
                said = [entry.detail for entry in await second.history(new, run.key) if entry.detail]
                print(f"{run.key} is {run.state}: {run.data['label']} {said}")


if __name__ == "__main__":
    asyncio.run(main())
