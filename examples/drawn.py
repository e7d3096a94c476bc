"""A claim is checked before it runs, and drawn with the way that it went: as text, and as a page for a browser."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fsmworkflow import Engine, Workflow, WorkflowContext, field
from fsmworkflow.diagram import diagram
from fsmworkflow.findings import findings

claim = Workflow("claim")


@claim.step(initial=True, then=[(field("amount") < 100, "pay"), (field("amount") < 50, "gift"), "review"])
async def estimate(ctx: WorkflowContext) -> None:
    ctx.data["amount"] = ctx.data["amount"] * 0.9


claim.wait("review", on={"approved": "pay", "rejected": "refused", "unclear": "estimate"})


@claim.step(then="paid")
async def pay(ctx: WorkflowContext) -> None:
    ctx.data["paid"] = ctx.idempotency_key


@claim.step(then="paid")
async def gift(ctx: WorkflowContext) -> None:
    ctx.data["paid"] = "in flowers"


claim.final("paid", "refused")


async def main() -> None:
    for finding in findings(claim):
        print(f"{finding.level} in {finding.state}: {finding.message}")
    async with Engine("sqlite:///claims.db", workflows=[claim]) as engine:
        await engine.run(claim, {"amount": 500}, key="claim-1")
        for event in ("unclear", "approved"):
            await engine.send(claim, "claim-1", event)
            run = await engine.result(claim, "claim-1")
        history = await engine.history(claim, "claim-1")
    print(diagram(claim, run, history))
    Path("claim-1.html").write_text(diagram(claim, run, history, format="html"), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
