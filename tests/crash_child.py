"""The program that the crash tests start, kill and start again: what users write, with a ledger of what it did.

`crash_child.py batch URL LEDGER ROUND` drives eight runs at once and ends when all are over; the other modes have one
run each. All of it may be killed at any moment.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsmworkflow import (
    Condition,
    Engine,
    PersistentWorkflowStateMachine,
    Retry,
    RunFailed,
    StoreError,
    To,
    Transition,
    Workflow,
    WorkflowDefinition,
    WorkflowStep,
    field,
    worker,
)
from tests.ledger import Expected, Ledger, blob, chained
from tests.points import LEAVING, POINTS, die_at

OFTEN = worker.DEATHS = 1_000_000  # a run that is often killed here is not at fault
LEASE = 60.0  # long, so that whoever waits for a lease to end is found out
SOON = Retry(attempts=3, first_delay=0.005, jitter=False)
ledger: Ledger


class NotYetError(RuntimeError):
    """What a step raises in its first attempt."""


@contextmanager
def told(ctx: Any) -> Iterator[None]:
    """Writes the begin and the end of a step to the ledger, and adds the step to the chain in its data."""
    ledger.write("begin", ctx)
    try:
        yield
    except Exception:
        ledger.write("fail", ctx)
        raise
    data, mine = ctx.data, (ctx.state, ctx.run.visit, ctx.attempt)
    data["trail"] = [*data["trail"], list(mine)]
    data["chain"] = chained(data["chain"], *mine)
    ledger.write("end", ctx)


def started(key: str, **more: Any) -> dict[str, Any]:
    """The data that a run begins with."""
    return {"key": key, "trail": [], "chain": "", "blob": blob(key, 0), "turns": 0, **more}


def turn(data: Any) -> None:
    data["turns"] += 1
    data["blob"] = blob(data["key"], data["turns"])


async def pay(run: str, name: str, times: int) -> dict[str, str]:
    """A call that costs money: each payment has a token of its own. `times` is how often a visit makes this call."""
    token = uuid.uuid4().hex
    ledger.write("pay", run=run, version=0, call=name, token=token, times=times)
    await asyncio.sleep(0.002)
    return {"token": token}


def paying(ctx: Any, name: str, times: int = 1) -> tuple[str, str, int]:
    run = ctx.run
    return f"{run.workflow}/{run.key}", f"{ctx.state} {run.visit} {name}", times


# -- in decorator style -----------------------------------------------------------------------------------------------

parcel = Workflow("parcel")


@parcel.step(initial=True, then=[(field("express") == True, "quote"), "sort"])  # noqa: E712
async def weigh(ctx: Any) -> None:
    with told(ctx):
        await asyncio.sleep(0.001)


@parcel.step(then="quote")
def sort(ctx: Any) -> None:
    with told(ctx):
        time.sleep(0.003)
        turn(ctx.data)


@parcel.step(then="pack")
async def quote(ctx: Any) -> None:
    with told(ctx):
        found = await asyncio.gather(
            ctx.call(pay, *paying(ctx, "air")),
            ctx.call(pay, *paying(ctx, "sea", 2)),
            ctx.call(pay, *paying(ctx, "sea", 2)),
            ctx.remember("land", lambda: pay(*paying(ctx, "land"))),
        )
        ctx.data["tokens"] = [one["token"] for one in found]
        ledger.write("got", ctx, tokens=ctx.data["tokens"])


@parcel.step(then=[(field("left") > 0, "pack"), "send"])
async def pack(ctx: Any) -> None:
    with told(ctx):
        ctx.data["left"] -= 1
        if ctx.data["left"] % 2:
            turn(ctx.data)
        await asyncio.sleep(0.001)


def receipt(ctx: Any) -> None:
    ledger.write("action", ctx, name="receipt")


async def notify(ctx: Any) -> None:
    ledger.write("action", ctx, name="notify")


@parcel.step(then=To("sign", after=receipt), retry=SOON)
async def send(ctx: Any) -> None:
    with told(ctx):
        paid = await ctx.call(pay, *paying(ctx, "carrier"))
        ledger.write("got", ctx, tokens=[paid["token"]])
        if ctx.attempt == 1:
            raise NotYetError("the carrier asks to come again")
        ctx.data["carrier"] = paid["token"]


@parcel.step(then=To("delivered", after=notify))
async def sign(ctx: Any) -> None:
    with told(ctx):
        await asyncio.sleep(0.001)


parcel.final("delivered")


def parcel_data(key: str, number: int) -> dict[str, Any]:
    return started(key, express=number % 2 == 0, left=2 + number % 3)


def parcel_expected(data: dict[str, Any]) -> Expected:
    left, turns = data["left"], 0 if data["express"] else 1
    turns += sum(one % 2 for one in range(left))
    path = ["weigh", *([] if data["express"] else ["sort"]), "quote", *["pack"] * left, "send"]
    attempts = [(state, 1) for state in path] + [("send", 2), ("sign", 1)]
    actions = {("send", "sign"): "receipt", ("sign", "delivered"): "notify"}
    return Expected(attempts, actions, blob(data["key"], turns), "delivered")


# -- in the style of the first FSM-Workflow ---------------------------------------------------------------------------


async def open_ticket(ctx: Any) -> Any:
    with told(ctx):
        await asyncio.sleep(0.001)
    return ctx, None


def escalate(ctx: Any) -> None:
    with told(ctx):
        time.sleep(0.002)


async def work(ctx: Any) -> Any:
    with told(ctx):
        turn(ctx.data)
        ctx.data["left"] -= 1
    return (ctx, "again") if ctx.data["left"] > 0 else ctx


async def close(ctx: Any) -> str | None:
    with told(ctx):
        if ctx.attempt == 1:
            raise NotYetError("the customer does not answer")
        await asyncio.sleep(0.001)
    return None


TICKET_STEPS = {
    "open": WorkflowStep("open", open_ticket),
    "escalate": WorkflowStep("escalate", escalate),
    "work": WorkflowStep("work", work),
    "close": WorkflowStep("close", close, retry=SOON),
}
TICKET_WAYS = [
    Transition("urgent", "open", "escalate", [Condition("priority", "ge", 3)]),
    Transition("normal", "open", "work", [Condition("priority", "lt", 3)]),
    Transition("taken", "escalate", "work", after="tell"),
    Transition("again", "*", "work"),
    Transition("worked", "work", "close", [Condition("left", "le", 0)]),
]


class TicketMachine(PersistentWorkflowStateMachine):
    """A ticket, with an action that is a method."""

    async def tell(self, ctx: Any) -> None:
        ledger.write("action", ctx, name="tell")


def ticket(url: str, name: str, key: str | None, number: int) -> TicketMachine:
    definition = WorkflowDefinition(name=name, steps=list(TICKET_STEPS), transitions=TICKET_WAYS)
    machine = TicketMachine(url, definition, key=key, data=ticket_data(key or name, number))
    machine.steps = TICKET_STEPS
    return machine


def ticket_data(key: str, number: int) -> dict[str, Any]:
    return started(key, priority=4 - number, left=2 + number)


def ticket_expected(data: dict[str, Any]) -> Expected:
    urgent = data["priority"] >= 3
    path = ["open", *(["escalate"] if urgent else []), *["work"] * data["left"], "close"]
    attempts = [(state, 1) for state in path] + [("close", 2)]
    return Expected(attempts, {("escalate", "work"): "tell"}, blob(data["key"], data["left"]), "close")


# -- the batch --------------------------------------------------------------------------------------------------------


class Batch:
    """The runs of one round: what they are called, what they start with, and what they should come to."""

    def __init__(self, number: int) -> None:
        self.prefix = f"r{number:04}-"
        self.keyless = f"ticket-{self.prefix}"  # a workflow of its own, whose one run is taken up without a key
        self.parcels = {f"{self.prefix}p{n}": parcel_data(f"{self.prefix}p{n}", n) for n in range(5)}
        self.tickets = {f"{self.prefix}t{n}": ticket_data(f"{self.prefix}t{n}", n) for n in range(2)}

    def expected(self) -> dict[str, Expected]:
        """By workflow and key; the keyless one by its workflow alone."""
        found = {f"parcel/{key}": parcel_expected(data) for key, data in self.parcels.items()}
        found |= {f"ticket/{key}": ticket_expected(data) for key, data in self.tickets.items()}
        return found | {self.keyless: ticket_expected(ticket_data(self.keyless, 2))}

    async def drive(self, url: str) -> None:
        """All of them at once, each in the way that its users have: run, start and resume, with a machine."""
        async with Engine(url, workflows=[parcel], lease=LEASE, deaths=OFTEN) as engine:
            ledger.write("open")
            over = await engine.list(self.keyless, status="done")
            machines = [ticket(url, "ticket", key, n) for n, key in enumerate(self.tickets)]
            machines += [] if over else [ticket(url, self.keyless, None, 2)]
            waiting = [self._parcel(engine, n, key) for n, key in enumerate(self.parcels)]
            await asyncio.gather(*waiting, engine.resume(), *(_to_end(machine) for machine in machines))
        ledger.write("closed")

    async def _parcel(self, engine: Engine, number: int, key: str) -> None:
        data = self.parcels[key]
        if number % 2:
            await engine.start(parcel, data, key=key)
            run = await engine.result(parcel, key)
        else:
            run = await engine.run(parcel, data, key=key)
        _over(run)


async def _to_end(machine: TicketMachine) -> None:
    _over(await machine.run_workflow())


def _over(run: Any) -> None:
    assert run.status == "done", run.to_dict()
    ledger.write("over", run=f"{run.workflow}/{run.key}", version=run.version)


async def batch(args: argparse.Namespace) -> None:
    await Batch(args.round).drive(args.url)


# -- one run that takes as long as is wished --------------------------------------------------------------------------


def gate() -> Path:
    """The file whose appearance lets the naps end."""
    return ledger.path.with_suffix(".go")


async def doze(ctx: Any) -> None:
    ledger.write("begin", ctx)
    end = time.monotonic() + 60
    while not gate().exists() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    ctx.data["slept"] = ctx.data.get("slept", 0) + 1
    ledger.write("end", ctx)


def sleep(ctx: Any) -> None:
    ledger.write("begin", ctx)
    end = time.monotonic() + 60
    while not gate().exists() and time.monotonic() < end:
        time.sleep(0.01)
    ctx.data["slept"] = ctx.data.get("slept", 0) + 1
    ledger.write("end", ctx)


async def wake(ctx: Any) -> None:
    ledger.write("begin", ctx)
    ctx.data["token"] = uuid.uuid4().hex
    ledger.write("end", ctx)


def nap_workflow(sync: bool) -> Workflow:
    nap = Workflow("nap")
    nap.step("doze", initial=True, then="wake")(sleep if sync else doze)
    nap.step("wake", then="awake")(wake)
    nap.final("awake")
    return nap


async def nap(args: argparse.Namespace) -> None:
    """Drives the run of that key to its end, and prints it."""
    workflow = nap_workflow(args.sync)
    if args.wait:
        ledger.write("ready")
        sys.stdin.readline()
    if args.machine:
        run = await PersistentWorkflowStateMachine(args.url, workflow, key=args.key).run_workflow()
    else:
        async with Engine(args.url, workflows=[workflow], lease=args.lease) as engine:
            ledger.write("open")
            run = await engine.run(workflow, key=args.key)
    print(json.dumps(run.to_dict()))


async def forget(args: argparse.Namespace) -> None:
    """Closes nothing: neither after a run that is over, nor one in the middle of a step."""
    ledger.write("gate")
    workflow = nap_workflow(args.sync)
    engine = await Engine(args.url, workflows=[workflow], lease=args.lease).__aenter__()
    await engine.start(workflow, key=args.key)
    while not ledger.lines("begin"):
        await asyncio.sleep(0.01)
    if gate().exists():
        await engine.result(workflow, args.key)
    ledger.write("forgotten")


# -- runs of many steps, for stores that go away ----------------------------------------------------------------------

walk = Workflow("walk")


@walk.step(initial=True, then=[(field("left") > 0, "stride"), "there"])
async def stride(ctx: Any) -> None:
    with told(ctx):
        ctx.data["left"] -= 1
        turn(ctx.data)
        paid = await ctx.call(pay, *paying(ctx, "toll"))
        ledger.write("got", ctx, tokens=[paid["token"]])
        await asyncio.sleep(0.01)


walk.final("there")


def walk_data(key: str, steps: int) -> dict[str, Any]:
    return started(key, left=steps)


def walk_expected(data: dict[str, Any]) -> Expected:
    return Expected([("stride", 1)] * data["left"], {}, blob(data["key"], data["left"]), "there")


async def walks(args: argparse.Namespace) -> None:
    """Four runs of `--steps` steps, and a machine, at once."""
    async with Engine(args.url, workflows=[walk], lease=args.lease, deaths=OFTEN) as engine:
        ledger.write("open")
        keys = [f"w{n}" for n in range(4)]
        machine = PersistentWorkflowStateMachine(args.url, walk, key="w4", data=walk_data("w4", args.steps))
        waiting = [engine.run(walk, walk_data(key, args.steps), key=key) for key in keys]
        for run in await asyncio.gather(*waiting, machine.run_workflow()):
            _over(run)


# -- rows of their own ------------------------------------------------------------------------------------------------

bank = Workflow("bank")


@bank.step(initial=True, then=[(field("left") > 0, "pay_in"), "over"])
async def pay_in(ctx: Any) -> None:
    async with ctx.transaction() as db:
        await db.execute(f"INSERT INTO mine VALUES ('{ctx.run.key}', {ctx.data['left']})")
        ledger.write("inside", ctx)
        await asyncio.sleep(0.002)
    ctx.data["left"] -= 1
    ledger.write("after", ctx)


bank.final("over")


async def banks(args: argparse.Namespace) -> None:
    """Four runs of `--steps` steps, each of which writes a row of its own."""
    async with Engine(args.url, workflows=[bank], lease=args.lease, deaths=OFTEN) as engine:
        keys = [f"b{n}" for n in range(4)]
        for run in await asyncio.gather(*(engine.run(bank, {"left": args.steps}, key=key) for key in keys)):
            _over(run)


# -- starting ---------------------------------------------------------------------------------------------------------


async def opened(args: argparse.Namespace) -> None:
    """Opens the store and closes it again."""
    _mind_the_modes()
    async with Engine(args.url, lease=args.lease):
        print("opened")


def _mind_the_modes() -> None:
    """Give up CAP_DAC_OVERRIDE, by which root writes to files that are read-only. Does nothing for anybody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~2  # effective
    sets[1] &= ~2  # permitted
    assert libc.capset(header, sets) == 0


# -- processes that work, one of whose runs ends them -----------------------------------------------------------------


def herd(ends: bool) -> Workflow:
    """graze -> rest -> home. The run with the key "poison" ends its process in its first step."""
    flow = Workflow("herd")

    @flow.step(initial=True, then="rest")
    async def graze(ctx: Any) -> None:
        ledger.write("begin", ctx)
        await asyncio.sleep(0.03)
        if ends and ctx.run.key == "poison":
            ledger.write("death", ctx)
            os._exit(9)

    @flow.step(then="home")
    async def rest(ctx: Any) -> None:
        ledger.write("begin", ctx)
        await asyncio.sleep(0.01)

    flow.final("home")
    return flow


async def working(args: argparse.Namespace) -> None:
    """Works until it is killed, or told to end by SIGTERM: then it drains, as the command line does."""
    flows = [herd(not args.sync), chore(), nap_workflow(args.sync), family(not args.sync)]
    async with Engine(args.url, workflows=flows, lease=args.lease, poll=0.05, grace=5, deaths=args.deaths) as engine:
        work = asyncio.create_task(engine.work(concurrency=args.steps))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        ledger.write("open", clock=time.time())
        with suppress(asyncio.CancelledError):
            await work
        ledger.write("drained")


def chore() -> Workflow:
    """Four steps that leave a trail, each of a few milliseconds."""
    flow = Workflow("chore")
    for n in range(4):

        async def body(ctx: Any) -> None:
            with told(ctx):
                await asyncio.sleep(0.004)

        flow.step(f"s{n}", initial=n == 0, then=f"s{n + 1}" if n < 3 else "over")(body)
    flow.final("over")
    return flow


TOGETHER = 3


def family(ends: bool = False) -> Workflow:
    """all (children of two steps, three at a time) -> add -> over. One whose item is "poison" ends its process."""
    child = Workflow("child")

    @child.step(initial=True, then="polish")
    async def saw(ctx: Any) -> None:
        ledger.write("begin", ctx)
        if ends and ctx.data["item"] == "poison":
            ledger.write("death", ctx)
            os._exit(9)
        await asyncio.sleep(0.005)

    @child.step(then="ready")
    async def polish(ctx: Any) -> None:
        ledger.write("begin", ctx)
        await asyncio.sleep(0.002)
        ctx.data["made"] = f"{ctx.data['item']} of {ctx.run.key}"
        ledger.write("end", ctx)

    child.final("ready")
    flow = Workflow("family")
    flow.each("all", child, over=field("items"), into="out", concurrency=TOGETHER, initial=True, then="add")

    @flow.step(then="over")
    async def add(ctx: Any) -> None:
        ledger.write("joined", ctx, out=ctx.data["out"])

    flow.final("over")
    return flow


MODES = {"work": working, "batch": batch, "nap": nap, "forget": forget, "walks": walks, "banks": banks, "open": opened}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("url")
    parser.add_argument("ledger")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--key", default="k")
    parser.add_argument("--lease", type=float, default=LEASE)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--die", choices=(*POINTS, *LEAVING))
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--clock", type=float, default=0.0)
    for flag in ("--sync", "--wait", "--machine"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def _set_clock(apart: float) -> None:
    """From now on the clock of this process is so many seconds early."""
    real = time.time
    time.time = lambda: real() + apart


def main() -> int:
    global ledger
    args = arguments()
    ledger = Ledger(args.ledger)
    if args.die:
        die_at(args.die, args.nth)
    if args.clock:
        _set_clock(args.clock)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        asyncio.run(MODES[args.mode](args))
    except RunFailed as error:
        print(json.dumps(error.run.to_dict()))
        return 4
    except StoreError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    worker.Worker.__init__.__kwdefaults__["lease"] = LEASE  # that of a machine, too
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job is started without
    sys.exit(main())
