"""The long runs of `python -m tests.soak`, short."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.soak import faults


def test_a_flapping_upstream(tmp_path: Path) -> None:
    report = asyncio.run(faults.soak(tmp_path, requests=2_500, seed=7))
    assert report.wrong == []
    assert len(report.faults) > 10
    assert report.posts > 100
    assert report.ends["200"] > 500
    assert report.retries > 0
    assert set(report.left_over.values()) == {0}
