"""Patterns of paths, and paths as others read them: no spelling goes through a public route to a protected one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.model import Route
from engadi_gateway.pipeline.patterns import parameter_names, parse_pattern, pattern_readings, readings
from engadi_gateway.pipeline.routing import Routing
from engadi_gateway.pipeline.table import Clash, Match, RoutingTable
from tests.exchanges import exchange_of, head_of
from tests.fuzz.identity import SEGMENTS, SLASHES, astray
from tests.fuzz.lenient import STEPS, landing

READINGS: dict[str, set[str]] = {
    "/shop/admin": {"/shop/admin"},
    "/": {"/"},
    "//": {"/"},
    "/shop/admin/": {"/shop/admin"},
    "/Shop/ADMIN": {"/shop/admin"},
    "/shop;v=1/admin;a;b": {"/shop/admin"},
    "/shop/admin%3Ba": {"/shop/admin"},
    "/shop/%2561dmin": {"/shop/admin"},
    "/shop/%252561dmin": {"/shop/admin"},
    "/shop/admin%20/": {"/shop/admin"},
    "/shop/admin./x": {"/shop/admin/x"},
    "/shop/%40me": {"/shop/@me"},
    "/shop/100%25": {"/shop/100%"},
    "/shop/a.b": {"/shop/a.b"},
    "/%C3%84": {"/\xe3\x84"},
    "/shop/;a": {"/shop", "/shop/;a"},
    "/shop/...": {"/shop", "/shop/..."},
    "/shop/admin%3Fx": {"/shop/admin?x", "/shop/admin"},
    "/shop/admin%2523x/y": {"/shop/admin#x/y", "/shop/admin"},
    "/Shop%5CAdmin": {"/shop\\admin", "/shop/admin"},
}
#: Those whose segments hold slashes of their own.
DEEP_READINGS: dict[str, list[list[str]]] = {
    "/Shop%2FAdmin": [["shop/admin"], ["shop", "admin"]],
    "/Shop%252FAdmin": [["shop/admin"], ["shop", "admin"]],
    "/a%2Fb%252Fc": [["a/b/c"], ["a", "b/c"], ["a", "b", "c"]],
    "/a%2F%2Fb": [["a//b"], ["a", "b"]],
}


@pytest.mark.parametrize("path", READINGS)
def test_what_a_path_can_be_read_as(path: str) -> None:
    assert {"/" + "/".join(segments) for segments in readings(path)} == READINGS[path]


@pytest.mark.parametrize(
    ("segment", "most"), [("a%2Fb", 6), ("a%3Fb", 6), ("a%2Fb%3Fc", 3), ("%C3%A4", 170), ("{}", 170)]
)
def test_a_pattern_that_can_be_read_in_too_many_ways_is_refused(segment: str, most: int) -> None:
    """The ways of its segments multiply: thirty of them would hold up the gateway for ever."""
    segments = [f"{{p{number}}}" if segment == "{}" else segment for number in range(171)]
    assert len(pattern_readings(parse_pattern("/" + "/".join(segments[:most])))) <= 64
    if most < 170:
        for count in (most + 1, 171):
            with pytest.raises(ValueError, match="more than 64 ways"):
                parse_pattern("/" + "/".join(segments[:count]))


@pytest.mark.parametrize("path", DEEP_READINGS)
def test_an_encoded_slash_is_one_or_none(path: str) -> None:
    assert readings(path) == DEEP_READINGS[path]


def test_a_pattern_is_read_in_the_same_manner() -> None:
    table = {
        "/": [("",)],
        "/*": [("*",)],
        "/A/": [("a",)],
        "/A;v=1/{id}/*": [("a", "{}", "*")],
        "/a%2Fb/c": [("a/b", "c"), ("a", "b", "c")],
        "/;v/c": [("c",), (";v", "c")],
    }
    assert {pattern: pattern_readings(parse_pattern(pattern)) for pattern in table} == table


# routes that ask for more


def route(pattern: str, name: str, **fields: Any) -> Route:
    return replace(Route(name, pattern, "shop"), **fields)


PUBLIC = route("/shop/*", "public", is_public=True)
USERS = route("/shop/*", "users")
STAFF = route("/shop/*", "staff", required_roles=("staff",))
BOTH = route("/shop/*", "both", required_roles=("staff", "admin"))
ADMIN = {"required_roles": ("admin",)}


def found(table: RoutingTable, path: str, method: str = "GET") -> str:
    result = table.match(method, "", path)
    return (
        f"not {result.stricter.id}"
        if isinstance(result, Clash)
        else result.route.id
        if isinstance(result, Match)
        else "none"
    )


@pytest.mark.parametrize(
    ("wide", "narrow", "want"),
    [
        pytest.param(PUBLIC, {}, "not inner", id="public, token"),
        pytest.param(PUBLIC, ADMIN, "not inner", id="public, role"),
        pytest.param(PUBLIC, {"is_public": True, **ADMIN}, "not inner", id="public, role though public"),
        pytest.param(PUBLIC, {"is_public": True}, "public", id="public, public"),
        pytest.param(USERS, {"is_public": True}, "users", id="token, public"),
        pytest.param(USERS, {}, "users", id="token, token"),
        pytest.param(USERS, ADMIN, "not inner", id="token, role"),
        pytest.param(STAFF, {}, "staff", id="role, token"),
        pytest.param(STAFF, ADMIN, "not inner", id="role, another role"),
        pytest.param(STAFF, {"required_roles": ("staff", "admin")}, "staff", id="role, it or another"),
        pytest.param(BOTH, ADMIN, "not inner", id="one of two roles, one of them"),
    ],
)
def test_a_path_that_reads_as_a_stricter_route_s_is_nobody_s(wide: Route, narrow: dict[str, Any], want: str) -> None:
    table = RoutingTable([wide, route("/shop/admin/*", "inner", **narrow)], {})
    assert found(table, "/shop/admin/x") == "inner"
    assert found(table, "/shop/Admin/x") == want
    assert found(table, "/shop/other/X") == wide.id


def test_only_routes_that_would_serve_it_count() -> None:
    inner = route("/shop/admin", "inner", methods=("POST",))
    table = RoutingTable([PUBLIC, inner], {})
    assert [found(table, "/shop/admin/", method) for method in ("GET", "POST")] == ["public", "not inner"]
    table = RoutingTable([PUBLIC, replace(inner, is_active=False)], {})
    assert found(table, "/shop/admin/", "POST") == "public"
    table = RoutingTable([PUBLIC, replace(inner, host="other.test")], {})
    assert found(table, "/shop/admin/", "POST") == "public"
    table = RoutingTable([replace(PUBLIC, priority=1), inner], {})
    assert found(table, "/shop/admin/", "POST") == "public", "it has the first word on /shop/admin too"


def test_patterns_that_are_spelt_oddly_guard_as_well() -> None:
    table = RoutingTable([PUBLIC, route("/shop/@Me/{id}/", "inner")], {})
    for path in ("/shop/@me/1", "/shop/%40Me/1/", "/shop/@ME/1;a/"):
        assert found(table, path) == "not inner"
    assert found(table, "/shop/@Me/1/") == "inner"


def test_the_stage_refuses_and_the_trace_says_why() -> None:
    table = RoutingTable([PUBLIC, route("/shop/admin/*", "inner")], {})
    exchange = exchange_of(head_of(path="/shop/admin;x/y"))
    verdict = Routing(table).decide(exchange)
    assert isinstance(verdict, Refusal)
    assert (verdict.reason, exchange.route) == (Reason.BAD_REQUEST, None)
    assert [(row.route.id, row.why) for row in table.trace("GET", "", "/shop/admin;x/y")] == [
        ("public", "the path can be read as one of route inner, which asks for more")
    ]


# upstreams that read a path otherwise than they should


@settings(max_examples=1500)
@given(
    st.lists(st.tuples(st.sampled_from(SLASHES), st.sampled_from(SEGMENTS)), min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(STEPS)), unique=True, max_size=len(STEPS)),
)
@example([("/", "shop"), ("/", "admin;a=b")], ["cut parameters"])
@example([("/", "shop"), ("/", "x"), ("%2f", ".."), ("%2f", "admin")], ["decode", "resolve dots"])
@example([("/", "pub"), ("/", "%252e%252e"), ("/", "private")], ["decode", "decode again", "resolve dots"])
@example([("/", "shop"), ("/", "%c0%ae%c0%ae"), ("/", "private")], ["overlong", "resolve dots"])
@example([("/", "shop"), ("/", "%2561dmin")], ["decode", "decode again"])
@example([("/", "shop"), ("/", ";x%252fx"), ("/", "admin")], ["decode", "cut parameters", "collapse"])
@example([("/", "shop"), ("/", "pub"), ("%5c", "shop"), ("%252f", "keys")], ["decode", "decode again"])
def test_no_spelling_lands_where_a_token_is_asked_for(parts: list[tuple[str, str]], steps: list[str]) -> None:
    """Whatever an upstream makes of a path that a public route let through, it is nothing that another guards."""
    assert astray("".join(slash + segment for slash, segment in parts), steps) == []


def test_the_upstreams_can_be_led_astray() -> None:
    """A property that could not fail would prove nothing: without our part in it, every trick works."""
    tricks = {
        "/shop/x/..;/admin": ["cut parameters", "resolve dots"],
        "/shop/x%2f..%2fadmin": ["decode", "resolve dots"],
        "/shop/%252e%252e/shop/ADMIN": ["decode", "decode again", "resolve dots", "any case"],
        "/shop/x/%c0%ae%c0%ae/admin": ["overlong", "resolve dots"],
        "/shop\\admin": ["backslash"],
        "/shop/admin. /": ["trim", "no last slash"],
    }
    assert {landing(path, steps) for path, steps in tricks.items()} == {"/shop/admin"}


@pytest.mark.parametrize(
    ("pattern", "segments"),
    [
        ("/", ("",)),
        ("/*", ("*",)),
        ("/a/b", ("a", "b")),
        ("/a/", ("a", "")),
        ("/a/{id}/b", ("a", "{}", "b")),
        ("/a/{id}/*", ("a", "{}", "*")),
        ("/a%2Fb/%C3%A9", ("a%2Fb", "%C3%A9")),
        ("/a;v=1/b,c", ("a;v=1", "b,c")),
    ],
)
def test_a_pattern_is_its_segments(pattern: str, segments: tuple[str, ...]) -> None:
    assert parse_pattern(pattern) == segments


@pytest.mark.parametrize(
    "pattern",
    [
        "", "a", "*", "//", "/a//b", "/a*", "/*/a", "/**", "/a/{id", "/a/id}", "/a/{}", "/a/{1x}", "/a/x{id}", "/a/..",
        "/./a", "/a/..;x/b", "/a b", "/a?b", "/a#b", "/a%2fb", "/a%41", "/a%5F", "/a%7E", "/a%00", "/a%1F", "/a%7F",
        "/a%", "/a%zz", "/é", "/a\\b", "/{id}/b/{id}",
    ],
)  # fmt: skip
def test_a_pattern_that_could_never_match_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_pattern(pattern)


def test_parameter_names_are_in_order() -> None:
    assert parameter_names("/a/{user}/b/{id}/*") == ("user", "id")
