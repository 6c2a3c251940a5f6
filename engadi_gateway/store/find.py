"""Questions to the log's tables: the rows that fit, newest first, each table by the index that finds them soonest."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from engadi_gateway.store.database import Connection, first_row
from engadi_gateway.store.kinds import kind_table
from engadi_gateway.store.segments import SHOWN, Segment, both, row_table, segments

#: Kinds that have more than this share of a table's rows are found soon without their index.
_FEW = 1 / 50


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows: SQL conditions with their values, bounds of time (epoch ms, both inclusive) and of the id.

    Attributes:
        conditions: equalities of what is a row's own, and indexed.
        of_kind: conditions of what is its kind's.
        below_path: that path, and those below it.
        took_ms: a response_time of at least so much.
    """

    conditions: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    of_kind: tuple[str, ...] = ()
    kind_values: tuple[Any, ...] = ()
    start_ms: int = 0
    end_ms: int = 1 << 62
    below_id: int = 1 << 62
    below_path: str | None = None
    took_ms: float | None = None


def find(connection: Connection, query: Query) -> Generator[tuple[Any, ...], None, None]:
    """The rows (`segments.COLUMNS`) that fit, newest first; a table is looked into when it is reached."""
    for segment in segments(connection):
        bounds = _bounds(segment, query)
        at_most = 0 if bounds is None else _count_of_kinds(connection, segment, query)
        if bounds is not None and at_most:
            with contextlib.closing(connection.execute(*_select(connection, segment, query, bounds, at_most))) as rows:
                yield from rows


def _bounds(segment: Segment, query: Query) -> dict[str, int] | None:
    """Conditions of time and id with their values; without those that all rows keep, None where none does."""
    bounds = (
        ("created_at >= ?", query.start_ms, query.start_ms <= segment.first_ms, query.start_ms > segment.last_ms),
        ("created_at <= ?", query.end_ms, query.end_ms >= segment.last_ms, query.end_ms < segment.first_ms),
        ("id < ?", query.below_id, query.below_id > segment.last_id, query.below_id <= segment.first_id),
    )
    if any(is_kept_by_none for *_, is_kept_by_none in bounds):
        return None
    return {condition: value for condition, value, is_kept_by_all, _ in bounds if not is_kept_by_all}


def _count_of_kinds(connection: Connection, segment: Segment, query: Query) -> int:
    """How many rows are of the kinds asked for; where nobody has counted yet: none, or all."""
    if not query.of_kind:
        return segment.rows
    kinds = f"SELECT count(*), total(row_count) FROM {_wanted_kinds(segment, query)}"  # noqa: S608 - ours
    count, rows = first_row(connection, kinds, query.kind_values)
    return int(rows) if segment.is_indexed else segment.rows * bool(count)


def _wanted_kinds(segment: Segment, query: Query) -> str:
    return f"{kind_table(segment.number)} WHERE {' AND '.join(query.of_kind)}"


def _select(
    connection: Connection, segment: Segment, query: Query, bounds: dict[str, int], at_most: int
) -> tuple[str, list[Any]]:
    """The statement for one table, of whose rows so many are of the kinds asked for."""
    hint = _hint(connection, segment, query, at_most)
    conditions, values = list(query.conditions), list(query.values)
    for column, condition, bounded in _ranges(query):
        is_told = hint.endswith(f"_{column}")
        conditions.append(condition.format(column if is_told else f"+{column}"))  # the sign keeps sqlite from the index
        values += bounded
    if query.of_kind:
        kind = "kind" if hint else "+kind"
        conditions.append(f"{kind} IN (SELECT kind FROM {_wanted_kinds(segment, query)})")  # noqa: S608 - ours
        values += query.kind_values
    where = f" WHERE {' AND '.join([*conditions, *bounds])}" if conditions or bounds else ""
    statement = f"SELECT {SHOWN} FROM {both(segment.number, hint)}{where} ORDER BY id DESC"  # noqa: S608 - ours
    return statement, [*values, *bounds.values()]


def _hint(connection: Connection, segment: Segment, query: Query, at_most: int) -> str:
    """Which index is told to sqlite, by numbers that it does not have; "": its choice among those of equalities.

    The one that fewest rows are found by; where all find many, the newest that fit are met soon on the way back.
    """
    few = int(segment.rows * _FEW)
    is_rare = bool(query.of_kind) and at_most <= few
    ranges = _ranges(query)
    if not segment.is_indexed or len(query.conditions) > 1 or not (is_rare or ranges):
        return ""
    table = row_table(segment.number)
    fewest, hint = few + 1, "" if query.conditions else " NOT INDEXED"
    if is_rare:
        fewest, hint = at_most + 1, f" INDEXED BY {table}_kind"  # where others find as many, these need less sorting
    others = [(condition, query.values, "") for condition in query.conditions]
    others += [(text.format(column), values, f" INDEXED BY {table}_{column}") for column, text, values in ranges]
    for condition, values, other in others:
        count = _count(connection, segment, condition, values, fewest)
        if count < fewest:
            fewest, hint = count, other
    return hint


def _ranges(query: Query) -> list[tuple[str, str, tuple[Any, ...]]]:
    """What is a row's own and asked for by bounds: the column, the condition with `{0}` for its name, the values."""
    ranges: list[tuple[str, str, tuple[Any, ...]]] = []
    path = query.below_path
    if path is not None:
        below = "({0} >= ? AND {0} < ? AND ({0} = ? OR {0} >= ?))"  # "0" is what comes after "/"
        ranges.append(("path", below, (path, f"{path}0", path, f"{path}/")))
    if query.took_ms is not None:
        ranges.append(("response_time", "{0} >= ?", (query.took_ms,)))
    return ranges


def _count(connection: Connection, segment: Segment, condition: str, values: Sequence[Any], most: int) -> int:
    """How many rows fit, or `most` where there are more; the index alone says it."""
    rows = f"SELECT 1 FROM {row_table(segment.number)} WHERE {condition} LIMIT ?"  # noqa: S608 - ours
    return int(first_row(connection, f"SELECT count(*) FROM ({rows})", (*values, most))[0])  # noqa: S608
