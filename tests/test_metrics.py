"""The Prometheus text: its grammar, its histograms, its labels."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from engadi_gateway.errors import Reason
from engadi_gateway.metrics import BUCKETS_S, Family, Metrics, histogram_samples, render
from engadi_gateway.model import LogRow
from tests.fakes import upstream
from tests.harness import ADMIN, ask, running

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? ([0-9.e+-]+)')


def row(method: str = "GET", status: int = 200, ms: float = 3.0, **changes: object) -> LogRow:
    made = LogRow(
        "i", method, "/p", "content", None, "1.2.3.4", status, ms, None, 0, "ok", "route-1", 1, 0, 0, ms / 2, 1
    )
    return made._replace(**changes)  # type: ignore[arg-type]  # a test's own rows


def parsed(text: str) -> dict[str, float]:
    """Every sample by its whole name; a malformed line is an assertion."""
    samples = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) [a-z_]+ .+|# EOF", line), line
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name = line.rpartition(" ")[0]
        assert name not in samples, "the same series twice"
        samples[name] = float(match[3])
    return samples


def test_rows_are_counted_by_bounded_labels() -> None:
    metrics = Metrics()
    metrics.observe(
        [row(), row(), row("BREW", 418), row(status=502, reason="upstream_closed", attempts=3, upstream_time=None)]
    )
    assert dict(metrics.requests) == {
        ("route-1", "GET", 200, "ok"): 2,
        ("route-1", "_OTHER", 418, "ok"): 1,
        ("route-1", "GET", 502, "upstream_closed"): 1,
    }
    assert metrics.attempts["content", "first"] == 4
    assert metrics.attempts["content", "retry"] == 2


@pytest.mark.parametrize("ms", [0.0, 5.0, 5.001, 10_000.0, 10_001.0])
def test_histograms_are_cumulative_and_end_in_the_count(ms: float) -> None:
    metrics = Metrics()
    metrics.observe([row(ms=ms), row(ms=1.0)])
    samples = list(histogram_samples(metrics.durations, "route"))
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


def test_labels_are_escaped_and_openmetrics_ends() -> None:
    family = Family("engadi_x_total", "counter", "A\nB \\ C", [("", {"a": 'q"\\\n'}, 1.0)])
    text = render([family], is_openmetrics=False).decode()
    assert (
        text == '# HELP engadi_x_total A\\nB \\\\ C\n# TYPE engadi_x_total counter\nengadi_x_total{a="q\\"\\\\\\n"} 1\n'
    )
    open_text = render([family], is_openmetrics=True).decode()
    assert open_text.startswith("# HELP engadi_x A")
    assert open_text.endswith("\n# EOF\n")


def test_unreadable_heads_are_counted() -> None:
    metrics = Metrics()
    metrics.unreadable(Reason.BAD_REQUEST)
    assert dict(metrics.unread) == {"bad_request": 1}


def test_the_page_of_a_running_gateway(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            for _ in range(3):
                await ask(gateway.port, "GET", "/api/v1/auth/x")
            await ask(gateway.port, "GET", "/nowhere")
            await asyncio.sleep(0.1)
            reply = await ask(gateway.port, "GET", "/api/v1/gateway/metrics/prometheus", bearer=ADMIN)
            assert reply.one("content-type") == "text/plain; version=0.0.4; charset=utf-8"
            text = reply.body.decode()
            samples = parsed(text)
            route = gateway.snapshot.routes[0].id
            assert samples[f'engadi_http_requests_total{{route="{route}",method="GET",code="200",reason="ok"}}'] == 3
            assert samples['engadi_http_requests_total{route="",method="GET",code="404",reason="no_route"}'] == 1
            assert samples[f'engadi_http_request_duration_seconds_count{{route="{route}"}}'] == 3
            assert samples['engadi_upstream_request_duration_seconds_count{service="auth"}'] == 3
            assert samples['engadi_circuit_state{service="auth",state="closed"}'] == 1
            assert samples["engadi_config_revision"] == 1
            assert samples["process_resident_memory_bytes"] > 1 << 20
            families = re.findall(r"# TYPE ([a-z_]+) ", text)
            assert len(set(families)) == len(families)
            assert "127.0.0.1:4" not in re.sub(r"engadi_(target_up|upstream_connections).*", "", text)

    asyncio.run(run())
