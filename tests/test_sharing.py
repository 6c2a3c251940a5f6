"""Several gateways over the same databases: in one process where that shows it, as processes where it matters."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.cli.commands import main
from engadi_gateway.errors import ConfigurationError, Fault, Reason, Refusal, RefusedError
from engadi_gateway.gateway import gateway as gateway_module
from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.gateway.sharing import LOOK_S, Sharing, when_free
from engadi_gateway.model import CorsPolicy, Route, Service, Snapshot
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.changes import Change, Seed
from engadi_gateway.store.codec import to_json
from engadi_gateway.store.errors import HeldError, StoreError
from engadi_gateway.store.locks import FileLock
from tests.fakes import OK, Reply, Seen, Upstream, Wire, upstream
from tests.harness import ADMIN, ask, json_of, settings_for
from tests.processes import Process, free_port, ini_of, started

BASE = "/api/v1/gateway"
NOW = "2026-01-01T00:00:00Z"
SEED = Seed({"auth": Service("auth", "http://127.0.0.1:1")}, (), CorsPolicy(), NOW)
ROUTE = Route("6f1b7a52-0000-4000-8000-000000000000", "/made/*", "auth", created_at=NOW, updated_at=NOW)
_DEADLINE_S = 20.0


def change(priority: int) -> Change:
    return Change("route", ROUTE.id, replace(ROUTE, priority=priority), "alice", "req", NOW)


class Served:
    """What a gateway does with snapshots; `refuses` are the revisions that it cannot serve."""

    def __init__(self, folder: Path, *, is_shared: bool = True) -> None:
        self.catalog = Catalog(str(folder / "config.db"), is_shared=is_shared)
        self.snapshot = self.catalog.open(SEED)
        self.taken: list[int] = []
        self.refuses: set[int] = set()
        self.fault: Exception = ConfigurationError([Fault("/routes", "no")])
        self.sharing = Sharing(self.catalog, lambda: self.snapshot.revision, self._take)

    async def _take(self, snapshot: Snapshot) -> None:
        if snapshot.revision in self.refuses:
            raise self.fault
        self.taken.append(snapshot.revision)
        self.snapshot = snapshot


@contextlib.contextmanager
def two_served(folder: Path) -> Iterator[tuple[Served, Served]]:
    one, two = Served(folder), Served(folder)
    try:
        yield one, two
    finally:
        one.catalog.close()
        two.catalog.close()


# a configuration that others write


def test_what_another_wrote_is_taken_whole_at_the_next_look(tmp_path: Path) -> None:
    async def run() -> None:
        with two_served(tmp_path) as (one, two):
            await two.sharing.look()
            assert two.taken == []
            kept = [await one.catalog.apply(change(number)) for number in (1, 2)]
            await two.sharing.look()
            await two.sharing.look()
            assert (two.taken, two.snapshot) == ([3], kept[-1])

    asyncio.run(run())


def test_whoever_writes_begins_with_the_newest_and_nobody_comes_between(tmp_path: Path) -> None:
    async def run() -> None:
        with two_served(tmp_path) as (one, two):
            order: list[str] = []

            async def write(served: Served, name: str) -> None:
                async with served.sharing.writing():
                    order.append(f"{name} reads {served.snapshot.revision}")
                    await asyncio.sleep(0.01)
                    served.snapshot = await served.catalog.apply(change(1))
                    order.append(f"{name} wrote {served.snapshot.revision}")

            await asyncio.gather(write(one, "a"), write(two, "b"), write(one, "a"), write(two, "b"))
            numbers = [int(said.split()[-1]) for said in order]
            assert numbers == [1, 2, 2, 3, 3, 4, 4, 5]
            assert [said.split()[0] for said in order[::2]] == [said.split()[0] for said in order[1::2]]

    asyncio.run(run())


@pytest.mark.parametrize(
    "fault",
    [ConfigurationError([Fault("/routes", "no")]), RefusedError(Refusal(Reason.CONFLICT, "twins")), TypeError("slip")],
    ids=["a setting", "twins", "a slip of ours"],
)
def test_what_cannot_be_served_keeps_the_old_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    async def run() -> None:
        with two_served(tmp_path) as (one, two):
            two.refuses.add(2)
            two.fault = fault
            await one.catalog.apply(change(1))
            for _ in range(3):
                await two.sharing.look()
            with pytest.raises(StoreError, match="cannot be served here"):
                async with two.sharing.writing():
                    raise AssertionError
            assert (two.snapshot.revision, len(caplog.messages)) == (1, 1)
            assert "revision 2 cannot be served here, the old one stays" in caplog.messages[0]
            assert ("Traceback" in caplog.text) == isinstance(fault, TypeError)
            await one.catalog.apply(change(2))
            await two.sharing.look()
            assert two.taken == [3]

    with caplog.at_level(logging.ERROR, "engadi"):
        asyncio.run(run())


class EnoughError(Exception):
    pass


def test_it_looks_for_ever_and_says_once_that_it_cannot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = Served(tmp_path)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            served.catalog.close()
        if len(slept) == 5:
            raise EnoughError

    with caplog.at_level(logging.ERROR, "engadi"), pytest.raises(EnoughError):
        asyncio.run(served.sharing.run(sleep))
    assert slept == [LOOK_S] * 5
    assert len(caplog.messages) == 1
    assert "closed" in caplog.messages[0]


def test_it_looks_on_whatever_goes_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise EnoughError

    class Odd:
        is_shared = True

        async def current_revision(self) -> int:
            raise ZeroDivisionError("nobody thought of it")

    sharing = Sharing(Odd(), lambda: 1, lambda snapshot: asyncio.sleep(0))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "engadi"), pytest.raises(EnoughError):
        asyncio.run(sharing.run(sleep))
    assert len(caplog.messages) == 1
    assert "cannot be read: nobody thought of it" in caplog.text
    assert "Traceback" in caplog.text


def test_who_is_alone_does_not_look(tmp_path: Path) -> None:
    served = Served(tmp_path, is_shared=False)
    asyncio.run(served.sharing.run())
    served.catalog.close()


# gateways over the same files


@contextlib.asynccontextmanager
async def pair(folder: Path, *upstreams: Upstream, **values: Any) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Two gateways; each has a port of its own, so that it can be told whom is asked."""
    services = {name: server.url for name, server in zip(("auth", "content"), upstreams, strict=False)}
    settings = settings_for(folder, services, server_reuse_port=True, **values)
    async with Gateway(settings) as one, Gateway(settings) as two:
        yield one, two


async def admin(port: int, method: str, path: str, **asked: Any) -> Reply:
    return await ask(port, method, BASE + path, bearer=ADMIN, **asked)


async def until(condition: Any) -> None:
    """Wait for what must come; the deadline is for the day that it does not."""
    deadline = time.monotonic() + _DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.02)


def test_a_write_reaches_the_other_gateway(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, pair(tmp_path, auth) as (one, two):
            body = {"path_pattern": "/made/*", "target_service": "auth", "is_public": True}
            made = json_of(await admin(one.port, "POST", "/routes", body=body))

            async def has_route() -> bool:
                return (await ask(two.port, "GET", "/made/x")).status == 200

            await until(has_route)
            assert (await admin(two.port, "DELETE", f"/routes/{made['id']}")).status == 204

            async def has_none() -> bool:
                return (await ask(one.port, "GET", "/made/x")).status == 404

            await until(has_none)
            assert one.configuration.snapshot == two.configuration.snapshot

    asyncio.run(run())


def test_a_route_whose_service_is_unknown_here_is_served_as_none_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = "/made/*: no URL for content, requests get 503"

    async def run() -> None:
        async with upstream() as auth:
            few, more = {"auth": auth.url}, {"auth": auth.url, "content": auth.url}
            async with (
                Gateway(settings_for(tmp_path, few, server_reuse_port=True)) as one,
                Gateway(settings_for(tmp_path, more, server_reuse_port=True)) as two,
            ):
                body = {"path_pattern": "/made/*", "target_service": "content", "is_public": True}
                made = json_of(await admin(two.port, "POST", "/routes", body=body))
                await one.configuration._sharing.look()
                refused = await ask(one.port, "GET", "/made/x")
                assert (refused.status, json_of(refused)["code"]) == (503, "no_target")
                assert caplog.messages.count(said) == 1
                for priority in (5, 6):
                    await admin(two.port, "PUT", f"/routes/{made['id']}", body={"priority": priority})
                    await one.configuration._sharing.look()
                mine, theirs = one.configuration.snapshot, two.configuration.snapshot
                assert mine == replace(theirs, services=mine.services)
                assert caplog.messages.count(said) == 1, "said already"

    with caplog.at_level(logging.WARNING, "engadi"):
        asyncio.run(run())


def _write_as_another_version(folder: Path, document: dict[str, Any]) -> None:
    with contextlib.closing(sqlite3.connect(folder / "config.db")) as connection, connection:
        number = connection.execute("SELECT max(number) + 1 FROM revision").fetchone()[0]
        connection.execute("INSERT OR REPLACE INTO cors_policy VALUES (1, ?)", (json.dumps(document),))
        connection.execute(
            "INSERT INTO revision VALUES (?, 'another', '', ?, 'cors', 'cors', NULL, NULL)", (number, NOW)
        )


def test_what_another_version_wrote_is_waited_out_and_a_later_good_one_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = to_json(CorsPolicy(enabled=True, allow_origins=("https://a.example",)))
    rule = {"limit_type": "per_ip", "max_requests": 5, "window_seconds": 10}

    async def run() -> None:
        async with upstream() as auth, pair(tmp_path, auth) as (one, _):
            _write_as_another_version(tmp_path, {**policy, "allow_private_network": True})

            async def is_said() -> bool:
                return len(caplog.messages) == 2

            await until(is_said)
            assert (await ask(one.port, "GET", "/api/v1/auth/x")).status == 200
            refused = await admin(one.port, "POST", "/config/rate-limits", body=rule)
            assert (refused.status, json_of(refused)["code"]) == (503, "store_unavailable")
            await asyncio.sleep(2 * LOOK_S)
            assert {message.rpartition(": ")[2] for message in caplog.messages} == {
                "this version cannot read the CORS policy"
            }
            assert len(caplog.messages) == 2, "once by each"
            _write_as_another_version(tmp_path, policy)

            async def is_taken() -> bool:
                snapshot = one.configuration.snapshot
                return snapshot.revision == 3 and snapshot.cors.enabled

            await until(is_taken)
            assert (await admin(one.port, "POST", "/config/rate-limits", body=rule)).status == 201

    with caplog.at_level(logging.ERROR, "engadi"):
        asyncio.run(run())


def test_if_match_is_held_against_what_the_other_wrote_and_no_part_is_lost(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, pair(tmp_path, auth) as (one, two):
            body = {"path_pattern": "/made/*", "target_service": "auth"}
            reply = await admin(one.port, "POST", "/routes", body=body)
            path, tag = f"/routes/{json_of(reply)['id']}", reply.one("etag")
            headers = {"If-Match": tag}
            # at once, before any look: the second sees what the first made, and the first what the second changed
            assert (await admin(two.port, "PUT", path, body={"priority": 5}, headers=headers)).status == 200
            assert (await admin(one.port, "PUT", path, body={"priority": 6}, headers=headers)).status == 412
            parts: list[dict[str, Any]] = [{"timeout": 9.5}, {"retry_count": 7}, {"is_public": True}, {"host": "a.b"}]
            replies = await asyncio.gather(
                *(admin((one, two)[number % 2].port, "PUT", path, body=part) for number, part in enumerate(parts))
            )
            assert [reply.status for reply in replies] == [200] * 4
            await one.configuration._sharing.look()
            route = json_of(await admin(one.port, "GET", path))
            assert [route[name] for part in parts for name in part] == [9.5, 7, True, "a.b"]
            assert route["priority"] == 5
            listed = json_of(await admin(two.port, "GET", "/config/revisions"))["items"]
            assert [item["number"] for item in listed] == list(range(len(listed), 0, -1))
            mine = [item for item in listed if item["subject"] == route["id"]]
            assert [item["before"] for item in mine] == [*(item["after"] for item in mine[1:]), None]

    asyncio.run(run())


def test_a_reload_looks_only_once_the_other_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what it has found good, and what it then follows, would be two things."""

    async def run() -> None:
        async with upstream() as auth, pair(tmp_path, auth) as (one, two):
            steps: list[str] = []
            has_looked, preview = asyncio.Event(), one.catalog.preview

            async def look(seed: Seed) -> Snapshot:
                steps.append("looked")
                has_looked.set()
                return await preview(seed)

            monkeypatch.setattr(one.catalog, "preview", look)
            async with two.configuration.writing():
                reloading = asyncio.create_task(one.reload(one.settings))
                with contextlib.suppress(TimeoutError):  # as long as a wrong one would take at the very most
                    await asyncio.wait_for(has_looked.wait(), 0.2)
                steps.append("written")
            await reloading
            assert steps == ["written", "looked"]

    asyncio.run(run())


def test_limits_and_breakers_are_of_the_process(tmp_path: Path) -> None:
    """What the README says: each lets its own number through, and each has its own circuit."""

    async def broken(seen: Seen, wire: Wire) -> None:
        await wire.send(OK.replace(b"200 OK", b"503 Service Unavailable"))

    async def run() -> None:
        async with (
            upstream() as auth,
            upstream(broken) as content,
            pair(tmp_path, auth, content, breaker_failure_threshold=2, upstream_retry_count=0) as (one, two),
        ):
            rule = {"limit_type": "global", "max_requests": 3, "window_seconds": 3600, "path_pattern": "/api/v1/auth/*"}
            assert (await admin(one.port, "POST", "/config/rate-limits", body=rule)).status == 201
            await two.configuration._sharing.look()
            for gateway in (one, two):
                statuses = [(await ask(gateway.port, "GET", "/api/v1/auth/x")).status for _ in range(5)]
                assert statuses == [200] * 3 + [429] * 2
            assert len(auth.seen) == 6, "two processes let twice as many through"
            for _ in range(2):
                await ask(one.port, "GET", "/api/v1/content/x", bearer=ADMIN)
            states = [gateway.breakers.status("content", time.monotonic())["state"] for gateway in (one, two)]
            assert states == ["open", "closed"]

    asyncio.run(run())


# databases that are not shared


def test_a_second_gateway_waits_for_the_first_one_and_then_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateway_module, "_PATIENCE_S", 0.0)

    async def run() -> None:
        settings = settings_for(tmp_path, {}, gateway_drain_timeout=0.0)
        async with Gateway(settings):
            with pytest.raises(HeldError, match=r"config\.db: another process has it open"):
                await Gateway(settings).start()
        waiting = Gateway(settings_for(tmp_path, {}, gateway_drain_timeout=_DEADLINE_S))
        async with Gateway(settings):
            starting = asyncio.create_task(waiting.start())
            while not any("waiting at most 20 s" in message for message in caplog.messages):
                await asyncio.sleep(0.01)
            assert not starting.done()
        await starting
        await waiting.stop(grace_s=0)

    asyncio.run(run())


def test_what_is_wrong_in_another_way_is_not_waited_for() -> None:
    def fail() -> None:
        raise StoreError("broken")

    with pytest.raises(StoreError, match="broken"):
        asyncio.run(when_free(fail, 60))


def test_who_is_cancelled_while_it_opens_waits_until_that_is_done(tmp_path: Path) -> None:
    """Or nobody would close what is opened after the end."""
    begun, may_end = threading.Event(), threading.Event()
    ended: list[bool] = []

    def open_it() -> None:
        begun.set()
        ended.append(may_end.wait(_DEADLINE_S))

    async def run() -> None:
        opening = asyncio.create_task(when_free(open_it, 60))
        await asyncio.to_thread(begun.wait, _DEADLINE_S)
        opening.cancel()
        asyncio.get_running_loop().call_later(0.05, may_end.set)
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert ended == [True]

    asyncio.run(run())


def test_who_waits_for_a_turn_while_it_opens_can_be_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody who hangs in a write would hold up the stop for half a minute; what fails then is no news."""
    catalog = Catalog(str(tmp_path / "config.db"), is_shared=True)
    turn = FileLock(str(tmp_path / "config.db.turn"))
    assert turn.take()

    async def run() -> None:
        opening = asyncio.create_task(when_free(lambda: catalog.open(SEED), 60, catalog.give_up))
        async with asyncio.timeout(_DEADLINE_S):
            while not catalog._database._locks._turn._descriptor >= 0:
                await asyncio.sleep(0.01)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        gc.collect()

    asyncio.run(run())
    turn.close()
    assert "never retrieved" not in caplog.text


def test_a_database_of_another_process_is_exit_69_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gateway_module, "_PATIENCE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.ini").write_text(
        "[gateway]\ndrain_timeout = 0s\n[server]\nhost = 127.0.0.1\nport = 0\n[jwt]\nsecret_key = " + "x" * 32
    )
    catalog = Catalog("engadi_gateway.db")
    catalog.open(SEED)
    try:
        assert main([]) == 69
    finally:
        catalog.close()
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        "database: engadi_gateway.db: another process has it open ([server] reuse_port = yes shares it)"
    )


@pytest.mark.parametrize(("arguments", "named"), [([], "database"), (["--check"], "database.url")])
def test_what_this_version_cannot_read_is_exit_78_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.ini").write_text("[server]\nhost = 127.0.0.1\nport = 0\n[jwt]\nsecret_key = " + "x" * 32)
    catalog = Catalog("engadi_gateway.db")
    (route,) = catalog.open(SEED).routes
    catalog._database.submit(lambda connection: connection.execute("UPDATE route_config SET methods = '[GET'")).result()
    catalog.close()
    assert main(arguments) == 78
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"{named}: {tmp_path}/engadi_gateway.db: this version cannot read route {route.id}"
    assert not any("Traceback" in line for line in said)


# two processes


async def _traffic(port: int, count: int) -> list[str]:
    """So many requests, each on a connection of its own, which the kernel gives to one of the processes."""
    ids = []
    for _ in range(count):
        reply = await ask(port, "GET", "/api/v1/auth/x")
        assert reply.status == 200
        ids.append(reply.one("x-request-id"))
    return ids


async def _logged(port: int) -> set[str]:
    page = json_of(await admin(port, "GET", "/logs?limit=500&path=/api/v1/auth/x"))
    return {row["request_id"] for row in page["items"]}


async def _served(port: int) -> int:
    text = (await admin(port, "GET", "/metrics/prometheus")).body.decode()
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("engadi_upstream_attempts_total") and 'service="auth"' in line
    ]
    return round(sum(float(line.split()[-1]) for line in lines))


def test_two_processes_share_a_port_and_the_databases(tmp_path: Path) -> None:
    port, admin_ports = free_port(), (free_port(), free_port())

    def process(ini: str, admin_port: int) -> contextlib.AbstractAsyncContextManager[Process]:
        return started(tmp_path, ini, PORT=str(port), ENGADI_ADMIN_LISTEN=f"127.0.0.1:{admin_port}")

    async def run() -> None:
        async with upstream() as auth:
            ini = ini_of(auth.url).replace("[server]\n", "[server]\nreuse_port = yes\n")
            async with process(ini, admin_ports[0]) as first, process(ini, admin_ports[1]) as second:
                ids = await _traffic(port, 60)

                async def is_counted() -> bool:
                    served = [await _served(number) for number in admin_ports]
                    return min(served) > 0 and sum(served) == 60

                async def knows_all() -> bool:
                    return [await _logged(number) == set(ids) for number in admin_ports] == [True, True]

                await until(is_counted)
                await until(knows_all)
                body = {"path_pattern": "/made/*", "target_service": "auth", "is_public": True}
                assert (await admin(admin_ports[0], "POST", "/routes", body=body)).status == 201

                async def is_everywhere() -> bool:
                    return {(await ask(port, "GET", "/made/x")).status for _ in range(20)} == {200}

                await until(is_everywhere)
                first.signal(signal.SIGKILL)
                await first.process.wait()
                ids += await _traffic(port, 20)
                assert (await admin(admin_ports[1], "POST", "/routes", body={**body, "host": "a.b"})).status == 201
                assert set(ids) == await _logged(admin_ports[1])
                second.signal(signal.SIGTERM)
                assert await second.code() == 0

    asyncio.run(run())
    for name in ("engadi_gateway.db", "engadi_gateway-log.db"):
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
