"""Handlers that read and write the configuration: routes, rules, CORS, revisions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engadi_gateway.admin.api import BASE, Call, next_page
from engadi_gateway.admin.jsonio import listing, reply
from engadi_gateway.errors import Fault, HeaderLine, Reason, Refusal, RefusedError
from engadi_gateway.model import Origin, RateLimitRule, Revision, Route
from engadi_gateway.net.context import LocalReply
from engadi_gateway.pipeline.cors import cors_faults
from engadi_gateway.store.changes import Change, Value
from engadi_gateway.store.codec import cors_from_json, route_from_json, rule_from_json, to_json
from engadi_gateway.store.seed import timestamp


def etag_of(document: Any) -> bytes:
    """A strong validator: the same content has the same tag (RFC 9110 section 8.8.3)."""
    text = json.dumps(document, sort_keys=True).encode()
    return b'"%b"' % hashlib.sha256(text).hexdigest()[:32].encode("ascii")


def _guard(call: Call, document: Any) -> None:
    """If-Match (RFC 9110 section 13.1.1)."""
    wanted = call.exchange.head.notes.get(b"if-match")
    if wanted is None or wanted.strip() == b"*":
        return
    if etag_of(document) not in [tag.strip() for tag in wanted.split(b",")]:
        raise RefusedError(Refusal(Reason.PRECONDITION_FAILED))


def _tagged(status: int, document: Any, *lines: HeaderLine) -> LocalReply:
    return reply(status, document, (b"ETag", etag_of(document)), *lines)


def _invalid(*faults: Fault) -> RefusedError:
    return RefusedError(Refusal(Reason.INVALID_FIELDS, faults=faults))


async def _write(call: Call, kind: str, subject: str, before: Value | None, after: Value | None) -> LocalReply | None:
    """Write; or, where only that was asked, try it and answer with what would change."""
    change = Change(kind, subject, after, call.actor, call.exchange.request_id, timestamp(time.time()))
    is_dry = call.query.get("dry_run") == "true"
    try:
        if is_dry:
            await call.console.rehearse(change)
        else:
            await call.console.change(change)
    except RefusedError as error:  # compiled, the fault's pointer names the route; the client sent only its fields
        own = f"/{kind}s/{subject}"
        faults = tuple(replace(fault, pointer=fault.pointer.removeprefix(own)) for fault in error.refusal.faults)
        raise RefusedError(replace(error.refusal, faults=faults)) from None
    return reply(200, {"dry_run": True, "before": _or_none(before), "after": _or_none(after)}) if is_dry else None


def _or_none(value: Value | None) -> dict[str, Any] | None:
    return None if value is None else to_json(value)


async def _page(call: Call, values: Sequence[Route] | Sequence[RateLimitRule]) -> LocalReply:
    """All of a list, or `limit` of them; those behind the one whose id `cursor` is.

    One that is no longer there is a fault: nobody can say what was behind it.
    """
    begin = 0
    if "cursor" in call.query:
        ids = [value.id for value in values]
        try:
            begin = ids.index(call.query["cursor"].lower()) + 1
        except ValueError:
            raise _invalid(Fault("/query/cursor", "no longer there: begin anew")) from None
    end = begin + call.query.get("limit", len(values))
    more = values[end - 1].id if end < len(values) else None
    others = {"total": len(values), "revision": call.console.snapshot.revision, "next": more}
    link = next_page(call, None if more is None else {"cursor": more})
    return await asyncio.to_thread(_listed, values[begin:end], others, *link)


def _listed(values: Sequence[Value], others: dict[str, Any], *lines: HeaderLine) -> LocalReply:
    """Of thousands it takes long: for a thread."""
    return listing(map(to_json, values), others, *lines)


# routes


def _route(call: Call) -> Route:
    wanted = call.params["id"].lower()
    for route in call.console.snapshot.routes:
        if route.id == wanted:
            return route
    raise RefusedError(Refusal(Reason.NOT_FOUND))


def _check_route(call: Call, route: Route, old: Route | None = None) -> None:
    """What needs more than one field: a route without a URL must name a service that has one.

    The settings may take a service away: its route can be switched off, and anything else of it be changed.
    """
    if not route.is_active or (old is not None and _leads_to(old) == _leads_to(route)):
        return
    rows = [(f"/split/{index}", share.target_service, share.target_url) for index, share in enumerate(route.split)]
    services = call.console.snapshot.services
    faults = [
        Fault(f"{at}/target_url", f"needed, for {service} is no service of the settings")
        for at, service, url in rows or [("", route.target_service, route.target_url)]
        if not url and service not in services
    ]
    if faults:
        raise _invalid(*faults)


def _leads_to(route: Route) -> tuple[object, ...]:
    return route.is_active, route.target_service, route.target_url, route.split


async def list_routes(call: Call) -> LocalReply:
    return await _page(call, call.console.routing_table().ordered())


async def create_route(call: Call) -> LocalReply:
    now = timestamp(time.time())
    own = {"id": str(uuid.uuid4()), "created_at": now, "updated_at": now}
    route = route_from_json({**call.body, **own})
    _check_route(call, route)
    return await _write(call, "route", route.id, None, route) or _tagged(
        201, to_json(route), (b"Location", f"{BASE}/routes/{route.id}".encode())
    )


async def get_route(call: Call) -> LocalReply:
    return _tagged(200, to_json(_route(call)))


async def put_route(call: Call) -> LocalReply:
    old = _route(call)
    before = to_json(old)
    _guard(call, before)
    own = {"id": before["id"], "created_at": before["created_at"], "updated_at": timestamp(time.time())}
    route = route_from_json({**before, **call.body, **own})
    _check_route(call, route, old)
    return await _write(call, "route", route.id, old, route) or _tagged(200, to_json(route))


async def delete_route(call: Call) -> LocalReply:
    route = _route(call)
    _guard(call, to_json(route))
    return await _write(call, "route", route.id, route, None) or reply(204, None)


# rules


def _rule(call: Call) -> RateLimitRule:
    wanted = call.params["id"].lower()
    for rule in call.console.snapshot.rules:
        if rule.id == wanted:
            return rule
    raise RefusedError(Refusal(Reason.NOT_FOUND))


def _check_name(call: Call, rule: RateLimitRule) -> None:
    if any(other.name == rule.name and other.id != rule.id for other in call.console.snapshot.rules):
        raise RefusedError(Refusal(Reason.CONFLICT, faults=(Fault("/name", "another rule has this name"),)))


async def list_rules(call: Call) -> LocalReply:
    return await _page(call, call.console.snapshot.rules)


async def create_rule(call: Call) -> LocalReply:
    now = timestamp(time.time())
    rule_id = str(uuid.uuid4())
    own = {"id": rule_id, "origin": Origin.API, "created_at": now, "updated_at": now}
    name = {"name": f"{call.body['limit_type']}-{rule_id[:8]}"}
    rule = rule_from_json({**name, **call.body, **own})
    _check_name(call, rule)
    return await _write(call, "rule", rule.id, None, rule) or _tagged(
        201, to_json(rule), (b"Location", f"{BASE}/config/rate-limits/{rule.id}".encode())
    )


async def get_rule(call: Call) -> LocalReply:
    return _tagged(200, to_json(_rule(call)))


async def put_rule(call: Call) -> LocalReply:
    old = _rule(call)
    before = to_json(old)
    _guard(call, before)
    own = {
        "id": before["id"],
        "origin": Origin.API,
        "created_at": before["created_at"],
        "updated_at": timestamp(time.time()),
    }
    rule = rule_from_json({**before, **call.body, **own})
    _check_name(call, rule)
    return await _write(call, "rule", rule.id, old, rule) or _tagged(200, to_json(rule))


async def delete_rule(call: Call) -> LocalReply:
    rule = _rule(call)
    _guard(call, to_json(rule))
    return await _write(call, "rule", rule.id, rule, None) or reply(204, None)


async def rule_fill(call: Call) -> LocalReply:
    return reply(200, {"items": call.console.limits_status()})


# CORS


async def get_cors(call: Call) -> LocalReply:
    return _tagged(200, to_json(call.console.snapshot.cors))


async def put_cors(call: Call) -> LocalReply:
    before = to_json(call.console.snapshot.cors)
    _guard(call, before)
    policy = cors_from_json({**before, **call.body, "origin": Origin.API})
    faults = await asyncio.to_thread(cors_faults, policy)  # a thousand origins take long
    if faults:
        raise _invalid(*faults)
    return await _write(call, "cors", "cors", call.console.snapshot.cors, policy) or _tagged(200, to_json(policy))


# revisions


def _revision_json(revision: Revision) -> dict[str, Any]:
    return {
        "number": revision.number,
        "actor": revision.actor,
        "request_id": revision.request_id,
        "created_at": revision.created_at,
        "kind": revision.kind,
        "subject": revision.subject,
        "before": revision.before,
        "after": revision.after,
    }


async def list_revisions(call: Call) -> LocalReply:
    limit = call.asked("limit")
    found = await call.console.catalog.revisions(limit + 1, call.query.get("before"))
    items = [_revision_json(revision) for revision in found[:limit]]
    more = items[-1]["number"] if len(found) > limit else None
    link = next_page(call, None if more is None else {"before": more})
    return await asyncio.to_thread(listing, items, {"next_before": more}, *link)


async def get_revision(call: Call) -> LocalReply:
    found = await call.console.catalog.revision(int(call.params["n"]))
    if found is None:
        raise RefusedError(Refusal(Reason.NOT_FOUND))
    return reply(200, _revision_json(found))
