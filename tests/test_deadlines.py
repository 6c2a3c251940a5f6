"""Time without a timer a request: who is late is told once, nobody else is, and one fault does not stop the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.net.deadlines import TICK_S, FixedWait, Sweep, Ticker


class Waiter:
    """Remembers when it was told; may do something then."""

    def __init__(self, deadline: float = 0.0, then: Callable[[], object] | None = None) -> None:
        self.deadline = deadline
        self.told: list[float] = []
        self._then = then

    def timed_out(self, now: float) -> None:
        self.told.append(now)
        if self._then is not None:
            self._then()

    expired = timed_out


def test_only_who_has_waited_so_long_is_told_and_only_once() -> None:
    queue, early, late = FixedWait(10.0), Waiter(), Waiter()
    queue.add(early, 0.0)
    queue.add(late, 5.0)
    assert (len(queue), early in queue, queue.oldest(1)) == (2, True, [early])
    queue.sweep(9.9)
    assert early.told == []
    queue.sweep(10.0)
    queue.sweep(11.0)
    assert (early.told, late.told, queue.oldest(2)) == ([10.0], [], [late])
    queue.timeout_s = 2.0  # a reload
    queue.sweep(11.5)
    assert (late.told, len(queue), queue.oldest(2)) == ([11.5], 0, [])


def test_who_left_is_not_told_not_even_in_the_middle_of_a_sweep() -> None:
    queue = FixedWait(1.0)
    gone, taken_along = Waiter(), Waiter()
    first = Waiter(then=lambda: queue.discard(taken_along))
    for waiter in (gone, first, taken_along):
        queue.add(waiter, 0.0)
    queue.discard(gone)
    queue.discard(gone)
    queue.sweep(100.0)
    assert (gone.told, first.told, taken_along.told) == ([], [100.0], [])


def test_who_comes_back_while_it_is_told_waits_anew() -> None:
    queue = FixedWait(1.0)
    waiter = Waiter(then=lambda: queue.add(waiter, 100.0))
    queue.add(waiter, 0.0)
    queue.sweep(100.0)
    queue.sweep(100.9)
    assert (waiter.told, len(queue)) == ([100.0], 1)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20).map(sorted), st.floats(0.1, 50), st.floats(0, 200))
def test_a_sweep_tells_exactly_those_who_are_late(since: list[float], timeout_s: float, now: float) -> None:
    queue, waiters = FixedWait(timeout_s), [Waiter() for _ in since]
    for waiter, moment in zip(waiters, since, strict=True):
        queue.add(waiter, moment)
    queue.sweep(now)
    assert [bool(waiter.told) for waiter in waiters] == [moment <= now - timeout_s for moment in since]
    assert len(queue) == sum(not waiter.told for waiter in waiters)


def test_a_deadline_of_ones_own_is_told_until_it_is_moved_or_left() -> None:
    sweep = Sweep()
    waiter, other = Waiter(5.0), Waiter(7.0)
    sweep.add(waiter)
    sweep.add(other)
    sweep.sweep(4.9)
    assert waiter.told == []
    sweep.sweep(5.0)
    sweep.sweep(6.0)
    assert (waiter.told, other.told) == ([5.0, 6.0], [])
    waiter.deadline = 100.0
    sweep.sweep(8.0)
    assert (waiter.told, other.told) == ([5.0, 6.0], [8.0])
    sweep.discard(other)
    sweep.sweep(9.0)
    assert (other.told, len(sweep)) == ([8.0], 1)


def test_who_is_told_may_take_itself_and_others_out() -> None:
    sweep = Sweep()
    waiters = [Waiter(1.0, then=lambda: [sweep.discard(one) for one in waiters]) for _ in range(3)]
    for waiter in waiters:
        sweep.add(waiter)
    sweep.sweep(2.0)
    assert len(sweep) == 0


def test_a_shorter_wait_ends_some_of_many_at_each_tick_in_order() -> None:
    queue, waiters = FixedWait(75.0), [Waiter() for _ in range(1000)]
    for waiter in waiters:
        queue.add(waiter, 100.0)
    queue.timeout_s = 1.0
    for count in (400, 800, 1000):
        queue.sweep(110.0)
        assert [len(waiter.told) for waiter in waiters] == [1] * count + [0] * (1000 - count)


def test_of_many_who_are_late_some_are_told_at_each_tick_the_latest_first() -> None:
    sweep, waiters = Sweep(), [Waiter(float(1000 - number)) for number in range(1000)]
    for waiter in waiters:
        sweep.add(waiter)
        waiter._then = partial(sweep.discard, waiter)
    for turn in range(1, 6):
        sweep.sweep(2000.0)
        assert [len(waiter.told) for waiter in waiters] == [0] * (1000 - 200 * turn) + [1] * 200 * turn


class Clock:
    """A loop's `call_later` whose calls are made by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.calls.append((delay_s, call))

    def tick(self, late_s: float = 0.0) -> None:
        delay_s, call = self.calls.pop(0)
        self.now += delay_s + late_s
        with mock.patch.object(time, "monotonic", return_value=self.now):
            call()


def test_every_tick_runs_all_sweeps_though_one_fails() -> None:
    clock, faults, swept = Clock(), list[str](), list[float]()

    def fails(now: float) -> None:
        raise ZeroDivisionError

    ticker = Ticker(clock.call_later, [fails, swept.append], lambda: faults.append("fault"))
    assert clock.calls == []
    with mock.patch.object(time, "monotonic", return_value=clock.now):
        ticker.start()
    for number in range(1, 4):
        clock.tick()
        assert (len(swept), len(faults), len(clock.calls)) == (number, number, 1)
        assert swept[-1] == clock.now
    ticker.stop()
    clock.tick()
    assert (len(swept), clock.calls) == (3, [])


def test_it_tells_how_late_the_loop_was_at_most_in_the_last_minute() -> None:
    clock = Clock()
    ticker = Ticker(clock.call_later, [], lambda: None)
    with mock.patch.object(time, "monotonic", return_value=clock.now):
        ticker.start()
    assert clock.calls[0][0] == TICK_S
    for late_s, most_s in ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.25, 0.5)):
        clock.tick(late_s)
        assert ticker.lag_s == pytest.approx(most_s)
    for ticks, most_s in ((round(60 / TICK_S) - 3, 0.5), (1, 0.25), (2, 0.0)):
        for _ in range(ticks):
            clock.tick()
        assert ticker.lag_s == pytest.approx(most_s)
