"""The OpenAPI 3.1 document, made from the table of endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engadi_gateway import __version__
from engadi_gateway.admin.api import Endpoint
from engadi_gateway.admin.replies import REPLIES
from engadi_gateway.admin.schemas import Json
from engadi_gateway.pipeline.patterns import parameter_names

_PROBLEM: Json = {
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
        "violated-policies": {
            "type": "array",
            "items": {"type": "string"},
            "description": "with 429: the names of the rules",
        },
    },
}
_PROBLEM_RESPONSE: Json = {
    "description": "A problem (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_ALWAYS = ("400", "404", "405", "413", "414", "429", "431", "500", "503")
_PROTECTED = ("401", "403", "422")  # public pages pass over what they do not know


def document_of(endpoints: Iterable[Endpoint]) -> Json:
    """The whole document."""
    paths: dict[str, Json] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Engadi Gateway admin API", "version": __version__, "license": {"name": "MIT"}},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM, **REPLIES},
            "responses": {"Problem": _PROBLEM_RESPONSE},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
        "security": [{"bearer": []}],
    }


def _operation(endpoint: Endpoint) -> Json:
    operation: Json = {
        "operationId": f"{endpoint.handler.__module__.rpartition('_')[2]}_{endpoint.handler.__name__}"
        + ("" if endpoint.path.startswith("/api") else "_root"),
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint),
    }
    if endpoint.is_public:
        operation["security"] = []
    if endpoint.body is not None:
        content = {"application/json": {"schema": endpoint.body.describe()}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(endpoint: Endpoint) -> list[Json]:
    found: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": endpoint.params[name].describe()}
        for name in parameter_names(endpoint.path)
    ]
    found += [
        {"name": name, "in": "query", "required": False, "schema": schema.describe()}
        for name, schema in endpoint.query.items()
    ]
    if endpoint.is_guarded:
        found.append({"name": "If-Match", "in": "header", "required": False, "schema": {"type": "string"}})
    return found


def _responses(endpoint: Endpoint) -> Json:
    problem = {"$ref": "#/components/responses/Problem"}
    codes = [*_ALWAYS, *(() if endpoint.is_public else _PROTECTED)]
    codes += ["412"] if endpoint.is_guarded else []
    codes += ["409", "415"] if endpoint.body is not None else []
    responses: dict[str, Any] = dict.fromkeys(sorted(codes), problem)
    success: Json = {"description": endpoint.summary}
    if endpoint.success != 204:
        success["content"] = _content(endpoint)
    if endpoint.success == 201:
        success["headers"] = {name: {"schema": {"type": "string"}} for name in ("Location", "ETag")}
    if "dry_run" in endpoint.query and endpoint.success != 200:
        responses["200"] = {"description": "With dry_run: what would change", "content": _json("DryRun")}
    return {**responses, str(endpoint.success): success}


def _content(endpoint: Endpoint) -> Json:
    names = [endpoint.says, "DryRun"] if "dry_run" in endpoint.query and endpoint.success == 200 else [endpoint.says]
    content = _json(*names) if endpoint.says else {endpoint.media: {"schema": {"type": "string"}}}
    if endpoint.path.endswith("/metrics"):
        content["text/plain"] = {"schema": {"type": "string"}}
    if "metrics" in endpoint.path:
        content["application/openmetrics-text"] = {"schema": {"type": "string"}}
    return content


def _json(*names: str) -> Json:
    """One of these replies."""
    one, *others = ({"$ref": f"#/components/schemas/{name}"} for name in names)
    return {"application/json": {"schema": {"anyOf": [one, *others]} if others else one}}
