"""What is posted in one process wakes another: at once where the store can ring, else at the next look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from fsmworkflow import Engine, Event, Workflow, lookout
from fsmworkflow.decide import begin
from fsmworkflow.store import Store, open_store
from fsmworkflow.store.bell import CHANNEL
from fsmworkflow.store.postgres import PostgresStore
from tests.postgres_server import execute
from tests.stopwatch import Stopwatch
from tests.waiting import until

SELDOM = 3_600.0  # seconds between two looks: what comes sooner was heard


def letter() -> Workflow:
    """write -> sent (waits for "read") -> answer -> over; `emits` tells another letter."""
    flow = Workflow("letter")

    @flow.step(initial=True, then="sent")
    async def write(ctx: Any) -> None:
        ctx.data["written"] = True

    flow.wait("sent", on={"read": "answer", "forward": "pass_on"})

    @flow.step(then="over")
    async def answer(ctx: Any) -> None:
        ctx.data["answered"] = True

    @flow.step(then="over")
    async def pass_on(ctx: Any) -> None:
        await ctx.emit(flow, ctx.event.payload, "read")

    flow.final("over")
    return flow


@pytest.fixture
async def elsewhere(postgres_url: str) -> AsyncIterator[PostgresStore]:
    """Another process: it has the database, and no engine that drives anything."""
    store = PostgresStore(postgres_url)
    await store.open()
    yield store
    await store.close()


def over(engine: Engine, flow: Workflow, key: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (await engine.get(flow, key)).state == "over"

    return look


async def listening(engine: Engine) -> None:
    async def heard() -> bool:
        return engine.store._bell._opened > 0  # type: ignore[attr-defined]

    await until(heard)


async def create(store: PostgresStore, flow: Workflow, key: str) -> None:
    await store.create(begin(flow, key, flow.check().codec.start({}), now=store.now()))


async def test_an_event_from_elsewhere_wakes_the_engine_that_holds_the_run(
    postgres_url: str, elsewhere: PostgresStore
) -> None:
    flow = letter()
    async with Engine(postgres_url, workflows=[flow], poll=0.05) as one:
        await one.run(flow, key="a")
        await listening(one)
        one.roster.poll = SELDOM
        await asyncio.sleep(0.2)  # so that a look is under way that would take an hour
        await elsewhere.post("letter", "a", Event(name="read", id="1"))
        await until(over(one, flow, "a"))
        moved = (await one.history(flow, "a"))[-1]
    assert moved.owner == one.worker.token or moved.owner is not None


async def test_what_is_started_or_posted_elsewhere_wakes_an_engine_that_works(
    postgres_url: str, elsewhere: PostgresStore
) -> None:
    flow = letter()
    async with Engine(postgres_url, workflows=[flow], poll=SELDOM) as one, one.working():
        await listening(one)
        await create(elsewhere, flow, "a")

        async def rests() -> bool:
            run = await one.get(flow, "a")
            return (run.state, run.owner) == ("sent", None)

        await until(rests)
        await elsewhere.post("letter", "a", Event(name="read", id="1"))
        await until(over(one, flow, "a"))


async def test_what_a_step_emits_wakes_the_one_who_holds_its_receiver(postgres_url: str) -> None:
    flow, other = letter(), letter()
    async with Engine(postgres_url, workflows=[flow], poll=0.05) as one, Engine(postgres_url, workflows=[other]) as two:
        await one.run(flow, key="a")
        await listening(one)
        one.roster.poll = SELDOM
        await asyncio.sleep(0.2)
        await two.run(other, key="b")
        await two.send(other, "b", "forward", "a")
        await until(over(one, flow, "a"))


async def test_a_broken_listener_is_opened_anew_and_the_looks_go_on_meanwhile(
    postgres_url: str, elsewhere: PostgresStore
) -> None:
    flow = letter()
    async with Engine(postgres_url, workflows=[flow], poll=SELDOM) as one, one.working():
        await listening(one)
        opened = one.store._bell._opened  # type: ignore[attr-defined]
        execute(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        )
        await create(elsewhere, flow, "a")  # while nobody listens
        await until(lambda: one.store.rings([], opened, 0.1))  # type: ignore[arg-type]

        async def rests() -> bool:
            return (await one.get(flow, "a")).state == "sent"

        await until(rests)
        await create(elsewhere, flow, "b")
        await elsewhere.post("letter", "a", Event(name="read", id="1"))
        await until(over(one, flow, "a"))


async def test_behind_a_pooler_nobody_listens_and_looks_are_enough(postgres_url: str) -> None:
    flow = letter()
    store = PostgresStore(postgres_url, connect={"statement_cache_size": 0})
    async with Engine(store, workflows=[flow], poll=0.05) as one, one.working():
        await create(store, flow, "a")

        async def rests() -> bool:
            return (await one.get(flow, "a")).state == "sent"

        await until(rests)
        async with Engine(postgres_url, workflows=[letter()]) as two:
            await two.send("letter", "a", "read")
            await until(over(one, flow, "a"))
        watcher = await asyncpg.connect(postgres_url)
        listeners = await watcher.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        await watcher.close()
    assert listeners == 0


async def test_plain_moves_never_ring(postgres_url: str) -> None:
    flow, heard = Workflow("walk"), []
    for n in range(5):
        flow.step(f"s{n}", initial=n == 0, then=f"s{n + 1}" if n < 4 else "over")(lambda ctx: None)
    flow.final("over")
    ear = await asyncpg.connect(postgres_url)
    await ear.add_listener(CHANNEL, lambda *said: heard.append(said[-1]))
    async with Engine(postgres_url, workflows=[flow]) as one:
        await asyncio.gather(*(one.run(flow, key=f"k{n}") for n in range(5)))
        assert heard == []
        await create(one.store, flow, "unowned")  # type: ignore[arg-type]

        async def rang() -> bool:
            return heard == [""]

        await until(rang)
    await ear.close()


async def test_without_a_bell_the_next_look_finds_it(sqlite_url: str, stopwatch: Stopwatch) -> None:
    flow = letter()
    async with Engine(sqlite_url, workflows=[flow]) as one, Engine(sqlite_url, workflows=[letter()]) as two:
        await one.run(flow, key="a")
        await until(looked_again(one))
        found, woken = list[bool](), one.store.woken

        async def noted(owner: str, since: float) -> Any:
            found.append(bool(seen := await woken(owner, since)))
            return seen

        one.store.woken = noted  # type: ignore[method-assign]
        began = time.monotonic()
        await two.store.post("letter", "a", Event(name="read", id="1"))
        await until(over(one, flow, "a"))
    assert stopwatch.since(began) < 1.5  # half a second between two looks, on a busy machine
    assert True in found[:2]  # the look that was under way may have been too early


def slow_writer(url: str) -> Store:
    """A store in another process, whose writes show a minute after they began."""
    if url.startswith("sqlite"):
        return open_store(url, clock=lambda: time.time() - 60)
    store = PostgresStore(url)
    store._measured = lambda asking: asking  # type: ignore[assignment, method-assign, return-value]
    store._offset = -60.0
    return store


@pytest.mark.parametrize("at", ["at rest", "in a step"])
async def test_an_event_whose_write_took_a_minute_is_found_all_the_same(
    durable_url: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(lookout, "FAR", 0.2)
    flow = Workflow("slow")
    flow.wait("ready", initial=True, on={"read": "over", "work": "busy"})

    @flow.step("busy", then="over", on={"read": "over"})
    async def busy(ctx: Any) -> None:
        await asyncio.sleep(60)

    flow.final("over")
    async with Engine(durable_url, workflows=[flow], poll=0.02) as engine:
        await engine.start(flow, key="a")
        await engine.result(flow, "a")
        if at == "in a step":
            await engine.send(flow, "a", "work")
        for _ in range(5):  # looks that cannot see it yet
            await until(looked_again(engine))
        rival = slow_writer(durable_url)
        await rival.open()
        try:
            posted = await rival.post("slow", "a", Event(name="read", id="late"))
            assert posted.due is not None
            assert posted.due < engine.store.now() - 50
            await until(over(engine, flow, "a"))
        finally:
            await rival.close()


def looked_again(engine: Engine) -> Callable[[], Awaitable[bool]]:
    """Whether the engine has looked for events once more."""
    woken, looks = engine.store.woken, 0

    async def counted(owner: str, since: float) -> Any:
        nonlocal looks
        found = await woken(owner, since)
        looks += 1
        return found

    async def look() -> bool:
        if looks:
            engine.store.woken = woken  # type: ignore[method-assign]
        return looks > 0

    engine.store.woken = counted  # type: ignore[method-assign]
    return look
