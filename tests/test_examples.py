"""The examples do what they say, as programs of their own, in an empty directory, without a word on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.children import launched
from tests.stopwatch import Stopwatch
from tests.waiting import PATIENCE, until_now

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SETTINGS = re.compile(r"DB_|FSMWORKFLOW_|OPENAI_|PYTHON")

Start = Callable[..., str]


def environment(home: Path) -> dict[str, str]:
    """That of this process without settings of a store, and with a home that holds none."""
    kept = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"}


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts an example in the test's directory, and answers with what it printed."""

    def start(name: str, *words: object, status: int = 0, errors: str = "", **settings: str) -> str:
        command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
        known = {**environment(tmp_path), **settings}
        ended = subprocess.run(
            command, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert errors in ended.stderr if errors else not ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout

    return start


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the test import the examples as modules."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


# -- the small ones


ACCESS = (
    '10.0.0.{n} - - [01/Mar/2026:12:00:00 +0000] "GET {path} HTTP/1.1" {status} 512 "-" "Mozilla/5.0"\n',
    {0: ("/.env", 404), 1: ("/index.html", 500)},
)


def test_an_access_log_is_sorted_and_what_is_no_line_of_it_is_kept(start: Start, tmp_path: Path) -> None:
    line, odd = ACCESS
    lines = [line.format(n=n, path=path, status=status) for n in range(20) for path, status in [odd.get(n, ("/", 200))]]
    (tmp_path / "access.log").write_text("".join(lines) + "what is this?\n")
    ends = ["good: 18", "suspicious: 2", "malformed: 1"]
    assert start("stream_logs.py", "access.log").splitlines() == ["21 lines, 100%", *ends]
    assert start("stream_logs.py", "access.log").splitlines() == ends
    assert (tmp_path / "malformed.txt").read_text() == "what is this?\n"
    found = [json.loads(one) for one in (tmp_path / "suspicious.jsonl").read_text().splitlines()]
    assert [one["reasons"] for one in found] == [["asks for /.env", "status 404"], ["status 500"]]


def test_a_configuration_of_another_engine_takes_10_000_records_from_a_file_to_two(
    start: Start, tmp_path: Path
) -> None:
    for resumed in (False, True):
        told = start("tiers.py").strip()
        assert re.fullmatch(r"10,000 records, [\d,]+ a second: \{'error': 500, 'output': 9500\}", told)
        assert told.startswith("10,000 records, 0 a second") == resumed
    good = [json.loads(line) for line in (tmp_path / "good-10000.jsonl").read_text().splitlines()]
    assert [one["id"] for one in good] == [n for n in range(10_000) if n % 20]
    assert all(one["squared"] == one["value"] ** 2 and one["tier"] in ("high", "medium", "low") for one in good)
    assert len((tmp_path / "bad-10000.jsonl").read_text().splitlines()) == 500


def test_forty_orders_share_a_client_and_two_connections_and_each_is_booked_once(start: Start) -> None:
    for _ in range(2):
        told = start("shared.py").splitlines()
        assert (told[0], told[-2], told[-1]) == ("the client is open", "the client is closed", "40 orders, 2700 in all")
        assert "prices: 1 open, well" in told


def test_records_are_graded_one_by_one_in_a_batch_in_a_file_and_step_by_step(start: Start, tmp_path: Path) -> None:
    ends = "{'passed': 36, 'failed': 54, 'refused': 11}"
    assert start("grades.py").splitlines() == [
        "start -> clean -> grade -> passed person 87 B",
        """refused ["score must be from 0 to 100, not 'many'"]""",
        ends,
        "101 {'refused': 11, 'failed': 54, 'passed': 36}",
        "stopped in grade with p42@example.org",
        "went on to failed",
        "timed: start, clean, grade, failed",
    ]
    graded = [json.loads(line)["grade"] for line in (tmp_path / "passed.jsonl").read_text().splitlines()]
    assert (len(graded), set(graded)) == (36, {"B", "C"})


def test_a_claim_is_checked_and_drawn_with_the_way_that_it_went(start: Start, tmp_path: Path) -> None:
    told = start("drawn.py").splitlines()
    assert [line.partition(":")[0] for line in told[:2]] == ["warning in estimate", "warning in review"]
    assert told[2] == "stateDiagram-v2"
    assert "    s1 --> s2 : [else] #10003; 2 times" in told
    assert "claim/claim-1" in (tmp_path / "claim-1.html").read_text(encoding="utf-8")


def test_an_article_is_drafted_again_until_the_judge_likes_it(start: Start) -> None:
    assert start("article.py").splitlines() == [
        "article-1 is published: [Write about databases, draft 2], score 9",
        "calls: llm 2, score 2, post 1",
    ]


def test_an_article_that_is_published_is_only_reported(start: Start) -> None:
    first = start("article.py").splitlines()
    assert start("article.py").splitlines() == [first[0], "calls: none"]


def test_the_article_as_data_takes_the_same_way(start: Start) -> None:
    assert start("article_as_data.py").splitlines() == [
        "published: [Write about databases, draft 2], score 9",
        "ended in publish",
        "calls: llm 2, score 2, post 1",
    ]
    assert start("article_as_data.py").splitlines() == ["ended in publish", "calls: none"]


def test_both_spellings_of_the_article_live_in_one_database(start: Start) -> None:
    start("article.py")
    assert "llm 2" in start("article_as_data.py")


def test_money_is_moved_once_whatever_goes_wrong_and_however_often_it_is_started(start: Start) -> None:
    end = [
        "t-3: refused, {'ann': 50, 'bob': 450}",
        "today: closed, ['ann pays bob 300', 'ann pays bob 150']",
    ]
    assert start("ledger.py").splitlines() == [
        "before: {'ann': 500, 'bob': 0}",
        "t-1: booked, {'ann': 200, 'bob': 300}",
        "t-2: one account is written, and then something goes wrong",
        "t-2: booked, {'ann': 50, 'bob': 450}",
        *end,
    ]
    assert start("ledger.py").splitlines() == [
        "before: {'ann': 50, 'bob': 450}",
        "t-1: booked, {'ann': 50, 'bob': 450}",
        "t-2: booked, {'ann': 50, 'bob': 450}",
        *end,
    ]


def test_the_skeleton_chooses_the_bicycle_for_a_light_parcel(start: Start, tmp_path: Path) -> None:
    assert start("skeleton.py").splitlines() == ["weighed: 3 kg", "by bicycle", "ended in post_by_bicycle"]
    assert (tmp_path / "fsmworkflow.db").exists()


def test_the_skeleton_without_a_key_begins_a_new_run_when_the_last_one_ended(start: Start) -> None:
    assert start("skeleton.py") == start("skeleton.py")


@pytest.mark.parametrize(
    ("seed", "told"),
    [
        (12, ["login fails", "low", "first line: restarted it", "5 of 5", "closed: 5 stars, reopened 0 times"]),
        (19, ["normal", "no idea", "specialist", "1 of 5", "reopened", "specialist", "4 of 5", "closed: 4 stars"]),
        (13, ["1 of 5", "reopened", "2 of 5", "reopened", "1 of 5", "closed: 1 stars, reopened 2 times"]),
        (18, ["data is lost", "urgent", "specialist", "5 of 5", "closed: 5 stars, reopened 0 times"]),
    ],
)
def test_a_ticket_goes_its_way_by_its_priority_and_the_customers_stars(
    start: Start, seed: int, told: list[str]
) -> None:
    output = start("support_ticket.py", "--seed", seed)
    assert re.search(".*".join(map(re.escape, [*told, "ended in close"])), output, re.DOTALL), output
    assert output.count("specialist:") == len(re.findall("^reopened$", output, re.MULTILINE)) + (seed in (18, 19))
    assert start("support_ticket.py", "--seed", seed) == output


def test_no_call_is_paid_for_twice_though_its_step_runs_twice(start: Start) -> None:
    assert start("remembered.py").splitlines() == [
        "first time:",
        "  6 calls paid for; now to the printer",
        "  the printer is jammed",
        "second time:",
        "  6 calls paid for; now to the printer",
        "done: 5 different slogans, 7 calls paid for in all",
    ]


def test_a_failed_program_started_again_goes_on_at_the_step_that_failed(start: Start) -> None:
    assert start("failing.py").splitlines() == [
        "baking 20 loaves",
        "monday failed at deliver: the road is closed",
        "the road is opened; start this program again",
    ]
    assert start("failing.py").splitlines() == ["delivering 20 loaves", "monday: eaten"]
    assert start("failing.py").splitlines() == ["monday: eaten"]


def test_a_leave_is_granted_once_refused_or_forgotten(start: Start) -> None:
    told = ["Ann: granted by the boss, 1 answer", "Bob: refused", "Cem: forgotten"]
    asked = ["Ann asks for 3 days", "Bob asks for 90 days", "Cem asks for 5 days"]
    assert start("approval.py").splitlines() == [*asked, *told]


def test_an_order_takes_what_is_left_and_no_more(start: Start) -> None:
    assert start("order.py").splitlines() == [
        "fill 60: accepted, 40 left",
        "fill 70: rejected, 40 left",
        "may be filled by 40: True",
        "filled [60, 40] True",
        "what if it had been cancelled: withdrawn [60]",
    ]


def test_a_trip_that_fails_gives_back_what_was_booked_the_last_part_first(start: Start) -> None:
    assert start("trip.py").splitlines() == [
        "a trip to Rome",
        "  done: flight, hotel, car",
        "a trip to Oslo",
        "  no car: nobody answers, attempt 2",
        "  done: flight, hotel",
        "a trip to Venice",
        "  hotel is given back",
        "  flight is given back",
        "  there are no cars in Venice",
        "  failed: nothing is left",
    ]


def test_a_parcel_is_sent_once_paid_and_packed_or_called_back(start: Start) -> None:
    assert start("parcel.py").splitlines() == [
        "bell: prepare.pay.paid, prepare.pack.weigh",
        "lamp: prepare.pay.paid, prepare.pack.weigh",
        "bell is sent, with receipt for bell",
        "bell: on_its_way",
        "lamp: called_back",
    ]


def test_an_album_is_made_of_its_images_and_only_the_mended_one_is_made_again(start: Start) -> None:
    *told, first, second = start("thumbs.py", errors="ChildFailed").splitlines()
    failed = "child image/summer/thumbs/0/2 failed in state 'measure': ValueError: dusk.jpg is no image"
    measured = [f"  measured {name}.jpg" for name in ("dawn", "noon", "dusk", "night", "moon", "sun")]
    assert sorted(told) == sorted([*measured, failed])
    assert told.index(failed) < told.index("  measured dusk.jpg")
    assert first == "dawn.jpg at 160, noon.jpg at 160, dusk.jpg at 160"
    assert second == "night.jpg at 160, moon.jpg at 160, sun.jpg at 160"


def test_a_new_version_takes_over_what_the_old_one_does_not_finish(start: Start) -> None:
    assert start("deploy_v2.py").splitlines() == [
        "0 newer runs were taken by the old engine",
        "workflow  version  state     becomes   fit  mapped  stuck",
        "order     1 -> 2   review    approval  0    2       0",
        "order     2 -> 2   approval  approval  1    0       0",
        "o-1 is shipped: 10 EUR []",
        "o-2 is shipped: 2000 cents ['1 -> 2']",
        "o-3 is shipped: 3000 cents ['1 -> 2']",
        "o-4 is shipped: 4000 cents []",
    ]


def test_a_report_comes_each_night_and_once_for_the_nights_that_were_missed(start: Start) -> None:
    first = ["2026-03-27T02:30:00+01:00", "2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00"]
    assert start("nightly.py").splitlines() == [f"  nightly/{tick}: a report for ann" for tick in first]
    then = [f"  nightly/2026-04-0{day}T02:30:00+02:00: a report for ann" for day in (5, 6, 7, 8)]
    assert start("nightly.py").splitlines() == then


def test_what_a_worker_was_at_that_was_killed_is_taken_up_by_the_others(start: Start, durable_url: str) -> None:
    killed, sent, again = start("workers.py", durable_url).splitlines()
    assert killed == "killed one of three in the middle of a step"
    assert sent == "30 of 30 are sent, by 2 processes" or sent == "30 of 30 are sent, by 3 processes"
    assert 1 <= int(again.split()[0]) <= 3


def test_typed_data_is_typed_in_steps_and_wrong_data_is_refused_with_its_place(start: Start) -> None:
    small, large, refused = start("typed.py").splitlines()
    assert small == "Ann, 01 May 2031: 19.00"
    assert large == "Bob, 02 May 2031: 918.00, approved by the shop's owner"
    assert refused.startswith("refused: ")
    assert "lines[0].cents" in refused


# -- the digest


def prose(seed: int, words: int) -> list[str]:
    """Made-up words, the same for the same seed, none of them in a text of another seed."""
    dice = random.Random(seed)
    own = chr(ord("a") + seed)
    return [own + "".join(dice.choices("aeioubdgklmnrst", k=6)) for _ in range(words)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six texts, two of them nearly the same, two the same, and files that cannot be read as text."""
    folder = tmp_path / "texts"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    common = ["the", "and"] * 30
    for number, topic in enumerate(["apple", "comet", "violin", "glacier"]):
        words = [*prose(number, 400), *[topic] * 40, *common]
        random.Random(number).shuffle(words)
        (folder / f"{topic}.txt").write_text(" ".join(words), encoding="utf-8")
    apple = (folder / "apple.txt").read_text(encoding="utf-8").split()
    nearly = [*apple[:250], "changed", *apple[251:]]
    (folder / "deep" / "nearly_apple.md").write_text(" ".join(nearly), encoding="utf-8")
    (folder / "deep" / "comet.txt").write_text((folder / "comet.txt").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "deep" / ".hidden" / "secret.txt").write_text("never read", encoding="utf-8")
    (folder / "latin.txt").write_bytes("Füße".encode("latin-1"))
    (folder / "empty.md").write_text("", encoding="utf-8")
    (folder / "numbers.txt").write_text("1 2 3", encoding="utf-8")
    (folder / "huge.txt").write_text("word " * 200_001, encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / os.fsdecode(b"name\xff.txt")).write_text("a name of bytes", encoding="utf-8")
    return folder


def report_of(place: Path) -> Any:
    return json.loads((place / "report.json").read_text(encoding="utf-8"))


def test_the_digest_finds_the_terms_that_stand_out(start: Start, folder: Path, tmp_path: Path) -> None:
    output = start("digest.py", folder, "--out", "out")
    report = report_of(tmp_path / "out")
    assert {one["term"] for one in report["terms"][:2]} == {"apple", "comet"}  # in two documents each
    assert [one["term"] for one in report["terms"][2:4]] == ["glacier", "violin"]
    best = {one["path"]: one["terms"][0] for one in report["documents"]}
    assert (best["violin.txt"]["term"], best["violin.txt"]["count"]) == ("violin", 40)
    assert "6 documents" in output
    assert "glacier, violin" in output


def test_the_digest_finds_what_is_the_same_or_nearly_so_and_nothing_else(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    start("digest.py", folder, "--out", "out")
    same, nearly = report_of(tmp_path / "out")["duplicates"]
    assert same == {"first": "comet.txt", "second": "deep/comet.txt", "similarity": 1.0}
    assert (nearly["first"], nearly["second"]) == ("apple.txt", "deep/nearly_apple.md")
    assert 0.94 < nearly["similarity"] < 1  # 5 of 496 shingles changed


def test_the_digest_lists_what_it_could_not_read(start: Start, folder: Path, tmp_path: Path) -> None:
    start("digest.py", folder, "--out", "out")
    assert {one["path"]: one["reason"] for one in report_of(tmp_path / "out")["skipped"]} == {
        "empty.md": "empty",
        "gone.txt": "vanished",
        "huge.txt": "larger than 1,000,000 bytes",
        "latin.txt": "not UTF-8",
        "name\ufffd.txt": "its name is not UTF-8",
        "numbers.txt": "no words",
        "pipe.txt": "not a regular file",
    }
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "- `latin.txt`: not UTF-8" in markdown
    assert "- 100%: `comet.txt` and `deep/comet.txt`" in markdown


def test_a_finished_digest_is_reported_and_made_anew_only_when_asked(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    words = ["digest.py", folder, "--out", "out", "--ledger", "ledger"]
    start(*words)
    first = (tmp_path / "out" / "report.json").read_bytes()
    assert "made before" in start(*words)
    assert len(steps_begun(tmp_path)) == 5
    assert "made before" not in start(*words, "--again")
    assert len(steps_begun(tmp_path)) == 10
    assert (tmp_path / "out" / "report.json").read_bytes() == first


def steps_begun(place: Path) -> list[str]:
    notes = [json.loads(line) for line in (place / "ledger").read_text(encoding="utf-8").splitlines()]
    return [note["step"] for note in notes if note["what"] == "begin"]


def test_a_digest_that_could_not_write_its_report_goes_on_there(start: Start, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be", encoding="utf-8")
    words = ["digest.py", folder, "--out", "out", "--ledger", "ledger"]
    start(*words, status=1, errors="report")
    (tmp_path / "out").unlink()
    assert "going on at report" in start(*words)
    assert steps_begun(tmp_path) == ["find", "read", "terms", "duplicates", "report", "report"]


def test_a_file_that_vanishes_after_it_was_found_is_listed(folder: Path, tmp_path: Path) -> None:
    words = [folder, "--out", "out", "--ledger", "ledger", "--pace", "0.3"]
    command = [sys.executable, str(EXAMPLES / "digest.py"), *map(str, words)]
    with launched(command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL) as process:
        until_now(lambda: (tmp_path / "ledger").exists() and "read" in steps_begun(tmp_path))
        (folder / "violin.txt").unlink()
        assert process.wait(PATIENCE) == 0
    report = report_of(tmp_path / "out")
    assert {"path": "violin.txt", "reason": "vanished"} in report["skipped"]
    assert len(report["documents"]) == 5


def test_a_folder_without_texts_gives_an_empty_report(start: Start, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "0 documents" in start("digest.py", "nothing", "--out", "out")
    assert report_of(tmp_path / "out")["documents"] == []


def test_a_folder_that_is_not_there_and_a_database_that_is_none_are_told(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    start("digest.py", "nowhere", status=2, errors="nowhere is not a folder")
    (tmp_path / "no.db").write_text("this is no database " * 100, encoding="utf-8")
    start("digest.py", folder, "--db", "no.db", status=1, errors="not a database")


@pytest.mark.usefixtures("modules")
def test_similarity_is_exact_for_short_texts_and_near_for_long_ones() -> None:
    import texts

    for length, tolerance in ((100, 0.0), (4_000, 0.1)):
        words = prose(1, length)
        for cut in (length // 20, length // 5, length // 2):
            other = [*words[: length - cut], *prose(2, cut)]
            one, two = ({tuple(text[at : at + 5]) for at in range(length - 4)} for text in (words, other))
            found = texts.similarity(texts.sketch_of(words)[1], texts.sketch_of(other)[1])
            assert abs(found - len(one & two) / len(one | two)) <= tolerance + 1e-9


@pytest.mark.usefixtures("modules")
def test_a_large_folder_is_cut_off_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import texts

    monkeypatch.setattr(texts, "MOST_FILES", 3)
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("a few words", encoding="utf-8")
    found = texts.find_files(tmp_path, tmp_path / "out")
    assert found == {"files": ["0.txt", "1.txt", "2.txt"], "skipped": [], "left_off": 2}


# -- the demonstration


def test_the_digest_killed_twice_repeats_no_finished_step(start: Start, stopwatch: Stopwatch) -> None:
    began = time.monotonic()
    output = start("digest_demo.py")
    assert "No finished step ran again, and no remembered batch was read again." in output
    assert len(re.findall("^process [0-9]+ killed$", output, re.MULTILINE)) == 2
    assert re.findall(r"^(read|duplicates) .* killed", output, re.MULTILINE) == ["read", "duplicates"]
    assert len(set(re.findall(r"^[a-z]+ +([0-9]+) .* s  finished", output, re.MULTILINE))) == 3
    assert all(len(line) <= 80 for line in output.splitlines() if "/" not in line)
    assert stopwatch.since(began) < 60


def notes_of(*told: tuple[str, str, int]) -> list[dict[str, Any]]:
    """Lines of a ledger: (step or batch, what, pid)."""
    return [
        {"step": "read" if "batch" in what else name, "what": what, "about": name, "pid": pid}
        for name, what, pid in told
    ]


@pytest.mark.usefixtures("modules")
def test_the_demonstration_notices_a_finished_step_that_ran_again() -> None:
    import digest_demo

    notes = notes_of(("find", "begin", 1), ("find", "end", 1), ("find", "begin", 2))
    assert digest_demo.wrong(notes, [(2, ["find"])], digest_demo.STEPS) == ["find was finished and ran again"]
    assert digest_demo.wrong(notes, [(2, [])], digest_demo.STEPS) == []  # killed before its commit
    assert digest_demo.wrong([], [], ["find", "find"]) == ["the history has the steps find, find"]


@pytest.mark.usefixtures("modules")
def test_the_demonstration_notices_a_remembered_batch_that_was_read_again() -> None:
    import digest_demo

    first = [("a", "batch begin", 1), ("a", "batch end", 1), ("b", "batch begin", 1), ("b", "batch end", 1)]
    assert digest_demo.read_again(notes_of(*first, ("b", "batch begin", 2))) == []  # killed before it was remembered
    assert digest_demo.read_again(notes_of(*first, ("a", "batch begin", 2))) == ["a"]


# -- the pipeline with a language model

Model = Callable[[bytes, str | None], tuple[int, bytes]]


def saying(answers: Callable[[str], str], keys: list[str | None] | None = None) -> Model:
    """A model that answers each prompt so, and notes the authorization that came with it."""

    def model(body: bytes, authorization: str | None) -> tuple[int, bytes]:
        if keys is not None:
            keys.append(authorization)
        message = {"role": "assistant", "content": answers(json.loads(body)["messages"][-1]["content"])}
        return 200, json.dumps({"choices": [{"index": 0, "message": message}]}).encode()

    return model


def critic(*scores: object) -> Callable[[str], str]:
    """Writes "This is text 1." and so on, and gives these scores, each three times; then the last one for ever."""
    left, texts = [score for score in scores for _ in range(3)], iter(range(1, 100))

    def answers(prompt: str) -> str:
        if not prompt.startswith("Rate"):
            return f"This is text {next(texts)}."
        return str(left.pop(0) if len(left) > 1 else left[0])

    return answers


Serve = Callable[[Model], Any]


@pytest.fixture
def serve(modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a model on loopback in the protocol of OpenAI, with the counting server of the demonstration."""
    for name in [name for name in os.environ if SETTINGS.match(name)]:
        monkeypatch.delenv(name)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    import llm_demo

    with contextlib.ExitStack() as servers:
        yield lambda model: servers.enter_context(llm_demo.counting(model))


def test_a_text_is_revised_until_the_judge_likes_it_and_published_once_a_person_does(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(saying(critic(5, 9)))
    told = "lighthouses: review, draft 2, score 9\nThis is text 2.\n"
    assert server.run(tmp_path, "lighthouses").stdout == told
    assert not (tmp_path / "published.txt").exists()
    assert server.run(tmp_path, "lighthouses").stdout == told  # only reported
    assert [call.asked.split()[0] for call in server.calls] == ["Write", *["Rate"] * 3, "Write", *["Rate"] * 3]
    assert "published, draft 2" in server.run(tmp_path, "lighthouses", "--answer", "approved").stdout
    assert (tmp_path / "published.txt").read_text(encoding="utf-8") == "This is text 2.\n"
    assert len(server.calls) == 8


def test_what_a_person_rejects_is_revised_once_more(serve: Serve, tmp_path: Path) -> None:
    server = serve(saying(critic(9)))
    server.run(tmp_path, "bees")
    assert server.run(tmp_path, "bees", "--answer", "rejected").stdout.startswith("bees: review, draft 2")


@pytest.mark.parametrize("nonsense", ["0", "I like it.", "100%", "score: 3.", "11 of 12"])
def test_a_judge_who_says_anything_still_leads_to_a_person(serve: Serve, tmp_path: Path, nonsense: str) -> None:
    server = serve(saying(critic(nonsense)))
    assert server.run(tmp_path, "bees").stdout.startswith("bees: review, draft 3, score 3\n")
    assert len(server.calls) == 12


@pytest.mark.parametrize(("words", "points"), [(30, 7), (90, 3)])
def test_where_the_judge_gives_no_number_the_length_of_the_text_decides(
    serve: Serve, tmp_path: Path, words: int, points: int
) -> None:
    server = serve(saying(lambda prompt: "well" if prompt.startswith("Rate") else "word " * words))
    assert server.run(tmp_path, "bees").stdout.startswith(f"bees: review, draft 3, score {points}\n")


def novice(prompt: str) -> str:
    """Answers by the prompt alone, so that a lost answer comes the same again: the second text is the good one."""
    if prompt.startswith("Rate"):
        return "9" if "better" in prompt else "4 of 10"
    return "A better text it is." if "better" in prompt else "A text it is."


@pytest.mark.parametrize("kill_at", range(1, 9))
def test_a_pipeline_killed_in_any_call_makes_only_that_call_again(serve: Serve, tmp_path: Path, kill_at: int) -> None:
    whole = ["Write", *["Rate"] * 3, "Write", *["Rate"] * 3]
    server = serve(saying(novice))
    assert server.run(tmp_path, "bees", kill_at=kill_at).returncode == -signal.SIGKILL
    assert server.run(tmp_path, "bees").stdout == "bees: review, draft 2, score 9\nA better text it is.\n"
    assert [call.asked.split()[0] for call in server.calls] == [*whole[:kill_at], *whole[kill_at - 1 :]]
    assert [call.fate for call in server.calls] == ["lost" if n == kill_at else "answered" for n in range(1, 10)]


@pytest.mark.parametrize(
    "bad",
    [[(503, b"busy"), (429, b"slower")], [(200, b'{"choices": [{"message": {"content": null}}]}'), (200, b"<p>")]],
)
def test_a_model_that_is_busy_or_says_nothing_is_asked_again(
    serve: Serve, tmp_path: Path, bad: list[tuple[int, bytes]]
) -> None:
    left, good = list(bad), saying(critic(9))
    server = serve(lambda body, authorization: left.pop(0) if left else good(body, authorization))
    assert "review, draft 1, score 9" in server.run(tmp_path, "bees").stdout
    assert [call.fate for call in server.calls] == [*["refused"] * 2, *["answered"] * 4]


def test_a_key_that_is_refused_is_told_at_once_and_the_next_start_goes_on_there(start: Start, serve: Serve) -> None:
    good = saying(critic(9))
    server = serve(lambda body, given: good(body, given) if given == "Bearer right" else (401, b"who are you?"))
    words = {"OPENAI_BASE_URL": server.url}
    start("llm_pipeline.py", "bees", status=1, errors="401 Unauthorized", **words, OPENAI_API_KEY="wrong")
    assert "review, draft 1" in start("llm_pipeline.py", "bees", **words, OPENAI_API_KEY="right")
    assert [call.fate for call in server.calls] == ["refused", *["answered"] * 4]


def test_the_key_goes_to_the_model_and_nowhere_else(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    keys: list[str | None] = []
    server = serve(saying(critic(9), keys))
    ended = server.run(tmp_path, "bees")
    assert keys == ["Bearer sk-very-secret"] * 4
    assert "very-secret" not in ended.stdout + ended.stderr
    assert all(b"very-secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_the_pipeline_killed_twice_makes_no_finished_call_twice(start: Start, serve: Serve) -> None:
    server = serve(saying(novice))
    output = start("llm_demo.py", server.url)
    assert len(re.findall("^process +[0-9]+  killed in a call$", output, re.MULTILINE)) == 2
    assert re.findall("^ +([0-9]+) .* lost$", output, re.MULTILINE) == re.findall("([0-9]+)  killed", output)
    assert "finished: draft, judge, revise, judge, review, publish\npublished by a person:\nA better text" in output
    assert output.endswith("The run has used the other 8: no finished call was made twice.\n")
    assert len(server.calls) == 10  # by the count of the model behind the one that the demonstration keeps
    assert all(len(line) <= 80 for line in output.splitlines())


@pytest.mark.usefixtures("modules")
def test_the_demonstration_notices_a_call_that_was_made_twice() -> None:
    import llm_demo

    def called(*told: tuple[int, str, str]) -> list[Any]:
        return [llm_demo.Call(pid, asked, "7", fate) for pid, asked, fate in told]

    once = [(1, "Write", "answered"), (1, "Rate a", "lost"), (2, "Rate a", "answered")]
    rest = [(2, "Rate a", "answered"), (2, "Rate a", "answered")]
    assert llm_demo.wrong(called(*once, *rest), 1, 1) == []
    again = called(*once[:2], (2, "Write", "answered"), *once[2:], *rest)
    assert llm_demo.wrong(again, 1, 1) == [
        "the model gave 5 answers, and the run has used 4",
        "after the loss of 'Rate a' came 'Write'",
    ]


def test_without_the_small_model_the_demonstration_names_its_extra(start: Start, tmp_path: Path) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ImportError", encoding="utf-8")
    start("llm_demo.py", status=1, errors="make demo-llm", PYTHONPATH=f"{tmp_path}:{ROOT}")


# -- all of them


def test_every_example_stands_in_the_table_and_is_started_here() -> None:
    table = set(re.findall(r"\]\(([a-z0-9_]+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert table == {path.name for path in EXAMPLES.glob("*.py")}
    here = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in here for name in table - {"texts.py"})


def test_an_example_shows_one_thing_in_under_80_lines_of_code() -> None:
    for path in EXAMPLES.glob("*.py"):
        if path.name not in ("digest.py", "digest_demo.py", "llm_demo.py", "texts.py"):
            assert sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()) < 80, path.name


def test_a_claim_is_read_from_a_file_and_a_mistake_in_it_is_told_with_its_line(start: Start) -> None:
    small, review, paid, told = start("claim.py").splitlines()
    assert small == "small: paid 20"
    assert review == "large: review"
    assert paid == "large: paid 120, by ann, asked 1 time"
    assert told == (
        "misspelt.yaml:11:10: states[0].then[0].condition: unknown key 'condition' (did you mean 'conditions'?)"
    )


def test_machines_of_other_engines_run_as_they_stand_and_an_order_goes_on_in_the_next_process(start: Start) -> None:
    grades = [
        "ann: output {'name': 'ann', 'grade': 'passed'}",
        "bo: error {'name': 'bo', 'points': 140, 'valid': False}",
    ]
    before = "order: OPEN {'order_qty': 100, 'status': 'open', 'qty': 40, 'parts': 1}"
    assert start("brought.py").splitlines() == [before, *grades]
    after = "order: FILLED {'order_qty': 100, 'status': 'filled', 'qty': 100, 'parts': 1}"
    assert start("brought.py").splitlines() == ["told: filled 100", after, *grades]
    assert start("brought.py").splitlines() == [after, *grades], "it is over, and only told"
