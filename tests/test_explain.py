"""What explain says for a request is what serving it then does; and it spends and contacts nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.cli.offline import Offline
from engadi_gateway.explain import MistakenError, explain, raw_head
from tests.fakes import Reply, Seen, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running, settings_for, token

BASE = "/api/v1/gateway"


async def _serve(port: int, request: dict[str, Any]) -> Reply:
    """Send the very bytes that explain looked at."""
    headers = list(request.get("headers", {}).items())
    raw = raw_head(request["method"], request["path"], request.get("host", "localhost"), headers, request.get("token"))
    async with raw_client(port) as client:
        await client.send(raw)
        return await client.reply(request["method"])


async def _rows(port: int) -> dict[str, dict[str, Any]]:
    """The log by request id."""
    rows: dict[str, dict[str, Any]] = {}
    cursor: str | None = ""
    while cursor is not None:
        reply = await ask(port, "GET", f"{BASE}/logs?limit=500{cursor}", bearer=ADMIN)
        page = json_of(reply)
        rows |= {row["request_id"]: row for row in page["items"]}
        cursor = f"&cursor={page['next']}" if page["next"] else None
    return rows


def _sent(seen: Seen) -> list[str]:
    """The head that an upstream got, with what differs for every request, and credentials, as explain shows them."""
    head = seen.raw_head.split(b"\r\n\r\n")[-2]  # the last one of its connection
    lines = head.decode("latin-1").split("\r\n")
    lines = [re.sub(r"^X-Request-ID: .*", "X-Request-ID: 00000000-0000-4000-8000-000000000000", line) for line in lines]
    return [re.sub(r"(?i)^(authorization|cookie): .*", r"\1: ***", line) for line in lines]


async def _explain(port: int, **body: Any) -> Any:
    reply = await ask(port, "POST", f"{BASE}/explain", bearer=ADMIN, body=body)
    assert reply.status == 200, reply.body
    return json_of(reply)


def test_explaining_spends_nothing_and_contacts_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            rule = {
                "name": "auth-only",
                "limit_type": "per_endpoint",
                "max_requests": 2,
                "window_seconds": 3600,
                "path_pattern": "/api/v1/auth/*",
            }
            assert (
                await ask(gateway.port, "POST", f"{BASE}/config/rate-limits", bearer=ADMIN, body=rule)
            ).status == 201
            for _ in range(5):
                told = await _explain(gateway.port, method="GET", path="/api/v1/auth/x")
                assert (told["verdict"], told["reason"]) == ("serve", "ok")
                assert [row["tokens"] for row in told["limits"] if row["name"] == "auth-only"] == [2.0]
            assert auth.raw == []
            assert gateway.breakers.names() in ([], ["auth"])

    asyncio.run(run())


def test_candidates_say_why_they_lost(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            more = (
                {"path_pattern": "/api/v1/auth/{id}", "methods": ["POST"]},
                {"path_pattern": "/api/*"},
                {"path_pattern": "/api/v1/auth/x", "host": "other.test"},
                {"path_pattern": "/api/v1/auth/x", "is_active": False, "priority": 5},
            )
            for route in more:
                body = {"target_service": "auth", **route}
                assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=body)).status == 201
            told = await _explain(gateway.port, method="GET", path="/api/v1/auth/x", host="h")
            why = {row["path_pattern"] + str(row["priority"]): row["why"] for row in told["candidates"]}
            assert why["/api/v1/auth/*0"] == "won"
            assert len(told["candidates"]) == 5
            assert sum(reason == "won" for reason in why.values()) == 1

    asyncio.run(run())


def test_credentials_are_not_shown(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            secret = token("alice")
            body = {"method": "GET", "path": "/api/v1/content/x", "headers": {"Cookie": "hidden=1"}}
            told = await _explain(gateway.port, **body, token=secret)
            assert {"Authorization: ***", "Cookie: ***", "X-User-ID: alice"} <= set(told["upstream"]["head"])
            assert secret not in str(told)
            assert "hidden" not in str(told)

    asyncio.run(run())


def test_a_trace_that_would_begin_is_shown_online_and_offline(tmp_path: Path) -> None:
    trace, broken = re.compile("traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00"), {"traceparent": "broken"}

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            online = await _explain(gateway.port, method="GET", path="/api/v1/auth/x", headers=broken)
            parts: dict[str, Any] = {"host": "h", "headers": list(broken.items()), "token": None}
            offline = Offline(gateway.settings).explain("GET", "/api/v1/auth/x", client_ip="127.0.0.1", **parts)
            for told in (online, offline):
                assert len([line for line in told["upstream"]["head"] if trace.fullmatch(line)]) == 1

    asyncio.run(run())


BIG = "a" * 8000
SPECIAL: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "a loop": ({"method": "GET", "path": "/api/v1/auth/x", "headers": {"Via": "1.1 {instance}"}}, "loop", 502),
    "another's Via": ({"method": "GET", "path": "/api/v1/auth/x", "headers": {"Via": "1.1 other"}}, "ok", None),
    "the last hop": ({"method": "OPTIONS", "path": "/api/v1/auth/x", "headers": {"Max-Forwards": "0"}}, "options", 204),
    "one more hop": ({"method": "OPTIONS", "path": "/api/v1/auth/x", "headers": {"Max-Forwards": "1"}}, "ok", None),
    "an encoded slash": ({"method": "GET", "path": "/api/v1/auth/%2fx"}, "bad_request", 400),
    "a preflight": (
        {"method": "OPTIONS", "path": "/api/v1/auth/x",
         "headers": {"Origin": "https://app.test", "Access-Control-Request-Method": "PUT"}}, "preflight", 204),
    "a method that is not there": ({"method": "POST", "path": "/health"}, "method_not_allowed", 405),
    "a hidden route": ({"method": "GET", "path": "/nowhere"}, "no_route", 404),
    "what is stripped": ({"method": "GET", "path": "/strip/x?y", "headers": {"X_Odd": "1", "Keep-Alive": "2"}}, "ok", None),
    "an absolute target": ({"method": "GET", "path": "http://h.test/api/v1/auth/x", "host": "other"}, "ok", None),
    "an upgrade": (
        {"method": "GET", "path": "/api/v1/auth/x", "headers": {"Connection": "upgrade", "Upgrade": "x"}}, "ok", None),
}  # fmt: skip


def test_special_requests_are_explained_as_they_are_served(tmp_path: Path) -> None:
    values: dict[str, Any] = {"cors_enabled": True, "cors_allow_origins": ("https://app.test",)}

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            route = {"path_pattern": "/strip/*", "target_service": "auth", "is_public": True, "strip_prefix": True}
            assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
            for name, (request, reason, status) in SPECIAL.items():
                text = json.dumps(request).replace("{instance}", gateway._context.instance.decode())
                told = await _explain(gateway.port, **json.loads(text))
                assert (name, told["reason"], told["status"]) == (name, reason, status)
                before = len(auth.seen)
                reply = await _serve(gateway.port, json.loads(text))
                assert (name, reply.status) == (name, status or 200)
                heads = [_sent(seen) for seen in auth.seen[before:]]
                assert heads == ([told["upstream"]["head"]] if reason == "ok" else []), name
                row = (await _rows(gateway.port))[reply.one("x-request-id")]
                assert (row["reason"], row["route_id"]) == (reason, told["route"]), name

    asyncio.run(run())


UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "a head beyond the limit": ({"headers": {"X": BIG, "Y": BIG, "Z": BIG}}, "headers_too_large"),
    "two words": ({"path": "/a b"}, "bad_request"),
    "two hosts": ({"headers": {"Host": "b"}}, "bad_request"),
    "no header name": ({"headers": {"a b": "c"}}, "bad_request"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_could_not_be_read_is_said_with_the_reason_it_would_get(tmp_path: Path, name: str) -> None:
    changes, reason = UNREADABLE[name]
    request = {"method": "GET", "path": "/api/v1/auth/x", **changes}

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            reply = await ask(gateway.port, "POST", f"{BASE}/explain", bearer=ADMIN, body=request)
            assert reply.status == 422
            assert json_of(reply)["errors"][0]["detail"].startswith(f"{reason}: ")
            served = await _serve(gateway.port, request)
            assert json_of(served)["code"] == reason

    asyncio.run(run())


#: Heads that can be read and are refused all the same: they are requests, logged and limited.
REFUSED: dict[str, tuple[dict[str, Any], str, int]] = {
    "out of the root": ({"path": "/.."}, "bad_request", 400),
    "a NUL": ({"path": "/%00?key=secret"}, "bad_request", 400),
    "no path": ({"path": "x"}, "bad_request", 400),
    "no host": ({"host": ""}, "bad_request", 400),
    "a long target": ({"path": f"/{BIG}{BIG[:300]}"}, "uri_too_long", 414),
    "a body beyond the limit": ({"headers": {"Content-Length": "99999999"}}, "body_too_large", 413),
    "too many lines": ({"headers": {f"X{n}": "y" for n in range(100)}}, "headers_too_large", 431),
    "two tokens": ({"headers": {"Authorization": "Bearer x"}, "token": "y"}, "bad_request", 400),
    "length and coding": ({"headers": {"Content-Length": "1", "Transfer-Encoding": "chunked"}}, "bad_request", 400),
    "an expectation": ({"headers": {"Expect": "tea"}}, "expectation_failed", 417),
    "chunks and an expectation": (
        {"headers": {"Expect": "tea", "Transfer-Encoding": "chunked"}}, "expectation_failed", 417),
    "TRACE": ({"method": "TRACE"}, "not_implemented", 501),
    "HEAD": ({"method": "HEAD", "path": "/.."}, "bad_request", 400),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_refused_is_a_request_like_any(tmp_path: Path, name: str) -> None:
    changes, reason, status = REFUSED[name]
    request = {"method": "GET", "path": "/api/v1/auth/x", **changes}
    request["headers"] = {**request.get("headers", {}), "Origin": "https://app.test"}
    values: dict[str, Any] = {"cors_enabled": True, "cors_allow_origins": ("https://app.test",), "limits_per_ip": 7}

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            parts = {"host": request.get("host", "h"), "token": request.get("token"), "client_ip": "127.0.0.1"}
            headers = list(request["headers"].items())
            told = explain(gateway._console, method=request["method"], path=request["path"], headers=headers, **parts)
            assert (told["verdict"], told["reason"], told["status"]) == ("refuse", reason, status)
            served = await _serve(gateway.port, request)
            assert served.status == status
            assert served.is_whole
            assert served.one("access-control-allow-origin") == "https://app.test"
            assert served.one("x-ratelimit-remaining") == "6", "guessing is not free"
            assert served.one("connection") == "close"
            if request["method"] == "HEAD":
                assert served.body == b""
            else:
                assert json_of(served)["code"] == reason
            assert auth.raw == []
            row = (await _rows(gateway.port))[served.one("x-request-id")]
            assert (row["method"], row["reason"], row["status_code"]) == (request["method"], reason, status)
            path = request["path"].partition("?")[0]
            assert row["path"] == path[:1024]

    asyncio.run(run())


def test_a_preflight_is_looked_up_by_the_method_it_asks_about(tmp_path: Path) -> None:
    values: dict[str, Any] = {"cors_enabled": True, "cors_allow_origins": ("https://app.test",)}

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            route = {"path_pattern": "/api/v1/auth/x", "target_service": "auth", "methods": ["PUT"]}
            assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
            headers = {"Origin": "https://app.test", "Access-Control-Request-Method": "PUT"}
            told = await _explain(gateway.port, method="OPTIONS", path="/api/v1/auth/x", headers=headers)
            assert [row["id"] for row in told["candidates"] if row["why"] == "won"] == [told["route"]]

    asyncio.run(run())


def test_a_stage_that_would_have_to_ask_says_whom(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth, jwt_mode="remote") as gateway:
            told = explain(
                gateway._console,
                method="GET",
                path="/api/v1/content/x",
                host="h",
                headers=[],
                token="t",
                client_ip="::1",
            )
            assert (told["verdict"], told["would_ask"], told["status"]) == ("wait", "remote", None)
            assert told["jwt"] == {"verdict": "would wait", "asks": "the auth service"}
            assert [rule["name"] for rule in told["limits"]] == ["per_ip"], "what it costs to have somebody asked"
            assert (told["breaker"], told["upstream"]) == (None, None)
            assert auth.raw == []

    asyncio.run(run())


@pytest.mark.parametrize("address", ["", "nonsense", "a:b", "1.2.3"])
def test_a_client_without_an_address_is_no_request(tmp_path: Path, address: str) -> None:
    offline = Offline(settings_for(tmp_path, {"auth": "http://127.0.0.1:1"}))
    with pytest.raises(MistakenError) as raised:
        offline.explain("GET", "/api/v1/auth/x", host="h", headers=[], token=None, client_ip=address)
    assert raised.value.refusal.detail == "the client's address is none"


def test_a_trusted_peers_word_is_taken_as_in_traffic(tmp_path: Path) -> None:
    proxies = (ipaddress.ip_network("127.0.0.0/8"),)

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, server_trusted_proxies=proxies) as gateway:
            headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X-Request-ID": "from-the-edge"}
            request = {"method": "GET", "path": "/api/v1/auth/x", "headers": headers}
            told = await _explain(gateway.port, **request, client_ip="::ffff:127.0.0.1")
            assert told["client_ip"] == "203.0.113.7"
            await _serve(gateway.port, request)
            raw = auth.seen[0].raw_head.partition(b"\r\n\r\n")[0].decode("latin-1")
            assert raw.split("\r\n") == told["upstream"]["head"]

    asyncio.run(run())


def test_offline_and_running_say_the_same(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            offline = Offline(gateway.settings)
            for method, path, bearer in (
                ("GET", "/api/v1/auth/x", None),
                ("GET", "/api/v1/content/x", token("alice")),
                ("GET", "/api/v1/content/x", None),
                ("GET", "/nowhere", None),
                ("POST", f"{BASE}/routes", ADMIN),
            ):
                parts: dict[str, Any] = {"host": "h", "headers": [], "token": bearer, "client_ip": "192.0.2.1"}
                running_says = explain(gateway._console, method=method, path=path, **parts)
                offline_says = offline.explain(method, path, **parts)
                for answer in (running_says, offline_says):
                    if answer["upstream"]:
                        answer["upstream"]["head"] = [
                            line
                            for line in answer["upstream"]["head"]
                            if not line.startswith(("Via:", "X-Forwarded-Port:"))
                        ]
                    answer["reply_headers"] = [
                        line for line in answer["reply_headers"] if line[0] != "X-RateLimit-Reset"
                    ]
                assert running_says == offline_says
                assert json.loads(json.dumps(running_says)) == running_says

    asyncio.run(run())


def test_the_admin_listener_is_explained_where_there_is_one(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, admin_listen="127.0.0.1:0") as gateway:
            admin_port = int(gateway.addresses[-1].rpartition(":")[2])
            for path, on_public, on_admin in (
                (f"{BASE}/routes", "no_route", "ok"),
                ("/api/v1/auth/x", "ok", "no_route"),
                ("/health", "ok", "ok"),
            ):
                for listener, port, wanted in (("public", gateway.port, on_public), ("admin", admin_port, on_admin)):
                    asked = {"method": "GET", "path": path, "token": ADMIN}
                    told = await _explain(admin_port, **asked, listener=listener)
                    offline = Offline(gateway.settings).explain(
                        "GET",
                        path,
                        host="h",
                        headers=[],
                        token=ADMIN,
                        client_ip="127.0.0.1",
                        is_admin=listener == "admin",
                    )
                    served = await _serve(port, asked)
                    code = json_of(served)["code"] if served.status >= 400 else "ok"
                    assert [told["reason"], offline["reason"], code] == [wanted] * 3
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            reply = await ask(
                gateway.port, "POST", f"{BASE}/explain", bearer=ADMIN,
                body={"method": "GET", "path": "/", "listener": "admin"},
            )  # fmt: skip
            assert (reply.status, "admin.listen is empty" in reply.body.decode()) == (422, True)

    asyncio.run(run())


def test_what_explain_says_is_what_serving_does(tmp_path: Path) -> None:
    """Random requests against random state: buckets run dry and circuits open on the way."""
    dice = random.Random(7)
    tokens = [None, token("alice"), token("bob", "admin"), token("carol", ttl_s=-100), "nonsense"]
    paths = [
        "/api/v1/auth/x",
        "/api/v1/content/x",
        "/api/v1/content/../auth/y",
        "/nowhere",
        "/only",
        f"{BASE}/stats",
        f"{BASE}/stats?hours=0",
        f"{BASE}/logs?start_date=2024-13-45",
        f"{BASE}/logs?end_date=2024-02-31T00:00:00Z",
        f"{BASE}/logs?cursor=zzz",
        f"{BASE}/logs?start_date=2024-12-31T00:00:00+02:00",
        f"{BASE}/routes",
        f"{BASE}/routes/no-uuid",
        "/health",
    ]
    origins = [None, "https://app.test", "https://evil.test"]

    async def run() -> None:
        values: dict[str, Any] = {
            "cors_enabled": True,
            "cors_allow_origins": ("https://app.test",),
            "breaker_failure_threshold": 2,
            "upstream_retry_count": 0,
        }
        async with upstream() as auth, upstream() as gone:
            await gone.stop()
            async with running(tmp_path, auth, gone, **values) as gateway:
                own = {
                    "path_pattern": "/only",
                    "target_service": "auth",
                    "methods": ["POST"],
                    "required_roles": ["admin"],
                }
                assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=own)).status == 201
                rule = {
                    "name": "few",
                    "limit_type": "per_user",
                    "max_requests": 12,
                    "window_seconds": 3600,
                    "path_pattern": "/api/v1/auth/*",
                }
                assert (
                    await ask(gateway.port, "POST", f"{BASE}/config/rate-limits", bearer=ADMIN, body=rule)
                ).status == 201
                served: dict[str, int] = {}
                promises: dict[str, dict[str, Any]] = {}
                for _ in range(400):
                    method, path = dice.choice(["GET", "POST", "OPTIONS"]), dice.choice(paths)
                    bearer, origin = dice.choice(tokens), dice.choice(origins)
                    if path.startswith(BASE) and dice.random() < 0.5:
                        bearer = ADMIN
                    headers = {"Origin": origin} if origin else {}
                    if dice.random() < 0.5:
                        headers["Content-Type"] = "application/json"
                    if bearer is ADMIN and dice.random() < 0.2:
                        headers["Content-Length"] = "2000000"
                    if method == "OPTIONS" and origin:
                        headers["Access-Control-Request-Method"] = "POST"
                    body: dict[str, Any] = {"method": method, "path": path, "headers": headers, "host": "gateway.test"}
                    told = await _explain(gateway.port, **body, token=bearer)
                    before = len(auth.seen)
                    reply = await _serve(gateway.port, {**body, "token": bearer})
                    promises[reply.one("x-request-id")] = told
                    served[told["reason"]] = served.get(told["reason"], 0) + 1
                    if told["verdict"] == "refuse":
                        assert reply.status == told["status"], (body, told, reply)
                        if reply.body:
                            assert json_of(reply)["code"] == told["reason"]
                    elif path.startswith("/api/v1/content") and ".." not in path:
                        assert json_of(reply)["code"] == "connect_refused"
                    else:
                        assert reply.status == 200
                    heads = [_sent(seen) for seen in auth.seen[before:]]
                    assert heads == ([told["upstream"]["head"]] if reply.status == 200 and told["upstream"] else [])
                assert set(served) >= {
                    "ok",
                    "auth_missing",
                    "auth_invalid.expired",
                    "no_route",
                    "breaker_open",
                    "rate_limited",
                    "preflight",
                    "preflight_denied",
                    "unsupported_media_type",
                    "invalid_fields",
                    "bad_json",
                    "body_too_large",
                }
                rows = await _rows(gateway.port)
                for request_id, told in promises.items():
                    row = rows[request_id]
                    assert row["route_id"] == told["route"]
                    if told["verdict"] == "refuse":
                        assert row["reason"] == told["reason"]
                    else:
                        assert row["reason"] in {"ok", "connect_refused"}
            await gone.start()

    asyncio.run(run())
