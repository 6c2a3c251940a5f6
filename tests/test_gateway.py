"""The composition: embedding, configuration at run time, limits and breaker and CORS end to end, faults of the log."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engadi_gateway import Gateway, Settings
from engadi_gateway.net.client import ClientConnection
from engadi_gateway.net.forward import Forward
from engadi_gateway.record.metrics import open_fds, resident_bytes
from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, SECRET, ask, ask_on, json_of, running, settings_for, token
from tests.world import until

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"
BASE = "/api/v1/gateway"


def test_two_gateways_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    async def run() -> None:
        tasks = len(asyncio.all_tasks())
        async with upstream() as auth:
            for name in ("a", "b"):
                (tmp_path / name).mkdir()
            one, two = (
                Gateway(settings_for(tmp_path / name, {"auth": auth.url}, limits_per_ip=limit))
                for name, limit in (("a", 1), ("b", 5))
            )
            async with one, two:
                assert one.port != two.port
                first = [(await ask(one.port, "GET", "/api/v1/auth/x")).status for _ in range(2)]
                second = [(await ask(two.port, "GET", "/api/v1/auth/x")).status for _ in range(2)]
                assert (first, second) == ([200, 429], [200, 200])
        assert len(asyncio.all_tasks()) == tasks
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("engadi")] == []

    descriptors = open_fds()
    asyncio.run(run())
    gc.collect()
    assert open_fds() <= descriptors + 1


def test_settings_of_text_and_values_agree() -> None:
    assert Settings.of(jwt_secret_key=SECRET, server_port="8001").server_port == 8001
    assert Settings.of(jwt_secret_key=SECRET, server_port=8001).server_port == 8001


def test_a_route_change_acts_on_the_next_request_of_an_open_connection(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, upstream() as other, running(tmp_path, auth) as gateway:
            async with raw_client(gateway.port) as client:
                assert (await ask_on(client, "GET", "/shop/x")).status == 404
                route = {
                    "path_pattern": "/shop/*",
                    "target_service": "shop",
                    "target_url": other.url,
                    "is_public": True,
                }
                made = await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)
                assert made.status == 201
                assert (await ask_on(client, "GET", "/shop/x")).status == 200
                where = made.one("location")
                moved = await ask(gateway.port, "PUT", where, bearer=ADMIN, body={"strip_prefix": True})
                assert json_of(moved)["target_url"] == other.url, "a partial body keeps the rest"
                assert (await ask_on(client, "GET", "/shop/x?q=1")).status == 200
                off = await ask(gateway.port, "PUT", where, bearer=ADMIN, body={"is_active": False})
                assert off.status == 200
                assert (await ask_on(client, "GET", "/shop/x")).status == 404
                health = json_of(await ask(gateway.port, "GET", "/health"))
                assert list(health["services"]) == ["auth"], "as if it were not there"
                assert (await ask(gateway.port, "DELETE", where, bearer=ADMIN)).status == 204
                assert (await ask(gateway.port, "GET", where, bearer=ADMIN)).status == 404
            assert [seen.target for seen in other.seen] == ["/shop/x", "/x?q=1"]
            assert other.seen[1].one("x-forwarded-prefix") == "/shop"
            revisions = json_of(await ask(gateway.port, "GET", f"{BASE}/config/revisions", bearer=ADMIN))["items"]
            assert [revision["number"] for revision in revisions] == [5, 4, 3, 2, 1]
            assert {revision["actor"] for revision in revisions} == {"root", "settings"}

    asyncio.run(run())


def test_what_was_configured_is_there_after_a_restart(tmp_path: Path) -> None:
    cors = {"enabled": True, "allow_origins": ["https://app.test"]}

    async def run() -> None:
        async with upstream() as auth:
            async with running(tmp_path, auth) as gateway:
                await ask(gateway.port, "PUT", f"{BASE}/config/cors", bearer=ADMIN, body=cors)
                rule = {"name": "tight", "limit_type": "per_endpoint", "max_requests": 1, "window_seconds": 3600}
                assert (
                    await ask(gateway.port, "POST", f"{BASE}/config/rate-limits", bearer=ADMIN, body=rule)
                ).status == 201
            async with running(tmp_path, auth) as gateway:
                headers = {"Origin": "https://app.test"}
                reply = await ask(gateway.port, "GET", "/api/v1/auth/x", headers=headers)
                assert reply.one("access-control-allow-origin") == "https://app.test"
                refused = await ask(gateway.port, "GET", "/api/v1/auth/x", headers=headers)
                assert refused.status == 429
                assert refused.one("access-control-allow-origin") == "https://app.test"
                assert json_of(refused)["violated-policies"] == ["tight"]

    asyncio.run(run())


def test_every_reply_carries_the_cors_lines(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, upstream() as gone:
            await gone.stop()
            values: dict[str, Any] = {
                "cors_enabled": True,
                "cors_allow_origins": ("https://app.test",),
                "upstream_retry_count": 0,
            }
            async with running(tmp_path, auth, gone, **values) as gateway:
                for target, bearer, status in (
                    ("/api/v1/auth/x", None, 200),
                    ("/api/v1/content/x", None, 401),
                    ("/nowhere", None, 404),
                    ("/api/v1/content/x", token(), 502),
                    (f"{BASE}/stats", token(), 403),
                ):
                    reply = await ask(
                        gateway.port, "GET", target, bearer=bearer, headers={"Origin": "https://app.test"}
                    )
                    assert (reply.status, reply.all("access-control-allow-origin")) == (status, ["https://app.test"])
                    assert "Origin" in reply.all("vary")
                preflight = await ask(
                    gateway.port,
                    "OPTIONS",
                    "/api/v1/content/x",
                    headers={
                        "Origin": "https://app.test",
                        "Access-Control-Request-Method": "PUT",
                        "Access-Control-Request-Headers": "authorization,content-type",
                    },
                )
                assert (preflight.status, preflight.body) == (204, b"")
                assert "PUT" in preflight.one("access-control-allow-methods")
                assert "Authorization" in preflight.one("access-control-allow-headers")
            await gone.start()

    asyncio.run(run())


def test_with_cors_off_a_preflight_is_an_ordinary_options(tmp_path: Path) -> None:
    """It is nobody's to answer then: its headers must not open a route that does not list OPTIONS."""
    headers = {"Origin": "https://app.test", "Access-Control-Request-Method": "GET"}

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            route = {"path_pattern": "/get", "target_service": "auth", "methods": ["GET"], "is_public": True}
            assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
            reply = await ask(gateway.port, "OPTIONS", "/get", headers=headers)
            assert (reply.status, reply.one("allow"), auth.seen) == (204, "GET, HEAD", [])
            assert (await ask(gateway.port, "OPTIONS", "/api/v1/auth/x", headers=headers)).status == 200
            assert [seen.method for seen in auth.seen] == ["OPTIONS"]

    asyncio.run(run())


def test_guessing_tokens_ends_in_429(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth, limits_per_ip=3) as gateway:
            statuses = [
                (await ask(gateway.port, "GET", "/api/v1/content/x", bearer=f"guess{n}")).status for n in range(5)
            ]
            assert statuses == [401, 401, 401, 429, 429]
            for path in ("/health", "/livez", "/readyz"):
                assert (await ask(gateway.port, "GET", path)).status == 200, "health is exempt"

    asyncio.run(run())


def test_rate_limit_fields_on_200_and_429(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, limits_per_ip=1, limits_per_user=10) as gateway:
            good = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert good.one("ratelimit-policy") == '"per_user";q=10;w=3600,"per_ip";q=1;w=3600'
            assert (good.one("x-ratelimit-limit"), good.one("x-ratelimit-remaining")) == ("1", "0")
            refused = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert refused.status == 429
            assert 3590 <= int(refused.one("retry-after")) <= 3600
            assert refused.one("ratelimit").startswith('"per_ip";r=0;t=')
            assert time.time() < int(refused.one("x-ratelimit-reset")) <= time.time() + 3601

    asyncio.run(run())


def test_the_breaker_opens_probes_and_closes(tmp_path: Path) -> None:
    mood = {"status": b"503 Service Unavailable"}

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % mood["status"])

    values = {"breaker_failure_threshold": 3, "breaker_success_threshold": 2, "breaker_timeout": 0.2}

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            for _ in range(3):
                failed = await ask(gateway.port, "GET", "/api/v1/auth/x")
                assert (failed.status, failed.all("proxy-status")) == (503, ["engadi; received-status=503"])
            refused = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (refused.status, json_of(refused)["code"], refused.one("retry-after")) == (503, "breaker_open", "1")
            assert len(auth.seen) == 3
            mood["status"] = b"200 OK"
            await asyncio.sleep(0.25)
            for _ in range(2):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert gateway.breakers.status("auth", time.monotonic())["state"] == "closed"
            health = json_of(await ask(gateway.port, "GET", "/health"))
            assert health["circuits"] == {"auth": "closed"}

    asyncio.run(run())


def test_a_circuit_that_keeps_requests_out_makes_the_health_degraded(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    async def run() -> None:
        values = {"breaker_failure_threshold": 1, "upstream_retry_count": 0}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:

            async def page() -> tuple[str, dict[str, str]]:
                found = json_of(await ask(gateway.port, "GET", "/health"))
                return found["status"], found["circuits"]

            assert await page() == ("healthy", {})
            await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert await page() == ("degraded", {"auth": "open"})
            gateway.breakers.note_healthy("auth", time.monotonic())
            assert await page() == ("degraded", {"auth": "half_open"})
            await gateway.reload(settings_for(tmp_path, {"auth": auth.url}, **values, breaker_enabled=False))
            assert await page() == ("healthy", {"auth": "half_open"}), "nobody asks it"
            await gateway.reload(settings_for(tmp_path, {"content": auth.url}, **values))
            assert await page() == ("healthy", {}), "its service is gone"
            await gateway.reload(settings_for(tmp_path, {"auth": auth.url}, **values))
            assert await page() == ("degraded", {"auth": "half_open"}), "and comes back as it went"
            gateway.breakers.reset("auth", time.monotonic())
            assert await page() == ("healthy", {"auth": "closed"})

    asyncio.run(run())


def test_nothing_of_a_service_that_is_gone_is_left(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, upstream() as own, running(tmp_path, auth) as gateway:
            body = {"path_pattern": "/own/*", "target_service": "own", "target_url": own.url, "is_public": True}
            for number in range(3):
                body["target_service"] = f"own-{number}"
                made = await ask(gateway.port, "POST", "/api/v1/gateway/routes", bearer=ADMIN, body=body)
                assert (await ask(gateway.port, "GET", "/own/x")).status == 200
                assert json_of(await ask(gateway.port, "GET", "/health"))["circuits"] == {f"own-{number}": "closed"}
                await ask(gateway.port, "DELETE", made.one("location"), bearer=ADMIN)
                assert json_of(await ask(gateway.port, "GET", "/health"))["circuits"] == {}
                assert gateway.breakers.names() == []
            assert list(gateway._pools.counts()) == [own.url], "a connection is still there"
            gateway._pools.sweep(time.monotonic() + 3600)
            await until(lambda: not gateway._pools.counts())

    asyncio.run(run())


def test_client_errors_never_open_the_breaker(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, breaker_failure_threshold=1) as gateway:
            for _ in range(3):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 404
            async with raw_client(gateway.port) as client:
                await client.send(b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
                await asyncio.sleep(0.05)
                await client.send(b"zz\r\n")
                reply = await client.reply("POST")
                assert (reply.status, json_of(reply)["code"]) == (400, "bad_request")
            assert gateway.breakers.status("auth", 0.0)["state"] == "closed"

    asyncio.run(run())


SLOW = {
    "head": (b"GET /api/v1/auth/x HTTP/1.1\r\nHos", {"server_head_timeout": 0.2}, 408),
    "body": (
        b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
        {"server_body_timeout": 0.2},
        408,
    ),
    "nothing": (b"", {"server_keep_alive_timeout": 0.2}, 0),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_clients_are_turned_away(tmp_path: Path, name: str) -> None:
    sent, values, status = SLOW[name]

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway, raw_client(gateway.port) as client:
            await client.send(sent)
            if status:
                reply = await client.reply()
                assert (reply.status, json_of(reply)["code"]) == (status, "client_timeout")
            assert await asyncio.wait_for(client.rest(), 5) == b""
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("begun", [b"HEAD ", b"\r\nHEAD /api/v1/auth/x HTTP/1.1\r\nHos"])
def test_who_asks_for_a_head_too_slowly_gets_no_body_either(tmp_path: Path, begun: bytes) -> None:
    async def run() -> None:
        async with running(tmp_path, server_head_timeout=0.2) as gateway, raw_client(gateway.port) as client:
            await client.send(begun)
            raw = await client.rest()
            assert raw.startswith(b"HTTP/1.1 408 ")
            assert raw.endswith(b"\r\nConnection: close\r\n\r\n")

    asyncio.run(run())


def test_at_the_cap_the_connection_idle_longest_goes(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            running(tmp_path, auth, server_max_connections=2) as gateway,
            raw_client(gateway.port) as oldest,
            raw_client(gateway.port) as second,
        ):
            await ask_on(second, "GET", "/api/v1/auth/x")
            async with raw_client(gateway.port) as third:
                assert await asyncio.wait_for(oldest.rest(), 5) == b""
                assert (await ask_on(third, "GET", "/api/v1/auth/x")).status == 200
                assert (await ask_on(second, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


def test_a_locked_or_full_log_never_stops_traffic(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            locker = sqlite3.connect(gateway.settings.log_path, isolation_level=None)
            locker.execute("BEGIN IMMEDIATE")
            try:
                began = time.monotonic()
                for _ in range(20):
                    assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                assert time.monotonic() - began < 4, "the busy time-out alone is five seconds"
            finally:
                locker.execute("ROLLBACK")
                locker.close()

    asyncio.run(run())


def test_a_failing_log_is_counted_and_shown(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            await gateway.journal._database.write(lambda connection: connection.execute("DROP TABLE log_segment"))
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            for _ in range(100):
                page = json_of(await ask(gateway.port, "GET", "/health"))
                if page["request_log"]["rows_failed"]:
                    break
                await asyncio.sleep(0.02)
            assert page["request_log"]["status"] == "failing"
            assert page["status"] == "degraded"
            asked = await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN)
            assert (asked.status, json_of(asked)["code"]) == (503, "store_unavailable")
            assert json_of(asked)["detail"].endswith("no such table: log_segment")

    asyncio.run(run())


def test_an_exception_is_one_500_and_nobody_else_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            stage = gateway._context.pipeline.stages[0]
            whole = stage.decide

            def broken(exchange: Any) -> Any:
                if exchange.head.path.endswith("bug"):
                    raise RuntimeError("secret detail")
                return whole(exchange)

            monkeypatch.setattr(
                gateway._context.pipeline, "_steps", ((0, broken, False), *gateway._context.pipeline._steps[1:])
            )
            async with raw_client(gateway.port) as bad, raw_client(gateway.port) as good:
                await bad.send(GET.replace(b"/x", b"/bug"))
                await good.send(GET)
                reply = await bad.reply()
                assert (reply.status, json_of(reply)["code"]) == (500, "internal")
                assert b"secret detail" not in reply.body
                assert reply.one("x-request-id") == json_of(reply)["request_id"]
                assert (await good.reply()).status == 200
            items = json_of(await ask(gateway.port, "GET", f"{BASE}/errors", bearer=ADMIN))["items"]
            assert [(row["status_code"], row["reason"]) for row in items] == [(500, "internal")]

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "secret detail" in caplog.text


class _Unwritable:
    """A transport that fails as asyncio's does after the end of writing, and is otherwise the real one."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        raise RuntimeError("Cannot call write() after write_eof()")


def test_an_answer_that_cannot_be_written_takes_no_neighbour_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as bad:
            assert (await ask_on(bad, "GET", "/livez")).status == 200
            (broken,) = gateway._front.connections
            broken._transport = _Unwritable(broken._transport)  # type: ignore[assignment]  # stands in for it
            async with raw_client(gateway.port) as good:
                assert (await ask_on(good, "GET", "/livez")).status == 200
                bad.writer.write(b"no head\r\n\r\n")  # both are read in one turn of the loop
                good.writer.write(GET)
                assert (await asyncio.wait_for(good.reply(), 20)).status == 200
            assert await bad.rest() == b""
            assert gateway.state()["connections"] <= 1

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "after write_eof" in caplog.text


def test_the_admin_api_can_have_a_door_of_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, admin_listen="127.0.0.1:0") as gateway:
            admin_port = int(gateway.addresses[-1].rpartition(":")[2])
            assert (await ask(gateway.port, "GET", f"{BASE}/routes", bearer=ADMIN)).status == 404
            assert (await ask(gateway.port, "GET", "/health")).status == 200
            assert (await ask(admin_port, "GET", f"{BASE}/routes", bearer=ADMIN)).status == 200
            assert (await ask(admin_port, "GET", f"{BASE}/routes")).status == 401
            assert (await ask(admin_port, "GET", "/api/v1/auth/x")).status == 404

    asyncio.run(run())


def test_readiness_is_503_while_draining_and_the_answer_says_close(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, gateway_drain_delay=0.3) as gateway:
            async with raw_client(gateway.port) as client:
                assert (await ask_on(client, "GET", "/readyz")).status == 200
                stopping = asyncio.create_task(gateway.stop(grace_s=2))
                await asyncio.sleep(0.05)
                reply = await ask_on(client, "GET", "/readyz")
                assert (reply.status, reply.one("connection")) == (503, "close")
                assert (await ask(gateway.port, "GET", "/livez")).status == 200
            await stopping

    asyncio.run(run())


def test_a_split_is_sticky_and_weighted(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as one, upstream() as two, running(tmp_path, one) as gateway:
            split = [
                {"target_service": "a", "target_url": one.url, "weight": 3},
                {"target_service": "b", "target_url": two.url, "weight": 1},
            ]
            route = {"path_pattern": "/split", "target_service": "a", "split": split}
            assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
            for user in range(40):
                for _ in range(2):
                    assert (await ask(gateway.port, "GET", "/split", bearer=token(f"user{user}"))).status == 200
            users = [{seen.one("x-user-id") for seen in server.seen} for server in (one, two)]
            assert users[0].isdisjoint(users[1])
            assert len(users[0]) > len(users[1]) > 0

    asyncio.run(run())


def test_the_share_of_an_open_circuit_goes_to_the_others_and_comes_back(tmp_path: Path) -> None:
    async def run() -> None:
        values = {"breaker_failure_threshold": 2, "breaker_success_threshold": 1, "upstream_retry_count": 0}
        async with upstream() as one, upstream() as two, running(tmp_path, one, **values) as gateway:
            split = [
                {"target_service": name, "target_url": server.url, "weight": 1}
                for name, server in (("a", one), ("b", two))
            ]
            route = {"path_pattern": "/split", "target_service": "a", "split": split}
            assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201

            async def asked(user: int) -> tuple[int, str]:
                told = {"method": "GET", "path": "/split", "token": token(f"user{user}")}
                said = json_of(await ask(gateway.port, "POST", f"{BASE}/explain", bearer=ADMIN, body=told))
                reply = await ask(gateway.port, "GET", "/split", bearer=told["token"])
                if reply.status == 200:
                    server = {"a": one, "b": two}[said["upstream"]["service"]]
                    assert server.seen[-1].one("x-user-id") == f"user{user}", "it said so"
                return reply.status, str(said["breaker"]["passed_over"])

            of_one = [user for user in range(20) if await asked(user) and one.seen[-1:] and
                      one.seen[-1].one("x-user-id") == f"user{user}"]  # fmt: skip
            assert 0 < len(of_one) < 20
            await one.stop()
            user = of_one[0]
            assert [await asked(user) for _ in range(3)] == [(502, "[]"), (502, "[]"), (200, "['a']")]
            await one.start()
            gateway.breakers.note_healthy("a", time.monotonic())
            before = len(one.seen)
            assert [await asked(user) for _ in range(2)] == [(200, "[]"), (200, "[]")]
            assert len(one.seen) == before + 2

    asyncio.run(run())


def test_a_share_that_health_checks_find_down_goes_to_the_others_before_anybody_waits(tmp_path: Path) -> None:
    async def silent(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        values = {"health_interval": 3600.0, "health_fall": 1, "health_timeout": 0.1}
        async with upstream() as one, upstream(silent) as two, running(tmp_path, one, **values) as gateway:
            split = [
                {"target_service": name, "target_url": server.url, "weight": weight}
                for name, server, weight in (("a", one, 1), ("b", two, 1000))
            ]
            route = {"path_pattern": "/split", "target_service": "a", "split": split, "is_public": True}
            assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
            assert await gateway.checker.check_now("b") is not None
            told = json_of(
                await ask(
                    gateway.port, "POST", f"{BASE}/explain", bearer=ADMIN, body={"method": "GET", "path": "/split"}
                )
            )
            assert (told["breaker"]["service"], told["breaker"]["passed_over"]) == ("a", ["b"])
            assert (await ask(gateway.port, "GET", "/split")).status == 200
            await gateway.reload(settings_for(tmp_path, {"auth": one.url}, **{**values, "health_interval": 0.0}))
            assert gateway.breakers.unhealthy == frozenset(), "who is not checked is not known"

    asyncio.run(run())


GIB = 1 << 30


def _counting(limit: int) -> Any:
    async def on_head(seen: Seen, wire: Wire) -> None:
        left = limit - len(seen.raw_head.partition(b"\r\n\r\n")[2])
        while left:
            data = await wire.reader.read(1 << 20)
            assert data
            left -= len(data)
        await wire.send(OK)
        wire.close()

    return on_head


def test_a_gibibyte_passes_up_and_memory_stays_small(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream(on_head=_counting(GIB)) as auth,
            running(tmp_path, auth, server_max_body_bytes=0) as gateway,
            raw_client(gateway.port) as client,
        ):
            await client.send(f"PUT /api/v1/auth/x HTTP/1.1\r\nHost: h\r\nContent-Length: {GIB}\r\n\r\n".encode())
            before, block = resident_bytes(), bytes(1 << 20)
            worst = 0
            for _ in range(GIB >> 20):
                await client.send(block)
                worst = max(worst, resident_bytes() - before)
            assert (await client.reply("PUT")).status == 200
            assert worst < 60 << 20, f"{worst >> 20} MiB more, upstream and client included"

    asyncio.run(run())


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_gibibyte_passes_down_to_a_slow_reader_and_memory_stays_small(tmp_path: Path, framing: str) -> None:
    size = GIB if framing == "length" else GIB >> 2
    block = bytes(1 << 20)

    async def script(seen: Seen, wire: Wire) -> None:
        if framing == "length":
            await wire.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        else:
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(size >> 20):
            await wire.send(block if framing == "length" else b"100000\r\n" + block + b"\r\n")
        if framing == "chunked":
            await wire.send(b"0\r\n\r\n")

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(GET)
            await asyncio.sleep(0.3)  # nobody reads: what is on its way must wait, not pile up
            before, worst, left = resident_bytes(), 0, size
            await client.reader.readuntil(b"\r\n\r\n")
            while left > 0:
                data = await client.reader.read(1 << 20)
                assert data
                left -= len(data)
                worst = max(worst, resident_bytes() - before)
            assert worst < 60 << 20, f"{worst >> 20} MiB more, upstream and client included"

    asyncio.run(run())


def test_replies_that_nobody_reads_are_bounded_and_cut(tmp_path: Path) -> None:
    """Pipelined refusals are written by us alone: no upstream is there to be paused."""

    async def run() -> None:
        values = {"server_write_timeout": 0.3, "server_keep_alive_requests": 0}
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a mere WriteTransport
            before = resident_bytes()
            request = GET.replace(b"/api/v1/auth/x", b"/nowhere") * 1000
            with pytest.raises((ConnectionError, TimeoutError)):
                for _ in range(4000):
                    writer.write(request)
                    await asyncio.wait_for(writer.drain(), 5)
            assert resident_bytes() - before < 30 << 20
            writer.transport.abort()
            for _ in range(100):
                if gateway.state()["connections"] == 0:
                    break
                await asyncio.sleep(0.02)
            assert gateway.state()["connections"] == 0

    asyncio.run(run())


def test_no_request_is_served_while_replies_before_it_are_not_read(tmp_path: Path) -> None:
    """However the requests arrive: one by one they were let through once, 36 MiB a connection."""
    page = f"GET {BASE}/openapi.json HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ADMIN}\r\n\r\n".encode()

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a mere WriteTransport
            sent = 0

            async def send_one() -> None:
                nonlocal sent
                await client.send(page)
                sent += 1
                await until(lambda: connection._requests == sent or connection._is_write_paused)

            await until(lambda: gateway._front.connections)
            (connection,) = gateway._front.connections
            while not connection._is_write_paused:
                await send_one()
            served, unsent_bytes = connection._requests, connection._transport.get_write_buffer_size()
            for _ in range(30):
                await send_one()
            await until(lambda: len(connection._buffer) >= 30 * len(page))
            assert (connection._requests, connection._transport.get_write_buffer_size()) == (served, unsent_bytes)
            assert len(gateway._context.closing) == 1, "it has so long to read them"
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(sent):
                assert (await client.reply("GET")).status == 200
            assert len(gateway._context.closing) == 0, "who has read them is not cut later"

    asyncio.run(run())


@pytest.mark.parametrize("is_own", [True, False], ids=["our own reply", "a relayed one"])
def test_who_reads_slowly_is_not_cut_and_who_does_not_is(tmp_path: Path, is_own: bool) -> None:
    block = bytes(1 << 20)

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            await wire.send(block)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, server_keep_alive_requests=0) as gateway:
            with socket.create_connection(("127.0.0.1", gateway.port)) as client:
                client.setblocking(False)
                await until(lambda: gateway._front.connections)
                (connection,) = gateway._front.connections
                loop = asyncio.get_running_loop()
                while not connection._is_write_paused:
                    page = GET.replace(b"/api/v1/auth/x", b"/nowhere") * 200 if is_own else GET
                    await asyncio.wait_for(loop.sock_sendall(client, page), 5)
                    await until(lambda: connection._is_write_paused or (is_own and not connection._buffer))
                waiting = connection if is_own else connection._handler
                assert isinstance(waiting, ClientConnection | Forward)
                for _ in range(3):
                    unread_bytes = connection.unread_bytes()
                    while connection.unread_bytes() >= unread_bytes:
                        await loop.sock_recv(client, 1 << 20)
                        await asyncio.sleep(0.01)  # the kernel tells a little later
                    if not connection._is_write_paused:
                        return  # it has caught up
                    waiting.expired(time.monotonic())
                    assert waiting.deadline > time.monotonic() + 20
                    assert connection in gateway._front.connections
                waiting.expired(time.monotonic())
                await until(lambda: connection not in gateway._front.connections)

    asyncio.run(run())


def test_http10_is_told_that_the_connection_stays(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            for path in ("/api/v1/auth/x", "/livez", "/nowhere"):
                await client.send(f"GET {path} HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".encode())
                assert (await client.reply("GET")).one("connection") == "keep-alive"
            await client.send(b"GET /livez HTTP/1.0\r\nHost: a\r\n\r\n")
            assert (await client.reply("GET")).one("connection") == "close"

    asyncio.run(run())


@pytest.mark.parametrize("what", ["time", "room"])
def test_a_whole_request_that_waits_for_its_turn_is_no_idle_client(tmp_path: Path, what: str) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
            (connection,) = gateway._front.connections
            connection.data_received(GET)
            if what == "time":
                gateway._context.idle.discard(connection)
                connection.timed_out(time.monotonic())
            else:
                assert not connection.give_way()
            assert (await client.reply("GET")).status == 200
            assert connection in gateway._context.idle
            connection.data_received(GET[:-2])
            assert (what == "time") or connection.give_way(), "half a request is none"
            if what == "time":
                connection.timed_out(time.monotonic())
                assert (await client.reply("GET")).status == 408

    asyncio.run(run())


def test_what_befell_a_connection_before_it_was_accepted_is_no_fault_of_ours(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            (acceptor,) = gateway._front._acceptors
            with mock.patch.object(acceptor, "_socket") as listener:
                listener.accept.side_effect = OSError(errno.EPROTO, "x")
                assert not acceptor._accept()
                listener.accept.side_effect = OSError(errno.EBADF, "x")
                with pytest.raises(OSError, match="x"):
                    acceptor._accept()

    asyncio.run(run())


def test_who_reads_its_reply_gives_no_room_and_the_next_does(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            running(tmp_path, auth, server_max_connections=2) as gateway,
            raw_client(gateway.port) as slow,
            raw_client(gateway.port) as idle,
        ):
            assert (await ask_on(slow, "GET", "/api/v1/auth/x")).status == 200
            (reading,) = (c for c in gateway._front.connections if c._requests == 1)
            assert (await ask_on(idle, "GET", "/api/v1/auth/x")).status == 200
            with mock.patch.object(reading, "_transport", wraps=reading._transport) as transport:
                transport.get_write_buffer_size.return_value = 1
                async with raw_client(gateway.port) as third:
                    assert (await ask_on(third, "GET", "/api/v1/auth/x")).status == 200
            assert await idle.reader.read() == b""
            assert (await ask_on(slow, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


def test_a_fault_of_ours_amid_a_relayed_500_is_no_second_reply(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\nhalf")
        await asyncio.sleep(20)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(GET)
            assert (await client.reader.readuntil(b"half")).startswith(b"HTTP/1.1 500 ")
            (connection,) = gateway._front.connections
            connection.crash()
            with contextlib.suppress(ConnectionError):
                assert await client.reader.read() == b""

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "is_long"),
    [("/%D0%B0" * 90 + "/x" * 1000, False), ("/%D0%B0" * 400, True), ("/x" * 2000, False)],
    ids=["some escapes", "many escapes", "none"],
)
def test_a_path_full_of_escapes_waits_for_its_turn(tmp_path: Path, path: str, is_long: bool) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            with mock.patch.object(gateway._batch, "add_long", wraps=gateway._batch.add_long) as add_long:
                await client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                assert (await client.reply("GET")).status == 404
            assert add_long.called == is_long

    asyncio.run(run())


def test_a_full_log_stalls_requests_where_that_was_asked_for(tmp_path: Path) -> None:
    values = {"log_when_full": "stall", "log_queue_rows": 2, "log_flush_rows": 1}

    async def run() -> None:
        release = threading.Event()
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            gateway.journal._database.submit(lambda connection: release.wait(20))  # the writer is busy
            for _ in range(2):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert gateway.journal.is_full(0)
            asking = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/x"))
            await asyncio.sleep(0.2)
            assert not asking.done()
            release.set()
            assert (await asyncio.wait_for(asking, 10)).status == 200
            assert gateway.journal.stats().rows_shed == 0

    asyncio.run(run())


def test_rows_that_are_not_handed_over_yet_stall_requests_too(tmp_path: Path) -> None:
    """Or a batch would not find the room that was there for its first row."""
    values = {"log_when_full": "stall", "log_queue_rows": 5, "log_flush_rows": 3, "log_flush_interval": 30.0}

    async def run() -> None:
        release = threading.Event()
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            gateway.journal._database.submit(lambda connection: release.wait(20))
            for _ in range(5):
                assert not gateway._recorder.is_stalled
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert gateway._recorder.is_stalled
            release.set()
            await until(lambda: not gateway._recorder.is_stalled)
            assert gateway.journal.stats().rows_shed == 0

    asyncio.run(run())


def test_a_full_log_sheds_rows_and_counts_them_by_default(tmp_path: Path) -> None:
    async def run() -> None:
        release = threading.Event()
        async with upstream() as auth, running(tmp_path, auth, log_queue_rows=2, log_flush_rows=1) as gateway:
            gateway.journal._database.submit(lambda connection: release.wait(20))
            for _ in range(5):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            page = json_of(await ask(gateway.port, "GET", "/health"))
            release.set()
            assert page["request_log"]["rows_shed"] == 3
            assert page["request_log"]["status"] == "shedding"

    asyncio.run(run())


def test_no_task_per_request_and_no_sqlite_on_the_path(tmp_path: Path) -> None:
    async def run() -> None:
        made: list[str] = []
        loop = asyncio.get_running_loop()
        async with upstream() as auth, running(tmp_path, auth, auth, log_flush_interval=30.0) as gateway:
            async with raw_client(gateway.port) as client:
                bearer = token()
                await ask_on(client, "GET", "/api/v1/content/x", bearer=bearer)  # dials: the one task there may be
                gateway.catalog.close()
                gateway.journal.close()

                def factory(owner: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
                    made.append(str(work))
                    return asyncio.Task(work, loop=owner, **options)

                loop.set_task_factory(factory)
                for _ in range(20):
                    assert (await ask_on(client, "GET", "/api/v1/content/x", bearer=bearer)).status == 200
                loop.set_task_factory(None)
                assert made == []
            gateway._recorder._ended.clear()

    asyncio.run(run())


def test_waiting_for_a_connection_ends_in_time(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await release.wait()
        await wire.send(OK)

    async def run() -> None:
        values = {"upstream_max_connections": 1, "upstream_queue_timeout": 0.2, "upstream_retry_count": 0}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            first = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/x"))
            while not auth.seen:
                await asyncio.sleep(0.01)
            late = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (late.status, json_of(late)["code"], late.one("retry-after")) == (503, "overloaded", "1")
            release.set()
            assert (await first).status == 200
            items = json_of(await ask(gateway.port, "GET", f"{BASE}/logs?reason=overloaded", bearer=ADMIN))["items"]
            assert [(row["attempts"], row["error_message"]) for row in items] == [(0, "no free connection in time")]

    asyncio.run(run())


def test_who_waits_behind_others_for_all_his_time_is_not_held_against_the_upstream(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await release.wait()
        await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, upstream_max_connections=1) as gateway:
            short = {"path_pattern": "/short", "target_service": "auth", "is_public": True, "timeout": 0.2}
            assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=short)).status == 201
            first = asyncio.create_task(ask(gateway.port, "GET", "/api/v1/auth/x"))
            while not auth.seen:
                await asyncio.sleep(0.01)
            late = await ask(gateway.port, "GET", "/short")
            release.set()
            assert (late.status, json_of(late)["code"], (await first).status) == (503, "overloaded", 200)
            (row,) = json_of(await ask(gateway.port, "GET", f"{BASE}/logs?path=/short", bearer=ADMIN))["items"]
            assert (row["attempts"], row["error_message"]) == (0, "no free connection within 0.2 s")
            assert gateway.breakers.status("auth", time.monotonic())["failure_count"] == 0

    asyncio.run(run())


def test_one_address_can_be_held_to_a_number_of_connections(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            running(tmp_path, auth, server_max_connections_per_ip=2) as gateway,
            raw_client(gateway.port) as first,
            raw_client(gateway.port) as second,
        ):
            assert (await ask_on(second, "GET", "/api/v1/auth/x")).status == 200
            async with raw_client(gateway.port) as third:
                reply = await third.reply()
                assert (reply.status, reply.one("retry-after"), json_of(reply)["code"]) == (503, "1", "overloaded")
                assert json_of(reply)["detail"] == "too many connections of this address"
            assert (await ask_on(first, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())
