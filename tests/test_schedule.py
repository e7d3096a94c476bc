"""Schedules: which times a calendar means, and that each of them starts one run, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import sys
import time
from collections.abc import AsyncIterator
from itertools import pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmworkflow import CodecError, Engine, FSMWorkflowError, Run, RunOver, Store, Workflow, open_store
from fsmworkflow.errors import ScheduleNotFound
from fsmworkflow.records import Event, replace
from fsmworkflow.schedule import CHUNK, Schedule, due, ticks
from fsmworkflow.testing import Clock, Crash, CrashingStore
from tests.waiting import PATIENCE, until

BERLIN = ZoneInfo("Europe/Berlin")
START = dt.datetime(2025, 6, 1, 12, tzinfo=BERLIN).timestamp()
NIGHTLY: dict[str, Any] = {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}
DAY = 86_400.0


def berlin(*parts: int, fold: int = 0) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=BERLIN, fold=fold)  # type: ignore[arg-type, misc]


def texts(cron: str, after: dt.datetime, many: int, timezone: str = "Europe/Berlin") -> list[str]:
    found = ticks(cron, timezone, after.timestamp())
    return [next(found).isoformat() for _ in range(many)]


# -- the calendar -----------------------------------------------------------------------------------------------------


def test_a_time_that_the_clocks_leap_over_comes_right_after_the_leap() -> None:
    assert texts("30 2 * * *", berlin(2025, 3, 29, 0), 3) == [
        "2025-03-29T02:30:00+01:00",
        "2025-03-30T03:00:00+02:00",
        "2025-03-31T02:30:00+02:00",
    ]


def test_a_time_that_the_clocks_repeat_comes_once() -> None:
    assert texts("30 2 * * *", berlin(2025, 10, 25, 12), 2) == [
        "2025-10-26T02:30:00+02:00",
        "2025-10-27T02:30:00+01:00",
    ]
    in_the_repeated_hour = berlin(2025, 10, 26, 2, 10, fold=1)
    assert texts("30 2 * * *", in_the_repeated_hour, 1) == ["2025-10-27T02:30:00+01:00"]


def test_what_comes_every_half_hour_goes_by_real_time_over_both_changes() -> None:
    for day in (berlin(2025, 3, 30), berlin(2025, 10, 26)):
        found = [dt.datetime.fromisoformat(text) for text in texts("*/30 * * * *", day, 12)]
        times = [tick.timestamp() for tick in found]
        assert {later - sooner for sooner, later in pairwise(times)} == {1_800.0}
        assert len({tick.isoformat() for tick in found}) == 12


CRONS = [
    "30 2 * * *",
    "0 3 * * *",
    "*/30 * * * *",
    "15 1-3 * * 7",
    "0 0 1 * *",
    "59 23 29 2 *",
    "5,35 2,3 * * *",
    "0 */2 * * *",
]
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kathmandu", "America/St_Johns"]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(CRONS), st.sampled_from(ZONES), st.integers(0, 366 * 24 * 60), st.integers(0, 3 * 24 * 60))
def test_the_next_tick_is_the_same_from_wherever_one_looks(cron: str, zone: str, start: int, later: int) -> None:
    """So a restarted process waits for the same one; and each comes strictly after the one before."""
    first = dt.datetime(2025, 1, 1, tzinfo=dt.UTC).timestamp() + start * 60
    until = first + later * 60
    walked = [t.timestamp() for t in takewhile(lambda t: t.timestamp() <= until, ticks(cron, zone, first))]
    assert walked == sorted(set(walked))
    looked = next(ticks(cron, zone, until))
    walking = ticks(cron, zone, first)
    assert next(t for t in walking if t.timestamp() > until) == looked


@pytest.mark.parametrize("cron", ["", "* * * *", "0 0 3 * * *", "61 * * * *", "@daily", "0 0 30 2 *", "a b c d e"])
def test_what_is_no_cron_expression_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="is no cron expression of five fields"):
        ticks(cron, "UTC", 0.0)


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../../etc/passwd", "Europe", "\0"])
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        ticks("0 3 * * *", zone, 0.0)


def plan(**words: Any) -> Schedule:
    known: dict[str, Any] = {**NIGHTLY, "missed": "one", "overlap": "skip", "next": berlin(2025, 6, 2, 3)}
    return Schedule(name="n", workflow="w", data=None, last=None, status="waiting", **{**known, **words})


def test_nothing_starts_before_its_time() -> None:
    assert due(plan(), berlin(2025, 6, 2, 2, 59).timestamp()) == ([], berlin(2025, 6, 2, 3))
    assert due(plan(next=None), 9e9) == ([], None)


@pytest.mark.parametrize("missed", ["one", "skip", "all"])
def test_a_tick_that_is_met_starts_its_run(missed: str) -> None:
    for late in (0, 0.5, 59):
        now = berlin(2025, 6, 2, 3).timestamp() + late
        assert due(plan(missed=missed), now) == ([berlin(2025, 6, 2, 3)], berlin(2025, 6, 3, 3))


def test_of_missed_ticks_one_starts_the_last_skip_none_and_all_each() -> None:
    now = berlin(2025, 6, 5, 9).timestamp()
    nights = [berlin(2025, 6, day, 3) for day in (2, 3, 4, 5)]
    assert due(plan(missed="one"), now) == ([nights[-1]], berlin(2025, 6, 6, 3))
    assert due(plan(missed="skip"), now) == ([], berlin(2025, 6, 6, 3))
    assert due(plan(missed="all", overlap="allow"), now) == (nights, berlin(2025, 6, 6, 3))


def test_skip_starts_the_tick_that_it_meets_although_it_has_missed_others() -> None:
    now = berlin(2025, 6, 5, 3).timestamp() + 1
    assert due(plan(missed="skip"), now) == ([berlin(2025, 6, 5, 3)], berlin(2025, 6, 6, 3))


def test_very_many_missed_ticks_are_started_in_pieces() -> None:
    found, following = due(plan(missed="all", cron="* * * * *"), berlin(2025, 6, 2, 12).timestamp())
    assert (len(found), found[0], following) == (CHUNK, berlin(2025, 6, 2, 3), berlin(2025, 6, 2, 4, 40))


def test_ten_years_of_missed_minutes_are_passed_over_at_once() -> None:
    began = time.process_time()
    found, following = due(plan(cron="* * * * *"), berlin(2035, 6, 2, 3, 0).timestamp() + 30)
    assert (found, following) == ([berlin(2035, 6, 2, 3)], berlin(2035, 6, 2, 3, 1))
    assert time.process_time() - began < 1
    found, _ = due(plan(cron="0 3 2 6 *"), berlin(2035, 6, 1, 3).timestamp())
    assert found == [berlin(2034, 6, 2, 3)]


# -- the runs ---------------------------------------------------------------------------------------------------------


class Reports:
    """A workflow that notes which of its runs ran, a store of any kind, and a clock for it that the test turns."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.ran: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.workflow = self.make()

    def make(self) -> Workflow:
        report = Workflow("report")

        @report.step(initial=True, then="done")
        async def write(ctx: Any) -> None:
            self.ran.append(ctx.run.key)
            await self.gate.wait()
            ctx.data["written"] = ctx.data.get("pages")

        report.final("done")
        return report

    def engine(self, store: Store | None = None) -> Engine:
        return Engine(store or self.store, workflows=[self.make()], poll=0.01, lease=100 * DAY)  # no turn ends it

    async def turn(self, engine: Engine, by: str, name: str = "nightly") -> Schedule:
        """Turn the clock, and wait until the schedule has seen to what is due."""
        self.clock.turn(by)
        return await self.seen(engine, name)

    async def seen(self, engine: Engine, name: str = "nightly") -> Schedule:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            (found,) = [one for one in await engine.schedules() if one.name == name]
            assert found.next is not None
            if found.next.timestamp() > self.clock() and found.status == "waiting":
                while self.gate.is_set() and await engine.list("report", status="running", limit=1):  # of any age
                    await asyncio.sleep(0.005)
                return found
            await asyncio.sleep(0.005)
        raise AssertionError(f"{found} does not see what is due at {self.clock()}")


@contextlib.asynccontextmanager
async def turning(url: str, clock: Clock) -> AsyncIterator[Store]:
    """An open store that goes by this clock. On PostgreSQL it is the server's: there the store is told another one."""
    store = open_store(url) if url.startswith("postgres") else open_store(url, clock=clock)
    if url.startswith("postgres"):
        store.now = clock  # type: ignore[method-assign]
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def reports(store_url: str) -> AsyncIterator[Reports]:
    clock = Clock(max(START, time.time()) if store_url.startswith("postgres") else START)
    if store_url.startswith("postgres"):  # a lease must not lie in the server's past
        today = dt.datetime.fromtimestamp(clock(), BERLIN).replace(hour=12, minute=0, second=0, microsecond=0)
        clock.time = (today + dt.timedelta(days=1)).timestamp()
    async with turning(store_url, clock) as store:
        yield Reports(store, clock)


def nights(reports: Reports, first: int, last: int, *, since: float | None = None) -> list[str]:
    """The keys of some nights, counted from the day on which the test began."""
    day = dt.datetime.fromtimestamp(reports.clock() if since is None else since, BERLIN)
    found = [day.replace(hour=3, minute=0) + dt.timedelta(days=n) for n in range(first, last + 1)]
    return [f"nightly/{night.isoformat()}" for night in found]


async def test_each_tick_starts_one_run_with_the_data_under_its_own_key(reports: Reports) -> None:
    expected = nights(reports, 1, 3)
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", data={"pages": 3}, **NIGHTLY)
        assert f"nightly/{made.next.isoformat() if made.next else None}" == expected[0]
        await reports.turn(engine, "10h")
        assert reports.ran == []
        for _ in range(3):
            seen = await reports.turn(engine, "1d")
        assert reports.ran == expected
        assert seen.last == expected[-1]
        for key in expected:
            run = await engine.get("report", key)
            assert (run.status, run.data) == ("done", {"pages": 3, "written": 3})


async def test_the_same_schedule_given_again_changes_nothing(reports: Reports, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "fsmworkflow")
    async with reports.engine() as engine:
        first = await engine.schedule("nightly", "report", data={"a": 1}, **NIGHTLY)
        version = (await engine.get(*first.address)).version
        again = await asyncio.gather(
            *(engine.schedule("nightly", "report", data={"a": 1}, **NIGHTLY) for _ in range(5))
        )
        assert all((one.next, one.cron, one.data) == (first.next, first.cron, first.data) for one in again)
        seen = await reports.seen(engine)
        assert seen == replace(first, status="waiting")
        assert version <= (await engine.get(*first.address)).version <= 1
    assert "changed" not in caplog.text


async def test_another_calendar_changes_the_schedule_and_says_so_without_the_data(
    reports: Reports, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "fsmworkflow")
    async with reports.engine() as engine:
        await engine.schedule("nightly", "report", data={"secret": "s3cr3t"}, **NIGHTLY)
        changed = await engine.schedule("nightly", "report", cron="0 4 * * *", timezone="Europe/Berlin")
        assert changed.next is not None
        assert (changed.cron, changed.next.hour, changed.data) == ("0 4 * * *", 4, None)
        await reports.turn(engine, "1d")
        await reports.turn(engine, "1d")
    assert [key[-14:-6] for key in reports.ran] == ["04:00:00", "04:00:00"]
    assert "cron='0 3 * * *'" in caplog.text
    assert "cron='0 4 * * *'" in caplog.text
    assert "s3cr3t" not in caplog.text


async def test_a_schedule_changed_there_and_back_goes_on(reports: Reports) -> None:
    async with reports.engine() as engine:
        for hour in (3, 4, 3, 4, 3):
            await engine.schedule("nightly", "report", cron=f"0 {hour} * * *", timezone="Europe/Berlin")
            await reports.seen(engine)
        await reports.turn(engine, "1d")
        made = await reports.turn(engine, "1d")
        end = time.monotonic() + PATIENCE  # what was posted for the other calendar is spent, and is not posted again
        while len((await engine.store.inbox(await engine.get(*made.address)))[1]) > 1:
            assert time.monotonic() < end
            await asyncio.sleep(0.005)
    assert [key[-14:-6] for key in reports.ran] == ["03:00:00", "03:00:00"]


async def test_a_schedule_changed_back_while_it_still_sees_to_the_change_is_changed_back(reports: Reports) -> None:
    """What this engine knows of a run that it drives may be older than the change."""
    async with reports.engine() as engine:
        await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        post, posted, go = engine.store.post, list[str](), asyncio.Event()

        async def held(workflow: str, key: str, event: Event) -> Event:
            posted.append(event.name)
            if event.name == "tick":
                await go.wait()
            return await post(workflow, key, event)

        engine.store.post = held  # type: ignore[method-assign]
        await engine.schedule("nightly", "report", cron="0 4 * * *", timezone="Europe/Berlin")
        await until(lambda: "tick" in posted)
        posted.clear()
        back = asyncio.create_task(engine.schedule("nightly", "report", **NIGHTLY))
        await until(lambda: back.done() or "change" in posted)
        go.set()
        assert (await asyncio.wait_for(back, PATIENCE)).cron == "0 3 * * *"
        await reports.turn(engine, "1d")
    assert [key[-14:-6] for key in reports.ran] == ["03:00:00"]


async def test_a_removed_schedule_starts_nothing_and_may_be_made_again(reports: Reports) -> None:
    async with reports.engine() as engine:
        await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.turn(engine, "1d")
        await engine.unschedule("nightly")
        assert await engine.schedules() == []
        reports.clock.turn("3d")
        await asyncio.sleep(0.05)
        with pytest.raises(ScheduleNotFound, match="no schedule 'nightly'"):
            await engine.unschedule("nightly")
        assert len(reports.ran) == 1
        expected = nights(reports, 1, 1)
        await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.turn(engine, "1d")
    assert reports.ran[1:] == expected


async def test_what_a_paused_schedule_missed_goes_by_missed_when_it_goes_on(reports: Reports) -> None:
    expected = nights(reports, 4, 4)
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        await engine.pause(*made.address)
        assert [one.status for one in await engine.schedules()] == ["paused"]
        reports.clock.turn("4d")
        await asyncio.sleep(0.05)
        assert reports.ran == []
        await engine.unpause(*made.address)
        await reports.seen(engine)
    assert reports.ran == expected


async def test_a_schedule_that_is_changed_while_it_is_paused_is_told_when_it_goes_on(reports: Reports) -> None:
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        await engine.pause(*made.address)
        paused = await asyncio.wait_for(
            engine.schedule("nightly", "report", cron="0 4 * * *", timezone="Europe/Berlin"), PATIENCE
        )
        assert (paused.status, paused.cron) == ("paused", "0 3 * * *")
        await engine.unpause(*made.address)

        async def told() -> bool:  # in a move of its own
            return (await reports.seen(engine)).cron == "0 4 * * *"

        await until(told)
        await reports.turn(engine, "1d")
    assert [key[-14:-6] for key in reports.ran] == ["04:00:00"]


async def test_a_paused_schedule_that_is_removed_starts_nothing_more(reports: Reports) -> None:
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        await engine.pause(*made.address)
        reports.clock.turn("4d")
        await engine.unschedule("nightly")
        await asyncio.sleep(0.05)
        assert reports.ran == []


async def test_a_tick_is_passed_over_while_the_run_before_goes_on(reports: Reports) -> None:
    expected = nights(reports, 1, 3)
    async with reports.engine() as engine:
        await engine.schedule("nightly", "report", **NIGHTLY)
        reports.gate.clear()
        await reports.turn(engine, "1d")
        await reports.turn(engine, "1d")
        reports.gate.set()
        await engine.result("report", expected[0])
        await reports.turn(engine, "1d")
    assert reports.ran == [expected[0], expected[2]]


async def test_with_allow_runs_of_several_ticks_go_on_together(reports: Reports) -> None:
    expected = nights(reports, 1, 2)
    async with reports.engine() as engine:
        await engine.schedule("nightly", "report", overlap="allow", **NIGHTLY)
        reports.gate.clear()
        await reports.turn(engine, "1d")
        await reports.turn(engine, "1d")
        await until(lambda: reports.ran == expected)
        reports.gate.set()


async def test_all_starts_every_missed_tick_after_the_process_was_away(reports: Reports) -> None:
    words: dict[str, Any] = {"cron": "*/10 * * * *", "missed": "all", "overlap": "allow"}
    async with reports.engine() as engine:
        await engine.schedule("often", "report", **words)
    reports.clock.turn("1d")
    async with reports.engine() as engine:
        await engine.schedule("often", "report", **words)
        await reports.seen(engine, "often")
    assert len(reports.ran) == len(set(reports.ran)) == 144


async def test_a_clock_that_goes_back_does_not_stop_a_schedule(reports: Reports, monkeypatch: Any) -> None:
    """The tick was met by a clock that was fast: it is waited for once more, and starts its run once."""
    expected = nights(reports, 1, 2)
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        with monkeypatch.context() as patch:

            def too_early(plan: Schedule, now: float) -> Any:
                assert plan.next is not None
                if plan.next.timestamp() <= now:
                    reports.clock.time = plan.next.timestamp() - 10
                return due(plan, reports.clock())

            patch.setattr("fsmworkflow.schedule.due", too_early)
            reports.clock.turn("1d")
            end = time.monotonic() + PATIENCE
            while (await engine.get(*made.address)).version < 3:
                assert time.monotonic() < end
                await asyncio.sleep(0.005)
        assert reports.ran == []
        await reports.turn(engine, "20s")
        await reports.turn(engine, "1d")
    assert reports.ran == expected


async def test_an_engine_that_is_closed_while_a_tick_starts_its_run_leaves_both_to_the_next(
    reports: Reports, monkeypatch: Any
) -> None:
    expected = nights(reports, 1, 1)
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        create, created = engine.store.create, asyncio.Event()

        async def then_closing(run: Run) -> Any:
            there = await create(run)
            engine.worker.stopping = True
            created.set()
            return there

        with monkeypatch.context() as patch:
            patch.setattr(engine.store, "create", then_closing)
            reports.clock.turn("1d")
            await asyncio.wait_for(created.wait(), PATIENCE)
            await engine.close()
    async with reports.engine() as engine:
        assert (await engine.get(*made.address)).status == "waiting"
        await engine.resume()
        await reports.seen(engine)
    assert reports.ran == expected


async def test_an_engine_that_works_comes_to_the_runs_in_their_turn(reports: Reports) -> None:
    words: dict[str, Any] = {"cron": "*/10 * * * *", "missed": "all", "overlap": "allow"}
    async with reports.engine() as engine:
        await engine.schedule("often", "report", **words)
    reports.clock.turn("8h")
    reports.gate.clear()
    async with reports.engine() as engine, engine.working(concurrency=3):
        end = time.monotonic() + PATIENCE
        while len(await engine.list("report")) < 48:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(reports.ran) <= 3
        reports.gate.set()
        while len(await engine.list("report", status="done")) < 48:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
    assert len(set(reports.ran)) == 48


async def test_a_restarted_process_takes_the_schedule_up_and_starts_what_was_missed_once(reports: Reports) -> None:
    expected = nights(reports, 2, 2)
    async with reports.engine() as engine:
        await engine.schedule("nightly", "report", **NIGHTLY)
    reports.clock.turn("2d")
    async with reports.engine() as engine:
        assert await engine.resume() >= 1
        await reports.seen(engine)
    assert reports.ran == expected


async def test_many_engines_that_schedule_the_same_start_one_run_a_tick(reports: Reports) -> None:
    expected = nights(reports, 1, 3)
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(reports.engine()) for _ in range(4)]
        await asyncio.gather(*(engine.schedule("nightly", "report", **NIGHTLY) for engine in engines))
        for _ in range(3):
            await reports.turn(engines[0], "1d")
        assert len(await engines[1].list("report")) == 3
    assert reports.ran == expected


async def test_an_engine_that_does_not_know_the_workflow_leaves_its_schedules_alone(reports: Reports) -> None:
    async with reports.engine() as engine:
        await engine.schedule("nightly", "report", **NIGHTLY)
    reports.clock.turn("1d")
    other = Workflow("other")
    other.wait("rest", initial=True, on={"go": "end"})
    other.final("end")
    async with Engine(reports.store, workflows=[other], poll=0.01) as engine:
        assert await engine.resume() == 0
        assert await engine.schedules() == []
    assert reports.ran == []


async def test_a_schedule_of_one_name_moves_to_another_workflow(reports: Reports) -> None:
    other = Workflow("other")
    other.final("end")
    other.choice("start", "end", initial=True)
    async with Engine(reports.store, workflows=[reports.workflow, other], poll=0.01) as engine:
        await engine.schedule("nightly", "report", **NIGHTLY)
        await engine.schedule("nightly", "other", **NIGHTLY)
        assert [one.workflow for one in await engine.schedules()] == ["other"]
        await reports.turn(engine, "1d")
        assert len(await engine.list("other")) == 1
    assert reports.ran == []


async def test_data_of_a_type_is_checked_when_it_is_scheduled_and_comes_as_that_type(reports: Reports) -> None:
    @dataclasses.dataclass
    class Order:
        at: dt.date
        pages: int = 1

    seen: list[Any] = []
    typed = Workflow("typed", data=Order)

    @typed.step(initial=True, then="done")
    async def write(ctx: Any) -> None:
        seen.append(ctx.data)

    typed.final("done")
    async with Engine(reports.store, workflows=[typed], poll=0.01) as engine:
        with pytest.raises(CodecError):
            await engine.schedule("nightly", typed, data={"pages": "many"}, **NIGHTLY)
        assert await engine.schedules() == []
        await engine.schedule("nightly", typed, data=Order(dt.date(2025, 1, 2), 3), **NIGHTLY)
        reports.clock.turn("1d")
        end = time.monotonic() + PATIENCE
        while not seen and time.monotonic() < end:
            await asyncio.sleep(0.005)
    assert seen == [Order(dt.date(2025, 1, 2), 3)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"cron": "no"}, "is no cron expression"),
        ({"timezone": "Mars"}, "there is no time zone"),
        ({"missed": "some"}, "missed must be one of one, skip, all"),
        ({"overlap": "some"}, "overlap one of skip, allow"),
        ({"missed": "all"}, "say overlap='allow'"),
    ],
)
async def test_words_that_mean_nothing_are_refused_and_nothing_is_made(words: dict[str, Any], says: str) -> None:
    async with Engine("memory://", workflows=[Reports(open_store("memory://"), Clock()).workflow]) as engine:
        with pytest.raises(ValueError, match=says):
            await engine.schedule("nightly", "report", **{**NIGHTLY, **words})
        for name in ("", "x" * 190):
            with pytest.raises(ValueError, match=r"characters long|not empty"):
                await engine.schedule(name, "report", **NIGHTLY)
        assert await engine.list() == []


async def test_without_the_library_the_error_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    async with Engine("memory://", workflows=[Reports(open_store("memory://"), Clock()).workflow]) as engine:
        with pytest.raises(FSMWorkflowError, match=r"fsmworkflow\[schedule\]"):
            await engine.schedule("nightly", "report", **NIGHTLY)


async def test_a_schedule_whose_run_was_cancelled_says_so(reports: Reports) -> None:
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", **NIGHTLY)
        await engine.cancel(*made.address)
        assert await engine.schedules() == []
        with pytest.raises(RunOver, match="is cancelled"):
            await engine.schedule("nightly", "report", cron="0 4 * * *")


async def test_a_schedule_that_failed_is_mended_by_giving_it_again(reports: Reports, monkeypatch: Any) -> None:
    async with reports.engine() as engine:
        made = await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        with monkeypatch.context() as patch:
            patch.setattr("fsmworkflow.schedule.due", lambda *_: 1 / 0)
            reports.clock.turn("1d")
            end = time.monotonic() + PATIENCE
            while (await engine.get(*made.address)).status != "failed":
                assert time.monotonic() < end
                await asyncio.sleep(0.005)
        assert [one.status for one in await engine.schedules()] == ["failed"]
        expected = nights(reports, 1, 1)
        await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.turn(engine, "1d")
    assert reports.ran == expected


async def test_a_schedule_keeps_its_start_and_its_last_moves(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsmworkflow.schedule.KEPT", 6)
    monkeypatch.setattr("fsmworkflow.schedule.TRIMMED", 4)
    expected = nights(reports, 1, 12)
    async with reports.engine() as engine:
        address = (await engine.schedule("nightly", "report", **NIGHTLY)).address
        for night in range(12):
            if night == 8:
                await engine.pause(*address)
                await engine.unpause(*address)
            await reports.turn(engine, "1d")
        versions = [entry.version for entry in await engine.history(*address)]
        last = (await engine.get(*address)).version
        assert last > 24
        assert versions == [0, *range(versions[1], last + 1)]
        assert 6 <= last - versions[1] < 12
        assert "is waiting in state waiting" in await engine.explain(*address)
        with pytest.raises(ValueError, match="has forgotten its old moves"):
            await engine.fork(*address, new_key="other")
        events = await engine.list("report")
        await engine.unschedule("nightly")
        assert await engine.schedules() == []
    assert [run.key for run in events] == reports.ran == expected


@pytest.mark.parametrize("when", ["before", "after"])
async def test_P7_a_crash_at_any_write_leaves_one_run_for_every_tick(
    reports: Reports, when: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nights, crashed at the n-th write, and what was left taken up by a restarted process."""
    monkeypatch.setattr("fsmworkflow.schedule.KEPT", 1)  # so that old moves go, too
    monkeypatch.setattr("fsmworkflow.schedule.TRIMMED", 2)
    began = reports.clock()
    for at in range(1, 60):
        await reports.store.reset()
        reports.ran.clear()
        reports.clock.time = began
        crashing = CrashingStore(reports.store, at=at, when=when)
        others = asyncio.all_tasks()
        with contextlib.suppress(Crash):
            await asyncio.wait_for(_two_nights(reports, crashing), PATIENCE)
        for task in asyncio.all_tasks() - others:
            task.cancel()
            await asyncio.wait([task])
        await crashing.bury_the_dead()
        if reports.clock() == began:
            reports.clock.turn("1d")
        async with reports.engine() as engine:
            await engine.resume()
            await engine.schedule("nightly", "report", **NIGHTLY)
            while reports.clock() < began + 2 * DAY:
                await reports.turn(engine, "1d")
            await reports.seen(engine)
            keys = [run.key for run in await engine.list("report")]
        last = nights(reports, 2, 2, since=began)
        assert keys[-1:] == last, (at, when, keys)
        assert set(keys) <= set(nights(reports, 1, 2, since=began))
        assert len(keys) == len(set(keys))
        if not crashing.crashed:
            assert at > 10
            return
    raise AssertionError("two nights need more than 60 writes")


async def _two_nights(reports: Reports, store: CrashingStore) -> None:
    async with reports.engine(store) as engine:
        await engine.schedule("nightly", "report", **NIGHTLY)
        await reports.seen(engine)
        for _ in range(2):
            await reports.turn(engine, "1d")
