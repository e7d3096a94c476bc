"""Every Python block of the README and of docs/ runs, in a directory of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAND_INS = """
calls = []
async def llm(prompt): calls.append(prompt); return f"An essay. {prompt}"
async def score(text): return 9
async def post(text, idempotency_key): calls.append(idempotency_key)
"""
EXPECTED = {
    "README.md 1": "published",
    "README.md 3": "open 60 True\nfilled True",
    "README.md 4": "store a text tha",
    "README.md 5": "5",
    "README.md 6": "print_it out of paper\ndone ['$start', '$done', '$error', '$retry', '$done']",
    "README.md 7": "taxed Invoice(net=100.0, tax=19.0)",
    "docs/checks.md 1": (
        "warning judge shadowed\n"
        "   [score >= 8] to published is never taken: [score >= 5] to review stands before it, "
        "and holds whenever it does\n"
        "warning review no-timeout\n"
        "   it waits for an event without a time-out"
    ),
    "docs/children.md 1": "['dawn at 160', 'noon at 160', 'dusk at 160']\ndone",
    "docs/dataknobs.md 1": "{'input': 'data', 'processed': True}",
    "docs/doctor.md 1": "store: memory:// keeps nothing when this process ends (fine for tests)",
    "docs/drawing.md 1": (
        "stateDiagram-v2\n"
        '    state "review" as s1\n'
        '    state "published" as s2\n'
        '    state "expired" as s3\n'
        "    [*] --> s1\n"
        "    s1 --> s2 : approved\n"
        "    s1 --> s3 : after 3d\n"
        "    s2 --> [*]\n"
        "    s3 --> [*]"
    ),
    "docs/files.md 1": "paid ann 1",
    "docs/functions.md 1": (
        "welcome ann@example.org\nrefused ['email is missing', 'age must be from 0 to 150, not 200']"
    ),
    "docs/pystator.md 1": ("OPEN ['fill']\nbooked 100\nTrue True {'order_qty': 100, 'qty': 100}"),
    "docs/resources.md 1": "0 1 4 None",
    "docs/retention.md 1": "1\n[]",
    "docs/schedules.md 1": "report 3 True\n['paused']\n[]",
    "docs/simple.md 1": "passed 4 ['start', 'grade', 'passed']\n40\n3000 {'failed': 1800, 'passed': 1200}",
    "docs/streams.md 1": "2 {'output': 1, 'error': 1}\n" + '{"items":[5,7],"total":12}',
    "docs/streams.md 2": (
        "0 march/0 done sent {'to': 'ann@example.org', 'sent': True}\n"
        "1 march/1 done sent {'to': 'bob@example.org', 'sent': True}"
    ),
    "docs/transactions.md 1": "('lamp', 9)",
    "docs/transitions.md 1": "liquid",
    "README.md 8": "[0, 1, 4, 9, 16]\n['n-3', 'n-4']",
    "README.md 9": ("('working', {'title': 'no ink', 'to': 'ann'})\na ticket that is working takes close, put_back"),
    "README.md 10": "{'error': 1000, 'output': 2000}",
    "docs/versions.md 1": (
        "workflow  version  state   becomes  fit  mapped  stuck\n"
        "order     1 -> 2   review  check    0    1       0\n"
        "done {'cents': 500, 'label': '500 cents'}\n"
        "['1 -> 2']"
    ),
}


def _blocks() -> list[tuple[str, str]]:
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found += [(f"{page.relative_to(ROOT)} {number}", block) for number, block in enumerate(blocks, 1)]
    return found


@pytest.mark.parametrize(("name", "block"), _blocks(), ids=[name for name, _ in _blocks()])
def test_a_snippet_runs_and_prints_what_the_page_says(name: str, block: str, tmp_path: Path) -> None:
    page = (ROOT / name.split()[0]).read_text(encoding="utf-8")
    for file, text in re.findall(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (tmp_path / file).write_text(text, encoding="utf-8")  # the files that the page shows
    program = tmp_path / "snippet.py"
    program.write_text(STAND_INS + block, encoding="utf-8")
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env=home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("run ") for line in done.stderr.splitlines()), done.stderr  # the log of a failed run
    assert done.stdout.strip() == EXPECTED.get(name, "")


def test_the_first_screen_shows_the_example_the_two_commands_and_the_promises() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = [text.index(part) for part in ("```python", "make demo", "## What is promised", "## When not to use it")]
    assert places == sorted(places)
    assert text.index("\n## ", places[-1]) < len("\n".join(text.split("\n")[:64]))
