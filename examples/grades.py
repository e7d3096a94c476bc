"""A machine made of a configuration takes one record, several, and a file of them, and is watched step by step.

Nothing is kept, and nothing is async: a thread of the machine's own does that.
"""

import json
from pathlib import Path

from fsmworkflow.functions import convert, lengths, normalise, patterns, ranges, required, validate
from fsmworkflow.simple import SimpleFSM

clean = normalise(name=["trim", "normalize_spaces"], mail=["trim", "lowercase"]) | convert(strict=False, score="int")
known = required("name", "mail", "score") & lengths(name=(1, 80)) & patterns(mail=r"[^@ ]+@[^@ ]+$")

CONFIG = {
    "name": "grades",
    "states": [
        {"name": "start", "is_start": True},
        {"name": "clean", "transforms": ["clean", "look"]},
        {"name": "grade", "transforms": ["grade"]},
        {"name": "passed", "is_end": True},
        {"name": "failed", "is_end": True},
        {"name": "refused", "is_end": True},
    ],
    "arcs": [
        {"from": "start", "to": "clean"},
        {"from": "clean", "to": "grade", "condition": "success"},
        {"from": "clean", "to": "refused", "condition": "failure"},
        {"from": "grade", "to": "passed", "condition": "enough", "priority": 2},
        {"from": "grade", "to": "failed"},
    ],
}

FUNCTIONS = {
    "clean": clean,
    "look": validate(known & ranges(score=(0, 100))),
    "grade": lambda data: {**data, "grade": "FEDCBA"[data["score"] // 20]},
    "enough": lambda data: data["grade"] <= "C",
}


def main() -> None:
    people = [
        {"name": f" person  {n} ", "mail": f"P{n}@Example.org" if n % 10 else "nowhere", "score": str(n)}
        for n in range(101)
    ]
    Path("people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in people))

    with SimpleFSM(CONFIG, custom_functions=FUNCTIONS) as machine:
        result = machine.process(people[87])
        print(" -> ".join(result["path"]), result["data"]["name"], result["data"]["grade"])

        result = machine.process({**people[87], "score": "many"})
        print(result["final_state"], result["data"]["problems"])

        ends = [one["final_state"] for one in machine.process_batch(people)]
        print({state: ends.count(state) for state in ("passed", "failed", "refused")})

        sinks = {"passed": "passed.jsonl", "failed": "failed.jsonl", "refused": None}
        done = machine.process_stream("people.jsonl", sinks)
        print(done["total_processed"], done["states"])

        walk = machine.create_context(people[42])
        machine.add_breakpoint("grade")
        machine.run_until_breakpoint(walk)
        print("stopped in", walk.current_state, "with", walk.data["mail"])
        print("went on to", machine.step(walk).to_state)
        profile = machine.profile(people[42])
        print("timed:", ", ".join(profile.states))


if __name__ == "__main__":
    main()
