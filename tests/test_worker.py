"""The thread that does one thing after the other: order, errors, the end."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial

import pytest

from engadi_gateway.store.worker import Worker


class TooLateError(Exception):
    pass


def worker() -> Worker:
    return Worker("test-worker", TooLateError)


def ended(made: Worker) -> None:
    assert made.begin_closing()
    made.join()


def test_jobs_are_done_in_their_order_on_one_thread_and_the_last_is_the_end() -> None:
    made, seen = worker(), list[object]()
    names = set()

    def job(number: int) -> None:
        seen.append(number)
        names.add(threading.current_thread().name)

    made.start(lambda: seen.append("end"))
    for number in range(99):
        made.submit(partial(job, number))
    ended(made)
    assert seen == [*range(99), "end"]
    assert names == {"test-worker"}


def test_what_a_job_raises_is_its_own_and_the_next_goes_on() -> None:
    made = worker()
    made.start(lambda: None)
    failing, next_one = made.submit(lambda: 1 // 0), made.submit(lambda: "well")
    assert next_one.result() == "well"
    with pytest.raises(ZeroDivisionError):
        failing.result()
    ended(made)


def test_who_comes_before_the_start_or_after_the_end_is_told_at_once() -> None:
    made, told = worker(), list[Future[int]]()
    assert not made.begin_closing(), "there is nothing to close"
    for _ in range(2):
        future = made.submit(lambda: 1, told.append)
        assert told.pop() is future
        with pytest.raises(TooLateError):
            future.result()
        if not made.is_closing:
            made.start(lambda: None)
            ended(made)
    assert not made.begin_closing(), "once"


def test_what_a_job_adds_while_others_finish_is_done_and_what_others_add_is_not() -> None:
    made, hold = worker(), threading.Event()
    made.start(lambda: None)
    added: list[Future[str]] = []
    made.submit(lambda: hold.wait(5)).add_done_callback(lambda _: added.append(made.submit(lambda: "added")))
    assert made.begin_closing()
    with pytest.raises(TooLateError):
        made.submit(lambda: "late").result()
    hold.set()
    made.join()
    assert added[0].result() == "added"


def test_a_job_that_was_cancelled_is_left_out() -> None:
    made, hold, seen = worker(), threading.Event(), list[str]()
    made.start(lambda: None)
    made.submit(lambda: hold.wait(5))
    waiting = made.submit(lambda: seen.append("done"))
    assert waiting.cancel()
    hold.set()
    ended(made)
    assert seen == []
