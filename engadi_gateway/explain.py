"""Why would it do that? The same stages that serve, asked without spending anything or contacting anybody."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from engadi_gateway.errors import Reason, Refusal, RefusedError, rendered
from engadi_gateway.model import Listener
from engadi_gateway.net.local import too_long
from engadi_gateway.net.origin import origin_of
from engadi_gateway.net.outgoing import upstream_request
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.exchange import Exchange, Wait
from engadi_gateway.pipeline.table import RoutingTable
from engadi_gateway.settings.parsing import IpNetwork
from engadi_gateway.wire.forwarded import (
    Client,
    given_request_id,
    is_last_hop,
    is_loop,
    plain_address,
    resolve_client,
)
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.problem import refusal_lines
from engadi_gateway.wire.request import HeadLimits, RefusedHeadError, first_head, parse_head

_REQUEST_ID = "00000000-0000-4000-8000-000000000000"


class MistakenError(RefusedError):
    """Raised when there is no such request: what was asked is at fault, and no client would hear of it."""

    def __init__(self, detail: str) -> None:
        super().__init__(Refusal(Reason.BAD_REQUEST, detail))


class Explained(Protocol):
    """What an explanation needs: a running gateway, or one put together from files."""

    @property
    def head_limits(self) -> HeadLimits: ...
    @property
    def header_policy(self) -> HeaderPolicy: ...
    @property
    def trusted(self) -> tuple[IpNetwork, ...]: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def max_local_body_bytes(self) -> int: ...
    @property
    def instance(self) -> bytes: ...
    def side(self, *, is_admin: bool) -> tuple[Pipeline, Listener] | None:
        """What decides for those who come in through a door, and that door; None where there is none of that kind."""
        ...

    def routing_table(self) -> RoutingTable: ...
    def local_refusal(self, exchange: Exchange) -> Refusal | None: ...


def explained(  # noqa: PLR0913 - a request has so many parts
    console: Explained,
    *,
    method: str,
    path: str,
    host: str,
    headers: list[tuple[str, str]],
    token: str | None,
    client_ip: str,
    is_admin: bool = False,
) -> tuple[dict[str, Any], Callable[[], list[dict[str, Any]]]]:
    """What would happen to a request, and why, as JSON values, except `candidates`, and what finds these.

    Those are all routes that fit: of thousands it takes long, and is for a thread, for it reads nothing that changes.

    Args:
        is_admin: it comes to `admin.listen`.

    Raises:
        RefusedError: the request could not even be read. MistakenError: it is none, or there is no such listener.
    """
    side = console.side(is_admin=is_admin)
    if side is None:
        raise MistakenError("admin.listen is empty: the admin API is with all others")
    raw = raw_head(method, path, host, headers, token)
    exchange, who = _rehearsal(console, side, raw, plain_address(client_ip))
    head, wait = exchange.head, _decide(exchange, console)
    refusal, seen = exchange.refusal, exchange.trace or {}
    if refusal is not None:
        exchange.error_message = refusal.message or exchange.error_message
    table = RoutingTable((), {}) if is_admin else console.routing_table()
    answer: dict[str, Any] = {
        "target": head.target.decode("latin-1"),
        "path": head.path,
        "host": head.host,
        "client_ip": who.address,
        "revision": exchange.pipeline.revision,
        "candidates": [],
        "route": exchange.route.id if exchange.route is not None else None,
        **{name: seen.get(name) for name in ("cors", "jwt", "limits", "breaker")},
        "would_ask": None if wait is None else wait.kind,
        "verdict": "wait" if wait is not None else "refuse" if refusal is not None else "serve",
        "reason": refusal.code if refusal is not None else Reason.OK.code,
        "status": refusal.reason.status if refusal is not None else None,
        "error_message": exchange.message,
        "reply_headers": _lines(exchange.reply_lines + rendered(refusal_lines(refusal) if refusal is not None else ())),
        "upstream": _sent(exchange, who, console.instance) if wait is None and refusal is None else None,
    }
    return answer, partial(_candidates, table, exchange, str(seen.get("method", head.method)))


def _sent(exchange: Exchange, who: Client, instance: bytes) -> dict[str, Any] | None:
    """What its target would be asked; None where it has none: the gateway itself answers."""
    target = exchange.target
    if target is None:
        return None
    sent = upstream_request(exchange, origin_of(target.url), who, exchange.head.framing, instance)
    lines = [_masked(line) for line in sent.decode("latin-1").split("\r\n")[:-2]]
    return {"service": target.service, "url": target.url, "head": lines}


def explain(console: Explained, **asked: Any) -> dict[str, Any]:
    """See `explained`: at once, and with `candidates`."""
    answer, candidates = explained(console, **asked)
    return {**answer, "candidates": candidates()}


def _rehearsal(console: Explained, side: tuple[Pipeline, Listener], raw: bytes, peer: str) -> tuple[Exchange, Client]:
    """What the client's connection does with a head until the stages decide."""
    pipeline, listener = side
    if not peer:
        raise MistakenError("the client's address is none")
    whole = first_head(raw, console.head_limits)
    assert whole is not None
    refusal = None
    try:
        head, _ = parse_head(whole, console.head_limits, console.header_policy, console.max_body_bytes)
    except RefusedHeadError as error:
        head, refusal = error.head, error.refusal
    request_id = given_request_id(peer, head, console.trusted) or _REQUEST_ID
    exchange = Exchange(head, request_id, time.monotonic(), time.time(), pipeline)
    exchange.refusal = refusal
    exchange.is_rehearsal = True
    exchange.trace = {}
    who = resolve_client(peer, listener, head, console.trusted)
    exchange.client_ip = who.address
    return exchange, who


def _decide(exchange: Exchange, console: Explained) -> Wait | None:
    """The walk, what the connection itself answers before and after it, and what a local target refuses unasked."""
    if exchange.refusal is None and is_loop(exchange.head, console.instance):
        exchange.refusal = Refusal(Reason.LOOP)
    wait = exchange.pipeline.decide(exchange)
    if wait is None and exchange.refusal is None and is_last_hop(exchange.head):
        exchange.refusal = Refusal(Reason.OPTIONS)
    if wait is None and exchange.refusal is None and exchange.is_local:
        announced = too_long(exchange.head.content_length, console.max_local_body_bytes)
        exchange.refusal = announced or console.local_refusal(exchange)
    return wait


def raw_head(method: str, path: str, host: str, headers: list[tuple[str, str]], token: str | None) -> bytes:
    """The head as a client would send it; parsed by the code that parses real ones.

    Raises:
        MistakenError: a part that would be more than one line, or cannot stand in one.
    """
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if any("\r" in line or "\n" in line for line in lines):
        raise MistakenError("line break in a part of the request")
    try:
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
    except UnicodeEncodeError:
        raise MistakenError("only ISO 8859-1 can stand in a request's head") from None


def _candidates(table: RoutingTable, exchange: Exchange, method: str) -> list[dict[str, Any]]:
    """`method` is what routing looked for: for a preflight the one that it asks about."""
    if exchange.is_local:
        route = exchange.route
        return [] if route is None else [{"id": route.id, "path_pattern": route.path_pattern, "why": "won: built in"}]
    head = exchange.head
    return [
        {
            "id": verdict.route.id,
            "path_pattern": verdict.route.path_pattern,
            "priority": verdict.route.priority,
            "target_service": verdict.route.target_service,
            "why": verdict.why,
        }
        for verdict in table.trace(method, head.host, head.path)
    ]


def _masked(line: str) -> str:
    """Credentials were sent to be judged, not to be shown."""
    name = line.partition(":")[0]
    return f"{name}: ***" if name.lower() in {"authorization", "cookie"} else line


def _lines(lines: list[bytes]) -> list[list[str]]:
    whole = b"\r\n".join(lines).decode("latin-1").split("\r\n") if lines else []
    return [line.split(": ", 1) for line in whole]
