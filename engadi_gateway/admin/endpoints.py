"""The table of endpoints. A new one is a row here and a handler; routes, checks and documentation follow."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from engadi_gateway.admin import handlers_config as config
from engadi_gateway.admin import handlers_observe as observe
from engadi_gateway.admin.api import BASE, Call, Endpoint, Gate
from engadi_gateway.admin.jsonio import reply
from engadi_gateway.admin.openapi import document_of
from engadi_gateway.admin.schemas import CORS, EXPLAIN, ROUTE, RULE, SERVICE, UUID, Number, Schema, Text, moment_ms
from engadi_gateway.errors import Reason
from engadi_gateway.net.context import LocalReply
from engadi_gateway.store.questions import id_of

_HOURS: dict[str, Schema] = {"hours": Number(1, 168, default=24)}
_ID: dict[str, Schema] = {"id": UUID}
_NAME: dict[str, Schema] = {"name": SERVICE}
_PAGE: dict[str, Schema] = {
    "limit": Number(1, 500, note="without it: all"),
    "cursor": replace(UUID, note="the id of the last one of the page before; Link has it"),
}
_DRY: dict[str, Schema] = {"dry_run": Text(choices=("true", "false"))}
_START = Text(
    longest=40, shortest=1, format="date-time", is_good=moment_ms,
    note="inclusive; a date is its first millisecond; without an offset it is UTC",
)  # fmt: skip
_END = replace(_START, note="inclusive; a date is its last millisecond; without an offset it is UTC")
_REASONS = frozenset(reason.code for reason in Reason)


def _known_reason(text: str) -> None:
    """`auth_invalid.expired` is one of `auth_invalid`."""
    if text.partition(".")[0] not in _REASONS:
        raise ValueError("no such reason; the README has the table")


_LOGS: dict[str, Schema] = {
    "method": Text(longest=32),
    "path": Text(longest=4096, note="this path; with a last /*, it and all below it"),  # fits into a target
    "target_service": Text(longest=64),
    "user_id": Text(longest=1024),
    "client_ip": Text(longest=45),
    "request_id": Text(longest=128),
    "status_code": Text(pattern="[1-9][0-9]{2}|[1-5]xx", longest=3, note="a status; 5xx: all of that class"),
    "reason": Text(longest=64, shortest=1, is_good=_known_reason, note="auth_invalid finds auth_invalid.expired too"),
    "route_id": UUID,
    "min_response_time_ms": Number(0, 1_000_000_000, note="what took so long or longer; WebSockets and streams do too"),
    "start_date": _START,
    "end_date": _END,
    "limit": Number(1, 500, default=100),
    "offset": Number(0, 1_000_000, default=0, note="so many rows are skipped; a cursor is faster"),
    "cursor": Text(longest=64, shortest=1, is_good=id_of, note="next of the page before; Link has it"),
}


async def openapi(call: Call) -> LocalReply:
    return await asyncio.to_thread(lambda: reply(200, document_of(ENDPOINTS)))  # some ten milliseconds' work


# fmt: off
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/health", observe.health, "Whether all is well: names and states", is_public=True, says="Health"),
    Endpoint("GET", "/livez", observe.livez, "Whether the process answers", is_public=True, media="text/plain"),
    Endpoint("GET", "/readyz", observe.readyz, "Whether it takes traffic", is_public=True,
             query={"verbose": Text(longest=0, note="with the lifecycle, whatever its value")}, media="text/plain"),
    Endpoint("GET", f"{BASE}/health", observe.health, "The same as /health", is_public=True, says="Health"),
    Endpoint("GET", f"{BASE}/openapi.json", openapi, "This document", says="OpenAPI"),

    Endpoint("GET", f"{BASE}/routes", config.list_routes, "Routes, in matching order", query=_PAGE, says="Routes"),
    Endpoint("POST", f"{BASE}/routes", config.create_route, "Add a route", query=_DRY, body=ROUTE,
             success=201, says="Route"),
    Endpoint("GET", f"{BASE}/routes/{{id}}", config.get_route, "One route", params=_ID, says="Route"),
    Endpoint("PUT", f"{BASE}/routes/{{id}}", config.put_route, "Change fields of a route", query=_DRY,
             body=ROUTE.partial(), params=_ID, is_guarded=True, says="Route"),
    Endpoint("DELETE", f"{BASE}/routes/{{id}}", config.delete_route, "Delete a route", query=_DRY, params=_ID,
             success=204, is_guarded=True),

    Endpoint("GET", f"{BASE}/services", observe.list_services, "Services with health and circuit", says="Services"),
    Endpoint("GET", f"{BASE}/services/{{name}}/health", observe.service_health, "Check one service now", params=_NAME,
             says="Service"),
    Endpoint("POST", f"{BASE}/services/{{name}}/reset", observe.reset_service, "Close a service's circuit",
             params=_NAME, is_dry=True, says="Service"),

    Endpoint("GET", f"{BASE}/stats", observe.stats, "Totals, error rate, services, statuses, endpoints", query=_HOURS,
             says="Stats"),
    Endpoint("GET", f"{BASE}/logs", observe.logs, "The request log, newest first", query=_LOGS, says="Logs"),
    Endpoint("GET", f"{BASE}/metrics", observe.metrics, "Statistics as JSON, or Prometheus text by Accept",
             query=_HOURS, says="Metrics"),
    Endpoint("GET", f"{BASE}/metrics/prometheus", observe.metrics_prometheus, "Prometheus text", media="text/plain"),
    Endpoint("GET", f"{BASE}/errors", observe.errors, "The newest requests of status 400 and above, or cut short",
             query={"limit": Number(1, 500, default=50)}, says="Errors"),
    Endpoint("GET", f"{BASE}/performance", observe.performance, "Percentiles, overall and per service", query=_HOURS,
             says="Performance"),

    Endpoint("GET", f"{BASE}/rate-limits", config.rule_fill, "Rules with their live fill", says="RuleFills"),
    Endpoint("GET", f"{BASE}/config/rate-limits", config.list_rules, "Rate-limit rules", query=_PAGE, says="Rules"),
    Endpoint("POST", f"{BASE}/config/rate-limits", config.create_rule, "Add a rule", query=_DRY, body=RULE,
             success=201, says="Rule"),
    Endpoint("GET", f"{BASE}/config/rate-limits/{{id}}", config.get_rule, "One rule", params=_ID, says="Rule"),
    Endpoint("PUT", f"{BASE}/config/rate-limits/{{id}}", config.put_rule, "Change fields of a rule", query=_DRY,
             body=RULE.partial(), params=_ID, is_guarded=True, says="Rule"),
    Endpoint("DELETE", f"{BASE}/config/rate-limits/{{id}}", config.delete_rule, "Delete a rule", query=_DRY, params=_ID,
             success=204, is_guarded=True),
    Endpoint("GET", f"{BASE}/config/cors", config.get_cors, "The CORS policy", says="Cors"),
    Endpoint("PUT", f"{BASE}/config/cors", config.put_cors, "Change fields of the CORS policy", query=_DRY, body=CORS,
             is_guarded=True, says="Cors"),
    Endpoint("GET", f"{BASE}/config/revisions", config.list_revisions, "Configuration writes, newest first",
             query={"limit": Number(1, 500, default=50), "before": Number(1, 1 << 50, note="only below this number")},
             says="Revisions"),
    Endpoint("GET", f"{BASE}/config/revisions/{{n}}", config.get_revision, "One write, before and after",
             params={"n": Text(pattern=r"[0-9]{1,15}", longest=15, shortest=1)}, says="Revision"),

    Endpoint("POST", f"{BASE}/explain", observe.explain_request, "What would be done with a request, and why",
             body=EXPLAIN, is_dry=True, says="Explanation"),
)
# fmt: on
GATE = Gate(ENDPOINTS)
