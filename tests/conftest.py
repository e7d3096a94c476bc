"""What the tests share: one PostgreSQL for all of them, and a fresh store for each test that asks for one.

A test never skips for want of PostgreSQL. It is started when the first test asks for it, unless
FSMWORKFLOW_TEST_POSTGRES names a server; where neither works, the test is in error and says what to do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsmworkflow import Engine
from fsmworkflow.worker import Worker
from tests import stopwatch as stopwatches
from tests.postgres_server import ADVICE, Databases, Server, execute
from tests.waiting import PATIENCE


def pytest_configure() -> None:
    """Started in the background of a shell, a process ignores Ctrl-C, and so would every child that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def long_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease ends while a test waits, save where one is given: a run that nobody gave back shows on any machine."""
    for owner in (Engine, Worker):
        monkeypatch.setitem(owner.__init__.__kwdefaults__, "lease", 600.0)


@pytest.fixture(autouse=True)
def patient_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store or resource is ill because a machine stood still, save where the time for an answer is given."""
    monkeypatch.setitem(Engine.health.__kwdefaults__, "within", PATIENCE)


@pytest.fixture
def stopwatch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stopwatches.Stopwatch]:
    """Bounds what is promised in seconds, on a machine that stands still for some, too."""
    with stopwatches.stopwatch(tmp_path_factory.mktemp("stopwatch")) as watch:
        yield watch


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    """The server that all tests share. Never stop it: a test that must stop one asks for `private_postgres`."""
    if url := os.environ.get("FSMWORKFLOW_TEST_POSTGRES"):
        try:
            execute(url, "SELECT 1")
        except Exception as error:
            raise RuntimeError(f"FSMWORKFLOW_TEST_POSTGRES names a server that does not answer: {error!r}") from error
        yield Databases(url)
        return
    server = Server()
    try:
        try:
            server.start()
        except Exception as error:
            raise RuntimeError(f"PostgreSQL could not be started: {error}\n{ADVICE}") from error
        yield server
    finally:
        server.remove()


@pytest.fixture
def private_postgres() -> Iterator[Server]:
    """A running server of the test's own, to be stopped, killed and started at will (always the one of the wheel)."""
    with Server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Databases) -> Iterator[str]:
    """The URL of a fresh database, dropped after the test with whatever is still connected."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a file that does not exist yet: `sqlite:///` and its absolute path."""
    return f"sqlite:///{tmp_path / 'x.db'}"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, once of each kind."""
    return _url(request)


@pytest.fixture(params=["sqlite", "postgres"])
def durable_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store that outlives the process, once of each kind."""
    return _url(request)


def _url(request: pytest.FixtureRequest) -> str:
    # Asked for by name, so that PostgreSQL starts only for the tests that use it.
    return "memory://" if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot be: a scenario that needs a connection of the driver's, on a store that has none."""
    gone = [item for item in items if _without_connection(getattr(getattr(item, "callspec", None), "params", {}))]
    if gone:
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=gone)


def _without_connection(params: dict[str, object]) -> bool:
    return params.get("shared_url") == "memory" and getattr(params.get("scenario"), "connected", False)
