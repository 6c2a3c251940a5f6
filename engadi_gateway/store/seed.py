"""What the settings say of the configuration: what a new database holds, and which of it the API has changed since."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from operator import attrgetter

from engadi_gateway.model import LimitType, Origin, RateLimitRule, Snapshot
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.changes import Seed

#: Default rules keep their ids over restarts and machines, so that they can be told from those of the API.
_NAMESPACE = uuid.UUID("5a2f3c8e-6f0b-5d7a-9c41-2d8e6b1f4a90")
_BUT_FOR_WINDOW = attrgetter("limit_type", "max_requests", "path_pattern", "mode", "is_active")


def timestamp(wall: float) -> str:
    """RFC 3339 UTC with milliseconds."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def default_rules(settings: Settings, now: str) -> tuple[RateLimitRule, ...]:
    window = int(settings.limits_window)
    rows = (
        (LimitType.PER_USER, settings.limits_per_user),
        (LimitType.PER_IP, settings.limits_per_ip),
    )
    return tuple(
        RateLimitRule(
            id=str(uuid.uuid5(_NAMESPACE, kind)),
            name=str(kind),
            limit_type=kind,
            max_requests=amount,
            window_seconds=window,
            origin=Origin.SETTINGS,
            created_at=now,
            updated_at=now,
        )
        for kind, amount in rows
    )


def seed_of(settings: Settings, now: str) -> Seed:
    """Services, default limits and CORS policy; `now` as `timestamp` writes it."""
    return Seed(settings.services, default_rules(settings, now), settings.cors_policy, now)


def overruled(settings: Settings, snapshot: Snapshot) -> list[str]:
    """The options, as `section.key`, that do not hold, because the API changed what they are for."""
    held, wanted = asdict(snapshot.cors), asdict(settings.cors_policy)
    found = [f"cors.{name}" for name in wanted if name != "origin" and held[name] != wanted[name]]
    rules = {rule.id: rule for rule in snapshot.rules}
    for default in default_rules(settings, ""):
        rule = rules.get(default.id)
        if rule is None or _BUT_FOR_WINDOW(rule) != _BUT_FOR_WINDOW(default):
            found.append(f"limits.{default.name}")
        if rule is not None and rule.window_seconds != default.window_seconds and "limits.window" not in found:
            found.append("limits.window")
    return found
