"""The Prometheus text: its grammar, its histograms, its labels."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.errors import Reason
from engadi_gateway.model import BreakerState, HealthStatus, LogRow, ServiceHealth
from engadi_gateway.pipeline.circuit import Thresholds
from engadi_gateway.record import metrics as prometheus
from engadi_gateway.record.metrics import BUCKETS_S, Family, Histogram, Metrics, histogram_samples, render
from engadi_gateway.store.journal import JournalStats
from tests.fakes import upstream
from tests.harness import ADMIN, ask, json_of, running

STATES = tuple(map(str, BreakerState))
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? ([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)")
#: What samples of a family may be called besides its own name.
SUFFIXES = {
    False: {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]},
    True: {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]},
}


def row(method: str = "GET", status: int = 200, ms: float = 3.0, **changes: object) -> LogRow:
    made = LogRow(
        "i", method, "/p", "content", None, "1.2.3.4", status, ms, None, 0, "ok", "route-1", 1, 0, 0, ms / 2, 1
    )
    return made._replace(**changes)  # type: ignore[arg-type]  # a test's own rows


def parsed(text: str, *, is_openmetrics: bool = False) -> dict[str, float]:
    """Every sample by its whole name. What a scraper would not read, or would read otherwise, is an assertion."""
    assert text.endswith("# EOF\n" if is_openmetrics else "\n")
    lines = text.splitlines()[: -1 if is_openmetrics else None]
    samples: dict[str, float] = {}
    families: set[str] = set()
    family = kind = ""
    for line in lines:
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in families, "a family in two places"
            families.add(family)
            kind = ""
        elif line.startswith("# TYPE "):
            assert not kind, "a second type"
            assert line.split(" ")[2] == family
            kind = line.split(" ")[3]
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in {family + suffix for suffix in SUFFIXES[is_openmetrics][kind]}, line
            name = line.rpartition(" ")[0]
            assert name not in samples, "the same series twice"
            samples[name] = float(match[3])
    _check_histograms(samples)
    return samples


def _check_histograms(samples: dict[str, float]) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    for name, value in samples.items():
        match = re.fullmatch(r"(.+)_bucket\{(.*),le=\"(.+)\"\}", name)
        if match:
            series.setdefault(f"{match[1]}_%s{{{match[2]}}}", []).append((float(match[3]), value))
    for name, buckets in series.items():
        assert [edge for edge, _ in buckets] == [*BUCKETS_S, math.inf]
        counts = [count for _, count in buckets]
        assert counts == sorted(counts)
        assert counts[-1] == samples[name % "count"]
        assert samples[name % "sum"] >= 0


def test_rows_are_counted_by_bounded_labels() -> None:
    metrics = Metrics()
    metrics.observe(
        [row(), row(), row("BREW", 418), row(status=502, reason="upstream_closed", attempts=3, upstream_time=None)]
    )
    assert metrics.requests() == {
        ("route-1", "GET", 200, "ok"): 2,
        ("route-1", "_OTHER", 418, "ok"): 1,
        ("route-1", "GET", 502, "upstream_closed"): 1,
    }
    assert dict(metrics.failures) == {("content", "upstream_closed"): 1}


@pytest.mark.parametrize("ms", [0.0, 5.0, 5.001, 10_000.0, 10_001.0])
def test_histograms_are_cumulative_and_end_in_the_count(ms: float) -> None:
    metrics = Metrics()
    metrics.observe([row(ms=ms), row(ms=1.0)])
    samples = list(histogram_samples(metrics.durations(), "route"))
    buckets = [(labels["le"], value) for suffix, labels, value in samples if suffix == "_bucket"]
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1] == ("+Inf", 2)
    for edge, value in buckets[:-1]:
        assert value == 1 * (float(edge) >= 0.001) + (ms / 1000 <= float(edge))
    assert {suffix: value for suffix, _, value in samples if suffix != "_bucket"} == {
        "_sum": pytest.approx((ms + 1) / 1000),
        "_count": 2,
    }
    assert len(buckets) == len(BUCKETS_S) + 1


def test_edges_are_those_that_dashboards_of_others_know() -> None:
    made = [labels["le"] for suffix, labels, _ in histogram_samples({"": Histogram()}, "x") if suffix == "_bucket"]
    assert made == ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf"]


def test_labels_are_escaped_and_openmetrics_ends() -> None:
    family = Family("engadi_x_total", "counter", "A\nB \\ C", [("", {"a": 'q"\\\n'}, 1.0)])
    text = render([family], is_openmetrics=False).decode()
    assert (
        text == '# HELP engadi_x_total A\\nB \\\\ C\n# TYPE engadi_x_total counter\nengadi_x_total{a="q\\"\\\\\\n"} 1\n'
    )
    open_text = render([family], is_openmetrics=True).decode()
    assert open_text.startswith("# HELP engadi_x A")
    assert open_text.endswith("\n# EOF\n")


NASTY = ('a"b', "a\\b", "a\nb", "a,b={}", "\u20ac", "", "\\n")


@pytest.mark.parametrize("is_openmetrics", [False, True], ids=["text", "openmetrics"])
def test_no_label_value_breaks_the_text(is_openmetrics: bool) -> None:
    metrics = Metrics()
    metrics.observe([row(route_id=value, target_service=value, ms=20_000.0 + at) for at, value in enumerate(NASTY)])
    families = [
        Family("engadi_a_seconds", "histogram", "x", histogram_samples(metrics.durations(), "route")),
        Family("engadi_b_total", "counter", "x", [("", {"service": value}, 0.25) for value in NASTY]),
    ]
    samples = parsed(render(families, is_openmetrics=is_openmetrics).decode(), is_openmetrics=is_openmetrics)
    assert len(samples) == len(NASTY) * (len(BUCKETS_S) + 1 + 2 + 1)


def test_edges_are_floats_and_counts_are_whole_in_the_text() -> None:
    """OpenMetrics wants `le="1.0"`: a label is compared as text."""
    metrics = Metrics()
    metrics.observe([row(ms=1.0)])
    text = render([Family("x", "histogram", "h", histogram_samples(metrics.durations(), "r"))], is_openmetrics=True)
    edges = re.findall(r'le="(.+?)"\} ([0-9]+)\n', text.decode())
    assert edges == [(repr(edge), "1") for edge in BUCKETS_S] + [("+Inf", "1")]


def test_what_strangers_choose_makes_no_series() -> None:
    """A path, a user, an address, a request id and a method are all theirs to vary."""
    metrics = Metrics()
    metrics.observe([row()])
    before = [len(table) for table in _tables(metrics)]
    metrics.observe(
        [
            row(
                f"M{n}", request_id=f"{n}", path=f"/{n}", user_id=f"u{n}", client_ip=f"10.0.0.{n}", error_message=f"{n}"
            )
            for n in range(200)
        ]
    )
    after = [len(table) for table in _tables(metrics)]
    assert after == [before[0] + 1, *before[1:]]  # one for all the methods: _OTHER


def _tables(metrics: Metrics) -> list[Sized]:
    return [metrics.answered, metrics.durations(), metrics.upstream, metrics.attempts]


def test_every_attempt_is_counted_once_by_how_it_ended() -> None:
    metrics = Metrics()
    rows = [
        row(),
        row(attempts=2),
        row(status=500),
        row(status=502, reason="upstream_closed", attempts=3, upstream_time=None),
        row(status=503, reason="upstream_5xx"),
        row(reason="upstream_truncated"),
        row(status=499, reason="client_closed"),
        row(status=500, reason="internal", attempts=2),
    ]
    metrics.observe(rows)
    assert {outcome: count for (_, outcome), count in metrics.attempts.items()} == {
        "answered": 3,
        "failed": 3,
        "retried": 1 + 2 + 1,
        "abandoned": 2,
    }
    assert sum(metrics.attempts.values()) == sum(one.attempts for one in rows)


def test_a_local_answer_is_no_attempt() -> None:
    metrics = Metrics()
    metrics.observe([row(target_service="gateway", attempts=0, upstream_time=None)])
    assert not metrics.attempts
    assert not metrics.upstream
    assert metrics.durations()["route-1"].total_s == pytest.approx(0.003)


def test_unreadable_heads_are_counted() -> None:
    metrics = Metrics()
    metrics.unreadable(Reason.BAD_REQUEST)
    assert dict(metrics.unread) == {"bad_request": 1}


def test_a_copy_is_as_it_was_when_it_was_made() -> None:
    metrics = Metrics()
    metrics.observe([row(), row(status=502, reason="upstream_closed"), row("BREW")])
    metrics.unreadable(Reason.BAD_REQUEST)
    copied = asyncio.run(metrics.copy())
    facts = [str(_values(copied)), str(_values(metrics))]
    assert facts[0] == facts[1]
    metrics.observe([row(), row(status=502, reason="upstream_closed"), row(target_service="other"), row("BREW")])
    metrics.unreadable(Reason.BAD_REQUEST)
    assert str(_values(copied)) == facts[0] != str(_values(metrics))


def _values(metrics: Metrics) -> list[object]:
    answered = [(labels, one.counts, one.total_s) for labels, one in metrics.answered.items()]
    upstream = [(service, one.counts, one.total_s) for service, one in metrics.upstream.items()]
    return [
        answered,
        upstream,
        dict(metrics.attempts),
        dict(metrics.failures),
        dict(metrics.unread),
        metrics.started_at,
    ]


def test_counters_of_what_is_gone_stay_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_FEW_SERIES", 20)
    metrics = Metrics()
    looked = 0

    def routes() -> set[str]:
        nonlocal looked
        looked += 1
        return {"stays"}

    def gone(first: int, count: int) -> None:
        names = [str(number) for number in range(first, first + count)]
        metrics.observe([row("GET", 502, reason="upstream_closed", route_id=n, target_service=f"s{n}") for n in names])

    metrics.observe([row(route_id="stays"), row(route_id=None, target_service=None, attempts=0)])
    gone(0, 3)  # each has a series as a route, four as a service
    metrics.keep(routes, {"content"})
    assert (len(metrics.answered), looked) == (5, 0), "somebody may not have read them yet"
    gone(3, 1)
    metrics.keep(routes, {"content"})
    assert {labels[0] for labels in metrics.answered} == {"stays", None}
    assert set(metrics.upstream) == {"content"}
    assert {service for service, _ in [*metrics.attempts, *metrics.failures]} == {"content"}
    metrics.keep(routes, {"content"})
    assert looked == 1, "it is not looked for what is gone at every write"


def test_a_route_that_is_deleted_is_forgotten_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "_FEW_SERIES", 0)

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            path, body = "/api/v1/gateway/routes", {"path_pattern": "/x", "target_service": "auth", "is_public": True}
            made = json_of(await ask(gateway.port, "POST", path, bearer=ADMIN, body=body))
            for target in ("/x", "/api/v1/auth/x", "/nowhere"):
                await ask(gateway.port, "GET", target)
            await gateway._console.flushed()
            before = {labels[0] for labels in gateway.metrics.answered}
            assert (await ask(gateway.port, "DELETE", f"{path}/{made['id']}", bearer=ADMIN)).status == 204
            after = {labels[0] for labels in gateway.metrics.answered}
            assert before - after == {made["id"]}
            assert ("auth", "answered") in gateway.metrics.attempts

    asyncio.run(run())


def test_others_are_served_while_many_series_are_copied() -> None:
    async def run() -> int:
        metrics = Metrics()
        metrics.observe([row(route_id=f"route-{n}") for n in range(5000)])
        copying = asyncio.create_task(metrics.copy())
        turns = 0
        while not copying.done():
            await asyncio.sleep(0)
            turns += 1
        assert len((await copying).answered) == 5000
        return turns

    assert asyncio.run(run()) >= 10


def test_a_thread_makes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of routes it takes long, and the loop serves everybody."""
    threads: list[int] = []
    text_of = prometheus.text_of

    def make(metrics: Metrics, *args: Any, **kwargs: Any) -> bytes:
        threads.append(threading.get_ident())
        assert metrics is not running_metrics[0]
        return text_of(metrics, *args, **kwargs)

    running_metrics: list[Metrics] = []

    async def run() -> None:
        monkeypatch.setattr(prometheus, "text_of", make)
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            running_metrics.append(gateway.metrics)
            for path in ("metrics/prometheus", "metrics"):
                reply = await ask(
                    gateway.port, "GET", f"/api/v1/gateway/{path}", bearer=ADMIN, headers={"Accept": "text/plain"}
                )
                assert reply.status == 200

    asyncio.run(run())
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_the_page_of_a_running_gateway(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            for _ in range(3):
                await ask(gateway.port, "GET", "/api/v1/auth/x")
            await ask(gateway.port, "GET", "/nowhere")
            await asyncio.sleep(0.1)
            gateway.access_log._writer.lost = 7
            reply = await ask(gateway.port, "GET", "/api/v1/gateway/metrics/prometheus", bearer=ADMIN)
            assert b"\nengadi_access_lines_lost_total 7\n" in reply.body
            assert reply.one("content-type") == "text/plain; version=0.0.4; charset=utf-8"
            text = reply.body.decode()
            samples = parsed(text)
            route = gateway.configuration.snapshot.routes[0].id
            assert samples[f'engadi_route_info{{route="{route}",path_pattern="/api/v1/auth/*",service="auth"}}'] == 1
            assert any('path_pattern="/health",service="gateway"' in name for name in samples)
            assert samples[f'engadi_http_requests_total{{route="{route}",method="GET",code="200",reason="ok"}}'] == 3
            assert samples['engadi_http_requests_total{route="",method="GET",code="404",reason="no_route"}'] == 1
            assert samples[f'engadi_http_request_duration_seconds_count{{route="{route}"}}'] == 3
            assert samples['engadi_upstream_request_duration_seconds_count{service="auth"}'] == 3
            assert samples['engadi_circuit_state{service="auth",state="closed"}'] == 1
            assert not [name for name in samples if name.startswith("engadi_target_up")], "nobody has looked"
            assert samples["engadi_config_revision"] == 1
            assert samples["engadi_log_size_bytes"] > 10_000
            assert samples["process_resident_memory_bytes"] > 1 << 20
            assert "127.0.0.1:4" not in re.sub(r"engadi_(target_up|upstream_connections).*", "", text)
            assert samples["process_start_time_seconds"] == pytest.approx(time.time(), abs=60)
            connections = f'engadi_upstream_connections{{service="auth",target="{auth.url}",state="idle"}}'
            assert samples[connections] == 1
            assert samples['engadi_upstream_attempts_total{service="auth",outcome="answered"}'] == 3
            target, accept = "/api/v1/gateway/metrics", {"Accept": "application/openmetrics-text"}
            await gateway.checker.check_now("auth")
            reply = await ask(gateway.port, "GET", target, bearer=ADMIN, headers=accept)
            assert reply.one("content-type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
            later = parsed(reply.body.decode(), is_openmetrics=True)
            assert set(samples) <= set(later)
            assert later[f'engadi_target_up{{service="auth",target="{auth.url}"}}'] == 1
            changes = {name for name in samples if samples[name] != later[name]}
            assert "process_start_time_seconds" not in changes  # or every scrape would look like a restart

    asyncio.run(run())


def test_the_page_counts_how_often_a_circuit_came_into_each_state(tmp_path: Path) -> None:
    async def run() -> dict[str, float]:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            breaker, limits = gateway.breakers.of("auth"), Thresholds(1, 1, 60.0)
            for now in (0.0, 100.0, 200.0):
                breaker.failed(breaker.take_permit(now), now, limits, "test")
            breaker.succeeded(breaker.take_permit(300.0), 300.0, limits)
            reply = await ask(gateway.port, "GET", "/api/v1/gateway/metrics/prometheus", bearer=ADMIN)
            return parsed(reply.body.decode())

    samples = asyncio.run(run())
    counts = {state: samples[f'engadi_circuit_transitions_total{{service="auth",state="{state}"}}'] for state in STATES}
    assert counts == {"closed": 1, "open": 3, "half_open": 3}


def test_the_page_counts_rows_that_were_shed_and_rows_that_failed_as_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            stats = JournalStats(rows_written=5, rows_shed=30, rows_failed=400, queue_depth=6, size_bytes=7)
            monkeypatch.setattr(gateway.journal, "stats", lambda: stats)
            lines = (
                (await ask(gateway.port, "GET", "/api/v1/gateway/metrics/prometheus", bearer=ADMIN))
                .body.decode()
                .splitlines()
            )
            assert {line for line in lines if line.startswith("engadi_log_")} == {
                "engadi_log_rows_written_total 5",
                "engadi_log_rows_dropped_total 430",
                "engadi_log_queue_depth 6",
                "engadi_log_size_bytes 7",
            }

    asyncio.run(run())


def test_connections_are_of_all_the_services_at_their_target(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as one, upstream() as other, running(tmp_path, one, one) as gateway:
            own = {"path_pattern": "/own/*", "target_service": "own", "target_url": other.url + "/base"}
            made = await ask(gateway.port, "POST", "/api/v1/gateway/routes", bearer=ADMIN, body=own)
            for path in ("/api/v1/auth/x", "/own/x"):
                assert (await ask(gateway.port, "GET", path, bearer=ADMIN)).status == 200
            assert gateway._console.targets() == {one.url: "auth,content", other.url: "own"}
            await ask(gateway.port, "DELETE", made.one("location"), bearer=ADMIN)
            reply = await ask(gateway.port, "GET", "/api/v1/gateway/metrics/prometheus", bearer=ADMIN)
            samples = parsed(reply.body.decode())
            for names, url in (("auth,content", one.url), ("", other.url)):
                assert samples[f'engadi_upstream_connections{{service="{names}",target="{url}",state="idle"}}'] == 1

    asyncio.run(run())


def test_a_target_is_up_as_the_health_page_has_it_and_one_never_checked_is_neither(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as up, running(tmp_path, up, up, up, up) as gateway:
            gateway.checker.restore(
                [
                    ServiceHealth("auth", up.url, HealthStatus.HEALTHY, last_check=1),
                    ServiceHealth("content", up.url, HealthStatus.DEGRADED, last_check=1, consecutive_failures=1),
                    ServiceHealth("projects", up.url, HealthStatus.UNHEALTHY, last_check=1, consecutive_successes=1),
                ]
            )
            reply = await ask(gateway.port, "GET", "/api/v1/gateway/metrics/prometheus", bearer=ADMIN)
            samples = parsed(reply.body.decode())
            found = {name: value for name, value in samples.items() if name.startswith("engadi_target_up")}
            assert found == {
                f'engadi_target_up{{service="{name}",target="{up.url}"}}': value
                for name, value in (("auth", 1), ("content", 1), ("projects", 0))
            }

    asyncio.run(run())
