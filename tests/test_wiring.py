"""What the composition connects: a route's own numbers, the clockwork, the checks and the breaker, sockets and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.gateway.listeners import BindError, bind_unix
from tests.certificates import certify
from tests.fakes import raw_client
from tests.harness import ADMIN, ask, ask_on, json_of, token
from tests.probes_stages import a_token
from tests.probes_traffic import idle_upstream, late_upstream, times_sent
from tests.world import AUTH, BEARER, CONTENT, World, a_world, get, until

BASE = "/api/v1/gateway"
_DAY_MS = 86_400_000


async def _add_route(world: World, path: str, **fields: Any) -> str:
    """A public route to the auth service."""
    body = {"path_pattern": path, "target_service": "auth", "is_public": True, **fields}
    reply = await ask(world.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=body)
    assert reply.status == 201, reply.body
    return str(json_of(reply)["id"])


# a route's own numbers


@pytest.mark.parametrize(
    ("of_route", "of_settings", "status"),
    [(50.0, 200.0, 504), (200.0, 50.0, 200), (None, 50.0, 504), (None, 200.0, 200)],
)
def test_a_route_has_its_own_timeout(tmp_path: Path, of_route: float | None, of_settings: float, status: int) -> None:
    async def run() -> None:
        async with a_world(tmp_path, upstream_timeout=of_settings) as world:
            await _add_route(world, AUTH + "/hold", timeout=of_route)
            assert await late_upstream(world) == status

    asyncio.run(run())


@pytest.mark.parametrize(("of_route", "of_settings", "times"), [(0, 2, 1), (3, 0, 4), (None, 1, 2)])
def test_a_route_has_its_own_retry_count(tmp_path: Path, of_route: int | None, of_settings: int, times: int) -> None:
    async def run() -> None:
        async with a_world(tmp_path, upstream_retry_count=of_settings) as world:
            await _add_route(world, AUTH + "/close", retry_count=of_route)
            assert await times_sent()(world) == times

    asyncio.run(run())


@pytest.mark.parametrize(("is_reused", "times"), [(False, 2), (True, 3)])
def test_a_connection_that_may_have_died_idle_costs_no_retry(tmp_path: Path, is_reused: bool, times: int) -> None:
    async def run() -> None:
        async with a_world(tmp_path, upstream_retry_count=1) as world:
            if is_reused:
                await get(world, AUTH + "/x")
            assert await times_sent()(world) == times

    asyncio.run(run())


# the clockwork


def test_the_clock_reaches_all_that_ends_by_itself(tmp_path: Path) -> None:
    """A tick an hour later: idle connections of both sides, and buckets that are full again, are gone."""

    async def run() -> None:
        async with a_world(tmp_path, limits_per_user=10, limits_per_ip=10) as world, raw_client(world.port) as client:
            gateway = world.gateway
            await ask_on(client, "GET", AUTH + "/x")
            assert (len(gateway._state.buckets), await idle_upstream(world), len(gateway._front.connections)) == (
                2,
                1,
                1,
            )
            for sweep in gateway._ticker._sweeps:
                sweep(time.monotonic() + 3600)
            assert (len(gateway._state.buckets), await idle_upstream(world)) == (0, 0)
            await until(lambda: not gateway._front.connections)

    asyncio.run(run())


# checks: the breaker hears of them, and whom they ask follows the routes


def test_a_good_check_begins_the_probes_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "engadi")

    async def run() -> None:
        values = {"breaker_enabled": True, "breaker_failure_threshold": 1, "upstream_retry_count": 0}
        async with a_world(tmp_path, **values) as world:
            await get(world, AUTH + "/503")
            assert (await get(world, AUTH + "/x")).status == 503
            await world.gateway.checker.check_now("auth")
            assert (await get(world, AUTH + "/x")).status == 200
        said = [message for message in caplog.messages if message.startswith("circuit of auth: ")]
        assert said[0] == "circuit of auth: open, was closed: 1 failures in a row, the last: status 503"
        assert "circuit of auth: half_open, was open: health check passed" in said

    asyncio.run(run())


def test_a_service_that_only_a_route_names_is_checked_as_long_as_the_route_is_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world:
            route = await _add_route(world, "/new/*", target_service="new", target_url=world.content.url)
            health = json_of(await ask(world.port, "GET", f"{BASE}/services/new/health", bearer=ADMIN))
            assert (health["status"], world.content.seen[-1].target) == ("healthy", "/health")
            assert "new" in world.gateway.checker.status()
            assert (await ask(world.port, "DELETE", f"{BASE}/routes/{route}", bearer=ADMIN)).status == 204
            assert "new" not in world.gateway.checker.status()

    asyncio.run(run())


# what a reload has given stays


def test_a_write_after_a_reload_keeps_what_the_reload_gave(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world:
            old, new = a_token(role="admin"), "another secret, long enough for HS256"
            await world.gateway.reload(world.settings(jwt_secret_key=new))
            body = {"path_pattern": "/x", "target_service": "auth"}
            bearer = a_token(new, role="admin")
            assert (await ask(world.port, "POST", f"{BASE}/routes", bearer=bearer, body=body)).status == 201
            assert (await get(world, CONTENT + "/x", bearer)).status == 200
            assert (await get(world, CONTENT + "/x", old)).status == 401

    asyncio.run(run())


def test_the_role_holds_at_the_admin_apis_own_door_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path, admin_listen="127.0.0.1:0", admin_role="boss") as world:
            port = int(world.gateway.addresses[-1].rpartition(":")[2])
            for role, status in (("admin", 403), ("boss", 200)):
                assert (await ask(port, "GET", f"{BASE}/routes", bearer=token(role=role))).status == status

    asyncio.run(run())


# who leaves


def _tasks(gateway: Gateway) -> set[str]:
    return {task.get_name() for task in gateway._context.tasks}


def test_a_client_that_leaves_is_not_waited_for_by_the_question_about_its_token(tmp_path: Path) -> None:
    async def run() -> None:
        values = {"jwt_mode": "remote", "jwt_remote_url": "{auth}/hold", "jwt_remote_timeout": 60.0}
        async with a_world(tmp_path, **values) as world:
            async with raw_client(world.port) as client:
                await client.send(
                    f"GET {CONTENT}/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {BEARER}\r\n\r\n".encode()
                )
                await until(lambda: world.auth.seen)
                assert "identity" in _tasks(world.gateway)
            await until(lambda: "identity" not in _tasks(world.gateway))
            world.released.set()

    asyncio.run(run())


def test_a_look_that_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    """GET .../health asks the service; when its client leaves, it stops asking."""

    async def run() -> None:
        async with a_world(tmp_path, health_path="/hold", health_timeout=60.0) as world:
            async with raw_client(world.port) as client:
                target = f"{BASE}/services/auth/health"
                await client.send(f"GET {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN}\r\n\r\n".encode())
                await until(lambda: world.auth.seen)
                assert "local" in _tasks(world.gateway)
            await until(lambda: "local" not in _tasks(world.gateway))
            world.released.set()

    asyncio.run(run())


def test_a_write_that_nobody_waits_for_is_finished(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world:
            body = b'{"path_pattern": "/x", "target_service": "auth", "is_public": true}'
            async with world.gateway.configuration.writing():
                async with raw_client(world.port) as client:
                    await client.send(
                        f"POST {BASE}/routes HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN}\r\n"
                        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                        + body
                    )
                    await until(lambda: "local" in _tasks(world.gateway))
                await until(lambda: not world.gateway._front.connections)
            await until(lambda: "local" not in _tasks(world.gateway))
            assert (await get(world, "/x")).status == 200

    asyncio.run(run())


# sockets


def test_the_port_of_a_process_that_ended_can_be_had_at_once(tmp_path: Path) -> None:
    """Connections that the gateway closed first are in TIME_WAIT on its port."""

    async def run() -> None:
        async with a_world(tmp_path) as world, raw_client(world.port) as client:
            port = world.port
            await client.send(b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert (await client.reply()).status == 200
            assert await client.rest() == b""
        async with a_world(tmp_path / "again", server_port=port) as world:
            assert (await get(world, AUTH + "/x")).status == 200

    asyncio.run(run())


def test_the_state_is_of_this_moment(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world, raw_client(world.port) as client:
            gateway = world.gateway
            assert (gateway.state()["in_flight"], gateway.state()["pools"]) == (0, {})
            await client.send(b"GET /api/v1/auth/hold HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: world.auth.raw and world.auth.raw[0])
            gateway._started_at -= 1000
            gateway._ticker._lags_s.append(1.25)
            state = gateway.state()
            assert (state["in_flight"], state["connections"], state["loop_lag_s"]) == (1, 1, 1.25)
            assert 1000 <= state["uptime_s"] < 2000
            assert [counts["active"] for counts in state["pools"].values()] == [1]
            world.released.set()
            assert (await client.reply()).status == 200
            assert gateway.state()["in_flight"] == 0

    asyncio.run(run())


def test_all_addresses_of_both_kinds_can_be_listened_on_at_once(tmp_path: Path) -> None:
    """A socket for `::` that took IPv4 as well would leave none to the one for `0.0.0.0`."""

    async def run() -> None:
        async with a_world(tmp_path, server_host=("0.0.0.0", "::")) as world:
            for host in ("127.0.0.1", "::1"):
                async with raw_client(world.port, host) as client:
                    assert (await ask_on(client, "GET", AUTH + "/x")).status == 200
                assert world.auth.seen[-1].one("x-forwarded-for") == host

    asyncio.run(run())


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_unix_socket_is_for_its_owner_and_group_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "s"

    async def run() -> None:
        before = os.umask(umask)
        try:
            async with a_world(tmp_path, server_unix_socket=str(path)):
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
        finally:
            os.umask(before)

    asyncio.run(run())


def test_a_unix_socket_whose_owner_takes_nobody_in_is_neither_waited_for_nor_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    said: list[str] = []

    def bind() -> None:
        with pytest.raises(BindError) as failed:
            bind_unix(str(path), 10)
        said.append(str(failed.value))

    with contextlib.ExitStack() as held:
        living = held.enter_context(socket.socket(socket.AF_UNIX))
        living.bind(str(path))
        living.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = held.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        binding = threading.Thread(target=bind, daemon=True)  # so that one that waits does not hold the tests up
        binding.start()
        binding.join(20)
        assert said == [f"cannot listen on unix:{path}: Address already in use"]
        assert path.is_socket()


def test_small_writes_are_not_held_back_on_either_side(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world, raw_client(world.port) as client:
            await client.send(b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n")
            await client.reply()
            (connection,) = world.gateway._front.connections
            (pool,) = world.gateway._pools._pools.values()
            for transport in (connection._transport, pool._idle[0].transport):
                assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    asyncio.run(run())


def test_over_tls_http_1_1_is_agreed_on(tmp_path: Path) -> None:
    certify(tmp_path, "gateway.test")

    async def run() -> None:
        values = {"server_tls_certificate": f"{tmp_path}/cert.pem", "server_tls_key": f"{tmp_path}/key.pem"}
        context = ssl.create_default_context(cafile=f"{tmp_path}/cert.pem")
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with a_world(tmp_path, **values) as world:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", world.port, ssl=context, server_hostname="gateway.test"
            )
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()

    asyncio.run(run())


def test_the_upstream_hears_which_port_was_asked(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_world(tmp_path) as world:
            await get(world, AUTH + "/x", headers={"X-Forwarded-Port": "1"})
            assert world.auth.seen[-1].one("x-forwarded-port") == str(world.port)

    asyncio.run(run())
