"""One measurement in a process of its own: `python -m benchmarks.child MODULE JOB URL RUNS STEPS [COUNTS]`."""

from __future__ import annotations

import sys
from importlib import import_module

from benchmarks.jobs import Size
from benchmarks.meter import Meter


def main(module: str, job: str, url: str, runs: str, steps: str, counts: str | None = None) -> None:
    """Run the job named `job` of `module` and print the meter's report as one line of JSON."""
    meter = Meter(counts)
    measured = getattr(import_module(module), job)(meter, url, Size(int(runs), int(steps)))
    if measured is not None:
        import asyncio

        asyncio.run(measured)
    import json

    sys.stdout.write(json.dumps(meter.report) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
