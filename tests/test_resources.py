"""Resources: opened once and bounded, lent to steps, given back whatever comes of them, closed in the other order."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import httpx
import pytest

from fsmworkflow import Engine, FSMWorkflowError, Retry, RunFailed, StepTimeout, Workflow, WorkflowContext
from fsmworkflow.pools import Folder, HttpClient, Pool, ResourceError, ResourceTimeout, Shared
from fsmworkflow.stream import StreamError, batch, stream
from tests.waiting import PATIENCE, until

SEED = int(os.environ.get("FSMWORKFLOW_SEED") or secrets.randbits(32))

Step = Callable[[WorkflowContext[Any]], Any]


class Thing:
    """A connection that says what became of it."""

    def __init__(self, number: int) -> None:
        self.number, self.closed, self.sound = number, False, True

    async def close(self) -> None:
        self.closed = True


class Things:
    """Makes them, and knows all."""

    def __init__(self, refusing: bool = False) -> None:
        self.made: list[Thing] = []
        self.refusing = refusing
        self.most = 0

    async def __call__(self) -> Thing:
        await asyncio.sleep(0)
        if self.refusing:
            raise OSError("nobody listens there")
        self.made.append(Thing(len(self.made)))
        self.most = max(self.most, len(self.open))
        return self.made[-1]

    @property
    def open(self) -> list[Thing]:
        return [thing for thing in self.made if not thing.closed]


def using(step: Step, **more: Any) -> Workflow:
    """A workflow of one step."""
    flow = Workflow("using")
    flow.step("work", initial=True, then="done", **more)(step)
    flow.final("done")
    return flow


@asynccontextmanager
async def noted(notes: list[str], name: str, value: Any = None) -> AsyncIterator[Any]:
    notes.append(f"open {name}")
    try:
        yield value
    finally:
        notes.append(f"close {name}")


async def test_a_step_is_lent_what_the_engine_has_opened(store_url: str) -> None:
    things = Things()

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db") as thing:
            ctx.data["number"] = thing.number
            assert not thing.closed

    async with Engine(store_url, workflows=[flow := using(work)], resources={"db": Pool(things)}) as engine:
        assert len(things.open) == 1
        assert (await engine.run(flow, key="a")).data == {"number": 0}
        assert (await engine.run(flow, key="b")).data == {"number": 0}
        assert (await engine.health()).resources["db"].used == 0
    assert (len(things.made), things.open) == (1, [])


async def test_resources_are_opened_in_their_order_and_closed_in_the_other(store_url: str) -> None:
    notes: list[str] = []
    given = {name: noted(notes, name) for name in ("a", "b", "c")}
    async with Engine(store_url, resources=given):
        assert notes == ["open a", "open b", "open c"]
    assert notes[3:] == ["close c", "close b", "close a"]


async def test_one_that_cannot_be_opened_is_an_error_at_start_that_names_it(store_url: str) -> None:
    notes: list[str] = []
    pool = Pool(Things(refusing=True))
    engine = Engine(store_url, resources={"a": lambda: noted(notes, "a"), "db": pool, "c": lambda: noted(notes, "c")})
    with pytest.raises(ResourceError, match=r"resource 'db' did not open: OSError: nobody listens there") as raised:
        await engine.__aenter__()
    assert isinstance(raised.value.__cause__, OSError)
    assert notes == ["open a", "close a"]
    pool._make = Things()
    async with engine:  # and once it is mended the same engine opens
        assert (await engine.health()).ok
    assert notes[2:] == ["open a", "open c", "close c", "close a"]


async def test_one_that_does_not_open_in_time_is_named_too_and_does_not_stay_half_open(store_url: str) -> None:
    left = asyncio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            left.set()

    with pytest.raises(ResourceTimeout, match=r"'slow' did not open within 0\.02 s: it does not answer"):
        await Engine(store_url, resources={"slow": Shared(slow, wait=0.02)}).__aenter__()
    await asyncio.wait_for(left.wait(), PATIENCE)


async def test_an_engine_whose_opening_is_cancelled_leaves_nothing_open(store_url: str) -> None:
    notes: list[str] = []
    opening = asyncio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        opening.set()
        await asyncio.Event().wait()
        yield

    engine = Engine(store_url, resources={"a": noted(notes, "a"), "slow": slow()})
    task = asyncio.create_task(engine.__aenter__())
    await opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert notes == ["open a", "close a"]
    assert not engine.store.opened


async def test_a_pool_never_has_more_members_than_its_bound_and_steps_wait_for_their_turn(store_url: str) -> None:
    things, inside = Things(), 0

    async def work(ctx: WorkflowContext) -> None:
        nonlocal inside
        async with ctx.use("db"):
            inside += 1
            assert inside <= 3
            await asyncio.sleep(0.001)
            if int(ctx.run.key) % 5 == 0 and ctx.attempt == 1:
                inside -= 1
                raise OSError("lost")
            inside -= 1

    flow = using(work, retry=Retry(first_delay=0))
    async with Engine(store_url, workflows=[flow], resources={"db": Pool(things, min=0, max=3)}) as engine:
        await asyncio.gather(*(engine.run(flow, key=str(number)) for number in range(40)))
        assert things.most <= 3
        assert len(things.made) >= 8  # each error has thrown one away
    assert things.open == []


async def test_waiting_for_one_has_an_end_that_is_the_steps_error(store_url: str) -> None:
    release, held = asyncio.Event(), asyncio.Event()

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db"):
            held.set()
            await release.wait()

    flow, pool = using(work), Pool(Things(), max=1, wait=PATIENCE)
    async with Engine(store_url, workflows=[flow], resources={"db": pool}) as engine:
        await engine.start(flow, key="first")
        await held.wait()
        pool.wait = 0.05
        with pytest.raises(RunFailed) as failed:
            await engine.run(flow, key="second")
        assert isinstance(failed.value.__cause__, ResourceTimeout)
        assert isinstance(failed.value.__cause__, TimeoutError)
        assert "'db' was not to be had within 0.05 s: all 1 of it are in use" in str(failed.value.__cause__)
        pool.wait = PATIENCE
        release.set()
        assert (await engine.result(flow, "first")).status == "done"
        assert (await engine.run(flow, key="second")).status == "done"  # it has kept its place


async def test_what_a_step_has_not_given_back_is_taken_back_when_it_ends(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    things = Things()

    async def work(ctx: WorkflowContext) -> None:
        await ctx.use("db").__aenter__()
        if ctx.attempt == 1:
            raise OSError("and it fails, too")

    flow = using(work, retry=Retry(first_delay=0))
    async with Engine(store_url, workflows=[flow], resources={"db": Pool(things, max=1, wait=5)}) as engine:
        for number in range(3):
            assert (await engine.run(flow, key=str(number))).status == "done"
        await until(lambda: len(things.open) == 0)
        assert (await engine.health()).problems == ()
        assert engine.resources._uses == {}
    assert len(things.made) == 7  # a new one each time, as nobody knows what a leak is in the middle of
    assert caplog.text.count("resource 'db' was not given back by state 'work' of using/") == 6


async def test_a_block_that_ends_after_its_step_gives_nothing_back_twice(store_url: str) -> None:
    things, go, over = Things(), asyncio.Event(), asyncio.Event()

    async def hold(ctx: WorkflowContext) -> None:
        async with ctx.use("db"):
            go.set()
            await over.wait()

    async def work(ctx: WorkflowContext) -> None:
        ctx.data["task"] = None
        tasks.append(asyncio.create_task(hold(ctx)))
        await go.wait()

    tasks: list[asyncio.Task[None]] = []
    flow = using(work)
    async with Engine(store_url, workflows=[flow], resources={"db": Pool(things, max=1)}) as engine:
        await engine.run(flow, key="a")
        await until(lambda: engine.resources._all["db"].used == 0)
        over.set()
        await tasks[0]
        assert (engine.resources._all["db"].used, engine.resources._uses) == (0, {})
        async with engine.resources.use("db"):
            assert engine.resources._all["db"].used == 1


async def test_a_cancelled_step_gives_back_and_its_member_is_thrown_away(store_url: str) -> None:
    things, held = Things(), asyncio.Event()

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db"):
            held.set()
            await asyncio.Event().wait()

    flow = using(work)
    async with Engine(store_url, workflows=[flow], resources={"db": Pool(things, max=1)}) as engine:
        await engine.start(flow, key="a")
        await held.wait()
        assert (await engine.cancel(flow, "a")).status == "cancelled"
        async with engine.resources.use("db") as thing:
            assert [thing] == things.open
            assert thing.number == 1


async def test_a_step_that_takes_too_long_gives_back(store_url: str) -> None:
    things = Things()

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db"):
            await asyncio.Event().wait()

    flow = using(work, timeout=0.02)
    async with Engine(store_url, workflows=[flow], resources={"db": Pool(things, max=1)}) as engine:
        with pytest.raises(RunFailed) as failed:
            await engine.run(flow, key="a")
        assert isinstance(failed.value.__cause__, StepTimeout)
        assert engine.resources._all["db"].used == 0


async def test_a_step_cancelled_while_it_waits_for_its_turn_takes_nobody_elses() -> None:
    things, held, release = Things(), asyncio.Event(), asyncio.Event()

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db"):
            held.set()
            await release.wait()

    flow = using(work)
    async with Engine("memory://", workflows=[flow], resources={"db": Pool(things, max=1)}) as engine:
        await engine.start(flow, key="holds")
        await held.wait()
        for number in range(10):
            await engine.start(flow, key=str(number))
        for number in range(10):
            await engine.cancel(flow, str(number))
        release.set()
        assert (await engine.result(flow, "holds")).status == "done"
        async with engine.resources.use("db") as thing:
            assert thing.number == 0


async def test_a_dead_member_is_thrown_away_for_a_new_one(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    things = Things()

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db") as thing:
            ctx.data["number"] = thing.number

    async def check(thing: Thing) -> bool:
        if thing.number == 1 and not thing.sound:
            raise ConnectionResetError("by peer")
        return thing.sound

    flow = using(work)
    async with Engine(store_url, workflows=[flow], resources={"db": Pool(things, max=1, check=check)}) as engine:
        assert (await engine.run(flow, key="a")).data == {"number": 0}
        things.made[0].sound = False  # its check says no
        assert (await engine.run(flow, key="b")).data == {"number": 1}
        things.made[1].sound = False  # its check raises
        assert (await engine.run(flow, key="c")).data == {"number": 2}
        assert things.open == [things.made[2]]
    assert "a member of resource 'db' is thrown away: ConnectionResetError('by peer')" in caplog.text


async def test_a_member_is_reset_when_it_is_given_back_and_thrown_away_where_it_cannot_be() -> None:
    things, reset = Things(), []

    async def back(thing: Thing) -> None:
        reset.append(thing.number)
        if thing.number == 1:
            raise OSError("gone")

    async with Engine("memory://", resources={"db": Pool(things, max=1, reset=back)}) as engine:
        async with engine.resources.use("db"):
            pass
        things.made[0].closed = False
        with pytest.raises(KeyError):
            async with engine.resources.use("db"):
                raise KeyError
        for number in (1, 2, 2):
            async with engine.resources.use("db") as thing:
                assert thing.number == number
    assert reset == [0, 1, 2, 2]


async def test_members_that_nobody_uses_are_closed_but_for_the_least() -> None:
    things = Things()
    async with Engine("memory://", resources={"db": Pool(things, min=2, max=5, idle=0.05)}) as engine:
        entered = asyncio.Barrier(5)

        async def use() -> None:
            async with engine.resources.use("db"):
                await entered.wait()

        await asyncio.gather(*(use() for _ in range(5)))
        assert len(things.open) == 5
        assert (await engine.health()).resources["db"].open == 5
        await until(lambda: len(things.open) == 2)
        assert (await engine.health()).resources["db"].open == 2


async def test_health_tells_of_resources_and_is_not_ready_while_one_is_ill(store_url: str) -> None:
    things = Things()
    async with Engine(store_url, resources={"db": Pool(things, max=2), "x": Shared(Things())}) as engine:
        async with engine.resources.use("db"):
            health = await engine.health()
            assert (health.ok, health.resources["db"].used, health.resources["db"].max) == (True, 1, 2)
            assert health.resources["x"].max is None
        things.refusing = True
        with pytest.raises(KeyError):
            async with engine.resources.use("db"), engine.resources.use("db"):
                raise KeyError  # which throws both away, and no new one can be made
        health = await engine.health()
        assert (health.ok, health.live, health.ready) == (False, True, False)
        assert health.problems == ("resource 'db' was not to be had: OSError: nobody listens there",)
        things.refusing = False
        assert (await engine.health()).ok


async def test_health_says_what_a_check_says_and_waits_for_it_no_longer_than_asked() -> None:
    answer: Any = True

    async def check(thing: Any) -> Any:
        if answer is None:
            await asyncio.Event().wait()
        return answer

    async with Engine("memory://", resources={"x": Shared(Things(), check=check)}) as engine:
        assert (await engine.health()).ok
        answer = False
        assert (await engine.health()).problems == ("resource 'x' is not well: its check says no",)
        answer = None
        assert (await engine.health(within=0.2)).problems == ("resource 'x' does not answer within 0.2 s",)


async def test_health_asks_no_resource_that_is_used_to_its_bound() -> None:
    async with Engine("memory://", resources={"db": Pool(Things(), max=1)}) as engine, engine.resources.use("db"):
        assert (await engine.health(within=PATIENCE)).ok


async def test_health_opens_nothing_of_a_pool_that_need_not_have_anything() -> None:
    things = Things()
    async with Engine("memory://", resources={"db": Pool(things, min=0)}) as engine:
        assert (await engine.health()).resources["db"].open == 0
        assert things.made == []
        things.refusing = True
        assert (await engine.health()).ok  # until a step asks for one
        with pytest.raises(ResourceError, match="nobody listens there"):
            await engine.resources.use("db").__aenter__()


async def test_what_is_entered_is_left_in_the_task_that_entered_it(store_url: str) -> None:
    tasks: list[Any] = []

    @asynccontextmanager
    async def group() -> AsyncIterator[Any]:
        tasks.append(asyncio.current_task())
        async with asyncio.TaskGroup() as made:
            yield made
        tasks.append(asyncio.current_task())

    async with Engine(store_url, resources={"group": group}):
        pass
    assert tasks[0] is tasks[1] is not asyncio.current_task()


async def test_one_that_ends_by_itself_is_told_and_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def group() -> AsyncIterator[Any]:
        async with asyncio.TaskGroup() as made:
            yield made

    async def fails() -> None:
        raise OSError("the peer is gone")

    async with Engine("memory://", resources={"group": group, "other": Shared(Things())}) as engine:
        async with engine.resources.use("group") as made:
            made.create_task(fails())
        await until(lambda: "resource 'group' has ended" in caplog.text)
        assert "the peer is gone" in caplog.text
        said = "resource 'group' has ended, and is opened again with its engine: the log says why"
        with pytest.raises(ResourceError, match=said):
            await engine.resources.use("group").__aenter__()
        assert (await engine.health()).problems == (said,)
        async with engine.resources.use("other"):
            pass


async def test_what_cannot_be_closed_is_said_and_keeps_no_other_open(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    @asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        yield
        raise OSError("it does not flush")

    async with Engine("memory://", resources={"a": noted(notes, "a"), "b": stubborn()}):
        pass
    assert notes == ["open a", "close a"]
    assert "resource 'b' has not closed well: OSError('it does not flush')" in caplog.text


async def test_what_does_not_close_is_cancelled_in_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fsmworkflow.resources.CLOSE_SECONDS", 0.02)

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    @asynccontextmanager
    async def deaf() -> AsyncIterator[None]:
        yield
        while not heard.is_set():
            try:
                await heard.wait()
            except asyncio.CancelledError:
                continue

    heard = asyncio.Event()
    async with Engine("memory://", resources={"slow": slow(), "deaf": deaf()}):
        pass
    assert "resource 'slow' has not closed well: it was cancelled" in caplog.text
    assert "resource 'deaf' does not close, and is left behind (1 of it)" in caplog.text
    heard.set()


async def test_an_engine_closes_what_a_step_that_is_left_behind_still_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsmworkflow.roster.LEFT_BEHIND", 0.02)
    things, held, release = Things(), asyncio.Event(), asyncio.Event()

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db") as thing:
            held.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    assert thing is things.made[0]

    flow = using(work)
    async with Engine("memory://", workflows=[flow], resources={"db": Pool(things, max=1)}, grace=0.01) as engine:
        await engine.start(flow, key="a")
        await held.wait()
    assert things.open == []
    release.set()
    await until(lambda: engine.resources._all["db"].used == 0)


async def test_an_engine_opens_its_resources_anew_each_time(store_url: str) -> None:
    things = Things()
    engine = Engine(store_url, resources={"db": Pool(things)})
    for number in range(3):
        async with engine, engine.resources.use("db") as thing:
            assert thing.number == number


def test_an_engine_opens_its_resources_under_one_event_loop_after_another() -> None:
    things = Things()
    engine = Engine("memory://", resources={"db": Pool(things, max=1)})

    async def go() -> None:
        async def one() -> None:
            async with engine.resources.use("db"):
                await asyncio.sleep(0)

        async with engine:
            await asyncio.gather(*(one() for _ in range(5)))

    asyncio.run(go())
    asyncio.run(go())
    assert things.open == []


async def test_one_resource_is_not_of_two_engines_at_once() -> None:
    pool = Pool(things := Things())
    async with Engine("memory://", resources={"a": pool}) as engine:
        with pytest.raises(ResourceError, match="is open already: each engine has its own"):
            await Engine("memory://", resources={"b": pool}).__aenter__()
        async with engine.resources.use("a") as thing:
            assert things.open == [thing]


async def test_a_resource_of_an_engine_that_is_closed_is_refused() -> None:
    async with Engine("memory://", resources={"db": Pool(Things())}) as engine:
        pass
    with pytest.raises(ResourceError, match="resource 'db' is not open: it is there while its engine is"):
        await engine.resources.use("db").__aenter__()


async def test_a_name_that_is_not_there_is_the_steps_error_with_the_nearest_one(store_url: str) -> None:
    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("databse"):
            pass

    flow = using(work)
    async with Engine(store_url, workflows=[flow], resources={"database": Pool(Things())}) as engine:
        with pytest.raises(RunFailed, match=r"no resource 'databse'.*did you mean 'database'"):
            await engine.run(flow, key="a")


async def test_a_sync_step_is_told_to_be_async() -> None:
    def work(ctx: WorkflowContext) -> None:
        ctx.use("db")

    flow = using(work)
    async with Engine("memory://", workflows=[flow], resources={"db": Pool(Things())}) as engine:
        with pytest.raises(RunFailed, match=r"ctx\.use needs an async step: write `async def`"):
            await engine.run(flow, key="a")
    with pytest.raises(FSMWorkflowError, match="was not given to one"):
        WorkflowContext().use("db")


async def test_an_undoing_uses_resources_too(store_url: str) -> None:
    things = Things()

    async def undo(ctx: WorkflowContext) -> None:
        async with ctx.use("db") as thing:
            ctx.data["undone by"] = thing.number

    flow = Workflow("undone")
    flow.step("pay", initial=True, then="ship", compensate=undo)(lambda ctx: None)

    @flow.step(then="done")
    async def ship(ctx: WorkflowContext) -> None:
        raise OSError

    flow.final("done")
    async with Engine(store_url, workflows=[flow], resources={"db": Pool(things)}) as engine:
        with pytest.raises(RunFailed):
            await engine.run(flow, key="a")
        assert (await engine.get(flow, "a")).data["undone by"] == 0


@pytest.mark.parametrize("flat", [True, False])
async def test_records_of_a_stream_use_the_resources_of_its_engine(flat: bool) -> None:
    things = Things()

    async def work(ctx: WorkflowContext) -> None:
        if ctx.data["n"] % 3 == 0:
            await ctx.use("db").__aenter__()  # and forgets it
        else:
            async with ctx.use("db") as thing:
                ctx.data["by"] = thing.number

    flow = using(work, retry=None if flat else Retry(attempts=1, first_delay=0))
    sink: list[Any] = []
    async with Engine("memory://", resources={"db": Pool(things, max=2, wait=5)}) as engine:
        done = await stream(engine, flow, [{"n": n} for n in range(30)], sink, workers=5)
        assert (done.states, len(sink)) == ({"done": 30}, 30)
        assert things.most <= 2
        with pytest.raises(StreamError, match="state 'work' uses resource 'db': give an engine that has it"):
            await stream(None, flow, [{"n": 1}], sink)
        (outcome,) = await batch(engine, flow, [{"n": 1}])
        assert outcome.data["by"] in {thing.number for thing in things.made}
        assert engine.resources._uses == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: Engine("memory://", resources={"x": 3}), "resource 'x': a resource is an async context manager, or"),
        (lambda: Pool(3), "a function that makes its members"),  # type: ignore[arg-type]
        (lambda: Pool(Things(), max=0), "max must be a whole number from 1"),
        (lambda: Pool(Things(), min=3, max=2), "min must be a whole number from 0 to max"),
        (lambda: Pool(Things(), wait="soon"), "'soon' is no duration"),
    ],
)
def test_what_means_nothing_is_refused_when_it_is_said(given: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        given()


# -- of others --------------------------------------------------------------------------------------------------------


async def test_a_pool_of_asyncpg_lends_its_connections(postgres_url: str) -> None:
    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db") as connection:
            ctx.data["one"] = await connection.fetchval("SELECT 1")

    flow = using(work)
    given = {"db": lambda: asyncpg.create_pool(postgres_url, min_size=1, max_size=2)}
    async with Engine(postgres_url, workflows=[flow], resources=given) as engine:
        runs = await asyncio.gather(*(engine.run(flow, key=str(number)) for number in range(10)))
        assert all(run.data == {"one": 1} for run in runs)
        pool = engine.resources._all["db"]._kept.value  # type: ignore[attr-defined]
        assert pool.get_idle_size() == pool.get_size()
    assert pool.is_closing()


async def test_connections_of_asyncpg_are_made_anew_where_the_server_has_ended_them(postgres_url: str) -> None:
    pool = Pool(lambda: asyncpg.connect(postgres_url), max=2, check=lambda db: db.execute("SELECT 1"))
    async with Engine("memory://", resources={"db": pool}) as engine:
        async with engine.resources.use("db") as one:
            pid = one.get_server_pid()
        async with engine.resources.use("db") as same, engine.resources.use("db") as other:
            assert same.get_server_pid() == pid
            await other.execute("SELECT pg_terminate_backend($1)", pid)
        async with engine.resources.use("db") as sound, engine.resources.use("db") as also:
            assert [await db.fetchval("SELECT 1") for db in (sound, also)] == [1, 1]


async def test_connections_of_aiosqlite_are_given_back_without_a_transaction(tmp_path: Path) -> None:
    file = tmp_path / "orders.db"
    pool = Pool(lambda: aiosqlite.connect(file), max=1, reset=aiosqlite.Connection.rollback)

    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db") as db:
            await db.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER)")
            await db.execute("INSERT INTO orders VALUES (1)")
            if ctx.run.key == "commits":
                await db.commit()

    flow = using(work)
    async with Engine("memory://", workflows=[flow], resources={"db": pool}) as engine:
        await engine.run(flow, key="commits")
        await engine.run(flow, key="forgets")
        async with engine.resources.use("db") as db:
            assert not db.in_transaction
            assert await (await db.execute("SELECT count(*) FROM orders")).fetchone() == (1,)


async def test_a_client_of_httpx_is_shared_as_it_is_or_made(store_url: str) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"asked": request.url.path}))

    async def work(ctx: WorkflowContext) -> None:
        for name in ("theirs", "ours"):
            async with ctx.use(name) as client:
                ctx.data[name] = (await client.get(f"/{name}")).json()["asked"]

    flow = using(work)
    theirs = httpx.AsyncClient(base_url="http://x", transport=transport)
    ours = HttpClient(base_url="http://x", transport=transport, max=2)
    async with Engine(store_url, workflows=[flow], resources={"theirs": theirs, "ours": ours}) as engine:
        assert (await engine.run(flow, key="a")).data == {"theirs": "/theirs", "ours": "/ours"}
    assert theirs.is_closed


async def test_a_folder_is_made_and_must_take_files(tmp_path: Path) -> None:
    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("files") as folder:
            (folder / "out.txt").write_text("written")

    flow = using(work)
    place = tmp_path / "deep" / "out"
    async with Engine("memory://", workflows=[flow], resources={"files": Folder(place)}) as engine:
        await engine.run(flow, key="a")
        assert [file.name for file in place.iterdir()] == ["out.txt"]
        (place / "out.txt").unlink()
        place.rmdir()
        place.write_text("somebody has put a file there")
        (problem,) = (await engine.health()).problems
        assert problem.startswith("resource 'files': ")
    with pytest.raises(ResourceError, match="'files' did not open"):
        await Engine("memory://", resources={"files": Folder(place)}).__aenter__()


async def test_what_awaits_its_acquire_is_no_pool_and_is_shared() -> None:
    class Guarded(Thing):
        async def __aenter__(self) -> Guarded:
            return self

        async def __aexit__(self, *_: object) -> None:
            await self.close()

        async def acquire(self) -> None:
            raise AssertionError("it is not asked")

    guarded = Guarded(1)
    async with Engine("memory://", resources={"it": guarded}) as engine, engine.resources.use("it") as it:
        assert it is guarded


# -- whatever comes between -------------------------------------------------------------------------------------------


class Chaos:
    """A pool whose members fail, hang, die and close badly by chance, and users who are cancelled by chance."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.open: set[Any] = set()
        self.bound = self.rnd.choice([1, 2, 3, 5])
        maybe = self.rnd.choice
        self.pool = Pool(
            self.make, min=self.rnd.randrange(self.bound + 1), max=self.bound, wait=maybe([0.01, 0.1, 1]),
            idle=maybe([0.01, 1]), check=maybe([None, self.look]), reset=maybe([None, self.look]),
        )  # fmt: skip
        self.engine = Engine("memory://", resources={"db": self.pool})

    async def pause(self) -> None:
        for _ in range(self.rnd.randrange(3)):
            await asyncio.sleep(0 if self.rnd.random() < 0.7 else self.rnd.random() * 0.002)

    @asynccontextmanager
    async def make(self) -> AsyncIterator[Thing]:
        await self.pause()
        if self.rnd.random() < 0.1:
            raise OSError("nobody listens there")
        if self.rnd.random() < 0.03:
            await asyncio.sleep(0.2)
        thing = Thing(0)
        self.open.add(thing)
        try:
            yield thing
        finally:
            await self.pause()
            self.open.discard(thing)
            if self.rnd.random() < 0.1:
                raise OSError("it closes badly")

    async def look(self, thing: Thing) -> bool:
        await self.pause()
        if self.rnd.random() < 0.05:
            raise OSError("it is dead")
        return self.rnd.random() > 0.05

    async def user(self) -> None:
        holder = object()
        try:
            use = self.engine.resources.use("db", holder, "a user")
            thing = await use.__aenter__()
            assert thing.sound, "two have it at once"
            thing.sound = False
            try:
                await self.pause()
                if (chance := self.rnd.random()) < 0.1:
                    raise KeyError
            finally:
                thing.sound = True
            if chance > 0.1:  # else it is not given back
                await use.__aexit__(None, None, None)
        except (ResourceError, KeyError):
            pass
        finally:
            self.engine.resources.ended(holder)

    async def opened(self) -> bool:
        for _ in range(30):
            try:
                await self.engine.__aenter__()
            except ResourceError:
                assert [self.pool.opened, self.engine.store.opened] == [False, False]
            else:
                return True
        return False

    async def go(self) -> None:
        tasks = [asyncio.create_task(self.user()) for _ in range(100)]
        for _ in range(40):
            await asyncio.sleep(0.0005)
            self.rnd.choice(tasks).cancel()
            assert len(self.open) <= self.bound
        if self.rnd.random() < 0.7:
            await self.ended(tasks)
            await until(lambda: self.pool.used == 0)
            assert len(self.pool._free) == sum(not kept.ended for kept in self.pool._all)
        await self.engine.close()
        assert not self.open
        await self.ended(tasks)
        await until(lambda: self.pool.used == self.pool.many == 0)
        assert self.engine.resources._uses == {}

    async def ended(self, tasks: list[asyncio.Task[None]]) -> None:
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if error is not None and not isinstance(error, asyncio.CancelledError):
                raise error


@pytest.mark.parametrize("number", range(20))
async def test_a_pool_keeps_its_bound_and_loses_nothing_whatever_fails(number: int) -> None:
    print(f"FSMWORKFLOW_SEED={SEED}")
    chaos = Chaos(SEED + number)
    if await chaos.opened():
        await chaos.go()


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, "fsmworkflow"):
        yield
