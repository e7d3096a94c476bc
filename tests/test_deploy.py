"""The examples of deploying are what systemd and Kubernetes take, and their commands are those of the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fsmworkflow.cli import cli
from tests.tools import program

DEPLOY = Path(__file__).parent.parent / "examples" / "deploy"
UNIT = DEPLOY / "worker.service"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))
KINDS = {"Deployment": ["Always"], "Job": ["OnFailure", "Never"]}
"""The restartPolicy that Kubernetes allows in pods of each kind: its API server refuses others, no schema says so."""
LATEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
GRACE = 10.0


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


def pod(found: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def commands(value: Any) -> list[list[str]]:
    """Every command line in a manifest."""
    if isinstance(value, dict):
        own = [value["command"]] if isinstance(value.get("command"), list) else []
        return own + [one for inner in value.values() for one in commands(inner)]
    return [one for inner in value for one in commands(inner)] if isinstance(value, list) else []


def settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """The unit is verified with a command that is there, as the one that it names is installed by its reader."""
    text = UNIT.read_text().replace("/opt/app/.venv/bin/fsmworkflow", sys.executable)
    assert sys.executable in text
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert (done.returncode, told) == (0, [])


def test_systemd_would_say_what_is_wrong_with_a_unit(tmp_path: Path) -> None:
    (tmp_path / "bad.service").write_text(UNIT.read_text().replace("Restart=always", "Restart=sometimes"))
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", str(tmp_path / "bad.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "bad.service" in done.stderr


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_takes_the_manifest(path: Path) -> None:
    for version in ("1.30", LATEST):
        kubernetes_validate.validate(manifest(path.name), version, strict=True)


def test_kubernetes_would_say_what_is_wrong_with_a_manifest() -> None:
    found = manifest("deployment.yaml")
    pod(found)["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(found, LATEST, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_are_restarted_as_their_kind_allows_and_may_drain_before_they_are_killed(path: Path) -> None:
    found = manifest(path.name)
    assert pod(found)["restartPolicy"] in KINDS[found["kind"]]
    assert pod(found)["terminationGracePeriodSeconds"] >= GRACE + 20


def test_every_command_of_the_examples_is_one_that_the_command_line_knows() -> None:
    found = [words for path in MANIFESTS for words in commands(manifest(path.name)) if words[0] == "fsmworkflow"]
    found.append(["fsmworkflow", *settings()["ExecStart"].split()[1:]])
    assert len(found) == 5
    for _, verb, *words in found:
        command = cli.commands[verb]
        command.make_context(verb, list(words))  # raises for an option that there is not


def test_probes_ask_the_file_that_the_worker_writes_and_only_a_stuck_loop_restarts_it() -> None:
    (container,) = pod(manifest("deployment.yaml"))["containers"]
    words = container["command"]
    file = words[words.index("--health") + 1]
    probes = {name: container[name]["exec"]["command"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert all(command[command.index("--file") + 1] == file for command in probes.values())
    assert {name: command[-1] for name, command in probes.items()} == {
        "startupProbe": "--ready", "livenessProbe": "--live", "readinessProbe": "--ready",
    }  # fmt: skip
    assert any(file.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])


def test_the_unit_waits_for_ready_watches_the_loop_and_lets_it_drain() -> None:
    found = settings()
    assert (found["Type"], found["Restart"], found["KillSignal"]) == ("notify", "always", "SIGTERM")
    assert 10 <= int(found["WatchdogSec"]) <= 60
    assert int(found["TimeoutStopSec"]) >= GRACE + 20
