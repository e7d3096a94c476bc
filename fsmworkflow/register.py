"""Register: the runs of an engine's workflows, as they are looked at and steered, whoever drives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, get_args

from fsmworkflow import errors
from fsmworkflow.errors import nearest
from fsmworkflow.explain import explained
from fsmworkflow.records import CANCEL, OVER, PAUSE, RERUN, RETRY, UNPAUSE, Event, Run, Status
from fsmworkflow.roster import Roster
from fsmworkflow.store import Entries, Runs, Store
from fsmworkflow.versions import Plan, outlook, plan, seen, shifted
from fsmworkflow.worker import Worker
from fsmworkflow.workflow import Workflow, id_of

__all__ = ["Register", "unfinished"]

STEERED = 0.02
"""Seconds between two looks at what has become of a steering event."""

PAGE = 500
"""How many runs are read at once where all are."""


class Register:
    """The verbs of an engine that drive nothing: they look at runs, and post what steers them."""

    store: Store
    worker: Worker
    roster: Roster
    workflows: dict[str, Workflow]

    def known(self, workflow: Workflow | str) -> Workflow:
        """The workflow of that name; one given as an object is made known."""
        if isinstance(workflow, str):
            if workflow not in self.workflows:
                raise errors.UnknownWorkflow(workflow)
            return self.workflows[workflow]
        todo = [workflow]
        while todo:
            one = todo.pop()
            if self.workflows.setdefault(one.name, one) is not one:
                raise errors.DefinitionError(one.name, ["this engine has another workflow of that name"])
            todo += [child for child in one.others if self.workflows.get(child.name) is not child]
        return workflow

    def _name(self, workflow: Workflow | str) -> str:
        return workflow if isinstance(workflow, str) else workflow.name

    def shown(self, run: Run) -> Run:
        """The run as this engine's version of the workflow has it, its data typed; where it does not fit, as it is."""
        workflow = self.workflows.get(run.workflow)
        return run if workflow is None else seen(workflow, run)

    # -- looking ----------------------------------------------------------------------------------------------------

    async def get(self, workflow: Workflow | str, key: str) -> Run:
        """The run as it is now. Raises RunNotFound."""
        return self.shown(await self.roster.load(self._name(workflow), key))

    async def list(
        self,
        workflow: Workflow | str | None = None,
        *,
        status: Status | None = None,
        state: str | None = None,
        after: Run | None = None,
        limit: int = 100,
    ) -> Runs:
        """Up to `limit` runs in the order of their making; give the last one as `after` for the next page.

        Raises ValueError for an unknown status.
        """
        self.worker.check()
        if status is not None and status not in get_args(Status):
            raise ValueError(f"there is no status {status!r}: {', '.join(get_args(Status))}")
        name = None if workflow is None else self._name(workflow)
        since = 0 if after is None else after.id
        found = await self.store.list(workflow=name, status=status, state=state, after=since, many=limit)
        return [self.shown(run) for run in found]

    async def history(self, workflow: Workflow | str, key: str) -> Entries:
        """Every move of a run, from its start. Raises RunNotFound."""
        return await self.store.history(await self.roster.load(self._name(workflow), key))

    async def event(self, workflow: Workflow | str, key: str, event_id: str) -> Event:
        """What has become of an event: `.status` is accepted, rejected, waiting or dropped. Raises EventNotFound."""
        run = await self.roster.load(self._name(workflow), key)
        found = await self.store.event(run, event_id)
        if found is None:
            raise errors.EventNotFound(f"run {run.workflow}/{run.key} has no event with the id {event_id!r}")
        return found

    async def plan_migration(self, workflow: Workflow | str | None = None) -> Plan:
        """What would become of the unfinished runs of a workflow, or of all that this engine knows; writes nothing.

        A record for each version and state says how many fit as they are, would be mapped by migrations, or are stuck,
        and why. `print` it for a table.
        """
        self.worker.check()
        chosen = list(self.workflows.values()) if workflow is None else [self.known(workflow)]
        found = []
        for definition in chosen:
            for status in get_args(Status):
                if status not in OVER:
                    found += [outlook(definition, run) async for run in unfinished(self.store, definition.name, status)]
        return plan(found)

    async def explain(self, workflow: Workflow | str, key: str) -> str:
        """In words: why the run is where it is, and what it waits for. Raises RunNotFound."""
        definition = self.known(workflow).check()
        run = await self.roster.load(definition.name, key)
        awaited = {state: stay for state, stay in run.active.items() if stay.children}
        children = {s: await self.store.children(run, stay.was or s, stay.visit) for s, stay in awaited.items()}
        history, (_, inbox) = await self.store.history(run), await self.store.inbox(run)
        return explained(definition, run, history, inbox, children, now=self.store.now())

    # -- steering ---------------------------------------------------------------------------------------------------

    async def cancel(self, workflow: Workflow | str, key: str) -> Run:
        """Cancel a run: its steps are stopped, and what finished is undone. Raises RunOver for a run that has ended."""
        return await self.steer(workflow, key, CANCEL)

    async def pause(self, workflow: Workflow | str, key: str) -> Run:
        """Stop a run after the step that is on, until `unpause`. Its timers run on, and strike then."""
        return await self.steer(workflow, key, PAUSE)

    async def unpause(self, workflow: Workflow | str, key: str) -> Run:
        """Let a paused run go on; one whose pause still waits for the step that is on, after that step."""
        return await self.steer(workflow, key, UNPAUSE)

    async def retry(self, workflow: Workflow | str, key: str) -> Run:
        """Let a failed or parked run go on in the same visit: same key, remembered calls kept, attempts anew.

        Raises RunOver where it has ended, or its undoing has begun.
        """
        return await self.steer(workflow, key, RETRY)

    async def rerun(self, workflow: Workflow | str, key: str, *, state: str) -> Run:
        """Let a run that is not over go on in a new visit of `state`: nothing is remembered there.

        Raises UnknownState for one that is not there or ends the run, NotAccepted where undoing has begun.
        """
        definition = self.known(workflow).check()
        if state not in definition.states:
            hint = nearest(state, definition.states)
            raise errors.UnknownState(f"workflow {definition.name!r} has no state {state!r}{hint}")
        if state in definition.finals and "." not in state:
            raise errors.UnknownState(
                f"state {state!r} of workflow {definition.name!r} ends the run: nothing goes on there"
            )
        return await self.steer(definition, key, RERUN, state)

    async def steer(self, workflow: Workflow | str, key: str, name: str, payload: Any = None) -> Run:
        """Post one of the engine's own events, and wait until the run's owner has taken it."""
        self.worker.check_free()
        definition = self.known(workflow).check()
        run = await self.roster.load(definition.name, key)
        if run.definition <= definition.version and not run.over:
            shifted(definition, run)  # what does not fit is left untouched
        if run.in_line and name in (UNPAUSE, RETRY, RERUN):
            raise errors.NotAccepted(f"run {run.workflow}/{run.key} is a child whose turn has not come: wait for it")
        try:
            status = await self._taken(definition, key, Event(name=name, payload=payload, id=id_of(None)))
        except errors.RunOver as error:
            raise _over(run, error.status) from None
        run = await self.roster.load(definition.name, key)
        if status == "dropped":
            raise _over(run, run.status)
        if status == "rejected":
            why = "what it had done is being undone, and" if run.status == "compensating" else "to it"
            raise errors.NotAccepted(
                f"run {run.workflow}/{run.key} is {run.status}: {why} {name.removeprefix('$')} says nothing"
            )
        return self.shown(run)

    async def _taken(self, definition: Workflow, key: str, event: Event) -> str:
        """Post an event, and wait until it is taken. Returns what became of it."""
        posted = await self.roster.post(definition, key, event)
        while posted.status == "waiting" and not self.worker.stopping:
            await asyncio.sleep(STEERED)
            if (definition.name, key) in self.roster:
                posted = await self.event(definition, key, event.id)
            else:  # the run was ending just then: a known event is only answered, and the run seen to
                posted = await self.roster.post(definition, key, event)
        return posted.status


async def unfinished(store: Store, workflow: str, status: Status | None = None) -> AsyncIterator[Run]:
    """The runs of a workflow, of one status or of all, that are not over, as they stand in the store."""
    after = 0
    while page := await store.list(workflow=workflow, status=status, state=None, after=after, many=PAGE):
        for run in [run for run in page if not run.over]:
            yield run
        after = page[-1].id


def _over(run: Run, status: str) -> errors.RunOver:
    return errors.RunOver(run.workflow, run.key, status, undone=run.undo.ends is not None)
