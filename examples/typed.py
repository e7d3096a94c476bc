"""Data with a type: steps see an `Order`, and what is no order is refused before anything is written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date

from fsmworkflow import CodecError, Engine, Workflow, WorkflowContext, field


@dataclass
class Line:
    what: str
    cents: int
    pieces: int = 1


@dataclass
class Order:
    customer: str
    ordered: date
    lines: list[Line]
    total: int = 0  # cents
    approved_by: str | None = None


order = Workflow("order", data=Order)


@order.step(initial=True, then=[(field("total") > 50_000, "approve"), "ship"])
async def add_up(ctx: WorkflowContext[Order]) -> None:
    ctx.data.total = sum(line.cents * line.pieces for line in ctx.data.lines)


@order.step(then="ship")
async def approve(ctx: WorkflowContext[Order]) -> None:
    ctx.data.approved_by = "the shop's owner"


@order.step(then="shipped")
async def ship(ctx: WorkflowContext[Order]) -> None:
    told = f", approved by {ctx.data.approved_by}" if ctx.data.approved_by else ""
    print(f"{ctx.data.customer}, {ctx.data.ordered:%d %B %Y}: {ctx.data.total / 100:.2f}{told}")


order.final("shipped")


async def main() -> None:
    async with Engine("memory://", workflows=[order]) as engine:
        bell = Line("bell", cents=950, pieces=2)
        await engine.run(order, Order("Ann", date(2031, 5, 1), [bell]), key="order-1")
        await engine.run(order, Order("Bob", date(2031, 5, 2), [bell, Line("bicycle", 89_900)]), key="order-2")
        wrong = {"customer": "Cem", "ordered": "2031-05-03", "lines": [{"what": "bell", "cents": "cheap"}]}
        try:
            await engine.run(order, wrong, key="order-3")
        except CodecError as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    asyncio.run(main())
