"""What GET /logs asks, as a query of the log's tables, and its pages.

A cursor is the id of the last row shown: the page after it costs the same however deep it is.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

from engadi_gateway.errors import IS_ERROR_SQL
from engadi_gateway.store.database import Connection
from engadi_gateway.store.find import Query, find
from engadi_gateway.store.kinds import KIND
from engadi_gateway.store.segments import COLUMNS

ERRORS = Query(of_kind=(IS_ERROR_SQL,))


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What GET /logs asks for; None: not asked.

    Attributes:
        path: with a last `/*`, that path and all below it.
        status_class: 5 is 500 to 599.
        min_response_time_ms: what took so long, or longer.
        start_ms, end_ms: in epoch ms, both inclusive.
        cursor: as a page gave it.
    """

    method: str | None = None
    path: str | None = None
    target_service: str | None = None
    user_id: str | None = None
    client_ip: str | None = None
    request_id: str | None = None
    status_code: int | None = None
    status_class: int | None = None
    reason: str | None = None
    route_id: str | None = None
    min_response_time_ms: int | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    limit: int = 100
    offset: int = 0
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class LogPage:
    """Rows as JSON objects, newest first; `next_cursor` None at the end."""

    items: list[dict[str, Any]]
    next_cursor: str | None


def take(connection: Connection, query: Query, skip: int, count: int) -> list[tuple[Any, ...]]:
    """So many rows that fit, newest first, after the first `skip` of them."""
    with contextlib.closing(find(connection, query)) as rows:
        return list(itertools.islice(rows, skip, skip + count))


#: Filters that compare a column for equality.
_EQUAL = ("method", "path", "target_service", "user_id", "client_ip", "request_id", "status_code", "route_id")
_EQUAL_BUT_PATH = tuple(name for name in _EQUAL if name != "path")


def query_of(wanted: LogFilter) -> Query:
    """The query for the filter; ValueError: its cursor is none of ours."""
    own: dict[str, tuple[Any, ...]] = {}
    of_kind: dict[str, tuple[Any, ...]] = {}
    path = wanted.path or ""
    below_path = path[:-2] if path.endswith("/*") else None
    for name in _EQUAL if below_path is None else _EQUAL_BUT_PATH:
        value = getattr(wanted, name)
        if value is not None:
            (of_kind if name in KIND else own)[f"{name} = ?"] = (value,)
    if wanted.status_class is not None:
        of_kind["status_code BETWEEN ? AND ?"] = (wanted.status_class * 100, wanted.status_class * 100 + 99)
    if wanted.reason is not None:  # auth_invalid.expired is one of auth_invalid
        of_kind["(reason = ? OR reason GLOB ?)"] = (wanted.reason, f"{wanted.reason}.*")
    return Query(
        tuple(own),
        tuple(itertools.chain.from_iterable(own.values())),
        tuple(of_kind),
        tuple(itertools.chain.from_iterable(of_kind.values())),
        0 if wanted.start_ms is None else wanted.start_ms,
        1 << 62 if wanted.end_ms is None else wanted.end_ms,
        1 << 62 if wanted.cursor is None else id_of(wanted.cursor),
        below_path,
        wanted.min_response_time_ms,
    )


def cursor_of(row_id: int) -> str:
    """The cursor for what is older than that row."""
    return base64.urlsafe_b64encode(json.dumps([row_id]).encode()).decode("ascii").rstrip("=")


def id_of(cursor: str) -> int:
    """The id in a cursor; ValueError: it is none of ours."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        (row_id,) = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError):
        raise ValueError("not a cursor of this API") from None
    if not isinstance(row_id, int) or isinstance(row_id, bool) or not 0 <= row_id < 1 << 62:
        raise ValueError("not a cursor of this API")
    return row_id


def as_json(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row (`COLUMNS`) as the API shows it."""
    document = dict(zip(COLUMNS, row, strict=True))
    created = document["created_at"]
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created // 1000))
    document["created_at"] = f"{text}.{created % 1000:03d}Z"
    return document
