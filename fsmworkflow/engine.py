"""Engine: drives many runs. It opens the store, starts, resumes and watches; every verb takes `(workflow, key)`."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

from fsmworkflow.errors import (
    DefinitionError,
    FSMWorkflowError,
    InputDiffers,
    LeaseLost,
    RunFailed,
    RunNotFound,
    UnknownWorkflow,
)
from fsmworkflow.machine import WATCH, Drive, first, may_go_on
from fsmworkflow.records import Run, Status, replace
from fsmworkflow.store import Entries, Runs, Store, open_store
from fsmworkflow.store.writer import whole
from fsmworkflow.worker import Worker, first_of
from fsmworkflow.workflow import Workflow, name_problem

__all__ = ["Engine"]

log = logging.getLogger("fsmworkflow")

T = TypeVar("T")

CHUNK = 2_000
"""How many runs one claim takes at the most."""


Different = Literal["log", "refuse"]


class Driving:
    """A run that this engine sees to: `started` once it is durable, `done` when it rests."""

    __slots__ = ("done", "error", "retry", "run", "started", "workflow")

    def __init__(self, workflow: Workflow, run: Run, retry: bool) -> None:
        self.workflow = workflow
        self.run = run
        self.retry = retry
        self.started: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[Run] | None = None
        self.error: BaseException | None = None


class Line:
    """Claimed runs that wait to be driven, each with what drove it here before; `ended` when no claim finds more."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Driving, asyncio.Future[Run] | None]] = deque()
        self.seen: set[int] = set()
        self.claiming = asyncio.Lock()
        self.ended = False


class Engine:
    """Runs of workflows on one store, driven in this process.

        async with Engine("sqlite:///articles.db", workflows=[article]) as engine:
            run = await engine.run(article, {"topic": "databases"}, key="article-1")

    `store` is a URL or a Store. Nothing is opened before `async with`. `lease` is for how many seconds other machines
    take this engine for alive without hearing of it; `grace` how long leaving waits for steps that are running.
    """

    def __init__(
        self, store: str | Store, *, workflows: Iterable[Workflow] = (), lease: float = 10.0, grace: float = 10.0
    ) -> None:
        self.store: Store = open_store(store) if isinstance(store, str) else store
        self.grace = grace
        self._workflows: dict[str, Workflow] = {}
        self._worker = Worker(self.store, lease=lease)
        self._drives: dict[tuple[str, str], Driving] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        for workflow in workflows:
            self._known(workflow)

    async def __aenter__(self) -> Self:
        for workflow in self._workflows.values():
            workflow.check()
        await self.store.open()
        try:
            await self._worker.open()
        except BaseException:
            await self.store.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(grace=self.grace if kind is None else 0.0)

    async def close(self, *, grace: float | None = None) -> None:
        """Let running steps end for up to `grace` seconds, give back what is driven, and close the store."""
        self._worker.stopping = True
        tasks = list(self._tasks)
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self.grace if grace is None else grace)
        finally:
            await whole(self._end(tasks))

    async def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for driving in list(self._drives.values()):
            if driving.done is not None:
                driving.done.cancel()  # it was claimed, and waits in line: closing gives it back
        try:
            await self._worker.close()
        finally:
            await self.store.close()

    # -- verbs ------------------------------------------------------------------------------------------------------

    async def run(
        self,
        workflow: Workflow | str,
        data: Any = None,
        *,
        key: str | None = None,
        different: Different = "log",
    ) -> Run:
        """Start a run, or take up the one of that key, and wait until it ends or rests. Returns it.

        A failed run goes on where it failed; one that is over is reported. Raises RunFailed, with the step's own error
        as its cause. `different` says what follows when the run of that key was started with other data: a line in the
        log, or InputDiffers. Cancelling this call stops the waiting, not the run.
        """
        driving = await self._begin(workflow, data, key, different, retry=True)
        assert driving.done is not None
        run = await asyncio.shield(driving.done)
        if run.status == "failed":
            raise RunFailed(self._shown(run)) from driving.error
        return self._shown(run)

    async def start(
        self,
        workflow: Workflow | str,
        data: Any = None,
        *,
        key: str | None = None,
        different: Different = "log",
    ) -> Run:
        """Start a run and return it as soon as it is durable; this engine drives it while it is open.

        The run that is there wins: the same key starts nothing twice. Without a key one is made.
        """
        driving = await self._begin(workflow, data, key, different, retry=False)
        return self._shown(driving.run)

    async def result(self, workflow: Workflow | str, key: str) -> Run:
        """Wait until a run ends or rests, whoever drives it, and return it, also when it failed."""
        name = self._name(workflow)
        while True:
            driving = self._drives.get((name, key))
            if driving is not None and driving.done is not None:
                await asyncio.wait([driving.done])
            run = await self._load(name, key)
            if not may_go_on(run, retry=False) or self._worker.stopping:
                return self._shown(run)
            await asyncio.sleep(WATCH)

    async def get(self, workflow: Workflow | str, key: str) -> Run:
        """The run as it is now. Raises RunNotFound."""
        return self._shown(await self._load(self._name(workflow), key))

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
        self._worker.check()
        if status is not None and status not in get_args(Status):
            raise ValueError(f"there is no status {status!r}: {', '.join(get_args(Status))}")
        name = None if workflow is None else self._name(workflow)
        since = 0 if after is None else after.id
        found = await self.store.list(workflow=name, status=status, state=state, after=since, many=limit)
        return [self._shown(run) for run in found]

    async def history(self, workflow: Workflow | str, key: str) -> Entries:
        """Every move of a run, from its start. Raises RunNotFound."""
        return await self.store.history(await self._load(self._name(workflow), key))

    async def resume(self, *, concurrency: int = 100) -> int:
        """Drive every unfinished run of this engine's workflows that nobody drives, to its end or rest.

        `concurrency` of them at once, oldest first. Returns how many. One that fails stays failed, and stops no other.
        Cancelling this call claims no more; what was claimed is driven on.
        """
        line = Line()
        drivers = [self._task(self._drive_in_line(line)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*map(asyncio.shield, drivers))
        finally:
            line.ended = True
        return len(line.seen)

    # -- driving ----------------------------------------------------------------------------------------------------

    async def _begin(
        self, workflow: Workflow | str, data: Any, key: str | None, different: Different, *, retry: bool
    ) -> Driving:
        """Make sure that the run is there and that this engine sees to it. Returns once it is durable."""
        self._worker.check()
        if different not in get_args(Different):
            raise ValueError(f"different must be one of {', '.join(get_args(Different))}, not {different!r}")
        definition = self._known(workflow).check()
        if key is not None and (problems := name_problem(key, "key")):
            raise DefinitionError(definition.name, problems)
        key = key or uuid.uuid4().hex
        fresh = await first(definition, self.store, key, data)
        driving = self._drives.get((definition.name, key))
        if driving is None or (driving.done is not None and driving.done.done()):
            driving = Driving(definition, fresh, retry)
            self._see_to(driving, self._task(self._start_and_drive(driving, None if data is None else different)))
        there = await asyncio.shield(driving.started)
        if data is not None and there.input != fresh.input:
            _tell(there, different)
        return driving

    def _task(self, life: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that closing waits for."""
        task = asyncio.create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _see_to(self, driving: Driving, done: asyncio.Future[Run]) -> None:
        """Make a run known by workflow and key until it is `done` with."""
        name = (driving.run.workflow, driving.run.key)
        driving.done = done
        self._drives[name] = driving

        def over(_: asyncio.Future[Run]) -> None:
            if self._drives.get(name) is driving:
                del self._drives[name]
            _report(driving)

        done.add_done_callback(over)

    async def _start_and_drive(self, driving: Driving, different: Different | None) -> Run:
        try:
            mine = replace(driving.run, owner=self._worker.token, epoch=1)
            driving.run, created = await self.store.create(mine)
            created = created or first_of(driving.run, self._worker.token)
            refused = different == "refuse" and driving.run.input != mine.input
        except BaseException as error:
            driving.started.set_exception(error)
            driving.started.exception()  # whoever waits for it is told; where nobody does, the log is
            raise
        driving.started.set_result(driving.run)
        if refused:
            return driving.run
        if created and await self._drive(driving, driving.run, fresh=True):
            return driving.run
        return await self._watch_and_drive(driving)

    async def _watch_and_drive(self, driving: Driving) -> Run:
        """Drive a run that is there; while a live owner does, watch it, and take over where that one ends."""
        run = driving.run
        while not self._worker.stopping and may_go_on(run, retry=driving.retry):
            claimed = await self._worker.claim_one(run.workflow, run.key)
            if claimed is not None:
                if await self._drive(driving, claimed):
                    break
            else:
                await asyncio.sleep(WATCH)
            run = driving.run = await self._load(run.workflow, run.key)
        return driving.run

    async def _drive(self, driving: Driving, run: Run, *, fresh: bool = False) -> bool:
        """Drive a claimed run until it rests. False where another owner has claimed it meanwhile."""
        drive = Drive(driving.workflow, run, self._worker, fresh=fresh)
        try:
            driving.run = await drive.go()
        except LeaseLost as error:
            log.warning("%s", error)
            return False
        driving.error = drive.error
        return True

    async def _drive_in_line(self, line: Line) -> None:
        """Drive one claimed run after another, and claim more when the line is empty."""
        while not self._worker.stopping:
            if not line.waiting:
                async with line.claiming:
                    if not line.waiting and not line.ended:
                        await self._claim_more(line)
                if not line.waiting:
                    return
            await self._drive_claimed(*line.waiting.popleft())

    async def _claim_more(self, line: Line) -> None:
        claimed = await self._worker.claim(list(self._workflows), CHUNK)
        line.ended = line.seen.issuperset(run.id for run in claimed)
        line.seen.update(run.id for run in claimed)
        # All are known before the next await, so that no `run` of the same key drives one of them beside us.
        for run in () if line.ended else claimed:
            earlier = self._drives.get((run.workflow, run.key))
            driving = Driving(self._workflows[run.workflow], run, retry=False)
            driving.started.set_result(run)
            self._see_to(driving, asyncio.get_running_loop().create_future())
            line.waiting.append((driving, None if earlier is None else earlier.done))

    async def _drive_claimed(self, driving: Driving, earlier: asyncio.Future[Run] | None) -> None:
        done = driving.done
        assert done is not None
        try:
            if earlier is None:
                await self._drive(driving, driving.run)
            else:  # a `run` of this engine that was about to claim it, and has by now
                await asyncio.wait([earlier])
                driving.run = await self._load(driving.run.workflow, driving.run.key)
                await self._watch_and_drive(driving)
            done.set_result(driving.run)
        except Exception as error:
            done.set_exception(error)
        finally:
            done.cancel()  # only where this task is being cancelled

    def _known(self, workflow: Workflow | str) -> Workflow:
        """The workflow of that name; one given as an object is made known."""
        if isinstance(workflow, str):
            if workflow not in self._workflows:
                raise UnknownWorkflow(workflow)
            return self._workflows[workflow]
        known = self._workflows.setdefault(workflow.name, workflow)
        if known is not workflow:
            raise DefinitionError(workflow.name, ["this engine has another workflow of that name"])
        return workflow

    def _name(self, workflow: Workflow | str) -> str:
        return workflow if isinstance(workflow, str) else workflow.name

    async def _load(self, workflow: str, key: str) -> Run:
        self._worker.check()
        run = await self.store.load(workflow, key)
        if run is None:
            raise RunNotFound(workflow, key)
        return run

    def _shown(self, run: Run) -> Run:
        """The run with its data as the workflow's own type, where it has one and the data fits it."""
        workflow = self._workflows.get(run.workflow)
        if workflow is None or workflow.codec.kind is None:
            return run
        try:
            return replace(run, typed=workflow.codec.decode(run.fields))
        except FSMWorkflowError:
            return run


def _tell(run: Run, different: Different) -> None:
    """The key was taken by a run with another input."""
    message = f"run {run.workflow}/{run.key} is there with a different input: it goes on with its own"
    if different == "refuse":
        raise InputDiffers(message)
    log.warning("%s", message)


def _report(driving: Driving) -> None:
    """An error that stopped a drive is in the log, also where nobody waits for it."""
    done = driving.done
    if done is not None and not done.cancelled() and (error := done.exception()) is not None:
        log.error("run %s/%s is left where it is: %s", driving.run.workflow, driving.run.key, error)
