"""Configuration values as JSON objects and back: the form of the API, of the revisions and of the tables.

What was read as JSON may be another version's: all that is not as this one would write it is a ValueError, TypeError
or KeyError here, and nothing odd in the decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from typing import Any, TypeVar

from engadi_gateway.model import CorsPolicy, LimitMode, LimitType, Origin, RateLimitRule, Route, SplitTarget

V = TypeVar("V", CorsPolicy, SplitTarget)
_POLICY, _SHARE = CorsPolicy(), SplitTarget("")
_NAMES: Mapping[type, tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in (Route, RateLimitRule, CorsPolicy, SplitTarget)
}


def to_json(value: Route | RateLimitRule | CorsPolicy) -> dict[str, Any]:
    """A configuration value as a JSON object; every field is there."""
    return {name: _plain(getattr(value, name)) for name in _NAMES[type(value)]}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, SplitTarget):
        return {name: getattr(value, name) for name in _NAMES[SplitTarget]}
    return str(value) if isinstance(value, StrEnum) else value


def route_from_json(document: Mapping[str, Any]) -> Route:
    """The inverse of `to_json`; the document was validated or came from our own table.

    One value has one document, and so one ETag: a whole number of seconds is the number that its column gives back.
    """
    row = dict(document)
    timeout = row.get("timeout")
    row["timeout"] = None if timeout is None else float(timeout)
    row["methods"] = _texts(row.get("methods", ()))
    row["required_roles"] = _texts(row.get("required_roles", ()))
    row["split"] = tuple(_alike(SplitTarget(**share), _SHARE) for share in row.get("split", ()))
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
    row = {**document}  # a list is a TypeError: dict() would take an empty one
    row = {name: _texts(part) if isinstance(part, list) else part for name, part in row.items()}
    row["origin"] = Origin(row.get("origin", Origin.API))
    return _alike(CorsPolicy(**row), _POLICY)


def _texts(parts: Any) -> tuple[str, ...]:
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise TypeError("not a list of strings")
    return tuple(parts)


def _alike(value: V, model: V) -> V:
    """The value, if each of its fields is of the type that it has in the model: a weight of "3" is none."""
    for field in fields(model):
        if type(getattr(value, field.name)) is not type(getattr(model, field.name)):
            raise TypeError(f"{field.name}: not of its type")
    return value


ROUTE_FIELDS, RULE_FIELDS = _NAMES[Route], _NAMES[RateLimitRule]
