"""A bounded fuzz run, the same one each time; `python -m tests.fuzz` is the long one. And that it can find anything."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from engadi_gateway.wire.request import HeadLimits
from tests.fakes import Reply, Upstream
from tests.fuzz import grammar, live, offline
from tests.fuzz.__main__ import Bounds, run_live, run_offline
from tests.fuzz.oracle import Asked, Intake, requests_by_h11

ROUNDS = {"replies": 3000, "chunks": 3000, "streams": 100, "names": 2000, "paths": 5000}


@pytest.mark.parametrize("part", ROUNDS)
def test_made_up_messages(part: str) -> None:
    text, wrong = run_offline(part, 1, Bounds(ROUNDS[part], 60))
    assert wrong == []
    assert text == f"{ROUNDS[part]} made up"


def test_made_up_clients_and_upstreams() -> None:
    text, wrong = run_live(1, Bounds(30, 60))
    assert wrong == []
    assert " requests logged, " in text


def test_every_part_of_the_grammar_is_used() -> None:
    """All of it is made up of a seed, and the bent ones differ from the good ones."""
    streams = [grammar.stream(Random(seed), ["a", "b"], grammar.KINDS, "t") for seed in range(300)]
    assert streams == [grammar.stream(Random(seed), ["a", "b"], grammar.KINDS, "t") for seed in range(300)]
    intakes = [Intake(HeadLimits()) for _ in streams]
    for intake, raw in zip(intakes, streams, strict=True):
        intake.feed(raw)
    assert sum(intake.refusal is None for intake in intakes) > 100
    assert sum(intake.refusal is not None for intake in intakes) > 50
    everything = b"".join(streams)
    assert all(f"/{kind}/".encode() in everything for kind in grammar.KINDS)


def test_the_oracle_reads_streams_strictly() -> None:
    raw = b"POST /a HTTP/1.1\r\nHost: h\r\nX-Mark: m\r\nContent-Length: 2\r\n\r\nokGET /b HTTP/1.1\r\nHost: h\r\n\r\n"
    both = [Asked("POST", "/a", ("m",), b"ok", is_whole=True), Asked("GET", "/b", (), b"", is_whole=True)]
    assert requests_by_h11(raw) == (both, False)
    assert requests_by_h11(raw[:-2]) == (both[:1], False)
    assert requests_by_h11(raw + b"BAD\r\n\r\n") == (both, True)
    assert requests_by_h11(raw.replace(b"POST", b"\r\nPOST")) == ([], True)
    assert requests_by_h11(raw.replace(b"POST", b"\r\nPOST"), skips_blank_lines=True) == (both, False)


def test_a_different_reading_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "reply_by_h11", lambda *_: None)
    assert run_offline("replies", 1, Bounds(20, 60))[1]
    monkeypatch.setattr(offline, "requests_by_h11", lambda *_, **__: ([], False))
    assert run_offline("streams", 1, Bounds(20, 60))[1]


ONE = b"GET /api/v1/auth/length/m1?q HTTP/1.1\r\nHost: h\r\nX-Mark: m1\r\n\r\n"
RIGHT = b"GET /api/v1/auth/length/m1?q m1 e3b0c44298fc1c14"


@pytest.mark.parametrize(
    ("mark", "body", "is_right"),
    [("m1", RIGHT, True), ("m2", RIGHT, False), ("m1", RIGHT.replace(b"m1", b"m2"), False), ("evil", b"evil", False)],
)
def test_another_s_answer_is_a_fault(tmp_path: Path, mark: str, body: bytes, is_right: bool) -> None:
    tally = live.Tally()
    intake = Intake(HeadLimits())
    intake.feed(ONE)
    reply = Reply(200, [("x-mark", mark)], body, True, [])
    live.World(tmp_path, Random(1), tally).check(reply, intake.heads[0], 0, intake, ONE)
    assert (tally.wrong == []) is is_right


@pytest.mark.parametrize("logged", [{}, {("GET", "/b"): 1}, {("GET", "/api/v1/auth/length/m1"): 2}])
def test_a_request_that_was_not_logged_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: dict[tuple[str, str], int]
) -> None:
    tally, upstream = live.Tally(), Upstream()
    upstream.raw.append(bytearray(ONE))
    world = live.World(tmp_path, Random(1), tally)
    world.is_orderly = True
    monkeypatch.setattr(world, "logged", lambda: Counter(logged))
    world.count(upstream)
    assert len(tally.wrong) == 1
