"""A report that is started by a calendar, over a change of the clocks, with a clock that is turned by hand.

Run it twice: the schedule is there already, and the nights between were missed.
"""

import asyncio
import json
from pathlib import Path

from fsmworkflow import Engine, Workflow
from fsmworkflow.store.sqlite import SQLiteStore
from fsmworkflow.testing import Clock

TIME = Path("nightly.json")
report = Workflow("report")


@report.step(initial=True, then="sent")
async def send(ctx) -> None:
    print(f"  {ctx.run.key}: a report for {ctx.data['to']}")


report.final("sent")


async def settled(engine: Engine, clock: Clock) -> None:
    """Wait until the schedule waits for a tick that is still to come, and its last run has ended."""
    while (schedule := (await engine.schedules())[0]).next.timestamp() <= clock() or schedule.status != "waiting":
        await asyncio.sleep(0.01)
    if schedule.last is not None:
        await engine.result(report, schedule.last)


async def main() -> None:
    clock = Clock(json.loads(TIME.read_text()) if TIME.exists() else 1_774_569_600.0)  # 27 March 2026, 00:00 UTC
    store = SQLiteStore("nightly.db", clock=clock)
    async with Engine(store, workflows=[report], poll=0.02) as engine:
        await engine.schedule("nightly", report, cron="30 2 * * *", timezone="Europe/Berlin", data={"to": "ann"})
        await settled(engine, clock)  # one run for the nights that were missed, if there were any
        for _ in range(3):
            clock.turn("1d")
            await settled(engine, clock)
    clock.turn("7d")  # until the program is started again
    TIME.write_text(json.dumps(clock()))


if __name__ == "__main__":
    asyncio.run(main())
