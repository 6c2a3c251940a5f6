"""A sqlite file in use: what it is like after good and bad days."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.store import database as door
from engadi_gateway.store import in_use as module
from engadi_gateway.store.at_rest import peek
from engadi_gateway.store.database import Connection
from engadi_gateway.store.errors import CorruptError, HeldError, StoreError, UnavailableError
from engadi_gateway.store.locks import FileLock
from tests.databases import (
    APPLICATION,
    SCHEMA,
    add,
    ask,
    count,
    damage,
    database,
    descriptors_of,
    filled,
    names_in,
    opened,
)

# opening


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    before = os.umask(0)
    try:
        with opened(path) as store:
            store.submit(add).result()
            modes = {entry.name: entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("a.db", "a.db-wal", "a.db-shm", "a.db.lock"), 0o600)


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("temp_store", 2),
        ("cache_size", -8000),
        ("mmap_size", 0),
        ("busy_timeout", 5000),
        ("journal_size_limit", 67108864),
        ("auto_vacuum", 2),
        ("page_size", 4096),
        ("wal_autocheckpoint", 1024),
        ("application_id", APPLICATION),
        ("user_version", 1),
    ],
)
def test_pragmas_of_the_writer(tmp_path: Path, pragma: str, value: object) -> None:
    with opened(tmp_path / "a.db") as store:
        assert store.submit(lambda con: con.execute(f"PRAGMA {pragma}").fetchone()[0]).result() == value


@pytest.mark.parametrize(("pragma", "value"), [("page_size", 16_384), ("wal_autocheckpoint", 256)])
def test_a_log_has_large_pages_and_is_checkpointed_as_often(tmp_path: Path, pragma: str, value: int) -> None:
    with opened(tmp_path / "a.db", is_expendable=True) as store:
        assert store.submit(lambda con: con.execute(f"PRAGMA {pragma}").fetchone()[0]).result() == value


@pytest.mark.parametrize("is_expendable", [False, True])
def test_a_place_where_no_file_can_be_is_said(tmp_path: Path, is_expendable: bool) -> None:
    for path, why in ((tmp_path / "no" / "a.db", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(StoreError, match=why):
            database(path, is_expendable=is_expendable).open()


def test_a_file_system_without_wal_is_refused() -> None:
    store = database(Path(":memory:"))
    try:
        with pytest.raises(StoreError, match="no write-ahead log"):
            store.open()
    finally:
        for name in (":memory:", ":memory:.lock"):
            Path(name).unlink()


def linked(folder: Path) -> tuple[Path, Path]:
    """A link, and the file on another disk that it leads to."""
    (folder / "disk").mkdir()
    (folder / "a.db").symlink_to("disk/large.db")
    return folder / "a.db", folder / "disk" / "large.db"


def test_by_whatever_name_a_file_is_opened_it_is_one_with_one_set_of_companions(tmp_path: Path) -> None:
    link, path = linked(tmp_path)
    with opened(link) as store:
        store.submit(lambda con: add(con, "through the link")).result()
        assert names_in(tmp_path) == ["a.db", "disk"]
        for name in (path, link):
            with pytest.raises(HeldError):
                database(name).open()
            assert peek(str(name), SCHEMA, count) == 1, "what is in the WAL is seen"
        assert store.size_bytes() > path.stat().st_size


def test_a_broken_file_behind_a_link_is_moved_aside_where_it_lies(tmp_path: Path) -> None:
    link, path = linked(tmp_path)
    path.write_bytes(b"certainly no database" * 500)
    with opened(link, is_expendable=True) as store:
        assert store.moved_aside.startswith(f"{path}.corrupt-")
        assert link.is_symlink()
        assert store.submit(count).result() == 0
    assert path.exists()


def test_whose_lock_it_is_that_cannot_be_had_is_said_to_who_opens_and_who_only_looks(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path):
        pass
    lock = tmp_path / "a.db.lock"
    lock.unlink()
    lock.symlink_to(tmp_path / "nowhere" / "lock")  # nobody may, not even the superuser
    with pytest.raises(StoreError, match=r"a\.db\.lock: No such file"):
        database(path).open()


# broken files


def test_a_broken_file_that_matters_is_refused_and_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"certainly no database" * 500)
    before = path.read_bytes()
    with pytest.raises(CorruptError):
        database(path).open()
    assert (path.read_bytes(), names_in(tmp_path)) == (before, ["a.db"])


def test_damage_deep_in_a_file_that_matters_is_found_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    damage(path, 20)
    with pytest.raises(CorruptError, match="damaged"):
        database(path).open()
    assert descriptors_of(path) == []


def test_a_broken_file_that_does_not_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"certainly no database" * 500)
    with opened(path, is_expendable=True) as store:
        assert store.submit(count).result() == 0
        aside = Path(store.moved_aside)
    assert aside.name.startswith("a.db.corrupt-")
    assert aside.read_bytes() == b"certainly no database" * 500


def test_damage_found_while_writing_begins_a_new_file_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path, is_expendable=True)
    damage(path, 20)

    async def run() -> None:
        with opened(path, is_expendable=True) as store:
            with pytest.raises(CorruptError):
                await store.read(lambda con: con.execute("SELECT sum(length(text)) FROM item").fetchone())
            assert store.moved_aside == "", "only the writer moves files"
            with pytest.raises(CorruptError):
                await store.write(lambda con: con.execute("UPDATE item SET text = ''"))
            assert Path(store.moved_aside).stat().st_size >= 200_000
            await store.write(add)
            assert await store.read(count) == 1

    asyncio.run(run())
    assert ask(path, "SELECT count(*) FROM item") == 1


def test_a_file_that_matters_is_never_moved_while_open(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    with opened(path) as store:
        path.unlink()
        path.write_bytes(b"")
        with pytest.raises(StoreError):
            store.submit(lambda con: con.execute("no sql")).result()
        assert store.moved_aside == ""


# writing


def test_a_failure_rolls_back_reaches_the_caller_and_harms_nobody_else(tmp_path: Path) -> None:
    def half(connection: Connection) -> None:
        add(connection)
        connection.execute("INSERT INTO item (n) VALUES ('no number')")

    def bug(connection: Connection) -> None:
        add(connection)
        raise KeyError("bug")

    async def run() -> None:
        with opened(tmp_path / "a.db") as store:
            for work, error in ((half, StoreError), (bug, KeyError)):
                with pytest.raises(error):
                    await store.write(work)
            await store.write(add)
            assert await store.read(count) == 1

    asyncio.run(run())


def test_all_writes_are_in_one_thread_and_each_in_a_transaction(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as store:
        seen = {store.submit(lambda con: (threading.get_ident(), con.in_transaction)).result() for _ in range(5)}
    ((thread, is_in_transaction),) = seen
    assert is_in_transaction
    assert thread != threading.get_ident()


def test_a_lock_held_by_others_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path) as store, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.submit(lambda con: con.execute("PRAGMA busy_timeout=20")).result()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.submit(add).result()
        other.execute("ROLLBACK")
        store.submit(add).result()


def test_a_full_disk_is_a_store_error_and_reading_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        with opened(tmp_path / "a.db") as store:
            await store.write(add)
            await store.write(lambda con: con.execute("PRAGMA max_page_count=3").fetchall())
            with pytest.raises(StoreError, match="full"):
                await store.write(lambda con: add(con, "x" * 100_000))
            assert await store.read(count) == 1
            await store.write(add)

    asyncio.run(run())


# closing


def test_what_was_submitted_is_written_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = database(path)
    store.open()
    futures = [store.submit(add) for _ in range(300)]
    store.close()
    assert all(future.done() for future in futures)
    assert ask(path, "SELECT count(*) FROM item") == 300
    assert names_in(tmp_path) == ["a.db"], "checkpointed"
    assert descriptors_of(path) == []


def test_what_the_writer_adds_while_closing_is_written_too(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = database(path)
    store.open()
    hold = threading.Event()
    store.submit(lambda connection: hold.wait(5))
    store.submit(add).add_done_callback(lambda _: store.submit(add))
    closing = threading.Thread(target=store.close)
    closing.start()
    while not store._writer.is_closing:
        time.sleep(0.001)
    hold.set()
    closing.join()
    assert ask(path, "SELECT count(*) FROM item") == 2


def test_a_closed_database_refuses_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        store = database(tmp_path / "a.db")
        store.close()  # never opened: nothing to do
        with pytest.raises(StoreError, match="closed"):
            await store.read(count)
        with pytest.raises(StoreError, match="closed"):
            await store.write(add)
        with opened(tmp_path / "a.db") as store:
            assert await store.read(count) == 0
        store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.read(count)
        with pytest.raises(StoreError, match="closed"):
            await store.write(add)

    asyncio.run(run())


def test_a_lock_of_others_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSING_S", 0.1)
    path = tmp_path / "a.db"
    store = database(path)
    store.open()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    hold = threading.Event()
    # its end is told on the writer's thread, between two transactions: there the lock can be had
    store.submit(lambda connection: hold.wait(5)).add_done_callback(lambda _: other.execute("BEGIN IMMEDIATE"))
    lost = [store.submit(add) for _ in range(50)]
    closing = threading.Thread(target=store.close)
    closing.start()
    while not store._writer.is_closing:
        time.sleep(0.001)
    began = time.monotonic()
    hold.set()
    closing.join()
    other.close()
    assert time.monotonic() - began < 2, "one busy time-out alone would be five seconds"
    assert [str(future.exception()) for future in lost] == [f"{path}: database is locked"] * 50


# several processes; two Databases are to each other what two processes are, for the locks are of the opened file


def test_one_that_is_not_shared_keeps_others_out_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    for first, second in ((False, False), (False, True), (True, False)):
        with opened(path, is_shared=first):
            for is_expendable in (False, True):
                other = database(path, is_shared=second, is_expendable=is_expendable)
                with pytest.raises(HeldError, match="another process has it open"):
                    other.open()
                assert descriptors_of(tmp_path / "a.db.lock") == [f"{path}.lock"]
        with opened(path, is_shared=second):
            pass
    assert descriptors_of(path) == []


def test_several_that_share_see_each_others_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        with opened(path, is_shared=True) as one, opened(path, is_shared=True) as two:
            await asyncio.gather(*(store.write(add) for store in (one, two) * 50))
            assert [await store.read(count) for store in (one, two)] == [100, 100]
        assert ask(path, "PRAGMA integrity_check") == "ok"

    asyncio.run(run())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.db", "a.db.lock", "a.db.turn"]


def test_the_turn_is_had_while_opening_writing_and_closing(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.db", []

    def is_free() -> bool:
        lock = FileLock(f"{path}.turn")
        was_had = lock.take()
        lock.close()
        return was_had

    def migrate(connection: Connection) -> None:
        connection.execute("CREATE TABLE item (n INTEGER PRIMARY KEY, text TEXT) STRICT")
        seen.append(is_free())

    with opened(path, (migrate,), is_shared=True) as store:
        seen.append(is_free())
        seen.append(store.submit(lambda connection: is_free()).result())
        seen.append(is_free())
        finish = store._close_whole
        store._close_whole = lambda: seen.append(is_free()) or finish()  # type: ignore[method-assign,func-returns-value]
    assert seen == [False, True, False, True, False]


def test_a_turn_that_another_keeps_is_a_store_error_and_the_end_comes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "BUSY_MS", 20)
    path = tmp_path / "a.db"
    lock = FileLock(f"{path}.turn")
    with opened(path, is_shared=True) as store:
        assert lock.take()
        with pytest.raises(StoreError, match="another process has been writing for 20 ms"):
            store.submit(add).result()
        lock.give()
        store.submit(add).result()
        assert lock.take()
    lock.close()
    assert descriptors_of(path) == []
    assert ask(path, "SELECT count(*) FROM item") == 1


def test_a_turn_of_several_writes_lets_nobody_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BUSY_MS", 20)
    path = tmp_path / "a.db"

    async def run() -> None:
        with opened(path, is_shared=True) as one, opened(path, is_shared=True) as two:
            async with one.turn():
                await one.write(add)
                with pytest.raises(StoreError, match="another process"):
                    await two.write(add)
                with pytest.raises(StoreError, match="another process"):
                    async with two.turn():
                        pass
                await one.write(add)
            async with two.turn():
                assert await two.write(count) == 2

    asyncio.run(run())


def test_who_no_longer_waits_for_its_turn_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        with opened(path, is_shared=True) as one, opened(path, is_shared=True) as two:
            hold, begun = threading.Event(), threading.Event()

            def busy(connection: Connection) -> bool:
                begun.set()
                return hold.wait(5)

            done = one.submit(busy)
            await asyncio.to_thread(begun.wait, 5)

            async def turn() -> None:
                async with one.turn():
                    raise AssertionError

            waiting = asyncio.ensure_future(turn())
            await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            hold.set()
            assert await asyncio.wrap_future(done)
            await two.write(add)

    asyncio.run(run())


def test_a_broken_file_is_moved_aside_when_the_last_of_those_that_share_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path, is_expendable=True)
    damage(path, 20, 1)

    def spoil(connection: Connection) -> None:
        connection.execute("UPDATE item SET text = ''")

    async def run() -> None:
        with (
            opened(path, is_expendable=True, is_shared=True) as one,
            opened(path, is_expendable=True, is_shared=True) as two,
        ):
            with pytest.raises(CorruptError):
                await one.write(spoil)
            with pytest.raises(StoreError, match="moved aside when no other process has it open"):
                await one.write(add)
            assert (one.moved_aside, path.exists()) == ("", True)
            assert await one.read(lambda con: con.execute("SELECT n FROM item").fetchone()) == (1,), "as long as it can"
            await two.write(add)
            with pytest.raises(CorruptError):
                await two.write(spoil)
            assert Path(two.moved_aside).stat().st_size >= 200_000
            for store in (one, two):
                await store.write(add)
            assert [await store.read(count) for store in (one, two)] == [2, 2]
        assert len([name for name in names_in(tmp_path) if "corrupt" in name and name.endswith("Z")]) == 1

    asyncio.run(run())
    assert ask(path, "PRAGMA integrity_check") == "ok"


# files that somebody else removes or replaces


@pytest.mark.parametrize(
    ("is_expendable", "is_replaced"), [(False, False), (False, True), (True, True)],
    ids=["removed", "replaced", "a log, replaced"],
)  # fmt: skip
def test_what_nobody_would_find_again_is_not_written(tmp_path: Path, is_expendable: bool, is_replaced: bool) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        with opened(path, is_expendable=is_expendable) as store:
            await store.write(add)
            path.rename(tmp_path / "kept")
            if is_replaced:
                path.write_bytes(b"")
            for _ in range(2):
                with pytest.raises(UnavailableError, match="removed or replaced while in use; this needs a restart"):
                    await store.write(add)
            (tmp_path / "kept").rename(path)
            await store.write(add)
            assert await store.read(count) == 2

    asyncio.run(run())


def test_those_that_share_a_log_go_on_together_in_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        values: dict[str, Any] = {"is_expendable": True, "is_shared": True}
        with opened(path, **values) as one, opened(path, **values) as two:
            for store in (one, two):
                await store.write(add)
            path.unlink()
            for store in (one, two, one):
                await store.write(add)
            assert [await store.read(count) for store in (one, two)] == [3, 3]
            assert [store.times_removed for store in (one, two)] == [1, 1]

    asyncio.run(run())
    assert ask(path, "PRAGMA integrity_check") == "ok"


def test_what_stands_in_a_wal_that_somebody_removed_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    killed = tmp_path / "killed"
    killed.mkdir()

    async def run() -> None:
        with opened(path) as store:
            await store.write(add)
            assert await store.read(count) == 1
            Path(f"{path}-wal").unlink()
            for expected in (2, 3):
                await store.write(add)
                assert await store.read(count) == expected
            for name in names_in(tmp_path):
                if (tmp_path / name).is_file():
                    shutil.copy(tmp_path / name, killed)

    asyncio.run(run())
    assert ask(killed / "a.db", "SELECT count(*) FROM item") == 3, "as after kill -9"


@pytest.mark.parametrize("is_expendable", [False, True], ids=["a database", "a log"])
def test_what_comes_from_a_backup_is_written_again_and_again(tmp_path: Path, is_expendable: bool) -> None:
    """It is in another journal mode, in which there is no WAL yet."""
    path = tmp_path / "a.db"

    async def run() -> None:
        with opened(path, is_expendable=is_expendable) as store:
            await store.write(add)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
        with opened(path, is_expendable=is_expendable) as store:
            for number in range(2, 5):
                await store.write(add)
                assert await store.read(count) == number

    asyncio.run(run())


def test_a_wal_in_which_somebody_reads_is_saved_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    monkeypatch.setattr(door, "BUSY_MS", 10)
    with opened(path) as store, contextlib.closing(door.connect_to_read(str(path))) as reader:
        store.submit(add).result()
        reader.execute("BEGIN")
        assert count(reader) == 1
        Path(f"{path}-wal").unlink()
        with pytest.raises(UnavailableError, match="removed while in use, and somebody reads from it"):
            store.submit(add).result()
        reader.execute("COMMIT")
        store.submit(add).result()
    assert ask(path, "SELECT count(*) FROM item") == 2


def test_a_wal_that_is_not_ours_alone_any_more_is_not_written(tmp_path: Path) -> None:
    for name, is_shared in (("a.db", True), ("b.db", False)):
        path = tmp_path / name
        with opened(path, is_shared=is_shared) as store:
            store.submit(add).result()
            Path(f"{path}-wal").unlink()
            if not is_shared:
                Path(f"{path}-wal").write_bytes(b"")
            with pytest.raises(UnavailableError, match="-wal: removed or replaced while in use; this needs a restart"):
                store.submit(add).result()


def test_a_log_begun_anew_in_an_emptied_folder_is_as_much_its_own_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path, is_expendable=True) as store:
        store.submit(add).result()
        for entry in tmp_path.iterdir():
            entry.unlink()
        store.submit(add).result()
        with pytest.raises(HeldError):
            database(path, is_expendable=True).open()


def test_of_a_log_that_somebody_removed_nothing_stays_open_or_its_room_is_not_free(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    is_reading, may_end = threading.Event(), threading.Event()

    def read_slowly(connection: Connection) -> int:
        is_reading.set()
        may_end.wait(30)
        return count(connection)

    async def run() -> None:
        with opened(path, is_expendable=True) as store:
            await store.write(add)
            slow, quick = asyncio.create_task(store.read(read_slowly)), store.read(count)
            await asyncio.to_thread(is_reading.wait, 30)
            await quick
            path.unlink()
            await store.write(add)
            may_end.set()
            assert await slow == 1
            assert [name for name in descriptors_of(tmp_path) if name.endswith(" (deleted)")] == []

    asyncio.run(run())


def test_a_log_whose_folder_is_away_for_a_while_is_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "a.db"
    with opened(path, is_expendable=True) as store:
        store.submit(add).result()
        folder.rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(StoreError, match="No such file or directory"):
                store.submit(add).result()
        (tmp_path / "away").rename(folder)
        store.submit(add).result()
        assert store.submit(count).result() == 2
        assert store.times_removed == 0
        path.unlink()
        for _ in range(2):
            store.submit(add).result()
        assert store.times_removed == 1
