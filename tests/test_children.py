"""Children and fan-out as a user meets them, on every store: results, failures, cancelling, resting, and crashes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import (
    DefinitionError,
    Engine,
    Event,
    PersistentWorkflowStateMachine,
    Retry,
    RunFailed,
    To,
    Workflow,
    field,
    open_store,
)
from fsmworkflow.decide import decide
from fsmworkflow.errors import ChildFailed, NotAccepted, RunOver
from fsmworkflow.store import Store
from fsmworkflow.testing import Crash, CrashingStore
from tests.children import launched
from tests.waiting import PATIENCE, until


@pytest.fixture
async def store(store_url: str) -> Any:
    """An open store that both engines of a test share where it lives in memory."""
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


def engine(store: Store, *workflows: Workflow, poll: float = 0.03) -> Engine:
    return Engine(store, workflows=workflows, poll=poll)


class World:
    """What the children of a test really do: how often each began, how many at once, and which are to fail or wait."""

    def __init__(self) -> None:
        self.begun: Counter[Any] = Counter()
        self.at_once = self.most = 0
        self.fails: set[Any] = set()
        self.holds: dict[Any, asyncio.Event] = {}
        self.undone: list[Any] = []

    async def work(self, item: Any) -> None:
        self.begun[item] += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0)
            if item in self.holds:
                await self.holds[item].wait()
            if item in self.fails:
                raise ValueError(f"no {item}")
        finally:
            self.at_once -= 1


def square(world: World, name: str = "square", **step: Any) -> Workflow:
    """One step: item -> its square."""
    flow = Workflow(name)

    @flow.step(initial=True, then="end", **step)
    async def work(ctx: Any) -> None:
        await world.work(ctx.data["item"])
        ctx.data["square"] = ctx.data["item"] ** 2

    flow.final("end")
    return flow


def squares(world: World, child: Workflow | None = None, **each: Any) -> Workflow:
    """prepare -> all (one child an item) -> end."""
    flow = Workflow("squares")

    @flow.step(initial=True, then="all")
    async def prepare(ctx: Any) -> None:
        pass

    each = {"over": field("items"), "into": "squares", "then": "end", "concurrency": 2, **each}
    flow.each("all", child or square(world), **each)
    flow.final("end")
    if "'other'" in repr(each):
        flow.final("other")
    return flow


def names(run: Any) -> list[int]:
    return [one["square"] for one in run.data["squares"]]


# -- results ----------------------------------------------------------------------------------------------------------


async def test_each_item_has_a_child_and_their_data_come_back_in_order(store: Store) -> None:
    world = World()
    flow = squares(world)
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": [3, 1, 2, 5, 4]}, key="k")
        assert (run.status, run.state) == ("done", "end")
        assert run.data["squares"] == [{"item": n, "index": i, "square": n * n} for i, n in enumerate([3, 1, 2, 5, 4])]
        assert world.begun == Counter([1, 2, 3, 4, 5])
        assert world.most <= 2
        assert [entry.event for entry in await e.history(flow, "k")] == ["$start", "$done", "$joined"]
        child = await e.get("square", "k/all/1/3")
        assert (child.status, child.data["square"]) == ("done", 25)
        assert [entry.event for entry in await e.history("square", "k/all/1/3")] == ["$start", "$done"]


async def test_so_many_run_at_once_as_concurrency_says(store: Store) -> None:
    world = World()
    world.holds = {n: asyncio.Event() for n in range(6)}
    flow = squares(world, concurrency=3)
    async with engine(store, flow) as e:
        await e.start(flow, {"items": list(range(6))}, key="k")
        for n in range(6):
            await until(lambda n=n: asyncio.sleep(0, len(world.begun) == min(6, n + 3)))
            assert sorted(world.begun) == list(range(min(6, n + 3))), "in the items' order"
            world.holds[n].set()
        assert (await e.result(flow, "k")).status == "done"
        assert world.most == 3


async def test_children_that_end_in_line_give_nobody_a_turn_and_take_none(store: Store) -> None:
    world = World()
    world.holds = {n: asyncio.Event() for n in range(8)}
    child = square(world)
    flow = squares(world, child, concurrency=2, on_failure="collect")
    async with engine(store, flow) as e:
        await e.start(flow, {"items": list(range(8))}, key="k")
        await until(lambda: asyncio.sleep(0, len(world.begun) == 2))
        for n in (2, 3, 5):
            assert (await e.cancel(child, f"k/all/1/{n}")).status == "cancelled"
        assert sorted(world.begun) == [0, 1]
        for ended, begun in ((0, [0, 1, 4]), (1, [0, 1, 4, 6]), (4, [0, 1, 4, 6, 7])):
            world.holds[ended].set()
            await until(lambda begun=begun: asyncio.sleep(0, sorted(world.begun) == begun))
        for n in (6, 7):
            world.holds[n].set()
        run = await e.result(flow, "k")
        assert [one["status"] for one in run.data["squares"]] == [
            "done", "done", "cancelled", "cancelled", "done", "cancelled", "done", "done",
        ]  # fmt: skip
        assert world.most == 2
        assert max(world.begun.values()) == 1


async def test_one_child_is_given_what_data_says_and_its_data_go_into_a_field(store: Store) -> None:
    world = World()
    flow = Workflow("shop")
    flow.child(
        "pack", square(world), data=lambda data: {"item": data["n"] + 1}, into="parcel", initial=True, then="end"
    )
    flow.final("end")
    async with engine(store, flow) as e:
        run = await e.run(flow, {"n": 6}, key="k")
    assert run.to_dict()["data"] == {"n": 6, "parcel": {"item": 7, "square": 49}}


async def test_a_child_without_data_is_given_the_data_of_its_parent(store: Store) -> None:
    world = World()
    flow = Workflow("shop")
    flow.child("pack", square(world), initial=True, then="end")
    flow.final("end")
    async with engine(store, flow) as e:
        run = await e.run(flow, {"item": 6, "more": [1]}, key="k")
        assert run.to_dict()["data"] == {"item": 6, "more": [1]}, "without into= nothing is written"
        child = await e.get("square", "k/pack/0/0")
        assert child.to_dict()["data"] == {"item": 6, "more": [1], "square": 36}


async def test_data_of_each_is_given_the_data_the_item_and_its_index(store: Store) -> None:
    world = World()
    flow = squares(world, over=lambda data: data["items"], data=lambda data, item, n: {"item": item * data["by"] + n})
    async with engine(store, flow) as e:
        assert names(await e.run(flow, {"items": [1, 2], "by": 10}, key="k")) == [100, 441]


async def test_an_empty_list_joins_at_once(store: Store) -> None:
    flow = squares(World())
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": []}, key="k")
        assert (run.state, run.data["squares"]) == ("end", [])
    machine = PersistentWorkflowStateMachine(store, flow, "m", {"items": []})
    assert (await machine.run_workflow()).state == "end"


async def test_a_run_may_begin_with_children_and_go_through_several_states_of_them(store: Store) -> None:
    world = World()
    one, other = square(world), square(world, "other")
    flow = Workflow("two")
    flow.each("first", one, over="items", into="squares", then="second", initial=True)
    flow.each(
        "second", other, over="squares", data=lambda d, one, n: {"item": one["square"]}, into="squares", then="end"
    )
    flow.final("end")
    async with engine(store, flow) as e:
        assert names(await e.run(flow, {"items": [2, 3]}, key="k")) == [16, 81]


async def test_children_may_have_children(store: Store) -> None:
    world = World()
    inner = squares(world)
    flow = Workflow("outer")
    flow.each("rows", inner, over="rows", data=lambda d, row, n: {"items": row}, into="rows", then="end", initial=True)
    flow.final("end")
    async with engine(store, flow) as e:
        run = await e.run(flow, {"rows": [[1, 2, 3], [], [4]]}, key="k")
        assert [[one["square"] for one in row["squares"]] for row in run.data["rows"]] == [[1, 4, 9], [], [16]]
        assert (await e.get("square", "k/rows/0/2/all/1/0")).data["square"] == 16


async def test_children_in_regions_and_nested_states_run_beside_each_other(store: Store) -> None:
    world = World()
    flow = Workflow("house")
    both = flow.parallel("both", initial=True, then="end")
    left, right = both.region("left"), both.region("right")
    left.each("all", square(world), over="items", into="left", then="ready", initial=True)
    left.final("ready")
    inner = right.state("inner", initial=True, then="ready")

    @inner.step(initial=True, then="pack")
    async def first(ctx: Any) -> None:
        ctx.data["first"] = True

    inner.child("pack", square(world, "box"), data=lambda d: {"item": 9}, into="right", then="packed")
    inner.final("packed")
    right.final("ready")
    flow.final("end")
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": [1, 2, 3]}, key="k")
        assert (run.status, run.data["right"]["square"], run.data["first"]) == ("done", 81, True)
        assert [one["square"] for one in run.data["left"]] == [1, 4, 9]


async def test_conditions_see_what_came_back(store: Store) -> None:
    flow = squares(World(), then=[(field("squares").is_empty(), "other"), "end"])
    async with engine(store, flow) as e:
        assert (await e.run(flow, {"items": []}, key="a")).state == "other"
        assert (await e.run(flow, {"items": [1]}, key="b")).state == "end"


async def test_large_data_of_children_come_back_whole(store: Store) -> None:
    flow = squares(World(), data=lambda data, item, n: {"item": item, "text": "x" * 50_000})
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": [1, 2]}, key="k")
        assert [len(one["text"]) for one in run.data["squares"]] == [50_000, 50_000]
        assert len((await e.get(flow, "k")).data["squares"][1]["text"]) == 50_000


# -- the same data from two sides -------------------------------------------------------------------------------------


async def test_rule_5_a_field_that_an_event_changed_meanwhile_is_a_conflict_unless_merged(store: Store) -> None:
    def note(data: Any, event: Any) -> None:
        data["squares"] = "noted"

    for merge, status in ((None, "failed"), ({"squares": lambda old, new: [old, len(new)]}, "done")):
        world = World()
        world.holds[1] = asyncio.Event()
        flow = Workflow("noted", merge=merge)
        on = {"note": To("all", update=note, internal=True)}
        flow.each("all", square(world), over="items", into="squares", then="end", initial=True, on=on)
        flow.final("end")
        async with engine(store, flow) as e:
            key = status
            await e.start(flow, {"items": [1]}, key=key)
            await until(lambda world=world: asyncio.sleep(0, world.begun))
            await until(lambda e=e, key=key, flow=flow: _accepted(e, flow, key))
            world.holds[1].set()
            run = await e.result(flow, key)
            assert run.status == status
            if status == "done":
                assert run.data["squares"] == ["noted", 1]
            else:
                assert run.error.type == "MergeConflict"


async def _accepted(e: Engine, flow: Workflow, key: str) -> bool:
    return (await e.send(flow, key, "note", event_id="note")).status == "accepted"


# -- failing ----------------------------------------------------------------------------------------------------------


async def test_the_first_failure_fails_the_parent_and_says_which_child(store: Store) -> None:
    world = World()
    world.fails = {2}
    flow = squares(world)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed) as failed:
            await e.run(flow, {"items": [1, 2, 3, 4, 5, 6]}, key="k")
        run = failed.value.run
        assert (run.status, run.state) == ("failed", "all")
        assert run.error.type == "ChildFailed"
        assert run.error.code == "child_failed"
        assert "square/k/all/1/1 failed" in run.error.message
        assert "ValueError: no 2" in run.error.message
        assert isinstance(failed.value.__cause__, ChildFailed)
        assert world.begun[6] == 0, "no other gets its turn"


async def test_rule_7_run_on_a_failed_parent_retries_what_failed_and_joins_again(store: Store) -> None:
    world = World()
    world.fails = {2, 5}
    flow = squares(world)
    async with engine(store, flow) as e:
        for fixed in (2, 5):
            with pytest.raises(RunFailed):
                await e.run(flow, {"items": [1, 2, 3, 4, 5, 6]}, key="k")
            world.fails.discard(fixed)
        run = await e.run(flow, {"items": [1, 2, 3, 4, 5, 6]}, key="k")
        assert names(run) == [1, 4, 9, 16, 25, 36]
        assert world.begun == {1: 1, 2: 2, 3: 1, 4: 1, 5: 2, 6: 1}, "only what failed ran again"
        assert world.most <= 2
        events = [entry.event for entry in await e.history(flow, "k")]
        assert events == ["$start", "$done", *["$joined", "$retry"] * 2, "$joined"]
        assert {run.status for run in await e.list("square")} == {"done"}


async def test_a_machine_retries_the_failed_children_too(store: Store) -> None:
    world = World()
    world.fails = {2}
    flow = squares(world)
    with pytest.raises(ChildFailed, match="no 2"):
        await PersistentWorkflowStateMachine(store, flow, "k", {"items": [1, 2, 3]}).run_workflow()
    world.fails.clear()
    machine = PersistentWorkflowStateMachine(store, flow, "k")
    assert names(await machine.run_workflow()) == [1, 4, 9]
    assert world.begun == {1: 1, 2: 2, 3: 1}


async def test_running_ones_are_paused_by_the_first_failure_and_go_on_with_the_retry(store: Store) -> None:
    world = World()
    world.fails, world.holds = {2}, {1: asyncio.Event()}
    child = Workflow("long")

    @child.step(initial=True, then="after")
    async def work(ctx: Any) -> None:
        await world.work(ctx.data["item"])

    @child.step(then="end")
    async def after(ctx: Any) -> None:
        world.begun["after", ctx.data["item"]] += 1
        ctx.data["square"] = ctx.data["item"] ** 2

    child.final("end")
    flow = squares(world, child)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1, 2, 3]}, key="k")
        world.holds[1].set()
        paused = await until(lambda: _with_status(e, "long", "k/all/1/0", "paused"))
        assert paused.state == "after", "the step that was on came to its end"
        assert world.begun["after", 1] == 0
        world.fails.clear()
        assert names(await e.run(flow, key="k")) == [1, 4, 9]
        assert world.begun == {1: 1, 2: 2, 3: 1, ("after", 1): 1, ("after", 2): 1, ("after", 3): 1}


@pytest.mark.parametrize("deadline", [None, 1_000])  # with it the child's drive listens while the step is on
async def test_a_retry_while_a_child_is_still_to_be_paused_lets_it_go_on(store: Store, deadline: int | None) -> None:
    world = World()
    world.fails, world.holds = {2}, {1: asyncio.Event()}
    child = square(world)
    child.deadline = deadline
    flow = squares(world, child)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1, 2]}, key="k")
        world.fails.clear()
        await e.retry(flow, "k")
        posted = await until(lambda: _posted(e, "square", "k/all/1/0", 2))
        assert (posted.status, posted.version) == ("running", 0)
        await until(lambda: _with_status(e, "square", "k/all/1/1", "done"))  # in which time the other one looks, too
        world.holds[1].set()
        assert names(await e.result(flow, "k")) == [1, 4]
        assert world.begun == {1: 1, 2: 2}


async def _posted(e: Engine, workflow: str, key: str, many: int) -> Any:
    run = await e.store.load(workflow, key)
    return run if run is not None and run.posted == many else None


async def _with_status(e: Engine, workflow: Any, key: str, status: str) -> Any:
    run = await e.store.load(workflow if isinstance(workflow, str) else workflow.name, key)
    return run if run is not None and run.status == status else None


async def test_on_error_leads_on_with_the_error_and_the_rest_are_cancelled(store: Store) -> None:
    world = World()
    world.fails, world.holds = {2}, {1: asyncio.Event()}
    flow = squares(world, on_error={ChildFailed: "other"})
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": [1, 2, 3, 4]}, key="k")
        assert (run.status, run.state) == ("done", "other")
        assert run.data["error"]["type"] == "ChildFailed"
        assert "no 2" in run.data["error"]["message"]
        await until(lambda: _with_status(e, "square", "k/all/1/0", "cancelled"))
        assert [(await e.get("square", f"k/all/1/{n}")).status for n in range(4)] == [
            "cancelled",
            "failed",
            "cancelled",
            "cancelled",
        ]
        unbegun = await e.history("square", "k/all/1/3")
        assert [(entry.version, entry.event, entry.status) for entry in unbegun] == [
            (0, "$start", "running"),
            (1, "$cancel", "cancelled"),
        ]
        assert world.begun == {1: 1, 2: 1}


async def test_collected_failures_stop_nobody(store: Store) -> None:
    world = World()
    world.fails = {2}
    flow = squares(world, on_failure="collect")
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": [1, 2, 3]}, key="k")
        assert run.status == "done"
        assert run.to_dict()["data"]["squares"] == [
            {"status": "done", "data": {"item": 1, "index": 0, "square": 1}},
            {"status": "failed", "error": {"type": "ValueError", "message": "no 2"}},
            {"status": "done", "data": {"item": 3, "index": 2, "square": 9}},
        ]


async def test_cancelled_and_refused_children_count_as_failed(store: Store) -> None:
    world = World()
    world.holds = {1: asyncio.Event()}
    child = Workflow("vote")

    @child.step(initial=True, then=[(field("item") == 2, "no"), "yes"])
    async def work(ctx: Any) -> None:
        await world.work(ctx.data["item"])

    child.final("yes")
    child.final("no", outcome="failed")
    flow = squares(world, child, on_failure="collect")
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2, 3]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[3]))
        await e.cancel("vote", "k/all/1/0")
        run = await e.result(flow, "k")
        assert run.status == "done"
        assert [one["status"] for one in run.data["squares"]] == ["cancelled", "failed", "done"]
        assert run.data["squares"][1]["error"] == {"type": "", "message": "it ended in state 'no'"}


async def test_a_parked_child_counts_as_failed_and_retry_lets_it_go_on(store: Store) -> None:
    world = World()
    world.fails = {2}
    child = Workflow("trip", on_failure="park")

    async def give_back(ctx: Any) -> None:
        world.undone.append(ctx.data["item"])

    @child.step(initial=True, then="pay", compensate=give_back)
    async def book(ctx: Any) -> None:
        pass

    @child.step(then="end")
    async def pay(ctx: Any) -> None:
        await world.work(ctx.data["item"])
        ctx.data["square"] = ctx.data["item"] ** 2

    child.final("end")
    flow = squares(world, child)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed, match="parked"):
            await e.run(flow, {"items": [1, 2, 3]}, key="k")
        world.fails.clear()
        assert names(await e.run(flow, key="k")) == [1, 4, 9]
        assert world.undone == []


async def test_a_child_counts_once_however_often_it_is_retried(store: Store) -> None:
    world = World()
    world.fails, world.holds = {1}, {3: asyncio.Event()}
    flow = squares(world, on_failure="collect")
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2, 3]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[3]))
        await until(lambda: _with_status(e, "square", "k/all/1/0", "failed"))
        for _ in range(3):
            await e.retry("square", "k/all/1/0")
            await until(lambda: _with_status(e, "square", "k/all/1/0", "failed"))
        assert (await e.get(flow, "k")).state == "all", "the third child has not ended"
        world.fails.clear()
        await e.retry("square", "k/all/1/0")
        await until(lambda: _with_status(e, "square", "k/all/1/0", "done"))
        world.holds[3].set()
        run = await e.result(flow, "k")
        assert [one["status"] for one in run.data["squares"]] == ["done"] * 3, "as they are when they are joined"


async def test_a_child_that_retries_its_step_has_not_ended(store: Store) -> None:
    world = World()
    flow = squares(world, square(world, retry=Retry(attempts=5, first_delay=0.005, max_delay=0.01)))
    world.fails = {1}
    async with engine(store, flow) as e:
        running = asyncio.create_task(e.run(flow, {"items": [1]}, key="k"))
        await until(lambda: asyncio.sleep(0, world.begun[1] >= 3))
        world.fails.clear()
        assert names(await running) == [1]


async def test_what_is_no_list_fails_the_run_in_the_state_and_says_so(store: Store) -> None:
    flow = squares(World())
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed, match="over= must come to a list, and 'items' is 7"):
            await e.run(flow, {"items": 7}, key="k")
        run = await e.get(flow, "k")
        assert (run.state, run.error.type) == ("all", "TypeError")
        assert [entry.event for entry in await e.history(flow, "k")] == ["$start", "$done", "$begin"]


async def test_an_error_of_data_goes_the_way_of_on_error(store: Store) -> None:
    flow = squares(World(), data=lambda data, item, n: 1 // 0, on_error={ZeroDivisionError: "other"})
    async with engine(store, flow) as e:
        assert (await e.run(flow, {"items": [1]}, key="k")).state == "other"
    flow = squares(World(), data=lambda data, item, n: {"item": {1, 2}})
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed, match=r"input of child 0, data.item"):
            await e.run(flow, {"items": [1]}, key="other")


async def test_a_key_that_another_run_has_taken_is_an_error_and_not_a_wait(store: Store) -> None:
    world = World()
    child = square(world)
    flow = squares(world, child)
    async with engine(store, flow) as e:
        await e.run(child, {"item": 5}, key="k/all/1/1")
        with pytest.raises(RunFailed, match="its key is taken by another run"):
            await e.run(flow, {"items": [1, 2, 3]}, key="k")


# -- cancelling, leaving, time ----------------------------------------------------------------------------------------


async def test_cancel_goes_down_on_every_level(store: Store) -> None:
    world = World()
    world.holds = {n: asyncio.Event() for n in (1, 2, 3, 4)}
    inner = squares(world)
    flow = Workflow("outer")
    flow.each("rows", inner, over="rows", data=lambda d, row, n: {"items": row}, then="end", initial=True)
    flow.final("end")
    async with engine(store, flow) as e:
        await e.start(flow, {"rows": [[1, 2, 3], [4]]}, key="k")
        await until(lambda: asyncio.sleep(0, len(world.begun) == 3))
        await e.cancel(flow, "k")
        keys = [("squares", "k/rows/0/0"), ("squares", "k/rows/0/1")]
        keys += [("square", f"k/rows/0/0/all/1/{n}") for n in range(3)] + [("square", "k/rows/0/1/all/1/0")]
        for workflow, key in keys:
            await until(lambda workflow=workflow, key=key: _with_status(e, workflow, key, "cancelled"))
        assert world.at_once == 0, "their steps were stopped"
        assert world.begun[3] == 0
        assert (await e.get(flow, "k")).status == "cancelled"


async def test_leaving_the_state_by_an_event_or_a_time_cancels_the_children(store: Store) -> None:
    world = World()
    world.holds = {1: asyncio.Event()}
    child = square(world)
    flow = squares(world, child, on={"stop": "other"})
    late = Workflow("late")
    late.child("all", child, data=lambda d: {"item": 1}, initial=True, then="end", after={0.02: "other"})
    late.final("end", "other")
    async with engine(store, flow, late) as e:
        await e.start(flow, {"items": [1, 2]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        await e.send(flow, "k", "stop")
        assert (await e.result(flow, "k")).state == "other"
        await until(lambda: _with_status(e, "square", "k/all/1/0", "cancelled"))
        run = await e.run(late, key="l")
        assert (run.state, run.status) == ("other", "done")
        await until(lambda: _with_status(e, "square", "l/all/0/0", "cancelled"))


async def test_a_parent_that_ends_as_refused_cancels_its_children_and_undoes_itself(store: Store) -> None:
    world = World()
    world.holds = {1: asyncio.Event()}

    async def undo(ctx: Any) -> None:
        world.undone.append(ctx.state)

    flow = Workflow("refused")

    @flow.step(initial=True, then="all", compensate=undo)
    async def first(ctx: Any) -> None:
        pass

    flow.child("all", square(world), data=lambda d: {"item": 1}, then="end", on={"refuse": "no"})
    flow.final("end")
    flow.final("no", outcome="failed")
    async with engine(store, flow) as e:
        await e.start(flow, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        await e.send(flow, "k", "refuse")
        run = await e.result(flow, "k")
        assert (run.status, world.undone) == ("failed", ["first"])
        await until(lambda: _with_status(e, "square", "k/all/1/0", "cancelled"))


async def test_a_child_whose_turn_has_not_come_is_cancelled_by_hand_and_the_rest_go_on(store: Store) -> None:
    world = World()
    world.holds = {1: asyncio.Event()}
    flow = squares(world, concurrency=1, on_failure="collect")
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2, 3]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        await e.cancel("square", "k/all/1/1")
        assert world.begun[2] == 0
        world.holds[1].set()
        run = await e.result(flow, "k")
        assert [one["status"] for one in run.data["squares"]] == ["done", "cancelled", "done"]


# -- resting ----------------------------------------------------------------------------------------------------------


def approvals(world: World) -> tuple[Workflow, Workflow]:
    child = Workflow("approval")

    @child.step(initial=True, then="ask")
    async def work(ctx: Any) -> None:
        await world.work(ctx.data["item"])

    child.wait("ask", on={"yes": "given", "no": "refused"})
    child.final("given")
    child.final("refused", outcome="failed")
    return child, squares(world, child, concurrency=3)


async def test_run_waits_while_a_child_can_move_and_rests_when_all_wait_for_events(store: Store) -> None:
    world = World()
    child, flow = approvals(world)
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": [1, 2, 3]}, key="k")
        assert (run.status, run.state) == ("waiting", "all")
        assert world.begun == Counter([1, 2, 3]), "every child came to where it waits"
        assert {r.state for r in await e.list(child)} == {"ask"}
        for n in (2, 0, 1):
            assert (await e.get(flow, "k")).status == "waiting"
            await e.send(child, f"k/all/1/{n}", "yes")
        assert (await e.result(flow, "k")).status == "done"


async def test_an_engine_that_only_asks_for_the_result_waits_for_what_is_below(store: Store) -> None:
    world = World()
    world.holds = {1: asyncio.Event()}
    flow = squares(world)
    async with engine(store, flow) as mine, engine(store, squares(world)) as other:
        await mine.start(flow, {"items": [1, 2, 3]}, key="k")
        waits = asyncio.create_task(other.result("squares", "k"))
        runs = asyncio.create_task(other.run("squares", key="k"))
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        assert not waits.done()
        assert not runs.done()
        world.holds[1].set()
        assert names(await waits) == names(await runs) == [1, 4, 9]


async def test_an_event_to_a_child_by_another_engine_ends_in_the_parent_of_the_first(store: Store) -> None:
    world = World()
    child, flow = approvals(world)
    async with engine(store, flow) as mine, engine(store, flow) as other:
        assert (await mine.run(flow, {"items": [1]}, key="k")).status == "waiting"
        await other.send(child, "k/all/1/0", "yes")
        assert (await other.result(flow, "k")).status == "done"


async def test_an_event_to_a_child_whose_turn_has_not_come_waits_with_it(store: Store) -> None:
    world = World()
    child, _ = approvals(world)
    world.holds = {1: asyncio.Event()}
    flow = squares(world, child, concurrency=1)
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        sent = await e.send(child, "k/all/1/1", "yes")
        assert sent.status == "waiting"
        running = asyncio.create_task(e.run(child, key="k/all/1/1"))
        for hand in (e.unpause, e.retry):
            with pytest.raises(NotAccepted, match="turn has not come"):
                await hand(child, "k/all/1/1")
        assert await store.claim_one("another", "approval", "k/all/1/1") is None
        world.holds[1].set()
        assert (await e.run(flow, key="k")).status == "waiting"
        assert world.begun[2] == 0, "it waits for an event to the first one, who keeps its turn"
        await e.send(child, "k/all/1/0", "yes")
        assert (await e.result(flow, "k")).status == "done"
        assert (await asyncio.wait_for(running, PATIENCE)).state == "given"


async def test_a_child_that_is_paused_in_line_goes_on_by_hand_once_its_turn_has_come(store: Store) -> None:
    world = World()
    world.holds = {1: asyncio.Event()}
    flow = squares(world, concurrency=1)
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        assert (await e.pause("square", "k/all/1/1")).status == "paused"
        world.holds[1].set()
        await until(lambda: _with_status(e, "square", "k/all/1/0", "done"))
        assert world.begun[2] == 0
        await e.unpause("square", "k/all/1/1")
        assert names(await e.result(flow, "k")) == [1, 4]


async def test_run_rests_while_a_child_that_was_paused_in_line_has_its_turn(store: Store) -> None:
    """It moves nothing, so it is due for nothing: not where it is held, and not for who would claim it."""
    world = World()
    world.holds = {1: asyncio.Event()}
    flow = squares(world, concurrency=1)
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        await e.pause("square", "k/all/1/1")
        world.holds[1].set()
        run = await asyncio.wait_for(e.run(flow, key="k"), PATIENCE)
        assert (run.status, run.state) == ("waiting", "all")
        child = await e.get("square", "k/all/1/1")
        assert (child.status, child.due, child.in_line) == ("paused", None, False)
        await e.unpause("square", "k/all/1/1")
        assert names(await e.result(flow, "k")) == [1, 4]


async def test_explain_says_how_many_children_are_left(store: Store) -> None:
    world = World()
    child, flow = approvals(world)
    async with engine(store, flow) as e:
        await e.run(flow, {"items": [1, 2, 3, 4]}, key="k")
        await e.send(child, "k/all/1/0", "yes")
        await e.run(flow, key="k")
        text = await e.explain(flow, "k")
        assert "Of its 4 children in all, 3 go on: 3 waiting." in text, text


# -- over crashes -----------------------------------------------------------------------------------------------------


async def test_after_a_crash_run_on_the_parent_alone_takes_up_its_children(store: Store) -> None:
    world = World()
    inner = squares(world)
    flow = Workflow("outer")
    flow.each("rows", inner, over="rows", data=lambda d, row, n: {"items": row}, into="rows", then="end", initial=True)
    flow.final("end")
    for at in range(2, 30):
        await store.reset()
        crashing = CrashingStore(store, at=at, when="after" if at % 2 else "before")
        close, store.close = store.close, _nothing  # type: ignore[method-assign]
        others = asyncio.all_tasks()
        with contextlib.suppress(Crash):
            async with engine(crashing, flow) as e:
                await e.run(flow, {"rows": [[1, 2], [3]]}, key="k")
        for task in asyncio.all_tasks() - others:  # a dead process goes on with nothing
            task.cancel()
            await asyncio.wait([task])
        await crashing.bury_the_dead()
        async with engine(store, flow) as e:
            run = await asyncio.wait_for(e.run(flow, {"rows": [[1, 2], [3]]}, key="k"), PATIENCE)
        store.close = close  # type: ignore[method-assign]
        assert [[one["square"] for one in row["squares"]] for row in run.data["rows"]] == [[1, 4], [9]], at


async def _nothing() -> None:
    pass


async def test_a_machine_without_a_key_takes_up_the_parent_whose_children_go_on(store: Store) -> None:
    world = World()
    world.holds = {2: asyncio.Event()}
    flow = squares(world)
    first = asyncio.create_task(PersistentWorkflowStateMachine(store, flow, data={"items": [1, 2, 3]}).run_workflow())
    await until(lambda: asyncio.sleep(0, world.begun[3]))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert world.at_once == 0, "the children's steps were cancelled with the machine"
    world.holds[2].set()
    machine = PersistentWorkflowStateMachine(store, flow, data={"items": [7]})
    assert names(await machine.run_workflow()) == [1, 4, 9]
    again = PersistentWorkflowStateMachine(store, square(world), data={"item": 8})
    assert (await again.run_workflow()).data["square"] == 64, "a child is nobody's oldest run"


async def test_resume_drives_parents_and_children_with_one_place_in_the_line(store: Store) -> None:
    world = World()
    world.holds = {n: asyncio.Event() for n in range(1, 7)}
    flow = squares(world)
    async with engine(store, flow) as e:
        for key in "abc":
            await e.start(flow, {"items": [1, 2, 3, 4]}, key=key)
        await until(lambda: asyncio.sleep(0, world.begun[1] == 3))
        await e.close(grace=0.0)
    for event in world.holds.values():
        event.set()
    async with engine(store, flow) as e:
        await asyncio.wait_for(e.resume(concurrency=1), PATIENCE)
        assert [names(run) for run in await e.list(flow)] == [[1, 4, 9, 16]] * 3


# -- steering ---------------------------------------------------------------------------------------------------------


async def test_rerun_and_fork_of_a_parent_make_children_of_their_own(store: Store) -> None:
    world = World()
    world.fails = {2}
    flow = squares(world)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1, 2]}, key="k")
        world.fails.clear()
        await e.rerun(flow, "k", state="all")
        run = await e.result(flow, "k")
        assert names(run) == [1, 4]
        visit = next(entry.version for entry in await e.history(flow, "k") if entry.event == "$rerun")
        assert (await e.get("square", f"k/all/{visit}/1")).status == "done"
        assert (await e.get("square", "k/all/1/1")).status == "failed", "what failed in the old visit is left alone"
        await e.fork(flow, "k", at=1, new_key="f", data={"items": [5]})
        assert names(await e.result(flow, "f")) == [25]
        assert (await e.get("square", "f/all/0/0")).status == "done"


async def test_rerun_of_a_counted_child_counts_no_second_time(store: Store) -> None:
    world = World()
    world.fails, world.holds = {1}, {2: asyncio.Event()}
    flow = squares(world, on_failure="collect")
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2, 3]}, key="k")
        await until(lambda: _with_status(e, "square", "k/all/1/0", "failed"))
        await until(lambda: _with_status(e, "square", "k/all/1/2", "done"))
        world.fails.clear()
        await e.rerun("square", "k/all/1/0", state="work")
        await until(lambda: _with_status(e, "square", "k/all/1/0", "done"))
        assert (await e.get(flow, "k")).state == "all"
        world.holds[2].set()
        assert [one["status"] for one in (await e.result(flow, "k")).data["squares"]] == ["done"] * 3


async def test_a_child_that_was_let_go_on_by_hand_is_waited_for_by_the_retry_of_its_parent(store: Store) -> None:
    world = World()
    world.fails, world.holds = {2}, {4: asyncio.Event()}
    flow = squares(world)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1, 2, 3]}, key="k")
        world.fails.clear()
        world.holds[2] = asyncio.Event()
        await e.rerun("square", "k/all/1/1", state="work")
        await until(lambda: asyncio.sleep(0, world.begun[2] == 2))
        again = asyncio.create_task(e.run(flow, key="k"))
        await until(lambda: asyncio.sleep(0, world.begun[3]))
        assert not again.done()
        world.holds[2].set()
        assert names(await again) == [1, 4, 9]
        assert world.begun[2] == 2


async def test_a_paused_parent_joins_when_it_goes_on(store: Store) -> None:
    world = World()
    world.holds = {1: asyncio.Event()}
    flow = squares(world)
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1]}, key="k")
        await until(lambda: asyncio.sleep(0, world.begun[1]))
        await e.pause(flow, "k")
        world.holds[1].set()
        await until(lambda: _with_status(e, "square", "k/all/1/0", "done"))
        assert (await e.get(flow, "k")).status == "paused"
        await e.unpause(flow, "k")
        assert names(await e.result(flow, "k")) == [1]


async def test_cancel_of_a_failed_parent_cancels_what_kept_its_place(store: Store) -> None:
    world = World()
    world.fails = {1}
    flow = squares(world, concurrency=1)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1, 2]}, key="k")
        await e.cancel(flow, "k")
        assert (await e.get("square", "k/all/1/1")).status == "cancelled"
        with pytest.raises(RunOver):
            await e.retry(flow, "k")


# -- many, and deep ---------------------------------------------------------------------------------------------------


async def test_a_workflow_may_contain_itself(store: Store) -> None:
    tree = Workflow("tree")

    @tree.step(initial=True, then=[(field("depth") > 0, "below"), "leaf"])
    async def look(ctx: Any) -> None:
        ctx.data["sum"] = ctx.data["depth"]

    tree.each(
        "below",
        tree,
        over=lambda d: [1, 2],
        data=lambda d, one, n: {"depth": d["depth"] - 1},
        into="children",
        then="add",
    )

    @tree.step(then="leaf")
    async def add(ctx: Any) -> None:
        ctx.data["sum"] += sum(child["sum"] for child in ctx.data["children"])
        del ctx.data["children"]

    tree.final("leaf")
    async with engine(store, tree) as e:
        assert (await e.run(tree, {"depth": 3}, key="k")).data["sum"] == 3 + 2 * 2 + 4 * 1
        assert len(await e.list(tree)) == 15


async def test_what_becomes_due_while_one_looks_for_what_goes_on_below_is_found(
    durable_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all seems to rest, where a child has just ended and made its parent, a child too, due."""
    child, flow = Workflow("child"), Workflow("flow")
    child.wait("rest", initial=True, after={"1h": "end"})
    child.final("end")
    flow.child("all", child, data=lambda data: {}, initial=True, then="end")
    flow.final("end")
    async with Engine(durable_url, workflows=[flow]) as e:
        run = await e.run(flow, key="k")
        (below,) = await e.list(child)
        due = below.due
        assert due is not None
        monkeypatch.setattr(e.store, "now", lambda: due - 1)
        assert await e.store.below(run) == []
        times = iter((due - 1, due + 1))  # when it is asked, and when it is answered
        monkeypatch.setattr(e.store, "now", lambda: next(times))
        assert await e.store.below(run) == [("child", below.key)]
        monkeypatch.undo()


async def test_a_workflow_that_contains_itself_without_an_end_fails_and_says_so(store: Store) -> None:
    endless = Workflow("endless")
    endless.child("again", endless, data=lambda d: {}, initial=True, then="end")
    endless.final("end")
    async with engine(store, endless) as e:
        with pytest.raises(RunFailed, match="would make children 17 deep; 16 are allowed"):
            await e.run(endless, key="k")
        assert len(await e.list(endless)) == 17


async def test_a_loop_through_empty_lists_is_found(store: Store) -> None:
    flow = Workflow("loop")
    flow.choice("again", [(field("stop").is_not_none(), "end"), "none"], initial=True)
    flow.each("none", square(World()), over=lambda d: [], then="again")
    flow.final("end")
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed, match="moves without a step"):
            await e.run(flow, key="k")


async def test_hundreds_of_children_cost_no_move_of_the_parent_each(store: Store) -> None:
    world = World()
    flow = squares(world, concurrency=20)
    async with engine(store, flow) as e:
        run = await e.run(flow, {"items": list(range(300))}, key="k")
        assert names(run) == [n * n for n in range(300)]
        assert run.version == 2
        assert world.most <= 20
        assert max(world.begun.values()) == 1


# -- bad definitions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("each", "problem"),
    [
        ({"concurrency": 0}, "state 'all': concurrency 0 must be a whole number from 1"),
        ({"concurrency": True}, "concurrency True must be"),
        ({"on_failure": "ignore"}, "on_failure 'ignore' must be one of first, collect"),
        ({"over": 7}, "state 'all': over 7 is no function, field or path"),
        ({"into": ""}, "into, a field, '' must be text that is not empty"),
        ({"data": 7}, "state 'all': data 7 is no function"),
        ({"data": lambda data: data}, "data: its function must take data, item, index"),
        ({"over": lambda: [1]}, "over: its function must take data"),
        ({"then": "nowhere"}, "there is no state 'nowhere'"),
    ],
)
def test_a_bad_each_is_named_with_its_place(each: dict[str, Any], problem: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        squares(World(), **each).check()
    assert any(problem in one for one in refused.value.problems), refused.value.problems


def test_what_is_no_workflow_cannot_be_a_child() -> None:
    flow = Workflow("shop")
    flow.child("pack", "box", initial=True, then="end")  # type: ignore[arg-type]
    flow.final("end")
    with pytest.raises(DefinitionError, match="state 'pack': 'box' is no Workflow, whose runs could be its children"):
        flow.check()


def test_an_async_data_is_refused_and_a_bad_child_is_checked_with_its_parent() -> None:
    async def fetch(data: Any) -> Any:
        return data

    flow = Workflow("shop")
    flow.child("pack", square(World()), data=fetch, initial=True, then="end")
    flow.final("end")
    with pytest.raises(DefinitionError, match="is async, and a decision awaits nothing"):
        flow.check()
    flow, bad = Workflow("shop"), Workflow("bad")
    flow.child("pack", bad, initial=True, then="end")
    flow.final("end")
    with pytest.raises(DefinitionError, match="workflow 'bad' is not well formed"):
        flow.check()
    with pytest.raises(DefinitionError, match="workflow 'bad' is not well formed"):
        flow.check()


def test_two_workflows_of_one_name_are_refused_by_the_engine() -> None:
    with pytest.raises(DefinitionError, match="another workflow of that name"):
        Engine("memory://", workflows=[squares(World()), square(World())])


# -- processes that are killed ----------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, os, sys
from fsmworkflow import Engine, Workflow, field

url, ledger, key = sys.argv[1:]
cut = Workflow("cut")

def note(ctx):
    with open(ledger, "a") as file:
        file.write(f"{ctx.run.key} {ctx.state}\\n")
        file.flush()
        os.fsync(file.fileno())

@cut.step(initial=True, then="polish")
async def saw(ctx):
    note(ctx)
    await asyncio.sleep(0.05)

@cut.step(then="ready")
async def polish(ctx):
    note(ctx)
    ctx.data["square"] = ctx.data["item"] ** 2

cut.final("ready")
shop = Workflow("shop")
shop.each("all", cut, over=field("items"), into="out", concurrency=4, initial=True, then="end")
shop.final("end")

async def main():
    async with Engine(url, workflows=[shop], deaths=20) as engine:
        run = await engine.run(shop, {"items": list(range(40))}, key=key)
        print(run.status, sum(one["square"] for one in run.data["out"]))

asyncio.run(main())
"""


def test_P1_P3_processes_killed_while_children_are_joined_repeat_little_and_lose_nothing(
    durable_url: str, tmp_path: Path
) -> None:
    seed = random.randrange(1_000_000)
    dice, ledger = random.Random(seed), tmp_path / "ledger"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), durable_url, str(ledger), "k"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    kills = 0
    while True:
        with launched(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                out, _ = process.communicate(timeout=dice.uniform(0.3, 0.6) if kills < 8 else 2 * PATIENCE)
                break
            except subprocess.TimeoutExpired:
                kills += 1
    assert out.split() == ["done", str(sum(n * n for n in range(40)))], f"seed {seed}"
    assert kills, "it was too fast to be killed"
    ran = Counter(ledger.read_text().splitlines())
    assert set(ran) == {f"k/all/0/{n} {step}" for n in range(40) for step in ("saw", "polish")}
    assert ran.total() <= 80 + 4 * kills, f"seed {seed}: {ran.most_common(5)}"


async def test_children_whose_keys_would_be_too_long_fail_the_run_and_say_so(store: Store) -> None:
    inner = Workflow("inner")
    inner.wait("asked", initial=True, on={"given": "end"})
    inner.final("end")
    chance = random.Random(1)
    for level in range(6):
        outer = Workflow(f"level-{level}")
        name = "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(200))  # nothing that an index compresses
        outer.child(name, inner, initial=True, then="end")
        outer.final("end")
        inner = outer
    async with engine(store, inner) as one:
        with pytest.raises(RunFailed) as failed:
            await asyncio.wait_for(one.run(inner, key="k"), PATIENCE)
    assert failed.value.run.error is not None
    assert "keys begin with" in failed.value.run.error.message


async def test_a_child_that_was_just_told_to_go_on_is_cancelled_with_its_parent(store: Store) -> None:
    """Two moves of the parent, retry and cancel, before the child has looked."""
    world = World()
    world.fails = {1}
    flow = squares(world)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1]}, key="k")
    for name in ("$retry", "$cancel"):
        run = await store.claim_one("nobody", "squares", "k")
        assert run is not None
        await store.commit(await decide(flow, run, Event(name=name), now=store.now()))
    async with engine(store, flow) as e:
        await asyncio.wait_for(e.resume(), PATIENCE)
        await until(lambda: _with_status(e, "square", "k/all/1/0", "cancelled"))
        assert [entry.event for entry in await e.history("square", "k/all/1/0")][-2:] == ["$retry", "$cancel"]
        assert world.begun[1] == 1


@pytest.mark.parametrize("hand", ["$retry", "$rerun"])
async def test_a_child_that_somebody_has_just_let_go_on_is_cancelled_with_its_parent(store: Store, hand: str) -> None:
    world = World()
    world.fails = {1}
    flow = squares(world)
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1]}, key="k")
    await store.post("square", "k/all/1/0", Event(name=hand, id="by hand", payload="work"))
    run = await store.claim_one("nobody", "squares", "k")
    assert run is not None
    await store.commit(await decide(flow, run, Event(name="$cancel"), now=store.now()))
    async with engine(store, flow) as e:
        await asyncio.wait_for(e.resume(), PATIENCE)
        await until(lambda: _with_status(e, "square", "k/all/1/0", "cancelled"))
        assert [entry.event for entry in await e.history("square", "k/all/1/0")][-2:] == [hand, "$cancel"]
        assert world.begun[1] == 1


async def test_a_child_that_was_just_told_to_go_on_is_paused_by_the_next_failure(store: Store) -> None:
    world = World()
    child = Workflow("long")

    @child.step(initial=True, then="after")
    async def work(ctx: Any) -> None:
        await world.work(ctx.data["item"])

    @child.step(then="end")
    async def after(ctx: Any) -> None:
        await world.work("after")

    child.final("end")
    flow = squares(world, child)
    world.fails, world.holds = {1}, {2: asyncio.Event()}
    async with engine(store, flow) as e:
        with pytest.raises(RunFailed):
            await e.run(flow, {"items": [1, 2]}, key="k")
        await e.cancel(child, "k/all/1/1")
        world.fails.clear()
        world.holds[1] = asyncio.Event()  # else it may have ended before
        with pytest.raises(RunFailed):
            await e.run(flow, key="k")  # the child that was cancelled fails it again, at once
        world.holds[1].set()
        await until(lambda: _with_status(e, "long", "k/all/1/0", "paused"))
        assert world.begun["after"] == 0


# -- a child that is undone, a parent in its next version -------------------------------------------------------------


@pytest.mark.parametrize("hand", ["cancel", "skip"])
async def test_a_child_that_is_being_undone_ends_that_when_its_parent_is_cancelled_or_leaves(
    store: Store, hand: str
) -> None:
    begun, go, undone = asyncio.Event(), asyncio.Event(), list[str]()

    async def give_back(ctx: Any) -> None:
        begun.set()
        await go.wait()
        undone.append(ctx.run.key)

    child = Workflow("trip")

    @child.step(initial=True, then="pay", compensate=give_back)
    async def book(ctx: Any) -> None:
        pass

    @child.step(then="end")
    async def pay(ctx: Any) -> None:
        if ctx.data["item"] == 1:
            raise ValueError("no money")
        await asyncio.Event().wait()

    child.final("end")
    flow = Workflow("tour")
    flow.each("all", child, over="items", concurrency=2, initial=True, then="end", on={"skip": "skipped"})
    flow.final("end", "skipped")
    async with engine(store, flow) as e:
        await e.start(flow, {"items": [1, 2, 3]}, key="k")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        await (e.cancel(flow, "k") if hand == "cancel" else e.send(flow, "k", "skip"))
        over = await e.result(flow, "k")
        assert over.status == ("cancelled" if hand == "cancel" else "done")
        await until(lambda: _with_status(e, "trip", "k/all/0/2", "cancelled"))
        assert (await e.get("trip", "k/all/0/0")).status == "compensating"
        go.set()
        await until(lambda: _with_status(e, "trip", "k/all/0/0", "failed"))
        await until(lambda: _with_status(e, "trip", "k/all/0/1", "cancelled"))
        assert sorted(undone) == ["k/all/0/0", "k/all/0/1"], "each once, the one that was cancelled too"
        assert [entry.event for entry in await e.history(flow, "k")][-1] == f"{'$' * (hand == 'cancel')}{hand}"


def waiting_shop(world: World, version: int = 1) -> Workflow:
    """The state with children is called "all", and in version 2 "every"; each child asks once it has worked."""
    child, flow = approvals(world)[0], Workflow("shop", version=version)
    name = "all" if version == 1 else "every"
    flow.each(name, child, over="items", into="out", concurrency=2, initial=True, then="end", on={"stop": "stopped"})
    flow.final("end", "stopped")
    if version == 2:
        flow.migrate(1, to=2, states={"all": "every"})
    return flow


async def shop_in_version_2(store: Store, world: World) -> tuple[Workflow, Engine]:
    """A parent whose children were made in version 1, and an engine with version 2."""
    world.fails = {2}
    async with engine(store, old := waiting_shop(world)) as e:
        with contextlib.suppress(RunFailed):
            await e.run(old, {"items": [1, 2, 3]}, key="k")
        await until(lambda: _with_status(e, "shop", "k", "failed"))
    world.fails.clear()
    new = waiting_shop(world, 2)
    return new, engine(store, new)


async def test_children_of_a_state_that_has_another_name_now_are_retried_and_joined(store: Store) -> None:
    world = World()
    flow, e = await shop_in_version_2(store, world)
    async with e:
        assert (await e.run(flow, key="k")).state == "every"
        for n in range(3):
            await until(lambda n=n: _with_status(e, "approval", f"k/all/0/{n}", "waiting"))
            await e.send("approval", f"k/all/0/{n}", "yes")
        run = await e.result(flow, "k")
        assert (run.status, run.state, [one["item"] for one in run.data["out"]]) == ("done", "end", [1, 2, 3])
        assert world.begun == {1: 1, 2: 2, 3: 1}
        assert [child.key for child in await e.list("approval")] == [f"k/all/0/{n}" for n in range(3)]


@pytest.mark.parametrize("how", ["cancel", "stop", "rerun"])
async def test_children_of_a_state_that_has_another_name_now_are_cancelled_with_it(store: Store, how: str) -> None:
    world = World()
    flow, e = await shop_in_version_2(store, world)
    async with e:
        if how == "cancel":
            await e.cancel(flow, "k")
        elif how == "stop":
            await e.run(flow, key="k")
            await e.send(flow, "k", "stop")
        else:
            await e.rerun(flow, "k", state="every")
        for n in [0, 2] if how != "stop" else range(3):
            await until(lambda n=n: _with_status(e, "approval", f"k/all/0/{n}", "cancelled"))
        if how == "rerun":
            version = (await e.get(flow, "k")).visit
            await until(lambda: _with_status(e, "approval", f"k/every/{version}/1", "waiting"))


@pytest.mark.parametrize("kind", ["step", "listens", "wait"])
async def test_a_state_that_has_no_children_any_more_is_not_left_for_their_end(store: Store, kind: str) -> None:
    """A step runs, and an event is waited for; what still goes on is cancelled when the state is left."""
    world, ran = World(), list[str]()
    child, old = approvals(world)
    async with engine(store, old) as e:
        await e.run(old, {"items": [1, 2]}, key="k")
    async with engine(store, child) as e:
        await e.send(child, "k/all/1/0", "yes")
        await e.result(child, "k/all/1/0")
        if kind != "wait":
            await e.send(child, "k/all/1/1", "yes")
            await e.result(child, "k/all/1/1")

    async def work(ctx: Any) -> None:
        ran.append(ctx.state)

    new = Workflow("squares", version=2)
    new.step("prepare", initial=True, then="all")(work)
    if kind == "wait":
        new.wait("all", on={"go": "end"})
    else:
        new.step("all", then="end", on={"go": "end"} if kind == "listens" else None)(work)
    new.final("end")
    async with engine(store, new, child) as e:
        run = await asyncio.wait_for(e.run(new, key="k"), PATIENCE)
        if kind == "wait":
            assert (run.status, run.state) == ("waiting", "all")
            await e.cancel(child, "k/all/1/1")  # the last of them, so that their end is told
            assert (await asyncio.wait_for(e.run(new, key="k"), PATIENCE)).state == "all"
            await e.send(new, "k", "go")
            run = await e.result(new, "k")
        assert (run.status, run.state, ran) == ("done", "end", [] if kind == "wait" else ["all"])
        assert [event.name for event in (await store.inbox(run))[1]] == []
