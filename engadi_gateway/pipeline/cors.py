"""CORS: the Fetch standard's algorithm, from the server's side. All that follows from the policy is computed once.

CORS protects browsers' users, not services: a simple request from a foreign origin is still forwarded unless
`reject_denied_origin` says otherwise. WebSockets have no CORS, so their Origin is checked here (RFC 6455 section 10.2).
"""

from __future__ import annotations

import re

from engadi_gateway.errors import ConfigurationError, Fault, Reason, Refusal
from engadi_gateway.model import CorsPolicy
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.table import METHOD

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_LABELS = rf"{_LABEL}(?:\.{_LABEL})*"
_BELOW = re.compile(_LABELS)
#: A serialised origin (RFC 6454 section 6.2), or one whose host begins with `*.`.
_ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]*)://(?:(?:\*\.)?{_LABELS}|\[[0-9a-f:.]+\])(?::([1-9][0-9]{{0,4}}))?")
#: What is longer is nobody's: a host name has 253 characters at most (RFC 1035 section 2.3.4).
_LONGEST_ORIGIN = 300
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Methods that browsers send without asking; always allowed (Fetch, "CORS-safelisted method").
_SAFE_METHODS = frozenset(("GET", "HEAD", "POST"))
#: A week, in seconds; browsers keep a preflight for a day at most.
MAX_AGE_S = 86400 * 7
_PREFLIGHT_VARY = b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


def cors_faults(policy: CorsPolicy) -> list[Fault]:
    """What is wrong with a policy, with JSON pointers to its fields."""
    faults = [
        Fault(f"/allow_origins/{index}", "as browsers send it: https://app.example; or https://*.example.com; or *")
        for index, origin in enumerate(policy.allow_origins)
        if origin != "*" and not _is_origin(origin)
    ]
    faults += [
        Fault(f"/allow_methods/{index}", "as it is sent, in capitals: PUT; or *")
        for index, method in enumerate(policy.allow_methods)
        if method != "*" and not METHOD.fullmatch(method)
    ]
    for name in ("allow_headers", "expose_headers"):
        faults.extend(
            Fault(f"/{name}/{index}", "not a token")
            for index, value in enumerate(getattr(policy, name))
            if not _TOKEN.fullmatch(value)
        )
    if policy.allow_credentials and "*" in policy.allow_origins:
        faults.append(Fault("/allow_credentials", "never together with the origin *"))
    if not 0 <= policy.max_age <= MAX_AGE_S:
        faults.append(Fault("/max_age", f"0 to {MAX_AGE_S} seconds"))
    return faults


def _is_origin(text: str) -> bool:
    """Anything else, such as a last slash or the scheme's own port, would never equal what a browser sends."""
    match = _ORIGIN.fullmatch(text)
    return match is not None and match[2] != _DEFAULT_PORTS.get(match[1], "")


class Cors:
    """The second stage; also decides for exchanges that routing refused, so that a 404 carries its lines.

    Where it is on, Access-Control-* of upstreams goes: two answers break browsers.

    Raises:
        ConfigurationError: what `cors_faults` finds.
    """

    sees_refused = True
    settles_nothing = True

    def __init__(self, policy: CorsPolicy) -> None:
        faults = cors_faults(policy)
        if faults:
            raise ConfigurationError(faults)
        self.is_enabled = policy.enabled
        self.decides_nothing = not policy.enabled
        self._rejects_denied = policy.reject_denied_origin
        self.allows_everybody = "*" in policy.allow_origins  # and so no credentials: the answer does not vary
        self._origins = frozenset(origin for origin in policy.allow_origins if "*" not in origin)
        self._wildcards = frozenset(origin for origin in policy.allow_origins if "*." in origin)
        self._methods = frozenset(policy.allow_methods) | _SAFE_METHODS
        self._headers = frozenset(name.lower() for name in policy.allow_headers)
        self._vary = () if self.allows_everybody else (b"Vary: Origin",)
        credentials = (b"Access-Control-Allow-Credentials: true",) if policy.allow_credentials else ()
        exposed = _line(b"Access-Control-Expose-Headers", policy.expose_headers)
        self._actual = credentials + exposed
        self._preflight = (*credentials, b"Access-Control-Max-Age: %d" % policy.max_age)
        #: What is said to those who are named; several lines in one, because a reply takes one line sooner than three.
        self._named = {origin: self._allowing(origin) for origin in (name.encode("ascii") for name in self._origins)}
        self._method_lines = _line(b"Access-Control-Allow-Methods", policy.allow_methods)
        self._header_lines = _line(b"Access-Control-Allow-Headers", policy.allow_headers)

    def allows_origin(self, origin: str) -> bool:
        """Byte-exact against the serialised origin; "null" only where everybody is allowed."""
        return (
            self.allows_everybody
            or origin in self._origins
            or (bool(self._wildcards) and len(origin) <= _LONGEST_ORIGIN and self._is_below_a_wildcard(origin))
        )

    def _is_below_a_wildcard(self, origin: str) -> bool:
        """`https://*.example.com`: one label or more. However many there are, each dot is looked at once."""
        scheme, separator, host = origin.partition("://")
        dots = [at for at, sign in enumerate(host) if sign == "."]
        return any(
            f"{scheme}{separator}*{host[at:]}" in self._wildcards and _BELOW.fullmatch(host[:at]) is not None
            for at in dots
        )

    def decide(self, exchange: Exchange) -> Refusal | None:
        if not self.is_enabled:
            return None
        head = exchange.head
        received = head.notes.get(b"origin")
        if received is None:
            exchange.reply_lines += self._vary
            return None
        origin, named = received.decode("latin-1"), self._named.get(received)
        is_allowed = named is not None or self.allows_origin(origin)
        if exchange.trace is not None:
            exchange.trace["cors"] = {"origin": origin, "allowed": is_allowed}
        asked = head.notes.get(b"access-control-request-method") if head.method == "OPTIONS" else None
        if asked:
            return self._decide_preflight(exchange, received, is_allowed, asked)
        if is_allowed:
            exchange.reply_lines.append(named or self._allowing(received))
            return None
        exchange.reply_lines += self._vary
        is_judged = exchange.refusal is None and (head.upgrade or self._rejects_denied)
        return _denied("origin not allowed") if is_judged and not _is_same_origin(origin, head.authority) else None

    def _allowing(self, received: bytes) -> bytes:
        return b"\r\n".join([*self._vary, self._allow_line(received), *self._actual])

    def _allow_line(self, received: bytes) -> bytes:
        return b"Access-Control-Allow-Origin: " + (b"*" if self.allows_everybody else received)

    def _decide_preflight(self, exchange: Exchange, received: bytes, is_allowed: bool, asked: bytes) -> Refusal | None:
        exchange.reply_lines.append(_PREFLIGHT_VARY)
        if exchange.refusal is not None and exchange.refusal.reason is not Reason.METHOD_NOT_ALLOWED:
            if is_allowed:
                exchange.reply_lines.append(self._allow_line(received))
                exchange.reply_lines += self._actual
            return None
        headers = exchange.head.notes.get(b"access-control-request-headers", b"")
        why = self._why_denied(asked.decode("latin-1"), headers.decode("latin-1")) if is_allowed else "origin"
        if why:
            return _denied(f"{why} not allowed")
        exchange.reply_lines.append(self._allow_line(received))
        exchange.reply_lines += self._preflight
        # what `*` stands for is named: beside credentials a `*` would mean nothing (Fetch, "CORS-preflight fetch")
        exchange.reply_lines += (
            (b"Access-Control-Allow-Methods: " + asked,) if "*" in self._methods else self._method_lines
        )
        if headers:
            exchange.reply_lines += (
                (b"Access-Control-Allow-Headers: " + headers,) if "*" in self._headers else self._header_lines
            )
        return Refusal(Reason.PREFLIGHT)

    def _why_denied(self, method: str, headers: str) -> str:
        if method not in self._methods and not ("*" in self._methods and _TOKEN.fullmatch(method)):
            return "method"
        names = [part.strip(" \t").lower() for part in headers.split(",")] if headers else []
        return "" if all(map(self._allows_header, names)) else "header"

    def _allows_header(self, name: str) -> bool:
        """`*` covers every name but Authorization (Fetch, "CORS non-wildcard request-header name")."""
        if name in self._headers or not name:
            return True
        return "*" in self._headers and name != "authorization" and _TOKEN.fullmatch(name) is not None

    def settle(self, exchange: Exchange) -> None:
        """Nothing to learn."""


def _denied(detail: str) -> Refusal:
    return Refusal(Reason.PREFLIGHT_DENIED, detail)


def _line(name: bytes, values: tuple[str, ...]) -> tuple[bytes, ...]:
    return (b"%b: %b" % (name, ", ".join(values).encode("ascii")),) if values else ()


def _is_same_origin(origin: str, authority: bytes) -> bool:
    """Browsers send Origin to their page's own server too. Only the scheme is not compared: TLS may end before us."""
    return bool(authority) and origin.partition("://")[2] == authority.decode("latin-1").lower()
