"""Time on the request path without a timer a request: ordered queues for fixed waits, one sweep for the others.

A timer made and cancelled for each request costs a tenth of a request's CPU. So a deadline is a number, and a tick
ten times a second looks at who is past it; a time-out fires up to a tenth of a second late, never early.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from heapq import nsmallest
from itertools import islice
from typing import Protocol

TICK_S = 0.1
#: So many are told at a tick, which takes some 10 ms; the others at the next one, for thousands may be late at once.
_TOLD_AT_ONCE = 200
#: Most of these are idle clients, and closed: 20 us each.
_ENDED_AT_ONCE = 400
#: For so long it is shown how late a tick was: of whoever scrapes, many ask once a minute.
_LAG_SHOWN_S = 60.0


class Expiring(Protocol):
    """Something with a deadline in monotonic seconds."""

    deadline: float

    def expired(self, now: float) -> None:
        """Called once the deadline has passed; moves the deadline or leaves the sweep."""
        ...


class Idle(Protocol):
    """Something that waits for a fixed time."""

    def timed_out(self, now: float) -> None:
        """Called once, after it was taken out of the queue."""
        ...


class FixedWait:
    """Those who all wait equally long, in order of arrival: only the oldest need looking at."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._since: dict[Idle, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, waiter: Idle) -> bool:
        return waiter in self._since

    def add(self, waiter: Idle, now: float) -> None:
        self._since[waiter] = now

    def discard(self, waiter: Idle) -> None:
        self._since.pop(waiter, None)

    def oldest(self, count: int) -> list[Idle]:
        return list(islice(self._since, count))

    def sweep(self, now: float) -> None:
        """Not all at once: a shorter time-out, or the drain, has many thousands late in one moment."""
        limit = now - self.timeout_s
        late = []
        for waiter, since in islice(self._since.items(), _ENDED_AT_ONCE):
            if since > limit:
                break
            late.append(waiter)
        for waiter in late:
            if self._since.pop(waiter, None) is not None:
                waiter.timed_out(now)


class Sweep:
    """Those with deadlines of their own; as many as requests in flight."""

    def __init__(self) -> None:
        self._items: set[Expiring] = set()
        self.add = self._items.add  # bound once: called for each request
        self.discard = self._items.discard

    def __len__(self) -> int:
        return len(self._items)

    def sweep(self, now: float) -> None:
        late = [item for item in self._items if item.deadline <= now]
        if len(late) > _TOLD_AT_ONCE:
            late = nsmallest(_TOLD_AT_ONCE, late, key=lambda item: item.deadline)
        for item in late:
            try:
                item.expired(now)
            except Exception:  # it must not hold up the others at every tick
                self.discard(item)
                raise


class Ticker:
    """Runs all sweeps every tick, and tells how late the loop was, at most, within the last minute.

    Args:
        call_later: the loop's.
        on_error: told of an exception in one sweep; the others go on.
    """

    def __init__(
        self, call_later: Callable[..., object], sweeps: list[Callable[[float], None]], on_error: Callable[[], None]
    ) -> None:
        self._call_later = call_later
        self._sweeps = sweeps
        self._on_error = on_error
        self._is_running = False
        self._due = 0.0
        self._lags_s: deque[float] = deque(maxlen=round(_LAG_SHOWN_S / TICK_S))

    @property
    def lag_s(self) -> float:
        return max(self._lags_s, default=0.0)

    def start(self) -> None:
        self._is_running = True
        self._due = time.monotonic() + TICK_S
        self._call_later(TICK_S, self._tick)

    def stop(self) -> None:
        self._is_running = False

    def _tick(self) -> None:
        if not self._is_running:
            return
        now = time.monotonic()
        self._lags_s.append(max(0.0, now - self._due))
        for sweep in self._sweeps:
            try:
                sweep(now)
            except Exception:  # one fault must not stop the clock for everybody
                self._on_error()
        self._due = now + TICK_S
        self._call_later(TICK_S, self._tick)
