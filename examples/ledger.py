"""Money moves between two accounts exactly once: the rows are written in the transaction of the step's own move.

What the step emits goes in the same commit, so the day's statement has one line for each transfer that was made.
"""

from __future__ import annotations

import asyncio
import sqlite3

import aiosqlite

from fsmworkflow import Engine, Event, Retry, To, Workflow, WorkflowContext

FILE = "bank.db"
SOON = Retry(attempts=3, first_delay=0.05, never_on=(sqlite3.IntegrityError,))
transfer = Workflow("transfer")


@transfer.step(initial=True, then="booked", retry=SOON, on_error={sqlite3.IntegrityError: "refused"})
async def book(ctx: WorkflowContext) -> None:
    sender, receiver, cents = ctx.data["from"], ctx.data["to"], ctx.data["cents"]
    async with ctx.transaction() as db:  # aiosqlite's own connection; asyncpg's where the runs are in PostgreSQL
        await db.execute("UPDATE accounts SET cents = cents + ? WHERE name = ?", (cents, receiver))
        if ctx.run.key == "t-2" and ctx.attempt == 1:
            print("t-2: one account is written, and then something goes wrong")
            raise OSError("the connection to somewhere else is lost")
        await db.execute("UPDATE accounts SET cents = cents - ? WHERE name = ?", (cents, sender))
    await ctx.emit(statement, "today", "booked", f"{sender} pays {receiver} {cents}")


transfer.final("booked", "refused")


def add(data: dict[str, list[str]], event: Event) -> None:
    data["lines"].append(event.payload)


statement = Workflow("statement")
statement.wait("open", initial=True, on={"booked": To("open", update=add, internal=True), "close": "closed"})
statement.final("closed")


async def accounts() -> dict[str, int]:
    async with aiosqlite.connect(FILE) as db:
        await db.execute("CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, cents INT CHECK (cents >= 0))")
        await db.execute("INSERT INTO accounts VALUES ('ann', 500), ('bob', 0) ON CONFLICT DO NOTHING")
        await db.commit()
        return {str(name): int(cents) for name, cents in await db.execute_fetchall("SELECT * FROM accounts")}


async def main() -> None:
    print("before:", await accounts())
    transfers = {"t-1": ("ann", "bob", 300), "t-2": ("ann", "bob", 150), "t-3": ("ann", "bob", 100)}
    async with Engine(f"sqlite:///{FILE}", workflows=[transfer, statement]) as engine:
        await engine.start(statement, {"lines": []}, key="today")
        for key, (sender, receiver, cents) in transfers.items():
            run = await engine.run(transfer, {"from": sender, "to": receiver, "cents": cents}, key=key)
            print(f"{key}: {run.state}, {await accounts()}")
        await engine.send(statement, "today", "close", event_id="close")
        run = await engine.result(statement, "today")
        print(f"today: {run.state}, {run.data['lines']}")


if __name__ == "__main__":
    asyncio.run(main())
