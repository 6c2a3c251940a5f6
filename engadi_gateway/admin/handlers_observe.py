"""Handlers that look: health, services, statistics, logs, metrics, explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from engadi_gateway.admin.api import Call, next_page
from engadi_gateway.admin.jsonio import listing, reply
from engadi_gateway.admin.media import preferred
from engadi_gateway.admin.schemas import last_ms, moment_ms
from engadi_gateway.errors import Fault, Reason, Refusal, RefusedError
from engadi_gateway.explain import explained
from engadi_gateway.model import BreakerState, Service, ServiceHealth
from engadi_gateway.net.context import LocalReply
from engadi_gateway.record import metrics as prometheus
from engadi_gateway.store.questions import LogFilter
from engadi_gateway.store.seed import timestamp

_SLICE = 20  # services, looked at in a millisecond or two


def _now_ms() -> int:
    return int(time.time() * 1000)


# health


def _health_page(call: Call) -> dict[str, Any]:
    """Names and states only: everybody may read it."""
    state = call.console.state()
    log, log_status = state["log"], _log_status(call, state["log"])
    page = call.console.checker.aggregate()
    breakers = call.console.breakers
    circuits = {name: str(breakers.peek(name).state) for name in breakers.names() if name in page["services"]}
    # those of breakers that are switched off keep nobody out
    asked = page["services"] if call.console.settings.breaker_enabled else ()
    is_closed = all(circuits.get(name, BreakerState.CLOSED) == BreakerState.CLOSED for name in asked)
    if log_status not in {"ok", "off"} or not is_closed:
        page["status"] = "degraded"
    return {
        "service": call.console.settings.gateway_name,
        "version": state["version"],
        "lifecycle": state["lifecycle"],
        **page,
        "circuits": circuits,
        "request_log": {
            "status": log_status,
            "rows_written": log["rows_written"],
            "rows_shed": log["rows_shed"],
            "rows_failed": log["rows_failed"],
        },
        "uptime_s": state["uptime_s"],
    }


def _log_status(call: Call, log: Mapping[str, Any]) -> str:
    """`shedding`: within the last minute; `replaced`: the file was corrupt, and a new one was begun since the start."""
    if not call.console.settings.log_requests:
        return "off"
    troubles = (("failing", log["last_error"]), ("shedding", log["is_shedding"]), ("replaced", log["moved_aside"]))
    return next((word for word, is_so in troubles if is_so), "ok")


async def health(call: Call) -> LocalReply:
    return reply(200, _health_page(call))


def _plain(status: int, text: str) -> LocalReply:
    lines = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Cache-Control", b"no-store")]
    return LocalReply(status, lines, text.encode())


async def livez(call: Call) -> LocalReply:
    """The process answers; nothing else is asked."""
    return _plain(200, "ok\n")


async def readyz(call: Call) -> LocalReply:
    """503 while starting or draining; upstreams in trouble do not make the gateway unready."""
    lifecycle = call.console.state()["lifecycle"]
    is_ready = lifecycle == "running"
    text = f"lifecycle: {lifecycle}\n" if "verbose" in call.query else ""
    return _plain(200 if is_ready else 503, text + ("ok\n" if is_ready else "not ready\n"))


# services


def _service_json(call: Call, service: Service) -> dict[str, Any]:
    name = service.name
    known = call.console.checker.of(name) or ServiceHealth(name, service.url)
    document = {**asdict(known), "status": str(known.status)}
    if known.last_check is not None:
        document["last_check"] = timestamp(known.last_check / 1000)
    document["circuit_breaker"] = call.console.breakers.status(name, time.monotonic())
    return document


async def list_services(call: Call) -> LocalReply:
    """Each as it is at one moment; others are served between slices of them."""
    items = []
    for number, (_, service) in enumerate(sorted(call.console.services().items()), 1):
        items.append(_service_json(call, service))
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return await asyncio.to_thread(listing, items, {"total": len(items)})


def _known_service(call: Call) -> Service:
    service = call.console.services().get(call.params["name"])
    if service is None:
        raise RefusedError(Refusal(Reason.NOT_FOUND, "no such service"))
    return service


async def service_health(call: Call) -> LocalReply:
    """Checks now, so that what is said is fresh."""
    service = _known_service(call)
    await call.console.checker.check_now(service.name)
    return reply(200, _service_json(call, service))


async def reset_service(call: Call) -> LocalReply:
    service = _known_service(call)
    call.console.breakers.reset(service.name, time.monotonic())
    return reply(200, _service_json(call, service))


# the log


def _of_log(call: Call, answer: dict[str, Any]) -> dict[str, Any]:
    """With whether there is anything to answer from: nothing happened is not the same as nothing was written."""
    status = _log_status(call, call.console.state()["log"])
    return {**answer, "request_log": "on" if status == "ok" else status}


async def _totals(call: Call) -> dict[str, Any]:
    hours = call.asked("hours")
    return _of_log(call, await call.console.journal.stats_of(hours, _now_ms()))


async def _timing(call: Call) -> dict[str, Any]:
    hours = call.asked("hours")
    return _of_log(call, await call.console.journal.performance(hours, _now_ms()))


async def stats(call: Call) -> LocalReply:
    await call.console.flushed()
    return reply(200, await _totals(call))


async def performance(call: Call) -> LocalReply:
    await call.console.flushed()
    return reply(200, await _timing(call))


async def errors(call: Call) -> LocalReply:
    await call.console.flushed()
    items = await call.console.journal.errors(call.asked("limit"))
    return reply(200, _of_log(call, {"items": items}))


async def logs(call: Call) -> LocalReply:
    await call.console.flushed()
    query = dict(call.query)
    for name, key, read in (("start_date", "start_ms", moment_ms), ("end_date", "end_ms", last_ms)):
        if name in query:
            query[key] = read(query.pop(name))
    if "route_id" in query:
        query["route_id"] = query["route_id"].lower()
    status: str | None = query.pop("status_code", None)
    if status is not None:
        query |= {"status_class": int(status[0])} if status.endswith("xx") else {"status_code": int(status)}
    page = await call.console.journal.logs(LogFilter(**{**call.defaults, **query}))
    more = {"offset": None, "cursor": page.next_cursor} if page.next_cursor else None
    document = _of_log(call, {"items": page.items, "next": page.next_cursor})
    return await asyncio.to_thread(reply, 200, document, *next_page(call, more))


# metrics


def _facts(call: Call) -> dict[str, Any]:
    console = call.console
    return {
        "state": console.state(),
        "routes": console.route_names(),
        "targets": console.targets(),
        "limits": console.limits_status(),
        "circuits": console.breakers.moves(),
        "health": console.checker.status(),
    }


async def _text(call: Call, media: str) -> LocalReply:
    copied, facts = await call.console.metrics.copy(), _facts(call)
    is_openmetrics = media == prometheus.OPENMETRICS
    body = await asyncio.to_thread(prometheus.text_of, copied, facts, is_openmetrics=is_openmetrics)
    return LocalReply(200, [(b"Content-Type", media.encode("ascii")), (b"Cache-Control", b"no-store")], body)


def _preferred(call: Call, *offered: str) -> str:
    return preferred(call.exchange.head.value(b"accept"), offered)


async def metrics(call: Call) -> LocalReply:
    """JSON; Prometheus text for those who ask for it."""
    media = _preferred(call, "application/json", prometheus.TEXT, prometheus.OPENMETRICS)
    if media != "application/json":
        return await _text(call, media)
    await call.console.flushed()
    totals, timing = await _totals(call), await _timing(call)
    return reply(200, {**totals, "performance": timing, "process": call.console.state()})


async def metrics_prometheus(call: Call) -> LocalReply:
    return await _text(call, _preferred(call, prometheus.TEXT, prometheus.OPENMETRICS))


# explain


async def explain_request(call: Call) -> LocalReply:
    body = call.body
    headers = body.get("headers") or {}
    try:
        answer, candidates = explained(
            call.console,
            method=body["method"],
            path=body["path"],
            host=body.get("host") or "localhost",
            headers=list(headers.items()),
            token=body.get("token"),
            client_ip=body.get("client_ip") or call.exchange.client_ip,
            is_admin=body.get("listener") == "admin",
        )
    except RefusedError as error:  # the fault is the body's: its request would never be read
        detail = f"{error.refusal.code}: {error.refusal.detail or error.refusal.reason.title}"
        raise RefusedError(Refusal(Reason.INVALID_FIELDS, faults=(Fault("", detail),))) from None
    return await asyncio.to_thread(lambda: reply(200, {**answer, "candidates": candidates()}))
