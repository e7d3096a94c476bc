"""The simple use: a machine of a configuration takes records, also from synchronous code, and can be watched."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fsmworkflow import DefinitionError, Retry, UnknownState, Workflow, WorkflowContext, field
from fsmworkflow.pools import Pool
from fsmworkflow.simple import (
    AdvancedFSM,
    AsyncSimpleFSM,
    BatchProgress,
    DataHandlingMode,
    ExecutionMode,
    Profile,
    SimpleFSM,
    StreamProgress,
)
from fsmworkflow.stream import StreamError, sources
from tests.children import launched
from tests.waiting import PATIENCE

MARKED = {
    "name": "marked",
    "states": [{"name": "start", "is_start": True}, {"name": "process"}, {"name": "end", "is_end": True}],
    "arcs": [
        {"from": "start", "to": "process",
         "transform": {"type": "inline", "code": "lambda data, ctx: {**data, 'processed': True}"}},
        {"from": "process", "to": "end"},
    ],
}  # fmt: skip


def inline(code: str) -> dict[str, str]:
    return {"type": "inline", "code": code}


SORTED = {
    "name": "sorted",
    "main_network": "main",
    "networks": [{
        "name": "main",
        "states": [
            {"name": "input", "is_start": True},
            {"name": "validate", "functions": {"transform": inline(
                "lambda state: {**state.data, 'valid': (state.data.get('value') or -1) >= 0}")}},
            {"name": "enrich", "functions": {"transform": inline(
                "lambda state: {**state.data, 'twice': state.data['value'] * 2}")}},
            {"name": "output", "is_end": True},
            {"name": "error", "is_end": True},
        ],
        "arcs": [
            {"from": "input", "to": "validate"},
            {"from": "validate", "to": "enrich", "condition": inline("lambda state: state.data.get('valid', True)")},
            {"from": "validate", "to": "error", "condition": inline("lambda state: not state.data.get('valid', True)")},
            {"from": "enrich", "to": "output"},
        ],
    }],
}  # fmt: skip


@pytest.fixture
def marked() -> Iterator[SimpleFSM]:
    with SimpleFSM(MARKED, allow_inline_code=True) as machine:
        yield machine


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_passes_from_synchronous_code_and_is_told_with_its_way(marked: SimpleFSM) -> None:
    given = {"input": "data"}
    assert marked.process(given) == {
        "final_state": "end",
        "data": {"input": "data", "processed": True},
        "path": ["start", "process", "end"],
        "success": True,
        "error": None,
        "metadata": {},
    }
    assert given == {"input": "data"}
    assert marked.get_states() == ["start", "process", "end"]


def test_code_in_a_configuration_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="allow_inline_code=True"):
        SimpleFSM(MARKED)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(MARKED))
    with SimpleFSM(tmp_path / "config.yaml", DataHandlingMode.REFERENCE, allow_inline_code=True) as machine:
        assert machine.process({})["data"] == {"processed": True}
        assert machine.data_mode is DataHandlingMode.REFERENCE


def test_a_function_that_is_missing_is_asked_for_by_the_word_of_the_machine() -> None:
    arcs = [{"from": "start", "to": "end", "transform": {"type": "registered", "name": "mark"}}]
    states = [{"name": "start", "is_start": True}, {"name": "end", "is_end": True}]
    with pytest.raises(DefinitionError, match="'mark': give it in custom_functions="):
        SimpleFSM({"states": states, "arcs": arcs})


def test_what_a_function_raises_is_told_and_not_raised() -> None:
    def mark(data: dict[str, Any], context: Any) -> dict[str, Any]:
        if data["n"] == 2:
            raise OSError("out of paper")
        return {**data, "marked": True}

    arcs = [{"from": "start", "to": "end", "transform": {"type": "registered", "name": "mark"}}]
    states = [{"name": "start", "is_start": True}, {"name": "end", "is_end": True}]
    with SimpleFSM({"states": states, "arcs": arcs}, custom_functions={"mark": mark}) as machine:
        assert machine.process({"n": 1})["success"]
        result = machine.process({"n": 2})
        assert (result["success"], result["error"]) == (False, "OSError: out of paper")
        assert (result["final_state"], result["data"], result["path"]) == ("start", {"n": 2}, ["start"])
        result = machine.process({"n": {1, 2}})
        assert result["error"].startswith("CodecError: data.n: ")
        assert (result["final_state"], result["path"]) == (None, [])


def test_records_of_a_batch_come_back_in_their_order_with_progress(marked: SimpleFSM) -> None:
    told: list[BatchProgress] = []
    records = [{"n": n} if n != 7 else {"n": {1}} for n in range(25)]
    results = marked.process_batch(records, batch_size=10, max_workers=4, on_progress=told.append)
    assert [result["data"]["n"] for result in results] == [record["n"] for record in records]
    assert [result["success"] for result in results] == [n != 7 for n in range(25)]
    assert [one.completed for one in told] == [10, 20, 25]
    assert (told[-1].total, told[-1].succeeded, told[-1].failed, told[-1].progress) == (25, 24, 1, 1.0)
    assert marked.process_batch([]) == []


@pytest.mark.parametrize("what", ["batch_size", "max_workers"])
def test_a_batch_of_none_at_a_time_is_refused(what: str, marked: SimpleFSM) -> None:
    with pytest.raises(ValueError, match=f"{what} must be a whole number from 1"):
        marked.process_batch([{"n": 1}], **{what: 0})


def test_workers_of_a_batch_work_at_once() -> None:
    meeting = threading.Barrier(4)

    def meet(data: dict[str, Any]) -> None:
        meeting.wait(10)

    states = [{"name": "a", "transforms": ["meet"]}, {"name": "b", "is_end": True}]
    with SimpleFSM({"states": states, "arcs": [{"from": "a", "to": "b"}]}, custom_functions={"meet": meet}) as machine:
        assert all(one["success"] for one in machine.process_batch([{}] * 8, max_workers=4))


def test_a_file_passes_to_a_file_with_progress(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": n, "value": n - 5}) + "\n" for n in range(100)))
    told: list[StreamProgress] = []
    with SimpleFSM(SORTED, allow_inline_code=True) as machine:
        done = machine.process_stream(str(source), str(sink), chunk_size=10, on_progress=told.append)
    assert (done["total_processed"], done["successful"], done["failed"]) == (100, 100, 0)
    assert done["states"] == {"error": 6, "output": 94}
    assert done["duration"] > 0
    assert done["throughput"] > 0
    written = lines(sink)
    assert [one["id"] for one in written] == list(range(100))
    assert written[50] == {"id": 50, "value": 45, "valid": True, "twice": 90}
    assert [one.records_processed for one in told][:3] == [10, 20, 30]
    assert (told[-1].records_processed, len(told[-1].errors), told[-1].bytes_processed) == (
        100, 0, source.stat().st_size,
    )  # fmt: skip


async def test_an_async_generator_passes_to_a_file_and_that_to_another_machine(tmp_path: Path) -> None:
    async def records() -> AsyncIterator[dict[str, Any]]:
        for n in range(30):
            yield {"id": n, "value": n}
            await asyncio.sleep(0)

    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    machine = AsyncSimpleFSM(SORTED, allow_inline_code=True)
    done = await machine.process_stream(source=records(), sink=str(first), chunk_size=5)
    assert done["total_records"] == 30
    sinks: dict[str, Any] = {"output": str(second), "error": None}
    done = await machine.process_stream(source=str(first), sink=sinks, use_streaming=True)
    assert done["states"] == {"error": 1, "output": 29}
    assert len(lines(second)) == 29


def test_records_that_fail_are_counted_in_the_log_or_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, sink, wrong = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "wrong.jsonl"
    source.write_text('{"id": 1, "value": 1}\n{"id": 2, "value": "x"}\nno record\n')
    told: list[StreamProgress] = []
    with SimpleFSM(SORTED, allow_inline_code=True) as machine:
        done = machine.process_stream(source, sink, on_progress=told.append)
        assert (done["successful"], done["failed"]) == (1, 2)
        assert len(told[-1].errors) == 2
        assert "2 of 3 records went wrong" in caplog.text
        done = machine.process_stream(source, None, errors=wrong)
    assert [one["number"] for one in lines(wrong)] == [2, 3]
    assert done["failed"] == 2
    assert len(lines(sink)) == 1


def test_a_sink_that_is_not_empty_is_left_as_it_is(tmp_path: Path, marked: SimpleFSM) -> None:
    (tmp_path / "out.jsonl").write_text("what somebody wrote\n")
    with pytest.raises(StreamError, match=r"out\.jsonl"):
        marked.process_stream([{"n": 1}], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "what somebody wrote\n"


@pytest.mark.parametrize(
    ("name", "text", "how", "records"),
    [
        ("a.json", '[{"n": 1}, {"n": 2}]', {}, [{"n": 1}, {"n": 2}]),
        ("a.json", '{"n": 1}', {}, [{"n": 1}]),
        ("a.ndjson", '{"n": 1}\n', {}, [{"n": 1}]),
        ("a.csv", "n,m\n1,2\n", {}, [{"n": "1", "m": "2"}]),
        ("a.csv", "1;2\n3;4\n", {"csv_delimiter": ";", "csv_has_header": False},
         [{"col_0": "1", "col_1": "2"}, {"col_0": "3", "col_1": "4"}]),
        ("a.csv", "1,1\n", {"csv_has_header": False}, [{"col_0": "1", "col_1": "1"}]),
        ("a.tsv", "n\tm\n1\t2\n", {}, [{"n": "1", "m": "2"}]),
        ("a.TSV", "n\tm\n1\t2\n", {}, [{"n": "1", "m": "2"}]),
        ("a.md", "one\n\ntwo\n", {}, [{"text": "one"}, {"text": "two"}]),
        ("a.txt", "one\n\ntwo", {"text_field_name": "line", "skip_empty_lines": False},
         [{"line": "one"}, {"line": ""}, {"line": "two"}]),
        ("a.txt", '{"n": 1}\n', {"input_format": "jsonl"}, [{"n": 1}]),
    ],
)  # fmt: skip
def test_a_file_is_read_by_its_format(
    name: str, text: str, how: dict[str, Any], records: list[Any], tmp_path: Path, marked: SimpleFSM
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    for path in (str(tmp_path / name), tmp_path / f"{name}.gz"):
        sink: list[Any] = []
        marked.process_stream(path, sink, **how)
        assert sink == [{**record, "processed": True} for record in records]


def test_a_format_that_is_not_there_and_a_file_that_is_no_json_are_told(tmp_path: Path, marked: SimpleFSM) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="there is no format 'xlsx'"):
        marked.process_stream(tmp_path / "a.json", input_format="xlsx")
    with pytest.raises(StreamError, match=r"a\.json cannot be read"):
        marked.process_stream(tmp_path / "a.json")
    with pytest.raises(StreamError, match="would be one JSON value"):
        marked.process_stream([], tmp_path / "out.json")


def test_a_sink_may_be_a_function(marked: SimpleFSM) -> None:
    seen: list[Any] = []

    async def take(record: Any) -> None:
        await asyncio.sleep(0)
        seen.append(record)

    marked.process_stream(sources.Records([{"n": 1}]), seen.append)
    marked.process_stream(({"n": n} for n in (2, 3)), take)
    assert [one["n"] for one in seen] == [1, 2, 3]


def test_a_machine_goes_on_by_one_transition_at_a_time(marked: SimpleFSM) -> None:
    walk = marked.create_context({"n": 1})
    assert (walk.current_state, walk.path, walk.is_complete) == ("start", ["start"], False)
    step = marked.step(walk)
    assert (step.from_state, step.to_state, step.success, step.is_complete) == ("start", "process", True, False)
    assert (step.data_before, step.data_after) == ({"n": 1}, {"n": 1, "processed": True})
    assert marked.step(walk).is_complete
    assert (walk.current_state, walk.success, walk.path) == ("end", True, ["start", "process", "end"])
    again = marked.step(walk)
    assert (again.from_state, again.to_state, again.is_complete, len(walk.path)) == ("end", "end", True, 3)
    assert marked.create_context({}, "process").path == ["process"]
    assert marked.process({}, initial_state="process")["path"] == ["process", "end"]
    with pytest.raises(DefinitionError, match="there is no state 'proces'"):
        marked.create_context({}, "proces")


async def test_a_machine_stops_at_a_breakpoint_and_goes_on_from_it() -> None:
    machine = AdvancedFSM(MARKED, execution_mode=ExecutionMode.DEBUG, allow_inline_code=True)
    machine.add_breakpoint("process")
    walk = machine.create_context({"n": 1})
    stopped = await machine.run_until_breakpoint(walk)
    assert (walk.current_state, stopped.at_breakpoint, stopped.is_complete) == ("process", True, False)
    await machine.step(walk)
    assert walk.current_state == "end"
    walk = machine.create_context({})
    await machine.run_until_breakpoint(walk)
    assert (await machine.run_until_breakpoint(walk)).is_complete
    machine.add_breakpoint("start")
    assert (await machine.run_until_breakpoint(machine.create_context({}))).to_state == "start"
    machine.breakpoints.clear()
    assert (await machine.run_until_breakpoint(machine.create_context({}), max_steps=1)).to_state == "process"
    machine.remove_breakpoint("none")
    with pytest.raises(UnknownState, match="did you mean 'process'"):
        machine.add_breakpoint("proces")


def test_a_profile_says_how_long_a_record_was_in_each_state() -> None:
    def sleep(data: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.03)
        return {**data, "left": data["left"] - 1}

    states = [{"name": "slow", "transforms": ["sleep"]}, {"name": "quick"}, {"name": "end", "is_end": True}]
    arcs = [
        {"from": "slow", "to": "quick"},
        {"from": "quick", "to": "slow", "condition": "more"},
        {"from": "quick", "to": "end"},
    ]
    functions = {"sleep": sleep, "more": lambda data: data["left"] > 0}
    with SimpleFSM({"states": states, "arcs": arcs}, custom_functions=functions) as machine:
        profile: Profile = machine.profile({"left": 2})
    assert profile.result["success"]
    assert profile.slowest == "slow"
    assert {name: time.visits for name, time in profile.states.items()} == {"slow": 2, "quick": 2, "end": 1}
    assert 0.06 <= profile.states["slow"].seconds <= profile.total
    assert profile.states["quick"].seconds < 0.03
    assert profile.transitions == 4


def test_a_workflow_of_ours_is_a_machine_too_and_retries_are_one_transition() -> None:
    flow = Workflow("ours")
    tries = []

    @flow.step(initial=True, then=[(field("n") > 0, "good"), "bad"], retry=Retry(first_delay=0))
    async def work(ctx: WorkflowContext) -> None:
        tries.append(ctx.attempt)
        if len(tries) < 3:
            raise OSError

    flow.final("good")
    flow.final("bad", outcome="failed")
    with SimpleFSM(flow) as machine:
        walk = machine.create_context({"n": 1})
        assert machine.step(walk).to_state == "good"
        assert tries == [1, 2, 3]
        result = machine.process({"n": 0})
        assert (result["final_state"], result["success"], result["error"]) == ("bad", False, None)


def test_what_must_be_kept_is_no_simple_machine() -> None:
    flow = Workflow("waits")
    flow.wait("open", initial=True, on={"close": "closed"})
    flow.final("closed")
    with pytest.raises(StreamError, match="it waits for an event"):
        SimpleFSM(flow)


def test_a_cycle_without_an_end_is_told() -> None:
    states = [{"name": "a"}, {"name": "b"}, {"name": "c", "is_end": True}]
    arcs = [
        {"from": "a", "to": "b"},
        {"from": "b", "to": "a", "condition": "yes"},
        {"from": "b", "to": "c", "condition": "no"},
    ]
    given = {"yes": lambda data: True, "no": lambda data: False}
    with SimpleFSM({"states": states, "arcs": arcs}, custom_functions=given) as machine:
        assert "EndlessLoop: " in machine.process({})["error"]


async def test_a_record_that_takes_too_long_is_given_up() -> None:
    async def wait(data: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    release = threading.Event()
    states = [{"name": "a", "transforms": ["wait"]}, {"name": "b", "is_end": True}]
    for given in (wait, lambda data: release.wait(60)):
        machine = AsyncSimpleFSM(
            {"states": states, "arcs": [{"from": "a", "to": "b"}]}, custom_functions={"wait": given}
        )
        result = await machine.process({"n": 1}, timeout=0.2)
        assert (result["success"], result["error"]) == (False, "TimeoutError: it took longer than 0.2 s")
        assert (result["final_state"], result["data"]) == ("a", {"n": 1})
    release.set()


async def test_resources_are_opened_with_the_first_record_and_closed_with_the_machine() -> None:
    class Connection:
        closed = False

        async def close(self) -> None:
            self.closed = True

    made: list[Connection] = []

    def connect() -> Connection:
        made.append(Connection())
        return made[-1]

    flow = Workflow("uses")

    @flow.step(initial=True, then="end")
    async def work(ctx: WorkflowContext) -> None:
        async with ctx.use("db") as db:
            ctx.data["number"] = made.index(db)

    flow.final("end")
    machine = AsyncSimpleFSM(flow, resources={"db": Pool(connect, max=1), "table": {"a": 1}})
    assert machine.get_resources() == ["db", "table"]
    assert made == []
    results = await asyncio.gather(*(machine.process({}) for _ in range(5)))
    assert [result["data"] for result in results] == [{"number": 0}] * 5
    sink: list[Any] = []
    await machine.process_stream([{}, {}], sink)
    assert sink == [{"number": 0}] * 2
    await machine.aclose()
    assert [one.closed for one in made] == [True]
    async with machine:
        assert (await machine.process({}))["data"] == {"number": 1}
    assert [one.closed for one in made] == [True, True]


def test_a_resource_that_is_only_described_is_refused() -> None:
    with pytest.raises(ValueError, match="resource 'db' is described: give the connection, client or pool itself"):
        SimpleFSM(MARKED, resources={"db": {"type": "DATABASE"}}, allow_inline_code=True)


# -- the thread -------------------------------------------------------------------------------------------------------


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "fsmworkflow-simple"]


def test_the_thread_begins_with_the_first_record_and_ends_with_the_machine() -> None:
    machine = SimpleFSM(MARKED, allow_inline_code=True)
    assert threads() == []
    machine.process({})
    assert len(threads()) == 1
    machine.close()
    assert threads() == []
    machine.process({})  # and begins anew
    gone = weakref.ref(machine)
    (thread,) = threads()
    del machine
    gc.collect()
    assert gone() is None
    thread.join(5)
    assert not thread.is_alive()


def test_one_machine_may_be_used_from_several_threads(marked: SimpleFSM) -> None:
    found: list[Any] = []
    using = [threading.Thread(target=lambda n=n: found.append(marked.process({"n": n}))) for n in range(20)]
    for one in using:
        one.start()
    for one in using:
        one.join(10)
    assert sorted(result["data"]["n"] for result in found) == list(range(20))
    assert len(threads()) == 1


async def test_a_machine_for_synchronous_code_may_be_called_where_an_event_loop_runs(marked: SimpleFSM) -> None:
    assert marked.process({"n": 1})["success"]


def test_a_function_of_a_machine_may_call_the_machine_but_not_from_its_event_loop() -> None:
    def sync(data: dict[str, Any]) -> dict[str, Any]:
        return {"inner": machine.process({"depth": 1})["data"]} if not data.get("depth") else dict(data)

    async def waits(data: dict[str, Any]) -> None:
        machine.process({})

    states = [{"name": "a", "transforms": ["f"]}, {"name": "b", "is_end": True}]
    config = {"states": states, "arcs": [{"from": "a", "to": "b"}]}
    with SimpleFSM(config, custom_functions={"f": sync}) as machine:
        assert machine.process({})["data"] == {"inner": {"depth": 1}}
    with SimpleFSM(config, custom_functions={"f": waits}) as machine:
        assert "called from its own event loop: use AsyncSimpleFSM" in machine.process({})["error"]


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_a_function_that_ends_the_program_ends_it_and_leaves_the_machine_usable(end: type[BaseException]) -> None:
    def leave(data: Any) -> bool:
        if data["value"] < 0:
            raise end(3)
        return True

    with _asking(leave) as machine:
        for _ in range(2):
            with pytest.raises(end):
                machine.process({"value": -1})
            assert machine.process({"value": 1})["final_state"] == "end"


def test_a_machine_may_be_used_by_a_process_that_was_forked(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os\n"
        "from fsmworkflow.simple import SimpleFSM\n"
        f"machine = SimpleFSM({MARKED!r}, allow_inline_code=True)\n"
        "print(machine.process({'n': 1})['data'], flush=True)\n"
        "child = os.fork()\n"
        "print(machine.process({'n': 3 if child else 2})['data'], flush=True)\n"
        "child and os.waitpid(child, 0)\n"
    )
    command = [sys.executable, "-W", "ignore", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert sorted(done.stdout.splitlines()) == [f"{{'n': {n}, 'processed': True}}" for n in (1, 2, 3)], done.stderr


def _asking(function: Callable[[Any], bool]) -> SimpleFSM:
    """A machine that asks a function once."""
    arc = {"from": "start", "to": "end", "condition": {"type": "registered", "name": "asked"}}
    states = [{"name": "start", "is_start": True}, {"name": "end", "is_end": True}]
    return SimpleFSM({"name": "asking", "states": states, "arcs": [arc]}, custom_functions={"asked": function})


def test_of_a_record_that_is_no_dict_the_others_come_through() -> None:
    with SimpleFSM(MARKED, allow_inline_code=True) as machine:
        good, bad = machine.process_batch([{"n": 1}, 5])  # type: ignore[list-item]
    assert (good["success"], good["data"]) == (True, {"n": 1, "processed": True})
    assert (bad["success"], bad["data"], bad["final_state"]) == (False, 5, None)
    assert bad["error"] == "FSMWorkflowError: a record is a dict, not 5"


def test_a_program_that_closes_nothing_ends_without_a_word(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from fsmworkflow.simple import SimpleFSM\n"
        f"machine = SimpleFSM({MARKED!r}, allow_inline_code=True)\n"
        "print(machine.process({'n': 1})['data'])\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("{'n': 1, 'processed': True}\n", "", 0)


def test_ctrl_c_stops_a_stream_of_synchronous_code_and_leaves_the_machine_usable(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import itertools, signal, time\n"
        "from fsmworkflow.simple import SimpleFSM\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"machine = SimpleFSM({MARKED!r}, allow_inline_code=True)\n"
        "records = ({'n': n} for n in itertools.count())\n"
        "try:\n"
        "    machine.process_stream(records, [], on_progress=lambda progress: print('on', flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', machine.process({})['success'])\n"
    )
    command = [sys.executable, "-W", "error", str(program)]
    with launched(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "on\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert (out.splitlines()[-1], err, running.returncode) == ("stopped True", "", 0)
