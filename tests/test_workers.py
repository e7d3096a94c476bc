"""Processes that work on one store, killed, ended and frozen at random: nothing is lost, and little is repeated."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsmworkflow import open_store
from fsmworkflow.decide import begin
from tests.children import Child, Children
from tests.crash_child import chore, started
from tests.ledger import Line, glimpse
from tests.points import LEAVING
from tests.waiting import PATIENCE

SEED = int(os.environ.get("FSMWORKFLOW_SEED") or secrets.randbits(32))
OFTEN = 1_000_000  # a run that is often killed here is not at fault
STEPS = [f"s{n}" for n in range(4)]


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as some:
        yield some


def chores(url: str, *keys: str) -> None:
    """Runs that nobody drives yet."""

    async def make() -> None:
        flow, store = chore().check(), open_store(url)
        await store.open()
        made = [begin(flow, key, flow.codec.start(started(key)), now=store.now()) for key in keys]
        await asyncio.gather(*map(store.create, made))
        await store.close()

    asyncio.run(make())


def worker(children: Children, url: str, many: int = 10, *words: object) -> Child:
    return children.start("work", url, "--steps", many, "--deaths", OFTEN, *words)


def all_over(url: str, many: int) -> bool:
    rows = glimpse(url, "chore/").rows
    return len(rows) == many and all(row[1:] == ("over", "done") for row in rows.values())


def check(url: str, children: Children, many: int, deaths: int) -> None:
    """Every run took its four steps in order, each committed once; a death repeated at most one step of a run."""
    seen = glimpse(url, "chore/")
    assert not seen.faults()
    for moves in seen.moves.values():
        assert [move[1] for move in moves] == ["", *STEPS]
    assert len(seen.rows) == many
    lines = children.ledger.lines()
    began: Counter[tuple[str, str]] = Counter((x["run"], x["state"]) for x in lines if x["what"] == "begin")
    assert set(began) == {(run, state) for run in seen.rows for state in STEPS}
    for run in seen.rows:
        assert sum(began[run, state] for state in STEPS) - len(STEPS) <= deaths


def alive_until(url: str, many: int, some: list[Child], seconds: float = 2 * PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not all_over(url, many):
        assert time.monotonic() < end, "".join(child.err[-1000:] for child in some)
        time.sleep(0.05)


def dismissed(some: list[Child]) -> None:
    for child in some:
        child.line("open")  # by now it minds the signal
        child.send(signal.SIGTERM)
    for child in some:
        child.succeeded()
        assert "database is locked" not in child.err


def kill_workers(url: str, children: Children, kills: int) -> None:
    """Three work; at random one is killed, and another started in its place, while there is always something to do."""
    chance, struck, made = random.Random(SEED), 0, 0
    some = [worker(children, url) for _ in range(3)]
    for child in some:
        child.line("open")
    while struck < kills:
        chores(url, *(f"k{made + n}" for n in range(10)))
        made += 10
        time.sleep(chance.uniform(0.01, 0.1))
        place = chance.randrange(3)
        struck += not all_over(url, made)
        assert some[place].kill(), some[place].err
        some[place] = worker(children, url)
    alive_until(url, made, some)
    dismissed(some)
    check(url, children, made, struck)


def test_40_kills_of_three_workers_on_postgres_lose_nothing(postgres_url: str, children: Children) -> None:
    try:
        kill_workers(postgres_url, children, 40)
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise


@pytest.mark.soak
def test_500_kills_of_three_workers_on_postgres_lose_nothing(postgres_url: str, children: Children) -> None:
    kill_workers(postgres_url, children, 500)


def test_P3_a_worker_that_is_told_to_end_repeats_no_step_and_its_successor_goes_on(
    durable_url: str, children: Children
) -> None:
    for turn in range(4):
        chores(durable_url, *(f"{turn}-{n}" for n in range(15)))
        child = worker(children, durable_url)
        before = len(children.ledger.lines("end"))
        child.until(lambda before=before: len(children.ledger.lines("end")) > before + 5)
        successor = worker(children, durable_url)  # on the same machine, while the other one still drains
        successor.line("open")
        dismissed([child])
        dismissed([successor])
    last = worker(children, durable_url)
    alive_until(durable_url, 60, [last])
    dismissed([last])
    check(durable_url, children, 60, deaths=0)


def test_workers_whose_clocks_are_an_hour_and_a_day_apart_share_the_work_and_each_others_deaths(
    postgres_url: str, children: Children
) -> None:
    some = [worker(children, postgres_url, 4, "--clock", apart) for apart in (0, 3_600, -86_400)]
    clocks = [child.line("open")["clock"] for child in some]
    assert clocks[1] - clocks[2] > 89_000
    chores(postgres_url, *(f"k{n}" for n in range(60)))
    for child in some[1:]:
        child.line("end")
        assert child.kill()
    alive_until(postgres_url, 60, some[:1])
    chores(postgres_url, *(f"k{n}" for n in range(60, 90)))
    some = [worker(children, postgres_url, 4, "--clock", apart) for apart in (3_600, -86_400)] + some[:1]
    alive_until(postgres_url, 90, some)
    dismissed(some)
    check(postgres_url, children, 90, deaths=2)


@pytest.mark.parametrize("point", LEAVING)
def test_a_worker_that_dies_as_it_gives_its_runs_back_repeats_at_most_one_step_of_each(
    durable_url: str, children: Children, point: str
) -> None:
    chores(durable_url, *(f"k{n}" for n in range(60)))
    child = worker(children, durable_url, 4, "--die", point, "--nth", 2)
    child.line("end")
    child.send(signal.SIGTERM)
    assert child.ended() == -signal.SIGKILL, f"{point} was not reached twice\n{child.err}"
    successor = worker(children, durable_url)
    alive_until(durable_url, 60, [successor])
    dismissed([successor])
    check(durable_url, children, 60, deaths=1)


def test_8_processes_on_one_sqlite_file_share_the_work(sqlite_url: str, children: Children) -> None:
    chores(sqlite_url, *(f"k{n}" for n in range(120)))
    some = [worker(children, sqlite_url, 4) for _ in range(8)]
    alive_until(sqlite_url, 120, some)
    dismissed(some)
    check(sqlite_url, children, 120, deaths=0)
    assert len({line["pid"] for line in began(children)}) > 1


def began(children: Children) -> list[Line]:
    return children.ledger.lines("begin")
