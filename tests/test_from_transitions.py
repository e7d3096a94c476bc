"""Machines of the transitions library: what its users write down is a workflow here."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from fsmworkflow import Engine, PersistentWorkflowStateMachine, Workflow
from fsmworkflow.errors import DefinitionError

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


@pytest.mark.parametrize(
    ("states", "ways", "told"),
    [
        (MATTER, [{"trigger": "melt", "source": "solid", "dest": "liquid", "before": "x"}], "no 'before' here"),
        (MATTER, [{"trigger": "melt", "sorce": "solid"}], "there is no key 'sorce' (did you mean 'source'?)"),
        (MATTER, [["melt", "solid", "liqid"]], "'liqid'"),
        (MATTER, [["melt", "solid", "liquid", [3]]], "3 is neither a function nor the name of one"),
        (MATTER, [{"trigger": "melt", "source": "solid", "dest": "gas", "after": ["a", "b"]}], "it takes one function"),
        (MATTER, ["melt"], "a transition is a list or a mapping"),
        ([{"name": "a", "ignore_invalid_triggers": True}], [], "an event that no state accepts waits"),
        ([{"name": "a", "timeout": 3}], [], "write Transition(delay=)"),
        ([3], [], "a state is a name"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(states: Any, ways: Any, told: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Workflow.from_transitions(states, ways, initial="solid")
    assert told in str(refused.value)
