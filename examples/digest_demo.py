"""The digest killed twice in the middle and started again: which steps ran when, in which process.

Finished is what the store has committed at the kill, not what a step says of itself. Ends with status 1 if a finished
step ran again, or a batch of files whose reading was remembered was read again.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from digest import digest, run_key
from texts import Json

from fsmworkflow import Engine

HERE = Path(__file__).resolve().parent
STEPS = ["find", "read", "terms", "duplicates", "report"]
PATIENCE = 60  # seconds until a process that shows nothing is given up


def entries(ledger: Path) -> list[Json]:
    """What the steps noted: step, what, about, pid, at. A half line, being written, is left out."""
    text = ledger.read_text(encoding="utf-8") if ledger.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def count(notes: list[Json], step: str, what: str) -> int:
    return sum(note["step"] == step and note["what"] == what for note in notes)


def start(place: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "digest.py"), "--pace", "0.3", "--ledger", "ledger"]
    return subprocess.Popen(command, cwd=place)


def kill_at(place: Path, step: str, what: str, times: int) -> None:
    """Start the digest and end it with SIGKILL as soon as the ledger shows this note so many times."""
    process, patience = start(place), time.monotonic() + PATIENCE
    while count(entries(place / "ledger"), step, what) < times:
        if process.poll() is not None or time.monotonic() > patience:
            process.kill()
            sys.exit("the digest did not come to the place where it was to be killed")
        time.sleep(0.005)
    process.kill()
    process.wait()
    print(f"process {process.pid} killed", flush=True)


async def committed(place: Path) -> list[str]:
    """The steps whose end is in the history, in order."""
    key = run_key(HERE.parent, place / "digest-report")
    async with Engine(f"sqlite:///{place / 'digest.db'}", workflows=[digest]) as engine:
        return [move.source for move in await engine.history(digest, key) if move.source in STEPS]


def table(notes: list[Json]) -> list[str]:
    """A line for each time that a step began, with what came of it."""
    lines = [f"{'step':12}{'process':>9}{'began':>10}{'ended':>10}  result"]
    for at, note in enumerate(notes):
        if note["what"] == "begin":
            here = [n for n in notes[at + 1 :] if (n["step"], n["pid"]) == (note["step"], note["pid"])]
            end = [f"{n['at'] - notes[0]['at']:.2f} s" for n in here if n["what"] == "end"]
            batches = count(here, "read", "batch end")
            result = ("finished" if end else "killed") + (f", {batches} batches read" if note["step"] == "read" else "")
            began = f"{note['at'] - notes[0]['at']:.2f} s"
            lines.append(f"{note['step']:12}{note['pid']:>9}{began:>10}{end[0] if end else '-':>10}  {result}")
    return lines


def wrong(notes: list[Json], kills: list[tuple[int, list[str]]], history: list[str]) -> list[str]:
    """What must not be. `kills` has for each kill how many notes there were, and the steps committed by then."""
    found = []
    for seen, finished in kills:
        again = [note["step"] for note in notes[seen:] if note["what"] == "begin" and note["step"] in finished]
        found += [f"{step} was finished and ran again" for step in again]
    found += [f"batch {name} was remembered and read again" for name in read_again(notes)]
    if history != STEPS:
        found.append(f"the history has the steps {', '.join(history)}")
    return found


def read_again(notes: list[Json]) -> list[str]:
    """Batches read again though the process that read them had gone on to the next, so that they were remembered."""
    remembered: set[str] = set()
    ended: dict[int, str] = {}
    found = []
    for note in notes:
        if note["what"] == "batch end":
            ended[note["pid"]] = note["about"]
        elif note["what"] == "batch begin":
            remembered |= {ended[note["pid"]]} if note["pid"] in ended else set()
            found += [note["about"]] if note["about"] in remembered else []
    return found


def main() -> int:
    kills = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        for step, what, times in (("read", "batch begin", 3), ("duplicates", "begin", 1)):
            kill_at(place, step, what, times)
            kills.append((len(entries(place / "ledger")), asyncio.run(committed(place))))
        with start(place) as last:  # to its end
            pass
        if last.returncode != 0:
            return 1
        notes, history = entries(place / "ledger"), asyncio.run(committed(place))
    print("\n" + "\n".join(table(notes)) + f"\n\ncommitted, one after another: {', '.join(history)}")
    problems = wrong(notes, kills, history)
    print("\n".join(problems) or "No finished step ran again, and no remembered batch was read again.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
