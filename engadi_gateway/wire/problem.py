"""The gateway's own replies: a refusal as problem+json (RFC 9457), and any other body of ours."""

from __future__ import annotations

import json
import re
from http import HTTPStatus

from engadi_gateway.errors import RETRY_AFTER_S, HeaderLine, Reason, Refusal, rendered

PROXY_NAME = b"engadi"
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_QUOTA_TYPE = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def own_head(status: int, lines: list[bytes], date: bytes, *, is_closing: bool) -> bytes:
    """The head of a reply that the gateway itself gives; `lines` hold its length, unless it has no body."""
    parts = [b"HTTP/1.1 %d %b" % (status, _PHRASES.get(status, b"")), b"Server: engadi", b"Date: " + date, *lines]
    if is_closing:
        parts.append(b"Connection: close")
    parts.append(b"\r\n")
    return b"\r\n".join(parts)


def own_reply(
    status: int, lines: list[bytes], body: bytes, date: bytes, *, is_head: bool, is_closing: bool
) -> tuple[bytes, bytes]:
    """A whole reply: its head, and the body that is sent. 204 has no length either; HEAD has that of GET's answer."""
    if status not in {204, 304}:
        lines = [*lines, b"Content-Length: %d" % len(body)]
    head = own_head(status, lines, date, is_closing=is_closing)
    return head, b"" if is_head or status in {204, 304} else body


def problem_body(refusal: Refusal, request_id: str) -> bytes:
    """The problem document; nothing internal is in it."""
    reason = refusal.reason
    document: dict[str, object] = {
        "type": _QUOTA_TYPE if reason is Reason.RATE_LIMITED else f"urn:engadi:problem:{reason.code}",
        "title": reason.title,
        "status": reason.status,
        "code": refusal.code,
    }
    if request_id:
        document["request_id"] = request_id
    if _UUID.fullmatch(request_id):  # a trusted proxy may have given another one
        document["instance"] = f"urn:uuid:{request_id}"
    if refusal.detail:
        document["detail"] = refusal.detail
    if refusal.faults and reason is Reason.RATE_LIMITED:
        document["violated-policies"] = [fault.pointer for fault in refusal.faults]
    elif refusal.faults:
        document["errors"] = [{"pointer": fault.pointer, "detail": fault.detail} for fault in refusal.faults]
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")


def refusal_lines(refusal: Refusal) -> list[HeaderLine]:
    """Its own header lines, and what every one carries: no caching, when to come back, its reason as Proxy-Status."""
    lines: list[HeaderLine] = [(b"Cache-Control", b"no-store"), *refusal.headers]
    retry_after_s = RETRY_AFTER_S.get(refusal.reason)
    if retry_after_s is not None and not any(name == b"Retry-After" for name, _ in refusal.headers):
        lines.append((b"Retry-After", b"%d" % retry_after_s))
    if refusal.reason.proxy_error:
        lines.append((b"Proxy-Status", b"%b; error=%b" % (PROXY_NAME, refusal.reason.proxy_error.encode("ascii"))))
    return lines


def refusal_reply(
    refusal: Refusal, request_id: str, added: list[bytes], date: bytes, *, is_head: bool, is_closing: bool
) -> tuple[bytes, bytes]:
    """The reply to a refused request, head and body; `added` are the lines that the stages want on every reply."""
    lines = [*added, *rendered(refusal_lines(refusal))]
    if refusal.reason.status == 204:
        return own_reply(204, lines, b"", date, is_head=is_head, is_closing=is_closing)
    lines.insert(0, b"Content-Type: application/problem+json")
    body = problem_body(refusal, request_id)
    return own_reply(refusal.reason.status, lines, body, date, is_head=is_head, is_closing=is_closing)
