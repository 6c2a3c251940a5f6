"""What several policies make of one request: each alone is tested beside its stage."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.gateway.gateway import Gateway
from tests.fakes import OK, Reply, Seen, Wire, upstream
from tests.harness import ADMIN, ask, json_of, running, settings_for, token
from tests.world import until

BASE = "/api/v1/gateway"
APP = "https://app.example"
CORS = {"cors_enabled": True, "cors_allow_origins": (APP,), "cors_allow_credentials": True}
FROM_APP = {"Origin": APP}
ALLOWED = {
    "access-control-allow-origin": [APP],
    "access-control-allow-credentials": ["true"],
    "vary": ["Origin"],
}
_DAY_S = 86_400


async def _script(seen: Seen, wire: Wire) -> None:
    word = seen.target.rpartition("/")[2]
    if word == "close":
        wire.close()
        return
    own = b"HTTP/1.1 503 x\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Max-Age: 1\r\nContent-Length: 0\r\n\r\n"
    await wire.send(own if word == "503" else OK)


async def _add_rule(gateway: Gateway, **fields: Any) -> str:
    """One token a day for everybody, but for what `fields` say."""
    body = {"limit_type": "global", "max_requests": 1, "window_seconds": _DAY_S, **fields}
    reply = await ask(gateway.port, "POST", f"{BASE}/config/rate-limits", bearer=ADMIN, body=body)
    assert reply.status == 201, reply.body
    return str(json_of(reply)["id"])


def _all(reply: Reply, name: str) -> list[str]:
    return [value for key, value in reply.headers if key.lower() == name]


def _lowest(gateway: Gateway, rule: str) -> int:
    """As /rate-limits shows it; to ask for that would spend."""
    return next(int(row["lowest_tokens"]) for row in gateway._console.limits_status() if row["name"] == rule)


ASKED: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "served": (200, "GET", "/api/v1/auth/x", {}),
    "an upstream's own answer": (503, "GET", "/api/v1/auth/503", {}),
    "no route": (404, "GET", "/nowhere", {}),
    "no token": (401, "GET", "/api/v1/content/x", {}),
    "a forged token": (401, "GET", "/api/v1/content/x", {"bearer": "a.b.c"}),
    "two tokens": (400, "GET", "/api/v1/content/x", {"headers": {"Authorization": "Bearer a b"}}),
    "not the role": (403, "GET", f"{BASE}/routes", {"bearer": token()}),
    "a slash in disguise": (400, "GET", "/api/v1/auth/a%2Fb", {}),
    "too long a body": (413, "POST", "/api/v1/auth/x", {"body": b"x" * 1001}),
    "an odd expectation": (417, "GET", "/api/v1/auth/x", {"headers": {"Expect": "more"}}),
    "TRACE": (501, "TRACE", "/api/v1/auth/x", {}),
    "closed by the upstream": (502, "GET", "/api/v1/auth/close", {}),
    "bad fields": (422, "POST", f"{BASE}/routes", {"bearer": ADMIN, "body": {}}),
    "another method": (405, "PATCH", f"{BASE}/routes", {"bearer": ADMIN}),
    "spent": (429, "GET", "/spent", {}),
    "spent, HEAD": (429, "HEAD", "/spent", {}),
    "its circuit is open": (503, "GET", "/api/v1/content/x", {"bearer": token()}),
}


@pytest.mark.parametrize(("status", "method", "target", "more"), ASKED.values(), ids=ASKED.keys())
def test_whatever_the_answer_is_a_browser_may_read_it(
    tmp_path: Path, status: int, method: str, target: str, more: dict[str, Any]
) -> None:
    """Or it reports a CORS error in place of the true one (CONVENTIONS 8: own errors)."""

    async def run() -> None:
        options = {**CORS, "server_max_body_bytes": 1000, "upstream_retry_count": 0, "breaker_failure_threshold": 1}
        async with (
            upstream(_script) as auth,
            upstream(_script) as content,
            running(tmp_path, auth, content, **options) as gateway,
        ):
            await _add_rule(gateway, path_pattern="/spent")
            await ask(gateway.port, "GET", "/spent")
            await ask(gateway.port, "GET", "/api/v1/content/close", bearer=token())  # which opens its circuit
            headers = {**FROM_APP, **more.get("headers", {})}
            reply = await ask(gateway.port, method, target, **{**more, "headers": headers})
            assert reply.status == status
            assert {name: _all(reply, name) for name in ALLOWED} == ALLOWED
            assert not _all(reply, "access-control-max-age")
            exposed = _all(reply, "access-control-expose-headers")[0].lower().split(", ")
            told = ("x-request-id", "ratelimit", "ratelimit-policy", "x-ratelimit-limit", "x-ratelimit-remaining")
            for name in (*told, "x-ratelimit-reset"):
                assert (len(_all(reply, name)), name in exposed) == (1, True), name
            evil = {**more, "headers": {**headers, "Origin": "https://evil.example"}}
            foreign = await ask(gateway.port, method, target, **evil)
            assert not _all(foreign, "access-control-allow-origin")
            assert _all(foreign, "vary") == ["Origin"]

    asyncio.run(run())


def test_a_preflight_to_a_limited_path_is_free_and_is_answered_when_nothing_is_left(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, upstream() as content, running(tmp_path, auth, content, **CORS) as gateway:
            await _add_rule(gateway, path_pattern="/api/v1/content/*", max_requests=2)
            asked = {**FROM_APP, "Access-Control-Request-Method": "PUT"}
            for method, status in (
                ("OPTIONS", 204),
                ("PUT", 200),
                ("OPTIONS", 204),
                ("PUT", 200),
                ("PUT", 429),
                ("OPTIONS", 204),
            ):
                bearer = token() if method == "PUT" else None
                headers = FROM_APP if method == "PUT" else asked
                reply = await ask(gateway.port, method, "/api/v1/content/x", bearer=bearer, headers=headers)
                assert reply.status == status
                assert bool(_all(reply, "ratelimit")) is (method == "PUT")
            assert [seen.method for seen in content.seen] == ["PUT", "PUT"]

    asyncio.run(run())


def _left(reply: Reply, rule: str) -> int:
    """Of its tokens, as the RateLimit field says."""
    items = dict(item.split(";r=") for item in _all(reply, "ratelimit")[0].split(","))
    return int(items[f'"{rule}"'].partition(";")[0])


def test_a_rule_that_is_changed_while_half_empty_stays_so_and_fills_at_the_new_pace(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            rule = await _add_rule(gateway, name="r", max_requests=10)

            async def change(**fields: Any) -> None:
                path = f"{BASE}/config/rate-limits/{rule}"
                assert (await ask(gateway.port, "PUT", path, bearer=ADMIN, body=fields)).status == 200

            async def left() -> int:
                return _left(await ask(gateway.port, "GET", "/api/v1/auth/x"), "r")

            assert [await left() for _ in range(4)] == [9, 8, 7, 6]  # and the write asks as well
            await change(max_requests=1000, window_seconds=7 * _DAY_S)
            assert await left() == 499
            await change(mode="observe")
            await ask(gateway.port, "GET", "/api/v1/auth/x")
            await change(mode="enforce", window_seconds=1)
            await until(lambda: _lowest(gateway, "r") == 1000)

    asyncio.run(run())


def test_settings_read_anew_change_a_half_empty_bucket_in_the_same_way(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            numbers = {"limits_per_ip": 10, "limits_window": _DAY_S}
            async with Gateway(settings_for(tmp_path, {"auth": auth.url}, **numbers)) as gateway:

                async def left() -> int:
                    return _left(await ask(gateway.port, "GET", "/api/v1/auth/x"), "per_ip")

                assert [await left() for _ in range(5)] == [9, 8, 7, 6, 5]
                await gateway.reload(settings_for(tmp_path, {"auth": auth.url}, **{**numbers, "limits_per_ip": 100}))
                assert await left() == 49
                await gateway.reload(settings_for(tmp_path, {"auth": auth.url}, limits_per_ip=100, limits_window=1.0))
                await until(lambda: _lowest(gateway, "per_ip") == 100)

    asyncio.run(run())


def test_who_comes_as_ipv4_through_a_socket_for_both_is_counted_logged_and_trusted_as_ipv4(tmp_path: Path) -> None:
    """systemd's sockets are such, unless BindIPv6Only says otherwise."""

    async def run() -> None:
        both = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        both.listen()
        both.setblocking(False)
        async with upstream() as auth:
            settings = settings_for(tmp_path, {"auth": auth.url}, server_trusted_proxies="127.0.0.1", limits_per_ip=10)
            async with Gateway(settings, inherited=[("", both)]) as gateway:
                for number, said in enumerate(("", "::ffff:192.0.2.1", "192.0.2.1"), 1):
                    headers = {"X-Forwarded-For": said} if said else {}
                    reply = await ask(gateway.port, "GET", "/api/v1/auth/x", headers=headers)
                    assert _left(reply, "per_ip") == (9 if number < 3 else 8)
                assert [seen.one("x-real-ip") for seen in auth.seen] == ["127.0.0.1", "192.0.2.1", "192.0.2.1"]
                assert auth.seen[0].one("x-forwarded-for") == "127.0.0.1"
                logged = json_of(await ask(gateway.port, "GET", f"{BASE}/logs?client_ip=127.0.0.1", bearer=ADMIN))
                assert [row["path"] for row in logged["items"]] == ["/api/v1/auth/x"]

    asyncio.run(run())
