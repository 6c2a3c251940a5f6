"""What many rows of the log have in common stands once beside them: a table's kinds, and who remembers them."""

from __future__ import annotations

from typing import Any

from engadi_gateway.store.database import Connection

#: What makes a row's kind. Paths, people and addresses would make more kinds than it saves rows.
KIND = ("method", "target_service", "status_code", "error_message", "reason", "route_id", "attempts", "revision")
#: Strangers choose methods: so many kinds are remembered, others may stand there twice, which harms nobody; and so many
#: are read from the table by who remembers none.
_MOST_KINDS = 16_384
_READ_KINDS = 1000
_OF_KIND = """(
    kind INTEGER PRIMARY KEY, method TEXT NOT NULL, target_service TEXT, status_code INTEGER NOT NULL,
    error_message TEXT, reason TEXT NOT NULL, route_id TEXT, attempts INTEGER NOT NULL, revision INTEGER NOT NULL,
    row_count INTEGER NOT NULL DEFAULT 0
) STRICT"""
_MESSAGE = KIND.index("error_message")


def kind_table(number: int) -> str:
    return f"log_kind_{number}"


def create_kinds(connection: Connection, number: int) -> None:
    """Make the kinds' table of that number."""
    connection.execute(f"CREATE TABLE {kind_table(number)} {_OF_KIND}")


class KnownKinds:
    """Kinds of the open table, remembered from one batch to the next: with thousands of routes there are thousands.

    What a transaction has added is there only once that is committed: `forget` when it fails. Not for several
    processes over the same file.
    """

    def __init__(self) -> None:
        self._kinds: Kinds | None = None

    def forget(self) -> None:
        self._kinds = None

    def of(self, connection: Connection, number: int) -> Kinds:
        known = self._kinds
        if known is None or known.number != number or known.connection is not connection or len(known) > _MOST_KINDS:
            known = self._kinds = Kinds(connection, number)
        return known


class Kinds(dict[tuple[Any, ...], int]):
    """The numbers of a table's kinds; one that it has not gets the next number, and is added by `store`."""

    def __init__(self, connection: Connection, number: int) -> None:
        names = ", ".join(KIND)
        newest = f"SELECT kind, {names} FROM {kind_table(number)} ORDER BY kind DESC LIMIT {_READ_KINDS}"  # noqa: S608
        super().__init__((row[1:], row[0]) for row in connection.execute(newest))
        self.connection = connection
        self.number = number
        self._insert = f"INSERT INTO {kind_table(number)} (kind, {names}) VALUES (?{', ?' * len(KIND)})"  # noqa: S608 - ours
        self._newest = max(self.values(), default=0)
        self._added: list[tuple[Any, ...]] = []

    def __missing__(self, kind: tuple[Any, ...]) -> int:
        if kind[_MESSAGE] == "":
            number = self[*kind[:_MESSAGE], None, *kind[_MESSAGE + 1 :]]
        else:
            number = self._newest = self._newest + 1
            self._added.append((number, *kind))
        self[kind] = number
        return number

    def store(self) -> None:
        """Put those that were missing into the table: together, for one by one each takes three times as long."""
        if self._added:
            self.connection.executemany(self._insert, self._added)
            self._added.clear()
