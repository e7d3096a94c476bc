"""What a decision costs: microseconds of CPU of `decide`, of a flat and of a nested workflow. No store, no step."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from fsmworkflow import Event, Run, Workflow, field
from fsmworkflow.decide import begin, decide

TIMES = 5_000


def flat() -> Workflow:
    """Two states and one condition."""
    workflow = Workflow("flat")
    workflow.wait("open", initial=True, on={"go": [(field("n") < 10, "shut")]})
    workflow.wait("shut", on={"go": "end"})
    workflow.final("end")
    return workflow


def nested() -> Workflow:
    """Ten states on three levels, two regions of which are active at once; the event leaves both."""
    workflow = Workflow("nested")
    outer = workflow.state("outer", initial=True, on={"go": [(field("n") < 10, "last")]})
    both = outer.parallel("both", initial=True)
    for name in ("left", "right"):
        region = both.region(name)
        region.wait("open", initial=True, on={"next": "shut"})
        region.final("shut")
    workflow.wait("last", on={"go": "end"})
    workflow.final("end")
    return workflow


async def cost(workflow: Workflow) -> float:
    """Microseconds of CPU of one decision, the best of five series."""
    workflow.check()
    run: Run = begin(workflow, "only", workflow.codec.start({"n": 1}), now=0.0)
    event: Any = Event(name="go", payload={"n": 1}, id="1")
    spent = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(TIMES):
            await decide(workflow, run, event, now=1.0)
        spent.append(time.process_time() - began)
    return min(spent) / TIMES * 1e6


async def main() -> None:
    """Print the two figures as one line of JSON."""
    sys.stdout.write(json.dumps({"flat": await cost(flat()), "nested": await cost(nested())}) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
