"""Holds the four floors: which file stands where, what it may import, and how large it may grow.

An import inside `if TYPE_CHECKING:` is not run and may point upward; every other one, at the top of a file or inside a
function, goes to the same floor or lower.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fsmworkflow"

# A file, or a directory with all that is in it, and its floor. A new file is entered here, or it fails.
FLOORS = {
    "errors.py": 1,
    "records.py": 1,
    "operators.py": 2,
    "conditions.py": 2,
    "retry.py": 2,
    "workflow.py": 2,
    "states.py": 2,
    "scope.py": 2,
    "definition.py": 2,
    "statechart.py": 2,
    "versions.py": 2,
    "failures.py": 2,
    "case.py": 2,
    "draft.py": 2,
    "choosing.py": 2,
    "due.py": 2,
    "beginning.py": 2,
    "taking.py": 2,
    "undoing.py": 2,
    "steps.py": 2,
    "steering.py": 2,
    "decide.py": 2,
    "plain.py": 1,
    "typed.py": 1,
    "children.py": 2,
    "codec.py": 1,
    "config/": 2,
    "expressions.py": 2,
    "__init__.py": 3,
    "store/__init__.py": 3,
    "store/sql.py": 3,
    "store/rows.py": 3,
    "store/writer.py": 3,
    "store/bell.py": 3,
    "store/kin.py": 3,
    "store/verbs.py": 3,
    "store/lent.py": 3,
    "store/memory.py": 3,
    "store/memory_kin.py": 3,
    "store/sqlite.py": 3,
    "store/sqlite_statements.py": 3,
    "store/sqlite_lent.py": 3,
    "store/postgres.py": 3,
    "store/postgres_server.py": 3,
    "store/postgres_watch.py": 3,
    "store/postgres_statements.py": 3,
    "store/postgres_lent.py": 3,
    "store/legacy.py": 3,
    "settings.py": 3,
    "hooks.py": 3,
    "problems.py": 2,
    "acting.py": 3,
    "context.py": 3,
    "calls.py": 3,
    "drive.py": 3,
    "tasks.py": 3,
    "explain.py": 3,
    "threads.py": 3,
    "transaction.py": 3,
    "machine.py": 3,
    "claims.py": 3,
    "actions.py": 3,
    "joint.py": 3,
    "inbox.py": 2,
    "roster.py": 3,
    "errand.py": 3,
    "crews.py": 3,
    "lookout.py": 3,
    "engine.py": 3,
    "register.py": 3,
    "lease.py": 3,
    "flights.py": 3,
    "line.py": 3,
    "worker.py": 3,
    "schedule.py": 3,
    "health.py": 3,
    "resources.py": 3,
    "stream/": 4,
    "pools.py": 4,
    "functions/": 4,
    "simple/": 4,
    "doctor.py": 4,
    "findings.py": 4,
    "flow.py": 4,
    "sources.py": 4,
    "shadows.py": 4,
    "testing.py": 4,
    "upkeep.py": 4,
    "exports.py": 4,
    "transfer.py": 4,
    "cli/": 4,
    "service.py": 4,
    "__main__.py": 4,
    "readers/": 4,
    "patterns/": 4,
    "contrib/": 4,
    "diagram/": 4,
    "web/": 4,
}
# The libraries that floors 1 to 3 may use beside the standard one, and the files that may import them (None: all).
LIBRARIES = {
    "msgspec": None,
    "transitions": {"statechart.py"},
    "aiosqlite": {"store/sqlite.py", "store/sqlite_lent.py"},
    "asyncpg": {
        "stream/databases.py",
        *(f"store/postgres{part}.py" for part in ("", "_server", "_statements", "_lent")),
    },
    "dotenv": {"settings.py"},
    "pydantic": {"codec.py"},
    "re2": {"config/reading.py"},
    "yaml": {"config/text.py"},
    "cronsim": {"schedule.py"},
}
VAGUE_NAMES = {"core", "base", "utils", "common", "manager", "helpers", "types"}
LOWER_FLOORS_LINES = 9_528
RESOURCES_LINES = 245  # what an engine opens for steps, beside the 20 lines by which the others know of it
FILES_LINES = 1_262  # a workflow as data, which no program without files loads: config/ and expressions.py
FILE_LINES = 400  # of one file, all that stands in it

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("file", FILES)


def floor_of(file: str) -> int | None:
    directory = file.split("/")[0] + "/"
    return FLOORS.get(file, FLOORS.get(directory))


def nodes_that_run(node: ast.AST) -> Iterator[ast.AST]:
    """Every node of the tree but those under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from nodes_that_run(other)
        else:
            yield from nodes_that_run(child)


def names_imported(source: str, file: str) -> Iterator[str]:
    """The dotted names that a file imports when it runs; a relative one is spelled out."""
    package = ["fsmworkflow", *file.split("/")[:-1]]
    for node in nodes_that_run(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def files_imported(source: str, file: str) -> Iterator[str]:
    """The files of the package that a file imports, each as in FLOORS."""
    for name in names_imported(source, file):
        first, *parts = name.split(".")
        if first == "fsmworkflow":
            yield next(found for end in range(len(parts), -1, -1) if (found := file_of(parts[:end])))


def file_of(parts: list[str]) -> str | None:
    path = "/".join(parts)
    names = [f"{path}.py", f"{path}/__init__.py"] if parts else ["__init__.py"]
    return next((name for name in names if name in FILES or name in FLOORS), None)


def climbs(source: str, file: str) -> list[str]:
    """The files on a higher floor that a file imports."""
    floor = floor_of(file)
    return [other for other in files_imported(source, file) if (floor_of(other) or 9) > floor]


def strangers(source: str, file: str) -> set[str]:
    """The libraries that a file of floors 1 to 3 imports and may not."""
    found = {name.split(".")[0] for name in names_imported(source, file)} - sys.stdlib_module_names - {"fsmworkflow"}
    allowed = {name for name, files in LIBRARIES.items() if files is None or file in files}
    return found - allowed


@each_file
def test_a_file_has_its_place_in_the_table(file: str) -> None:
    assert floor_of(file), f"fsmworkflow/{file} is on no floor: enter it in FLOORS"


@each_file
def test_a_file_imports_from_its_own_floor_or_a_lower_one(file: str) -> None:
    assert climbs((PACKAGE / file).read_text(), file) == []


@each_file
def test_a_library_is_imported_only_in_the_file_made_for_it(file: str) -> None:
    source = (PACKAGE / file).read_text()
    if floor_of(file) != 4:
        assert strangers(source, file) == set()
    drivers = {"transitions", "aiosqlite", "asyncpg"}
    assert drivers & {name.split(".")[0] for name in names_imported(source, file)} <= drivers - strangers(source, file)


@each_file
def test_a_file_is_named_by_what_it_holds(file: str) -> None:
    assert not VAGUE_NAMES & set(file.removesuffix(".py").split("/"))


def code_lines(file: str) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring, which are not what makes a file hard to hold."""
    text = (PACKAGE / file).read_text()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in blank)
    lines = {line for t in tokens for line in range(t.start[0], t.end[0] + 1)}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def test_floors_one_to_three_stay_small() -> None:
    lines = {file: code_lines(file) for file in FILES if floor_of(file) != 4}
    as_data = [lines.pop(file) for file in list(lines) if file.startswith(("config/", "expressions."))]
    assert lines.pop("resources.py") < RESOURCES_LINES
    assert sum(lines.values()) < LOWER_FLOORS_LINES, sorted(lines.items(), key=lambda entry: -entry[1])
    assert sum(as_data) < FILES_LINES


def test_a_file_stays_small() -> None:
    large = {file: len((PACKAGE / file).read_text().splitlines()) for file in FILES}
    assert {file: lines for file, lines in large.items() if lines >= FILE_LINES} == {}


@pytest.mark.parametrize(
    ("source", "file", "found"),
    [
        ("from fsmworkflow.engine import Engine", "records.py", ["engine.py"]),
        ("from fsmworkflow import engine", "records.py", ["engine.py"]),
        ("from fsmworkflow import Engine", "codec.py", ["__init__.py"]),
        ("import fsmworkflow.cli", "engine.py", ["cli/__init__.py"]),
        ("from . import cli", "engine.py", ["cli/__init__.py"]),
        ("from ..cli import main", "store/sql.py", ["cli/__init__.py"]),
        ("def f():\n    from fsmworkflow.store import Store", "decide.py", ["store/__init__.py"]),
        ("if TYPE_CHECKING:\n    from fsmworkflow.engine import Engine", "records.py", []),
        ("from fsmworkflow.errors import StoreError", "store/sql.py", []),
        ("from .sqlite import SQLiteStore", "store/__init__.py", []),
    ],
)
def test_an_import_of_a_higher_floor_is_seen(source: str, file: str, found: list[str]) -> None:
    assert climbs(source, file) == found


@pytest.mark.parametrize(
    ("source", "file", "found"),
    [
        ("import asyncpg.pool", "store/sqlite.py", {"asyncpg"}),
        ("from asyncpg import connect", "store/postgres.py", set()),
        ("async def f():\n    import requests", "engine.py", {"requests"}),
        ("import asyncio, msgspec", "records.py", set()),
    ],
)
def test_a_library_in_the_wrong_file_is_seen(source: str, file: str, found: set[str]) -> None:
    assert strangers(source, file) == found
