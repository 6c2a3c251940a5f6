"""Free pages are counted, and given back."""

from __future__ import annotations

from pathlib import Path

from engadi_gateway.store.pages import file_bytes, free_share, shrink, used_bytes
from tests.databases import filled, opened


def test_free_pages_are_counted_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    with opened(path) as store:
        full = store.submit(used_bytes).result()
        assert (store.submit(free_share).result(), full) == (0.0, path.stat().st_size)
        store.submit(lambda con: con.execute("DELETE FROM item WHERE n > 20")).result()
        assert store.submit(file_bytes).result() == full
        assert store.submit(free_share).result() > 0.8
        assert store.submit(used_bytes).result() < full / 5
        assert store.submit(lambda con: shrink(con, 10)).result() == 10
        assert store.submit(file_bytes).result() == full - 10 * 4096
        assert store.submit(lambda con: shrink(con, 1000)).result() > 10
        assert store.submit(lambda con: (free_share(con), shrink(con, 10))).result() == (0.0, 0)
        assert store.size_bytes() >= store.submit(file_bytes).result()
    assert path.stat().st_size < full / 5
