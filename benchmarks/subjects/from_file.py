"""fsmworkflow with the machine of the events in YAML, as a workflow from a file costs nothing more."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.jobs import Size
from benchmarks.meter import Meter
from benchmarks.subjects.ours import answered, take
from fsmworkflow import Workflow

ANSWERING = """\
name: answering
initial: open
states:
  - name: open
    on:
      fill: [{conditions: event.qty > 0, update: take, internal: true}]
      close: closed
  - {name: closed, final: true}
"""


async def events(meter: Meter, url: str, size: Size) -> None:
    """As `ours.events`, its condition an expression."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "answering.yaml")
        file.write_text(ANSWERING, encoding="utf-8")
        workflow = Workflow.load(file, functions={"take": take})
    await answered(meter, url, size, workflow)
