"""Machines of PyStator's, loaded as they are: what their format says happens."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow
from fsmworkflow.errors import DefinitionError, NotAccepted
from fsmworkflow.readers.pystator import Entity, Machine
from fsmworkflow.store.memory import MemoryStore
from fsmworkflow.testing import Clock

QUICK = """
meta: {version: "1.0.0", machine_name: order_management, strict_mode: true}
states:
  - {name: PENDING, type: initial}
  - {name: OPEN, type: stable}
  - {name: FILLED, type: terminal}
transitions:
  - {trigger: exchange_ack, source: PENDING, dest: OPEN}
  - {trigger: fill, source: OPEN, dest: FILLED}
"""

ORDER = """
meta:
  version: "2.1"
  machine_name: orders
  event_normalizer: lower
  validate_context: true
state_variables:
  - {key: order_qty, type: int, required: true}
  - {key: filled, default: 0}
  - note
events:
  - {name: fill, payload: {fill_qty: int}}
states:
  - {name: NEW, type: initial, on_exit: left_new}
  - {name: OPEN, timeout: {seconds: 86400, destination: EXPIRED}, on_enter: [audit, {name: tell, params: {to: desk}}]}
  - {name: PARTIAL, description: some of it}
  - {name: FILLED, type: terminal}
  - {name: CANCELLED, type: terminal}
  - {name: EXPIRED, type: terminal}
transitions:
  - {trigger: ACK, source: NEW, dest: OPEN}
  - {trigger: fill, source: [OPEN, PARTIAL], dest: FILLED, guards: {expr: filled + fill_qty >= order_qty}, priority: 1}
  - {trigger: fill, source: [OPEN, PARTIAL], dest: PARTIAL, priority: 2}
  - {trigger: amend, source: OPEN, dest: OPEN, internal: true, actions: audit}
  - {trigger: cancel, source: "*", dest: CANCELLED, guards: may_cancel}
  - {source: PARTIAL, dest: CANCELLED, after: 10m}
"""


def machine(text: str, tmp_path: Path) -> Machine:
    file = tmp_path / "machine.yaml"
    file.write_text(text)
    return Machine.load(file)


def orders(tmp_path: Path, done: list[Any]) -> Machine:
    made = machine(ORDER, tmp_path)

    @made.guard("may_cancel")
    def may_cancel(ctx: dict[str, Any]) -> bool:
        return bool(ctx.get("by") == "owner")

    @made.action("audit")
    async def audit(ctx: dict[str, Any]) -> None:
        done.append(("audit", ctx["order_qty"]))

    made.bind_actions(
        {
            "tell": lambda ctx: done.append(("tell", ctx["_action_params"])),
            "left_new": lambda ctx: done.append("left"),
        }
    )
    return made


async def test_the_quick_start_does_what_it_says(tmp_path: Path) -> None:
    made = machine(QUICK, tmp_path)
    async with made.create({"order_id": "123", "order_qty": 100}) as order:
        assert order.current_state == "PENDING"
        assert order.is_pending
        assert not order.is_open
        assert order.allowed_triggers == ["exchange_ack"]
        assert (await order.send("exchange_ack")).status == "accepted"
        assert order.is_open
        await order.fill(fill_qty=100)
        assert (order.current_state, order.is_final) == ("FILLED", True)
        assert order.context == {"order_id": "123", "order_qty": 100, "fill_qty": 100}
        with pytest.raises(AttributeError, match="is_paid"):
            order.is_paid  # noqa: B018


async def test_it_is_a_workflow_as_any_other(tmp_path: Path) -> None:
    flow = machine(QUICK, tmp_path).workflow()
    assert isinstance(flow, Workflow)
    assert (flow.name, flow.version, list(flow.states)) == ("order_management", 1, ["PENDING", "OPEN", "FILLED"])
    async with Engine("memory://", workflows=[flow]) as engine:
        await engine.run(flow, key="o-1")
        for event in ("exchange_ack", "fill"):
            await engine.send(flow, "o-1", event)
        assert (await engine.result(flow, "o-1")).state == "FILLED"


async def test_the_payload_merges_guards_see_it_and_actions_come_after_the_commit(tmp_path: Path) -> None:
    done: list[Any] = []
    async with orders(tmp_path, done).create({"order_qty": 10}) as order:
        await order.ack()
        assert done == ["left", ("audit", 10), ("tell", {"to": "desk"})]
        await order.fill(fill_qty=4, filled=4)
        assert (order.current_state, order.context["filled"]) == ("PARTIAL", 4)
        assert (await order.cancel(by="thief")).status == "rejected"
        assert order.is_partial
        assert "by" not in order.context
        await order.FILL(fill_qty=6) if hasattr(order, "FILL") else await order.send("FILL", fill_qty=6)
        assert order.is_filled


async def test_an_internal_transition_stays_in_its_visit(tmp_path: Path) -> None:
    done: list[Any] = []
    async with orders(tmp_path, done).create({"order_qty": 10}) as order:
        await order.ack()
        done.clear()
        await order.amend(order_qty=12)
        assert done == [("audit", 12)], "neither exit nor entry"
        assert order.is_open


async def test_required_variables_are_asked_for_before_any_guard(tmp_path: Path) -> None:
    async with orders(tmp_path, []).create() as order:
        assert (await order.ack()).status == "rejected"
        assert (await order.ack(order_qty=5)).status == "accepted"
        assert order.context == {"filled": 0, "order_qty": 5}


async def test_timeouts_and_delays_fire_by_themselves(tmp_path: Path) -> None:
    clock = Clock(1_000_000.0)
    flow = orders(tmp_path, []).workflow()
    async with Engine(MemoryStore(clock=clock), workflows=[flow], poll=0.01) as engine:
        for key in ("slow", "partial"):
            await engine.run(flow, {"order_qty": 10, "filled": 0}, key=key)
            await engine.send(flow, key, "ack")
        await engine.send(flow, "partial", "fill", {"fill_qty": 1})
        assert (await engine.result(flow, "partial")).state == "PARTIAL"
        assert (await engine.result(flow, "slow")).state == "OPEN"
        clock.turn(601)
        assert await ended(engine, flow, "partial") == "CANCELLED"
        assert (await engine.get(flow, "slow")).state == "OPEN"
        clock.turn(86_400)
        assert await ended(engine, flow, "slow") == "EXPIRED"


async def ended(engine: Engine, flow: Workflow, key: str) -> str:
    async with asyncio.timeout(20):
        while not (run := await engine.get(flow, key)).over:
            await asyncio.sleep(0.01)
    return run.state


PROGRAM = """
    import asyncio, os, sys
    from fsmworkflow.readers.pystator import Machine

    async def main():
        made = Machine.load("machine.yaml")
        async with made.create(db="sqlite:///trips.db", key="t") as trip:
            print(trip.current_state, trip.context, flush=True)
            if sys.argv[1] == "die":
                await trip.go(to="rome")
                os._exit(9)

    asyncio.run(main())
"""


def test_state_data_and_delays_survive_a_process_that_dies(tmp_path: Path) -> None:
    (tmp_path / "machine.yaml").write_text(
        "states: [{name: here, type: initial}, {name: away}, {name: there, type: terminal}]\n"
        "transitions: [{trigger: go, source: here, dest: away}, {source: away, dest: there, after: 1}]\n"
    )
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

    def run(word: str) -> tuple[int, str]:
        command = [sys.executable, "program.py", word]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout.strip()

    assert run("die") == (9, "here {}")
    assert run("look") == (0, "there {'to': 'rome'}")


TRADING = """
states:
  - {name: closed, type: initial}
  - name: day
    type: parallel
    regions:
      - {name: trading, initial: flat, states: [flat, long]}
      - {name: risk, initial: risk.ok, states: [risk.ok, risk.bad]}
  - {name: flat}
  - {name: long}
  - {name: risk.ok}
  - {name: risk.bad}
  - {name: over, type: terminal}
transitions:
  - {trigger: open, source: closed, dest: day}
  - {trigger: buy, source: flat, dest: long, region: trading}
  - {trigger: breach, source: risk.ok, dest: risk.bad, region: risk}
  - {trigger: close, source: day, dest: over}
"""


async def test_regions_move_on_their_own_and_are_left_as_they_were_entered(tmp_path: Path) -> None:
    async with machine(TRADING, tmp_path).create() as day:
        await day.send("open")
        assert day.current_state == "flat, risk.ok"
        await day.buy()
        await day.breach()
        assert (day.is_day, day.is_long, day.is_risk_bad, day.is_flat) == (True, True, True, False)
        await day.close()
        assert day.current_state == "over"


NESTED = """
states:
  - {name: idle, type: initial}
  - {name: active, initial_child: running, on_exit: leave}
  - {name: running, parent: active}
  - {name: paused, parent: active}
  - {name: chosen, type: choice}
  - {name: done, type: terminal}
  - {name: broken, type: error}
transitions:
  - {trigger: go, source: idle, dest: active}
  - {trigger: pause, source: running, dest: paused}
  - {trigger: stop, source: active, dest: chosen}
  - {trigger: stop, source: chosen, dest: done, guards: {check: {field: good, op: eq, value: true}}}
  - {trigger: stop, source: chosen, dest: broken}
"""


@pytest.mark.parametrize(("good", "state"), [(True, "done"), (False, "broken")])
async def test_nested_states_and_choices(tmp_path: Path, good: bool, state: str) -> None:
    left: list[str] = []
    made = machine(NESTED, tmp_path)
    made.action("leave")(lambda ctx: left.append(ctx["_entity_id"]))
    async with made.create(key="one") as one:
        await one.go()
        assert (one.current_state, one.is_active, one.is_running) == ("running", True, True)
        await one.pause()
        assert one.is_paused
        await one.stop(good=good)
        assert (one.current_state, one.is_final, left) == (state, True, ["one"])


INVOKES = """
error_policy: {default_fallback: broken, retry_attempts: 2}
states:
  - {name: start, type: initial, invoke: [{id: pay, src: pay, on_done: paid}]}
  - {name: done, type: terminal}
  - {name: broken, type: error}
transitions:
  - {trigger: paid, source: start, dest: done}
"""


@pytest.mark.parametrize(("fails", "state", "calls"), [(0, "done", 1), (2, "done", 3), (9, "broken", 3)])
async def test_a_service_is_called_retried_and_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, state: str, calls: int
) -> None:
    made, called = machine(INVOKES, tmp_path), []
    clock = Clock(0.0)

    @made.action("pay")
    async def pay(ctx: dict[str, Any]) -> dict[str, Any]:
        called.append(ctx["_entity_id"])
        if len(called) <= fails:
            raise OSError("no line")
        return {"receipt": 7}

    flow = made.workflow()
    async with Engine(MemoryStore(clock=clock), workflows=[flow], poll=0.01) as engine:
        started = await engine.start(flow, key="k")
        async with asyncio.timeout(20):
            while not (run := await engine.get(flow, "k")).over:
                clock.turn(60)
                await asyncio.sleep(0.01)
    assert (run.state, len(called), started.key) == (state, calls, "k")
    assert run.data.get("receipt") == (7 if state == "done" else None)


async def test_a_context_validator_is_asked_before_the_guards(tmp_path: Path) -> None:
    def valid(entity: str, state: str, trigger: str, ctx: dict[str, Any]) -> tuple[bool, list[str]]:
        return ctx.get("qty", 0) > 0, [f"{entity}: no qty for {trigger} in {state}"]

    async with machine(QUICK, tmp_path).create(key="o", context_validator=valid) as order:
        with pytest.raises(NotAccepted, match="o: no qty for exchange_ack in PENDING"):
            await order.exchange_ack()
        assert order.is_pending
        await order.exchange_ack(qty=1)
        assert order.is_open


def test_a_guard_without_a_function_is_refused_and_passes_where_the_machine_is_not_strict(tmp_path: Path) -> None:
    text = QUICK.replace("dest: OPEN}", "dest: OPEN, guards: [is_ful]}")
    made = machine(text, tmp_path)
    made.guard("is_full")(lambda ctx: True)
    with pytest.raises(DefinitionError, match=r"machine\.yaml:8.*guard 'is_ful' is not bound .did you mean 'is_full'"):
        made.workflow()
    machine(text.replace("strict_mode: true", "strict_mode: false"), tmp_path).workflow()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("source: OPEN", "sorce: OPEN", "there is no key 'sorce' (did you mean 'source'?)"),
        ("source: OPEN", "sorce: OPEN", "machine.yaml:9:21: transitions[1].sorce: "),
        ("dest: FILLED", "dest: FILED", "there is no state 'FILED' (did you mean 'FILLED'?)"),
        ("dest: FILLED", "dest: H(OPEN)", "there are no history states here"),
        ("type: stable", "type: stabel", "there is no type 'stabel' (did you mean 'stable'?)"),
        ("type: stable", "type: parallel", "a parallel state has regions"),
        ("trigger: fill, ", "", "a transition has 'trigger', 'after', or 'auto: true'"),
        ("dest: FILLED", "dest: FILLED, guards: [{expr: '__import__(1)'}]", "there is no function of this name"),
        ("dest: FILLED", "dest: FILLED, actions: [{set: {a: 1}}]", "effects are not mapped"),
        ("type: stable", "type: stable, invoke: [{src: a, on_done: b}, {src: c, on_done: d}]", "invokes one service"),
        ("name: OPEN", "name: OPEN, parent: OPEN", "lies within itself"),
        ("type: stable", "type: stable, timeout: {seconds: soon, destination: FILLED}", "it is a number or a number"),
        ("name: OPEN", "name: PENDING", "there is another state 'PENDING'"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_refused_by_name_and_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        machine(QUICK.replace(old, new), tmp_path).workflow()
    assert told in str(refused.value)


def test_plain_values_are_read_as_files_are() -> None:
    made = Machine.from_dict(
        {
            "states": [{"name": "A", "type": "initial"}, {"name": "B", "type": "terminal"}],
            "transitions": [{"trigger": "go", "source": "A", "dest": "B"}],
        }
    )
    assert isinstance(made.create(), Entity)
    assert made.workflow().name == "machine"
