"""Routing: which route, why not another, and that it costs the same with ten routes and with ten thousand."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engadi_gateway.errors import ConfigurationError, Reason, RefusedError
from engadi_gateway.model import Route, Service
from engadi_gateway.pipeline import table as module
from engadi_gateway.pipeline.patterns import parse_pattern, segments_match
from engadi_gateway.pipeline.table import Clash, Match, Miss, RoutingTable, route_faults

SERVICES = {"content": Service("content", "http://content.test:8003"), "ai": Service("ai", "http://ai.test:8010")}


def route(pattern: str, route_id: str = "r1", **fields: Any) -> Route:
    return replace(Route(route_id, pattern, "content"), **fields)


def table(*routes: Route) -> RoutingTable:
    return RoutingTable(routes, SERVICES)


def winner(found: Match | Miss | Clash) -> str | None:
    return found.route.id if isinstance(found, Match) else None


# routes that are none


@pytest.mark.parametrize(
    ("fields", "pointers"),
    [
        ({"path_pattern": "a"}, ["/path_pattern"]),
        ({"host": "API.example"}, ["/host"]),
        ({"host": "api.example:8000"}, ["/host"]),
        ({"host": "*"}, ["/host"]),
        ({"host": "a.*.b"}, ["/host"]),
        ({"host": "a..b"}, ["/host"]),
        ({"host": "a." * 130 + "b"}, ["/host"]),
        ({"methods": ("GET", "get", "")}, ["/methods/1", "/methods/2"]),
        ({"path_pattern": "//", "host": "/", "methods": ("G T",)}, ["/path_pattern", "/host", "/methods/0"]),
        ({"host": "*.example.com", "methods": ("PROPFIND", "M-SEARCH")}, []),
        ({"host": "[2001:db8::1]"}, []),
    ],
)
def test_route_faults_point_to_the_fields(fields: dict[str, Any], pointers: list[str]) -> None:
    faulty = replace(Route("r1", "/a", "content"), **fields)
    assert [fault.pointer for fault in route_faults(faulty)] == pointers


def test_a_table_names_every_faulty_route_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        table(route("a", "r1"), route("/b", "r2"), route("/c", "r3", host="?"))
    assert [fault.pointer for fault in caught.value.faults] == ["/routes/r1/path_pattern", "/routes/r3/host"]


# matching


@pytest.mark.parametrize(
    ("pattern", "path", "params", "prefix_length"),
    [
        ("/a", "/a", (), 0),
        ("/a/", "/a/", (), 0),
        ("/", "/", (), 0),
        ("/a/*", "/a", (), 2),
        ("/a/*", "/a/", (), 2),
        ("/a/*", "/a/b/c", (), 2),
        ("/*", "/", (), 0),
        ("/*", "/a/b", (), 0),
        ("/a/{x}", "/a/b", ("b",), 0),
        ("/a/{x}/c/{y}", "/a/b/c/d", ("b", "d"), 0),
        ("/a/{x}/*", "/a/bcd", ("bcd",), 6),
        ("/a/{x}/*", "/a/bcd/e", ("bcd",), 6),
        ("/a/{x}", "/a/%C3%A9", ("%C3%A9",), 0),
    ],
)
def test_what_matches_and_what_is_learned(pattern: str, path: str, params: tuple[str, ...], prefix_length: int) -> None:
    only = route(pattern)
    assert table(only).match("GET", "", path) == Match(only, params, prefix_length)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/a/*", "/ab"),
        ("/products/*", "/products-for-sale"),
        ("/a", "/a/"),
        ("/a/", "/a"),
        ("/a", "/A"),
        ("/a/{x}", "/a/"),
        ("/a/{x}", "/a"),
        ("/a/{x}", "/a/b/c"),
        ("/a/{x}/*", "/a/"),
        ("/a/b/*", "/a"),
        ("/", "/a"),
        ("/*", "*"),
        ("/a", ""),
    ],
)
def test_what_does_not_match(pattern: str, path: str) -> None:
    assert table(route(pattern)).match("GET", "", path) == Miss(())


@pytest.mark.parametrize(
    ("host", "given_host", "matches"),
    [
        ("", "any.example", True),
        ("", "", True),
        ("api.example", "api.example", True),
        ("api.example", "www.example", False),
        ("api.example", "", False),
        ("*.example", "api.example", True),
        ("*.example", "a.b.example", True),
        ("*.example", "example", False),
        ("*.example", "badexample", False),
        ("*.example", "api.example.evil", False),
        ("[2001:db8::1]", "[2001:db8::1]", True),
    ],
)
def test_hosts(host: str, given_host: str, matches: bool) -> None:
    assert isinstance(table(route("/a", host=host)).match("GET", given_host, "/a"), Match) is matches


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"path_pattern": "/*", "priority": 1}, {"path_pattern": "/a/b", "host": "h.example"}),
        ({"path_pattern": "/*", "host": "h.example"}, {"path_pattern": "/a/b"}),
        ({"path_pattern": "/*", "host": "h.example"}, {"path_pattern": "/a/b", "host": "*.example"}),
        ({"path_pattern": "/*", "host": "*.example"}, {"path_pattern": "/a/b"}),
        ({"path_pattern": "/a/b"}, {"path_pattern": "/a/{x}"}),
        ({"path_pattern": "/a/{x}"}, {"path_pattern": "/a/*"}),
        ({"path_pattern": "/a/*"}, {"path_pattern": "/*"}),
        ({"path_pattern": "/a/*"}, {"path_pattern": "/{x}/b"}),
        ({"path_pattern": "/a/{x}"}, {"path_pattern": "/{y}/b"}),
        ({"path_pattern": "/a/{x}/*"}, {"path_pattern": "/a/*"}),
        ({"path_pattern": "/a/b"}, {"path_pattern": "/a/b/*"}),
    ],
    ids=lambda fields: " ".join(str(value) for value in fields.values()),
)
@pytest.mark.parametrize("ids", [("1", "2"), ("2", "1")])
def test_the_order(better: dict[str, Any], worse: dict[str, Any], ids: tuple[str, str]) -> None:
    first = replace(route("/", ids[0]), **better)
    second = replace(route("/", ids[1]), **worse)
    for routes in ((first, second), (second, first)):
        tried = table(*routes)
        assert winner(tried.match("GET", "h.example", "/a/b")) == first.id
        assert tried.ordered() == (first, second)


def test_a_longer_wildcard_host_comes_first() -> None:
    tried = table(route("/a", "1", host="*.example"), route("/a", "2", host="*.api.example"))
    assert winner(tried.match("GET", "x.api.example", "/a")) == "2"
    assert winner(tried.match("GET", "x.web.example", "/a")) == "1"


def test_equal_conditions_for_different_methods_are_two_routes() -> None:
    tried = table(route("/a", "1", methods=("GET",)), route("/a", "2", methods=("POST", "PUT")))
    assert [winner(tried.match(method, "", "/a")) for method in ("GET", "HEAD", "POST")] == ["1", "1", "2"]
    assert tried.match("DELETE", "", "/a") == Miss(("GET", "HEAD", "POST", "PUT"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {}),
        ({"path_pattern": "/a/{x}"}, {"path_pattern": "/a/{y}"}),
        ({"methods": ("GET",)}, {}),
        ({"methods": ("GET", "POST")}, {"methods": ("POST",)}),
        ({"methods": ("GET",)}, {"methods": ("HEAD",)}),
        ({"host": "h.example"}, {"host": "h.example"}),
    ],
)
def test_the_same_conditions_twice_are_a_conflict(one: dict[str, Any], other: dict[str, Any]) -> None:
    first = replace(route("/a", "1"), **one)
    second = replace(route("/a", "2"), **other)
    with pytest.raises(RefusedError) as caught:
        table(first, second)
    assert caught.value.refusal.reason is Reason.CONFLICT
    assert "1" in caught.value.refusal.detail
    assert "2" in caught.value.refusal.detail
    table(first, replace(second, is_active=False))
    table(first, replace(second, priority=1))


def test_a_route_that_is_not_active_never_matches() -> None:
    tried = table(route("/a", "1", is_active=False, priority=9), route("/*", "2"))
    assert winner(tried.match("GET", "", "/a")) == "2"
    assert [one.id for one in tried.ordered()] == ["1", "2"]


def test_a_worse_route_serves_a_method_that_a_better_one_does_not_have() -> None:
    tried = table(route("/a", "1", methods=("GET",)), route("/*", "2"))
    assert winner(tried.match("POST", "", "/a")) == "2"


def test_the_trace_names_every_candidate() -> None:
    tried = table(
        route("/a", "1", host="other.example"),
        route("/a", "2", methods=("POST",)),
        route("/a/*", "3"),
        route("/{x}", "4"),
        route("/*", "5", is_active=False),
        route("/b", "6"),
    )
    assert [(one.route.id, one.why) for one in tried.trace("GET", "h.example", "/a")] == [
        ("1", "host is not other.example"),
        ("2", "method is not one of POST"),
        ("3", "won"),
        ("4", "another comes first in the order"),
        ("5", "not active"),
    ]


# the order against an oracle that knows nothing of trees

SEGMENT = st.sampled_from(["a", "b", "{x}"])
PATTERN = st.builds(
    lambda segments, tail: "/" + "/".join([*(s.replace("x", f"x{i}") for i, s in enumerate(segments)), *tail]),
    st.lists(SEGMENT, max_size=3),
    st.sampled_from([[], ["*"], [""]]),
).filter(lambda pattern: "//" not in pattern)
ROUTE = st.builds(
    lambda pattern, host, methods, priority, is_active: replace(
        route(pattern), host=host, methods=methods, priority=priority, is_active=is_active
    ),
    PATTERN,
    st.sampled_from(["", "h.example", "*.example", "*.h.example"]),
    st.sampled_from([(), ("GET",), ("POST",), ("GET", "PUT")]),
    st.sampled_from([0, 0, 0, 5]),
    st.sampled_from([True, True, True, False]),
)
PATH = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4).flatmap(
    lambda parts: st.sampled_from(["/" + "/".join(parts), "/" + "/".join([*parts, ""])])
)


def fits_path(pattern: str, path: str) -> bool:
    want, have = pattern[1:].split("/"), path[1:].split("/")
    if want[-1] == "*":
        want, have = want[:-1], have[: len(want) - 1]
    return len(want) == len(have) and all(w == h or (w[:1] == "{" and h != "") for w, h in zip(want, have, strict=True))


def fits_host(pattern: str, host: str) -> bool:
    return pattern in {"", host} or (pattern[:1] == "*" and host.endswith(pattern[1:]))


def fits_method(methods: tuple[str, ...], method: str) -> bool:
    return not methods or method in methods or (method == "HEAD" and "GET" in methods)


def is_better(one: Route, other: Route) -> bool:
    """The rules as the documentation has them, one after the other; both fit the same request."""
    if one.priority != other.priority:
        return one.priority > other.priority
    kinds = [2 if not host else 1 if host[0] == "*" else 0 for host in (one.host, other.host)]
    if kinds[0] != kinds[1]:
        return kinds[0] < kinds[1]
    if len(one.host) != len(other.host):
        return len(one.host) > len(other.host)
    for mine, theirs in zip(one.path_pattern.split("/")[1:], other.path_pattern.split("/")[1:], strict=False):
        places = [2 if part == "*" else 1 if part[:1] == "{" else 0 for part in (mine, theirs)]
        if places[0] != places[1]:
            return places[0] < places[1]
    if one.path_pattern.count("/") != other.path_pattern.count("/"):
        longer = max(one.path_pattern, other.path_pattern, key=lambda pattern: pattern.count("/"))
        return (one.path_pattern == longer) is not longer.endswith("*")
    return one.id < other.id


def table_without_twins(routes: list[Route]) -> RoutingTable:
    numbered = [replace(one, id=f"r{index}") for index, one in enumerate(routes)]
    try:
        return table(*numbered)
    except RefusedError:
        assume(False)
        raise


@settings(max_examples=400)
@given(
    st.lists(ROUTE, min_size=1, max_size=8),
    PATH,
    st.sampled_from(["", "h.example", "x.h.example", "other"]),
    st.sampled_from(["GET", "HEAD", "POST", "PUT"]),
)
def test_the_winner_is_the_one_that_the_rules_name(routes: list[Route], path: str, host: str, method: str) -> None:
    tried = table_without_twins(routes)
    fitting = [
        one
        for one in tried.ordered()
        if one.is_active and fits_path(one.path_pattern, path) and fits_host(one.host, host)
    ]
    serving = [one for one in fitting if fits_method(one.methods, method)]
    best = [one for one in serving if all(one is other or is_better(one, other) for other in serving)]
    found = tried.match(method, host, path)
    assert winner(found) == (best[0].id if serving else None)
    if isinstance(found, Miss):
        allow = {name for one in fitting for name in one.methods}
        assert set(found.allow) == (allow | {"HEAD"} if "GET" in allow else allow)
    assert [one.route for one in tried.trace(method, host, path) if one.why == "won"] == best


@settings(max_examples=200)
@given(st.lists(ROUTE, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_given(routes: list[Route], rng: random.Random) -> None:
    ordered = table_without_twins(routes).ordered()
    shuffled = list(ordered)
    rng.shuffle(shuffled)
    assert table(*shuffled).ordered() == ordered


@given(PATTERN, PATH)
def test_one_pattern_alone_says_the_same_as_the_tree(pattern: str, path: str) -> None:
    alone = path[:1] == "/" and segments_match(parse_pattern(pattern), path[1:].split("/"))
    assert alone == isinstance(table(route(pattern)).match("GET", "", path), Match)
    assert alone == (table(route(pattern)).trace("GET", "", path) != [])


@settings(max_examples=200)
@given(st.lists(ROUTE, max_size=6), st.lists(ROUTE, max_size=6), PATH, st.data())
def test_a_table_made_with_the_one_before_is_the_one_made_without(
    old: list[Route], new: list[Route], path: str, data: st.DataObject
) -> None:
    before = table_without_twins(old)
    stay = data.draw(st.lists(st.sampled_from(before.ordered()), unique=True) if old else st.just([]))
    every = [*(replace(one, id=f"n{index}") for index, one in enumerate(new)), *stay]
    try:
        alone = table(*every)
    except RefusedError:
        with pytest.raises(RefusedError):
            RoutingTable(every, SERVICES, before)
        return
    after = RoutingTable(every, SERVICES, before)
    assert after.ordered() == alone.ordered()
    assert after.match("GET", "h.example", path) == alone.match("GET", "h.example", path)
    assert after.trace("GET", "h.example", path) == alone.trace("GET", "h.example", path)


# what it costs


def test_with_the_table_before_only_what_changed_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [route(f"/s{n}/*", f"r{n}") for n in range(100)]
    before = table(*routes)
    parsed: list[str] = []

    def parse(pattern: str) -> tuple[str, ...]:
        parsed.append(pattern)
        return parse_pattern(pattern)

    monkeypatch.setattr(module, "parse_pattern", parse)
    alike = [replace(one) for one in routes[:50]]  # read anew, say
    wanted = [*alike, *routes[51:98], replace(routes[98], priority=7), replace(routes[99], path_pattern="/other")]
    after = RoutingTable(wanted, SERVICES, before)
    assert parsed == ["/s98/*", "/other"]
    assert [one.id for one in after.ordered()][:1] == ["r98"]
    assert isinstance(after.match("GET", "", "/s50/x"), Miss)
    assert isinstance(before.match("GET", "", "/s50/x"), Match), "what began with it ends with it"


def visits(count: int) -> int:
    """Nodes looked at for one request that is served and one that is not, among `count` routes of every kind."""
    routes = [route(f"/api/v1/s{n}/*", f"r{n}") for n in range(count - 3)]
    routes += [route("/api/{v}/s1/x", "p"), route("/*", "all"), route("/api/v1/s1/x", "h", host="*.example")]
    tried = table(*routes)
    assert winner(tried.match("GET", "a.b.example", "/api/v1/s1/x")) == "h"
    assert winner(tried.match("GET", "a.b.example", "/api/v1/none/at/all/here")) == "all"
    return tried.visits


def test_matching_looks_at_as_many_nodes_among_ten_thousand_routes_as_among_ten() -> None:
    assert visits(10) == visits(10_000) <= 20


class CountedPath(str):
    """Counts how often it, or what is cut out of it, is taken apart."""

    __slots__ = ()
    splits = 0

    def __getitem__(self, key: Any) -> CountedPath:
        return CountedPath(super().__getitem__(key))

    def split(self, *args: Any, **kwargs: Any) -> list[str]:
        CountedPath.splits += 1
        return super().split(*args, **kwargs)


def splits(count: int) -> int:
    """How often a trace among `count` routes takes the path apart."""
    CountedPath.splits = 0
    tried = table(*(route(f"/api/v1/s{n}/*", f"r{n}") for n in range(count)))
    assert [one.why for one in tried.trace("GET", "", CountedPath("/api/v1/s1/x"))] == ["won"]
    return CountedPath.splits


def test_a_trace_takes_the_path_apart_no_more_often_among_a_thousand_routes() -> None:
    assert splits(10) == splits(1000) <= 2


def test_a_pattern_without_parameters_makes_nothing_for_a_path() -> None:
    tried = table(route("/a/*"), route("/b/{x}"))
    assert tried.match("GET", "", "/a/b") is tried.match("GET", "", "/a/c/d")
    assert tried.match("GET", "", "/none") is tried.match("GET", "", "/either")
    assert tried.match("GET", "", "/b/1") != tried.match("GET", "", "/b/2")
