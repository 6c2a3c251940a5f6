"""The process from its start to its end: signals that come before it serves, and reloads that go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engadi_gateway import Gateway, Settings
from engadi_gateway.cli.serve import Process
from engadi_gateway.model import CorsPolicy
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.changes import Seed
from tests.fakes import upstream
from tests.harness import ADMIN, ask, json_of, settings_for
from tests.processes import ini_of, started

WAITS = "waiting at most"


@contextlib.contextmanager
def a_predecessor(folder: Path) -> Iterator[Callable[[], None]]:
    """Who still has the database; lets it go when it is told to, or in the end."""
    catalog = Catalog(str(folder / "engadi_gateway.db"))
    catalog.open(Seed({}, (), CorsPolicy(), ""))
    try:
        yield catalog.close
    finally:
        catalog.close()


@contextlib.contextmanager
def a_supervisor(folder: Path) -> Iterator[Callable[[], str]]:
    """Gives, one by one, the first lines of what systemd would be told on `notify.sock`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify.sock"))
        notify.settimeout(20)
        yield lambda: notify.recv(1024).decode().partition("\n")[0]


@pytest.fixture
def collector_as_it_was() -> Iterator[None]:
    """A process sets it for itself; the tests share one with it."""
    if sys.implementation.name != "cpython":
        yield  # there it sets nothing
        return
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


# before it serves


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_start_that_waits_can_be_stopped_and_ends_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    environment = {"NOTIFY_SOCKET": "notify.sock", "ENGADI_SERVER_UNIX_SOCKET": "gw.sock"}

    async def run() -> None:
        with a_predecessor(tmp_path), a_supervisor(tmp_path) as told:
            async with started(tmp_path, ini_of("http://127.0.0.1:1"), since=WAITS, **environment) as gateway:
                assert (tmp_path / "gw.sock").is_socket()
                gateway.signal(number)
                assert await gateway.code() == 0, gateway.lines
                assert gateway.lines[-1].endswith(" stopped")
                assert "Traceback" not in "".join(gateway.lines)
            assert await asyncio.to_thread(told) == "STOPPING=1"
        assert not (tmp_path / "gw.sock").exists()

    asyncio.run(run())


def test_a_start_that_waits_is_not_ended_by_the_other_signals_and_reloads_when_it_serves(tmp_path: Path) -> None:
    async def run() -> None:
        with a_predecessor(tmp_path) as let_go:
            async with started(tmp_path, ini_of("http://127.0.0.1:1"), since=WAITS) as gateway:
                (tmp_path / "gateway.ini").write_text(ini_of("http://127.0.0.1:1", "[cors]\nmax_age = 7s\n"))
                for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    gateway.signal(number)
                await gateway.wait_for('{"lifecycle": "starting"}')
                let_go()
                await gateway.wait_for("listening on")
                await gateway.wait_for("configuration reloaded")
                policy = await ask(gateway.port, "GET", "/api/v1/gateway/config/cors", bearer=ADMIN)
                assert json_of(policy)["max_age"] == 7

    asyncio.run(run())


# reloads that go wrong


@pytest.fixture
def signals_as_they_were() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("collector_as_it_was", "signals_as_they_were")
def test_a_reload_that_fails_as_nobody_foresaw_keeps_the_old_is_counted_and_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
    errors: list[Exception] = [RuntimeError("geheim"), UnicodeDecodeError("utf-8", b"geheim\xff", 6, 7, "no")]

    def read() -> Settings:
        raise errors.pop()

    async def run() -> None:
        async with upstream() as auth:
            gateway = Gateway(settings_for(tmp_path, {"auth": auth.url}))
            process = Process(gateway, read=read, taken=lambda settings: None, say=lambda text: None)
            serving = asyncio.create_task(process.run())
            with a_supervisor(tmp_path) as told:
                assert await asyncio.to_thread(told) == "READY=1"
                for count in (1, 2):
                    os.kill(os.getpid(), signal.SIGHUP)
                    assert [await asyncio.to_thread(told) for _ in range(2)] == ["RELOADING=1", "READY=1"]
                    assert gateway.state()["reloads"] == {"success": 0, "failure": count}
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                os.kill(os.getpid(), signal.SIGTERM)
                await serving

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "NOT reloaded, the old one stays: internal error UnicodeDecodeError\n" in caplog.text
    assert "in _reloaded" in caplog.text
    assert "geheim" not in caplog.text


@pytest.mark.parametrize(
    ("slip", "said"),
    [("", "SECRET_KEY_FILE: "), ("[jwt]\nalgorithms =\n", "jwt.algorithms: ")],
    ids=["a key file of random bytes", "no algorithm"],
)
def test_a_reload_with_what_cannot_be_is_refused_and_shows_no_key(tmp_path: Path, slip: str, said: str) -> None:
    key_file = tmp_path / "rotated.key"
    key_file.write_text("k" * 40)
    environment = {"ENGADI_JWT_SECRET_KEY_FILE": str(key_file), "NOTIFY_SOCKET": "notify.sock"}

    async def run() -> None:
        with a_supervisor(tmp_path) as told:
            async with upstream() as auth, started(tmp_path, ini_of(auth.url), **environment) as gateway:
                assert await asyncio.to_thread(told) == "READY=1"
                key_file.write_bytes(b"geheim" + bytes(range(128, 192)))
                (tmp_path / "gateway.ini").write_text(ini_of(auth.url, slip))
                gateway.signal(signal.SIGHUP)
                assert [await asyncio.to_thread(told) for _ in range(2)] == ["RELOADING=1", "READY=1"]
                await gateway.wait_for("NOT reloaded, the old one stays: ")
                assert said in gateway.lines[-1]
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                gateway.signal(signal.SIGTERM)
                assert await gateway.code() == 0
                assert "geheim" not in "".join(gateway.lines)

    asyncio.run(run())
