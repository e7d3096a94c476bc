"""DBConfig: which source decides, what is never shown, who opens and closes what, in one event loop after another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from fsmworkflow.errors import StoreError
from fsmworkflow.records import Active
from fsmworkflow.settings import DBConfig
from tests.postgres_server import execute
from tests.waiting import PATIENCE

PASSWORD = "s3cret/@:?#%"
SPELLED = "s3cret%2F%40%3A%3F%23%25"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, another empty one for a home, and nothing about databases in the environment."""
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("FSMWORKFLOW_URL", "DB_HOST", "DB_PORT", "DB_NAME", "DB_DATABASE", "DB_USER", "DB_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    yield
    gc.collect()


def write_env(folder: str, **values: str) -> None:
    Path("..", folder, ".env").write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))


def place(url: str) -> tuple[str, int, str, str]:
    """Host, port, database and user, as DBConfig has them."""
    config = DBConfig(url=url)
    assert config.host
    assert config.port
    return config.host, config.port, config.database or "", config.user or ""


def config_shows(config: DBConfig, url: str) -> bool:
    return config.url == config.store.url == url and repr(config) == f"<DBConfig {url}>"


# -- which source decides --------------------------------------------------------------------------------------------

URL_A, URL_B = "postgresql://ann@a:1/one", "postgresql://bob@b:2/two"
PRECEDENCE: list[tuple[str, dict[str, Any], dict[str, str], dict[str, str], dict[str, str], tuple[Any, ...]]] = [
    # what,                    keywords,             environment,            .env here,              .env at home,  then
    ("nothing", {}, {}, {}, {}, ("sqlite",)),
    ("keywords", {"host": "k"}, {"DB_HOST": "e"}, {"DB_HOST": "h"}, {}, ("k", 5432, "fsmdb", None)),
    ("url keyword", {"url": URL_A}, {"FSMWORKFLOW_URL": URL_B, "DB_PASSWORD": "x"}, {}, {}, ("a", 1, "one", "ann")),
    ("url in the environment", {}, {"FSMWORKFLOW_URL": URL_A, "DB_HOST": "e"}, {}, {}, ("a", 1, "one", "ann")),
    ("DB_* before .env", {}, {"DB_HOST": "e"}, {"FSMWORKFLOW_URL": URL_A}, {}, ("e", 5432, "fsmdb", None)),
    ("url of .env before its DB_*", {}, {}, {"DB_HOST": "h", "FSMWORKFLOW_URL": URL_A}, {}, ("a", 1, "one", "ann")),
    (".env here before home", {}, {}, {"DB_HOST": "h"}, {"FSMWORKFLOW_URL": URL_B}, ("h", 5432, "fsmdb", None)),
    (".env at home", {}, {}, {}, {"DB_NAME": "n", "DB_PORT": "9"}, ("localhost", 9, "n", None)),
    ("url of .env at home", {}, {"DB_PORT": "8"}, {}, {"FSMWORKFLOW_URL": URL_B}, ("b", 2, "two", "bob")),
    ("value by value", {"port": 7}, {"DB_USER": "u"}, {"DB_HOST": "h"}, {"DB_NAME": "n"}, ("h", 7, "n", "u")),
    ("keyword filled from DB_*", {"database": "k"}, {"DB_HOST": "e"}, {}, {}, ("e", 5432, "k", None)),
    ("keyword on a url", {"database": "k"}, {"FSMWORKFLOW_URL": URL_A}, {}, {}, ("a", 1, "k", "ann")),
    (
        "keyword, url of SQLite",
        {"host": "k"},
        {"FSMWORKFLOW_URL": "sqlite:///x.db"},
        {},
        {},
        ("k", 5432, "fsmdb", None),
    ),
    ("DB_DATABASE is DB_NAME", {}, {"DB_DATABASE": "d", "DB_NAME": "n"}, {}, {}, ("localhost", 5432, "d", None)),
    ("name is database", {"name": "n"}, {}, {}, {}, ("localhost", 5432, "n", None)),
    ("a user alone", {}, {"DB_USER": "u"}, {}, {}, ("localhost", 5432, "fsmdb", "u")),
    ("port and password name nothing", {}, {"DB_PORT": "1", "DB_PASSWORD": "p"}, {}, {}, ("sqlite",)),
    ("empty is none", {"host": ""}, {"DB_HOST": "", "FSMWORKFLOW_URL": ""}, {"DB_HOST": ""}, {}, ("sqlite",)),
]


@pytest.mark.parametrize(
    ("keywords", "environment", "here", "home", "then"),
    [row[1:] for row in PRECEDENCE],
    ids=[row[0] for row in PRECEDENCE],
)
def test_the_first_source_that_names_a_store_decides(
    keywords: dict[str, Any],
    environment: Mapping[str, str],
    here: dict[str, str],
    home: dict[str, str],
    then: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_env("here", **here)
    write_env("home", **home)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = DBConfig(**keywords)
    if then == ("sqlite",):
        assert config.url == f"sqlite:///{Path('fsmworkflow.db').absolute()}"
        assert (config.host, config.port, config.database, config.user, config.password, config.pool) == (None,) * 6
    else:
        assert (config.host, config.port, config.database, config.user) == then
        assert config.name == config.database


def test_the_environment_is_not_changed_by_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write_env("here", DB_HOST="h", DB_USER="u")
    before = dict(os.environ)
    assert DBConfig().host == "h"
    assert dict(os.environ) == before


def test_a_later_change_of_directory_or_environment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, relative = DBConfig(), DBConfig(url="sqlite:///other.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_HOST", "elsewhere")

    async def main() -> None:
        for config in (default, relative):
            await config.init_db()
            await config.close()

    asyncio.run(main())
    assert sorted(path.name for path in (tmp_path / "here").glob("*.db")) == ["fsmworkflow.db", "other.db"]
    assert not list(tmp_path.glob("*.db"))


def test_nothing_is_opened_when_it_is_made() -> None:
    DBConfig()
    DBConfig(host="no.such.host.invalid")
    assert not list(Path().iterdir())


def test_a_directory_called_env_and_a_missing_home_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").mkdir()
    monkeypatch.setenv("HOME", "/no/such/home")
    assert DBConfig().url.startswith("sqlite:")


def test_a_file_that_cannot_be_read_is_an_error() -> None:
    Path(".env").write_bytes(b"DB_HOST=\xff\xfe\n")
    with pytest.raises(StoreError, match=r"\.env cannot be read"):
        DBConfig()


def test_what_cannot_be_meant_is_refused() -> None:
    for keywords in ({"url": "mysql://x"}, {"url": "sqlite:///x.db", "host": "h"}, {"host": "h", "port": "many"}):
        with pytest.raises(StoreError):
            DBConfig(**keywords)


def test_a_url_is_taken_apart() -> None:
    config = DBConfig(url=f"postgresql://an%40n:{SPELLED}@[::1]:6000/my%20db?sslmode=disable")
    assert (config.host, config.port, config.database, config.user) == ("::1", 6000, "my db", "an@n")
    assert config.password == PASSWORD
    assert place("postgres://u@/d?host=/run/pg&port=6000") == ("/run/pg", 6000, "d", "u")
    for several in ("postgresql://u@a:1,b:2/d", "postgresql://a:1,b:2", "postgresql://"):
        config = DBConfig(url=several, min_size=1)
        assert (config.host, config.port, config.url.partition(":")[0]) == (None, None, "postgresql")


# -- what is said, and what is not -----------------------------------------------------------------------------------


def test_the_log_says_which_store_and_why(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "fsmworkflow")
    DBConfig()
    monkeypatch.setenv("DB_HOST", "db.example")
    DBConfig()
    monkeypatch.setenv("FSMWORKFLOW_URL", "sqlite:///x.db")
    DBConfig()
    monkeypatch.delenv("FSMWORKFLOW_URL")
    monkeypatch.delenv("DB_HOST")
    write_env("home", DB_USER="u")
    DBConfig()
    DBConfig(host="h")
    first, second, third, fourth, fifth = [record.getMessage() for record in caplog.records]
    assert "fsmworkflow.db" in first
    assert "nothing else" in first
    assert "db.example" in second
    assert "DB_* of the environment" in second
    assert "x.db" in third
    assert "FSMWORKFLOW_URL of the environment" in third
    assert str(Path("../home/.env").resolve()) in fourth
    assert "keywords host" in fifth
    assert config_shows(DBConfig(url=URL_A, database="other"), "postgresql://ann@a:1/other")


def test_what_sqlite_has_no_use_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    DBConfig(port=5433, hots="db.example")
    assert "port, hots" in caplog.text


@pytest.mark.parametrize(
    "keywords",
    [
        {"host": "127.0.0.1", "port": 1, "password": PASSWORD},  # nobody answers at port 1
        {"url": f"postgresql://u:{SPELLED}@127.0.0.1:1/d"},
        {"url": f"postgresql://u:{SPELLED}@127.0.0.1:1/d?password={SPELLED}&sslpassword={SPELLED}", "user": "v"},
        {"url": f"postgresql://u:{PASSWORD.replace('/', '')}@127.0.0.1:1/d"},
        {"url": f"mysql://u:{PASSWORD.replace('/', '')}@127.0.0.1:1/d"},
    ],
)
def test_the_password_is_never_shown(
    keywords: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsmworkflow.store.postgres_server.OPEN_SECONDS", 0.0)
    caplog.set_level(logging.DEBUG)
    shown = ""
    try:
        config = DBConfig(**keywords)
        shown = f"{config!r} {config} {config.url} {config.store!r} {config.store.url}"
        asyncio.run(asyncio.wait_for(config.setup(), PATIENCE))
    except Exception as error:
        raised: BaseException | None = error
        while raised is not None:
            shown += f"{raised!r} {raised}"
            raised = raised.__cause__ or raised.__context__
    assert "s3cret" not in shown + caplog.text


# -- opened and closed -----------------------------------------------------------------------------------------------


def config_of(url: str, **keywords: Any) -> DBConfig:
    """The store of a test, named by keywords where it is PostgreSQL."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return DBConfig(url=url)
    host = parse_qs(parts.query).get("host", [parts.hostname])[0]
    return DBConfig(
        host=host, port=parts.port, name=parts.path[1:], user=parts.username, password=parts.password, **keywords
    )


async def sessions(url: str) -> int:
    """How many connections the database of `url` has, beside the one that asks."""
    connection = await asyncpg.connect(url)
    try:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return int(await connection.fetchval(asked))
    finally:
        await connection.close()


async def none_left(url: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while await sessions(url):
            await asyncio.sleep(0.02)


async def works(config: DBConfig) -> None:
    """The store answers, and so does the pool where there is one."""
    assert await config.store.load("w", "no such key") is None
    if config.url.startswith("postgresql"):
        assert config.pool is not None
        assert await config.pool.fetchval("SELECT 1") == 1
    else:
        assert config.pool is None


def test_it_is_used_under_one_asyncio_run_after_another(durable_url: str) -> None:
    config = config_of(durable_url)

    async def use() -> None:
        await config.setup()
        await config.setup()
        await works(config)
        await config.close()
        assert config.pool is None
        await config.close()
        await config.init_db()
        await works(config)
        await config.close()

    for _ in range(3):
        asyncio.run(use())
        assert config.pool is None


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # aiosqlite's: its loop is gone
def test_a_loop_that_ended_without_close_holds_up_nobody(durable_url: str) -> None:
    config = config_of(durable_url)

    async def leave_open() -> None:
        await config.setup()
        await works(config)
        await config.acquire()

    for _ in range(3):
        asyncio.run(leave_open())
    assert config.pool is None

    async def then() -> None:
        worker = await config.acquire()
        await works(config)
        assert worker.store is config.store
        await config.release()
        if durable_url.startswith("postgresql"):
            await none_left(durable_url)

    asyncio.run(then())


async def test_fifty_machines_open_once_and_the_last_one_closes(
    durable_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(durable_url)
    kind = type(config.store)
    calls: list[str] = []
    for name in ("open", "close"):
        original = getattr(kind, name)

        async def counted(self: Any, *, name: str = name, original: Any = original) -> None:
            if name == "close" or not self.opened:
                calls.append(name)
            await original(self)

        monkeypatch.setattr(kind, name, counted)

    async def use() -> str:
        worker = await config.acquire()
        await asyncio.sleep(0.001)
        await works(config)
        token = worker.token
        await config.release()
        return token

    assert len(set(await asyncio.gather(*[use() for _ in range(50)]))) == 1
    assert calls == ["open", "close"]
    assert config.pool is None
    with pytest.raises(StoreError, match="not open"):
        await config.store.load("w", "k")
    if durable_url.startswith("postgresql"):
        await none_left(durable_url)


def test_event_loops_of_several_threads_do_not_disturb_each_other(durable_url: str) -> None:
    config = config_of(durable_url)

    async def use() -> None:
        for _ in range(3):
            await config.acquire()
            await works(config)
            await config.release()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(asyncio.run, use()) for _ in range(8)]:
            done.result()


async def test_what_the_user_opened_only_close_closes(durable_url: str) -> None:
    async with config_of(durable_url) as config:
        pool = config.pool
        worker = await config.acquire()
        await config.release()
        assert worker.token == ""
        assert config.pool is pool
        assert await config.store.owners() == []
        await works(config)
    assert config.pool is None


async def test_close_leaves_machines_at_work_alone(durable_url: str) -> None:
    config = config_of(durable_url)
    await config.setup()
    await config.acquire()
    await config.close()
    await works(config)
    await config.release()
    assert config.pool is None
    with pytest.raises(StoreError, match="not open"):
        await config.store.load("w", "k")


async def test_a_release_too_many_is_none(sqlite_url: str) -> None:
    config = config_of(sqlite_url)
    await config.release()
    await config.acquire()
    await works(config)
    await config.release()


async def test_cancelled_at_any_await_nothing_stays_open(durable_url: str) -> None:
    """The n-th turn of the event loop, for every n, until acquire and release have gone through uncancelled."""
    config = config_of(durable_url)

    async def use() -> None:
        await config.acquire()
        try:
            await asyncio.sleep(0)
        finally:
            await config.release()

    for turns in range(1, 400):
        task = asyncio.create_task(use())
        for _ in range(turns):
            await asyncio.sleep(0 if turns % 3 else 0.0002)
        if task.done():
            break
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await asyncio.wait_for(use(), PATIENCE)
    use_of = config._uses[asyncio.get_running_loop()]
    assert (use_of.users, use_of.opened, use_of.worker) == (0, False, None)


async def test_a_store_that_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    config = DBConfig(url=f"sqlite:///{tmp_path}/no/such/folder/x.db")
    for _ in range(2):
        with pytest.raises(StoreError):
            await config.acquire()
        with pytest.raises(StoreError):
            await config.setup()
    use = config._uses[asyncio.get_running_loop()]
    assert (use.users, use.opened, use.kept) == (0, False, False)
    for thread in threading.enumerate():  # the driver ends its threads a moment after it has answered
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5)


# -- PostgreSQL's pool -----------------------------------------------------------------------------------------------


async def test_further_keywords_go_to_the_pool(postgres_url: str) -> None:
    config = config_of(postgres_url, min_size=2, max_size=3, server_settings={"application_name": "mine"})
    async with config:
        assert config.pool is not None
        assert (config.pool.get_min_size(), config.pool.get_max_size()) == (2, 3)
        assert await config.pool.fetchval("SHOW application_name") == "mine"


def test_an_unknown_keyword_is_refused_at_once(postgres_url: str) -> None:
    with pytest.raises(StoreError, match="hots"):
        config_of(postgres_url, hots="db.example")


async def test_a_password_with_special_characters_comes_through(postgres_url: str) -> None:
    role = f"fsm_{uuid.uuid4().hex}"
    async with config_of(postgres_url) as admin:
        assert admin.pool is not None
        await admin.pool.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    parts = urlsplit(postgres_url)
    user = f"{role}:{SPELLED}@"
    async with DBConfig(url=parts._replace(netloc=user + parts.netloc.rpartition("@")[2]).geturl()) as config:
        assert config.pool is not None
        assert await config.pool.fetchval("SELECT current_user") == role
    execute(postgres_url, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


async def test_the_programs_of_the_first_system_close_the_pool_themselves(postgres_url: str) -> None:
    config = config_of(postgres_url)
    await config.setup()
    for _ in range(3):
        if config.pool:
            await config.pool.close()
        assert config.pool is None
        await config.acquire()  # as run_workflow() does
        await works(config)
        await config.release()
        await works(config)  # the user opened it
    await config.close()


LEFT_OPEN = """
    import asyncio, sys
    from fsmworkflow.settings import DBConfig

    async def main():
        db_config = DBConfig(url=sys.argv[1])
        await db_config.init_db()
        await db_config.acquire()
        await db_config.store.load("w", "k")

    asyncio.run(main())
    print("ended")
"""


def test_a_program_that_never_closes_exits(durable_url: str) -> None:
    program = [sys.executable, "-c", textwrap.dedent(LEFT_OPEN), durable_url]
    root = Path(__file__).parent.parent
    done = subprocess.run(program, timeout=PATIENCE, capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


# -- the table of the first FSM-Workflow -----------------------------------------------------------------------------

OLD_TABLE = """
    CREATE TABLE workflow_states (
        workflow_id UUID PRIMARY KEY,
        workflow_name TEXT NOT NULL,
        current_state TEXT NOT NULL,
        context JSONB NOT NULL,
        completed BOOLEAN NOT NULL DEFAULT FALSE,
        created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
        updated_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP
    )
"""
FOUND = {"text": "ä\U0001f600", "n": [1, 2.5, None, True], "$date": "kept", "big": 2**70, "long": "x" * 5_000}
OLD_ROWS: list[tuple[str, str, dict[str, Any], bool, dict[str, Any] | None]] = [
    # workflow, state, context as it was written, completed, the data that is taken over
    ("never resumed", "b", {"data": FOUND}, False, FOUND),
    ("resumed once", "b", {"data": {"data": FOUND}}, False, FOUND),
    ("resumed often", "c", {"data": {"data": {"data": {"data": {"data": FOUND}}}}}, False, FOUND),
    ("empty", "a", {"data": {}}, False, {}),
    ("empty, resumed", "a", {"data": {"data": {}}}, False, {}),
    ("more beside data", "b", {"data": {"data": {"x": 1}, "y": 2}}, False, {"data": {"x": 1}, "y": 2}),
    ("data that is no dict", "b", {"data": {"data": [1]}}, False, {"data": [1]}),
    ("done", "c", {"data": FOUND}, True, None),
]


async def old_rows(url: str, rows: list[tuple[str, str, dict[str, Any], bool, Any]] = OLD_ROWS) -> dict[str, str]:
    """Makes the table with these rows. Returns the key of each workflow's row."""
    connection = await asyncpg.connect(url)
    keys = {row[0]: str(uuid.uuid4()) for row in rows}
    try:
        await connection.execute(OLD_TABLE)
        statement = (
            "INSERT INTO workflow_states (workflow_id, workflow_name, current_state, context, completed, created_at)"
            " VALUES ($1, $2, $3, $4, $5, to_timestamp(1000 + $6))"
        )
        for number, (name, state, context, completed, _) in enumerate(rows):
            await connection.execute(statement, keys[name], name, state, json.dumps(context), completed, number)
    finally:
        await connection.close()
    return keys


async def old_table(url: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch("SELECT * FROM workflow_states ORDER BY workflow_id")
    finally:
        await connection.close()


async def test_unfinished_runs_of_the_first_system_are_taken_over_once(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fsmworkflow")
    keys = await old_rows(postgres_url)
    before = await old_table(postgres_url)
    config = config_of(postgres_url)
    await config.init_db()
    runs = await config.store.list(workflow=None, status=None, state=None, after=0, many=100)
    assert [run.workflow for run in runs] == [row[0] for row in OLD_ROWS if not row[3]]  # the oldest first
    for (name, state, _, _, data), run in zip(OLD_ROWS, runs, strict=False):
        assert (run.key, run.active, run.status) == (keys[name], {state: Active(0)}, "running")
        assert run.data == data
        assert (run.structure, run.definition, run.version, run.owner, run.epoch) == ("", 1, 0, None, 0)
        assert run.due is not None
        assert run.due <= config.store.now()
    assert [round(run.created) for run in runs] == [1000 + number for number in range(7)]
    assert "7 unfinished runs" in caplog.text
    assert config.pool is not None
    assert await config.pool.fetchval("SELECT count(DISTINCT xmin::text) FROM fsm_runs") == 1  # in one transaction
    await config.close()
    caplog.clear()
    async with config_of(postgres_url) as again:
        await again.init_db()
        assert "unfinished" not in caplog.text
        assert len(await again.store.list(workflow=None, status=None, state=None, after=0, many=100)) == 7
    assert await old_table(postgres_url) == before


async def test_sixteen_at_once_take_nothing_twice(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fsmworkflow")
    await old_rows(postgres_url, [(f"w{n}", "a", {"data": {"n": n}}, False, None) for n in range(200)])
    configs = [config_of(postgres_url) for _ in range(16)]
    await asyncio.gather(*[config.init_db() for config in configs])
    runs = await configs[0].store.list(workflow=None, status=None, state=None, after=0, many=1_000)
    assert sorted(run.workflow for run in runs) == sorted(f"w{n}" for n in range(200))
    taken = [record.args[0] for record in caplog.records if "taken over" in record.msg and record.args]  # type: ignore[index]
    assert sum(taken) == 200  # type: ignore[arg-type]
    await asyncio.gather(*[config.close() for config in configs])


async def test_a_row_that_cannot_be_taken_holds_up_no_other(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    odd: list[tuple[str, str, Any, bool, Any]] = [
        ("too deep", "a", {"data": {"x": deep}}, False, None),
        ("no dict", "a", [1], False, None),
        ("good", "a", {"data": {"x": 1}}, False, None),
    ]
    keys = await old_rows(postgres_url, odd)
    async with config_of(postgres_url) as config:
        await config.init_db()
        runs = await config.store.list(workflow=None, status=None, state=None, after=0, many=10)
    assert [run.workflow for run in runs] == ["good"]
    assert keys["too deep"] in caplog.text
    assert keys["no dict"] in caplog.text


async def test_another_table_of_that_name_is_left_alone(postgres_url: str) -> None:
    execute(postgres_url, "CREATE TABLE workflow_states (workflow_id int, workflow_name text)")
    async with config_of(postgres_url) as config:
        await config.init_db()
        assert await config.store.list(workflow=None, status=None, state=None, after=0, many=10) == []


async def test_a_run_that_went_on_is_not_taken_over_again(postgres_url: str) -> None:
    keys = await old_rows(postgres_url, OLD_ROWS[:1])
    async with config_of(postgres_url) as config:
        await config.init_db()
        worker = await config.acquire()
        run = await worker.claim_one("never resumed", keys["never resumed"])
        assert run is not None
        assert run.state == "b"
        await config.store.release(run)
        await config.release()
        await config.init_db()
        again = await config.store.load("never resumed", keys["never resumed"])
        assert again is not None
        assert (again.id, again.epoch) == (run.id, run.epoch)


async def test_reset_deletes_all_runs(durable_url: str) -> None:
    from fsmworkflow.codec import Codec
    from fsmworkflow.records import Run

    async with config_of(durable_url) as config:
        run = Run(workflow="w", key="k", active={"a": Active(0)}, fields=Codec().start({"x": 1}), due=1.0)
        await config.store.create(run)
        await config.reset_db()
        assert await config.store.load("w", "k") is None
