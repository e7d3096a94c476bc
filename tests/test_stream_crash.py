"""A stream that is killed at any moment, again and again, has every record in its sinks once, in order."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("FSMWORKFLOW_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLS = 10
MANY = 60_000


def started(*words: object) -> subprocess.Popen[bytes]:
    program = [sys.executable, str(ROOT / "tests" / "stream_child.py"), *map(str, words)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment())


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "FSMWORKFLOW_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def written(path: Path, many: int) -> None:
    path.write_text("".join(f'{{"n":{n},"text":"record {n}"}}\n' for n in range(many)))


def read(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def killed_until_done(paths: list[Path], kills: int, *words: object) -> int:
    """Kill it while it writes, at random moments, then let it end. Returns how many records were done before."""
    chance = random.Random(SEED)
    for _ in range(kills):
        child, before = started(*words), size(paths)
        while size(paths) == before and child.poll() is None:
            time.sleep(0.002)  # until it writes: the moment is what is random
        time.sleep(chance.random() * 0.05)
        child.kill()
        _, said = child.communicate()
        assert child.returncode in (-signal.SIGKILL, 0), said.decode()
    child = started(*words)
    out, said = child.communicate(timeout=120)
    assert child.returncode == 0, said.decode()
    records, resumed = map(int, out.split())
    assert records == words_many(words)
    return resumed


def words_many(words: tuple[object, ...]) -> int:
    return len(Path(str(words[1])).read_bytes().splitlines())


def whole(place: Path, suffix: str, many: int) -> None:
    """Every record is there once, in the order of the source, where it belongs."""
    numbers = [n for n in range(many) if n % 1000 != 999]
    told = {state: [record["n"] for record in read(place / f"out-{state}{suffix}")] for state in ("odd", "even")}
    assert told["odd"] == [n for n in numbers if n % 7 == 0]
    assert told["even"] == [n for n in numbers if n % 7]
    errors = read(place / "out-errors.jsonl")
    assert [entry["record"]["n"] for entry in errors] == list(range(999, many, 1000))


@pytest.mark.parametrize(("suffix", "workers"), [(".jsonl", 1), (".jsonl.gz", 1), (".jsonl", 4)])
def test_after_10_kills_every_record_is_in_the_files_once_and_in_order(
    durable_url: str, tmp_path: Path, suffix: str, workers: int
) -> None:
    written(tmp_path / "in.jsonl", MANY)
    paths = [tmp_path / f"out-{state}{suffix}" for state in ("odd", "even")]
    words = (durable_url, tmp_path / "in.jsonl", tmp_path / f"out{suffix}", 500, workers)
    try:
        resumed = killed_until_done(paths, KILLS, *words)
        assert resumed > 0, "no life has committed anything before it was killed"
        whole(tmp_path, suffix, MANY)
    except BaseException as error:
        error.add_note(f"FSMWORKFLOW_SEED={SEED}")
        raise


@pytest.mark.soak
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_after_100_kills_every_record_is_in_the_files_once(durable_url: str, tmp_path: Path, suffix: str) -> None:
    many = 200_000
    written(tmp_path / "in.jsonl", many)
    paths = [tmp_path / f"out-{state}{suffix}" for state in ("odd", "even")]
    assert killed_until_done(paths, 100, durable_url, tmp_path / "in.jsonl", tmp_path / f"out{suffix}", 100) > 0
    whole(tmp_path, suffix, many)
