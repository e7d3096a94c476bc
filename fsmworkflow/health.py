"""Health: whether an engine can do its work, as facts that probes and people ask for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from fsmworkflow.errors import FSMWorkflowError
from fsmworkflow.resources import Usage
from fsmworkflow.worker import Worker

if TYPE_CHECKING:
    from fsmworkflow.engine import Engine

__all__ = ["Health"]

LAG = 5.0
"""Seconds by which the event loop may be late before the process counts as stuck."""
SLACK = 5.0
"""Seconds beyond lease and poll after which a due run that nobody drives is one too many."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is. Times are seconds.

    `live`: its event loop turns; where it does not, a restart helps. `ready`: its lease holds, the store takes its
    writes (a real one was made), its resources are well, and it is not stopping; a store that is away makes it not
    ready, and no restart helps.
    `ok` is both, and no run of its workflows has been due for longer than lease, poll and 5 s without a driver.
    `problems` says in words what is wrong. `overdue` is the age of the oldest due run that nobody drives, else None;
    `lag` by how much the loop was late of late; `lease` how long the lease still holds; `driving` how many runs are
    driven here, `at` when this was seen, by the store's clock; `resources` tells how much of each is used and open.
    """

    ok: bool
    live: bool
    ready: bool
    writable: bool
    stopping: bool
    lease: float
    lag: float
    overdue: float | None
    driving: int
    at: float
    problems: tuple[str, ...] = ()
    resources: dict[str, Usage] = {}


async def seen(engine: Engine, within: float) -> Health:
    """Look at everything, the store for `within` seconds at the most."""
    worker, store, roster = engine.worker, engine.store, engine.roster
    left, late, stopping = worker.left, roster.lookout.lag, worker.stopping
    stuck = [] if late < LAG else [f"the event loop was {late:.1f} s late: a step blocks it"]
    hindered = ["the engine is stopping"] if stopping else []
    hindered += [] if left > 0 else [f"the lease ended {-left:.1f} s ago: others may take its runs"]
    (overdue, refused), used = await asyncio.gather(_asked(engine, worker, within), engine.resources.seen(within))
    hindered += [] if refused is None else [f"the store takes no writes: {refused}"]
    hindered += [one.problem for one in used.values() if one.problem is not None]
    behind = []
    if overdue is not None and overdue > worker.lease + roster.poll + SLACK:
        behind = [f"a run has been due for {overdue:.0f} s and nobody drives it: let more engines work"]
    return Health(
        ok=not (stuck or hindered or behind),
        live=not stuck,
        ready=not hindered,
        writable=refused is None,
        stopping=stopping,
        lease=round(left, 3),
        lag=round(late, 3),
        overdue=None if overdue is None else round(overdue, 3),
        driving=roster.driven,
        at=store.now(),
        problems=(*stuck, *hindered, *behind),
        resources=used,
    )


async def _asked(engine: Engine, worker: Worker, within: float) -> tuple[float | None, str | None]:
    """How long the oldest run has been due without a driver, and why the store cannot be written to."""
    store = engine.store
    try:
        async with asyncio.timeout(within):
            await worker.prove()
            since = await store.overdue(list(engine.workflows))
    except TimeoutError:
        return None, f"no answer within {within:g} s"
    except FSMWorkflowError as error:
        return None, str(error)
    return None if since is None else max(0.0, store.now() - since), None
