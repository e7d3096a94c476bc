"""Hooks are told of every move once it is committed, and of every attempt, and can do no harm."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any

import pytest

from fsmworkflow import Engine, Event, Hook, Move, PersistentWorkflowStateMachine, Retry, Run, RunFailed, Workflow
from fsmworkflow.hooks import Hooks, LogHook
from fsmworkflow.store import open_store

place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="")


class Listens(Hook):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, str, str]] = []
        self.steps: list[tuple[str, int, str]] = []

    def moved(self, move: Move) -> None:
        self.moves.append((move.event.name, move.before.state, move.after.state))

    def step_began(self, run: Run, state: str, attempt: int) -> None:
        place.set(f"{run.key} {state}")
        self.steps.append((state, attempt, "began"))

    def step_ended(self, run: Run, state: str, attempt: int, end: Event | None) -> None:
        self.steps.append((state, attempt, "cancelled" if end is None else end.name))


class Raises(Hook):
    """Fails whenever it is told."""

    def moved(self, move: Move) -> None:
        raise KeyError("a secret of the run")

    def step_began(self, run: Run, state: str, attempt: int) -> None:
        raise ValueError

    def step_ended(self, run: Run, state: str, attempt: int, end: Event | None) -> None:
        raise ValueError


def trip(seen: list[str]) -> Workflow:
    """book (fails once) -> wait -> refused, and what was booked is undone."""
    flow = Workflow("trip")
    tries: list[int] = []

    async def cancel(ctx: Any) -> None: ...

    @flow.step(initial=True, then="wait", retry=Retry(attempts=2, first_delay=0.0), compensate=cancel)
    async def book(ctx: Any) -> None:
        seen.append(place.get())
        tries.append(1)
        if len(tries) == 1:
            raise OSError

    @flow.step("read", then="wait")
    def read(ctx: Any) -> None:
        seen.append(place.get())

    flow.wait("wait", on={"refuse": "refused", "read": "read"})
    flow.final("refused", outcome="failed")
    return flow


async def test_a_hook_hears_every_move_and_every_attempt_also_of_undoing(store_url: str) -> None:
    hook, seen = Listens(), list[str]()
    flow = trip(seen)
    async with Engine(store_url, workflows=[flow], hooks=[hook]) as engine:
        await engine.run(flow, {}, key="a")
        await engine.send(flow, "a", "read")
        await engine.result(flow, "a")
        await engine.send(flow, "a", "refuse")
        run = await engine.result(flow, "a")
        assert run.status == "failed"
        history = await engine.history(flow, "a")
    assert hook.moves == [(entry.event, entry.source, entry.dest) for entry in history[1:]]
    assert hook.steps == [
        ("book", 1, "began"), ("book", 1, "$error"), ("book", 2, "began"), ("book", 2, "$done"),
        ("read", 1, "began"), ("read", 1, "$done"), ("book:undo", 1, "began"), ("book:undo", 1, "$done"),
    ]  # fmt: skip
    assert seen == ["a book", "a book", "a read"], "what it sets in the context is seen by the step, in a thread too"


async def test_a_step_that_is_stopped_is_told_as_stopped() -> None:
    hook, begun = Listens(), asyncio.Event()
    flow = Workflow("slow")

    @flow.step(initial=True, on={"stop": "stopped"}, then="stopped")
    async def work(ctx: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    flow.final("stopped")
    async with Engine("memory://", workflows=[flow], hooks=[hook]) as engine:
        await engine.start(flow, {}, key="a")
        await begun.wait()
        await engine.send(flow, "a", "stop")
        await engine.result(flow, "a")
    assert hook.steps == [("work", 1, "began"), ("work", 1, "cancelled")]
    assert hook.moves == [("stop", "work", "stopped")]


async def test_an_error_in_a_hook_is_told_without_data_and_harms_neither_runs_nor_other_hooks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook = Listens()
    flow = trip([])
    async with Engine("memory://", workflows=[flow], hooks=[Raises(), hook]) as engine:
        assert (await engine.run(flow, {}, key="a")).state == "wait"
    assert len(hook.moves) == 2
    assert len(hook.steps) == 4
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 6
    assert any(line.startswith("Raises.moved raised KeyError, at ") and "test_hooks.py:" in line for line in errors)
    assert "secret" not in caplog.text


async def test_machines_have_hooks_too_each_its_own(store_url: str) -> None:
    one, two = Listens(), Listens()
    store = open_store(store_url)
    flow = trip([])
    await PersistentWorkflowStateMachine(store, flow, key="a", hooks=[one]).run_workflow()
    async with PersistentWorkflowStateMachine(store, flow, key="b", hooks=[two]) as machine:
        await machine.send("refuse")
        assert machine.is_final
    assert [move[0] for move in one.moves] == ["$error", "$done"]
    assert [move[0] for move in two.moves] == ["$done", "refuse", "$done"]


async def test_the_log_is_the_default_hook(caplog: pytest.LogCaptureFixture) -> None:
    flow = Workflow("failing")

    @flow.step(initial=True, then="end")
    async def work(ctx: Any) -> None:
        raise OSError("with data in it")

    flow.final("end")
    with caplog.at_level(logging.DEBUG, "fsmworkflow"):
        async with Engine("memory://", workflows=[flow]) as engine:
            with pytest.raises(RunFailed):
                await engine.run(flow, {"a": "secret"}, key="a")
    lines = [record.getMessage() for record in caplog.records if record.name == "fsmworkflow"]
    assert "failing/a $error: version 1" in lines
    assert "run failing/a failed in state 'work': OSError" in lines
    assert not any("data in it" in line or "secret" in line for line in lines)


def test_with_the_log_alone_a_move_is_told_to_it_directly() -> None:
    hooks = Hooks()
    assert not hooks
    assert hooks.moved.__func__ is LogHook.moved  # type: ignore[attr-defined]
    assert Hooks([Listens()])


@pytest.mark.parametrize("given", [Listens, object(), "hook"])
def test_what_is_no_hook_is_refused_at_once(given: Any) -> None:
    with pytest.raises(TypeError, match="subclass Hook"):
        Engine("memory://", hooks=[given])
