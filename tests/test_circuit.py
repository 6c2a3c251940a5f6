"""One circuit: when it opens and closes, whom it lets pass while it recovers, and what it does not believe."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.model import BreakerState
from engadi_gateway.pipeline.circuit import Breaker, Permit, Thresholds
from tests.circuits import CLOSED, HALF_OPEN, OPEN, Service, probing, tripped


@pytest.mark.parametrize("reason", [Reason.OK, Reason.CLIENT_CLOSED])
def test_one_that_was_not_cut_short_ends_their_row(reason: Reason) -> None:
    service = Service()
    for _ in range(5):
        for _ in range(2):
            service.ask(Reason.UPSTREAM_TRUNCATED, 200)
        service.ask(reason, 200)
    assert service.state is CLOSED


def test_only_failures_in_a_row_count() -> None:
    service = Service()
    for _ in range(5):
        service.fail(2)
        service.ask()
    assert service.state is CLOSED
    service.fail(3)
    assert service.state is OPEN


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


def test_the_history_is_bounded_and_the_trips_are_counted() -> None:
    service = tripped()
    for number in range(1, 101):
        service.now = 60.0 * number
        service.ask(Reason.TLS_ERROR, 0)
    status = service.registry.status("content", service.now)
    assert len(status["history"]) == 20
    assert status["trips"] == 101
    assert status["last_trip_cause"] == "probe failed: tls_error"


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
