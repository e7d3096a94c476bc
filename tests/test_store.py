"""The contract of a store, as sentences about guarantees, and run on each: memory, SQLite, PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

from fsmworkflow.codec import Codec, digests
from fsmworkflow.conditions import Seen
from fsmworkflow.errors import LeaseLost, SchemaError, StoreError, StoreUnavailable
from fsmworkflow.records import Action, Active, Call, Event, Failure, Move, Owner, Run, replace
from fsmworkflow.store import Store, open_store
from fsmworkflow.store.postgres import PostgresStore
from tests.children import launched
from tests.postgres_server import Databases, Server, dial, execute
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE, until

ME, OTHER = "me", "other"
LARGE = "x" * 5_000


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def durable(durable_url: str) -> AsyncIterator[Store]:
    store = open_store(durable_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def postgres_store(postgres_url: str) -> AsyncIterator[Store]:
    store = open_store(postgres_url)
    await store.open()
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Any]:
    store = open_store(url, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def new(key: str = "a", data: Any = None, *, workflow: str = "w", **parts: Any) -> Run:
    """A run that nobody has created yet, held by ME."""
    fields = Codec().start({"n": 0} if data is None else data)
    known: dict[str, Any] = {"owner": ME, "epoch": 1, "due": 10.0, "input": "in", "structure": "s"}
    known |= {"created": 10.0, "updated": 10.0}
    known |= {"active": {"s0": Active(0)}, "hashes": digests(fields)}
    return Run(workflow=workflow, key=key, fields=fields, **{**known, **parts})


def moved(run: Run, data: Any = None, *, forget: tuple[tuple[str, int], ...] = (), **after: Any) -> Move:
    """The move that one more step makes of a run: onto the next state, with these fields changed."""
    version = run.version + 1
    changes = Codec().start({"n": version} if data is None else data)
    fields = {**run.fields, **changes}
    known: dict[str, Any] = {"active": {f"s{version}": Active(version)}, "updated": 11.0}
    run_after = replace(run, fields=fields, hashes=digests(fields), version=version, **{**known, **after})
    event = Event(name="$done", state=run.state, changes=changes, began=10.5)
    return Move(before=run, event=event, after=run_after, at=11.0, changes=changes, forget=forget)


async def made(store: Store, key: str = "a", data: Any = None, **parts: Any) -> Run:
    run, created = await store.create(new(key, data, **parts))
    assert created
    return run


async def reload(store: Store, run: Run) -> Run:
    there = await store.load(run.workflow, run.key)
    assert there is not None
    return there


async def enrol(store: Store, token: str, lease: float = 60.0) -> None:
    now = store.now()
    await store.enrol(Owner(token=token, machine="m", process=token, lease=now + lease, started=now))


async def gapless(store: Store, run: Run) -> int:
    """The version of a run, whose history must hold each version once."""
    there = await reload(store, run)
    assert [entry.version for entry in await store.history(there)] == list(range(there.version + 1))
    return there.version


def facts(run: Run) -> dict[str, Any]:
    """All that a store keeps of a run, comparable."""
    return {
        name: getattr(run, name) for name in run.__struct_fields__ if name not in ("fields", "typed")
    } | {"data": dict(run.data), "order": list(run.fields)}  # fmt: skip


def sql(url: str, *statements: str) -> None:
    """Another program's statements on the same database."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
            for statement in statements:
                db.execute(statement)
    else:
        execute(url, *statements)


async def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db:
            return db.execute(query).fetchall()
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


# -- starting ---------------------------------------------------------------------------------------------------------


async def test_P7_create_inserts_a_run_or_returns_the_one_that_is_there(store: Store) -> None:
    run, created = await store.create(new("a", {"n": 1, "text": "ä", "list": [1, 2.5, None]}))
    assert created
    assert run.id > 0
    assert facts(await reload(store, run)) == facts(run)
    there, created = await store.create(new("a", {"n": 2}, owner=OTHER))
    assert not created
    assert facts(there) == facts(run)
    assert (await store.create(new("a", workflow="another")))[1]


async def test_P7_sixteen_starts_of_one_key_at_once_make_one_run(store: Store) -> None:
    results = await asyncio.gather(*[store.create(new("a", {"by": n, "text": LARGE + str(n)})) for n in range(16)])
    assert [created for _, created in results].count(True) == 1
    runs = {json.dumps(run.to_dict()) for run, _ in results}
    assert len(runs) == 1
    assert len({run.id for run, _ in results}) == 1
    assert await gapless(store, results[0][0]) == 0


async def test_P7_two_processes_that_start_the_same_keys_in_opposite_order_make_each_once(durable_url: str) -> None:
    async with opened(durable_url) as one, opened(durable_url) as two:
        for round_ in range(5):
            keys = [f"{round_}-{n}" for n in range(100)]
            both = [one.create(new(k, {"by": 1})) for k in keys], [two.create(new(k, {"by": 2})) for k in keys[::-1]]
            results = await asyncio.gather(*both[0], *both[1])
            assert [created for _, created in results].count(True) == 100
            assert len({run.id for run, _ in results}) == 100


async def test_runs_are_numbered_in_the_order_in_which_they_were_started(store: Store) -> None:
    keys = [f"k{n}" for n in range(30)]
    await asyncio.gather(*[store.create(new(key)) for key in keys])
    found = await store.list(workflow=None, status=None, state=None, after=0, many=100)
    assert [run.key for run in found] == keys


# -- moves ------------------------------------------------------------------------------------------------------------


async def test_P4_a_move_writes_row_history_and_fields_together(store: Store) -> None:
    run = await made(store, data={"n": 0, "keep": [1], "big": LARGE})
    error = Failure(type="E", message="m", traceback="t", state="s0", visit=0, attempt=2, code="codec")
    move = moved(
        run,
        {"n": 1, "new": {"a": None}, "bigger": LARGE * 2},
        active={"a.b": Active(1, 3), "c": Active(1)},
        status="failed",
        definition=2,
        structure="s2",
        due=None,
        owner=None,
        error=error,
        actions=(Action("notify", 1),),
        deaths=2,
    )
    event = replace(move.event, trigger="go", name="$error")
    move = replace(move, removed=("gone",), asked=(Seen("c", {"n": "1"}, True),), event=event)
    await store.commit(move)
    after = await reload(store, run)
    assert facts(after) == facts(move.after)
    start, entry = await store.history(after)
    assert (start.version, start.event, start.source, start.dest) == (0, "$start", "", "s0")
    assert start.changes == {"n": 0, "keep": [1], "big": LARGE}
    assert (entry.version, entry.event, entry.trigger, entry.source, entry.dest) == (1, "$error", "go", "s0", "a.b, c")
    assert (entry.status, entry.at, entry.began, entry.attempt, entry.owner, entry.epoch) == (
        "failed", 11.0, 10.5, 1, ME, 1,
    )  # fmt: skip
    assert entry.changes == {"n": 1, "new": {"a": None}, "bigger": LARGE * 2}
    assert (entry.removed, list(entry.asked), entry.error) == (("gone",), [Seen("c", {"n": "1"}, True)], error)


async def test_an_error_stands_in_the_history_once_and_on_the_row_until_it_is_over(store: Store) -> None:
    run = await made(store)
    error = Failure(type="E", message="m")
    first = moved(run, error=error)
    second = moved(first.after)
    third = moved(second.after, error=None)
    for move in (first, second, third):
        await store.commit(move)
    assert [entry.error for entry in await store.history(run)] == [None, error, None, None]
    assert (await reload(store, run)).error is None


@pytest.mark.parametrize(
    "stale", [{"version": 1}, {"owner": OTHER}, {"owner": None}, {"epoch": 2}, {"epoch": 0}, {"id": 4711}], ids=str
)
async def test_P5_a_move_of_one_who_does_not_own_the_row_as_it_is_writes_nothing(
    store: Store, stale: dict[str, Any]
) -> None:
    run = await made(store)
    before = facts(run)
    with pytest.raises(LeaseLost, match="w/a"):
        await store.commit(moved(replace(run, **stale), {"n": 9, "big": LARGE}))
    assert facts(await reload(store, run)) == before
    assert await gapless(store, run) == 0


async def test_P5_others_in_the_same_batch_are_committed(store: Store) -> None:
    runs = await asyncio.gather(*[made(store, f"k{n}") for n in range(20)])
    stale = [replace(run, epoch=7) if n % 3 == 0 else run for n, run in enumerate(runs)]
    results = await asyncio.gather(*[store.commit(moved(run)) for run in stale], return_exceptions=True)
    for n, (run, result) in enumerate(zip(runs, results, strict=True)):
        assert isinstance(result, LeaseLost) if n % 3 == 0 else result is None
        assert await gapless(store, run) == (0 if n % 3 == 0 else 1)


async def test_many_moves_in_one_batch_keep_what_is_each_ones_own(store: Store) -> None:
    """Some columns are the same throughout, some are not, some are NULL here and there."""
    runs = await asyncio.gather(*[made(store, f"k{n}", {"n": n}) for n in range(9)])
    moves = [
        moved(
            run,
            {"n": n, "big": f"{n}" * 5_000} if n % 4 == 3 else {"n": n},
            due=None if n % 2 else 20.0 + n,
            owner=None if n % 3 == 2 else ME,
            error=Failure(type="E", message=str(n)) if n % 4 == 1 else None,
            actions=(Action("act", n),) if n == 5 else (),
            deaths=n % 2,
            updated=11.0 + n % 2,
        )
        for n, run in enumerate(runs)
    ]
    moves = [replace(m, event=replace(m.event, trigger="go" if n == 4 else None)) for n, m in enumerate(moves)]
    await asyncio.gather(*[store.commit(move) for move in moves])
    for n, move in enumerate(moves):
        assert facts(await reload(store, move.after)) == facts(move.after)
        entry = (await store.history(move.after))[1]
        assert entry.trigger == ("go" if n == 4 else None)
        assert (None if entry.error is None else entry.error.message) == (str(n) if n % 4 == 1 else None)
        assert (entry.changes, entry.began, entry.at) == (dict(move.after.data), 10.5, 11.0)
    for move in (moved(m.after) for m in moves if m.after.owner == ME):
        await store.commit(move)
        assert facts(await reload(store, move.after)) == facts(move.after)


async def test_writes_of_every_kind_in_one_batch_go_together(store: Store) -> None:
    runs = await asyncio.gather(*[made(store, f"k{n}") for n in range(8)])
    done = replace(runs[2], owner=None, due=None)
    call = Call(run=runs[4].id, state="s0", visit=0, name="f", nth=0, result=b"1")
    stale = replace(runs[6], epoch=9)
    results = await asyncio.gather(
        store.create(new("new")),
        store.commit(moved(runs[0])),
        store.settle(runs[2], done),
        store.release(runs[3]),
        store.remember(runs[4], call),
        store.commit(moved(runs[5])),
        store.release(replace(runs[5], version=1)),
        store.commit(moved(stale)),
        store.settle(stale, stale),
        store.remember(stale, replace(call, run=stale.id)),
        return_exceptions=True,
    )
    assert [type(r) for r in results[7:]] == [LeaseLost] * 3
    assert not [r for r in results[:7] if isinstance(r, BaseException)]
    there = [await reload(store, run) for run in runs]
    assert [run.version for run in there] == [1, 0, 0, 0, 0, 1, 0, 0]
    assert [run.owner for run in there] == [ME, ME, None, None, ME, None, ME, ME]
    assert await store.recall(runs[4], "s0", 0) == [call]
    assert await store.recall(runs[6], "s0", 0) == []


async def test_two_moves_of_one_run_in_one_batch_are_made_one_after_the_other(store: Store) -> None:
    runs = await asyncio.gather(*[made(store, f"k{n}") for n in range(5)])
    first = moved(runs[2])
    moves = [*map(moved, runs), moved(first.after)]
    moves[2] = first
    await asyncio.gather(*[store.commit(move) for move in moves])
    assert [await gapless(store, run) for run in runs] == [1, 1, 2, 1, 1]


async def test_one_write_that_cannot_be_made_fails_alone(durable: Store) -> None:
    runs = await asyncio.gather(*[made(durable, f"k{n}") for n in range(9)])
    moves = [moved(run, deaths=2**70) if n == 4 else moved(run) for n, run in enumerate(runs)]
    results = await asyncio.gather(*[durable.commit(move) for move in moves], return_exceptions=True)
    assert isinstance(results[4], StoreError)
    assert [n for n, r in enumerate(results) if r is not None] == [4]
    assert [await gapless(durable, run) for run in runs] == [1, 1, 1, 1, 0, 1, 1, 1, 1]


async def test_P11_a_move_that_was_committed_may_be_repeated(durable: Store) -> None:
    runs = await asyncio.gather(*[made(durable, f"k{n}") for n in range(3)])
    moves = [moved(runs[0]), moved(runs[1], owner=None), moved(runs[2])]
    for move in moves:
        await durable.commit(move)
    await durable.commit(moves[0])
    results = await asyncio.gather(
        *[durable.commit(move) for move in moves[:2]], durable.commit(moved(moves[2].after)), return_exceptions=True
    )
    assert results == [None, None, None]
    assert [await gapless(durable, run) for run in runs] == [1, 1, 2]


async def test_P11_every_other_write_may_be_repeated(durable: Store) -> None:
    run = await made(durable)
    there, created = await durable.create(new())
    assert (there.id, created) == (run.id, False)
    call = Call(run=run.id, state="s0", visit=0, name="f", nth=0, result=b"1")
    for result in (b"1", b"2"):
        await durable.remember(run, replace(call, result=result))
    assert [c.result for c in await durable.recall(run, "s0", 0)] == [b"1"]
    for _ in range(2):
        await durable.settle(run, replace(run, due=12.0))
    for _ in range(2):
        await durable.settle(run, replace(run, owner=None, due=None))
    for _ in range(2):
        await durable.release(run)
    after = await reload(durable, run)
    assert (after.owner, after.due, after.version) == (None, None, 0)


async def test_a_move_forgets_the_remembered_calls_of_the_visits_that_it_ends(store: Store) -> None:
    run, other = await made(store), await made(store, "b")
    calls = [Call(run=run.id, state="s0", visit=v, name="f", nth=n, result=b"[1]") for v in (0, 5) for n in (0, 1)]
    for call in calls:
        await store.remember(run, call)
    mine = replace(calls[0], run=other.id)
    await store.remember(other, mine)
    with pytest.raises(LeaseLost):
        await store.commit(moved(replace(run, epoch=8), forget=(("s0", 0),)))
    assert len(await store.recall(run, "s0", 0)) == 2
    await store.commit(moved(run, forget=(("s0", 0), ("none", 3))))
    assert await store.recall(run, "s0", 0) == []
    assert await store.recall(run, "s0", 5) == calls[2:]
    assert await store.recall(other, "s0", 0) == [mine]


async def test_settling_is_fenced_and_is_no_move(store: Store) -> None:
    run = await made(store, actions=())
    move = moved(run, status="done", due=11.0, actions=(Action("notify", 1),))
    await store.commit(move)
    ended = move.after
    error = Failure(type="E", message="m")
    for stale in (replace(ended, version=0), replace(ended, owner=OTHER), replace(ended, epoch=4)):
        with pytest.raises(LeaseLost):
            await store.settle(stale, replace(stale, actions=(), owner=None))
    assert (await reload(store, run)).actions == ended.actions
    await store.settle(ended, replace(ended, actions=(), owner=None, due=None, error=error))
    after = await reload(store, run)
    assert (after.actions, after.owner, after.due, after.error, after.version) == ((), None, None, error, 1)
    assert after.status == "done"
    assert await gapless(store, run) == 1


def post(store: Any, url: str, run: Run) -> None:
    """What posting an event does to the row."""
    if url == "memory://":
        store._runs[run.id] = replace(store._runs[run.id], posted=store._runs[run.id].posted + 1)
    else:
        sql(url, "UPDATE fsm_runs SET posted = posted + 1")


async def test_an_event_posted_meanwhile_leaves_the_run_due_now(store: Store, store_url: str) -> None:
    moving, settling = await made(store, "a", due=None), await made(store, "b", due=None)
    also = [await made(store, key, due=None) for key in "cd"]
    post(store, store_url, moving)
    if store_url == "memory://":
        for run in (settling, *also):
            post(store, store_url, run)
    await store.commit(moved(moving, status="waiting"))
    await asyncio.gather(*[store.commit(moved(run, status="waiting")) for run in also])
    await store.settle(settling, replace(settling, owner=None))
    for run in (moving, *also):
        assert (await reload(store, run)).due == 11.0
    due = (await reload(store, settling)).due
    assert due is not None
    assert abs(due - store.now()) < 5


# -- claims and owners ------------------------------------------------------------------------------------------------


async def test_P6_a_claim_takes_due_runs_oldest_first_that_no_live_owner_holds(store: Store) -> None:
    await enrol(store, ME)
    await enrol(store, OTHER)
    await enrol(store, "lapsed", lease=-1.0)
    owners = {"free": None, "live": OTHER, "mine": ME, "dead": "nobody", "lapsed": "lapsed"}
    for n, (key, owner) in enumerate(owners.items()):
        await made(store, key, owner=owner, epoch=3, due=100.0 - n)
    await made(store, "late", owner=None, due=500.0)
    await made(store, "rests", owner=None, due=None)
    await made(store, "foreign", owner=None, workflow="another")
    claimed = await store.claim(ME, {"w": 1}, 10, 400.0)
    assert [run.key for run in claimed] == ["lapsed", "dead", "free"]
    assert {(run.owner, run.epoch) for run in claimed} == {(ME, 4)}
    assert [facts(run) for run in claimed] == [facts(await reload(store, run)) for run in claimed]
    assert [run.key for run in await store.claim(ME, {"w": 1, "another": 1}, 10, float("inf"))] == ["foreign", "late"]
    assert await store.claim(ME, {"w": 1, "another": 1}, 10, float("inf")) == []
    with pytest.raises(LeaseLost):
        await store.commit(moved(replace(claimed[0], owner="lapsed", epoch=3)))
    await store.commit(moved(claimed[0]))


async def test_a_claim_takes_no_more_than_it_is_asked_for(store: Store) -> None:
    await enrol(store, ME)
    for n in range(10):
        await made(store, f"k{n}", {"n": n, "big": LARGE}, owner=None, due=float(n))
    first = await store.claim(ME, {"w": 1}, 4, float("inf"))
    assert [run.key for run in first] == ["k0", "k1", "k2", "k3"]
    assert [run.data["big"] for run in first] == [LARGE] * 4
    assert len(await store.claim(ME, {"w": 1}, 0, float("inf"))) == 0
    assert len(await store.claim(ME, {"w": 1}, 100, float("inf"))) == 6


async def test_one_run_is_claimed_by_its_key_unless_a_live_owner_holds_it(store: Store) -> None:
    await enrol(store, ME)
    await enrol(store, OTHER)
    for key, owner in {"live": OTHER, "mine": ME, "dead": "nobody", "free": None}.items():
        await made(store, key, owner=owner, due=None)
    assert await store.claim_one(ME, "w", "live") is None
    assert await store.claim_one(ME, "w", "no such run") is None
    for key in ("mine", "dead", "free"):
        run = await store.claim_one(ME, "w", key)
        assert run is not None
        assert (run.owner, run.epoch) == (ME, 2)
        assert facts(run) == facts(await reload(store, run))
    await store.bury(OTHER)
    assert await store.claim_one(ME, "w", "live") is not None


async def test_runs_of_a_newer_version_than_can_be_driven_are_left_alone(store: Store) -> None:
    await enrol(store, ME)
    for key, definition in {"older": 1, "mine": 2, "newer": 3}.items():
        await made(store, key, owner=None, definition=definition, due=float(definition))
    assert await store.claim_one(ME, "w", "newer", 2) is None
    assert await store.oldest("w", ["older", "mine"], 2) is None
    assert await store.oldest("w", ["older", "mine"], 3) == "newer"
    assert [run.key for run in await store.claim(ME, {"w": 2, "another": 9}, 10, float("inf"))] == ["older", "mine"]
    assert (await reload(store, await reload(store, new("newer")))).epoch == 1
    assert [run.key for run in await store.claim(ME, {"w": 3}, 10, float("inf"))] == ["newer"]


async def test_a_claim_passes_over_what_it_is_told_to_for_as_long_as_that_stands_still(store: Store) -> None:
    await enrol(store, ME)
    runs = {key: await made(store, key, due=float(n)) for n, key in enumerate("abc")}
    await store.commit(moved(runs["b"], due=1.0))
    for run in runs.values():
        await store.release(run)
    but = [(runs["a"].id, 0), (runs["b"].id, 0)]
    assert [run.key for run in await store.claim(ME, {"w": 1}, 1, float("inf"), but)] == ["b"]
    assert [run.key for run in await store.claim(ME, {"w": 1}, 10, float("inf"), but)] == ["c"]
    assert [run.key for run in await store.claim(ME, {"w": 1}, 10, float("inf"))] == ["a"]


async def test_history_keeps_the_detail_of_a_move_and_none_of_others(store: Store) -> None:
    runs = [await made(store, key) for key in "abc"]
    moves = [moved(runs[0]), replace(moved(runs[1]), detail="1 -> 2"), replace(moved(runs[2]), detail="2 -> 3")]
    await asyncio.gather(*map(store.commit, moves))
    await store.commit(replace(moved(moves[0].after), detail="3 -> 4"))
    with pytest.raises(LeaseLost):
        await store.commit(replace(moved(replace(runs[1], epoch=9)), detail="lost"))
    details = [[entry.detail for entry in await store.history(run)] for run in runs]
    assert details == [[None, None, "3 -> 4"], [None, "1 -> 2"], [None, "2 -> 3"]]


async def test_P6_processes_that_claim_at_once_share_the_runs(durable_url: str) -> None:
    async with opened(durable_url) as one, opened(durable_url) as two:
        await asyncio.gather(*[one.create(new(f"k{n}", owner=None)) for n in range(300)])
        for store, token in ((one, ME), (two, OTHER)):
            await enrol(store, token)
        found = await asyncio.gather(
            *[s.claim(t, {"w": 1}, 30, float("inf")) for _ in range(8) for s, t in ((one, ME), (two, OTHER))]
        )
        keys = [run.key for runs in found for run in runs]
        assert len(keys) == len(set(keys))
        rest = await one.claim(ME, {"w": 1}, 1_000, float("inf"))
        assert len(keys) + len(rest) == 300
        assert {run.epoch for runs in found for run in runs} == {2}


async def test_P6_an_owner_too_new_to_be_seen_by_a_claim_that_began_before_keeps_its_run(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await enrol(store, ME)
        run = await made(store, owner=None)
        connection = await asyncpg.connect(postgres_url)
        async with connection.transaction():
            await connection.execute("UPDATE fsm_runs SET owner = 'newcomer', epoch = epoch + 1")
            await connection.execute("INSERT INTO fsm_owners VALUES ('newcomer', 'm', 'p', 9e12, 0)")
            claim = asyncio.create_task(store.claim_one(ME, "w", "a"))
            await asyncio.sleep(0.2)
            assert not claim.done()
        await connection.close()
        assert await claim is None
        assert (await reload(store, run)).owner == "newcomer"


async def test_a_release_gives_a_run_up_whatever_its_version_but_not_anothers(store: Store) -> None:
    run = await made(store)
    await store.commit(moved(run))
    for stale in (replace(run, owner=OTHER), replace(run, epoch=5), replace(run, id=999)):
        await store.release(stale)
    assert (await reload(store, run)).owner == ME
    await store.release(run)
    after = await reload(store, run)
    assert (after.owner, after.epoch, after.version) == (None, 1, 1)


async def test_P5_remembered_calls_are_fenced(store: Store) -> None:
    run = await made(store)
    call = Call(run=run.id, state="s0", visit=0, name="f", nth=0, result=b'{"a": "\xc3\xa4"}')
    for stale in (replace(run, owner=OTHER), replace(run, epoch=2)):
        with pytest.raises(LeaseLost):
            await store.remember(stale, call)
    others = [replace(call, nth=1), replace(call, name="g"), replace(call, visit=1), replace(call, state="s1")]
    await asyncio.gather(*[store.remember(run, one) for one in (call, *others)])
    found = await store.recall(run, "s0", 0)
    assert sorted(found, key=lambda c: (c.name, c.nth)) == [call, *others[:2]]
    assert (await reload(store, run)).version == 0
    await store.commit(moved(run))
    await store.remember(run, replace(call, nth=2))
    assert len(await store.recall(run, "s0", 0)) == 4


async def test_the_oldest_run_that_may_go_on_is_found(store: Store) -> None:
    await enrol(store, OTHER)
    error = Failure(type="E", message="m")
    for key, parts in {
        "done": {"status": "done", "due": None},
        "refused": {"status": "failed", "due": None},
        "waits for an event": {"status": "waiting", "due": None},
        "held": {"owner": OTHER},
        "foreign": {"workflow": "another"},
        "failed": {"status": "running"},
        "running": {},
        "waiting": {"status": "waiting"},
    }.items():
        run = await made(store, key, **{"owner": None, **parts})
        if key == "failed":
            run = await store.claim_one(ME, "w", key) or run
            await store.commit(moved(run, status="failed", error=error, owner=None))
    assert await store.oldest("w", []) == "failed"
    assert await store.oldest("w", ["failed"]) == "running"
    assert await store.oldest("w", ["failed", "running"]) == "waiting"
    assert await store.oldest("w", ["failed", "running", "waiting"]) is None
    await made(store, "ended, with an action left", owner=None, status="done")
    assert await store.oldest("w", ["failed", "running", "waiting"]) == "ended, with an action left"
    assert await store.oldest("none", []) is None


async def test_owners_are_known_from_their_enrolment_to_their_burial(store: Store) -> None:
    assert await store.owners() == []
    now = store.now()
    owner = Owner(token=ME, machine="m", process="1/2", lease=now + 5, started=now)
    await store.enrol(owner)
    await store.enrol(replace(owner, lease=now + 6))
    assert await store.owners() == [replace(owner, lease=now + 6)]
    assert await store.renew(ME, now + 7)
    assert await store.owners() == [replace(owner, lease=now + 7)]
    await store.bury(ME)
    await store.bury(ME)
    assert await store.owners() == []
    assert not await store.renew(ME, now + 8)
    assert await store.owners() == []


async def test_the_stores_clock_is_that_of_the_world(store: Store) -> None:
    assert abs(store.now() - time.time()) < 5


# -- reading ----------------------------------------------------------------------------------------------------------


async def test_runs_are_listed_by_page_and_by_workflow_status_and_state(store: Store) -> None:
    for n in range(7):
        run = await made(store, f"k{n}", {"n": n, "big": LARGE}, workflow="even" if n % 2 == 0 else "odd")
        if n >= 4:
            await store.commit(moved(run, status="done"))
    everything: dict[str, Any] = {"workflow": None, "status": None, "state": None, "after": 0, "many": 100}

    async def keys(**which: Any) -> list[str]:
        return [run.key for run in await store.list(**{**everything, **which})]

    assert await keys() == [f"k{n}" for n in range(7)]
    assert await keys(workflow="odd") == ["k1", "k3", "k5"]
    assert await keys(status="done") == ["k4", "k5", "k6"]
    assert await keys(state="s1", workflow="even") == ["k4", "k6"]
    assert await keys(status="none") == []
    page = await store.list(**{**everything, "many": 3})
    assert [run.key for run in page] == ["k0", "k1", "k2"]
    assert [run.data["big"] for run in page] == [LARGE] * 3
    assert await keys(after=page[-1].id, many=3) == ["k3", "k4", "k5"]
    assert await keys(many=0) == []


async def test_what_is_not_there_is_none(store: Store) -> None:
    assert await store.load("w", "a") is None
    await made(store)
    assert await store.load("v", "a") is None
    assert await store.load("w", "A") is None


async def test_history_tells_large_fields_and_they_are_stored_once(store: Store, store_url: str) -> None:
    run = await made(store, data={"big": LARGE, "n": 0})
    same = moved(run, {"n": 1})
    other = moved(same.after, {"big": LARGE + "y", "n": 2})
    back = moved(other.after, {"big": LARGE, "n": 3})
    for move in (same, other, back):
        await store.commit(move)
    changes = [entry.changes for entry in await store.history(run)]
    assert changes == [
        {"big": LARGE, "n": 0}, {"n": 1}, {"big": LARGE + "y", "n": 2}, {"big": LARGE, "n": 3},
    ]  # fmt: skip
    assert (await reload(store, run)).data == {"big": LARGE, "n": 3}
    if store_url != "memory://":
        assert await ask(store_url, "SELECT count(*) FROM fsm_fields") == [(2,)]
        assert await ask(store_url, "SELECT max(length(data)) < 200 FROM fsm_runs") in ([(True,)], [(1,)])


async def test_reset_deletes_all_runs_and_no_owner(store: Store) -> None:
    await enrol(store, ME)
    run = await made(store, data={"big": LARGE})
    await store.remember(run, Call(run=run.id, state="s0", visit=0, name="f", nth=0, result=b"1"))
    await store.reset()
    assert await store.load("w", "a") is None
    assert await store.recall(run, "s0", 0) == []
    assert [owner.token for owner in await store.owners()] == [ME]
    again = await made(store, data={"big": LARGE})
    assert await gapless(store, again) == 0


# -- opening and closing ----------------------------------------------------------------------------------------------


async def test_a_store_that_is_not_open_says_so(store_url: str) -> None:
    store = open_store(store_url)
    assert not store.opened
    for _ in range(2):
        with pytest.raises(StoreError, match="not open"):
            await store.create(new())
        with pytest.raises(StoreError, match="not open"):
            await store.load("w", "a")
        await store.open()
        assert store.opened
        await store.open()
        await store.close()
        await store.close()
        assert not store.opened


def test_a_closed_store_may_be_opened_again_in_another_event_loop(store_url: str) -> None:
    store = open_store(store_url)

    async def use(key: str) -> None:
        await store.open()
        runs = await asyncio.gather(*[store.create(new(f"{key}-{n}")) for n in range(5)])
        await asyncio.gather(*[store.load("w", run.key) for run, _ in runs], *[store.commit(moved(r)) for r, _ in runs])
        assert len(await store.list(workflow=None, status=None, state=None, after=0, many=100)) % 5 == 0
        await store.close()

    for key in "abc":
        asyncio.run(use(key))


async def test_what_was_written_is_there_for_the_next_process(durable_url: str) -> None:
    async with opened(durable_url) as store:
        run = await made(store, data={"big": LARGE})
        await store.commit(moved(run))
    async with opened(durable_url) as store:
        assert (await reload(store, run)).version == 1
        assert await gapless(store, run) == 1


async def test_closing_waits_for_what_was_begun(durable_url: str) -> None:
    store = open_store(durable_url)
    await store.open()
    writing = [asyncio.ensure_future(store.create(new(f"k{n}"))) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    assert all(created for _, created in await asyncio.gather(*writing))


async def test_P12_a_cancelled_write_leaves_no_open_transaction_and_no_half_move(durable: Store) -> None:
    chance = random.Random(7)
    runs = await asyncio.gather(*[made(durable, f"k{n}") for n in range(10)])
    for _ in range(60):
        tasks = [asyncio.ensure_future(durable.commit(moved(run, forget=(("s0", 0),)))) for run in runs]
        tasks += [asyncio.ensure_future(durable.claim_one(ME, "w", "none"))]
        await asyncio.sleep(chance.random() * 0.004)
        for task in tasks:
            if chance.random() < 0.7:
                task.cancel()
        await asyncio.wait(tasks)
        assert not [t for t in tasks if not t.cancelled() and t.exception()]
        follows = await made(durable, f"next-{_}")
        await durable.commit(moved(follows))
        there = [await reload(durable, run) for run in runs]
        for run, now, task in zip(runs, there, tasks, strict=False):
            assert now.version == run.version + 1 or (task.cancelled() and now.version == run.version)
        runs = there
    for run in runs:
        await gapless(durable, run)


# -- the schema -------------------------------------------------------------------------------------------------------


async def test_a_schema_newer_than_this_code_is_refused_and_left_alone(durable_url: str) -> None:
    async with opened(durable_url):
        pass
    sql(durable_url, "INSERT INTO fsm_migrations (version, name, at) VALUES (9999, 'later', 0)")
    store = open_store(durable_url)
    with pytest.raises(SchemaError, match="9999"):
        await store.open()
    assert not store.opened
    assert await ask(durable_url, "SELECT count(*) FROM fsm_runs") == [(0,)]


@pytest.mark.parametrize("table", ["fsm_runs", "fsm_moves", "fsm_migrations"])
async def test_a_table_of_our_name_that_is_not_ours_is_refused_and_left_alone(durable_url: str, table: str) -> None:
    sql(durable_url, f"CREATE TABLE {table} (mine TEXT)", f"INSERT INTO {table} VALUES ('kept')")
    with pytest.raises(SchemaError, match="not ours"):
        await open_store(durable_url).open()
    assert await ask(durable_url, f"SELECT mine FROM {table}") == [("kept",)]


async def test_users_keep_their_own_tables_in_the_same_database(durable_url: str) -> None:
    sql(durable_url, "CREATE TABLE mine (x TEXT)", "INSERT INTO mine VALUES ('kept')")
    async with opened(durable_url) as store:
        await made(store)
        await store.reset()
    assert await ask(durable_url, "SELECT x FROM mine") == [("kept",)]


OPENER = """
import asyncio, sys
from fsmworkflow.store import open_store
async def main():
    store = open_store(sys.argv[1])
    sys.stdin.readline()
    await store.open()
    print(len(await store.list(workflow=None, status=None, state=None, after=0, many=1)))
    await store.close()
asyncio.run(main())
"""


def test_16_processes_create_the_schema_at_once(durable_url: str) -> None:
    root = Path(__file__).resolve().parent.parent
    words = [sys.executable, "-c", OPENER, durable_url]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as some:
        how = {"cwd": root, "stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True}
        processes = [some.enter_context(launched(words, **how)) for _ in range(16)]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=2 * PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0] * 16, results
    assert {out.strip() for out, _ in results} == {"0"}


# -- PostgreSQL comes and goes ----------------------------------------------------------------------------------------


class Proxy:
    """Stands between a store and its server, and can lose an answer: what was asked arrives, its answer does not.

    `lose_after(text)` cuts the connection on which the server is next asked something with that text in it, once the
    server has had the time to do it.
    """

    def __init__(self, url: str) -> None:
        self.server = url
        self._text: bytes | None = None
        self.lost = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The URL of the same database through the proxy."""
        with tempfile.TemporaryDirectory() as directory:  # its name is short, as the path of a socket has to be
            server = await asyncio.start_unix_server(self._serve, f"{directory}/.s.PGSQL.5432")
            try:
                parts = urlsplit(self.server)
                user = parts.netloc.rpartition("@")[0] or "postgres"
                yield f"postgresql://{user}@{parts.path}?host={quote(directory)}"
            finally:
                server.close()

    def lose_after(self, text: str) -> None:
        self._text = text.encode()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await dial(self.server)
        doomed = asyncio.Event()

        async def forward() -> None:
            while data := await reader.read(65_536):
                if self._text is not None and self._text in data:
                    self._text = None
                    doomed.set()
                    self.lost += 1
                questions.write(data)

        async def answer() -> None:
            while data := await answers.read(65_536):
                if doomed.is_set():
                    await asyncio.sleep(0.05)  # the server is done with it: it has answered
                    return
                writer.write(data)

        tasks = [asyncio.create_task(forward()), asyncio.create_task(answer())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for one in (writer, questions):
                one.close()


@pytest.mark.parametrize("many", [1, 5], ids=["alone", "in a batch"])
async def test_P11_an_answer_to_COMMIT_that_was_lost_on_the_wire_is_resolved(postgres_url: str, many: int) -> None:
    proxy = Proxy(postgres_url)
    async with proxy.listening() as url, opened(url) as store:
        runs = await asyncio.gather(*[made(store, f"k{n}") for n in range(many)])
        await asyncio.gather(*[store.commit(moved(run)) for run in runs])  # prepares the statement
        runs = [await reload(store, run) for run in runs]

        proxy.lose_after('{"marked":')
        moves = [moved(run, {"marked": {"n": n}}) for n, run in enumerate(runs)]
        await asyncio.gather(*[store.commit(move) for move in moves])
        assert proxy.lost == 1
        assert [await gapless(store, run) for run in runs] == [2] * many

        proxy.lose_after("lost-key")
        made_, _ = await store.create(new("lost-key"))
        assert proxy.lost == 2
        assert await gapless(store, made_) == 0

        proxy.lose_after("lost-call")
        call = Call(run=made_.id, state="s0", visit=0, name="lost-call", nth=0, result=b"1")
        await store.remember(made_, call)
        assert proxy.lost == 3
        assert await store.recall(made_, "s0", 0) == [call]

        proxy.lose_after("lost-error")
        await store.settle(made_, replace(made_, owner=None, due=None, error=Failure(type="lost-error", message="")))
        assert proxy.lost == 4
        assert (await reload(store, made_)).owner is None

        # A transaction of several statements: what is lost is the answer to the word COMMIT.
        runs = [await reload(store, run) for run in runs]
        proxy.lose_after("COMMIT;")
        await asyncio.gather(store.create(new("beside")), *[store.commit(moved(run)) for run in runs])
        assert proxy.lost == 5
        assert [await gapless(store, run) for run in runs] == [3] * many


async def test_all_connections_ended_in_a_storm_of_commits_lose_and_double_nothing(
    postgres_url: str, postgres: Databases
) -> None:
    stop, moving = asyncio.Event(), set[str]()
    name = urlsplit(postgres_url).path[1:]

    async def kill() -> None:
        connection = await asyncpg.connect(postgres.url)
        killed = rounds = 0
        while rounds < 12 or killed < 5 or len(moving) < 20:
            rounds += 1
            await asyncio.sleep(0.05)
            killed += await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1", name
            )
        await connection.close()
        stop.set()

    async def drive(store: Store, key: str) -> None:
        run, _ = await store.create(new(key))
        while not stop.is_set():
            call = Call(run=run.id, state=run.state, visit=0, name="f", nth=0, result=b"1")
            await store.remember(run, call)
            move = moved(run, {"n": run.version + 1, "big": LARGE + str(run.version)}, forget=((run.state, 0),))
            await store.commit(move)
            run = move.after
            moving.add(key)
            assert (await reload(store, run)).version == run.version

    async with opened(postgres_url) as store:
        await asyncio.wait_for(asyncio.gather(kill(), *[drive(store, f"k{n}") for n in range(20)]), 2 * PATIENCE)
        versions = [await gapless(store, new(f"k{n}")) for n in range(20)]
        assert min(versions) > 0
        assert await ask(postgres_url, "SELECT count(*) FROM fsm_calls") == [(0,)]


async def test_a_server_stopped_and_started_in_the_middle_of_commits_costs_nobody_a_step(
    private_postgres: Server,
) -> None:
    versions = [0] * 10

    async def drive(store: Store, number: int) -> None:
        run, _ = await store.create(new(f"k{number}"))
        while not over.is_set():
            move = moved(run)
            await store.commit(move)
            run = move.after
            versions[number] = run.version

    over = asyncio.Event()
    async with opened(private_postgres.url) as store:
        await enrol(store, ME)
        driving = [asyncio.create_task(drive(store, n)) for n in range(10)]
        for mode in ("fast", "immediate"):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(private_postgres.stop, mode)
            waiting = asyncio.create_task(store.renew(ME, store.now() + 60))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            assert not any(task.done() for task in driving)
            await asyncio.to_thread(private_postgres.start)
            assert await asyncio.wait_for(waiting, PATIENCE)
        await until(lambda: all(versions))
        over.set()
        await asyncio.wait_for(asyncio.gather(*driving), PATIENCE)
        for n in range(10):
            assert await gapless(store, new(f"k{n}")) >= versions[n] > 0


async def test_closing_while_the_server_is_away_is_bounded(
    private_postgres: Server, monkeypatch: pytest.MonkeyPatch, stopwatch: Stopwatch
) -> None:
    monkeypatch.setattr("fsmworkflow.store.postgres_server.CLOSE_SECONDS", 0.5)
    store = open_store(private_postgres.url)
    await store.open()
    run = await made(store)
    await asyncio.to_thread(private_postgres.stop, "immediate")
    commit = asyncio.ensure_future(store.commit(moved(run)))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await asyncio.wait_for(store.close(), PATIENCE)
    assert stopwatch.since(began) < 5
    with pytest.raises(StoreUnavailable):
        await commit


async def test_a_server_that_is_not_there_is_told_soon_and_without_the_password(
    tmp_path: Path, stopwatch: Stopwatch
) -> None:
    began = time.monotonic()
    store = open_store(f"postgresql://ann:hidden%2Fword@/things?host={tmp_path}&password=hidden2")
    with pytest.raises(StoreUnavailable, match="things") as told:
        await store.open()
    assert stopwatch.since(began) < 6
    assert str(tmp_path) in str(told.value)
    assert "hidden" not in store.url + str(told.value)


async def test_a_database_that_is_not_there_is_told_at_once_and_without_the_password(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    user, _, host = parts.netloc.rpartition("@")
    wrong = parts._replace(path="/nothing", netloc=f"{user.partition(':')[0] or 'postgres'}:hidden@{host}").geturl()
    with pytest.raises(StoreError, match="nothing") as told:
        await open_store(wrong).open()
    assert not isinstance(told.value, StoreUnavailable)
    assert "hidden" not in str(told.value)


@pytest.mark.parametrize("url", ["postgresql://a:hi/dden@h/d", "postgresql://a:hid:den@h:x1/d", "postgresql://[h/d"])
async def test_a_url_that_cannot_be_understood_is_told_without_the_password(url: str) -> None:
    with pytest.raises(StoreError) as told:
        await open_store(url).open()
    assert "den" not in str(told.value).replace("understood", "")


async def test_a_pool_that_the_program_closed_is_opened_again(postgres_url: str) -> None:
    async with opened(postgres_url, pool={"max_size": 2}) as store:
        run = await made(store)
        for end in ("close", "terminate"):
            result = getattr(await store.open_pool(), end)()
            if result is not None:
                await result
            await store.commit(moved(await reload(store, run)))
            assert not (await store.open_pool()).is_closing()
        assert await gapless(store, run) == 2


async def test_a_program_that_holds_every_connection_of_its_pool_cannot_starve_the_store(postgres_url: str) -> None:
    async with opened(postgres_url, pool={"max_size": 1}) as store:
        run = await made(store)
        async with (await store.open_pool()).acquire():
            assert (await asyncio.wait_for(reload(store, run), PATIENCE)).id == run.id


async def test_no_prepared_statement_is_kept_where_none_may_be(postgres_url: str) -> None:
    async with opened(postgres_url, pool={"statement_cache_size": 0, "server_settings": {"jit": "off"}}) as store:
        await enrol(store, ME)
        runs = await asyncio.gather(*[made(store, f"k{n}", owner=None) for n in range(5)])
        claimed = await store.claim(ME, {"w": 1}, 10, float("inf"))
        await asyncio.gather(*[store.commit(moved(run)) for run in claimed])
        await store.commit(moved(await reload(store, runs[0])))
        assert [await gapless(store, run) for run in runs] == [2, 1, 1, 1, 1]
        assert await store._write.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0


async def test_a_store_may_be_named_by_keywords(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    connection = await asyncpg.connect(postgres_url)
    user = await connection.fetchval("SELECT current_user")
    await connection.close()
    host = parse_qs(parts.query).get("host", [parts.hostname])[0]
    words = {"host": host, "port": parts.port or 5432, "database": parts.path[1:], "user": user}
    words["password"] = parts.password or "hidden"
    store = PostgresStore(connect=words, pool={"min_size": 1, "max_size": 3, "command_timeout": 30})
    assert "hidden" not in store.url
    assert parts.path in store.url
    await store.open()
    run = await made(store)
    assert (await reload(store, run)).id == run.id
    assert (await store.open_pool()).get_max_size() == 3
    await store.close()


ROW = """
INSERT INTO fsm_runs
       (workflow, key, definition, structure, status, state, active, data, version, input, created, updated)
VALUES ('w', 'x30', 1, '', 'running', '', '{}', '{}', 0, '', 0, 0)
"""


@pytest.mark.parametrize("kind", ["moves", "moves with fields", "several kinds", "starts"])
async def test_two_processes_never_wait_for_each_other(
    postgres_url: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """They write the same runs in opposite order, and a third one holds the run in the middle up for a moment."""
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        runs = await asyncio.gather(*[made(one, f"k{n}") for n in range(60)])
        data = {"big": LARGE} if kind == "moves with fields" else None
        moves = [moved(run, data) for run in runs]  # the other one never heard that they were made

        def writes(store: Store) -> list[Any]:
            if kind == "starts":
                return [store.create(new(f"x{n}")) for n in range(60)]
            if kind != "several kinds":
                return [store.commit(move) for move in moves]
            half = slice(30) if store is one else slice(30, 60)
            other = slice(30, 60) if store is one else slice(30)
            settling = [store.settle(run, replace(run, due=12.0)) for run in runs[half]]
            return [*settling, *[store.commit(move) for move in moves[other]]]

        third = await asyncpg.connect(postgres_url)
        holding = third.transaction()
        await holding.start()
        await third.execute(ROW if kind == "starts" else "SELECT FROM fsm_runs WHERE key = 'k30' FOR UPDATE")
        writing = [asyncio.ensure_future(write) for write in writes(one) + writes(two)[::-1]]
        await asyncio.sleep(0.3)
        await holding.rollback()
        await third.close()
        results = await asyncio.wait_for(asyncio.gather(*writing, return_exceptions=True), PATIENCE)
        # Of several kinds, a run that the other one has moved meanwhile can no longer be settled as it was.
        allowed = LeaseLost if kind == "several kinds" else ()
        assert not [r for r in results if isinstance(r, BaseException) and not isinstance(r, allowed)]
        assert not [record for record in caplog.records if record.name == "fsmworkflow"]
        assert {await gapless(one, run) for run in runs} == {0 if kind == "starts" else 1}


@pytest.mark.parametrize("by", ["claim", "claim_one"])
async def test_P5_a_claim_that_was_held_up_finds_no_lease_lapsed_that_held_when_it_was_asked_for(
    postgres_store: Any, postgres_url: str, by: str
) -> None:
    """What held the claim up may have held up the owner's renewal, too."""
    await enrol(postgres_store, ME)
    await made(postgres_store)
    third = await asyncpg.connect(postgres_url)
    holding = third.transaction()
    await holding.start()
    await third.execute("LOCK TABLE fsm_runs IN ACCESS EXCLUSIVE MODE")
    await enrol(postgres_store, ME, lease=1.0)
    now = postgres_store.now()
    claim = postgres_store.claim(OTHER, {"w": 1}, 10, now) if by == "claim" else None
    claiming = asyncio.ensure_future(claim or postgres_store.claim_one(OTHER, "w", "a"))
    while postgres_store.now() < now + 1.2:
        await asyncio.sleep(0.05)
    await holding.rollback()
    await third.close()
    assert not await claiming
    later = await postgres_store.claim_one(OTHER, "w", "a")
    assert later.epoch == 2


@pytest.mark.parametrize("apart", [-86_400, -3_600, 3_600, 86_400])
async def test_a_server_in_another_time_is_the_one_that_judges(
    postgres_store: Any, monkeypatch: pytest.MonkeyPatch, stopwatch: Stopwatch, apart: int
) -> None:
    """This machine's clock is an hour or a day late or early: leases that this store gives hold until they should."""
    real = time.time
    monkeypatch.setattr("fsmworkflow.store.postgres.time.time", lambda: real() + apart)
    began = time.monotonic()
    await enrol(postgres_store, ME)  # from now on the offset is known
    apart_now, ended = abs(postgres_store.now() - real()), time.monotonic()
    assert apart_now < 1 + stopwatch.stood(began, ended)
    await enrol(postgres_store, ME, lease=30.0)
    run = await made(postgres_store)
    assert await postgres_store.claim_one(OTHER, "w", "a") is None
    await enrol(postgres_store, ME, lease=-0.5)
    assert (await postgres_store.claim_one(OTHER, "w", "a")).epoch == run.epoch + 1
