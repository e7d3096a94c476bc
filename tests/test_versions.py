"""Definitions that change while runs are in flight: who drives which, what is mapped, and what is left untouched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from fsmworkflow import (
    DefinitionChanged,
    DefinitionError,
    Engine,
    Event,
    PersistentWorkflowStateMachine,
    Retry,
    To,
    Transition,
    Workflow,
)
from fsmworkflow.decide import begin
from fsmworkflow.records import Entry, Run, replace
from fsmworkflow.store import Store, open_store, writer
from fsmworkflow.store.memory import MemoryStore
from fsmworkflow.testing import Clock, Crash, CrashingStore
from fsmworkflow.versions import names, seen, shifted
from tests.test_every_commit import Deaf
from tests.waiting import PATIENCE


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """An open store, that two engines of one test share."""
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


def engine(store: Any, *workflows: Workflow) -> Engine:
    return Engine(store, workflows=workflows, poll=0.02)


async def row(store: Store, flow: Workflow, key: str = "a") -> Run:
    """A run as it stands in the store, whatever an engine shows of it."""
    found = await store.load(flow.name, key)
    assert found is not None
    return found


async def told(store: Store, flow: Workflow, key: str = "a") -> list[tuple[str, str, str, str | None]]:
    """History: event, source, destination, and what else it says."""
    found: list[Entry] = await store.history(await row(store, flow, key))
    return [(entry.event, entry.source, entry.dest, entry.detail) for entry in found]


def first_version(**more: Any) -> Workflow:
    """draft -> review (waits) -> publish -> done."""
    flow = Workflow("article", **more)

    @flow.step(initial=True, then="review")
    async def draft(ctx: Any) -> None:
        ctx.data["text"] = "a draft"

    flow.wait("review", on={"approved": "publish"})

    @flow.step(then="done")
    async def publish(ctx: Any) -> None:
        ctx.data["by"] = flow.version

    flow.final("done")
    return flow


def second_version(version: int = 2, *, migrates: bool = True, **more: Any) -> Workflow:
    """draft -> check (waits) -> publish -> done: `review` has another name, and the text stands in another field."""
    flow = Workflow("article", version=version, **more)

    @flow.step(initial=True, then="check")
    async def draft(ctx: Any) -> None:
        ctx.data["body"] = "a draft"

    flow.wait("check", on={"approved": "publish"})

    @flow.step(then="done")
    async def publish(ctx: Any) -> None:
        ctx.data["by"] = flow.version
        ctx.data["words"] = len(ctx.data["body"].split())

    flow.final("done")
    if migrates:

        @flow.migrate(version - 1, to=version, states={"review": "check"})
        def up(data: dict[str, Any]) -> None:
            data["body"] = data.pop("text")

    return flow


# -- who drives which -------------------------------------------------------------------------------------------------


async def test_an_old_engine_finishes_its_own_while_a_new_one_is_there(store: Store) -> None:
    old, new = first_version(), second_version()
    async with engine(store, old) as one, engine(store, new) as two:
        assert (await one.run(old, {}, key="old")).state == "review"
        assert (await two.run(new, {}, key="new")).state == "check"
        await two.send(new, "old", "approved")  # it is held by the old one, which takes it
        assert (await two.result(new, "old")).data["by"] == 1
        await one.send(old, "new", "approved")
        assert (await one.result(old, "new")).data["by"] == 2
    assert [entry[3] for entry in await told(store, old, "old")] == [None] * 4
    assert [entry[3] for entry in await told(store, old, "new")] == [None] * 4


async def test_an_old_engine_never_claims_a_run_of_a_newer_version(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = first_version(), second_version()
    run, created = await store.create(begin(new.check(), "a", new.codec.start({}), now=store.now()))
    assert created
    async with engine(store, old) as one:
        assert await one.resume() == 0
        waiting = asyncio.create_task(one.run(old, {}, key="a"))
        sent = await one.send(old, "a", "approved")
        assert sent.status == "waiting"
        with caplog.at_level(logging.WARNING, "fsmworkflow"):
            await one.start(old, {}, key="a")
        there = await row(store, new)
        assert (there.epoch, there.version, there.definition) == (run.epoch, 0, 2)
        assert not waiting.done()
        async with engine(store, new) as two:
            assert await two.resume() == 1
            assert (await asyncio.wait_for(waiting, PATIENCE)).state == "done", "it waited for whoever drives it"
        assert (await one.get(old, "a")).data["by"] == 2
    assert any("is of version 2 of the workflow, and version 1 is here" in line for line in caplog.messages)


async def test_an_event_that_only_the_new_version_knows_is_taken_once_the_old_process_has_gone(store: Store) -> None:
    old, new = first_version(), first_version(version=2)
    new.transition("give_up", "review", "done")
    async with engine(store, old) as one, engine(store, new) as two:
        await one.run(old, {}, key="a")
        sent = await two.send(new, "a", "give_up")
        assert sent.status == "waiting"
        async with asyncio.timeout(PATIENCE):
            while (await row(store, old)).due is not None:  # until the old one has looked at it
                await asyncio.sleep(0.005)
            await one.close()
            while (await two.event(new, "a", sent.id)).status == "waiting":
                await asyncio.sleep(0.005)
        assert (await two.result(new, "a")).state == "done"
    assert (await told(store, new))[2] == ("give_up", "review", "done", "1 -> 2")


async def test_a_machine_leaves_newer_runs_alone_too(store: Store) -> None:
    old, new = first_version(), second_version()
    await store.create(begin(new.check(), "newer", new.codec.start({}), now=store.now()))
    machine = PersistentWorkflowStateMachine(store, old)
    assert (await machine.run_workflow()).key != "newer"
    assert (await row(store, old, "newer")).epoch == 0
    with pytest.raises(DefinitionChanged, match="version 2, this workflow of version 1"):
        async with PersistentWorkflowStateMachine(store, old, key="newer"):
            pass


async def test_a_rolling_deploy_moves_every_run_to_the_new_version(durable_url: str) -> None:
    old, new = first_version(), second_version()
    async with Engine(durable_url, workflows=[old]) as one:
        for number in range(20):
            await one.start(old, {}, key=f"k{number}")
        async with Engine(durable_url, workflows=[new], poll=0.02) as two:
            await one.close()
            for number in range(20):
                await two.send(new, f"k{number}", "approved")
            runs = [await asyncio.wait_for(two.result(new, f"k{n}"), PATIENCE) for n in range(20)]
    assert {(run.state, run.definition) for run in runs} == {("done", 2)}
    assert {run.data["words"] for run in runs} == {2}


# -- the next commit --------------------------------------------------------------------------------------------------


async def test_a_migration_is_written_with_the_next_move_and_history_says_so(store: Store) -> None:
    old, new = first_version(), second_version()
    async with engine(store, old) as one:
        await one.run(old, {"n": 1}, key="a")
    before = await row(store, old)
    async with engine(store, new) as two:
        run = await two.run(new, key="a")
        assert (run.state, run.data) == ("check", {"n": 1, "body": "a draft"}), "the engine shows it as it has it"
        there = await row(store, old)
        assert (run.definition, there.definition) == (2, 1)
        said = "It is of version 1 of the workflow; in version 2 it goes on in check."
        assert said in await two.explain(new, "a")
        assert (there.active, there.fields, there.version) == (before.active, before.fields, before.version)
        await two.send(new, "a", "approved")
        run = await two.result(new, "a")
        assert (run.state, run.definition) == ("done", 2)
        assert run.data == {"n": 1, "body": "a draft", "by": 2, "words": 2}
        at_publish = await two.fork(new, "a", at=2, new_key="b")
        assert at_publish.data == {"n": 1, "body": "a draft"}, "history folds over the migration"
        before = await two.fork(new, "a", at=1, new_key="c", data={"n": 5})
        assert (before.state, before.data) == ("check", {"n": 5, "body": "a draft"}), "what was before it is mapped"
        assert before.definition == 2
    assert await told(store, new) == [
        ("$start", "", "draft", None),
        ("$done", "draft", "review", None),
        ("approved", "review", "publish", "1 -> 2"),
        ("$done", "publish", "done", None),
    ]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_that_dies_around_that_commit_migrates_once(store: Store, when: Any) -> None:
    old, new = first_version(), second_version()
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    await store.post("article", "a", Event(name="approved", id="once"))
    for at in (1, 1, 1, 2):  # the first write of each is the commit that migrates, until that has been made
        crashing = CrashingStore(store, at=at, when=when)
        others = asyncio.all_tasks()
        with contextlib.suppress(Crash):
            async with engine(crashing, new) as two:
                await asyncio.wait_for(two.run(new, key="a"), PATIENCE)
        for task in asyncio.all_tasks() - others:
            task.cancel()
        await crashing.bury_the_dead()
    async with engine(store, new) as two:
        run = await asyncio.wait_for(two.run(new, key="a"), PATIENCE)
        assert (run.state, run.data["words"]) == ("done", 2)
    details = [entry[3] for entry in await told(store, new)]
    assert details == [None, None, "1 -> 2", None]


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_P11_a_commit_that_migrates_and_whose_acknowledgement_is_lost_was_made_once(
    durable_url: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.001)
    store = open_store(durable_url)
    await store.open()
    old, new = first_version(), second_version()
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    await store.post("article", "a", Event(name="approved", id="once"))
    async with engine(store, new) as two:
        deaf = Deaf(store, at)
        run = await asyncio.wait_for(two.run(new, key="a"), PATIENCE)
        deaf.leave()
        assert deaf.struck
        assert (run.state, run.data["words"]) == ("done", 2)
    assert [entry[3] for entry in await told(store, new)] == [None, None, "1 -> 2", None]
    await store.close()


async def test_a_chain_is_followed_and_a_version_without_a_migration_fits_as_it_is(store: Store) -> None:
    old = first_version()
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    new = second_version(version=5, migrates=False)
    new.migrate(4, to=5, states={"examine": "check"}, data=lambda data: {**data, "order": [*data["order"], 4]})
    new.migrate(2, to=4, states={"review": "examine"}, data=lambda data: {"body": data["text"], "order": [2]})
    async with engine(store, new) as two:
        await two.send(new, "a", "approved")
        assert (await two.result(new, "a")).data == {"body": "a draft", "order": [2, 4], "by": 5, "words": 2}
    assert (await told(store, new))[2] == ("approved", "review", "publish", "1 -> 5")


async def test_the_same_version_with_another_structure_goes_on_and_history_says_so(store: Store) -> None:
    old, new = first_version(), first_version()
    new.wait("later", on={"approved": "publish"})
    new.transition("put_off", "review", "later")
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    async with engine(store, new) as two:
        await two.send(new, "a", "put_off")
        await two.send(new, "a", "approved")
        await two.result(new, "a")
    assert [entry[3] for entry in await told(store, new)] == [None, None, "1, changed", None, None]


async def test_an_older_version_whose_states_exist_goes_on_without_a_migration(store: Store) -> None:
    old, new = first_version(), first_version(version=3)
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    async with engine(store, new) as two:
        await two.send(new, "a", "approved")
        assert (await two.result(new, "a")).data["by"] == 3
    assert (await told(store, new))[2][3] == "1 -> 3"


# -- what does not fit ------------------------------------------------------------------------------------------------


async def test_a_run_whose_state_is_gone_is_left_untouched_and_stops_no_other(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def flow(version: int, name: str) -> Workflow:
        flow = Workflow("w", version=version)

        @flow.step(initial=True, then="done")
        async def start(ctx: Any) -> None: ...

        @flow.step(name, then="done")
        async def other(ctx: Any) -> None: ...

        flow.final("done")
        flow.transition("go", "start", name)
        return flow.check()

    old, new = flow(1, "gone"), flow(2, "there")
    for key, state in (("stuck", "gone"), ("fits", "start")):
        await store.create(begin(old, key, old.codec.start({"x": 1}), now=store.now(), states=(state,)))
    before = await row(store, old, "stuck")
    async with engine(store, new) as two:
        claims = 0
        claim = store.claim

        async def counted(*args: Any) -> Any:
            nonlocal claims
            found = await claim(*args)
            claims += len(found)
            return found

        store.claim = counted  # type: ignore[method-assign]
        await two.resume()
        await two.resume()
        await two.resume()
        assert claims == 2, "each is claimed once"
        assert (await two.get(new, "fits")).state == "done"
        with pytest.raises(DefinitionChanged, match="run w/stuck is of version 1, this workflow of version 2") as error:
            await two.run(new, key="stuck")
        assert "or a migration that maps it" in str(error.value)
        with pytest.raises(DefinitionChanged):
            await asyncio.wait_for(two.cancel(new, "stuck"), PATIENCE)
    after = await row(store, old, "stuck")
    assert (after.status, after.version, after.active, after.fields) == ("running", 0, before.active, before.fields)
    assert (after.due, after.owner, after.error, after.definition) == (before.due, None, None, 1)
    with pytest.raises(DefinitionChanged):
        await PersistentWorkflowStateMachine(store, new).run_workflow()
    async with engine(store, old) as one:
        assert (await one.run(old, key="stuck")).state == "done", "the version that has the state drives it on"


async def test_an_engine_at_work_claims_once_what_does_not_fit_and_never_what_is_newer(store: Store) -> None:
    old, new, newer = first_version(), second_version(migrates=False), second_version(version=3)
    await store.create(begin(old.check(), "stuck", {}, now=1.0, states=("review",)))
    await store.create(begin(newer.check(), "newer", {}, now=1.0))
    await store.post("article", "stuck", Event(name="approved", id="e"))
    async with engine(store, new) as two, two.working():
        for key in "abc":  # each is claimed by the same look at the store that would find the others again
            await store.create(begin(new.check(), key, {}, now=1.0))
            async with asyncio.timeout(PATIENCE):
                while (await row(store, new, key)).state != "check":
                    await asyncio.sleep(0.005)
    assert (await row(store, old, "stuck")).epoch == 1
    assert (await row(store, newer, "newer")).epoch == 0


async def test_a_machine_without_a_key_passes_over_what_is_stuck(store: Store) -> None:
    old, new = first_version(), second_version(migrates=False)
    await store.create(begin(old.check(), "stuck", old.codec.start({}), now=1.0, states=("review",)))
    await store.create(begin(new.check(), "fits", new.codec.start({}), now=2.0))
    async with engine(store, old) as one:  # an event makes it due, and nobody drives it any more
        await store.post("article", "stuck", Event(name="approved", id="approved"))
        assert one is not None
    assert (await PersistentWorkflowStateMachine(store, new).run_workflow()).key == "fits"


@dataclass
class Before:
    net: float
    by: int = 0
    text: str = ""


@dataclass
class After:
    gross: float
    rate: float
    by: int = 0


def typed(version: int, kind: Any) -> Workflow:
    flow = Workflow("invoice", version=version, data=kind)
    flow.wait("open", initial=True, on={"pay": "paid"})
    flow.final("paid")
    return flow


async def test_typed_data_is_mapped_as_plain_data_and_then_decoded(store: Store) -> None:
    old, new = typed(1, Before), typed(2, After)
    new.migrate(1, to=2, data=lambda data: {"gross": data["net"] * 2, "rate": 1.0, "by": data["by"]})
    async with engine(store, old) as one:
        await one.run(old, Before(net=2.5), key="a")
    async with engine(store, new) as two:
        assert (await two.get(new, "a")).data == After(gross=5.0, rate=1.0)
        await two.send(new, "a", "pay")
        assert (await two.result(new, "a")).data == After(gross=5.0, rate=1.0)
    assert list((await row(store, new)).fields) == ["gross", "rate", "by"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "its data does not fit"),
        (lambda data: {"gross": "much", "rate": 1.0}, "its migration leaves data that does not fit"),
        (lambda data: data["missing"], "its migration from 1 to 2 raised KeyError"),
    ],
)
async def test_data_that_no_longer_decodes_is_refused_and_left_as_it_is(store: Store, data: Any, says: str) -> None:
    old, new = typed(1, Before), typed(2, After)
    if data is not None:
        new.migrate(1, to=2, data=data)
    async with engine(store, old) as one:
        await one.run(old, Before(net=2.5), key="a")
    async with engine(store, new) as two:
        with pytest.raises(DefinitionChanged, match=says):
            await two.run(new, key="a")
        sent = await two.send(new, "a", "pay")
        assert sent.status == "waiting", "it is durable, and taken once the run fits again"
        (planned,) = await two.plan_migration()
        assert (planned.stuck, planned.fits, planned.mapped) == (1, 0, 0)
        assert says in planned.reasons[0]
        assert says in await two.explain(new, "a")
    there = await row(store, old)
    assert (there.version, there.definition, there.status, there.data["net"]) == (0, 1, "waiting", 2.5)


async def test_what_a_migration_leaves_must_come_back_equal(store: Store) -> None:
    old, new = first_version(), first_version(version=2)
    new.migrate(1, to=2, data=lambda data: {"pair": (1, 2)})
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    async with engine(store, new) as two:
        with pytest.raises(DefinitionChanged, match="a tuple would come back as a list"):
            await two.run(new, key="a")


# -- visits, attempts, calls, timers, undoing -------------------------------------------------------------------------


async def test_attempts_calls_and_the_idempotency_key_follow_a_state_to_its_new_name(store: Store) -> None:
    asked: list[str] = []
    keys: list[str] = []
    attempts: list[int] = []

    async def ask(what: str) -> str:
        asked.append(what)
        return what.upper()

    def flow(version: int, name: str, *, fails: bool) -> Workflow:
        flow = Workflow("calls", version=version)

        @flow.step(name, initial=True, then="next", retry=Retry(attempts=3, first_delay=0.001))
        async def work(ctx: Any) -> None:
            keys.append(ctx.idempotency_key)
            attempts.append(ctx.attempt)
            ctx.data["answers"] = [await ctx.call(ask, "one")]
            if fails:
                raise OSError
            ctx.data["answers"].append(await ctx.call(ask, "two"))

        flow.step("next", then="done")(_nothing)
        flow.final("done")
        return flow

    old, new = flow(1, "before", fails=True), flow(2, "after", fails=False)
    new.migrate(1, to=2, states={"before": "after"})
    crashing = CrashingStore(store, at=4, when="before")  # create, remember, the first failure, and not the second
    with pytest.raises(Crash):
        async with engine(crashing, old) as one:
            await one.run(old, {}, key="a")
    await crashing.bury_the_dead()
    async with engine(store, new) as two:
        assert (await two.run(new, key="a")).data["answers"] == ["ONE", "TWO"]
    assert asked == ["one", "two"], "the first was remembered"
    assert len(set(keys)) == 1, "the key is that of the visit"
    assert attempts == [1, 2, 2]
    run = await row(store, new)
    assert await store.recall(run, "before", 0) == [], "what was remembered went with the move that ended the visit"


async def _nothing(ctx: Any) -> None:
    pass


async def test_a_timer_that_the_state_keeps_is_due_when_it_was_and_a_new_one_starts_with_the_next_move() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    await store.open()

    def flow(version: int, name: str, after: dict[str, str]) -> Workflow:
        flow = Workflow("timers", version=version)
        on = {"note": [(lambda ctx: False, "done")]}  # is asked, and leads nowhere: a move that stays
        flow.wait(name, initial=True, on=on, after=after)
        flow.final("done", "late", *(["soon"] if version == 2 else []))
        return flow

    old = flow(1, "review", {"3d": "late", "5d": "done"})
    new = flow(2, "check", {"3d": "late", "1h": "soon"})
    new.migrate(1, to=2, states={"review": "check"})
    async with Engine(store, workflows=[old]) as one:
        run = await one.run(old, {}, key="a")
        began = run.created
    clock.turn("1d")
    shift = shifted(new, await row(store, old))
    assert shift is not None
    assert shift.run.active["check"].timers == {"$after 259200": began + 3 * 86_400}
    async with Engine(store, workflows=[new]) as two:
        await two.run(new, key="a")
        assert (await two.send(new, "a", "note")).status == "rejected"  # in one commit, of the run that is held
        there = (await row(store, new)).active["check"].timers
        assert there == {"$after 3600": clock.time + 3600, "$after 259200": began + 3 * 86_400}
        assert (await row(store, new)).due == clock.time + 3600
    clock.turn("1h")
    async with Engine(store, workflows=[new]) as two:
        assert (await two.run(new, key="a")).state == "soon"


async def test_undoing_follows_a_state_to_its_new_name(store: Store) -> None:
    undone: list[str] = []

    def flow(version: int, names: tuple[str, str]) -> Workflow:
        flow = Workflow("trip", version=version)

        async def undo(ctx: Any) -> None:
            undone.append(f"{version} {ctx.state} {ctx.idempotency_key.rpartition('/trip')[2]}")

        flow.step(names[0], initial=True, then=names[1], compensate=undo)(_nothing)
        flow.wait(names[1], on={"go": "done"})
        flow.final("done")
        return flow

    old, new = flow(1, ("book", "wait_for_it")), flow(2, ("reserve", "wait"))
    new.migrate(1, to=2, states={"book": "reserve", "wait_for_it": "wait"})
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    async with engine(store, new) as two:
        await two.cancel(new, "a")
        run = await two.result(new, "a")
        assert (run.status, run.undo.lost) == ("cancelled", ())
    assert undone == ["2 reserve trip/a/book/0:undo"]
    assert [entry[3] for entry in await told(store, new)] == [None, None, "1 -> 2", "step reserve was undone"]


async def test_a_timer_that_has_struck_does_not_begin_again_in_the_next_version_and_a_new_one_begins() -> None:
    def flow(version: int) -> Workflow:
        flow = Workflow("timed", version=version)
        new: dict[str, Any] = {} if version == 1 else {"1h": "late"}
        flow.wait("open", initial=True, on={"note": To("open", internal=True), "shut": "late"},
                  after={"10s": To("open", internal=True), **new})  # fmt: skip
        flow.final("late")
        return flow

    clock = Clock(1_000.0)
    store = MemoryStore(clock=clock)
    await store.open()
    async with engine(store, flow(1)) as one:
        await one.run("timed", {}, key="a")
        clock.turn(20)
        one.roster.wake(("timed", "a"))
        assert (await one.result("timed", "a")).version == 1
    async with engine(store, flow(2)) as two:
        await two.send("timed", "a", "note")
        run = await two.result("timed", "a")
        assert run.active["open"].timers == {"$after 3600": 4_620.0}


async def test_a_run_that_is_undone_in_its_final_state_is_undone_by_the_next_version_too(store: Store) -> None:
    undone: list[int] = []

    def flow(version: int) -> Workflow:
        flow = Workflow("trip", version=version)

        async def undo(ctx: Any) -> None:
            undone.append(version)
            if version == 1:
                await asyncio.sleep(60)

        flow.step("book", initial=True, then="refused", compensate=undo)(_nothing)
        flow.final("refused", outcome="failed")
        return flow

    one = engine(store, flow(1))
    async with one:
        await one.start("trip", {}, key="a")
        while not undone:
            await asyncio.sleep(0.001)
        await one.close(grace=0)
    async with engine(store, flow(2)) as two:
        await two.resume()
        run = await two.result("trip", "a")
        assert (run.status, run.state, run.undo.lost) == ("failed", "refused", ())
    assert undone == [1, 2]


async def test_a_run_that_is_paused_stays_so_until_it_is_let_go_on(store: Store) -> None:
    old, new = first_version(), second_version()
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
        await one.pause(old, "a")
    async with engine(store, new) as two:
        assert (await two.get(new, "a")).status == "paused"
        run = await two.unpause(new, "a")
        assert (run.status, run.state) == ("waiting", "check")
    assert (await told(store, new))[-1] == ("$unpause", "review", "check", "1 -> 2")


async def test_a_state_that_waited_may_have_a_step_now_and_the_other_way_round(store: Store) -> None:
    def flow(version: int) -> Workflow:
        flow = Workflow("kinds", version=version)
        flow.wait("first", initial=True, on={"go": "last"})
        if version == 2:
            flow.wait("last", on={"end": "done"})
        else:
            flow.step("last", then="done")(_nothing)
        flow.final("done")
        return flow

    def step_first(version: int) -> Workflow:
        flow = Workflow("kinds", version=version)
        flow.step("first", initial=True, then="last")(_nothing)
        flow.step("last", then="done")(_nothing)
        flow.final("done")
        return flow

    one, two, three = flow(1), flow(2), step_first(3)
    async with engine(store, one) as first:
        await first.run(one, {}, key="a")
    await store.create(begin(one.check(), "b", {}, now=store.now(), states=("last",)))
    async with engine(store, two) as second:
        run = await second.run(two, key="b")
        assert (run.status, run.due) == ("waiting", None), "it has no step any more"
        await second.send(two, "b", "end")
        assert (await second.result(two, "b")).state == "done"
    async with engine(store, three) as third:
        assert (await third.run(three, key="a")).state == "done", "it has a step now"


def test_a_run_that_was_taken_over_and_has_no_definition_fits_without_a_word() -> None:
    flow = first_version().check()
    run = replace(begin(flow, "a", {}, now=1.0), structure="")
    assert shifted(flow, run) is None
    timed = first_version()
    timed.add(Transition(source="review", dest="done", delay="1h"))
    run = replace(begin(timed.check(), "a", {}, now=1.0, states=("review",)), structure="")
    assert shifted(timed, run) is None, "its timers are its own"


async def test_a_migration_may_return_the_data_as_its_new_type(store: Store) -> None:
    old, new = typed(1, Before), typed(2, After)
    new.migrate(1, to=2, data=lambda data: After(gross=data["net"], rate=2.0))
    async with engine(store, old) as one:
        await one.run(old, Before(net=2.5), key="a")
    async with engine(store, new) as two:
        assert (await two.get(new, "a")).data == After(gross=2.5, rate=2.0)


# -- nested and parallel states ---------------------------------------------------------------------------------------


def nested(version: int, names: dict[str, str], *, third: bool = False) -> Workflow:
    """prepare, with the regions pay and pick, each of which waits; then ship."""
    flow = Workflow("parcel", version=version)
    prep = flow.parallel(names["prepare"], initial=True, then="ship")
    for region in ("pay", "pick", *(["wrap"] if third else [])):
        inside = prep.region(names.get(region, region))
        inside.wait("open", initial=True, on={region: "closed"})
        inside.final("closed")
    flow.step("ship", then="done")(_nothing)
    flow.final("done")
    return flow.check()


async def test_regions_keep_their_visits_under_new_paths_and_a_new_one_is_entered(store: Store) -> None:
    old = nested(1, {"prepare": "prepare"})
    new = Workflow("parcel", version=2)
    new.migrate(1, to=2, states={"prepare": "ready", "prepare.pay": "ready.payment"})
    made = nested(2, {"prepare": "ready", "pay": "payment"}, third=True)
    new.add(*made.states.values(), *made.transitions)
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
        await one.send(old, "a", "pay")
    there = await row(store, old)
    assert there.state == "prepare.pay.closed, prepare.pick.open"
    seen_now = seen(new, there)
    assert seen_now.state == "ready.payment.closed, ready.pick.open, ready.wrap.open"
    visits = {state: stay.visit for state, stay in seen_now.active.items()}
    assert visits == {
        "ready": 0, "ready.payment": 0, "ready.payment.closed": 1, "ready.pick": 0, "ready.pick.open": 0,
        "ready.wrap": 2, "ready.wrap.open": 2,
    }  # fmt: skip
    async with engine(store, new) as two:
        await two.send(new, "a", "pick")
        await two.send(new, "a", "wrap")
        assert (await two.result(new, "a")).state == "done"
    details = [entry[3] for entry in await told(store, new)]
    assert details == [None, None, "1 -> 2", None, None, None]


async def test_a_parallel_state_may_become_one_state_and_one_state_a_parallel_one(store: Store) -> None:
    old = nested(1, {"prepare": "prepare"})
    flat = Workflow("parcel", version=2)
    flat.wait("pack", initial=True, on={"packed": "done"})
    flat.final("done")
    flat.migrate(1, to=2, states={"prepare": "pack"})
    async with engine(store, old) as one:
        await one.run(old, {}, key="a")
    assert seen(flat, await row(store, old)).state == "pack"
    async with engine(store, flat) as two:
        await two.send(flat, "a", "packed")
        assert (await two.result(flat, "a")).state == "done"
        await two.run(flat, {}, key="b")
    again = nested(3, {"prepare": "prepare"})
    again = _with(again, flat.migrations[0].states, lambda w: w.migrate(2, to=3, states={"pack": "prepare.pay.open"}))
    assert seen(again, await row(store, flat, "b")).state == "prepare.pay.open, prepare.pick.open"


def _with(made: Workflow, states: Any, change: Any) -> Workflow:
    flow = Workflow(made.name, version=made.version)
    flow.add(*made.states.values(), *made.transitions)
    change(flow)
    return flow.check()


def test_states_that_are_never_active_together_are_refused() -> None:
    old = nested(1, {"prepare": "prepare"})
    new = Workflow("parcel", version=2)
    new.wait("one", initial=True, on={"go": "two"})
    new.wait("two", on={"go": "done"})
    new.final("done")
    new.migrate(1, to=2, states={"prepare.pay": "one", "prepare.pick": "two"})
    run = begin(old, "a", {}, now=1.0)
    with pytest.raises(DefinitionChanged, match="its states would be 'one' and 'two', which are never active together"):
        shifted(new, run)


def test_what_is_in_a_mapped_state_moves_with_it() -> None:
    flow = Workflow("w", version=3)
    flow.migrate(1, to=2, states={"a": "b", "a.inner.deep": "c"})
    flow.migrate(2, to=3, states={"b.inner": "d"})
    assert names("a.inner.one", flow.migrations) == ["d.one", "d", "b"]
    assert names("a.inner.deep", flow.migrations) == ["c"]
    assert names("a", flow.migrations) == ["b"]
    assert names("ab", flow.migrations) == ["ab"]


# -- planning and checking --------------------------------------------------------------------------------------------


async def test_a_plan_counts_what_fits_is_mapped_or_stuck_and_writes_nothing(store: Store) -> None:
    old, new = first_version(), second_version(migrates=False)
    new.migrate(1, to=2, states={"review": "check"}, data=lambda data: {"body": data["text"]})
    for number in range(3):
        run = begin(old.check(), f"r{number}", old.codec.start({"text": "t"}), now=1.0, states=("review",))
        await store.create(run)
    await store.create(begin(old, "no text", old.codec.start({}), now=1.0, states=("review",)))
    await store.create(begin(old, "over", old.codec.start({}), now=1.0, states=("done",)))
    await store.create(begin(new.check(), "new", new.codec.start({}), now=1.0))
    newer = second_version(version=7)
    await store.create(begin(newer.check(), "newer", newer.codec.start({}), now=1.0))
    before = await store.list(workflow=None, status=None, state=None, after=0, many=100)
    async with engine(store, new) as two:
        plan = await two.plan_migration(new)
        assert plan == await two.plan_migration()
    told = [(p.version, p.state, p.to, p.becomes, p.fits, p.mapped, p.stuck) for p in plan]
    assert (2, "draft", 2, "draft", 1, 0, 0) in told
    assert (1, "review", 2, "check", 0, 3, 0) in told
    assert (1, "review", 2, "", 0, 0, 1) in told
    assert (7, "draft", 2, "", 0, 0, 1) in told
    text = str(plan)
    assert "article   1 -> 2   review  check    0    3       0" in text
    assert "stuck in review: its migration from 1 to 2 raised KeyError: 'text'" in text
    assert await store.list(workflow=None, status=None, state=None, after=0, many=100) == before


@pytest.mark.parametrize(
    ("migrations", "problem"),
    [
        ([(1, 3, {})], "migration from 1 to 3: this workflow is of version 2"),
        ([(2, 2, {})], "migration from 2 to 2: it must lead from a version, 1 or more, to a newer one"),
        ([(0, 1, {})], "migration from 0 to 1: it must lead from a version, 1 or more, to a newer one"),
        ([("1", 2, {})], "migration from '1' to 2: it must lead from a version, 1 or more, to a newer one"),
        ([(1, 2, {}), (1, 2, {})], "migration from 1 to 2: there is another one from version 1"),
        (
            [(1, 2, {"old": "chek"})],
            "migration from 1 to 2, 'old': there is no state 'chek' (did you mean 'check'?)",
        ),
        ([(1, 2, {"old": "done"})], "'done' is final, and a run ends by an event, not by being migrated"),
    ],
)
def test_a_bad_migration_is_found_when_the_workflow_is_checked(migrations: Any, problem: str) -> None:
    flow = second_version(migrates=False)
    for version, to, states in migrations:
        flow.migrate(version, to=to, states=states)
    with pytest.raises(DefinitionError) as error:
        flow.check()
    assert problem in str(error.value)


async def _async(data: Any) -> None: ...


@pytest.mark.parametrize(("data", "problem"), [(_async, "is async"), (lambda: None, "the data"), (7, "no function")])
def test_a_migration_of_data_is_a_plain_function_of_one_argument(data: Any, problem: str) -> None:
    flow = second_version(migrates=False)
    flow.migrate(1, to=2, data=data)
    with pytest.raises(DefinitionError, match=problem):
        flow.check()


def test_a_target_that_a_later_migration_renames_is_no_problem() -> None:
    flow = second_version(version=3, migrates=False)
    flow.migrate(1, to=2, states={"review": "examine"})
    flow.migrate(2, to=3, states={"examine": "check"})
    assert flow.check() is flow
    with pytest.raises(DefinitionError, match="immutable"):
        flow.migrate(1, to=2)
