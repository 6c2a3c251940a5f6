"""Who has a database open, and whose turn it is to write."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from engadi_gateway.store.locks import FileLock, Locks


def pair(folder: Path, *are_shared: bool) -> list[Locks]:
    return [Locks(str(folder / "a.db"), is_shared=is_shared) for is_shared in are_shared]


@pytest.mark.parametrize(
    ("first", "second", "may"), [(False, False, False), (False, True, False), (True, False, False), (True, True, True)]
)
def test_a_file_is_open_by_one_alone_or_by_all_that_share(tmp_path: Path, first: bool, second: bool, may: bool) -> None:
    one, two = pair(tmp_path, first, second)
    assert one.enter()
    assert one.enter(), "again changes nothing"
    assert two.enter() is may
    one.close()
    assert two.enter()
    two.close()


def test_the_lock_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (locks,) = pair(tmp_path, True)
        locks.enter()
        locks.take_turn(0)
        locks.close()
    finally:
        os.umask(before)
    assert {entry.name: entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()} == {
        "a.db.lock": 0o600,
        "a.db.turn": 0o600,
    }


def test_only_those_that_share_take_turns(tmp_path: Path) -> None:
    one, two = pair(tmp_path, True, True)
    (alone,) = pair(tmp_path, False)
    assert one.take_turn(0)
    assert not two.take_turn(0)
    assert not two.take_turn(0.01)
    assert alone.take_turn(0), "it has the file to itself"
    one.give_turn()
    assert two.take_turn(0)
    for locks in (one, two, alone):
        locks.close()


def test_a_turn_that_is_held_lasts_over_those_within_it(tmp_path: Path) -> None:
    one, two = pair(tmp_path, True, True)
    assert one.take_turn(0, is_held=True)
    for _ in range(2):
        assert one.take_turn(0)
        one.give_turn()
        assert not two.take_turn(0)
    one.end_turn()
    assert two.take_turn(0)
    one.close()
    two.close()


def test_a_turn_is_waited_for(tmp_path: Path) -> None:
    one, two = pair(tmp_path, True, True)
    assert one.take_turn(0)
    had: list[bool] = []
    waiting = threading.Thread(target=lambda: had.append(two.take_turn(30)))
    waiting.start()
    one.give_turn()
    waiting.join()
    assert had == [True]
    one.close()
    two.close()


def test_who_asks_whether_it_is_alone_and_is_not_has_left(tmp_path: Path) -> None:
    one, two = pair(tmp_path, True, True)
    assert one.enter()
    assert two.enter()
    assert not one.is_alone()
    assert two.is_alone()
    assert not one.enter(), "the other has it alone now"
    assert two.enter()
    assert one.enter()
    one.close()
    two.close()


def test_where_there_can_be_no_lock_the_system_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(str(tmp_path / "no" / "a.lock")).take()


def test_a_turn_whose_file_somebody_removed_is_taken_anew(tmp_path: Path) -> None:
    one, two = pair(tmp_path, True, True)
    assert one.take_turn(0)
    one.give_turn()
    (tmp_path / "a.db.turn").unlink()
    assert two.take_turn(0)
    assert not one.take_turn(0)
    two.give_turn()
    assert one.take_turn(0)
    one.close()
    two.close()
