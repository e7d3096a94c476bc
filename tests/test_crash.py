"""Nothing is lost when processes die: they are killed at random moments, start at once, or forget to close."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Entry, Run, Workflow
from fsmworkflow.decide import begin
from tests.children import Child, Children
from tests.crash_child import Batch
from tests.ledger import Checker, Ledger, Line, glimpse
from tests.points import POINTS
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE

SEED = int(os.environ.get("FSMWORKFLOW_SEED") or secrets.randbits(32))
SOAK = int(os.environ.get("FSMWORKFLOW_KILLS") or 1_000)
IMMEDIATELY = 5.0  # seconds; a lease is 60 or 10
STUCK = PATIENCE


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as some:
        yield some


# -- SIGKILL at random moments ----------------------------------------------------------------------------------------


class Campaign:
    """Rounds of eight runs each, killed until so many kills have struck, each round held against its ledger."""

    def __init__(self, url: str, children: Children, stopwatch: Stopwatch, seed: int) -> None:
        self.url = url
        self.children = children
        self.stopwatch = stopwatch
        self.chance = random.Random(seed)
        self.rounds = 0
        self.struck = 0
        self.repeated = 0
        self.seconds, self.size = self._undisturbed()

    def go(self, kills: int) -> None:
        while self.struck < kills:
            self._round(kills)

    def _undisturbed(self) -> tuple[float, int]:
        """How long a round takes, and how much it writes, when nobody disturbs it."""
        began = time.monotonic()
        ledger = self._round(0)
        return time.monotonic() - began, ledger.path.stat().st_size

    def _round(self, kills: int) -> Ledger:
        self.rounds += 1
        batch = Batch(self.rounds)
        ledger = Ledger(self.children.directory / f"ledger-{self.rounds}")
        while True:
            child = self.children.start("batch", self.url, "--round", self.rounds, ledger=ledger)
            if self.struck >= kills or not self._killed(child, ledger):
                break
            self._look(batch, ledger)
        child.succeeded()
        lines = ledger.lines()
        ledger.close()
        self._check(batch, lines)
        return ledger

    def _killed(self, child: Child, ledger: Ledger) -> bool:
        """Kill it: a quarter at any time, the others when it has written so much more, and a little later."""
        began, size = time.monotonic(), ledger.size()
        if self.chance.random() < 0.25:
            at, far = began + self.chance.uniform(0, self.seconds), 0
        else:
            at, far = 0.0, int(self.chance.uniform(size, max(size + 2_000, self.size * 1.1)))
        moved = (began, size)
        while child.alive() and (time.monotonic() < at or ledger.size() < far):
            if ledger.size() > moved[1]:
                moved = (time.monotonic(), ledger.size())
            assert time.monotonic() < moved[0] + STUCK, f"nothing moves for {STUCK:g} s\n{child.err[-4000:]}"
            time.sleep(0.0005)
        time.sleep(self.chance.uniform(0, 0.004) if far else 0)
        return child.kill()

    def _look(self, batch: Batch, ledger: Ledger) -> None:
        """Count a kill that left runs unfinished. Half of the times nobody looks before the next process."""
        lines = ledger.lines()
        over = {line["run"] for line in lines if line["what"] == "over"}
        self.struck += len(over) < len(batch.expected())
        if self.chance.random() < 0.5:
            return
        seen = glimpse(self.url, batch.prefix)
        assert not seen.faults(), "\n".join(seen.faults())
        ledger.write("seen", rows={run: row[0] for run, row in seen.rows.items()}, tokens=seen.tokens, moves=seen.moves)

    def _check(self, batch: Batch, lines: list[Line]) -> None:
        faults = faults_of(self.url, batch, lines, self.stopwatch)
        self.repeated += sum(line["what"] == "begin" for line in lines) - sum(
            len(e.path) for e in batch.expected().values()
        )
        assert not faults, f"round {self.rounds}, after {self.struck} kills:\n" + "\n".join(faults)


def faults_of(url: str, batch: Batch, lines: list[Line], stopwatch: Stopwatch) -> list[str]:
    """What a batch that has come to its end shows of broken promises."""
    runs = asyncio.run(told_by(url, batch))
    checker, faults = Checker(lines), late_lives(lines, stopwatch)
    for name, expected in batch.expected().items():
        mine = [one for one in runs if name in (f"{one[0].workflow}/{one[0].key}", one[0].workflow)]
        if len(mine) != 1:
            faults.append(f"{name}: there are {len(mine)} runs of it")
        for run, history in mine:
            faults += checker.faults(run, history, expected)
            faults += rewritten(run, history, lines)
    return faults


async def told_by(url: str, batch: Batch) -> list[tuple[Run, list[Entry]]]:
    """Every run of a batch with its history; nobody else is known to drive any more."""
    async with Engine(url) as engine:
        assert len(await engine.store.owners()) == 1, "owners that died, or closed, are still on the list"
        runs = [await engine.list(workflow, limit=10_000) for workflow in ("parcel", "ticket", batch.keyless)]
        mine = [run for found in runs for run in found if batch.prefix in f"{run.workflow}/{run.key}"]
        return [(run, await engine.history(run.workflow, run.key)) for run in mine]


def late_lives(lines: list[Line], stopwatch: Stopwatch) -> list[str]:
    """Processes that opened the store and then waited for something, though there were runs to go on with."""
    found = []
    for line in lines:
        if line["what"] == "open":
            mine = [
                other for other in lines if other["pid"] == line["pid"] and other["what"] in ("begin", "action", "over")
            ]
            waited = stopwatch.between(line["at"], mine[0]["at"]) if mine else 0.0
            if waited > IMMEDIATELY:
                found.append(f"P6: process {line['pid']} waited {waited:.1f} s before it went on")
    return found


def rewritten(run: Run, history: list[Entry], lines: list[Line]) -> list[str]:
    """P8: moves that were seen in the store and are now other ones, or gone."""
    now = [[m.version, m.source, m.dest, m.status, m.event, m.attempt] for m in history]
    seen = [line["moves"].get(f"{run.workflow}/{run.key}", []) for line in lines if line["what"] == "seen"]
    return [f"P8: history was rewritten: {old} is now {now}" for old in seen if now[: len(old)] != old]


def kill_often(url: str, children: Children, stopwatch: Stopwatch, kills: int) -> None:
    try:
        campaign = Campaign(url, children, stopwatch, SEED)
        campaign.go(kills)
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}; ledgers are in {children.directory}")
        raise
    assert campaign.struck >= kills > 0, "the kills struck no process with unfinished runs"
    assert campaign.repeated > 0, "no kill struck in the middle of a step"


def test_50_kills_on_sqlite_lose_and_repeat_nothing_that_was_committed(
    sqlite_url: str, children: Children, stopwatch: Stopwatch
) -> None:
    kill_often(sqlite_url, children, stopwatch, 50)


def test_30_kills_on_postgres_lose_and_repeat_nothing_that_was_committed(
    postgres_url: str, children: Children, stopwatch: Stopwatch
) -> None:
    kill_often(postgres_url, children, stopwatch, 30)


@pytest.mark.soak
def test_many_kills_lose_and_repeat_nothing_that_was_committed(
    durable_url: str, children: Children, stopwatch: Stopwatch
) -> None:
    kill_often(durable_url, children, stopwatch, SOAK)


# -- SIGKILL at named points ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_dies_at_a_named_point_loses_and_repeats_nothing_that_was_committed(
    durable_url: str, children: Children, stopwatch: Stopwatch, point: str
) -> None:
    """The first life leaves runs to go on with; the second comes to the point, and dies of it; the third ends them."""
    batch, nth = Batch(1), random.Random(f"{SEED} {point}").randint(2, 4)
    for place, times in (("step end", 5), (point, nth)):
        child = children.start("batch", durable_url, "--round", 1, "--die", place, "--nth", times)
        assert child.ended() == -signal.SIGKILL, f"{place} was not reached {times} times, {SEED=}\n{child.err}"
        seen = glimpse(durable_url, batch.prefix)
        assert not seen.faults(), f"{point}, {nth}: {seen.faults()}"
    children.start("batch", durable_url, "--round", 1).succeeded()
    faults = faults_of(durable_url, batch, children.ledger.lines(), stopwatch)
    assert not faults, f"{point}, {nth}:\n" + "\n".join(faults)


# -- who drives -------------------------------------------------------------------------------------------------------


def begun(ledger: Ledger) -> list[tuple[int, str, int]]:
    return [(line["pid"], line["state"], line["attempt"]) for line in ledger.lines("begin")]


@pytest.mark.parametrize("style", ["--machine", "--sync"])
def test_a_dead_process_of_this_machine_is_recognised_at_once(
    durable_url: str, children: Children, stopwatch: Stopwatch, style: str
) -> None:
    first = children.start("nap", durable_url, style)
    first.line("begin", state="doze")
    assert first.kill(), "it was to be killed in the middle of its step"
    children.open_gate()
    second = children.start("nap", durable_url, style, "--wait")
    second.line("ready")
    second.go()
    went = time.monotonic()
    assert stopwatch.between(went, second.line("begin", state="doze")["at"]) < 2
    run = json.loads(second.succeeded())
    assert (run["state"], run["data"]["slept"]) == ("awake", 1)
    assert begun(children.ledger) == [(first.pid, "doze", 1), (second.pid, "doze", 1), (second.pid, "wake", 1)]


def test_a_live_second_process_waits_and_tells_the_same_result(durable_url: str, children: Children) -> None:
    lease = 10.0
    first = children.start("nap", durable_url, "--lease", lease, "--sync")
    first.line("begin", state="doze")
    second = children.start("nap", durable_url, "--lease", lease)
    third = children.start("nap", durable_url, "--machine", "--wait")
    third.line("ready")
    third.go()
    second.line("open")
    time.sleep(1.1 * lease)  # that the first one's lease would have ended is what is tested
    children.open_gate()
    results = [child.succeeded() for child in (first, second, third)]
    assert results[0] == results[1] == results[2]
    assert begun(children.ledger) == [(first.pid, "doze", 1), (first.pid, "wake", 1)]


def test_a_live_second_process_takes_over_when_the_first_one_dies(
    durable_url: str, children: Children, stopwatch: Stopwatch
) -> None:
    first = children.start("nap", durable_url)
    first.line("begin", state="doze")
    second = children.start("nap", durable_url)
    second.line("open")
    assert first.kill()
    died = time.monotonic()
    children.open_gate()
    assert stopwatch.between(died, second.line("begin", state="doze")["at"]) < 2
    assert json.loads(second.succeeded())["state"] == "awake"


def test_a_process_that_was_stopped_for_longer_than_its_lease_writes_nothing(
    durable_url: str, children: Children
) -> None:
    first = children.start("nap", durable_url, "--lease", 0.5)
    first.line("begin", state="doze")
    first.stop(durable_url)
    second = children.start("nap", durable_url, "--lease", 5)
    second.line("begin", state="doze")
    children.open_gate()
    told = second.succeeded()
    first.send(signal.SIGCONT)
    assert first.succeeded() == told, "the first one reports what the second one came to"
    assert begun(children.ledger) == [(first.pid, "doze", 1), (second.pid, "doze", 1), (second.pid, "wake", 1)]
    assert first.line("end", state="doze"), "it was in the middle of its step, and ended it"
    assert json.loads(told)["version"] == 2


def test_of_16_processes_that_start_one_key_at_once_one_runs_its_body(durable_url: str, children: Children) -> None:
    children.open_gate()
    some = [children.start("nap", durable_url, "--wait") for _ in range(16)]
    for child in some:
        child.line("ready")
    for child in some:
        child.go()
    results = {child.succeeded() for child in some}
    assert len(results) == 1, results
    assert json.loads(results.pop())["status"] == "done"
    assert [state for _, state, _ in begun(children.ledger)] == ["doze", "wake"]
    assert [row[1:] for row in glimpse(durable_url).rows.values()] == [("awake", "done")]
    (moves,) = glimpse(durable_url).moves.values()
    assert [move[3] for move in moves] == ["running", "running", "done"]


async def test_run_and_resume_of_one_engine_drive_a_run_once(store_url: str) -> None:
    """Both claim for the same owner, so the claim alone does not keep them apart."""
    begun: Counter[str] = Counter()
    flow = Workflow("flow")

    @flow.step(initial=True, then="second")
    async def first(ctx: Any) -> None:
        begun[f"first {ctx.run.key}"] += 1
        await asyncio.sleep(0.002)

    @flow.step(then="over")
    async def second(ctx: Any) -> None:
        begun[f"second {ctx.run.key}"] += 1

    flow.final("over")
    keys = [f"k{n}" for n in range(20)]
    async with Engine(store_url, workflows=[flow]) as engine:
        for key in keys:  # as a process leaves them that is killed after its first commit
            fields = flow.check().codec.start({})
            await engine.store.create(begin(flow, key, fields, now=engine.store.now()))
        runs = await asyncio.gather(*(engine.run(flow, key=key) for key in keys), engine.resume(concurrency=3))
    assert {run.status for run in runs[:-1]} == {"done"}
    assert begun == Counter([f"{state} {key}" for state in ("first", "second") for key in keys])


# -- how a process ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["async", "--sync"])
@pytest.mark.parametrize("moment", ["resting", "in a step"])
def test_a_process_that_forgets_to_close_ends(
    durable_url: str, children: Children, stopwatch: Stopwatch, moment: str, style: str
) -> None:
    if moment == "resting":
        children.open_gate()
    child = children.start("forget", durable_url, *([style] if style == "--sync" else []))
    forgotten = child.line("forgotten")
    child.succeeded()
    assert stopwatch.since(forgotten["at"]) < 5
    children.open_gate()
    began = time.monotonic()
    assert json.loads(children.start("nap", durable_url).succeeded())["state"] == "awake"
    assert stopwatch.since(began) < 10


@pytest.mark.parametrize("style", ["async", "--sync", "--machine"])
def test_ctrl_c_ends_a_process_and_leaves_its_run_resumable(
    durable_url: str, children: Children, stopwatch: Stopwatch, style: str
) -> None:
    words = [] if style == "async" else [style]
    child = children.start("nap", durable_url, *words)
    child.line("begin", state="doze")
    child.send(signal.SIGINT)
    asked = time.monotonic()
    assert child.ended() != 0, "Ctrl-C was swallowed"
    assert stopwatch.since(asked) < 5
    assert "KeyboardInterrupt" in child.err
    assert glimpse(durable_url).rows["nap/k"] == (0, "doze", "running")
    children.open_gate()
    again = children.start("nap", durable_url, *words)
    opened: Any = again.line("begin", state="doze", attempt=1)
    assert json.loads(again.succeeded())["data"]["slept"] == 1
    assert stopwatch.since(opened["at"]) < 10
