"""What of a request's head reaches the upstream, and what of a reply's head the client: RFC 9110 section 7.6."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running, token

#: Lines that a client sends, and the names (lower case) that the upstream must not have seen with these values.
FORGED: dict[str, tuple[list[str], dict[str, str]]] = {
    "identity": (["X-User-ID: root", "x-user-role: admin", "X-USER-EMAIL: a@b"], {"x-user-id": "root", "x-user-role": "admin", "x-user-email": "a@b"}),
    "any X-User": (["X-User-Anything: x"], {"x-user-anything": "x"}),
    "any X-Auth": (["X-Auth-Token: x"], {"x-auth-token": "x"}),
    "underscores": (["X_User_Id: root", "X_Forwarded_For: 6.6.6.6"], {"x_user_id": "root", "x_forwarded_for": "6.6.6.6"}),
    "mixed underscores": (["X-User_Id: root"], {"x-user_id": "root"}),
    "dots": (["X.User.Id: root"], {"x.user.id": "root"}),
    "forwarding": (
        ["X-Forwarded-For: 6.6.6.6", "X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil"],
        {"x-forwarded-for": "6.6.6.6", "x-real-ip": "6.6.6.6", "forwarded": "for=6.6.6.6", "x-forwarded-proto": "https", "x-forwarded-host": "evil"},
    ),
    "request id": (["X-Request-ID: mine"], {"x-request-id": "mine"}),
    "hop by hop": (
        ["Keep-Alive: timeout=5", "Proxy-Connection: close", "TE: trailers", "Proxy-Authorization: x", "Trailer: X", "Upgrade: h2c"],
        {"keep-alive": "timeout=5", "proxy-connection": "close", "te": "trailers", "proxy-authorization": "x", "trailer": "X", "upgrade": "h2c"},
    ),
    "h2c": (["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"], {"upgrade": "h2c", "connection": "Upgrade", "http2-settings": "x"}),
    "h2c behind websocket": (["Connection: Upgrade", "Upgrade: websocket, h2c"], {"upgrade": "websocket, h2c", "connection": "Upgrade"}),
    "named by Connection": (["Connection: close, X-Secret, x-other", "X-Secret: 1", "X-OTHER: 2"], {"x-secret": "1", "x-other": "2", "connection": "close, X-Secret, x-other"}),
    "routing overrides": (
        ["X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-Original-URI: /admin", "X-Override-URL: /admin", "X-Original-Host: a"],
        {"x-original-url": "/admin", "x-rewrite-url": "/admin", "x-original-uri": "/admin", "x-override-url": "/admin", "x-original-host": "a"},
    ),
    "other proxies' addresses": (
        ["Client-IP: 6.6.6.6", "Fastly-Client-IP: 6.6.6.6", "X-Envoy-External-Address: 6.6.6.6", "X-Azure-ClientIP: 6.6.6.6", "X-Original-Forwarded-For: 6.6.6.6"],
        {"client-ip": "6.6.6.6", "fastly-client-ip": "6.6.6.6", "x-envoy-external-address": "6.6.6.6", "x-azure-clientip": "6.6.6.6", "x-original-forwarded-for": "6.6.6.6"},
    ),
    "other proxies' users": (
        ["X-Authenticated-User: root", "X-WEBAUTH-User: root", "SSL-Client-Verify: SUCCESS", "X-Goog-Authenticated-User-Email: a@b", "X-Amzn-Oidc-Identity: root"],
        {"x-authenticated-user": "root", "x-webauth-user": "root", "ssl-client-verify": "SUCCESS", "x-goog-authenticated-user-email": "a@b", "x-amzn-oidc-identity": "root"},
    ),
    "CGI proxy": (["Proxy: http://evil"], {"proxy": "http://evil"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_what_a_client_must_not_say_is_not_said(tmp_path: Path, name: str) -> None:
    lines, forged = FORGED[name]

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            for target, bearer in (("/api/v1/auth/x", ""), ("/api/v1/content/x", f"Authorization: Bearer {token()}")):
                async with raw_client(gateway.port) as client:
                    head = [f"GET {target} HTTP/1.1", "Host: h", *lines, *([bearer] if bearer else []), "", ""]
                    await client.send("\r\n".join(head).encode())
                    assert (await client.reply()).status == 200
            for seen in auth.seen:
                for header, value in forged.items():
                    assert value not in seen.all(header)
            assert auth.seen[1].one("x-user-id") == "alice"

    asyncio.run(run())


def test_connection_cannot_strip_what_the_gateway_adds(tmp_path: Path) -> None:
    names = "X-User-ID, X-Forwarded-For, X-Request-ID, Via, Host"

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            reply = await ask(
                gateway.port, "GET", "/api/v1/content/x", bearer=token(), headers={"Connection": f"close, {names}"}
            )
            assert reply.status == 200
            seen = auth.seen[0]
            assert seen.one("x-user-id") == "alice"
            assert seen.one("x-forwarded-for") == "127.0.0.1"
            assert seen.one("via").startswith("1.1 engadi-")
            assert seen.one("host") == auth.url[7:]

    asyncio.run(run())


def test_everything_else_passes_in_order_and_as_it_was_spelt(tmp_path: Path) -> None:
    trace = b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    sent = [b"X-First: 1", b"Cookie: a=1", b"x-second: \xe4", b"Cookie: b=2", trace]

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"\r\n".join([b"GET /api/v1/auth/x HTTP/1.1", b"Host: h", *sent, b"", b""]))
            assert (await client.reply()).status == 200
            received = bytes(auth.raw[0]).split(b"\r\n")
            assert [line for line in received if line in sent] == sent
            assert received[1].startswith(b"Host: ")

    asyncio.run(run())


TRUSTED: dict[str, tuple[str, str]] = {
    "one hop": ("203.0.113.9", "203.0.113.9"),
    "a forged first": ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
    "past trusted ones": ("203.0.113.9, 127.0.0.2", "203.0.113.9"),
    "garbage stops": ("6.6.6.6, evil, 127.0.0.2", "127.0.0.2"),
    "mapped": ("::ffff:203.0.113.9", "203.0.113.9"),
    "IPv6 with a zone": ("fe80::1%eth0", "fe80::1"),
    "all trusted": ("127.0.0.3, 127.0.0.2", "127.0.0.3"),
    "nothing": ("", "127.0.0.1"),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_a_trusted_proxy_says_whom_it_speaks_for(tmp_path: Path, name: str) -> None:
    said, wanted = TRUSTED[name]

    async def run() -> None:
        values: dict[str, Any] = {"server_trusted_proxies": (ipaddress.ip_network("127.0.0.0/8"),)}
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            headers = {"X-Request-ID": "from-the-edge", "X-Forwarded-Proto": "https"}
            if said:
                headers["X-Forwarded-For"] = said
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x", headers=headers)
            seen = auth.seen[0]
            assert seen.one("x-real-ip") == wanted
            assert seen.one("x-forwarded-for") == (f"{said}, 127.0.0.1" if said else "127.0.0.1")
            assert seen.one("x-forwarded-proto") == "https"
            assert seen.one("x-request-id") == reply.one("x-request-id") == "from-the-edge"

    asyncio.run(run())


def test_a_reply_loses_its_hop_by_hop_fields_and_keeps_the_rest(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 Fine\r\nServer: origin\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
            b'Proxy-Authenticate: x\r\nX-Request-ID: theirs\r\nETag: "e"\r\nVary: Accept\r\nContent-Length: 2\r\n\r\nok'
        )

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n")
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 Fine\r\nServer: origin\r\n")
            assert b'\r\nETag: "e"\r\n' in head
            assert b"\r\nVary: Accept\r\n" in head
            lower = head.lower()
            for name in (b"x-hop", b"keep-alive", b"proxy-authenticate", b"connection", b"theirs"):
                assert name not in lower

    asyncio.run(run())


def test_an_upstreams_own_cors_and_limits_do_not_stand_beside_ours(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nX-RateLimit-Limit: 999999999\r\n"
            b'RateLimit: "theirs";r=999999999\r\nContent-Length: 0\r\n\r\n'
        )

    async def run() -> None:
        values = {"cors_enabled": True, "cors_allow_origins": ("https://app.test",)}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x", headers={"Origin": "https://app.test"})
            assert reply.one("access-control-allow-origin") == "https://app.test"
            assert reply.one("x-ratelimit-limit") == "1000000"
            assert "theirs" not in reply.one("ratelimit")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "said", "path_pattern", "shown"),
    [
        ("200 OK", "1", "", ["1"]),
        ("200 OK", "8", "", ["4"]),
        ("200 OK", "8", "/other/*", ["8"]),
        ("302 Found", "1", "", []),
        ("429 Too Many Requests", "8", "", ["8"]),
    ],
)
def test_whoever_leaves_less_is_told_and_nobody_on_redirects(
    tmp_path: Path, status: str, said: str, path_pattern: str, shown: list[str]
) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(f"HTTP/1.1 {status}\r\nX-RateLimit-Remaining: {said}\r\nContent-Length: 0\r\n\r\n".encode())

    async def run() -> None:
        rules = "/api/v1/gateway/config/rate-limits"
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            for rule in json_of(await ask(gateway.port, "GET", rules, bearer=ADMIN))["items"]:
                is_user = rule["limit_type"] == "per_user"
                change = {"is_active": False} if is_user else {"max_requests": 5, "path_pattern": path_pattern}
                assert (
                    await ask(gateway.port, "PUT", f"{rules}/{rule['id']}", bearer=ADMIN, body=change)
                ).status == 200
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert reply.all("x-ratelimit-remaining") == shown

    asyncio.run(run())


@pytest.mark.parametrize(("said", "shown"), [("1", "1"), ("2000000", "999999")])
def test_whoever_leaves_less_is_told_on_a_switch_too(tmp_path: Path, said: str, shown: str) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        lines = f"Connection: Upgrade\r\nUpgrade: echo\r\nX-RateLimit-Remaining: {said}\r\n"
        await wire.send(f"HTTP/1.1 101 x\r\n{lines}\r\n".encode())

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            lines = b"Connection: Upgrade\r\nUpgrade: echo\r\n"
            await client.send(b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n")
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 x\r\n")
            assert [line for line in head.split(b"\r\n") if b"-Remaining" in line] == [
                f"X-RateLimit-Remaining: {shown}".encode()
            ]

    asyncio.run(run())


@pytest.mark.parametrize(("sent", "seen_by_upstream"), [("3", "2"), ("1", "0"), ("0", None)])
def test_max_forwards_counts_down(tmp_path: Path, sent: str, seen_by_upstream: str | None) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            reply = await ask(gateway.port, "OPTIONS", "/api/v1/auth/x", headers={"Max-Forwards": sent})
            assert reply.status == (200 if seen_by_upstream else 204)
            assert [seen.one("max-forwards") for seen in auth.seen] == ([seen_by_upstream] if seen_by_upstream else [])

    asyncio.run(run())


def test_http_10_clients_get_no_chunks_and_no_interim_replies(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway, raw_client(gateway.port) as client:
            await client.send(b"GET /api/v1/auth/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            raw = await client.rest()
            assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
            assert raw.endswith(b"\r\nConnection: close\r\n\r\nhello")
            assert b"chunked" not in raw
            assert auth.seen[0].one("via").startswith("1.0 engadi-")

    asyncio.run(run())


def test_preserve_host_sends_the_clients_host_if_it_named_one(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            route = {
                "path_pattern": "/p", "target_service": "p", "target_url": auth.url, "is_public": True, "preserve_host": True,
            }  # fmt: skip
            assert (await ask(gateway.port, "POST", "/api/v1/gateway/routes", bearer=ADMIN, body=route)).status == 201
            assert (await ask(gateway.port, "GET", "/p")).status == 200
            async with raw_client(gateway.port) as client:
                await client.send(b"GET /p HTTP/1.0\r\n\r\n")
                assert (await client.reply()).status == 200
            async with raw_client(gateway.port) as client:
                await client.send(b"GET http://absolute.test:81/p HTTP/1.1\r\nHost: other.test\r\n\r\n")
                assert (await client.reply()).status == 200
            assert [seen.one("host") for seen in auth.seen] == ["gateway.test", auth.url[7:], "absolute.test:81"]

    asyncio.run(run())
