"""Counters and histograms of the process, and the Prometheus text of them.

Fed with batches of settled rows, so a request pays for it once and where the cache is warm. Labels are bounded: route
ids, known methods, the closed reasons; never a path, a user or an address. Counters of routes and services that are
gone stay, for somebody may not have read them yet, until there are as many as those of all that are there.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from engadi_gateway.errors import Reason
from engadi_gateway.model import BreakerState, HealthStatus, LogRow

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BUCKETS_MS = tuple(limit * 1000 for limit in BUCKETS_S)
_LABELS_OF = itemgetter(*map(LogRow._fields.index, ("route_id", "method", "status_code", "reason")))
_TRIED_OF = itemgetter(*map(LogRow._fields.index, ("attempts", "upstream_time", "reason")))
_FAILURES = frozenset(reason.code for reason in Reason if reason.is_failure)
#: How a request's last attempt ended, by its reason; else its client left, or something of ours ended it.
_OUTCOMES = {**dict.fromkeys(_FAILURES, "failed"), Reason.OK.code: "answered"}
_OTHER = "_OTHER"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", _OTHER))
_SLICE = 500
#: So many series are kept whosever they are.
_FEW_SERIES = 10_000
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Histogram:
    """Counts per bucket, not cumulative; the text makes them so."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def add(self, durations_ms: Sequence[float]) -> None:
        counts = self.counts
        for duration_ms in durations_ms:
            counts[bisect_left(_BUCKETS_MS, duration_ms)] += 1
        self.total_s += sum(durations_ms) / 1000

    def copy(self) -> Histogram:
        made = Histogram.__new__(Histogram)  # there are as many as there are routes, and more
        made.counts, made.total_s = self.counts[:], self.total_s
        return made

    def merge(self, other: Histogram) -> None:
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.total_s += other.total_s


Labels = tuple[str | None, str, int, str]


class _Series(dict[Labels, Histogram]):
    """By route id, method, status and reason; a method that strangers invented counts with all others like it."""

    def __missing__(self, labels: Labels) -> Histogram:
        route, method, status, reason = labels
        if method not in _METHODS:
            return self[route, _OTHER, status, reason]
        made = self[labels] = Histogram()
        return made


class Metrics:
    """See the module. `answered` has one histogram for each set of labels, so that a row touches no more than that."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self.answered = _Series()
        self.upstream: dict[str, Histogram] = defaultdict(Histogram)
        self.attempts: dict[tuple[str, str], int] = defaultdict(int)
        self.failures: dict[tuple[str, str], int] = defaultdict(int)
        self.unread: dict[str, int] = defaultdict(int)
        self._most_series = _FEW_SERIES

    def observe(self, rows: list[LogRow]) -> None:
        """Count settled rows: on the event loop each takes less than a microsecond."""
        answered: defaultdict[Labels, list[float]] = defaultdict(list)
        tried: defaultdict[str | None, list[tuple[int, float | None, str]]] = defaultdict(list)
        for row in rows:
            answered[_LABELS_OF(row)].append(row.response_time)
            if row.attempts:
                tried[row.target_service].append(_TRIED_OF(row))
        for labels, durations_ms in answered.items():
            self.answered[labels].add(durations_ms)
        for service, tries in tried.items():
            self._tried(service or "", tries)

    def _tried(self, service: str, tries: list[tuple[int, float | None, str]]) -> None:
        counts, times_ms, reasons = zip(*tries, strict=True)
        for reason in set(reasons):
            count = reasons.count(reason)
            self.attempts[service, _OUTCOMES.get(reason, "abandoned")] += count
            if reason in _FAILURES:
                self.failures[service, reason] += count
        self.attempts[service, "retried"] += sum(counts) - len(counts)
        known_ms = [time_ms for time_ms in times_ms if time_ms is not None]
        if known_ms:
            self.upstream[service].add(known_ms)

    def left(self, services: Iterable[tuple[str, int]]) -> None:
        """Count attempts, by service, after which a request went on to another one; no row observed may have them."""
        for service, attempts in services:
            self.attempts[service, "retried"] += attempts

    def keep(self, routes: Callable[[], Collection[str]], services: Collection[str]) -> None:
        """Where there are too many series: forget those that belong to none of these.

        Looked through only when there are twice as many as the last time, or each write of a large configuration would
        pay for it.
        """
        by_service: tuple[dict[Any, Any], ...] = (self.upstream, self.attempts, self.failures)
        if len(self.answered) + sum(map(len, by_service)) <= self._most_series:
            return
        ids = routes()
        for labels in [labels for labels in self.answered if labels[0] is not None and labels[0] not in ids]:
            del self.answered[labels]
        for series in by_service:
            for key in [key for key in series if (key if isinstance(key, str) else key[0]) not in services]:
                del series[key]
        self._most_series = max(_FEW_SERIES, 2 * (len(self.answered) + sum(map(len, by_service))))

    async def copy(self) -> Metrics:
        """For a thread to read. Each series is as it was at one moment; others are served between slices of them."""
        made = Metrics()
        made.started_at = self.started_at
        for number, (labels, histogram) in enumerate(list(self.answered.items()), 1):
            made.answered[labels] = histogram.copy()
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        made.upstream.update((service, histogram.copy()) for service, histogram in self.upstream.items())
        made.attempts.update(self.attempts)
        made.failures.update(self.failures)
        made.unread.update(self.unread)
        return made

    def requests(self) -> dict[Labels, int]:
        return {labels: sum(histogram.counts) for labels, histogram in self.answered.items()}

    def durations(self) -> dict[str, Histogram]:
        """By route id, "" for none."""
        found: dict[str, Histogram] = defaultdict(Histogram)
        for (route, _, _, _), histogram in self.answered.items():
            found[route or ""].merge(histogram)
        return found

    def unreadable(self, reason: Reason) -> None:
        """Count a head that never became an exchange."""
        self.unread[reason.code] += 1


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family; samples are (name suffix, labels, value)."""

    name: str
    kind: str
    help: str
    samples: Iterable[tuple[str, Mapping[str, str], float]]


def render(families: Iterable[Family], *, is_openmetrics: bool) -> bytes:
    """The text format 0.0.4, or OpenMetrics 1.0, where a counter's family has no `_total` and the end is marked."""
    lines: list[str] = []
    for family in families:
        is_counter = family.kind == "counter"
        name = family.name.removesuffix("_total") if is_counter and is_openmetrics else family.name
        lines.append(f"# HELP {name} {_escaped_help(family.help)}")
        lines.append(f"# TYPE {name} {family.kind}")
        for suffix, labels, value in family.samples:
            lines.append(f"{family.name}{suffix}{_labels(labels)} {_number(value)}")
    if is_openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = []
    for name, value in labels.items():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        pairs.append(f'{name}="{escaped}"')
    return "{" + ",".join(pairs) + "}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def histogram_samples(
    histograms: Mapping[str, Histogram], label: str
) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Cumulative buckets, `+Inf` equal to the count, the sum."""
    for key, histogram in histograms.items():
        seen = 0
        for limit, count in zip((*BUCKETS_S, None), histogram.counts, strict=True):
            seen += count
            edge = "+Inf" if limit is None else repr(limit)  # a label: always "1.0", as OpenMetrics wants it
            yield "_bucket", {label: key, "le": edge}, seen
        yield "_sum", {label: key}, histogram.total_s
        yield "_count", {label: key}, seen


def text_of(metrics: Metrics, facts: Mapping[str, Any], *, is_openmetrics: bool) -> bytes:
    """The text of all families. Long with many routes: a thread makes it, of a copy."""
    return render(families_of(metrics, facts), is_openmetrics=is_openmetrics)


def families_of(metrics: Metrics, facts: Mapping[str, Any]) -> list[Family]:
    """All families.

    Args:
        facts: state, routes, targets, limits, circuits and health, as the admin API's handler gathers them.
    """
    return [*_traffic(metrics), *_policies(facts), *_self(facts, metrics.started_at)]


def _traffic(metrics: Metrics) -> list[Family]:
    names = ("route", "method", "code", "reason")
    requests = [
        ("", dict(zip(names, (route or "", method, str(status), reason), strict=True)), float(count))
        for (route, method, status, reason), count in metrics.requests().items()
    ]
    attempts = [("", {"service": key[0], "outcome": key[1]}, float(n)) for key, n in metrics.attempts.items()]
    failures = [("", {"service": key[0], "reason": key[1]}, float(n)) for key, n in metrics.failures.items()]
    unread = [("", {"reason": code}, float(count)) for code, count in metrics.unread.items()]
    return [
        Family("engadi_http_requests_total", "counter", "Requests answered.", requests),
        Family(
            "engadi_http_request_duration_seconds",
            "histogram",
            "From the end of the request's head to the end of the reply.",
            histogram_samples(metrics.durations(), "route"),
        ),
        Family(
            "engadi_upstream_request_duration_seconds",
            "histogram",
            "From the request's first byte to the head of the upstream's reply.",
            histogram_samples(metrics.upstream, "service"),
        ),
        Family(
            "engadi_upstream_attempts_total",
            "counter",
            "Attempts to reach an upstream: answered, failed, retried (failed, and another followed) or abandoned.",
            attempts,
        ),
        Family("engadi_upstream_failures_total", "counter", "Requests that an upstream failed.", failures),
        Family("engadi_http_unreadable_total", "counter", "Refused before they became a request.", unread),
    ]


def _policies(facts: Mapping[str, Any]) -> list[Family]:
    decisions = [
        ("", {"rule": row["name"], "decision": word}, float(row[word]))
        for row in facts["limits"]
        for word in ("allowed", "refused", "observed")
    ]
    circuits = [
        ("", {"service": name, "state": str(state)}, float(now is state))
        for name, (now, _) in facts["circuits"].items()
        for state in BreakerState
    ]
    moves = [
        ("", {"service": name, "state": str(state)}, float(count))
        for name, (_, counts) in facts["circuits"].items()
        for state, count in counts.items()
    ]
    up = [
        ("", {"service": name, "target": row.service_url}, float(row.status is not HealthStatus.UNHEALTHY))
        for name, row in facts["health"].items()
        if row.status is not HealthStatus.UNKNOWN
    ]
    pools = [
        ("", {"service": facts["targets"].get(target, ""), "target": target, "state": state}, float(count))
        for target, counts in facts["state"]["pools"].items()
        for state, count in counts.items()
    ]
    routes = [
        ("", {"route": route_id, "path_pattern": pattern, "service": service}, 1.0)
        for route_id, (pattern, service) in facts["routes"].items()
    ]
    return [
        Family("engadi_route_info", "gauge", "What the route label of other families stands for.", routes),
        Family("engadi_ratelimit_decisions_total", "counter", "What the rate-limit rules said.", decisions),
        Family("engadi_circuit_state", "gauge", "1 for the state that a circuit is in.", circuits),
        Family("engadi_circuit_transitions_total", "counter", "How often a circuit came into a state.", moves),
        Family("engadi_target_up", "gauge", "0 for what health checks have found down.", up),
        Family(
            "engadi_upstream_connections", "gauge", "Connections by target and state, and whose the target is.", pools
        ),
    ]


def _self(facts: Mapping[str, Any], started_at: float) -> list[Family]:
    state = facts["state"]
    log = state["log"]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    reloads = [("", {"result": result}, float(count)) for result, count in state["reloads"].items()]
    version = [("", {"version": state["version"]}, 1.0)]
    rows: tuple[tuple[str, str, str, float], ...] = (
        ("engadi_http_requests_in_flight", "gauge", "Requests under way.", state["in_flight"]),
        ("engadi_http_connections", "gauge", "Client connections.", state["connections"]),
        ("engadi_config_revision", "gauge", "The configuration's revision.", state["revision"]),
        ("engadi_log_rows_written_total", "counter", "Rows in the request log.", log["rows_written"]),
        ("engadi_log_rows_dropped_total", "counter", "Rows shed or failed.", log["rows_shed"] + log["rows_failed"]),
        ("engadi_log_queue_depth", "gauge", "Rows that wait for the writer.", log["queue_depth"]),
        ("engadi_log_size_bytes", "gauge", "What the request log takes on the disk.", log["size_bytes"]),
        ("engadi_access_lines_lost_total", "counter", "Access lines nobody took in time.", state["access_lines_lost"]),
        (
            "engadi_event_loop_lag_seconds",
            "gauge",
            "How late a tick was, at most, in the last minute.",
            state["loop_lag_s"],
        ),
        ("process_cpu_seconds_total", "counter", "CPU time of this process.", usage.ru_utime + usage.ru_stime),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", resident_bytes()),
        ("process_start_time_seconds", "gauge", "When it started.", started_at),
        ("process_open_fds", "gauge", "Open file descriptors.", open_fds()),
    )
    ends_at = state["certificate_ends_at"]
    expiry = [("", dict[str, str](), float(at)) for at in (ends_at,) if at is not None]
    return [
        *(Family(name, kind, text, [("", {}, float(value))]) for name, kind, text, value in rows),
        Family("engadi_tls_certificate_expiry_seconds", "gauge", "When the certificate expires (epoch).", expiry),
        Family("engadi_config_reloads_total", "counter", "Reloads of the settings.", reloads),
        Family("engadi_build_info", "gauge", "The version.", version),
    ]


def resident_bytes() -> int:
    """0 where /proc is not there."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - read at each scrape, one line
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def open_fds() -> int:
    """0 where /proc is not there."""
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    except OSError:
        return 0
