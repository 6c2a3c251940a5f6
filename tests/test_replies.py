"""What the admin API answers is what its document says: every field, and no other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engadi_gateway.admin.endpoints import ENDPOINTS
from engadi_gateway.admin.openapi import document_of
from engadi_gateway.admin.replies import REPLIES, of_type
from tests.fakes import Reply, Seen, Wire, upstream
from tests.harness import ADMIN, ask, json_of, running, token

BASE = "/api/v1/gateway"
DOCUMENT = json.loads(json.dumps(document_of(ENDPOINTS)))


async def busy(seen: Seen, wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


def closed(schema: Any) -> Any:
    """The same, without room for fields that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    more = {"additionalProperties": False} if "properties" in schema and "type" in schema else {}
    return {**more, **{name: closed(part) for name, part in schema.items()}}


def faults(name: str, reply: Reply) -> list[str]:
    components = {key: closed(part) for key, part in DOCUMENT["components"]["schemas"].items()}
    schema = {"components": {"schemas": components}, "$ref": f"#/components/schemas/{name}"}
    return [
        f"{name}{error.json_path}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(json_of(reply))
    ]


def test_every_reply_is_as_it_is_said(tmp_path: Path) -> None:
    asked: set[tuple[str, str]] = set()
    found: list[str] = []

    async def run() -> None:
        async with upstream() as auth, upstream(busy) as down, running(tmp_path, auth, down) as gateway:

            async def hold(method: str, path: str, at: str, body: Any = None) -> Any:
                reply = await ask(gateway.port, method, at.replace("BASE", BASE), bearer=ADMIN, body=body)
                (endpoint,) = (
                    one for one in ENDPOINTS if (one.method, one.path) == (method, path.replace("BASE", BASE))
                )
                asked.add((endpoint.method, endpoint.path))
                name = endpoint.says if "dry_run" not in at else "DryRun"
                assert reply.status == (200 if "dry_run" in at else endpoint.success), (method, at, reply.body)
                if name:
                    found.extend(faults(name, reply))
                return json_of(reply) if name else None

            for path in ("/api/v1/auth/x", "/api/v1/nobody/x", *["/api/v1/content/x"] * 5):
                await ask(gateway.port, "GET", path, bearer=token())
            share = {"target_service": "auth", "weight": 2}
            route = {"path_pattern": "/a/{x}", "target_service": "auth", "split": [share], "timeout": 1.5}
            rule = {"limit_type": "global", "max_requests": 5000, "window_seconds": 60, "mode": "observe"}
            lists = {"routes": route, "config/rate-limits": rule}
            for name, value in lists.items():
                one, many = f"BASE/{name}/{{id}}", f"BASE/{name}"
                made = await hold("POST", many, many, value)
                at = f"BASE/{name}/{made['id']}"
                await hold("GET", many, many)
                await hold("GET", one, at)
                await hold("PUT", one, at, {"is_active": False})
                await hold("PUT", one, f"{at}?dry_run=true", {"is_active": True})
                await hold("GET", "BASE/rate-limits", "BASE/rate-limits")
                assert (await ask(gateway.port, "DELETE", at.replace("BASE", BASE), bearer=ADMIN)).status == 204
                asked.add(("DELETE", one.replace("BASE", BASE)))
            await hold(
                "PUT", "BASE/config/cors", "BASE/config/cors", {"enabled": True, "allow_origins": ["https://a.test"]}
            )
            for method, path, at in (
                ("GET", "BASE/services/{name}/health", "BASE/services/content/health"),
                ("POST", "BASE/services/{name}/reset", "BASE/services/content/reset"),
                ("GET", "BASE/config/revisions/{n}", "BASE/config/revisions/1"),
            ):
                await hold(method, path, at)
            for body in (
                {"method": "GET", "path": "/api/v1/auth/x", "headers": {"Origin": "https://a.test"}},
                {"method": "GET", "path": "/api/v1/content/x", "token": ADMIN},
                {"method": "GET", "path": "/api/v1/content/x", "token": "x.y.z"},
                {"method": "GET", "path": "/nowhere"},
                {"method": "GET", "path": f"{BASE}/routes"},
            ):
                await hold("POST", "BASE/explain", "BASE/explain", body)
            for endpoint in ENDPOINTS:
                if endpoint.says and "{" not in endpoint.path and endpoint.method == "GET":
                    await hold("GET", endpoint.path, endpoint.path)

    asyncio.run(run())
    assert found == []
    assert asked >= {(one.method, one.path) for one in ENDPOINTS if one.says}


def test_every_schema_is_one_and_is_used() -> None:
    for schema in REPLIES.values():
        Draft202012Validator.check_schema(json.loads(json.dumps(schema)))
    text = json.dumps(DOCUMENT["paths"]) + json.dumps(DOCUMENT["components"])
    assert [name for name in REPLIES if f'"#/components/schemas/{name}"' not in text] == []


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str | None, {"type": ["string", "null"]}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (object, {}),
    ],
)
def test_a_type_is_a_schema(hint: Any, schema: Any) -> None:
    assert of_type(hint) == schema
