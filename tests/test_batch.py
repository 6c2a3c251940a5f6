"""Turns of the loop, with a loop and a clock that are stepped by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from engadi_gateway.net.batch import Batch


class Turns:
    """A loop whose turns are taken one by one; `log` is what was done, `now` the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []
        self.faults: list[str] = []
        self.is_stalled = False
        self.later: list[Callable[[], None]] = []
        self._soon: list[Callable[[], None]] = []
        upcalls = SimpleNamespace(is_stalled=lambda: self.is_stalled, fault=self.faults.append)
        loop = SimpleNamespace(
            call_soon=self._soon.append,
            call_later=lambda _, work, *arguments: self.later.append(lambda: work(*arguments)),
        )
        self.batch = Batch(cast(Any, SimpleNamespace(loop=loop, upcalls=upcalls)), lambda: self.now)

    def turn(self) -> list[str]:
        """One turn; what was done in it."""
        due, self._soon[:] = list(self._soon), []
        before = len(self.log)
        for work in due:
            work()
        return self.log[before:]

    def take(self, name: str, seconds: float) -> None:
        self.log.append(name)
        self.now += seconds

    def add_long(self, *names: str, seconds: float) -> None:
        for name in names:
            self.batch.later(lambda name=name: self.take(name, seconds))  # type: ignore[misc]  # a default binds it now


class One:
    """A connection with a head to read."""

    def __init__(self, turns: Turns, name: str, *, fails: str = "", last: str = "act") -> None:
        self._turns, self._name, self._fails, self._last = turns, name, fails, last
        self.is_gone = False

    def read_head(self, now: float) -> bool:
        self._do("read")
        return self._last != "read"

    def decide(self, now: float, wall: float) -> bool:
        self._do("decide")
        return self._last != "decide"

    def act(self) -> None:
        self._do("act")

    def crash(self) -> None:
        self._do("crash")

    def _do(self, what: str) -> None:
        self._turns.log.append(f"{what} {self._name}")
        if what == self._fails:
            raise ZeroDivisionError


def test_all_are_read_then_all_decided_on_then_all_acted_on() -> None:
    turns = Turns()
    for name, last in (("a", "act"), ("b", "read"), ("c", "decide"), ("d", "act")):
        turns.batch.add(One(turns, name, last=last))
    read, decided = ["read a", "read b", "read c", "read d"], ["decide a", "decide c", "decide d"]
    assert turns.turn() == [*read, *decided, "act a", "act d"]
    assert turns.turn() == []


def test_one_that_fails_takes_nobody_along() -> None:
    turns = Turns()
    for name, fails in (("a", "read"), ("b", "decide"), ("c", "act"), ("d", "")):
        turns.batch.add(One(turns, name, fails=fails))
    assert turns.turn() == [
        *("read a", "crash a", "read b", "read c", "read d"),
        *("decide b", "crash b", "decide c", "decide d"),
        *("act c", "crash c", "act d"),
    ]
    assert turns.faults == ["request"] * 3


def test_who_is_stalled_comes_later() -> None:
    turns = Turns()
    turns.is_stalled = True
    turns.batch.add(One(turns, "a"))
    assert turns.turn() == []
    turns.is_stalled = False
    turns.later.pop()()
    assert turns.log == ["read a", "decide a", "act a"]


def test_a_stall_takes_one_timer_and_keeps_nobody_who_left() -> None:
    turns = Turns()
    turns.is_stalled = True
    everybody = [One(turns, name) for name in "abc"]
    for one in everybody:
        turns.batch.add(one)
        turns.turn()
    assert len(turns.later) == 1
    everybody[1].is_gone = True
    turns.later.pop()()
    assert (turns.log, len(turns.later)) == ([], 1)
    turns.is_stalled = False
    turns.later.pop()()
    assert turns.log == ["read a", "read c", "decide a", "decide c", "act a", "act c"]


def stalled(turns: Turns, count: int) -> list[One]:
    """So many that came one by one while the log was full."""
    turns.is_stalled = True
    everybody = [One(turns, str(number), last="read") for number in range(count)]
    for one in everybody:
        turns.batch.add(one)
        turns.turn()
    return everybody


def test_the_end_of_a_stall_serves_some_in_each_turn_and_who_comes_then_in_between() -> None:
    turns = Turns()
    stalled(turns, 50)
    turns.is_stalled = False
    turns.later.pop()()
    assert turns.log == [f"read {number}" for number in range(20)]
    turns.batch.add(One(turns, "new", last="read"))
    assert turns.turn() == [*(f"read {number}" for number in range(20, 40)), "read new"]
    assert turns.turn() == [f"read {number}" for number in range(40, 50)]
    assert (turns.turn(), turns.later) == ([], [])


def test_a_stall_that_comes_again_keeps_the_rest_in_order() -> None:
    turns = Turns()
    stalled(turns, 50)
    turns.is_stalled = False
    turns.later.pop()()
    turns.is_stalled = True
    assert [turns.turn() for _ in range(3)] == [[], [], []]
    turns.is_stalled = False
    (resume,) = turns.later
    resume()
    turns.turn()
    assert turns.turn() == []
    assert turns.log == [f"read {number}" for number in range(50)]


def test_what_is_long_has_its_quarter_after_a_stall_too() -> None:
    turns = Turns()
    turns.is_stalled = True
    for name in "ab":
        turns.batch.add_long(One(turns, name, last="read"))
        turns.now += 1.0
        turns.turn()
    turns.batch.add(One(turns, "x", last="read"))
    turns.turn()
    turns.is_stalled = False
    turns.later.pop()()
    assert turns.log == ["read x"]
    turns.now += 0.0006
    turns.turn()
    assert turns.log == ["read x", "read a", "read b"]


def test_a_stall_of_which_all_have_left_takes_no_timer() -> None:
    turns = Turns()
    turns.is_stalled = True
    one = One(turns, "a")
    turns.batch.add(one)
    turns.turn()
    one.is_gone = True
    turns.later.pop()()
    assert turns.later == []
    turns.batch.add(One(turns, "b"))
    turns.turn()
    assert len(turns.later) == 1


def test_what_is_long_gets_one_piece_a_turn_where_nobody_else_asks() -> None:
    turns = Turns()
    turns.add_long("a", "b", "c", seconds=0.0002)
    assert [turns.turn() for _ in range(4)] == [["a"], ["b"], ["c"], []]


def test_short_pieces_are_done_together_up_to_a_share() -> None:
    turns = Turns()
    turns.add_long(*"abcde", seconds=0.00004)
    assert [turns.turn() for _ in range(2)] == [["a", "b", "c"], ["d", "e"]]


def test_while_others_ask_what_is_long_rests_three_times_as_long_as_it_took() -> None:
    turns = Turns()
    turns.add_long("a", "b", seconds=0.002)
    turns.batch.add(One(turns, "x"))
    assert turns.turn() == ["a", "read x", "decide x", "act x"]
    turns.now += 0.0059
    assert turns.turn() == []
    turns.now += 0.0002
    assert turns.turn() == ["b"]


def test_a_short_piece_is_followed_by_a_rest_too() -> None:
    turns = Turns()
    turns.batch.add(One(turns, "x"))
    turns.turn()
    turns.add_long("a", seconds=0.00001)
    assert turns.turn() == ["a"]
    turns.add_long("b", seconds=0.00001)
    turns.now += 0.0004
    assert turns.turn() == []
    turns.now += 0.0002
    assert turns.turn() == ["b"]


def test_the_rest_ends_when_nobody_else_has_asked_for_a_while() -> None:
    turns = Turns()
    turns.batch.add(One(turns, "x"))
    turns.turn()
    turns.add_long("a", "b", seconds=1.0)
    assert [turns.turn() for _ in range(2)] == [["a"], ["b"]]


def test_what_long_work_asks_for_waits_for_its_turn() -> None:
    turns = Turns()

    def work() -> None:
        turns.take("a", 0.0002)
        turns.add_long("b", seconds=0.0)

    turns.batch.later(work)
    assert [turns.turn() for _ in range(3)] == [["a"], ["b"], []]


def test_long_work_that_fails_holds_nobody_up() -> None:
    turns = Turns()
    turns.batch.later(lambda: 1 // 0)  # type: ignore[arg-type]  # it returns nothing, for it raises
    turns.add_long("a", seconds=0.0)
    turns.turn()
    assert turns.log == ["a"]
    assert len(turns.faults) == 1


def test_a_long_head_waits_for_its_turn() -> None:
    turns = Turns()
    turns.add_long("a", seconds=0.0002)
    turns.batch.add_long(One(turns, "x"))
    assert [turns.turn() for _ in range(2)] == [["a"], ["read x", "decide x", "act x"]]
