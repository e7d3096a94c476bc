"""A trip is booked in parts; when one fails for good, what was booked is given back, the last part first."""

from __future__ import annotations

import asyncio
import logging

from fsmworkflow import Engine, Retry, RunFailed, Workflow, WorkflowContext

trip = Workflow("trip")


async def give_back(ctx: WorkflowContext) -> None:
    print(f"  {ctx.state} is given back")
    ctx.data["booked"] = [part for part in ctx.data["booked"] if part != ctx.state]


@trip.step(initial=True, then="hotel", compensate=give_back)
async def flight(ctx: WorkflowContext) -> None:
    print(f"a trip to {ctx.data['to']}")
    ctx.data["booked"] = ["flight"]


@trip.step(then="car", compensate=give_back)
async def hotel(ctx: WorkflowContext) -> None:
    ctx.data["booked"] = [*ctx.data["booked"], "hotel"]


@trip.step(then="booked", retry=Retry(attempts=2, first_delay=0.05), on_error={TimeoutError: "by_bus"})
async def car(ctx: WorkflowContext) -> None:
    if ctx.data["to"] == "Venice":
        raise ValueError("there are no cars in Venice")
    if ctx.data["to"] == "Oslo":
        raise TimeoutError("nobody answers")
    ctx.data["booked"] = [*ctx.data["booked"], "car"]


@trip.step(then="booked")
async def by_bus(ctx: WorkflowContext) -> None:
    print(f"  no car: {ctx.data['error']['message']}, attempt {ctx.data['error']['attempt']}")


trip.final("booked")


async def main() -> None:
    async with Engine("sqlite:///trips.db", workflows=[trip]) as engine:
        for to in ("Rome", "Oslo", "Venice"):
            try:
                run = await engine.run(trip, {"to": to}, key=to)
            except RunFailed as failed:
                run = failed.run
                print(f"  {failed.__cause__}")
            print(f"  {run.status}: {', '.join(run.data['booked']) or 'nothing is left'}")


if __name__ == "__main__":
    logging.getLogger("fsmworkflow").setLevel(logging.CRITICAL)  # the failure is told above, in our own words
    asyncio.run(main())
