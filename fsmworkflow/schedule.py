"""Schedules: runs that are started by a calendar. A schedule is itself a run, of a workflow that is built in here.

It waits for its next tick, starts the run `nightly/2026-03-01T03:00:00+01:00`, and waits for the one after. So a
schedule survives a crash as every run does, one process drives it at a time, and the key makes each tick one run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, get_args
from zoneinfo import ZoneInfo

import msgspec

from fsmworkflow.claims import first
from fsmworkflow.codec import encode, text_of
from fsmworkflow.conditions import field, payload
from fsmworkflow.context import WorkflowContext
from fsmworkflow.errors import EngineClosed, FSMWorkflowError, log, name_problem
from fsmworkflow.records import STUCK, UNFINISHED, Event, Run
from fsmworkflow.register import unfinished
from fsmworkflow.workflow import To, Workflow

if TYPE_CHECKING:
    from fsmworkflow.engine import Engine

__all__ = ["Schedule"]

Missed = Literal["one", "skip", "all"]
Overlap = Literal["skip", "allow"]

PREFIX = "$schedule:"
ON_TIME = 60.0
"""Seconds by which a tick may be late before it counts as missed."""
CHUNK = 100
"""How many missed ticks one step starts."""
WINDOW = 3_600.0
KEPT, TRIMMED = 1_000, 100
"""How many moves of a schedule's history are kept, and after how many more those before them go."""
REMOVED = "removed"
SAID = ("cron", "timezone", "missed", "overlap")
"""What the log says of a schedule: its data is the user's own."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as it stands: what it starts, when, and the tick that is next (None where it has none).

    `last` is the key of the run that it started last, `status` that of its own run, which `address` names: so
    `engine.pause(*schedule.address)` stops it, and `engine.unpause` lets it go on with what it has missed.
    """

    name: str
    workflow: str
    cron: str
    timezone: str
    data: Any
    missed: Missed
    overlap: Overlap
    next: datetime | None
    last: str | None
    status: str

    def __repr__(self) -> str:
        ticks = f"{self.cron} {self.timezone}, {self.status}, next {self.next}"
        return f"<Schedule {self.name} of {self.workflow}: {ticks}>"

    @property
    def address(self) -> tuple[str, str]:
        """The workflow and key of the schedule's own run."""
        return PREFIX + self.workflow, self.name


def shown(run: Run) -> Schedule:
    """The schedule that a run stands for."""
    data = dict(run.data)
    at = data["next"]
    following = None if at is None else datetime.fromisoformat(at).astimezone(ZoneInfo(data["timezone"]))
    return Schedule(
        name=run.key,
        workflow=run.workflow.removeprefix(PREFIX),
        status=run.status,
        **{**data, "next": None if run.over or run.state == REMOVED else following},
    )


# -- the calendar -----------------------------------------------------------------------------------------------------


def ticks(cron: str, timezone: str, after: float) -> Iterator[datetime]:
    """The ticks after a time, for 50 years at the most. Raises ValueError for what is no cron expression or zone.

    Five fields, as in Debian's cron, whose man page says what a change of clocks does: a fixed time that the clocks
    leap over comes right after the leap, one that they repeat comes once, and what has `*` in its minute or hour goes
    by real time.
    """
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise FSMWorkflowError("schedules need the library cronsim: pip install 'fsmworkflow[schedule]'") from error
    try:
        found = CronSim(cron if len(cron.split()) == 5 else "", datetime.fromtimestamp(after, ZoneInfo(timezone)))
    except CronSimError as error:
        what = f"{cron!r} is no cron expression of five fields, minute hour day month weekday: {error}"
        raise ValueError(what) from error
    except (KeyError, ValueError, OSError) as error:  # no such zone, or no such path
        raise ValueError(f"there is no time zone {timezone!r}: give a name such as 'Europe/Berlin' or 'UTC'") from error
    return (tick for tick in found if tick.timestamp() > after)


def due(plan: Schedule, now: float) -> tuple[list[datetime], datetime | None]:
    """The ticks that are to start a run now, and the one to wait for then. Of many that are due, as `missed` says."""
    if plan.next is None or plan.next.timestamp() > now:
        return [], plan.next
    if plan.missed == "all":
        some = [plan.next]
        for tick in ticks(plan.cron, plan.timezone, plan.next.timestamp()):
            if tick.timestamp() > now or len(some) == CHUNK:
                return some, tick
            some.append(tick)
        return some, None
    newest = _newest(plan, plan.next, now)
    late = plan.missed == "skip" and now - newest.timestamp() > ON_TIME
    return [] if late else [newest], next(ticks(plan.cron, plan.timezone, now), None)


def _newest(plan: Schedule, earliest: datetime, now: float) -> datetime:
    """The last tick until now, looked for in windows that grow, so that years of minutes are not walked through."""
    window = WINDOW
    while now - window > earliest.timestamp():
        found = list(_until(plan, now - window, now))
        if found:
            return found[-1]
        window *= 24
    return [earliest, *_until(plan, earliest.timestamp(), now)][-1]


def _until(plan: Schedule, after: float, now: float) -> Iterator[datetime]:
    return takewhile(lambda tick: tick.timestamp() <= now, ticks(plan.cron, plan.timezone, after))


# -- the workflow that a schedule is a run of -------------------------------------------------------------------------


def built_in(engine: Engine, target: Workflow) -> Workflow:
    """The workflow whose runs are the schedules of `target`, so that only an engine that knows that one drives them."""
    known = engine.workflows.get(PREFIX + target.name)
    if known is None:
        known = engine.workflows[PREFIX + target.name] = _workflow(engine, target).check()
    return known


def _workflow(engine: Engine, target: Workflow) -> Workflow:
    schedule = Workflow(PREFIX + target.name)

    @schedule.step("tick", initial=True, then=[(field("next").is_none(), "ended"), "waiting"])
    async def tick(ctx: WorkflowContext) -> None:
        await _tick(engine, target, ctx)

    change = {"change": To("tick", update=lambda data, event: data.update(event.payload))}
    schedule.wait("waiting", on={"tick": [(payload("tick") == field("next"), "tick")], "remove": REMOVED, **change})
    schedule.wait(REMOVED, on=change)
    schedule.final("ended")
    return schedule


async def _tick(engine: Engine, target: Workflow, ctx: WorkflowContext) -> None:
    """Start what is due, and post the next tick to this very run. All of it may be done twice and changes nothing."""
    plan = shown(ctx.run)
    starts, following = due(plan, engine.store.now())
    for tick in starts:
        key = f"{plan.name}/{tick.isoformat()}"
        before = await engine.store.load(target.name, ctx.data["last"] or "")
        if plan.overlap == "skip" and before is not None and before.status in UNFINISHED:
            log.info("schedule %s: %s is passed over, as %s has not ended", plan.name, key, ctx.data["last"])
            continue
        await _start(engine, target, key, plan.data)
        ctx.data["last"] = key
    ctx.data["next"] = None if following is None else following.isoformat()
    if following is not None:
        name = f"{ctx.run.visit} {ctx.data['next']}"  # of this visit: one that an earlier visit posted is spent
        event = Event(name="tick", id=name, payload={"tick": ctx.data["next"]}, due=following.timestamp())
        await engine.roster.post(built_in(engine, target), ctx.run.key, event)
    if ctx.run.version > KEPT and ctx.run.version % TRIMMED < 2:  # of each tick's two moves, one enters this state
        await engine.store.trim(ctx.run, ctx.run.version - KEPT)


async def _start(engine: Engine, target: Workflow, key: str, data: Any) -> None:
    """Start a run, or find it there. It is due, so an engine that works comes to it in its turn; another sees to it."""
    await engine.store.create(await first(target, engine.store, key, data))
    if not engine.roster.crews.at_work:
        with contextlib.suppress(EngineClosed):  # then whoever opens the store next finds it due
            await engine.start(target, key=key)


# -- what the engine's verbs do ---------------------------------------------------------------------------------------


async def put(engine: Engine, target: Workflow, name: str, spec: dict[str, Any]) -> Schedule:
    """Make a schedule, or change the one of that name. Other processes may be doing the same."""
    place = built_in(engine, target)
    data = _planned(target, name, spec, engine.store.now())
    for other in await listed(engine):
        if other.name == name and other.workflow != target.name:
            log.info("schedule %s started runs of %s, and starts runs of %s now", name, other.workflow, target.name)
            await engine.rerun(*other.address, state=REMOVED)
    await engine.start(place, None if await engine.store.load(place.name, name) else data, key=name)
    run = await engine.get(place, name)  # as it is, and not as it was when this engine began to drive it
    told = _told(run, data)
    if told:
        was, now = (", ".join(f"{word}={of[word]!r}" for word in SAID) for of in (run.data, spec))
        log.info("schedule %s was %s in state %s, and is changed to %s", name, was, run.state, now)
        if run.status in STUCK:
            run = await engine.rerun(place, name, state=REMOVED)
        if run.status == "paused":  # it is told when it goes on
            await engine.send(place, name, "change", told)
        else:
            run = await engine.steer(place, name, "change", told)
    return shown(run)


async def listed(engine: Engine) -> list[Schedule]:
    """The schedules of the engine's workflows that have not been removed, by name."""
    runs: list[Run] = []
    for name in [name for name in engine.workflows if name.startswith(PREFIX)]:
        runs += [engine.shown(run) async for run in unfinished(engine.store, name) if run.state != REMOVED]
    return sorted(map(shown, runs), key=lambda schedule: schedule.name)


def _planned(target: Workflow, name: str, spec: dict[str, Any], now: float) -> dict[str, Any]:
    """The data of a schedule's run, checked: its `next` is the first tick after now."""
    missed, overlap = spec["missed"], spec["overlap"]
    if missed not in get_args(Missed) or overlap not in get_args(Overlap):
        raise ValueError(
            f"missed must be one of {', '.join(get_args(Missed))}, not {missed!r}, "
            f"and overlap one of {', '.join(get_args(Overlap))}, not {overlap!r}"
        )
    if missed == "all" and overlap == "skip":
        raise ValueError("missed='all' starts several runs at once, which overlap='skip' forbids: say overlap='allow'")
    following = next(ticks(spec["cron"], spec["timezone"], now), None)
    if following is None:
        raise ValueError(f"{spec['cron']!r} has no tick within 50 years")
    if problems := name_problem(name, "schedule name") or name_problem(f"{name}/{following.isoformat()}", "key"):
        raise ValueError(problems[0])
    fields = target.codec.start(spec["data"])
    plain = spec["data"] if target.codec.kind is None else msgspec.json.decode(text_of(fields))
    return {**spec, "data": plain, "next": following.isoformat(), "last": None}


def _told(run: Run, data: dict[str, Any]) -> dict[str, Any]:
    """What the run of a schedule must be told to become one with this data; empty where it is one already."""
    wanted = {name: value for name, value in data.items() if name not in ("next", "last")}
    broken = run.state == REMOVED or run.status in STUCK
    if not broken and encode(wanted) == encode({name: run.data[name] for name in wanted}):
        return {}
    return {**wanted, "next": data["next"]}
