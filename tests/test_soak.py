"""The long runs of `python -m tests.soak`, short."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from tests.soak import faults, kills, many, restarts, streams
from tests.soak.attacks import ATTACKS


def test_a_flapping_upstream(tmp_path: Path) -> None:
    report = asyncio.run(faults.soak(tmp_path, requests=2_500, seed=7))
    assert report.wrong == []
    assert len(report.faults) > 10
    assert report.posts > 100
    assert report.ends["200"] > 500
    assert report.retries > 0
    assert set(report.left_over.values()) == {0}


def test_kill_9_under_load(tmp_path: Path) -> None:
    report = asyncio.run(kills.soak(tmp_path, rounds=3, seed=3))
    assert report.wrong == []
    assert report.kills == 3
    assert report.writes_acknowledged > 0
    assert report.answered > 0


def test_kill_9_of_two_that_share(tmp_path: Path) -> None:
    report = asyncio.run(kills.soak(tmp_path, rounds=2, seed=4, processes=2))
    assert report.wrong == []
    assert report.kills == 4
    assert report.writes_acknowledged > 0
    assert report.answered > 0


def test_sigterm_under_load(tmp_path: Path) -> None:
    report = asyncio.run(restarts.drains(tmp_path, rounds=1, seed=5))
    assert report.wrong == []
    assert {end for end, count in report.ends.items() if count} <= {"answered", "refused", "reset at the door"}
    assert report.ends["answered"] > 50


def test_restarts_under_load_with_the_socket_held_open(tmp_path: Path) -> None:
    report = asyncio.run(restarts.restarts(tmp_path, rounds=2, seed=6))
    assert report.wrong == []
    assert set(report.ends) == {"answered"}
    assert report.ends["answered"] > 50


def test_streams_live_through_writes_and_reloads(tmp_path: Path) -> None:
    report = asyncio.run(streams.soak(tmp_path, streams=24, writes=20, reloads=4, seed=9))
    assert report.wrong == []
    assert (report.streams, report.writes, report.reloads) == (24, 20, 4)
    assert report.fewest_of_one >= 2
    assert set(report.left_over.values()) == {0}


def test_slow_and_many(tmp_path: Path) -> None:
    """Everybody healthy is answered, memory is bounded, and nothing is left over; latencies are for the long run."""
    names = tuple(name for name in ATTACKS if not name.startswith("slowhttptest") or shutil.which("slowhttptest"))
    report = asyncio.run(many.soak(tmp_path, seconds=0.4, names=names, scale=0.1, is_timed=False))
    assert report.wrong == []
    assert tuple(report.attacks) == names
