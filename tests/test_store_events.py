"""What a store promises of events, as sentences, and run on each: memory, SQLite, PostgreSQL."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from fsmworkflow.codec import decode
from fsmworkflow.errors import CodecError, LeaseLost, RunNotFound, RunOver, Stale, StoreError
from fsmworkflow.records import Action, Active, Call, Event, Failure, Move, Run, Undo, Undoing, replace
from fsmworkflow.store import Store, open_store
from fsmworkflow.testing import Clock, Crash, CrashingStore
from tests.postgres_server import execute
from tests.test_store import LARGE, ME, OTHER, ask, enrol, facts, gapless, made, moved, new, opened, reload, sql

UNDONE = Undoing(ends="failed", lost=(Undo("s0", 0, 2),))
OVER: list[dict[str, Any]] = [
    {"status": "done"},
    {"status": "cancelled"},
    {"status": "failed"},  # by the outcome of a final state
    {"status": "failed", "error": Failure(type="E", message="m"), "undo": UNDONE},
]
each_end = pytest.mark.parametrize("end", OVER, ids=["done", "cancelled", "failed", "undone"])


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


def event(name: str = "go", id: str = "e1", payload: Any = None, **parts: Any) -> Event:
    return Event(name=name, id=id, payload=payload, **parts)


def taking(run: Run, event: Event, **after: Any) -> Move:
    """The move that an event from outside makes of a run."""
    move = moved(run, **{"status": "waiting", "due": None, **after})
    return replace(move, event=event)


async def post(store: Store, run: Run, event: Event) -> Event:
    return await store.post(run.workflow, run.key, event)


async def resting(store: Store, key: str = "a", data: Any = None, **parts: Any) -> Run:
    return await made(store, key, data, **{"status": "waiting", "due": None, **parts})


async def inbox(store: Store, run: Run) -> list[Event]:
    return (await store.inbox(run))[1]


async def fate(store: Store, run: Run, event_id: str = "e1") -> tuple[str, int | None]:
    there = await store.event(run, event_id)
    assert there is not None
    return there.status, there.version


async def test_moves_between_the_start_and_a_version_are_forgotten_with_their_events(store: Store) -> None:
    run, other = await resting(store), await resting(store, "b")
    for number in range(4):
        for one in (run, other):
            await post(store, one, event(id=f"e{number}"))
        taken = (await inbox(store, run))[0]
        await store.commit(taking(run, taken))
        run = await settled(store, run)
    await post(store, run, event(id="later"))
    run = await settled(store, run)
    assert run.owner is not None
    await store.trim(replace(run, epoch=run.epoch + 1), 3)
    assert [entry.version for entry in await store.history(run)] == [0, 1, 2, 3, 4]
    await store.trim(run, 3)
    await store.trim(run, 3)
    assert [entry.version for entry in await store.history(run)] == [0, 3, 4]
    fates = [None if (found := await store.event(run, f"e{n}")) is None else found.version for n in range(4)]
    assert fates == [None, None, 3, 4]
    assert [one.id for one in await inbox(store, run)] == ["later"]
    assert len(await inbox(store, other)) == 4
    assert [entry.version for entry in await store.history(other)] == [0]


async def settled(store: Store, run: Run) -> Run:
    """The run as it is, with a `posted` that is the number of its events."""
    there = await reload(store, run)
    posted, _ = await store.inbox(run)
    assert there.posted == posted
    return there


# -- what a row has ---------------------------------------------------------------------------------------------------


async def test_undoing_deadline_and_stays_read_back_from_start_and_moves(store: Store, store_url: str) -> None:
    stay = Active(0, attempt=2, again=3.5, timers={"late": 4.5}, touched=("n",))
    run = await made(store, deadline=99.5, actions=(Action("notify", 0),), active={"s0": stay, "s0.a": Active(0)})
    assert facts(await reload(store, run)) == facts(run)
    undo = Undoing(left=(Undo("s0", 0), Undo("s1", 3, 2, 7.5)), ends="failed", lost=(Undo("x", 1),))
    first = moved(run, undo=undo)
    second = moved(first.after, undo=undo, deadline=None)
    third = moved(second.after, undo=Undoing(), deadline=5.0)
    for move in (first, second, third):
        await store.commit(move)
        assert facts(await reload(store, run)) == facts(move.after)
    if store_url != "memory://":
        assert await ask(store_url, "SELECT undo FROM fsm_runs") == [(None,)]


async def test_many_moves_in_one_batch_keep_each_ones_deadline_and_undoing(store: Store) -> None:
    runs = await asyncio.gather(*[made(store, f"k{n}", deadline=float(n) if n % 2 else None) for n in range(9)])
    undo = [Undoing(left=(Undo("s0", n),)) if n % 3 else Undoing() for n in range(9)]
    moves = [moved(run, undo=undo[n], deadline=50.0 + n if n % 4 == 1 else None) for n, run in enumerate(runs)]
    await asyncio.gather(*[store.commit(move) for move in moves])
    for move in moves:
        assert facts(await reload(store, move.after)) == facts(move.after)


async def test_what_comes_later_is_not_stored(store: Store) -> None:
    run = await made(store)
    await store.commit(moved(run, later=77.0))
    assert (await reload(store, run)).later is None


# -- posting ----------------------------------------------------------------------------------------------------------


async def test_a_posted_event_waits_in_the_inbox_and_makes_the_run_due(store: Store) -> None:
    run = await resting(store)
    payload = {"qty": 3, "at": dt.date(2025, 1, 2), "text": "ä", "deep": [{"a": None}]}
    before = store.now()
    there = await post(store, run, event(payload=payload, visit=0, state="s0", trigger="gone", version=9, status="x"))
    assert there.number > 0
    assert there.due is not None
    assert before - 1 < there.due < store.now() + 1
    assert there == event(payload=payload, visit=0, state="s0", due=there.due, number=there.number)
    assert await store.inbox(run) == (1, [there])
    assert await store.event(run, "e1") == there
    after = await settled(store, run)
    assert facts(after) == facts(replace(run, posted=1, due=there.due))
    assert await gapless(store, run) == 0


async def test_an_event_without_payload_visit_or_state_reads_back_so(store: Store) -> None:
    run = await resting(store)
    await post(store, run, event(due=5.0))
    (there,) = await inbox(store, run)
    assert (there.payload, there.visit, there.state, there.status, there.version) == (None, None, "", "waiting", None)
    assert there.due == 5.0


async def test_a_run_is_due_when_the_first_of_its_events_is(store: Store) -> None:
    run = await resting(store)
    for number, (due, least) in enumerate([(500.0, 500.0), (300.0, 300.0), (400.0, 300.0)]):
        await post(store, run, event(id=f"e{number}", due=due))
        assert (await settled(store, run)).due == least
    earlier = await resting(store, "b", due=2.0)
    await post(store, earlier, event(due=3.0))
    assert (await settled(store, earlier)).due == 2.0


async def test_the_inbox_is_ordered_by_due_then_by_number(store: Store) -> None:
    run, other = await resting(store), await resting(store, "b")
    for number, due in enumerate([30.0, 10.0, 20.0, 10.0, 30.0, 5.0]):
        await post(store, run, event(id=f"e{number}", due=due))
        await post(store, other, event(id=f"other{number}", due=1.0))
    posted, waiting = await store.inbox(run)
    assert posted == 6
    assert [e.id for e in waiting] == ["e5", "e1", "e3", "e2", "e0", "e4"]
    ids = [e.id for e in await asyncio.gather(*[post(store, other, event(id=f"{n:02}", due=2.0)) for n in range(20)])]
    assert [e.id for e in await inbox(store, other) if e.due == 2.0] == ids == sorted(ids)


async def test_P7_sixteen_posts_of_one_event_id_at_once_make_one_event(store: Store) -> None:
    run = await resting(store)
    answers = await asyncio.gather(*[post(store, run, event(payload=n)) for n in range(16)])
    assert all(answer == answers[0] for answer in answers)
    assert await store.inbox(run) == (1, [answers[0]])


async def test_P7_two_processes_that_post_one_event_id_at_once_make_one_event(durable_url: str) -> None:
    async with opened(durable_url) as one, opened(durable_url) as two:
        run = await resting(one)
        for n in range(20):
            ids = [f"{n}-{m}" for m in range(5)]
            each = [[post(store, run, event(id=i, payload=k)) for i in ids] for k, store in enumerate((one, two))]
            answers = await asyncio.gather(*each[0], *each[1][::-1])
            assert {e.id: e for e in answers[:5]} == {e.id: e for e in answers[5:]}
        assert (await settled(one, run)).posted == 100
        assert len(await inbox(two, run)) == 100


async def test_the_same_event_id_may_be_posted_to_two_runs(store: Store) -> None:
    runs = [await resting(store, key) for key in "ab"]
    numbers = {(await post(store, run, event(payload=run.key))).number for run in runs}
    assert len(numbers) == 2
    assert [[e.payload for e in await inbox(store, run)] for run in runs] == [["a"], ["b"]]


async def test_a_known_event_id_is_answered_with_the_event_as_it_now_is_and_nothing_is_written(store: Store) -> None:
    run = await resting(store)
    first = await post(store, run, event(payload=1, due=5.0))
    again = await post(store, run, event("other", payload=2, due=1.0))
    assert again == first
    assert facts(await settled(store, run)) == facts(replace(run, posted=1, due=5.0))
    (waiting,) = await inbox(store, run)
    await store.commit(taking(replace(run, posted=1, due=5.0), waiting))
    taken = await post(store, run, event(payload=3))
    assert taken == replace(first, status="accepted", version=1)
    assert (await settled(store, run)).posted == 1


async def test_posting_to_a_run_that_is_not_there_says_so(store: Store) -> None:
    run = await resting(store)
    for workflow, key in (("w", "b"), ("v", "a")):
        with pytest.raises(RunNotFound, match=key) as caught:
            await store.post(workflow, key, event())
        assert caught.value.code == "run_not_found"
    with pytest.raises(RunNotFound):
        await store.inbox(replace(run, id=4711))
    assert await store.event(replace(run, id=4711), "e1") is None
    assert await store.event(run, "e1") is None
    assert await store.inbox(run) == (0, [])


async def test_what_cannot_be_stored_is_refused_before_any_write(store: Store) -> None:
    run = await resting(store)
    for bad in (event(payload={1: 2}), event(payload=(1,)), event(payload="a\0"), event(id="\ud800"), event("a\0")):
        with pytest.raises(CodecError):
            await post(store, run, bad)
        with pytest.raises(CodecError):
            await store.commit(taking(run, bad))
    with pytest.raises(ValueError, match="no id"):
        await post(store, run, event(id=""))
    assert facts(await settled(store, run)) == facts(run)
    assert await gapless(store, run) == 0


async def test_what_cannot_be_posted_fails_alone(store: Store) -> None:
    run, ended = await resting(store), await resting(store, "b", status="done")
    asked: list[Any] = [post(store, run, event(id=f"e{n}", visit=2**70 if n == 3 else n)) for n in range(6)]
    asked += [
        post(store, ended, event()),
        store.post("w", "none", event()),
        store.commit(moved(await made(store, "c"))),
    ]
    results: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(results[6], RunOver)
    assert isinstance(results[7], RunNotFound)
    assert results[8] is None
    good = [results[n].id for n in (0, 1, 2, 4, 5)]
    assert good == ["e0", "e1", "e2", "e4", "e5"]
    if isinstance(results[3], BaseException):  # in memory there is nothing that it would not fit into
        assert isinstance(results[3], StoreError)
        assert [e.id for e in await inbox(store, run)] == good


async def test_many_events_are_posted_in_one_batch(store: Store) -> None:
    runs = [await resting(store, f"k{n}") for n in range(10)]
    asked = [post(store, runs[n % 10], event(id=f"e{n}", payload={"n": n}, due=100.0 - n)) for n in range(200)]
    answers = await asyncio.gather(*asked)
    assert [(e.id, e.payload, e.due) for e in answers] == [(f"e{n}", {"n": n}, 100.0 - n) for n in range(200)]
    for n, run in enumerate(runs):
        assert (await settled(store, run)).posted == 20
        assert (await reload(store, run)).due == 100.0 - 190 - n
        assert [e.id for e in await inbox(store, run)] == [f"e{m}" for m in range(190 + n, -1, -10)]


# -- a move and its event ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["accepted", "rejected"])
async def test_the_move_that_takes_an_event_of_the_inbox_marks_it_in_the_same_commit(store: Store, answer: str) -> None:
    run = await resting(store)
    for n in range(3):
        await post(store, run, event(id=f"e{n}", payload=n))
    posted, waiting = await store.inbox(run)
    run = replace(await reload(store, run), posted=posted)
    await store.commit(replace(taking(run, waiting[1]), answer=answer))
    assert await fate(store, run, "e1") == (answer, 1)
    assert await store.inbox(run) == (3, [waiting[0], waiting[2]])
    after = await settled(store, run)
    assert (after.version, after.due, after.posted, after.status) == (1, None, 3, "waiting")
    assert (await store.history(run))[1].event == "go"


@pytest.mark.parametrize("answer", ["accepted", "rejected"])
async def test_the_move_that_takes_a_new_event_inserts_it_in_the_same_commit(store: Store, answer: str) -> None:
    run = await resting(store)
    await store.commit(replace(taking(run, event(payload={"by": "ann"}, visit=0)), answer=answer))
    there = await store.event(run, "e1")
    assert there is not None
    assert there.number > 0
    assert (there.status, there.version, there.payload, there.visit, there.due) == (answer, 1, {"by": "ann"}, 0, 11.0)
    assert await store.inbox(run) == (1, [])
    after = await settled(store, run)
    assert (after.version, after.due, after.posted) == (1, None, 1)
    assert await post(store, run, event()) == there
    second = taking(replace(after, posted=1), event(id="e2"), due=20.0, deadline=30.0, undo=UNDONE)
    await store.commit(second)
    assert facts(await settled(store, run)) == facts(replace(second.after, posted=2))


async def test_a_new_event_is_stale_where_another_one_was_posted_meanwhile(store: Store) -> None:
    run = await resting(store)
    older = await post(store, run, event(id="older"))
    with pytest.raises(Stale, match="w/a") as caught:
        await store.commit(taking(run, event()))
    assert caught.value.code == "stale"
    assert await store.inbox(run) == (1, [older])
    assert await store.event(run, "e1") is None
    assert facts(await settled(store, run)) == facts(replace(run, posted=1, due=older.due))
    assert await gapless(store, run) == 0
    await store.commit(taking(replace(run, posted=1), event()))
    assert await fate(store, run) == ("accepted", 1)


async def test_a_new_event_whose_id_is_known_is_stale(store: Store) -> None:
    run = await resting(store)
    await store.commit(taking(run, event(payload=1)))
    now = await reload(store, run)
    with pytest.raises(Stale):
        await store.commit(taking(now, event(payload=2)))
    assert facts(await settled(store, run)) == facts(now)
    assert await fate(store, run) == ("accepted", 1)


async def test_an_event_of_the_inbox_is_taken_once(store: Store) -> None:
    run = await resting(store)
    await post(store, run, event())
    _, (waiting,) = await store.inbox(run)
    first = taking(replace(run, posted=1), waiting)
    await store.commit(first)
    with pytest.raises(Stale):
        await store.commit(taking(first.after, waiting))
    assert await fate(store, run) == ("accepted", 1)
    assert await gapless(store, run) == 1


async def test_P5_one_who_does_not_own_the_run_takes_no_event(store: Store) -> None:
    run = await resting(store)
    await post(store, run, event())
    _, (waiting,) = await store.inbox(run)
    for stale in ({"owner": OTHER}, {"epoch": 2}, {"version": 1}):
        for one in (waiting, event(id="new")):
            with pytest.raises(LeaseLost):
                await store.commit(taking(replace(run, posted=1, **stale), one))
    assert await store.inbox(run) == (1, [waiting])
    assert await store.event(run, "new") is None


async def test_P11_a_move_with_an_event_may_be_repeated_after_a_lost_answer(durable_url: str) -> None:
    async with opened(durable_url) as store:
        new_one, old_one = await resting(store, "a"), await resting(store, "b")
        await post(store, old_one, event())
        _, (waiting,) = await store.inbox(old_one)
        moves = [taking(new_one, event()), taking(replace(old_one, posted=1), waiting)]
        for _ in range(2):
            for move in moves:
                await store.commit(move)
            await asyncio.gather(*[store.commit(move) for move in moves])
        for run in (new_one, old_one):
            assert await fate(store, run) == ("accepted", 1)
            assert await gapless(store, run) == 1
            assert (await settled(store, run)).posted == 1


async def test_moves_with_and_without_events_and_posts_ride_in_one_batch(store: Store) -> None:
    """Of six kinds of writes each one is there, in several batches, with what is each one's own."""
    runs = await asyncio.gather(*[resting(store, f"k{n}", {"n": n}) for n in range(60)])
    for run in runs[10:20]:
        await post(store, run, event(id="old"))
    waiting = [(await inbox(store, run))[0] for run in runs[10:20]]
    for run in runs[30:40]:
        await store.remember(run, Call(run=run.id, state="s0", visit=0, name="f", nth=0, result=b"1"))
    asked: list[Any] = [store.commit(moved(run)) for run in runs[:10]]
    asked += [store.commit(taking(replace(r, posted=1), e)) for r, e in zip(runs[10:20], waiting, strict=True)]
    asked += [store.commit(taking(run, event(id="new", payload=LARGE))) for run in runs[20:30]]
    asked += [
        store.commit(replace(moved(run, {"big": LARGE}, forget=(("s0", 0),)), event=event(id="new")))
        for run in runs[30:40]
    ]
    asked += [post(store, run, event(id="late")) for run in runs[:50]]
    asked += [store.commit(taking(replace(run, epoch=9), event(id="lost"))) for run in runs[50:]]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(result, LeaseLost) for result in results[-10:])
    assert not [r for r in results[:-10] if isinstance(r, BaseException) and not isinstance(r, Stale)]
    for n, run in enumerate(runs):
        after = await settled(store, run)
        moved_on = n < 40 and not isinstance(results[n], Stale)
        assert await gapless(store, run) == after.version == (1 if moved_on else 0)
        ids = {e.id for e in await inbox(store, run)}
        assert ids == (set() if n >= 50 else {"late"})
        if n < 50:
            assert after.due is not None
        if 10 <= n < 20:
            assert await fate(store, run, "old") == ("accepted", 1)
        if 20 <= n < 40 and moved_on:
            assert await fate(store, run, "new") == ("accepted", 1)
            assert after.posted == 2
        if 30 <= n < 40 and moved_on:
            assert await store.recall(run, "s0", 0) == []
            assert after.data["big"] == LARGE


async def test_a_batch_of_new_events_fails_for_those_that_are_stale_alone(store: Store) -> None:
    runs = [await resting(store, f"k{n}") for n in range(20)]
    for run in runs[::3]:
        await post(store, run, event(id="older"))
    asked = [store.commit(taking(run, event())) for run in runs]
    results = await asyncio.gather(*asked, return_exceptions=True)
    for n, (run, result) in enumerate(zip(runs, results, strict=True)):
        assert isinstance(result, Stale) if n % 3 == 0 else result is None
        assert await gapless(store, run) == (0 if n % 3 == 0 else 1)
        assert (await settled(store, run)).posted == 1


# -- no race between arriving and waiting -----------------------------------------------------------------------------


async def test_an_event_posted_between_the_look_into_the_inbox_and_the_resting_commit_leaves_the_run_due(
    store: Store,
) -> None:
    moving, settling = await made(store, "a"), await made(store, "b")
    for run in (moving, settling):
        assert await store.inbox(run) == (0, [])
        await post(store, run, event())
    await store.commit(moved(moving, status="waiting", due=None, owner=None))
    await store.settle(settling, replace(settling, due=None, owner=None))
    await enrol(store, OTHER)
    for run in (moving, settling):
        due = (await settled(store, run)).due
        assert due is not None
        assert due <= store.now()
    assert {r.key for r in await store.claim(OTHER, {"w": 1}, 10, store.now())} == {"a", "b"}


async def test_once_it_was_seen_an_event_leaves_the_run_as_the_move_says(store: Store) -> None:
    run = await made(store, due=20.0)
    await post(store, run, event(due=5.0))
    posted, _ = await store.inbox(run)
    run = replace(run, posted=posted)  # and still believes that it is due at 20
    await store.commit(moved(run, status="waiting", due=20.0))
    assert (await settled(store, run)).due == 20.0


async def test_posting_and_coming_to_rest_at_once_never_lose_the_event(durable_url: str) -> None:
    async with opened(durable_url) as one, opened(durable_url) as two:
        run = await made(one)
        for n in range(100):
            run = replace(run, posted=(await one.inbox(run))[0])
            move = moved(run, status="waiting", due=None)
            writes = [one.commit(move), post(two if n % 2 else one, run, event(id=f"e{n}"))]
            await asyncio.gather(*(writes if n % 4 < 2 else writes[::-1]))
            run = await reload(one, run)
            assert run.due is not None
            assert run.posted == n + 1
            assert await gapless(one, run) == n + 1


async def test_a_commit_that_waited_for_the_one_who_posted_leaves_the_run_due(postgres_url: str) -> None:
    """The event is committed after the statement of the move began, and before it got hold of the row."""
    insert = "INSERT INTO fsm_events (run, event_id, name, due, created) VALUES ($1, 'e1', 'go', 1, 1)"
    async with opened(postgres_url) as store:
        resting_, taking_, ending = [await made(store, key, due=None) for key in "abc"]
        moves = [moved(resting_, status="waiting"), taking(taking_, event(id="new")), moved(ending, status="done")]
        connection = await asyncpg.connect(postgres_url)
        for move in moves:
            posting = connection.transaction()
            await posting.start()
            await connection.execute("UPDATE fsm_runs SET posted = posted + 1 WHERE id = $1", move.before.id)
            await connection.execute(insert, move.before.id)
            commit = asyncio.ensure_future(store.commit(move))
            await asyncio.sleep(0.2)
            await posting.commit()
            result = (await asyncio.gather(commit, return_exceptions=True))[0]
            assert isinstance(result, Stale) if move is moves[1] else result is None
        await connection.close()
        assert [(await settled(store, m.before)).due for m in moves] == [11.0, None, 11.0]
        assert [await fate(store, m.before) for m in moves] == [("waiting", None)] * 3
        assert await gapless(store, taking_) == 0


async def test_processes_that_post_to_each_others_runs_do_not_wait_for_each_other(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        runs = await asyncio.gather(*[resting(one, f"k{n}") for n in range(60)])
        for turn in range(5):
            fronts = [one.commit(moved(run)) for run in runs[:30]] + [post(one, r, event(id=f"{turn}1")) for r in runs]
            backs = [two.commit(moved(run)) for run in runs[:29:-1]]
            backs += [post(two, run, event(id=f"{turn}2")) for run in runs[::-1]]
            await asyncio.gather(*fronts, *backs)
            runs = [await reload(one, run) for run in runs]
        assert {(run.version, run.posted) for run in runs} == {(5, 10)}
        assert not [record for record in caplog.records if record.name == "fsmworkflow"]


# -- the end of a run -------------------------------------------------------------------------------------------------


@each_end
async def test_an_ended_run_takes_no_more_events_and_still_answers_for_known_ones(
    store: Store, end: dict[str, Any]
) -> None:
    run = await resting(store)
    first = await post(store, run, event())
    _, (waiting,) = await store.inbox(run)
    ending = taking(replace(run, posted=1), waiting, **end, owner=None)
    assert ending.after.over
    await store.commit(ending)
    before = facts(await settled(store, run))
    with pytest.raises(RunOver, match="takes no more events") as caught:
        await post(store, run, event(id="e2"))
    assert (caught.value.code, caught.value.status, caught.value.key) == ("run_over", end["status"], "a")
    assert await post(store, run, event(payload="again")) == replace(first, status="accepted", version=1)
    assert facts(await settled(store, run)) == before
    assert await store.event(run, "e2") is None


async def test_a_failed_run_that_may_go_on_takes_events(store: Store) -> None:
    error = Failure(type="E", message="m")
    for key, undo in (("a", Undoing()), ("b", Undoing(left=(Undo("s0", 0),)))):
        run = await made(store, key)
        await store.commit(moved(run, status="failed", error=error, undo=undo, due=None, owner=None))
        await post(store, run, event(due=7.0))
        after = await settled(store, run)
        assert (after.posted, after.due, after.status, after.over) == (1, 7.0, "failed", False)


@each_end
async def test_what_still_waits_when_a_run_ends_is_dropped_by_its_last_move(store: Store, end: dict[str, Any]) -> None:
    run, other = await resting(store), await resting(store, "b")
    for n in range(3):
        await post(store, run, event(id=f"e{n}", due=1e12 if n == 2 else None))
    await post(store, other, event())
    posted, waiting = await store.inbox(run)
    await store.commit(taking(replace(run, posted=posted), waiting[0], **end))
    assert [await fate(store, run, f"e{n}") for n in range(3)] == [("accepted", 1), ("dropped", 1), ("dropped", 1)]
    assert await store.inbox(run) == (3, [])
    assert await fate(store, other) == ("waiting", None)
    assert (await settled(store, run)).due is None


async def test_a_step_that_ends_the_run_and_a_new_event_that_does_drop_what_waits(store: Store) -> None:
    stepping, sent = await made(store, "a"), await resting(store, "b")
    for run in (stepping, sent):
        await post(store, run, event(id="old"))
    moves = [moved(replace(stepping, posted=1), status="done"), taking(replace(sent, posted=1), event(), status="done")]
    await asyncio.gather(*[store.commit(move) for move in moves])
    assert [await fate(store, run, "old") for run in (stepping, sent)] == [("dropped", 1)] * 2
    assert await fate(store, sent) == ("accepted", 1)


async def test_a_run_that_fails_and_may_go_on_keeps_its_inbox(store: Store) -> None:
    run = await made(store)
    await post(store, run, event())
    await store.commit(moved(replace(run, posted=1), status="failed", error=Failure(type="E", message="m")))
    assert await fate(store, run) == ("waiting", None)


async def test_what_was_posted_while_a_run_ended_is_dropped_by_the_next_who_claims_it(store: Store) -> None:
    await enrol(store, ME)
    run = await made(store, due=None)
    await post(store, run, event())
    await store.commit(moved(run, status="done", owner=None))
    ended = await settled(store, run)
    assert ended.due == 11.0
    assert await fate(store, run) == ("waiting", None)
    (claimed,) = await store.claim(ME, {"w": 1}, 10, store.now())
    assert claimed.posted == 1
    await store.settle(claimed, replace(claimed, due=None, owner=None))
    assert await fate(store, run) == ("dropped", 1)
    after = await settled(store, run)
    assert (after.due, after.owner, after.version, after.status) == (None, None, 1, "done")
    assert await store.claim(ME, {"w": 1}, 10, float("inf")) == []


async def test_settling_drops_only_where_the_run_is_over_and_still_ours(store: Store) -> None:
    resting_, ended, lost = [await resting(store, key) for key in "abc"]
    for run in (resting_, ended, lost):
        await post(store, run, event())
    runs = [replace(r, posted=1, due=None) for r in (resting_, ended, lost)]
    await store.commit(moved(runs[1], status="done"))
    done = await reload(store, ended)
    stale = replace(done, id=lost.id, key="c", version=0, epoch=9)
    writes = [store.settle(runs[0], runs[0]), store.settle(done, done), store.settle(stale, stale)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(r) for r in results] == [type(None), type(None), LeaseLost]
    assert [await fate(store, r) for r in runs] == [("waiting", None), ("dropped", 1), ("waiting", None)]


async def test_the_oldest_that_may_go_on_is_no_run_that_has_been_undone(store: Store) -> None:
    for n, end in enumerate(OVER):
        await store.commit(moved(await made(store, f"over{n}"), **end, owner=None, due=None))
    assert await store.oldest("w", []) is None
    failed = await made(store, "failed")
    await store.commit(moved(failed, status="failed", error=Failure(type="E", message="m"), owner=None, due=None))
    assert await store.oldest("w", []) == "failed"


# -- being told, and forgetting ---------------------------------------------------------------------------------------


async def test_an_owner_is_told_which_of_its_runs_were_posted_to_since(store: Store) -> None:
    mine, also, others, free = [
        await resting(store, key, owner=owner) for key, owner in [("a", ME), ("b", ME), ("c", OTHER), ("d", None)]
    ]
    begun = store.now() - 1
    assert await store.woken(ME, begun) == []
    for run in (mine, others, free):
        for n in range(2):
            await post(store, run, event(id=f"e{n}", due=1e12))
    assert await store.woken(ME, begun) == [("w", "a", 2)]
    assert await store.woken(OTHER, begun) == [("w", "c", 2)]
    assert await store.woken(ME, store.now() + 60) == []
    await store.commit(taking(also, event()))  # taken at once: there is nothing left to be told
    assert await store.woken(ME, begun) == [("w", "a", 2)]
    await store.commit(moved(replace(mine, posted=2), status="done"))
    assert await store.woken(ME, begun) == []


async def test_reset_deletes_events(store: Store, store_url: str) -> None:
    run = await resting(store)
    await post(store, run, event())
    await store.reset()
    with pytest.raises(RunNotFound):
        await store.inbox(run)
    again = await resting(store)
    assert await store.inbox(again) == (0, [])
    assert (await post(store, again, event())).status == "waiting"
    if store_url != "memory://":
        assert await ask(store_url, "SELECT count(*) FROM fsm_events") == [(1,)]


async def test_events_are_there_for_the_next_process(durable_url: str) -> None:
    async with opened(durable_url) as store:
        run = await resting(store)
        there = await post(store, run, event(payload={"n": 1}))
    async with opened(durable_url) as store:
        assert await store.inbox(run) == (1, [there])


async def test_payloads_are_stored_as_text_that_reads_back(durable_url: str) -> None:
    async with opened(durable_url) as store:
        run = await resting(store)
        await post(store, run, event(payload={"$at": dt.date(2025, 1, 2)}))
        await post(store, run, event(id="e2"))
        found = await ask(durable_url, "SELECT payload FROM fsm_events ORDER BY id")
        assert decode(found[0][0]) == {"$at": dt.date(2025, 1, 2)}
        assert found[1] == (None,)


async def test_events_are_dated_by_the_stores_clock(tmp_path: Any) -> None:
    clock = Clock()
    for url in ("memory://", f"sqlite:///{tmp_path / 'x.db'}"):
        async with opened(url, clock=clock) as store:
            run = await resting(store)
            assert (await post(store, run, event())).due == clock.time
            since = clock.turn(10)
            assert await store.woken(ME, since) == []
            await post(store, run, event(id="e2"))
            assert await store.woken(ME, since) == [("w", "a", 2)]


async def test_an_event_that_a_rival_program_breaks_is_an_error_of_its_own(durable_url: str) -> None:
    """A row that the database refuses fails its own writer only."""
    async with opened(durable_url) as store:
        run, other = await resting(store), await resting(store, "b")
        if durable_url.startswith("sqlite"):
            sql(
                durable_url,
                "CREATE TRIGGER no BEFORE INSERT ON fsm_events WHEN new.name = 'bad' "
                "BEGIN SELECT RAISE(ABORT, 'refused'); END",
            )
        else:
            execute(durable_url, "ALTER TABLE fsm_events ADD CONSTRAINT no CHECK (name <> 'bad')")
        asked = [store.commit(taking(run, event("bad"))), store.commit(taking(other, event()))]
        results = await asyncio.gather(*asked, post(store, other, event("bad", id="e2")), return_exceptions=True)
        assert [isinstance(result, StoreError) for result in results] == [True, False, True]
        assert await gapless(store, run) == 0
        assert (await settled(store, run)).posted == 0
        assert await fate(store, other) == ("accepted", 1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_crashing_store_counts_posts_as_writes(store_url: str, when: Any) -> None:
    inner = open_store(store_url)
    crashing = CrashingStore(inner, at=2, when=when)
    await crashing.open()
    run, _ = await crashing.create(new())
    assert await crashing.inbox(run) == (0, [])
    assert await crashing.event(run, "e1") is None
    assert await crashing.woken(ME, 0.0) == []
    with pytest.raises(Crash):
        await crashing.post("w", "a", event())
    assert crashing.writes == 2
    assert (await inner.inbox(run))[0] == (0 if when == "before" else 1)
    for verb in (crashing.inbox(run), crashing.event(run, "e1"), crashing.woken(ME, 0.0)):
        with pytest.raises(Crash):
            await verb
    await crashing.close()
