"""The admin API of a running gateway: real sockets, real tokens, real databases; every bad input is a 4xx."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engadi_gateway import __version__
from engadi_gateway.admin import handlers_config, jsonio
from engadi_gateway.admin.api import Call, local_routes
from engadi_gateway.admin.endpoints import ENDPOINTS
from engadi_gateway.admin.handlers_observe import list_services
from engadi_gateway.errors import Fault, Reason, RefusedError
from engadi_gateway.gateway import compiler
from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.model import CorsPolicy, Route
from engadi_gateway.pipeline.cors import Cors, cors_faults
from engadi_gateway.pipeline.table import RoutingTable
from tests.exchanges import exchange_of, head_of
from tests.fakes import Reply, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running, token
from tests.logrows import a_row

BASE = "/api/v1/gateway"
NOBODY = "00000000-0000-4000-8000-000000000000"
USER = token("alice", "user")
Session = Callable[[Gateway], Awaitable[None]]


def with_gateway(folder: Path, session: Session, **values: Any) -> None:
    """Run a session against a gateway with the services auth and content."""

    async def main() -> None:
        async with upstream() as up, running(folder, up, up, **values) as gateway:
            await session(gateway)

    asyncio.run(main())


async def admin(gateway: Gateway, method: str, path: str, **asked: Any) -> Reply:
    return await ask(gateway.port, method, path if path.startswith("/health") else BASE + path, bearer=ADMIN, **asked)


async def create_route(gateway: Gateway, pattern: str = "/made/*", **fields: Any) -> dict[str, Any]:
    body = {"path_pattern": pattern, "target_service": "content", **fields}
    reply = await admin(gateway, "POST", "/routes", body=body)
    assert reply.status == 201, reply.body
    route: dict[str, Any] = json_of(reply)
    return route


async def create_rule(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    body = {"name": "made", "limit_type": "per_ip", "max_requests": 1000, "window_seconds": 60, **fields}
    reply = await admin(gateway, "POST", "/config/rate-limits", body=body)
    assert reply.status == 201, reply.body
    rule: dict[str, Any] = json_of(reply)
    return rule


def assert_problem(reply: Reply, status: int, code: str, pointers: list[str] | None = None) -> None:
    """The contract of every refusal: RFC 9457, never cached, with the request's id, and a pointer a fault."""
    assert (reply.status, reply.one("content-type")) == (status, "application/problem+json"), reply.body
    assert "no-store" in reply.one("cache-control")
    problem = json_of(reply)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:engadi:problem:{code.partition('.')[0]}"
    assert problem["request_id"] == reply.one("x-request-id")
    if pointers is not None:
        assert sorted(fault["pointer"] for fault in problem.get("errors", [])) == sorted(pointers)
        assert all(fault["detail"] for fault in problem.get("errors", []))


# who may ask


def _concrete(path: str) -> str:
    return path.replace("{id}", NOBODY).replace("{name}", "content").replace("{n}", "1")


PROTECTED = [one for one in ENDPOINTS if not one.is_public]


def test_every_endpoint_that_is_not_public_asks_for_the_role(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        for endpoint in PROTECTED:
            path = _concrete(endpoint.path)
            body: dict[str, Any] | None = {} if endpoint.body is not None else None
            nobody = await ask(gateway.port, endpoint.method, path, body=body)
            assert_problem(nobody, 401, "auth_missing")
            assert nobody.one("www-authenticate").startswith("Bearer")
            user = await ask(gateway.port, endpoint.method, path, body=body, bearer=USER)
            assert_problem(user, 403, "scope_missing")
        assert gateway.configuration.snapshot.revision == 1

    with_gateway(tmp_path, session)


def test_the_role_is_the_settings(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        assert (await ask(gateway.port, "GET", f"{BASE}/routes", bearer=token("o", "operator"))).status == 200
        assert (await ask(gateway.port, "GET", f"{BASE}/routes", bearer=ADMIN)).status == 403

    with_gateway(tmp_path, session, admin_role="operator")


def test_every_get_answers_get_and_head(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route, rule = await create_route(gateway), await create_rule(gateway)
        ids = {"/routes/{id}": route["id"], "/config/rate-limits/{id}": rule["id"]}
        for endpoint in (one for one in ENDPOINTS if one.method == "GET"):
            path = endpoint.path.replace("{id}", ids.get(endpoint.path.removeprefix(BASE), ""))
            path = _concrete(path)
            reply = await ask(gateway.port, "GET", path, bearer=ADMIN)
            assert (reply.status, "no-store" in reply.one("cache-control")) == (200, True), path
            assert reply.one("content-type").split(";")[0] == endpoint.media, path
            head = await ask(gateway.port, "HEAD", path, bearer=ADMIN)
            assert (head.status, head.body) == (200, b""), path
            assert head.one("content-type") == reply.one("content-type")

    with_gateway(tmp_path, session)


def test_other_methods_are_405_with_allow(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        reply = await admin(gateway, "PATCH", "/routes", body={})
        assert_problem(reply, 405, "method_not_allowed")
        assert sorted(reply.one("allow").split(", ")) == ["GET", "HEAD", "POST"]
        options = await admin(gateway, "OPTIONS", "/routes")
        assert (options.status, sorted(options.one("allow").split(", "))) == (204, ["GET", "HEAD", "POST"])

    with_gateway(tmp_path, session)


@pytest.mark.parametrize("values", [{}, {"cors_enabled": True, "cors_allow_origins": ("http://gateway.test",)}])
def test_no_preflight_runs_another_method(tmp_path: Path, values: dict[str, Any]) -> None:
    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway)
        for method, path in (("DELETE", f"/routes/{route['id']}"), ("POST", "/services/content/reset")):
            headers = {"Origin": "http://gateway.test", "Access-Control-Request-Method": method}
            reply = await admin(gateway, "OPTIONS", path, headers=headers)
            assert (reply.status, bool(reply.all("allow"))) == (204, not values)
        assert route["id"] in {kept.id for kept in gateway.configuration.snapshot.routes}

    with_gateway(tmp_path, session, **values)


def test_the_api_itself_refuses_a_method_that_is_not_the_endpoints(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway)
        exchange = exchange_of(head_of("OPTIONS", f"{BASE}/routes/{route['id']}"))
        delete = next(one for one in ENDPOINTS if one.handler.__name__ == "delete_route")
        exchange.route = next(one for one in local_routes(ENDPOINTS, "admin") if one.id == delete.route_id)
        exchange.params = (route["id"],)
        with pytest.raises(RefusedError) as refused:
            await gateway.api.serve(exchange, b"")
        assert refused.value.refusal.reason is Reason.METHOD_NOT_ALLOWED
        assert route["id"] in {kept.id for kept in gateway.configuration.snapshot.routes}

    with_gateway(tmp_path, session)


ORIGINS: dict[str, tuple[str, dict[str, Any], int]] = {
    "foreign": ("https://evil.example", {}, 403),
    "null": ("null", {}, 403),
    "our own": ("http://gateway.test", {}, 200),
    "our own behind TLS": ("https://gateway.test", {}, 200),
    "our name as a prefix": ("http://gateway.test.evil.example", {}, 403),
    "our name, another port": ("http://gateway.test:81", {}, 403),
    "our name, no scheme": ("://gateway.test", {}, 403),
    "our name, another scheme": ("x://gateway.test", {}, 403),
    "allowed, but CORS is off": ("https://app.example", {"cors_allow_origins": ("https://app.example",)}, 403),
    "allowed": ("https://app.example", {"cors_enabled": True, "cors_allow_origins": ("https://app.example",)}, 200),
    "everybody is allowed, which names nobody": (
        "https://evil.example", {"cors_enabled": True, "cors_allow_origins": ("*",)}, 403),
}  # fmt: skip


@pytest.mark.parametrize(("origin", "values", "status"), ORIGINS.values(), ids=ORIGINS.keys())
def test_a_page_of_another_site_cannot_drive_it(
    tmp_path: Path, origin: str, values: dict[str, Any], status: int
) -> None:
    async def session(gateway: Gateway) -> None:
        read = await admin(gateway, "GET", "/routes", headers={"Origin": origin})
        write = await admin(gateway, "PUT", "/config/cors", body={"max_age": 5}, headers={"Origin": origin})
        assert (read.status, write.status) == (status, status)
        if status == 403:
            assert_problem(write, 403, "preflight_denied")
            assert gateway.configuration.snapshot.revision == 1

    with_gateway(tmp_path, session, **values)


# routes


def test_a_route_lives_and_dies(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        made = await admin(gateway, "POST", "/routes", body={"path_pattern": "/new/*", "target_service": "content"})
        assert made.status == 201
        route = json_of(made)
        assert made.one("location") == f"{BASE}/routes/{route['id']}"
        assert made.one("etag").startswith('"')
        assert route["created_at"] == route["updated_at"]
        assert route["created_at"][-5] == "."
        assert route["created_at"].endswith("Z")

        got = await ask(gateway.port, "GET", made.one("location"), bearer=ADMIN)
        assert (got.status, json_of(got), got.one("etag")) == (200, route, made.one("etag"))
        assert (await ask(gateway.port, "GET", "/new/x", bearer=USER)).status == 200

        put = await admin(gateway, "PUT", f"/routes/{route['id']}", body={"is_public": True})
        changed = {**route, "is_public": True, "updated_at": json_of(put)["updated_at"]}
        assert (put.status, json_of(put)) == (200, changed)
        assert (await ask(gateway.port, "GET", "/new/x")).status == 200  # acts on the next request

        gone = await admin(gateway, "DELETE", f"/routes/{route['id']}")
        assert (gone.status, gone.body, gone.all("content-length")) == (204, b"", [])
        assert_problem(await ask(gateway.port, "GET", "/new/x"), 404, "no_route")
        assert_problem(await admin(gateway, "DELETE", f"/routes/{route['id']}"), 404, "not_found")
        assert_problem(await admin(gateway, "GET", f"/routes/{route['id']}"), 404, "not_found")

    with_gateway(tmp_path, session)


def test_routes_are_listed_in_matching_order(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        await create_route(gateway, "/z/*", priority=5)
        await create_route(gateway, "/a/{x}", is_active=False)
        listed = json_of(await admin(gateway, "GET", "/routes"))
        patterns = [route["path_pattern"] for route in listed["items"]]
        assert patterns == [route.path_pattern for route in gateway._console.routing_table().ordered()]
        assert patterns[0] == "/z/*"
        assert "/a/{x}" in patterns

    with_gateway(tmp_path, session)


def test_every_field_of_a_route_is_kept_over_a_restart(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "path_pattern": "/all/{x}/*",
        "target_service": "content",
        "target_url": "http://127.0.0.1:9/base",
        "methods": ["GET", "PUT"],
        "host": "*.example",
        "is_public": True,
        "is_active": False,
        "priority": -7,
        "timeout": 2.5,
        "retry_count": 0,
        "circuit_breaker_enabled": False,
        "strip_prefix": True,
        "preserve_host": True,
        "allow_encoded_slashes": True,
        "required_roles": ["editor"],
        "split": [{"target_service": "auth", "target_url": "http://127.0.0.1:9", "weight": 3}],
    }
    made: list[dict[str, Any]] = []

    async def first(gateway: Gateway) -> None:
        made.append(json_of(await admin(gateway, "POST", "/routes", body=fields)))

    async def second(gateway: Gateway) -> None:
        assert json_of(await admin(gateway, "GET", f"/routes/{made[0]['id']}")) == made[0]

    with_gateway(tmp_path, first)
    with_gateway(tmp_path, second)
    assert {name: made[0][name] for name in fields} == fields


def test_what_a_get_gave_can_be_put_back_and_ids_are_ours(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway)
        put = json_of(await admin(gateway, "PUT", f"/routes/{route['id']}", body={**route, "id": NOBODY}))
        assert {**put, "updated_at": ""} == {**route, "updated_at": ""}

    with_gateway(tmp_path, session)


def test_a_route_whose_service_was_taken_away_can_be_changed_and_switched_off_but_not_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            async with running(tmp_path, auth, auth):
                pass
            async with running(tmp_path, auth) as gateway:
                routes = json_of(await admin(gateway, "GET", "/routes"))["items"]
                route = next(one for one in routes if one["target_service"] == "content")
                path = f"/routes/{route['id']}"
                split = {"split": [{"target_service": "auth"}, {"target_service": "content"}]}
                for body, status, pointer in (
                    ({"priority": 3}, 200, ""),
                    ({**route, "priority": 4}, 200, ""),
                    ({"target_service": "search"}, 422, "/target_url"),
                    (split, 422, "/split/1/target_url"),
                    ({"is_active": False}, 200, ""),
                    ({"target_service": "search"}, 200, ""),
                    ({"is_active": True}, 422, "/target_url"),
                    ({"is_active": True, "target_url": auth.url}, 200, ""),
                ):
                    reply = await admin(gateway, "PUT", path, body=body)
                    faults = json_of(reply).get("errors", [])
                    assert (reply.status, [fault["pointer"] for fault in faults]) == (status, [pointer] * bool(pointer))
                asleep = {"path_pattern": "/asleep", "target_service": "lost", "is_active": False}
                assert (await admin(gateway, "POST", "/routes", body=asleep)).status == 201

    asyncio.run(run())


def test_an_id_may_be_written_in_capitals(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway)
        assert (await admin(gateway, "GET", f"/routes/{route['id'].upper()}")).status == 200

    with_gateway(tmp_path, session)


def test_the_same_match_conditions_twice_are_a_conflict(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway, "/twin/{a}", methods=["GET"])
        revision = gateway.configuration.snapshot.revision
        body = {"path_pattern": "/twin/{b}", "target_service": "content", "methods": ["GET", "PUT"]}
        assert_problem(await admin(gateway, "POST", "/routes", body=body), 409, "conflict")
        assert (await admin(gateway, "POST", "/routes", body={**body, "methods": ["PUT"]})).status == 201
        put = await admin(gateway, "PUT", f"/routes/{route['id']}", body={"methods": ["PUT"]})
        assert_problem(put, 409, "conflict")
        assert gateway.configuration.snapshot.revision == revision + 1

    with_gateway(tmp_path, session)


# ETag and If-Match


def test_if_match_guards_each_write(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route, rule = await create_route(gateway), await create_rule(gateway)
        for path, body in (
            (f"/routes/{route['id']}", {"priority": 3}),
            (f"/config/rate-limits/{rule['id']}", {"max_requests": 77}),
            ("/config/cors", {"max_age": 77}),
        ):
            before = (await admin(gateway, "GET", path)).one("etag")
            put = await admin(gateway, "PUT", path, body=body, headers={"If-Match": before})
            assert put.status == 200, path
            after = put.one("etag")
            assert after != before
            for stale in (before, f"W/{after}", '"x"', "nonsense", '""'):
                refused = await admin(gateway, "PUT", path, body=body, headers={"If-Match": stale})
                assert_problem(refused, 412, "precondition_failed")
            for good in ("*", after, f'"x", {after}'):
                assert (await admin(gateway, "HEAD", path)).status == 200
                tag = good if good == "*" else good.replace(after, (await admin(gateway, "GET", path)).one("etag"))
                assert (await admin(gateway, "PUT", path, body=body, headers={"If-Match": tag})).status == 200
        for path in (f"/routes/{route['id']}", f"/config/rate-limits/{rule['id']}"):
            refused = await admin(gateway, "DELETE", path, headers={"If-Match": '"stale"'})
            assert_problem(refused, 412, "precondition_failed")
            tag = (await admin(gateway, "GET", path)).one("etag")
            assert (await admin(gateway, "DELETE", path, headers={"If-Match": tag})).status == 204

    with_gateway(tmp_path, session)


_WRITES: dict[str, tuple[dict[str, Any] | None, list[dict[str, Any]]]] = {  # what makes one, and what then changes it
    "/routes": (
        {"path_pattern": "/new/*", "target_service": "content", "timeout": 30, "split": [{"target_service": "auth"}]},
        [{"timeout": 31}, {"timeout": None}, {"timeout": 0.5, "methods": ["GET"]}, {"timeout": 1}],
    ),
    "/config/rate-limits": (
        {"limit_type": "per_ip", "max_requests": 1000, "window_seconds": 60},
        [{"max_requests": 77}, {"mode": "observe", "path_pattern": "/a/*"}],
    ),
    "/config/cors": (None, [{"max_age": 5}, {"enabled": True, "allow_origins": ["https://app.example"]}]),
}


@pytest.mark.parametrize("path", _WRITES)
def test_a_write_answers_with_what_is_kept_and_its_tag_is_good_for_the_next(tmp_path: Path, path: str) -> None:
    body, changes = _WRITES[path]
    last: list[tuple[str, bytes, str]] = []

    async def session(gateway: Gateway) -> None:
        where = path
        if body is not None:
            reply = await admin(gateway, "POST", path, body=body)
            where = reply.one("location").removeprefix(BASE)
        else:
            reply = await admin(gateway, "GET", path)
        for change in changes:
            reply = await admin(gateway, "PUT", where, body=change, headers={"If-Match": reply.one("etag")})
            assert reply.status == 200, change
            got = await admin(gateway, "GET", where)
            assert (reply.body, reply.one("etag")) == (got.body, got.one("etag")), change
            (revision,) = json_of(await admin(gateway, "GET", "/config/revisions?limit=1"))["items"]
            assert json.dumps(revision["after"]).encode() == got.body, "to the letter"
        last.append((where, reply.body, reply.one("etag")))

    async def again(gateway: Gateway) -> None:
        got = await admin(gateway, "GET", last[0][0])
        assert (got.body, got.one("etag")) == last[0][1:]

    with_gateway(tmp_path, session)
    with_gateway(tmp_path, again)


def test_a_write_says_when_it_was_and_leaves_when_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = "2031-02-03T04:05:06.789Z"

    async def session(gateway: Gateway) -> None:
        made = {
            "/routes": await create_route(gateway, "/made/*"),
            "/config/rate-limits": await create_rule(gateway),
        }
        monkeypatch.setattr(handlers_config, "timestamp", lambda wall: moment)
        for path, value in made.items():
            body = {"is_active": False, "created_at": "1999-01-01T00:00:00.000Z", "updated_at": value["updated_at"]}
            put = json_of(await admin(gateway, "PUT", f"{path}/{value['id']}", body=body))
            assert put == {**value, **body, "created_at": value["created_at"], "updated_at": moment}
            got = json_of(await admin(gateway, "GET", f"{path}/{value['id']}"))
            assert got == put

    with_gateway(tmp_path, session)


def test_of_many_writers_with_one_etag_one_wins(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway)
        path = f"/routes/{route['id']}"
        tag = (await admin(gateway, "GET", path)).one("etag")
        revision = gateway.configuration.snapshot.revision
        asked = [
            admin(gateway, "PUT", path, body={"priority": number}, headers={"If-Match": tag}) for number in range(1, 9)
        ]
        statuses = sorted(reply.status for reply in await asyncio.gather(*asked))
        assert statuses == [200] + [412] * 7
        assert gateway.configuration.snapshot.revision == revision + 1

    with_gateway(tmp_path, session)


def test_partial_writes_at_once_lose_nothing(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        path = f"/routes/{(await create_route(gateway))['id']}"
        parts: list[dict[str, Any]] = [{"priority": 4}, {"timeout": 9.5}, {"retry_count": 7}, {"is_public": True}]
        await asyncio.gather(*(admin(gateway, "PUT", path, body=part) for part in parts))
        route = json_of(await admin(gateway, "GET", path))
        assert [route[name] for part in parts for name in part] == [4, 9.5, 7, True]

    with_gateway(tmp_path, session)


# rules and CORS


def test_a_rule_acts_from_the_next_request(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        rule = await create_rule(gateway, name="tight", max_requests=1, path_pattern="/api/v1/auth/*")
        statuses = [(await ask(gateway.port, "GET", "/api/v1/auth/x")).status for _ in range(2)]
        assert statuses == [200, 429]
        fill = {one["name"]: one for one in json_of(await admin(gateway, "GET", "/rate-limits"))["items"]}
        assert (fill["tight"]["allowed"], fill["tight"]["refused"], fill["tight"]["lowest_tokens"]) == (1, 1, 0)
        assert (await admin(gateway, "DELETE", f"/config/rate-limits/{rule['id']}")).status == 204
        assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200

    with_gateway(tmp_path, session)


def test_a_rule_changed_here_no_longer_follows_the_settings(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        rules = json_of(await admin(gateway, "GET", "/config/rate-limits"))["items"]
        rule = next(one for one in rules if one["name"] == "per_ip")
        assert rule["origin"] == "settings"
        put = json_of(await admin(gateway, "PUT", f"/config/rate-limits/{rule['id']}", body={"max_requests": 123_456}))
        assert (put["origin"], put["max_requests"], put["window_seconds"]) == ("api", 123_456, rule["window_seconds"])

    async def again(gateway: Gateway) -> None:
        amounts = {rule.name: rule.max_requests for rule in gateway.configuration.snapshot.rules}
        assert amounts == {"per_ip": 123_456, "per_user": 777_777}

    with_gateway(tmp_path, session)
    with_gateway(tmp_path, again, limits_per_ip=888_888, limits_per_user=777_777)


def test_a_rules_name_is_its_own(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        first = await create_rule(gateway, name="one")
        second = await create_rule(gateway, name="two")
        body = {"name": "one", "limit_type": "global", "max_requests": 1, "window_seconds": 1}
        assert_problem(await admin(gateway, "POST", "/config/rate-limits", body=body), 409, "conflict", ["/name"])
        put = await admin(gateway, "PUT", f"/config/rate-limits/{second['id']}", body={"name": "one"})
        assert_problem(put, 409, "conflict", ["/name"])
        same = await admin(gateway, "PUT", f"/config/rate-limits/{first['id']}", body={"name": "one"})
        assert same.status == 200

    with_gateway(tmp_path, session)


def test_cors_changed_here_is_kept_over_a_restart(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        body = {"enabled": True, "allow_origins": ["https://app.example"]}
        put = json_of(await admin(gateway, "PUT", "/config/cors", body=body))
        assert (put["enabled"], put["origin"], put["max_age"]) == (True, "api", 600)
        reply = await ask(gateway.port, "GET", "/api/v1/auth/x", headers={"Origin": "https://app.example"})
        assert reply.one("access-control-allow-origin") == "https://app.example"

    async def again(gateway: Gateway) -> None:
        reply = await ask(gateway.port, "GET", "/api/v1/auth/x", headers={"Origin": "https://app.example"})
        assert reply.one("access-control-allow-origin") == "https://app.example"

    with_gateway(tmp_path, session)
    with_gateway(tmp_path, again)


# revisions


def test_what_a_get_of_cors_gave_can_be_put_back(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        policy = json_of(await admin(gateway, "GET", "/config/cors"))
        for origin in (policy["origin"], "x", 5):
            reply = await admin(gateway, "PUT", "/config/cors", body={**policy, "origin": origin})
            assert (reply.status, json_of(reply)["origin"]) == (200, "api")

    with_gateway(tmp_path, session)


def test_every_write_is_a_revision(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway)
        await admin(gateway, "PUT", f"/routes/{route['id']}", body={"priority": 9})
        await admin(gateway, "DELETE", f"/routes/{route['id']}")
        first = json_of(await admin(gateway, "GET", "/config/revisions?limit=3"))
        assert [row["number"] for row in first["items"]] == [4, 3, 2]
        assert {(row["actor"], row["kind"], row["subject"]) for row in first["items"]} == {
            ("root", "route", route["id"])
        }
        gone, changed, made = first["items"]
        assert {len(row["request_id"]) for row in first["items"]} == {36}, "it is found in the log by that"
        assert (made["before"], made["after"]) == (None, route)
        assert (changed["before"], changed["after"]["priority"]) == (route, 9)
        assert (gone["before"], gone["after"]) == (changed["after"], None)
        rest = json_of(await admin(gateway, "GET", f"/config/revisions?before={first['next_before']}"))
        assert ([row["number"] for row in rest["items"]], rest["next_before"]) == ([1], None)
        assert json_of(await admin(gateway, "GET", "/config/revisions/3")) == changed
        assert_problem(await admin(gateway, "GET", "/config/revisions/5"), 404, "not_found")

    with_gateway(tmp_path, session)


# what is seen


async def _followed(gateway: Gateway, path: str) -> list[Any]:
    """The items of all pages, by their Link lines."""
    items: list[Any] = []
    while path:
        page = await ask(gateway.port, "GET", path, bearer=ADMIN)
        items += json_of(page)["items"]
        link = page.all("link")
        assert [one.partition(">")[2] for one in link] in ([], ['; rel="next"'])
        path = link[0].partition(">")[0].removeprefix("<") if link else ""
    return items


def test_pages_name_the_next_one(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        for number in range(5):
            await admin(gateway, "PUT", "/config/cors", body={"max_age": number})
            await ask(gateway.port, "GET", f"/n%20&/{number}")
        numbers = [row["number"] for row in await _followed(gateway, f"{BASE}/config/revisions?limit=2")]
        assert numbers == [6, 5, 4, 3, 2, 1]
        rows = await _followed(gateway, f"{BASE}/logs?reason=no_route&limit=2&offset=1&method=GET")
        assert [row["path"][-1] for row in rows] == ["3", "2", "1", "0"]

    with_gateway(tmp_path, session)


@pytest.mark.parametrize("path", ["/routes", "/config/rate-limits"])
def test_routes_and_rules_come_whole_or_in_pages(tmp_path: Path, path: str) -> None:
    async def session(gateway: Gateway) -> None:
        for number in range(5):
            await create_route(gateway, f"/n{number}/*")
            await create_rule(gateway, name=f"n{number}")
        whole = await admin(gateway, "GET", path)
        everything = json_of(whole)
        count = len(everything["items"])
        assert (everything["total"], everything["next"], whole.all("link")) == (count, None, [])
        for limit in (1, 2, count - 1, count, 500):
            assert await _followed(gateway, f"{BASE}{path}?limit={limit}") == everything["items"], limit
        page = json_of(await admin(gateway, "GET", f"{path}?limit=2"))
        assert (page["total"], page["revision"], page["next"]) == (count, 11, everything["items"][1]["id"])
        rest = json_of(await admin(gateway, "GET", f"{path}?cursor={page['next'].upper()}"))
        assert (rest["items"], rest["next"]) == (everything["items"][2:], None)
        last = everything["items"][-1]["id"]
        assert json_of(await admin(gateway, "GET", f"{path}?cursor={last}&limit=1"))["items"] == []

        assert (await admin(gateway, "DELETE", f"{path}/{page['next']}")).status == 204
        gone = await admin(gateway, "GET", f"{path}?cursor={page['next']}")
        assert_problem(gone, 422, "invalid_fields", ["/query/cursor"])
        for query, pointer in (("limit=0", "limit"), ("limit=501", "limit"), ("cursor=x", "cursor")):
            assert_problem(await admin(gateway, "GET", f"{path}?{query}"), 422, "invalid_fields", [f"/query/{pointer}"])

    with_gateway(tmp_path, session)


def test_a_dry_run_says_what_would_change_and_changes_nothing(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        route, rule = await create_route(gateway), await create_rule(gateway)
        cors = json_of(await admin(gateway, "GET", "/config/cors"))
        before, pipeline = gateway.configuration.snapshot, gateway._context.pipeline
        writes: list[tuple[str, str, Any, Any]] = [
            ("POST", "/routes", {"path_pattern": "/dry", "target_service": "content"}, None),
            ("PUT", f"/routes/{route['id']}", {"priority": 9}, route),
            ("DELETE", f"/routes/{route['id']}", None, route),
            ("POST", "/config/rate-limits", {"limit_type": "global", "max_requests": 1, "window_seconds": 1}, None),
            ("PUT", f"/config/rate-limits/{rule['id']}", {"window_seconds": 1}, rule),
            ("DELETE", f"/config/rate-limits/{rule['id']}", None, rule),
            ("PUT", "/config/cors", {"enabled": True}, cors),
        ]
        for method, path, body, old in writes:
            told = await admin(gateway, method, f"{path}?dry_run=true", body=body)
            answer = json_of(told)
            assert (told.status, answer["dry_run"], answer["before"]) == (200, True, old), path
            assert (answer["after"] is None) is (method == "DELETE")
            assert body is None or body.items() <= answer["after"].items()
        twin = {"path_pattern": route["path_pattern"], "target_service": "content"}
        assert_problem(await admin(gateway, "POST", "/routes?dry_run=true", body=twin), 409, "conflict")
        assert (gateway.configuration.snapshot, gateway._context.pipeline) == (before, pipeline)
        wrong = await admin(gateway, "DELETE", f"/routes/{route['id']}?dry_run=1")
        assert_problem(wrong, 422, "invalid_fields", ["/query/dry_run"])
        kept = await admin(gateway, "DELETE", f"/routes/{route['id']}?dry_run=false")
        assert (kept.status, gateway.configuration.snapshot.revision) == (204, before.revision + 1)

    with_gateway(tmp_path, session)


def test_health_shows_names_and_states_and_no_address(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        await gateway.checker.check_all()
        for path in ("/health", f"{BASE}/health"):
            reply = await ask(gateway.port, "GET", path)
            page = json_of(reply)
            assert (reply.status, page["status"], page["version"]) == (200, "healthy", __version__)
            assert page["services"] == {"auth": "healthy", "content": "healthy"}
            assert page["request_log"]["status"] == "ok"
            assert b"127.0.0.1" not in reply.body
            assert b"http" not in reply.body

    with_gateway(tmp_path, session)


def test_livez_and_readyz(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        for path in ("/livez", "/readyz"):
            reply = await ask(gateway.port, "GET", path)
            assert (reply.status, reply.body) == (200, b"ok\n")
        for query in ("verbose", "verbose=123456789"):
            verbose = await ask(gateway.port, "GET", f"/readyz?{query}")
            assert verbose.body == b"lifecycle: running\nok\n"

    with_gateway(tmp_path, session)


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", f"{BASE}/health"])
def test_monitors_may_add_to_public_pages_what_they_like(tmp_path: Path, path: str) -> None:
    async def session(gateway: Gateway) -> None:
        for query in (
            "x=1",
            "verbose&verbose",
            "verbose=123456789",
            f"verbose={'x' * 5000}",
            "%zz",
            "&".join("abcdefgh" * 10),
        ):
            assert (await ask(gateway.port, "GET", f"{path}?{query}")).status == 200, query
        page_of_another_site = {"Origin": "https://status.example"}
        assert (await ask(gateway.port, "GET", path, headers=page_of_another_site)).status == 200

    with_gateway(tmp_path, session)


def test_options_of_the_whole_is_answered_by_the_gateway(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        await create_route(gateway, "/*", is_public=True)
        reply = await ask(gateway.port, "OPTIONS", "*")
        assert (reply.status, reply.body) == (204, b"")

    with_gateway(tmp_path, session)


def test_services_with_health_and_circuit(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        await create_route(gateway, "/dead/*", target_service="dead", target_url="http://127.0.0.1:1", is_public=True)
        for _ in range(2):
            assert (await ask(gateway.port, "POST", "/dead/x", body=b"")).status == 502
        assert (await ask(gateway.port, "GET", "/dead/x")).status == 503
        services = {one["service_name"]: one for one in json_of(await admin(gateway, "GET", "/services"))["items"]}
        assert set(services) == {"auth", "content", "dead"}
        circuit = services["dead"]["circuit_breaker"]
        assert (circuit["state"], circuit["trips"], circuit["history"][-1]["to"]) == ("open", 1, "open")
        assert services["content"]["service_url"].startswith("http://127.0.0.1:")

        health = json_of(await admin(gateway, "GET", "/services/content/health"))
        assert (health["status"], health["success_count"]) == ("healthy", 1)
        assert health["last_check"].endswith("Z")

        reset = json_of(await admin(gateway, "POST", "/services/dead/reset"))
        assert reset["circuit_breaker"]["state"] == "closed"
        assert (await ask(gateway.port, "GET", "/dead/x")).status == 502
        for method, path in (("GET", "/services/none/health"), ("POST", "/services/none/reset")):
            assert_problem(await admin(gateway, method, path), 404, "not_found")

    with_gateway(tmp_path, session, breaker_failure_threshold=2, upstream_retry_count=0)


def _steps(call: Call) -> tuple[int, int]:
    """Lines of Python that listing the services takes."""
    steps = 0

    def count(*_: object) -> Any:
        nonlocal steps
        steps += 1
        return count

    listing = list_services(call)
    pauses = 0
    sys.settrace(count)
    try:
        while listing.send(None) is None:  # until it waits for the thread that writes
            pauses += 1
    finally:
        sys.settrace(None)
        listing.close()
    return steps, pauses


def test_a_list_of_twice_the_services_takes_twice_the_steps(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        steps = []
        for count in (100, 200):
            own = [Route(f"r{n}", f"/own{n}/*", f"own-{n}", f"http://127.0.0.1:{n + 1}") for n in range(count)]
            snapshot = replace(gateway.configuration.snapshot, routes=tuple(own))
            await gateway.configuration._take_newer(snapshot)
            assert len(gateway._console.services()) == count + 2
            taken, pauses = _steps(Call(gateway._console, exchange_of(), {}, {}, None))
            steps.append(taken)
            assert pauses >= count // 20, "others are served in between"
        assert steps[1] < steps[0] * 2.2

    with_gateway(tmp_path, session)


def test_what_routes_become_is_made_beside_the_loop_and_kept_where_they_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of them take long. What is refused leaves everything as it was."""
    made: list[int] = []

    def make(routes: Any, services: Any, *args: Any) -> RoutingTable:
        made.extend([threading.get_ident()] if services else [])  # those of the admin API have none
        return RoutingTable(routes, services, *args)

    async def session(gateway: Gateway) -> None:
        ways, table = gateway.configuration.compiled.ways, gateway._console.routing_table()
        monkeypatch.setattr(compiler, "RoutingTable", make)
        await create_rule(gateway)
        assert (await admin(gateway, "PUT", "/config/cors", body={"max_age": 7})).status == 200
        await gateway.reload(gateway.settings)
        assert (gateway._console.routing_table() is table, made) == (True, [])
        assert gateway.configuration.compiled.ways is not ways, "the policy of CORS is another"
        route = await create_route(gateway)
        kept = gateway.configuration.compiled
        assert kept.ways is not ways
        assert (
            await admin(gateway, "POST", "/routes", body={"path_pattern": "/made/*", "target_service": "auth"})
        ).status == 409
        assert (await admin(gateway, "PUT", f"/routes/{route['id']}?dry_run=true", body={"priority": 3})).status == 200
        assert gateway.configuration.compiled is kept
        snapshot = replace(
            gateway.configuration.snapshot, revision=99, routes=gateway.configuration.snapshot.routes[1:]
        )
        await gateway.configuration._take_newer(snapshot)
        assert (gateway.configuration.snapshot, len(gateway._console.routing_table().ordered())) == (
            snapshot,
            len(snapshot.routes),
        )
        assert len(made) == 4
        assert threading.get_ident() not in made

    with_gateway(tmp_path, session)


def test_every_write_is_said_with_who_made_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is called at night looks into the log first: what was changed just before?"""

    async def session(gateway: Gateway) -> None:
        route = await create_route(gateway)
        assert (await admin(gateway, "PUT", "/config/cors?dry_run=true", body={"max_age": 5})).status == 200
        assert (await admin(gateway, "PUT", "/config/cors", body={"max_age": -5})).status == 422
        eve = token("eve\u2028health", "admin")
        gone = await ask(gateway.port, "DELETE", f"{BASE}/routes/{route['id']}", bearer=eve)
        assert gone.status == 204
        assert [text for text in caplog.messages if text.startswith("configuration")] == [
            f"configuration revision 2: route {route['id']} written by 'root'",
            f"configuration revision 3: route {route['id']} deleted by 'eve\\u2028health'",
        ]

    with caplog.at_level(logging.INFO, "engadi"):
        with_gateway(tmp_path, session)


def test_what_a_policy_of_cors_becomes_is_made_beside_the_loop_and_kept_while_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand origins take long, also those that are at fault."""
    made: list[int] = []

    def make(policy: CorsPolicy) -> Cors:
        made.append(threading.get_ident())
        return Cors(policy)

    def look(policy: CorsPolicy) -> list[Fault]:
        made.append(threading.get_ident())
        return cors_faults(policy)

    async def session(gateway: Gateway) -> None:
        monkeypatch.setattr(compiler, "Cors", make)
        monkeypatch.setattr(handlers_config, "cors_faults", look)
        await create_rule(gateway)
        await create_route(gateway)
        await gateway.reload(gateway.settings)
        assert made == []
        good, bad = ({"allow_origins": [origin], "enabled": True} for origin in ("https://a.example", "a.example"))
        assert (await admin(gateway, "PUT", "/config/cors", body=bad)).status == 422
        assert (await admin(gateway, "PUT", "/config/cors", body=good)).status == 200
        assert len(made) == 3
        origin = {"Origin": "https://a.example"}
        assert (await admin(gateway, "GET", "/stats", headers=origin)).status == 200
        assert (await admin(gateway, "GET", "/stats", headers={"Origin": "https://b.example"})).status == 403
        assert len(made) == 3
        assert threading.get_ident() not in made

    with_gateway(tmp_path, session)


def test_a_thread_finds_the_candidates_of_explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are all routes that fit: of thousands it takes long."""
    threads: list[int] = []
    trace = RoutingTable.trace

    def noted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return trace(*args)

    async def session(gateway: Gateway) -> None:
        monkeypatch.setattr(RoutingTable, "trace", noted)
        told = await admin(gateway, "POST", "/explain", body={"method": "GET", "path": "/api/v1/auth/x"})
        assert [one["why"] for one in json_of(told)["candidates"]] == ["won"]
        assert list(json_of(told))[5] == "candidates", "between what was asked and what was decided"
        assert len(threads) == 1
        assert threading.get_ident() not in threads

    with_gateway(tmp_path, session)


@pytest.mark.parametrize(
    "path", ["/routes", "/config/rate-limits", "/config/revisions", "/logs", "/services", "/openapi.json"]
)
def test_a_thread_writes_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Of thousands it takes long, and the loop serves everybody."""
    threads: list[int] = []

    def dump(*args: Any, **kwargs: Any) -> str:
        threads.append(threading.get_ident())
        return json.dumps(*args, **kwargs)

    async def session(gateway: Gateway) -> None:
        monkeypatch.setattr(jsonio, "json", SimpleNamespace(dumps=dump))
        reply = await admin(gateway, "GET", path)
        assert reply.status == 200
        assert threads
        assert threading.get_ident() not in threads

    with_gateway(tmp_path, session)


def test_a_thread_reads_long_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    loop_thread = threading.get_ident()

    def load(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident() != loop_thread)
        return json.loads(*args, **kwargs)

    async def session(gateway: Gateway) -> None:
        monkeypatch.setattr(jsonio, "json", SimpleNamespace(loads=load, dumps=json.dumps))
        for body in (b"[]", b"[" + b"0," * 50_000 + b"0]"):
            assert_problem(await admin(gateway, "POST", "/routes", body=body), 422, "invalid_fields")
        assert threads == [False, True]

    with_gateway(tmp_path, session)


def test_statistics_count_what_was_asked(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        for _ in range(3):
            await ask(gateway.port, "GET", "/api/v1/auth/things/7")
        await ask(gateway.port, "GET", "/nowhere")
        stats = json_of(await admin(gateway, "GET", "/stats?hours=1"))
        assert (stats["hours"], stats["total_requests"], stats["error_count"], stats["error_rate"]) == (1, 4, 1, 0.25)
        assert stats["requests_by_status"] == {"200": 3, "404": 1}
        assert stats["requests_by_service"]["auth"] == 3
        assert stats["top_endpoints"][0]["endpoint"] == "GET /api/v1/auth/things/{id}"
        timing = json_of(await admin(gateway, "GET", "/performance?hours=1"))
        assert timing["services"]["auth"]["count"] == 3
        ordered = [timing["services"]["auth"][name] for name in ("min", "p50", "p90", "p95", "p99", "max")]
        assert ordered == sorted(ordered)
        both = json_of(await admin(gateway, "GET", "/metrics"))
        assert both["total_requests"] >= 4
        assert both["performance"]["services"]["auth"]["count"] == 3
        failed = json_of(await admin(gateway, "GET", "/errors?limit=5"))["items"]
        assert [(row["path"], row["reason"]) for row in failed] == [("/nowhere", "no_route")]

    with_gateway(tmp_path, session)


EXPOSITION: dict[str, tuple[str, str | None, str]] = {
    "by Accept": ("/metrics", "text/plain", "text/plain; version=0.0.4; charset=utf-8"),
    "OpenMetrics by Accept": (
        "/metrics", "application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    "axios wants JSON": ("/metrics", "application/json, text/plain, */*", "application/json"),
    "no Accept": ("/metrics", None, "application/json"),
    "of its own": ("/metrics/prometheus", None, "text/plain; version=0.0.4; charset=utf-8"),
    "of its own, OpenMetrics": (
        "/metrics/prometheus", "application/openmetrics-text;q=0.5,*/*;q=0.1",
        "application/openmetrics-text; version=1.0.0; charset=utf-8"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "accept", "media"), EXPOSITION.values(), ids=EXPOSITION.keys())
def test_metrics_in_the_type_that_is_asked_for(tmp_path: Path, path: str, accept: str | None, media: str) -> None:
    async def session(gateway: Gateway) -> None:
        await ask(gateway.port, "GET", "/nowhere")
        reply = await admin(gateway, "GET", path, headers={"Accept": accept} if accept else None)
        assert (reply.status, reply.one("content-type")) == (200, media)
        if media != "application/json":
            assert b"# TYPE engadi_http_requests" in reply.body
            assert reply.body.endswith(b"# EOF\n") == ("openmetrics" in media)

    with_gateway(tmp_path, session)


def test_logs_are_found_by_each_filter(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        began = time.time()
        await ask(gateway.port, "GET", "/api/v1/content/x?token=secret", bearer=USER)
        await ask(gateway.port, "DELETE", "/nowhere")
        await ask(gateway.port, "GET", "/api/v1/auth/a%20b")
        everything = json_of(await admin(gateway, "GET", "/logs"))["items"]
        assert [row["path"] for row in everything] == ["/api/v1/auth/a%20b", "/nowhere", "/api/v1/content/x"]
        assert "secret" not in json.dumps(everything)
        one = everything[2]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began))
        today = time.strftime("%Y-%m-%d", time.gmtime())  # tomorrow, where midnight came between
        for query, paths in (
            ("method=DELETE", ["/nowhere"]),
            ("path=/api/v1/content/x", ["/api/v1/content/x"]),
            ("path=/api/v1/auth/a%2520b", ["/api/v1/auth/a%20b"]),
            ("path=/api/v1/auth/*", ["/api/v1/auth/a%20b"]),
            ("path=/api/v1/content/*&status_code=2xx", ["/api/v1/content/x"]),
            (f"route_id={one['route_id'].upper()}", ["/api/v1/content/x"]),
            ("target_service=auth", ["/api/v1/auth/a%20b"]),
            ("user_id=alice", ["/api/v1/content/x"]),
            (f"request_id={one['request_id']}", ["/api/v1/content/x"]),
            ("status_code=404&client_ip=127.0.0.1", ["/nowhere"]),
            ("status_code=4xx", ["/nowhere"]),
            ("status_code=5xx", []),
            ("reason=no_route", ["/nowhere"]),
            ("reason=auth_invalid", []),
            (f"start_date={stamp}Z&method=DELETE", ["/nowhere"]),
            (f"start_date={stamp}%2B00:00&method=DELETE", ["/nowhere"]),
            (f"start_date={stamp}+00:00&method=DELETE", ["/nowhere"]),
            ("end_date=2001-01-01", []),
            (f"start_date={stamp[:10]}&end_date={today}&method=DELETE", ["/nowhere"]),
            ("start_date=2100-01-01T00:00:00-08:00", []),
            ("user_id=bob", []),
        ):
            found = json_of(await admin(gateway, "GET", f"/logs?{query}"))["items"]
            assert [row["path"] for row in found] == paths, query

    with_gateway(tmp_path, session)


def test_what_took_long_is_found(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        gateway.journal.put(
            [a_row(request_id=f"{took_ms}", response_time=took_ms) for took_ms in (999.9, 1000.0, 2500.5)]
        )
        for query, found in (
            ("min_response_time_ms=1000", ["2500.5", "1000.0"]),
            ("min_response_time_ms=999&limit=1", ["2500.5"]),
            ("min_response_time_ms=1001&target_service=content&path=/api/*", ["2500.5"]),
            ("min_response_time_ms=2501", []),
            ("min_response_time_ms=0&target_service=content", ["2500.5", "1000.0", "999.9"]),
        ):
            items = json_of(await admin(gateway, "GET", f"/logs?{query}"))["items"]
            assert [row["request_id"] for row in items] == found, query
        for bad in ("-1", "1.5", "1s", ""):
            assert_problem(await admin(gateway, "GET", f"/logs?min_response_time_ms={bad}"), 422, "invalid_fields")

    with_gateway(tmp_path, session)


@pytest.mark.parametrize(("is_kept", "word"), [(True, "on"), (False, "off")])
def test_answers_from_the_log_say_whether_there_is_one(tmp_path: Path, is_kept: bool, word: str) -> None:
    async def session(gateway: Gateway) -> None:
        for path in ("/logs", "/errors", "/stats", "/performance", "/metrics"):
            assert json_of(await admin(gateway, "GET", path))["request_log"] == word, path
        page = json_of(await admin(gateway, "GET", "/health"))
        assert (page["status"], page["request_log"]["status"]) == ("healthy", "ok" if is_kept else "off")

    with_gateway(tmp_path, session, log_requests=is_kept)


def test_logs_are_paged_by_cursor_and_by_offset(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        for number in range(7):
            await ask(gateway.port, "GET", f"/n/{number}")
        seen: list[str] = []
        query = "reason=no_route&limit=3"
        page = json_of(await admin(gateway, "GET", f"/logs?{query}"))
        while True:
            seen += [row["path"] for row in page["items"]]
            if page["next"] is None:
                break
            page = json_of(await admin(gateway, "GET", f"/logs?{query}&cursor={page['next']}"))
        assert seen == [f"/n/{number}" for number in reversed(range(7))]
        skipped = json_of(await admin(gateway, "GET", f"/logs?{query}&offset=5"))
        assert [row["path"] for row in skipped["items"]] == ["/n/1", "/n/0"]

    with_gateway(tmp_path, session)


def test_explain_says_what_serving_then_does(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        await create_rule(gateway, name="once", max_requests=1, window_seconds=3600, path_pattern="/api/v1/content/*")
        asked = {"method": "GET", "path": "/api/v1/content/../content/x", "token": USER, "host": "gateway.test"}
        for want in ("ok", "rate_limited"):
            for _ in range(2):  # asking spends nothing
                said = json_of(await admin(gateway, "POST", "/explain", body=asked))
                assert (said["reason"], said["path"]) == (want, "/api/v1/content/x")
            reply = await ask(gateway.port, "GET", asked["path"], bearer=USER)
            assert reply.status == {"ok": 200, "rate_limited": 429}[want]
            row = json_of(await admin(gateway, "GET", "/logs?path=/api/v1/content/x&limit=1"))["items"][0]
            assert row["reason"] == want

    with_gateway(tmp_path, session)


# bad input

ROUTE = {"path_pattern": "/bad/*", "target_service": "content"}
RULE = {"limit_type": "per_ip", "max_requests": 1, "window_seconds": 1}
JSON_TYPE = {"Content-Type": "application/json"}

#: (method, path, body, headers) and (status, code, pointers)
BAD: dict[str, tuple[tuple[str, str, Any, dict[str, str]], tuple[int, str, list[str]]]] = {
    # JSON
    "no body": (("POST", "/routes", b"", JSON_TYPE), (400, "bad_json", [""])),
    "half an object": (("POST", "/routes", b'{"a":', {}), (400, "bad_json", [""])),
    "NaN": (("PUT", "/config/cors", b'{"max_age": NaN}', {}), (400, "bad_json", [""])),
    "beyond all": (("PUT", "/config/cors", b'{"max_age": 1e999}', {}), (400, "bad_json", [""])),
    "a name twice": (("PUT", "/config/cors", b'{"max_age": 1, "max_age": 2}', {}), (400, "bad_json", [""])),
    "a lone surrogate": (("POST", "/routes", b'{"\\ud800": 1}', {}), (400, "bad_json", [""])),
    "not UTF-8": (("POST", "/routes", b'{"\xff": 1}', {}), (400, "bad_json", [""])),
    "very deep": (("POST", "/routes", b"[" * 100_000, {}), (400, "bad_json", [""])),
    "an array": (("POST", "/routes", b"[]", {}), (422, "invalid_fields", [""])),
    "null": (("PUT", "/config/cors", b"null", {}), (422, "invalid_fields", [""])),
    "a string": (("POST", "/explain", b'"x"', {}), (422, "invalid_fields", [""])),
    # media types
    "a form": (("POST", "/routes", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}),
               (415, "unsupported_media_type", [])),
    "text": (("POST", "/routes", b"{}", {"Content-Type": "text/plain"}), (415, "unsupported_media_type", [])),
    "no type": (("POST", "/routes", b"{}", {"Content-Type": ""}), (415, "unsupported_media_type", [])),
    "another charset": (("POST", "/routes", b"{}", {"Content-Type": "application/json; charset=latin-1"}),
                        (415, "unsupported_media_type", [])),
    "merge patch": (("PUT", "/config/cors", b"{}", {"Content-Type": "application/merge-patch+json"}),
                    (415, "unsupported_media_type", [])),
    # fields
    "nothing of what is required": (("POST", "/routes", {}, {}),
                                    (422, "invalid_fields", ["/path_pattern", "/target_service"])),
    "many at once": (("POST", "/routes", {**ROUTE, "priority": "high", "methods": ["get"], "x/y~z": 1}, {}),
                     (422, "invalid_fields", ["/priority", "/methods/0", "/x~1y~0z"])),
    "an unknown service": (("POST", "/routes", {**ROUTE, "target_service": "nope"}, {}),
                           (422, "invalid_fields", ["/target_url"])),
    "an unknown service in a share": (
        ("POST", "/routes", {**ROUTE, "split": [
            {"target_service": "content", "target_url": "", "weight": 1},
            {"target_service": "nope", "target_url": "", "weight": 1}]}, {}),
        (422, "invalid_fields", ["/split/1/target_url"])),
    "a host of dots": (("POST", "/routes", {**ROUTE, "host": "a..b"}, {}), (422, "invalid_fields", ["/host"])),
    "reserved": (("POST", "/routes", {**ROUTE, "path_pattern": "/api/v1/gateway/mine"}, {}),
                 (422, "invalid_fields", ["/path_pattern"])),
    "an inactive rule too large to be used": (
        ("POST", "/config/rate-limits", {**RULE, "max_requests": 10_000_001, "is_active": False}, {}),
        (422, "invalid_fields", ["/max_requests"])),
    "a rule without a size": (("POST", "/config/rate-limits", {**RULE, "max_requests": 0}, {}),
                              (422, "invalid_fields", ["/max_requests"])),
    "a rule for a thing": (("POST", "/config/rate-limits", {**RULE, "limit_type": "per_thing"}, {}),
                           (422, "invalid_fields", ["/limit_type"])),
    "everybody with credentials": (("PUT", "/config/cors", {"allow_origins": ["*"], "allow_credentials": True}, {}),
                                   (422, "invalid_fields", ["/allow_credentials"])),
    "an origin with a path": (("PUT", "/config/cors", {"allow_origins": ["https://a.example/"]}, {}),
                              (422, "invalid_fields", ["/allow_origins/0"])),
    "a header that is none": (("PUT", "/config/cors", {"allow_headers": ["X-A", "a b", "\r\n"]}, {}),
                              (422, "invalid_fields", ["/allow_headers/1", "/allow_headers/2"])),
    "a method that nobody sends": (("PUT", "/config/cors", {"allow_methods": ["GET", "put"]}, {}),
                                   (422, "invalid_fields", ["/allow_methods/1"])),
    "an age too great": (("PUT", "/config/cors", {"max_age": 10**9}, {}), (422, "invalid_fields", ["/max_age"])),
    "explain nothing": (("POST", "/explain", {"method": "GET"}, {}), (422, "invalid_fields", ["/path"])),
    "explain what cannot be read": (("POST", "/explain", {"method": "GET", "path": "/a b"}, {}),
                                    (422, "invalid_fields", [""])),
    "explain two lines": (("POST", "/explain", {"method": "GET", "path": "/\r\nX: y"}, {}),
                          (422, "invalid_fields", [""])),
    "explain what we do not do": (
        ("POST", "/explain", {"method": "GET", "path": "/", "headers": {"Transfer-Encoding": "gzip"}}, {}),
        (422, "invalid_fields", [""])),
    "explain for no address": (("POST", "/explain", {"method": "GET", "path": "/", "client_ip": "here"}, {}),
                               (422, "invalid_fields", ["/client_ip"])),
    # ids
    "no uuid": (("GET", "/routes/7", None, {}), (422, "invalid_fields", ["/path/id"])),
    "no uuid to change": (("PUT", "/routes/7", {}, {}), (422, "invalid_fields", ["/path/id"])),
    "no uuid to delete": (("DELETE", "/config/rate-limits/x%0Ay", None, {}), (400, "bad_request", [])),
    "nobody's": (("PUT", f"/routes/{NOBODY}", {}, {}), (404, "not_found", [])),
    "nobody's rule": (("PUT", f"/config/rate-limits/{NOBODY}", {}, {}), (404, "not_found", [])),
    "no service's name": (("POST", "/services/A_B/reset", None, {}), (422, "invalid_fields", ["/path/name"])),
    "no number": (("GET", "/config/revisions/first", None, {}), (422, "invalid_fields", ["/path/n"])),
    # queries
    "no hours": (("GET", "/stats?hours=0", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "more than a week": (("GET", "/performance?hours=169", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "hours in words": (("GET", "/metrics?hours=all", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "hours as a float": (("GET", "/stats?hours=1.5", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "negative hours": (("GET", "/stats?hours=-1", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "hours in other digits": (("GET", "/stats?hours=%D9%A3", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "empty hours": (("GET", "/stats?hours=", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "no rows": (("GET", "/logs?limit=0", None, {}), (422, "invalid_fields", ["/query/limit"])),
    "too many rows": (("GET", "/errors?limit=501", None, {}), (422, "invalid_fields", ["/query/limit"])),
    "a negative offset": (("GET", "/logs?offset=-1", None, {}), (422, "invalid_fields", ["/query/offset"])),
    "a cursor of somebody else": (("GET", "/logs?cursor=abc", None, {}), (422, "invalid_fields", ["/query/cursor"])),
    "no date": (("GET", "/logs?start_date=yesterday&end_date=2026-13-01", None, {}),
                (422, "invalid_fields", ["/query/start_date", "/query/end_date"])),
    "no status": (("GET", "/logs?status_code=5", None, {}), (422, "invalid_fields", ["/query/status_code"])),
    "unknown parameter": (("GET", "/logs?user=1&a/b=2", None, {}),
                          (422, "invalid_fields", ["/query/user", "/query/a~1b"])),
    "unknown parameter where there is none": (("GET", "/services?limit=1", None, {}),
                                              (422, "invalid_fields", ["/query/limit"])),
    "unknown parameter of a write": (("POST", "/routes?dry_run=1", ROUTE, {}),
                                     (422, "invalid_fields", ["/query/dry_run"])),
    "a parameter twice": (("GET", "/stats?hours=1&hours=2", None, {}), (422, "invalid_fields", ["/query/hours"])),
    "a query that is not UTF-8": (("GET", "/logs?path=%FF", None, {}), (422, "invalid_fields", ["/query"])),
    "path, query and body at once": (("PUT", "/routes/7?x=1", {"priority": None}, {}),
                                     (422, "invalid_fields", ["/path/id", "/query/x", "/priority"])),
}  # fmt: skip


def test_every_bad_input_is_a_4xx_and_nothing_is_half_done(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        await create_route(gateway, "/bystander/*")
        before = gateway.configuration.snapshot
        for name, ((method, path, body, headers), (status, code, want)) in BAD.items():
            reply = await admin(gateway, method, path, body=body, headers=headers)
            print(name)  # shown with a failure
            assert_problem(reply, status, code, want)
        assert gateway.configuration.snapshot == before
        assert await gateway.catalog.load() == before

    with_gateway(tmp_path, session)
    with sqlite3.connect(tmp_path / "config.db") as connection:
        assert connection.execute("SELECT count(*) FROM revision").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM route_config").fetchone() == (3,)
    connection.close()


@pytest.mark.parametrize(
    ("query", "line", "status"),
    [
        ("", "Content-Type: text/plain", 415),
        ("?dry_run=maybe", "Content-Type: application/json", 422),
        ("", "Content-Type: application/json\r\nOrigin: https://evil.example", 403),
    ],
)
def test_a_body_is_not_waited_for_where_the_head_is_refused(tmp_path: Path, query: str, line: str, status: int) -> None:
    async def session(gateway: Gateway) -> None:
        head = f"POST {BASE}/routes{query} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN}\r\n{line}\r\n"
        async with raw_client(gateway.port) as client:
            await client.send(f"{head}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n".encode())
            reply = await client.reply()
            assert (reply.status, reply.interim) == (status, [])

    with_gateway(tmp_path, session, server_body_timeout=1.0)


def test_a_body_too_large_is_413(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        reply = await admin(gateway, "POST", "/routes", body=b"[" + b" " * 2000 + b"]")
        assert_problem(reply, 413, "body_too_large")
        async with raw_client(gateway.port) as client:
            head = f"POST {BASE}/routes HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN}\r\n"
            head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            await client.send(head.encode() + b"800\r\n" + b" " * 0x800 + b"\r\n0\r\n\r\n")
            assert_problem(await client.reply("POST"), 413, "body_too_large")

    with_gateway(tmp_path, session, admin_max_body_bytes=1024)


def test_a_hundred_thousand_faults_are_told_in_part(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        body = {f"k{number}": 1 for number in range(50_000)}
        reply = await admin(gateway, "POST", "/routes", body=body)
        assert reply.status == 422
        assert len(json_of(reply)["errors"]) == 50

    with_gateway(tmp_path, session)


def test_a_locked_configuration_database_is_503_and_changes_nothing(tmp_path: Path) -> None:
    """Another process holds the write lock: the write fails after sqlite's patience, traffic goes on meanwhile."""

    async def session(gateway: Gateway) -> None:
        before = gateway.configuration.snapshot
        thief = sqlite3.connect(tmp_path / "config.db", isolation_level=None)
        thief.execute("BEGIN IMMEDIATE")
        try:
            write = asyncio.create_task(admin(gateway, "PUT", "/config/cors", body={"max_age": 5}))
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert_problem(await write, 503, "store_unavailable")
        finally:
            thief.close()
        assert gateway.configuration.snapshot == before
        assert (await admin(gateway, "PUT", "/config/cors", body={"max_age": 5})).status == 200

    with_gateway(tmp_path, session)


def test_the_admin_door_of_its_own(tmp_path: Path) -> None:
    async def session(gateway: Gateway) -> None:
        own = int(next(name for name in gateway.addresses if not name.endswith(f":{gateway.port}")).rpartition(":")[2])
        assert (await ask(own, "GET", f"{BASE}/routes", bearer=ADMIN)).status == 200
        assert_problem(await ask(gateway.port, "GET", f"{BASE}/routes", bearer=ADMIN), 404, "no_route")
        assert (await ask(gateway.port, "GET", "/health")).status == 200
        assert_problem(await ask(own, "GET", "/api/v1/auth/x"), 404, "no_route")

    with_gateway(tmp_path, session, admin_listen="127.0.0.1:0")
