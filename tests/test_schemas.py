"""The schemas: each fault has its pointer, and what they say as JSON Schema is what they do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator

from engadi_gateway.admin.schemas import (
    CORS,
    EXPLAIN,
    MAX_FAULTS,
    ROUTE,
    RULE,
    UUID,
    Boolean,
    List,
    Nullable,
    Number,
    Object,
    Schema,
    Text,
    TextMap,
    last_ms,
    moment_ms,
)

SCHEMAS: dict[str, Schema] = {
    "route": ROUTE,
    "route, partial": ROUTE.partial(),
    "rule": RULE,
    "rule, partial": RULE.partial(),
    "cors": CORS,
    "explain": EXPLAIN,
}
A_ROUTE = {"path_pattern": "/a/*", "target_service": "content"}
A_RULE = {"limit_type": "per_ip", "max_requests": 5, "window_seconds": 60}


def pointers(schema: Schema, value: Any) -> list[str]:
    return [fault.pointer for fault in schema.check(value, "")]


VALUES: tuple[tuple[Schema, Any, list[str]], ...] = (
    (Text(), "a", []),
    (Text(), 1, [""]),
    (Text(), None, [""]),
    (Text(longest=2), "abc", [""]),
    (Text(shortest=2), "a", [""]),
    (Text(pattern="a+"), "aa", []),
    (Text(pattern="a+"), "aa\n", [""]),
    (Text(choices=("a", "b")), "b", []),
    (Text(choices=("a", "b")), "c", [""]),
    (Text(is_good=float), "1", []),
    (Text(is_good=float), "x", [""]),
    (Number(1, 3), 1, []),
    (Number(1, 3), 3, []),
    (Number(1, 3), 0, [""]),
    (Number(1, 3), 4, [""]),
    (Number(1, 3), 2.5, [""]),
    (Number(0, 1), True, [""]),
    (Number(1, 3), "2", [""]),
    (Number(0.5, 3, is_whole=False), 0.5, []),
    (Number(0.5, 3, is_whole=False), math.nan, [""]),
    (Number(0.5, 3, is_whole=False), 10**19, [""]),
    (Boolean(), True, []),
    (Boolean(), 1, [""]),
    (Boolean(), "true", [""]),
    (Nullable(Number(1, 3)), None, []),
    (Nullable(Number(1, 3)), 9, [""]),
    (List(Number(1, 3)), [1, 2], []),
    (List(Number(1, 3)), [1, 9, "x"], ["/1", "/2"]),
    (List(Number(1, 3)), [1, 1], [""]),
    (List(Number(1, 3), longest=1), [1, 2], [""]),
    (List(Number(1, 3)), {"0": 1}, [""]),
    (TextMap(), {"a": "b"}, []),
    (TextMap(), {"a": 1, "b/c~d": None}, ["/a", "/b~1c~0d"]),
    (TextMap(most=1), {"a": "", "b": ""}, [""]),
    (TextMap(longest=1), {"a": "xx"}, ["/a"]),
    (TextMap(), [], [""]),
    (Object({"a": Boolean()}, ("a",)), {"a": False}, []),
    (Object({"a": Boolean()}, ("a",)), {}, ["/a"]),
    (Object({"a": Boolean()}, ("a",)).partial(), {}, []),
    (Object({"a": Boolean()}), {"a": 1, "b/c~d": 1}, ["/a", "/b~1c~0d"]),
    (Object({}, accepts=("id",)), {"id": object()}, []),
    (Object({"a": Object({"b": List(Boolean())})}), {"a": {"b": [True, 0]}}, ["/a/b/1"]),
    (Object({}), [], [""]),
    (Object({}), None, [""]),
)


@pytest.mark.parametrize(("schema", "value", "want"), VALUES)
def test_a_pointer_for_each_fault(schema: Schema, value: Any, want: list[str]) -> None:
    assert pointers(schema, value) == want


ROUTE_FAULTS: dict[str, tuple[Any, list[str]]] = {
    "no slash": ({"path_pattern": "a"}, ["/path_pattern"]),
    "empty pattern": ({"path_pattern": ""}, ["/path_pattern"]),
    "star inside": ({"path_pattern": "/a/*/b"}, ["/path_pattern"]),
    "half a parameter": ({"path_pattern": "/a{b}"}, ["/path_pattern"]),
    "a parameter twice": ({"path_pattern": "/{a}/{a}"}, ["/path_pattern"]),
    "dots": ({"path_pattern": "/a/../b"}, ["/path_pattern"]),
    "reserved": ({"path_pattern": "/api/v1/gateway/x"}, ["/path_pattern"]),
    "reserved, all below": ({"path_pattern": "/api/v1/gateway/*"}, ["/path_pattern"]),
    "reserved health": ({"path_pattern": "/health"}, ["/path_pattern"]),
    "reserved livez": ({"path_pattern": "/livez/x"}, ["/path_pattern"]),
    "reserved readyz": ({"path_pattern": "/readyz"}, ["/path_pattern"]),
    "service": ({"target_service": "No Service"}, ["/target_service"]),
    "scheme": ({"target_url": "ftp://h"}, ["/target_url"]),
    "no host": ({"target_url": "http://"}, ["/target_url"]),
    "port": ({"target_url": "http://h:99999"}, ["/target_url"]),
    "user": ({"target_url": "http://u:p@h"}, ["/target_url"]),
    "query": ({"target_url": "http://h/?a=1"}, ["/target_url"]),
    "line break": ({"target_url": "http://h/\r\nX: y"}, ["/target_url"]),
    "white space around": ({"target_url": " http://h "}, ["/target_url"]),
    "no address": ({"target_url": "http://999.1.1.1"}, ["/target_url"]),
    "too short an address": ({"target_url": "http://10.1"}, ["/target_url"]),
    "no address in brackets": ({"target_url": "http://[v1.a]"}, ["/target_url"]),
    "port 0": ({"target_url": "http://h:0"}, ["/target_url"]),
    "an empty label": ({"target_url": "http://a..b"}, ["/target_url"]),
    "a label too long": ({"target_url": f"http://{'a' * 64}.b"}, ["/target_url"]),
    "a name too long": ({"target_url": "http://" + "a." * 130}, ["/target_url"]),
    "a label that begins with a hyphen": ({"target_url": "http://-a"}, ["/target_url"]),
    "no IPv6 address": ({"target_url": "http://[::1::]"}, ["/target_url"]),
    "a stray %": ({"target_url": "http://h/%"}, ["/target_url"]),
    "not ASCII": ({"target_url": "http://exämple"}, ["/target_url"]),
    "what no head can hold": ({"target_url": 'http://h/"<x>'}, ["/target_url"]),
    "half an address": ({"target_url": "http://[::1"}, ["/target_url"]),
    "lower case": ({"methods": ["GET", "get"]}, ["/methods/1"]),
    "a method with a space": ({"methods": ["GET X"]}, ["/methods/0"]),
    "a method twice": ({"methods": ["GET", "GET"]}, ["/methods"]),
    "upper-case host": ({"host": "API.example"}, ["/host"]),
    "host with port": ({"host": "h:80"}, ["/host"]),
    "star in the host's middle": ({"host": "a.*.example"}, ["/host"]),
    "no booleans": ({"is_public": "yes", "is_active": 1}, ["/is_public", "/is_active"]),
    "null is no boolean": ({"strip_prefix": None}, ["/strip_prefix"]),
    "priority": ({"priority": 1_000_001}, ["/priority"]),
    "timeout 0": ({"timeout": 0}, ["/timeout"]),
    "timeout beyond": ({"timeout": 3600.5}, ["/timeout"]),
    "retries": ({"retry_count": 11}, ["/retry_count"]),
    "half a retry": ({"retry_count": 1.5}, ["/retry_count"]),
    "role": ({"required_roles": ["", "a\n"]}, ["/required_roles/0", "/required_roles/1"]),
    "split": (
        {"split": [{"target_service": "a", "target_url": "", "weight": 0}, {"weight": 1}]},
        ["/split/0/weight", "/split/1/target_service"],
    ),
    "unknown": ({"path": "/a"}, ["/path"]),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "want"), ROUTE_FAULTS.values(), ids=ROUTE_FAULTS.keys())
def test_faults_of_a_route(fields: dict[str, Any], want: list[str]) -> None:
    assert pointers(ROUTE, {**A_ROUTE, **fields}) == want


GOOD_ROUTES: dict[str, dict[str, Any]] = {
    "the least": {},
    "root": {"path_pattern": "/"},
    "everything": {"path_pattern": "/*"},
    "only like a reserved one": {"path_pattern": "/healthy/*"},
    "parameters": {"path_pattern": "/{a}/b/{c}/*"},
    "https": {"target_url": "https://h.example:8443/base"},
    "IPv6": {"target_url": "http://[::1]:8080"},
    "no URL": {"target_url": ""},
    "host": {"host": "api.example"},
    "all hosts below": {"host": "*.example"},
    "IPv6 host": {"host": "[::1]"},
    "settings' values": {"timeout": None, "retry_count": None},
    "edges": {"timeout": 0.01, "retry_count": 0, "priority": -1_000_000},
    "other edges": {"timeout": 3600, "retry_count": 10, "priority": 1_000_000},
    "what a GET gave": {"id": "x", "created_at": "", "updated_at": ""},
}


@pytest.mark.parametrize("fields", GOOD_ROUTES.values(), ids=GOOD_ROUTES.keys())
def test_good_routes(fields: dict[str, Any]) -> None:
    assert pointers(ROUTE, {**A_ROUTE, **fields}) == []


RULE_FAULTS: dict[str, tuple[Any, list[str]]] = {
    "name": ({"name": "a b"}, ["/name"]),
    "long name": ({"name": "a" * 65}, ["/name"]),
    "type": ({"limit_type": "per_planet"}, ["/limit_type"]),
    "none": ({"max_requests": 0}, ["/max_requests"]),
    "too many": ({"max_requests": 10_000_001}, ["/max_requests"]),
    "no window": ({"window_seconds": 0}, ["/window_seconds"]),
    "more than a year": ({"window_seconds": 31_536_001}, ["/window_seconds"]),
    "pattern": ({"path_pattern": "a"}, ["/path_pattern"]),
    "mode": ({"mode": "off"}, ["/mode"]),
    "every": ({"limit_type": 1, "max_requests": "5"}, ["/limit_type", "/max_requests"]),
}


@pytest.mark.parametrize(("fields", "want"), RULE_FAULTS.values(), ids=RULE_FAULTS.keys())
def test_faults_of_a_rule(fields: dict[str, Any], want: list[str]) -> None:
    assert pointers(RULE, {**A_RULE, **fields}) == want


@pytest.mark.parametrize(
    "text", ["", "x", "5a2f3c8e6f0b5d7a9c412d8e6b1f4a90", "5a2f3c8e-6f0b-5d7a-9c41-2d8e6b1f4a90\n"]
)
def test_no_uuid(text: str) -> None:
    assert pointers(UUID, text) == [""]


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_it_describes_itself_as_json_schema(schema: Schema) -> None:
    OAS31Validator.check_schema(schema.describe())


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2_000_000_000) | st.floats(0.001, 5000) | st.text(max_size=8)
    | st.sampled_from(["/a/*", "content", "GET", "per_ip", "observe", "http://h", "example", "*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _documents(schema: Object) -> st.SearchStrategy[dict[str, Any]]:
    fields = dict.fromkeys((*schema.fields, "surplus"), _ANY)
    return st.fixed_dictionaries({}, optional=fields)


@pytest.mark.parametrize(
    "schema", [ROUTE, RULE, CORS, EXPLAIN, ROUTE.partial()], ids=["route", "rule", "cors", "explain", "partial"]
)
def test_what_it_accepts_is_what_it_says_it_accepts(schema: Object) -> None:
    """The other way round it may refuse more: JSON Schema cannot say what a path pattern is."""
    validator = OAS31Validator(schema.describe())

    @given(_documents(schema))
    def check(document: dict[str, Any]) -> None:
        if not schema.check(document):
            assert validator.is_valid(document), document
        if not validator.is_valid(document):
            assert schema.check(document), document

    check()


_DAY = 1_768_435_200_000  # 2026-01-15


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-01-15", 0, 86_399_999),
        ("20260115", 0, 86_399_999),
        ("2026-01-15T00:00:00Z", 0, 0),
        ("2026-01-15 00:00", 0, 0),
        ("2026-01-15T23:59:59.999", 86_399_999, 86_399_999),
        ("2026-01-15T02:00:00+02:00", 0, 0),
        ("2026-01-15T02:00:00 02:00", 0, 0),  # a + of a query that was not escaped
    ],
)
def test_a_date_begins_with_its_first_millisecond_and_ends_with_its_last(text: str, first: int, last: int) -> None:
    assert (moment_ms(text) - _DAY, last_ms(text) - _DAY) == (first, last)


def test_what_nobody_reads_is_not_looked_for() -> None:
    faults = ROUTE.check({f"unknown-{n}": 0 for n in range(100_000)}, "")
    assert len(faults) == MAX_FAULTS
    assert [fault.pointer for fault in faults[:3]] == ["/path_pattern", "/target_service", "/unknown-0"]


class Compared(str):
    """Counts how often it is compared."""

    __slots__ = ()
    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_entries_of_a_long_list_are_not_each_held_against_all_others() -> None:
    origins = [Compared(f"https://{n}.example") for n in range(1000)]
    assert CORS.check({"allow_origins": origins}, "") == []
    assert Compared.times < 10_000
    assert [fault.detail for fault in CORS.check({"allow_origins": [*origins[1:], origins[1]]}, "")] == [
        "the same entry twice"
    ]


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-02-30", "2026-01-15T", ""])
def test_what_is_no_date_is_none_at_either_end(text: str) -> None:
    for read in (moment_ms, last_ms):
        with pytest.raises(ValueError, match=r"^expected a date or an RFC 3339 time$"):
            read(text)
