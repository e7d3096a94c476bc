"""Who is measured: the subjects, what each needs installed, and which jobs it can do."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from benchmarks.jobs import JOBS

EACH, GROUPED = "one commit a step", "group commit, bare"
"""The two floors: ratios are to the first, CPU time is compared with the second."""


class Subject(NamedTuple):
    """`jobs` names functions of `module`; it is left out unless all of `needs` can be imported."""

    name: str
    store: str
    module: str
    jobs: str
    needs: str = ""

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return all(_found(name) for name in self.needs.split())


SQLITE = "aiosqlite fsmworkflow.store.sqlite"
OURS = "alone bulk started resume large touched events cold"
PEER = "alone bulk cold"

SUBJECTS = (
    Subject(EACH, "SQLite", "benchmarks.floors.sqlite_each", "alone bulk large touched events cold"),
    Subject(GROUPED, "SQLite", "benchmarks.floors.sqlite_grouped", "alone bulk resume", "aiosqlite"),
    Subject("fsmworkflow", "SQLite", "benchmarks.subjects.ours", f"{OURS} timers", SQLITE),
    Subject("fsmworkflow, YAML", "SQLite", "benchmarks.subjects.from_file", "events", f"{SQLITE} yaml"),
    Subject("Burr", "SQLite", "benchmarks.peers.burr_runs", PEER, "burr aiosqlite"),
    Subject("DBOS", "SQLite", "benchmarks.peers.dbos_runs", PEER, "dbos"),
    Subject("LangGraph", "SQLite", "benchmarks.peers.langgraph_runs", PEER, "langgraph langgraph.checkpoint.sqlite"),
    Subject(EACH, "PostgreSQL", "benchmarks.floors.postgres_each", "alone bulk large touched events cold", "asyncpg"),
    Subject(GROUPED, "PostgreSQL", "benchmarks.floors.postgres_grouped", "alone bulk resume", "asyncpg"),
    Subject("fsmworkflow", "PostgreSQL", "benchmarks.subjects.ours", OURS, "asyncpg fsmworkflow.store.postgres"),
    Subject("Burr", "PostgreSQL", "benchmarks.peers.burr_runs", PEER, "burr asyncpg"),
    Subject("DBOS", "PostgreSQL", "benchmarks.peers.dbos_runs", PEER, "dbos psycopg"),
    Subject("LangGraph", "PostgreSQL", "benchmarks.peers.langgraph_runs", PEER, "langgraph psycopg_pool"),
)


class Measurement(NamedTuple):
    """One cell of the plan; `least` is the disk's time for a flush in microseconds."""

    subject: Subject
    job: str
    least: int

    def named(self, words: list[str]) -> bool:
        """Whether each of the words of `--only` is in its name, as `sqlite fsmworkflow bulk 1ms`."""
        disk = f"{self.least // 1000}ms" if self.least else "plain"
        name = f"{self.subject.store} {self.subject.name} {self.job} {disk}".lower()
        return all(word.lower() in name for word in words)


def measurements(disks: list[int], only: list[str]) -> Iterator[Measurement]:
    """In the order in which one round makes them: subjects of the same job and disk next to each other."""
    present = [subject for subject in SUBJECTS if subject.installed]
    for job in JOBS:
        for least in disks:
            for subject in present:
                if job in subject.jobs.split() and (cell := Measurement(subject, job, least)).named(only):
                    yield cell


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
