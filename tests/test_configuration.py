"""How a configuration takes the place of another: compiled, kept, swapped; and nothing where one of these fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engadi_gateway.errors import Reason, RefusedError
from engadi_gateway.gateway.compiler import Compiled, Compiler, State
from engadi_gateway.gateway.configuration import Configuration
from engadi_gateway.model import Route
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.changes import Change
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.seed import seed_of
from tests.harness import settings_for

NOW = "2026-01-01T00:00:00Z"
ROUTE = Route("6f1b7a52-0000-4000-8000-000000000000", "/made/*", "auth", created_at=NOW, updated_at=NOW)
SERVICES = {"auth": "http://127.0.0.1:1"}


def change(route: Route = ROUTE) -> Change:
    return Change("route", route.id, route, "alice", "req", NOW)


def with_configuration(
    folder: Path, session: Callable[[Configuration, Catalog, list[Compiled]], Awaitable[None]]
) -> None:
    """Run `session` with a configuration, its catalog, and what was served after the first."""

    async def run() -> None:
        settings = settings_for(folder, SERVICES)
        catalog = Catalog(settings.database_url)
        snapshot = catalog.open(seed_of(settings, NOW))
        served: list[Compiled] = []
        try:
            compiler = Compiler(settings, State.of(settings))
            await session(Configuration(catalog, snapshot, compiler, served.append), catalog, served)
        finally:
            await asyncio.to_thread(catalog.close)

    asyncio.run(run())


def test_what_is_written_is_kept_and_served_whole(tmp_path: Path) -> None:
    async def session(configuration: Configuration, catalog: Catalog, served: list[Compiled]) -> None:
        async with configuration.writing():
            snapshot = await configuration.change(change())
        assert served == [configuration.compiled]
        assert configuration.snapshot is snapshot
        assert (snapshot.revision, ROUTE in snapshot.routes) == (2, True)
        assert await catalog.load() == snapshot
        assert ROUTE in served[0].ways.table.ordered()

    with_configuration(tmp_path, session)


def test_what_cannot_be_served_is_not_written(tmp_path: Path) -> None:
    async def session(configuration: Configuration, catalog: Catalog, served: list[Compiled]) -> None:
        twin = replace(ROUTE, path_pattern="/api/v1/auth/*")
        before = configuration.compiled
        for attempt in (configuration.change, configuration.rehearse):
            async with configuration.writing():
                with pytest.raises(RefusedError) as caught:
                    await attempt(change(twin))
            assert caught.value.refusal.reason is Reason.CONFLICT
        assert (configuration.compiled is before, served, await catalog.current_revision()) == (True, [], 1)

    with_configuration(tmp_path, session)


def test_what_cannot_be_written_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def session(configuration: Configuration, catalog: Catalog, served: list[Compiled]) -> None:
        async def fail(*_: object) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(catalog, "apply", fail)
        async with configuration.writing():
            with pytest.raises(RefusedError) as caught:
                await configuration.change(change())
        assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
        assert (served, configuration.snapshot.revision) == ([], 1)

    with_configuration(tmp_path, session)


def test_a_rehearsal_changes_nothing(tmp_path: Path) -> None:
    async def session(configuration: Configuration, catalog: Catalog, served: list[Compiled]) -> None:
        await configuration.rehearse(change())
        assert (served, configuration.snapshot.revision, await catalog.current_revision()) == ([], 1, 1)

    with_configuration(tmp_path, session)


def test_what_was_kept_is_served_where_it_is_not_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a column holds less than the value did: a restart would serve that too."""

    async def session(configuration: Configuration, catalog: Catalog, served: list[Compiled]) -> None:
        apply = catalog.apply

        async def apply_and_load(change: Change, *_: object) -> object:
            return replace(await apply(change), revision=7)

        monkeypatch.setattr(catalog, "apply", apply_and_load)
        async with configuration.writing():
            assert (await configuration.change(change())).revision == 7
        assert [one.snapshot.revision for one in served] == [7]

    with_configuration(tmp_path, session)


def test_what_other_settings_make_of_it_is_served_when_it_is_taken(tmp_path: Path) -> None:
    async def session(configuration: Configuration, catalog: Catalog, served: list[Compiled]) -> None:
        settings = settings_for(tmp_path, SERVICES, limits_per_user=7)
        compiler = Compiler(settings, State.of(settings))
        async with configuration.held():
            compiled = await configuration.followed(seed_of(settings, NOW), compiler)
            assert (served, await catalog.current_revision()) == ([], 2), "kept, and not served yet"
            configuration.take(compiled, compiler)
        assert served == [compiled]
        assert 7 in {rule.max_requests for rule in configuration.snapshot.rules}
        await configuration.rehearse(change())
        assert configuration.compiler is compiler

    with_configuration(tmp_path, session)


def test_rules_that_follow_the_settings_are_a_line_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def session(configuration: Configuration, catalog: Catalog, served: list[Compiled]) -> None:
        for per_user in (7, 7, 8):
            settings = settings_for(tmp_path, SERVICES, limits_per_user=per_user)
            compiler = Compiler(settings, State.of(settings))
            async with configuration.held():
                configuration.take(await configuration.followed(seed_of(settings, NOW), compiler), compiler)

    with caplog.at_level(logging.INFO, "engadi"):
        with_configuration(tmp_path, session)
    said = "configuration revision %d: rules written by the settings"
    assert [message for message in caplog.messages if "revision" in message] == [said % 2, said % 3]
