"""A configuration of dataknobs-fsm as it stands, over as many records as you say, from a file to two files.

    python tiers.py [10000]

Four stages: validate, enrich, categorise, then output or error. Kill it in the middle and start it again: it goes on
after its last commit, and each record is in one of the two files once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from fsmworkflow import Engine
from fsmworkflow.readers.dataknobs import load
from fsmworkflow.stream import stream

VALID = "lambda state: state.data['valid']"
VALIDATE = "lambda state: {**state.data, 'valid': state.data.get('value', -1) >= 0}"
ENRICH = """lambda state: {
    'id': state.data['id'], 'category': state.data['category'], 'value': state.data['value'],
    'doubled': 2 * state.data['value'], 'squared': state.data['value'] ** 2,
}"""
CATEGORISE = """lambda state: {
    **state.data, 'risk': min(100, state.data['squared'] / 100),
    'tier': 'high' if state.data['value'] > 5000 else 'medium' if state.data['value'] > 1000 else 'low',
}"""


def stage(name: str, code: str) -> dict[str, Any]:
    return {"name": name, "functions": {"transform": {"type": "inline", "code": code}}}


CONFIG = {
    "name": "tiers",
    "states": [
        {"name": "input", "is_start": True},
        stage("validate", VALIDATE),
        stage("enrich", ENRICH),
        stage("categorise", CATEGORISE),
        {"name": "output", "is_end": True},
        {"name": "error", "is_end": True},
    ],
    "arcs": [
        {"from": "input", "to": "validate"},
        {"from": "validate", "to": "enrich", "condition": {"type": "inline", "code": VALID}, "priority": 1},
        {"from": "validate", "to": "error"},
        {"from": "enrich", "to": "categorise"},
        {"from": "categorise", "to": "output"},
    ],
}


def written(path: Path, many: int) -> None:
    """Records of which one in twenty is wrong."""
    with path.open("w") as file:
        for n in range(many):
            value = n * 7919 % 10_000 if n % 20 else -1
            file.write(json.dumps({"id": n, "value": value, "category": f"cat_{n % 5}", "status": "raw"}) + "\n")


async def main(many: int) -> None:
    source = Path(f"in-{many}.jsonl")
    if not source.exists():
        written(source, many)
    outlets = {"output": f"good-{many}.jsonl", "error": f"bad-{many}.jsonl"}
    flow = load(CONFIG, allow_inline_code=True)
    async with Engine("sqlite:///tiers.db") as engine:
        done = await stream(engine, flow, source, outlets, key=f"all-{many}")
    print(f"{done.records:,} records, {done.rate:,.0f} a second: {done.states}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
