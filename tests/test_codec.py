"""Configuration values as JSON: nothing is lost on the way to a table, a revision or a client."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.model import CorsPolicy, LimitMode, LimitType, Origin, RateLimitRule, Route, SplitTarget
from engadi_gateway.store.codec import cors_from_json, route_from_json, rule_from_json, to_json

TEXT = st.text(max_size=20)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
INTEGERS = st.integers(-(2**53), 2**53)

ROUTES = st.builds(
    Route,
    id=TEXT,
    path_pattern=TEXT,
    target_service=TEXT,
    target_url=TEXT,
    methods=TEXTS,
    host=TEXT,
    is_public=st.booleans(),
    is_active=st.booleans(),
    priority=INTEGERS,
    timeout=st.none() | st.floats(0.001, 3600),
    retry_count=st.none() | st.integers(0, 10),
    circuit_breaker_enabled=st.booleans(),
    strip_prefix=st.booleans(),
    preserve_host=st.booleans(),
    allow_encoded_slashes=st.booleans(),
    required_roles=TEXTS,
    split=st.lists(st.builds(SplitTarget, TEXT, TEXT, INTEGERS), max_size=3).map(tuple),
    created_at=TEXT,
    updated_at=TEXT,
)
RULES = st.builds(
    RateLimitRule,
    id=TEXT,
    name=TEXT,
    limit_type=st.sampled_from(LimitType),
    max_requests=INTEGERS,
    window_seconds=INTEGERS,
    path_pattern=TEXT,
    mode=st.sampled_from(LimitMode),
    is_active=st.booleans(),
    origin=st.sampled_from(Origin),
    created_at=TEXT,
    updated_at=TEXT,
)
POLICIES = st.builds(
    CorsPolicy,
    enabled=st.booleans(),
    allow_origins=TEXTS,
    allow_methods=TEXTS,
    allow_headers=TEXTS,
    expose_headers=TEXTS,
    allow_credentials=st.booleans(),
    max_age=INTEGERS,
    reject_denied_origin=st.booleans(),
    origin=st.sampled_from(Origin),
)


def through_text(value: Route | RateLimitRule | CorsPolicy) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(to_json(value), allow_nan=False))
    assert document == to_json(value), "plain JSON already"
    assert list(document) == [field.name for field in fields(value)], "every field, in the model's order"
    return document


@given(ROUTES)
def test_a_route_comes_back_as_it_was(route: Route) -> None:
    assert route_from_json(through_text(route)) == route


@given(RULES)
def test_a_rule_comes_back_as_it_was(rule: RateLimitRule) -> None:
    back = rule_from_json(through_text(rule))
    assert back == rule
    assert (type(back.limit_type), type(back.mode), type(back.origin)) == (LimitType, LimitMode, Origin)


@given(POLICIES)
def test_a_policy_comes_back_as_it_was(policy: CorsPolicy) -> None:
    back = cors_from_json(through_text(policy))
    assert (back, type(back.origin)) == (policy, Origin)


def test_a_document_as_clients_see_it() -> None:
    rule = RateLimitRule("1", "many", LimitType.PER_IP, 5, 60, mode=LimitMode.OBSERVE)
    assert to_json(rule) == {
        "id": "1",
        "name": "many",
        "limit_type": "per_ip",
        "max_requests": 5,
        "window_seconds": 60,
        "path_pattern": "",
        "mode": "observe",
        "is_active": True,
        "origin": "api",
        "created_at": "",
        "updated_at": "",
    }
    split = to_json(Route("1", "/a", "s", split=(SplitTarget("s", "http://u", 3),)))["split"]
    assert split == [{"target_service": "s", "target_url": "http://u", "weight": 3}]


def test_what_a_client_leaves_out_is_the_default() -> None:
    route = {"id": "1", "path_pattern": "/a", "target_service": "s"}
    rule = {"id": "1", "name": "n", "limit_type": "global", "max_requests": 1, "window_seconds": 2}
    assert route_from_json(route) == Route("1", "/a", "s")
    assert rule_from_json(rule) == RateLimitRule("1", "n", LimitType.GLOBAL, 1, 2)
    assert cors_from_json({}) == CorsPolicy(origin=Origin.API)


def test_a_route_has_one_document_however_its_timeout_was_written() -> None:
    route = {"id": "1", "path_pattern": "/a", "target_service": "s"}
    texts = {json.dumps(to_json(route_from_json({**route, "timeout": timeout}))) for timeout in (30, 30.0)}
    assert len(texts) == 1


def test_a_document_is_not_changed_by_reading_it() -> None:
    document = to_json(Route("1", "/a", "s", methods=("GET",), split=(SplitTarget("s", "", 1),)))
    before = json.dumps(document)
    route_from_json(document)
    assert json.dumps(document) == before


@pytest.mark.parametrize("field", ["limit_type", "mode", "origin"])
def test_an_unknown_word_is_an_error(field: str) -> None:
    document = to_json(RateLimitRule("1", "n", LimitType.GLOBAL, 1, 2))
    with pytest.raises(ValueError, match="nonsense"):
        rule_from_json({**document, field: "nonsense"})


@pytest.mark.parametrize(
    "fields",
    [
        {"zone": "b"},
        {"methods": "GET"},
        {"methods": None},
        {"methods": ["GET", 5]},
        {"required_roles": {"admin": True}},
        {"split": [{"target_service": "s", "zone": "b"}]},
        {"split": [{"target_service": "s", "weight": "3"}]},
        {"split": [{"target_service": "s", "weight": True}]},
        {"split": [{"target_service": None}]},
        {"split": [{}]},
        {"split": ["s"]},
        {"split": 5},
    ],
)
def test_a_route_that_this_version_does_not_write_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        route_from_json({**to_json(Route("1", "/a", "s")), **fields})


@pytest.mark.parametrize(
    "document",
    [{"allow_private_network": True}, {"max_age": "600"}, {"enabled": 1}, {"allow_origins": "*"},
     {"allow_origins": [5]}, {"allow_methods": None}, [], "", None],
)  # fmt: skip
def test_a_policy_that_this_version_does_not_write_is_none(document: Any) -> None:
    with pytest.raises(TypeError):
        cors_from_json(document)
