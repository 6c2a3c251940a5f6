"""Requests for tests of stages: heads and exchanges with everything ordinary but what is named."""

from __future__ import annotations

from engadi_gateway.errors import Refusal
from engadi_gateway.model import Framing, RequestHead, Route
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.exchange import Exchange, Identity

WALL = 1_700_000_000.0
NO_STAGES = Pipeline((), 1)


def head_of(
    method: str = "GET",
    path: str = "/a",
    host: str = "api.example",
    notes: dict[bytes, bytes] | None = None,
    upgrade: bytes = b"",
) -> RequestHead:
    return RequestHead(
        method=method,
        target=path.encode(),
        path=path,
        host=host,
        authority=host.encode(),
        fields=b"",
        notes=notes or {},
        framing=Framing.NONE,
        content_length=0,
        has_encoded_slash="%2F" in path or "%5C" in path,
        is_http10=False,
        keep_alive=True,
        upgrade=upgrade,
    )


def exchange_of(
    head: RequestHead | None = None,
    *,
    now: float = 0.0,
    ip: str = "192.0.2.1",
    user: str | None = None,
    route: Route | None = None,
    refusal: Refusal | None = None,
) -> Exchange:
    exchange = Exchange(head or head_of(), "request-1", now, WALL + now, NO_STAGES)
    exchange.client_ip = ip
    exchange.identity = Identity(user) if user is not None else None
    exchange.route = route
    exchange.refusal = refusal
    return exchange
