"""A parcel is paid and packed at the same time, and sent once both are done; until then it may be called back."""

from __future__ import annotations

import asyncio

from fsmworkflow import Engine, Workflow, WorkflowContext

parcel = Workflow("parcel")
prepare = parcel.parallel("prepare", initial=True, then="send", on={"call_back": "called_back"})
pay, pack = prepare.region("pay"), prepare.region("pack")


@pay.step(initial=True, then="paid")
async def charge(ctx: WorkflowContext) -> None:
    await asyncio.sleep(0.1)
    ctx.data["receipt"] = f"receipt for {ctx.run.key}"


pay.final("paid")


@pack.step(initial=True, then="weigh")
async def wrap(ctx: WorkflowContext) -> None:
    await asyncio.sleep(0.05)


pack.wait("weigh", on={"weighed": "packed"})
pack.final("packed")


@parcel.step(then="on_its_way")
async def send(ctx: WorkflowContext) -> None:
    print(f"{ctx.run.key} is sent, with {ctx.data['receipt']}")


parcel.final("on_its_way", "called_back")


async def main() -> None:
    async with Engine("sqlite:///parcels.db", workflows=[parcel]) as engine:
        for key in ("bell", "lamp"):
            run = await engine.run(parcel, {}, key=key)
            print(f"{key}: {run.state}")
        await engine.send(parcel, "bell", "weighed")
        print("bell:", (await engine.result(parcel, "bell")).state)
        await engine.send(parcel, "lamp", "call_back")
        print("lamp:", (await engine.result(parcel, "lamp")).state)


if __name__ == "__main__":
    asyncio.run(main())
