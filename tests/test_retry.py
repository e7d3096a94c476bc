"""Retry and durations: how often, how long between, on which errors, and what a duration may look like."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmworkflow.errors import CodecError, ConditionError, DefinitionError, StoreUnavailable
from fsmworkflow.retry import Retry, seconds

delays = st.floats(min_value=0, max_value=1e9)
factors = st.floats(min_value=1, max_value=1e6)
draws = st.floats(min_value=0, max_value=1, exclude_max=True)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0, 0.0), (5, 5.0), (0.25, 0.25), (timedelta(minutes=2), 120.0),
        ("500ms", 0.5), ("5s", 5.0), ("1.5s", 1.5), ("30m", 1800.0), ("2d", 172_800.0), ("1w", 604_800.0),
        ("1h30m", 5400.0), ("1h 30m", 5400.0), (" 5s ", 5.0), ("5 s", 5.0), ("1m500ms", 60.5), ("0s", 0.0),
        ("PT5M", 300.0), ("P1D", 86_400.0), ("PT1H30M", 5400.0), ("P1DT12H", 129_600.0), ("P2W", 1_209_600.0),
        ("PT0.5S", 0.5), ("PT0,5S", 0.5), ("PT36H", 129_600.0),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_seconds(duration: Any, expected: float) -> None:
    assert seconds(duration) == pytest.approx(expected)


@pytest.mark.parametrize(
    "duration",
    [
        "", " ", "5", "s", "5x", "5S", "5M", "m5", "-5s", "--5s", "+5s", "1.5h30m", "30m1h", "5s5s", "1e3s", ".5s",
        "5.s",
        "P", "PT", "P1DT", "P1Y", "P1M", "P1Y2D", "P1M2W", "P1W2D", "PT5", "P5M", "PT1.5H30M", "-P1D", "p1d", "P1H",
        "\u0663s", "nan", "inf", "infs", "5s\n6s", "1" * 400 + "s", -1, -0.001, math.nan, math.inf, -math.inf, 10**400,
        True, None, [], b"5s", timedelta(seconds=-1),
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_what_was_given(duration: Any) -> None:
    with pytest.raises(ValueError, match="is no duration") as caught:
        seconds(duration)
    assert repr(duration)[:100].rstrip("'\"") in str(caught.value) or duration == 10**400
    assert len(str(caught.value)) < 250


def test_a_number_of_more_digits_than_python_writes_is_refused() -> None:
    with pytest.raises(ValueError, match="very many digits"):
        seconds(10**5000)


@pytest.mark.parametrize("duration", ["P1Y", "P3M", "P1Y2DT3H", "P1.5Y", "P2M1D"])
def test_years_and_months_are_refused_because_their_length_is_not_fixed(duration: str) -> None:
    with pytest.raises(ValueError, match="no fixed length"):
        seconds(duration)


def test_a_number_as_text_asks_for_its_unit() -> None:
    with pytest.raises(ValueError, match="no unit, write '5s'"):
        seconds("5")


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_both_spellings_of_a_duration_mean_the_same(days: int, hours: int, minutes: int, secs: int) -> None:
    expected = timedelta(days=days, hours=hours, minutes=minutes, seconds=secs).total_seconds()
    assert seconds(f"{days}d{hours}h{minutes}m{secs}s") == expected
    assert seconds(f"P{days}DT{hours}H{minutes}M{secs}S") == expected


@given(st.text(alphabet="0123456789.,PTYMWDHSdhmsw -+e", max_size=200) | st.text(max_size=20))
def test_any_text_is_a_finite_duration_or_refused(text: str) -> None:
    try:
        found = seconds(text)
    except ValueError:
        return
    assert 0 <= found < math.inf


def test_without_jitter_the_pause_grows_by_the_factor_up_to_the_longest() -> None:
    retry = Retry(attempts=None, first_delay="1s", factor=2, max_delay="10s", jitter=False)
    assert [retry.delay(n, 0.5) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_with_jitter_the_pause_is_drawn_evenly_between_nothing_and_that() -> None:
    retry = Retry(first_delay=4, factor=3, max_delay=100)
    assert [retry.delay(2, random) for random in (0.0, 0.25, 0.5)] == [0, 3, 6]


@given(delays, factors, delays, st.integers(1, 10**400), draws)
def test_a_pause_is_never_longer_than_the_longest(
    first: float, factor: float, longest: float, attempt: int, random: float
) -> None:
    for jitter in (True, False):
        pause = Retry(first_delay=first, factor=factor, max_delay=longest, jitter=jitter).delay(attempt, random)
        assert 0 <= pause <= longest


@given(delays, factors, st.integers(1, 10_000))
def test_without_jitter_no_pause_is_shorter_than_the_one_before(first: float, factor: float, attempt: int) -> None:
    retry = Retry(first_delay=first, factor=factor, max_delay=1e9, jitter=False)
    assert retry.delay(attempt, 0) <= retry.delay(attempt + 1, 0)


def test_a_factor_of_one_keeps_the_pause_for_ever_and_no_first_delay_means_no_pause() -> None:
    assert Retry(first_delay=2, factor=1, jitter=False).delay(10**500, 0) == 2
    assert Retry(first_delay=0, factor=10, jitter=False).delay(10**500, 0) == 0


def test_the_first_attempt_counts() -> None:
    assert [Retry(attempts=3).again(n, ValueError()) for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert not Retry(attempts=1).again(1, ValueError())
    assert Retry(attempts=None).again(10**9, ValueError())


@pytest.mark.parametrize(
    "error",
    [
        CodecError("data.a", "no"), ConditionError("no"), DefinitionError("w", []), asyncio.CancelledError(),
        KeyboardInterrupt(), SystemExit(), GeneratorExit(),
        ExceptionGroup("", [ValueError(), ExceptionGroup("", [CodecError("data.a", "no")])]),
        BaseExceptionGroup("", [asyncio.CancelledError()]),
    ],
)  # fmt: skip
def test_what_another_attempt_cannot_mend_is_never_tried_again(error: BaseException) -> None:
    assert not Retry(on=(BaseException,)).again(1, error)


def test_a_store_that_was_away_may_be_tried_again() -> None:
    assert Retry().again(1, StoreUnavailable("gone"))


def test_on_takes_one_class_or_several_and_never_on_wins() -> None:
    assert Retry(on=OSError).again(1, ConnectionError())
    assert not Retry(on=OSError).again(1, ValueError())
    assert Retry(on=(OSError, ValueError)).again(1, ValueError())
    assert not Retry(on=OSError, never_on=FileNotFoundError).again(1, FileNotFoundError())
    assert not Retry(on=()).again(1, ValueError())


def test_a_group_of_errors_is_tried_again_when_each_of_them_is() -> None:
    mixed = ExceptionGroup("", [ConnectionError(), ValueError()])
    assert Retry().again(1, mixed)
    assert not Retry(on=OSError).again(1, mixed)
    assert not Retry(never_on=ValueError).again(1, mixed)
    assert Retry(on=(OSError, ValueError)).again(1, mixed)
    assert Retry(on=ExceptionGroup).again(1, mixed)


def test_a_retry_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Retry().attempts = 5  # type: ignore[misc]


def test_sound_retries_have_no_problems() -> None:
    sound = [Retry(), Retry(attempts=None), Retry(5), Retry(first_delay="1m", max_delay="PT1H", on=OSError)]
    assert [retry.problems() for retry in sound] == [[]] * len(sound)


def test_every_problem_of_a_retry_is_named() -> None:
    bad: dict[str, Any] = {
        "attempts": 0, "first_delay": "soon", "max_delay": -1, "factor": 0.5, "on": (ValueError, "OSError"),
        "never_on": 3,
    }  # fmt: skip
    problems = "\n".join(Retry(**bad).problems())
    for name in ("attempts", "first_delay: 'soon'", "max_delay: -1", "factor", "on needs", "'OSError'", "never_on"):
        assert name in problems


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": -1}, {"attempts": True}, {"attempts": 1.5}, {"attempts": "3"}, {"factor": math.nan},
        {"factor": math.inf}, {"factor": "2"}, {"first_delay": None}, {"max_delay": "P1M"}, {"on": int},
        {"first_delay": 61}, {"on": [ValueError, None]}, {"first_delay": "2m", "max_delay": "1m"},
    ],
)  # fmt: skip
def test_a_retry_that_cannot_be_meant_has_exactly_one_problem(wrong: dict[str, Any]) -> None:
    assert len(Retry(**wrong).problems()) == 1
