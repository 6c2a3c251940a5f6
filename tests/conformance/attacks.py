"""Cases: published families of attacks, put together as their authors do: one request in front, another inside it.

CL.TE, TE.CL, TE.TE, CL.0, 0.CL, TE.0 (J. Kettle, A. Klein), TERM.EXT, EXT.TERM, TERM.SPILL, SPILL.TERM, ONE.TWO, TWO.ONE,
ZERO.TWO, TWO.ZERO (J. Bonde Weikop), and the mutations of http-request-smuggler and of the HTTP Garden. Whatever the
gateway makes of one, what reaches the upstream is one request for each that the gateway answered, or none at all.
"""

from __future__ import annotations

from tests.conformance import rules as R
from tests.conformance.case import Case, Got, P, Saw, bad, good, head, post

EVIL = head(target=f"{P}/evil")
SMUGGLED = Saw(f"{P}/evil")
TE = "Transfer-Encoding: chunked"
#: To who reads chunks an empty body and then a request; to who reads a length all of it a body.
CHUNKED_EVIL = b"0\r\n\r\n" + EVIL
LENGTH = f"Content-Length: {len(CHUNKED_EVIL)}"


def hidden(coding: bytes) -> bytes:
    """CL.TE and TE.CL alike: a length that covers all, and a coding that only some see."""
    return (
        b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n" + LENGTH.encode() + b"\r\n" + coding + b"\r\n\r\n" + CHUNKED_EVIL
    )


#: Spelt so that it is no Transfer-Encoding to anybody who is strict: it is a field like others, or is dropped.
HARMLESS = (b"X-Transfer-Encoding: chunked", b"Transfer_Encoding: chunked", b"Transfer.Encoding: chunked", b"Transfer-%45ncoding: chunked", b"Content-Encoding: chunked",
             b"Transfer-Encodin: chunked", b"TransferEncoding: chunked", b"X: Transfer-Encoding: chunked", b"Transfer-Encoding-: chunked", b"'Transfer-Encoding: chunked")  # fmt: skip
#: What some read as a coding; the whole request is refused.
REFUSED = (
    b"Transfer-Encoding: chunked", b"transfer-encoding: chunked", b"tRANSFER-ENCODING: chunked", b"Transfer-Encoding:chunked", b"Transfer-Encoding:\tchunked", b"Transfer-Encoding:   chunked",
    b"Transfer-Encoding: chunked\t", b"Transfer-Encoding: CHUNKED", b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b"Transfer-Encoding x: chunked", b"Transfer Encoding: chunked",
    b" Transfer-Encoding: chunked", b"\tTransfer-Encoding: chunked", b"X: y\r\n Transfer-Encoding: chunked", b"X: y\r\n\tTransfer-Encoding: chunked", b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding:\r\n \r\n chunked", b"Transfer-Encoding:\n chunked", b"Transfer-Encoding\n : chunked", b"X: y\rTransfer-Encoding: chunked", b"X: y\nTransfer-Encoding: chunked",
    b"X: y\r\r\nTransfer-Encoding: chunked", b"X: y\n\rTransfer-Encoding: chunked", b"\rTransfer-Encoding: chunked", b"Tra\rnsfer-Encoding: chunked", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding:\x0c chunked", b"Transfer-Encoding: chunked\r", b"Transfer-Encoding: chunked\0", b"Transfer-Encoding\0: chunked", b"Transfer-Encoding\x85: chunked", b"Transfer-Encoding\xa0: chunked",
    b"Transfer-Encoding\xad: chunked", b"Transfer\\Encoding: chunked", b"Transfer-\r\nEncoding: chunked", b"(Transfer-Encoding: chunked", b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
)  # fmt: skip
NOT_CHUNKED = (
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunk", b'Transfer-Encoding: "chunked"', b"Transfer-Encoding: 'chunked'", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: identity, chunked, identity", b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Transfer-Encoding: ,chunked", b"Transfer-Encoding: chunked,", b"Transfer-Encoding: chunked;a=b", b"Transfer-Encoding: \xa0chunked",
    b"Transfer-Encoding: chunked\xa0", b"Transfer-Encoding: ch\x96nked", b"Transfer-Encoding: =?UTF-8?B?Y2h1bmtlZA==?=", b"Transfer-Encoding:", b"Transfer-Encoding: cow\r\ntransfer-encoding: chunked",
)  # fmt: skip

CODINGS = [
    *(good(f"CL.TE by {line!r}", R.REFRAME, hidden(line), Saw(f"{P}/x", "POST", CHUNKED_EVIL, (LENGTH,), ("transfer-encoding",))) for line in HARMLESS),
    *(bad(f"CL.TE by {line!r}", R.BOTH, hidden(line)) for line in REFUSED),
    *(bad(f"TE.TE by {line!r}", R.LAST_CODING, hidden(line), 501, "not_implemented") for line in NOT_CHUNKED),
    bad("TE.CL", R.BOTH, post("Content-Length: 4", TE, body=b"3c\r\n" + EVIL.ljust(0x3C, b"x") + b"\r\n0\r\n\r\n")),
    bad("CL.TE that asks to close", R.BOTH, post("Connection: close", LENGTH, TE, body=CHUNKED_EVIL)),
    bad("CL.TE on GET", R.BOTH, head(LENGTH, TE) + CHUNKED_EVIL),
    Case("CL.TE on HEAD", R.BOTH, head(LENGTH, TE, method="HEAD") + CHUNKED_EVIL, (Got(400, method="HEAD"),)),
    Case("HEAD with a bare LF has no body", R.NO_CONTENT, b"HEAD /x HTTP/1.1\nHost: h\r\n\r\n", (Got(400, method="HEAD"),)),
    Case("HEAD that h11 refuses has no body", R.NO_CONTENT, head("X : y", method="HEAD"), (Got(400, method="HEAD"),)),
    Case("HEAD with a control character has no body", R.NO_CONTENT, head("X: \x01", method="HEAD"), (Got(400, method="HEAD"),)),
    Case("HEAD that is too long has no body", R.NO_CONTENT, head("X: " + "y" * 17_000, method="HEAD"), (Got(431, method="HEAD"),)),
    bad("CL.TE on OPTIONS", R.BOTH, head(LENGTH, TE, method="OPTIONS") + CHUNKED_EVIL),
    bad("CL.TE by HTTP/1.0", R.BOTH, post("Connection: keep-alive", LENGTH, TE, version="1.0", body=CHUNKED_EVIL)),
    bad("TE.0 by HTTP/1.0", R.CODING_10, post("Connection: keep-alive", TE, version="1.0", body=CHUNKED_EVIL)),
    good("TE.0: chunks and then a request are two", R.REFRAME, head(TE, method="OPTIONS") + CHUNKED_EVIL, Saw(f"{P}/x", "OPTIONS"), SMUGGLED),
]  # fmt: skip

LENGTHS = [
    *(
        good(f"CL.0 on {method}", R.REFRAME, head(f"Content-Length: {len(EVIL)}", method=method) + EVIL, Saw(f"{P}/x", method, EVIL))
        for method in ("POST", "GET", "HEAD", "OPTIONS", "DELETE", "PUT")
    ),
    good("CL.0 that Connection names", R.HOP, post("Connection: Content-Length", f"Content-Length: {len(EVIL)}", body=EVIL), Saw(f"{P}/x", "POST", EVIL)),
    good("no length: what follows is a request", R.NO_BODY, post() + EVIL, Saw(f"{P}/x", "POST"), SMUGGLED),
    good("a length of nought: what follows is a request", R.NO_BODY, post("Content-Length: 0") + EVIL, Saw(f"{P}/x", "POST"), SMUGGLED),
    good("Content_Length: what follows is a request", R.NAMES, post(f"Content_Length: {len(EVIL)}") + EVIL, Saw(f"{P}/x", "POST", lacks=("content_length",)), SMUGGLED),
    good("X-Content-Length: what follows is a request", R.NO_BODY, post(f"X-Content-Length: {len(EVIL)}") + EVIL, Saw(f"{P}/x", "POST"), SMUGGLED),
    *(
        bad(f"0.CL by {line!r}", R.LENGTH, b"POST /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n" + line % len(EVIL) + b"\r\n\r\n" + EVIL)
        for line in (
            b"Content-Length : %d", b"Content-Length\t: %d", b" Content-Length: %d", b"X: y\r\n Content-Length: %d", b"X: y\r\n\tContent-Length: %d", b"Content-Length:\r\n %d", b"Content-Length: \x0b%d",
            b"Content-Length: +%d", b"Content-Length: %d\0", b"Content-Length: 0 %d", b"Content-Length: 0, %d", b"Content-Length: %d, 0", b"Content-Length: 0\r\nContent-Length: %d",
            b"Content-Length: %d\r\nContent-Length: 0", b"X: y\rContent-Length: %d", b"X: y\nContent-Length: %d", b"Content-Length: %de0", b"Content-Length: %d.0", b"Content-Length: %d_", b"Content\x85-Length: %d",
            b"Content-Length: \r\nContent-Length: %d",
        )
    ),
    bad("0.CL by an obscure Expect", R.EXPECT, post("Expect: x 100-continue", f"Content-Length: {len(EVIL)}", body=EVIL), 417, "expectation_failed"),
    bad("0.CL by Expect with a tab in it", R.EXPECT, post("Expect: 100-\tcontinue", f"Content-Length: {len(EVIL)}", body=EVIL), 417, "expectation_failed"),
    bad("0.CL by a folded Expect", R.FOLD, post("Expect:\r\n 100-continue", f"Content-Length: {len(EVIL)}", body=EVIL)),
    good("0.CL by Expect", R.CONTINUE, post("Expect: 100-continue", f"Content-Length: {len(EVIL)}", body=EVIL), Saw(f"{P}/x", "POST", EVIL, lacks=("expect",))),
]  # fmt: skip


def funky(raw: bytes) -> bytes:
    return post(TE, body=raw + EVIL)


CHUNKS = [
    bad("TERM.EXT: LF in an extension", R.EXTENSIONS, funky(b"2;\nxx\r\n4c\r\n0\r\n\r\n")),
    bad("EXT.TERM: LF ends an extension", R.EXTENSIONS, funky(b"2;a\nab\r\n0\r\n\r\n")),
    bad("EXT.TERM: CR ends an extension", R.EXTENSIONS, funky(b"2;a\rab\r\n0\r\n\r\n")),
    bad("an extension of two CRs", R.EXTENSIONS, funky(b"41;a=b\r\r" + b"X" * 65 + b"\r\n0\r\n\r\n")),
    bad("CR and an extension", R.EXTENSIONS, funky(b"5\r\r;ABCD\r\n34\r\nE\r\n0\r\n\r\n")),
    bad("TERM.SPILL: one byte instead of CRLF", R.CHUNKS, funky(b"5\r\nAAAAAX2d\r\n0\r\n\r\n")),
    bad("SPILL.TERM: two bytes instead of CRLF", R.CHUNKS, funky(b"5\r\nAAAAAXX2\r\n45\r\n0\r\n\r\n")),
    bad("ONE.TWO: LF after the data", R.CHUNKS, funky(b"5\r\nAAAAA\n2\r\nab\r\n0\r\n\r\n")),
    bad("TWO.ONE: CR after the data", R.CHUNKS, funky(b"5\r\nAAAAA\rX2\r\n0\r\n\r\n")),
    bad("ZERO.TWO: nothing after the data", R.CHUNKS, funky(b"5\r\nAAAAA2\r\nab\r\n0\r\n\r\n")),
    bad("TWO.ZERO: a line more after the data", R.CHUNKS, funky(b"5\r\nAAAAA\r\n\r\n0\r\n\r\n")),
    bad("one byte over", R.CHUNKS, funky(b"2\r\nabX\r\n0\r\n\r\n")),
    bad("one byte under", R.CHUNKS, funky(b"3\r\nab\r\n0\r\n\r\n")),
    bad("a size with an underscore", R.CHUNKS, funky(b"0_2e\r\n\r\n")),
    bad("a size beyond 64 bits", R.CHUNK_OVERFLOW, funky(b"10000000000000000\r\n")),
    bad("a size that is negative in 64 bits", R.CHUNK_OVERFLOW, funky(b"FFFFFFFFFFFFFFFE0\r\nab\r\n0\r\n\r\n")),
    bad("the last chunk ends with LF", R.CHUNKS, funky(b"0\n\r\n")),
    bad("the last chunk and LF", R.CHUNKS, funky(b"0\r\n\n")),
    bad("a request line for a trailer", R.TRAILERS, funky(b"0\r\n")),
    good("a request line behind a trailer's colon", R.TRAILERS, post(TE, body=b"0\r\nX:POST / HTTP/1.1\r\n\r\n") + EVIL, Saw(f"{P}/x", "POST"), SMUGGLED),
    good("a request in data", R.REFRAME, post(TE, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVIL), EVIL)), Saw(f"{P}/x", "POST", EVIL)),
    good("a request in an extension's quotes", R.EXTENSIONS, post(TE, body=b'2;a="GET /evil HTTP/1.1"\r\nab\r\n0\r\n\r\n'), Saw(f"{P}/x", "POST", b"ab")),
]  # fmt: skip

SPLITTING = [
    good("CRLF escaped in the query stays escaped", R.QUERY, head(target=f"{P}/x?%0d%0aSet-Cookie:%20a=b"), Saw(f"{P}/x?%0d%0aSet-Cookie:%20a=b")),
    bad("CRLF escaped in the path", R.ESCAPED_CONTROL, head(target=f"{P}/x%0d%0aX:%20y")),
    bad("CRLF in UTF-8 that is cut off", R.ESCAPES, head(target=f"{P}/\xe5\x98\x8d\xe5\x98\x8aX")),
    good("CRLF in UTF-8, escaped, is a path", R.NORMAL, head(target=f"{P}/%e5%98%8d%e5%98%8a"), Saw(f"{P}/%E5%98%8D%E5%98%8A")),
    Case("a whole second request in a body that is too short", R.REFRAME, post("Content-Length: 5", body=b"abcde" + EVIL),
         (Got(200, method="POST"), Got(200)), (Saw(f"{P}/x", "POST", b"abcde"), SMUGGLED), is_open=True),
    bad("HTTP/0.9 behind a request", R.LINE, b"GET /api/v1/auth/x\r\n\r\n" + EVIL),
    Case("a space and another request", R.LINE, head() + b" " + EVIL, (Got(200), Got(400, "bad_request")), (Saw(f"{P}/x"),)),
]  # fmt: skip

CASES = [*CODINGS, *LENGTHS, *CHUNKS, *SPLITTING]
