"""Cases: field lines, what of them goes on, and what says who asks."""

from __future__ import annotations

from tests.conformance import rules as R
from tests.conformance.case import PROTECTED, Case, Got, P, Saw, bad, good, head, kept

LONG = "y" * 17_000


def passes(name: str, rule: R.Rule, *lines: str, seen: tuple[str, ...] = ()) -> Case:
    """These lines go on as they came, or as `seen` says."""
    return good(name, rule, head(*lines), Saw(f"{P}/x", lines=seen or lines))


def dropped(name: str, rule: R.Rule, *lines: str, keeps: tuple[str, ...] = ()) -> Case:
    """None of these lines' names reaches the upstream, but for those that the gateway says itself."""
    names = tuple(line.partition(":")[0].strip().lower() for line in lines)
    return good(name, rule, head(*lines), Saw(f"{P}/x", lacks=tuple(name for name in names if name not in keeps)))


SYNTAX = [
    bad("bare LF after a line", R.CRLF, b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\nX: a\r\n\r\n"),
    bad("bare LF everywhere", R.CRLF, b"GET /api/v1/auth/x HTTP/1.1\nHost: h\n\n"),
    bad("bare LF ends the head", R.CRLF, b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\n"),
    bad("bare LF and CRLF end the head", R.CRLF, b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\n\r\n"),
    bad("bare LF in a value", R.CRLF, head("X: a\nY: b")),
    bad("LF CR for CR LF", R.CRLF, b"GET /api/v1/auth/x HTTP/1.1\n\rHost: h\n\r\n\r"),
    bad("bare CR in a value", R.BARE_CR, head("X: a\rb")),
    bad("bare CR between two lines", R.BARE_CR, head("X: a\rY: b")),
    bad("bare CR in a name", R.BARE_CR, head("X\rY: b")),
    bad("CR CR LF", R.BARE_CR, head("X: a\r")),
    bad("a line of CR", R.BARE_CR, b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\rX: a\r\n\r\n"),
    bad("NUL in a value", R.CONTROLS, head("X: a\0b")),
    bad("NUL in a name", R.FIELD, head("X\0: a")),
    *(bad(f"control {code:#04x} in a value", R.OTHER_CONTROLS, head(f"X: a{chr(code)}b")) for code in (1, 7, 8, 0x0B, 0x0C, 0x1B, 0x1C, 0x1F, 0x7F)),
    bad("control before a value", R.OTHER_CONTROLS, head("X:\x0ba")),
    bad("space before the colon", R.COLON, head("X : a")),
    bad("tab before the colon", R.COLON, head("X\t: a")),
    bad("space in a name", R.FIELD, head("X Y: a")),
    bad("a first line that begins with space", R.LEADING_SPACE, b"GET /api/v1/auth/x HTTP/1.1\r\n X: a\r\nHost: h\r\n\r\n"),
    bad("a first line that begins with tab", R.LEADING_SPACE, b"GET /api/v1/auth/x HTTP/1.1\r\n\tX: a\r\nHost: h\r\n\r\n"),
    bad("a first line of a space", R.LEADING_SPACE, b"GET /api/v1/auth/x HTTP/1.1\r\n \r\nHost: h\r\n\r\n"),
    bad("no colon", R.FIELD, head("Xa")),
    bad("no colon in the last line", R.FIELD, head("X: a", "Y")),
    bad("empty name", R.FIELD, head(": a")),
    bad("only a colon", R.FIELD, head(":")),
    bad("8 bits in a name", R.FIELD, head("X\xff: a")),
    bad("a soft hyphen in a name", R.FIELD, head("X\xadY: a")),
    *(bad(f"{sign} in a name", R.FIELD, head(f"X{sign}Y: a")) for sign in '"(),/;<=>?@[\\]{}'),
    bad("folded by a space", R.FOLD, head("X: a\r\n b")),
    bad("folded by a tab", R.FOLD, head("X: a\r\n\tb")),
    bad("folded into nothing", R.FOLD, head("X:\r\n a")),
    bad("folded into an empty line", R.FOLD, head("X: a\r\n ")),
    bad("a line hidden in a fold", R.FOLD, head("X: a\r\n Authorization: Bearer b")),
    passes("8 bits in a value", R.VALUE, "X: \xe4\xff"),
    passes("a next-line of 8 bits in a value", R.VALUE, "X: a\x85X-User-ID: root"),
    passes("no white space after the colon", R.VALUE, "X:a", seen=("X: a",)),
    passes("white space around a value", R.VALUE, "X: \t a b \t", seen=("X: a b",)),
    passes("empty value", R.VALUE, "X:", seen=("X: ",)),
    passes("a colon in a value", R.VALUE, "X: a:b"),
    passes("two lines of one name", R.VALUE, "Cookie: a=1", "Cookie: b=2"),
    passes("names as they were spelt", R.VALUE, "x-MiXeD: 1"),
    passes("a hundred lines", R.HEAD_SIZE, *(f"X{n}: y" for n in range(99))),
    bad("a hundred and one lines", R.HEAD_SIZE, head(*(f"X{n}: y" for n in range(100))), 431, "headers_too_large"),
    bad("a value beyond the limit", R.HEAD_SIZE, head("X: " + LONG), 431, "headers_too_large"),
    bad("a name beyond the limit", R.HEAD_SIZE, head(LONG + ": x"), 431, "headers_too_large"),
    bad("a head that never ends", R.HEAD_SIZE, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000, 431, "headers_too_large"),
    bad("a value that never ends", R.HEAD_SIZE, b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000, 431, "headers_too_large"),
    bad("two Authorization", R.SINGLETON, head("Authorization: Bearer a", "Authorization: Bearer b")),
    bad("two Authorization in two cases", R.SINGLETON, head("Authorization: Bearer a", "aUTHORIZATION: Bearer a")),
    bad("unknown expectation", R.EXPECT, head("Expect: tea"), 417, "expectation_failed"),
    bad("an expectation more", R.EXPECT, head("Expect: 100-continue, tea"), 417, "expectation_failed"),
    bad("an expectation twice", R.EXPECT, head("Expect: 100-continue", "Expect: 100-continue"), 417, "expectation_failed"),
    bad("an expectation with junk", R.EXPECT, head("Expect: x 100-continue"), 417, "expectation_failed"),
    bad("an empty expectation", R.EXPECT, head("Expect:"), 417, "expectation_failed"),
    good("an expectation of HTTP/1.0", R.EXPECT, head("Expect: tea", version="1.0"), Saw(f"{P}/x", lacks=("expect",)), is_open=False),
    dropped("an expectation without a body", R.CONTINUE, "Expect: 100-Continue"),
]  # fmt: skip

HOP = [
    dropped("keep-alive", R.HOP, "Keep-Alive: timeout=5, max=1000"),
    dropped("Proxy-Connection", R.HOP, "Proxy-Connection: keep-alive"),
    dropped("Connection", R.HOP, "Connection: keep-alive"),
    dropped("TE", R.HOP, "TE: trailers", "Connection: TE"),
    dropped("Trailer", R.HOP, "Trailer: X"),
    dropped("proxy credentials", R.HOP, "Proxy-Authorization: Basic eDp5"),
    dropped("a name in Connection", R.HOP, "Connection: X-Secret", "X-Secret: 1"),
    dropped("a name in Connection in another case", R.HOP, "connection: x-SECRET", "X-Secret: 1", "x-secret: 2"),
    dropped("names in two Connections", R.HOP, "Connection: a", "Connection: b", "A: 1", "B: 2"),
    dropped("a name among empty ones", R.HOP, "Connection: ,, X-Secret\t,,", "X-Secret: 1"),
    dropped("Cookie in Connection", R.HOP, "Connection: Cookie", "Cookie: a=b"),
    good("what the gateway says is not for Connection to name", R.HOP,
         head("Connection: X-Forwarded-For, X-Real-IP, X-Request-ID, Via, Host"),
         Saw(f"{P}/x", lines=("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1"))),
    good("a length is not for Connection to name", R.HOP, head("Connection: Content-Length", "Content-Length: 2") + b"ok", Saw(f"{P}/x", body=b"ok")),
    good("a coding is not for Connection to name", R.HOP,
         head("Connection: Transfer-Encoding", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n", Saw(f"{P}/x", body=b"ok")),
    kept("a token that Connection names is none", R.HOP, head("Authorization: Bearer x", "Connection: Authorization", target=f"{PROTECTED}/x"), 401, "auth_missing"),
    good("Via grows", R.VIA, head("Via: 1.0 fred"), Saw(f"{P}/x", lines=("Via: 1.0 fred, *",))),
]  # fmt: skip

IDENTITY = [
    *(
        dropped(f"{line.partition(':')[0]} of a client", R.SPOOF, line)
        for line in (
            "X-User-ID: root", "x-user-id: root", "X-USER-ROLE: admin", "X-User-Email: a@b", "X-User-Anything: x", "X-User: root",
            "X-Auth-Request-User: root", "X-Auth-Token: x", "X-Auth: x", "X-Forwarded-User: root", "X-Forwarded-Email: a@b",
            "X-Forwarded-Prefix: /evil", "X-Forwarded-Server: evil", "X-Forwarded: for=6.6.6.6", "Forwarded: for=6.6.6.6;by=h",
            "Forwarded-For: 6.6.6.6", "X-Client-IP: 6.6.6.6", "True-Client-IP: 6.6.6.6", "CF-Connecting-IP: 6.6.6.6",
            "X-Cluster-Client-IP: 6.6.6.6", "X-Originating-IP: 6.6.6.6", "X-Remote-Addr: 6.6.6.6", "Remote-User: root", "X-Remote-User: root",
            "X-Real-Client-IP: 6.6.6.6", "X-Azure-SocketIP: 6.6.6.6", "X-Remote-IP: 6.6.6.6", "X-SSL-Client-Cert: x", "X-HTTP-Method: DELETE",
            "X-MS-Client-Principal: x", "X-MS-Client-Principal-Name: root",
            "X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-HTTP-Method-Override: DELETE", "X-Method-Override: DELETE", "Proxy: evil:80",
        )
    ),
    *(
        dropped(f"{line.partition(':')[0]} is dropped", R.NAMES, line)
        for line in (
            "X_User_ID: root", "X-User_ID: root", "X.User.ID: root", "X!User!ID: root", "X~User~Role: admin", "X'Auth'User: root",
            "X|Real|IP: 6.6.6.6", "X_Forwarded_For: 6.6.6.6", "Content_Length: 99", "Transfer_Encoding: chunked", "Transfer.Encoding: chunked",
            "Transfer-%45ncoding: chunked", "X^Forwarded^Host: evil", "X`User`ID: root", "X#User#ID: root", "X$User: root", "X&User-ID: root",
            "X*User*ID: root", "X+User+ID: root", "X%User%ID: root",
        )
    ),
    good("X-Forwarded-For of a client", R.SPOOF, head("X-Forwarded-For: 6.6.6.6", "x-forwarded-for: 7.7.7.7"),
         Saw(f"{P}/x", lines=("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1"))),
    good("X-Real-IP of a client", R.SPOOF, head("X-Real-IP: 6.6.6.6"), Saw(f"{P}/x", lines=("X-Real-IP: 127.0.0.1",))),
    good("X-Forwarded-Proto of a client", R.SPOOF, head("X-Forwarded-Proto: https"), Saw(f"{P}/x", lines=("X-Forwarded-Proto: http",))),
    good("X-Forwarded-Host of a client", R.SPOOF, head("X-Forwarded-Host: evil"), Saw(f"{P}/x", lines=("X-Forwarded-Host: h",))),
    good("X-Forwarded-Port of a client", R.SPOOF, head("X-Forwarded-Port: 1"), Saw(f"{P}/x", lines=("X-Forwarded-Port: *",))),
    Case("a request id of a client", R.SPOOF, head("X-Request-ID: mine"), (Got(200),), (Saw(f"{P}/x", lines=("X-Request-ID: *",)),), is_open=True),
    kept("an address of the house does not help", R.SPOOF, head("X-Forwarded-For: 127.0.0.1", "X-User-ID: root", target=f"{PROTECTED}/x"), 401, "auth_missing"),
    kept("a token in the query is none", R.BEARER, head(target=f"{PROTECTED}/x?access_token=x"), 401, "auth_missing"),
    kept("a token in a cookie is none", R.BEARER, head("Cookie: token=x", target=f"{PROTECTED}/x"), 401, "auth_missing"),
    kept("Basic is another scheme", R.BEARER, head("Authorization: Basic eDp5", target=f"{PROTECTED}/x"), 401, "auth_missing"),
    kept("two tokens in one field", R.BEARER, head("Authorization: Bearer a, Bearer b", target=f"{PROTECTED}/x"), 400, "auth_malformed"),
    kept("a token of two words", R.BEARER, head("Authorization: Bearer a b", target=f"{PROTECTED}/x"), 400, "auth_malformed"),
    kept("no token after the scheme", R.BEARER, head("Authorization: Bearer", target=f"{PROTECTED}/x"), 400, "auth_malformed"),
    kept("a token of 8 bits", R.BEARER, head("Authorization: Bearer \xe4.\xe4.\xe4", target=f"{PROTECTED}/x"), 401, "auth_invalid.malformed"),
]  # fmt: skip

CASES = [*SYNTAX, *HOP, *IDENTITY]
