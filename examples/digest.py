"""A digest of a folder of texts: which terms stand out, and which documents are nearly the same.

    python digest.py [FOLDER] [--db digest.db] [--out digest-report] [--again]

Five steps, each one durable commit: find, read, terms, duplicates, report. End the process whenever you like and start
it again with the same words: it goes on at the first unfinished step, and inside `read` at the first unread batch.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from texts import Json, as_markdown, as_report, find_files, near_duplicates, rank, read_file, write

from fsmworkflow import Engine, FSMWorkflowError, Run, RunNotFound, Workflow, WorkflowContext

MOST_TERMS = 300_000  # kept in all, so that the run's data stays well under the limit of 16 MB
BATCH = 10  # files read in one remembered call


@dataclass
class Process:
    """What belongs to this process and not to the run: how slowly to go, and where to note what was done."""

    pace: float = 0.0  # seconds
    ledger: Path | None = None


process = Process()


def note(step: str, what: str, about: str = "") -> None:
    """Append to the ledger, where there is one, what happens now."""
    if process.ledger:
        line = json.dumps({"step": step, "what": what, "about": about, "pid": os.getpid(), "at": time.time()})
        with process.ledger.open("a", encoding="utf-8") as ledger:
            ledger.write(line + "\n")


def noted(step: Callable[[WorkflowContext], Awaitable[None]]) -> Callable[[WorkflowContext], Awaitable[None]]:
    """Let a step show its begin and end in the ledger, and take at least the pace."""

    @functools.wraps(step)
    async def wrapped(ctx: WorkflowContext) -> None:
        note(step.__name__, "begin")
        await asyncio.sleep(process.pace)
        await step(ctx)
        note(step.__name__, "end")

    return wrapped


digest = Workflow("digest")


@digest.step(initial=True, then="read")
@noted
async def find(ctx: WorkflowContext) -> None:
    ctx.data.update(await asyncio.to_thread(find_files, Path(ctx.data["folder"]), Path(ctx.data["out"])))


@digest.step(then="terms")
@noted
async def read(ctx: WorkflowContext) -> None:
    files, documents, skipped = ctx.data["files"], [], list(ctx.data["skipped"])
    for start in range(0, len(files), BATCH):
        batch = await ctx.call(read_batch, ctx.data["folder"], files[start : start + BATCH], terms_each(len(files)))
        documents += batch["documents"]
        skipped += batch["skipped"]
    ctx.data.update(documents=documents, skipped=sorted(skipped, key=lambda file: file["path"]))


@digest.step(then="duplicates")
@noted
async def terms(ctx: WorkflowContext) -> None:
    ctx.data["ranking"] = await asyncio.to_thread(rank, ctx.data["documents"])


@digest.step(then="report")
@noted
async def duplicates(ctx: WorkflowContext) -> None:
    ctx.data["duplicates"] = await asyncio.to_thread(near_duplicates, ctx.data["documents"])


@digest.step(then="done")
@noted
async def report(ctx: WorkflowContext) -> None:
    out, content = Path(ctx.data["out"]), as_report(ctx.data)
    await asyncio.to_thread(write, out / "report.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    await asyncio.to_thread(write, out / "report.md", as_markdown(content))


digest.final("done")


def terms_each(files: int) -> int:
    """How many terms, its most frequent, a document keeps: 1,000, or fewer where there are over 300 documents."""
    return min(1_000, MOST_TERMS // max(1, files))


async def read_batch(folder: str, paths: list[str], keep: int) -> Json:
    """Read some files into `documents`, or `skipped` with the reason."""
    note("read", "batch begin", paths[0])
    await asyncio.sleep(process.pace / 2)
    entries = [await asyncio.to_thread(read_file, Path(folder), path, keep) for path in paths]
    note("read", "batch end", paths[0])
    return {
        "documents": [entry for entry in entries if "reason" not in entry],
        "skipped": [entry for entry in entries if "reason" in entry],
    }


def run_key(folder: Path, out: Path, number: int = 1) -> str:
    """The same folder and place for the report are the same run; `number` counts the runs made with --again."""
    both = hashlib.sha256(os.fsencode(folder) + b"\0" + os.fsencode(out)).hexdigest()
    return f"{re.sub('[^A-Za-z0-9.-]', '_', folder.name)[:40]}-{both[:16]}-{number}"


async def newest(engine: Engine, folder: Path, out: Path) -> tuple[int, Run | None]:
    """The number of the newest run of this folder, and that run, if there is one."""
    run = None
    for number in itertools.count(1):
        try:
            run = await engine.get(digest, run_key(folder, out, number))
        except RunNotFound:
            return max(1, number - 1), run
    raise AssertionError("count has no end")


async def main(folder: Path, db: str, out: Path, again: bool) -> None:
    """Start the run of this folder, go on with it, or only report it where it is finished."""
    async with Engine(db if "://" in db else f"sqlite:///{db}", workflows=[digest]) as engine:
        number, run = await newest(engine, folder, out)
        made_before = run is not None and run.status == "done"
        if made_before and again:
            number, made_before = number + 1, False
        elif run is not None and not made_before:
            print(f"going on at {run.state}")
        data = {"folder": str(folder), "out": str(out)}
        summarise(await engine.run(digest, data, key=run_key(folder, out, number)), made_before)


def summarise(run: Run, made_before: bool) -> None:
    data = run.data
    print(f"{len(data['documents'])} documents in {data['folder']}, {len(data['skipped'])} files skipped")
    print("terms that stand out: " + ", ".join(one["term"] for one in data["ranking"]["overall"][:6]))
    print(f"near duplicates: {len(data['duplicates'])} pairs")
    for pair in data["duplicates"][:3]:
        print(f"  {pair['similarity']:.0%}  {pair['first']}  {pair['second']}")
    print(f"report: {Path(data['out'], 'report.md')}{' (made before; --again makes it anew)' if made_before else ''}")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A digest of a folder of texts, as a workflow that survives a crash.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--db", default="digest.db", help="a file, or a URL such as postgresql://...")
    parser.add_argument("--out", type=Path, default=Path("digest-report"), help="folder for report.json and report.md")
    parser.add_argument("--again", action="store_true", help="a new run, where the last one is finished")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds that each step takes at least")
    parser.add_argument("--ledger", type=Path, help="file to note in which step begins and ends when")
    return parser


if __name__ == "__main__":
    options = command_line().parse_args()
    if not options.folder.is_dir():
        command_line().error(f"{options.folder} is not a folder")
    process.pace, process.ledger = options.pace, options.ledger
    try:
        asyncio.run(main(options.folder.resolve(), options.db, options.out.resolve(), options.again))
    except FSMWorkflowError as error:  # a step failed, the database cannot be opened: started again, it goes on there
        sys.exit(str(error))
