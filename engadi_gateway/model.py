"""The frozen values of the house: what is configured, what was measured, what is logged.

Field names are the ones of the API and of the databases, the original service's where it had them; so `timeout` is
in seconds and `response_time` in milliseconds, as they always were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class LimitType(StrEnum):
    """Whom a rule counts: the user (an anonymous one by address), the address, the route, or everybody."""

    PER_USER = "per_user"
    PER_IP = "per_ip"
    PER_ENDPOINT = "per_endpoint"
    GLOBAL = "global"


class LimitMode(StrEnum):
    ENFORCE = "enforce"
    OBSERVE = "observe"


class Origin(StrEnum):
    """Where a value comes from. What comes from the settings follows them until it is changed over the API."""

    SETTINGS = "settings"
    API = "api"


class HealthStatus(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class SplitTarget:
    """One share of a split route."""

    target_service: str
    target_url: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests go where, and under which conditions (the original service's RouteConfig).

    `target_url` "" stands for the service's URL of the settings. `timeout` (s) None and `retry_count` None stand for
    the settings' values. `methods` () means all. Times are RFC 3339 UTC.
    """

    id: str
    path_pattern: str
    target_service: str
    target_url: str = ""
    methods: tuple[str, ...] = ()
    host: str = ""
    is_public: bool = False
    is_active: bool = True
    priority: int = 0
    timeout: float | None = None
    retry_count: int | None = None
    circuit_breaker_enabled: bool = True
    strip_prefix: bool = False
    preserve_host: bool = False
    allow_encoded_slashes: bool = False
    required_roles: tuple[str, ...] = ()
    split: tuple[SplitTarget, ...] = ()
    created_at: str = ""
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class RateLimitRule:
    """A token bucket of `max_requests` tokens, refilled evenly over `window_seconds`."""

    id: str
    name: str
    limit_type: LimitType
    max_requests: int
    window_seconds: int
    path_pattern: str = ""
    mode: LimitMode = LimitMode.ENFORCE
    is_active: bool = True
    origin: Origin = Origin.API
    created_at: str = ""
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """What the Fetch standard's algorithm is told. `max_age` in seconds."""

    enabled: bool = False
    allow_origins: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    allow_headers: tuple[str, ...] = ("Authorization", "Content-Type", "X-Request-ID")
    expose_headers: tuple[str, ...] = (
        "X-Request-ID",
        "RateLimit",
        "RateLimit-Policy",
        "Retry-After",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
    )
    allow_credentials: bool = False
    max_age: int = 600
    reject_denied_origin: bool = False
    origin: Origin = Origin.SETTINGS


@dataclass(frozen=True, slots=True)
class Service:
    """A service of the settings: its name, its base URL, and where its health is asked."""

    name: str
    url: str
    health_path: str = "/health"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole changeable configuration at one revision. A request finishes on the one it began with."""

    revision: int
    routes: tuple[Route, ...]
    rules: tuple[RateLimitRule, ...]
    cors: CorsPolicy
    services: Mapping[str, Service] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """What the checks of one service have seen. `response_time` in ms, times in epoch ms."""

    service_name: str
    service_url: str
    status: HealthStatus = HealthStatus.UNKNOWN
    response_time: float | None = None
    last_check: int | None = None
    error_count: int = 0
    success_count: int = 0
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Revision:
    """One write to the configuration: who, when (RFC 3339), by which request, and the whole value before and after."""

    number: int
    actor: str
    created_at: str
    kind: str
    subject: str
    before: object
    after: object
    request_id: str = ""


class LogRow(NamedTuple):
    """One request in the log (the original service's GatewayLog). A tuple: the writer hands it to sqlite as it is.

    `response_time` and `upstream_time` in ms, `created_at` in epoch ms, `bytes_in` and `bytes_out` count bodies.
    `path` is the normalised path without the query: queries carry secrets. `error_message` "" is the same as None.
    """

    request_id: str
    method: str
    path: str
    target_service: str | None
    user_id: str | None
    client_ip: str
    status_code: int
    response_time: float
    error_message: str | None
    created_at: int
    reason: str
    route_id: str | None
    attempts: int
    bytes_in: int
    bytes_out: int
    upstream_time: float | None
    revision: int


class Listener(NamedTuple):
    """Which door a connection came through."""

    scheme: str
    port: int
    is_admin: bool


class Framing(StrEnum):
    """How a body's end is found (RFC 9112 section 6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


@dataclass(slots=True)
class RequestHead:
    """A request's head, checked and normalised. Never changed once made (not frozen: that costs 2 us a request).

    Attributes:
        method: case-sensitive, as received.
        target: what is forwarded: the normalised path and the query as received.
        path: the normalised path; the string that is matched.
        host: for matching: lower case, without port and last dot; "" when HTTP/1.0 sent none.
        authority: the Host value, or the authority of an absolute-form target.
        fields: the header lines to forward, each with its end, names as they were spelt; hop-by-hop, framing, identity
            and forwarding fields are gone.
        notes: values of the fields that somebody decides on, by lower-case name; repeats joined with ", ".
        framing, content_length: of the body; NONE has length 0. CLOSE stands for a refused head, whose body's end
            nobody knows.
        has_encoded_slash: %2F or %5C stands in the path; only a route can allow that.
        is_http10, keep_alive: what the connection may do afterwards.
        upgrade: the Upgrade value of a request that may switch protocols, else b"".
    """

    method: str
    target: bytes
    path: str
    host: str
    authority: bytes
    fields: bytes
    notes: dict[bytes, bytes]
    framing: Framing
    content_length: int
    has_encoded_slash: bool
    is_http10: bool
    keep_alive: bool
    upgrade: bytes

    def value(self, name: bytes) -> bytes:
        """A forwarded field by its lower-case name, repeats joined with ", "; a search, so not for every request."""
        lines = [line.partition(b": ") for line in self.fields.split(b"\r\n")]
        return b", ".join(value for spelt, _, value in lines if spelt.lower() == name)
