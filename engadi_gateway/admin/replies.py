"""What the admin API answers, as JSON Schema 2020-12: made from the values that are answered, where these have types.

A test asks every endpoint of a gateway and holds what comes against these; more fields may come with later versions.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

from engadi_gateway.admin.schemas import Json
from engadi_gateway.model import (
    BreakerState,
    CorsPolicy,
    HealthStatus,
    LimitMode,
    LimitType,
    LogRow,
    RateLimitRule,
    Revision,
    Route,
    ServiceHealth,
)
from engadi_gateway.store.journal import JournalStats
from engadi_gateway.store.rollup import PERCENTILES

_PLAIN: dict[Any, Json] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    object: {},
}
_MOMENT: Json = {"type": "string", "format": "date-time"}
_WORDS: Json = {"type": "array", "items": _PLAIN[str]}


def of_type(hint: Any) -> Json:
    """The schema of a value's type."""
    if get_origin(hint) in {Union, types.UnionType}:
        (inner,) = (one for one in get_args(hint) if one is not type(None))
        return _or_null(of_type(inner))
    if get_origin(hint) is tuple:
        return {"type": "array", "items": of_type(get_args(hint)[0])}
    if is_dataclass(hint):
        return record(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"type": "string", "enum": [str(one) for one in hint]}
    return _PLAIN[hint]


def record(kind: Any, **others: Json) -> Json:
    """An object with a type's fields, but for these."""
    return thing(**{**{name: of_type(hint) for name, hint in get_type_hints(kind).items()}, **others})


def thing(**properties: Json) -> Json:
    """An object, all of whose fields are there."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _or_null(schema: Json) -> Json:
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str, **others: Json) -> Json:
    return thing(items={"type": "array", "items": _ref(name)}, **others)


def _map(schema: Json) -> Json:
    return {"type": "object", "additionalProperties": schema}


_COUNT = _PLAIN[int]
_TEXT = _PLAIN[str]
_YES_OR_NO = _PLAIN[bool]
_NUMBER = _PLAIN[float]
_TIMING: dict[str, Json] = {
    "count": _COUNT,
    **{f"p{percent}": _or_null(_NUMBER) for percent in PERCENTILES},
    **{name: _or_null(_NUMBER) for name in ("min", "max", "mean")},
}
_OF_LOG: dict[str, Json] = {"request_log": {"type": "string", "enum": ["on", "off", "failing", "shedding", "replaced"]}}
_STATS: dict[str, Json] = {
    **_OF_LOG,
    "hours": _COUNT,
    "total_requests": _COUNT,
    "success_count": _COUNT,
    "error_count": _COUNT,
    "server_error_count": _COUNT,
    "error_rate": _NUMBER,
    "average_response_time": _NUMBER,
    "bytes_in": _COUNT,
    "bytes_out": _COUNT,
    "requests_by_service": _map(_COUNT),
    "requests_by_status": _map(_COUNT),
    "requests_by_reason": _map(_COUNT),
    "top_endpoints": {
        "type": "array",
        "items": thing(endpoint=_TEXT, requests=_COUNT, errors=_COUNT, average_response_time=_NUMBER),
    },
}
_CIRCUIT: dict[str, Json] = {
    "state": of_type(BreakerState),
    "failure_count": _COUNT,
    "success_count": _COUNT,
    "trips": _COUNT,
    "transitions": thing(**{str(state): _COUNT for state in BreakerState}),
    "retry_after_s": _NUMBER,
    "last_trip_cause": _or_null(_TEXT),
    "history": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["age_s", "from", "to", "cause"],
            "properties": {"age_s": _NUMBER, "from": _TEXT, "to": _TEXT, "cause": _TEXT},
        },
    },
}
_PROCESS = thing(
    lifecycle=_TEXT,
    version=_TEXT,
    uptime_s=_NUMBER,
    connections=_COUNT,
    in_flight=_COUNT,
    loop_lag_s=_NUMBER,
    pools=_map(thing(active=_COUNT, idle=_COUNT, dialling=_COUNT, waiting=_COUNT, upgraded=_COUNT)),
    log=record(JournalStats, is_shedding=_YES_OR_NO),
    access_lines_lost=_COUNT,
    certificate_ends_at=_or_null(_NUMBER),
    reloads=thing(success=_COUNT, failure=_COUNT),
    revision=_COUNT,
)
_HEALTH = thing(
    service=_TEXT,
    version=_TEXT,
    lifecycle=_TEXT,
    status={"type": "string", "enum": ["healthy", "degraded"]},
    services=_map(of_type(HealthStatus)),
    circuits=_map(of_type(BreakerState)),
    request_log=thing(
        status={"type": "string", "enum": ["ok", "off", "failing", "shedding", "replaced"]},
        rows_written=_COUNT,
        rows_shed=_COUNT,
        rows_failed=_COUNT,
    ),
    uptime_s=_NUMBER,
)
_FILL = thing(
    id=_TEXT,
    name=_TEXT,
    limit_type=of_type(LimitType),
    path_pattern=_TEXT,
    mode=of_type(LimitMode),
    max_requests=_COUNT,
    window_seconds=_COUNT,
    buckets_in_use=_COUNT,
    lowest_tokens=_COUNT,
    allowed=_COUNT,
    refused=_COUNT,
    observed=_COUNT,
)
_CANDIDATE: Json = {
    "type": "object",
    "required": ["id", "path_pattern", "why"],
    "properties": {"id": _TEXT, "path_pattern": _TEXT, "priority": _COUNT, "target_service": _TEXT, "why": _TEXT},
}
_VERDICT: Json = {
    "type": "object",
    "required": ["verdict"],
    "properties": {
        "verdict": {"type": "string", "enum": ["accepted", "refused", "would wait"]},
        "user_id": _TEXT,
        "roles": _WORDS,
        "why": _TEXT,
        "asks": _TEXT,
    },
}
_CHECKED = thing(
    rule=_TEXT,
    name=_TEXT,
    limit_type=of_type(LimitType),
    mode=of_type(LimitMode),
    subject=_TEXT,
    tokens=_NUMBER,
    capacity=_COUNT,
    allowed=_YES_OR_NO,
)
_EXPLANATION = thing(
    target=_TEXT,
    path=_TEXT,
    host=_TEXT,
    client_ip=_TEXT,
    revision=_COUNT,
    candidates={"type": "array", "items": _CANDIDATE},
    route=_or_null(_TEXT),
    cors=_or_null(thing(origin=_TEXT, allowed=_YES_OR_NO)),
    jwt=_or_null(_VERDICT),
    limits={"type": ["array", "null"], "items": _CHECKED},
    breaker=_or_null(thing(service=_TEXT, allowed=_YES_OR_NO, is_unhealthy=_YES_OR_NO, passed_over=_WORDS, **_CIRCUIT)),
    would_ask={"type": ["string", "null"], "enum": ["remote", "keys", None]},
    verdict={"type": "string", "enum": ["serve", "refuse", "wait"]},
    reason=_TEXT,
    status=_or_null(_COUNT),
    error_message=_or_null(_TEXT),
    reply_headers={"type": "array", "items": {**_WORDS, "minItems": 2, "maxItems": 2}},
    upstream=_or_null(thing(service=_TEXT, url=_TEXT, head=_WORDS)),
)
_VALUE: Json = {"anyOf": [_ref("Route"), _ref("Rule"), _ref("Cors"), {"type": "null"}]}

#: By the names that rows of the table of endpoints use.
REPLIES: Mapping[str, Json] = {
    "Cors": record(CorsPolicy),
    "DryRun": thing(dry_run={"type": "boolean", "const": True}, before=_VALUE, after=_VALUE),
    "Errors": _list("LogRow", **_OF_LOG),
    "Explanation": _EXPLANATION,
    "Health": _HEALTH,
    "LogRow": thing(id=_COUNT, **record(LogRow, created_at=_MOMENT)["properties"]),
    "Logs": _list("LogRow", next=_or_null(_TEXT), **_OF_LOG),
    "Metrics": thing(**_STATS, performance=_ref("Performance"), process=_PROCESS),
    "OpenAPI": {"type": "object"},
    "Performance": thing(**_OF_LOG, hours=_COUNT, **_TIMING, services=_map(thing(**_TIMING))),
    "Revision": record(Revision),
    "Revisions": _list("Revision", next_before=_or_null(_COUNT)),
    "Route": record(Route),
    "Routes": _list("Route", total=_COUNT, revision=_COUNT, next=_or_null(_TEXT)),
    "Rule": record(RateLimitRule),
    "RuleFill": _FILL,
    "RuleFills": _list("RuleFill"),
    "Rules": _list("Rule", total=_COUNT, revision=_COUNT, next=_or_null(_TEXT)),
    "Service": record(ServiceHealth, last_check=_or_null(_MOMENT), circuit_breaker=thing(**_CIRCUIT)),
    "Services": _list("Service", total=_COUNT),
    "Stats": thing(**_STATS),
}
