"""Which upstream serves: a route's own, or the shares of a split."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from engadi_gateway.model import CorsPolicy, Route, Service, Snapshot, SplitTarget
from engadi_gateway.pipeline import targets
from engadi_gateway.pipeline.exchange import Identity, Target
from engadi_gateway.pipeline.table import RoutingTable
from engadi_gateway.pipeline.targets import TargetPicker, services_of, urls_of, without_route, without_target
from tests.exchanges import exchange_of

SERVICES = {"content": Service("content", "http://content.test:8003"), "ai": Service("ai", "http://ai.test:8010")}


def route(pattern: str, route_id: str = "r1", **fields: Any) -> Route:
    return Route(route_id, pattern, "content", **fields)


def table(*routes: Route) -> RoutingTable:
    return RoutingTable(routes, SERVICES)


def pick(routes: Route, ip: str = "192.0.2.1", user: str | None = None) -> Target | None:
    exchange = exchange_of(ip=ip, route=routes)
    exchange.identity = Identity(user) if user is not None else None
    return next(iter(TargetPicker(table(routes))(exchange)), None)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, Target("content", "http://content.test:8003")),
        ({"target_url": "http://x.test"}, Target("content", "http://x.test")),
        ({"target_service": "unknown"}, None),
        ({"target_service": "unknown", "target_url": "http://x.test"}, Target("unknown", "http://x.test")),
        ({"split": (SplitTarget("ai", "", 1),)}, Target("ai", "http://ai.test:8010")),
        ({"split": (SplitTarget("ai", "", 0), SplitTarget("b", "http://b.test", 3))}, Target("b", "http://b.test")),
        ({"split": (SplitTarget("unknown", "", 5), SplitTarget("ai", "", 1))}, Target("ai", "http://ai.test:8010")),
        ({"split": (SplitTarget("ai", "", 0),)}, None),
    ],
)
def test_the_target(fields: dict[str, Any], want: Target | None) -> None:
    assert pick(replace(route("/a"), **fields)) == want


def test_no_route_no_target() -> None:
    assert list(TargetPicker(table())(exchange_of())) == []
    assert list(TargetPicker(table())(exchange_of(route=route("/of-before")))) == []


SPLIT = route("/a", split=(SplitTarget("blue", "http://blue.test", 9), SplitTarget("green", "http://green.test", 1)))


def share(routes: Route, user: str | None = None, ip: str = "192.0.2.1") -> str:
    target = pick(routes, ip, user)
    assert target is not None
    return target.service


@pytest.mark.parametrize("kind", ["user", "address"])
def test_a_split_keeps_its_weights_and_everybody_stays_where_they_are(kind: str) -> None:
    picker = TargetPicker(table(SPLIT))
    again = TargetPicker(table(SPLIT, route("/b", "r2")))
    counts: Counter[str] = Counter()
    for number in range(20_000):
        exchange = exchange_of(ip=f"10.0.{number >> 8}.{number & 255}", route=SPLIT)
        if kind == "user":
            exchange.client_ip, exchange.identity = "192.0.2.1", Identity(f"user-{number}")
        target = next(iter(picker(exchange)))
        assert list(picker(exchange)) == list(again(exchange))
        counts[target.service] += 1
    assert counts["green"] == pytest.approx(2000, abs=6 * (20_000 * 0.1 * 0.9) ** 0.5)


def test_those_of_one_share_go_to_the_others_by_their_weights() -> None:
    split = tuple(SplitTarget(name, f"http://{name}.test", weight) for name, weight in (("a", 5), ("b", 3), ("c", 1)))
    picker = TargetPicker(table(route("/a", split=split)))
    second: Counter[str] = Counter()
    for number in range(20_000):
        exchange = exchange_of(ip=f"10.0.{number >> 8}.{number & 255}", route=route("/a", split=split))
        order = [target.service for target in picker(exchange)]
        assert sorted(order) == ["a", "b", "c"]
        second[order[1]] += order[0] == "a"
    everybody = second.total()
    assert everybody == pytest.approx(20_000 * 5 / 9, rel=0.05)
    assert second["b"] == pytest.approx(everybody * 3 / 4, rel=0.05)


def test_a_user_keeps_the_share_from_every_address() -> None:
    assert len({share(SPLIT, "u1", f"10.0.0.{number}") for number in range(100)}) == 1


def test_a_growing_share_takes_nobody_away_that_it_had() -> None:
    grown = replace(
        SPLIT, split=(SplitTarget("green", "http://green.test", 5), SplitTarget("blue", "http://blue.test", 5))
    )
    before = replace(grown, split=(replace(grown.split[0], weight=1), replace(grown.split[1], weight=9)))
    for number in range(500):
        if share(before, f"user-{number}") == "green":
            assert share(grown, f"user-{number}") == "green"


def test_routes_without_a_target_are_named_unless_they_are_asleep() -> None:
    lost = Route("r2", "/lost", "unknown")
    asleep = Route("r3", "/asleep", "unknown", is_active=False)
    assert without_target(TargetPicker(table(route("/a"), lost, asleep))) == [lost]


def test_services_without_a_route_are_named() -> None:
    split = Route("r4", "/split", "blue", split=(SplitTarget("green", "", 1),))
    asleep = Route("r3", "/asleep", "new", is_active=False)
    found = without_route(["content", "blue", "green", "new"], table(route("/a"), split, asleep))
    assert found == ["blue", "new"], "the split's shares serve, and not what it stands beside"


def test_services_are_those_of_the_settings_and_those_that_a_route_or_a_share_gives_a_url() -> None:
    split = (SplitTarget("blue", "http://blue.test"), SplitTarget("lost"), SplitTarget("own", "http://second.test"))
    routes = (
        Route("r1", "/a", "content", "http://not-this.test"),
        Route("r2", "/b", "own", "http://first.test"),
        Route("r3", "/c", "unknown", "http://never-asked.test", split=split),
        Route("r0", "/d", "own", "http://asleep.test", is_active=False),
        Route("r4", "/e", "old", "http://old.test", is_active=False),
    )
    by_id = tuple(sorted(routes, key=lambda one: one.id))
    assert services_of(Snapshot(1, by_id, (), CorsPolicy(), SERVICES), "/up") == {
        **SERVICES,
        "own": Service("own", "http://first.test", "/up"),
        "blue": Service("blue", "http://blue.test", "/up"),
    }


def test_each_url_has_the_services_that_requests_are_sent_there_for() -> None:
    split = (SplitTarget("blue", "http://ai.test:8010"), SplitTarget("lost"), SplitTarget("ai"))
    asleep = Route("r4", "/d", "old", "http://ai.test:8010", is_active=False)
    found = urls_of(
        TargetPicker(table(route("/a"), route("/b", "r2", split=split), Route("r3", "/c", "unknown"), asleep))
    )
    assert found == {"http://content.test:8003": {"content"}, "http://ai.test:8010": {"blue", "ai"}}


def test_with_the_targets_before_only_what_changed_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a service has another URL, that is all."""
    looked: list[str] = []
    way = targets._way

    def look(one: Route, of: RoutingTable) -> targets.Way:
        looked.append(one.id)
        return way(one, of)

    monkeypatch.setattr(targets, "_way", look)
    old = table(route("/a"), route("/b", "r2"), route("/c", "r3"))
    before = TargetPicker(old)
    looked.clear()
    rows = (route("/a"), route("/b", "r2"), route("/c", "r3", target_url="http://new.test"))
    after = TargetPicker(RoutingTable(rows, SERVICES, old), before)
    assert looked == ["r3"]
    urls_of(after), without_target(after)
    assert looked == ["r3"]
    assert urls_of(after)["http://new.test"] == frozenset(("content",))
    looked.clear()
    moved = {"content": Service("content", "http://moved.test")}
    found = TargetPicker(RoutingTable(rows, moved, old), before)
    assert sorted(looked) == ["r1", "r2", "r3"]
    assert list(urls_of(found)) == ["http://moved.test", "http://new.test"]
