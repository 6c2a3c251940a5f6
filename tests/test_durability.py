"""What becomes of the files on bad days: full disks, folders that cannot be written, damage, newer versions, clocks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.model import BreakerState
from engadi_gateway.store.errors import UnavailableError
from engadi_gateway.store.journal import MIGRATIONS
from tests.fakes import Reply, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running, settings_for, token
from tests.processes import PYTHON, ROOT, environment_of, ini_of, started

BASE = "/api/v1/gateway"
ROUTE = {"path_pattern": "/x/*", "target_service": "auth", "is_public": True}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """To the last byte; the file whose deletion makes room again."""
    filler = disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (4096, 1):
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"x" * size)
    os.close(descriptor)
    return filler


async def _health(gateway: Gateway) -> tuple[str, str]:
    page = json_of(await ask(gateway.port, "GET", "/health"))
    return page["status"], page["request_log"]["status"]


async def _until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not come about")


def _is_whole(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok")


# full disks


def test_a_disk_that_fills_stops_no_traffic_and_all_goes_on_when_there_is_room(small_disk: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(small_disk, auth) as gateway:
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            filler = fill(small_disk)
            for _ in range(50):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            await _until(lambda: gateway.journal.stats().rows_failed > 0)
            assert await _health(gateway) == ("degraded", "failing")
            refused = await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=ROUTE)
            assert (refused.status, json_of(refused)["code"]) == (503, "store_unavailable")
            assert "disk" in json_of(refused)["detail"], "who asks is told why"
            assert (await ask(gateway.port, "GET", "/x/1")).status == 404, "what could not be kept does not hold"
            for name in ("logs", "errors", "stats", "performance", "metrics"):
                told = await ask(gateway.port, "GET", f"{BASE}/{name}", bearer=ADMIN)
                assert (told.status, json_of(told)["request_log"]) == (200, "failing"), name
            filler.unlink()
            made = await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=ROUTE)
            assert made.status == 201
            assert (await ask(gateway.port, "GET", "/x/1")).status == 200
            await _until(lambda: not gateway.journal.stats().last_error)
            assert await _health(gateway) == ("healthy", "ok")
        async with upstream() as auth, running(small_disk, auth) as gateway:
            assert (await ask(gateway.port, "GET", "/x/1")).status == 200
        assert _is_whole(small_disk / "config.db")
        assert _is_whole(small_disk / "config-log.db")

    asyncio.run(run())


@pytest.mark.parametrize("had_one", [True, False], ids=["a log is there", "no log yet"])
def test_a_full_log_disk_at_the_start_takes_no_routes_away(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, had_one: bool
) -> None:
    log = str(small_disk / "log.db")

    async def run() -> None:
        async with upstream() as auth:
            if had_one:
                async with running(tmp_path, auth, database_log_url=log) as gateway:
                    assert (await ask(gateway.port, "GET", "/api/v1/auth/1")).status == 200
            filler = fill(small_disk)
            async with running(tmp_path, auth, database_log_url=log) as gateway:
                assert await _health(gateway) == ("degraded", "failing")
                assert (await ask(gateway.port, "GET", "/api/v1/auth/2")).status == 200
                await _until(lambda: gateway.journal.stats().rows_failed == 2)  # that of /health, too
                filler.unlink()
                assert (await ask(gateway.port, "GET", "/api/v1/auth/3")).status == 200
                reply = await ask(gateway.port, "GET", f"{BASE}/logs", bearer=ADMIN)
                paths = [row["path"] for row in json_of(reply)["items"] if "auth" in row["path"]]
                assert paths == (["/api/v1/auth/3", "/api/v1/auth/1"] if had_one else ["/api/v1/auth/3"])
                assert await _health(gateway) == ("healthy", "ok")
        assert _is_whole(Path(log))

    with caplog.at_level(logging.ERROR, "engadi"):
        asyncio.run(run())
    assert "no row is written until this ends" in caplog.text


def test_a_full_disk_under_the_configuration_is_said_and_is_no_bad_configuration(small_disk: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            async with running(small_disk, auth):
                pass
            fill(small_disk)
            with pytest.raises(UnavailableError, match="is the disk full"):
                await Gateway(settings_for(small_disk, {"auth": auth.url})).start()

    asyncio.run(run())


def test_a_file_that_must_not_grow_stops_no_traffic(tmp_path: Path) -> None:
    """The same without a disk of its own: the process may not write files beyond what they have."""

    async def run() -> None:
        async with upstream() as auth, started(tmp_path, ini_of(auth.url, "[log]\nflush_interval = 20ms\n")) as gateway:
            pid, port = gateway.process.pid, gateway.port
            for _ in range(5):
                assert (await ask(port, "GET", "/api/v1/auth/x")).status == 200
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            for _ in range(20):
                assert (await ask(port, "GET", "/api/v1/auth/x")).status == 200
            await gateway.wait_for("rows are lost until this ends")
            refused = await ask(port, "POST", f"{BASE}/routes", bearer=ADMIN, body=ROUTE)
            assert (refused.status, json_of(refused)["code"]) == (503, "store_unavailable")
            page = json_of(await ask(port, "GET", "/health"))
            assert (page["status"], page["request_log"]["status"]) == ("degraded", "failing")
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            assert (await ask(port, "POST", f"{BASE}/routes", bearer=ADMIN, body=ROUTE)).status == 201
            assert (await ask(port, "GET", f"{BASE}/logs", bearer=ADMIN)).status == 200
            assert json_of(await ask(port, "GET", "/health"))["request_log"]["status"] == "ok"
            await gateway.wait_for("rows are written again; ")
            assert int(gateway.lines[-1].rsplit("; ", 1)[1].split()[0]) > 0

    asyncio.run(run())


STALLING = "[log]\nwhen_full = stall\nqueue_rows = 2\nflush_rows = 1\n[gateway]\ndrain_timeout = 1s\n"


def test_where_rows_must_not_be_lost_requests_wait_for_a_full_disk(small_disk: Path) -> None:
    async def run() -> None:
        values = {"log_when_full": "stall", "log_queue_rows": 5, "log_flush_rows": 1}
        async with upstream() as auth, running(small_disk, auth, **values) as gateway:
            asked = [asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/0"))]
            await asked[0]
            await gateway._console.flushed()
            filler = fill(small_disk)
            while not gateway._recorder.is_stalled:
                asked.append(asyncio.create_task(ask(gateway.port, "GET", f"/api/v1/auth/{len(asked)}")))
                await _until(lambda: asked[-1].done() or gateway._recorder.is_stalled)
            late = [asyncio.create_task(ask(gateway.port, "GET", "/health")) for _ in range(3)]
            await asyncio.sleep(0.2)
            assert [task.done() for task in late] == [False] * 3
            stats = gateway.journal.stats()
            assert (stats.rows_failed, stats.rows_shed) == (0, 0)
            assert "is the disk full" in stats.last_error or "disk is full" in stats.last_error
            filler.unlink()
            assert {reply.status for reply in await asyncio.wait_for(asyncio.gather(*asked, *late), 20)} == {200}
            reply = await ask(gateway.port, "GET", f"{BASE}/logs?path=/api/v1/auth/*", bearer=ADMIN)
            paths = [row["path"] for row in json_of(reply)["items"]]
            assert paths == [f"/api/v1/auth/{number}" for number in reversed(range(len(asked)))]
            assert gateway.journal.stats().rows_failed == 0

    asyncio.run(run())


def test_a_stop_has_an_end_though_requests_wait_for_the_disk(tmp_path: Path) -> None:
    async def only_head(port: int) -> bytes:
        async with raw_client(port) as client:
            await client.send(b"HEAD /health HTTP/1.1\r\nHost: h\r\n\r\n")
            return await client.rest()

    async def run() -> None:
        async with upstream() as auth, started(tmp_path, ini_of(auth.url, STALLING)) as gateway:
            resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            asked = [asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/x")) for _ in range(4)]
            await gateway.wait_for("rows wait, and requests once the queue is full, until this ends")
            await _until(lambda: sum(task.done() for task in asked) >= 2)
            asked.append(asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/x")))
            without_body = asyncio.create_task(only_head(gateway.port))
            await asyncio.sleep(0.2)
            gateway.signal(signal.SIGTERM)
            assert await gateway.code() == 0
            raw = await without_body
            assert (raw[:13], raw[raw.index(b"\r\n\r\n") :]) == (b"HTTP/1.1 503 ", b"\r\n\r\n")
            answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
            told = [answer for answer in answers if isinstance(answer, Reply) and answer.status == 503]
            assert answers[-1] in told and json_of(told[-1])["code"] == "draining", "it waited"
            served = len(answers) - len(told)
            assert any(f" {served} rows are lost, they could not be written" in line for line in gateway.lines)
            assert gateway.lines[-1].endswith("stopped")

    asyncio.run(run())


# places that cannot be written


def _refused(folder: Path, *arguments: str, **environment: str) -> str:
    """What a start says that ends with 78: one line."""
    done = subprocess.run(
        [PYTHON, str(ROOT / "run.py"), *arguments],
        cwd=folder, env=environment_of(PORT="0", ENGADI_SERVER_HOST="127.0.0.1", **environment),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if not line.startswith("no gateway.ini")]
    assert (done.returncode, len(said)) == (78, 1), done.stderr
    return said[0]


@pytest.mark.parametrize(
    ("variable", "named"),
    [("DATABASE_URL", "database.url"), ("ENGADI_DATABASE_LOG_URL", "database.log_url"), ("SECRET_KEY", "database.url")],
)  # fmt: skip
@pytest.mark.parametrize("arguments", [(), ("--check",)], ids=["serve", "check"])
def test_a_folder_that_cannot_be_written_is_said(
    small_disk: Path, tmp_path: Path, variable: str, named: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "ro").mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(tmp_path / "ro")], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path / "ro")], check=True)
        environment = {variable: "sqlite:///ro/here.db"}
        if variable == "SECRET_KEY":
            environment = {"SECRET_KEY": "", "DATABASE_URL": "sqlite:///ro/engadi_gateway.db"}
        line = _refused(tmp_path, *arguments, **environment)
    finally:
        subprocess.run(["umount", str(tmp_path / "ro")], check=True)
    assert line == f"{named}: cannot write in {tmp_path}/ro: Read-only file system"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_said(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o555)
    line = _refused(tmp_path, DATABASE_URL="sqlite:///theirs/here.db")
    assert line == f"database.url: cannot write in {tmp_path}/theirs: Permission denied"


def test_a_development_key_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    command = [PYTHON, str(ROOT / "run.py"), "token", "--sub", "a"]
    environment = environment_of(SECRET_KEY="", PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, preexec_fn=limited, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 78
    assert "engadi_gateway.db.secret: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "made a development key" in subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stderr  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["engadi_gateway.db.secret"]


@pytest.mark.parametrize("content", [b"half a key", bytes(range(128, 192))], ids=["half", "no text"])
def test_a_development_key_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "engadi_gateway.db.secret").write_bytes(content)
    assert "holds no whole key; delete it, and another is made" in _refused(tmp_path, SECRET_KEY="")


# damage and versions


def test_a_corrupt_log_is_moved_aside_and_said_on_stderr_and_in_health(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "engadi_gateway-log.db").write_bytes(b"not a database at all, and not a short one" * 200)
        async with upstream() as auth, started(tmp_path, ini_of(auth.url)) as gateway:
            (line,) = [line for line in gateway.lines if "corrupt" in line]
            aside = Path(line.partition("moved to ")[2].partition(",")[0])
            assert (tmp_path / aside).read_bytes().startswith(b"not a database at all")
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            rows = json_of(await ask(gateway.port, "GET", f"{BASE}/logs", bearer=ADMIN))["items"]
            assert [row["path"] for row in rows] == ["/api/v1/auth/x"]
            page = json_of(await ask(gateway.port, "GET", "/health"))
            assert (page["status"], page["request_log"]["status"]) == ("degraded", "replaced")
            assert str(aside) not in str(page), "names and states only"

    asyncio.run(run())


def test_a_configuration_that_somebody_removed_is_not_written_to_where_nobody_finds_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            made = await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=ROUTE)
            (tmp_path / "config.db").rename(tmp_path / "config.kept")
            refused = await ask(gateway.port, "PUT", f"{BASE}/config/cors", bearer=ADMIN, body={"max_age": 5})
            assert (refused.status, json_of(refused)["code"]) == (503, "store_unavailable")
            assert json_of(refused)["detail"].endswith("removed or replaced while in use; this needs a restart")
            assert (made.status, (await ask(gateway.port, "GET", "/x/1")).status) == (201, 200)
            (tmp_path / "config.kept").rename(tmp_path / "config.db")
            kept = await ask(gateway.port, "PUT", f"{BASE}/config/cors", bearer=ADMIN, body={"max_age": 5})
            assert kept.status == 200

    asyncio.run(run())


def test_two_corrupt_logs_in_one_second_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101T000000Z")

    async def run() -> None:
        async with upstream() as auth:
            for content in (b"first", b"second", b"third"):
                (tmp_path / "config-log.db").write_bytes(content * 1000)
                async with running(tmp_path, auth):
                    pass
        kept = {path.name: path.read_bytes()[:6] for path in tmp_path.iterdir() if ".corrupt-" in path.name}
        stem = "config-log.db.corrupt-20260101T000000Z"
        assert kept == {stem: b"firstf", f"{stem}-2": b"second", f"{stem}-3": b"thirdt"}

    asyncio.run(run())


@pytest.mark.parametrize(("name", "known"), [("engadi_gateway.db", 1), ("engadi_gateway-log.db", len(MIGRATIONS))])
def test_a_database_of_a_newer_version_is_refused(tmp_path: Path, name: str, known: int) -> None:
    async def run() -> None:
        async with upstream() as auth, started(tmp_path, ini_of(auth.url)):
            pass

    asyncio.run(run())
    with contextlib.closing(sqlite3.connect(tmp_path / name)) as connection:
        connection.execute("PRAGMA user_version=99")
    line = _refused(tmp_path)
    assert name in line
    assert f"made by a newer version (schema 99, this one knows {known})" in line


# clocks

STEPS_S = (0.0, 86_400.0, -172_800.0, 3e7, -3e7, 1.0)


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the world's clock so far off; the monotonic one goes on."""
    real, step = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + step[0])
    return lambda step_s: step.__setitem__(0, step_s)


def test_a_clock_that_is_set_gives_nobody_tokens_and_takes_none(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, limits_per_ip=len(STEPS_S)) as gateway:
            for number, step_s in enumerate(STEPS_S, 1):
                set_clock(step_s)
                reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
                assert (reply.status, reply.one("x-ratelimit-remaining")) == (200, str(len(STEPS_S) - number))
                assert 0 <= int(reply.one("x-ratelimit-reset")) - time.time() <= 3601
                assert parsedate_to_datetime(reply.one("date")).timestamp() == pytest.approx(time.time(), abs=2)
            for step_s in STEPS_S:
                set_clock(step_s)
                refused = await ask(gateway.port, "GET", "/api/v1/auth/x")
                assert refused.status == 429
                assert 1 <= int(refused.one("retry-after")) <= 3600 / len(STEPS_S) + 1
                assert 0 <= int(refused.one("x-ratelimit-reset")) - time.time() <= 3601

    asyncio.run(run())


def test_a_clock_that_is_set_neither_opens_nor_closes_a_circuit(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, upstream_retry_count=0) as gateway:
            await auth.stop()
            for step_s in STEPS_S[:5]:
                set_clock(step_s)
                assert json_of(await ask(gateway.port, "GET", "/api/v1/auth/x"))["code"] == "connect_refused"
            for step_s in STEPS_S:
                set_clock(step_s)
                refused = await ask(gateway.port, "GET", "/api/v1/auth/x")
                assert json_of(refused)["code"] == "breaker_open"
                assert 1 <= int(refused.one("retry-after")) <= 60
            await auth.start()

    asyncio.run(run())


def test_a_circuit_closes_in_its_time_though_the_clock_is_set_back(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    async def run() -> None:
        settings = {"upstream_retry_count": 0, "breaker_failure_threshold": 1, "breaker_timeout": 0.05}
        async with upstream() as auth, running(tmp_path, auth, **settings) as gateway:
            await auth.stop()
            assert json_of(await ask(gateway.port, "GET", "/api/v1/auth/x"))["code"] == "connect_refused"
            set_clock(-3e7)
            await auth.start()
            async with asyncio.timeout(20):
                while (await ask(gateway.port, "GET", "/api/v1/auth/x")).status != 200:
                    await asyncio.sleep(0.01)
            set_clock(3e7)
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert gateway.breakers.of("auth").state is BreakerState.CLOSED

    asyncio.run(run())


def test_a_token_is_judged_by_the_clock_as_it_is(tmp_path: Path, set_clock: Callable[[float], None]) -> None:
    async def run() -> None:
        bearer = token(ttl_s=600)
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            for step_s in (0.0, 3600.0, 0.0, -3600.0, 629.0, 631.0, 0.0):
                set_clock(step_s)
                reply = await ask(gateway.port, "GET", "/api/v1/content/x", bearer=bearer)
                assert reply.status == (401 if step_s > 630 else 200)

    asyncio.run(run())


def test_a_log_of_a_clock_that_is_set_is_in_the_order_of_what_happened(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            for number, step_s in enumerate(STEPS_S):
                set_clock(step_s)
                await ask(gateway.port, "GET", f"/api/v1/auth/{number}")
            set_clock(0.0)
            rows = json_of(await ask(gateway.port, "GET", f"{BASE}/logs", bearer=ADMIN))["items"]
            assert [row["path"][-1] for row in rows] == list("543210")
            assert all(0 <= row["response_time"] < 60_000 for row in rows)

    asyncio.run(run())


def test_a_clock_that_is_set_ahead_takes_no_rows_away(
    tmp_path: Path, set_clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engadi_gateway.gateway.upkeep._PRUNE_EVERY_S", 0.001)

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, log_retention_days=3) as gateway:
            await ask(gateway.port, "GET", "/api/v1/auth/before")
            prune, asked = gateway.journal.prune, []

            async def counted(now_ms: int, old_by_ms: int) -> None:
                await prune(now_ms, old_by_ms)
                asked.append(now_ms)

            set_clock(30 * 86_400.0)
            monkeypatch.setattr(gateway.journal, "prune", counted)
            await _until(lambda: len(asked) > 5)
            set_clock(0.0)
            rows = json_of(await ask(gateway.port, "GET", f"{BASE}/logs", bearer=ADMIN))["items"]
            assert [row["path"] for row in rows] == ["/api/v1/auth/before"]
            hours = json_of(await ask(gateway.port, "GET", f"{BASE}/stats", bearer=ADMIN))
            assert hours["total_requests"] == 2, "the request itself is not yet over"

    asyncio.run(run())
