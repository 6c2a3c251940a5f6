"""Questions: each sees one state, none takes too long, and a few connections do for all."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from engadi_gateway.store import readers
from engadi_gateway.store.database import Connection
from engadi_gateway.store.errors import StoreError
from tests.databases import ENDLESS, add, count, database, opened


def test_readers_cannot_write(tmp_path: Path) -> None:
    async def run() -> None:
        with opened(tmp_path / "a.db") as store, pytest.raises(StoreError, match="readonly"):
            await store.read(add)

    asyncio.run(run())


def test_a_reader_sees_one_state_however_often_it_asks(tmp_path: Path) -> None:
    async def run() -> None:
        with opened(tmp_path / "a.db") as store:

            def twice(connection: Connection) -> tuple[int, int]:
                first = count(connection)
                store.submit(add).result()
                return first, count(connection)

            assert await store.read(twice) == (0, 0)
            assert await store.read(count) == 1

    asyncio.run(run())


def test_a_question_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_READ_LIMIT_S", 0.02)

    async def run() -> None:
        with opened(tmp_path / "a.db") as store:
            with pytest.raises(StoreError, match="took too long"):
                await store.read(lambda con: con.execute(ENDLESS).fetchone())
            assert await store.read(count) == 0

    asyncio.run(run())


def test_many_readers_share_two_connections(tmp_path: Path) -> None:
    async def run() -> None:
        with opened(tmp_path / "a.db") as store:
            seen = await asyncio.gather(*(store.read(id) for _ in range(50)))
            assert 1 <= len(set(seen)) <= 2

    asyncio.run(run())


def test_closing_cuts_a_long_question_short(tmp_path: Path) -> None:
    async def run() -> None:
        store = database(tmp_path / "a.db")
        store.open()
        begun = threading.Event()

        def endless(connection: Connection) -> object:
            begun.set()
            return connection.execute(ENDLESS).fetchone()

        question = asyncio.ensure_future(store.read(endless))
        await asyncio.to_thread(begun.wait, 5)
        began = time.monotonic()
        await asyncio.to_thread(store.close)
        assert time.monotonic() - began < 2
        with pytest.raises(StoreError):
            await question

    asyncio.run(run())
