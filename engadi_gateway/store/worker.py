"""One thread that does what it is given, one thing after the other, to the last."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """See the module. What a job raises is its future's; the thread lives.

    Args:
        name: the thread's.
        closed: makes the error of what is handed over before `start`, or too late.
    """

    def __init__(self, name: str, closed: Callable[[], Exception]) -> None:
        self._name = name
        self._closed = closed
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # between the last job and the end
        self.is_closing = False

    def start(self, finish: Callable[[], None]) -> None:
        """Begin; `finish` is the last thing that the thread does."""
        self._thread = threading.Thread(target=self._run_all, args=(finish,), name=self._name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], done: Callable[[Future[T]], None] | None = None) -> Future[T]:
        """Never blocks. `done` is called on the thread, before the next job; where it is too late, at once."""
        future: Future[T] = Future()
        if done is not None:
            future.add_done_callback(done)
        with self._gate:
            # what a job adds while others finish is still done
            is_closed = self.is_closing and threading.current_thread() is not self._thread
            if self._thread is not None and not is_closed:
                self._queue.put((job, future))
                return future
        future.set_exception(self._closed())  # not in the gate: `done` may come back
        return future

    def begin_closing(self) -> bool:
        """Take nothing more; False where there is nothing to close, or it is done already."""
        with self._gate:
            if self._thread is None or self.is_closing:
                return False
            self.is_closing = True
            return True

    def join(self) -> None:
        """Wait for the end, once it is closing. Blocking."""
        assert self._thread is not None
        self._queue.put(None)
        self._thread.join()

    def _run_all(self, finish: Callable[[], None]) -> None:
        while (entry := self._queue.get()) is not None:
            _run(*entry)
        while not self._queue.empty():
            entry = self._queue.get()
            assert entry is not None
            _run(*entry)
        finish()


def _run(job: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except BaseException as error:  # the waiter gets it; the thread must live
        future.set_exception(error)
    else:
        future.set_result(result)
