"""Machines of the transitions library: what its users write down is a workflow here."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

import pytest
from transitions import State

from fsmworkflow import Engine, PersistentWorkflowStateMachine, Workflow
from fsmworkflow.errors import DefinitionError
from fsmworkflow.store.memory import MemoryStore
from fsmworkflow.testing import Clock
from tests.waiting import PATIENCE

MATTER = ["solid", "liquid", "gas", "plasma"]
CHANGES = [
    {"trigger": "melt", "source": "solid", "dest": "liquid"},
    {"trigger": "evaporate", "source": "liquid", "dest": "gas"},
    {"trigger": "sublimate", "source": "solid", "dest": "gas"},
    {"trigger": "ionize", "source": "gas", "dest": "plasma"},
]


async def test_matter_changes_its_state_also_by_the_triggers_that_each_state_has() -> None:
    flow = Workflow.from_transitions(MATTER, CHANGES, initial="liquid")
    async with PersistentWorkflowStateMachine("memory://", flow) as lump:
        assert lump.state == "liquid"
        await lump.send("evaporate")
        assert (lump.state, lump.may("melt"), lump.may("ionize")) == ("gas", False, True)
        await lump.send("to_solid")
        await lump.send("sublimate")
        await lump.send("ionize")
        assert (lump.state, lump.is_final) == ("plasma", False)


async def test_without_them_a_state_that_nothing_leads_out_of_ends_the_run() -> None:
    flow = Workflow.from_transitions(MATTER, CHANGES, initial="solid", auto_transitions=False)
    async with PersistentWorkflowStateMachine("memory://", flow) as lump:
        assert flow.accepts(lump.run) == ["melt", "sublimate"]  # type: ignore[arg-type]
        await lump.send("sublimate")
        await lump.send("ionize")
        assert (lump.state, lump.is_final) == ("plasma", True)


async def test_a_hero_naps_works_and_is_called_away() -> None:
    journal: list[str] = []

    def is_exhausted(ctx: Any) -> bool:
        return bool(ctx.data["worked"] > 1)

    def update_journal(ctx: Any) -> None:
        journal.append(ctx.run.state)

    states = ["asleep", "hanging out", "hungry", "sweaty", "saving the world"]
    flow = Workflow.from_transitions(
        states,
        [
            ["wake_up", "asleep", "hanging out"],
            ["work_out", "hanging out", "hungry"],
            ["eat", "hungry", "hanging out"],
            ["distress_call", "*", "saving the world"],
            {"trigger": "complete_mission", "source": "saving the world", "dest": "sweaty", "after": "update_journal"},
            {"trigger": "clean_up", "source": "sweaty", "dest": "asleep", "conditions": [is_exhausted]},
            ["clean_up", "sweaty", "hanging out"],
            ["nap", "*", "asleep"],
        ],
        initial="asleep",
        name="hero",
        functions={"update_journal": update_journal},
    )
    async with PersistentWorkflowStateMachine("memory://", flow, data={"worked": 2}) as batman:
        for event, state in (
            ("wake_up", "hanging out"), ("nap", "asleep"), ("distress_call", "saving the world"),
            ("complete_mission", "sweaty"), ("clean_up", "asleep"),
        ):  # fmt: skip
            await batman.send(event)
            assert batman.state == state
        assert (await batman.send("clean_up")).status == "waiting"
        assert journal == ["sweaty"]
        assert not batman.is_final


async def test_nested_states_have_an_underscore_between_them_there_and_a_dot_here() -> None:
    states = [
        "standing", "walking",
        {"name": "caffeinated", "initial": "dithering", "children": ["dithering", "running"],
         "transitions": [["jog", "dithering", "running"]]},
    ]  # fmt: skip
    ways = [
        ["walk", "standing", "walking"], ["stop", "walking", "standing"], ["drink", "*", "caffeinated"],
        ["walk", ["caffeinated", "caffeinated_dithering"], "caffeinated_running"], ["relax", "caffeinated", "standing"],
    ]  # fmt: skip
    flow = Workflow.from_transitions(states, ways, initial="standing")
    async with PersistentWorkflowStateMachine("memory://", flow) as one:
        for event, state in (
            ("walk", "walking"), ("stop", "standing"), ("drink", "caffeinated.dithering"),
            ("jog", "caffeinated.running"), ("drink", "caffeinated.dithering"), ("walk", "caffeinated.running"),
            ("relax", "standing"),
        ):  # fmt: skip
            await one.send(event)
            assert one.state == state


async def test_parallel_states_move_on_their_own() -> None:
    regions = [
        {"name": "light", "initial": "off", "children": ["off", {"name": "on", "final": True}]},
        {"name": "door", "initial": "shut", "children": ["shut", {"name": "open", "final": True}]},
    ]
    ways = [["press", "room_light_off", "room_light_on"], ["push", "room_door_shut", "room_door_open"],
            ["leave", "room", "out"]]  # fmt: skip
    flow = Workflow.from_transitions([{"name": "room", "parallel": regions}, "out"], ways, initial="room")
    async with PersistentWorkflowStateMachine("memory://", flow) as one:
        assert one.state == "room.light.off, room.door.shut"
        await one.send("push")
        assert one.state == "room.light.off, room.door.open"
        await one.send("leave")
        assert one.state == "out"


class Lamp(Enum):
    RED = 1
    GREEN = 2


async def test_enums_conditions_and_loops_are_as_there() -> None:
    seen: list[str] = []
    flow = Workflow.from_transitions(
        Lamp,
        [
            {"trigger": "go", "source": Lamp.RED, "dest": Lamp.GREEN, "unless": lambda ctx: ctx.data.get("jam")},
            {"trigger": "blink", "source": "*", "dest": "=", "after": lambda ctx: seen.append(ctx.run.state)},
            {"trigger": "note", "source": [Lamp.RED, Lamp.GREEN], "dest": None},
            ["stop", Lamp.GREEN, Lamp.RED],
        ],
        initial=Lamp.RED,
        name="lamp",
    )
    async with Engine("memory://", workflows=[flow]) as engine:
        await engine.run(flow, {"jam": True}, key="k")
        assert (await engine.send(flow, "k", "go")).status == "rejected"
        visit = (await engine.send(flow, "k", "blink")).version
        run = await engine.result(flow, "k")
        assert (run.state, run.visit, seen) == ("RED", visit, ["RED"])
        await engine.send(flow, "k", "note")
        assert (await engine.result(flow, "k")).visit == visit
    assert Workflow.from_dict(flow.to_dict(), functions=flow.code).to_dict() == flow.to_dict()


@pytest.fixture(params=["memory", "sqlite"])
def db(request: pytest.FixtureRequest) -> str:
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("sqlite_url"))


async def states_of(flow: Workflow, events: list[str], db: str = "memory://") -> list[str | None]:
    """The states that one run comes to, by these events."""
    async with PersistentWorkflowStateMachine(db, flow) as one:
        found = [one.state]
        for event in events:
            await one.send(event)
            found.append(one.state)
        return found


async def test_state_objects_bring_their_callbacks_and_several_are_called_one_after_the_other(db: str) -> None:
    said: list[str] = []
    flow = Workflow.from_transitions(
        [State("solid", on_exit=["say_goodbye"]), "liquid", {"name": "gas", "on_enter": ["say_hello", "wave"]}],
        [["sublimate", "solid", "gas"]],
        initial="solid",
        functions={name: lambda ctx, name=name: said.append(name) for name in ("say_goodbye", "say_hello", "wave")},
    )
    assert await states_of(flow, ["sublimate"], db) == ["solid", "gas"]
    assert said == ["say_goodbye", "say_hello", "wave"]


@pytest.mark.parametrize(("speed", "state"), [(15, "offender_gone"), (5, "offender_caught")])
async def test_a_hero_is_done_in_a_final_state(speed: int, state: str, db: str) -> None:
    over: list[str] = []

    def claim_success(ctx: Any) -> None:
        over.append(ctx.run.state)

    flow = Workflow.from_transitions(
        ["idling", "rescuing_kitten",
         *(State(name, final=True, on_enter=[claim_success]) for name in ("offender_gone", "offender_caught"))],
        [
            ["called", "idling", "rescuing_kitten"],
            {"trigger": "intervene", "source": "rescuing_kitten", "dest": "offender_gone",
             "conditions": lambda ctx: ctx.data["speed"] < ctx.event.payload["speed"]},
            ["intervene", "rescuing_kitten", "offender_caught"],
        ],
        initial="idling",
    )  # fmt: skip
    async with PersistentWorkflowStateMachine(db, flow, data={"speed": 10}) as hero:
        await hero.send("called")
        await hero.send("intervene", {"speed": speed})
        assert (hero.state, hero.is_final, over) == (state, True, [state])


COUNTER = {
    "name": "counting",
    "initial": "1",
    "states": ["1", "2", "3", "done"],
    "transitions": [
        ["increase", "1", "2"], ["increase", "2", "3"], ["decrease", "3", "2"], ["decrease", "2", "1"],
        ["done", "3", "done"], ["reset", "*", "1"],
    ],
}  # fmt: skip
COLLECTOR = [["collect", "*", "collecting"], ["wait", "*", "waiting"], ["count", "collecting", "counting"]]


async def test_a_machine_within_another_counts_and_its_done_is_a_state_of_its_own(db: str) -> None:
    flow = Workflow.from_transitions(["waiting", "collecting", COUNTER], COLLECTOR, initial="waiting")
    events = ["collect", "count", "increase", "increase", "decrease", "reset", "increase", "increase", "done", "wait"]
    assert await states_of(flow, events, db) == [
        "waiting", "collecting", *(f"counting.{n}" for n in ("1", "2", "3", "2", "1", "2", "3", "done")), "waiting",
    ]  # fmt: skip


async def test_a_state_within_may_stand_for_one_around_it() -> None:
    states = ["waiting", "collecting", {**COUNTER, "remap": {"done": "waiting"}}]
    flow = Workflow.from_transitions(states, COLLECTOR, initial="waiting")
    found = await states_of(flow, ["collect", "count", "increase", "increase", "done"])
    assert found[-2:] == ["counting.3", "waiting"]
    assert "counting.done" not in flow.states


async def test_regions_answer_one_event_together_and_are_left_together(db: str) -> None:
    states = [
        "A", "B",
        {"name": "C", "transitions": [["go", "2_z", "2_x"]], "parallel": [
            {"name": "1", "children": ["a", "b", "c"], "initial": "a", "transitions": [["go", "a", "b"]]},
            {"name": "2", "children": ["x", "y", "z"], "initial": "z"},
        ]},
    ]  # fmt: skip
    flow = Workflow.from_transitions(states, [["reset", "C_1_b", "B"]], initial="A")
    found = await states_of(flow, ["to_C", "go", "reset"], db)
    assert found == ["A", "C.1.a, C.2.z", "C.1.b, C.2.x", "B"]


async def test_a_final_parallel_state_ends_the_run_when_all_its_regions_have_ended() -> None:
    region = {"children": ["a", {"name": "b", "final": True}], "initial": "a"}
    states = ["A", "B", {"name": "C", "final": True, "parallel": [
        {"name": "1", **region, "transitions": [["left", "a", "b"]]},
        {"name": "2", **region, "transitions": [["right", "a", "b"]]},
        {"name": "3", "final": True},
    ]}]  # fmt: skip
    ways = [["reset", "C", "A"], ["init", "A", "B"], ["do", "B", "C"]]
    flow = Workflow.from_transitions(states, ways, initial="A", auto_transitions=False)
    async with PersistentWorkflowStateMachine("memory://", flow) as one:
        for event in ("init", "do", "left", "reset", "init", "do", "right"):
            await one.send(event)
            assert not one.is_final
        await one.send("left")
        assert (one.is_final, one.run.status) == (True, "done")  # type: ignore[union-attr]


async def test_a_parent_that_is_entered_without_a_child_is_alone() -> None:
    states = ["A", "B", {"name": "C", "children": ["1", "2", {"name": "3", "initial": "a", "children": ["a", "b"]}]}]
    flow = Workflow.from_transitions(states, [["reset", "C", "A"], ["reset", "C_2", "C"]], initial="A")
    found = await states_of(flow, ["to_C", "to_C_3", "to_C_2", "reset", "reset"])
    assert found == ["A", "C._", "C.3.a", "C.2", "C._", "A"]


async def test_a_timeout_is_the_trigger_that_it_names_and_begins_anew_with_each_entry() -> None:
    came: list[str] = []
    states = [
        {"name": "preparing", "tags": ["home", "busy"]},
        {"name": "waiting", "timeout": 1, "on_timeout": "go", "on_enter": lambda ctx: came.append(ctx.run.key)},
        {"name": "away"},
    ]
    ways = [["done", "preparing", "waiting"], ["join", "waiting", "waiting"], ["go", "waiting", "away"]]
    flow = Workflow.from_transitions(states, ways, initial="preparing")
    clock = Clock(1_000.0)
    async with Engine(MemoryStore(clock=clock), workflows=[flow], poll=0.01) as engine:
        await engine.run(flow, key="hero")
        for event, passed in (("done", 0.7), ("join", 0.5), ("join", 0.9)):
            await engine.send(flow, "hero", event)
            run = await engine.result(flow, "hero")
            clock.turn(passed)
            assert (run.state, run.due) == ("waiting", clock() - passed + 1)
        clock.turn(0.2)
        async with asyncio.timeout(PATIENCE):
            while (await engine.get(flow, "hero")).state == "waiting":
                await asyncio.sleep(0.01)
        assert (await engine.get(flow, "hero")).state == "away"
    assert came == ["hero"] * 3


@pytest.mark.parametrize(
    ("states", "ways", "told"),
    [
        (MATTER, [{"trigger": "melt", "source": "solid", "dest": "liquid", "before": "x"}], "no 'before' here"),
        (MATTER, [{"trigger": "melt", "sorce": "solid"}], "there is no key 'sorce' (did you mean 'source'?)"),
        (MATTER, [["melt", "solid", "liqid"]], "'liqid'"),
        (MATTER, [["melt", "solid", "liquid", [3]]], "3 is neither a function nor the name of one"),
        (MATTER, [["melt", "solid", "gas", None, None, None, ["a", "b"]]], "of several functions each is given"),
        (MATTER, ["melt"], "a transition is a list or a mapping"),
        (MATTER, [["melt", "solid"]], "the key 'dest' is missing; a dest of None stays in its source"),
        (MATTER, [{"trigger": "melt", "dest": "gas"}], "transition 'melt': the key 'source' is missing"),
        (MATTER, [{"source": "solid", "dest": "gas"}], "the key 'trigger' is missing"),
        ([{"name": "a", "ignore_invalid_triggers": True}], [], "an event that no state accepts waits"),
        ([{"name": "solid", "timeout": 3, "on_timeout": "go"}], [], "on_timeout 'go' is no trigger that leads out"),
        ([{"name": "solid", "on_final": "x", "children": ["a"]}], [], "no 'on_final' of a state that holds others"),
        ([3], [], "a state is a name"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(states: Any, ways: Any, told: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Workflow.from_transitions(states, ways, initial="solid")
    assert told in str(refused.value)
