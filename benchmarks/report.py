"""The measurements as Markdown: one table for each job and disk, medians of all rounds."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.jobs import JOBS, Size
from benchmarks.plan import EACH, GROUPED, Measurement

Rounds = list[dict[str, float]]
Results = dict[Measurement, Rounds]
"""What was measured in each round, in order; an empty report is a measurement that failed."""

NOTED = ("loaded", "finished", "fired")
"""Further times, in seconds, that a job may have noted."""

PARTS = ("fsmworkflow", "aiosqlite", "asyncpg", "msgspec", "transitions", "apache-burr", "dbos", "langgraph")


def machine() -> dict[str, str]:
    """Where and when: what a reader needs to judge the figures."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{os.cpu_count()} x {_processor()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "parts": ", ".join(f"{part} {found}" for part in PARTS if (found := _version(part))),
    }


def markdown(
    results: Results, sizes: dict[str, Size], imports: dict[str, list[float]], decided: dict[str, float], rounds: int
) -> str:
    """All tables."""
    lines = ["; ".join(f"{name} {value}" for name, value in machine().items()), ""]
    lines += [f"Medians of {rounds} interleaved rounds (of ratios too), each measurement in a fresh process.", ""]
    for statement, spent in imports.items():
        lines += [f"`{statement}` takes {median(spent) * 1e3:.1f} ms beyond `import asyncio`.", ""]
    for kind, cost in decided.items():
        lines += [f"A decision of a {kind} workflow takes {cost:.1f} us of CPU.", ""]
    for job, least in dict.fromkeys((cell.job, cell.least) for cell in results):
        size = sizes[job]
        disk = f"{least / 1000:g} ms a commit" if least else "plain disk"
        lines += [f"### {JOBS[job].title} ({size.runs:,} x {size.steps}), {disk}", ""]
        lines += [JOBS[job].note, ""] if JOBS[job].note else []
        rows = {cell: kept for cell, kept in results.items() if (cell.job, cell.least) == (job, least)}
        lines += [*(_times(rows) if job == "cold" else _steps(rows)), ""]
    return "\n".join(lines)


def _steps(rows: Results) -> Iterator[str]:
    yield "| | steps/s | of one commit a step | CPU us/step | over bare group commit | KB/step | flushes/step | |"
    yield "|---|--:|--:|--:|--:|--:|--:|---|"
    for cell, kept in rows.items():
        each, grouped = _floor(rows, cell, EACH), _floor(rows, cell, GROUPED)
        floor = cell.subject.name in (EACH, GROUPED)
        yield _line(
            f"{cell.subject.store}, {cell.subject.name}",
            _shown(_middle(kept, "rate"), ",.0f") or "failed",
            _shown(_compared(kept, each, lambda ours, theirs: ours["rate"] / theirs["rate"]), ".2f"),
            _shown(_middle(kept, "cpu_us"), ",.0f"),
            "" if floor else _shown(_compared(kept, grouped, lambda o, t: o["cpu_us"] - t["cpu_us"]), "+,.0f"),
            _shown(_middle(kept, "bytes", 1 / 1024), ",.1f"),
            _shown(_middle(kept, "flushes"), ".3f"),
            ", ".join(f"{name} {_middle(kept, name):.3f} s" for name in NOTED if _middle(kept, name)),
        )


def _times(rows: Results) -> Iterator[str]:
    yield "| | from the start of the process, ms | without the start of Python, ms |"
    yield "|---|--:|--:|"
    for cell, kept in rows.items():
        spent = [_shown(_middle(kept, name, 1e3), ",.0f") or "failed" for name in ("seconds", "without_python")]
        yield _line(f"{cell.subject.store}, {cell.subject.name}", *spent)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _middle(kept: Rounds, name: str, unit: float = 1.0) -> float | None:
    values = [report[name] * unit for report in kept if name in report]
    return median(values) if values else None


def _compared(kept: Rounds, floor: Rounds, compare: Callable[..., float]) -> float | None:
    """The median of what the rounds say one by one: a round's measurements lie next to each other in time."""
    values = [compare(ours, theirs) for ours, theirs in zip(kept, floor, strict=False) if ours and theirs]
    return median(values) if values else None


def _floor(rows: Results, cell: Measurement, name: str) -> Rounds:
    store = cell.subject.store
    return next((kept for of, kept in rows.items() if (of.subject.store, of.subject.name) == (store, name)), [])


def _version(part: str) -> str | None:
    try:
        return version(part)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
