"""An order that does nothing by itself: it only answers events, and each changes its data in the same commit."""

from __future__ import annotations

import asyncio
from typing import Any

from fsmworkflow import Event, PersistentWorkflowStateMachine, To, Workflow, field, payload


def take(data: Any, event: Event) -> None:
    data["left"] -= event.payload["quantity"]
    data["fills"] = [*data["fills"], event.payload["quantity"]]


order = Workflow("order")
order.wait(
    "open",
    initial=True,
    on={
        "fill": [
            (payload("quantity") == field("left"), To("filled", update=take)),
            (payload("quantity") < field("left"), To("open", update=take, internal=True)),
        ],
        "cancel": "withdrawn",
    },
    after={"30d": "withdrawn"},  # one time for the whole visit: an internal transition lets it run on
)
order.final("filled", "withdrawn")


async def main() -> None:
    data = {"left": 100, "fills": []}
    async with PersistentWorkflowStateMachine("sqlite:///orders.db", order, key="order-1", data=data) as machine:
        for quantity in (60, 70):
            event = await machine.send("fill", {"quantity": quantity})
            print(f"fill {quantity}: {event.status}, {machine.data['left']} left")
        print("may be filled by 40:", machine.may("fill", {"quantity": 40}))
        kept = machine.snapshot()
        await machine.send("fill", {"quantity": 40})
        print(machine.state, machine.data["fills"], machine.is_final)

    async with PersistentWorkflowStateMachine.from_snapshot("memory://", order, kept) as machine:
        await machine.send("cancel")
        print("what if it had been cancelled:", machine.state, machine.data["fills"])


if __name__ == "__main__":
    asyncio.run(main())
