"""Threads: what is sync runs beside the event loop, in threads that are given more work, and end with their owner."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import threading
import weakref
from typing import Any

import pytest

from fsmworkflow import Engine, Workflow
from fsmworkflow.threads import Threads
from tests.waiting import PATIENCE, until

ASKED = contextvars.ContextVar("asked", default=0)


def ours() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "fsm step"]


@pytest.fixture(autouse=True)
async def alone() -> None:
    """No thread of another test is there, held by an error of it."""
    gc.collect()
    await until(lambda: not ours())


async def test_a_thread_that_has_done_its_work_is_given_more() -> None:
    found = Threads()
    one_by_one = {await found.call(threading.get_ident) for _ in range(100)}
    assert len(one_by_one) == 1
    at_once = set(await asyncio.gather(*(found.call(threading.get_ident) for _ in range(1000))))
    assert len(at_once) <= 64


async def test_so_many_work_at_once_and_no_more() -> None:
    found, meet = Threads(3), threading.Barrier(3, timeout=PATIENCE)

    def work() -> int:
        meet.wait()
        return len(ours())

    assert set(await asyncio.gather(*(found.call(work) for _ in range(30)))) == {3}


async def test_threads_end_with_what_called_them_also_those_that_are_still_at_work() -> None:
    found, begun, go = Threads(), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        go.wait(PATIENCE)

    await asyncio.gather(*(found.call(int) for _ in range(100)))
    behind = asyncio.create_task(found.call(block))
    await until(begun.is_set)
    behind.cancel()
    with pytest.raises(asyncio.CancelledError):
        await behind
    del found, behind
    await until(lambda: len(ours()) == 1)
    go.set()
    await until(lambda: not ours())


async def test_threads_end_with_the_engine_that_had_them(store_url: str) -> None:
    flow = Workflow("flow")
    flow.step("work", initial=True, then="over")(lambda ctx: ctx.data.update(threads=len(ours())))
    flow.final("over")
    engine = Engine(store_url, workflows=[flow])
    for _ in range(2):
        async with engine:
            assert (await engine.run(flow)).data["threads"] == 1
        await until(lambda: not ours())


async def test_threads_that_are_closed_may_be_used_on() -> None:
    found = Threads()
    for _ in range(3):
        await asyncio.gather(*(found.call(int) for _ in range(10)))
        found.close()
        await until(lambda: not ours())


async def test_no_call_is_lost_however_threads_and_work_cross() -> None:
    found, done = Threads(8), 0

    async def some() -> None:
        nonlocal done
        for number in range(200):
            async with asyncio.timeout(PATIENCE):
                assert await found.call(abs, -number) == number
            await asyncio.sleep(0 if number % 3 else 0.0001)
            done += 1

    await asyncio.gather(*(some() for _ in range(12)))
    assert done == 2400
    assert len(ours()) <= 8


async def test_a_thread_that_is_left_behind_takes_nobodys_turn_and_is_given_more_once_it_is_done() -> None:
    found, begun, go = Threads(1), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        go.wait(PATIENCE)

    behind = asyncio.create_task(found.call(block))
    await until(begun.is_set)
    behind.cancel()
    with pytest.raises(asyncio.CancelledError):
        await behind
    async with asyncio.timeout(PATIENCE):
        other = await found.call(threading.get_ident)
    go.set()
    assert other in {one.ident for one in ours()}
    assert len(ours()) == 2
    async with asyncio.timeout(PATIENCE):
        assert await found.call(int) == 0


async def test_a_call_that_is_cancelled_before_its_turn_is_not_made() -> None:
    found, begun, go, made = Threads(1), threading.Event(), threading.Event(), []

    def block() -> None:
        begun.set()
        go.wait(PATIENCE)

    first = asyncio.create_task(found.call(block))
    await until(begun.is_set)
    second = asyncio.create_task(found.call(made.append, "second"))
    await asyncio.sleep(0)
    second.cancel()
    go.set()
    await first
    await found.call(made.append, "third")
    assert made == ["third"]


async def test_each_call_has_the_variables_of_its_caller_and_leaves_none_to_the_next() -> None:
    found = Threads(1)

    def asked(number: int) -> tuple[int, int]:
        before = ASKED.get()
        ASKED.set(-1)
        return before, number

    async def one(number: int) -> tuple[int, int]:
        ASKED.set(number)
        return await found.call(asked, number)

    for before, number in await asyncio.gather(*(one(number) for number in range(1, 50))):
        assert before == number
    assert await found.call(ASKED.get) == 0


async def left_behind(work: Any) -> threading.Event:
    """A call of it that nobody waits for any more, and that goes on with this."""
    begun, go = threading.Event(), threading.Event()

    def blocked() -> Any:
        begun.set()
        go.wait(PATIENCE)
        return work()

    behind = asyncio.create_task(Threads().call(blocked))
    await until(begun.is_set)
    behind.cancel()
    with pytest.raises(asyncio.CancelledError):
        await behind
    return go


async def test_a_coroutine_that_comes_of_a_call_that_was_left_behind_is_closed() -> None:
    async def never() -> None:
        raise AssertionError("nobody awaits it")

    made = never()
    go = await left_behind(lambda: made)
    go.set()
    await until(lambda: inspect.getcoroutinestate(made) == inspect.CORO_CLOSED)


async def test_an_error_of_a_call_that_was_left_behind_is_dropped_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Error(Exception):
        pass

    raised: list[weakref.ref[Error]] = []

    def fail() -> None:
        error = Error()
        raised.append(weakref.ref(error))
        raise error

    go = await left_behind(fail)
    go.set()
    await until(lambda: raised and (gc.collect(), raised[0]())[1] is None)
    assert caplog.text == ""


@pytest.mark.parametrize("kind", [StopIteration, KeyError, GeneratorExit, SystemExit])
async def test_whatever_is_raised_comes_to_the_caller_and_ends_no_thread(kind: type[BaseException]) -> None:
    found = Threads()

    def fail() -> None:
        raise kind("x")

    with pytest.raises(BaseException) as caught:
        await found.call(fail)
    assert isinstance(caught.value, kind) or isinstance(caught.value.__cause__, kind)
    assert await found.call(threading.get_ident) == ours()[0].ident


async def test_an_error_that_somebody_keeps_keeps_no_thread() -> None:
    def fail() -> None:
        raise ValueError("kept")

    with pytest.raises(ValueError, match="kept") as caught:
        await Threads().call(fail)
    await until(lambda: not ours())
    assert caught.value.__traceback__ is not None
