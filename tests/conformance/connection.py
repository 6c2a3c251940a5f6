"""Cases: persistence, pipelines, upgrades, expectations."""

from __future__ import annotations

from tests.conformance import rules as R
from tests.conformance.case import PROTECTED, Case, Got, P, Saw, bad, chunked, good, head, kept, post

X, Y = Saw(f"{P}/x"), Saw(f"{P}/y")
GET_Y = head(target=f"{P}/y")
EVIL = head(target=f"{P}/evil")
WS = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
NO_UPGRADE = ("upgrade", "connection", "http2-settings")

PERSISTENCE = [
    good("close is answered with close", R.CLOSE, head("Connection: close"), is_open=False),
    good("close in capitals", R.CLOSE, head("Connection: CLOSE"), is_open=False),
    good("close among others", R.CLOSE, head("Connection: keep-alive, close"), is_open=False),
    good("close in a second line", R.CLOSE, head("Connection: keep-alive", "Connection: close"), is_open=False),
    good("nothing after close", R.CLOSE, head("Connection: close") + GET_Y, X, is_open=False),
    good("nothing after a body and close", R.CLOSE, post("Connection: close", "Content-Length: 2", body=b"ok") + GET_Y,
         Saw(f"{P}/x", "POST", b"ok"), is_open=False),
    good("closed is not close", R.CLOSE, head("Connection: closed")),
    good("HTTP/1.0 closes", R.PERSIST_10, head(version="1.0"), is_open=False),
    good("nothing after HTTP/1.0", R.PERSIST_10, head(version="1.0") + GET_Y, X, is_open=False),
    good("HTTP/1.0 keep-alive", R.PERSIST_10, head("Connection: keep-alive", version="1.0")),
    good("HTTP/1.0 keep-alive and close", R.PERSIST_10, head("Connection: keep-alive, close", version="1.0"), is_open=False),
    good("HTTP/1.0 with Proxy-Connection", R.PERSIST_10, head("Proxy-Connection: keep-alive", version="1.0"), is_open=False),
    good("1.0 and 1.1 on one connection", R.PERSIST_10, head("Connection: keep-alive", version="1.0") + GET_Y, X, Y),
    Case("a refusal with close", R.CLOSE, head("Connection: close", target="/nowhere"), (Got(404, "no_route"),)),
    Case("a refusal on HTTP/1.0", R.PERSIST_10, head(target="/nowhere", version="1.0"), (Got(404, "no_route"),)),
]  # fmt: skip

PIPELINES = [
    good("two in one", R.PIPELINE, head() + GET_Y, X, Y),
    good("ten in one", R.PIPELINE, b"".join(head(target=f"{P}/{n}") for n in range(10)), *(Saw(f"{P}/{n}") for n in range(10))),
    good("a body between", R.PIPELINE, post("Content-Length: 3", body=b"abc") + GET_Y, Saw(f"{P}/x", "POST", b"abc"), Y),
    good("chunks between", R.PIPELINE, chunked(b"3\r\nabc\r\n0\r\n\r\n") + GET_Y, Saw(f"{P}/x", "POST", b"abc"), Y),
    good("chunks with trailers between", R.PIPELINE, chunked(b"0\r\nX: y\r\n\r\n") + GET_Y, Saw(f"{P}/x", "POST"), Y),
    good("HEAD between", R.PIPELINE, head(method="HEAD") + GET_Y, Saw(f"{P}/x", "HEAD"), Y),
    Case("a refused one between", R.PIPELINE, head() + head(target="/nowhere") + GET_Y, (Got(200), Got(404, "no_route"), Got(200)), (X, Y), is_open=True),
    Case("a refused one with a body between", R.PIPELINE, post(f"Content-Length: {len(EVIL)}", body=EVIL, target="/nowhere") + GET_Y,
         (Got(404, "no_route"), Got(200)), (Y,), is_open=True, in_pieces=(Got(404, "no_route"),)),
    Case("a refused one with chunks between", R.PIPELINE, post("Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVIL), EVIL), target="/nowhere") + GET_Y,
         (Got(404, "no_route"), Got(200)), (Y,), is_open=True, in_pieces=(Got(404, "no_route"),)),
    Case("one without a token between", R.PIPELINE, head() + head(target=f"{PROTECTED}/x") + GET_Y, (Got(200), Got(401, "auth_missing"), Got(200)), (X, Y), is_open=True),
    Case("good, then bad", R.AFTER_ERROR, head() + b"BAD\r\n\r\n", (Got(200), Got(400, "bad_request")), (X,)),
    Case("good, then bad, then good", R.AFTER_ERROR, head() + head("X : a") + GET_Y, (Got(200), Got(400, "bad_request")), (X,)),
    Case("bad, then good", R.AFTER_ERROR, head(host="") + GET_Y, (Got(400, "bad_request"),)),
    Case("too long, then good", R.AFTER_ERROR, head("X: " + "y" * 17_000) + GET_Y, (Got(431, "headers_too_large"),)),
    Case("a body too long, then good", R.AFTER_ERROR, post("Content-Length: 99999999") + GET_Y, (Got(413, "body_too_large"),)),
    Case("a bad chunk, then good", R.AFTER_ERROR, chunked(b"x\r\n") + GET_Y, (Got(400, "bad_request"),)),
    Case("bytes behind a body are the next request", R.PIPELINE, post("Content-Length: 2", body=b"okGET") + b" /x\r\n\r\n",
         (Got(200, method="POST"), Got(400, "bad_request")), (Saw(f"{P}/x", "POST", b"ok"),)),
]  # fmt: skip

UPGRADES = [
    good("an upgrade that the upstream does not take", R.UPGRADE, head("Connection: Upgrade", "Upgrade: websocket", *WS),
         Saw(f"{P}/x", lines=("Connection: Upgrade", "Upgrade: websocket", *WS))),
    good("and the next request after it", R.UPGRADE, head("Connection: Upgrade", "Upgrade: websocket", *WS) + GET_Y,
         Saw(f"{P}/x", lines=("Upgrade: websocket",)), Saw(f"{P}/y", lacks=NO_UPGRADE)),
    good("an upgrade that Connection does not name", R.UPGRADE, head("Upgrade: websocket", *WS), Saw(f"{P}/x", lacks=NO_UPGRADE)),
    good("Connection without Upgrade", R.UPGRADE, head("Connection: Upgrade"), Saw(f"{P}/x", lacks=NO_UPGRADE)),
    good("an upgrade on HTTP/1.0", R.UPGRADE, head("Connection: Upgrade, keep-alive", "Upgrade: websocket", version="1.0"), Saw(f"{P}/x", lacks=NO_UPGRADE)),
    good("an upgrade on POST", R.UPGRADE, post("Connection: Upgrade", "Upgrade: websocket"), Saw(f"{P}/x", "POST", lacks=NO_UPGRADE)),
    good("an upgrade with a body", R.UPGRADE, head("Connection: Upgrade", "Upgrade: websocket", "Content-Length: 2") + b"ok", Saw(f"{P}/x", body=b"ok", lacks=NO_UPGRADE)),
    good("an upgrade with chunks", R.UPGRADE, head("Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n",
         Saw(f"{P}/x", body=b"ok", lacks=NO_UPGRADE)),
    *(
        good(f"an upgrade to {value}", R.NO_H2C, head("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {value}", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
             Saw(f"{P}/x", lacks=NO_UPGRADE))
        for value in ("h2c", "H2C", "h2c,websocket", "websocket, h2c", "websocket,\th2c", "HTTP/2.0", "h2c-14", ", h2c", "TLS/1.0", "http/1.1")
    ),
    good("an upgrade to h2c in a second line", R.NO_H2C, head("Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"), Saw(f"{P}/x", lacks=NO_UPGRADE)),
    good("HTTP2-Settings alone", R.NO_H2C, head("HTTP2-Settings: AAMA"), Saw(f"{P}/x", lacks=NO_UPGRADE)),
    Case("h2c and then its preface", R.NO_H2C, head("Connection: Upgrade", "Upgrade: h2c") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
         (Got(200), Got(505, "version_unsupported")), (Saw(f"{P}/x", lacks=NO_UPGRADE),)),
    kept("an upgrade does not go round the token", R.UPGRADE, head("Connection: Upgrade", "Upgrade: websocket", *WS, target=f"{PROTECTED}/x"), 401, "auth_missing"),
]  # fmt: skip

EXPECTATIONS = [
    good("100-continue with the body at once", R.CONTINUE, post("Expect: 100-continue", "Content-Length: 2", body=b"ok"), Saw(f"{P}/x", "POST", b"ok", lacks=("expect",))),
    good("100-continue in capitals", R.CONTINUE, post("Expect: 100-CONTINUE", "Content-Length: 2", body=b"ok"), Saw(f"{P}/x", "POST", b"ok", lacks=("expect",))),
    good("100-continue with chunks", R.CONTINUE, chunked(b"2\r\nok\r\n0\r\n\r\n", "Expect: 100-continue"), Saw(f"{P}/x", "POST", b"ok", lacks=("expect",))),
    good("100-continue without a body", R.CONTINUE, head("Expect: 100-continue"), Saw(f"{P}/x", lacks=("expect",))),
    good("100-continue and a length of nought", R.CONTINUE, post("Expect: 100-continue", "Content-Length: 0"), Saw(f"{P}/x", "POST", lacks=("expect",))),
    good("100-continue on HTTP/1.0", R.CONTINUE, post("Expect: 100-continue", "Content-Length: 2", body=b"ok", version="1.0"),
         Saw(f"{P}/x", "POST", b"ok", lacks=("expect",)), is_open=False),
    good("Connection names Expect", R.CONTINUE, post("Connection: Expect", "Expect: 100-continue", "Content-Length: 2", body=b"ok"), Saw(f"{P}/x", "POST", b"ok", lacks=("expect",))),
    Case("100-continue and then the next", R.CONTINUE, post("Expect: 100-continue", "Content-Length: 2", body=b"ok") + GET_Y,
         (Got(200, method="POST"), Got(200)), (Saw(f"{P}/x", "POST", b"ok"), Y), is_open=True),
    bad("100-continue, chunks and length", R.BOTH, chunked(b"0\r\n\r\n", "Expect: 100-continue", "Content-Length: 5")),
]  # fmt: skip

CASES = [*PERSISTENCE, *PIPELINES, *UPGRADES, *EXPECTATIONS]
