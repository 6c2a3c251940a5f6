"""The circuit breaker: a circuit per service (`circuit`), and the stage that asks it.

A failure is a transport error, a time-out, or a 502 503 504 of the upstream; never a 4xx, never a client that left. Any
other reply's head ends the row, for its body may take hours; one that is then cut short is a failure. Of attempts at
one service the last counts; one that sends a request elsewhere counts where it failed. State survives configuration
changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Any

from engadi_gateway.errors import FAILURE_STATUSES, Reason, Refusal
from engadi_gateway.model import BreakerState, Framing
from engadi_gateway.pipeline.circuit import Breaker, Permit, Thresholds, Transition
from engadi_gateway.pipeline.exchange import Exchange, Target
from engadi_gateway.pipeline.permits import may_ask_again

#: How long a service that is gone may come back to a circuit that was open.
_REMEMBERED_S = 3600.0
_CLOSED, _OPEN = BreakerState.CLOSED, BreakerState.OPEN  # looking them up in their class costs 45 ns each time


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

    While that is open, its health checks have found it down, or it has no place for one more upload, another share of a
    split serves.

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
            is_asked = wait_s == 0.0 and target.service not in registry.unhealthy
            if is_asked and (breaker.upload_since is None or not _has_no_place(breaker, exchange, now)):
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
                if not self._is_well(target.service, exchange, now):
                    continue
                permit.breaker.failed(permit, now, self._registry.limits, reason.code)
                exchange.permit = self._registry.of(target.service).take_permit(now)
                exchange.has_moved = True
            elif not may_ask_again(exchange):
                continue
            if target.service != failed.service:
                here = exchange.attempts - sum(attempts for _, attempts in exchange.left)
                exchange.left += ((failed.service, here),)
            exchange.target = target
            return True
        return False

    def _is_well(self, service: str, exchange: Exchange, now: float) -> bool:
        registry = self._registry
        breaker = registry.peek(service)
        is_asked = service not in registry.unhealthy and breaker.wait_s(now, registry.limits) == 0.0
        return is_asked and not _has_no_place(breaker, exchange, now)


def _has_no_place(breaker: Breaker, exchange: Exchange, now: float) -> bool:
    """For one more upload, and who has a body may be one: nobody knows yet whether all of it has come."""
    return exchange.head.framing is not Framing.NONE and breaker.is_uploading(now)
