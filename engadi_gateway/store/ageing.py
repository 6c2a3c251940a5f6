"""By which moment rows are old: a clock that is set ahead, by mistake or by somebody, must not take the log away."""

from __future__ import annotations

#: A clock that has been ahead for so long was rather behind before: a host without one of its own starts in 1970.
_BELIEVED_S = 86_400.0


class Ageing:
    """The wall clock's word; but it passes at most twice as fast as time does, until it has been ahead for a day.

    So one that stands a year ahead for an hour costs an hour of rows, and one that was behind, and is set right, is
    believed a day later. One that goes back is believed at once, for nothing is lost by that.

    Args:
        wall_ms, now_s: epoch ms and monotonic seconds of the start; a clock that is wrong then is not found out.
    """

    def __init__(self, wall_ms: int, now_s: float) -> None:
        self._moment_ms = wall_ms
        self._now_s = self._agreed_s = now_s

    def moment_ms(self, wall_ms: int, now_s: float) -> int:
        """Against which rows are held now, in epoch ms."""
        passed_ms = int((now_s - self._now_s) * 1000)
        self._now_s = now_s
        most_ms = self._moment_ms + 2 * passed_ms
        if wall_ms <= most_ms or now_s - self._agreed_s >= _BELIEVED_S:
            self._agreed_s, self._moment_ms = now_s, wall_ms
        else:
            self._moment_ms = most_ms
        return self._moment_ms
