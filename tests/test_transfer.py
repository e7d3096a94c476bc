"""Runs as documents: what comes out of one store goes into another, and tells the same story there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsmworkflow import Engine, RunNotFound, Store, StoreError, Workflow, field, open_store
from fsmworkflow.cli import main
from fsmworkflow.transfer import exported, imported, read, written

LARGE = "x" * 10_000
WAYS = [("sqlite", "postgres"), ("postgres", "sqlite"), ("sqlite", "sqlite"), ("postgres", "postgres")]


def families() -> Workflow:
    """Remembered calls, large fields, events of all kinds, an undoing to come, and children that wait for a word."""
    child = Workflow("page")

    @child.step(initial=True, then="asked")
    async def read_(ctx: Any) -> None:
        ctx.data["text"] = LARGE + str(ctx.data["item"])

    child.wait("asked", on={"go": "read"}, after={"30d": "read"})
    child.final("read")
    book = Workflow("book")

    @book.step(initial=True, then="pages", compensate=lambda ctx: None)
    async def begin(ctx: Any) -> None:
        ctx.data["at"] = await ctx.remember("now", lambda: {"é\u2028": [1, 2.50, 1e300, None, True]})
        ctx.data["large"] = LARGE

    book.each("pages", child, over=field("numbers"), into="texts", concurrency=2, then="end")

    @book.step("end", then="over")
    async def end(ctx: Any) -> None:
        await ctx.remember("last", lambda: "said")
        if ctx.data.get("fails"):
            raise ValueError("no")

    book.transition("note", "*", "over", field("never") == 1)
    book.final("over")
    return book


@pytest.fixture
def urls(request: pytest.FixtureRequest, tmp_path: Path, postgres: Any) -> Any:
    """Two empty stores of the kinds that are asked for."""
    with postgres.database() as first, postgres.database() as second:
        kinds = {"sqlite": [f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"], "postgres": [first, second]}
        yield kinds[request.param[0]][0], kinds[request.param[1]][1]


@pytest.fixture
async def stores(urls: tuple[str, str]) -> AsyncIterator[tuple[Store, Store]]:
    first, second = (open_store(url) for url in urls)
    await first.open()
    await second.open()
    yield first, second
    await first.close()
    await second.close()


every_way = pytest.mark.parametrize("urls", WAYS, indirect=True, ids=lambda way: "-".join(way))


async def begun(store: Store, **data: Any) -> None:
    """A family in the middle of its story, which nobody drives any more."""
    book = families()
    async with Engine(store, workflows=[book]) as engine:
        await engine.start(book, {"numbers": [1, 2, 3], "naïve": {"$odd": 1}, **data}, key="b/1")
        for number in range(2):
            while (child := await store.load("page", f"b/1/pages/1/{number}")) is None or child.status != "waiting":
                await asyncio.sleep(0.01)
        await engine.send(book, "b/1", "note", {"by": "ann"}, event_id="n-1")
        await engine.send("page", "b/1/pages/1/0", "go", due=store.now() + 3_600, event_id="later")
    while any(owner.lease > store.now() for owner in await store.owners()):
        await asyncio.sleep(0.01)


async def story(store: Store, workflow: str, key: str) -> list[Any]:
    run = await store.load(workflow, key)
    assert run is not None
    return [msgspec.to_builtins(entry) for entry in await store.history(run)]


@every_way
async def test_a_run_comes_back_the_same_from_another_store(stores: tuple[Store, Store]) -> None:
    first, second = stores
    await begun(first)
    document = await exported(first, "book", "b/1")
    run, made = await imported(second, read(written(document)))
    assert made
    assert (run.workflow, run.key, run.owner) == ("book", "b/1", None)
    back = await exported(second, "book", "b/1")
    assert [without_ids(one) for one in back.runs] == [without_ids(one) for one in document.runs]
    assert len(document.runs) == 4
    for workflow, key in [("book", "b/1"), *(("page", f"b/1/pages/1/{number}") for number in range(3))]:
        assert await story(second, workflow, key) == await story(first, workflow, key)
        there, here = await first.load(workflow, key), await second.load(workflow, key)
        assert there is not None
        assert here is not None
        assert dict(there.data) == dict(here.data)
        before, after = await first.inbox(there), await second.inbox(here)
        assert [(e.id, e.payload, e.due) for e in before[1]] == [(e.id, e.payload, e.due) for e in after[1]]


def without_ids(kept: Any) -> Any:
    found = json.loads(msgspec.json.encode(kept))
    found["run"]["id"] = found["run"]["parent"] = None
    return found


@every_way
async def test_it_goes_on_in_the_other_store_as_it_would_have_here(stores: tuple[Store, Store]) -> None:
    first, second = stores
    await begun(first)
    await imported(second, read(written(await exported(first, "book", "b/1"))))
    ends = []
    for store in (first, second):
        book = families()
        async with Engine(store, workflows=[book], poll=0.05) as engine, engine.working():
            for number in range(3):
                while (child := await store.load("page", f"b/1/pages/1/{number}")) is None or child.status != "waiting":
                    await asyncio.sleep(0.01)
                await engine.send("page", child.key, "go")
            run = await engine.result(book, "b/1")
            ends.append((run.state, run.status, dict(run.data)))
    assert ends[0] == ends[1]
    assert ends[0][:2] == ("over", "done")
    assert [text["text"][-1] for text in ends[0][2]["texts"]] == ["1", "2", "3"]


@every_way
async def test_what_a_failed_run_remembers_goes_with_it(stores: tuple[Store, Store]) -> None:
    first, second = stores
    book = families()
    async with Engine(first, workflows=[book]) as engine:
        await engine.start(book, {"numbers": [], "fails": True}, key="b/1")
        assert (await engine.result(book, "b/1")).status == "failed"
    await imported(second, read(written(await exported(first, "book", "b/1"))))
    made = await second.load("book", "b/1")
    assert made is not None
    assert [call.name for call in await second.recall(made, made.state, made.visit)] == ["=last"]
    assert made.error is not None
    there = await first.load("book", "b/1")
    assert there is not None
    assert (made.error, made.undo, made.over) == (there.error, there.undo, True)
    assert made.error.type == "ValueError"


@every_way
async def test_a_repeat_changes_nothing_and_another_run_of_that_key_is_left_alone(stores: tuple[Store, Store]) -> None:
    first, second = stores
    await begun(first)
    document = await exported(first, "book", "b/1")
    assert (await imported(second, document))[1]
    _, made = await imported(second, read(written(document)))
    assert not made
    book = families()
    async with Engine(second, workflows=[book]) as engine:
        await engine.fork(book, "b/1", new_key="b/2", at=0)
    other = msgspec.structs.replace(document.runs[0].run, key="b/2")
    forged = msgspec.structs.replace(document, runs=(msgspec.structs.replace(document.runs[0], run=other),))
    before = await exported(second, "book", "b/1")
    with pytest.raises(
        StoreError, match="there is a run book/b/2 already, and it is not this one: nothing was imported"
    ):
        await imported(second, forged)
    assert written(await exported(second, "book", "b/1")) == written(before)


@every_way
async def test_a_child_alone_is_a_run_of_its_own(stores: tuple[Store, Store]) -> None:
    first, second = stores
    await begun(first)
    run, _ = await imported(second, await exported(first, "page", "b/1/pages/1/0"))
    assert run.child is None
    assert await second.load("book", "b/1") is None
    async with Engine(second, workflows=[families()]) as engine:
        await engine.send("page", run.key, "go")
        assert (await engine.result("page", run.key)).state == "read"


@every_way
async def test_where_one_of_the_keys_is_taken_nothing_is_written(stores: tuple[Store, Store]) -> None:
    first, second = stores
    await begun(first)
    document = await exported(first, "book", "b/1")
    await imported(second, await exported(first, "page", "b/1/pages/1/2"))
    with pytest.raises(StoreError, match="there is a run page/b/1/pages/1/2 already"):
        await imported(second, document)
    assert await second.load("book", "b/1") is None
    with pytest.raises(RunNotFound):
        await exported(second, "page", "b/1/pages/1/0")


@pytest.mark.parametrize("urls", [("sqlite", "sqlite"), ("postgres", "sqlite")], indirect=True, ids="-".join)
async def test_what_is_exported_of_a_run_that_moves_is_of_one_moment(stores: tuple[Store, Store]) -> None:
    first, second = stores
    flow, moments = Workflow("counting"), set[int]()

    @flow.step(initial=True, then=[(field("n") >= 60, "end"), "count"])
    async def count(ctx: Any) -> None:
        ctx.data["n"] += 1
        ctx.data["large"] = LARGE + str(ctx.data["n"])
        await asyncio.sleep(0.02 * (ctx.data["n"] % 4))
        while len(moments) < ctx.data["n"] // 15:  # it stands still until so many have been seen
            await asyncio.sleep(0.005)

    flow.final("end")
    async with Engine(first, workflows=[flow]) as engine:
        await engine.start(flow, {"n": 0}, key="k")
        while (await engine.get(flow, "k")).status == "running":
            try:
                out = await exported(first, "counting", "k")
            except StoreError:  # it never stood still
                continue
            document = read(written(out))
            row = document.runs[0].run
            moments.add(row.version)
            data = json.loads(bytes(row.data))
            assert data["n"] == row.version
            held = {one.hash: bytes(one.text) for one in document.runs[0].fields}
            if row.version:
                assert json.loads(held[data["large"]["$field"]]) == LARGE + str(row.version)
    assert len(moments) > 3
    run, _ = await imported(second, await exported(first, "counting", "k"))
    assert (run.state, run.data["n"]) == ("end", 60)


async def test_a_store_in_memory_exports_nothing() -> None:
    store = open_store("memory://")
    await store.open()
    with pytest.raises(StoreError, match="in this process only"):
        await exported(store, "w", "k")


# -- hostile files ----------------------------------------------------------------------------------------------------


async def kept(tmp_path: Path) -> dict[str, Any]:
    flow = Workflow("w")
    flow.wait("a", initial=True, on={"go": "b"})
    flow.final("b")
    async with Engine(f"sqlite:///{tmp_path}/x.db", workflows=[flow]) as engine:
        await engine.start(flow, {"n": 1}, key="k")
        await engine.send(flow, "k", "go")
        await engine.result(flow, "k")
        found: dict[str, Any] = json.loads(written(await exported(engine.store, "w", "k")))
    return found


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["runs", 0, "run", "version"], "1", "Expected `int`, got `str` - at `$.runs[0].run.version`"),
        (["runs", 0, "run", "odd"], 1, "unknown field `odd`"),
        (["runs", 0, "run", "status"], "evil", "Invalid enum value 'evil'"),
        (["runs", 0, "run", "key"], "a\0b", "control characters"),
        (["runs", 0, "run", "key"], "", "must be text that is not empty"),
        (["runs", 0, "run", "owner"], "me", "unknown field `owner`"),
        (["runs", 0, "run", "active"], [1], "Expected `object`, got `array`"),
        (["runs", 0, "run", "data"], 7, "Expected `object`, got `int`"),
        (["runs", 0, "run", "parent"], 7, "does not belong to the first run"),
        (["runs", 0, "run", "version"], 5, "the history of w/k has gaps"),
        (["runs", 0, "moves"], [], "the history of w/k has gaps"),
        (["runs"], [], "it holds no run"),
        (["fsmworkflow"], 9, "its format is 9, this fsmworkflow reads 1"),
        (["runs", 0, "run", "active"], {}, "the state of w/k is not where its active states are"),
        (["runs", 0, "run", "active"], {"b": {"visit": 7}}, "a visit of w/k is none of its versions"),
        (["runs", 0, "run", "state"], "b" * 100_000, "the state of w/k is not where its active states are"),
        (["runs", 0, "run", "state"], "b\0", "state of w/k holds NUL"),
        (["runs", 0, "run", "data"], {"n": "\ud800"}, "JSON is malformed"),
        (["runs", 0, "run", "data"], {"n": {"$field": "0" * 32}}, "a large field of w/k is missing"),
        (["runs", 0, "moves", 0, "changes"], {"n": {"$field": "0" * 32}}, "a large field of w/k is missing"),
        (["runs", 0, "fields"], [{"hash": "0" * 32, "text": 1}], "a large field of w/k is not that of its hash"),
        (["runs", 0, "run", "version"], 2**70, "version of w/k is no number that can be kept"),
        (["runs", 0, "run", "epoch"], 2**63 - 1, "epoch of w/k is no number that can be kept"),
        (["runs", 0, "run", "posted"], -1, "posted of w/k is no number that can be kept"),
        (["runs", 0, "run", "updated"], 1e300, "updated of w/k is no time: 1e+300"),
        (["runs", 0, "run", "undo"], [1], "Expected `object`, got `array`"),
        (["runs", 0, "run", "depth"], 1, "does not belong to the first run"),
        (["runs", 0, "moves", 1, "at"], -1e300, "at of w/k is no time"),
        (["runs", 0, "moves", 1, "asked"], {"x": 1}, "Expected `array`, got `object`"),
        (["runs", 0, "events", 0, "status"], "done", "an event of w/k has no answer 'done'"),
        (["runs", 0, "calls"], [{"state": "a", "visit": 0, "name": "f", "nth": 2**60, "result": 1}], "nth of w/k"),
    ],
)
async def test_a_file_that_is_none_is_refused_with_its_place(
    tmp_path: Path, path: list[Any], value: Any, says: str
) -> None:
    document = await kept(tmp_path)
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(StoreError) as refused:
        read(json.dumps(document).encode())
    assert says in str(refused.value)
    assert len(str(refused.value)) < 1_000


async def test_two_events_of_one_id_and_a_child_of_nobody_are_refused(tmp_path: Path) -> None:
    document = await kept(tmp_path)
    one = document["runs"][0]
    for changed, says in (
        ({**one, "events": one["events"] * 2}, "two events of w/k have one id"),
        ({**one, "run": {**one["run"], "id": 9, "key": "c", "parent": 1, "depth": 1}}, "w/c does not belong"),
        ({**one, "run": {**one["run"], "id": 9, "key": "c", "parent": 8, "depth": 1}}, "w/c does not belong"),
    ):
        runs = [changed] if changed["run"]["key"] == "k" else [one, changed]
        with pytest.raises(StoreError, match=says):
            read(json.dumps({**document, "runs": runs}).encode())


async def test_what_looks_like_a_tagged_value_and_is_none_does_not_hinder_a_list(tmp_path: Path, capsys: Any) -> None:
    document = await kept(tmp_path)
    document["runs"][0]["run"]["data"] = {"n": {"$datetime": "nonsense"}}
    (tmp_path / "x.json").write_text(json.dumps(document))
    url = f"sqlite:///{tmp_path}/y.db"
    assert await asyncio.to_thread(main, ["import", url, str(tmp_path / "x.json")]) == 0
    capsys.readouterr()
    for words in (["list", url], ["show", url, "w", "k"]):
        assert await asyncio.to_thread(main, [*words, "--json"]) == 0
        assert "nonsense" in capsys.readouterr().out


def test_a_document_has_a_limit() -> None:
    with pytest.raises(StoreError, match="it has more than 100 bytes"):
        read(b" " * 101, limit=100)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"runs": []}', b"null"])
def test_what_is_no_document_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(StoreError, match="no run that fsmworkflow has exported"):
        read(text)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("urls", [("sqlite", "postgres")], indirect=True, ids=["sqlite-postgres"])
async def test_from_a_shell_a_run_goes_out_and_in(urls: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    source, target = urls
    store = open_store(source)
    await store.open()
    await begun(store)
    await store.close()
    file = str(tmp_path / "run.json")

    def say(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        return (code, *capsys.readouterr())

    assert await asyncio.to_thread(say, "export", source, "book", "b/1", "-o", file) == (0, f"{file} was written\n", "")
    _, text, _ = await asyncio.to_thread(say, "export", source, "book", "b/1")
    assert text == Path(file).read_text()
    assert json.loads(text)["runs"][0]["run"]["data"]["numbers"] == [1, 2, 3]
    code, out, err = await asyncio.to_thread(say, "import", target, file)
    assert (code, out, err) == (0, "book/b/1 was imported, waiting in pages\n", "")
    code, out, _ = await asyncio.to_thread(say, "import", target, file, "--json")
    assert (code, json.loads(out)["imported"]) == (0, False)
    assert (await asyncio.to_thread(say, "export", target, "book", "b/1"))[0] == 0
    (tmp_path / "bad.json").write_text("{}")
    code, out, err = await asyncio.to_thread(say, "import", target, str(tmp_path / "bad.json"))
    assert (code, out) == (3, "")
    assert err.startswith("error: this is no run that fsmworkflow has exported: ")
    assert (await asyncio.to_thread(say, "import", target, str(tmp_path / "none.json")))[0] == 2
