"""A run waits for a person, for three seconds at the most; a double click is one event.

In earnest the page that a person sees would call `engine.send`, perhaps in another process, and the delay be "3d".
"""

from __future__ import annotations

import asyncio

from fsmworkflow import Engine, Workflow, WorkflowContext, payload

leave = Workflow("leave")


@leave.step(initial=True, then="review")
async def ask(ctx: WorkflowContext) -> None:
    print(f"{ctx.data['who']} asks for {ctx.data['days']} days")


leave.wait(
    "review",
    on={
        "answered": [(payload("yes") == True, "book"), "refused"],  # noqa: E712
        "changed": "ask",
    },
    after={"3s": "forgotten"},
)


@leave.step(then="granted")
async def book(ctx: WorkflowContext) -> None:
    assert ctx.event is not None
    ctx.data["by"] = ctx.event.payload["by"]


leave.final("granted", "forgotten")
leave.final("refused", outcome="failed")


async def main() -> None:
    async with Engine("sqlite:///leave.db", workflows=[leave]) as engine:
        for who, days in (("Ann", 3), ("Bob", 90), ("Cem", 5)):
            await engine.run(leave, {"who": who, "days": days}, key=who)
        for _ in range(2):
            await engine.send(leave, "Ann", "answered", {"yes": True, "by": "the boss"}, event_id="click-1")
        await engine.send(leave, "Bob", "answered", {"yes": False})
        run = await engine.result(leave, "Ann")
        clicks = [entry for entry in await engine.history(leave, "Ann") if entry.event == "answered"]
        print(f"Ann: {run.state} by {run.data['by']}, {len(clicks)} answer")
        print(f"Bob: {(await engine.result(leave, 'Bob')).state}")
        while (run := await engine.get(leave, "Cem")).status == "waiting":
            await asyncio.sleep(0.1)
        print(f"Cem: {run.state}")


if __name__ == "__main__":
    asyncio.run(main())
