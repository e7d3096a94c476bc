"""Lent: a connection that a store lends to one step, for a transaction that ends with the move of the step.

However its user is cancelled, it ends once, whole, and is given back.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fsmworkflow.errors import RolledBack, TransactionError
from fsmworkflow.records import Move, Run
from fsmworkflow.store.writer import begun

Keys = list[tuple[str, str]]

__all__ = ["Lent"]


class Lent:
    """One transaction on a connection of the driver's own. A store fills in what stands below `# -- of a store`.

    `alone` says that every other write waits for it. `until` is the time, by the event loop's clock, at which it is
    rolled back; None where it may take as long as it likes.
    """

    alone = False

    def __init__(self, run: Run) -> None:
        self.run = run
        self.where = f"{run.workflow}/{run.key}"
        self.connection: Any = None
        self.until: float | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[Any] | None = None

    @property
    def over(self) -> bool:
        """Whether it is being committed or rolled back, or has been."""
        return self._ending is not None

    async def begin(self) -> None:
        """Connect and begin, as soon as the store can. Raises TransactionError where it never can."""
        self._beginning = begun(self._begin())
        try:
            await asyncio.shield(self._beginning)
        except BaseException:
            self.drop()
            raise

    async def commit(self, move: Move) -> Keys | None:
        """Write a move as `Store.commit` does, and commit it with what the step has written.

        Raises what `Store.commit` raises; RolledBack where nothing was written, for a reason that passes: the step is
        to be run again; TransactionError or the driver's own error where what the step did cannot be committed.
        """
        if self._ending is not None:
            raise self._too_long()
        committing = begun(self._commit(move))
        self._ending = committing
        return await asyncio.shield(committing)

    async def rollback(self) -> None:
        """Take back what was written, and give the connection back. Does nothing to one that is over."""
        await asyncio.wait([self.drop()])

    def drop(self) -> asyncio.Task[Any]:
        """As `rollback`, without waiting for it."""
        if self._ending is None:
            self._ending = begun(self._given_back())
        return self._ending

    async def _given_back(self) -> None:
        if self._beginning is not None:
            await asyncio.wait([self._beginning])
            if not self._beginning.cancelled() and self._beginning.exception() is None:
                await self._rollback()

    def _too_long(self) -> TransactionError:
        return TransactionError(
            f"the transaction of a step of {self.where} took longer than it may and was rolled back, because every "
            "other write waits for it: keep it short, and begin it last"
        )

    # -- of a store -------------------------------------------------------------------------------------------------

    @property
    def lost(self) -> RolledBack | None:
        """Why the connection was lost, if it was: no fault of the step's."""
        return None

    def said(self, error: BaseException) -> BaseException:
        """An error that left a block, in words that say what made it; the same one where it says so itself."""
        return error

    async def _begin(self) -> None:
        raise NotImplementedError

    async def _commit(self, move: Move) -> Keys | None:
        raise NotImplementedError

    async def _rollback(self) -> None:
        raise NotImplementedError


def own_end(where: str) -> TransactionError:
    """The error of a step that tries to end its transaction, or to begin another one."""
    return TransactionError(
        f"BEGIN, COMMIT and ROLLBACK are not for a step of {where}: its transaction is committed with its move when it "
        "returns, and rolled back when it raises; use savepoints"
    )
