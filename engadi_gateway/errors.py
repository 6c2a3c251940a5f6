"""The closed table of reasons: why a request ended as it did.

Each request ends with exactly one `Reason`. The same word stands in the problem body (`code`), the log row, the
metric label and, through `proxy_error`, in Proxy-Status (RFC 9209). Nothing else in the house chooses a status.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """A row of the table: code, status, title, Proxy-Status error, and what follows from it.

    Attributes:
        code: the word, stable for ever.
        status: the HTTP status code.
        title: the problem's title, constant per code (RFC 9457 section 3.1.3).
        proxy_error: the Proxy-Status error type (RFC 9209 section 2.3), or "".
        is_failure: whether the circuit breaker counts it against the upstream.
        closes: whether the client's connection must close after the answer.
    """

    def __init__(self, code: str, status: int, title: str, proxy_error: str, marks: str) -> None:
        self.code = code
        self.status = status
        self.title = title
        self.proxy_error = proxy_error
        self.is_failure = "failure" in marks
        self.closes = "closes" in marks

    # fmt: off
    OK = ("ok", 200, "OK", "", "")

    # what the client sent
    BAD_REQUEST = ("bad_request", 400, "Bad request", "http_request_error", "closes")
    URI_TOO_LONG = ("uri_too_long", 414, "Request target too long", "http_request_error", "closes")
    HEADERS_TOO_LARGE = ("headers_too_large", 431, "Request head too large", "http_request_error", "closes")
    BODY_TOO_LARGE = ("body_too_large", 413, "Request body too large", "http_request_error", "closes")
    CLIENT_TIMEOUT = ("client_timeout", 408, "Request not received in time", "http_request_error", "closes")
    VERSION_UNSUPPORTED = ("version_unsupported", 505, "HTTP version not supported", "http_request_error", "closes")
    NOT_IMPLEMENTED = ("not_implemented", 501, "Not implemented", "http_request_error", "closes")
    EXPECTATION_FAILED = ("expectation_failed", 417, "Expectation failed", "http_request_error", "closes")

    # what the configuration says
    NO_ROUTE = ("no_route", 404, "No such route", "destination_not_found", "")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "Method not allowed", "http_request_denied", "")
    OPTIONS = ("options", 204, "Allowed methods", "", "")
    PREFLIGHT = ("preflight", 204, "Preflight", "", "")
    PREFLIGHT_DENIED = ("preflight_denied", 403, "Cross-origin request not allowed", "http_request_denied", "")
    AUTH_MALFORMED = ("auth_malformed", 400, "Malformed credentials", "http_request_denied", "")
    AUTH_MISSING = ("auth_missing", 401, "Credentials required", "http_request_denied", "")
    AUTH_INVALID = ("auth_invalid", 401, "Credentials not accepted", "http_request_denied", "")
    AUTH_UNAVAILABLE = ("auth_unavailable", 503, "Credentials cannot be checked now", "destination_unavailable", "")
    SCOPE_MISSING = ("scope_missing", 403, "Not permitted", "http_request_denied", "")
    RATE_LIMITED = ("rate_limited", 429, "Too many requests", "http_request_denied", "")

    # what the gateway can bear
    OVERLOADED = ("overloaded", 503, "Overloaded", "connection_limit_reached", "")
    DRAINING = ("draining", 503, "Stopping", "proxy_internal_response", "closes")
    BREAKER_OPEN = ("breaker_open", 503, "Service unavailable", "destination_unavailable", "")
    NO_TARGET = ("no_target", 503, "No target for this route", "destination_unavailable", "")

    # what the upstream did
    DNS_ERROR = ("dns_error", 502, "Upstream name not found", "dns_error", "failure")
    DNS_TIMEOUT = ("dns_timeout", 504, "Upstream name not found in time", "dns_timeout", "failure")
    CONNECT_REFUSED = ("connect_refused", 502, "Upstream not reachable", "connection_refused", "failure")
    CONNECT_TIMEOUT = ("connect_timeout", 504, "Upstream not reachable in time", "connection_timeout", "failure")
    TLS_CERTIFICATE = (
        "tls_certificate", 502, "Upstream certificate not accepted", "tls_certificate_error", "failure")
    TLS_ERROR = ("tls_error", 502, "Upstream TLS failed", "tls_protocol_error", "failure")
    UPSTREAM_CLOSED = ("upstream_closed", 502, "Upstream closed the connection", "connection_terminated", "failure")
    UPSTREAM_INVALID = ("upstream_invalid", 502, "Upstream sent no valid answer", "http_protocol_error", "failure")
    UPSTREAM_TIMEOUT = ("upstream_timeout", 504, "Upstream did not answer in time", "http_response_timeout", "failure")
    UPSTREAM_TRUNCATED = (
        "upstream_truncated", 502, "Upstream answer cut short", "http_response_incomplete", "failure closes")
    UPSTREAM_STALLED = (
        "upstream_stalled", 504, "Upstream answer stalled", "connection_read_timeout", "failure closes")
    UPSTREAM_5XX = ("upstream_5xx", 502, "Upstream reported an error", "", "failure")
    UPGRADE_FAILED = ("upgrade_failed", 502, "Upgrade failed", "http_upgrade_failed", "failure")
    LOOP = ("loop", 502, "Proxy loop", "proxy_loop_detected", "")

    # how it ended otherwise
    CLIENT_CLOSED = ("client_closed", 499, "Client closed the connection", "", "closes")
    CLIENT_STALLED = ("client_stalled", 499, "Client did not read the answer", "", "closes")
    INTERNAL = ("internal", 500, "Internal error", "proxy_internal_error", "")

    # the admin API's own
    NOT_FOUND = ("not_found", 404, "No such resource", "", "")
    BAD_JSON = ("bad_json", 400, "Not valid JSON", "", "")
    CONFLICT = ("conflict", 409, "Conflict with what is there", "", "")
    PRECONDITION_FAILED = ("precondition_failed", 412, "The resource has changed", "", "")
    UNSUPPORTED_MEDIA = ("unsupported_media_type", 415, "Send application/json", "", "")
    INVALID_FIELDS = ("invalid_fields", 422, "Some fields are not valid", "", "")
    STORE_UNAVAILABLE = ("store_unavailable", 503, "Database unavailable", "", "")
    # fmt: on


_NO_ERRORS = (Reason.OK.code, Reason.OPTIONS.code, Reason.PREFLIGHT.code)


def is_error(status: int, code: str) -> bool:
    """Whether statistics count it as one: a reply that was cut short has the status of one that was not."""
    return status >= 400 or code not in _NO_ERRORS


#: The same for sqlite, of the columns of the log.
IS_ERROR_SQL = f"(status_code >= 400 OR reason NOT IN {_NO_ERRORS})"

#: What the breaker counts of the statuses an upstream sends itself: 502 503 504 and never a 500, which is one
#: request's bug rather than a service's outage.
FAILURE_STATUSES = frozenset((502, 503, 504))

#: When to come back, in seconds, where the refusal does not know better.
RETRY_AFTER_S = {
    Reason.OVERLOADED: 1,
    Reason.DRAINING: 5,
    Reason.AUTH_UNAVAILABLE: 5,
    Reason.BREAKER_OPEN: 5,
    Reason.NO_TARGET: 5,
    Reason.STORE_UNAVAILABLE: 5,
}

#: A row of the log names so many faults, and says so many characters.
_SHOWN_FAULTS = 3
_MOST_SAID = 200

HeaderLine = tuple[bytes, bytes]

REALM = 'Bearer realm="engadi"'
#: What stands beside a 400 for credentials that could be read in two ways (RFC 6750 section 3.1).
INVALID_REQUEST: HeaderLine = (b"WWW-Authenticate", f'{REALM}, error="invalid_request"'.encode("ascii"))


def rendered(lines: Iterable[HeaderLine]) -> list[bytes]:
    """Header lines as they are sent, without line ends."""
    return [b"%b: %b" % line for line in lines]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input: a JSON pointer (RFC 6901) or `section.key`, and a sentence.

    `is_theirs`: the pointer ends in a name that the client made up, which no log repeats.
    """

    pointer: str
    detail: str
    is_theirs: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decision not to forward: a reason, what may be told of it, and the header lines the answer needs.

    `word` refines the code where the table says so (`auth_invalid.expired`); `detail` is safe to show to strangers.
    """

    reason: Reason
    detail: str = ""
    word: str = ""
    headers: tuple[HeaderLine, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def code(self) -> str:
        return f"{self.reason.code}.{self.word}" if self.word else self.reason.code

    @property
    def message(self) -> str:
        """For the log: what of the request was not right, or which rules were against it."""
        faults = [
            fault.detail if fault.is_theirs else ": ".join(filter(None, (fault.pointer, fault.detail)))
            for fault in self.faults
        ]
        said = list(dict.fromkeys(filter(None, (self.detail, *faults))))
        if len(said) > _SHOWN_FAULTS:
            said[_SHOWN_FAULTS:] = [f"and {len(said) - _SHOWN_FAULTS} more"]
        return "; ".join(said)[:_MOST_SAID] or self.code * bool(self.word)


class RefusedError(Exception):
    """Raised where a refusal has to cross several calls; carries the refusal, never a message of its own."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


class ConfigurationError(Exception):
    """Raised when a configuration cannot be used; carries every fault found, not only the first."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults))
        self.faults = faults
