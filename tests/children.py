"""Processes for the crash tests: starts crash_child.py, waits for it with a deadline, kills it, shows what it said."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tests.ledger import Ledger
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests" / "crash_child.py"
SETTINGS = re.compile(r"DB_|FSMWORKFLOW_")
DEADLINE = 2 * PATIENCE


@contextlib.contextmanager
def launched(command: Sequence[str | os.PathLike[str]], **more: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process of a test. After the block it is over, and its pipes are closed, whatever has happened there."""
    process = subprocess.Popen(command, **more)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """By SIGKILL, where it has not ended by itself."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # of what it has not read
                pipe.close()


def stop(process: subprocess.Popen[Any], url: str) -> None:
    """SIGSTOP, but never inside a commit to SQLite: the file would be locked for as long as the process is stopped."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert process.poll() is None, f"process {process.pid} ended with {process.returncode} before it was stopped"
        if writable(url):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.001)


def writable(url: str) -> bool:
    """Whether nobody is inside a commit to that file; a server ends the commits of a stopped process by itself."""
    if not url.startswith("sqlite:"):
        return True
    path = url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        db.execute("ROLLBACK")
        return True


class Child:
    """One process that runs crash_child.py. What it says goes to files beside the ledger."""

    def __init__(self, ledger: Ledger, number: int, mode: str, url: str, *words: object) -> None:
        self.ledger = ledger
        self._out = ledger.path.with_name(f"{ledger.path.name}-{number}.out")
        self._err = self._out.with_suffix(".err")
        kept = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), mode, url, str(ledger.path), *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=ledger.path.parent,
                env={**kept, "PYTHONPATH": str(ROOT)},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def alive(self) -> bool:
        return self.process.poll() is None

    def go(self) -> None:
        """Let it pass the line that it waits for."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, url: str) -> None:
        """Until SIGCONT it does nothing, and keeps nobody from writing to the store."""
        stop(self.process, url)

    def kill(self) -> bool:
        """End it by SIGKILL. False where it had ended by itself before."""
        end(self.process)
        return self.process.returncode == -signal.SIGKILL

    def ended(self, seconds: float = DEADLINE) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} still runs after {seconds:g} s\n{self.err[-4000:]}") from None
        end(self.process)
        return status

    def succeeded(self, seconds: float = DEADLINE) -> str:
        """What it printed, once it has ended well."""
        status = self.ended(seconds)
        assert status == 0, f"process {self.pid} ended with {status}\n{self.out}\n{self.err[-6000:]}"
        return self.out

    def until(self, what: Callable[[], Any], seconds: float = DEADLINE) -> Any:
        """Wait until `what()` is true, and return it. Fails where this process ends before, or after that time."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert self.alive() or what(), f"process {self.pid} ended with {self.process.poll()}\n{self.err[-4000:]}"
            assert time.monotonic() < end, f"waited {seconds:g} s for process {self.pid}\n{self.err[-4000:]}"
            time.sleep(0.002)
        return found

    def line(self, what: str, seconds: float = DEADLINE, **more: Any) -> dict[str, Any]:
        """Wait for a line of this process in the ledger."""
        wanted = {"what": what, "pid": self.pid, **more}

        def look() -> dict[str, Any] | None:
            return next((line for line in self.ledger.lines() if wanted.items() <= line.items()), None)

        found: dict[str, Any] = self.until(look, seconds)
        return found


class Children:
    """The processes of one test: `start` one, and none is left at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger(directory / "ledger")
        self._ending = contextlib.ExitStack()
        self._ending.callback(self.ledger.close)
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def start(self, mode: str, url: str, *words: object, ledger: Ledger | None = None) -> Child:
        child = Child(ledger or self.ledger, self._started, mode, url, *words)
        self._ending.callback(end, child.process)
        self._started += 1
        return child

    def open_gate(self) -> None:
        """Let every nap end."""
        self.ledger.path.with_suffix(".go").touch()
