"""A refused request leaves a row that says why, and how much was sent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engadi_gateway.errors import Fault, Reason, Refusal
from tests.fakes import Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running

BASE = "/api/v1/gateway"
JSON = "Content-Type: application/json"
WATCH = {
    "name": "watch",
    "limit_type": "global",
    "max_requests": 1,
    "window_seconds": 3600,
    "mode": "observe",
    "path_pattern": "/few",
}
FEW = {"name": "few", "limit_type": "global", "max_requests": 1, "window_seconds": 3600, "path_pattern": "/few"}


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (Refusal(Reason.NO_ROUTE), ""),
        (Refusal(Reason.BAD_REQUEST, "malformed Host"), "malformed Host"),
        (Refusal(Reason.AUTH_INVALID, word="expired"), "auth_invalid.expired"),
        (Refusal(Reason.INVALID_FIELDS, "see", faults=(Fault("/a", "b"), Fault("c", ""))), "see; /a: b; c"),
        (Refusal(Reason.INVALID_FIELDS, faults=(Fault("", "b"), Fault("", "b"))), "b"),
        (
            Refusal(Reason.INVALID_FIELDS, faults=tuple(Fault(f"/{n}", "") for n in range(50))),
            "/0; /1; /2; and 47 more",
        ),
        (
            Refusal(Reason.INVALID_FIELDS, faults=(Fault("/query/eyJ", "unknown parameter", is_theirs=True),)),
            "unknown parameter",
        ),
        (Refusal(Reason.INVALID_FIELDS, faults=(Fault("/a", "x" * 900),)), f"/a: {'x' * 196}"),
    ],
)
def test_what_a_refusal_says_to_the_log(refusal: Refusal, message: str) -> None:
    assert refusal.message == message


@pytest.mark.parametrize(
    ("reason", "message", "start", "lines", "body"),
    [
        ("bad_request", "more than one authorization field", "GET /", ("Authorization: a", "Authorization: b"), b""),
        ("no_route", None, "GET /nowhere", (), b""),
        ("no_route", None, "HEAD /nowhere", (), b""),
        ("options", None, "OPTIONS *", (), b""),
        ("auth_missing", None, "GET /api/v1/content/x", (), b""),
        ("auth_invalid.malformed", "auth_invalid.malformed", "GET /api/v1/content/x", ("Authorization: Bearer x",), b""),
        ("rate_limited", "few; observed: watch would refuse", "GET /few", (), b""),
        ("connect_refused", "127.0.0.1:PORT: Connection refused", "GET /api/v1/content/x", (f"Authorization: Bearer {ADMIN}",), b""),
        ("invalid_fields", "/query/hours: expected 1 to 168", f"GET {BASE}/stats?hours=0", (f"Authorization: Bearer {ADMIN}",), b""),
        ("invalid_fields", "unknown parameter", f"GET {BASE}/stats?secret=1", (f"Authorization: Bearer {ADMIN}",), b""),
        ("invalid_fields", "/path_pattern: is required; /target_service: is required; unknown field", f"POST {BASE}/routes",
         (f"Authorization: Bearer {ADMIN}", JSON, "Content-Length: 8"), b'{"s": 1}'),
        ("body_too_large", "longer than 1048576 bytes", f"POST {BASE}/routes",
         (f"Authorization: Bearer {ADMIN}", JSON, "Content-Length: 1048577"), b"{"),
        ("bad_json", "Expecting property name enclosed in double quotes at line 1 column 2", f"POST {BASE}/routes", (f"Authorization: Bearer {ADMIN}", JSON, "Content-Length: 1"), b"{"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_its_row_says_why_and_how_much(
    tmp_path: Path, reason: str, message: str | None, start: str, lines: tuple[str, ...], body: bytes
) -> None:
    async def run() -> None:
        async with upstream() as auth, upstream() as gone:
            await gone.stop()
            async with running(tmp_path, auth, gone, upstream_retry_count=0) as gateway:
                for rule in (FEW, WATCH):
                    made = await ask(gateway.port, "POST", f"{BASE}/config/rate-limits", bearer=ADMIN, body=rule)
                    assert made.status == 201
                await ask(gateway.port, "GET", "/few")
                async with raw_client(gateway.port) as client:
                    await client.send("\r\n".join([f"{start} HTTP/1.1", "Host: h", *lines, "", ""]).encode() + body)
                    reply = await client.reply(start.split(maxsplit=1)[0])
                row = json_of(await ask(gateway.port, "GET", f"{BASE}/logs?limit=1", bearer=ADMIN))["items"][0]
                assert (row["reason"], row["status_code"], row["bytes_out"]) == (reason, reply.status, len(reply.body))
                has_body = not start.startswith(("HEAD", "OPTIONS"))
                assert (row["error_message"], bool(reply.body)) == (
                    message and message.replace("PORT", str(gone.port)),
                    has_body,
                )
            await gone.start()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/../x", "/a%00", "/a<b"])
def test_who_sent_a_refused_head_is_whom_a_trusted_peer_names(tmp_path: Path, path: str) -> None:
    """Its id and its bucket are the client's; or one client's nonsense would cost everybody behind that peer."""
    fields = {"X-Forwarded-For": "203.0.113.7", "X-Request-ID": "lb-123"}

    async def run() -> None:
        values = {"server_trusted_proxies": "127.0.0.1", "limits_per_ip": 5}
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            reply = await ask(gateway.port, "GET", path, headers=fields)
            assert (reply.status, reply.one("x-request-id"), reply.one("x-ratelimit-remaining")) == (400, "lb-123", "4")
            other = await ask(gateway.port, "GET", "/a", headers={"X-Forwarded-For": "203.0.113.8"})
            assert other.one("x-ratelimit-remaining") == "4"
            (row,) = json_of(await ask(gateway.port, "GET", f"{BASE}/logs?request_id=lb-123", bearer=ADMIN))["items"]
            assert row["client_ip"] == "203.0.113.7"

    asyncio.run(run())


def test_what_an_observed_rule_notes_stands_beside_what_went_wrong(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        wire.close()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth) as gateway:
            rule = {**WATCH, "path_pattern": "/api/v1/auth/*"}
            assert (
                await ask(gateway.port, "POST", f"{BASE}/config/rate-limits", bearer=ADMIN, body=rule)
            ).status == 201
            for _ in range(2):
                await ask(gateway.port, "GET", "/api/v1/auth/x")
            row = json_of(await ask(gateway.port, "GET", f"{BASE}/logs?limit=1", bearer=ADMIN))["items"][0]
            noted = "observed: watch would refuse"
            assert row["error_message"] == f"closed within the reply's body; {noted}"
            asked = {"method": "GET", "path": "/api/v1/auth/x"}
            explained = json_of(await ask(gateway.port, "POST", f"{BASE}/explain", bearer=ADMIN, body=asked))
            assert explained["error_message"] == noted

    asyncio.run(run())
