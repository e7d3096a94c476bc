"""docs/guarantees.md names for each promise the tests that show it, docs/scxml.md for each fact of the W3C's tests."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text()
SCXML = (TESTS.parent / "docs" / "scxml.md").read_text()


THERE = {name for file in TESTS.glob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}


def test_every_promise_is_on_the_page_with_tests_that_exist() -> None:
    parts = re.split(r"^\*\*P(\d+)\.", PAGE, flags=re.MULTILINE)
    promises = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))
    assert sorted(promises) == list(range(1, 15))
    for number, text in promises.items():
        assert re.search(r"`test_\w+`", text), f"P{number} names no test"
    assert set(re.findall(r"`(test_\w+)`", PAGE)) - THERE == set()


def test_every_fact_of_the_w3c_that_holds_is_shown_by_a_test_that_exists() -> None:
    rows = re.findall(r"^\| ([^|]+) \|[^|]+\| ([^|]+) \| ([^|]*) ?\|$", SCXML, flags=re.MULTILINE)[2:]
    assert len(rows) >= 30
    for number, here, shown in rows:
        assert shown.strip() or not here.startswith("holds"), f"{number} names no test"
    named = set(re.findall(r"`(test_\w+)`", SCXML))
    assert named - THERE == set()
    assert {name for name in THERE if name.startswith("test_W3C")} - named == set()
