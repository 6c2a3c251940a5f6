"""Token buckets as they are kept: one number each, and no more of them than are in use.

A bucket holds the moment at which it is full again, on its rule's clock, which counts windows. A full bucket is the
same as no bucket, so only those in use exist. Counting windows makes changing a rule free: the clock is bent at that
moment, and every bucket keeps its fill ratio.
"""

from __future__ import annotations

from itertools import islice
from weakref import WeakValueDictionary

from engadi_gateway.model import RateLimitRule

#: Buckets are filed by the sixteenth of a window in which they will be full.
_FILES_PER_WINDOW = 16
#: Full buckets let go for each new one, and per sweep: a million at once would hold everybody up.
_EVICTED_PER_NEW = 16
_REAPED_PER_NEW = 4
_REAPED_PER_SWEEP = 10_000
_EVICTION_LOOK = 16
_STATUS_LOOK = 100_000


class Buckets:
    """The buckets of one rule: `full_at` by subject, and each subject in exactly one file.

    Files are lazy: spending moves `full_at` but not the subject, which is filed anew when its file's time has come. So
    a request costs nothing for tidiness, what is full goes within a sixteenth of a window, and the fullest are found
    without a search.
    """

    __slots__ = (
        "__weakref__", "_files", "_first", "allowed", "full_at", "observed", "refused", "since", "window_s",
    )  # fmt: skip

    def __init__(self, window_s: float, now: float) -> None:
        self.full_at: dict[str, float] = {}
        self._files: dict[int, list[str]] = {}
        self._first = 0  # no file has a lower number
        self.since = now
        self.window_s = window_s
        self.allowed = 0
        self.refused = 0
        self.observed = 0

    def __len__(self) -> int:
        return len(self.full_at)

    def at(self, now: float) -> float:
        """The rule's clock: windows since it began."""
        return (now - self.since) / self.window_s

    def bend(self, window_s: float, now: float) -> None:
        """From now on a window is this long; what the clock shows, and so every fill ratio, stays."""
        self.since = now - self.at(now) * window_s
        self.window_s = window_s

    def add(self, subject: str, full_at: float) -> None:
        """A bucket that did not exist."""
        self.full_at[subject] = full_at
        self._file(subject, full_at)

    def _file(self, subject: str, full_at: float) -> None:
        number = int(full_at * _FILES_PER_WINDOW)
        file = self._files.get(number)
        if file is not None:
            file.append(subject)
            return
        self._files[number] = [subject]
        if number < self._first or len(self._files) == 1:
            self._first = number

    def _drop_first(self) -> None:
        """The first file is empty."""
        del self._files[self._first]
        self._first = min(self._files, default=0)

    def reap(self, at: float, most: int) -> tuple[int, int]:
        """Look at no more than `most` buckets of past files, and let full ones go.

        Returns how many went, and how many more may be looked at.
        """
        gone = 0
        current = int(at * _FILES_PER_WINDOW)
        while self._first < current and self._files and most > 0:
            file = self._files[self._first]
            while file and most > 0:
                most -= 1
                subject = file.pop()
                full_at = self.full_at[subject]
                if full_at <= at:
                    del self.full_at[subject]
                    gone += 1
                else:
                    self._file(subject, full_at)
            if not file:
                self._drop_first()
        if gone and not self.full_at:
            self.full_at = {}  # a dict keeps its table however few are left
        return gone, most

    def evict(self) -> None:
        """Let one go before its time: the fullest, as far as a look at a few can tell."""
        for left in range(_EVICTION_LOOK, 0, -1):
            first = self._first
            file = self._files[first]
            subject = file.pop()
            if not file:
                self._drop_first()
            full_at = self.full_at[subject]
            if left == 1 or int(full_at * _FILES_PER_WINDOW) <= first:
                del self.full_at[subject]
                return
            self._file(subject, full_at)

    def lowest_fill(self, at: float) -> float:
        """The fill (0 to 1) of the emptiest bucket, of at most the hundred thousand that are looked at."""
        latest = max(islice(self.full_at.values(), _STATUS_LOOK), default=at)
        return min(1.0, max(0.0, 1.0 - (latest - at)))


class BucketStore:
    """All buckets, by rule id; lives as long as the process, and holds no more than `max_buckets`.

    A rule's buckets live as long as a stage that uses them: they pass from one configuration to the next, and those of
    a rule that is gone go with the last request that knew it.
    """

    def __init__(self, max_buckets: int) -> None:
        self.max_buckets = max_buckets
        self._rules: WeakValueDictionary[str, Buckets] = WeakValueDictionary()
        self._next = 0  # of the rules, in a sweep
        self._held = 0  # or more: those of a rule that is gone are taken off when it matters

    def of(self, rule: RateLimitRule, now: float) -> Buckets:
        """The rule's buckets; a new rule's clock begins now."""
        buckets = self._rules.get(rule.id)
        if buckets is None:
            buckets = self._rules[rule.id] = Buckets(rule.window_seconds, now)
        return buckets

    def __len__(self) -> int:
        return sum(map(len, self._rules.values()))

    def add(self, buckets: Buckets, subject: str, full_at: float, at: float) -> None:
        """A bucket that did not exist. A few full ones make room, or else the fullest one of the largest rule."""
        self._held += 1 - buckets.reap(at, _REAPED_PER_NEW)[0]
        if self._held > self.max_buckets:
            self._held = len(self) + 1
            for _ in range(min(self._held - self.max_buckets, _EVICTED_PER_NEW)):  # more only where the cap was lowered
                max(self._rules.values(), key=len).evict()
                self._held -= 1
        buckets.add(subject, full_at)

    def sweep(self, now: float) -> None:
        """Let full buckets go, a bounded number; for a coarse clock to call, so that they also go when nobody comes.

        The next sweep begins with the rule at which this one had looked at enough.
        """
        rules, left = list(self._rules.values()), _REAPED_PER_SWEEP
        for step in range(len(rules)):
            buckets = rules[(self._next + step) % len(rules)]
            gone, left = buckets.reap(buckets.at(now), left)
            self._held -= gone
            if not left:
                self._next = (self._next + step) % len(rules)
                return
