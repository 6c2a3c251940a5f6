"""Looking at files as they lie there: nothing is changed, and what opening would refuse is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engadi_gateway.store.at_rest import peek
from engadi_gateway.store.errors import CorruptError, StoreError
from engadi_gateway.store.schema import Schema
from tests.databases import APPLICATION, SCHEMA, TABLE, add, count, damage, filled, names_in, opened


def test_peeking_reads_a_file_at_rest_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    before = path.read_bytes()
    assert peek(str(path), SCHEMA, count) == 200
    assert (path.read_bytes(), names_in(tmp_path)) == (before, ["a.db"])


def test_peeking_beside_a_running_one_sees_what_it_wrote_last(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path) as store:
        store.submit(add).result()
        assert peek(str(path), SCHEMA, count) == 1
        with pytest.raises(StoreError, match="readonly"):
            peek(str(path), SCHEMA, add)


def test_peeking_refuses_what_opening_would_refuse_or_change(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with pytest.raises(StoreError):
        peek(str(path), SCHEMA, count)
    assert not path.exists()
    filled(path)
    with pytest.raises(StoreError, match="newer version"):
        peek(str(path), Schema(APPLICATION, ()), count)
    with pytest.raises(StoreError, match="already exists"):
        peek(str(path), Schema(APPLICATION, (TABLE, TABLE)), count)
    damage(path, 20)
    with pytest.raises(CorruptError, match="damaged"):
        peek(str(path), SCHEMA, count)


def test_peeking_at_an_older_file_shows_what_opening_would_make_of_it_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    before = path.read_bytes()
    newer = (TABLE, ("DELETE FROM item WHERE n > 7",))
    assert peek(str(path), Schema(APPLICATION, newer), count) == 7
    assert (path.read_bytes(), names_in(tmp_path)) == (before, ["a.db"])
