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

from fsmworkflow import Engine, Retry, Workflow, actions
from fsmworkflow.conditions import View
from fsmworkflow.errors import ConditionError, DefinitionError, NotAccepted
from fsmworkflow.readers.pystator import Entity, Machine
from fsmworkflow.readers.pystator.guards import Merged
from fsmworkflow.store.memory import MemoryStore
from fsmworkflow.testing import Clock
from tests.waiting import PATIENCE

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


SEEN = {"qty": 1, "order": {"qty": 5, "side": "buy"}, "a.b": 7}


@pytest.mark.parametrize(
    ("expr", "payload", "passes"),
    [
        ("qty == 1", None, True),
        ("qty == 2", {"qty": 2}, True),
        ("qty == 1", {"qty": 2}, False),
        ("order.qty == 5", {"qty": 2}, True),
        ("order.qty == 6 and not has(order.side)", {"order": {"qty": 6}}, True),  # the payload's, whole
        ("a.b == 7", {}, True),
        ("a.b == 8", {"a.b": 8}, True),
        ("has(missing)", {"missing": None}, False),
        ("has(missing)", {"missing": 0}, True),
        ("true and event.qty == 2 and qty in [2]", {"qty": 2, "true": False}, True),
        ("qty == 1", ["qty"], True),
    ],
)
async def test_an_expression_sees_the_payload_over_the_data(expr: str, payload: Any, passes: bool) -> None:
    asked = Merged(expr)
    view = View(dict(SEEN), payload)
    assert await asked.ask(view) is passes
    assert view.data == SEEN
    assert view.seen[0].condition == expr


async def test_an_expression_about_what_is_in_neither_has_no_answer() -> None:
    with pytest.raises(ConditionError, match="there is no missing"):
        await Merged("missing > 1").ask(View(dict(SEEN), {"qty": 2}))


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
    async with asyncio.timeout(PATIENCE):
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
        async with asyncio.timeout(PATIENCE):
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


def test_all_functions_that_are_not_bound_are_told_at_once_each_where_it_is_named_first(tmp_path: Path) -> None:
    text = QUICK.replace(
        "dest: OPEN}", "dest: OPEN, guards: [ready, ready], actions: [note, {name: book, params: {a: 1}}]}"
    )
    with pytest.raises(DefinitionError) as refused:
        machine(text, tmp_path).workflow()
    told = [problem.partition("transitions[0].")[2].split(": @")[0] for problem in refused.value.problems]
    assert told == [
        "guards[0]: guard 'ready' is not bound", "actions[0]: action 'note' is not bound",
        "actions[1].name: action 'book' is not bound",
    ]  # fmt: skip


def test_all_mistakes_of_a_file_are_told_together(tmp_path: Path) -> None:
    text = """
meta: {machine_name: order}
states:
  - {name: NEW, type: initial, on_entr: [note]}
  - {name: OPEN, type: stabel}
  - {name: DONE, type: terminal}
transitions:
  - {trigger: ack, source: NEW, dest: OPEN, guard: [ready]}
  - {trigger: fill, source: OPNE, dest: DONE}
  - {source: OPEN, dest: DONE}
"""
    with pytest.raises(DefinitionError) as refused:
        machine(text, tmp_path).workflow()
    assert [problem.partition("machine.yaml:")[2] for problem in refused.value.problems] == [
        "4:32: states[0].on_entr: there is no key 'on_entr' (did you mean 'on_enter'?)",
        "5:18: states[1].type: there is no type 'stabel' (did you mean 'stable'?)",
        "8:45: transitions[0].guard: there is no key 'guard' (did you mean 'guards'?)",
        "9:21: transitions[1].source: there is no state 'OPNE' (did you mean 'OPEN'?)",
        "10:5: transitions[2]: a transition has 'trigger', 'after', or 'auto: true'",
    ]


async def test_a_name_that_an_entity_does_not_have_is_told_with_the_nearest(tmp_path: Path) -> None:
    async with machine(QUICK, tmp_path).create(key="o") as order:
        with pytest.raises(AttributeError, match=r"has no 'exchange_akc' .did you mean 'exchange_ack'"):
            order.exchange_akc  # noqa: B018


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
        ("dest: FILLED", "dest: FILLED, actions: [{set: 3}]", "transitions[1].actions[0].set: it is a mapping"),
        ("dest: FILLED", "dest: FILLED, actions: [{incremnt: a}]", "no key 'incremnt' (did you mean 'increment'?)"),
        ("type: stable", "type: stable, invoke: [{src: a, on_done: b}, {src: c, on_done: d}]", "invokes one service"),
        ("name: OPEN", "name: OPEN, parent: OPEN", "lies within itself"),
        ("type: stable", "type: stable, timeout: {seconds: soon, destination: FILLED}", "it is a number or a number"),
        ("name: OPEN", "name: PENDING", "there is another state 'PENDING'"),
        ("name: OPEN", "name: 0PEN", "'0PEN' is no name of a state"),
        ("dest: FILLED", "dest: FILLED, guards: [{params: {}}]", "a guard has 'name', 'expr' or 'check'"),
        ("dest: FILLED", "dest: FILLED, after: soon", "'soon' is no delay"),
        ("dest: FILLED", "dest: FILLED, guards: [{check: {field: a, op: eqq}}]", "no operator 'eqq'"),
        ("strict_mode: true", "event_normalizer: title", "it is 'lower' or 'upper'"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_refused_by_name_and_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        machine(QUICK.replace(old, new), tmp_path).workflow()
    assert told in str(refused.value)


LIFE = """
meta: {version: "1.1.0", machine_name: order_management, strict_mode: true, description: the life of an order}
groups: {live: {description: on the book}}
state_variables:
  - {key: order_id, type: string, required: true}
  - {key: quantity, type: number, required: true}
  - {key: filled_qty, type: number, default: 0}
states:
  - name: DRAFT
    type: initial
    on_enter: [{set: {status: draft, reports: 0}}, {timestamp: created_at}]
    on_exit: [clear_draft, {clear: note}]
  - name: PENDING_VALIDATION
    group: live
    on_enter: [enqueue, {set: {status: pending_validation}}]
    timeout: {seconds: 30.0, destination: VALIDATION_TIMED_OUT}
  - {name: VALIDATION_FAILED, type: terminal, on_enter: [{set: {status: validation_failed}}]}
  - {name: VALIDATION_TIMED_OUT, type: terminal, on_enter: [{set: {status: validation_timed_out}}]}
  - name: PENDING_NEW
    on_enter: [send_order, {set: {status: pending_new}}, {timestamp: submitted_at}]
    timeout: {seconds: 10.0, destination: TIMED_OUT_ACK}
  - {name: TIMED_OUT_ACK, type: terminal, on_enter: [{set: {status: timed_out_ack}}]}
  - {name: REJECTED, type: terminal}
  - {name: OPEN, on_enter: [notify, {set: {status: open}}], on_exit: [stop_timer]}
  - {name: PARTIALLY_FILLED, on_enter: [notify, {set: {status: partially_filled}}]}
  - name: PENDING_CANCEL
    on_enter: [{set: {status: pending_cancel}}]
    timeout: {seconds: 5.0, destination: CANCEL_TIMED_OUT}
  - {name: CANCEL_TIMED_OUT, type: terminal}
  - {name: CANCEL_REJECTED}
  - {name: FILLED, type: terminal, on_enter: [update_positions, {set: {status: filled}}]}
  - {name: CANCELED, type: terminal, on_enter: [{set: {status: canceled}}]}
  - {name: EXPIRED, type: terminal}
  - {name: ERROR_STATE, type: error, on_enter: [alert]}
transitions:
  - {trigger: submit_order, source: DRAFT, dest: PENDING_VALIDATION, actions: [reserve]}
  - {trigger: abandon_order, source: DRAFT, dest: CANCELED}
  - {trigger: validation_pass, source: PENDING_VALIDATION, dest: PENDING_NEW}
  - {trigger: validation_fail, source: PENDING_VALIDATION, dest: VALIDATION_FAILED}
  - {trigger: exchange_ack, source: PENDING_NEW, dest: OPEN}
  - {trigger: exchange_nack, source: PENDING_NEW, dest: REJECTED}
  - trigger: execution_report
    source: [OPEN, PARTIALLY_FILLED]
    dest: FILLED
    guards: [is_full_fill]
    actions: [book, {increment: reports}]
  - trigger: execution_report
    source: [OPEN, PARTIALLY_FILLED]
    dest: PARTIALLY_FILLED
    guards: [is_partial_fill]
    actions: [book, {increment: reports}, {append: {field: seen, value: part}}]
  - {trigger: cancel_request, source: [OPEN, PARTIALLY_FILLED], dest: PENDING_CANCEL}
  - {trigger: cancel_ack, source: PENDING_CANCEL, dest: CANCELED}
  - {trigger: cancel_nack, source: PENDING_CANCEL, dest: CANCEL_REJECTED}
  - {trigger: resume_trading, source: CANCEL_REJECTED, dest: OPEN, guards: [has_no_fills]}
  - {trigger: resume_trading, source: CANCEL_REJECTED, dest: PARTIALLY_FILLED, guards: [has_partial_fills]}
  - {trigger: order_expired, source: [OPEN, PARTIALLY_FILLED], dest: EXPIRED}
error_policy: {default_fallback: ERROR_STATE, retry_attempts: 3}
"""


def life(tmp_path: Path, done: list[str]) -> Machine:
    made = machine(LIFE, tmp_path)
    made.bind_guards(
        {
            "is_full_fill": lambda ctx: ctx["filled_qty"] >= ctx["quantity"],
            "is_partial_fill": lambda ctx: 0 < ctx["filled_qty"] < ctx["quantity"],
            "has_no_fills": lambda ctx: not ctx["filled_qty"],
            "has_partial_fills": lambda ctx: ctx["filled_qty"] > 0,
        }
    )
    names = (
        "clear_draft",
        "enqueue",
        "send_order",
        "notify",
        "stop_timer",
        "update_positions",
        "alert",
        "reserve",
        "book",
    )
    made.bind_actions({name: lambda ctx, name=name: done.append(f"{name} {ctx['status']}") for name in names})
    return made


@pytest.mark.parametrize("kept", ["memory", "sqlite"])
async def test_an_order_lives_and_its_effects_are_in_the_commit_of_each_move(tmp_path: Path, kept: str) -> None:
    done: list[str] = []
    db = "memory://" if kept == "memory" else f"sqlite:///{tmp_path}/orders.db"
    async with life(tmp_path, done).create({"order_id": "7", "quantity": 10, "note": "x"}, db=db, key="7") as order:
        assert (order.current_state, order.context["status"]) == ("DRAFT", "draft")
        assert "created_at" in order.context
        await order.submit_order()
        assert done == [f"{name} pending_validation" for name in ("clear_draft", "reserve", "enqueue")]
        assert "note" not in order.context
        await order.validation_pass()
        await order.exchange_ack()
        await order.execution_report(filled_qty=4)
        await order.execution_report(filled_qty=6)
        assert (order.is_partially_filled, order.context["seen"]) == (True, ["part", "part"])
        await order.cancel_request()
        await order.cancel_nack()
        await order.resume_trading()
        assert order.context["status"] == "partially_filled"
        await order.execution_report(filled_qty=10)
        assert (order.is_filled, order.is_final, order.context["status"]) == (True, True, "filled")
        assert order.context["reports"] == 3
    assert done[-2:] == ["book filled", "update_positions filled"], "actions see what the effects have made"


async def test_each_wait_of_an_order_has_its_timeout(tmp_path: Path) -> None:
    clock, flow = Clock(1_000_000.0), life(tmp_path, []).workflow()
    ways = {
        "VALIDATION_TIMED_OUT": ["submit_order"],
        "TIMED_OUT_ACK": ["submit_order", "validation_pass"],
        "CANCEL_TIMED_OUT": ["submit_order", "validation_pass", "exchange_ack", "cancel_request"],
    }
    async with Engine(MemoryStore(clock=clock), workflows=[flow], poll=0.01) as engine:
        for key, events in ways.items():
            await engine.run(flow, {"order_id": key, "quantity": 1, "filled_qty": 0}, key=key)
            for event in events:
                await engine.send(flow, key, event)
            await engine.result(flow, key)
        clock.turn(31)
        assert [await ended(engine, flow, key) for key in ways] == list(ways)


async def test_an_action_that_fails_for_good_leads_to_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "ACTION_RETRY", Retry(attempts=3, first_delay=0, max_delay=0))
    done: list[str] = []
    made = life(tmp_path, done)

    @made.action("send_order")
    def send_order(ctx: dict[str, Any]) -> None:
        done.append("tried")
        raise OSError("no line")

    async with made.create({"order_id": "7", "quantity": 10}) as order:
        await order.submit_order()
        done.clear()
        await order.validation_pass()
        assert (order.current_state, order.is_final, done) == (
            "ERROR_STATE",
            True,
            [*["tried"] * 3, "alert pending_new"],
        )
        assert order.context["error"]["message"] == "no line"


WITHIN = """
states:
  - {name: idle, type: initial}
  - {name: up, initial_child: up.first, on_enter: [{append: {field: way, value: up}}]}
  - {name: up.first, parent: up, on_enter: [{append: {field: way, value: first}}]}
  - {name: up.over, type: terminal, parent: up, on_enter: [{append: {field: way, value: over}}]}
  - name: both
    type: parallel
    regions: [{name: a, initial: a.one, states: [a.one, a.two]}, {name: b, initial: b.one, states: [b.one]}]
    on_enter: [{append: {field: way, value: both}}]
  - {name: a.one, on_enter: [{append: {field: way, value: a1}}]}
  - {name: a.two, on_enter: [{append: {field: way, value: a2}}]}
  - {name: b.one, on_enter: [{append: {field: way, value: b1}}]}
transitions:
  - {trigger: go, source: idle, dest: up}
  - {trigger: again, source: up.first, dest: up.first}
  - {trigger: split, source: up.first, dest: both}
  - {trigger: jump, source: up.first, dest: a.two}
  - {trigger: turn, source: a.one, dest: a.two}
  - {trigger: back, source: both, dest: up}
  - {trigger: stop, source: up.first, dest: up.over}
"""


async def test_effects_of_entry_are_those_of_all_that_is_entered_and_a_terminal_state_ends_the_run(
    tmp_path: Path,
) -> None:
    async with machine(WITHIN, tmp_path).create() as one:
        for event, added in (
            ("go", ["up", "first"]), ("again", ["first"]), ("split", ["both", "a1", "b1"]), ("turn", ["a2"]),
            ("back", ["up", "first"]), ("jump", ["both", "b1", "a2"]), ("back", ["up", "first"]), ("stop", ["over"]),
        ):  # fmt: skip
            before = one.context.get("way", [])
            await one.send(event)
            assert one.context["way"] == [*before, *added], event
        assert (one.current_state, one.is_up_over, one.is_final) == ("up.over", True, True)


def test_effects_of_the_exit_of_a_state_within_another_are_refused(tmp_path: Path) -> None:
    text = WITHIN.replace("parent: up, on_enter", "parent: up, on_exit: [{clear: x}], on_enter", 1)
    with pytest.raises(DefinitionError, match="effects of the exit of a state within another are not mapped"):
        machine(text, tmp_path).workflow()


def test_plain_values_are_read_as_files_are() -> None:
    made = Machine.from_dict(
        {
            "states": [{"name": "A", "type": "initial"}, {"name": "B", "type": "terminal"}],
            "transitions": [{"trigger": "go", "source": "A", "dest": "B"}],
        }
    )
    assert isinstance(made.create(), Entity)
    assert made.workflow().name == "machine"


async def test_an_event_is_processed_for_a_program_that_keeps_the_state_itself(tmp_path: Path) -> None:
    quick = machine(QUICK, tmp_path)
    taken = await quick.process("PENDING", "exchange_ack", {})
    assert (taken.success, taken.target_state, taken.error) == (True, "OPEN", None)
    other = await quick.process("PENDING", "fill", {"qty": 1})
    assert (other.success, other.target_state, other.context) == (False, "PENDING", {"qty": 1})
    assert "in state 'PENDING' takes exchange_ack, and not 'fill'" in (other.error or "")
    with pytest.raises(DefinitionError):
        await quick.process("NOWHERE", "fill")


async def test_what_a_guard_says_of_a_processed_event_is_told(tmp_path: Path) -> None:
    made = orders(tmp_path, [])
    held = {"order_qty": 100}
    part = await made.process("OPEN", "FILL", {**held, "fill_qty": 40})
    assert (part.success, part.target_state, part.context["filled"]) == (True, "PARTIAL", 0)
    refused = await made.process("OPEN", "fill", {"fill_qty": 40})
    assert (refused.success, refused.target_state) == (False, "OPEN")
    assert "order_qty" in (refused.error or "")
