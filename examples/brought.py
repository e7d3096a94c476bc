"""Machines that were written for other engines, as they stand: an order of PyStator's, a pipeline of dataknobs-fsm.

Start it twice: the order goes on where the first process left it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fsmworkflow import Engine
from fsmworkflow.readers import dataknobs
from fsmworkflow.readers.pystator import Machine

ORDER = """
meta: {machine_name: orders, version: "1.0.0"}
states:
  - {name: PENDING, type: initial}
  - {name: OPEN, on_enter: [{set: {status: open}}], timeout: {seconds: 86400, destination: EXPIRED}}
  - {name: FILLED, type: terminal, on_enter: [tell, {set: {status: filled}}]}
  - {name: EXPIRED, type: terminal}
transitions:
  - {trigger: ack, source: PENDING, dest: OPEN}
  - {trigger: fill, source: OPEN, dest: FILLED, guards: [{expr: qty >= order_qty}]}
  - {trigger: fill, source: OPEN, dest: OPEN, internal: true, actions: [{increment: parts}]}
"""

GRADES: dict[str, Any] = {
    "name": "grades",
    "states": [
        {"name": "input", "is_start": True, "validators": [
            {"type": "builtin", "name": "validators.range_check", "params": {"points": {"min": 0, "max": 100}}}]},
        {"name": "grade", "functions": {"transform": "grade"}},
        {"name": "output", "is_end": True},
        {"name": "error", "is_end": True},
    ],
    "arcs": [
        {"from": "input", "to": "grade", "condition": "success"},
        {"from": "input", "to": "error", "condition": "failure"},
        {"from": "grade", "to": "output"},
    ],
}  # fmt: skip


def grade(state: Any) -> dict[str, Any]:
    return {"name": state.data["name"], "grade": "passed" if state.data["points"] >= 50 else "failed"}


async def main() -> None:
    Path("order.yaml").write_text(ORDER, encoding="utf-8")
    orders = Machine.load("order.yaml")
    orders.action("tell")(lambda ctx: print("told:", ctx["status"], ctx["qty"]))
    async with orders.create({"order_qty": 100}, db="sqlite:///brought.db", key="order-1") as order:
        if order.is_pending:
            await order.ack()
            await order.fill(qty=40)
        elif order.is_open:
            await order.fill(qty=100)
        print("order:", order.current_state, order.context)

    grades = dataknobs.load(GRADES, functions={"grade": grade})
    async with Engine("sqlite:///brought.db", workflows=[grades]) as engine:
        for name, points in (("ann", 80), ("bo", 140)):
            run = await engine.run(grades, {"name": name, "points": points}, key=name)
            print(f"{name}: {run.state}", run.data)


if __name__ == "__main__":
    asyncio.run(main())
