"""The benchmark's own parts: what it counts, what it compares, what it says."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.bench import upstream
from tests.bench.__main__ import chosen_loads, chosen_peers, parse
from tests.bench.accounting import Process, cpu_s, members, readings, resident_mib, spent_s
from tests.bench.load import Job, Load, parsed, percentile
from tests.bench.loads import GROUPS, LOADS
from tests.bench.peers import ROOT, Duty, Place, Setup, free_port
from tests.bench.peers.debian import PEERS as DEBIAN
from tests.bench.peers.registry import PEERS
from tests.bench.proof import ask, breaker_fault, failing_upstream, faults_of, limit_fault
from tests.bench.report import markdown, spread_percent, with_table
from tests.bench.requests import SECRET, Requests, Shape, token
from tests.bench.rounds import Bench, NotReadyError, Plan, cells_of, figures, run, wait_until
from tests.bench.targets import TARGETS, Median

CORE = min(os.sched_getaffinity(0))

# numbers


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, 0.0),
        ([7.0], 50, 7.0),
        ([7.0], 99, 7.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 51, 3.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 101)], 100, 100.0),
        ([float(n) for n in range(1, 102)], 99, 100.0),
    ],
)
def test_percentiles_are_of_the_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_spread_is_half_the_range_of_the_median() -> None:
    assert spread_percent([{"x": 90.0}, {"x": 100.0}, {"x": 120.0}], "x") == 15.0
    assert spread_percent([{"x": 0.0}], "x") == 0.0


def test_what_was_spent_is_the_difference_of_two_readings() -> None:
    assert spent_s({1: 5.0, 2: 1.0}, {1: 7.0, 2: 1.5, 3: 0.25}) == 2.75  # the third began in between
    assert spent_s({1: 5.0, 2: 1.0}, {1: 6.0, 2: 0.0}) == 1.0  # the second ended, what it spent is not known


def test_figures_are_for_each_request() -> None:
    result = {
        "requests": 1000, "seconds": 2.0, "p50_ms": 1.0, "p99_ms": 3.0, "max_ms": 4.0, "cpu_s": 0.05,
        "upstream_cpu_s": 1.0, "load_cpu_s": 0.9, "resident_mib": 30.0, "bad": 0, "first_bad": "",
    }  # fmt: skip
    found = figures(result)
    assert (found["requests_per_s"], found["cpu_us"]) == (500.0, 50.0)
    assert (found["core_share"], found["load_core_share"]) == (0.025, 0.95)


# the accounting

_BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


def _until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_group_costs_what_all_its_members_cost(tmp_path: Path) -> None:
    child = _BURN.format(seconds=0.1) + "time.sleep(60)"
    parent = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n" + child
    process = Process([sys.executable, "-c", parent], tmp_path, CORE, {})
    try:
        _until(lambda: len(members(process.group)) == 2 and all(cpu_s(pid) >= 0.1 for pid in members(process.group)))
        spent = readings([process.group])
        assert 0.2 <= spent_s({}, spent) < 5.0
        assert resident_mib(process.group) > 5
    finally:
        process.stop()
    _until(lambda: members(process.group) == [])  # the child's child is the init process's to reap
    _until(lambda: all(cpu_s(pid) == 0.0 for pid in spent))


def test_a_paused_process_spends_nothing(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "while True: pass"], tmp_path, CORE, {})
    try:
        _until(lambda: cpu_s(process.group) > 0.05)
        process.pause()
        state = Path(f"/proc/{process.group}/stat")
        _until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        before = cpu_s(process.group)
        time.sleep(0.05)
        assert cpu_s(process.group) == before
    finally:
        process.stop()
    assert not process.is_running


def test_last_words_are_the_error_or_else_the_last_line(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "print('a'); print('an ERROR here'); print('b')"], tmp_path, CORE, {})
    with pytest.raises(NotReadyError, match="ended at once: an ERROR here"):
        wait_until(lambda: False, process, 20.0)
    assert process.last_words() == "an ERROR here"
    process.stop()


# requests


def test_no_two_requests_are_alike() -> None:
    requests = Requests(Shape(users=50, addresses=70))
    made = [requests.next() for _ in range(500)]
    for pattern in (rb"GET (\S+)", rb"traceparent: (\S+)", rb"session=(\S+)"):
        assert len({re.search(pattern, data)[1] for data, _ in made}) == 500  # type: ignore[index]  # it is there, or this fails
    assert len({re.search(rb"Bearer (\S+)", data)[1] for data, _ in made}) == 50  # type: ignore[index]
    assert len({re.search(rb"Forwarded-For: (\S+)", data)[1] for data, _ in made}) == 70  # type: ignore[index]
    assert len({body for _, body in made}) == 500


def test_a_token_is_one_for_others_too() -> None:
    claims = jwt.decode(token(7), SECRET, ["HS256"], {"require": ["exp", "sub"]})
    assert claims["sub"] == "user-7"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token(7, "another key, also of more than 32 bytes"), SECRET, ["HS256"])


def test_a_job_survives_the_command_line() -> None:
    job = Job(1, 2, 3.0, shape=Shape(users=4, spread=5))
    assert Job.of(job.as_json()) == job


# answers

_OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_OK + b"Content-Length: 3\r\n\r\nab", None),
        (_OK + b"Content-Length: 3\r\n\r\nabc", (200, b"abc")),
        (_OK + b"content-length:3\r\n", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n", None),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", (200, b"abc")),
    ],
)
def test_replies_are_read_by_their_own_framing(data: bytes, expected: tuple[int, bytes] | None) -> None:
    assert parsed(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"3\r\nabc\r\n", None), (b"3\r\nab", None), (b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789")],
)
def test_the_upstream_reads_chunks(data: bytes, expected: bytes | None) -> None:
    assert upstream.unchunked(data) == expected


def test_the_upstream_answers_with_the_mark_and_the_length() -> None:
    assert upstream.answer(b"GET /a?id=9f HTTP/1.1\r\n\r\n", b"").endswith(b"\r\n\r\n9f" + b"." * 1022)
    assert len(upstream.answer(b"GET /a?id=9f&n=5 HTTP/1.1\r\n\r\n", b"").partition(b"\r\n\r\n")[2]) == 5
    assert upstream.answer(b"POST /a?id=9f HTTP/1.1\r\n\r\n", b"9f....").startswith(b"HTTP/1.1 200 ")
    assert upstream.answer(b"POST /a?id=9f HTTP/1.1\r\n\r\n", b"9e....").startswith(b"HTTP/1.1 400 ")


@contextlib.contextmanager
def _answering(change: Any = None) -> Iterator[int]:
    """An upstream on a thread; `change` spoils each of its replies."""
    original = upstream.answer
    if change is not None:
        upstream.answer = lambda head, body: change(original(head, body))
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        upstream.answer = original


def _serve(listener: socket.socket) -> None:
    """One connection, until it ends."""
    sock, _ = listener.accept()
    listener.close()
    connection = upstream.Connection(sock)
    with sock:
        while connection.read():
            while connection.unsent:
                connection.send(connection.unsent)


@pytest.mark.parametrize(
    "shape", [Shape(), Shape(reply_bytes=300_000), Shape(upload_bytes=300_000), Shape(reply_bytes=9)], ids=str
)
def test_good_answers_are_counted(shape: Shape) -> None:
    with _answering() as port:
        result = Load(Job(port, 1, 30.0, warm_requests=5, requests=20, shape=shape)).run()
    assert (result.requests, result.bad, result.first_bad) == (20, 0, "")
    assert 0 < result.p50_ms <= result.p99_ms <= result.max_ms


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda reply: reply.replace(b"200 OK", b"503 No"), "503, 1024 bytes"),
        (lambda reply: reply[:-1] + b"!", "200, 1024 bytes"),
        (lambda reply: reply[:-1024] + b"0" + reply[-1023:], "200, 1024 bytes"),
        (lambda reply: reply.replace(b"1024", b"1023")[:-1], "200, 1023 bytes"),
        (lambda reply: b"nonsense\r\n\r\n", "connection lost"),
    ],
    ids=["status", "last byte", "another's mark", "length", "no reply"],
)
def test_wrong_answers_are_told(change: Any, said: str) -> None:
    with _answering(change) as port:
        result = Load(Job(port, 1, 30.0, requests=1)).run()
    assert result.bad >= 1
    assert result.first_bad.startswith(said)


# what a peer claims


def test_a_duty_that_is_claimed_but_not_done_is_found(tmp_path: Path) -> None:
    """The upstream itself, as a gateway that has no duties at all."""
    with failing_upstream() as failing:
        assert "60 of 60 requests still went" in breaker_fault(failing.server_port, failing)
    upstream_command = [sys.executable, "-m", "tests.bench.upstream"]
    port = free_port()
    process = Process([*upstream_command, str(port)], tmp_path, CORE, {"PYTHONPATH": str(ROOT)})
    try:
        wait_until(lambda: ask(port).is_good, process, 20.0)
        assert limit_fault(port) == "limits: 60 requests passed where one a second may"
        assert faults_of(replace(PEERS["engadi"], duties=(Duty.JWT, Duty.CORS)), Place(tmp_path, port, 0)) == [
            "JWT: no token gives 200 and not 401",
            "CORS: the allowed origin gets None",
        ]
    finally:
        process.stop()


# tables


def _median_of(values: dict[tuple[str, str, str], float]) -> Median:
    return lambda load, peer, key: values.get((load, peer, key))


def test_targets_are_ratios_and_nothing_where_nothing_was_measured() -> None:
    median = _median_of({("full", "engadi", "cpu_us"): 60.0, ("full", "nginx", "cpu_us"): 40.0})
    found = {target.title: target.value(median) for target in TARGETS}
    assert found["full: CPU beside nginx"] == 1.5
    assert found["full: CPU beside Envoy"] is None
    rules = _median_of({("rules-1", "engadi", "cpu_us"): 60.0, ("rules-20", "engadi", "cpu_us"): 63.8})
    assert {target.title: target.value(rules) for target in TARGETS}["us a rule, from 1 to 20"] == pytest.approx(0.2)


def test_targets_name_loads_and_peers_that_there_are() -> None:
    def median(load: str, peer: str, key: str) -> float:
        assert load in LOADS and peer in PEERS and key in {"cpu_us", "p50_ms", "p99_ms"}
        return 1.0

    assert all(target.value(median) is not None for target in TARGETS)


def _round(**values: float) -> dict[str, float]:
    base = {"requests_per_s": 1000.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 50.0, "load_core_share": 0.5}
    return {**base, "core_share": 0.9, "resident_mib": 30.0, **values}


def _document() -> dict[str, Any]:
    def cell(load: str, peer: str, *rounds: dict[str, float], error: str = "") -> dict[str, Any]:
        about = LOADS[load]
        return {
            "load": load, "title": about.title, "peer": peer, "is_own": about.is_own, "error": error, "rounds": rounds,
        }  # fmt: skip

    return {
        "date": "2026-01-02",
        "machine": {"cpu": "Some CPU", "cores": 2, "kernel": "6.1", "python": "3.11.7"},
        "plan": {"rounds": 3, "seconds": 4.0, "warm_s": 1.0},
        "missing": {"Caddy": "not installed"},
        "peers": {
            "engadi": {"version": "1", "duties": ["JWT", "log"], "note": ""},
            "nginx": {"version": "1.2", "duties": ["log"], "note": "limit_req"},
        },
        "cells": [
            cell("bare", "engadi", _round(cpu_us=40.0), _round(cpu_us=42.0), _round(cpu_us=50.0)),
            cell("bare", "nginx", _round(cpu_us=20.0, load_core_share=0.97)),
            cell("full", "engadi", _round()),
            cell("full", "nginx", error="claimed, but not seen: JWT"),
            cell("full-1", "engadi", _round()),
            cell("rules-20", "engadi", _round(cpu_us=52.0)),
        ],
    }


def test_the_tables_say_what_was_measured() -> None:
    text = markdown(_document())
    assert text.startswith("2026-01-02, Some CPU, 2 cores")
    assert "| engadi | 42 ±12 % | 1,000 | 50 ±0 % | 1,000 | 1.00 | 2.00 | 30 | JWT, log |" in text
    assert (
        "| nginx | 20 ±0 % | 1,000† |  |  |  |  |  | log |" in text
    )  # the load's core was busy, the other form failed
    assert "| engadi | 50 / 1.00 / 2.0 |" in text
    assert "| 20 rules that apply | 52 ±0 % | 1.00 / 2.0 |" in text
    assert "| bare: CPU beside nginx | 2.8 | 2.10 | yes |" in text
    assert "| CPU of full beside bare | 1.25 | 1.19 | yes |" in text
    assert "- engadi: 1\n- nginx: 1.2; limit_req\n" in text
    assert "- Caddy: not installed\n- nginx, full: claimed, but not seen: JWT" in text


def test_the_form_on_pypy_stands_beside_ours_in_the_targets() -> None:
    document = _document()
    document["peers"]["engadi on PyPy"] = {"version": "1", "duties": ["JWT", "log"], "note": ""}
    forms = {cell["load"]: cell for cell in document["cells"] if cell["peer"] == "engadi"}
    document["cells"] += [{**forms["bare"], "peer": "engadi on PyPy", "rounds": [_round(cpu_us=30.0)]}]
    text = markdown(document)
    assert "| bare: CPU beside nginx | 2.8 | 2.10 | yes | 1.50 |" in text
    assert "| CPU of full beside bare | 1.25 | 1.19 | yes |  |" in text


def test_the_readme_takes_the_tables_between_its_markers() -> None:
    readme = (ROOT / "README.md").read_text()
    filled = with_table(readme, "a \\1 table\n")
    assert "<!-- benchmark -->\na \\1 table\n<!-- /benchmark -->" in filled
    assert with_table(filled, "") == with_table(readme, "")


# the choice


def test_names_and_groups_can_be_chosen() -> None:
    assert [load.name for load in chosen_loads("full-1,quick,bare")] == ["full-1", "bare", "full"]
    assert [peer.name for peer in chosen_peers("nginx,engadi")] == ["nginx", "engadi"]
    assert chosen_peers("all") == list(PEERS.values())
    assert set(GROUPS["peers"]) | set(GROUPS["own"]) == set(GROUPS["all"])
    assert chosen_loads(parse([]).loads)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(SystemExit, match="unknown: nosuch"):
        chosen_loads("full,nosuch")


def test_own_loads_are_asked_of_this_gateway_alone() -> None:
    cells = cells_of([LOADS["full"], LOADS["rules-4"]], [PEERS["engadi"], PEERS["nginx"]])
    assert [(cell.load.name, cell.peer.name) for cell in cells] == [
        ("full", "engadi"), ("full", "nginx"), ("rules-4", "engadi"),
    ]  # fmt: skip


def test_who_has_no_duties_is_asked_for_forwarding_alone(tmp_path: Path) -> None:
    """And answers it: what h11 and the sockets cost is measured on whole answers too."""
    cells = cells_of([LOADS["bare"], LOADS["full"], LOADS["routes-10"]], [PEERS["h11 alone"]])
    assert [cell.load.name for cell in cells] == ["bare"]
    with Bench(tmp_path, Plan(rounds=1, seconds=0.2, warm_s=0.0, core=CORE, load_core=CORE)) as bench:
        bench.measure(cells[0])
    assert cells[0].error == ""
    assert cells[0].rounds[0]["requests"] > 10


def test_whoever_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.peers.debian._PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert all("not installed (Debian" in peer.missing() for peer in DEBIAN)


@pytest.mark.parametrize("name", [name for name in PEERS if name != "fastify"])  # it looks at its cache folder
@pytest.mark.parametrize("rate", [1, 1_000_000])
def test_every_peer_can_be_configured(tmp_path: Path, name: str, rate: int) -> None:
    """Whether or not it is installed; two forms, and small limits."""
    if PEERS[name].missing():
        pytest.skip(PEERS[name].missing())
    for form in filter(None, (PEERS[name].bare, PEERS[name].full)):
        command = form(Place(tmp_path, 18_000, 18_001, rate, Setup(routes=3, rules=5)))
        assert command.arguments


# the whole, on this gateway


def test_this_gateway_is_measured_and_does_what_it_claims(tmp_path: Path) -> None:
    plan = Plan(rounds=1, seconds=0.2, warm_s=0.0, core=CORE, load_core=CORE)
    peer = PEERS["engadi"]
    assert set(peer.duties) == set(Duty)
    cells = cells_of([LOADS["bare"], LOADS["routes-10"]], [peer])
    with Bench(tmp_path, plan) as bench:
        for number, cell in run(bench, cells, 1):
            assert (number, cell.error) == (1, "")
    for cell in cells:
        assert cell.rounds[0]["requests"] > 10
        assert 0 < cell.rounds[0]["cpu_us"] < 10_000
