"""What rows add up to in memory: held against adding them up one by one."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.model import LogRow
from engadi_gateway.store import sums
from engadi_gateway.store.sums import HOUR_MS, MINUTE_MS, UNMATCHED, Span, Sums, buckets_of, template_of, value_of
from tests.logrows import a_row, random_rows

NOW = 1_790_000_000_000

# latencies


@given(st.floats(0.001, 1e8))
def test_the_middle_of_a_bucket_is_less_than_one_percent_off(latency: float) -> None:
    (bucket,) = buckets_of([latency])
    assert abs(value_of(bucket) - latency) <= 0.00991 * latency


def test_what_is_too_short_to_tell_is_a_microsecond() -> None:
    assert len(set(buckets_of([0.0, -1.0, 0.0009, 0.001]))) == 1


# endpoints


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/", "/"),
        ("/items", "/items"),
        ("/items/7", "/items/{id}"),
        ("/items/7/", "/items/{id}/"),
        ("/7/8/9", "/{id}/{id}/{id}"),
        ("/v1/items", "/v1/items"),
        ("/items/7a", "/items/7a"),
        ("/items/0d9f1b52-3f0e-5b1e-8f6d-7c2a9e4d1c3b/x", "/items/{id}/x"),
        ("/items/0D9F1B52-3F0E-5B1E-8F6D-7C2A9E4D1C3B", "/items/{id}"),
        ("/blobs/0123456789abcdef", "/blobs/{id}"),
        ("/blobs/0123456789abcde", "/blobs/0123456789abcde"),
        ("/t/" + "x" * 40, "/t/{id}"),
        ("/t/" + "x" * 39, "/t/" + "x" * 39),
        ("/a//7", "/a//{id}"),
        ("/a\n/7\n", "/a\n/7\n"),
    ],
)
def test_what_looks_like_an_id(path: str, endpoint: str) -> None:
    assert template_of(path) == endpoint


#: Of which `template_of` is a faster form.
PLAINLY = re.compile(
    r"(?<=/)(?:[0-9]+|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|[0-9a-fA-F]{16,}|[^/]{40,})(?=/|\Z)"
)
SEGMENTS = st.one_of(
    st.text("0123456789", min_size=1, max_size=45),
    st.text("0aF", min_size=14, max_size=42),
    st.text("/a1\n\u0660-{}", max_size=45),
    st.uuids().map(str),
    st.sampled_from(["", "v1", "items", "7", "x" * 39, "x" * 40]),
)


@given(st.lists(SEGMENTS, max_size=8).map("/".join), st.sampled_from(["", "/", "//", "*"]))
def test_ids_are_found_wherever_they_stand(path: str, before: str) -> None:
    path = (before + path)[:200]
    assert template_of(path) == PLAINLY.sub("{id}", path)
    assert sums._Templates()[path] == template_of(path)


def test_long_paths_are_cut_and_not_remembered() -> None:
    assert template_of("/a" * 4000) == "/a" * 100
    templates = sums._Templates()
    assert templates["/a" * 4000] == "/a" * 100
    assert templates["/items/7"] == "/items/{id}"
    assert dict(templates) == {"/items/7": "/items/{id}"}


def test_what_is_remembered_of_paths_is_bounded() -> None:
    templates = sums._Templates()
    for number in range(3 * sums._MOST_PATHS):
        assert templates[f"/{number}"] == "/{id}"
        assert len(templates) <= sums._MOST_PATHS


# sums


def one_by_one(rows: list[LogRow], span: int) -> dict[int, Span]:
    found: dict[int, Span] = {}
    for start in {row.created_at - row.created_at % span for row in rows}:
        mine = [row for row in rows if row.created_at - row.created_at % span == start]
        found[start] = summed = Span()
        for end in {(row.target_service or "", row.status_code, row.reason) for row in mine}:
            these = [row for row in mine if (row.target_service or "", row.status_code, row.reason) == end]
            ins, outs = sum(row.bytes_in for row in these), sum(row.bytes_out for row in these)
            summed.counts[end] = len(these), ins, outs
        for service in {row.target_service or "" for row in mine}:
            times = [row.response_time for row in mine if (row.target_service or "") == service]
            buckets = Counter(buckets_of(times))
            summed.latencies[service] = sums.Latencies(len(times), sum(times), min(times), max(times), buckets)
        for name in {name_of(row) for row in mine}:
            these = [row for row in mine if name_of(row) == name]
            errors = sum(row.status_code >= 400 for row in these)
            summed.endpoints[name] = len(these), errors, sum(row.response_time for row in these)
    return found


def name_of(row: LogRow) -> str:
    return UNMATCHED if row.route_id is None else f"{row.method} {template_of(row.path)}"


ROWS = [
    row._replace(route_id=None) if number % 7 == 0 else row
    for number, row in enumerate(random_rows(900, NOW, NOW + 3 * HOUR_MS))
]


@pytest.mark.parametrize("size", [1, 10, 900])
def test_rows_add_up_however_they_come(size: int) -> None:
    kept = Sums()
    for start in range(0, len(ROWS), size):
        kept.add(ROWS[start : start + size])
    kept.add([])
    spans = [(length, start) for length, start, _ in kept.spans()]
    assert len(spans) == len(set(spans)), "a span is told once"
    for span in (MINUTE_MS, HOUR_MS):
        mine = {start: summed for length, start, summed in kept.spans() if length == span}
        wanted = one_by_one(ROWS, span)
        assert set(mine) == set(wanted)
        for start, summed in mine.items():
            assert summed.counts == wanted[start].counts
            close_to(summed, wanted[start])
    kept.clear()
    assert list(kept.spans()) == []


def close_to(summed: Span, wanted: Span) -> None:
    """Sums of floats depend on their order, a little."""
    assert set(summed.latencies) == set(wanted.latencies)
    for service, latencies in summed.latencies.items():
        other = wanted.latencies[service]
        assert latencies._replace(total=0.0) == other._replace(total=0.0)
        assert math.isclose(latencies.total, other.total)
    assert {name: sums[:2] for name, sums in summed.endpoints.items()} == {
        name: sums[:2] for name, sums in wanted.endpoints.items()
    }
    for name, (*_, total) in summed.endpoints.items():
        assert math.isclose(total, wanted.endpoints[name][2])


def test_what_matched_no_route_is_one_endpoint_whatever_it_asked() -> None:
    kept = Sums()
    kept.add([a_row(method=method, path=f"/{method}.php", route_id=None) for method in ("GET", "POST", "PUT")])
    kept.add([a_row(path="/items/7"), a_row(path="/x.php", route_id=None, status_code=404)])
    for _, _, summed in kept.spans():
        assert {name: sums[:2] for name, sums in summed.endpoints.items()} == {
            UNMATCHED: (4, 1),
            "GET /items/{id}": (1, 0),
        }
