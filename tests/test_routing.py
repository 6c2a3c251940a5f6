"""The stage: what it writes on an exchange, and what it refuses."""

from __future__ import annotations

import pytest

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.model import Route
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.routing import Routing
from engadi_gateway.pipeline.table import RoutingTable
from tests.exchanges import exchange_of, head_of
from tests.test_table import route, table

PREFLIGHT = {b"origin": b"https://app.example", b"access-control-request-method": b"GET"}

LOCAL = RoutingTable([Route("l1", "/health", "gateway", methods=("GET",), is_public=True)], {})


def decided(stage: Routing, exchange: Exchange) -> Refusal | None:
    refusal = stage.decide(exchange)
    stage.settle(exchange)
    return refusal


def test_the_stage_writes_what_it_found() -> None:
    found = route("/a/{x}/*", strip_prefix=True)
    exchange = exchange_of(head_of(path="/a/b/c"))
    assert decided(Routing(table(found)), exchange) is None
    assert (exchange.route, exchange.params, exchange.strip_prefix_length) == (found, ("b",), 4)
    assert not exchange.is_local


def test_nothing_is_stripped_unless_the_route_says_so() -> None:
    exchange = exchange_of(head_of(path="/a/b"))
    assert decided(Routing(table(route("/a/*"))), exchange) is None
    assert exchange.strip_prefix_length == 0


GETS = route("/a", methods=("GET", "POST"))
ALLOW = ((b"Allow", b"GET, HEAD, POST"),)


@pytest.mark.parametrize(
    ("method", "path", "notes", "want"),
    [
        ("GET", "/none", {}, Refusal(Reason.NO_ROUTE)),
        ("DELETE", "/a", {}, Refusal(Reason.METHOD_NOT_ALLOWED, headers=ALLOW)),
        ("get", "/a", {}, Refusal(Reason.METHOD_NOT_ALLOWED, headers=ALLOW)),
        ("OPTIONS", "/a", {}, Refusal(Reason.OPTIONS, headers=ALLOW)),
        ("OPTIONS", "/none", {}, Refusal(Reason.NO_ROUTE)),
        ("OPTIONS", "*", {}, Refusal(Reason.OPTIONS)),
        ("OPTIONS", "/a", {b"origin": b"https://app.example"}, Refusal(Reason.OPTIONS, headers=ALLOW)),
        ("OPTIONS", "/a", PREFLIGHT | {b"access-control-request-method": b""}, Refusal(Reason.OPTIONS, headers=ALLOW)),
        ("OPTIONS", "/a", PREFLIGHT, None),
        (
            "OPTIONS",
            "/a",
            PREFLIGHT | {b"access-control-request-method": b"PUT"},
            Refusal(Reason.METHOD_NOT_ALLOWED, headers=ALLOW),
        ),
        ("OPTIONS", "/none", PREFLIGHT, Refusal(Reason.NO_ROUTE)),
        ("HEAD", "/a", {}, None),
    ],
)
def test_misses(method: str, path: str, notes: dict[bytes, bytes], want: Refusal | None) -> None:
    stage = Routing(table(GETS), LOCAL, answers_preflight=True)
    assert decided(stage, exchange_of(head_of(method, path, notes=notes))) == want


def test_a_preflight_is_an_ordinary_options_where_nobody_answers_it() -> None:
    stage = Routing(table(GETS))
    exchange = exchange_of(head_of("OPTIONS", "/a", notes=PREFLIGHT))
    assert decided(stage, exchange) == Refusal(Reason.OPTIONS, headers=ALLOW)


def test_options_is_forwarded_where_it_is_listed() -> None:
    assert decided(Routing(table(route("/a", methods=("OPTIONS",)))), exchange_of(head_of("OPTIONS", "/a"))) is None
    assert decided(Routing(table(route("/a"))), exchange_of(head_of("OPTIONS", "/a"))) is None


@pytest.mark.parametrize("path", ["/a/b%2Fc", "/a/b%5Cc"])
def test_an_encoded_slash_passes_only_where_the_route_allows_it(path: str) -> None:
    refused = decided(Routing(table(route("/a/*"))), exchange_of(head_of(path=path)))
    assert refused == Refusal(Reason.BAD_REQUEST, "encoded slash in the path")
    assert decided(Routing(table(route("/a/*", allow_encoded_slashes=True))), exchange_of(head_of(path=path))) is None


def test_nobody_can_shadow_the_gateways_own_endpoints() -> None:
    stage = Routing(table(route("/*", priority=1000), route("/health", "r2", priority=1000, host="api.example")), LOCAL)
    own = exchange_of(head_of(path="/health"))
    assert decided(stage, own) is None
    assert own.is_local
    assert own.route is not None
    assert own.route.id == "l1"
    wrong = exchange_of(head_of("POST", "/health"))
    assert decided(stage, wrong) == Refusal(Reason.METHOD_NOT_ALLOWED, headers=((b"Allow", b"GET, HEAD"),))
    assert wrong.is_local
    other = exchange_of(head_of(path="/health/x"))
    assert decided(stage, other) is None
    assert not other.is_local
