"""Cases: the request line, Host, and the forms of the target."""

from __future__ import annotations

from tests.conformance import rules as R
from tests.conformance.case import Case, Got, P, Saw, bad, good, head, kept

H = "\r\nHost: h\r\n\r\n"


def line(text: str) -> bytes:
    """A request whose first line is given."""
    return f"{text}{H}".encode("latin-1")


X = Saw(f"{P}/x")

REQUEST_LINE = [
    good("one empty line first", R.BLANK, b"\r\n" + head()),
    good("two empty lines first", R.BLANK, b"\r\n\r\n" + head()),
    good("an empty line between two", R.BLANK, head() + b"\r\n" + head(target=f"{P}/y"), X, Saw(f"{P}/y")),
    bad("a bare LF first", R.CRLF, b"\n" + head()),
    bad("a space first", R.LINE, b" " + head()),
    bad("a tab first", R.LINE, b"\t" + head()),
    bad("a NUL first", R.LINE, b"\0" + head()),
    bad("a CR and a letter first", R.BARE_CR, b"\r" + head()),
    bad("two spaces after the method", R.LINE, line(f"GET  {P}/x HTTP/1.1")),
    bad("two spaces before the version", R.LINE, line(f"GET {P}/x  HTTP/1.1")),
    bad("a space after the version", R.LINE, line(f"GET {P}/x HTTP/1.1 ")),
    bad("words after the version", R.LINE, line(f"GET {P}/x HTTP/1.1 and more")),
    bad("tabs between the parts", R.LINE, line(f"GET\t{P}/x\tHTTP/1.1")),
    bad("a form feed between the parts", R.LINE, line(f"GET\x0c{P}/x HTTP/1.1")),
    bad("a no-break space between the parts", R.LINE, line(f"GET\xa0{P}/x HTTP/1.1")),
    bad("no version", R.LINE, line(f"GET {P}/x")),
    bad("no version, and no more", R.LINE, f"GET {P}/x\r\n\r\n".encode()),
    bad("no target", R.LINE, line("GET HTTP/1.1")),
    bad("no method", R.LINE, line(f"{P}/x HTTP/1.1")),
    bad("only a method", R.LINE, line("GET")),
    bad("a space in the target", R.LINE, line(f"GET {P}/x y HTTP/1.1")),
    bad("a second request line in the target", R.LINE, line(f"GET {P}/x HTTP/1.1 HTTP/1.1")),
    bad("a bare CR in the line", R.BARE_CR, line(f"GET {P}/x\r HTTP/1.1")),
    bad("a bare CR ends the line", R.BARE_CR, f"GET {P}/x HTTP/1.1\rHost: h\r\n\r\n".encode()),
    bad("a bare LF ends the line", R.CRLF, f"GET {P}/x HTTP/1.1\nHost: h\r\n\r\n".encode()),
    bad("a bare LF in the line", R.CRLF, line(f"GET {P}/x\nHTTP/1.1")),
    bad("garbage", R.LINE, b"\x01\x02\x03\r\n\r\n"),
    bad("a TLS hello", R.LINE, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    bad("a reply for a request", R.LINE, b"HTTP/1.1 200 OK\r\nHost: h\r\n\r\n"),
    # versions
    bad("HTTP/1.2", R.MINOR, head(version="1.2"), 505, "version_unsupported"),
    bad("HTTP/1.9", R.MINOR, head(version="1.9"), 505, "version_unsupported"),
    bad("HTTP/0.9", R.VERSION, head(version="0.9"), 505, "version_unsupported"),
    bad("HTTP/2.0", R.VERSION, head(version="2.0"), 505, "version_unsupported"),
    bad("HTTP/3.0", R.VERSION, head(version="3.0"), 505, "version_unsupported"),
    bad("HTTP/0.0", R.VERSION, head(version="0.0"), 505, "version_unsupported"),
    bad("the preface of HTTP/2", R.PREFACE, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version_unsupported"),
    bad("lower-case http", R.VERSION_CASE, line(f"GET {P}/x http/1.1")),
    bad("HTTPS for HTTP", R.VERSION_CASE, line(f"GET {P}/x HTTPS/1.1")),
    bad("a version of one digit", R.VERSION_CASE, line(f"GET {P}/x HTTP/1")),
    bad("a version of two minor digits", R.VERSION_CASE, line(f"GET {P}/x HTTP/1.10")),
    bad("a version of two major digits", R.VERSION_CASE, line(f"GET {P}/x HTTP/11.1")),
    bad("zeros before the version", R.VERSION_CASE, line(f"GET {P}/x HTTP/01.01")),
    bad("a space in the version", R.VERSION_CASE, line(f"GET {P}/x HTTP/ 1.1")),
    bad("a comma in the version", R.VERSION_CASE, line(f"GET {P}/x HTTP/1,1")),
    bad("a version beyond 32 bits", R.VERSION_CASE, line(f"GET {P}/x HTTP/4294967297.1")),
    # methods
    good("an unknown method", R.METHOD, head(method="BREW"), Saw(f"{P}/x", "BREW")),
    good("a method of upper-case letters and signs", R.METHOD, head(method="M-SEARCH"), Saw(f"{P}/x", "M-SEARCH")),
    *(
        bad(f"method {method!r}", R.METHOD_CASE, head(method=method), 501, "not_implemented")
        for method in ("get", "Post", "heaD", "connect", "trace", "brew", "-", "9")
    ),
    good("a method of every sign", R.METHOD, head(method="A!#$%&'*+-.^_`|~9"), Saw(f"{P}/x", "A!#$%&'*+-.^_`|~9")),
    bad("a method with a bracket", R.METHOD, head(method="G(T")),
    bad("a method with a slash", R.METHOD, head(method="G/T")),
    bad("a method with a colon", R.METHOD, head(method="GET:")),
    bad("a method of 8 bits", R.METHOD, head(method="G\xcbT")),
    bad("CONNECT", R.NO_CONNECT, head(target="h:80", method="CONNECT"), 501, "not_implemented"),
    bad("CONNECT of a path", R.NO_CONNECT, head(method="CONNECT"), 501, "not_implemented"),
    bad("TRACE", R.NO_TRACE, head(method="TRACE"), 501, "not_implemented"),
    bad("TRACE with a body", R.NO_TRACE, head("Content-Length: 2", method="TRACE") + b"ok", 501, "not_implemented"),
    # lengths
    bad("a target longer than the limit", R.TARGET_LENGTH, head(target=f"{P}/" + "a" * 9000), 414, "uri_too_long"),
    bad("a target without end", R.TARGET_LENGTH, b"GET /" + b"a" * 20_000, 414, "uri_too_long"),
    bad("a query longer than the limit", R.TARGET_LENGTH, head(target=f"{P}/x?" + "a" * 9000), 414, "uri_too_long"),
    good("a target of 8000", R.TARGET_8000, head(target=f"{P}/" + "a" * 7986), Saw(f"{P}/" + "a" * 7986)),
]

FORMS = [
    bad("no slash", R.ORIGIN_FORM, head(target="api/v1/auth/x")),
    bad("a fragment", R.ORIGIN_FORM, head(target=f"{P}/x#y")),
    bad("a fragment in the query", R.ORIGIN_FORM, head(target=f"{P}/x?a#y")),
    bad("only a query", R.ORIGIN_FORM, head(target="?a")),
    bad("an at first", R.ORIGIN_FORM, head(target=f"@evil{P}/x")),
    bad("authority form", R.AUTHORITY_FORM, head(target="h:80")),
    bad("star with GET", R.ASTERISK, head(target="*")),
    bad("star and more with OPTIONS", R.ASTERISK, head(target="*/x", method="OPTIONS")),
    Case(
        "star with OPTIONS", R.ASTERISK, head(target="*", method="OPTIONS"), (Got(204, method="OPTIONS"),), is_open=True
    ),
    good("absolute form", R.ABSOLUTE, head(target=f"http://h{P}/x")),
    good("absolute form of https", R.ABSOLUTE, head(target=f"https://h{P}/x")),
    good("absolute form in capitals", R.ABSOLUTE, head(target=f"HTTP://H{P}/x")),
    good("absolute form with a port", R.ABSOLUTE, head(target=f"http://h:8000{P}/x")),
    good("absolute form of an address", R.ABSOLUTE, head(target=f"http://[::1]:80{P}/x")),
    good(
        "absolute form beats Host",
        R.ABSOLUTE,
        head(target=f"http://other{P}/x", host="Host: admin.internal"),
        Saw(f"{P}/x", lines=("X-Forwarded-Host: other",)),
    ),
    good("absolute form is normalised", R.ABSOLUTE, head(target=f"http://h{P}/y/../x")),
    kept("absolute form without a path", R.ABSOLUTE, head(target="http://h"), 404, "no_route"),
    kept("absolute form with a query only", R.ABSOLUTE, head(target="http://h?x"), 404, "no_route"),
    bad("absolute form, Host malformed", R.ABSOLUTE, head(target=f"http://h{P}/x", host="Host: a/b")),
    bad("absolute form, no Host", R.ABSOLUTE, head(target=f"http://h{P}/x", host="")),
    bad("absolute form, two Hosts", R.ABSOLUTE, head("Host: h", target=f"http://h{P}/x")),
    bad("absolute form of another scheme", R.ABSOLUTE_SCHEME, head(target=f"ftp://h{P}/x")),
    bad("absolute form of a file", R.ABSOLUTE_SCHEME, head(target="file:///etc/passwd")),
    bad("absolute form of h2", R.ABSOLUTE_SCHEME, head(target=f"h2c://h{P}/x")),
    bad("absolute form with user", R.USERINFO, head(target=f"http://u:p@h{P}/x")),
    bad("absolute form with an at", R.USERINFO, head(target=f"http://h@evil{P}/x")),
    bad("absolute form without host", R.ABSOLUTE, head(target=f"http://{P}/x")),
    bad("absolute form of a port", R.ABSOLUTE, head(target=f"http://:80{P}/x")),
    bad("absolute form with one slash", R.ABSOLUTE, head(target=f"http:/h{P}/x")),
    bad("absolute form with a backslash", R.ABSOLUTE, head(target=f"http://h\\@evil{P}/x")),
    bad("absolute form with an escaped host", R.ABSOLUTE, head(target=f"http://h%2eevil{P}/x")),
    kept("an authority after two slashes is a path", R.SLASHES, head(target=f"//evil{P}/x"), 404, "no_route"),
    kept("a URL in a path is a path", R.SLASHES, head(target=f"/http://evil{P}/x"), 404, "no_route"),
]

HOSTS = [
    bad("no Host", R.HOST, head(host="")),
    bad("two Hosts", R.HOST, head("Host: h")),
    bad("two different Hosts", R.HOST, head("Host: evil")),
    bad("two Hosts in two cases", R.HOST, head("hOST: h")),
    bad("empty Host", R.HOST, head(host="Host: ")),
    bad("Host with a path", R.HOST, head(host="Host: a/b")),
    bad("Host with user", R.HOST, head(host="Host: a@b")),
    bad("Host with a space", R.HOST, head(host="Host: a b")),
    bad("Host with a tab", R.HOST, head(host="Host: a\tb")),
    bad("Host with a comma", R.HOST, head(host="Host: a,b")),
    bad("Host with a query", R.HOST, head(host="Host: a?b")),
    bad("Host with a fragment", R.HOST, head(host="Host: a#b")),
    bad("Host with a backslash", R.HOST, head(host="Host: a\\b")),
    bad("Host with an escape", R.HOST, head(host="Host: a%2eb")),
    bad("Host of 8 bits", R.HOST, head(host="Host: \xe4")),
    bad("Host with a NUL", R.CONTROLS, head(host="Host: a\0b")),
    bad("Host with a scheme", R.HOST, head(host="Host: http://h")),
    bad("Host with six digits of port", R.HOST, head(host="Host: a:123456")),
    bad("Host with a port in words", R.HOST, head(host="Host: a:http")),
    bad("Host with two ports", R.HOST, head(host="Host: a:80:80")),
    bad("Host of a port", R.HOST, head(host="Host: :80")),
    bad("Host with half a bracket", R.HOST, head(host="Host: [::1")),
    bad("Host with a bracket and more", R.HOST, head(host="Host: [::1]evil")),
    bad("Host folded", R.FOLD, head(host="Host: h\r\n .evil")),
    good("Host of an address", R.HOST_OK, head(host="Host: [::1]:8000"), Saw(f"{P}/x", lines=("X-Forwarded-Host: [::1]:8000",))),
    good("Host with an empty port", R.HOST_OK, head(host="Host: h:")),
    good("Host last", R.HOST_OK, head("X: 1", "hOsT:h", host="")),
    good("Host with a last dot", R.HOST_OK, head(host="Host: h.")),
    good("the upstream's own name goes on", R.HOST_OK, head(host="Host: evil.test"), Saw(f"{P}/x", lines=("X-Forwarded-Host: evil.test",))),
    good("HTTP/1.0 without Host", R.HOST_10, head(host="", version="1.0"), Saw(f"{P}/x", lacks=("x-forwarded-host",)), is_open=False),
    bad("HTTP/1.0 with two Hosts", R.HOST, head("Host: h", version="1.0")),
    bad("HTTP/1.0 with a malformed Host", R.HOST, head(host="Host: a/b", version="1.0")),
]  # fmt: skip

CASES = [*REQUEST_LINE, *FORMS, *HOSTS]
