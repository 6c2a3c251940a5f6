"""How the request log's tables came to have their kinds apart: the first schema, and the step from it."""

from __future__ import annotations

from engadi_gateway.model import LogRow
from engadi_gateway.store import segments
from engadi_gateway.store.database import Connection

_ROWS_AT_ONCE = 1000

FIRST_SCHEMA = (
    """CREATE TABLE log_segment (
        number INTEGER PRIMARY KEY, first_id INTEGER NOT NULL, last_id INTEGER NOT NULL, first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL, indexes INTEGER NOT NULL, is_dropped INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE gateway_log_1 (
        id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
        target_service TEXT, user_id TEXT, client_ip TEXT NOT NULL, status_code INTEGER NOT NULL,
        response_time REAL NOT NULL, error_message TEXT, created_at INTEGER NOT NULL, reason TEXT NOT NULL,
        route_id TEXT, attempts INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        upstream_time REAL, revision INTEGER NOT NULL
    ) STRICT""",
    "CREATE VIEW gateway_log AS SELECT * FROM gateway_log_1",
    "INSERT INTO log_segment VALUES (1, 1, 0, 0, 0, 0, 0)",
    # up to which id rows are in the statistics
    "CREATE TABLE log_summed (last_id INTEGER NOT NULL) STRICT",
    "INSERT INTO log_summed VALUES (0)",
)


def set_kinds_apart(connection: Connection) -> None:
    """Every table becomes two and a view of its name; indexes are made anew once the log is open."""
    connection.execute("DROP VIEW gateway_log")
    segment_rows = connection.execute("SELECT number, first_id FROM log_segment ORDER BY number").fetchall()
    for number, first_id in segment_rows:
        connection.execute(f"ALTER TABLE gateway_log_{number} RENAME TO whole")
        segments.create(connection, number)
        _copy(connection, number, first_id)
        connection.execute("DROP TABLE whole")
    connection.execute("ALTER TABLE log_segment ADD COLUMN begun_ms INTEGER NOT NULL DEFAULT 0")
    connection.execute("UPDATE log_segment SET indexes = 0, begun_ms = first_ms")
    segments.show(connection, segment_rows[-1][0])


def _copy(connection: Connection, number: int, first_id: int) -> None:
    rows = connection.execute(f"SELECT {', '.join(LogRow._fields)} FROM whole ORDER BY id")  # noqa: S608 - ours
    while batch := rows.fetchmany(_ROWS_AT_ONCE):
        segments.fill(connection, number, [LogRow._make(row) for row in batch], first_id=first_id)
        first_id += len(batch)
