"""What a write, or what the settings say, makes of a configuration: as values, before anything is stored."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engadi_gateway.model import CorsPolicy, LimitType, Origin, RateLimitRule, Route, Service, Snapshot
from engadi_gateway.store.changes import Change, Seed, Value, following, seed_routes, seeded, with_change

NOW, LATER = "2026-01-02T03:04:05.678Z", "2026-02-03T04:05:06.789Z"
SERVICES = {name: Service(name, f"http://{name}:80") for name in ("auth", "content")}
RULE = RateLimitRule("r-user", "per_user", LimitType.PER_USER, 1000, 3600, origin=Origin.SETTINGS, created_at=NOW)
ROUTE = Route("m", "/shop/*", "content")
SNAPSHOT = Snapshot(4, (ROUTE,), (RULE,), CorsPolicy(), SERVICES)


def change(kind: str, subject: str, after: Value | None) -> Change:
    return Change(kind, subject, after, "alice", "req-1", LATER)


@pytest.mark.parametrize(
    ("wanted", "becomes"),
    [
        (change("route", "a", Route("a", "/a", "auth")), {"routes": (Route("a", "/a", "auth"), ROUTE)}),
        (change("route", "m", replace(ROUTE, priority=1)), {"routes": (replace(ROUTE, priority=1),)}),
        (change("route", "m", None), {"routes": ()}),
        (change("rule", "z", replace(RULE, id="z")), {"rules": (RULE, replace(RULE, id="z"))}),
        (change("rule", "r-user", None), {"rules": ()}),
        (change("rule", "unheard-of", None), {}),
        (change("cors", "cors", CorsPolicy(max_age=1)), {"cors": CorsPolicy(max_age=1)}),
    ],
    ids=["added", "changed", "deleted", "rule added", "rule deleted", "deleted already", "cors"],
)
def test_a_write_makes_the_next_revision_and_changes_what_it_names(wanted: Change, becomes: dict[str, object]) -> None:
    before = replace(SNAPSHOT)
    assert with_change(SNAPSHOT, wanted) == replace(SNAPSHOT, revision=5, **becomes)  # type: ignore[arg-type]  # a field's
    assert before == SNAPSHOT, "the old one is as it was"


def test_seed_routes_have_the_same_ids_everywhere() -> None:
    one, other = seed_routes(SERVICES, NOW), seed_routes(dict(reversed(SERVICES.items())), LATER)
    assert {route.target_service: route.id for route in one} == {route.target_service: route.id for route in other}
    assert len({route.id for route in one}) == 2


def test_what_is_seeded_is_what_the_settings_say_and_no_revision_yet() -> None:
    seed = Seed(SERVICES, (RULE,), CorsPolicy(max_age=1), NOW)
    assert seeded(seed) == Snapshot(0, seed_routes(SERVICES, NOW), (RULE,), CorsPolicy(max_age=1), SERVICES)


def test_only_amounts_of_rules_that_are_the_settings_own_follow_them() -> None:
    theirs = replace(RULE, id="r-ip", name="per_ip", origin=Origin.API)
    snapshot = replace(SNAPSHOT, rules=(RULE, theirs, replace(RULE, id="gone")))
    wanted = (replace(RULE, max_requests=7, name="another"), replace(theirs, max_requests=7), replace(RULE, id="new"))
    followed = replace(RULE, max_requests=7, updated_at=LATER)
    seed = Seed(SERVICES, wanted, CorsPolicy(), LATER)
    assert following(snapshot, seed) == [Change("rule", RULE.id, followed, "settings", "", LATER)]
    assert following(with_change(snapshot, following(snapshot, seed)[0]), seed) == []
