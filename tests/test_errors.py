"""The closed table of reasons, held against the rules it must keep."""

from __future__ import annotations

import re
from http import HTTPStatus

import pytest

from engadi_gateway.errors import FAILURE_STATUSES, ConfigurationError, Fault, Reason, Refusal, RefusedError

#: RFC 9209 section 2.3: the error types of the registry.
PROXY_ERRORS = frozenset(
    (
        "dns_timeout", "dns_error", "destination_not_found", "destination_unavailable", "destination_ip_prohibited",
        "destination_ip_unroutable", "connection_refused", "connection_terminated", "connection_timeout",
        "connection_read_timeout", "connection_write_timeout", "connection_limit_reached", "tls_protocol_error",
        "tls_certificate_error", "tls_alert_received", "http_request_error", "http_request_denied",
        "http_response_incomplete", "http_response_header_section_size", "http_response_header_size",
        "http_response_body_size", "http_response_trailer_section_size", "http_response_trailer_size",
        "http_response_transfer_coding", "http_response_content_coding", "http_response_timeout", "http_upgrade_failed",
        "http_protocol_error", "proxy_internal_response", "proxy_internal_error", "proxy_configuration_error",
        "proxy_loop_detected",
    )
)  # fmt: skip

each_reason = pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.code)


@each_reason
def test_codes_are_words_and_statuses_exist(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", reason.code)
    assert reason.title
    assert reason.status == 499 or HTTPStatus(reason.status)
    assert reason.code == reason.name.lower() or reason is Reason.UNSUPPORTED_MEDIA


@each_reason
def test_proxy_errors_are_of_the_registry(reason: Reason) -> None:
    assert reason.proxy_error == "" or reason.proxy_error in PROXY_ERRORS


#: Code -> status and Proxy-Status error: what clients, balancers and other proxies go by, so that a change is a break.
PROMISED: dict[str, tuple[int, str]] = {
    "ok": (200, ""),
    "bad_request": (400, "http_request_error"),
    "uri_too_long": (414, "http_request_error"),
    "headers_too_large": (431, "http_request_error"),
    "body_too_large": (413, "http_request_error"),
    "client_timeout": (408, "http_request_error"),
    "version_unsupported": (505, "http_request_error"),
    "not_implemented": (501, "http_request_error"),
    "expectation_failed": (417, "http_request_error"),
    "no_route": (404, "destination_not_found"),
    "method_not_allowed": (405, "http_request_denied"),
    "options": (204, ""),
    "preflight": (204, ""),
    "preflight_denied": (403, "http_request_denied"),
    "auth_malformed": (400, "http_request_denied"),
    "auth_missing": (401, "http_request_denied"),
    "auth_invalid": (401, "http_request_denied"),
    "auth_unavailable": (503, "destination_unavailable"),
    "scope_missing": (403, "http_request_denied"),
    "rate_limited": (429, "http_request_denied"),
    "overloaded": (503, "connection_limit_reached"),
    "draining": (503, "proxy_internal_response"),
    "breaker_open": (503, "destination_unavailable"),
    "no_target": (503, "destination_unavailable"),
    "dns_error": (502, "dns_error"),
    "dns_timeout": (504, "dns_timeout"),
    "connect_refused": (502, "connection_refused"),
    "connect_timeout": (504, "connection_timeout"),
    "tls_certificate": (502, "tls_certificate_error"),
    "tls_error": (502, "tls_protocol_error"),
    "upstream_closed": (502, "connection_terminated"),
    "upstream_invalid": (502, "http_protocol_error"),
    "upstream_timeout": (504, "http_response_timeout"),
    "upstream_truncated": (502, "http_response_incomplete"),
    "upstream_stalled": (504, "connection_read_timeout"),
    "upstream_5xx": (502, ""),
    "upgrade_failed": (502, "http_upgrade_failed"),
    "loop": (502, "proxy_loop_detected"),
    "client_closed": (499, ""),
    "client_stalled": (499, ""),
    "internal": (500, "proxy_internal_error"),
    "not_found": (404, ""),
    "bad_json": (400, ""),
    "conflict": (409, ""),
    "precondition_failed": (412, ""),
    "unsupported_media_type": (415, ""),
    "invalid_fields": (422, ""),
    "store_unavailable": (503, ""),
}


@each_reason
def test_each_row_says_what_was_promised(reason: Reason) -> None:
    assert (reason.status, reason.proxy_error) == PROMISED[reason.code]


def test_codes_are_unique_and_no_row_hides_another() -> None:
    """An Enum makes an alias of a row that equals an earlier one."""
    codes = [reason.code for reason in Reason]
    assert len(set(codes)) == len(codes) == len(Reason.__members__)


@each_reason
def test_the_breaker_counts_only_what_an_upstream_did(reason: Reason) -> None:
    """Never a 4xx, never a client that left, never our own refusal (DESIGN, "Circuit breaker")."""
    upstream = reason.code.startswith(("dns_", "connect_", "tls_", "upstream_", "upgrade_"))
    assert reason.is_failure is upstream
    assert not reason.is_failure or reason.status in {502, 504}


@each_reason
def test_after_a_head_that_was_not_understood_the_connection_closes(reason: Reason) -> None:
    """What follows it cannot be told from a body (RFC 9112 section 9.3)."""
    if reason.proxy_error == "http_request_error":
        assert reason.closes


def test_a_500_of_an_upstream_is_no_failure() -> None:
    assert {502, 503, 504} == FAILURE_STATUSES


def test_a_word_refines_the_code() -> None:
    assert Refusal(Reason.AUTH_INVALID, word="expired").code == "auth_invalid.expired"
    assert Refusal(Reason.AUTH_INVALID).code == "auth_invalid"


def test_exceptions_carry_everything_and_say_nothing_of_their_own() -> None:
    refusal = Refusal(Reason.NO_ROUTE, "d")
    assert RefusedError(refusal).refusal is refusal
    assert str(RefusedError(refusal)) == "no_route"
    faults = [Fault("a.b", "bad"), Fault("c.d", "worse")]
    assert ConfigurationError(faults).faults == faults
    assert str(ConfigurationError(faults)) == "a.b: bad; c.d: worse"
