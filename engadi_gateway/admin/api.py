"""The admin API: one table of endpoints. Routes, checks, handlers and the OpenAPI document are all made from it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from engadi_gateway.admin import jsonio
from engadi_gateway.admin.schemas import MAX_FAULTS, Number, Object, Schema, Text, escaped
from engadi_gateway.errors import Fault, HeaderLine, Reason, Refusal, RefusedError
from engadi_gateway.explain import Explained
from engadi_gateway.health import HealthChecker
from engadi_gateway.model import Framing, Route, Service, Snapshot
from engadi_gateway.net.context import LocalReply
from engadi_gateway.pipeline.breaker import BreakerRegistry
from engadi_gateway.pipeline.cors import Cors
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.patterns import parameter_names
from engadi_gateway.pipeline.table import RoutingTable
from engadi_gateway.record.metrics import Metrics
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.changes import Change
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.journal import Journal

BASE = "/api/v1/gateway"
_LOCAL_SERVICE = "gateway"
_NAMESPACE = uuid.UUID("9b1f6a52-52f1-5d0e-a3f5-0c8f1d6f7e21")
_BUILT_IN_PRIORITY = 1 << 30
#: A longer body may be of so many parts that looking at each holds everybody up.
_LONG_BYTES = 64 << 10


class Console(Explained, Protocol):
    """The gateway as its admin API sees it."""

    journal: Journal
    metrics: Metrics
    checker: HealthChecker
    breakers: BreakerRegistry

    @property
    def settings(self) -> Settings: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def snapshot(self) -> Snapshot: ...
    def routing_table(self) -> RoutingTable: ...
    def cors(self) -> Cors: ...
    def route_names(self) -> dict[str, tuple[str, str]]: ...
    def limits_status(self) -> list[dict[str, Any]]: ...
    def state(self) -> dict[str, Any]: ...
    def services(self) -> Mapping[str, Service]: ...
    def targets(self) -> Mapping[str, str]: ...
    def writing(self) -> AbstractAsyncContextManager[None]: ...
    async def change(self, change: Change) -> Snapshot: ...
    async def rehearse(self, change: Change) -> None: ...
    async def flushed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an endpoint, its inputs checked."""

    console: Console
    exchange: Exchange
    params: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def asked(self, name: str) -> Any:
        """What the query says of a parameter, else its default."""
        return self.query.get(name, self.defaults.get(name))

    @property
    def actor(self) -> str:
        identity = self.exchange.identity
        return identity.user_id if identity is not None else "anonymous"


def next_page(call: Call, more: Mapping[str, Any] | None) -> tuple[HeaderLine, ...]:
    """The Link to a list's next page (RFC 8288): the same question, but for these parameters; None: the last page."""
    if more is None:
        return ()
    query = urlencode({name: value for name, value in {**call.query, **more}.items() if value is not None})
    return ((b"Link", f'<{call.exchange.head.path}?{query}>; rel="next"'.encode("ascii")),)


Handler = Callable[[Call], Awaitable[LocalReply]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row: `query` maps names to schemas whose values are text or whole numbers; `says` names one of `replies`."""

    method: str
    path: str
    handler: Handler
    summary: str
    is_public: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Object | None = None
    params: Mapping[str, Schema] = field(default_factory=dict)
    success: int = 200
    media: str = "application/json"
    says: str = ""  # "" with 204, or where it is text
    is_guarded: bool = False  # takes If-Match
    is_dry: bool = False  # changes no configuration, though it is no GET

    @property
    def route_id(self) -> str:
        return str(uuid.uuid5(_NAMESPACE, f"{self.method} {self.path}"))

    @property
    def defaults(self) -> dict[str, int]:
        """Of the parameters that have one."""
        numbers = ((name, schema) for name, schema in self.query.items() if isinstance(schema, Number))
        return {name: number.default for name, number in numbers if number.default is not None}


def local_routes(endpoints: tuple[Endpoint, ...], role: str) -> list[Route]:
    """The endpoints as built-in routes, so that the same pipeline guards them."""
    return [
        Route(
            id=endpoint.route_id,
            path_pattern=endpoint.path,
            target_service=_LOCAL_SERVICE,
            methods=(endpoint.method,),
            is_public=endpoint.is_public,
            priority=_BUILT_IN_PRIORITY,
            required_roles=() if endpoint.is_public else (role,),
        )
        for endpoint in endpoints
    ]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Of one request, checked."""

    params: Mapping[str, str]
    query: Mapping[str, Any]
    document: Any


class Gate:
    """What every endpoint checks before its handler runs; the same for who serves and for who explains."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._endpoints = {endpoint.route_id: endpoint for endpoint in endpoints}

    def refusal(self, exchange: Exchange, cors: Cors) -> Refusal | None:
        """What a request would be refused for by its head; where that says that there is no body, by its body too."""
        try:
            self.inputs(exchange, cors, b"" if exchange.head.framing is Framing.NONE else None)
        except RefusedError as error:
            return error.refusal
        return None

    def names(self) -> dict[str, tuple[str, str]]:
        """Path pattern and service by route id, of what is built in."""
        return {route_id: (endpoint.path, _LOCAL_SERVICE) for route_id, endpoint in self._endpoints.items()}

    def endpoint(self, exchange: Exchange) -> Endpoint:
        assert exchange.route is not None
        return self._endpoints[exchange.route.id]

    def inputs(self, exchange: Exchange, cors: Cors, body: bytes | None) -> _Inputs:
        """Its inputs, once they are good; a body of None is not known yet.

        Raises:
            RefusedError: with a row of the table and, for bad inputs, a pointer for each fault.
        """
        endpoint = self.endpoint(exchange)
        method = exchange.head.method
        if method != endpoint.method and (method, endpoint.method) != ("HEAD", "GET"):
            raise RefusedError(Refusal(Reason.METHOD_NOT_ALLOWED))  # whatever the stages were told
        _refuse_foreign_origin(exchange, endpoint, cors)
        params = dict(zip(parameter_names(endpoint.path), exchange.params, strict=True))
        faults = [
            Fault(f"/path{fault.pointer}", fault.detail)
            for name, schema in endpoint.params.items()
            for fault in schema.check(params[name], f"/{name}")
        ]
        query = _query(exchange, endpoint.query, faults, is_lenient=endpoint.is_public)
        document = None
        if endpoint.body is not None:
            _refuse_other_media(exchange)
            if body is not None:
                document = jsonio.parse(body)
                faults += endpoint.body.check(document, "")
        if faults:
            raise RefusedError(Refusal(Reason.INVALID_FIELDS, faults=tuple(faults[:MAX_FAULTS])))
        return _Inputs(params, query, document)


class Api:
    """Finds the endpoint of an exchange, checks its inputs, runs its handler."""

    def __init__(self, console: Console, gate: Gate) -> None:
        self._console = console
        self._gate = gate

    async def serve(self, exchange: Exchange, body: bytes) -> LocalReply:
        """Answer one exchange.

        Raises:
            RefusedError: what `Gate.inputs` raises, and what the handler refuses.
        """
        asked = exchange, self._console.cors(), body
        is_long = len(body) > _LONG_BYTES
        inputs = await asyncio.to_thread(self._gate.inputs, *asked) if is_long else self._gate.inputs(*asked)
        endpoint = self._gate.endpoint(exchange)
        call = Call(self._console, exchange, inputs.params, inputs.query, inputs.document, endpoint.defaults)
        return await self._run(endpoint, call)

    async def _run(self, endpoint: Endpoint, call: Call) -> LocalReply:
        try:
            if endpoint.method == "GET" or endpoint.is_dry:
                return await endpoint.handler(call)
            async with self._console.writing():  # what If-Match was held against is what is changed
                return await endpoint.handler(call)
        except StoreError as error:  # for administrators: no public endpoint asks a database
            raise RefusedError(Refusal(Reason.STORE_UNAVAILABLE, str(error))) from None


def _refuse_foreign_origin(exchange: Exchange, endpoint: Endpoint, cors: Cors) -> None:
    """A page of another site must not drive this API through its visitor's browser."""
    origin = exchange.head.notes.get(b"origin", b"").decode("latin-1")
    if not origin or endpoint.is_public:
        return
    host = exchange.head.authority.decode("latin-1").lower()
    is_own = bool(host) and origin in {f"http://{host}", f"https://{host}"}  # TLS may end in front of us
    if not is_own and not (cors.is_enabled and not cors.allows_everybody and cors.allows_origin(origin)):
        raise RefusedError(Refusal(Reason.PREFLIGHT_DENIED, "origin not allowed"))


def _query(
    exchange: Exchange, schemas: Mapping[str, Schema], faults: list[Fault], *, is_lenient: bool
) -> dict[str, Any]:
    """The query's values; numbers are read as such. What is unknown, repeated or bad is a fault, or passed over."""
    text = exchange.head.target.decode("latin-1").partition("?")[2]
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError:
        faults += [] if is_lenient else [Fault("/query", "malformed")]
        return {}
    values: dict[str, Any] = {}
    for name, value in pairs:
        pointer = f"/query/{escaped(name)}"
        if name not in schemas:
            found = [Fault(pointer, "unknown parameter", is_theirs=True)]
        elif name in values:
            found = [Fault(pointer, "given twice")]
        else:
            typed = _typed(value, schemas[name])
            found = schemas[name].check(typed, pointer)
            if not found:
                values[name] = typed
        if not is_lenient:  # monitors and caches add what they like
            faults += found
    return values


def _typed(value: str, schema: Schema) -> Any:
    is_number = not isinstance(schema, Text) and value.isascii() and value.isdigit() and len(value) <= 16
    return int(value) if is_number else value


def _refuse_other_media(exchange: Exchange) -> None:
    media = exchange.head.notes.get(b"content-type", b"").decode("latin-1").lower()
    kind, _, parameter = media.partition(";")
    if kind.strip() != "application/json" or parameter.strip() not in {"", "charset=utf-8", 'charset="utf-8"'}:
        raise RefusedError(Refusal(Reason.UNSUPPORTED_MEDIA))
