"""A streaming proxy on aiohttp, as one would write it by hand.

`python -m tests.bench.peers.aiohttp_proxy PORT UPSTREAM bare|full asyncio|uvloop RATE`
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

from aiohttp import ClientSession, TCPConnector, web

from tests.bench.peers.duties import Buckets, Log, Tokens
from tests.bench.requests import ORIGIN, SECRET

_HOP = frozenset(
    ("connection", "keep-alive", "transfer-encoding", "host", "upgrade", "te", "proxy-connection", "x-user-id")
)


def duties(rate: float) -> Any:
    """JWT, limits, CORS and the log, as a middleware."""
    tokens, buckets, log = Tokens(SECRET), Buckets(rate), Log("log.db")

    @web.middleware
    async def middleware(request: Any, handler: Any) -> Any:
        began = time.perf_counter()
        user = tokens.user(request.headers.get("Authorization", ""))
        request["user"] = user
        if not user:
            reply = web.Response(status=401)
        elif not buckets.spend(user, request.remote, "content"):
            reply = web.Response(status=429)
        else:
            reply = await handler(request)
        log.add(request.method, request.path, user, request.remote, reply.status, began)
        return reply

    return middleware


async def proxy(request: Any) -> Any:
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
    headers.append(("X-Forwarded-For", request.remote or ""))
    if user := request.get("user"):
        headers.append(("X-User-ID", user))
    body = request.content if request.body_exists else None
    async with request.app["session"].request(request.method, request.rel_url, headers=headers, data=body) as reply:
        out = web.StreamResponse(status=reply.status)
        for name, value in reply.headers.items():
            if name.lower() not in _HOP:
                out.headers.add(name, value)
        if request.app["is_full"] and request.headers.get("Origin") == ORIGIN:
            out.headers["Access-Control-Allow-Origin"] = ORIGIN
            out.headers["Vary"] = "Origin"
        await out.prepare(request)
        async for chunk in reply.content.iter_any():
            await out.write(chunk)
        await out.write_eof()
        return out


def application(upstream: int, rate: float, *, is_full: bool) -> Any:
    app = web.Application(middlewares=[duties(rate)] if is_full else [], client_max_size=0)
    app["is_full"] = is_full

    async def session(app: Any) -> AsyncIterator[None]:
        connector = TCPConnector(limit=0, keepalive_timeout=3600)
        app["session"] = ClientSession(f"http://127.0.0.1:{upstream}", connector=connector, auto_decompress=False)
        yield
        await app["session"].close()

    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", proxy)
    return app


def main() -> None:
    port, upstream, form, loop, rate = sys.argv[1:]
    factory = import_module("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    app = application(int(upstream), float(rate), is_full=form == "full")
    web.run_app(
        app, host="127.0.0.1", port=int(port), access_log=None, print=None, backlog=4096, loop=factory(),
        keepalive_timeout=3600,
    )  # fmt: skip


if __name__ == "__main__":
    main()
