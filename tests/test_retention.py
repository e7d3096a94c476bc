"""Keeping the store small: which runs are deleted, what goes with them, and what they weigh."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import DefinitionError, Engine, Run, RunFailed, RunNotFound, Store, StoreError, Workflow, open_store
from fsmworkflow.records import Call, Child, Event, Failure, replace
from fsmworkflow.stream import stream
from fsmworkflow.testing import Clock
from fsmworkflow.upkeep import size, vacuum
from tests.test_store import LARGE, ask, made, moved, new, sql
from tests.waiting import PATIENCE

TABLES = ("fsm_runs", "fsm_moves", "fsm_events", "fsm_calls", "fsm_fields")
ENDS = ["done", "failed", "cancelled"]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


async def ended(store: Store, key: str, status: str = "done", *, updated: float = 11.0, **parts: Any) -> Run:
    """A run that has ended, and all that a run can have beside its row."""
    run = await made(store, key, {"text": LARGE, "n": 1}, **parts)
    call = Call(run=run.id, state=run.state, visit=0, name="c", nth=1, result=b"1")
    await store.remember(run, call)
    await store.post(run.workflow, key, Event(name="go", id=f"e {key}"))
    run = replace(run, posted=1)
    move = moved(run, {"text": LARGE + key}, status=status, due=None, owner=None, updated=updated)
    await store.commit(replace(move, at=updated))
    return move.after


async def newest(store: Store) -> Run:
    """A run that is not done, made last: where an id could be given again, the newest row stays."""
    return await made(store, "newest", workflow="other")


async def keys(store: Store, workflow: str = "w") -> list[str]:
    return [run.key for run in await store.list(workflow=workflow, status=None, state=None, after=0, many=1_000)]


async def adopt(store: Store, url: str, child: Run, parent: Run) -> None:
    if url == "memory://":
        rows: dict[int, Run] = store._runs  # type: ignore[attr-defined]
        rows[child.id] = replace(rows[child.id], child=Child(parent.id, "s", 0, 0, turn=2))
        store._children.setdefault((parent.id, "s", 0), []).append(child.id)  # type: ignore[attr-defined]
    else:
        place = f"parent = {parent.id}, parent_state = 's', parent_visit = 0, ordinal = 0, turn = 2"
        sql(url, f"UPDATE fsm_runs SET {place} WHERE id = {child.id}")


async def rows_of(url: str, run: Run) -> dict[str, int]:
    """How many rows of each table belong to a run."""
    found = {}
    for table in TABLES:
        ((found[table],),) = await ask(
            url, f"SELECT count(*) FROM {table} WHERE {'id' if table == 'fsm_runs' else 'run'} = {run.id}"
        )
    return found


# -- the store's verb -------------------------------------------------------------------------------------------------


async def test_ended_runs_of_the_status_that_have_not_moved_since_then_go(store: Store) -> None:
    for status in ENDS:
        for updated in (100.0, 200.0):
            await ended(store, f"{status} {updated:g}", status, updated=updated)
    await newest(store)
    assert await store.prune("w", ["done"], 200.0, 10) == 1
    assert await store.prune("w", ["failed", "cancelled"], 150.0, 10) == 2
    assert await store.prune("w", ENDS, 150.0, 10) == 0
    assert await store.prune("elsewhere", ENDS, 9e9, 10) == 0
    assert await keys(store) == ["done 200", "failed 200", "cancelled 200"]


async def test_not_more_than_asked_for_go_at_once_and_the_oldest_first(store: Store) -> None:
    for number in range(5):
        await ended(store, f"k{number}")
    await newest(store)
    assert await store.prune("w", ENDS, 9e9, 2) == 2
    assert await keys(store) == ["k2", "k3", "k4"]
    assert [await store.prune("w", ENDS, 9e9, 2) for _ in range(3)] == [2, 1, 0]


async def test_all_that_is_a_runs_own_goes_with_it_and_nothing_of_another(durable_url: str) -> None:
    store = open_store(durable_url)
    await store.open()
    gone, stays = await ended(store, "gone"), await ended(store, "stays", updated=500.0)
    before = await rows_of(durable_url, stays)
    assert before == await rows_of(durable_url, gone)
    assert min(before.values()) > 0, before
    assert await store.prune("w", ENDS, 400.0, 10) == 1
    assert await rows_of(durable_url, gone) == dict.fromkeys(TABLES, 0)
    assert await rows_of(durable_url, stays) == before
    assert await store.load("w", "gone") is None
    assert (await store.load("w", "stays")) is not None
    await store.close()


@pytest.mark.parametrize(
    "parts",
    [
        {"status": "running", "due": 5.0},
        {"status": "waiting", "due": None},
        {"status": "paused", "due": None},
        {"status": "compensating", "due": 5.0},
        {"status": "parked", "due": None},
    ],
    ids=lambda parts: parts["status"],
)
async def test_a_run_that_has_not_ended_stays(store: Store, parts: dict[str, Any]) -> None:
    await made(store, "a", owner=None, epoch=0, **parts)
    await newest(store)
    assert await store.prune("w", ENDS, 9e9, 10) == 0
    assert await keys(store) == ["a"]


async def test_a_run_that_is_owned_or_has_something_left_to_do_stays(store: Store) -> None:
    await made(store, "owned", status="done", due=None)
    await made(store, "due", status="done", due=5.0, owner=None)
    await newest(store)
    assert await store.prune("w", ENDS, 9e9, 10) == 0
    assert await keys(store) == ["owned", "due"]


async def test_a_key_whose_run_went_starts_a_new_one_with_nothing_of_the_old(store: Store) -> None:
    old = await ended(store, "a")
    await newest(store)
    await store.prune("w", ENDS, 9e9, 10)
    run, created = await store.create(new("a", {"fresh": True}))
    assert created
    assert run.id != old.id
    assert dict(run.data) == {"fresh": True}
    assert [entry.version for entry in await store.history(run)] == [0]
    assert await store.inbox(run) == (0, [])
    assert await store.recall(run, "s0", 0) == []
    assert await store.event(run, "e a") is None


async def test_no_id_is_ever_given_twice(store: Store) -> None:
    """What is in flight knows a run by its id: another run of that number would be taken for it."""
    given: set[int] = set()
    for number in range(6):
        run = await ended(store, f"k{number}")
        assert run.id not in given
        given.add(run.id)
        await store.prune("w", ENDS, 9e9, 10)


# -- parents and children ---------------------------------------------------------------------------------------------


async def test_the_runs_below_go_with_a_run(store: Store, store_url: str) -> None:
    top = await ended(store, "top")
    for name in ("left", "right"):
        child = await ended(store, name, workflow="child", updated=9_000.0)
        await adopt(store, store_url, child, top)
        below = await ended(store, f"{name} below", "failed", workflow="child", updated=9_000.0)
        await adopt(store, store_url, below, child)
    await ended(store, "alone", workflow="child", updated=9_000.0)
    await newest(store)
    assert await store.prune("w", ENDS, 100.0, 10) == 5
    assert (await keys(store), await keys(store, "child")) == ([], ["alone"])


@pytest.mark.parametrize("depth", [1, 2])
async def test_a_run_stays_whose_children_have_not_ended(store: Store, store_url: str, depth: int) -> None:
    above = await ended(store, "top")
    for level in range(1, depth + 1):
        if level == depth:
            child = await made(store, "unfinished", workflow="child", status="waiting", due=None, owner=None)
        else:
            child = await ended(store, f"level {level}", workflow="child", updated=9_000.0)
        await adopt(store, store_url, child, above)
        above = child
    await newest(store)
    assert await store.prune("w", ENDS, 100.0, 10) == 0
    assert await keys(store) == ["top"]
    assert len(await keys(store, "child")) == depth


@pytest.mark.parametrize("over", [False, True])
async def test_a_child_stays_while_its_parent_is_not_over(store: Store, store_url: str, over: bool) -> None:
    error = None if over else Failure(type="E", message="m")  # a failed run with an error may go on
    parent = await ended(store, "top", "failed", error=None)
    if store_url == "memory://":
        store._runs[parent.id] = replace(parent, error=error)  # type: ignore[attr-defined]
    elif error is not None:
        sql(store_url, f"""UPDATE fsm_runs SET error = '{{"type": "E", "message": "m"}}' WHERE id = {parent.id}""")
    child = await ended(store, "child", workflow="child")
    await adopt(store, store_url, child, parent)
    await newest(store)
    assert await store.prune("child", ENDS, 100.0, 10) == int(over)
    assert len(await store.children(parent, "s", 0)) == int(not over)


# -- races ------------------------------------------------------------------------------------------------------------


async def test_P7_a_start_during_deletion_finds_the_old_run_or_makes_a_new_one(durable_url: str) -> None:
    """Never half a run: each start's answer has its whole history, or the run was whole and is gone."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    starter, pruner = open_store(durable_url), open_store(durable_url)
    await starter.open()
    await pruner.open()
    fresh = [0]
    done = asyncio.Event()

    async def start_and_end() -> None:
        while fresh[0] < 40:
            key = f"k{chance.randrange(4)}"
            run, created = await starter.create(new(key, {"text": LARGE, "n": chance.random()}))
            assert run.data["text"] == LARGE, seed
            if created:
                fresh[0] += 1
                assert [entry.version for entry in await starter.history(run)] == [0], seed
                move = moved(run, status="done", due=None, owner=None)
                await starter.commit(move)
            elif chance.random() < 0.3:
                with contextlib.suppress(RunNotFound):
                    await starter.history(run)
        done.set()

    async def prune() -> None:
        while not done.is_set():
            await pruner.prune("w", ENDS, 9e9, 3)
            await asyncio.sleep(0)

    async def read() -> None:
        while not done.is_set():
            run = await pruner.load("w", f"k{chance.randrange(4)}")
            assert run is None or run.data["text"] == LARGE, seed

    await asyncio.wait_for(asyncio.gather(start_and_end(), prune(), prune(), read()), 60)
    await newest(starter)
    await pruner.prune("w", ENDS, 9e9, 100)
    assert await keys(starter) == []
    for table in ("fsm_moves", "fsm_fields"):
        count = "SELECT count(*) FROM {} WHERE run NOT IN (SELECT id FROM fsm_runs)"
        assert await ask(durable_url, count.format(table)) == [(0,)], (table, seed)
    await starter.close()
    await pruner.close()


async def test_a_failed_run_that_is_let_go_on_is_not_deleted_under_it(durable_url: str) -> None:
    """The look for what may go was before somebody posted to it: the second one, in the transaction, sees that."""
    store = open_store(durable_url)
    await store.open()
    run = await made(store, "a")
    await store.commit(moved(run, status="failed", due=None, owner=None, error=Failure(type="E", message="m")))
    await newest(store)
    ask = store._ask  # type: ignore[attr-defined]

    async def then_posted(look: Any) -> Any:
        found = await ask(look)
        store._ask = ask  # type: ignore[attr-defined]
        await store.post("w", "a", Event(name="$retry", id="r"))
        return found

    store._ask = then_posted  # type: ignore[attr-defined]
    assert await store.prune("w", ENDS, 9e9, 10) == 0
    assert (await store.inbox(run))[0] == 1
    await store.close()


# -- the engine -------------------------------------------------------------------------------------------------------


def job(keep: Any = None, name: str = "job") -> Workflow:
    flow = Workflow(name, keep=keep)

    @flow.step(initial=True, then="end")
    async def work(ctx: Any) -> None:
        if ctx.data.get("fails"):
            raise OSError("no paper")

    flow.final("end")
    return flow


@pytest.fixture
async def turned() -> AsyncIterator[tuple[Store, Clock]]:
    clock = Clock()
    store = open_store("memory://", clock=clock)
    await store.open()
    yield store, clock
    await store.close()


async def ends(engine: Engine, flow: Workflow, key: str, **data: Any) -> None:
    with contextlib.suppress(RunFailed):
        await engine.run(flow, data, key=key)


async def test_runs_are_kept_for_as_long_as_their_workflow_says_by_status(turned: tuple[Store, Clock]) -> None:
    store, clock = turned
    flow, forever = job({"done": "1d", "failed": "3d"}), job(name="forever")
    async with Engine(store, workflows=[flow, forever]) as engine:
        await ends(engine, flow, "done")
        await ends(engine, flow, "failed", fails=True)
        await ends(engine, forever, "done")
        await engine.start(flow, key="later")
        await engine.result(flow, "later")
        assert await engine.prune() == 0
        clock.turn("25h")
        await ends(engine, flow, "young")
        assert await engine.prune() == 2
        assert [run.key for run in await engine.list(flow)] == ["failed", "young"]
        clock.turn("3d")
        assert await engine.prune() == 2
        assert [run.workflow for run in await engine.list()] == ["forever"]


async def test_a_stream_is_kept_for_as_long_as_the_runs_of_its_workflow(
    turned: tuple[Store, Clock], tmp_path: Path
) -> None:
    store, clock = turned
    flow, forever = job({"done": "1d"}), job(name="forever")
    async with Engine(store, workflows=[flow, forever]) as engine:
        for workflow in (flow, forever):
            await stream(engine, workflow, [{}], tmp_path / f"{workflow.name}.jsonl", key="k")
        assert await engine.prune() == 0
        clock.turn("25h")
        assert await engine.prune() == 1
        assert [run.workflow for run in await engine.list()] == ["$stream:forever"]


async def test_one_span_is_for_all_that_have_ended(turned: tuple[Store, Clock]) -> None:
    store, clock = turned
    flow = job("1d")
    flow.wait("rest", on={"go": "end"})
    flow.transition("sleep", "work", "rest")
    async with Engine(store, workflows=[flow]) as engine:
        await ends(engine, flow, "done")
        await ends(engine, flow, "failed", fails=True)
        clock.turn("2d")
        assert await engine.prune() == 2


async def test_many_runs_go_in_small_pieces(store_url: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("fsmworkflow.engine.PRUNE_PAUSE", 0.0)
    flow = job(0.001)
    async with Engine(store_url, workflows=[flow]) as engine:
        await asyncio.gather(*(engine.run(flow, key=f"k{n}") for n in range(250)))
        asked: list[int] = []
        prune = engine.store.prune

        async def counted(*words: Any) -> int:
            asked.append(await prune(*words))
            return asked[-1]

        monkeypatch.setattr(engine.store, "prune", counted)
        await asyncio.sleep(0.01)
        gone = await engine.prune()
        assert 249 <= gone <= 250  # on SQLite the newest row of all stays
        assert max(asked) == 100
        assert len(await engine.list(flow)) == 250 - gone


async def test_an_engine_that_works_prunes_now_and_then_and_survives_that_it_cannot(
    turned: tuple[Store, Clock], monkeypatch: Any, caplog: Any
) -> None:
    store, clock = turned
    monkeypatch.setattr("fsmworkflow.engine.PRUNE_EVERY", 0.01)
    flow = job("1d")
    async with Engine(store, workflows=[flow]) as engine:
        await ends(engine, flow, "a")
        clock.turn("2d")
        prune, failing = store.prune, [True]

        async def refusing(*words: Any) -> int:
            if failing.pop() if failing else False:
                raise StoreError("no")
            return await prune(*words)

        monkeypatch.setattr(store, "prune", refusing)
        pruning = asyncio.create_task(engine._prune_for_ever())
        end = time.monotonic() + PATIENCE
        while await engine.list(flow):
            assert time.monotonic() < end
            await asyncio.sleep(0.005)
        pruning.cancel()
    assert "could not be deleted: no" in caplog.text


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ("30", "keep 'done': '30' is no duration"),
        (-1, "must not be negative"),
        (0, "must be above zero"),
        ({"running": "1d"}, "keep: 'running' must be one of cancelled, done, failed"),
        ({"done": "soon"}, "keep 'done': 'soon' is no duration"),
    ],
)
def test_a_retention_that_means_nothing_is_an_error_when_the_workflow_is_checked(keep: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        job(keep).check()


# -- what it weighs ---------------------------------------------------------------------------------------------------


async def test_the_size_counts_the_rows_and_bytes_of_each_table_and_workflow(durable_url: str) -> None:
    store = open_store(durable_url)
    await store.open()
    for number in range(3):
        await ended(store, f"k{number}")
    await made(store, "more", {"text": "ä" * 50_000}, workflow="v")
    found = await size(store)
    tables = {table.name: table for table in found.tables}
    assert {name: table.rows for name, table in tables.items()} == {
        "fsm_runs": 4, "fsm_moves": 7, "fsm_events": 3, "fsm_calls": 3, "fsm_fields": 7, "fsm_owners": 0,
    }  # fmt: skip
    assert all(table.bytes is None or table.bytes >= 4_096 for table in found.tables)
    assert found.bytes > 100_000
    v, w = found.workflows
    assert (v.name, v.runs, v.unfinished) == ("v", 1, 1)
    assert (w.name, w.runs, w.unfinished) == ("w", 3, 0)
    assert v.bytes > 50_000
    assert w.bytes > 6 * len(LARGE)
    await store.close()


async def test_vacuum_gives_back_the_room_of_what_was_deleted(durable_url: str) -> None:
    store = open_store(durable_url)
    await store.open()
    for number in range(60):
        await ended(store, f"k{number}")
    kept = await made(store, "kept", {"text": LARGE}, workflow="v")
    await store.prune("w", ENDS, 9e9, 100)
    before = await size(store)
    await vacuum(store)
    after = await size(store)
    if durable_url.startswith("sqlite"):
        assert after.bytes < before.bytes
    assert (await store.load("v", "kept")) == await store.load(kept.workflow, kept.key)
    for number in range(60):
        await ended(store, f"again{number}")
    assert (await size(store)).bytes < 1.2 * before.bytes
    await store.close()


async def test_a_store_in_memory_has_no_size() -> None:
    store = open_store("memory://")
    await store.open()
    for verb in (size, vacuum):
        with pytest.raises(StoreError, match="in this process only"):
            await verb(store)


async def test_without_dbstat_the_bytes_of_single_tables_are_unknown(sqlite_url: str, monkeypatch: Any) -> None:
    store = open_store(sqlite_url)
    await store.open()
    read = store.read_rows  # type: ignore[attr-defined]

    async def without(block: str, *values: Any) -> Any:
        if block == "bytes":
            raise StoreError("sqlite: no such table: dbstat")
        return await read(block, *values)

    monkeypatch.setattr(store, "read_rows", without)
    found = await size(store)
    assert {table.bytes for table in found.tables} == {None}
    assert found.bytes > 0
    await store.close()
