"""One circuit: the machine that leaves an upstream in trouble alone, and asks it again carefully.

CLOSED passes. OPEN refuses, after `failure_threshold` failures in a row. HALF_OPEN, `timeout` later, lets one probe at
a time through: `success_threshold` good ones close it, one bad one opens it again. The place of the probe is of who
waits for the upstream: it is free while the request's body comes, and once the reply has begun. Beside it one such
upload at a time may be on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from engadi_gateway.model import BreakerState

_HISTORY = 20
#: So long an upload on its way, as slow as it likes, keeps others from being a probe.
_UPLOAD_S = 60.0
_CLOSED, _OPEN, _HALF_OPEN = BreakerState  # looking them up in their class costs 45 ns each time


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When to open, when to close, how long to stay open (seconds)."""

    failure_threshold: int = 5
    success_threshold: int = 2
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state; `at` in monotonic seconds."""

    at: float
    before: BreakerState
    after: BreakerState
    cause: str


class Permit(NamedTuple):
    """What a request that passed gives back, once. `era` tells which stay in a state it belongs to."""

    breaker: Breaker
    era: int
    probe: int  # 0: no probe


class Breaker:
    """The machine of one service.

    Each change of state begins a new era, and what was let pass in an earlier one says nothing any more: a request that
    hung since before the trip must neither re-open nor close.
    """

    __slots__ = (
        "_era",
        "_pass",
        "_probe",
        "_tell",
        "_upload",
        "cuts",
        "failures",
        "history",
        "moves",
        "opened_at",
        "probe_since",
        "state",
        "successes",
        "upload_since",
    )

    def __init__(self, tell: Callable[[Transition], None] = lambda move: None) -> None:
        self._tell = tell
        self.state = _CLOSED
        self.failures = 0  # in a row
        self.cuts = 0  # as many of these had begun well: another beginning does not end their row
        self.successes = 0
        self.moves = dict.fromkeys(BreakerState, 0)  # into each state
        self.opened_at = 0.0
        self.probe_since: float | None = None
        self.upload_since: float | None = None
        self.history: deque[Transition] = deque(maxlen=_HISTORY)
        self._era = 0
        self._probe = 0
        self._upload = 0  # the probe that is one whose body is on its way
        self._pass = Permit(self, 0, 0)  # the same for all requests of one closed era

    @property
    def trips(self) -> int:
        return self.moves[_OPEN]

    def wait_s(self, now: float, limits: Thresholds) -> float:
        """Seconds until a request may pass; 0 when one may pass now. Changes nothing."""
        if self.state is _CLOSED:
            return 0.0
        if self.state is _OPEN:
            return max(0.0, limits.timeout_s - (now - self.opened_at))
        if self.probe_since is None:
            return 0.0
        return max(0.0, limits.timeout_s - (now - self.probe_since))

    def take_permit(self, now: float) -> Permit:
        """Pass one request that `wait_s` let pass."""
        if self.state is _CLOSED:
            return self._pass
        if self.state is _OPEN:
            self._move(now, _HALF_OPEN, "time to probe")
        self.probe_since = now
        self._probe += 1
        return Permit(self, self._era, self._probe)

    def began_well(self, permit: Permit) -> None:
        if permit.era == self._era:
            self.failures = self.cuts

    def succeeded(self, permit: Permit, now: float, limits: Thresholds) -> None:
        self.gave_up(permit)
        if permit.era != self._era:
            return
        if not permit.probe:
            self.failures = self.cuts = 0
            return
        self.successes += 1
        if self.successes >= limits.success_threshold:
            self._move(now, _CLOSED, f"{self.successes} successful probes")

    def failed(self, permit: Permit, now: float, limits: Thresholds, cause: str, *, is_cut: bool = False) -> None:
        if permit.era != self._era:
            return
        self.failures += 1
        self.cuts += is_cut
        if permit.probe:
            self._open(now, f"probe failed: {cause}")
        elif self.failures >= limits.failure_threshold:
            self._open(now, f"{self.failures} failures in a row, the last: {cause}")

    def gave_up(self, permit: Permit) -> None:
        """It ended without a word about the upstream."""
        self.makes_way(permit)

    def makes_way(self, permit: Permit) -> None:
        """It goes on, and others may probe meanwhile; only the newest probe frees the probe's place."""
        if not permit.probe:
            return
        if permit.probe == self._probe:
            self.probe_since = None
        if permit.probe == self._upload:
            self.upload_since = None

    def is_uploading(self, now: float) -> bool:
        """Whether an upload is on its way that leaves no place for another one."""
        return self.upload_since is not None and now - self.upload_since < _UPLOAD_S

    def may_upload(self, permit: Permit, now: float) -> bool:
        """Whether a request may be sent of whose body more is to come; others may then probe meanwhile, but not so."""
        if not permit.probe or permit.era != self._era:
            return True
        if self.is_uploading(now) and permit.probe != self._upload:
            return False
        self.makes_way(permit)
        self._upload, self.upload_since = permit.probe, now
        return True

    def still_passes(self, permit: Permit) -> bool:
        """Whether its request may be sent once more: not where the circuit has opened since, and is not closed yet."""
        return permit.era == self._era or self.state is _CLOSED

    def probe_again(self, permit: Permit, now: float) -> Permit:
        """One that made way asks now, and has the place if it is free; the permit to give back from now on."""
        if not permit.probe or permit.era != self._era or self.probe_since is not None:
            return permit
        self.makes_way(permit)
        return self.take_permit(now)

    def healthy(self, now: float) -> None:
        """A health check was good: the probes begin early."""
        if self.state is _OPEN:
            self._move(now, _HALF_OPEN, "health check passed")

    def reset(self, now: float) -> None:
        self.failures = self.cuts = 0
        if self.state is not _CLOSED:
            self._move(now, _CLOSED, "reset")

    def _open(self, now: float, cause: str) -> None:
        self.opened_at = now
        self._move(now, _OPEN, cause)

    def _move(self, now: float, state: BreakerState, cause: str) -> None:
        move = Transition(now, self.state, state, cause)
        self.history.append(move)
        self.moves[state] += 1
        self.state = state
        self.successes = 0
        self.probe_since = self.upload_since = None
        self._era += 1
        if state is _CLOSED:
            self.failures = self.cuts = 0
            self._pass = Permit(self, self._era, 0)
        self._tell(move)
