"""The two tables of the floors and the statements on them: one upsert of the run and one row of history a step."""

from __future__ import annotations

import time
from typing import NamedTuple


class Row(NamedTuple):
    """What one step writes; both statements draw their parameters from it."""

    id: int
    state: str
    version: int
    data: str
    at: float


def row(run: int, step: int, data: str | None = None) -> Row:
    """The row of the `step`-th step of a run, counted from 1."""
    return Row(run, f"s{step}", step, data or f'{{"n": {step}}}', time.time())


SQLITE_PRAGMAS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA busy_timeout = 10000")

SQLITE_TABLES = """
CREATE TABLE runs (id INTEGER PRIMARY KEY, state TEXT NOT NULL, status TEXT NOT NULL, version INTEGER NOT NULL,
    data TEXT NOT NULL, updated REAL NOT NULL);
CREATE TABLE moves (run INTEGER NOT NULL, version INTEGER NOT NULL, dest TEXT NOT NULL, changes TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (run, version)) WITHOUT ROWID;
"""

SQLITE_RUN = """
INSERT INTO runs (id, state, status, version, data, updated) VALUES (?1, ?2, 'running', ?3, ?4, ?5)
ON CONFLICT (id) DO UPDATE SET state = excluded.state, version = excluded.version, data = excluded.data,
    updated = excluded.updated WHERE runs.version = excluded.version - 1
"""

SQLITE_MOVE = "INSERT INTO moves (run, version, dest, changes, at) VALUES (?1, ?3, ?2, ?4, ?5)"

SQLITE_CLAIM = "UPDATE runs SET status = 'claimed' WHERE status = 'running' RETURNING id, state, version, data"

POSTGRES_TABLES = """
CREATE TABLE runs (id bigint PRIMARY KEY, state text NOT NULL, status text NOT NULL, version bigint NOT NULL,
    data text NOT NULL, updated float8 NOT NULL) WITH (fillfactor = 70);
CREATE TABLE moves (run bigint NOT NULL, version bigint NOT NULL, dest text NOT NULL, changes text NOT NULL,
    at float8 NOT NULL, PRIMARY KEY (run, version));
"""

_POSTGRES_UPSERT = """
ON CONFLICT (id) DO UPDATE SET state = excluded.state, version = excluded.version, data = excluded.data,
    updated = excluded.updated WHERE runs.version = excluded.version - 1
RETURNING id, state, version, data, updated
"""

POSTGRES_STEP = f"""
WITH run AS (INSERT INTO runs (id, state, status, version, data, updated) VALUES ($1, $2, 'running', $3, $4, $5)
    {_POSTGRES_UPSERT})
INSERT INTO moves (run, version, dest, changes, at) SELECT id, version, state, data, updated FROM run
"""

POSTGRES_STEPS = f"""
WITH run AS (INSERT INTO runs (id, state, status, version, data, updated)
    SELECT id, state, 'running', version, data, updated
    FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::float8[])
        AS step (id, state, version, data, updated) ORDER BY id
    {_POSTGRES_UPSERT})
INSERT INTO moves (run, version, dest, changes, at) SELECT id, version, state, data, updated FROM run
"""

POSTGRES_CLAIM = SQLITE_CLAIM
