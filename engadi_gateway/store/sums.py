"""What rows add up to, in memory: counts, latencies and endpoints of each minute, until they are stored.

This is done for every row, on the thread that writes them: rows are taken as columns and only gathered, and what can be
done for all at once waits for `spans`. Latencies fall into logarithmic buckets, whose middle is less than 1 % off. An
endpoint is a method and a path in which what looks like an id is `{id}`; what matched no route is one of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from engadi_gateway.errors import is_error
from engadi_gateway.model import LogRow

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
UNMATCHED = "_UNMATCHED"

_ERROR = 0.0099  # of a bucket's middle; what is left to 1 % is for rounding the answer
_LOG_GAMMA = math.log((1 + _ERROR) / (1 - _ERROR))
_SMALLEST_MS = 0.001
_SMALLEST = math.ceil(math.log(_SMALLEST_MS) / _LOG_GAMMA)
_LONGEST_PATH = 200
_MOST_PATHS = 10_000
#: A segment that looks like an id, with the slash before it.
_ID = re.compile(r"/(?:[0-9]+|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|[0-9a-fA-F]{16,}|[^/]{40,})(?=/|\Z)")
#: Requests, errors, sum of latencies in ms.
Endpoint = tuple[int, int, float]
_CREATED = itemgetter(LogRow._fields.index("created_at"))


def buckets_of(latencies_ms: Iterable[float]) -> list[int]:
    """The logarithmic bucket of each latency."""
    ceil, log = math.ceil, math.log
    return [ceil(log(value) / _LOG_GAMMA) if value > _SMALLEST_MS else _SMALLEST for value in latencies_ms]


def value_of(bucket: int) -> float:
    """The middle of a bucket: less than 1 % from every latency in it."""
    return math.exp(bucket * _LOG_GAMMA) * (1 - _ERROR)


def template_of(path: str) -> str:
    """The path, `{id}` for what looks like one, so that endpoints are few; cut where it is long."""
    return _ID.sub("/{id}", path[:_LONGEST_PATH])


class _Templates(dict[str, str]):
    """Templates of the paths seen lately: most are seen again. Strangers choose paths, so there is a bound."""

    def __init__(self) -> None:
        super().__init__()
        self._above: dict[str, str] = {}  # of what stands before a number: it stays, where numbers come and go

    def __missing__(self, path: str) -> str:
        if len(path) > _LONGEST_PATH:
            return template_of(path)
        above, _, last = path.rpartition("/")
        # most that are new are of a known kind, which takes half the time of the expression
        if above and last.isdigit() and last.isascii():
            template = f"{self._above.get(above) or self._add_above(above)}/{{id}}"
        else:
            template = template_of(path)
        if len(self) >= _MOST_PATHS:
            self.clear()
        self[path] = template
        return template

    def _add_above(self, path: str) -> str:
        if len(self._above) >= _MOST_PATHS:
            self._above.clear()
        template = self._above[path] = template_of(path)
        return template


class Latencies(NamedTuple):
    """Of a service in a span: how many, their sum, least and most in ms, and how many in each bucket."""

    requests: int
    total: float
    least: float
    most: float
    buckets: dict[int, int]

    def plus(self, other: Latencies) -> Latencies:
        """Both together."""
        buckets = dict(self.buckets)
        for bucket, requests in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + requests
        return Latencies(
            self.requests + other.requests,
            self.total + other.total,
            min(self.least, other.least),
            max(self.most, other.most),
            buckets,
        )


def add_endpoint(endpoints: dict[str, Endpoint], name: str, more: Endpoint) -> None:
    """Add to what is known of one endpoint."""
    known = endpoints.get(name)
    endpoints[name] = more if known is None else (known[0] + more[0], known[1] + more[1], known[2] + more[2])


class Span:
    """Sums of a minute or an hour.

    counts: (service or "", status, reason) -> requests, bytes in, bytes out. latencies: by service or "".
    endpoints: by name.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[str, int, str], tuple[int, int, int]] = {}
        self.latencies: dict[str, Latencies] = {}
        self.endpoints: dict[str, Endpoint] = {}

    def copied(self) -> Span:
        """One that can be added to; what stands in it is never changed."""
        span = Span()
        span.counts, span.latencies, span.endpoints = dict(self.counts), dict(self.latencies), dict(self.endpoints)
        return span

    def add(self, other: Span) -> None:
        for key, (requests, bytes_in, bytes_out) in other.counts.items():
            count = self.counts.get(key, (0, 0, 0))
            self.counts[key] = count[0] + requests, count[1] + bytes_in, count[2] + bytes_out
        for service, latencies in other.latencies.items():
            known = self.latencies.get(service)
            self.latencies[service] = latencies if known is None else known.plus(latencies)
        for name, endpoint in other.endpoints.items():
            add_endpoint(self.endpoints, name, endpoint)


class _Minute:
    """Rows of a minute as they were gathered."""

    def __init__(self) -> None:
        #: (service, status, reason) -> bytes in, bytes out, latencies
        self.ends: dict[tuple[str | None, int, str], list[Any]] = defaultdict(lambda: [0, 0, []])
        #: (method, template, status, reason) -> latencies; of no route: ("", UNMATCHED, status, reason)
        self.endpoints: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)

    def add(self, rows: Sequence[LogRow], templates: _Templates) -> None:
        _, methods, paths, services, _, _, statuses, times, _, _, reasons, routes, _, ins, outs, *_ = zip(
            *rows, strict=True
        )
        kinds = zip(services, statuses, reasons, strict=True)
        if None in routes:
            names: Iterable[tuple[str, str, int, str]] = (
                ("", UNMATCHED, status, reason) if route is None else (method, templates[path], status, reason)
                for method, path, status, reason, route in zip(methods, paths, statuses, reasons, routes, strict=True)
            )
        else:
            names = zip(methods, map(templates.__getitem__, paths), statuses, reasons, strict=True)
        ends, endpoints = self.ends, self.endpoints
        for kind, name, time_ms, bytes_in, bytes_out in zip(kinds, names, times, ins, outs, strict=True):
            end = ends[kind]
            end[0] += bytes_in
            end[1] += bytes_out
            end[2].append(time_ms)
            endpoints[name].append(time_ms)

    def summed(self) -> Span:
        span = Span()
        times_of: dict[str, list[float]] = defaultdict(list)
        for (service, status, reason), (bytes_in, bytes_out, times) in self.ends.items():
            span.counts[service or "", status, reason] = len(times), bytes_in, bytes_out
            times_of[service or ""] += times
        for service, times in times_of.items():
            buckets = Counter(buckets_of(times))
            span.latencies[service] = Latencies(len(times), math.fsum(times), min(times), max(times), buckets)
        for (method, template, status, reason), times in self.endpoints.items():
            name = f"{method} {template}" if method else template
            errors = len(times) if is_error(status, reason) else 0
            add_endpoint(span.endpoints, name, (len(times), errors, math.fsum(times)))
        return span


class Sums:
    """What rows add up to."""

    def __init__(self) -> None:
        self._minutes: dict[int, _Minute] = defaultdict(_Minute)
        self._templates = _Templates()

    def add(self, rows: Sequence[LogRow]) -> None:
        for start, mine in _by_minute(rows):
            self._minutes[start].add(mine, self._templates)

    def clear(self) -> None:
        self._minutes.clear()

    def spans(self) -> Iterator[tuple[int, int, Span]]:
        """(length, start, sums) of each minute and each hour, in ms."""
        hours: dict[int, Span] = {}
        for start, minute in self._minutes.items():
            summed = minute.summed()
            yield MINUTE_MS, start, summed
            begin = start - start % HOUR_MS
            if begin in hours:
                hours[begin].add(summed)
            else:
                hours[begin] = summed.copied()
        for start, hour in hours.items():
            yield HOUR_MS, start, hour


def _by_minute(rows: Sequence[LogRow]) -> Iterable[tuple[int, Sequence[LogRow]]]:
    moments = tuple(map(_CREATED, rows))
    first = min(moments, default=0) // MINUTE_MS
    if first == max(moments, default=0) // MINUTE_MS:
        return [(first * MINUTE_MS, rows)] if rows else []
    groups: dict[int, list[LogRow]] = defaultdict(list)
    for row, moment in zip(rows, moments, strict=True):
        groups[moment - moment % MINUTE_MS].append(row)
    return groups.items()
