"""Fault cases: no head, half a head, heads that cannot be trusted, interim replies."""

from __future__ import annotations

from typing import Any

from tests.conformance import rules as R
from tests.conformance.misbehaving import AFTER_BYTES, CLOSE, RESET, SILENCE, Fault, Steps, chunks, ok, reply

POST = b"POST {} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"
ASKS = b"GET {} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OLD = b"GET {} HTTP/1.0\r\n\r\n"
HEAD = b"HEAD {} HTTP/1.1\r\nHost: h\r\n\r\n"


def gone(name: str, rule: R.Rule, *steps: Any, **more: Any) -> Fault:
    """It went away before the reply's head was there."""
    return Fault(name, rule, steps, 502, "upstream_closed", reason="upstream_closed", is_reused=False, **more)


def invalid(name: str, rule: R.Rule, raw: bytes, *then: Any, **more: Any) -> Fault:
    """What came is no reply; it is not asked again for one."""
    return Fault(name, rule, (raw, *then), 502, "upstream_invalid", reason="upstream_invalid", is_reused=False, **more)


def fine(name: str, rule: R.Rule, raw: bytes, *then: Any, **more: Any) -> Fault:
    return Fault(name, rule, (raw, *then), **more)


#: A GET whose reused connection was closed is sent once more, on a new one.
TWICE: dict[str, Any] = {"attempts": 2}
SECOND: Steps = (ok(),)

GONE = [
    gone("closed before the head", R.AGAIN, CLOSE, **TWICE),
    gone("reset before the head", R.AGAIN, RESET, **TWICE),
    gone("closed before the head of a POST", R.ONCE, CLOSE, sends=POST),
    gone("reset before the head of a POST", R.ONCE, RESET, sends=POST),
    fine("closed just as it is reused", R.AGAIN, b"", CLOSE, again=SECOND, attempts=2),
    fine("reset just as it is reused", R.AGAIN, b"", RESET, again=SECOND, attempts=2),
    gone("closed just as it is reused for a POST", R.ONCE, CLOSE, again=SECOND, sends=POST),
    gone("closed just as it is reused for a PATCH", R.ONCE, CLOSE, again=SECOND, sends=POST.replace(b"POST", b"PATCH")),
    fine("closed just as it is reused for a PUT", R.AGAIN, b"", CLOSE, again=SECOND, attempts=2, sends=POST.replace(b"POST", b"PUT")),
    fine("closed just as it is reused for a DELETE", R.AGAIN, b"", CLOSE, again=SECOND, attempts=2, sends=POST.replace(b"POST", b"DELETE")),
    gone("closed in the status line", R.NO_REPLY, b"HTTP/1.", CLOSE, sends=POST),
    gone("reset in the status line", R.NO_REPLY, b"HTTP/1.1 2", RESET, sends=POST),
    gone("closed in a field line", R.NO_REPLY, b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE, sends=POST),
    gone("reset in a field line", R.NO_REPLY, b"HTTP/1.1 200 OK\r\nContent-Le", RESET, sends=POST),
    gone("closed before the empty line", R.NO_REPLY, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", CLOSE, sends=POST),
    gone("closed in the empty line", R.NO_REPLY, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r", CLOSE, sends=POST),
    gone("closed after a 103", R.NO_REPLY, reply(status="103 Early Hints"), CLOSE, interim=(103,)),
    gone("closed after a 100", R.NO_REPLY, reply(status="100 Continue"), CLOSE),
]  # fmt: skip

STATUS_LINES = [
    fine("no reason", R.STATUS_LINE, ok(status="200 ")),
    fine("no reason and no space", R.STATUS_LINE, ok(status="200")),
    fine("a reason of 8 bits", R.STATUS_LINE, ok(status="200 \xc4h")),
    fine("a reason of many words", R.STATUS_LINE, ok(status="200 All is well: go on!")),
    fine("an unknown status", R.STATUS_LINE, ok(status="299 Odd"), status=299),
    fine("an unknown status of a client's fault", R.STATUS_LINE, ok(status="499 Odd"), status=499),
    fine("a 500", R.STATUS_LINE, ok(status="500 Broken"), status=500),
    fine("a 503 of the upstream's", R.STATUS_LINE, ok(status="503 Busy"), status=503, reason="upstream_5xx"),
    fine("HTTP/1.0", R.STATUS_LINE, ok(version="1.0"), CLOSE, is_reused=False),
    *(
        invalid(f"status line {line!r}", R.STATUS_LINE, line + b"\r\nContent-Length: 2\r\n\r\nok")
        for line in (
            b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 099 OK", b"HTTP/1.1 600 OK", b"HTTP/1.1 999 OK", b"HTTP/1.1 2O0 OK", b"HTTP/1.1 -20 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK",
            b"HTTP/1.1 200\tOK", b"HTTP/1.1200 OK", b"HTTP/1.1", b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/11 200 OK", b"http/1.1 200 OK", b"HTTPS/1.1 200 OK", b"ICY 200 OK", b"SSH-2.0-x",
            b" HTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"GET / HTTP/1.1", b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\x1bK", b"HTTP/1.1 200 O\rK", b"220 smtp.test ESMTP", b"\x16\x03\x01\x02", b"{}",
        )
    ),
    invalid("a body without a head", R.STATUS_LINE, b"ok", CLOSE),
    invalid("a status line without end", R.REPLY_SIZE, b"HTTP/1.1 200 " + b"x" * 70_000, SILENCE),
]  # fmt: skip

FIELDS = [
    fine("8 bits in a value", R.VALUE, ok("X: \xe4"), lines=("x: \xe4",)),
    fine("white space around a value", R.VALUE, ok("X: \t a b\t "), lines=("x: a b",)),
    fine("two lines of one name", R.VALUE, ok("Set-Cookie: a=1", "Set-Cookie: b=2"), lines=("set-cookie: a=1", "set-cookie: b=2")),
    invalid("folded by a space", R.REPLY_FOLD, ok("X: a\r\n b")),
    invalid("folded by a tab", R.REPLY_FOLD, ok("X: a\r\n\tb")),
    invalid("the first line folded", R.REPLY_FOLD, ok(" X: a")),
    invalid("a NUL", R.CONTROLS, ok("X: a\0b")),
    invalid("a control character", R.OTHER_CONTROLS, ok("X: a\x01b")),
    invalid("an escape", R.OTHER_CONTROLS, ok("X: a\x1b[2J")),
    invalid("DEL", R.OTHER_CONTROLS, ok("X: a\x7f")),
    invalid("a bare CR in a value", R.BARE_CR, ok("X: a\rb")),
    invalid("a bare CR and a field", R.BARE_CR, ok("X: a\rSet-Cookie: b=c")),
    invalid("CR CR LF", R.BARE_CR, ok("X: a\r")),
    invalid("a bare LF in the middle", R.CRLF, b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok"),
    invalid("bare LFs everywhere", R.CRLF, b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    invalid("bare LFs everywhere, and no end", R.CRLF, b"HTTP/1.1 200 OK\nContent-Length: 2\n", SILENCE),
    invalid("space before the colon", R.REPLY_FIELD, ok("X : a")),
    invalid("space before the colon of a length", R.REPLY_FIELD, b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
    invalid("no colon", R.REPLY_FIELD, ok("Xa")),
    invalid("an empty name", R.REPLY_FIELD, ok(": a")),
    invalid("8 bits in a name", R.REPLY_FIELD, ok("X\xe4: a")),
    invalid("a bracket in a name", R.REPLY_FIELD, ok("X(y): a")),
    invalid("a head that is too large", R.REPLY_SIZE, ok("X: " + "y" * 66_000)),
    invalid("a head of too many lines", R.REPLY_SIZE, ok(*("X: y" for _ in range(12_000)))),
    invalid("a head that never ends", R.REPLY_SIZE, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 12_000, SILENCE),
    fine("fields of the hop", R.REPLY_HOP, ok("Connection: X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Authenticate: x", "TE: x", "Upgrade: h2c", "Trailer: y"),
         lacks=("connection", "x-hop", "keep-alive", "proxy-authenticate", "te", "upgrade", "trailer")),
    fine("a field that Connection names in another case", R.REPLY_HOP, ok("connection: x-HOP", "X-Hop: 1"), lacks=("connection", "x-hop")),
    fine("Connection cannot take the length away", R.REPLY_HOP, ok("Connection: Content-Length"), lines=("content-length: 2",), lacks=("connection",)),
    fine("a request id of its own", R.SPOOF, ok("X-Request-ID: theirs"), lines=()),
    fine("a date", R.DATE, ok("Date: Tue, 15 Nov 1994 08:12:31 GMT"), lines=("date: Tue, 15 Nov 1994 08:12:31 GMT",)),
    fine("no date", R.DATE, ok()),
]  # fmt: skip

INTERIM = [
    fine("a 100 that was not asked for", R.INTERIM, reply(status="100 Continue") + ok()),
    fine("a 102", R.INTERIM, reply(status="102 Processing") + ok(), interim=(102,)),
    fine("a 103 with a hint", R.INTERIM, reply("Link: </a>", status="103 Early Hints") + ok(), interim=(103,)),
    fine("a 199", R.INTERIM, reply(status="199 Odd") + ok(), interim=(199,)),
    fine("several", R.INTERIM, b"".join(reply(status=f"{code} x") for code in (103, 100, 102, 103)) + ok(), interim=(103, 102, 103)),
    fine("a 103 long before", R.INTERIM, reply(status="103 Early Hints"), AFTER_BYTES, ok(), interim=(103,)),
    fine("a 103 with a length", R.NO_LENGTH, reply("Content-Length: 5", "Transfer-Encoding: chunked", status="103 x") + ok(), interim=(103,)),
    fine("a 103 for HTTP/1.0", R.INTERIM, reply(status="103 Early Hints") + ok(), sends=OLD, is_closing=True),
    fine("a 103 for HEAD", R.INTERIM, reply(status="103 x") + ok()[:-2], sends=HEAD, body=b"", interim=(103,)),
    fine("thirty-two", R.INTERIM_FLOOD, reply(status="102 x") * 32 + ok(), interim=(102,) * 32),
    invalid("thirty-three", R.INTERIM_FLOOD, reply(status="102 x") * 33 + ok(), interim=(102,) * 32),
    invalid("a flood of 102", R.INTERIM_FLOOD, reply(status="102 x") * 5000, SILENCE, interim=(102,) * 32),
    invalid("a flood of 100", R.INTERIM_FLOOD, reply(status="100 x") * 5000, SILENCE),
    invalid("a body behind a 103", R.NO_CONTENT, reply("Content-Length: 2", status="103 x", body=b"ok") + ok(), interim=(103,)),
    invalid("a malformed head behind a 103", R.REPLY_FIELD, reply(status="103 x") + ok("X : a"), interim=(103,)),
    invalid("a 101 that was not asked for", R.SWITCHING, reply("Connection: Upgrade", "Upgrade: websocket", status="101 x")),
    invalid("a 101 behind a 103", R.SWITCHING, reply(status="103 x") + reply("Upgrade: websocket", status="101 x"), interim=(103,)),
    Fault("a 101 to another protocol", R.SWITCHING, (reply("Connection: Upgrade", "Upgrade: h2c", status="101 x"),), 502, "upgrade_failed",
          reason="upgrade_failed", is_reused=False, sends=ASKS),
    Fault("a 101 to nothing", R.SWITCHING, (reply("Connection: Upgrade", status="101 x"),), 502, "upgrade_failed", reason="upgrade_failed", is_reused=False, sends=ASKS),
    fine("an upgrade not taken", R.UPGRADE, ok(), sends=ASKS),
    fine("an upgrade answered with 426", R.UPGRADE, ok("Upgrade: other", status="426 x"), sends=ASKS, status=426, lines=("upgrade: other",)),
    fine("a 426 that nobody asked for", R.UPGRADE_REQUIRED, ok("Connection: Upgrade", "Upgrade: other", status="426 x"), status=426, lines=("upgrade: other",)),
    fine("a 426 for HTTP/1.0", R.UPGRADE_REQUIRED, ok("Connection: Upgrade", "Upgrade: other", status="426 x"), status=426, sends=OLD, is_closing=True, lines=("upgrade: other",)),
    fine("an upgrade answered with 200 and its fields", R.UPGRADE, ok("Connection: Upgrade", "Upgrade: websocket"), sends=ASKS, lacks=("connection", "upgrade")),
]  # fmt: skip

#: These take the time that they are given: a gateway of their own, with short time-outs, runs them side by side.
SILENT = [
    Fault("never answers", R.TIMEOUT, (SILENCE,), 504, "upstream_timeout", reason="upstream_timeout", is_reused=False),
    Fault("never answers a POST", R.TIMEOUT, (SILENCE,), 504, "upstream_timeout", reason="upstream_timeout", is_reused=False, sends=POST),
    Fault("half a status line", R.TIMEOUT, (b"HTTP/1.1 2", SILENCE), 504, "upstream_timeout", reason="upstream_timeout", is_reused=False),
    Fault("half a head", R.TIMEOUT, (b"HTTP/1.1 200 OK\r\nX: y\r\n", SILENCE), 504, "upstream_timeout", reason="upstream_timeout", is_reused=False),
    Fault("a 103 and nothing", R.TIMEOUT, (reply(status="103 x"), SILENCE), 504, "upstream_timeout", interim=(103,), reason="upstream_timeout", is_reused=False),
    Fault("a head and nothing", R.INCOMPLETE, (reply("Content-Length: 9"), SILENCE), is_whole=False, body=b"", reason="upstream_stalled", is_reused=False),
    Fault("half a body", R.INCOMPLETE, (reply("Content-Length: 9", body=b"ok"), SILENCE), is_whole=False, reason="upstream_stalled", is_reused=False),
    Fault("half the chunks", R.INCOMPLETE, (chunks(b"2\r\nok\r\n"), SILENCE), is_whole=False, reason="upstream_stalled", is_reused=False),
    Fault("no last empty line", R.INCOMPLETE, (chunks(b"2\r\nok\r\n0\r\n"), SILENCE), is_whole=False, reason="upstream_stalled", is_reused=False),
    Fault("a body without a length that stops", R.INCOMPLETE, (reply(body=b"ok"), SILENCE), is_whole=False, reason="upstream_stalled", is_reused=False),
]  # fmt: skip

CASES = [*GONE, *STATUS_LINES, *FIELDS, *INTERIM]
