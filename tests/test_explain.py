"""What explain says for a request is what serving it then does; and it spends and contacts nothing."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from tests.fakes import upstream
from tests.harness import ADMIN, ask, json_of, running, token

BASE = "/api/v1/gateway"


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


def test_a_request_that_cannot_be_read_is_a_4xx(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            for path in ("/..", "/%00", "/a b", "x"):
                reply = await ask(
                    gateway.port, "POST", f"{BASE}/explain", bearer=ADMIN, body={"method": "GET", "path": path}
                )
                assert 400 <= reply.status < 500

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
                for _ in range(150):
                    method, path = dice.choice(["GET", "POST", "OPTIONS"]), dice.choice(paths)
                    bearer, origin = dice.choice(tokens), dice.choice(origins)
                    headers = {"Origin": origin} if origin and not path.startswith(BASE) else {}
                    if method == "OPTIONS" and origin:
                        headers["Access-Control-Request-Method"] = "POST"
                    body: dict[str, Any] = {"method": method, "path": path, "headers": headers, "host": "gateway.test"}
                    told = await _explain(gateway.port, **body, token=bearer)
                    reply = await ask(gateway.port, method, path, bearer=bearer, headers=headers)
                    served[told["reason"]] = served.get(told["reason"], 0) + 1
                    if told["verdict"] == "refuse":
                        assert reply.status == told["status"], (body, told, reply)
                        if reply.body:
                            assert json_of(reply)["code"] == told["reason"]
                    elif path.startswith("/api/v1/content") and ".." not in path:
                        assert json_of(reply)["code"] == "connect_refused"
                    else:
                        assert reply.status < 500
                        assert reply.status in {200, 415, 422} or not told["upstream"]
                assert set(served) >= {
                    "ok",
                    "auth_missing",
                    "auth_invalid.expired",
                    "no_route",
                    "breaker_open",
                    "rate_limited",
                    "preflight",
                    "preflight_denied",
                }
            await gone.start()

    asyncio.run(run())
