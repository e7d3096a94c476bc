"""SQLite, WAL, synchronous=FULL, one commit a step, through the standard sqlite3 module: the floor of the ratios."""

from __future__ import annotations

import json
import sqlite3

from benchmarks.floors.rows import SQLITE_MOVE, SQLITE_PRAGMAS, SQLITE_RUN, SQLITE_TABLES, row
from benchmarks.jobs import Size, records
from benchmarks.meter import Meter


def connect(url: str) -> sqlite3.Connection:
    """An open database with the floors' tables; `url` as in `sqlite:///path`."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    for pragma in SQLITE_PRAGMAS:
        connection.execute(pragma)
    connection.executescript(SQLITE_TABLES)
    return connection


def step(connection: sqlite3.Connection, run: int, number: int, data: str | None = None) -> None:
    """One durable step."""
    values = row(run, number, data)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(SQLITE_RUN, values)
    connection.execute(SQLITE_MOVE, values)
    connection.execute("COMMIT")


def bulk(meter: Meter, url: str, size: Size) -> None:
    """The runs take turns; each step is a commit of its own."""
    connection = connect(url)
    meter.begin()
    for number in range(1, size.steps + 1):
        for run in range(size.runs):
            step(connection, run, number)
    meter.end(size.runs * size.steps)


alone = events = bulk


def large(meter: Meter, url: str, size: Size) -> None:
    """What a hand-written status column does: read the row, json.loads, change a counter, json.dumps, UPDATE."""
    connection = connect(url)
    connection.execute(SQLITE_RUN, row(1, 1, json.dumps({"n": 0, "records": records()})))
    meter.begin()
    for _ in range(size.steps):
        (text,) = connection.execute("SELECT data FROM runs WHERE id = 1").fetchone()
        data = json.loads(text)
        data["n"] += 1
        data["records"][data["n"]]["score"] = data["n"]
        connection.execute("UPDATE runs SET data = ?, version = version + 1 WHERE id = 1", (json.dumps(data),))
    meter.end(size.steps)


touched = large


def cold(meter: Meter, url: str, size: Size) -> None:
    """Open, create the tables, commit one step."""
    step(connect(url), 1, size.steps)
    meter.durable()
