"""A proxy on FastAPI and httpx, for uvicorn: `UPSTREAM=18100 FORM=full RATE=1000000 uvicorn ...:app`."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from tests.bench.peers.duties import Buckets, Log, Tokens
from tests.bench.requests import ORIGIN, SECRET

_HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "host", "upgrade", "te", "x-user-id"))
_IS_FULL = os.environ.get("FORM") == "full"


@asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=2048, max_keepalive_connections=2048, keepalive_expiry=3600)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{os.environ['UPSTREAM']}", limits=limits, timeout=30
    ) as client:
        app.state.client = client
        if _IS_FULL:
            app.state.tokens, app.state.log = Tokens(SECRET), Log("log.db")
            app.state.buckets = Buckets(float(os.environ["RATE"]))
        yield


app = FastAPI(lifespan=_lifespan, openapi_url=None)
if _IS_FULL:
    app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["*"], allow_headers=["Authorization"])


async def _forward(request: Request, user: str) -> Any:
    client = request.app.state.client
    headers = [(name, value) for name, value in request.headers.raw if name.decode("latin-1").lower() not in _HOP]
    if user:
        headers.append((b"X-User-ID", user.encode("latin-1")))
    url = httpx.URL(path=request.url.path, query=request.url.query.encode("latin-1"))
    body = request.stream() if "content-length" in request.headers else None
    out = client.build_request(request.method, url, headers=headers, content=body)
    reply = await client.send(out, stream=True)
    kept = {name: value for name, value in reply.headers.items() if name.lower() not in _HOP}
    return StreamingResponse(reply.aiter_raw(), reply.status_code, kept, background=BackgroundTask(reply.aclose))


@app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
async def proxy(request: Request) -> Any:
    if not _IS_FULL:
        return await _forward(request, "")
    began, state = time.perf_counter(), request.app.state
    address = request.client.host if request.client else ""
    user = state.tokens.user(request.headers.get("authorization", ""))
    if not user:
        reply: Any = Response(status_code=401)
    elif not state.buckets.spend(user, address, "content"):
        reply = Response(status_code=429)
    else:
        reply = await _forward(request, user)
    state.log.add(request.method, request.url.path, user, address, reply.status_code, began)
    return reply
