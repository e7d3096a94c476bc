"""The public API is typed: a program that uses it passes mypy in strict mode, and its mistakes are found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "typing"
ROOT = HERE.parent.parent


def mypy(file: str) -> str:
    """What mypy says of a file, each line without its path."""
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context",
         "--cache-dir", str(ROOT / ".mypy_cache"), str(HERE / file)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.stderr == ""
    return found.stdout


def test_a_program_that_uses_the_whole_public_api_passes_mypy_strict() -> None:
    assert mypy("uses.py") == ""


def test_mistakes_are_found_where_they_are_marked() -> None:
    marked = [
        number for number, line in enumerate((HERE / "mistakes.py").read_text().splitlines(), 1) if "# wrong" in line
    ]
    found = {int(number) for number in re.findall(r"mistakes\.py:(\d+): error", mypy("mistakes.py"))}
    assert found == set(marked)
