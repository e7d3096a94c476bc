"""A network to PostgreSQL that breaks: processes do not end, runs soon go on, and no finished step is repeated."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow, open_store
from fsmworkflow.store import postgres_lent, postgres_watch
from tests.children import Child, Children
from tests.network import Network
from tests.stopwatch import Stopwatch
from tests.test_outages import nothing_was_lost, walking
from tests.waiting import PATIENCE

BACK = 5.0  # seconds after its return within which a run goes on, with leases of 60 that help nobody
STEPS = 30


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as some:
        yield some


@pytest.fixture
def network(postgres_url: str) -> Iterator[Network]:
    with Network(postgres_url) as one:
        yield one


def went_on(children: Children, child: Child, since: float, stopwatch: Stopwatch) -> float:
    """After how many seconds the first step ended that began since then."""

    def ended() -> float | None:
        begun = {line["run"] for line in children.ledger.lines("begin") if line["at"] > since}
        return next((x["at"] for x in children.ledger.lines("end") if x["at"] > since and x["run"] in begun), None)

    found: float = child.until(ended)
    return stopwatch.between(since, found)


def test_connections_that_are_reset_again_and_again_cost_nobody_a_step(network: Network, children: Children) -> None:
    child = walking(children, network.url, STEPS)
    for _ in range(10):
        child.until(network.reset)  # as soon as there is a connection again
        seen = len(children.ledger.lines("end"))
        child.until(lambda seen=seen: len(children.ledger.lines("end")) > seen)
    child.succeeded()
    assert network.broken >= 10
    nothing_was_lost(children, network.server, STEPS)


def test_an_answer_that_is_cut_in_the_middle_is_no_answer(network: Network, children: Children) -> None:
    child = walking(children, network.url, STEPS)
    for number in range(1, 9):
        network.cut()
        child.until(lambda number=number: network.broken == number)
    child.succeeded()
    assert network.broken == 8
    nothing_was_lost(children, network.server, STEPS)


def test_a_network_that_is_slow_only_takes_longer(network: Network, children: Children) -> None:
    child = walking(children, network.url)
    network.delay(0.4)
    slow = time.monotonic()

    def ends() -> list[float]:
        return [x["at"] for x in children.ledger.lines("end") if x["run"] == "walk/w0" and x["at"] > slow]

    child.until(lambda: len(ends()) > 1 or len(children.ledger.lines("over")) == 5)
    network.heal()
    child.succeeded()
    assert max(later - earlier for earlier, later in pairwise(ends())) > 0.8, "a question takes twice the delay"
    nothing_was_lost(children, network.server)


def black_hole(network: Network, children: Children, stopwatch: Stopwatch, seconds: float) -> None:
    child = walking(children, network.url, STEPS)
    network.swallow()
    struck = time.monotonic()
    child.until(lambda: network.swallowed)
    child.until(lambda: time.monotonic() > struck + seconds, 2 * seconds + PATIENCE)
    since = Counter(x["run"] for x in children.ledger.lines("end") if x["at"] > struck)
    assert set(since.values()) <= {1}, "a run went on to a second step: something still passed"
    network.heal()
    assert went_on(children, child, time.monotonic(), stopwatch) < BACK
    child.succeeded()
    nothing_was_lost(children, network.server, STEPS)


def test_runs_go_on_soon_after_a_network_that_swallowed_everything(
    network: Network, children: Children, stopwatch: Stopwatch
) -> None:
    black_hole(network, children, stopwatch, 3)


@pytest.mark.soak
def test_runs_go_on_soon_after_a_network_that_swallowed_everything_for_a_minute(
    network: Network, children: Children, stopwatch: Stopwatch
) -> None:
    black_hole(network, children, stopwatch, 60)


async def test_a_statement_that_takes_long_is_left_alone(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is at work on it: only an answer that cannot come any more is given up."""
    monkeypatch.setattr(postgres_watch, "SECONDS", 0.2)
    store = open_store(network.url)
    await store.open()
    try:
        writing = store._writing_on  # type: ignore[attr-defined]
        assert await writing(lambda db: db.fetchval("SELECT pg_sleep(3) IS NOT NULL"))
    finally:
        await store.close()


SOON = 30.0  # seconds: far below a statement's own time of 60


async def test_a_transaction_that_the_network_swallowed_does_not_keep_its_rows_locked(network: Network) -> None:
    """The server waits for the rest of it, and is never told that its client has gone."""
    made = Workflow("made")
    made.wait("open", initial=True, on={"go": "end"})
    made.final("end")
    async with Engine(network.server, workflows=[made]) as engine, asyncio.timeout(SOON):
        run = await engine.run(made, key="k")
        store = open_store(network.url)
        await store.open()

        async def cut_off(db: Any) -> None:
            async with store._transaction(db, several=True):  # type: ignore[attr-defined]
                await db.execute("SELECT FROM fsm_runs WHERE key = 'k' FOR UPDATE")
                network.swallow()
                await db.execute("SELECT 1")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await store._writing_on(cut_off)  # type: ignore[attr-defined]
        network.heal()
        await engine.send(made, "k", "go")
        assert (await engine.result(made, "k")).version == run.version + 1
        await store.close()


async def test_a_step_whose_transaction_was_swallowed_in_its_commit_goes_on_soon(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, loop = postgres_lent.advance, asyncio.get_running_loop()

    async def cut_off(db: Any, *more: Any) -> None:
        await written(db, *more)
        if not network.swallowed:
            network.swallow()
            loop.call_later(1, network.heal)

    monkeypatch.setattr(postgres_lent, "advance", cut_off)
    made = Workflow("made")

    @made.step(initial=True, then="end")
    async def step(ctx: Any) -> None:
        async with ctx.transaction() as db:
            await db.execute("SELECT 1")

    made.final("end")
    async with Engine(network.url, workflows=[made]) as engine, asyncio.timeout(SOON):
        assert (await engine.run(made, key="k")).status == "done"
        assert network.swallowed


async def test_a_reading_whose_network_is_gone_just_after_its_answer_is_over(network: Network) -> None:
    store = open_store(network.url)
    await store.open()
    loop = asyncio.get_running_loop()

    async def cut_off(db: Any) -> int:
        found: int = await db.fetchval("SELECT 1")
        network.swallow()
        loop.call_later(1, network.heal)
        return found

    async with asyncio.timeout(SOON):
        assert await store._ask(cut_off) == 1  # type: ignore[attr-defined]
        await store.close()
