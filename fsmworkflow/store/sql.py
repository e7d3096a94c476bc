"""The named SQL blocks and numbered migrations of `sql/`, found in a wheel and in an editable install alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from fsmworkflow.errors import SchemaError

Dialect = Literal["sqlite", "postgres"]
TABLES = frozenset({"fsm_runs", "fsm_events", "fsm_moves", "fsm_calls", "fsm_fields", "fsm_owners", "fsm_migrations"})


class Migration(NamedTuple):
    """One numbered step of the schema, never edited once it has been released."""

    version: int
    name: str
    sql: str


@cache
def _folder(dialect: Dialect) -> Path:
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "sql" / dialect, package.parent / "sql" / dialect):
        if (folder / "queries.sql").is_file():
            return folder
    raise FileNotFoundError(
        f"sql/{dialect}/queries.sql is neither in the package nor beside it: the install is incomplete"
    )


@cache
def queries(dialect: Dialect) -> dict[str, str]:
    """The statements of a dialect by name, without their comments."""
    text = _folder(dialect).joinpath("queries.sql").read_text(encoding="utf-8")
    blocks = re.split(r"^-- name: *(\w+) *$", text, flags=re.MULTILINE)[1:]
    return {name: _bare(body) for name, body in zip(blocks[::2], blocks[1::2], strict=True)}


@cache
def migrations(dialect: Dialect) -> tuple[Migration, ...]:
    """All migrations of a dialect in their order, numbered from 1 without a gap."""
    files = sorted(_folder(dialect).joinpath("migrations").glob("[0-9]*.sql"))
    return tuple(Migration(int(f.name[:4]), f.stem, f.read_text(encoding="utf-8")) for f in files)


def missing(dialect: Dialect, tables: Collection[str], versions: Sequence[int]) -> tuple[Migration, ...]:
    """The migrations that a database still lacks, given its tables of our names and the versions that it lists.

    Raises SchemaError where it lists one that this code does not know, or its tables are not ours.
    """
    known = migrations(dialect)
    newest, done = known[-1].version, max(versions, default=0)
    if done > newest:
        raise SchemaError(f"the tables are of version {done}, this code knows up to {newest}: upgrade fsmworkflow")
    if not done and (foreign := sorted(TABLES.intersection(tables) - {"fsm_migrations"})):
        raise SchemaError(f"there are tables that are not ours: {', '.join(foreign)}")
    return tuple(migration for migration in known if migration.version > done)


_QUOTED = re.compile(
    r"""--[^\n]*|[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\1|/\*""", re.DOTALL
)
_EDGE = re.compile(r"/\*|\*/")
_ENDS = re.compile(
    r"(?:^|;)\s*(?:commit|end|abort|begin|start\s+transaction|prepare\s+transaction"
    r"|rollback(?!\s+(?:work\s+|transaction\s+)?to\b))\b",
    re.IGNORECASE,
)


def ends_transaction(query: str) -> bool:
    """Whether one of the statements of a query begins or ends a transaction. Savepoints do not."""
    kept, at = [], 0
    while (found := _QUOTED.search(query, at)) is not None:
        kept.append(query[at : found.start()])
        at, depth = found.end(), int(found[0] == "/*")  # PostgreSQL has comments in comments
        while depth and (edge := _EDGE.search(query, at)) is not None:
            at, depth = edge.end(), depth + (1 if edge[0] == "/*" else -1)
    return _ENDS.search(" ".join([*kept, query[at:]])) is not None


def statements(sql: str) -> list[str]:
    """The single statements of a migration. Its comments must hold no semicolon."""
    return [part.strip() for part in _bare(sql).split(";") if part.strip()]


def _bare(sql: str) -> str:
    lines = (re.sub(r"--.*", "", line).rstrip() for line in sql.splitlines())
    return "\n".join(line for line in lines if line.strip()).strip().rstrip(";")
