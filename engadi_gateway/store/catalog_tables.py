"""The configuration's tables: values become rows, and rows values again; every write leaves a revision.

Whoever calls has the transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from engadi_gateway.model import CorsPolicy, RateLimitRule, Revision, Route, Service, Snapshot
from engadi_gateway.store.changes import Change, Seed, Value, seed_routes
from engadi_gateway.store.codec import (
    ROUTE_FIELDS,
    RULE_FIELDS,
    cors_from_json,
    route_from_json,
    rule_from_json,
    to_json,
)
from engadi_gateway.store.database import Connection, first_row
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.schema import Migration, Schema

_APPLICATION_ID = 0x456E4743  # "EnGC"

#: Fields kept as JSON text in a column, and those kept as 0 or 1.
_JSON_FIELDS = frozenset(("methods", "required_roles", "split"))
_BOOL_FIELDS = frozenset(
    ("is_public", "is_active", "circuit_breaker_enabled", "strip_prefix", "preserve_host", "allow_encoded_slashes")
)

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE route_config (
            id TEXT PRIMARY KEY, path_pattern TEXT NOT NULL, target_service TEXT NOT NULL, target_url TEXT NOT NULL,
            methods TEXT NOT NULL, host TEXT NOT NULL, is_public INTEGER NOT NULL CHECK (is_public IN (0, 1)),
            is_active INTEGER NOT NULL CHECK (is_active IN (0, 1)), priority INTEGER NOT NULL, timeout REAL,
            retry_count INTEGER, circuit_breaker_enabled INTEGER NOT NULL CHECK (circuit_breaker_enabled IN (0, 1)),
            strip_prefix INTEGER NOT NULL CHECK (strip_prefix IN (0, 1)),
            preserve_host INTEGER NOT NULL CHECK (preserve_host IN (0, 1)),
            allow_encoded_slashes INTEGER NOT NULL CHECK (allow_encoded_slashes IN (0, 1)),
            required_roles TEXT NOT NULL, split TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX route_config_service ON route_config (target_service)",
        """CREATE TABLE rate_limit_rule (
            id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,
            limit_type TEXT NOT NULL CHECK (limit_type IN ('per_user', 'per_ip', 'per_endpoint', 'global')),
            max_requests INTEGER NOT NULL CHECK (max_requests > 0),
            window_seconds INTEGER NOT NULL CHECK (window_seconds > 0), path_pattern TEXT NOT NULL,
            mode TEXT NOT NULL CHECK (mode IN ('enforce', 'observe')),
            is_active INTEGER NOT NULL CHECK (is_active IN (0, 1)),
            origin TEXT NOT NULL CHECK (origin IN ('settings', 'api')), created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        ) STRICT""",
        """CREATE TABLE cors_policy (
            id INTEGER PRIMARY KEY CHECK (id = 1), document TEXT NOT NULL
        ) STRICT""",
        """CREATE TABLE revision (
            number INTEGER PRIMARY KEY, actor TEXT NOT NULL, request_id TEXT NOT NULL, created_at TEXT NOT NULL,
            kind TEXT NOT NULL, subject TEXT NOT NULL, before TEXT, after TEXT
        ) STRICT""",
        "CREATE INDEX revision_subject ON revision (subject)",
    ),
)

SCHEMA = Schema(_APPLICATION_ID, MIGRATIONS)

#: The columns, in the order in which rows are taken apart.
_ROUTE = ", ".join(ROUTE_FIELDS)
_RULE = ", ".join(RULE_FIELDS)
_REVISION = "number, actor, created_at, kind, subject, before, after, request_id"

T = TypeVar("T")
Row = tuple[Any, ...]


class UnreadableError(StoreError):
    """Raised when what is stored is none of this version's values; trying again does not help."""


# reading


def current_revision(connection: Connection) -> int:
    return int(first_row(connection, "SELECT coalesce(max(number), 0) FROM revision")[0])


def load_snapshot(connection: Connection, services: Mapping[str, Service], cors: CorsPolicy) -> Snapshot:
    """The whole configuration; `cors` is the settings' policy, used until the API made its own.

    Raises:
        UnreadableError: a value is none that this version knows.
    """
    routes = connection.execute(f"SELECT {_ROUTE} FROM route_config ORDER BY id").fetchall()  # noqa: S608
    rules = connection.execute(f"SELECT {_RULE} FROM rate_limit_rule ORDER BY id").fetchall()  # noqa: S608
    return Snapshot(
        current_revision(connection),
        tuple(_decoded(connection, f"route {row[0]}", _route_of, row) for row in routes),
        tuple(_decoded(connection, f"rule {row[0]}", _rule_of, row) for row in rules),
        _own_cors(connection) or cors,
        services,
    )


def _decoded(connection: Connection, what: str, decode: Callable[[Row], T], row: Row) -> T:
    """What a row says. Other versions write into a file that is shared, and people into any."""
    try:
        return decode(row)
    except (ValueError, TypeError, KeyError, RecursionError):
        path = first_row(connection, "PRAGMA database_list")[2]
        raise UnreadableError(f"{path}: this version cannot read {what}") from None


def _fetch(connection: Connection, kind: str, subject: str) -> Value | None:
    if kind == "cors":
        return _own_cors(connection)
    if kind == "route":
        row = first_row(connection, f"SELECT {_ROUTE} FROM route_config WHERE id = ?", (subject,))  # noqa: S608
        return None if row is None else _decoded(connection, f"route {subject}", _route_of, row)
    row = first_row(connection, f"SELECT {_RULE} FROM rate_limit_rule WHERE id = ?", (subject,))  # noqa: S608
    return None if row is None else _decoded(connection, f"rule {subject}", _rule_of, row)


def _own_cors(connection: Connection) -> CorsPolicy | None:
    row = first_row(connection, "SELECT document FROM cors_policy")
    return None if row is None else _decoded(connection, "the CORS policy", _cors_of, row)


def _cors_of(row: Row) -> CorsPolicy:
    return cors_from_json(json.loads(row[0]))


def _route_of(row: Row) -> Route:
    document = dict(zip(ROUTE_FIELDS, row, strict=True))
    for name in _JSON_FIELDS:
        document[name] = json.loads(document[name])
    for name in _BOOL_FIELDS:
        document[name] = bool(document[name])
    return route_from_json(document)


def _rule_of(row: Row) -> RateLimitRule:
    document = dict(zip(RULE_FIELDS, row, strict=True))
    document["is_active"] = bool(document["is_active"])
    return rule_from_json(document)


def revisions(connection: Connection, below: int, limit: int) -> list[Revision]:
    """The newest first, below that number."""
    query = f"SELECT {_REVISION} FROM revision WHERE number < ? ORDER BY number DESC LIMIT ?"  # noqa: S608 - ours
    rows = connection.execute(query, (below, limit)).fetchall()
    return [_decoded(connection, f"revision {row[0]}", _revision_of, row) for row in rows]


def revision(connection: Connection, number: int) -> Revision | None:
    row = first_row(connection, f"SELECT {_REVISION} FROM revision WHERE number = ?", (number,))  # noqa: S608 - ours
    return None if row is None else _decoded(connection, f"revision {number}", _revision_of, row)


def _revision_of(row: Row) -> Revision:
    number, actor, created_at, kind, subject, before, after, request_id = row
    return Revision(
        number,
        actor,
        created_at,
        kind,
        subject,
        None if before is None else json.loads(before),
        None if after is None else json.loads(after),
        request_id,
    )


# writing


def seed_tables(connection: Connection, seed: Seed) -> None:
    """What a new database begins with."""
    routes = seed_routes(seed.services, seed.now)
    for route in routes:
        store(connection, "route", route)
    for rule in seed.rules:
        store(connection, "rule", rule)
    document = {"routes": [to_json(route) for route in routes], "rules": [to_json(rule) for rule in seed.rules]}
    _record(connection, Change("seed", "database", None, "settings", "", seed.now), None, document)


def apply(connection: Connection, change: Change, settings_cors: CorsPolicy | None) -> None:
    """One write and its revision; `settings_cors` is what held where the API has made no policy yet."""
    before = _fetch(connection, change.kind, change.subject)
    if before is None and change.kind == "cors":
        before = settings_cors
    if change.after is None:
        table = {"route": "route_config", "rule": "rate_limit_rule"}[change.kind]
        connection.execute(f"DELETE FROM {table} WHERE id = ?", (change.subject,))  # noqa: S608 - from the table above
    else:
        store(connection, change.kind, change.after)
    after = None if change.after is None else to_json(change.after)
    _record(connection, change, None if before is None else to_json(before), after)


def _record(connection: Connection, change: Change, before: object, after: object) -> None:
    connection.execute(
        "INSERT INTO revision (number, actor, request_id, created_at, kind, subject, before, after)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            current_revision(connection) + 1,
            change.actor,
            change.request_id,
            change.at,
            change.kind,
            change.subject,
            None if before is None else json.dumps(before),
            None if after is None else json.dumps(after),
        ),
    )


def store(connection: Connection, kind: str, value: Value) -> None:
    """The row of a value, in place of the one that it had."""
    document = to_json(value)
    if kind == "cors":
        connection.execute("INSERT OR REPLACE INTO cors_policy (id, document) VALUES (1, ?)", (json.dumps(document),))
        return
    table, names = ("route_config", ROUTE_FIELDS) if kind == "route" else ("rate_limit_rule", RULE_FIELDS)
    values = [_column(name, document[name]) for name in names]
    columns, marks = ", ".join(names), ", ".join("?" * len(names))
    changed = ", ".join(f"{name} = excluded.{name}" for name in names)
    # not OR REPLACE: that would delete another rule of the same name without a word
    upsert = f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {changed}"  # noqa: S608
    connection.execute(upsert, values)


def _column(name: str, value: Any) -> Any:
    if name in _JSON_FIELDS:
        return json.dumps(value)
    return int(value) if isinstance(value, bool) else value
