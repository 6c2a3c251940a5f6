"""The configuration's database: seeds, changes, revisions, and what follows the settings."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engadi_gateway.model import (
    CorsPolicy,
    LimitMode,
    LimitType,
    Origin,
    RateLimitRule,
    Revision,
    Route,
    Service,
    Snapshot,
    SplitTarget,
)
from engadi_gateway.store.catalog import Catalog, snapshot_at_rest
from engadi_gateway.store.catalog_tables import UnreadableError
from engadi_gateway.store.changes import Change, Seed, Value, seed_routes, with_change
from engadi_gateway.store.codec import ROUTE_FIELDS, RULE_FIELDS, to_json
from engadi_gateway.store.errors import CorruptError, StoreError

NOW = "2026-01-02T03:04:05.678Z"
LATER = "2026-02-03T04:05:06.789Z"
SERVICES = {name: Service(name, f"http://{name}:80") for name in ("auth", "content")}
PER_USER = RateLimitRule("r-user", "per_user", LimitType.PER_USER, 1000, 3600, origin=Origin.SETTINGS, created_at=NOW)
PER_IP = RateLimitRule("r-ip", "per_ip", LimitType.PER_IP, 500, 3600, origin=Origin.SETTINGS, created_at=NOW)
SEED = Seed(SERVICES, (PER_USER, PER_IP), CorsPolicy(enabled=True, allow_origins=("https://a.example",)), NOW)

ROUTE = Route(
    id="x",
    path_pattern="/shop/{id}/*",
    target_service="content",
    target_url="https://shop.example:8443/base",
    methods=("GET", "POST"),
    host="*.example",
    is_public=True,
    is_active=False,
    priority=-7,
    timeout=2.5,
    retry_count=0,
    circuit_breaker_enabled=False,
    strip_prefix=True,
    preserve_host=True,
    allow_encoded_slashes=True,
    required_roles=("editor", "admin"),
    split=(SplitTarget("content", "http://a", 3), SplitTarget("auth", "", 1)),
    created_at=NOW,
    updated_at=LATER,
)
RULE = RateLimitRule("y", "few", LimitType.PER_ENDPOINT, 3, 7, "/a/*", LimitMode.OBSERVE, False, Origin.API, NOW, LATER)
POLICY = CorsPolicy(True, ("https://b.example",), ("GET",), ("X-A",), ("X-B",), True, 60, True, Origin.API)


@contextlib.contextmanager
def opened(folder: Path, seed: Seed = SEED) -> Iterator[tuple[Catalog, Snapshot]]:
    catalog = Catalog(str(folder / "config.db"))
    snapshot = catalog.open(seed)
    try:
        yield catalog, snapshot
    finally:
        catalog.close()


def change(kind: str, after: Value | None, subject: str = "") -> Change:
    subject = subject or (after.id if isinstance(after, Route | RateLimitRule) else "cors")
    return Change(kind, subject, after, "alice", "req-1", LATER)


def run(catalog: Catalog, *changes: Change) -> Snapshot:
    async def apply() -> Snapshot:
        for one in changes:
            await catalog.apply(one)
        return await catalog.load()

    return asyncio.run(apply())


def revisions(catalog: Catalog, limit: int = 100, before: int | None = None) -> list[Revision]:
    return asyncio.run(catalog.revisions(limit, before))


# a new database


def test_a_new_database_has_a_route_a_service_and_only_auth_is_public(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, snapshot):
        routes = {route.target_service: route for route in snapshot.routes}
    assert {name: (route.path_pattern, route.is_public) for name, route in routes.items()} == {
        "auth": ("/api/v1/auth/*", True),
        "content": ("/api/v1/content/*", False),
    }
    for route in routes.values():
        plain = Route(route.id, route.path_pattern, route.target_service, is_public=route.is_public)
        assert route == replace(plain, created_at=NOW, updated_at=NOW)


def test_a_new_database_has_what_the_settings_say(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, snapshot):
        assert snapshot == Snapshot(
            1,
            tuple(sorted(seed_routes(SERVICES, NOW), key=lambda route: route.id)),
            (PER_IP, PER_USER),
            SEED.cors,
            SERVICES,
        )
        (revision,) = revisions(catalog)
    assert (revision.number, revision.actor, revision.created_at, revision.kind) == (1, "settings", NOW, "seed")
    assert revision.before is None
    assert revision.after == {
        "routes": [to_json(route) for route in seed_routes(SERVICES, NOW)],
        "rules": [to_json(PER_USER), to_json(PER_IP)],
    }


def test_every_field_is_a_column(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "config.db")) as connection:
        for table, names in (("route_config", ROUTE_FIELDS), ("rate_limit_rule", RULE_FIELDS)):
            rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
            assert {row[1] for row in rows} == set(names)
        tables = connection.execute("PRAGMA table_list").fetchall()
        assert {row[1]: row[5] for row in tables if not row[1].startswith("sqlite_")} == {
            "route_config": 1,
            "rate_limit_rule": 1,
            "cors_policy": 1,
            "revision": 1,
        }, "all of them STRICT"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE route_config SET is_public = 2",
        "UPDATE route_config SET priority = 'high'",
        "UPDATE route_config SET target_service = NULL",
        "UPDATE rate_limit_rule SET limit_type = 'per_thing'",
        "UPDATE rate_limit_rule SET max_requests = 0",
        "UPDATE rate_limit_rule SET window_seconds = -1",
        "UPDATE rate_limit_rule SET mode = 'sometimes'",
        "UPDATE rate_limit_rule SET name = 'same'",
        "INSERT INTO cors_policy VALUES (2, '{}')",
    ],
)
def test_the_tables_refuse_nonsense(tmp_path: Path, statement: str) -> None:
    with opened(tmp_path):
        pass
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "config.db")) as connection,
        pytest.raises(sqlite3.IntegrityError),
    ):
        connection.execute(statement)


# changes

AUTH_ID = seed_routes(SERVICES, NOW)[0].id
AUTH = seed_routes(SERVICES, NOW)[0]


@pytest.mark.parametrize(
    ("wanted", "before", "after"),
    [
        (change("route", ROUTE), None, ROUTE),
        (change("route", replace(AUTH, priority=9)), AUTH, replace(AUTH, priority=9)),
        (change("route", None, AUTH_ID), AUTH, None),
        (change("rule", RULE), None, RULE),
        (change("rule", replace(PER_IP, max_requests=1, origin=Origin.API)), PER_IP,
         replace(PER_IP, max_requests=1, origin=Origin.API)),
        (change("rule", None, PER_IP.id), PER_IP, None),
        (change("cors", POLICY), SEED.cors, POLICY),
    ],
    ids=["new route", "changed route", "route gone", "new rule", "changed rule", "rule gone", "policy"],
)  # fmt: skip
def test_a_change_is_a_row_and_a_revision_with_whole_values(
    tmp_path: Path, wanted: Change, before: Value | None, after: Value | None
) -> None:
    with opened(tmp_path) as (catalog, old):
        applied = asyncio.run(catalog.apply(wanted))
        assert applied == with_change(old, wanted) == run(catalog)
        assert applied != old
        assert asyncio.run(catalog.current_revision()) == applied.revision == 2
        newest = revisions(catalog)[0]
    assert newest == Revision(
        2,
        "alice",
        LATER,
        wanted.kind,
        wanted.subject,
        None if before is None else to_json(before),
        None if after is None else to_json(after),
        wanted.request_id,
    )
    with opened(tmp_path) as (_, reopened):
        assert reopened == applied


NAMES = st.sampled_from("abc")
CHANGES = st.one_of(
    st.builds(lambda name, text, priority: change("route", Route(name, text, "s", priority=priority)),
              NAMES, st.text(max_size=5), st.integers(-5, 5)),
    st.builds(lambda name, amount: change("rule", RateLimitRule(name, name, LimitType.GLOBAL, amount, 1)),
              NAMES, st.integers(1, 9)),
    st.builds(lambda kind, name: change(kind, None, name), st.sampled_from(["route", "rule"]), NAMES),
    st.builds(lambda age: change("cors", CorsPolicy(max_age=age)), st.integers(0, 9)),
)  # fmt: skip


def test_what_was_expected_is_given_back_itself_where_it_holds(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, snapshot):
        wanted = change("rule", RULE)
        expected = with_change(snapshot, wanted)
        assert asyncio.run(catalog.apply(wanted, expected)) is expected
        assert asyncio.run(catalog.follow(SEED, expected)) is expected
        assert asyncio.run(catalog.apply(wanted, expected)) == with_change(expected, wanted)


@settings(max_examples=25)
@given(st.lists(CHANGES, max_size=12))
def test_what_is_computed_is_what_is_kept(changes: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with opened(Path(folder)) as (catalog, snapshot):
            expected = snapshot
            for wanted in changes:
                expected = with_change(expected, wanted)
                assert asyncio.run(catalog.apply(wanted)) == expected
            history = revisions(catalog)
        with opened(Path(folder)) as (_, reopened):
            assert reopened == expected
    assert [revision.number for revision in history] == list(range(len(changes) + 1, 0, -1))
    last: dict[tuple[str, str], object] = {}
    for revision in reversed(history[:-1]):  # each begins where the one before it ended
        key = (revision.kind, revision.subject)
        assert key not in last or last[key] == revision.before
        last[key] = revision.after


@pytest.mark.parametrize(
    ("trouble", "wanted"),
    [
        ("CREATE TRIGGER t BEFORE INSERT ON revision BEGIN SELECT raise(ABORT, 'no'); END", change("route", ROUTE)),
        ("CREATE TRIGGER t BEFORE INSERT ON revision BEGIN SELECT raise(ABORT, 'no'); END",
         change("rule", None, PER_IP.id)),
        ("CREATE TRIGGER t BEFORE INSERT ON revision BEGIN SELECT raise(ABORT, 'no'); END", change("cors", POLICY)),
        ("SELECT 1", change("rule", replace(RULE, name=PER_IP.name))),
        ("SELECT 1", change("rule", replace(PER_USER, name=PER_IP.name))),
    ],
    ids=["route", "rule", "policy", "a new rule with another's name", "a rule takes another's name"],
)  # fmt: skip
def test_a_change_that_cannot_be_kept_changes_nothing(tmp_path: Path, trouble: str, wanted: Change) -> None:
    with opened(tmp_path) as (catalog, before):
        catalog._database.submit(lambda connection: connection.execute(trouble).fetchall()).result()
        with pytest.raises(StoreError):
            asyncio.run(catalog.apply(wanted))
        assert run(catalog) == before
        assert len(revisions(catalog)) == 1


def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, before):
        catalog._database.submit(lambda con: con.execute("PRAGMA max_page_count=1").fetchall()).result()
        with pytest.raises(StoreError, match="full"):
            run(catalog, change("route", replace(ROUTE, path_pattern="/x" * 20_000)))
        assert run(catalog) == before
        assert len(revisions(catalog)) == 1


# revisions


def test_revisions_come_newest_first_in_pages(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, _):
        run(catalog, *(change("route", replace(ROUTE, priority=number)) for number in range(2, 8)))
        assert [revision.number for revision in revisions(catalog, 3)] == [7, 6, 5]
        assert [revision.number for revision in revisions(catalog, 3, 5)] == [4, 3, 2]
        assert [revision.number for revision in revisions(catalog, 3, 2)] == [1]
        assert revisions(catalog, 3, 1) == []
        assert asyncio.run(catalog.revision(4)) == revisions(catalog, 1, 5)[0]
        assert asyncio.run(catalog.revision(8)) is None


# what follows the settings


def seed_with(*, user: int = 1000, window: int = 3600, **fields: Any) -> Seed:
    rule = replace(PER_USER, max_requests=user, window_seconds=window)
    return replace(SEED, rules=(rule, PER_IP), now=LATER, **fields)


def rule_of(snapshot: Snapshot, rule_id: str) -> RateLimitRule | None:
    return next((rule for rule in snapshot.rules if rule.id == rule_id), None)


def test_opening_again_with_the_same_settings_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, first):
        pass
    with opened(tmp_path, replace(SEED, now=LATER)) as (_, second):
        assert second == first


def test_a_rule_of_the_settings_follows_them_as_a_new_revision(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with opened(tmp_path, seed_with(user=7, window=60)) as (catalog, snapshot):
        followed = replace(PER_USER, max_requests=7, window_seconds=60, updated_at=LATER)
        assert (snapshot.revision, snapshot.rules) == (2, (PER_IP, followed))
        assert revisions(catalog)[0] == Revision(
            2, "settings", LATER, "rule", PER_USER.id, to_json(PER_USER), to_json(followed)
        )


def test_a_rule_changed_over_the_api_stays_as_it_was_made(tmp_path: Path) -> None:
    changed = replace(PER_USER, max_requests=3, origin=Origin.API)
    with opened(tmp_path) as (catalog, _):
        run(catalog, change("rule", changed))
    with opened(tmp_path, seed_with(user=7)) as (_, snapshot):
        assert (snapshot.revision, rule_of(snapshot, PER_USER.id)) == (2, changed)


def test_what_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, _):
        run(catalog, change("rule", None, PER_USER.id), change("route", None, AUTH_ID))
    with opened(tmp_path, seed_with(user=7)) as (_, snapshot):
        assert (snapshot.revision, rule_of(snapshot, PER_USER.id)) == (3, None)
        assert AUTH_ID not in {route.id for route in snapshot.routes}


def test_once_made_the_database_rules_over_new_services(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, before):
        pass
    services = {**SERVICES, "search": Service("search", "http://s")}
    with opened(tmp_path, replace(SEED, services=services)) as (_, snapshot):
        assert (snapshot.routes, snapshot.revision) == (before.routes, 1)
        assert snapshot.services == services


def test_cors_is_the_settings_until_the_api_made_its_own(tmp_path: Path) -> None:
    other = CorsPolicy(max_age=1)
    with opened(tmp_path):
        pass
    with opened(tmp_path, replace(SEED, cors=other)) as (catalog, snapshot):
        assert (snapshot.cors, snapshot.revision) == (other, 1)
        run(catalog, change("cors", POLICY))
    with opened(tmp_path) as (_, snapshot):
        assert (snapshot.cors, snapshot.revision) == (POLICY, 2)


def test_what_would_follow_is_seen_without_writing(tmp_path: Path) -> None:
    seed = seed_with(user=7, cors=POLICY)
    with opened(tmp_path) as (catalog, _):
        before = run(catalog)
        seen = asyncio.run(catalog.preview(seed))
        assert run(catalog) == before
    assert snapshot_at_rest(str(tmp_path / "config.db"), seed) == seen
    with opened(tmp_path, seed) as (_, followed):
        assert followed == seen
        rule = rule_of(seen, PER_USER.id)
        assert (seen.revision, rule is not None and rule.max_requests) == (before.revision + 1, 7)


def test_a_reload_follows_as_opening_does(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, _):
        followed = asyncio.run(catalog.follow(seed_with(user=9, cors=POLICY, services={"auth": SERVICES["auth"]})))
        assert (followed.revision, followed.cors, list(followed.services)) == (2, POLICY, ["auth"])
        rule = rule_of(followed, PER_USER.id)
        assert rule is not None
        assert rule.max_requests == 9
        assert run(catalog) == followed, "later questions are answered with the new settings"


# at rest and broken


def test_without_a_file_or_with_an_empty_one_it_is_the_seed(tmp_path: Path) -> None:
    snapshot = snapshot_at_rest(str(tmp_path / "config.db"), SEED)
    (tmp_path / "config.db").touch()
    assert snapshot_at_rest(str(tmp_path / "config.db"), SEED) == snapshot
    with opened(tmp_path) as (_, real):
        assert {route.id: route for route in snapshot.routes} == {route.id: route for route in real.routes}
        assert (set(snapshot.rules), snapshot.cors, snapshot.services) == (set(real.rules), real.cors, real.services)
    assert snapshot.revision == 0


def test_at_rest_it_is_what_was_last_kept_and_nothing_is_written(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, _):
        kept = run(catalog, change("route", ROUTE), change("cors", POLICY))
    path = tmp_path / "config.db"
    before = path.read_bytes()
    assert snapshot_at_rest(str(path), SEED) == kept
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.db", "config.db.lock"]


def test_a_damaged_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    with opened(tmp_path):
        pass
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * 8192)
    before = path.read_bytes()
    with pytest.raises(CorruptError):
        Catalog(str(path)).open(SEED)
    with pytest.raises(StoreError):
        snapshot_at_rest(str(path), SEED)
    assert path.read_bytes() == before


def test_a_seed_that_cannot_be_kept_leaves_nothing_open(tmp_path: Path) -> None:
    twice = replace(SEED, rules=(PER_IP, replace(PER_USER, name=PER_IP.name)))
    catalog = Catalog(str(tmp_path / "config.db"))
    with pytest.raises(StoreError):
        catalog.open(twice)
    with pytest.raises(StoreError, match="closed"):
        asyncio.run(catalog.load())
    with opened(tmp_path) as (_, snapshot):
        assert snapshot.revision == 1, "and nothing half seeded"


UNREADABLE = {
    "half a list": ("UPDATE route_config SET methods = '[GET'", f"route {AUTH_ID}"),
    "a field more in a split": (
        """UPDATE route_config SET split = '[{"target_service": "auth", "zone": "b"}]'""",
        f"route {AUTH_ID}",
    ),
    "too deep": (f"UPDATE route_config SET split = '{'[' * 200_000}'", f"route {AUTH_ID}"),
    "a field more in the policy": (
        """INSERT INTO cors_policy VALUES (1, '{"allow_private_network": true}')""",
        "the CORS policy",
    ),
    "no policy": ("INSERT INTO cors_policy VALUES (1, '[]')", "the CORS policy"),
}


@pytest.mark.parametrize(("statement", "what"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_this_version_cannot_read_is_a_store_error_that_names_it(
    tmp_path: Path, statement: str, what: str
) -> None:
    seed = replace(SEED, services={"auth": SERVICES["auth"]})
    path = tmp_path / "config.db"
    said = f"{path}: this version cannot read {what}$"
    with opened(tmp_path, seed) as (catalog, _):
        catalog._database.submit(lambda connection: connection.execute(statement)).result()
        for asked in (catalog.load(), catalog.preview(seed), catalog.follow(seed), catalog.apply(change("rule", RULE))):
            with pytest.raises(UnreadableError, match=said):
                asyncio.run(asked)
        assert asyncio.run(catalog.current_revision()) == 1, "nothing was changed"
    with pytest.raises(UnreadableError, match=said):
        snapshot_at_rest(str(path), seed)
    again = Catalog(str(path))
    with pytest.raises(UnreadableError, match=said):
        again.open(seed)
    with pytest.raises(StoreError, match="closed"):
        asyncio.run(again.load())


def test_a_revision_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as (catalog, _):
        run(catalog, change("route", ROUTE))
        statement = "UPDATE revision SET after = '{' WHERE number = 2"
        catalog._database.submit(lambda connection: connection.execute(statement)).result()
        for asked in (catalog.revisions(5), catalog.revision(2)):
            with pytest.raises(UnreadableError, match=r"cannot read revision 2$"):
                asyncio.run(asked)
        assert [revision.number for revision in revisions(catalog, 5, before=2)] == [1]
