"""Which options the API has taken the place of, as values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engadi_gateway.model import LimitMode, Origin, RateLimitRule, Snapshot
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.seed import default_rules, overruled

SETTINGS = Settings.of({}, jwt_secret_key="k" * 32, limits_per_ip=50)
USER, ADDRESS = default_rules(SETTINGS, "2026-01-01T00:00:00Z")
OTHER = replace(USER, id="other", name="other", origin=Origin.API)

RULES: dict[str, tuple[tuple[RateLimitRule, ...], list[str]]] = {
    "untouched": ((USER, ADDRESS), []),
    "one more": ((USER, ADDRESS, OTHER), []),
    "a name": ((replace(USER, name="people", origin=Origin.API), ADDRESS), []),
    "an amount": ((replace(USER, max_requests=7), ADDRESS), ["limits.per_user"]),
    "deleted": ((USER,), ["limits.per_ip"]),
    "asleep": ((USER, replace(ADDRESS, is_active=False)), ["limits.per_ip"]),
    "only observed": ((USER, replace(ADDRESS, mode=LimitMode.OBSERVE)), ["limits.per_ip"]),
    "narrowed": ((replace(USER, path_pattern="/a/*"), ADDRESS), ["limits.per_user"]),
    "both windows": ((replace(USER, window_seconds=1), replace(ADDRESS, window_seconds=2)), ["limits.window"]),
}


@pytest.mark.parametrize("name", RULES)
def test_a_default_rule_that_was_changed_takes_the_options_away(name: str) -> None:
    rules, options = RULES[name]
    assert overruled(SETTINGS, Snapshot(1, (), rules, SETTINGS.cors_policy)) == options


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, []),
        ({"enabled": True, "max_age": 5}, ["cors.enabled", "cors.max_age"]),
        ({"allow_methods": ("GET",)}, ["cors.allow_methods"]),
    ],
)
def test_a_policy_of_the_api_takes_the_options_away_that_it_differs_from(
    fields: dict[str, Any], options: list[str]
) -> None:
    policy = replace(SETTINGS.cors_policy, origin=Origin.API, **fields)
    assert overruled(SETTINGS, Snapshot(1, (), (USER, ADDRESS), policy)) == options
