"""The table: what a client sends, and what it and the upstream must have seen. RFC 9110, RFC 9112, RFC 3986.

A row: a name, the rule, MUST or SHOULD or PRACTICE, the bytes, the statuses of the answers in order (0: the connection
ends without one), and what the upstream saw: None for nothing, else a tuple of targets. `is_open` says whether the
connection goes on afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

P = "/api/v1/auth"


@dataclass(frozen=True)
class Case:
    name: str
    rule: str
    level: str
    raw: bytes
    statuses: tuple[int, ...]
    targets: tuple[str, ...] = ()
    is_open: bool = False
    code: str = ""


def _get(
    *lines: str, target: str = f"{P}/x", version: str = "1.1", host: str = "Host: h", method: str = "GET"
) -> bytes:
    head = [f"{method} {target} HTTP/{version}", *([host] if host else []), *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")


def _ok(name: str, rule: str, level: str, raw: bytes, target: str = f"{P}/x") -> Case:
    return Case(name, rule, level, raw, (200,), (target,), is_open=True)


def _bad(name: str, rule: str, level: str, raw: bytes, status: int = 400, code: str = "bad_request") -> Case:
    return Case(name, rule, level, raw, (status,), code=code)


CHUNKED = "Transfer-Encoding: chunked"


def _chunked(body: bytes, *lines: str) -> bytes:
    return _get(CHUNKED, *lines, method="POST") + body


REQUEST_LINE = [
    _ok("one empty line first", "9112 2.2", "SHOULD", b"\r\n" + _get()),
    _ok("two empty lines first", "9112 2.2", "SHOULD", b"\r\n\r\n" + _get()),
    _bad("target longer than the limit", "9112 3", "SHOULD", _get(target=f"{P}/" + "a" * 9000), 414, "uri_too_long"),
    _bad("endless target", "9112 3", "SHOULD", b"GET /" + b"a" * 20_000, 414, "uri_too_long"),
    _bad("CONNECT", "9110 9.3.6", "PRACTICE", _get(target="h:80", method="CONNECT"), 501, "not_implemented"),
    _bad("TRACE", "9110 9.3.8", "PRACTICE", _get(method="TRACE"), 501, "not_implemented"),
    _bad("authority form", "9112 3.2.3", "MUST", _get(target="h:80")),
    _bad("star with GET", "9112 3.2.4", "MUST", _get(target="*")),
    _bad("no slash", "9112 3.2", "MUST", _get(target="api/v1/auth/x")),
    _bad("fragment", "9112 3.2", "MUST", _get(target=f"{P}/x#y")),
    _bad("fragment in the query", "9112 3.2", "MUST", _get(target=f"{P}/x?a#y")),
    _bad("space in the target", "9112 3", "MUST", _get(target=f"{P}/x y")),
    _bad("tab between parts", "9112 3", "PRACTICE", b"GET\t/api/v1/auth/x\tHTTP/1.1\r\nHost: h\r\n\r\n"),
    _bad("two spaces", "9112 3", "PRACTICE", b"GET  /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"),
    _bad("no version", "9112 3", "PRACTICE", b"GET /api/v1/auth/x\r\nHost: h\r\n\r\n"),
    _bad("HTTP/1.2", "9112 2.3", "PRACTICE", _get(version="1.2"), 505, "version_unsupported"),
    _bad("HTTP/2.0", "9110 15.6.6", "PRACTICE", _get(version="2.0"), 505, "version_unsupported"),
    _bad("HTTP/0.9", "9110 15.6.6", "PRACTICE", _get(version="0.9"), 505, "version_unsupported"),
    _bad("lower-case http", "9112 2.3", "MUST", b"GET /api/v1/auth/x http/1.1\r\nHost: h\r\n\r\n"),
    _bad("bare CR in the line", "9112 2.2", "MUST", b"GET /api/v1/auth/x\r HTTP/1.1\r\nHost: h\r\n\r\n"),
    _bad("NUL in the target", "9112 3", "MUST", _get(target=f"{P}/x\0")),
    _bad("8-bit in the target", "RFC 3986 2", "MUST", _get(target=f"{P}/\xff")),
    _bad("method with a bracket", "9110 9.1", "MUST", _get(method="G(T")),
    _bad("garbage", "9112 3", "MUST", b"\x16\x03\x01\x02\x00\x01\r\n\r\n"),
    _ok("unknown method", "9110 9.1", "PRACTICE", _get(method="BREW")),
    _ok("absolute form", "9112 3.2.2", "MUST", _get(target=f"http://h{P}/x")),
    _ok("absolute form beats Host", "9112 3.2.2", "MUST", _get(target=f"http://other{P}/x", host="Host: h")),
    _bad("absolute form of another scheme", "9112 3.2.2", "PRACTICE", _get(target=f"ftp://h{P}/x")),
    _bad("absolute form with user", "9110 4.2.4", "SHOULD", _get(target=f"http://u:p@h{P}/x")),
]

HOST = [
    _bad("no Host", "9112 3.2", "MUST", _get(host="")),
    _bad("two Hosts", "9112 3.2", "MUST", _get("Host: h")),
    _bad("two different Hosts", "9112 3.2", "MUST", _get("Host: evil")),
    _bad("empty Host", "9112 3.2", "PRACTICE", _get(host="Host: ")),
    _bad("Host with a path", "9112 3.2", "MUST", _get(host="Host: a/b")),
    _bad("Host with user", "9112 3.2", "MUST", _get(host="Host: a@b")),
    _bad("Host with a space", "9112 3.2", "MUST", _get(host="Host: a b")),
    _bad("Host with a comma", "9112 3.2", "MUST", _get(host="Host: a,b")),
    _bad("Host with six digits of port", "9112 3.2", "MUST", _get(host="Host: a:123456")),
    _bad("Host with half a bracket", "9112 3.2", "MUST", _get(host="Host: [::1")),
    _ok("IPv6 Host", "9112 3.2", "MUST", _get(host="Host: [::1]:8000")),
    _ok("Host with an empty port", "RFC 3986 3.2.3", "MUST", _get(host="Host: h:")),
    Case("HTTP/1.0 without Host", "9112 3.2", "MUST", _get(host="", version="1.0"), (200,), (f"{P}/x",)),
]

FIELDS = [
    _bad("bare LF after a line", "9112 2.2", "PRACTICE", b"GET /api/v1/auth/x HTTP/1.1\nHost: h\r\n\r\n"),
    _bad("bare LF everywhere", "9112 2.2", "PRACTICE", b"GET /api/v1/auth/x HTTP/1.1\nHost: h\n\n"),
    _bad("bare LF in a value", "9112 2.2", "PRACTICE", _get("X: a\nY: b")),
    _bad("bare CR in a value", "9112 2.2", "MUST", _get("X: a\rb")),
    _bad("NUL in a value", "9110 5.5", "MUST", _get("X: a\0b")),
    _bad("space before the colon", "9112 5.1", "MUST", _get("X : a")),
    _bad("tab before the colon", "9112 5.1", "MUST", _get("X\t: a")),
    _bad(
        "first line begins with space", "9112 2.2", "MUST", b"GET /api/v1/auth/x HTTP/1.1\r\n X: a\r\nHost: h\r\n\r\n"
    ),
    _bad("no colon", "9112 5", "MUST", _get("Xa")),
    _bad("empty name", "9110 5.1", "MUST", _get(": a")),
    _bad("8-bit in a name", "9110 5.1", "MUST", _get("X\xff: a")),
    _bad("folded value", "9112 5.2", "MUST", _get("X: a\r\n b")),
    _ok("8-bit in a value", "9110 5.5", "SHOULD", _get("X: \xe4\xff")),
    _ok("no white space after the colon", "9110 5.5", "MUST", _get("X:a")),
    _ok("empty value", "9110 5.5", "MUST", _get("X:")),
    _ok("a hundred lines", "PRACTICE", "PRACTICE", _get(*(f"X{n}: y" for n in range(99)))),
    _bad(
        "a hundred and one lines",
        "9110 5.4",
        "PRACTICE",
        _get(*(f"X{n}: y" for n in range(100))),
        431,
        "headers_too_large",
    ),
    _bad("a line beyond the limit", "9110 5.4", "PRACTICE", _get("X: " + "y" * 17_000), 431, "headers_too_large"),
    _bad(
        "a head that never ends",
        "9110 5.4",
        "PRACTICE",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000,
        431,
        "headers_too_large",
    ),
    _bad("two Authorization", "9110 5.3", "PRACTICE", _get("Authorization: Bearer a", "Authorization: Bearer b")),
    _bad("unknown expectation", "9110 10.1.1", "MAY", _get("Expect: tea"), 417, "expectation_failed"),
]

FRAMING = [
    _bad("length and coding", "9112 6.1", "PRACTICE", _get("Content-Length: 5", CHUNKED, method="POST") + b"0\r\n\r\n"),
    _bad("coding and length", "9112 6.1", "PRACTICE", _get(CHUNKED, "Content-Length: 5", method="POST") + b"0\r\n\r\n"),
    _bad("coding on HTTP/1.0", "9112 6.1", "MUST", _get(CHUNKED, version="1.0", method="POST") + b"0\r\n\r\n"),
    _bad("two lengths", "9112 6.3", "MUST", _get("Content-Length: 3", "Content-Length: 4", method="POST") + b"abcd"),
    _bad("a list of lengths", "9112 6.3", "MUST", _get("Content-Length: 3, 4", method="POST") + b"abcd"),
    _bad("length with a sign", "9112 6.3", "MUST", _get("Content-Length: +3", method="POST") + b"abc"),
    _bad("negative length", "9112 6.3", "MUST", _get("Content-Length: -1", method="POST")),
    _bad("hexadecimal length", "9112 6.3", "MUST", _get("Content-Length: 0x3", method="POST") + b"abc"),
    _bad("length with a space", "9112 6.3", "MUST", _get("Content-Length: 1 0", method="POST") + b"abc"),
    _bad("length of thirty digits", "9112 6.3", "MUST", _get(f"Content-Length: {'9' * 30}", method="POST")),
    _bad("length beyond the limit", "9110 15.5.14", "PRACTICE", _get("Content-Length: 99999999", method="POST"), 413, "body_too_large"),
    _ok("the same length twice", "9112 6.3", "MAY", _get("Content-Length: 3", "Content-Length: 3", method="POST") + b"abc"),
    _ok("no body on POST", "9110 8.6", "SHOULD", _get(method="POST")),
    _ok("a body on GET", "9110 9.3.1", "PRACTICE", _get("Content-Length: 3") + b"abc"),
    *(
        _bad(f"coding {value!r}", "9112 6.1", "MUST", _get(f"Transfer-Encoding: {value}", method="POST") + b"0\r\n\r\n", 501, "not_implemented")
        for value in ("gzip", "identity", "gzip, chunked", "chunked, gzip", "chunked, chunked", "xchunked", "chunked;q=1", "x")
    ),
    _bad("coding twice", "9112 6.1", "MUST", _get(CHUNKED, CHUNKED, method="POST") + b"0\r\n\r\n", 501, "not_implemented"),
    _bad("coding with a vertical tab", "9112 6.1", "MUST", _get("Transfer-Encoding: \x0bchunked", method="POST") + b"0\r\n\r\n"),
    _bad("coding spelt with a space", "9112 5.1", "MUST", _get("Transfer-Encoding : chunked", method="POST") + b"0\r\n\r\n"),
    _ok("coding in capitals", "9112 7", "MUST", _get("TRANSFER-ENCODING: Chunked", method="POST") + b"0\r\n\r\n"),
    _ok("chunks", "9112 7.1", "MUST", _chunked(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")),
    _ok("size in capitals with zeros", "9112 7.1", "MUST", _chunked(b"000A\r\n0123456789\r\n0\r\n\r\n")),
    _ok("chunk extension", "9112 7.1.1", "MUST", _chunked(b"2;a=b\r\nab\r\n0\r\n\r\n")),
    _ok("trailers", "9112 7.1.2", "MUST", _chunked(b"2\r\nab\r\n0\r\nX-User-ID: evil\r\n\r\n")),
    *(
        _bad(f"chunk {body[:24]!r}", "9112 7.1", "MUST", _chunked(body))
        for body in (
            b"x\r\nab\r\n0\r\n\r\n", b"2\nab\r\n0\r\n\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"-2\r\nab\r\n0\r\n\r\n",
            b"0x2\r\nab\r\n0\r\n\r\n", b"+2\r\nab\r\n0\r\n\r\n", b" 2\r\nab\r\n0\r\n\r\n", b"2\r\nabXX0\r\n\r\n",
            b"11111111111111111111\r\nab\r\n0\r\n\r\n", b"2;" + b"x" * 30_000 + b"\r\nab\r\n0\r\n\r\n",
            b"\r\n\r\n", b"2\r\r\nab\r\n0\r\n\r\n", b"2;\n\r\nab\r\n0\r\n\r\n", b"g\r\n",
        )
    ),
]  # fmt: skip

TARGETS = [
    *(
        _ok(f"{given} is {seen}", "RFC 3986 6.2.2", "SHOULD", _get(target=given), seen)
        for given, seen in (
            (f"{P}/%41", f"{P}/A"), (f"{P}/%7e", f"{P}/~"), (f"{P}/%e4", f"{P}/%E4"), (f"{P}//x", f"{P}/x"),
            (f"/{P}/x", f"{P}/x"), (f"{P}/./x", f"{P}/x"), (f"{P}/y/../x", f"{P}/x"), (f"{P}/%2e/x", f"{P}/x"),
            (f"{P}/y/%2E%2e/x", f"{P}/x"), (f"{P}/x?a=/../b&c=%2F", f"{P}/x?a=/../b&c=%2F"), (f"{P}/x/", f"{P}/x/"),
            (f"{P}/x?", f"{P}/x?"), (f"{P}/a;b=c", f"{P}/a;b=c"), (f"{P}/%3B", f"{P}/%3B"), (P, P),
            ("/api/v1/content/../auth/x", f"{P}/x"), (f"{P}/x?\"<>", f"{P}/x?\"<>"),
        )
    ),
    *(
        _bad(f"path {given}", "RFC 3986 2.1", "PRACTICE", _get(target=given))
        for given in (
            f"{P}/%", f"{P}/%4", f"{P}/%zz", f"{P}/%00", f"{P}/%0d%0a", f"{P}/%7f", "/..", f"{P}/../../../../x",
            f"{P}/..;/x", f"{P}/.;a/x", f"{P}/%2e%2e;/x", f'{P}/"', f"{P}/<", f"{P}/^", f"{P}/`", f"{P}/\\..\\x",
            f"{P}/%2f..%2fx", f"{P}/x%2Fy", f"{P}/x%5cy",
        )
    ),
    Case("no route", "9110 15.5.5", "MUST", _get(target="/nowhere"), (404,), is_open=True, code="no_route"),
    Case("no segment border", "PRACTICE", "PRACTICE", _get(target=f"{P}x"), (404,), is_open=True, code="no_route"),
    Case("another case", "RFC 3986 6.2.2.1", "MUST", _get(target="/API/v1/auth/x"), (404,), is_open=True, code="no_route"),
    Case("protected by dots", "PRACTICE", "PRACTICE", _get(target=f"{P}/../content/x"), (401,), is_open=True, code="auth_missing"),
    Case("protected by escapes", "PRACTICE", "PRACTICE", _get(target=f"{P}/%2e%2e/content/x"), (401,), is_open=True, code="auth_missing"),
]  # fmt: skip

CONNECTION = [
    Case("close is answered with close", "9112 9.6", "MUST", _get("Connection: close"), (200,), (f"{P}/x",)),
    Case("HTTP/1.0 closes", "9112 9.3", "MUST", _get(version="1.0"), (200,), (f"{P}/x",)),
    _ok("HTTP/1.0 keep-alive", "9112 C.2.2", "MAY", _get("Connection: keep-alive", version="1.0")),
    Case(
        "two in one",
        "9112 9.3.2",
        "MUST",
        _get() + _get(target=f"{P}/y"),
        (200, 200),
        (f"{P}/x", f"{P}/y"),
        is_open=True,
    ),
    Case("good then bad", "9112 9.3.2", "MUST", _get() + b"BAD\r\n\r\n", (200, 400), (f"{P}/x",), code="bad_request"),
    Case(
        "a smuggled request is a body",
        "9112 6.3",
        "MUST",
        _get("Content-Length: 39", method="POST") + b"GET /api/v1/auth/evil HTTP/1.1\r\nHost: h\r\n\r\n"[:39],
        (200,),
        (f"{P}/x",),
        is_open=True,
    ),
]

CASES = [*REQUEST_LINE, *HOST, *FIELDS, *FRAMING, *TARGETS, *CONNECTION]
