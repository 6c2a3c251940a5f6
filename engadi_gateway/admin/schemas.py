"""What the admin API takes: small schemas that check a value, with a JSON pointer for each fault.

They also describe themselves as JSON Schema 2020-12 for the OpenAPI document: one table, so that what is said and what
is done agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from ipaddress import ip_address
from typing import Any, Protocol

from engadi_gateway.errors import Fault
from engadi_gateway.model import LimitMode, LimitType
from engadi_gateway.pipeline.cors import MAX_AGE_S
from engadi_gateway.pipeline.patterns import parse_pattern
from engadi_gateway.pipeline.table import METHOD
from engadi_gateway.settings.options import MAX_REQUESTS, MAX_RETRIES, MAX_WINDOW_S, SERVICE_NAME
from engadi_gateway.settings.parsing import as_text, parse_url

Json = dict[str, Any]
#: A body can hold a hundred thousand faults; nobody reads more than these.
MAX_FAULTS = 50
_DAY_MS = 86_400_000


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer (RFC 6901 section 3)."""
    return name.replace("~", "~0").replace("/", "~1")


class Schema(Protocol):
    """One kind of value."""

    def check(self, value: Any, pointer: str) -> list[Fault]: ...
    def describe(self) -> Json: ...


@dataclass(frozen=True)
class Text:
    """A string. `is_good` raises ValueError with a sentence; `format`, `says`, a pattern, and `note` are only said.

    longest: characters; 0: any number of them.
    """

    pattern: str = ""
    longest: int = 1024
    shortest: int = 0
    choices: tuple[str, ...] = ()
    is_good: Callable[[str], object] | None = None
    format: str = ""
    says: str = ""
    note: str = ""

    def check(self, value: Any, pointer: str) -> list[Fault]:
        if not isinstance(value, str):
            return [Fault(pointer, "expected a string")]
        if self.choices and value not in self.choices:
            return [Fault(pointer, f"expected one of {', '.join(self.choices)}")]
        if len(value) < self.shortest or 0 < self.longest < len(value):
            return [Fault(pointer, f"expected {self.shortest} to {self.longest} characters")]
        if self.pattern and not re.fullmatch(self.pattern, value):
            return [Fault(pointer, f"expected to match {self.pattern}")]
        if self.is_good is not None and value:
            try:
                self.is_good(value)
            except ValueError as error:
                return [Fault(pointer, str(error))]
        return []

    def describe(self) -> Json:
        document: Json = {"type": "string", "minLength": self.shortest, "maxLength": self.longest}
        if not self.longest:
            document = {"type": "string"}
        if self.choices:
            document = {"type": "string", "enum": list(self.choices)}
        if self.pattern:
            document["pattern"] = f"^(?:{self.pattern})$"
        elif self.says:
            document["pattern"] = self.says
        if self.format:
            document["format"] = self.format
        if self.note:
            document["description"] = self.note
        return document


@dataclass(frozen=True)
class Number:
    """A number between two bounds; whole unless said otherwise. A boolean is none."""

    low: float
    high: float
    is_whole: bool = True
    default: int | None = None  # of a parameter that is not given
    note: str = ""  # only said

    def check(self, value: Any, pointer: str) -> list[Fault]:
        kinds = (int,) if self.is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return [Fault(pointer, "expected a whole number" if self.is_whole else "expected a number")]
        if not (self.low <= value <= self.high) or math.isnan(value):
            return [Fault(pointer, f"expected {as_text(float(self.low))} to {as_text(float(self.high))}")]
        return []

    def describe(self) -> Json:
        document: Json = {
            "type": "integer" if self.is_whole else "number", "minimum": self.low, "maximum": self.high,
        }  # fmt: skip
        if self.default is not None:
            document["default"] = self.default
        if self.note:
            document["description"] = self.note
        return document


@dataclass(frozen=True)
class Boolean:
    def check(self, value: Any, pointer: str) -> list[Fault]:
        return [] if isinstance(value, bool) else [Fault(pointer, "expected true or false")]

    def describe(self) -> Json:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Nullable:
    inner: Schema

    def check(self, value: Any, pointer: str) -> list[Fault]:
        return [] if value is None else self.inner.check(value, pointer)

    def describe(self) -> Json:
        document = self.inner.describe()
        return {**document, "type": [document["type"], "null"]}


@dataclass(frozen=True)
class List:
    item: Schema
    longest: int = 100

    def check(self, value: Any, pointer: str) -> list[Fault]:
        if not isinstance(value, list):
            return [Fault(pointer, "expected a list")]
        if len(value) > self.longest:
            return [Fault(pointer, f"at most {self.longest} entries")]
        faults = [fault for index, part in enumerate(value) for fault in self.item.check(part, f"{pointer}/{index}")]
        if not faults and _has_twins(value):
            faults.append(Fault(pointer, "the same entry twice"))
        return faults

    def describe(self) -> Json:
        return {"type": "array", "items": self.item.describe(), "maxItems": self.longest, "uniqueItems": True}


def _has_twins(values: list[Any]) -> bool:
    try:
        return len(set(values)) < len(values)
    except TypeError:  # objects, of which a list may have a few
        return any(values.count(part) > 1 for part in values)


@dataclass(frozen=True)
class Object:
    """An object with just these fields; `accepts` are ignored, so that what a GET gave can be sent back.

    `notes` say what fields mean.
    """

    fields: Mapping[str, Schema]
    required: tuple[str, ...] = ()
    accepts: tuple[str, ...] = field(default=())
    notes: Mapping[str, str] = field(default_factory=dict)

    def check(self, value: Any, pointer: str = "") -> list[Fault]:
        if not isinstance(value, dict):
            return [Fault(pointer, "expected an object")]
        faults = [Fault(f"{pointer}/{name}", "is required") for name in self.required if name not in value]
        for name, part in value.items():
            if len(faults) >= MAX_FAULTS:
                break
            where = f"{pointer}/{escaped(name)}"
            if name in self.fields:
                faults += self.fields[name].check(part, where)
            elif name not in self.accepts:
                faults.append(Fault(where, "unknown field", is_theirs=True))
        return faults

    def describe(self) -> Json:
        properties = {name: schema.describe() for name, schema in self.fields.items()}
        for name, note in self.notes.items():
            properties[name]["description"] = note
        properties |= {name: {"readOnly": True} for name in self.accepts}
        document: Json = {"type": "object", "properties": properties, "additionalProperties": False}
        if self.required:
            document["required"] = list(self.required)
        return document

    def partial(self) -> Object:
        """The same without required fields: for a PUT that keeps what it does not name."""
        return Object(self.fields, (), self.accepts, self.notes)


@dataclass(frozen=True)
class TextMap:
    """An object of any names, all of whose values are strings."""

    most: int = 100
    longest: int = 65536

    def check(self, value: Any, pointer: str) -> list[Fault]:
        if not isinstance(value, dict):
            return [Fault(pointer, "expected an object")]
        if len(value) > self.most:
            return [Fault(pointer, f"at most {self.most} entries")]
        return [
            Fault(
                f"{pointer}/{escaped(name)}", f"expected a string of at most {self.longest} characters", is_theirs=True
            )
            for name, part in value.items()
            if not isinstance(part, str) or len(part) > self.longest
        ]

    def describe(self) -> Json:
        text = {"type": "string", "maxLength": self.longest}
        return {"type": "object", "additionalProperties": text, "maxProperties": self.most}


_RESERVED = ("/api/v1/gateway", "/health", "/livez", "/readyz")


def _pattern(text: str) -> None:
    parse_pattern(text)
    if any(text == prefix or text.startswith(f"{prefix}/") for prefix in _RESERVED):
        raise ValueError("reserved for the gateway itself")


def _not_blank(text: str) -> None:
    if text != text.strip() or not text.isprintable():
        raise ValueError("white space around it, or characters that cannot be printed")


def moment_ms(text: str) -> int:
    """RFC 3339, or a date, in epoch ms; without an offset it is UTC. Raises ValueError for anything else."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+", 1) if "T" in text else text)
        naive = moment if moment.tzinfo is not None else datetime.fromisoformat(f"{moment.isoformat()}+00:00")
        return int(naive.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError("expected a date or an RFC 3339 time") from None


def last_ms(text: str) -> int:
    """The same for the end of a span: a date is over with its last millisecond."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return moment_ms(text)
    return moment_ms(text) + _DAY_MS - 1


PATH_PATTERN = Text(is_good=_pattern, shortest=1, says="^/")
SERVICE = Text(pattern=SERVICE_NAME.pattern, longest=64, shortest=1)
#: What cannot stand in a request head (RFC 3986) would be found out only when a request is sent.
URL = Text(pattern=r"(?:https?://[A-Za-z0-9._~:/\[\]@!$&'()*+,;=%-]+)?", is_good=parse_url, longest=2048)
METHODS = List(Text(pattern=METHOD.pattern, longest=32, shortest=1), longest=32)
ROLE = Text(is_good=_not_blank, longest=128, shortest=1)
UUID = Text(pattern=r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", longest=36, format="uuid")

SPLIT = Object(
    {"target_service": SERVICE, "target_url": URL, "weight": Number(1, 1000)},
    required=("target_service",),
    notes={
        "target_service": "with a name of its own it has its own circuit and health",
        "target_url": "as a route's",
        "weight": "its part of all weights",
    },
)
ROUTE = Object(
    {
        "path_pattern": PATH_PATTERN,
        "target_service": SERVICE,
        "target_url": URL,
        "methods": METHODS,
        "host": Text(pattern=r"(?:(?:\*\.)?[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])?", longest=253),
        "is_public": Boolean(),
        "is_active": Boolean(),
        "priority": Number(-1_000_000, 1_000_000),
        "timeout": Nullable(Number(0.01, 3600, is_whole=False)),
        "retry_count": Nullable(Number(0, MAX_RETRIES)),
        "circuit_breaker_enabled": Boolean(),
        "strip_prefix": Boolean(),
        "preserve_host": Boolean(),
        "allow_encoded_slashes": Boolean(),
        "required_roles": List(ROLE),
        "split": List(SPLIT, longest=20),
    },
    required=("path_pattern", "target_service"),
    accepts=("id", "created_at", "updated_at"),
    notes={
        "path_pattern": "literals, {name} for one segment, a last /* for the segment border and all below",
        "target_service": "whose health and circuit breaker count; [services] has its URL",
        "target_url": "base URL, with a path that is put before the request's; empty: the service's",
        "methods": "empty: all",
        "host": "a host name, or *. and a name for all below it; empty: any",
        "is_public": "no token is asked for, unless required_roles has one",
        "is_active": "false: as if it were not there",
        "priority": "the larger one is tried first",
        "timeout": "seconds to the reply's head over all attempts, and of silence in a body; null: [upstream] timeout",
        "retry_count": "attempts beyond the first; null: [upstream] retry_count",
        "circuit_breaker_enabled": "false: its requests neither ask the breaker nor count for it",
        "strip_prefix": "what is in front of a last /* is not forwarded; X-Forwarded-Prefix says it",
        "preserve_host": "the client's Host goes on instead of the target's",
        "allow_encoded_slashes": "%2F in a path is passed instead of refused",
        "required_roles": "one of them must be the token's; empty: any token",
        "split": "shares by weight instead of one target; sticky by user, else by address; none of an open circuit",
    },
)
RULE = Object(
    {
        "name": Text(pattern=r"[A-Za-z0-9_.-]{1,64}", longest=64, shortest=1),
        "limit_type": Text(choices=tuple(LimitType)),
        "max_requests": Number(1, MAX_REQUESTS),
        "window_seconds": Number(1, MAX_WINDOW_S),
        "path_pattern": Text(is_good=parse_pattern),
        "mode": Text(choices=tuple(LimitMode)),
        "is_active": Boolean(),
    },
    required=("limit_type", "max_requests", "window_seconds"),
    accepts=("id", "origin", "created_at", "updated_at"),
    notes={
        "name": "stands in RateLimit fields and metrics; without one: its type and the beginning of its id",
        "limit_type": "whose requests share a bucket: a user's, an address's, a route's, or everybody's",
        "max_requests": "tokens of a full bucket",
        "window_seconds": "the time in which an empty bucket fills, evenly",
        "path_pattern": "as a route's; empty: every path",
        "mode": "observe: counts and logs, refuses nobody",
        "is_active": "false: as if it were not there",
    },
)
CORS = Object(
    {
        "enabled": Boolean(),
        "allow_origins": List(Text(longest=255, shortest=1), longest=1000),
        "allow_methods": List(Text(longest=32, shortest=1)),
        "allow_headers": List(Text(longest=128, shortest=1)),
        "expose_headers": List(Text(longest=128, shortest=1)),
        "allow_credentials": Boolean(),
        "max_age": Number(0, MAX_AGE_S),
        "reject_denied_origin": Boolean(),
    },
    accepts=("origin",),
    notes={
        "enabled": "false: left to the upstreams; a preflight has no token, and is a 401 where the route is not public",
        "allow_origins": "origins, https://*.example.com for all names below one, or *",
        "allow_methods": "methods in capitals, or *",
        "allow_headers": "request headers; * leaves out Authorization",
        "expose_headers": "reply headers that scripts may read",
        "allow_credentials": "cookies and Authorization from scripts; never with *",
        "max_age": "seconds for which a browser keeps a preflight",
        "reject_denied_origin": "403 for a request from a foreign origin",
    },
)
EXPLAIN = Object(
    {
        "method": Text(pattern=r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", longest=32, shortest=1),
        "path": Text(shortest=1, longest=65536),
        "host": Text(longest=255),
        "headers": Nullable(TextMap()),
        "token": Nullable(Text(longest=65536)),
        "client_ip": Text(longest=45, is_good=ip_address),
        "listener": Text(choices=("public", "admin")),
    },
    required=("method", "path"),
    notes={
        "method": "as a client would send it",
        "path": "with its query",
        "host": "without one: localhost",
        "headers": "names to values; without Content-Length there is no body",
        "token": "sent as Authorization: Bearer",
        "client_ip": "without one: that of the caller",
        "listener": "admin: it comes to [admin] listen",
    },
)
