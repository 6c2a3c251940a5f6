"""The stage that asks circuits: what counts as a failure, who serves while one is open, what can be seen of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.model import Framing
from engadi_gateway.pipeline import permits
from engadi_gateway.pipeline.breaker import BreakerRegistry, BreakerStage
from engadi_gateway.pipeline.circuit import Breaker, Permit, Thresholds
from engadi_gateway.pipeline.exchange import Exchange, Target
from tests.circuits import CLOSED, HALF_OPEN, LIMITS, OPEN, ROUTE, TARGET, Service
from tests.exchanges import exchange_of, head_of

# what counts

FAILURES = [reason for reason in Reason if reason.is_failure]
NOT_FAILURES = [reason for reason in Reason if not reason.is_failure and reason is not Reason.OK]


@pytest.mark.parametrize("reason", FAILURES, ids=lambda reason: reason.code)
def test_every_fault_of_the_upstream_counts(reason: Reason) -> None:
    service = Service()
    for expected in (CLOSED, CLOSED, OPEN):
        assert service.ask(reason, 0)
        assert service.state is expected


@pytest.mark.parametrize("status", [502, 503, 504])
def test_so_do_these_answers_whoever_ended_it(status: int) -> None:
    for reason in (Reason.OK, Reason.UPSTREAM_5XX, Reason.CLIENT_CLOSED):
        service = Service()
        for _ in range(3):
            service.ask(reason, status)
        assert service.state is OPEN


@pytest.mark.parametrize("status", [101, 200, 301, 400, 401, 404, 408, 429, 499, 500, 501, 505])
def test_other_answers_are_successes(status: int) -> None:
    service = Service()
    for _ in range(10):
        service.fail(2)
        assert service.ask(Reason.OK, status)
    assert service.state is CLOSED


@pytest.mark.parametrize("reason", NOT_FAILURES, ids=lambda reason: reason.code)
def test_what_the_client_or_the_gateway_did_before_a_reply_counts_neither_way(reason: Reason) -> None:
    service = Service()
    for _ in range(2):
        service.fail(1)
        service.ask(reason, 0)
    assert service.state is CLOSED
    service.fail(1)
    assert service.state is OPEN


@pytest.mark.parametrize("reason", NOT_FAILURES, ids=lambda reason: reason.code)
def test_what_they_did_with_a_good_reply_is_no_fault_of_it(reason: Reason) -> None:
    service = Service()
    for _ in range(5):
        service.fail(2)
        service.ask(reason, 200)
    assert service.state is CLOSED


def test_services_do_not_share() -> None:
    registry = BreakerRegistry(LIMITS)
    targets = iter([Target("a", "http://a.test")] * 3 + [Target("b", "http://b.test")])
    stage = BreakerStage(registry, lambda exchange: (next(targets),))
    for _ in range(3):
        exchange = exchange_of(route=ROUTE)
        assert stage.decide(exchange) is None
        exchange.reason = Reason.DNS_ERROR
        stage.settle(exchange)
    assert stage.decide(exchange_of(route=ROUTE)) is None
    assert [registry.status(name, 0.0)["state"] for name in registry.names()] == ["open", "closed"]


# what can be seen


def test_status_tells_state_cause_and_history() -> None:
    service = Service()
    service.now = 1.0
    service.fail(2)
    service.ask(Reason.UPSTREAM_5XX, 503)
    service.now = 61.0
    service.ask()
    service.ask()
    assert service.registry.status("content", 100.0) == {
        "state": "closed",
        "failure_count": 0,
        "success_count": 0,
        "trips": 1,
        "transitions": {"closed": 1, "open": 1, "half_open": 1},
        "retry_after_s": 0.0,
        "last_trip_cause": "3 failures in a row, the last: status 503",
        "history": [
            {"age_s": 99.0, "from": "closed", "to": "open", "cause": "3 failures in a row, the last: status 503"},
            {"age_s": 39.0, "from": "open", "to": "half_open", "cause": "time to probe"},
            {"age_s": 39.0, "from": "half_open", "to": "closed", "cause": "2 successful probes"},
        ],
    }


def test_status_of_a_service_that_nobody_asked() -> None:
    registry = BreakerRegistry(LIMITS)
    assert registry.status("ai", 0.0)["state"] == "closed"
    assert registry.names() == []


def test_every_change_is_told_with_its_service() -> None:
    told: list[tuple[str, str, str]] = []
    service = Service()
    service.registry = BreakerRegistry(LIMITS, lambda name, move: told.append((name, str(move.after), move.cause)))
    service.stage = BreakerStage(service.registry, lambda exchange: (TARGET,))
    service.fail()
    service.now = 60.0
    assert service.ask()
    assert service.ask()
    assert told == [
        ("content", "open", "3 failures in a row, the last: connect_refused"),
        ("content", "half_open", "time to probe"),
        ("content", "closed", "2 successful probes"),
    ]


# the stage


def test_the_target_is_picked_whether_or_not_there_is_a_breaker() -> None:
    for service, route in (
        (Service(is_enabled=False), ROUTE),
        (Service(), replace(ROUTE, circuit_breaker_enabled=False)),
    ):
        for _ in range(10):
            exchange = service.begin(route)
            assert exchange.refusal is None
            assert exchange.target == TARGET
            assert exchange.permit is None
            service.end(exchange, Reason.CONNECT_REFUSED, 0)
        assert service.registry.names() == []


def test_no_target_is_a_503() -> None:
    stage = BreakerStage(BreakerRegistry(LIMITS), lambda exchange: ())
    assert stage.decide(exchange_of(route=ROUTE)) == Refusal(Reason.NO_TARGET)


def test_while_one_is_open_another_serves_and_where_all_are_the_soonest_is_waited_for() -> None:
    one, two = Target("one", "http://one.test"), Target("two", "http://two.test")
    registry = BreakerRegistry(Thresholds(1, 1, 60.0))
    stage = BreakerStage(registry, lambda exchange: (one, two))

    def asked(now: float, reason: Reason = Reason.OK, status: int = 200) -> tuple[str, Refusal | None]:
        exchange = exchange_of(now=now, route=ROUTE)
        exchange.trace = {}
        refusal = stage.decide(exchange)
        exchange.reason, exchange.upstream_status, exchange.ended = reason, status, now
        stage.settle(exchange)
        assert exchange.target is not None
        told: Any = exchange.trace["breaker"]
        assert told["service"] == exchange.target.service
        assert (told["allowed"], "one" in told["passed_over"]) == (refusal is None, exchange.target is two)
        return exchange.target.service, refusal

    assert asked(0.0, Reason.CONNECT_REFUSED, 0) == ("one", None)
    assert asked(10.0) == ("two", None)
    assert asked(20.0, Reason.CONNECT_REFUSED, 0) == ("two", None)
    service, refusal = asked(30.0)
    assert refusal is not None
    assert (service, refusal.reason, refusal.headers) == ("one", Reason.BREAKER_OPEN, ((b"Retry-After", b"30"),))
    assert asked(60.0) == ("one", None), "the probe"
    assert asked(60.1) == ("one", None)
    assert registry.status("two", 60.1)["state"] == "open"


def test_who_is_found_down_is_passed_over_unless_all_are() -> None:
    one, two = Target("one", "http://one.test"), Target("two", "http://two.test")
    registry = BreakerRegistry(Thresholds(1, 1, 60.0))
    stage = BreakerStage(registry, lambda exchange: (one, two))

    def asked(now: float = 0.0) -> tuple[str, bool, bool]:
        exchange = exchange_of(now=now, route=ROUTE)
        exchange.trace = {}
        refusal = stage.decide(exchange)
        assert exchange.target is not None
        told: Any = exchange.trace["breaker"]
        assert told["allowed"] is (refusal is None)
        return exchange.target.service, refusal is None, told["is_unhealthy"]

    registry.unhealthy = frozenset(("one",))
    assert asked() == ("two", True, False)
    registry.unhealthy = frozenset(("one", "two"))
    assert asked() == ("one", True, True), "health checks may be wrong"
    permit = registry.of("one").take_permit(0.0)
    registry.of("one").failed(permit, 0.0, registry.limits, "x")
    assert asked(1.0) == ("two", True, True)
    registry.of("two").failed(registry.of("two").take_permit(0.0), 0.0, registry.limits, "x")
    assert asked(1.0) == ("one", False, True)


# another attempt, elsewhere


class Shares:
    """A stage in front of a split, and requests to it; `now` is the test's."""

    def __init__(self, *targets: str, is_enabled: bool = True, limits: Thresholds = LIMITS) -> None:
        self.targets = [Target(name[:1], f"http://{name}.test") for name in targets]
        self.registry = BreakerRegistry(limits)
        self.stage = BreakerStage(self.registry, lambda exchange: self.targets, is_enabled)
        self.now = 0.0

    def begin(self, framing: Framing = Framing.NONE) -> Exchange:
        exchange = exchange_of(replace(head_of(), framing=framing), now=self.now, route=ROUTE)
        assert self.stage.decide(exchange) is None
        return exchange

    def goes_to(self, exchange: Exchange, reason: Reason = Reason.CONNECT_REFUSED) -> str | None:
        """Where the next attempt goes after one that failed; None: it stays."""
        has_moved = self.stage.another_target(exchange, reason, self.now)
        assert exchange.target is not None
        return exchange.target.url[len("http://") : -len(".test")] if has_moved else None

    def end(self, exchange: Exchange, reason: Reason = Reason.OK, status: int = 200) -> None:
        exchange.reason, exchange.upstream_status, exchange.ended = reason, status, self.now
        self.stage.settle(exchange)
        assert exchange.permit is None

    def trip(self, name: str) -> None:
        breaker = self.registry.of(name)
        while breaker.state is not OPEN:
            breaker.failed(breaker.take_permit(self.now), self.now, self.registry.limits, "test")

    def failures(self) -> dict[str, int]:
        return {name: self.registry.peek(name).failures for name in self.registry.names()}


def test_the_next_attempt_goes_to_the_next_share_and_each_circuit_learns_of_its_own() -> None:
    shares = Shares("a", "b", "c")
    exchange = shares.begin()
    assert exchange.target == shares.targets[0]
    assert [shares.goes_to(exchange) for _ in range(4)] == ["b", "c", "a", "b"]
    assert shares.failures() == {"a": 2, "b": 1, "c": 1}
    shares.end(exchange)
    assert shares.failures() == {"a": 2, "b": 0, "c": 1}, "the last one answered"
    other = shares.begin()
    assert shares.goes_to(other) == "b"
    shares.end(other, Reason.UPSTREAM_5XX, 503)
    assert shares.failures() == {"a": 3, "b": 1, "c": 1}
    assert shares.registry.cause_of("a") == "3 failures in a row, the last: connect_refused"


def test_no_attempt_is_made_again_once_the_circuit_has_opened() -> None:
    shares = Shares("a")
    exchange = shares.begin()
    assert permits.may_ask_again(exchange)
    shares.trip("a")
    assert not permits.may_ask_again(exchange)
    shares.now = 60.0
    probe = shares.begin()
    assert [permits.may_ask_again(one) for one in (exchange, probe)] == [False, True], "it is not the probe"
    shares.registry.reset("a", shares.now)
    assert permits.may_ask_again(exchange), "all may ask"
    unasked = Shares("a", is_enabled=False).begin()
    assert permits.may_ask_again(unasked)


def test_nor_is_one_at_another_target_of_the_same_service() -> None:
    shares = Shares("a1", "a2", "b")
    exchange = shares.begin()
    assert shares.goes_to(exchange) == "a2"
    shares.trip("a")
    assert shares.goes_to(exchange) == "b"
    other = Shares("a1", "a2")
    exchange = other.begin()
    other.trip("a")
    assert other.goes_to(exchange) is None


def test_who_is_open_or_found_down_is_not_tried_and_where_nobody_else_is_well_it_stays() -> None:
    shares = Shares("a", "b", "c", "d")
    exchange = shares.begin()
    permit = exchange.permit
    shares.trip("b")
    shares.registry.unhealthy = frozenset("c")
    assert shares.goes_to(exchange) == "d"
    assert shares.goes_to(exchange) == "a"
    shares.registry.unhealthy = frozenset("cd")
    assert [shares.goes_to(exchange) for _ in range(3)] == [None] * 3
    assert exchange.target == shares.targets[0]
    assert exchange.permit is permit
    assert (shares.failures()["a"], shares.failures()["d"]) == (1, 1), "the attempts that stay count when it ends"
    shares.end(exchange, Reason.CONNECT_REFUSED, 0)
    assert shares.failures()["a"] == 2


def test_one_that_its_own_failure_opens_is_left_for_the_others() -> None:
    shares = Shares("a", "b", limits=replace(LIMITS, failure_threshold=1))
    exchange = shares.begin()
    assert shares.goes_to(exchange) == "b"
    assert shares.registry.peek("a").state is OPEN
    assert shares.goes_to(exchange) is None
    shares.end(exchange)
    assert shares.begin().target == shares.targets[1]


@pytest.mark.parametrize("is_known", [False, True], ids=["the client left", "it answered"])
def test_a_probe_that_fails_opens_again_and_a_place_taken_elsewhere_is_given_back(is_known: bool) -> None:
    shares = Shares("a", "b", limits=replace(LIMITS, success_threshold=1))
    for name in ("a", "b"):
        shares.trip(name)
    shares.now = 60.0
    exchange = shares.begin()
    assert shares.goes_to(exchange) == "b"
    one, two = shares.registry.of("a"), shares.registry.of("b")
    assert (one.state, one.opened_at, one.history[-1].cause) == (OPEN, 60.0, "probe failed: connect_refused")
    assert (two.state, two.probe_since) == (HALF_OPEN, 60.0)
    if is_known:
        shares.end(exchange)
        assert two.state is CLOSED
    else:
        shares.end(exchange, Reason.CLIENT_CLOSED, 0)
        assert (two.state, two.probe_since) == (HALF_OPEN, None)


def test_targets_of_one_service_have_one_circuit_which_counts_the_end() -> None:
    shares = Shares("a1", "a2")
    shares.trip("a")
    shares.now = 60.0
    exchange = shares.begin()
    probe = exchange.permit
    assert [shares.goes_to(exchange) for _ in range(3)] == ["a2", "a1", "a2"]
    assert exchange.permit is probe
    shares.end(exchange)
    assert shares.registry.peek("a").successes == 1
    slow = shares.begin()
    assert shares.goes_to(slow) == "a2"
    permits.ran_out_of_time(slow)
    shares.end(slow, Reason.UPSTREAM_TIMEOUT, 0)
    assert shares.registry.peek("a").state is OPEN, "both were its own"


def test_what_is_given_little_time_is_not_blamed_for_it() -> None:
    shares = Shares("a", "b")
    shares.trip("b")
    shares.now = 60.0
    exchange = shares.begin()
    assert shares.goes_to(exchange, Reason.UPSTREAM_CLOSED) == "b"
    permits.ran_out_of_time(exchange)
    shares.end(exchange, Reason.UPSTREAM_TIMEOUT, 0)
    two = shares.registry.peek("b")
    assert (two.state, two.probe_since) == (HALF_OPEN, None)
    first = shares.begin()
    permits.ran_out_of_time(first)
    shares.end(first, Reason.UPSTREAM_TIMEOUT, 0)
    assert shares.failures()["a"] == 2, "one that had all of it is"


def test_without_circuits_it_goes_round_and_nothing_is_counted() -> None:
    shares = Shares("a", "b", "b", is_enabled=False)
    shares.registry.unhealthy = frozenset("b")
    exchange = shares.begin()
    assert [shares.goes_to(exchange) for _ in range(3)] == ["b", "a", "b"], "a share that stands there twice is one"
    permits.ran_out_of_time(exchange)
    shares.end(exchange, Reason.CONNECT_REFUSED, 0)
    assert shares.registry.names() == []


def test_where_one_upload_is_the_probe_the_next_goes_to_another_share() -> None:
    shares = Shares("a", "b")
    shares.trip("a")
    shares.now = 60.0
    assert permits.awaits_body(shares.begin(Framing.LENGTH), shares.now)
    one, two = shares.targets
    others = [shares.begin(framing) for framing in (Framing.CHUNKED, Framing.NONE)]
    assert [other.target for other in others] == [two, one]
    for other in others:
        shares.end(other, Reason.CLIENT_CLOSED, 0)
    shares.trip("b")
    assert shares.begin(Framing.LENGTH).target == one, "it may have come whole, and then it is no upload"


@pytest.mark.parametrize(("framing", "goes_to"), [(Framing.LENGTH, "c"), (Framing.NONE, "b")])
def test_so_does_one_whose_attempt_has_failed(framing: Framing, goes_to: str) -> None:
    shares = Shares("b", "a", "c")
    shares.trip("b")
    shares.now = 60.0
    assert permits.awaits_body(shares.begin(Framing.LENGTH), shares.now)
    shares.targets = [shares.targets[1], shares.targets[0], shares.targets[2]]
    assert shares.goes_to(shares.begin(framing)) == goes_to


def test_a_route_of_one_target_has_no_other() -> None:
    shares = Shares("a")
    assert shares.goes_to(shares.begin()) is None


class Ledger(Breaker):
    """A circuit that knows how many permits are out."""

    def __init__(self) -> None:
        super().__init__()
        self.out = 0

    def take_permit(self, now: float) -> Permit:
        self.out += 1
        return super().take_permit(now)

    def succeeded(self, permit: Permit, now: float, limits: Thresholds) -> None:
        super().succeeded(permit, now, limits)  # which gives it up as well

    def failed(self, permit: Permit, now: float, limits: Thresholds, cause: str, *, is_cut: bool = False) -> None:
        self.out -= 1
        super().failed(permit, now, limits, cause, is_cut=is_cut)

    def gave_up(self, permit: Permit) -> None:
        self.out -= 1
        super().gave_up(permit)


ENDS = st.sampled_from([(Reason.OK, 200), (Reason.UPSTREAM_5XX, 503), (Reason.CLIENT_CLOSED, 0), (Reason.OVERLOADED, 0),
                        (Reason.CONNECT_REFUSED, 0), (Reason.UPSTREAM_TIMEOUT, 0)])  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans(), ENDS, st.integers(0, 70)), max_size=30))
def test_every_permit_is_given_back_once_wherever_a_request_went(
    steps: list[tuple[int, int, bool, tuple[Reason, int], int]],
) -> None:
    """Four requests at a time, of which each goes on a while, and ends in some way."""
    shares = Shares("a", "b", "c", limits=Thresholds(2, 1, 60.0))
    ledgers = {name: Ledger() for name in "abc"}
    shares.registry._breakers.update(ledgers)
    under_way: dict[int, Exchange] = {}
    for slot, times, is_late, (reason, status), seconds in steps:
        shares.now += seconds
        exchange = under_way.setdefault(slot, exchange_of(now=shares.now, route=ROUTE))
        if exchange.target is None and (refusal := shares.stage.decide(exchange)) is not None:
            shares.end(under_way.pop(slot), refusal.reason, 0)
            continue
        for _ in range(times):
            shares.goes_to(exchange)
            permit = exchange.permit
            assert isinstance(permit, Permit)
            assert exchange.target is not None
            assert permit.breaker is ledgers[exchange.target.service], "it is of whom is asked"
        assert sum(ledger.out for ledger in ledgers.values()) == len(under_way)
        if not times:
            if is_late:
                permits.ran_out_of_time(exchange)
            shares.end(under_way.pop(slot), reason, status)
    for exchange in under_way.values():
        shares.end(exchange, Reason.CLIENT_CLOSED, 0)
    assert [ledger.out for ledger in ledgers.values()] == [0, 0, 0]
    assert all(ledger.state is not HALF_OPEN or ledger.probe_since is None for ledger in ledgers.values())


def test_the_gateways_own_endpoints_have_no_target() -> None:
    service = Service()
    exchange = exchange_of(route=ROUTE)
    exchange.is_local = True
    assert service.stage.decide(exchange) is None
    assert exchange.target is None


def test_a_rehearsal_tells_and_changes_nothing() -> None:
    service = Service()
    exchange = exchange_of(route=ROUTE)
    exchange.is_rehearsal, exchange.trace = True, {}
    assert service.stage.decide(exchange) is None
    assert exchange.permit is None
    assert service.registry.names() == []
    service.fail(3)
    service.now = 60.0
    for now, allowed in ((59.0, False), (60.0, True)):
        exchange = exchange_of(now=now, route=ROUTE)
        exchange.is_rehearsal, exchange.trace = True, {}
        refusal = service.stage.decide(exchange)
        assert (refusal is None) is allowed
        told: Any = exchange.trace["breaker"]
        assert (told["service"], told["allowed"], told["state"]) == ("content", allowed, "open")
        assert service.state is OPEN


def test_services_that_are_gone_are_forgotten_but_for_open_circuits_of_the_last_hour() -> None:
    limits = Thresholds(1, 1, 60.0)
    registry = BreakerRegistry(limits)
    permit = registry.of("closed").take_permit(0.0)
    for name in ("open", "stays"):
        registry.of(name).failed(registry.of(name).take_permit(0.0), 0.0, limits, "test")
    registry.keep({"stays", "other"}, 10.0)
    assert registry.names() == ["open", "stays"]
    permit.breaker.failed(permit, 11.0, limits, "late")
    assert (registry.names(), registry.status("closed", 12.0)["trips"]) == (["open", "stays"], 0)
    registry.keep({"stays"}, 3601.0)
    assert registry.names() == ["stays"]
