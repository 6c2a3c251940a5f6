"""A reload: all of it or nothing, and every option either takes effect or is named as one that waits for a restart."""

from __future__ import annotations

import asyncio
import enum
import gc
import ipaddress
import logging
import socket
import sqlite3
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engadi_gateway import Gateway, Settings
from engadi_gateway.errors import ConfigurationError
from engadi_gateway.gateway.upcalls import GatewayUpcalls
from engadi_gateway.model import Snapshot
from engadi_gateway.settings.options import OPTIONS
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.questions import LogFilter
from tests.fakes import Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, ask_on, json_of, settings_for
from tests.options import other_text
from tests.world import until

BASE = "/api/v1/gateway"

#: Options that the code reads from the settings when it needs them, and those that only the start looks at.
READ_WHEN_NEEDED = {
    "gateway.name", "gateway.environment", "gateway.drain_timeout", "gateway.drain_delay", "log.requests",
    "log.flush_interval", "log.when_full", "log.truncate_ip",
}  # fmt: skip
#: What the command line does with them is tested with the process.
OF_THE_PROCESS = {"gateway.debug", "log.level"}
#: Certificates and authorities are files: tested with TLS.
OF_TLS = {"server.tls_certificate", "server.tls_key", "server.tls_min_version", "upstream.tls_ca_file"}
OTHER: dict[str, dict[str, Any]] = {
    "jwt.mode": {"jwt_mode": "local-then-remote"},
    "jwt.algorithms": {"jwt_algorithms": "HS384", "jwt_secret_key": "a" * 64},
    "jwt.public_key_file": {"jwt_public_key_file": __file__},
    "jwt.jwks_url": {"jwt_jwks_url": "http://127.0.0.1:1/keys"},
    "jwt.remote_url": {"jwt_remote_url": "http://127.0.0.1:1/validate"},
    "cors.allow_credentials": {"cors_allow_credentials": True, "cors_enabled": True},
    "cors.max_age": {"cors_max_age": 5.0, "cors_enabled": True},
}
_PLAIN = (str, bytes, int, float, bool, type(None), enum.Enum, ipaddress.IPv4Network, ipaddress.IPv6Network)


#: The way back to all rooms, and what was compiled: what became of that counts.
_NO_ROOM = (GatewayUpcalls, Snapshot)


def facts(value: Any, path: str, found: dict[str, str], seen: set[int]) -> dict[str, str]:
    """Every plain value that can be reached from a room's object, by its path; the settings themselves are none."""
    if isinstance(value, _PLAIN):
        found[path] = repr(value)
    elif id(value) not in seen:
        seen.add(id(value))
        for name, part in _parts(value, path):
            facts(part, f"{path}.{name}", found, seen)
    return found


def _parts(value: Any, path: str) -> list[tuple[object, Any]]:
    if isinstance(value, Settings):
        section = {"authority": "jwt_", "checker": "health_"}[path.split(".", maxsplit=1)[0]]
        return [(name, part) for name, part in value.values.items() if name.startswith(section)]
    if isinstance(value, Mapping) and type(value).__module__ == "builtins":
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, (set, frozenset)):
        return list(enumerate(sorted(value, key=repr)))
    if not type(value).__module__.startswith("engadi_gateway") or isinstance(value, _NO_ROOM):
        return []
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [*getattr(value, "__dict__", {}), *(name for name in slots if not name.startswith("__"))]
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def facts_of(gateway: Gateway) -> dict[str, str]:
    rooms = {
        "context": gateway._context,
        "state": gateway._state,
        "compiled": gateway.configuration.compiled,
        "authority": gateway.authority,
        "checker": gateway.checker,
        "journal": gateway.journal,
        "recorder": gateway._recorder,
    }
    found: dict[str, str] = {}
    for name, room in rooms.items():
        facts(room, name, found, set())
    return found


def test_every_option_is_applied_or_named_as_one_that_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> dict[str, list[str]]:
        wrong: dict[str, list[str]] = {}
        async with upstream() as auth:
            services = {"auth": auth.url}
            base = settings_for(tmp_path, services)
            async with Gateway(base) as gateway:
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                await gateway.reload(base)
                await gateway._console.flushed()
                first = facts_of(gateway)
                await gateway.reload(base)
                unsteady = {path for path, value in facts_of(gateway).items() if first.get(path) != value}
                for option in OPTIONS:
                    if option.name in OF_THE_PROCESS | OF_TLS | READ_WHEN_NEEDED:
                        continue
                    caplog.clear()
                    before = facts_of(gateway)
                    extra = OTHER.get(option.name, {option.attribute: other_text(option)})
                    await gateway.reload(settings_for(tmp_path, services, **extra))
                    changed = facts_of(gateway)
                    paths = [path for path in {*before, *changed} - unsteady if changed.get(path) != before.get(path)]
                    is_told = f"these take a restart: {option.name}" in caplog.text
                    if bool(paths) == is_told:
                        wrong[option.name] = paths
                    await gateway.reload(base)
        return wrong

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(run()) == {}, "neither, or both"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no origin": ({"cors_enabled": True, "cors_allow_origins": ("https://a.test/",)}, "cors.allow_origins"),
    "no method": ({"cors_allow_methods": ("put",)}, "cors.allow_methods"),
    "no authorities": ({"upstream_tls_ca_file": "/nowhere.pem"}, "upstream.tls_ca_file"),
    "no certificate": (
        {"server_tls_certificate": "/nowhere.pem", "server_tls_key": "/dev/null"}, "server.tls_certificate"),
    "no key": (
        {"jwt_algorithms": ("RS256",), "jwt_public_key_file": "/nowhere.pem"}, "jwt.public_key_file"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "pointer"), REFUSED.values(), ids=REFUSED)
def test_a_refused_reload_changes_nothing(tmp_path: Path, bad: dict[str, Any], pointer: str) -> None:
    async def run() -> None:
        async with upstream() as auth, upstream() as other:
            async with Gateway(settings_for(tmp_path, {"auth": auth.url}, limits_per_user=1000)) as gateway:
                with pytest.raises(ConfigurationError) as refused:
                    await gateway.reload(settings_for(tmp_path, {"auth": other.url}, limits_per_user=7, **bad))
                assert [fault.pointer for fault in refused.value.faults] == [pointer]
                revisions = json_of(await ask(gateway.port, "GET", f"{BASE}/config/revisions", bearer=ADMIN))["items"]
                assert [revision["number"] for revision in revisions] == [1]
                route = {"path_pattern": "/new", "target_service": "auth", "is_public": True}
                assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
                assert (await ask(gateway.port, "GET", "/new")).status == 200
                assert {rule.max_requests for rule in gateway.configuration.snapshot.rules} == {1000, 1_000_000}
                assert not gateway.configuration.snapshot.cors.enabled
            assert (len(auth.seen), other.seen) == (1, [])

    asyncio.run(run())


def test_a_reload_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engadi_gateway.store.database.BUSY_MS", 50)

    async def run() -> None:
        async with upstream() as auth, upstream() as other:
            async with Gateway(settings_for(tmp_path, {"auth": auth.url}, limits_per_user=1000)) as gateway:
                lock = sqlite3.connect(tmp_path / "config.db", isolation_level=None)
                lock.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreError):
                    await gateway.reload(settings_for(tmp_path, {"auth": other.url}, limits_per_user=7))
                lock.close()
                route = {"path_pattern": "/new", "target_service": "auth", "is_public": True}
                assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
                assert (await ask(gateway.port, "GET", "/new")).status == 200
            assert (len(auth.seen), other.seen) == (1, [])

    asyncio.run(run())


def test_what_waits_for_a_restart_is_as_it_was(tmp_path: Path) -> None:
    """A door for the admin API that is not there must not take its endpoints away from the door that is."""

    async def run() -> None:
        async with upstream() as auth:
            base = settings_for(tmp_path, {"auth": auth.url})
            async with Gateway(base) as gateway:
                await gateway.reload(replace(base, values={**base.values, "admin_listen": "127.0.0.1:1"}))
                assert (await ask(gateway.port, "GET", f"{BASE}/routes", bearer=ADMIN)).status == 200

    asyncio.run(run())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_key_that_is_replaced_in_its_file_ends_what_the_old_one_signed(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    old, new = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(_pem(old))
    values: dict[str, Any] = {"jwt_algorithms": ("ES256",), "jwt_public_key_file": str(path)}
    claims = {"sub": "root", "role": "admin", "exp": time.time() + 3600}
    before, after = (jwt.encode(claims, key, "ES256") for key in (old, new))

    async def run() -> None:
        settings = settings_for(tmp_path, {}, **values)
        async with Gateway(settings) as gateway:

            async def statuses() -> list[int]:
                return [
                    (await ask(gateway.port, "GET", f"{BASE}/routes", bearer=bearer)).status
                    for bearer in (before, after)
                ]

            assert await statuses() == [200, 401]
            await gateway.reload(settings)
            assert await statuses() == [200, 401]
            assert len(gateway._state.tokens) > 0, "nothing has changed: what was verified is remembered"
            path.write_bytes(_pem(new))
            await gateway.reload(settings)
            assert await statuses() == [401, 200]

    asyncio.run(run())


def test_a_development_key_is_that_of_the_database_that_is_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        settings = settings_for(tmp_path, {}, jwt_secret_key="")
        async with Gateway(settings) as gateway:
            key = gateway.settings.jwt_secret_key
            other = replace(settings, values={**settings.values, "database_url": str(tmp_path / "other.db")})
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                await gateway.reload(other)
            assert gateway.settings.jwt_secret_key == key
            assert [record.getMessage() for record in caplog.records] == ["these take a restart: database.url"]
            (tmp_path / "config.db.secret").unlink()
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                await gateway.reload(settings)
            assert gateway.settings.jwt_secret_key != key
            assert "no SECRET_KEY: made a development key" in caplog.text, "tokens of the old one end"

    asyncio.run(run())
    assert sorted(path.name for path in tmp_path.glob("*.secret")) == ["config.db.secret"]


def test_what_only_a_restart_would_stumble_over_is_refused_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            base = settings_for(tmp_path, {"auth": auth.url})
            async with Gateway(base) as gateway:
                values = {**base.values, "database_log_url": str(tmp_path / "nowhere" / "log.db")}
                with pytest.raises(ConfigurationError, match="no such folder"):
                    await gateway.reload(replace(base, values=values))

    asyncio.run(run())


def test_a_stream_keeps_no_configuration_that_was_replaced(tmp_path: Path) -> None:
    """It may last for days, and with thousands of routes a configuration takes tens of megabytes."""

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            if seen.target.endswith("socket")
            else b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        )
        await wire.reader.read()

    async def run() -> None:
        async with upstream(on_head=script) as auth:
            settings = settings_for(tmp_path, {"auth": auth.url})
            async with Gateway(settings) as gateway, raw_client(gateway.port) as one, raw_client(gateway.port) as two:
                lines = b"Host: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                await one.send(b"GET /api/v1/auth/socket HTTP/1.1\r\n" + lines)
                await two.send(b"GET /api/v1/auth/stream HTTP/1.1\r\nHost: h\r\n\r\n")
                for client in (one, two):
                    await client.reader.readuntil(b"\r\n\r\n")
                table = weakref.ref(gateway.configuration.compiled.ways.table)
                route = {"path_pattern": "/new", "target_service": "auth"}
                assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
                await gateway._console.flushed()
                gc.collect()
                assert table() is None
                assert len(gateway._context.flights) == 2, "they go on"
            rows = {row["path"]: row for row in await _rows(tmp_path)}
            assert {path: row["revision"] for path, row in rows.items() if "stream" in path or "socket" in path} == {
                "/api/v1/auth/socket": 1, "/api/v1/auth/stream": 1,
            }  # fmt: skip

    asyncio.run(run())


async def _rows(folder: Path) -> list[dict[str, Any]]:
    async with Gateway(settings_for(folder, {})) as gateway:
        items: list[dict[str, Any]] = (await gateway.journal.logs(LogFilter(limit=100))).items
        return items


def test_a_larger_queue_has_room_for_the_larger_batches_that_come_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            services = {"auth": auth.url}
            waits: dict[str, Any] = {"log_flush_interval": 30.0}
            small = settings_for(tmp_path, services, log_queue_rows=4, log_flush_rows=2, **waits)
            large = settings_for(tmp_path, services, log_queue_rows=100, log_flush_rows=50, **waits)
            async with Gateway(small) as gateway, raw_client(gateway.port) as client:
                await gateway.reload(large)
                for _ in range(60):
                    assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
                await gateway._console.flushed()
                assert (gateway.journal.stats().rows_written, gateway.journal.stats().rows_shed) == (60, 0)

    asyncio.run(run())


def test_pools_that_are_there_take_other_limits(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            base = settings_for(tmp_path, {"auth": auth.url})
            async with Gateway(base) as gateway, raw_client(gateway.port):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                assert [pool["idle"] for pool in gateway.state()["pools"].values()] == [1]
                await gateway.reload(replace(base, values={**base.values, "upstream_max_idle": 0}))
                assert [pool["idle"] for pool in gateway.state()["pools"].values()] == [0]
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                assert [seen.connection for seen in auth.seen] == [0, 1]

    asyncio.run(run())


@pytest.mark.parametrize("is_on", [True, False])
def test_a_request_ends_with_the_cors_that_it_began_with(tmp_path: Path, is_on: bool) -> None:
    """CORS is switched while the auth service is asked about its token: the fields are ours, or the upstream's."""
    theirs, ours = "https://theirs.test", "https://ours.test"

    async def run() -> None:
        is_asked, is_switched = asyncio.Event(), asyncio.Event()

        async def judge(seen: Seen, wire: Wire) -> None:
            is_asked.set()
            await is_switched.wait()
            await wire.send(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"sub":"u"}')

        async def serve(seen: Seen, wire: Wire) -> None:
            await wire.send(f"HTTP/1.1 204 x\r\nAccess-Control-Allow-Origin: {theirs}\r\n\r\n".encode())

        async with upstream(judge) as auth, upstream(serve) as content:
            services = {"auth": auth.url, "content": content.url}
            values = {"jwt_mode": "remote", "cors_allow_origins": (ours,)}
            before, after = (settings_for(tmp_path, services, **values, cors_enabled=on) for on in (is_on, not is_on))
            async with Gateway(before) as gateway:
                origin = {"Origin": ours}
                asking = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/content/x", bearer="t", headers=origin))
                await is_asked.wait()
                await gateway.reload(after)
                is_switched.set()
                for reply, is_ours in (
                    (await asking, is_on),
                    (await ask(gateway.port, "GET", "/api/v1/content/x", bearer="t", headers=origin), not is_on),
                ):
                    assert reply.all("access-control-allow-origin") == [ours if is_ours else theirs]

    asyncio.run(run())


def test_names_that_nobody_answers_for_hold_up_neither_a_reload_nor_the_stop(tmp_path: Path) -> None:
    resolver_is_back, asked = threading.Event(), set[str]()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.add(host)
        resolver_is_back.wait(60)
        raise socket.gaierror(-3, "x")

    async def run() -> None:
        services = {f"s{number}": f"http://s{number}.test" for number in range(40)}
        settings = settings_for(tmp_path, services, health_interval=60.0, health_timeout=0.2)
        gateway = Gateway(settings)
        await gateway.start()
        try:
            await until(lambda: all(one.status == "unhealthy" for one in gateway.checker.status().values()))
            assert asked
            async with asyncio.timeout(20):
                await gateway.reload(settings)
                await gateway.stop(grace_s=0.0)
        finally:
            resolver_is_back.set()
            await gateway.stop(grace_s=0.0)

    with mock.patch.object(socket, "getaddrinfo", look_up):
        asyncio.run(run())
