"""What a circuit hears of an exchange before it is over: uploads, replies that go on."""

from __future__ import annotations

import pytest

from engadi_gateway.errors import Reason
from engadi_gateway.pipeline import permits
from tests.circuits import CLOSED, HALF_OPEN, OPEN, Service, probing


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
