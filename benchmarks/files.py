"""What a workflow in a file costs: reading and checking one of 10,000 states, events decided by one, one expression.

In one thread, without a store or a step: `python -m benchmarks.files`. Each figure is CPU time, the best of five. What
events cost through SQLite, `python benchmarks/run.py --only yaml events` measures.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fsmworkflow import Event, Workflow
from fsmworkflow.conditions import View
from fsmworkflow.decide import begin, decide
from fsmworkflow.expressions import Expression
from fsmworkflow.readers.pystator import Machine

STATES, EVENTS, TIMES = 10_000, 20_000, 5
ORDER = """\
name: order
initial: open
states:
  - name: open
    on:
      fill:
        - {conditions: event.qty == left, dest: filled}
        - {conditions: "event.qty < left and status in ['open', 'partial']", dest: open}
      cancel: cancelled
  - {name: filled, final: true}
  - {name: cancelled, final: true}
"""
PYSTATOR = """\
meta: {machine_name: order}
states: [{name: OPEN, type: initial}, {name: FILLED, type: terminal}]
transitions:
  - {trigger: fill, source: OPEN, dest: FILLED, guards: [FULL]}
  - {trigger: fill, source: OPEN, dest: OPEN, guards: [PART]}
"""
GUARDS = {"FULL": lambda ctx: ctx["qty"] >= ctx["left"], "PART": lambda ctx: ctx["qty"] < ctx["left"]}
EXPRESSION = "fill_qty >= order_qty and status in ['open', 'partial']"


def large() -> str:
    """A step each, which leads on, with a condition on every second one."""
    rows = ["name: large", "initial: s0", "states:"]
    for number in range(STATES - 1):
        then = f"[{{conditions: qty > {number}, dest: s{number + 1}}}, end]" if number % 2 else f"s{number + 1}"
        rows += [f"  - name: s{number}", "    step: work", f"    then: {then}"]
    return "\n".join([*rows, f"  - {{name: s{STATES - 1}, step: work, then: end}}", "  - {name: end, final: true}", ""])


def work(ctx: Any) -> None:
    """A step that does nothing."""


def seconds(file: Path) -> float:
    """CPU time that reading and checking a file takes."""
    spent = []
    for _ in range(TIMES):
        gc.collect()
        began = time.process_time()
        Workflow.load(file, functions={"work": work})
        spent.append(time.process_time() - began)
    return min(spent)


async def events(workflow: Workflow) -> float:
    """Events that are decided in a second of CPU."""
    run = begin(workflow, "only", workflow.codec.start({"left": 100, "status": "open"}), now=0.0)
    event, spent = Event(name="fill", payload={"qty": 1}, id="1"), []
    for _ in range(TIMES):
        began = time.process_time()
        for _ in range(EVENTS):
            await decide(workflow, run, event, now=1.0)
        spent.append(time.process_time() - began)
    return EVENTS / min(spent)


def machine(file: Path, text: str) -> Workflow:
    """A machine of PyStator's whose events ask two guards each."""
    file.write_text(text, encoding="utf-8")
    made = Machine.load(file)
    made.bind_guards(GUARDS)
    return made.workflow()


async def expression() -> float:
    """Microseconds that one expression takes, with what it saw."""
    asked, spent = Expression(EXPRESSION), []
    for _ in range(TIMES):
        began = time.process_time()
        for _ in range(EVENTS):
            await asked.ask(View({"fill_qty": 3, "order_qty": 2, "status": "open"}))
        spent.append(time.process_time() - began)
    return min(spent) / EVENTS * 1e6


def main() -> None:
    """Print the figures as one line of JSON."""
    with tempfile.TemporaryDirectory() as directory:
        yaml, order = Path(directory, "large.yaml"), Path(directory, "order.yaml")
        yaml.write_text(large(), encoding="utf-8")
        order.write_text(ORDER, encoding="utf-8")
        found = {"yaml_s": seconds(yaml), "events_per_s": asyncio.run(events(Workflow.load(order)))}
        found["pystator_per_s"] = asyncio.run(events(machine(Path(directory, "pystator.yaml"), PYSTATOR)))
        told = PYSTATOR.replace("FULL", "{expr: qty >= left}").replace("PART", "{expr: qty < left}")
        found["pystator_expr_per_s"] = asyncio.run(events(machine(Path(directory, "expr.yaml"), told)))
        found["expression_us"] = asyncio.run(expression())
        file = Path(directory, "large.json")
        file.write_text(json.dumps(Workflow.load(yaml, functions={"work": work}).to_dict()), encoding="utf-8")
        found["json_s"] = seconds(file)
    sys.stdout.write(json.dumps({name: round(value, 2) for name, value in found.items()}) + "\n")


if __name__ == "__main__":
    main()
