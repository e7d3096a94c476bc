"""Machines of dataknobs-fsm (0.1.14), in YAML, JSON or a dict, as workflows.

    pipeline = load("pipeline.yaml", functions={"mark": mark})

    async with Engine("sqlite:///pipeline.db", workflows=[pipeline]) as engine:
        run = await engine.run(pipeline, {"input": "data"}, key="one")

docs/dataknobs.md has a table: there, here.
"""

from __future__ import annotations

from fsmworkflow.readers.dataknobs.building import load
from fsmworkflow.readers.dataknobs.functions import Context, Invalid, Record

__all__ = ["Context", "Invalid", "Record", "load"]
