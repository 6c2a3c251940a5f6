"""A circuit with its stage in front of one service, for tests that ask it."""

from __future__ import annotations

from engadi_gateway.errors import Reason
from engadi_gateway.model import BreakerState, Route
from engadi_gateway.pipeline.breaker import BreakerRegistry, BreakerStage
from engadi_gateway.pipeline.circuit import Thresholds
from engadi_gateway.pipeline.exchange import Exchange, Target
from tests.exchanges import exchange_of

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
LIMITS = Thresholds(failure_threshold=3, success_threshold=2, timeout_s=60.0)
ROUTE = Route("route-1", "/a", "content")
TARGET = Target("content", "http://content.test")


class Service:
    """A stage in front of one service, and requests to it; `now` is the test's."""

    def __init__(self, limits: Thresholds = LIMITS, is_enabled: bool = True) -> None:
        self.registry = BreakerRegistry(limits)
        self.stage = BreakerStage(self.registry, lambda exchange: (TARGET,), is_enabled)
        self.now = 0.0

    @property
    def state(self) -> BreakerState:
        return self.registry.peek("content").state

    def begin(self, route: Route = ROUTE) -> Exchange:
        exchange = exchange_of(now=self.now, route=route)
        exchange.refusal = self.stage.decide(exchange)
        return exchange

    def end(self, exchange: Exchange, reason: Reason = Reason.OK, status: int = 200) -> None:
        exchange.reason, exchange.upstream_status, exchange.ended = reason, status, self.now
        self.stage.settle(exchange)
        assert exchange.permit is None

    def ask(self, reason: Reason = Reason.OK, status: int = 200) -> bool:
        """One request from begin to end; whether it passed."""
        exchange = self.begin()
        if exchange.refusal is None:
            self.end(exchange, reason, status)
            return True
        self.end(exchange, exchange.refusal.reason, 0)
        return False

    def fail(self, times: int = 3) -> None:
        for _ in range(times):
            self.ask(Reason.CONNECT_REFUSED, 0)

    def passes(self) -> bool:
        exchange = exchange_of(now=self.now, route=ROUTE)
        exchange.is_rehearsal = True
        return self.stage.decide(exchange) is None


def tripped(limits: Thresholds = LIMITS) -> Service:
    service = Service(limits)
    service.fail(limits.failure_threshold)
    assert service.state is OPEN
    return service


def probing() -> Service:
    service = tripped()
    service.now = 60.0
    return service
