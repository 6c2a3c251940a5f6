"""The long runs of `python -m tests.soak`, short."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.soak import faults, kills


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
