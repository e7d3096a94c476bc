"""Retry: how often a step is tried, how long to wait between, and on which errors; and durations as text."""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from fsmworkflow import errors

if TYPE_CHECKING:
    from fsmworkflow.records import Run

__all__ = ["Duration", "Retry", "chance", "seconds"]

Duration = float | str | timedelta
Errors = type[BaseException] | tuple[type[BaseException], ...]

# Errors that the same step would meet again: the definition or its data must change first.
_FINAL = (
    errors.CodecError, errors.ConditionError, errors.DefinitionChanged, errors.DefinitionError, errors.EndlessLoop,
    errors.LeaseLost, errors.NoTransition, errors.Refused,
)  # fmt: skip

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# Patterns stay text until the first duration is read: compiling them is half of this file's import.
_SHORT = "".join(
    rf"(?:(?P<{unit}>[0-9]+(?:\.[0-9]+)?)\s*{unit}{'(?!s)' if unit == 'm' else ''}\s*)?"
    for unit in ("w", "d", "h", "m", "s", "ms")
)
_NUMBER = r"[0-9]+(?:[.,][0-9]+)?"
_ISO = (
    rf"P(?:(?P<w>{_NUMBER})W|(?:(?P<d>{_NUMBER})D)?"
    rf"(?:T(?=[0-9])(?:(?P<h>{_NUMBER})H)?(?:(?P<m>{_NUMBER})M)?(?:(?P<s>{_NUMBER})S)?)?)"
)
_ISO_CALENDAR = r"P[0-9.,YMWD]*[YM](?:T|$)|P[0-9.,]+[YM]"


def seconds(duration: Duration) -> float:
    """A duration in seconds: a number of seconds, a timedelta, "500ms", "5s", "30m", "1h30m", "2d", "1w", or an
    ISO 8601 duration such as "PT5M" or "P1D" (as in ISO 8601-1:2019, weeks stand alone).

    Raises ValueError, with what was given, for anything else: negative, infinite, NaN, a text without a unit, and
    years and months, which have no fixed length.
    """
    given: Any = duration  # it may come from a file
    if isinstance(given, timedelta):
        found = given.total_seconds()
    elif isinstance(given, str):
        found = _parse(given)
    elif _number(given):
        try:
            found = float(given)
        except OverflowError:
            found = math.inf
    else:
        raise _refused(given, "give seconds, or text such as '30s', '1h30m' or 'PT5M'")
    if not math.isfinite(found):
        raise _refused(duration, "it must be finite")
    if found < 0:
        raise _refused(duration, "it must not be negative")
    return found


def _parse(text: str) -> float:
    text_ = text.strip()
    if len(text_) > 100:
        raise _refused(text, "it is too long")
    if text_.startswith("-"):
        raise _refused(text, "it must not be negative")
    match = re.fullmatch(_SHORT, text_) or re.fullmatch(_ISO, text_)
    parts = {unit: part for unit, part in match.groupdict().items() if part} if match else {}
    if not parts:
        raise _refused(text, _why(text_))
    if any(not part.isdigit() for part in list(parts.values())[:-1]):
        raise _refused(text, "only its last part may have a fraction")
    return math.fsum(float(part.replace(",", ".")) * _UNITS[unit] for unit, part in parts.items())


def _why(text: str) -> str:
    if re.match(_ISO_CALENDAR, text):
        return "years and months have no fixed length, write days"
    if re.fullmatch(r"[0-9.]+", text):
        return f"it has no unit, write '{text}s' or a number"
    return "write text such as '500ms', '30s', '1h30m', '2d' or 'PT5M'"


def _refused(duration: object, why: str) -> ValueError:
    try:
        text = repr(duration)
    except ValueError:  # an int of more digits than Python writes
        text = "a number of very many digits"
    return ValueError(f"{text if len(text) <= 120 else text[:117] + '...'} is no duration: {why}")


class Retry(msgspec.Struct, frozen=True):
    """How a step that raised is tried again.

    `attempts` counts the first one too; None is without bound. After failed attempt n the pause is at most
    `first_delay * factor ** (n - 1)`, never above `max_delay`; both are durations as `seconds` reads them. With
    `jitter` it is drawn evenly between nothing and that ("full jitter" in Marc Brooker, Exponential Backoff And
    Jitter, AWS Architecture Blog, 2015), so that many runs that failed together do not come back together.
    `on` and `never_on` are exception classes; `never_on` wins. Construction never fails: `problems()` says what
    is wrong.
    """

    attempts: int | None = 3
    first_delay: Duration = 1.0
    factor: float = 2.0
    max_delay: Duration = 60.0
    jitter: bool = True
    on: Errors = (Exception,)
    never_on: Errors = ()

    def delay(self, attempt: int, random: float) -> float:
        """Seconds to wait after failed attempt `attempt`, counted from 1; `random` is drawn evenly from [0, 1)."""
        cap, first = seconds(self.max_delay), seconds(self.first_delay)
        with contextlib.suppress(OverflowError):  # then the cap is reached
            # 10**15 attempts are beyond any run, and still an exact float
            cap = min(cap, first * float(self.factor) ** (min(attempt, 10**15) - 1)) if first else 0.0
        return random * cap if self.jitter else cap

    def again(self, attempt: int, error: BaseException) -> bool:
        """Whether another attempt follows failed attempt `attempt`, counted from 1.

        Never after what is no Exception (a cancellation, Ctrl-C), after an error that only a changed definition or
        changed data can mend (CodecError, ConditionError and their like), or after one of `never_on`, also where a
        group holds it. A group is tried again when `on` names it or each of its errors.
        """
        if self.attempts is not None and attempt >= self.attempts:
            return False
        return not _holds(error, (*_FINAL, *_classes(self.never_on))) and _wanted(error, _classes(self.on))

    def problems(self) -> list[str]:
        """What is wrong with these numbers and classes; empty where nothing is."""
        found = []
        if self.attempts is not None and (not _whole(self.attempts) or self.attempts < 1):
            found.append(f"attempts must be 1 or more, or None, not {self.attempts!r}")
        if not _number(self.factor) or not 1 <= self.factor < math.inf:
            found.append(f"factor must be a number, 1 or more, not {self.factor!r}")
        return found + self._delay_problems() + self._class_problems()

    def _delay_problems(self) -> list[str]:
        found, delays = [], []
        for name in ("first_delay", "max_delay"):
            try:
                delays.append(seconds(getattr(self, name)))
            except ValueError as error:
                found.append(f"{name}: {error}")
        if not found and delays[1] < delays[0]:
            given = f"{self.max_delay!r} is shorter than first_delay {self.first_delay!r}"
            found.append(f"max_delay {given}: give both, the longest pause and the first")
        return found

    def _class_problems(self) -> list[str]:
        return [
            f"{name} needs exception classes, not {entry!r}"
            for name in ("on", "never_on")
            for entry in _classes(getattr(self, name))
            if not (isinstance(entry, type) and issubclass(entry, BaseException))
        ]


def _classes(errors: Any) -> tuple[Any, ...]:
    return tuple(errors) if isinstance(errors, (tuple, list)) else (errors,)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, float) or _whole(value)


def _holds(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Whether the error, or one inside it, is of these classes or is no Exception."""
    if not isinstance(error, Exception) or isinstance(error, classes):
        return True
    return isinstance(error, ExceptionGroup) and any(_holds(inner, classes) for inner in error.exceptions)


def _wanted(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, classes):
        return True
    return isinstance(error, ExceptionGroup) and all(_wanted(inner, classes) for inner in error.exceptions)


def chance(run: Run, visit: int, attempt: int) -> float:
    """A number in [0, 1) that differs between runs, visits and attempts: jitter without a source of randomness."""
    return zlib.crc32(f"{run.workflow}\0{run.key}\0{visit}\0{attempt}".encode()) / 2**32
