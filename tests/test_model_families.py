"""Whatever happens to a family, in whatever order, every store tells the story that a simple model of the rules tells.

As tests/test_model.py for one run: a parent has a child for each item, so many at once. Children end, fail, wait for
events, are cancelled and let go on by hand; the parent is paused, cancelled, retried, rerun, or leaves the state; the
process crashes, also between two writes. After each command parent and children must be where the model is.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from hypothesis import strategies as st

from fsmworkflow import Workflow, field
from fsmworkflow.errors import ChildFailed
from tests.family import Family, Kind
from tests.model import BEGAN, KEY, Never
from tests.test_model import NUMBER, SOON, Command, Play, Sent, Stage, check, stages

__all__ = ["stages"]


# -- what may happen --------------------------------------------------------------------------------------------------


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Kind, list[Command]]:
    items = tuple(draw(st.lists(st.booleans(), max_size=5)))
    how = draw(st.sampled_from([{}, {}, {"collects": True}, {"leads_on": True}]))
    family, commands = Family(Kind(items, draw(st.integers(1, 3)), listens=draw(st.booleans()), **how)), []
    for _ in range(draw(st.integers(1, 20))):
        command = draw(st.sampled_from(possible(family)))
        if command[0] in ("end", "fail", "send", "skip"):
            command = (*command[:-1], draw(armed(family, command)))
        commands.append(command)
        apply(family, command)
    return family.kind, commands


def possible(family: Family) -> list[Command]:
    """What may happen next, the more often the more it stands here.

    Not what a race decides: a retry that can only fail again tells children to go on and to pause at once.
    """
    found: list[Command] = [("crash",), ("stop",)]
    for place, kid in family.kids.items():
        if kid.on:
            found += [("end", place, None)] * 3 + [("fail", place, None)]
        if not kid.over:
            found += [("send", place, "yes", None)] * (4 if kid.state == "ask" else 1)
            found += [("send", place, "no", None), ("kid", "cancel", place)]
        if kid.kept:
            found += [("kid", "retry", place)]
    if family.status == "waiting":
        found += [("steer", "pause"), ("steer", "pause"), ("skip", None)]
    if family.status == "paused":
        found += [("steer", "unpause")] * 4 + ([("skip", None)] if family.skips is None else [])
    if family.status == "failed" and not any(kid.over and kid.status != "done" for kid in family.family):
        found += [("steer", "retry"), ("run",)] * 4
    if not family.over:
        found += [("steer", "cancel")] + [("steer", "rerun")] * (len(family.kids) < 12)
    return found


def armed(family: Family, command: Command) -> st.SearchStrategy[tuple[int, str] | None]:
    """Before or after which of the writes of a command its process crashes, if at all.

    Not where that would be another story: a pause finds other steps on.
    """
    kind = family.kind
    fails = command[0] in ("fail", "send") or (command[0] == "end" and "no" in family.kids[command[1]].inbox)
    pauses = fails and not kind.collects and not kind.leads_on
    if pauses or any("$pause" in kid.inbox for kid in family.kids.values()):
        return st.none()
    return st.sampled_from([None] * 6 + [(at, when) for at in (1, 2, 3) for when in ("before", "after")])


def apply(family: Family, command: Command) -> None:
    family.now += 1
    match command:
        case ("end", place, _):
            family.end(place)
        case ("fail", place, _):
            family.fail(place)
        case ("send", place, word, _):
            family.kids[place].inbox.append(word)
        case ("kid", "cancel", place):
            family.cancel(family.kids[place])
        case ("kid", "retry", place):
            family.let_on(family.kids[place])
        case ("steer", name):
            family.steer(name)
        case ("run",):
            family.steer("retry")
        case ("skip", _):
            family.skips = family.now
        case _:
            family.crash()
    family.settle()
    if command[0] in ("end", "fail", "send", "skip") and command[-1] is not None:
        family.crash()
        family.settle()


# -- how it is played -------------------------------------------------------------------------------------------------


class FamilyPlay(Play):
    """One script on one store, in step with a model of its own."""

    def __init__(self, stage: Stage, kind: Kind) -> None:
        self.stage, self.kind = stage, kind
        self.gates: dict[Any, asyncio.Future[Any]] = {}
        self.steering, self.tasks = [], []
        self.kid = Workflow(f"kid-{next(NUMBER)}", deadline=1e9 if kind.listens else None)
        self.kid.step("work", initial=True, then=[(field("item") == True, "ask"), "given"])(self._body)  # noqa: E712
        self.kid.wait("ask", on={"yes": "given", "no": "refused"})
        self.kid.final("given")
        self.kid.final("refused", outcome="failed")
        self.flow = Workflow(f"family-{next(NUMBER)}")
        how: dict[str, Any] = {"on_failure": "collect"} if kind.collects else {}
        how |= {"on_error": {ChildFailed: "other"}} if kind.leads_on else {}
        over, limit = field("items"), kind.limit
        self.flow.each(
            "all",
            self.kid,
            over=over,
            into="out",
            concurrency=limit,
            initial=True,
            then="end",
            on={"skip": "skipped"},
            **how,
        )
        self.flow.final("end", "skipped", *(["other"] if kind.leads_on else []))

    async def _body(self, ctx: Any) -> None:
        visit, number = map(int, ctx.run.key.split("/")[2:])
        place = visit, number
        assert place not in self.gates, f"{place} runs twice at once"
        gate = self.gates[place] = asyncio.get_running_loop().create_future()
        try:
            if await gate:
                raise Never("as it was told")
        finally:
            if self.gates.get(place) is gate:
                del self.gates[place]

    async def go(self, commands: list[Command]) -> list[Any]:
        await self.stage.set(BEGAN)
        self.model: Any = Family(self.kind)
        await self._open()
        await self.engine.start(self.flow, {"items": list(self.kind.items)}, key=KEY)
        try:
            await self._rest("start")
            for number, command in enumerate(commands):
                self.place = f"{self.stage.name}, command {number}: {command}"
                await self.stage.set(self.stage.clock.time + 1)
                await self._do(command)
                await self._rest(self.place)
            return await self._end()
        finally:
            await self._crash()

    def _applied(self, command: Command) -> Sent | None:
        apply(self.model, command)
        return None

    async def _command(self, command: Command, sent: Any, over: bool, *, safely: bool) -> None:
        engine = self.engine
        match command:
            case ("end" | "fail", place, _):
                self.gates.pop(place).set_result(command[0] == "fail")
            case ("send", (visit, number), word, _):
                key = f"{KEY}/all/{visit}/{number}"
                await self._soon(engine.send(self.kid, key, word, event_id=self.place))
            case ("skip", _):
                await self._soon(engine.send(self.flow, KEY, "skip", event_id=self.place))
            case ("kid", name, (visit, number)):
                await self._soon(getattr(engine, name)(self.kid, f"{KEY}/all/{visit}/{number}"))
            case ("steer", name):
                keywords = {"state": "all"} if name == "rerun" else {}
                await self._soon(getattr(engine, name)(self.flow, KEY, **keywords))
            case ("run",):
                self.tasks.append(asyncio.create_task(engine.run(self.flow, key=KEY)))
            case ("stop",):
                await self._soon(engine.close(grace=0))
                await self._crash()
                await self._reopen()
            case ("crash",):
                await self._crash()
                await self._reopen()

    # -- held against the model ---------------------------------------------------------------------------------------

    async def _rest(self, place: str, *, crashing: bool = False, again: Command | None = None) -> None:
        """Wait until all are where the model has them, and the same bodies run. A crash may have undone `again`."""
        end = time.monotonic() + SOON
        while not (crashing and self.store.crashed):
            if again is not None and again[0] in ("end", "fail") and again[1] in self.gates:
                await self._command(again, None, False, safely=True)
            there, wanted = await self._there(), self._wanted()
            if there == wanted:
                return
            if time.monotonic() > end:
                pairs = {one: (there.get(one), wanted.get(one)) for one in there.keys() | wanted.keys()}
                found = {one: pair for one, pair in pairs.items() if pair[0] != pair[1]}
                raise AssertionError(f"{place}\nis, and wanted: {found}\n{self.model.told}")
            await asyncio.sleep(0.0005)

    async def _rows(self) -> tuple[Any, dict[Any, Any]]:
        store, model = self.stage.store, self.model
        parent = await store.load(self.flow.name, KEY)
        assert parent is not None
        rows = [await store.children(parent, "all", visit) for visit in sorted({visit for visit, _ in model.kids})]
        return parent, {(kid.child.visit, kid.child.ordinal): kid for some in rows for kid in some}

    async def _there(self) -> dict[Any, Any]:
        parent, kids = await self._rows()
        found = {place: (kid.version, kid.status, kid.state, kid.child.turn) for place, kid in kids.items()}
        return {"parent": (parent.version, parent.status, parent.state), "on": sorted(self.gates), **found}

    def _wanted(self) -> dict[Any, Any]:
        model = self.model
        kids = {place: (len(kid.told) - 1, kid.status, kid.state, kid.turn) for place, kid in model.kids.items()}
        return {"parent": (len(model.told) - 1, model.status, model.state), "on": model.on, **kids}

    async def _end(self) -> list[Any]:
        """Every history, and what came back of the children, equal to the model's; for the stores to be compared."""
        parent, kids = await self._rows()
        model, told = self.model, await self._told_of(parent)
        assert told == model.told
        for place, kid in model.kids.items():
            assert await self._told_of(kids[place]) == kid.told, place
        out = parent.data.get("out")
        if model.statuses is not None and self.kind.collects:
            assert [one["status"] for one in out] == model.statuses
        elif model.statuses is not None:
            assert out == [{"item": asks, "index": n} for n, asks in enumerate(self.kind.items)]
        else:
            assert out is None
        return [told, out]

    async def _told_of(self, run: Any) -> list[tuple[str, str, str]]:
        return [(entry.event, entry.dest, entry.status) for entry in await self.stage.store.history(run)]


@pytest.fixture(autouse=True)
def no_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in flight when two processes died would be driven alone, in an order that the model does not know."""
    monkeypatch.setattr("fsmworkflow.drive.SUSPECT", 1_000_000)
    monkeypatch.setattr("fsmworkflow.flights.SUSPECT", 1_000_000)


# -- the tests --------------------------------------------------------------------------------------------------------


def test_every_store_tells_the_story_of_a_family_that_the_model_tells(
    stages: tuple[asyncio.Runner, list[Stage]],
) -> None:
    check(*stages, scripts(), FamilyPlay, examples=int(os.environ.get("FSMWORKFLOW_EXAMPLES") or 60))


@pytest.mark.soak
def test_every_store_tells_the_same_story_of_two_thousand_families(stages: tuple[asyncio.Runner, list[Stage]]) -> None:
    check(*stages, scripts(), FamilyPlay, examples=2_000)
