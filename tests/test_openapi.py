"""The OpenAPI document: valid, and nothing but the table of endpoints."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from engadi_gateway import __version__
from engadi_gateway.admin.api import BASE, Endpoint
from engadi_gateway.admin.endpoints import ENDPOINTS
from engadi_gateway.admin.openapi import document_of
from engadi_gateway.admin.schemas import PATH_PATTERN
from engadi_gateway.store.questions import LogFilter

DOCUMENT = json.loads(json.dumps(document_of(ENDPOINTS)))
IDS = [f"{endpoint.method} {endpoint.path}" for endpoint in ENDPOINTS]


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]
    return found


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == __version__


def test_it_has_the_endpoints_of_the_table_and_no_others() -> None:
    said = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert said == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}


def test_no_endpoint_stands_in_the_table_twice() -> None:
    assert len(set(IDS)) == len(IDS)
    assert len({endpoint.route_id for endpoint in ENDPOINTS}) == len(ENDPOINTS)


def test_it_is_said_what_a_date_means_at_either_end() -> None:
    (logs,) = (endpoint for endpoint in ENDPOINTS if endpoint.path.endswith("/logs"))
    said = {one["name"]: one["schema"].get("description", "") for one in _operation(logs)["parameters"]}
    assert "first millisecond" in said["start_date"]
    assert "last millisecond" in said["end_date"]


def test_operation_ids_are_unique() -> None:
    names = [_operation(endpoint)["operationId"] for endpoint in ENDPOINTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=IDS)
def test_an_operation_says_what_its_row_says(endpoint: Endpoint) -> None:
    operation = _operation(endpoint)
    parameters = {(one["in"], one["name"]): one for one in operation["parameters"]}
    in_path = {("path", name) for name in re.findall(r"\{(\w+)\}", endpoint.path)}
    in_query = {("query", name) for name in endpoint.query}
    in_header = {("header", "If-Match")} if endpoint.is_guarded else set()
    assert set(parameters) == in_path | in_query | in_header
    assert all(parameters[key]["required"] for key in in_path)
    assert ("requestBody" in operation) == (endpoint.body is not None)
    assert (operation.get("security") == []) == endpoint.is_public
    assert str(endpoint.success) in operation["responses"]
    assert ("412" in operation["responses"]) == endpoint.is_guarded
    assert operation["summary"] == endpoint.summary


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.body is not None], ids=lambda one: one.path)
def test_a_body_is_described_by_the_schema_that_checks_it(endpoint: Endpoint) -> None:
    assert endpoint.body is not None
    content = _operation(endpoint)["requestBody"]["content"]
    assert content == {"application/json": {"schema": json.loads(json.dumps(endpoint.body.describe()))}}


def test_only_health_is_public() -> None:
    """And nothing else is free of the limits: what is public and our own is."""
    public = {endpoint.path for endpoint in ENDPOINTS if endpoint.is_public}
    assert public == {"/health", "/livez", "/readyz", f"{BASE}/health"}


def test_defaults_and_what_filters_find_are_said() -> None:
    (logs,) = (endpoint for endpoint in ENDPOINTS if endpoint.path.endswith("/logs"))
    schemas = {one["name"]: one["schema"] for one in _operation(logs)["parameters"]}
    assert schemas["limit"]["default"] == LogFilter().limit
    assert schemas["offset"]["default"] == LogFilter().offset
    said = {name for name, schema in schemas.items() if "description" in schema}
    assert {"path", "status_code", "reason", "cursor", "offset"} <= said
    for endpoint in ENDPOINTS:
        parameters = _operation(endpoint)["parameters"]
        told = {one["name"]: one["schema"]["default"] for one in parameters if "default" in one["schema"]}
        assert endpoint.defaults == told


def test_public_pages_know_no_bad_parameter() -> None:
    has_422 = {endpoint.path for endpoint in ENDPOINTS if "422" in _operation(endpoint)["responses"]}
    assert has_422 == {endpoint.path for endpoint in ENDPOINTS if not endpoint.is_public}
    assert "violated-policies" in DOCUMENT["components"]["schemas"]["Problem"]["properties"]


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.body is not None], ids=lambda one: one.path)
def test_every_field_of_a_body_has_a_sentence(endpoint: Endpoint) -> None:
    assert endpoint.body is not None
    described = endpoint.body.describe()["properties"]
    assert all(described[name].get("description") for name in endpoint.body.fields)


def test_no_route_can_stand_where_the_gateway_answers_itself() -> None:
    assert [endpoint.path for endpoint in ENDPOINTS if not PATH_PATTERN.check(endpoint.path, "")] == []
    assert PATH_PATTERN.check("/healthy", "") == []
