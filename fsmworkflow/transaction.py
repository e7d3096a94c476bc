"""Transaction: what a step writes to the run's own database, committed with its move or rolled back with its failure.

It begins with the first `async with ctx.transaction()` of an attempt and ends with the step: the store lends a
connection, the step's blocks use it, and the drive commits the move there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fsmworkflow.errors import StoreError, TransactionError
from fsmworkflow.store.lent import Lent

if TYPE_CHECKING:
    from fsmworkflow.calls import Calls

__all__ = ["Transaction"]


class Transaction:
    """The one transaction of an attempt. Its blocks share a connection; an error that leaves one rolls all back."""

    __slots__ = ("_begin", "_blocks", "_calls", "_lent", "_over", "_spoilt")

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._begin = asyncio.Lock()
        self._lent: Lent | None = None
        self._blocks = 0  # those that ended well, on whose rows the step counts
        self._spoilt: BaseException | None = None
        self._over = False

    @property
    def on(self) -> bool:
        """Whether it has begun, or is about to, and was not rolled back."""
        return self._lent is not None

    @contextlib.asynccontextmanager
    async def block(self) -> AsyncIterator[Any]:
        """A block of the step's, with the driver's own connection."""
        async with self._begin:  # two blocks that begin at once get the same one
            lent = self._lent or await self._begun()
        try:
            async with asyncio.timeout_at(lent.until):
                yield lent.connection
        except BaseException as error:
            said = lent.said(error)
            if self._blocks or isinstance(said, TransactionError):
                self._spoilt = said
            await self.rollback()
            if said is not error:
                raise said from error
            raise
        self._blocks += 1

    async def _begun(self) -> Lent:
        if self._over:
            raise TransactionError(f"the step of {self._calls.where} has ended: it can begin no transaction any more")
        calls, worker, run = self._calls, self._calls.drive.worker, self._calls.run
        try:
            await worker.hold(run)
            lent = self._lent = worker.lent[run.id, calls.state, calls.visit] = worker.store.transaction(run)
            await lent.begin()
        except BaseException as error:
            self._lent = None
            if isinstance(error, StoreError):
                calls.broken = error
            raise
        if lent.alone:
            worker.lending = asyncio.current_task()
        return lent

    def ended(self) -> Lent | None:
        """The step has returned: what its move is to be committed in. Raises TransactionError where that was lost."""
        self._over = True
        self._wait_no_more()
        if self._spoilt is not None:
            raise TransactionError(
                f"the transaction of {self._calls.where} was rolled back as a whole by {self._spoilt!r}, which left "
                "one of its blocks, and the step went on: let the error pass"
            ) from self._spoilt
        return self._lent

    async def failed(self, error: BaseException) -> BaseException:
        """The step has failed: take back what was written. Returns its error, in words that say what made it."""
        self._over = True
        lent = self._lent
        await self.rollback()
        return error if lent is None else lent.said(error)

    async def rollback(self) -> None:
        """Take back what was written, if anything."""
        lent, self._lent = self._lent, None
        if lent is not None:
            self._wait_no_more()
            await lent.rollback()
            self._calls.broken = lent.lost or self._calls.broken

    def _wait_no_more(self) -> None:
        if self._calls.drive.worker.lending is asyncio.current_task():
            self._calls.drive.worker.lending = None
