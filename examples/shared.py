"""Orders are priced by a service and booked in a database, over a client and a pool that all steps share.

The service stands in this program. It fails now and then, and the pool has two connections for forty orders at once.
"""

import asyncio
from pathlib import Path

import aiosqlite

from fsmworkflow import Engine, Retry, Workflow
from fsmworkflow.pools import Folder, Pool, Shared

order = Workflow("order")


class Prices:
    """A client of a service: opened once, closed at the end."""

    def __init__(self) -> None:
        self.asked = 0

    async def __aenter__(self):
        print("the client is open")
        return self

    async def __aexit__(self, *_):
        print("the client is closed")

    async def of(self, item: str) -> int:
        self.asked += 1
        if self.asked % 7 == 0:
            raise ConnectionError("the service is busy")
        return len(item) * 10


@order.step(initial=True, then="book", retry=Retry(first_delay=0))
async def price(ctx) -> None:
    async with ctx.use("prices") as prices:
        ctx.data["price"] = await prices.of(ctx.data["item"])


@order.step(then="booked")
async def book(ctx) -> None:
    async with ctx.use("db") as db:  # one of two connections, for this step alone
        row = (ctx.idempotency_key, ctx.data["price"])
        await db.execute("INSERT INTO orders VALUES (?, ?) ON CONFLICT DO NOTHING", row)
        await db.commit()


order.final("booked")


async def connect() -> aiosqlite.Connection:
    db = await aiosqlite.connect("shop.db")
    await db.execute("CREATE TABLE IF NOT EXISTS orders (key TEXT PRIMARY KEY, price INTEGER)")
    return db


async def main() -> None:
    resources = {
        "prices": Shared(Prices(), max=5),
        "db": Pool(connect, max=2, reset=aiosqlite.Connection.rollback),
        "out": Folder("receipts"),
    }
    async with Engine("sqlite:///orders.db", workflows=[order], resources=resources) as engine:
        await asyncio.gather(*(engine.run(order, {"item": f"lamp {n}"}, key=f"order-{n}") for n in range(40)))
        async with engine.resources.use("db") as db, engine.resources.use("out") as folder:
            ((many, total),) = await db.execute_fetchall("SELECT count(*), sum(price) FROM orders")
            Path(folder, "total.txt").write_text(str(total))
        for name, usage in (await engine.health()).resources.items():
            print(f"{name}: {usage.open} open, {usage.problem or 'well'}")
    print(f"{many} orders, {total} in all")


if __name__ == "__main__":
    asyncio.run(main())
