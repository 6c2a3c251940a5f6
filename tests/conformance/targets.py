"""Cases: paths. What is matched is what is forwarded, and no spelling goes round what a route asks for."""

from __future__ import annotations

from tests.conformance import rules as R
from tests.conformance.case import PROTECTED, Case, Got, P, Saw, bad, good, head, kept


def becomes(rule: R.Rule, given: str, seen: str) -> Case:
    return good(f"{given} is {seen}", rule, head(target=given), Saw(seen))


def refused(rule: R.Rule, given: str) -> Case:
    return bad(f"path {given}", rule, head(target=given))


def asks_for_a_token(given: str) -> Case:
    return kept(f"{given} needs a token", R.GUARDED, head(target=given), 401, "auth_missing")


NORMAL = [
    *(
        becomes(R.NORMAL, given, seen)
        for given, seen in (
            (f"{P}/%41", f"{P}/A"), (f"{P}/%7e", f"{P}/~"), (f"{P}/%2D%2e%5F", f"{P}/-._"), (f"{P}/%e4", f"{P}/%E4"), (f"{P}/%c3%a4", f"{P}/%C3%A4"),
            (f"{P}/./x", f"{P}/x"), (f"{P}/y/../x", f"{P}/x"), (f"{P}/%2e/x", f"{P}/x"), (f"{P}/y/%2E%2e/x", f"{P}/x"), (f"{P}/y/.%2e/x", f"{P}/x"),
            (f"{P}/x/.", f"{P}/x/"), (f"{P}/x/y/..", f"{P}/x/"), (f"{P}/a/b/c/../../../x", f"{P}/x"), ("/api/v1/content/../auth/x", f"{P}/x"),
            (f"{P}/%25", f"{P}/%25"), (f"{P}/%3B", f"{P}/%3B"), (f"{P}/%3a%40%21", f"{P}/%3A%40%21"), (f"{P}/%20", f"{P}/%20"), (P, P), (f"{P}/", f"{P}/"),
            (f"{P}/x/", f"{P}/x/"), (f"{P}/a;b=c", f"{P}/a;b=c"), (f"{P}/a;b/c;d", f"{P}/a;b/c;d"), (f"{P}/.well-known", f"{P}/.well-known"),
            (f"{P}/..x/x..", f"{P}/..x/x.."), (f"{P}/!$&'()*+,=:@~|{{}}", f"{P}/!$&'()*+,=:@~|{{}}"), (f"{P}/%2541", f"{P}/%2541"),
        )
    ),
    *(
        becomes(R.SLASHES, given, seen)
        for given, seen in ((f"{P}//x", f"{P}/x"), (f"/{P}/x", f"{P}/x"), (f"//{P}///x", f"{P}/x"), (f"{P}/x//", f"{P}/x/"), (f"{P}/y//../x", f"{P}/x"))
    ),
    *(
        becomes(R.QUERY, target, target)
        for target in (f"{P}/x?", f"{P}/x?a=/../b&c=%2F", f"{P}/x?\"<>^`", f"{P}/x??", f"{P}/x?%zz%0d%0aSet-Cookie:%20a=b", f"{P}/x?a=%00", f"{P}/x?//;/..")
    ),
]  # fmt: skip

REFUSED = [
    *(refused(R.ESCAPES, f"{P}/{path}") for path in ("%", "%4", "%zz", "%u002e", "%-1", "x%", '"', "<", ">", "^", "`", "\\..\\x", "%%41")),
    bad("path of 8 bits", R.ESCAPES, head(target=f"{P}/\xe4")),
    bad("path with DEL", R.ESCAPES, head(target=f"{P}/\x7f")),
    bad("path with a NUL", R.ESCAPES, head(target=f"{P}/x\0")),
    *(refused(R.ESCAPED_CONTROL, f"{P}/{path}") for path in ("%00", "x%00.html", "%0d%0a", "%0aX-User-ID:%20root", "%7f", "%09", "%1b")),
    *(refused(R.ROOT, path) for path in ("/..", "/../api/v1/auth/x", f"{P}/../../../../x", "/%2e%2e/x", "/./../x", f"{P}/x/../../../../../..")),
    *(
        refused(R.HIDDEN, f"{P}/{path}")
        for path in (
            "..;/x", "..;a=b/x", ".;a/x", "%2e%2e;/x", "..%3b/x", ".%2e%3B/x", "x%2Fy", "x%2fy", "x%5cy", "%2f..%2fx", "..%2f", "..%5c..%5cx", "x%252Fy", "x%25252fy", "%252e%252e/x",
            "%252e%252e%252fx", "%c0%ae%c0%ae/x", "%C0%AFx", "%c1%9cx", "%e0%80%afx", "%f0%80%80%af", "..%20/x", "%20../x", ".../x", ";/x", ";a=b/x", "%3b/x", "%20/x", "..%c0%af",
        )
    ),
]  # fmt: skip

ROUTES = [
    kept("no route", R.NO_ROUTE, head(target="/nowhere"), 404, "no_route"),
    kept("the root", R.NO_ROUTE, head(target="/"), 404, "no_route"),
    kept("no segment border", R.SEGMENTS, head(target=f"{P}x"), 404, "no_route"),
    kept("a segment border that is escaped", R.SEGMENTS, head(target=f"{P}%3Fx"), 404, "no_route"),
    kept("a parameter of a literal", R.SEGMENTS, head(target=f"{P};x/y"), 404, "no_route"),
    kept("another case", R.SEGMENTS, head(target="/API/v1/auth/x"), 404, "no_route"),
    kept("half of the prefix", R.SEGMENTS, head(target="/api/v1"), 404, "no_route"),
    *(
        asks_for_a_token(path)
        for path in (
            f"{PROTECTED}/x", PROTECTED, f"{PROTECTED}/", f"{PROTECTED}?x", f"{P}/../content/x", f"{P}/%2e%2e/content/x", f"{P}/x/../../content/x", f"{P}/;x/../../content/x",
            "//api//v1//content/x", "/%61pi/v1/con%74ent/x", "/api/v1/auth/./.././content/x", f"{PROTECTED};/../content/x", "/guarded/closed/x", "/guarded//closed/x",
            "/guarded/%63losed/x", "/guarded/open/../closed/x",
        )
    ),
    *(
        refused(R.GUARDED, path)
        for path in (
            "/guarded/closed;a/x", "/guarded/closed%3ba/x", "/guarded/CLOSED/x", "/guarded/%43losed/x", "/guarded/open/%2e%2e/closed;/x", "/guarded/closed./x",
            "/guarded/closed%20/x", "/guarded/cl%256fsed/x", "/guarded/closed;/x", "/guarded/%2563losed", "/guarded/Closed/",
        )
    ),
    good("a stricter route's neighbour", R.GUARDED, head(target="/guarded/closed-not/X"), Saw("/guarded/closed-not/X")),
    good("a public path in capitals", R.GUARDED, head(target="/guarded/OPEN;a/x"), Saw("/guarded/OPEN;a/x")),
    Case("a method that the path has not", R.ALLOW, head(target="/only-get", method="PUT"), (Got(405, "method_not_allowed"),), is_open=True),
    Case("OPTIONS asks what there is", R.ALLOW, head(target="/only-get", method="OPTIONS"), (Got(204, method="OPTIONS"),), is_open=True),
]  # fmt: skip

CASES = [*NORMAL, *REFUSED, *ROUTES]
