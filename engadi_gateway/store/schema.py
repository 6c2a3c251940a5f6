"""What a database's tables are to be like: whether a file is ours, of which version, and the way to this one's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engadi_gateway.store.database import Connection, first_row, pragma, transaction
from engadi_gateway.store.errors import CorruptError, StoreError

#: SQL statements, or a function; each runs in a transaction of its own.
Migration = tuple[str, ...] | Callable[[Connection], None]


@dataclass(frozen=True, slots=True)
class Schema:
    """See the module.

    Args:
        application_id: written into the file, and checked.
        migrations: in order; the file's `user_version` counts those that were applied.
    """

    application_id: int
    migrations: Sequence[Migration]

    @property
    def newest(self) -> int:
        return len(self.migrations)

    def version_of(self, connection: Connection, path: str, *, is_all_read: bool) -> int:
        """The file's version; 0: it is empty. `is_all_read`: every page is looked at, so that it should be small.

        Raises:
            CorruptError: it is damaged. StoreError: it is of another application, or of a newer version.
        """
        if is_all_read and pragma(connection, "quick_check(1)") != "ok":
            raise CorruptError(f"{path}: the file is damaged (PRAGMA quick_check says more)")
        has_tables = first_row(connection, "SELECT count(*) FROM sqlite_schema")[0] > 0
        if has_tables and pragma(connection, "application_id") != self.application_id:
            raise StoreError(f"{path}: a database of another application")
        version = int(pragma(connection, "user_version"))
        if version > self.newest:
            raise StoreError(f"{path}: made by a newer version (schema {version}, this one knows {self.newest})")
        return version

    def bring_up_to_date(self, connection: Connection, version: int) -> None:
        """From that version on; what fails leaves those before it applied."""
        for number, migration in enumerate(self.migrations[version:], version + 1):
            self._migrate(connection, number, migration)

    def _migrate(self, connection: Connection, number: int, migration: Migration) -> None:
        with transaction(connection):
            if callable(migration):
                migration(connection)
            else:
                for statement in migration:
                    connection.execute(statement)
            pragma(connection, f"user_version={number}")
            pragma(connection, f"application_id={self.application_id}")


def back_up(connection: Connection, path: str, version: int) -> None:
    """Keep the file of that version beside it, before it is brought up to date. Raises OSError, sqlite3.Error."""
    copy = Path(f"{path}.schema-{version}")
    copy.unlink(missing_ok=True)
    copy.touch(0o600)  # VACUUM INTO takes an empty file, and would make a readable one
    connection.execute("VACUUM INTO ?", (str(copy),))
