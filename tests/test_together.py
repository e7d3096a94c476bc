"""All faults together: workers on one PostgreSQL are killed, frozen and drained while their server and network fail."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import Child, Children
from tests.network import Network
from tests.postgres_server import Server
from tests.test_workers import OFTEN, all_over, chores, dismissed
from tests.test_workers import check as all_is_well
from tests.waiting import PATIENCE

SEED = int(os.environ.get("FSMWORKFLOW_SEED") or secrets.randbits(32))
LEASE = 1.0
WORKERS = 4


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as some:
        yield some


class Storm:
    """One fault after another, each said in `struck`, while there is always something to do."""

    def __init__(self, server: Server, network: Network, children: Children) -> None:
        self.server, self.network, self.children = server, network, children
        self.direct = network.server
        self.chance = random.Random(SEED)
        self.struck: Counter[str] = Counter()
        self.made = 0
        self.workers = [self.start() for _ in range(WORKERS)]
        self.faults = [self.kill, self.freeze, self.drain, self.restart, self.reset, self.cut, self.swallow]
        for child in self.workers:
            child.line("open")

    def start(self) -> Child:
        words = ("--steps", 10, "--deaths", OFTEN, "--lease", LEASE)
        return self.children.start("work", self.network.url, *words)

    def blow(self, seconds: float) -> None:
        """Each fault comes at least once; so it may take longer than that."""
        end, first = time.monotonic() + seconds, list(self.faults)
        self.chance.shuffle(first)
        while first or time.monotonic() < end:
            chores(self.direct, *(f"k{self.made + n}" for n in range(10)))
            self.made += 10
            fault = first.pop() if first else self.chance.choice(self.faults)
            fault()
            self.struck[fault.__name__] += 1
            time.sleep(self.chance.uniform(0.05, 0.3))
            assert all(child.alive() for child in self.workers), "".join(child.err[-2000:] for child in self.workers)

    def one(self) -> tuple[int, Child]:
        place = self.chance.randrange(WORKERS)
        return place, self.workers[place]

    def kill(self) -> None:
        place, child = self.one()
        assert child.kill(), child.err
        self.workers[place] = self.start()

    def freeze(self) -> None:
        _, child = self.one()
        child.stop(self.direct)
        time.sleep(1.5 * LEASE)
        child.send(signal.SIGCONT)

    def drain(self) -> None:
        place, child = self.one()
        child.line("open")
        child.send(signal.SIGTERM)
        self.workers[place] = self.start()  # on one host name with the one that drains
        child.succeeded()

    def opened(self) -> None:
        """One that begins while nothing answers ends within seconds: a supervisor would start it anew."""
        for child in self.workers:
            child.line("open")

    def restart(self) -> None:
        self.opened()
        self.server.stop(self.chance.choice(["fast", "immediate"]))
        time.sleep(self.chance.uniform(0, 0.5))
        self.server.start()

    def reset(self) -> None:
        self.network.reset()

    def cut(self) -> None:
        self.network.cut(3)

    def swallow(self) -> None:
        self.opened()
        self.network.swallow()
        time.sleep(self.chance.uniform(0.5, 2))
        self.network.heal()


def weather(server: Server, children: Children, seconds: float) -> None:
    with Network(server.create_database()) as network:
        storm = Storm(server, network, children)
        try:
            storm.blow(seconds)
            end = time.monotonic() + 2 * PATIENCE
            while not all_over(storm.direct, storm.made):
                assert time.monotonic() < end, "".join(child.err[-2000:] for child in storm.workers)
                time.sleep(0.1)
            dismissed(storm.workers)
            assert set(storm.struck) == {fault.__name__ for fault in storm.faults}
            # A lease of a second ends in these, and then another may do a step again.
            costly = sum(
                storm.struck[fault] for fault in ("kill", "freeze", "restart", "swallow", "reset", "cut", "drain")
            )
            all_is_well(storm.direct, children, storm.made, costly)
        except BaseException as error:
            error.add_note(f"FSMWORKFLOW_SEED={SEED}, struck: {dict(storm.struck)}")
            raise


@pytest.mark.parametrize("seconds", [30, pytest.param(600, marks=pytest.mark.soak)])
def test_all_faults_together_lose_nothing(private_postgres: Server, children: Children, seconds: float) -> None:
    weather(private_postgres, children, seconds)
