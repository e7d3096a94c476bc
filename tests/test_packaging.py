"""What a user installs: the wheel, built from the sdist, works in an environment that holds nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE_BYTES = 15_000_000
PROGRAM = """
import asyncio
from fsmworkflow import Engine, Workflow, field

counting = Workflow("counting")

@counting.step(initial=True, then=[(field("n") >= 3, "report"), "count"])
async def count(ctx):
    ctx.data["n"] += 1

@counting.step(then="reported")
async def report(ctx):
    ctx.data["text"] = f"counted to {ctx.data['n']}"

counting.final("reported")

async def main():
    async with Engine("sqlite:///counting.db", workflows=[counting]) as engine:
        run = await engine.run(counting, {"n": 0}, key="first")
        print(run.state, run.status, run.data["text"])

asyncio.run(main())
"""
LATE = [
    "aiosqlite",
    "asyncpg",
    "click",
    "cronsim",
    "rich",
    "dotenv",
    "pydantic",
    "re2",
    "transitions",
    "uvloop",
    "yaml",
]


def run(*command: object, cwd: Path) -> str:
    """Runs a command and returns what it printed; the test fails with all its output where the command does."""
    ended = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{' '.join(map(str, command))}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", target, cwd=ROOT)
    return next(target.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    sources = next(target.iterdir())
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target, cwd=sources)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and what it depends on, and without pip."""
    target = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", target, cwd=target)
    run(sys.executable, "-m", "pip", "--python", python(target), "install", "--quiet", wheel, cwd=target)
    return target


def python(environment: Path) -> Path:
    return environment / "bin" / "python"


def site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def test_the_wheel_holds_the_package_its_types_the_sql_and_what_it_ships(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    sql = {f"fsmworkflow/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("sql/**/*.sql")}
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("fsmworkflow/**/*.py")}
    assert {"fsmworkflow/sql/sqlite/queries.sql", "fsmworkflow/sql/postgres/queries.sql"} <= sql
    project = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("fsmworkflow/cli/project/*.*")}
    drawing = {f"fsmworkflow/diagram/{name}" for name in ("mermaid.tiny.js.gz", "mermaid.LICENSE")}
    assert len(project) == 3
    assert {"fsmworkflow/py.typed"} | sql | modules | project | drawing <= held
    assert {name.split("/")[0] for name in held} == {"fsmworkflow", "fsmworkflow-0.1.0.dist-info"}


def test_the_sdist_holds_tests_examples_and_benchmarks(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"LICENSE", "Makefile", "README.md", "pyproject.toml", "sql/README.md", "tests/conftest.py"} <= held
    assert {name.split("/")[0] for name in held} >= {"benchmarks", "examples", "fsmworkflow", "sql", "tests"}


def test_a_program_runs_from_the_installed_wheel(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    for _ in range(2):  # the second time the run is over, and only reported
        assert run(python(environment), "-W", "error", "program.py", cwd=tmp_path) == "reported done counted to 3\n"


def test_the_dependencies_of_the_wheel_agree(environment: Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python(environment), "check", cwd=environment)


def test_the_core_is_small_beside_asyncpg(environment: Path) -> None:
    packages = site_packages(environment)
    sizes: dict[str, int] = {}
    for path in packages.rglob("*"):
        if path.is_file():
            name = path.relative_to(packages).parts[0]
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    core = {name: size for name, size in sizes.items() if not name.startswith("asyncpg")}
    assert len(core) < len(sizes)
    assert sum(core.values()) < CORE_BYTES, core


def test_importing_the_package_loads_no_driver_and_no_optional_library() -> None:
    program = f"import sys, fsmworkflow; print([name for name in {LATE} if name in sys.modules])"
    assert run(sys.executable, "-c", program, cwd=ROOT) == "[]\n"


def test_every_public_name_is_there() -> None:
    import fsmworkflow

    assert [name for name in fsmworkflow.__all__ if getattr(fsmworkflow, name, None) is None] == []
