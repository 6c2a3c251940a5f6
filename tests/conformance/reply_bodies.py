"""Fault cases: bodies and their lengths, what is left over, idle connections, answers before the request's end."""

from __future__ import annotations

from typing import Any

from tests.conformance import rules as R
from tests.conformance.misbehaving import AFTER_BYTES, AFTER_REPLY, CLOSE, RESET, SILENCE, Fault, chunks, ok, reply
from tests.conformance.reply_heads import HEAD, OLD, POST, fine, invalid

EVIL = reply("Content-Length: 4", body=b"evil")
KEPT_OLD = b"GET {} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


def cut(name: str, rule: R.Rule, *steps: Any, body: bytes = b"ok", **more: Any) -> Fault:
    """The client has seen its beginning, and sees that it is not whole."""
    return Fault(name, rule, steps, body=body, is_whole=False, reason="upstream_truncated", is_reused=False, **more)


def spent(name: str, rule: R.Rule, *steps: Any, **more: Any) -> Fault:
    """A good answer, after which the connection serves nobody again."""
    return Fault(name, rule, steps, is_reused=False, **more)


LENGTHS = [
    fine("a length of nought", R.REPLY_LENGTH, reply("Content-Length: 0"), body=b""),
    fine("zeros before a length", R.REPLY_LENGTH, reply("Content-Length: 0002", body=b"ok"), lines=("content-length: 2",)),
    fine("the same length twice", R.REPLY_LENGTH, reply("Content-Length: 2", "Content-Length: 2", body=b"ok"), lines=("content-length: 2",)),
    *(
        invalid(f"length {value!r}", R.REPLY_LENGTH, reply(f"Content-Length: {value}", body=b"ok"))
        for value in ("", "x", "-1", "+2", "0x2", "2.0", "2 2", "2, 2", "2, 3", "2;", "\xb2", "2\xa0", "9" * 19, "9" * 500)
    ),
    invalid("two lengths", R.REPLY_LENGTH, reply("Content-Length: 2", "Content-Length: 3", body=b"ok")),
    invalid("two lengths, one spelt with zeros", R.REPLY_LENGTH, reply("Content-Length: 2", "Content-Length: 02", body=b"ok")),
    invalid("a length and an empty one", R.REPLY_LENGTH, reply("Content-Length: 2", "Content-Length:", body=b"ok")),
    cut("a body that is short", R.INCOMPLETE, reply("Content-Length: 9", body=b"ok"), AFTER_BYTES, CLOSE),
    cut("a body that is short at once", R.INCOMPLETE, reply("Content-Length: 9", body=b"ok"), CLOSE),
    cut("a body that is short by one", R.INCOMPLETE, reply("Content-Length: 3", body=b"ok"), AFTER_BYTES, CLOSE),
    cut("a body that never began", R.INCOMPLETE, reply("Content-Length: 3"), AFTER_BYTES, CLOSE, body=b""),
    cut("a body reset", R.INCOMPLETE, reply("Content-Length: 9", body=b"ok"), AFTER_BYTES, RESET),
    cut("a POST's body reset", R.INCOMPLETE, reply("Content-Length: 9", body=b"ok"), AFTER_BYTES, RESET, sends=POST),
    cut("a body cut off for HTTP/1.0", R.INCOMPLETE, reply("Content-Length: 9", body=b"ok"), AFTER_BYTES, CLOSE, sends=OLD, is_closing=True),
    fine("a body in pieces", R.REPLY_LENGTH, reply("Content-Length: 4", body=b"ok"), AFTER_BYTES, b"ok", body=b"okok"),
    fine("a megabyte", R.REPLY_LENGTH, reply("Content-Length: 1048576", body=b"x" * 1048576), body=b"x" * 1048576),
]  # fmt: skip

CODINGS = [
    fine("chunks", R.CHUNKS, chunks(b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"), lines=("transfer-encoding: chunked",), lacks=("content-length",)),
    fine("no chunk", R.CHUNKS, chunks(b"0\r\n\r\n"), body=b""),
    fine("a coding in capitals", R.CODING_NAME, reply("TRANSFER-ENCODING: CHUNKED", body=b"2\r\nok\r\n0\r\n\r\n")),
    fine("chunk extensions", R.EXTENSIONS, chunks(b'2;a="b\\"";c\r\nok\r\n0;d=e\r\n\r\n')),
    fine("trailers", R.TRAILERS, chunks(b"2\r\nok\r\n0\r\nSet-Cookie: a=b\r\nX: y\r\n\r\n"), lacks=("set-cookie", "x")),
    fine("chunks in pieces", R.CHUNKS, chunks(b"2\r\nok\r"), AFTER_BYTES, b"\n2\r\nok\r\n0\r\n\r\n", body=b"okok"),
    spent("coding and length", R.REPLY_BOTH, reply("Transfer-Encoding: chunked", "Content-Length: 9", body=b"2\r\nok\r\n0\r\n\r\n"), lacks=("content-length",)),
    spent("length and coding", R.REPLY_BOTH, reply("Content-Length: 2", "Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"), lacks=("content-length",)),
    invalid("a malformed length and coding", R.REPLY_LENGTH, reply("Content-Length: x", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
    spent("a coding of HTTP/1.0", R.CODING_10, chunks(b"2\r\nok\r\n0\r\n\r\n", "Connection: keep-alive", version="1.0")),
    *(
        invalid(f"coding {value!r}", R.REPLY_CODING, reply(f"Transfer-Encoding: {value}", body=b"0\r\n\r\n"))
        for value in ("", "gzip", "identity", "gzip, chunked", "chunked, gzip", "chunked, chunked", "xchunked", "chunked;a=b", "\xa0chunked", ",chunked", '"chunked"')
    ),
    invalid("coding twice", R.REPLY_CODING, reply("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
    invalid("coding with a vertical tab", R.OTHER_CONTROLS, reply("Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
    cut("chunks that end in a size", R.INCOMPLETE, chunks(b"2\r\nok\r\n1"), AFTER_BYTES, CLOSE),
    cut("chunks that end in data", R.INCOMPLETE, chunks(b"5\r\nok"), AFTER_BYTES, CLOSE),
    cut("chunks that end behind data", R.INCOMPLETE, chunks(b"2\r\nok"), AFTER_BYTES, CLOSE),
    cut("chunks that end between two", R.INCOMPLETE, chunks(b"2\r\nok\r\n"), AFTER_BYTES, CLOSE),
    cut("chunks without the last empty line", R.INCOMPLETE, chunks(b"2\r\nok\r\n0\r\n"), AFTER_BYTES, CLOSE),
    cut("chunks that end in a trailer", R.INCOMPLETE, chunks(b"2\r\nok\r\n0\r\nX: y"), AFTER_BYTES, CLOSE),
    cut("chunks reset", R.INCOMPLETE, chunks(b"2\r\nok\r\n"), AFTER_BYTES, RESET),
    cut("chunks cut off for HTTP/1.0", R.INCOMPLETE, chunks(b"2\r\nok\r\n"), AFTER_BYTES, CLOSE, sends=OLD, is_closing=True),
    *(
        invalid(f"chunks {raw!r}", R.CHUNKS, chunks(raw), is_cut_in_pieces=True)
        for raw in (b"x\r\n", b"2\nok\r\n", b"2\r\nokX0\r\n\r\n", b"2\r\nok\n0\r\n\r\n", b"-2\r\nok\r\n", b"0x2\r\nok\r\n", b" 2\r\nok\r\n", b"1" * 17 + b"\r\n", b"2;\r\nok\r\n", b"2\r\nok\r\n0\r\nX\r\n\r\n", b"\r\n")
    ),
    *(
        cut(f"chunks, and later {raw!r}", R.CHUNKS, chunks(b"2\r\nok\r\n"), AFTER_BYTES, raw, SILENCE)
        for raw in (b"x\r\n", b"2\nok", b"0\r\nX : y\r\n\r\n", b"0\r\n y\r\n\r\n", b"0\r\nTransfer-Encoding: gzip\r\n\r\n", b"0\r\nContent-Length: 2\r\n\r\n", b"\r\n", b"0\r\n" + b"X: y\r\n" * 4000, b"2;" + b"x" * 5000)
    ),
]  # fmt: skip

NO_BODIES = [
    fine("an answer to HEAD with a length", R.NO_CONTENT, ok()[:-2], sends=HEAD, body=b"", lines=("content-length: 2",)),
    fine("an answer to HEAD with a coding", R.NO_CONTENT, chunks(b""), sends=HEAD, body=b""),
    fine("an answer to HEAD with neither", R.NO_CONTENT, reply(), sends=HEAD, body=b""),
    fine("204", R.NO_CONTENT, reply(status="204 x"), status=204, body=b"", lacks=("content-length", "transfer-encoding")),
    fine("204 with a length", R.NO_LENGTH, reply("Content-Length: 2", status="204 x"), status=204, body=b"", lacks=("content-length",)),
    fine("204 with a coding", R.NO_CONTENT, reply("Transfer-Encoding: chunked", status="204 x"), status=204, body=b"", lacks=("transfer-encoding",)),
    fine("304 with a length", R.NO_LENGTH, reply("Content-Length: 2", 'ETag: "x"', status="304 x"), status=304, body=b"", lines=("content-length: 2", 'etag: "x"')),
    fine("304 with neither", R.NO_CONTENT, reply(status="304 x"), status=304, body=b""),
    fine("205 with a length of nought", R.NO_CONTENT, reply("Content-Length: 0", status="205 x"), status=205, body=b""),
]  # fmt: skip

LEFT_OVER = [
    spent("a second reply behind a length", R.LEFT_OVER, ok() + EVIL),
    spent("a second reply behind the chunks", R.LEFT_OVER, chunks(b"2\r\nok\r\n0\r\n\r\n") + EVIL),
    spent("a byte behind a length", R.LEFT_OVER, ok() + b"\n"),
    spent("an empty line behind a length", R.LEFT_OVER, ok() + b"\r\n"),
    spent("an empty line behind the chunks", R.LEFT_OVER, chunks(b"2\r\nok\r\n0\r\n\r\n") + b"\r\n"),
    spent("a body behind an answer to HEAD", R.LEFT_OVER, ok(), sends=HEAD, body=b""),
    spent("a reply for a body of an answer to HEAD", R.LEFT_OVER, reply("Content-Length: 42") + EVIL, sends=HEAD, body=b""),
    spent("a body on 204", R.LEFT_OVER, reply(status="204 x") + EVIL, status=204, body=b""),
    spent("a body on 304", R.LEFT_OVER, reply("Content-Length: 42", status="304 x") + EVIL, status=304, body=b""),
    spent("a body on a length of nought", R.LEFT_OVER, reply("Content-Length: 0") + EVIL, body=b""),
    spent("a 100 behind a reply", R.LEFT_OVER, ok() + reply(status="100 Continue")),
    spent("a reply on the idle connection", R.LEFT_OVER, ok(), AFTER_REPLY, EVIL),
    spent("a byte on the idle connection", R.LEFT_OVER, ok(), AFTER_REPLY, b"\0"),
    spent("a 408 on the idle connection", R.LEFT_OVER, ok(), AFTER_REPLY, reply("Connection: close", status="408 x"), CLOSE),
    spent("a reply behind an answer to HEAD, later", R.LEFT_OVER, ok()[:-2], AFTER_REPLY, EVIL, sends=HEAD, body=b""),
    spent("a reply behind 204, later", R.LEFT_OVER, reply(status="204 x"), AFTER_REPLY, EVIL, status=204, body=b""),
    spent("the idle connection is closed", R.LEFT_OVER, ok(), AFTER_REPLY, CLOSE),
    spent("the idle connection is reset", R.LEFT_OVER, ok(), AFTER_REPLY, RESET),
    spent("closed with the reply", R.LEFT_OVER, ok(), CLOSE),
]  # fmt: skip

CLOSING = [
    spent("close", R.REPLY_CLOSE, ok("Connection: close"), lacks=("connection",)),
    spent("close among others", R.REPLY_CLOSE, ok("Connection: keep-alive, Close"), lacks=("connection",)),
    spent("close in a second line", R.REPLY_CLOSE, ok("Connection: keep-alive", "connection: close")),
    spent("HTTP/1.0", R.PERSIST_10, ok(version="1.0")),
    fine("HTTP/1.0 keep-alive", R.PERSIST_10, ok("Connection: keep-alive", version="1.0")),
    spent("a body that ends with its connection", R.BY_CLOSE, reply(body=b"ok"), CLOSE, lines=("transfer-encoding: chunked",)),
    spent("a body of HTTP/1.0 that ends with its connection", R.BY_CLOSE, reply(version="1.0", body=b"ok"), AFTER_BYTES, CLOSE),
    spent("an empty body that ends with its connection", R.BY_CLOSE, reply(), AFTER_BYTES, CLOSE, body=b""),
    spent("a body that ends with both connections", R.BY_CLOSE, reply(body=b"ok"), CLOSE, sends=KEPT_OLD, is_closing=True, lacks=("transfer-encoding",)),
    spent("a body that ends with its connection, on a 404", R.BY_CLOSE, reply(status="404 x", body=b"ok"), CLOSE, status=404),
    spent("a body that ends with its connection, though keep-alive", R.BY_CLOSE, reply("Connection: keep-alive", body=b"ok"), CLOSE),
    cut("a body that ends with a reset", R.INCOMPLETE, reply(body=b"ok"), AFTER_BYTES, RESET),
    fine("chunks for HTTP/1.0", R.REFRAME, chunks(b"2\r\nok\r\n0\r\n\r\n"), sends=OLD, is_closing=True, lacks=("transfer-encoding",)),
    fine("chunks for HTTP/1.0 that is kept alive", R.REFRAME, chunks(b"2\r\nok\r\n0\r\n\r\n"), sends=KEPT_OLD, is_closing=True, lacks=("transfer-encoding",)),
]  # fmt: skip

_PART = b"POST {} HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\npart"
_PART_CHUNKED = b"POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"
_EARLY: dict[str, Any] = {"is_early": True, "is_closing": True}

EARLY = [
    spent("a 413 before the body's end", R.EARLY, ok(status="413 x"), SILENCE, status=413, sends=_PART, **_EARLY),
    spent("a 413 and close before the body's end", R.EARLY, ok("Connection: close", status="413 x"), CLOSE, status=413, sends=_PART, **_EARLY),
    spent("a 200 before the body's end", R.EARLY, ok(), SILENCE, sends=_PART, **_EARLY),
    spent("a 200 before the chunks' end", R.EARLY, ok(), SILENCE, sends=_PART_CHUNKED, **_EARLY),
    spent("chunks before the body's end", R.EARLY, chunks(b"2\r\nok\r\n"), AFTER_BYTES, b"0\r\n\r\n", SILENCE, sends=_PART, **_EARLY),
    spent("a 204 before the body's end", R.EARLY, reply(status="204 x"), SILENCE, status=204, body=b"", sends=_PART, **_EARLY),
    spent("a 103 and a 200 before the body's end", R.EARLY, reply(status="103 x") + ok(), SILENCE, interim=(103,), sends=_PART, **_EARLY),
    cut("half an answer before the body's end", R.EARLY, reply("Content-Length: 9", body=b"ok"), AFTER_BYTES, CLOSE, sends=_PART, **_EARLY),
    Fault("closed before the body's end", R.EARLY, (CLOSE,), 502, "upstream_closed", reason="upstream_closed", sends=_PART, is_reused=False, **_EARLY),
    Fault("reset before the body's end", R.EARLY, (RESET,), 502, "upstream_closed", reason="upstream_closed", sends=_PART_CHUNKED, is_reused=False, **_EARLY),
    Fault("garbage before the body's end", R.EARLY, (b"x\r\n\r\n",), 502, "upstream_invalid", reason="upstream_invalid", sends=_PART, is_reused=False, **_EARLY),
]  # fmt: skip

CASES = [*LENGTHS, *CODINGS, *NO_BODIES, *LEFT_OVER, *CLOSING, *EARLY]
