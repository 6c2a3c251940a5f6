"""Cases: where a request's body ends. What goes on is framed anew, so both ends read one length."""

from __future__ import annotations

from tests.conformance import rules as R
from tests.conformance.case import Case, P, Saw, bad, chunked, good, head, post

TE = "Transfer-Encoding: chunked"
END = b"0\r\n\r\n"


def body(text: bytes, method: str = "POST", *, length: bool = True) -> Saw:
    """A body as the upstream got it, by its length or in chunks, and never both."""
    lines = (f"Content-Length: {len(text)}",) if length else (TE,)
    return Saw(f"{P}/x", method, text, lines, ("transfer-encoding",) if length else ("content-length",))


def chunks(name: str, rule: R.Rule, raw: bytes, text: bytes = b"ab") -> Case:
    return good(name, rule, chunked(raw), body(text, length=False))


LENGTHS = [
    good("a length", R.LENGTH, post("Content-Length: 3", body=b"abc"), body(b"abc")),
    good("a length of nought", R.NO_BODY, post("Content-Length: 0"), body(b"")),
    good("no body on POST", R.NO_BODY, post(), body(b"")),
    good("no body on GET", R.NO_BODY, head(), Saw(f"{P}/x", lacks=("content-length", "transfer-encoding"))),
    good("zeros before a length", R.REFRAME, post("Content-Length: 0003", body=b"abc"), body(b"abc")),
    good("many zeros before a length", R.REFRAME, post("Content-Length: 00000000000000003", body=b"abc"), body(b"abc")),
    good("white space around a length", R.VALUE, post("Content-Length: \t 3 \t", body=b"abc"), body(b"abc")),
    good("no white space before a length", R.VALUE, post("Content-Length:3", body=b"abc"), body(b"abc")),
    good("a length in capitals", R.VALUE, post("CONTENT-LENGTH: 3", body=b"abc"), body(b"abc")),
    good("the same length twice", R.LENGTH_TWICE, post("Content-Length: 3", "Content-Length: 3", body=b"abc"), body(b"abc")),
    good("the same length in a list", R.LENGTH_TWICE, post("Content-Length: 3, 3", body=b"abc"), body(b"abc")),
    bad("two lengths", R.LENGTH, post("Content-Length: 3", "Content-Length: 4", body=b"abcd")),
    bad("two lengths, the first nought", R.LENGTH, post("Content-Length: 0", "Content-Length: 4", body=b"abcd")),
    bad("two lengths, one spelt with zeros", R.LENGTH, post("Content-Length: 3", "Content-Length: 03", body=b"abc")),
    bad("a list of lengths", R.LENGTH, post("Content-Length: 3, 4", body=b"abcd")),
    bad("a length and an empty one", R.LENGTH, post("Content-Length: 3", "Content-Length:", body=b"abc")),
    bad("an empty length and one", R.LENGTH, post("Content-Length:", "Content-Length: 3", body=b"abc")),
    *(
        bad(f"length {value!r}", R.LENGTH, post(f"Content-Length: {value}", body=b"abc"))
        for value in ("", "+3", "-1", "-0", "0x3", "3.0", "3e0", "1 0", "1_0", "3;", "3 ;a", "'3'", '"3"', "three", "\xb3", "3\xa0", "3,", ",3", "9" * 21, "9" * 400, "\xef\xbc\x93")
    ),
    bad("length with a vertical tab", R.OTHER_CONTROLS, post("Content-Length: \x0b3", body=b"abc")),
    bad("length with a NUL", R.CONTROLS, post("Content-Length: 3\0", body=b"abc")),
    bad("length with a space before the colon", R.COLON, post("Content-Length : 3", body=b"abc")),
    bad("length folded", R.FOLD, post("Content-Length:\r\n 3", body=b"abc")),
    bad("length folded into another", R.FOLD, post("Content-Length: 1\r\n 0", body=b"abc")),
    bad("length beyond the limit", R.LENGTH_LIMIT, post("Content-Length: 99999999"), 413, "body_too_large"),
    bad("length beyond 64 bits", R.LENGTH_LIMIT, post("Content-Length: 18446744073709551617"), 413, "body_too_large"),
    bad("length beyond the limit, with Expect", R.CONTINUE, post("Content-Length: 99999999", "Expect: 100-continue"), 413, "body_too_large"),
    *(
        good(f"a body on {method}", R.ANY_METHOD, head("Content-Length: 3", method=method) + b"abc", body(b"abc", method))
        for method in ("GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "BREW")
    ),
    good("a body on HTTP/1.0", R.ANY_METHOD, post("Content-Length: 3", version="1.0", body=b"abc"), body(b"abc"), is_open=False),
]  # fmt: skip

CODINGS = [
    bad("length and coding", R.BOTH, post("Content-Length: 5", TE, body=END)),
    bad("coding and length", R.BOTH, post(TE, "Content-Length: 5", body=END)),
    bad("length of nought and coding", R.BOTH, post("Content-Length: 0", TE, body=END)),
    bad("coding on HTTP/1.0", R.CODING_10, post(TE, version="1.0", body=END)),
    bad("coding on HTTP/1.0 that is kept alive", R.CODING_10, post(TE, "Connection: keep-alive", version="1.0", body=END)),
    *(
        bad(f"coding {value!r}", R.CODING, post(f"Transfer-Encoding: {value}", body=END), 501, "not_implemented")
        for value in ("", "gzip", "identity", "deflate", "x", "chunk", "chunkedd", "xchunked", "chunked;q=1", "'chunked'", '"chunked"', "\xa0chunked", "chunked\xa0",
                      "ch\x96nked", "=?iso-8859-1?B?Y2h1bmtlZA==?=", "\xef\xbd\x83hunked", "chun ked", "chunked\tx")
    ),
    *(
        bad(f"codings {value!r}", R.LAST_CODING, post(f"Transfer-Encoding: {value}", body=END), 501, "not_implemented")
        for value in ("gzip, chunked", "chunked, gzip", "chunked, chunked", "identity, chunked", "chunked, identity", "identity, chunked, identity", ",chunked", "chunked,", "chunked ,", ", chunked")
    ),
    bad("coding twice", R.LAST_CODING, post(TE, TE, body=END), 501, "not_implemented"),
    bad("coding and another", R.LAST_CODING, post(TE, "Transfer-Encoding: identity", body=END), 501, "not_implemented"),
    bad("another and coding", R.LAST_CODING, post("Transfer-Encoding: x", TE, body=END), 501, "not_implemented"),
    bad("coding and an empty one", R.LAST_CODING, post(TE, "Transfer-Encoding:", body=END), 501, "not_implemented"),
    bad("coding with a vertical tab", R.OTHER_CONTROLS, post("Transfer-Encoding: \x0bchunked", body=END)),
    bad("coding with a form feed", R.OTHER_CONTROLS, post("Transfer-Encoding: chunked\x0c", body=END)),
    bad("coding with a NUL", R.CONTROLS, post("Transfer-Encoding: chunked\0", body=END)),
    bad("coding with a bare CR", R.BARE_CR, post("Transfer-Encoding: chunked\r", body=END)),
    bad("coding spelt with a space", R.COLON, post("Transfer-Encoding : chunked", body=END)),
    bad("coding in a name of two words", R.FIELD, post("Transfer Encoding: chunked", body=END)),
    bad("coding with a backslash", R.FIELD, post("Transfer\\Encoding: chunked", body=END)),
    bad("coding with an accent", R.FIELD, post("Transf\x82r-Encoding: chunked", body=END)),
    bad("coding folded", R.FOLD, post("Transfer-Encoding:\r\n chunked", body=END)),
    bad("coding folded behind another field", R.FOLD, post("X: y\r\n\tTransfer-Encoding: chunked", body=END)),
    bad("coding in two lines", R.FIELD, post("Transfer-\r\nEncoding: chunked", body=END)),
    good("coding in capitals", R.CODING_NAME, post("TRANSFER-ENCODING: CHUNKED", body=END), body(b"", length=False)),
    good("coding with tabs around", R.VALUE, post("Transfer-Encoding:\t chunked\t ", body=END), body(b"", length=False)),
    good("coding on GET", R.ANY_METHOD, head(TE) + b"2\r\nab\r\n" + END, body(b"ab", "GET", length=False)),
]  # fmt: skip

CHUNKS = [
    chunks("chunks", R.CHUNKS, b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"),
    chunks("no chunk", R.CHUNKS, END, b""),
    chunks("a last chunk of many noughts", R.CHUNKS, b"2\r\nab\r\n0000\r\n\r\n"),
    chunks("size in capitals with zeros", R.CHUNKS, b"000A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    chunks("size of sixteen digits", R.CHUNKS, b"0000000000000002\r\nab\r\n0\r\n\r\n"),
    chunks("data that look like chunks", R.CHUNKS, b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    chunks("an extension", R.EXTENSIONS, b"2;a\r\nab\r\n0\r\n\r\n"),
    chunks("an extension with a value", R.EXTENSIONS, b"2;a=b\r\nab\r\n0;c=d\r\n\r\n"),
    chunks("an extension with a quoted value", R.EXTENSIONS, b'2;a="b;\\" 5"\r\nab\r\n0\r\n\r\n'),
    chunks("extensions with white space", R.EXTENSIONS, b"2; a = b ;c\t;d=e \r\nab\r\n0\r\n\r\n"),
    chunks("trailers", R.TRAILERS, b"2\r\nab\r\n0\r\nX: y\r\nZ:\r\n\r\n"),
    *(
        good(f"{line.partition(':')[0]} as a trailer", R.TRAILERS, chunked(b"2\r\nab\r\n0\r\n" + line.encode() + b"\r\n\r\n"),
             Saw(f"{P}/x", "POST", b"ab", (TE,), ("x-user-id", "content-length", "x-evil")))
        for line in ("X-User-ID: root", "Host: evil", "Authorization: Bearer x", "X-Evil:POST / HTTP/1.1")
    ),
    *(
        bad(f"chunk size {size[:20]!r}", R.CHUNKS, chunked(size + b"\r\nab\r\n0\r\n\r\n"))
        for size in (b"", b"x", b"g", b"-2", b"+2", b"0x2", b"0X2", b" 2", b"\t2", b"2.", b"2,", b"0_2", b"2_", b"2h", b"#2", b"2 2", b"2 a", b"\xb2", b"2\0", b"2\x0b", b"2\r")
    ),
    *(
        bad(f"chunk size {size!r}", R.CHUNK_OVERFLOW, chunked(size + b"\r\nab\r\n0\r\n\r\n"))
        for size in (b"1" * 17, b"00000000000000002", b"FFFFFFFFFFFFFFFF2", b"100000000000000000000000000000002")
    ),
    *(
        bad(f"extension {extension[:16]!r}", R.EXTENSIONS, chunked(b"2" + extension + b"\r\nab\r\n0\r\n\r\n"))
        for extension in (b";", b";;", b"; ", b";=b", b";a=", b";a==b", b";a b", b";(a)", b';a="b', b';a="b"c', b";\x01", b";a\x7f", b";a=\xe4", b" ;a", b";a,b", b";a=b;", b";a\r=b", b";\r", b";" + b"x" * 30_000)
    ),
    *(
        bad(f"chunks {raw!r}", R.CHUNKS, chunked(raw))
        for raw in (
            b"2\nab\r\n0\r\n\r\n", b"2\r\nab\n0\r\n\r\n", b"2\r\nab\r0\r\n\r\n", b"2\r\nab0\r\n\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"2\r\nabXX0\r\n\r\n",
            b"2\r\nab\r\n\r\n0\r\n\r\n", b"\r\n2\r\nab\r\n0\r\n\r\n", b"2\r\rab\r\n0\r\n\r\n", b"2\n\rab\r\n0\r\n\r\n", b"2;a\nab\r\n0\r\n\r\n",
            b"2\r\nab\r\n0\n\r\n", b"2\r\nab\r\n0\r\n\n", b"2\r\nab\r\n0\r\nX: y\n\r\n", b"2\r\nab\r\n0\r\nX\r\n\r\n", b"2\r\nab\r\n0\r\nX : y\r\n\r\n",
            b"2\r\nab\r\n0\r\n: y\r\n\r\n", b"2\r\nab\r\n0\r\nX: y\r\n z\r\n\r\n", b"2\r\nab\r\n0\r\nX: \x00\r\n\r\n", b"2\r\nab\r\n0\r\n X: y\r\n\r\n",
        )
    ),
    *(
        bad(f"{line} as a trailer", R.TRAILER_FRAMING, chunked(b"2\r\nab\r\n0\r\n" + line.encode() + b"\r\n\r\n"))
        for line in ("Transfer-Encoding: gzip", "transfer-encoding: chunked", "Content-Length: 5", "CONTENT-LENGTH: 2")
    ),
    bad("trailers without end", R.TRAILERS, chunked(b"2\r\nab\r\n0\r\n" + b"X: y\r\n" * 5000)),
]  # fmt: skip

CASES = [*LENGTHS, *CODINGS, *CHUNKS]
