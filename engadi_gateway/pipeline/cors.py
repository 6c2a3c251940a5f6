"""CORS: the Fetch standard's algorithm, from the server's side. All that follows from the policy is computed once.

CORS protects browsers' users, not services: a simple request from a foreign origin is still forwarded unless
`reject_denied_origin` says otherwise. WebSockets have no CORS, so their Origin is checked here (RFC 6455 section 10.2).
"""

from __future__ import annotations

import re

from engadi_gateway.errors import Fault, HeaderLine, Reason, Refusal
from engadi_gateway.model import CorsPolicy
from engadi_gateway.pipeline.exchange import Exchange

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_PATTERN = re.compile(r"([a-z][a-z0-9+.-]*://)\*(\.[a-z0-9.-]+(?::[0-9]{1,5})?)")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LABELS = r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
#: Methods that browsers send without asking; always allowed (Fetch, "CORS-safelisted method").
_SAFE_METHODS = frozenset(("GET", "HEAD", "POST"))
_SAFE_HEADERS = frozenset(("accept", "accept-language", "content-language", "content-type", "range"))
_MAX_AGE_S = 86400 * 7


def cors_faults(policy: CorsPolicy) -> list[Fault]:
    """What is wrong with a policy, with JSON pointers to its fields."""
    faults = [
        Fault(f"/allow_origins/{index}", "an origin such as https://app.example, a https://*.example pattern, or *")
        for index, origin in enumerate(policy.allow_origins)
        if origin != "*" and not _ORIGIN.fullmatch(origin) and not _PATTERN.fullmatch(origin)
    ]
    for name in ("allow_methods", "allow_headers", "expose_headers"):
        faults.extend(
            Fault(f"/{name}/{index}", "not a token")
            for index, value in enumerate(getattr(policy, name))
            if not _TOKEN.fullmatch(value)
        )
    if policy.allow_credentials and "*" in policy.allow_origins:
        faults.append(Fault("/allow_credentials", "never together with the origin *"))
    if not 0 <= policy.max_age <= _MAX_AGE_S:
        faults.append(Fault("/max_age", f"0 to {_MAX_AGE_S} seconds"))
    return faults


class Cors:
    """The second stage; also decides for exchanges that routing refused, so that a 404 carries its lines."""

    sees_refused = True
    settles_nothing = True

    def __init__(self, policy: CorsPolicy) -> None:
        self._policy = policy
        self.is_enabled = policy.enabled
        self._allows_any = "*" in policy.allow_origins
        self._origins = frozenset(origin for origin in policy.allow_origins if "*" not in origin)
        self._patterns = tuple(_pattern_of(origin) for origin in policy.allow_origins if "*." in origin)
        self._methods = frozenset(policy.allow_methods) | _SAFE_METHODS
        self._headers = frozenset(name.lower() for name in policy.allow_headers) | _SAFE_HEADERS
        self._vary = () if self._is_constant() else ((b"Vary", b"Origin"),)
        self._common = _credentials(policy)
        self._actual = self._common + _line(b"Access-Control-Expose-Headers", policy.expose_headers)
        self._preflight = self._common + self._preflight_lines()

    def _is_constant(self) -> bool:
        return self._allows_any and not self._policy.allow_credentials

    def _preflight_lines(self) -> tuple[HeaderLine, ...]:
        return ((b"Access-Control-Max-Age", b"%d" % self._policy.max_age),)

    def allows_origin(self, origin: str) -> bool:
        """Byte-exact against the serialised origin; "null" only where everybody is allowed."""
        return (
            self._allows_any or origin in self._origins or any(pattern.fullmatch(origin) for pattern in self._patterns)
        )

    def decide(self, exchange: Exchange) -> Refusal | None:
        if not self.is_enabled:
            return None
        notes = exchange.head.notes
        received = notes.get(b"origin")
        if received is None:
            exchange.reply_lines += self._vary
            return None
        origin = received.decode("latin-1")
        is_allowed = self.allows_origin(origin)
        if exchange.trace is not None:
            exchange.trace["cors"] = {"origin": origin, "allowed": is_allowed}
        asked = notes.get(b"access-control-request-method")
        if exchange.head.method == "OPTIONS" and asked is not None:
            return self._decide_preflight(exchange, received, is_allowed, asked)
        exchange.reply_lines += self._vary
        if is_allowed:
            exchange.reply_lines.append((b"Access-Control-Allow-Origin", self._allow_value(received)))
            exchange.reply_lines += self._actual
            return None
        if exchange.refusal is None and (exchange.head.upgrade or self._policy.reject_denied_origin):
            return Refusal(Reason.PREFLIGHT_DENIED, "origin not allowed")
        return None

    def _allow_value(self, received: bytes) -> bytes:
        return b"*" if self._is_constant() else received

    def _decide_preflight(self, exchange: Exchange, received: bytes, is_allowed: bool, asked: bytes) -> Refusal | None:
        exchange.reply_lines.append((b"Vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"))
        if exchange.refusal is not None and exchange.refusal.reason is not Reason.METHOD_NOT_ALLOWED:
            if is_allowed:
                exchange.reply_lines.append((b"Access-Control-Allow-Origin", self._allow_value(received)))
            return None
        headers = exchange.head.notes.get(b"access-control-request-headers", b"").decode("latin-1")
        why = self._why_denied(asked.decode("latin-1"), headers) if is_allowed else "origin not allowed"
        if why:
            return Refusal(Reason.PREFLIGHT_DENIED, why)
        exchange.reply_lines.append((b"Access-Control-Allow-Origin", self._allow_value(received)))
        exchange.reply_lines += self._preflight
        exchange.reply_lines.append((b"Access-Control-Allow-Methods", self._methods_value(asked)))
        if headers:
            exchange.reply_lines.append((b"Access-Control-Allow-Headers", self._headers_value(headers)))
        return Refusal(Reason.PREFLIGHT)

    def _why_denied(self, method: str, headers: str) -> str:
        if method not in self._methods and "*" not in self._methods:
            return "method not allowed"
        for name in (part.strip().lower() for part in headers.split(",")):
            if name and name not in self._headers and ("*" not in self._headers or name == "authorization"):
                return "header not allowed"
        return ""

    def _methods_value(self, asked: bytes) -> bytes:
        """`*` in the policy is answered with the method asked for: with credentials `*` would mean nothing."""
        return asked if "*" in self._methods else ", ".join(self._policy.allow_methods).encode("ascii")

    def _headers_value(self, asked: str) -> bytes:
        if "*" in self._headers:
            return asked.encode("latin-1")
        return ", ".join(self._policy.allow_headers).encode("ascii")

    def settle(self, exchange: Exchange) -> None:
        """Nothing to learn."""


def _credentials(policy: CorsPolicy) -> tuple[HeaderLine, ...]:
    return ((b"Access-Control-Allow-Credentials", b"true"),) if policy.allow_credentials else ()


def _line(name: bytes, values: tuple[str, ...]) -> tuple[HeaderLine, ...]:
    return ((name, ", ".join(values).encode("ascii")),) if values else ()


def _pattern_of(origin: str) -> re.Pattern[str]:
    """`https://*.example.com`: one label or more, anchored at both ends."""
    scheme, rest = origin.split("*", 1)
    return re.compile(re.escape(scheme) + _LABELS + re.escape(rest))
