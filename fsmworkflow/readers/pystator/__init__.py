"""Machines of PyStator (0.0.10), in YAML, JSON or a dict, as workflows: what its format says really happens here.

    machine = Machine.load("order.yaml")

    @machine.guard("is_full")
    def is_full(ctx): return ctx["fill_qty"] >= ctx["order_qty"]

    async with machine.create({"order_qty": 100}, db="sqlite:///orders.db", key="order-1") as order:
        await order.fill(fill_qty=100)
        print(order.current_state, order.is_filled)

docs/pystator.md has a table: there, here.
"""

from __future__ import annotations

from fsmworkflow.readers.pystator.entity import Entity
from fsmworkflow.readers.pystator.machine import Machine, Result

__all__ = ["Entity", "Machine", "Result"]
