"""The configuration: routes, rules, CORS, and every revision of them, whole.

Every write is one transaction: the row and revision N+1 with the value before and after. The catalog knows nothing of
what a value means; who calls it has compiled the result first.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from engadi_gateway.model import CorsPolicy, Revision, Service, Snapshot
from engadi_gateway.store import at_rest
from engadi_gateway.store import catalog_tables as tables
from engadi_gateway.store.changes import Change, Seed, following, seeded, with_change
from engadi_gateway.store.database import Connection
from engadi_gateway.store.in_use import Database


class Catalog:
    """The configuration's database; `is_shared`: other processes write to it too."""

    def __init__(self, path: str, *, is_shared: bool = False) -> None:
        self._database = Database(path, tables.SCHEMA, synchronous="FULL", is_shared=is_shared)
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
        if tables.current_revision(connection) == 0:
            tables.seed_tables(connection, seed)
        before = tables.load_snapshot(connection, seed.services, seed.cors)
        for change in following(before, seed):
            tables.apply(connection, change, None)
        return tables.load_snapshot(connection, seed.services, seed.cors)

    def _load(self, connection: Connection) -> Snapshot:
        return tables.load_snapshot(connection, self._services, self._settings_cors)

    async def apply(self, change: Change, expected: Snapshot | None = None) -> Snapshot:
        """One change, one transaction, one revision; the snapshot that now holds: `expected` itself, if it is that one.

        Raises:
            StoreError: nothing was changed.
        """

        def work(connection: Connection) -> Snapshot:
            tables.apply(connection, change, self._settings_cors)
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
        return await self._database.read(tables.current_revision)

    async def revisions(self, limit: int, before: int | None = None) -> list[Revision]:
        """The newest first, below number `before`."""
        below = before if before is not None else 1 << 62
        return await self._database.read(lambda connection: tables.revisions(connection, below, limit))

    async def revision(self, number: int) -> Revision | None:
        return await self._database.read(lambda connection: tables.revision(connection, number))

    def close(self) -> None:
        self._database.close()


def _known(snapshot: Snapshot, expected: Snapshot | None) -> Snapshot:
    """Here, in the database's thread, and not where everybody is served: of thousands of routes it takes a while."""
    return snapshot if expected is None or snapshot != expected else expected


def _preview(connection: Connection, seed: Seed) -> Snapshot:
    if tables.current_revision(connection) == 0:
        return seeded(seed)
    snapshot = tables.load_snapshot(connection, seed.services, seed.cors)
    for change in following(snapshot, seed):
        snapshot = with_change(snapshot, change)
    return snapshot


def snapshot_at_rest(path: str, seed: Seed) -> Snapshot:
    """What a gateway would start with, without writing: for `routes`, `explain` and `--check`.

    Raises:
        StoreError: the file is there but cannot be used.
    """
    if not at_rest.is_there(path):
        return seeded(seed)
    return at_rest.peek(path, tables.SCHEMA, lambda connection: _preview(connection, seed))
