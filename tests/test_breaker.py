"""The circuit breaker: when it trips, whom it asks while it recovers, and what it does not believe."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.model import BreakerState, Framing, Route
from engadi_gateway.pipeline import permits
from engadi_gateway.pipeline.breaker import BreakerRegistry, BreakerStage
from engadi_gateway.pipeline.circuit import Breaker, Permit, Thresholds
from engadi_gateway.pipeline.exchange import Exchange, Target
from tests.exchanges import exchange_of, head_of

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


# what trips it

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


def test_a_good_reply_that_goes_on_ends_the_row_when_it_begins() -> None:
    service = Service()
    for _ in range(5):
        service.fail(2)
        stream = service.begin()
        stream.upstream_status = 200
        permits.goes_on(stream)
    assert service.state is CLOSED
    service.fail(3)
    assert service.state is OPEN


def test_a_failure_that_goes_on_ends_no_row() -> None:
    service = Service()
    for _ in range(3):
        exchange = service.begin()
        exchange.upstream_status = 503
        permits.goes_on(exchange)
        service.end(exchange, Reason.UPSTREAM_5XX, 503)
    assert service.state is OPEN


@pytest.mark.parametrize("reason", [Reason.UPSTREAM_TRUNCATED, Reason.UPSTREAM_STALLED])
def test_replies_that_begin_well_and_are_all_cut_short_are_failures_in_a_row(reason: Reason) -> None:
    service = Service()
    for number in range(3):
        assert service.state is CLOSED, number
        stream = service.begin()
        stream.upstream_status = 200
        permits.goes_on(stream)
        service.end(stream, reason, 200)
    assert service.state is OPEN


@pytest.mark.parametrize("reason", [Reason.OK, Reason.CLIENT_CLOSED])
def test_one_that_was_not_cut_short_ends_their_row(reason: Reason) -> None:
    service = Service()
    for _ in range(5):
        for _ in range(2):
            service.ask(Reason.UPSTREAM_TRUNCATED, 200)
        service.ask(reason, 200)
    assert service.state is CLOSED


def test_a_stream_from_before_it_opened_ends_no_row_of_now() -> None:
    service = Service()
    stream = service.begin()
    service.fail(3)
    service.registry.reset("content", 1.0)
    service.fail(2)
    stream.upstream_status = 200
    permits.goes_on(stream)
    service.fail(1)
    assert service.state is OPEN


def test_only_failures_in_a_row_count() -> None:
    service = Service()
    for _ in range(5):
        service.fail(2)
        service.ask()
    assert service.state is CLOSED
    service.fail(3)
    assert service.state is OPEN


# open


@pytest.mark.parametrize(
    ("now", "retry_after"), [(0.0, b"60"), (0.1, b"60"), (59.0, b"1"), (59.999, b"1"), (60.0, None), (1000.0, None)]
)
def test_open_refuses_until_it_is_time(now: float, retry_after: bytes | None) -> None:
    service = tripped()
    service.now = now
    refusal = service.begin().refusal
    if retry_after is None:
        assert refusal is None
        assert service.state is HALF_OPEN
    else:
        assert refusal == Refusal(Reason.BREAKER_OPEN, headers=((b"Retry-After", retry_after),))
        assert service.state is OPEN


def test_what_was_under_way_when_it_tripped_changes_nothing() -> None:
    service = Service()
    late = [service.begin() for _ in range(4)]
    service.fail(3)
    service.now = 30.0
    service.end(late[0], Reason.UPSTREAM_TIMEOUT, 0)
    service.end(late[1])
    assert service.state is OPEN
    service.now = 60.0
    probe = service.begin()
    service.end(late[2], Reason.UPSTREAM_TIMEOUT, 0)
    assert service.state is HALF_OPEN
    assert not service.passes(), "the probe's place is still taken"
    service.end(probe)
    service.ask()
    assert service.state is CLOSED
    service.end(late[3], Reason.UPSTREAM_TIMEOUT, 0)
    assert service.registry.status("content", 60.0)["failure_count"] == 0


# half open


def test_one_probe_at_a_time() -> None:
    service = probing()
    probe = service.begin()
    assert probe.refusal is None
    for _ in range(5):
        assert not service.ask()
    service.end(probe)
    assert service.state is HALF_OPEN
    assert service.ask(), "the next one"
    assert service.state is CLOSED


def test_a_probe_whose_reply_goes_on_lets_others_probe_and_counts_when_it_ends() -> None:
    """It may be a stream of hours, while the upstream is well."""
    service = probing()
    stream = service.begin()
    permits.goes_on(stream)
    assert service.state is HALF_OPEN
    assert service.ask(), "the next one"
    assert service.state is HALF_OPEN, "one success; the stream's is not known"
    service.end(stream)
    assert service.state is CLOSED
    permits.goes_on(service.begin())


def test_an_upload_has_the_place_once_its_body_has_come() -> None:
    service = probing()
    upload = service.begin()
    assert permits.awaits_body(upload, service.now)
    probe = service.begin()
    assert probe.refusal is None, "it may take minutes, and the service is well"
    assert not service.passes()
    permits.has_body(upload, service.now)
    service.end(probe)
    assert service.passes(), "it was not waited for"
    service.end(upload, Reason.CLIENT_CLOSED, 0)
    late = service.begin()
    assert permits.awaits_body(late, service.now)
    service.now = 100.0
    permits.has_body(late, service.now)
    assert not service.passes()
    assert service.registry.of("content").probe_since == 100.0
    service.end(late)
    assert service.state is CLOSED


def _another_uploads(service: Service) -> bool:
    """Whether one more upload may be a probe; it is gone again."""
    upload = service.begin()
    assert upload.refusal is None
    may_upload = permits.awaits_body(upload, service.now)
    service.end(upload, Reason.CLIENT_CLOSED if may_upload else Reason.BREAKER_OPEN, 0)
    return may_upload


def test_one_upload_at_a_time_is_a_probe() -> None:
    """It keeps no other request from being one, and other uploads for a minute at most."""
    service = probing()
    upload = service.begin()
    assert permits.awaits_body(upload, service.now)
    assert permits.awaits_body(upload, service.now), "it is tried again"
    assert not _another_uploads(service)
    service.now += 61.0
    assert _another_uploads(service)
    service.end(upload, Reason.CLIENT_CLOSED, 0)
    assert _another_uploads(service)


@pytest.mark.parametrize("how", ["it ends", "its body has come", "its reply has begun"])
def test_the_next_upload_may_probe_when_the_one_before_it_is_none_any_more(how: str) -> None:
    service = probing()
    upload = service.begin()
    assert permits.awaits_body(upload, service.now)
    if how == "it ends":
        service.end(upload, Reason.CLIENT_CLOSED, 0)
    elif how == "its reply has begun":
        permits.goes_on(upload)
    else:
        permits.has_body(upload, service.now)
        assert not service.passes(), "it is the probe now"
        service.end(upload)
    assert _another_uploads(service)


def test_an_upload_that_has_come_while_another_probe_is_waited_for_is_still_one_of_two() -> None:
    service = probing()
    upload = service.begin()
    assert permits.awaits_body(upload, service.now)
    probe = service.begin()
    permits.has_body(upload, service.now)
    service.end(probe, Reason.CLIENT_CLOSED, 0)
    assert not _another_uploads(service)
    service.end(upload)
    assert _another_uploads(service)


def test_an_upload_through_a_closed_circuit_is_one_of_many() -> None:
    service = Service()
    assert all(permits.awaits_body(service.begin(), service.now) for _ in range(3))


def test_an_upload_of_an_earlier_era_takes_no_place() -> None:
    service = probing()
    upload = service.begin()
    assert permits.awaits_body(upload, service.now)
    service.ask(Reason.UPSTREAM_5XX, 503)
    assert service.state is OPEN
    service.now = 120.0
    service.end(service.begin(), Reason.CLIENT_CLOSED, 0)
    permits.has_body(upload, service.now)
    assert service.passes()
    service.end(upload, Reason.UPSTREAM_TIMEOUT, 0)
    assert service.state is HALF_OPEN


def test_one_bad_probe_opens_it_for_as_long_again() -> None:
    service = probing()
    service.ask()
    service.now = 70.0
    service.ask(Reason.UPSTREAM_5XX, 503)
    assert service.state is OPEN
    service.now = 129.9
    assert not service.passes()
    service.now = 130.0
    assert service.passes()


def test_a_probe_whose_client_left_frees_its_place_and_says_nothing() -> None:
    service = probing()
    service.end(service.begin(), Reason.CLIENT_CLOSED, 0)
    assert service.state is HALF_OPEN
    assert service.ask()
    assert service.registry.status("content", 60.0)["success_count"] == 1


def test_probes_whose_clients_leave_good_replies_close_it() -> None:
    """A service of event streams has no others: each of them is left by its client."""
    service = probing()
    assert service.ask(Reason.CLIENT_CLOSED, 200)
    assert service.state is HALF_OPEN
    assert service.ask(Reason.CLIENT_CLOSED, 200)
    assert service.state is CLOSED


def test_a_probe_that_hangs_does_not_block_for_ever() -> None:
    service = probing()
    hung = service.begin()
    service.now = 119.9
    refusal = service.begin().refusal
    assert refusal is not None
    assert refusal.headers == ((b"Retry-After", b"1"),)
    service.now = 120.0
    second = service.begin()
    assert second.refusal is None
    service.end(hung)
    assert not service.passes(), "the late one does not free the other's place"
    service.end(second)
    assert service.state is CLOSED, "both were good"


def test_a_hung_probe_that_fails_late_opens_again_but_not_in_a_later_era() -> None:
    service = probing()
    hung = [service.begin()]
    service.now = 120.0
    hung.append(service.begin())
    service.end(hung[0], Reason.UPSTREAM_TIMEOUT, 0)
    assert service.state is OPEN
    service.now = 180.0
    service.ask()
    service.ask()
    assert service.state is CLOSED
    service.end(hung[1], Reason.UPSTREAM_TIMEOUT, 0)
    assert service.state is CLOSED
    assert service.registry.status("content", 180.0)["failure_count"] == 0


# from outside


def test_a_good_health_check_starts_the_probe_early() -> None:
    service = tripped()
    service.now = 5.0
    service.registry.note_healthy("content", 5.0)
    assert service.state is HALF_OPEN
    probe = service.begin()
    assert probe.refusal is None
    service.registry.note_healthy("content", 6.0)
    assert not service.passes(), "another one does not let a second probe through"


def test_a_good_health_check_closes_nothing_and_invents_nothing() -> None:
    service = Service()
    service.registry.note_healthy("content", 0.0)
    assert service.registry.names() == []
    service.fail(2)
    service.registry.note_healthy("content", 0.0)
    assert service.registry.status("content", 0.0)["failure_count"] == 2


def test_a_reset_closes_at_once_and_forgets_the_failures() -> None:
    service = tripped()
    service.registry.reset("content", 1.0)
    service.registry.reset("unheard-of", 1.0)
    assert service.registry.names() == ["content"]
    assert service.state is CLOSED
    service.fail(2)
    assert service.state is CLOSED
    service.registry.reset("content", 1.0)
    service.fail(2)
    assert service.state is CLOSED


def test_other_thresholds_hold_from_the_next_request_on_and_the_state_stays() -> None:
    service = tripped()
    service.registry.limits = Thresholds(failure_threshold=1, success_threshold=1, timeout_s=10.0)
    service.now = 10.0
    assert service.ask()
    assert service.state is CLOSED
    service.fail(1)
    assert service.state is OPEN


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


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (lambda service: service.ask(Reason.UPSTREAM_TIMEOUT, 0), "probe failed: upstream_timeout"),
        (lambda service: service.registry.reset("content", 60.0), "reset"),
    ],
    ids=["probe", "reset"],
)
def test_every_change_has_a_cause(step: Any, cause: str) -> None:
    service = probing()
    service.ask()
    step(service)
    assert service.registry.status("content", 60.0)["history"][-1]["cause"] == cause


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


def test_the_history_is_bounded_and_the_trips_are_counted() -> None:
    service = tripped()
    for number in range(1, 101):
        service.now = 60.0 * number
        service.ask(Reason.TLS_ERROR, 0)
    status = service.registry.status("content", service.now)
    assert len(status["history"]) == 20
    assert status["trips"] == 101
    assert status["last_trip_cause"] == "probe failed: tls_error"


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


def test_a_permit_is_given_back_once() -> None:
    service = Service()
    exchange = service.begin()
    service.end(exchange, Reason.CONNECT_REFUSED, 0)
    service.end(exchange, Reason.CONNECT_REFUSED, 0)
    assert service.registry.status("content", 0.0)["failure_count"] == 1


class BreakerMachine(RuleBasedStateMachine):
    """Any interleaving of requests, ends, checks, resets and time, beside a model that knows only the rules."""

    @initialize(failures=st.integers(1, 4), successes=st.integers(1, 3), timeout_s=st.integers(1, 60))
    def begin(self, failures: int, successes: int, timeout_s: int) -> None:
        self.limits = Thresholds(failures, successes, float(timeout_s))
        self.breaker = Breaker()
        self.now = 0.0
        self.under_way: list[tuple[Permit, int]] = []
        self.become(CLOSED, era=0)

    def become(self, state: BreakerState, era: int) -> None:
        self.state, self.era, self.since = state, era, self.now
        self.bad = self.cut = self.good = 0
        self.probe: Permit | None = None  # who holds the place
        self.probe_since = 0.0
        self.uploading: Permit | None = None  # who has the place of an upload
        self.uploading_since = 0.0

    def makes_way(self, permit: Permit) -> None:
        self.probe = None if permit is self.probe else self.probe
        self.uploading = None if permit is self.uploading else self.uploading

    def may_pass(self) -> bool:
        if self.state is OPEN:
            return self.now - self.since >= self.limits.timeout_s
        if self.state is HALF_OPEN and self.probe is not None:
            return self.now - self.probe_since >= self.limits.timeout_s
        return True

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def request(self) -> None:
        wait_s = self.breaker.wait_s(self.now, self.limits)
        assert (wait_s == 0.0) is self.may_pass()
        assert 0.0 <= wait_s <= self.limits.timeout_s
        if wait_s:
            return
        permit = self.breaker.take_permit(self.now)
        if self.state is OPEN:
            self.become(HALF_OPEN, self.era + 1)
        if self.state is HALF_OPEN:
            self.probe, self.probe_since = permit, self.now
        self.under_way.append((permit, self.era))

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100))
    def head(self, which: int) -> None:
        """A good one came, of which much is still to come."""
        permit, era = self.under_way[which % len(self.under_way)]
        if permit.probe:
            self.breaker.gave_up(permit)
            self.makes_way(permit)
        else:
            self.breaker.began_well(permit)
            self.bad = self.cut if era == self.era else self.bad

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100))
    def upload(self, which: int) -> None:
        """Its body is not complete."""
        permit, era = self.under_way[which % len(self.under_way)]
        is_probe = bool(permit.probe) and era == self.era
        is_taken = self.uploading is not None and self.now - self.uploading_since < 60.0
        may_upload = not (is_probe and is_taken) or permit is self.uploading
        assert self.breaker.may_upload(permit, self.now) is may_upload
        if is_probe and may_upload:
            self.makes_way(permit)
            self.uploading, self.uploading_since = permit, self.now

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100))
    def uploaded(self, which: int) -> None:
        """It is now."""
        index = which % len(self.under_way)
        permit, era = self.under_way[index]
        again = self.breaker.probe_again(permit, self.now)
        self.under_way[index] = again, era
        if permit.probe and era == self.era and self.probe is None:
            self.makes_way(permit)
            self.probe, self.probe_since = again, self.now
        else:
            assert again is permit

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100), how=st.sampled_from(["good", "bad", "cut", "left"]))
    def end(self, which: int, how: str) -> None:
        permit, era = self.under_way.pop(which % len(self.under_way))
        if how == "good":
            self.breaker.succeeded(permit, self.now, self.limits)
        elif how in {"bad", "cut"}:
            self.breaker.failed(permit, self.now, self.limits, "test", is_cut=how == "cut")
        else:
            self.breaker.gave_up(permit)
        if era != self.era:
            return
        self.makes_way(permit)
        if how in {"bad", "cut"}:
            self.bad, self.cut = self.bad + 1, self.cut + (how == "cut")
            if self.state is HALF_OPEN or self.bad == self.limits.failure_threshold:
                self.become(OPEN, self.era + 1)
        elif how == "good":
            self.bad, self.cut, self.good = 0, 0, self.good + 1
            if self.state is HALF_OPEN and self.good == self.limits.success_threshold:
                self.become(CLOSED, self.era + 1)

    @rule()
    def checked(self) -> None:
        self.breaker.healthy(self.now)
        if self.state is OPEN:
            self.become(HALF_OPEN, self.era + 1)

    @rule()
    def reset(self) -> None:
        self.breaker.reset(self.now)
        self.bad = self.cut = 0
        if self.state is not CLOSED:
            self.become(CLOSED, self.era + 1)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.state is self.state
            assert self.state is not CLOSED or self.breaker.failures == self.bad
            assert (self.breaker.wait_s(self.now, self.limits) == 0.0) is self.may_pass()
            assert len(self.breaker.history) == min(self.era, 20)
            assert all(one.after is two.before for one, two in pairwise(self.breaker.history))


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=150, stateful_step_count=40)


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
