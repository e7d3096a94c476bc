"""Hooks: who is told of moves and steps. Logging is the default one; metrics and traces are others."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from fsmworkflow.errors import log
from fsmworkflow.records import Event, Move, Run

__all__ = ["Hook", "Hooks", "LogHook"]


class Hook(Protocol):
    """What is told of the runs that are driven here: subclass it, and override what you want to hear.

        class Ends(Hook):
            def moved(self, move):
                if move.after.over:
                    count(move.after.workflow, move.after.status)

        Engine("sqlite:///articles.db", workflows=[article], hooks=[Ends()])

    Hooks are called in the event loop, one after the other, so they must be quick. What one raises is said in the log,
    and neither fails a run nor keeps the others from being told.
    """

    def moved(self, move: Move) -> None:
        """A move was committed: `move.before`, `move.event` (a step's has `began`), `move.after`. Once a move.

        A process that dies between the commit and this call never makes it.
        """
        return

    def step_began(self, run: Run, state: str, attempt: int) -> None:
        """An attempt of a step, or of an undoing ("state:undo"), begins: in its own task, whose context it may set."""
        return

    def step_ended(self, run: Run, state: str, attempt: int, end: Event | None) -> None:
        """It ended, in the same task: `$done`, or `$error` with its `failure`; None where it was cancelled."""
        return


class LogHook(Hook):
    """The logger "fsmworkflow": moves at DEBUG, failed runs and events that could not be judged at WARNING. No data."""

    def moved(self, move: Move) -> None:
        run = move.after
        log.debug("%s/%s %s: version %d", run.workflow, run.key, move.event.name, run.version)
        if run.status == "failed" != move.before.status and run.error is not None:
            log.warning("run %s/%s failed in state %r: %s", run.workflow, run.key, run.state, run.error.type)
        elif move.answer == "rejected" and any(seen.error for seen in move.asked):
            said = "run %s/%s rejected %r, as a condition or an update raised an error: see its history"
            log.warning(said, run.workflow, run.key, move.event.name)


class Hooks:
    """The log, and what the user has given. `moved` is bound once, so that nobody pays for hooks that are not there.

    Raises TypeError for what is no Hook.
    """

    __slots__ = ("given", "moved")

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self.given = tuple(hooks)
        for hook in self.given:
            there = [callable(getattr(hook, name, None)) for name in ("moved", "step_began", "step_ended")]
            if isinstance(hook, type) or not all(there):
                what = "a hook is an object with moved, step_began and step_ended"
                raise TypeError(f"{what}, not {hook!r}: subclass Hook")
        self.moved: Callable[[Move], None] = self._moved if self.given else LogHook().moved

    def __bool__(self) -> bool:
        """Whether anybody but the log is to be told."""
        return bool(self.given)

    def _moved(self, move: Move) -> None:
        LogHook().moved(move)
        self.tell("moved", move)

    def tell(self, what: str, *about: Any) -> None:
        """Call one of their methods, of all that the user has given."""
        for hook in self.given:
            try:
                getattr(hook, what)(*about)
            except Exception as error:  # its text may hold data: the log is told where it was raised
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind, place = type(error).__name__, f"{last.filename}:{last.lineno}"
                log.error("%s.%s raised %s, at %s: it is passed over", type(hook).__qualname__, what, kind, place)
