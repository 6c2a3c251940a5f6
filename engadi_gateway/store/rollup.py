"""Statistics that cost the same with ten thousand and ten million rows: counts and latency histograms per span.

Each batch of rows is added, in memory, to the minutes and the hours it belongs to, and these sums are upserted with it.
A question about the last hours reads whole hours, and minutes only at the edges. Latencies fall into logarithmic
buckets whose middle is at most 1 % off (gamma = 1.01 / 0.99).

An endpoint is a method and a path in which what looks like an id is `{id}`; a batch adds a bounded number of them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from engadi_gateway.model import LogRow
from engadi_gateway.store.database import Connection

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
OTHER = "_OTHER"
_GAMMA = 1.01 / 0.99
_LOG_GAMMA = math.log(_GAMMA)
_SMALLEST_MS = 0.001
_MAX_ENDPOINTS_PER_BATCH = 200
_TOP = 10
_ID = re.compile(r"[0-9]+|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|[0-9a-fA-F]{16,}|[^/]{40,}")
PERCENTILES = (50, 90, 95, 99)

SCHEMA = (
    """CREATE TABLE rollup (
        span INTEGER NOT NULL, start INTEGER NOT NULL, service TEXT NOT NULL, status INTEGER NOT NULL,
        reason TEXT NOT NULL, requests INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        PRIMARY KEY (span, start, service, status, reason)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE rollup_latency (
        span INTEGER NOT NULL, start INTEGER NOT NULL, service TEXT NOT NULL, bucket INTEGER NOT NULL,
        requests INTEGER NOT NULL, total REAL NOT NULL, least REAL NOT NULL, most REAL NOT NULL,
        PRIMARY KEY (span, start, service, bucket)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE rollup_endpoint (
        span INTEGER NOT NULL, start INTEGER NOT NULL, endpoint TEXT NOT NULL, requests INTEGER NOT NULL,
        errors INTEGER NOT NULL, total REAL NOT NULL,
        PRIMARY KEY (span, start, endpoint)
    ) STRICT, WITHOUT ROWID""",
)


def bucket_of(latency_ms: float) -> int:
    """The logarithmic bucket of a latency."""
    return math.ceil(math.log(max(latency_ms, _SMALLEST_MS)) / _LOG_GAMMA)


def value_of(bucket: int) -> float:
    """The middle of a bucket: at most 1 % from every latency in it."""
    return 2.0 * math.exp(bucket * _LOG_GAMMA) / (1.0 + _GAMMA)


@lru_cache(maxsize=4096)
def endpoint_of(path: str) -> str:
    """A path with `{id}` for what looks like one, so that endpoints are few."""
    return "/".join("{id}" if _ID.fullmatch(part) else part for part in path.split("/"))


def add_rows(connection: Connection, rows: Sequence[LogRow]) -> None:
    """Add a batch to its minutes and hours."""
    counts: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    latencies: dict[tuple[Any, ...], list[float]] = {}
    endpoints: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        service = row.target_service or ""
        bucket = bucket_of(row.response_time)
        endpoint = f"{row.method} {endpoint_of(row.path)}"
        for span in (MINUTE_MS, HOUR_MS):
            start = row.created_at - row.created_at % span
            count = counts[span, start, service, row.status_code, row.reason]
            count[0] += 1
            count[1] += row.bytes_in
            count[2] += row.bytes_out
            _add_latency(latencies, (span, start, service, bucket), row.response_time)
            _add_endpoint(endpoints, (span, start, endpoint), row)
    _upsert(connection, counts, latencies, endpoints)


def _add_latency(latencies: dict[tuple[Any, ...], list[float]], key: tuple[Any, ...], value: float) -> None:
    known = latencies.get(key)
    if known is None:
        latencies[key] = [1, value, value, value]
        return
    known[0] += 1
    known[1] += value
    known[2] = min(known[2], value)
    known[3] = max(known[3], value)


def _add_endpoint(endpoints: dict[tuple[Any, ...], list[float]], key: tuple[Any, ...], row: LogRow) -> None:
    if key not in endpoints and len(endpoints) >= _MAX_ENDPOINTS_PER_BATCH:
        key = (key[0], key[1], OTHER)
    known = endpoints.setdefault(key, [0, 0, 0.0])
    known[0] += 1
    known[1] += row.status_code >= 400
    known[2] += row.response_time


def _upsert(
    connection: Connection,
    counts: dict[tuple[Any, ...], list[int]],
    latencies: dict[tuple[Any, ...], list[float]],
    endpoints: dict[tuple[Any, ...], list[float]],
) -> None:
    connection.executemany(
        "INSERT INTO rollup VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " requests = requests + excluded.requests, bytes_in = bytes_in + excluded.bytes_in,"
        " bytes_out = bytes_out + excluded.bytes_out",
        [(*key, *values) for key, values in counts.items()],
    )
    connection.executemany(
        "INSERT INTO rollup_latency VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " requests = requests + excluded.requests, total = total + excluded.total,"
        " least = min(least, excluded.least), most = max(most, excluded.most)",
        [(*key, int(values[0]), *values[1:]) for key, values in latencies.items()],
    )
    connection.executemany(
        "INSERT INTO rollup_endpoint VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " requests = requests + excluded.requests, errors = errors + excluded.errors, total = total + excluded.total",
        [(*key, int(values[0]), int(values[1]), values[2]) for key, values in endpoints.items()],
    )


def _spans(hours: int, now_ms: int) -> tuple[str, list[int]]:
    """Condition and parameters: whole hours where they fit, minutes at both edges."""
    begin = now_ms - hours * HOUR_MS
    begin -= begin % MINUTE_MS
    first_hour = -(-begin // HOUR_MS) * HOUR_MS
    last_hour = now_ms - now_ms % HOUR_MS
    condition = (
        "((span = 3600000 AND start >= ? AND start < ?)"
        " OR (span = 60000 AND start >= ? AND start < ?) OR (span = 60000 AND start >= ?))"
    )
    return condition, [first_hour, last_hour, begin, first_hour, max(last_hour, first_hour)]


def stats(connection: Connection, hours: int, now_ms: int) -> dict[str, Any]:
    """Totals, error rate, requests by service, status and reason, top endpoints, of the last `hours`."""
    condition, values = _spans(hours, now_ms)
    rows = connection.execute(
        "SELECT service, status, reason, sum(requests), sum(bytes_in), sum(bytes_out) FROM rollup"  # noqa: S608
        f" WHERE {condition} GROUP BY service, status, reason",
        values,
    ).fetchall()
    total = sum(row[3] for row in rows)
    errors = sum(row[3] for row in rows if row[1] >= 400)
    timing = connection.execute(
        f"SELECT sum(total), sum(requests) FROM rollup_latency WHERE {condition}",  # noqa: S608
        values,
    ).fetchone()
    return {
        "hours": hours,
        "total_requests": total,
        "success_count": total - errors,
        "error_count": errors,
        "server_error_count": sum(row[3] for row in rows if row[1] >= 500),
        "error_rate": round(errors / total, 6) if total else 0.0,
        "average_response_time": round(timing[0] / timing[1], 3) if timing[1] else 0.0,
        "bytes_in": sum(row[4] for row in rows),
        "bytes_out": sum(row[5] for row in rows),
        "requests_by_service": _sums((row[0] or "none", row[3]) for row in rows),
        "requests_by_status": _sums((str(row[1]), row[3]) for row in rows),
        "requests_by_reason": _sums((row[2], row[3]) for row in rows),
        "top_endpoints": _top_endpoints(connection, condition, values),
    }


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for name, amount in pairs:
        sums[name] += amount
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def _top_endpoints(connection: Connection, condition: str, values: list[int]) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT endpoint, sum(requests) AS n, sum(errors), sum(total) FROM rollup_endpoint"  # noqa: S608
        f" WHERE {condition} GROUP BY endpoint ORDER BY n DESC, endpoint LIMIT {_TOP}",
        values,
    ).fetchall()
    return [
        {"endpoint": name, "requests": count, "errors": errors, "average_response_time": round(total / count, 3)}
        for name, count, errors, total in rows
    ]


def performance(connection: Connection, hours: int, now_ms: int) -> dict[str, Any]:
    """Percentiles (at most 1 % off), least, most and mean in ms, overall and per service, of the last `hours`."""
    condition, values = _spans(hours, now_ms)
    rows = connection.execute(
        "SELECT service, bucket, sum(requests), sum(total), min(least), max(most) FROM rollup_latency"  # noqa: S608
        f" WHERE {condition} GROUP BY service, bucket",
        values,
    ).fetchall()
    by_service: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        by_service[row[0] or "none"].append(row)
    services = {name: _summary(part) for name, part in sorted(by_service.items())}
    return {"hours": hours, **_summary(rows), "services": services}


def _summary(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    buckets: dict[int, int] = defaultdict(int)
    for row in rows:
        buckets[row[1]] += row[2]
    count = sum(buckets.values())
    if not count:
        return {"count": 0, **{f"p{percent}": None for percent in PERCENTILES}, "min": None, "max": None, "mean": None}
    least, most = min(row[4] for row in rows), max(row[5] for row in rows)
    summary: dict[str, Any] = {"count": count}
    for percent in PERCENTILES:
        value = value_of(_rank_bucket(buckets, math.ceil(percent / 100 * count)))
        summary[f"p{percent}"] = round(min(max(value, least), most), 3)
    mean = sum(row[3] for row in rows) / count
    return {**summary, "min": round(least, 3), "max": round(most, 3), "mean": round(mean, 3)}


def _rank_bucket(buckets: dict[int, int], rank: int) -> int:
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return bucket
    return max(buckets)


def prune(connection: Connection, minutes_before_ms: int, hours_before_ms: int) -> None:
    """Minutes are needed for the last hours only; hours as long as the log is kept."""
    for table in ("rollup", "rollup_latency", "rollup_endpoint"):
        connection.execute(f"DELETE FROM {table} WHERE span = ? AND start < ?", (MINUTE_MS, minutes_before_ms))  # noqa: S608
        connection.execute(f"DELETE FROM {table} WHERE span = ? AND start < ?", (HOUR_MS, hours_before_ms))  # noqa: S608
