"""Statistics that cost the same with ten thousand and ten million rows: counts and latency histograms per span.

What rows add up to (`sums`) is added to what is kept of its minutes and hours. A question about the last hours reads
whole hours, and minutes only at both edges. A histogram is one packed value, for a row a bucket would outgrow the log.

Strangers choose paths, so a span keeps a bounded number of endpoints apart.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engadi_gateway.errors import is_error
from engadi_gateway.store.database import Connection, first_row
from engadi_gateway.store.sums import HOUR_MS, MINUTE_MS, Endpoint, Latencies, Span, Sums, add_endpoint, value_of

OTHER = "_OTHER"
PERCENTILES = (50, 90, 95, 99)
#: How many endpoints a span keeps apart.
MAX_ENDPOINTS = {MINUTE_MS: 100, HOUR_MS: 300}

#: Requests that came to no service count as those of this one; who has one of that name has both in one figure.
_NAME = "CASE service WHEN '' THEN 'none' ELSE service END"
_TOP = 10

SCHEMA = (
    """CREATE TABLE rollup (
        span INTEGER NOT NULL, start INTEGER NOT NULL, service TEXT NOT NULL, status INTEGER NOT NULL,
        reason TEXT NOT NULL, requests INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        PRIMARY KEY (span, start, service, status, reason)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE rollup_latency (
        span INTEGER NOT NULL, start INTEGER NOT NULL, service TEXT NOT NULL, requests INTEGER NOT NULL,
        total REAL NOT NULL, least REAL NOT NULL, most REAL NOT NULL, buckets BLOB NOT NULL,
        PRIMARY KEY (span, start, service)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE rollup_endpoint (
        span INTEGER NOT NULL, start INTEGER NOT NULL, endpoint TEXT NOT NULL, requests INTEGER NOT NULL,
        errors INTEGER NOT NULL, total REAL NOT NULL,
        PRIMARY KEY (span, start, endpoint)
    ) STRICT, WITHOUT ROWID""",
)
TABLES = ("rollup", "rollup_latency", "rollup_endpoint")


# adding


def add(connection: Connection, sums: Sums) -> None:
    """Add sums to their minutes and hours."""
    for span, start, summed in sums.spans():
        _add_counts(connection, span, start, summed)
        for service, latencies in summed.latencies.items():
            _add_latencies(connection, (span, start, service), latencies)
        _add_endpoints(connection, span, start, summed)


def _add_counts(connection: Connection, span: int, start: int, summed: Span) -> None:
    connection.executemany(
        "INSERT INTO rollup VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " requests = requests + excluded.requests, bytes_in = bytes_in + excluded.bytes_in,"
        " bytes_out = bytes_out + excluded.bytes_out",
        [(span, start, *key, *count) for key, count in summed.counts.items()],
    )


def _add_latencies(connection: Connection, key: tuple[int, int, str], latencies: Latencies) -> None:
    row = first_row(
        connection,
        "SELECT requests, total, least, most, buckets FROM rollup_latency WHERE span = ? AND start = ? AND service = ?",
        key,
    )
    if row is not None:
        requests, total, least, most, histogram = row
        latencies = Latencies(requests, total, least, most, dict(unpacked(histogram))).plus(latencies)
    connection.execute(
        "INSERT OR REPLACE INTO rollup_latency VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, *latencies[:4], packed(latencies.buckets)),
    )


def packed(buckets: dict[int, int]) -> bytes:
    """A histogram: the buckets as 16-bit numbers, then the counts as 32-bit ones, in the same order."""
    return struct.pack(f"<{len(buckets)}h{len(buckets)}I", *buckets, *buckets.values())


def unpacked(histogram: bytes) -> Iterator[tuple[int, int]]:
    """Bucket and count, of what `packed` made."""
    count = len(histogram) // 6
    values = struct.unpack(f"<{count}h{count}I", histogram)
    return zip(values[:count], values[count:], strict=True)


def _add_endpoints(connection: Connection, span: int, start: int, summed: Span) -> None:
    """The busiest first, so that they are kept apart where there is no room for all.

    Who has no room is summed here: strangers may ask for thousands of paths in a minute.
    """
    query = "SELECT endpoint FROM rollup_endpoint WHERE span = ? AND start = ?"
    known = {name for (name,) in connection.execute(query, (span, start))}
    room = MAX_ENDPOINTS[span] - len(known)
    rows: dict[str, Endpoint] = {}
    requests, errors, total = 0, 0, 0.0  # of those for whom there is no room
    for endpoint, sums in sorted(summed.endpoints.items(), key=lambda item: -item[1][0]):
        if endpoint in known:
            rows[endpoint] = sums
        elif room > 0:
            rows[endpoint] = sums
            room -= 1
        else:
            requests, errors, total = requests + sums[0], errors + sums[1], total + sums[2]
    if requests:
        add_endpoint(rows, OTHER, (requests, errors, total))
    connection.executemany(
        "INSERT INTO rollup_endpoint VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " requests = requests + excluded.requests, errors = errors + excluded.errors, total = total + excluded.total",
        [(span, start, name, *sums) for name, sums in rows.items()],
    )


# answers


def _spans(hours: int, now_ms: int) -> tuple[str, list[int]]:
    """Condition and parameters: whole hours where they fit, minutes at both edges.

    Nothing of later than now: what a clock wrote that was ahead would stand in every answer until then.
    """
    begin = now_ms - hours * HOUR_MS
    begin -= begin % MINUTE_MS
    first_hour = -(-begin // HOUR_MS) * HOUR_MS
    last_hour = now_ms - now_ms % HOUR_MS
    condition = (
        f"((span = {HOUR_MS} AND start >= ? AND start < ?)"
        f" OR (span = {MINUTE_MS} AND start >= ? AND start < ?) OR (span = {MINUTE_MS} AND start >= ? AND start <= ?))"
    )
    return condition, [first_hour, last_hour, begin, first_hour, last_hour, now_ms]


def stats(connection: Connection, hours: int, now_ms: int) -> dict[str, Any]:
    """Totals, error rate, requests by service, status and reason, top endpoints, since `hours` ago to the minute."""
    condition, values = _spans(hours, now_ms)
    rows = connection.execute(
        f"SELECT {_NAME} AS name, status, reason, sum(requests), sum(bytes_in), sum(bytes_out) FROM rollup"  # noqa: S608
        f" WHERE {condition} GROUP BY name, status, reason",
        values,
    ).fetchall()
    total = sum(row[3] for row in rows)
    errors = sum(row[3] for row in rows if is_error(row[1], row[2]))
    time_ms = first_row(
        connection,
        f"SELECT coalesce(sum(total), 0.0) FROM rollup_latency WHERE {condition}",  # noqa: S608
        values,
    )[0]
    return {
        "hours": hours,
        "total_requests": total,
        "success_count": total - errors,
        "error_count": errors,
        "server_error_count": sum(row[3] for row in rows if row[1] >= 500),
        "error_rate": round(errors / total, 6) if total else 0.0,
        "average_response_time": round(time_ms / total, 3) if total else 0.0,
        "bytes_in": sum(row[4] for row in rows),
        "bytes_out": sum(row[5] for row in rows),
        "requests_by_service": _sums((row[0], row[3]) for row in rows),
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
    """Percentiles (at most 1 % off), least, most and mean in ms, overall and per service, as `stats` counts."""
    condition, values = _spans(hours, now_ms)
    extremes = connection.execute(
        f"SELECT {_NAME} AS name, sum(total), min(least), max(most) FROM rollup_latency"  # noqa: S608
        f" WHERE {condition} GROUP BY name",
        values,
    ).fetchall()
    buckets: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    histograms = f"SELECT {_NAME}, buckets FROM rollup_latency WHERE {condition}"  # noqa: S608
    for service, histogram in connection.execute(histograms, values):
        mine = buckets[service]
        for bucket, requests in unpacked(histogram):
            mine[bucket] += requests
    services = {row[0]: _summary([row], [buckets[row[0]]]) for row in extremes}
    return {"hours": hours, **_summary(extremes, list(buckets.values())), "services": services}


def _summary(extremes: Sequence[tuple[Any, ...]], histograms: Sequence[dict[int, int]]) -> dict[str, Any]:
    buckets: dict[int, int] = defaultdict(int)
    for histogram in histograms:
        for bucket, requests in histogram.items():
            buckets[bucket] += requests
    count = sum(buckets.values())
    if not count:
        return {"count": 0, **{f"p{percent}": None for percent in PERCENTILES}, "min": None, "max": None, "mean": None}
    least, most = min(row[2] for row in extremes), max(row[3] for row in extremes)
    summary: dict[str, Any] = {"count": count}
    for percent in PERCENTILES:
        value = value_of(_rank_bucket(buckets, -(-percent * count // 100)))
        summary[f"p{percent}"] = float(f"{min(max(value, least), most):.5g}")
    return {**summary, "min": least, "max": most, "mean": round(math.fsum(row[1] for row in extremes) / count, 3)}


def _rank_bucket(buckets: dict[int, int], rank: int) -> int:
    """The bucket of the latency that is `rank`-th from below."""
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return bucket
    raise AssertionError("a rank is at most the count")


# retention


def prune(connection: Connection, span: int, before_ms: int, spans: int) -> int:
    """Forget spans that began before; at most so many spans' worth from the oldest on. Returns how many rows went."""
    gone = 0
    for table in TABLES:
        oldest = first_row(connection, f"SELECT min(start) FROM {table} WHERE span = ?", (span,))[0]  # noqa: S608
        if oldest is not None:
            limit = min(before_ms, oldest + spans * span)
            gone += connection.execute(f"DELETE FROM {table} WHERE span = ? AND start < ?", (span, limit)).rowcount  # noqa: S608
    return gone
