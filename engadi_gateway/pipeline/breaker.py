"""The circuit breaker: per service, so that an upstream in trouble is left alone and asked again carefully.

CLOSED passes. OPEN refuses, after `failure_threshold` failures in a row. HALF_OPEN, `timeout` later, lets one probe at
a time through: `success_threshold` good ones close it, one bad one opens it again. A failure is a transport error, a
time-out, or a 502 503 504 of the upstream; never a 4xx, never a client that left. State survives configuration changes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engadi_gateway.errors import FAILURE_STATUSES, Reason, Refusal
from engadi_gateway.model import BreakerState
from engadi_gateway.pipeline.exchange import Exchange, Target

_HISTORY = 20


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


class Breaker:
    """The machine of one service."""

    __slots__ = ("failures", "history", "opened_at", "probe_since", "state", "successes", "trips")

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.successes = 0
        self.trips = 0
        self.opened_at = 0.0
        self.probe_since: float | None = None
        self.history: deque[Transition] = deque(maxlen=_HISTORY)

    def wait_s(self, now: float, limits: Thresholds) -> float:
        """Seconds until a request may pass; 0 when one may pass now. Changes nothing."""
        if self.state is BreakerState.CLOSED:
            return 0.0
        if self.state is BreakerState.OPEN:
            return max(0.0, self.opened_at + limits.timeout_s - now)
        if self.probe_since is None:
            return 0.0
        return max(0.0, self.probe_since + limits.timeout_s - now)

    def take_permit(self, now: float) -> bool:
        """Pass one request that `wait_s` let pass; whether it is a probe."""
        if self.state is BreakerState.CLOSED:
            return False
        if self.state is BreakerState.OPEN:
            self._move(now, BreakerState.HALF_OPEN, "time to probe")
        self.probe_since = now
        return True

    def succeeded(self, now: float, limits: Thresholds, *, is_probe: bool) -> None:
        if self.state is BreakerState.CLOSED:
            self.failures = 0
        elif is_probe and self.state is BreakerState.HALF_OPEN:
            self.probe_since = None
            self.successes += 1
            if self.successes >= limits.success_threshold:
                self._move(now, BreakerState.CLOSED, f"{self.successes} probes succeeded")

    def failed(self, now: float, limits: Thresholds, cause: str, *, is_probe: bool) -> None:
        self.failures += 1
        if self.state is BreakerState.HALF_OPEN and is_probe:
            self._open(now, f"probe failed: {cause}")
        elif self.state is BreakerState.CLOSED and self.failures >= limits.failure_threshold:
            self._open(now, f"{self.failures} failures in a row, the last: {cause}")

    def gave_up(self, *, is_probe: bool) -> None:
        """It ended without saying anything about the upstream."""
        if is_probe:
            self.probe_since = None

    def healthy(self, now: float) -> None:
        """A health check was good: the probes begin early."""
        if self.state is BreakerState.OPEN:
            self._move(now, BreakerState.HALF_OPEN, "health check passed")

    def reset(self, now: float) -> None:
        self.failures = 0
        if self.state is not BreakerState.CLOSED:
            self._move(now, BreakerState.CLOSED, "reset")

    def _open(self, now: float, cause: str) -> None:
        self.trips += 1
        self.opened_at = now
        self._move(now, BreakerState.OPEN, cause)

    def _move(self, now: float, state: BreakerState, cause: str) -> None:
        self.history.append(Transition(now, self.state, state, cause))
        self.state = state
        self.successes = 0
        self.probe_since = None
        if state is BreakerState.CLOSED:
            self.failures = 0


class BreakerRegistry:
    """The breakers of all services; lives as long as the process."""

    def __init__(self, limits: Thresholds) -> None:
        self.limits = limits
        self._breakers: dict[str, Breaker] = {}

    def of(self, service: str) -> Breaker:
        breaker = self._breakers.get(service)
        if breaker is None:
            breaker = self._breakers[service] = Breaker()
        return breaker

    def names(self) -> list[str]:
        return sorted(self._breakers)

    def note_healthy(self, service: str, now: float) -> None:
        if service in self._breakers:
            self._breakers[service].healthy(now)

    def reset(self, service: str, now: float) -> None:
        self.of(service).reset(now)

    def status(self, service: str, now: float) -> dict[str, Any]:
        """State, counts, cause of the last trip, and the history; ages in seconds."""
        breaker = self._breakers.get(service) or Breaker()
        trips = [move for move in breaker.history if move.after is BreakerState.OPEN]
        return {
            "state": str(breaker.state),
            "failure_count": breaker.failures,
            "success_count": breaker.successes,
            "trips": breaker.trips,
            "retry_after_s": round(breaker.wait_s(now, self.limits), 3),
            "last_trip_cause": trips[-1].cause if trips else None,
            "history": [
                {"age_s": round(now - move.at, 3), "from": str(move.before), "to": str(move.after), "cause": move.cause}
                for move in breaker.history
            ],
        }


@dataclass(frozen=True, slots=True)
class Permit:
    """What a request that passed has to give back."""

    breaker: Breaker
    is_probe: bool


class BreakerStage:
    """The fifth stage: picks the target, and asks its service's breaker.

    Args:
        pick_target: which target serves this exchange, or None.
        is_enabled: the settings' switch; a route has its own.
    """

    sees_refused = False

    def __init__(
        self, registry: BreakerRegistry, pick_target: Callable[[Exchange], Target | None], is_enabled: bool = True
    ) -> None:
        self._registry = registry
        self._pick_target = pick_target
        self._is_enabled = is_enabled

    def decide(self, exchange: Exchange) -> Refusal | None:
        if exchange.is_local:
            return None
        target = exchange.target = self._pick_target(exchange)
        if target is None:
            return Refusal(Reason.NO_TARGET)
        if not (self._is_enabled and exchange.route is not None and exchange.route.circuit_breaker_enabled):
            return None
        breaker = self._registry.of(target.service)
        wait_s = breaker.wait_s(exchange.now, self._registry.limits)
        if exchange.trace is not None:
            exchange.trace["breaker"] = {"service": target.service, "allowed": wait_s == 0.0} | self._registry.status(
                target.service, exchange.now
            )
        if wait_s > 0.0:
            return Refusal(Reason.BREAKER_OPEN, headers=((b"Retry-After", b"%d" % max(1, math.ceil(wait_s))),))
        if not exchange.is_rehearsal:
            exchange.permit = Permit(breaker, breaker.take_permit(exchange.now))
        return None

    def settle(self, exchange: Exchange) -> None:
        permit = exchange.permit
        if not isinstance(permit, Permit):
            return
        exchange.permit = None
        limits, now = self._registry.limits, exchange.ended
        if exchange.reason.is_failure or exchange.upstream_status in FAILURE_STATUSES:
            permit.breaker.failed(now, limits, exchange.reason.code, is_probe=permit.is_probe)
        elif exchange.upstream_status and exchange.reason is Reason.OK:
            permit.breaker.succeeded(now, limits, is_probe=permit.is_probe)
        else:
            permit.breaker.gave_up(is_probe=permit.is_probe)
