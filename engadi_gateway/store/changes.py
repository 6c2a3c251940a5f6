"""What becomes of a configuration by a write, or by what the settings say: values only, nothing is stored here."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engadi_gateway.model import CorsPolicy, Origin, RateLimitRule, Route, Service, Snapshot

_NAMESPACE = uuid.UUID("0d9f1b52-3f0e-5b1e-8f6d-7c2a9e4d1c3b")

Value = Route | RateLimitRule | CorsPolicy


@dataclass(frozen=True, slots=True)
class Seed:
    """What the settings say: for a new database, and for what follows the settings. `now` is RFC 3339."""

    services: Mapping[str, Service]
    rules: tuple[RateLimitRule, ...]
    cors: CorsPolicy
    now: str


@dataclass(frozen=True, slots=True)
class Change:
    """One write: `after` None deletes. `kind` is route, rule or cors; `subject` the id, "cors" for the policy."""

    kind: str
    subject: str
    after: Value | None
    actor: str
    request_id: str
    at: str


def with_change(snapshot: Snapshot, change: Change) -> Snapshot:
    """The snapshot as it will be; changes nothing."""
    revision = snapshot.revision + 1
    if change.kind == "cors":
        assert isinstance(change.after, CorsPolicy)
        return replace(snapshot, revision=revision, cors=change.after)
    if change.kind == "route":
        routes = tuple(route for route in snapshot.routes if route.id != change.subject)
        added = (change.after,) if isinstance(change.after, Route) else ()
        return replace(snapshot, revision=revision, routes=_by_id((*routes, *added)))
    rules = tuple(rule for rule in snapshot.rules if rule.id != change.subject)
    new = (change.after,) if isinstance(change.after, RateLimitRule) else ()
    return replace(snapshot, revision=revision, rules=_by_id((*rules, *new)))


def _by_id(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(values, key=lambda value: value.id))


def seed_routes(services: Mapping[str, Service], now: str) -> tuple[Route, ...]:
    """A route a service; only auth is public, for nobody could log in otherwise."""
    return tuple(
        Route(
            id=str(uuid.uuid5(_NAMESPACE, name)),
            path_pattern=f"/api/v1/{name}/*",
            target_service=name,
            is_public=name == "auth",
            created_at=now,
            updated_at=now,
        )
        for name in services
    )


def following(snapshot: Snapshot, seed: Seed) -> list[Change]:
    """The changes by which rules that nobody changed over the API follow the settings."""
    wanted = {rule.id: rule for rule in seed.rules}
    changes = []
    for have in snapshot.rules:
        if have.origin is Origin.SETTINGS and have.id in wanted:
            amounts = wanted[have.id].max_requests, wanted[have.id].window_seconds
            if amounts != (have.max_requests, have.window_seconds):
                after = replace(have, max_requests=amounts[0], window_seconds=amounts[1], updated_at=seed.now)
                changes.append(Change("rule", have.id, after, "settings", "", seed.now))
    return changes


def seeded(seed: Seed) -> Snapshot:
    """A new configuration, not written yet."""
    return Snapshot(0, seed_routes(seed.services, seed.now), seed.rules, seed.cors, seed.services)
