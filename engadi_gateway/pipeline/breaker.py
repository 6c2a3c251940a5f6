"""The circuit breaker: per service, so that an upstream in trouble is left alone and asked again carefully.

CLOSED passes. OPEN refuses, after `failure_threshold` failures in a row. HALF_OPEN, `timeout` later, lets one probe at
a time through: `success_threshold` good ones close it, one bad one opens it again. The place of the probe is of who
waits for the upstream: it is free while the request's body comes, and once the reply has begun. Beside it one such
upload at a time may be on its way.

A failure is a transport error, a time-out, or a 502 503 504 of the upstream; never a 4xx, never a client that left. Any
other reply's head ends the row, for its body may take hours; one that is then cut short is a failure. Of attempts at
one service the last counts; one that sends a request elsewhere counts where it failed. State survives configuration
changes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from engadi_gateway.errors import FAILURE_STATUSES, Reason, Refusal
from engadi_gateway.model import BreakerState
from engadi_gateway.pipeline.exchange import Exchange, Target

_HISTORY = 20
#: How long a service that is gone may come back to a circuit that was open.
_REMEMBERED_S = 3600.0
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

    def may_upload(self, permit: Permit, now: float) -> bool:
        """Whether a request may be sent of whose body more is to come; others may then probe meanwhile, but not so."""
        if not permit.probe or permit.era != self._era:
            return True
        is_taken = self.upload_since is not None and now - self.upload_since < _UPLOAD_S
        if is_taken and permit.probe != self._upload:
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


class BreakerRegistry:
    """The breakers of all services; lives as long as the process. `limits` may be replaced while it does.

    Args:
        tell: called with a service's name and what its circuit did.
    """

    def __init__(
        self, limits: Thresholds, tell: Callable[[str, Transition], None] = lambda service, move: None
    ) -> None:
        self.limits = limits
        #: Services that their health checks have found down: a split goes to others meanwhile.
        self.unhealthy: frozenset[str] = frozenset()
        self._tell = tell
        self._breakers: dict[str, Breaker] = {}

    def of(self, service: str) -> Breaker:
        breaker = self._breakers.get(service)
        if breaker is None:
            breaker = self._breakers[service] = Breaker(lambda move: self._tell(service, move))
        return breaker

    def peek(self, service: str) -> Breaker:
        """The service's breaker, or what it would be; nothing is kept."""
        return self._breakers.get(service) or Breaker()

    def names(self) -> list[str]:
        """The services that a request was meant for, but for those that are gone."""
        return sorted(self._breakers)

    def moves(self) -> dict[str, tuple[BreakerState, dict[BreakerState, int]]]:
        """Of each service that a request was meant for: the state, and how often it came into each."""
        return {name: (breaker.state, dict(breaker.moves)) for name, breaker in sorted(self._breakers.items())}

    def keep(self, services: Collection[str], now: float) -> None:
        """Forget the services that are none of these: those with a closed circuit, and in time all others.

        A permit that is out keeps its breaker; nobody is asked by that any more.
        """
        oldest = now - _REMEMBERED_S
        for name in self._breakers.keys() - services:
            breaker = self._breakers[name]
            if breaker.state is _CLOSED or breaker.opened_at < oldest:
                del self._breakers[name]

    def note_healthy(self, service: str, now: float) -> None:
        """A health check of the service was good at monotonic second `now`."""
        if service in self._breakers:
            self._breakers[service].healthy(now)

    def reset(self, service: str, now: float) -> None:
        """Close the service's breaker, whatever it saw."""
        if service in self._breakers:
            self._breakers[service].reset(now)

    def cause_of(self, service: str) -> str | None:
        """Why it opened last."""
        trips = [move.cause for move in self.peek(service).history if move.after is _OPEN]
        return trips[-1] if trips else None

    def status(self, service: str, now: float) -> dict[str, Any]:
        """State, counts, cause of the last trip, and the history; ages in seconds."""
        breaker = self.peek(service)
        return {
            "state": str(breaker.state),
            "failure_count": breaker.failures,
            "success_count": breaker.successes,
            "trips": breaker.trips,
            "transitions": {str(state): count for state, count in breaker.moves.items()},
            "retry_after_s": round(breaker.wait_s(now, self.limits), 3),
            "last_trip_cause": self.cause_of(service),
            "history": [
                {"age_s": round(now - move.at, 3), "from": str(move.before), "to": str(move.after), "cause": move.cause}
                for move in breaker.history
            ],
        }

    def settle(self, exchange: Exchange) -> None:
        """Give the permit back with what the upstream showed; where the client left before a head came, nothing."""
        permit = exchange.permit
        if not isinstance(permit, Permit):
            return
        exchange.permit = None
        reason, status = exchange.reason, exchange.upstream_status
        if status in FAILURE_STATUSES:
            permit.breaker.failed(permit, exchange.ended, self.limits, f"status {status}")
        elif reason.is_failure:
            permit.breaker.failed(permit, exchange.ended, self.limits, reason.code, is_cut=status > 0)
        elif status:
            permit.breaker.succeeded(permit, exchange.ended, self.limits)
        else:
            permit.breaker.gave_up(permit)


class BreakerStage:
    """The fifth stage: picks the target, and asks its service's breaker.

    While that is open, or its health checks have found it down, another share of a split serves.

    Args:
        targets: which may serve this exchange, in their order.
        is_enabled: the settings' switch; a route has its own.
    """

    sees_refused = False
    decides_nothing = False
    settles_nothing = False

    def __init__(
        self, registry: BreakerRegistry, targets: Callable[[Exchange], Iterable[Target]], is_enabled: bool = True
    ) -> None:
        self._registry = registry
        self._targets = targets
        self._is_enabled = is_enabled
        #: Not a method of the stage: an exchange that lasts keeps this, and not all targets.
        self.settle: Callable[[Exchange], None] = registry.settle

    def decide(self, exchange: Exchange) -> Refusal | None:
        if exchange.is_local:
            return None
        registry, now = self._registry, exchange.now
        asks = self._is_enabled and exchange.route is not None and exchange.route.circuit_breaker_enabled
        passed_over: tuple[tuple[float, Target], ...] = ()
        for target in self._targets(exchange):
            if not asks:
                exchange.target = target
                return None
            breaker = registry.peek(target.service) if exchange.is_rehearsal else registry.of(target.service)
            wait_s = breaker.wait_s(now, registry.limits)
            if wait_s == 0.0 and target.service not in registry.unhealthy:
                break
            passed_over += ((wait_s, target),)
        else:  # nobody is well; but health checks may be wrong
            if not passed_over:
                return self._no_target(exchange)
            wait_s, target = min(passed_over, key=itemgetter(0))  # of equal ones the first
            if wait_s > 0.0:
                return self._all_open(exchange, passed_over, wait_s)
            breaker = registry.peek(target.service)
        exchange.target = target
        if exchange.trace is not None:
            self._note(exchange, passed_over, is_allowed=True)
        if not exchange.is_rehearsal:
            exchange.permit = breaker.take_permit(now)
        return None

    @staticmethod
    def _no_target(exchange: Exchange) -> Refusal:
        exchange.error_message = f"no URL for {exchange.route.target_service}" if exchange.route is not None else None
        return Refusal(Reason.NO_TARGET)

    def _all_open(self, exchange: Exchange, passed_over: tuple[tuple[float, Target], ...], wait_s: float) -> Refusal:
        """Who has this one's share is named; any of them may be the first that can be asked again."""
        exchange.target = passed_over[0][1]
        self._note(exchange, passed_over, is_allowed=False)
        service = exchange.target.service
        exchange.error_message = f"circuit of {service}: {self._registry.cause_of(service)}"
        return Refusal(Reason.BREAKER_OPEN, headers=((b"Retry-After", b"%d" % max(1, math.ceil(wait_s))),))

    def _note(self, exchange: Exchange, passed_over: tuple[tuple[float, Target], ...], *, is_allowed: bool) -> None:
        """For explain: the target's circuit and health, and who was passed over for it."""
        if exchange.trace is None or exchange.target is None:
            return
        service = exchange.target.service
        others = dict.fromkeys(target.service for _, target in passed_over if target.service != service)
        exchange.trace["breaker"] = {
            "service": service,
            "allowed": is_allowed,
            "is_unhealthy": service in self._registry.unhealthy,
            "passed_over": list(others),
            **self._registry.status(service, exchange.now),
        }

    def another_target(self, exchange: Exchange, reason: Reason, now: float) -> bool:
        """After an attempt that failed at `now`: whether the next one goes to another target, which is then its target.

        That is the next in their order, round and round, that may be asked. How this one failed its circuit learns now,
        and the end is the other's; targets of one service have one circuit, which learns the end alone.
        """
        failed, permit = exchange.target, exchange.permit
        assert failed is not None
        order = list(dict.fromkeys(self._targets(exchange)))
        at = order.index(failed)
        for target in order[at + 1 :] + order[:at]:
            if isinstance(permit, Permit) and target.service != failed.service:
                if not self._is_well(target.service, now):
                    continue
                permit.breaker.failed(permit, now, self._registry.limits, reason.code)
                exchange.permit = self._registry.of(target.service).take_permit(now)
                exchange.has_moved = True
            elif not self.may_ask_again(exchange):
                continue
            if target.service != failed.service:
                here = exchange.attempts - sum(attempts for _, attempts in exchange.left)
                exchange.left += ((failed.service, here),)
            exchange.target = target
            return True
        return False

    def _is_well(self, service: str, now: float) -> bool:
        registry = self._registry
        return service not in registry.unhealthy and registry.peek(service).wait_s(now, registry.limits) == 0.0

    @staticmethod
    def may_ask_again(exchange: Exchange) -> bool:
        """Whether its target may get another attempt: a service whose circuit has opened is left alone by those too."""
        permit = exchange.permit
        return not isinstance(permit, Permit) or permit.breaker.still_passes(permit)

    @staticmethod
    def ran_out_of_time(exchange: Exchange) -> None:
        """Where that was what another service had left of it, it says nothing about this one."""
        permit = exchange.permit
        if exchange.has_moved and isinstance(permit, Permit):
            exchange.permit = None
            permit.breaker.gave_up(permit)

    @staticmethod
    def awaits_body(exchange: Exchange, now: float) -> bool:
        """The rest of its body is still to come, which is the client's time: no probe waits for a slow upload.

        Whether it may be sent, for of the probes one at a time may be like that.
        """
        permit = exchange.permit
        return not isinstance(permit, Permit) or permit.breaker.may_upload(permit, now)

    @staticmethod
    def has_body(exchange: Exchange, now: float) -> None:
        """Its body is complete: from now on the upstream's time runs."""
        permit = exchange.permit
        if isinstance(permit, Permit):
            exchange.permit = permit.breaker.probe_again(permit, now)

    @staticmethod
    def goes_on(exchange: Exchange) -> None:
        """The reply has begun and may last for hours: neither the next probe nor a row of failures waits for it.

        Nor does it keep the configuration that it began with, but for what settles it.
        """
        exchange.pipeline = exchange.pipeline.rest()
        permit = exchange.permit
        if not isinstance(permit, Permit):
            return
        if permit.probe:
            permit.breaker.makes_way(permit)
        elif permit.breaker.failures and exchange.upstream_status not in FAILURE_STATUSES:
            permit.breaker.began_well(permit)
