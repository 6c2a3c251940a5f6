"""The gateway's own replies: what they say, what they never say, and that h11 reads every one."""

from __future__ import annotations

import json
from typing import Any

import h11
import pytest

from engadi_gateway.errors import Fault, Reason, Refusal
from engadi_gateway.wire.problem import own_head, own_reply, problem_body, refusal_lines, refusal_reply

DATE = b"Tue, 24 Nov 2026 16:55:10 GMT"


def _read(raw: bytes, method: str = "GET") -> tuple[h11.Response, bytes, bytes]:
    """(head, body, what h11 did not read) of a whole reply."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    head = connection.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return head, body, connection.trailing_data[0]


UUID = "0b5e7d52-0000-4000-8000-000000000000"


def _document(refusal: Refusal, request_id: str = UUID) -> Any:
    return json.loads(problem_body(refusal, request_id))


def test_a_problem_says_what_it_may() -> None:
    assert _document(Refusal(Reason.INVALID_FIELDS, "d", faults=(Fault("/a", "no"),))) == {
        "type": "urn:engadi:problem:invalid_fields",
        "title": "Some fields are not valid",
        "status": 422,
        "code": "invalid_fields",
        "instance": f"urn:uuid:{UUID}",
        "request_id": UUID,
        "detail": "d",
        "errors": [{"pointer": "/a", "detail": "no"}],
    }


def test_an_id_that_a_proxy_gave_is_no_urn_unless_it_is_a_uuid() -> None:
    document = _document(Refusal(Reason.NO_ROUTE), "abc/1")
    assert ("instance" in document, document["request_id"]) == (False, "abc/1")


def test_the_word_refines_the_code_and_not_the_type() -> None:
    document = _document(Refusal(Reason.AUTH_INVALID, word="expired"))
    assert (document["code"], document["type"]) == ("auth_invalid.expired", "urn:engadi:problem:auth_invalid")


def test_a_violated_limit_is_the_drafts_problem() -> None:
    document = _document(Refusal(Reason.RATE_LIMITED, faults=(Fault("per_ip", ""), Fault("all", ""))))
    assert document["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert document["violated-policies"] == ["per_ip", "all"]
    assert "errors" not in document


def test_without_a_request_there_is_no_id() -> None:
    assert set(_document(Refusal(Reason.BAD_REQUEST), "")) == {"type", "title", "status", "code"}


def test_half_a_surrogate_pair_is_said_and_breaks_nothing() -> None:
    assert _document(Refusal(Reason.INVALID_FIELDS, "\u00e4\ud800"))["detail"] == "ä\ud800"


@pytest.mark.parametrize("is_closing", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OK], ids=lambda r: r.code)
def test_every_row_gives_a_reply_that_h11_reads(reason: Reason, method: str, is_closing: bool) -> None:
    refusal = Refusal(reason, headers=((b"Allow", b"GET"),))
    reply = refusal_reply(refusal, "i", [b"Vary: Origin"], DATE, is_head=method == "HEAD", is_closing=is_closing)
    head, body, rest = _read(b"".join(reply), method)
    assert body == reply[1]
    assert (head.status_code, rest) == (reason.status, b"")
    names = [name for name, _ in head.headers]
    assert len(set(names)) == len(names)
    lines = dict(head.headers)
    assert lines[b"date"] == DATE
    assert lines[b"server"] == b"engadi"
    assert lines[b"cache-control"] == b"no-store"
    assert (lines[b"vary"], lines[b"allow"]) == (b"Origin", b"GET")
    assert lines.get(b"connection") == (b"close" if is_closing else None)
    assert ("retry-after" in {name.decode() for name in lines}) is (reason.status == 503), (
        "each 503 says when to come back"
    )
    proxy_status = f"engadi; error={reason.proxy_error}".encode() if reason.proxy_error else None
    assert lines.get(b"proxy-status") == proxy_status
    if reason.status == 204:
        assert (body, lines.get(b"content-type"), lines.get(b"content-length")) == (b"", None, None)
        return
    assert lines[b"content-type"] == b"application/problem+json"
    if method == "HEAD":
        assert (body, int(lines[b"content-length"])) == (b"", len(problem_body(refusal, "i")))
    else:
        assert json.loads(body)["code"] == reason.code


def test_own_heads_and_replies_whole() -> None:
    assert own_head(200, [b"A: b"], DATE, is_closing=True) == (
        b"HTTP/1.1 200 OK\r\nServer: engadi\r\nDate: " + DATE + b"\r\nA: b\r\nConnection: close\r\n\r\n"
    )
    assert own_reply(200, [], b"xy", DATE, is_head=False, is_closing=False) == (
        b"HTTP/1.1 200 OK\r\nServer: engadi\r\nDate: " + DATE + b"\r\nContent-Length: 2\r\n\r\n", b"xy",
    )  # fmt: skip


@pytest.mark.parametrize("status", [204, 304])
def test_some_replies_have_neither_body_nor_length(status: int) -> None:
    head, body = own_reply(status, [], b"never", DATE, is_head=False, is_closing=False)
    assert head.endswith(DATE + b"\r\n\r\n")
    assert (b"Content-Length" in head, body) == (False, b"")


def test_a_status_without_a_phrase_has_an_empty_one() -> None:
    assert own_head(499, [], DATE, is_closing=False).startswith(b"HTTP/1.1 499 \r\n")


def test_a_refusals_own_lines_stand_before_proxy_status() -> None:
    refusal = Refusal(Reason.BREAKER_OPEN, headers=((b"Retry-After", b"3"),))
    assert refusal_lines(refusal) == [
        (b"Cache-Control", b"no-store"),
        (b"Retry-After", b"3"),
        (b"Proxy-Status", b"engadi; error=destination_unavailable"),
    ]


def test_who_does_not_know_when_to_come_back_says_a_default() -> None:
    assert (b"Retry-After", b"1") in refusal_lines(Refusal(Reason.OVERLOADED))
    assert [line for line in refusal_lines(Refusal(Reason.NO_TARGET)) if line[0] == b"Retry-After"] == [
        (b"Retry-After", b"5")
    ]
