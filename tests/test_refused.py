"""What the database itself refuses of one run, and no repeat mends, stops that run, says why, and stops no other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from fsmworkflow import (
    Engine,
    PersistentWorkflowStateMachine,
    Refused,
    Retry,
    Run,
    RunFailed,
    To,
    Workflow,
    open_store,
)
from fsmworkflow import worker as workers
from fsmworkflow.decide import begin
from fsmworkflow.errors import NotAccepted

SECONDS = 60.0
POISON = "NEW.data LIKE '%poison%'"


class Law:
    """A rule of the user's on one of our tables, in a way that the database has: `way` is a trigger or a constraint."""

    def __init__(self, url: str, way: str) -> None:
        self.url, self.way = url, way

    async def run(self, *statements: str) -> None:
        if self.url.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as db:
                for statement in statements:
                    db.execute(statement)
                db.commit()
            return
        db = await asyncpg.connect(self.url)
        for statement in statements:
            await db.execute(statement)
        await db.close()

    async def made(self, when: str = POISON, table: str = "fsm_runs", on: str = "UPDATE") -> None:
        """From now on no row may become one of which `when` holds."""
        if self.url.startswith("sqlite"):
            says = "RAISE(ABORT, 'against the law')" if self.way == "trigger" else "json('against the law')"
            body = f"BEFORE {on} ON {table} WHEN {when} BEGIN SELECT {says}; END"
            await self.run(f"CREATE TRIGGER law {body}")
        elif self.way == "trigger":
            await self.run(
                "CREATE OR REPLACE FUNCTION law() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'against the law'; END $$",
                f"CREATE TRIGGER law BEFORE {on} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION law()",
            )
        else:
            check = when.replace("NEW.", "")
            await self.run(f"ALTER TABLE {table} ADD CONSTRAINT law CHECK (NOT ({check})) NOT VALID")

    async def repealed(self, table: str = "fsm_runs") -> None:
        if self.url.startswith("sqlite"):
            await self.run("DROP TRIGGER law")
        elif self.way == "trigger":
            await self.run(f"DROP TRIGGER law ON {table}")
        else:
            await self.run(f"ALTER TABLE {table} DROP CONSTRAINT law")

    @property
    def says(self) -> str:
        if self.url.startswith("sqlite"):
            return "against the law" if self.way == "trigger" else "malformed JSON"
        return "against the law" if self.way == "trigger" else "law"


@pytest.fixture(params=["sqlite-trigger", "sqlite-json", "postgres-trigger", "postgres-check"])
async def law(request: pytest.FixtureRequest) -> Law:
    kind, _, way = request.param.partition("-")
    url = request.getfixturevalue(f"{kind}_url")
    store = open_store(url)
    await store.open()  # so that the tables are there
    await store.close()
    return Law(url, way)


def flow(log: list[str] | None = None, **more: Any) -> Workflow:
    """Three steps. The second one of a run that is to be bad leaves behind what the law forbids."""
    made = Workflow("flow")

    @made.step(initial=True, then="second", **more)
    async def first(ctx: Any) -> None:
        ctx.data["first"] = True

    @made.step(then="third", retry=Retry(attempts=5, first_delay=0, max_delay=0))
    async def second(ctx: Any) -> None:
        if log is not None:
            log.append(ctx.run.key)
        if ctx.data["bad"]:
            ctx.data["drink"] = "poison"

    @made.step(then="end")
    async def third(ctx: Any) -> None:
        pass

    made.final("end")
    return made


async def until(what: Callable[[], Awaitable[bool]], pause: float = 0.02) -> None:
    async with asyncio.timeout(SECONDS):
        while not await what():
            await asyncio.sleep(pause)


async def unowned(engine: Engine, made: Workflow, key: str, data: dict[str, Any]) -> Run:
    """A run that was made by a process which is no more."""
    run = begin(made.check(), key, made.codec.start(data), now=engine.store.now() - 1.0)
    return (await engine.store.create(run))[0]


async def test_a_move_that_is_refused_fails_its_run_with_the_reason_and_its_neighbours_go_on(law: Law) -> None:
    await law.made()
    log: list[str] = []
    made = flow(log)
    async with Engine(law.url, workflows=[made]) as engine, asyncio.timeout(SECONDS):
        keys = [f"k{n}" for n in range(40)]
        runs = [engine.run(made, {"bad": key in ("k7", "k30")}, key=key) for key in keys]
        ends = await asyncio.gather(*runs, return_exceptions=True)
        for key, end in zip(keys, ends, strict=True):
            if key not in ("k7", "k30"):
                assert isinstance(end, Run), end
                assert end.status == "done"
                continue
            assert isinstance(end, RunFailed), end
            assert isinstance(end.__cause__, Refused)
            run = await engine.get(made, key)
            assert (run.status, run.state, run.owner) == ("failed", "second", None)
            assert run.error is not None
            assert (run.error.type, run.error.code) == ("Refused", "refused")
            assert law.says in run.error.message
            assert "drink" not in run.data
        assert log.count("k7") == 1, "its retry is for what the step raises"


async def test_a_run_that_was_refused_goes_on_once_the_cause_is_mended(law: Law) -> None:
    await law.made()
    made = flow()
    async with Engine(law.url, workflows=[made]) as engine, asyncio.timeout(SECONDS):
        with pytest.raises(RunFailed):
            await engine.run(made, {"bad": True}, key="k")
        await law.repealed()
        assert (await engine.run(made, key="k")).data["drink"] == "poison"


async def test_a_machine_raises_what_was_refused(law: Law) -> None:
    await law.made()
    machine = PersistentWorkflowStateMachine(law.url, flow(), "k", {"bad": True})
    with pytest.raises(Refused, match=law.says):
        await machine.run_workflow()
    assert machine.run is not None
    assert machine.run.status == "failed"


async def test_an_event_that_brings_what_is_refused_is_rejected_and_the_run_goes_on(law: Law) -> None:
    await law.made()

    def fill(data: Any, event: Any) -> None:
        data["drink"] = event.payload["drink"]

    order = Workflow("order")
    order.wait("open", initial=True, on={"fill": To("open", update=fill, internal=True), "close": "end"})
    order.final("end")
    async with Engine(law.url, workflows=[order]) as engine, asyncio.timeout(SECONDS):
        await engine.run(order, key="k")
        for number, drink in enumerate(("poison", "water", "poison")):  # in the commit of its move, or posted before it
            await engine.send(order, "k", "fill", {"drink": drink}, event_id=f"e{number}")

        async def taken() -> bool:
            return (await engine.event(order, "k", "e2")).status != "waiting"

        await until(taken)
        assert [(await engine.event(order, "k", f"e{n}")).status for n in range(3)] == [
            "rejected", "accepted", "rejected",
        ]  # fmt: skip
        run = await engine.get(order, "k")
        assert (run.status, run.data) == ("waiting", {"drink": "water"})
        told = [entry.detail for entry in await engine.history(order, "k") if entry.detail]
        assert len(told) == 2
        assert all(law.says in detail for detail in told)
        await engine.send(order, "k", "close")
        assert (await engine.result(order, "k")).status == "done"


async def test_a_machine_that_holds_an_entity_rejects_it_too(law: Law) -> None:
    await law.made()

    def fill(data: Any, event: Any) -> None:
        data["drink"] = event.payload["drink"]

    order = Workflow("order")
    order.wait("open", initial=True, on={"fill": To("open", update=fill, internal=True), "close": "end"})
    order.final("end")
    async with PersistentWorkflowStateMachine(law.url, order, key="k") as one, asyncio.timeout(SECONDS):
        assert (await one.send("fill", {"drink": "poison"})).status == "rejected"
        assert (await one.send("fill", {"drink": "water"})).status == "accepted"
        assert one.data == {"drink": "water"}


async def test_a_cancel_that_is_refused_is_told_and_does_not_spin(law: Law) -> None:
    await law.made("NEW.status = 'cancelled'")
    made = Workflow("made")
    made.wait("open", initial=True, on={"go": "end"})
    made.final("end")
    async with Engine(law.url, workflows=[made], poll=0.05) as engine, asyncio.timeout(SECONDS):
        await engine.run(made, key="k")
        with pytest.raises(NotAccepted):
            await engine.cancel(made, "k")
        run = await engine.get(made, "k")
        assert run.status == "waiting"
        assert run.version <= 2
        await engine.send(made, "k", "go")
        assert (await engine.result(made, "k")).status == "done"


async def test_a_remembered_call_that_is_refused_fails_the_run_and_is_made_once(law: Law) -> None:
    await law.made("NEW.result LIKE '%poison%'", "fsm_calls", "INSERT")
    paid = []

    async def pay() -> str:
        paid.append(1)
        return "poison"

    made = Workflow("made")

    @made.step(initial=True, then="end", retry=Retry(attempts=5, first_delay=0, max_delay=0))
    async def work(ctx: Any) -> None:
        await ctx.remember("pay", pay)

    made.final("end")
    async with Engine(law.url, workflows=[made]) as engine, asyncio.timeout(SECONDS):
        with pytest.raises(RunFailed) as failed:
            await engine.run(made, key="k")
        assert isinstance(failed.value.__cause__, Refused)
        assert len(paid) == 1


async def test_a_refused_end_of_an_undoing_is_listed_as_lost(law: Law) -> None:
    await law.made()
    made = Workflow("made")

    async def undo(ctx: Any) -> None:
        ctx.data["drink"] = "poison"

    @made.step(initial=True, then="pay", compensate=undo)
    async def book(ctx: Any) -> None:
        pass

    @made.step(then="end")
    async def pay(ctx: Any) -> None:
        raise OSError("no money")

    made.final("end")
    async with Engine(law.url, workflows=[made]) as engine, asyncio.timeout(SECONDS):
        with pytest.raises(RunFailed):
            await engine.run(made, key="k")
        run = await engine.get(made, "k")
        assert (run.status, [lost.state for lost in run.undo.lost]) == ("failed", ["book"])


async def test_a_step_with_rows_of_its_own_fails_too_and_leaves_none(law: Law) -> None:
    await law.run("CREATE TABLE mine (n bigint)")
    await law.made()
    made = Workflow("made")

    @made.step(initial=True, then="end")
    async def work(ctx: Any) -> None:
        ctx.data["drink"] = "poison"
        async with ctx.transaction() as db:
            await db.execute("INSERT INTO mine VALUES (1)")

    made.final("end")
    async with Engine(law.url, workflows=[made]) as engine, asyncio.timeout(SECONDS):
        with pytest.raises(RunFailed, match=law.says):
            await engine.run(made, key="k")


EVERYTHING = "NEW.key = 'bad'"


async def test_where_not_even_the_failure_can_be_written_it_is_left_for_longer_and_longer_and_others_go_on(
    law: Law, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "ASIDE", 0.1)
    bodies: list[str] = []
    made = flow(bodies)
    async with Engine(law.url, workflows=[made], poll=0.02) as engine, asyncio.timeout(SECONDS):
        await unowned(engine, made, "bad", {"bad": True})
        await law.made(f"{EVERYTHING} AND NEW.version > 1")  # after its first move: neither the next nor a failure
        began = time.monotonic()

        async def left_four_times() -> bool:
            return sum("bad is left where it is" in record.getMessage() for record in caplog.records) >= 4

        with caplog.at_level(logging.WARNING, "fsmworkflow"):
            async with engine.working(concurrency=5):
                others = await asyncio.gather(*(engine.run(made, {"bad": False}, key=f"k{n}") for n in range(20)))
                assert {run.status for run in others} == {"done"}
                await until(left_four_times)
                assert time.monotonic() - began >= 0.1 + 0.2 + 0.4, "the pauses do not grow"
                await law.repealed()

                async def over() -> bool:
                    return (await engine.get(made, "bad")).status == "done"

                await until(over)
    said = [record.getMessage() for record in caplog.records if "flow/bad" in record.getMessage()]
    assert any(law.says in text for text in said)
    assert not any("flow/k" in record.getMessage() for record in caplog.records), "neighbours are not touched"


async def test_a_claim_that_is_asked_for_just_before_a_run_is_left_alone_does_not_cut_its_pause_short(
    law: Law, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ASIDE", 0.1)
    bodies: list[str] = []
    released: list[str] = []
    made = flow(bodies)
    async with Engine(law.url, workflows=[made], poll=0.02) as engine, asyncio.timeout(SECONDS):
        release, claim = engine.store.release, engine.store.claim

        async def releases(run: Run) -> None:
            await release(run)
            released.append(run.key)

        async def claims(*asked: Any) -> Any:  # what it is not to claim was said before
            while len(bodies) > len(released):
                await asyncio.sleep(0.002)
            return await claim(*asked)

        monkeypatch.setattr(engine.store, "release", releases)
        monkeypatch.setattr(engine.store, "claim", claims)
        await unowned(engine, made, "bad", {"bad": True})
        await law.made(f"{EVERYTHING} AND NEW.version > 1")
        began = time.monotonic()

        async def tried_three_times() -> bool:
            return len(bodies) >= 3

        async with engine.working(concurrency=5):
            await until(tried_three_times)
            assert time.monotonic() - began >= 0.1 + 0.2
            await law.repealed()


async def test_a_run_that_cannot_even_be_claimed_keeps_nobody_waiting(
    law: Law, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "ASIDE", 0.1)
    made = flow()
    async with Engine(law.url, workflows=[made], poll=0.02) as engine, asyncio.timeout(SECONDS):
        await unowned(engine, made, "bad", {"bad": True})  # the oldest
        for number in range(10):
            await unowned(engine, made, f"k{number}", {"bad": False})
        await law.made(EVERYTHING)

        async def all_but_one() -> bool:
            return len(await engine.list(made, status="done")) == 10

        with caplog.at_level(logging.WARNING, "fsmworkflow"):
            async with engine.working(concurrency=3):
                await until(all_but_one)
                assert any(
                    "flow/bad" in record.getMessage() or law.says in record.getMessage() for record in caplog.records
                )
                await law.repealed()

                async def every_one() -> bool:
                    return len(await engine.list(made, status="done")) == 11

                await until(every_one)


async def test_resume_goes_on_past_a_run_that_cannot_be_claimed(law: Law) -> None:
    made = flow()
    async with Engine(law.url, workflows=[made]) as engine, asyncio.timeout(SECONDS):
        await unowned(engine, made, "bad", {"bad": True})
        for number in range(5):
            await unowned(engine, made, f"k{number}", {"bad": False})
        await law.made(EVERYTHING)
        assert await engine.resume() == 5
        assert len(await engine.list(made, status="done")) == 5


async def test_resume_leaves_no_run_claimed_that_it_does_not_drive(law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ASIDE", 0.05)
    made, go = Workflow("flow"), asyncio.Event()

    @made.step(initial=True, then="end")
    async def only(ctx: Any) -> None:
        if not ctx.data["bad"]:
            await go.wait()

    made.final("end")
    async with Engine(law.url, workflows=[made]) as engine, asyncio.timeout(SECONDS):
        await unowned(engine, made, "bad", {"bad": True, "drink": "poison"})
        await unowned(engine, made, "slow", {"bad": False})
        await law.made(f"NEW.version > 0 AND {POISON}")  # it can be claimed, and nothing can be written of it
        resuming = asyncio.create_task(engine.resume(concurrency=1))

        async def aside() -> bool:
            run = await engine.get(made, "bad")
            return run.epoch > 0 and run.owner is None and not engine.worker.stuck

        await until(aside)  # and may be claimed once more
        go.set()
        await resuming

        async def given_back() -> bool:
            return (await engine.get(made, "bad")).owner is None

        await until(given_back)


async def test_a_run_that_can_neither_go_on_nor_be_given_back_is_given_back_when_it_can(
    law: Law, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ASIDE", 0.1)
    made = flow()
    async with Engine(law.url, workflows=[made], poll=0.02) as engine, asyncio.timeout(SECONDS):
        await law.made(f"{EVERYTHING} AND NEW.version + NEW.epoch > 1 OR {EVERYTHING} AND NEW.owner IS NULL")
        with pytest.raises(Refused, match=law.says):
            await engine.run(made, {"bad": True}, key="bad")
        await law.repealed()

        async def free() -> bool:
            return (await engine.get(made, "bad")).owner is None

        await until(free)
        assert (await engine.run(made, key="bad")).status == "done"
