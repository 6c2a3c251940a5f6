"""The configuration: routes, rules, CORS, and every revision of them, whole.

Every write is one transaction: the row and revision N+1 with the value before and after. The catalog knows nothing of
what a value means; who calls it has compiled the result first.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from engadi_gateway.model import CorsPolicy, Origin, RateLimitRule, Revision, Route, Service, Snapshot
from engadi_gateway.store import at_rest
from engadi_gateway.store.codec import (
    ROUTE_FIELDS,
    RULE_FIELDS,
    cors_from_json,
    route_from_json,
    rule_from_json,
    to_json,
)
from engadi_gateway.store.database import Database
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.schema import Migration, Schema
from engadi_gateway.store.sqlite import Connection, first_row

_APPLICATION_ID = 0x456E4743  # "EnGC"
_NAMESPACE = uuid.UUID("0d9f1b52-3f0e-5b1e-8f6d-7c2a9e4d1c3b")

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

Value = Route | RateLimitRule | CorsPolicy
T = TypeVar("T")
Row = tuple[Any, ...]


class UnreadableError(StoreError):
    """Raised when what is stored is none of this version's values; trying again does not help."""


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


class Catalog:
    """The configuration's database; `is_shared`: other processes write to it too."""

    def __init__(self, path: str, *, is_shared: bool = False) -> None:
        self._database = Database(path, SCHEMA, synchronous="FULL", is_shared=is_shared)
        self._services: Mapping[str, Service] = {}
        self._settings_cors = CorsPolicy()

    def give_up(self) -> None:
        """See `Database.give_up`."""
        self._database.give_up()

    def open(self, seed: Seed) -> Snapshot:
        """Open, seed a new file, let what comes from the settings follow them. Blocking.

        Raises:
            StoreError: the file cannot be used, or UnreadableError what is in it; nothing is left open.
        """
        self._database.open()
        try:
            snapshot = self._database.submit(lambda connection: self._follow(connection, seed)).result()
        except BaseException:
            self._database.close()
            raise
        self._services, self._settings_cors = seed.services, seed.cors
        return snapshot

    async def preview(self, seed: Seed) -> Snapshot:
        """What `follow` will give; changes nothing."""
        return await self._database.read(lambda connection: _preview(connection, seed))

    async def follow(self, seed: Seed, expected: Snapshot | None = None) -> Snapshot:
        """The same on a reload: rules that nobody changed over the API follow the settings. See `apply`.

        Raises:
            StoreError: nothing was changed.
        """

        def work(connection: Connection) -> Snapshot:
            return _known(self._follow(connection, seed), expected)

        snapshot = await self._database.write(work)
        self._services, self._settings_cors = seed.services, seed.cors
        return snapshot

    @staticmethod
    def _follow(connection: Connection, seed: Seed) -> Snapshot:
        if current_revision(connection) == 0:
            routes = seed_routes(seed.services, seed.now)
            for route in routes:
                _store(connection, "route", route)
            for rule in seed.rules:
                _store(connection, "rule", rule)
            document = {"routes": [to_json(route) for route in routes], "rules": [to_json(rule) for rule in seed.rules]}
            _record(connection, Change("seed", "database", None, "settings", "", seed.now), None, document)
        before = load_snapshot(connection, seed.services, seed.cors)
        for change in _following(before, seed):
            _apply(connection, change, None)
        return load_snapshot(connection, seed.services, seed.cors)

    def _load(self, connection: Connection) -> Snapshot:
        return load_snapshot(connection, self._services, self._settings_cors)

    async def apply(self, change: Change, expected: Snapshot | None = None) -> Snapshot:
        """One change, one transaction, one revision; the snapshot that now holds: `expected` itself, if it is that one.

        Raises:
            StoreError: nothing was changed.
        """

        def work(connection: Connection) -> Snapshot:
            _apply(connection, change, self._settings_cors)
            return _known(self._load(connection), expected)

        return await self._database.write(work)

    @property
    def is_shared(self) -> bool:
        return self._database.is_shared

    def turn(self) -> AbstractAsyncContextManager[None]:
        """While in it, nobody else changes the configuration, in any process; one at a time. Raises StoreError."""
        return self._database.turn()

    async def load(self) -> Snapshot:
        """What now holds. Raises UnreadableError, StoreError."""
        return await self._database.read(self._load)

    async def current_revision(self) -> int:
        return await self._database.read(current_revision)

    async def revisions(self, limit: int, before: int | None = None) -> list[Revision]:
        """The newest first, below number `before`."""
        query = f"SELECT {_REVISION} FROM revision WHERE number < ? ORDER BY number DESC LIMIT ?"  # noqa: S608 - ours
        below = before if before is not None else 1 << 62
        return await self._database.read(lambda connection: _revisions_of(connection, query, (below, limit)))

    async def revision(self, number: int) -> Revision | None:
        query = f"SELECT {_REVISION} FROM revision WHERE number = ?"  # noqa: S608 - ours
        found = await self._database.read(lambda connection: _revisions_of(connection, query, (number,)))
        return found[0] if found else None

    def close(self) -> None:
        self._database.close()


def current_revision(connection: Connection) -> int:
    return int(first_row(connection, "SELECT coalesce(max(number), 0) FROM revision")[0])


def _known(snapshot: Snapshot, expected: Snapshot | None) -> Snapshot:
    """Here, in the database's thread, and not where everybody is served: of thousands of routes it takes a while."""
    return snapshot if expected is None or snapshot != expected else expected


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


def _following(snapshot: Snapshot, seed: Seed) -> list[Change]:
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


def _seeded(seed: Seed) -> Snapshot:
    return Snapshot(0, seed_routes(seed.services, seed.now), seed.rules, seed.cors, seed.services)


def _preview(connection: Connection, seed: Seed) -> Snapshot:
    if current_revision(connection) == 0:
        return _seeded(seed)
    snapshot = load_snapshot(connection, seed.services, seed.cors)
    for change in _following(snapshot, seed):
        snapshot = with_change(snapshot, change)
    return snapshot


def snapshot_at_rest(path: str, seed: Seed) -> Snapshot:
    """What a gateway would start with, without writing: for `routes`, `explain` and `--check`.

    Raises:
        StoreError: the file is there but cannot be used.
    """
    if not at_rest.is_there(path):
        return _seeded(seed)
    return at_rest.peek(path, SCHEMA, lambda connection: _preview(connection, seed))


def _apply(connection: Connection, change: Change, settings_cors: CorsPolicy | None) -> None:
    before = _fetch(connection, change.kind, change.subject)
    if before is None and change.kind == "cors":
        before = settings_cors
    if change.after is None:
        table = {"route": "route_config", "rule": "rate_limit_rule"}[change.kind]
        connection.execute(f"DELETE FROM {table} WHERE id = ?", (change.subject,))  # noqa: S608 - from the table above
    else:
        _store(connection, change.kind, change.after)
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


def _store(connection: Connection, kind: str, value: Value) -> None:
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


def _revisions_of(connection: Connection, query: str, values: tuple[int, ...]) -> list[Revision]:
    rows = connection.execute(query, values).fetchall()
    return [_decoded(connection, f"revision {row[0]}", _revision_of, row) for row in rows]


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
