"""CORS: the Fetch standard's algorithm from the server's side, as values: a policy and a request give a verdict and lines.

A row tells all lines that the reply gets, so a line too many is as much a fault as one that is missing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.errors import ConfigurationError, Reason, Refusal
from engadi_gateway.model import CorsPolicy
from engadi_gateway.pipeline.cors import Cors, cors_faults
from engadi_gateway.pipeline.exchange import Exchange
from tests.exchanges import exchange_of, head_of
from tests.fakes import Seen, Wire, upstream
from tests.harness import ask, running, token

APP = "https://app.example"
BASE = CorsPolicy(enabled=True, allow_origins=(APP, "http://localhost:3000"), expose_headers=("X-Request-ID",))
CREDENTIALS = replace(BASE, allow_credentials=True)
PATTERN = replace(BASE, allow_origins=("https://*.example.com",))
EVERYBODY = replace(BASE, allow_origins=("*",))
STRICT = replace(BASE, reject_denied_origin=True)
ALL_METHODS = replace(BASE, allow_methods=("*",))
ALL_HEADERS = replace(BASE, allow_headers=("*",))
ALL_BUT_NAMED = replace(BASE, allow_headers=("*", "Authorization"))
READERS = replace(BASE, allow_methods=("PUT",), allow_headers=(), expose_headers=())

VARY = "Vary: Origin"
PREFLIGHT_VARY = "Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
ALLOW = f"Access-Control-Allow-Origin: {APP}"
ALLOW_ALL = "Access-Control-Allow-Origin: *"
TRUE = "Access-Control-Allow-Credentials: true"
EXPOSE = "Access-Control-Expose-Headers: X-Request-ID"
AGE = "Access-Control-Max-Age: 600"
METHODS = "Access-Control-Allow-Methods: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
HEADERS = "Access-Control-Allow-Headers: Authorization, Content-Type, X-Request-ID"

NO_ROUTE = Refusal(Reason.NO_ROUTE)
WRONG_METHOD = Refusal(Reason.METHOD_NOT_ALLOWED)
YES, NO = Reason.PREFLIGHT, Reason.PREFLIGHT_DENIED


def an_exchange(
    origin: str | None = APP,
    *,
    method: str = "GET",
    asks: str | None = None,
    headers: str | None = None,
    **facts: Any,
) -> Exchange:
    """A request with this Origin; `asks` makes it a preflight for that method, `headers` are what it wants to send."""
    values = {"origin": origin, "access-control-request-method": asks, "access-control-request-headers": headers}
    notes = {name.encode(): value.encode("latin-1") for name, value in values.items() if value is not None}
    head = head_of("OPTIONS" if asks is not None else method, notes=notes, upgrade=facts.pop("upgrade", b""))
    head.authority = facts.pop("authority", head.authority)
    return exchange_of(head, **facts)


def decided(policy: CorsPolicy, exchange: Exchange) -> tuple[Reason | None, list[str]]:
    refusal = Cors(policy).decide(exchange)
    lines = [line.decode() for block in exchange.reply_lines for line in block.split(b"\r\n")]
    return None if refusal is None else refusal.reason, lines


ROWS: dict[str, tuple[CorsPolicy, dict[str, Any], Reason | None, list[str]]] = {
    # off
    "off: a request": (replace(BASE, enabled=False), {}, None, []),
    "off: a preflight": (replace(BASE, enabled=False), {"asks": "PUT"}, None, []),
    "off: a WebSocket of a stranger": (replace(BASE, enabled=False), {"origin": "https://x.y", "upgrade": b"ws"}, None, []),
    # the actual request
    "an allowed origin is echoed": (BASE, {}, None, [VARY, ALLOW, EXPOSE]),
    "another allowed origin is echoed": (
        BASE, {"origin": "http://localhost:3000"}, None,
        [VARY, "Access-Control-Allow-Origin: http://localhost:3000", EXPOSE],
    ),
    "credentials are said beside the echo": (CREDENTIALS, {}, None, [VARY, ALLOW, TRUE, EXPOSE]),
    "credentials are not said to strangers": (CREDENTIALS, {"origin": "https://x.example"}, None, [VARY]),
    "no Origin, yet caches must know": (BASE, {"origin": None}, None, [VARY]),
    "a denied origin, yet caches must know": (BASE, {"origin": "https://evil.example"}, None, [VARY]),
    "nothing to expose": (READERS, {}, None, [VARY, ALLOW]),
    "a POST is forwarded too": (BASE, {"method": "POST", "origin": "https://evil.example"}, None, [VARY]),
    # everybody: the same answer to all, so nothing varies
    "everybody gets the star": (EVERYBODY, {}, None, [ALLOW_ALL, EXPOSE]),
    "everybody without Origin": (EVERYBODY, {"origin": None}, None, []),
    "everybody is even null": (EVERYBODY, {"origin": "null"}, None, [ALLOW_ALL, EXPOSE]),
    "everybody by WebSocket": (EVERYBODY, {"origin": "https://x.example", "upgrade": b"websocket"}, None, [ALLOW_ALL, EXPOSE]),
    # what is not an allowed origin
    "null is not": (BASE, {"origin": "null"}, None, [VARY]),
    "null is not by a pattern": (PATTERN, {"origin": "null"}, None, [VARY]),
    "an empty one is not": (BASE, {"origin": ""}, None, [VARY]),
    # our own refusals carry the lines: a 404 without them is a false "CORS error"
    "a refusal before us": (CREDENTIALS, {"refusal": NO_ROUTE}, None, [VARY, ALLOW, TRUE, EXPOSE]),
    "a refusal before us, a stranger": (BASE, {"refusal": NO_ROUTE, "origin": "https://x.example"}, None, [VARY]),
    "a refusal is not ours to replace": (STRICT, {"refusal": NO_ROUTE, "origin": "https://x.example"}, None, [VARY]),
    # reject_denied_origin
    "strict: a stranger": (STRICT, {"origin": "https://evil.example"}, NO, [VARY]),
    "strict: null": (STRICT, {"origin": "null"}, NO, [VARY]),
    "strict: the allowed": (STRICT, {}, None, [VARY, ALLOW, EXPOSE]),
    "strict: no browser": (STRICT, {"origin": None}, None, [VARY]),
    "strict: our own page": (STRICT, {"origin": "https://api.example"}, None, [VARY]),
    "strict: our own page, host in capitals": (
        STRICT, {"origin": "https://api.example", "authority": b"API.Example"}, None, [VARY]),
    "strict: our own page, port and all": (
        STRICT, {"origin": "http://api.example:8000", "authority": b"api.example:8000"}, None, [VARY]),
    "strict: our host on another port": (
        STRICT, {"origin": "http://api.example:9000", "authority": b"api.example:8000"}, NO, [VARY]),
    "strict: a host that ends like ours": (STRICT, {"origin": "https://not-api.example"}, NO, [VARY]),
    "strict: null is not the host of a request without one": (STRICT, {"origin": "null", "authority": b""}, NO, [VARY]),
    # WebSocket: no CORS protects it, so its Origin is always looked at (RFC 6455 section 10.2)
    "websocket: a stranger": (BASE, {"origin": "https://evil.example", "upgrade": b"websocket"}, NO, [VARY]),
    "websocket: null": (BASE, {"origin": "null", "upgrade": b"websocket"}, NO, [VARY]),
    "websocket: the allowed": (BASE, {"upgrade": b"websocket"}, None, [VARY, ALLOW, EXPOSE]),
    "websocket: no browser": (BASE, {"origin": None, "upgrade": b"websocket"}, None, [VARY]),
    "websocket: our own page": (BASE, {"origin": "https://api.example", "upgrade": b"websocket"}, None, [VARY]),
    # the preflight
    "preflight": (BASE, {"asks": "PUT"}, YES, [PREFLIGHT_VARY, ALLOW, AGE, METHODS]),
    "preflight with headers": (
        BASE, {"asks": "PUT", "headers": "authorization,content-type"}, YES,
        [PREFLIGHT_VARY, ALLOW, AGE, METHODS, HEADERS]),
    "preflight with credentials": (
        CREDENTIALS, {"asks": "PUT"}, YES, [PREFLIGHT_VARY, ALLOW, TRUE, AGE, METHODS]),
    "preflight kept as long as was said": (
        replace(BASE, max_age=7), {"asks": "PUT"}, YES,
        [PREFLIGHT_VARY, ALLOW, "Access-Control-Max-Age: 7", METHODS]),
    "preflight never kept": (
        replace(BASE, max_age=0), {"asks": "PUT"}, YES,
        [PREFLIGHT_VARY, ALLOW, "Access-Control-Max-Age: 0", METHODS]),
    "preflight of everybody": (EVERYBODY, {"asks": "PUT"}, YES, [PREFLIGHT_VARY, ALLOW_ALL, AGE, METHODS]),
    "preflight of a stranger": (BASE, {"asks": "PUT", "origin": "https://evil.example"}, NO, [PREFLIGHT_VARY]),
    "preflight of null": (BASE, {"asks": "PUT", "origin": "null"}, NO, [PREFLIGHT_VARY]),
    "preflight for a method that is not allowed": (BASE, {"asks": "PROPFIND"}, NO, [PREFLIGHT_VARY]),
    "methods are case-sensitive": (BASE, {"asks": "put"}, NO, [PREFLIGHT_VARY]),
    "GET needs no permission": (
        READERS, {"asks": "GET"}, YES, [PREFLIGHT_VARY, ALLOW, AGE, "Access-Control-Allow-Methods: PUT"]),
    "HEAD needs no permission": (
        READERS, {"asks": "HEAD"}, YES, [PREFLIGHT_VARY, ALLOW, AGE, "Access-Control-Allow-Methods: PUT"]),
    "POST needs no permission": (
        READERS, {"asks": "POST"}, YES, [PREFLIGHT_VARY, ALLOW, AGE, "Access-Control-Allow-Methods: PUT"]),
    "DELETE does": (READERS, {"asks": "DELETE"}, NO, [PREFLIGHT_VARY]),
    "the star names the method that was asked about": (
        ALL_METHODS, {"asks": "PROPFIND"}, YES,
        [PREFLIGHT_VARY, ALLOW, AGE, "Access-Control-Allow-Methods: PROPFIND"]),
    "the star is no leave for nonsense": (ALL_METHODS, {"asks": "GET, PUT"}, NO, [PREFLIGHT_VARY]),
    "a header that is not allowed": (BASE, {"asks": "PUT", "headers": "content-type,x-other"}, NO, [PREFLIGHT_VARY]),
    "header names have no case": (
        BASE, {"asks": "PUT", "headers": "Content-TYPE"}, YES, [PREFLIGHT_VARY, ALLOW, AGE, METHODS, HEADERS]),
    "white space around header names": (
        BASE, {"asks": "PUT", "headers": "authorization ,\tcontent-type"}, YES,
        [PREFLIGHT_VARY, ALLOW, AGE, METHODS, HEADERS]),
    "empty header names are none": (
        BASE, {"asks": "PUT", "headers": "content-type,,"}, YES, [PREFLIGHT_VARY, ALLOW, AGE, METHODS, HEADERS]),
    "no headers asked for, none named": (BASE, {"asks": "PUT", "headers": ""}, YES, [PREFLIGHT_VARY, ALLOW, AGE, METHODS]),
    "no header is allowed": (READERS, {"asks": "PUT", "headers": "content-type"}, NO, [PREFLIGHT_VARY]),
    "the star names the headers that were asked about": (
        ALL_HEADERS, {"asks": "PUT", "headers": "x-a,x-b"}, YES,
        [PREFLIGHT_VARY, ALLOW, AGE, METHODS, "Access-Control-Allow-Headers: x-a,x-b"]),
    "the star leaves out Authorization": (
        ALL_HEADERS, {"asks": "PUT", "headers": "authorization,x-a"}, NO, [PREFLIGHT_VARY]),
    "in any spelling": (ALL_HEADERS, {"asks": "PUT", "headers": "AUTHORIZATION"}, NO, [PREFLIGHT_VARY]),
    "unless it is named beside it": (
        ALL_BUT_NAMED, {"asks": "PUT", "headers": "authorization"}, YES,
        [PREFLIGHT_VARY, ALLOW, AGE, METHODS, "Access-Control-Allow-Headers: authorization"]),
    "the star is no leave for nonsense in headers": (
        ALL_HEADERS, {"asks": "PUT", "headers": "x-a;x-b"}, NO, [PREFLIGHT_VARY]),
    "strict and a preflight": (STRICT, {"asks": "PUT"}, YES, [PREFLIGHT_VARY, ALLOW, AGE, METHODS]),
    # preflights for what does not exist
    "preflight for a 404": (BASE, {"asks": "PUT", "refusal": NO_ROUTE}, None, [PREFLIGHT_VARY, ALLOW, EXPOSE]),
    "preflight of a stranger for a 404": (
        BASE, {"asks": "PUT", "refusal": NO_ROUTE, "origin": "https://x.example"}, None, [PREFLIGHT_VARY]),
    "preflight for a 405: what follows will say it": (
        BASE, {"asks": "PUT", "refusal": WRONG_METHOD}, YES, [PREFLIGHT_VARY, ALLOW, AGE, METHODS]),
    # what is no preflight
    "OPTIONS that asks nothing": (BASE, {"method": "OPTIONS"}, None, [VARY, ALLOW, EXPOSE]),
    "OPTIONS that asks for nothing": (BASE, {"asks": ""}, None, [VARY, ALLOW, EXPOSE]),
    "OPTIONS without Origin": (BASE, {"asks": "PUT", "origin": None}, None, [VARY]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_policy_and_a_request_give_a_verdict_and_lines(name: str) -> None:
    policy, facts, want, lines = ROWS[name]
    assert decided(policy, an_exchange(**facts)) == (want, lines)


def by_expression(policy: CorsPolicy, origin: str) -> bool:
    """What a wildcard means, one after the other: a label or more, anchored at both ends."""
    label = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
    expressions = [
        re.escape(scheme) + rf"{label}(?:\.{label})*" + re.escape(rest)
        for scheme, rest in (allowed.split("*") for allowed in policy.allow_origins)
    ]
    return any(re.fullmatch(expression, origin) for expression in expressions)


@given(
    st.lists(st.sampled_from(["a", "b-c", "-", "example", "com", "evil", "", "A", "x:8443", "*"]), max_size=6),
    st.sampled_from(["https://", "http://", "https:", ""]),
)
def test_wildcards_are_found_as_their_expression_finds_them(labels: list[str], scheme: str) -> None:
    names = ("https://*.example.com", "https://*.a.example.com", "http://*.com", "https://*.example.x:8443")
    policy = replace(BASE, allow_origins=names)
    origin = scheme + ".".join(labels)
    assert Cors(policy).allows_origin(origin) == by_expression(policy, origin)


def test_an_origin_that_no_host_can_have_is_nobodys_and_is_not_looked_through() -> None:
    assert Cors(PATTERN).allows_origin("https://" + "a." * 120 + "example.com")
    assert not Cors(PATTERN).allows_origin("https://" + "a." * 7_000 + "example.com")


def test_a_get_that_names_a_method_is_no_preflight() -> None:
    exchange = an_exchange("https://evil.example")
    exchange.head.notes[b"access-control-request-method"] = b"PUT"
    assert decided(BASE, exchange) == (None, [VARY])


# origins, exact and by pattern


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example", "https://app.example:8443", "https://app.example/", "https://app.example:443",
        "https://APP.example", "https://app.example.evil.test", "https://evil.app.example", "https://app-example",
        "app.example", "https://", "https://app.example https://x.example", " https://app.example", "*",
    ],
)  # fmt: skip
def test_nothing_but_the_very_same_origin(origin: str) -> None:
    assert not Cors(BASE).allows_origin(origin)
    assert Cors(BASE).allows_origin(APP)


@pytest.mark.parametrize("origin", ["https://a.example.com", "https://a.b.example.com", "https://a-1.x_y.example.com"])
def test_a_pattern_stands_for_one_label_or_more(origin: str) -> None:
    assert Cors(PATTERN).allows_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com", "https://.example.com", "https://evilexample.com", "https://evil-example.com",
        "https://evil.test/.example.com", "https://evil.test#.example.com", "https://evil.test?.example.com",
        "https://evil.test:1.example.com", "https://u@a.example.com", "https://a..example.com",
        "https://-a.example.com", "https://a.example.com.evil.test", "https://a.example.com:444",
        "https://a.example.comm", "https://aXexample.com", "https://a.exampleXcom", "https://a.example.com\n",
        "\nhttps://a.example.com", "http://a.example.com", "xhttps://a.example.com", "https://A.example.com",
        "https://\u00e4.example.com", "https://*.example.com",
    ],
)  # fmt: skip
def test_a_pattern_stands_for_nothing_else(origin: str) -> None:
    assert not Cors(PATTERN).allows_origin(origin)


def test_a_pattern_keeps_its_port() -> None:
    cors = Cors(replace(BASE, allow_origins=("https://*.example.com:8443",)))
    assert cors.allows_origin("https://a.example.com:8443")
    assert not cors.allows_origin("https://a.example.com")


@given(st.text(alphabet="ahtps:/.*@#?-_e xmplco\x00", max_size=40))
def test_what_a_pattern_allows_is_an_origin_below_its_name(text: str) -> None:
    for origin in (text, f"https://{text}example.com", f"https://{text}.example.com"):
        if Cors(PATTERN).allows_origin(origin):
            host = origin.removeprefix("https://")
            assert host.endswith(".example.com")
            labels = host.split(".")
            assert len(labels) > 2
            assert all(label.strip("-") == label and label for label in labels)
            assert not set(host) & set("/:@#?* \x00")


# policies that cannot be meant


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the default": ({}, []),
    "good ones": ({"allow_origins": (APP, "https://*.example.com", "http://[::1]:3000", "http://127.0.0.1")}, []),
    "an app's own scheme": ({"allow_origins": ("capacitor://localhost", "chrome-extension://abcdef")}, []),
    "a last slash": ({"allow_origins": (APP, APP + "/")}, ["/allow_origins/1"]),
    "a path": ({"allow_origins": ("https://a.example/x",)}, ["/allow_origins/0"]),
    "capitals": ({"allow_origins": ("https://App.example",)}, ["/allow_origins/0"]),
    "no scheme": ({"allow_origins": ("app.example",)}, ["/allow_origins/0"]),
    "https's own port": ({"allow_origins": ("https://a.example:443",)}, ["/allow_origins/0"]),
    "http's own port": ({"allow_origins": ("http://a.example:80",)}, ["/allow_origins/0"]),
    "the other's port": ({"allow_origins": ("http://a.example:443", "https://a.example:80")}, []),
    "null": ({"allow_origins": ("null",)}, ["/allow_origins/0"]),
    "a star in the middle": ({"allow_origins": ("https://a.*.example",)}, ["/allow_origins/0"]),
    "a star in a label": ({"allow_origins": ("https://a*.example.com", "https://*example.com")}, ["/allow_origins/0", "/allow_origins/1"]),
    "a star for the scheme": ({"allow_origins": ("*://a.example",)}, ["/allow_origins/0"]),
    "a star for all hosts": ({"allow_origins": ("https://*",)}, ["/allow_origins/0"]),
    "two stars": ({"allow_origins": ("https://*.*.example",)}, ["/allow_origins/0"]),
    "a user": ({"allow_origins": ("https://u@a.example",)}, ["/allow_origins/0"]),
    "a line end": ({"allow_origins": (APP + "\r\nX: y",)}, ["/allow_origins/0"]),
    "methods": ({"allow_methods": ("GET", "PUT POST", "")}, ["/allow_methods/1", "/allow_methods/2"]),
    "methods that nobody sends": ({"allow_methods": ("put", "Patch", "*T", "*")}, ["/allow_methods/0", "/allow_methods/1", "/allow_methods/2"]),
    "a method of one's own": ({"allow_methods": ("PURGE", "M-SEARCH")}, []),
    "headers": ({"allow_headers": ("x:y",)}, ["/allow_headers/0"]),
    "exposed": ({"expose_headers": ("x\r\ny",)}, ["/expose_headers/0"]),
    "credentials for everybody": ({"allow_origins": ("*",), "allow_credentials": True}, ["/allow_credentials"]),
    "credentials for one": ({"allow_origins": (APP,), "allow_credentials": True}, []),
    "an age below nothing": ({"max_age": -1}, ["/max_age"]),
    "a week": ({"max_age": 7 * 86400}, []),
    "more than a week": ({"max_age": 7 * 86400 + 1}, ["/max_age"]),
    "all at once": (
        {"allow_origins": ("*", "x"), "allow_methods": ("a b",), "allow_credentials": True, "max_age": -1},
        ["/allow_origins/1", "/allow_methods/0", "/allow_credentials", "/max_age"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_policy_that_cannot_be_meant_is_refused_with_pointers(name: str) -> None:
    fields, pointers = FAULTS[name]
    policy = replace(CorsPolicy(enabled=True), **fields)
    assert [fault.pointer for fault in cors_faults(policy)] == pointers
    if pointers:
        with pytest.raises(ConfigurationError):
            Cors(policy)


# beside the decision


def test_the_trace_says_what_was_decided_about_the_origin() -> None:
    for origin, is_allowed in ((APP, True), ("https://x.example", False)):
        exchange = an_exchange(origin)
        exchange.trace = {}
        Cors(BASE).decide(exchange)
        assert exchange.trace == {"cors": {"origin": origin, "allowed": is_allowed}}


def test_why_a_preflight_was_denied_is_said() -> None:
    facts: list[tuple[dict[str, Any], str]] = [
        ({"origin": "https://x.example"}, "origin not allowed"),
        ({"asks": "PROPFIND"}, "method not allowed"),
        ({"headers": "x-other"}, "header not allowed"),
    ]
    for fact, why in facts:
        refusal = Cors(BASE).decide(an_exchange(**{"asks": "PUT", **fact}))
        assert refusal is not None
        assert (refusal.reason.status, refusal.detail) == (403, why)


def test_the_stage_is_left_out_where_cors_is_off_and_upstreams_may_then_speak_for_themselves() -> None:
    off, on = Cors(replace(BASE, enabled=False)), Cors(BASE)
    assert (off.decides_nothing, off.is_enabled) == (True, False)
    assert (on.decides_nothing, on.is_enabled) == (False, True)
    assert on.sees_refused  # or a 404 would have no lines


# through a gateway

ON: dict[str, Any] = {"cors_enabled": True, "cors_allow_origins": (APP,), "cors_expose_headers": ("X-Request-ID",)}


async def _says_it_itself(seen: Seen, wire: Wire) -> None:
    """An upstream with a CORS policy of its own, and a Vary of its own."""
    if seen.target.endswith("/304"):
        await wire.send(b"HTTP/1.1 304 Not Modified\r\nVary: Accept\r\n\r\n")
        return
    await wire.send(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVary: Accept\r\nAccess-Control-Allow-Origin: *\r\n"
        b"Access-Control-Max-Age: 9\r\naccess-control-allow-credentials: true\r\n\r\nok"
    )


def _through(folder: Path, check: Callable[[int, list[Seen]], Any], **values: Any) -> None:
    async def run() -> None:
        async with (
            upstream(_says_it_itself) as auth,
            upstream(_says_it_itself) as content,
            running(folder, auth, content, **{**ON, **values}) as gateway,
        ):
            await check(gateway.port, content.seen)

    asyncio.run(run())


def test_two_answers_break_browsers_so_the_upstreams_goes_and_vary_is_added_to(tmp_path: Path) -> None:
    async def check(port: int, seen: list[Seen]) -> None:
        for path, status in (("/api/v1/auth/x", 200), ("/api/v1/auth/304", 304)):
            reply = await ask(port, "GET", path, headers={"Origin": APP})
            assert reply.status == status
            assert reply.all("access-control-allow-origin") == [APP]
            assert reply.all("access-control-max-age") == []
            assert reply.all("access-control-allow-credentials") == []
            assert reply.all("vary") == ["Accept", "Origin"]
            assert reply.all("access-control-expose-headers") == ["X-Request-ID"]

    _through(tmp_path, check)


def test_a_preflight_needs_no_token_spends_none_and_reaches_nobody(tmp_path: Path) -> None:
    async def check(port: int, seen: list[Seen]) -> None:
        asks = {
            "Origin": APP,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "authorization",
        }
        for _ in range(3):
            reply = await ask(port, "OPTIONS", "/api/v1/content/x", headers=asks)
            assert (reply.status, reply.body, reply.all("content-length")) == (204, b"", [])
            assert (reply.one("access-control-allow-origin"), reply.one("access-control-max-age")) == (APP, "600")
        assert (await ask(port, "PUT", "/api/v1/content/x", headers={"Origin": APP}, bearer=token())).status == 200
        assert [request.method for request in seen] == ["PUT"]

    _through(tmp_path, check, limits_per_ip=1, limits_per_user=1)


def test_a_denied_preflight_is_a_403_without_leave(tmp_path: Path) -> None:
    async def check(port: int, seen: list[Seen]) -> None:
        asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
        reply = await ask(port, "OPTIONS", "/api/v1/content/x", headers=asks)
        assert (reply.status, reply.all("access-control-allow-origin")) == (403, [])
        assert reply.one("vary") == PREFLIGHT_VARY.partition(": ")[2]
        assert not seen

    _through(tmp_path, check)


def test_a_stranger_s_websocket_is_refused_and_a_stranger_s_get_is_not(tmp_path: Path) -> None:
    async def check(port: int, seen: list[Seen]) -> None:
        upgrade = {"Origin": "https://evil.example", "Connection": "Upgrade", "Upgrade": "websocket"}
        assert (await ask(port, "GET", "/api/v1/content/x", headers=upgrade, bearer=token())).status == 403
        assert not seen
        plain = {"Origin": "https://evil.example"}
        reply = await ask(port, "GET", "/api/v1/content/x", headers=plain, bearer=token())
        assert (reply.status, reply.all("access-control-allow-origin"), len(seen)) == (200, [], 1)

    _through(tmp_path, check)


def test_where_cors_is_off_a_preflight_is_an_options_and_the_upstream_speaks_for_itself(tmp_path: Path) -> None:
    async def check(port: int, seen: list[Seen]) -> None:
        asks = {"Origin": APP, "Access-Control-Request-Method": "PUT"}
        reply = await ask(port, "OPTIONS", "/api/v1/auth/x", headers=asks)
        assert (reply.status, reply.one("access-control-allow-origin"), reply.one("vary")) == (200, "*", "Accept")
        assert (await ask(port, "OPTIONS", "/api/v1/content/x", headers=asks)).status == 401
        assert seen == [], "which would know what to say"

    _through(tmp_path, check, cors_enabled=False)
