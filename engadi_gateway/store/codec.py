"""Configuration values as JSON objects and back: the form of the API, of the revisions and of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from engadi_gateway.model import CorsPolicy, LimitMode, LimitType, Origin, RateLimitRule, Route, SplitTarget


def to_json(value: Route | RateLimitRule | CorsPolicy) -> dict[str, Any]:
    """A configuration value as a JSON object; every field is there."""
    document = asdict(value)
    return {name: _plain(part) for name, part in document.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, LimitType | LimitMode | Origin) else value


def route_from_json(document: Mapping[str, Any]) -> Route:
    """The inverse of `to_json`; the document was validated or came from our own table.

    One value has one document, and so one ETag: a whole number of seconds is the number that its column gives back.
    """
    row = dict(document)
    timeout = row.get("timeout")
    row["timeout"] = None if timeout is None else float(timeout)
    row["methods"] = tuple(row.get("methods", ()))
    row["required_roles"] = tuple(row.get("required_roles", ()))
    row["split"] = tuple(SplitTarget(**share) for share in row.get("split", ()))
    return Route(**row)


def rule_from_json(document: Mapping[str, Any]) -> RateLimitRule:
    """The inverse of `to_json`."""
    row = dict(document)
    row["limit_type"] = LimitType(row["limit_type"])
    row["mode"] = LimitMode(row.get("mode", LimitMode.ENFORCE))
    row["origin"] = Origin(row.get("origin", Origin.API))
    return RateLimitRule(**row)


def cors_from_json(document: Mapping[str, Any]) -> CorsPolicy:
    """The inverse of `to_json`."""
    row: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in document.items()}
    row["origin"] = Origin(row.get("origin", Origin.API))
    return CorsPolicy(**row)


ROUTE_FIELDS = tuple(field.name for field in fields(Route))
RULE_FIELDS = tuple(field.name for field in fields(RateLimitRule))
