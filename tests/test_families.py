"""Families over processes that work on one store and are killed: each child counts once, and few are on at once."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmworkflow import Event, open_store
from fsmworkflow.decide import begin
from tests.children import Child, Children
from tests.crash_child import TOGETHER, family
from tests.ledger import Line, glimpse
from tests.test_workers import OFTEN, dismissed
from tests.waiting import PATIENCE

SEED = int(os.environ.get("FSMWORKFLOW_SEED") or secrets.randbits(32))
ITEMS: list[Any] = list(range(20))
AT_ONCE = 2  # runs that one process drives: fewer than the children of one family that have their turn


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as some:
        yield some


def families(url: str, *keys: str, items: list[Any] = ITEMS) -> None:
    """Parents that nobody drives yet."""

    async def make() -> None:
        flow, store = family().check(), open_store(url)
        await store.open()
        made = [begin(flow, key, flow.codec.start({"items": items}), now=store.now()) for key in keys]
        await asyncio.gather(*map(store.create, made))
        await store.close()

    asyncio.run(make())


def parents(url: str) -> Counter[str]:
    return Counter(status for _, _, status in glimpse(url, "family/").rows.values())


def over(url: str, many: int) -> bool:
    return parents(url) == {"done": many}


def patient(what: Callable[[], bool], some: list[Child], seconds: float = 2 * PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "".join(child.err[-1000:] for child in some)
        time.sleep(0.02)


def check(lines: list[Line], keys: list[str], items: list[Any] = ITEMS) -> None:
    """What the steps saw: results whole and in order, no more children at once than may be, joined once."""
    told = {line["run"].removeprefix("family/"): line["out"] for line in lines if line["what"] == "joined"}
    assert set(told) == set(keys)
    for key, out in told.items():
        made = [f"{item} of {key}/all/{one_visit(lines, key)}/{n}" for n, item in enumerate(items)]
        assert out == [{"item": item, "index": n, "made": made[n]} for n, item in enumerate(items)]
    assert together(lines, lambda line: line["run"].removeprefix("child/").rpartition("/")[0]) <= TOGETHER
    assert together(lines, lambda line: line["pid"]) <= AT_ONCE


def together(lines: list[Line], of: Callable[[Line], Any]) -> int:
    """How many children of one were on at most, from the first step to the end of the last one, over all processes."""
    on: dict[Any, set[str]] = defaultdict(set)
    most = 0
    for line in lines:
        if line["what"] == "begin":
            on[of(line)].add(line["run"])
            most = max(most, len(on[of(line)]))
        elif line["what"] == "end":
            on[of(line)].discard(line["run"])
    return most


def one_visit(lines: list[Line], key: str) -> int:
    """The visit in which all children of a parent were made."""
    visits = {line["run"].split("/")[-2] for line in lines if line.get("run", "").startswith(f"child/{key}/")}
    assert len(visits) == 1
    return int(visits.pop())


def check_store(url: str, keys: list[str], items: list[Any] = ITEMS) -> None:
    """What was committed: each child took its two steps once, each parent was told once that all have ended."""
    seen = glimpse(url)
    assert not seen.faults()
    assert len(seen.rows) == len(keys) * (1 + len(items))
    for run, moves in seen.moves.items():
        if run.startswith("child/"):
            assert [(move[1], move[4]) for move in moves] == [("", "$start"), ("saw", "$done"), ("polish", "$done")]
        else:
            assert [move[4] for move in moves if move[1]] == ["$begin", "$joined", "$done"]


def check_repeats(lines: list[Line], many: int, deaths: int) -> None:
    began = Counter((line["run"], line["state"]) for line in lines if line["what"] == "begin")
    assert len(began) == 2 * many
    assert max(began.values()) <= 1 + deaths
    assert began.total() - 2 * many <= deaths * AT_ONCE, began.most_common(5)


def check_shared(lines: list[Line], keys: list[str]) -> None:
    """Of a family several processes drove children."""
    by = {(line["run"].split("/")[1], line["pid"]) for line in lines if line["what"] == "end"}
    assert max(Counter(key for key, _ in by).values()) > 1, "one process did it all"


def work(children: Children, url: str, *words: object) -> Child:
    return children.start("work", url, "--steps", AT_ONCE, "--deaths", OFTEN, *words)


def further(url: str, children: Children, many: int) -> Callable[[], bool]:
    """Whether steps did something since now, or all is over."""
    far = children.ledger.size()
    return lambda: children.ledger.size() > far or over(url, many)


def kill_parents(url: str, children: Children, kills: int, at_once: int) -> None:
    """Two work; one of them is killed in the middle of families, and another one goes on in its place."""
    chance, struck, keys = random.Random(SEED), 0, list[str]()
    some = [work(children, url) for _ in range(2)]
    for child in some:
        child.line("open")
    while struck < kills:
        if not keys or over(url, len(keys)):
            keys += [f"k{len(keys) + n}" for n in range(at_once)]
            families(url, *keys[-at_once:])
        patient(further(url, children, len(keys)), some)
        time.sleep(chance.uniform(0, 0.15))
        place = chance.randrange(2)
        struck += not over(url, len(keys))
        assert some[place].kill(), some[place].err
        some[place] = work(children, url)
        some[place].line("open")
    patient(lambda: over(url, len(keys)), some)
    dismissed(some)
    lines = children.ledger.lines()
    check(lines, keys)
    check_store(url, keys)
    check_repeats(lines, len(keys) * len(ITEMS), struck)
    check_shared(lines, keys)


def test_P1_P3_families_over_two_processes_of_which_one_is_killed_are_whole(
    durable_url: str, children: Children
) -> None:
    try:
        kill_parents(durable_url, children, kills=3, at_once=2)
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise


async def pruned(url: str, end: Callable[[], bool]) -> int:
    """Delete what has ended, parents and children, again and again."""
    store, gone = open_store(url), 0
    await store.open()
    over = False
    while not over:
        over = await asyncio.to_thread(end)
        for workflow in ("child", "family"):
            gone += await store.prune(workflow, ["done", "failed", "cancelled"], 9e12, 30)
        await asyncio.sleep(0.005)
    await store.close()
    return gone


def test_families_are_deleted_whole_once_they_are_over_while_others_go_on(durable_url: str, children: Children) -> None:
    keys = [f"k{n}" for n in range(12)]
    families(durable_url, *keys)
    some = [work(children, durable_url) for _ in range(2)]
    seen: set[int] = set()

    def joined() -> bool:
        rows = glimpse(durable_url).rows
        there = Counter(run.split("/")[1] for run in rows if run.startswith("child/"))
        going = [run for run, row in rows.items() if run.startswith("family/") and row[0] > 0 and row[2] != "done"]
        seen.update(there[run.removeprefix("family/")] for run in going)
        return len(children.ledger.lines("joined")) >= len(keys) and not going

    gone = asyncio.run(asyncio.wait_for(pruned(durable_url, joined), 2 * PATIENCE))
    dismissed(some)
    check(children.ledger.lines(), keys)
    assert seen == {len(ITEMS)}, "children stay while their parent is not over"
    assert gone > len(ITEMS)


def test_a_child_that_ends_its_processes_is_parked_its_family_goes_on_with_the_retry_and_its_neighbours_always(
    durable_url: str, children: Children
) -> None:
    items = [*range(4), "poison", *range(5, 12)]
    families(durable_url, "k", items=items)
    families(durable_url, "well")
    some = [poisoned(children, durable_url) for _ in range(2)]

    def settled() -> bool:
        some[:] = [child if child.alive() else poisoned(children, durable_url) for child in some]
        return parents(durable_url) == {"failed": 1, "done": 1}

    patient(settled, some)
    rows = glimpse(durable_url, "child/").rows
    assert [run for run, row in rows.items() if row[2] == "parked"] == ["child/k/all/0/4"]
    assert len(children.ledger.lines("death")) == 3
    dismissed(some)
    some = [work(children, durable_url, "--sync") for _ in range(2)]
    asyncio.run(retried(durable_url, "k"))
    patient(lambda: over(durable_url, 2), some)
    dismissed(some)
    told = {line["run"]: line["out"] for line in children.ledger.lines("joined")}
    assert [one["item"] for one in told["family/k"]] == items
    assert [one["item"] for one in told["family/well"]] == ITEMS


def poisoned(children: Children, url: str) -> Child:
    return children.start("work", url, "--steps", AT_ONCE, "--deaths", 3)


async def retried(url: str, *keys: str) -> None:
    store = open_store(url)
    await store.open()
    for key in keys:
        await store.post("family", key, Event(name="$retry", id="again"))
    await store.close()


@pytest.mark.soak
def test_many_kills_of_two_processes_leave_families_whole(durable_url: str, children: Children) -> None:
    try:
        kill_parents(durable_url, children, kills=100, at_once=8)
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise
