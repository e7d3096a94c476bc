"""The jobs that every subject is given, and how large they are."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """How many runs a job drives, and how many steps each of them makes."""

    runs: int
    steps: int


class Job(NamedTuple):
    """A subject does this job if its module has a function of the job's name."""

    title: str
    size: Size
    quick: Size
    note: str = ""


WHOLE = "The floor reads the row, json.loads it, changes counter and record, json.dumps it and writes it whole."

JOBS = {
    "alone": Job("One run, one step after another", Size(1, 200), Size(1, 200)),
    "bulk": Job("Many runs at once", Size(200, 10), Size(200, 10)),
    "started": Job("Many runs at once, started first and then resumed to their ends", Size(200, 10), Size(200, 10)),
    "resume": Job(
        "Unfinished runs of a process that was killed, one step left in each",
        Size(10_000, 1),
        Size(2_000, 1),
        "Loaded: the time of the claims, which read the rows; finished: from the first claim to the last run's end.",
    ),
    "large": Job("A counter beside 1 MB that no step touches", Size(1, 20), Size(1, 20), WHOLE),
    "touched": Job("A counter beside 1 MB of which each step changes one record", Size(1, 20), Size(1, 20), WHOLE),
    "events": Job(
        "Events to one run that rests, one after another",
        Size(1, 200),
        Size(1, 200),
        "One sender, which does not wait for what becomes of them: each is durable when `send` returns.",
    ),
    "timers": Job(
        "Timers due at one instant",
        Size(10_000, 1),
        Size(2_000, 1),
        "Waiting runs of one engine, their clock turned past the time: from then to the end of the last one.",
    ),
    "cold": Job("A fresh process to its first durable step", Size(1, 1), Size(1, 1)),
}


def records(count: int = 4_000) -> list[dict[str, object]]:
    """About 1 MB of JSON: `count` records of some 250 bytes."""
    return [
        {
            "id": n,
            "name": f"customer {n:05d}",
            "mail": f"customer{n:05d}@example.org",
            "score": n * 1.25,
            "active": n % 3 == 0,
            "tags": ["north", "retail", f"group {n % 17}"],
            "note": "asked for the new price list and for delivery on Tuesdays before noon; call back in the autumn",
        }
        for n in range(count)
    ]
