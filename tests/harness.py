"""A running gateway for tests: real sockets on port 0, real sqlite files, routes to recording upstreams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.pipeline.identity import make_token
from engadi_gateway.settings.load import Settings
from tests.fakes import RawClient, Reply, Upstream, raw_client

SECRET = "a secret of the tests, long enough for HS256"


def token(sub: str = "alice", role: str | list[str] = "user", ttl_s: float = 3600, **claims: Any) -> str:
    return make_token(SECRET, "HS256", {"sub": sub, "role": role, "exp": time.time() + ttl_s, **claims})


ADMIN = token("root", "admin")


def settings_for(folder: Path, services: dict[str, str], **values: Any) -> Settings:
    defaults: dict[str, Any] = {
        "server_host": ("127.0.0.1",),
        "server_port": 0,
        "database_url": str(folder / "config.db"),
        "jwt_secret_key": SECRET,
        "health_interval": 0.0,
        "limits_per_user": 1_000_000,
        "limits_per_ip": 1_000_000,
        "log_flush_interval": 0.02,
        "upstream_retry_backoff": 0.001,
        "gateway_drain_timeout": 2.0,
    }
    return Settings.of(services, **{**defaults, **values})


@contextlib.asynccontextmanager
async def running(folder: Path, *upstreams: Upstream, **values: Any) -> AsyncIterator[Gateway]:
    """A gateway whose services `auth` (public), `content`, ... are these upstreams."""
    names = ("auth", "content", "projects", "search")
    services = {name: server.url for name, server in zip(names, upstreams, strict=False)}
    async with Gateway(settings_for(folder, services, **values)) as gateway:
        yield gateway


async def ask(
    port: int,
    method: str,
    target: str,
    *,
    bearer: str | None = None,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """One request on a connection of its own; a body that is no bytes is sent as JSON."""
    async with raw_client(port) as client:
        return await ask_on(client, method, target, bearer=bearer, body=body, headers=headers)


async def ask_on(
    client: RawClient,
    method: str,
    target: str,
    *,
    bearer: str | None = None,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway.test"]
    if bearer is not None:
        lines.append(f"Authorization: Bearer {bearer}")
    content = b""
    if body is not None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if not any(name.lower() == "content-type" for name in headers or {}):
            lines.append("Content-Type: application/json")
        lines.append(f"Content-Length: {len(content)}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    await client.send("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
    return await client.reply(method)


def json_of(reply: Reply) -> Any:
    return json.loads(reply.body)


async def rows_of(port: int) -> list[dict[str, Any]]:
    """The newest hundred rows of the request log; asking leaves one of its own, but later."""
    reply = await ask(port, "GET", "/api/v1/gateway/logs?limit=100", bearer=ADMIN)
    items: list[dict[str, Any]] = json_of(reply)["items"]
    return items


async def newest_rows(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """The newest so many rows but for those of this question itself, once they are there."""
    path = "/api/v1/gateway/logs?target_service=auth"
    async with asyncio.timeout(20):
        while len(items := json_of(await ask(gateway.port, "GET", path, bearer=ADMIN))["items"]) < count:
            await asyncio.sleep(0.01)
    return list(items[:count])


def unix_socket(gateway: Gateway) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(gateway.settings.server_unix_socket)
    return sock
