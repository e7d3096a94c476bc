"""docs/guarantees.md names for each promise the tests that show it."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text()


def test_every_promise_is_on_the_page_with_tests_that_exist() -> None:
    there = {name for file in TESTS.glob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    parts = re.split(r"^\*\*P(\d+)\.", PAGE, flags=re.MULTILINE)
    promises = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))
    assert sorted(promises) == list(range(1, 15))
    for number, text in promises.items():
        assert re.search(r"`test_\w+`", text), f"P{number} names no test"
    assert set(re.findall(r"`(test_\w+)`", PAGE)) - there == set()
