"""Token buckets: what is granted is bounded in every window, what is kept is bounded, and the fields say the truth."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engadi_gateway.errors import ConfigurationError, Fault, Reason, Refusal, rendered
from engadi_gateway.model import LimitMode, LimitType, RateLimitRule, Route
from engadi_gateway.pipeline.buckets import BucketStore
from engadi_gateway.pipeline.exchange import Exchange, Identity
from engadi_gateway.pipeline.limits import Limits, network_of, rule_faults
from engadi_gateway.pipeline.patterns import readings
from tests.exchanges import WALL, exchange_of, head_of

USER, IP, ENDPOINT, GLOBAL = LimitType
ROUTE = Route("route-1", "/a", "content")
HEALTH = Route("route-h", "/health", "gateway", is_public=True)


def a_rule(kind: LimitType = IP, capacity: int = 3, window_s: int = 60, **fields: Any) -> RateLimitRule:
    return replace(RateLimitRule(f"id-{kind}", str(kind), kind, capacity, window_s), **fields)


def limits_of(*rules: RateLimitRule, store: BucketStore | None = None, now: float = 0.0) -> Limits:
    return Limits(rules, BucketStore(1000) if store is None else store, 64, now)


def ask(limits: Limits, now: float = 0.0, **facts: Any) -> tuple[bool, dict[str, str]]:
    """Whether it passes, and the header lines of the answer."""
    exchange = exchange_of(now=now, **{"route": ROUTE} | facts)
    refusal = limits.decide(exchange)
    limits.settle(exchange)
    block = b"\r\n".join(exchange.reply_lines + rendered(refusal.headers if refusal is not None else ()))
    lines = block.decode().split("\r\n") if block else []
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines), "a field sent twice"
    return refusal is None, fields


def granted(limits: Limits, count: int, now: float = 0.0, **facts: Any) -> int:
    return sum(ask(limits, now, **facts)[0] for _ in range(count))


# a bucket


def test_a_burst_then_an_even_refill() -> None:
    limits = limits_of(a_rule(capacity=3, window_s=60))
    assert granted(limits, 10) == 3
    assert granted(limits, 10, now=19.9) == 0
    assert granted(limits, 10, now=20.0) == 1
    assert granted(limits, 10, now=59.9) == 1
    assert granted(limits, 10, now=10_000.0) == 3


@settings(max_examples=150)
@given(
    st.integers(1, 50),
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 40), st.integers(1, 20)), min_size=1, max_size=40),
    st.sampled_from([0.0, 1e5, 3e6]),
)
def test_never_more_than_capacity_and_refill_in_any_window(
    capacity: int, window_s: int, steps: list[tuple[float, int]], start: float
) -> None:
    limits = limits_of(a_rule(capacity=capacity, window_s=window_s), now=0.0)
    now, log = start, []
    for pause, count in steps:
        now += pause
        log.append((now, granted(limits, count, now), count))
    for first in range(len(log)):
        total = 0
        for last in range(first, len(log)):
            total += log[last][1]
            refill = (log[last][0] - log[first][0]) * capacity / window_s
            assert total <= capacity + refill + 0.01
    level, then = float(capacity), start  # and never fewer: the same as a bucket that is counted in tokens
    for moment, passed, asked in log:
        level, then = min(capacity, level + (moment - then) * capacity / window_s), moment
        assert passed in {min(asked, math.floor(level - 0.01)), min(asked, math.floor(level + 0.01))}
        level -= passed


def test_a_rule_that_grew_shows_no_less_than_nothing() -> None:
    """What was forgiven to a bucket of one token is a thousand of a million."""
    store = BucketStore(10)
    small = limits_of(a_rule(capacity=1), store=store)
    small._rules[0].buckets.full_at["192.0.2.1"] = small._rules[0].most_missing
    _, fields = ask(limits_of(a_rule(capacity=1_000_000), store=store), ip="192.0.2.1")
    assert int(fields["X-RateLimit-Remaining"]) == 0
    assert ";r=0;" in fields["RateLimit"]


@pytest.mark.parametrize("capacity", [1, 3, 7, 1000])
def test_an_empty_bucket_has_no_less_than_nothing(capacity: int) -> None:
    """What is forgiven for rounding must not show as a token below none."""
    limits = limits_of(a_rule(capacity=capacity, window_s=60))
    limits._rules[0].buckets.full_at["192.0.2.1"] = limits._rules[0].most_missing + 1e-12
    for now in (0.0, 1e-9, 60.0 / capacity, 60.0 / capacity + 1e-9):
        _, fields = ask(limits, now, ip="192.0.2.1")
        assert int(fields["X-RateLimit-Remaining"]) == 0
        assert fields["RateLimit"].startswith('"per_ip";r=0;t=')


# who is counted


@pytest.mark.parametrize(
    ("kind", "one", "other", "is_shared"),
    [
        (USER, {"user": "u1"}, {"user": "u2"}, False),
        (USER, {"user": "u1", "ip": "192.0.2.1"}, {"user": "u1", "ip": "192.0.2.2"}, True),
        (USER, {"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}, False),
        (USER, {"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}, True),
        (USER, {"user": "192.0.2.1"}, {"ip": "192.0.2.1"}, False),
        (USER, {"user": "x" * 5000 + "1"}, {"user": "x" * 5000 + "2"}, False),
        (USER, {"user": "x" * 5000 + "1"}, {"user": "x" * 5000 + "1"}, True),
        (IP, {"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}, False),
        (IP, {"ip": "192.0.2.1", "user": "u1"}, {"ip": "192.0.2.1", "user": "u2"}, True),
        (IP, {"ip": "2001:db8:0:1::1"}, {"ip": "2001:db8::1:ffff:0:0:1"}, True),
        (IP, {"ip": "2001:db8:0:1::1"}, {"ip": "2001:db8:0:2::1"}, False),
        (ENDPOINT, {"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}, True),
        (ENDPOINT, {}, {"route": Route("route-2", "/b", "content")}, False),
        (GLOBAL, {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "route": Route("route-2", "/b", "content")}, True),
    ],
)
def test_whose_bucket_it_is(kind: LimitType, one: dict[str, Any], other: dict[str, Any], is_shared: bool) -> None:
    limits = limits_of(a_rule(kind, capacity=1))
    assert ask(limits, **one)[0]
    assert ask(limits, **other)[0] is not is_shared


@pytest.mark.parametrize(
    ("address", "prefix", "network"),
    [
        ("192.0.2.1", 64, "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::"),
        ("2001:db8:1:2:3:4:5:6", 48, "2001:db8:1::"),
        ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
        ("", 64, ""),
    ],
)
def test_an_address_counts_as_its_network(address: str, prefix: int, network: str) -> None:
    assert network_of(address, prefix) == network


@pytest.mark.parametrize(
    ("pattern", "path", "applies"),
    [
        ("", "/a/b", True),
        ("/a/*", "/a", True),
        ("/a/*", "/ab", False),
        ("/a/{x}", "/a/b", True),
        ("/b", "/a", False),
        ("/login", "/Login", True),
        ("/login", "/login/", True),
        ("/login", "/login;x", True),
        ("/login", "/log%2569n", True),
        ("/Login/", "/login", True),
        ("/login", "/login/x", False),
        ("/login", "/logins", False),
    ],
)
def test_a_pattern_narrows_a_rule(pattern: str, path: str, applies: bool) -> None:
    limits = limits_of(a_rule(capacity=1, path_pattern=pattern))
    for _ in range(2):
        passed, fields = ask(limits, head=head_of(path=path))
        assert ("RateLimit" in fields) is applies
    assert passed is not applies


def test_what_a_path_needs_is_remembered_and_bounded() -> None:
    limits = limits_of(a_rule(path_pattern="/a/*"), a_rule(GLOBAL, capacity=10_000_000))
    for number in range(10_000):
        ask(limits, head=head_of(path=f"/b/{number}"))
        ask(limits, head=head_of(path=f"/b/{number:0>300}"))
    assert len(limits._by_path) <= 4096
    assert max(map(len, limits._by_path)) <= 256


def test_a_long_path_is_read_once_for_all_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some milliseconds of it at worst: anybody can send one, and where there is no route too."""
    asked: list[str] = []

    def counting(path: str) -> list[list[str]]:
        asked.append(path)
        return readings(path)

    monkeypatch.setattr("engadi_gateway.pipeline.limits.readings", counting)
    limits = limits_of(*(a_rule(id=f"r{at}", path_pattern=f"/p{at}/*") for at in range(20)))
    ask(limits, head=head_of(path="/%2F" * 2000))
    ask(limits, head=head_of(path="/x"))
    assert len(asked) == 2


def test_rules_that_are_not_active_do_not_count() -> None:
    limits = limits_of(a_rule(capacity=1, is_active=False))
    assert granted(limits, 5) == 5
    assert ask(limits)[1] == {}
    assert limits.status(0.0) == []


# refused exchanges

MISSES = [Reason.NO_ROUTE, Reason.METHOD_NOT_ALLOWED, Reason.AUTH_MISSING, Reason.AUTH_INVALID, Reason.SCOPE_MISSING]


@pytest.mark.parametrize("reason", MISSES, ids=lambda reason: reason.code)
@pytest.mark.parametrize("kind", [IP, ENDPOINT, GLOBAL])
def test_guessing_ends_in_429(kind: LimitType, reason: Reason) -> None:
    limits = limits_of(a_rule(kind, capacity=2))
    answers = []
    for _ in range(3):
        exchange = exchange_of(route=ROUTE, refusal=Refusal(reason))
        answers.append(limits.decide(exchange))
    assert answers[:2] == [None, None]
    assert answers[2] is not None
    assert answers[2].reason is Reason.RATE_LIMITED


def test_a_refused_stranger_spends_no_users_tokens_and_no_route_no_endpoints() -> None:
    limits = limits_of(a_rule(USER, capacity=1), a_rule(ENDPOINT, capacity=1))
    for _ in range(3):
        assert ask(limits, refusal=Refusal(Reason.NO_ROUTE), route=None) == (True, {})
    assert ask(limits)[0]


def test_a_known_user_who_is_refused_spends_the_users_tokens() -> None:
    limits = limits_of(a_rule(USER, capacity=1))
    assert ask(limits, user="u1", refusal=Refusal(Reason.SCOPE_MISSING))[0]
    assert not ask(limits, user="u1")[0]


def test_whoever_has_somebody_asked_pays_before() -> None:
    """Once, whatever the answer is; and a user's own rule when it is known who asks."""
    limits = limits_of(a_rule(IP, 3), a_rule(USER, 1), a_rule(GLOBAL, 100))
    for number in range(3):
        exchange = exchange_of(route=ROUTE, ip="192.0.2.9")
        assert limits.charge(exchange) is None
        assert limits.charge(exchange) is None, "who has to wait twice has paid"
        exchange.identity = Identity(f"u{number}")
        assert limits.decide(exchange) is None
        line = b"\r\n".join(exchange.reply_lines).decode()
        assert (
            f'"per_ip";r={2 - number};' in line and '"per_user";r=0;' in line and f'"global";r={99 - number};' in line
        )
    assert [row["allowed"] for row in limits.status(0.0)] == [3, 3, 3]
    late = exchange_of(route=ROUTE, ip="192.0.2.9")
    refused = limits.charge(late)
    assert refused is not None and refused.reason is Reason.RATE_LIMITED
    again = exchange_of(route=ROUTE, ip="192.0.2.8")
    assert limits.charge(again) is None
    again.identity = Identity("u0")
    assert limits.decide(again) is not None, "the user has had all"


def test_a_changed_window_holds_from_the_change_on() -> None:
    store = BucketStore(100)
    limits = limits_of(a_rule(IP, 4, 3600), store=store)
    assert granted(limits, 5) == 4
    changed = limits_of(a_rule(IP, 4, 4), store=store)
    changed.begin(0.0)
    assert granted(changed, 5, now=4.0) == 4


@pytest.mark.parametrize("reason", [Reason.PREFLIGHT, Reason.PREFLIGHT_DENIED, Reason.OPTIONS], ids=lambda r: r.code)
def test_what_asks_nothing_of_anybody_is_free(reason: Reason) -> None:
    limits = limits_of(a_rule(capacity=1))
    for _ in range(5):
        assert ask(limits, refusal=Refusal(reason)) == (True, {})
    assert ask(limits)[0]


@pytest.mark.parametrize(
    ("route", "is_local", "is_free"), [(HEALTH, True, True), (ROUTE, True, False), (HEALTH, False, False)]
)
def test_only_the_gateways_own_public_endpoints_are_exempt(route: Route, is_local: bool, is_free: bool) -> None:
    limits = limits_of(a_rule(capacity=1))
    answers = []
    for _ in range(2):
        exchange = exchange_of(route=route)
        exchange.is_local = is_local
        answers.append(limits.decide(exchange))
        assert (exchange.reply_lines == []) is (is_free or answers[-1] is not None)
    assert (answers[1] is None) is is_free


# all before any


def test_nothing_is_spent_where_one_rule_refuses() -> None:
    limits = limits_of(a_rule(USER, capacity=5), a_rule(IP, capacity=1), a_rule(GLOBAL, capacity=5))
    assert granted(limits, 4, user="u1") == 1
    assert [row["allowed"] for row in limits.status(0.0)] == [1, 1, 1]
    assert granted(limits, 10, user="u1", ip="192.0.2.2") == 1
    assert granted(limits, 10, user="u1", ip="192.0.2.3") == 1
    assert limits.status(0.0)[0]["lowest_tokens"] == 2


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["u1", "u2", None]), st.sampled_from(["1", "2"])), max_size=60),
    st.lists(st.integers(1, 6), min_size=3, max_size=3),
)
def test_each_of_several_rules_holds_and_pays_only_for_what_passed(
    steps: list[tuple[float, str | None, str]], capacities: list[int]
) -> None:
    kinds = (USER, IP, GLOBAL)
    limits = limits_of(*(a_rule(kind, capacity, 10) for kind, capacity in zip(kinds, capacities, strict=True)))
    levels: dict[tuple[int, str], float] = defaultdict(lambda: math.inf)
    now = 0.0
    for pause, user, ip in steps:
        now += pause
        for (index, subject), level in levels.items():
            levels[index, subject] = min(capacities[index], level + pause * capacities[index] / 10)
        keys = [(0, f"user {user}" if user else f"ip {ip}"), (1, ip), (2, "")]
        have = [min(levels[key], capacities[key[0]]) for key in keys]
        passed, _ = ask(limits, now, user=user, ip=ip)
        assert passed is (min(have) >= 1) or math.isclose(min(have), 1, abs_tol=0.01)
        if passed:
            for key, level in zip(keys, have, strict=True):
                levels[key] = level - 1


# observe


def test_observing_counts_and_notes_but_never_refuses_nor_shows() -> None:
    watching = a_rule(IP, capacity=2, name="watch", mode=LimitMode.OBSERVE)
    limits = limits_of(watching)
    notes = []
    for _ in range(4):
        exchange = exchange_of(route=ROUTE)
        assert limits.decide(exchange) is None
        assert exchange.reply_lines == []
        notes.append(exchange.observed)
    assert notes == [None, None, *["observed: watch would refuse"] * 2]
    row = limits.status(0.0)[0]
    assert (row["allowed"], row["refused"], row["observed"]) == (2, 0, 2)
    assert granted(limits, 1, now=30.0) == 1
    assert limits.status(30.0)[0]["observed"] == 2, "an observed bucket is not in debt"


def test_all_observed_rules_that_would_refuse_are_noted() -> None:
    rules = [a_rule(IP, 1, id=name, name=name, mode=LimitMode.OBSERVE) for name in ("one", "two")]
    limits = limits_of(*rules)
    assert granted(limits, 1) == 1
    exchange = exchange_of(route=ROUTE)
    assert limits.decide(exchange) is None
    assert exchange.message == "observed: one, two would refuse"


def test_an_observed_rule_beside_an_enforced_one() -> None:
    limits = limits_of(a_rule(IP, capacity=1, mode=LimitMode.OBSERVE), a_rule(GLOBAL, capacity=3))
    assert granted(limits, 5) == 3
    rows = limits.status(0.0)
    assert [(row["allowed"], row["refused"], row["observed"]) for row in rows] == [(1, 0, 4), (3, 2, 0)]


# fields


@pytest.mark.parametrize(
    ("capacity", "window_s", "asked", "then", "want"),
    [
        (1000, 3600, 1, 0.0, ("1000", "999", 4, '"per_ip";r=999;t=4')),
        (1000, 3600, 1000, 0.0, ("1000", "0", 3600, '"per_ip";r=0;t=4')),
        (500, 3600, 488, 0.0, ("500", "12", 3514, '"per_ip";r=12;t=8')),
        (10, 10, 3, 0.0, ("10", "7", 3, '"per_ip";r=7;t=1')),
        (10, 10, 10, 0.5, ("10", "0", 11, '"per_ip";r=0;t=1')),
        (1, 86400, 1, 0.0, ("1", "0", 86400, '"per_ip";r=0;t=86400')),
        (1000, 60, 1, 0.0, ("1000", "999", 1, '"per_ip";r=999;t=1')),
        (1000, 60, 1000, 0.01, ("1000", "0", 61, '"per_ip";r=0;t=1')),
        (101, 100, 50, 0.0, ("101", "51", 50, '"per_ip";r=51;t=1')),
        (100, 100, 50, 0.0, ("100", "50", 50, '"per_ip";r=50;t=1')),
        (100, 101, 50, 0.0, ("100", "50", 51, '"per_ip";r=50;t=2')),
    ],
)
def test_the_fields_of_an_answer(
    capacity: int, window_s: int, asked: int, then: float, want: tuple[str, str, int, str]
) -> None:
    limits = limits_of(a_rule(capacity=capacity, window_s=window_s))
    for _ in range(asked):
        passed, fields = ask(limits, then)
        assert passed
    limit, remaining, reset_in, field = want
    assert fields == {
        "X-RateLimit-Limit": limit,
        "X-RateLimit-Remaining": remaining,
        "X-RateLimit-Reset": str(int(WALL) + reset_in),
        "RateLimit-Policy": f'"per_ip";q={capacity};w={window_s}',
        "RateLimit": field,
    }


def test_the_formulas_of_the_draft_for_a_fifth_of_a_token() -> None:
    limits = limits_of(a_rule(capacity=1000, window_s=3600))
    granted(limits, 1000)
    passed, fields = ask(limits, 0.72)  # 0.72 s refill 0.2 tokens
    assert not passed
    assert fields == {
        "Retry-After": "3",
        "X-RateLimit-Limit": "1000",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int(WALL) + 3600),
        "RateLimit-Policy": '"per_ip";q=1000;w=3600',
        "RateLimit": '"per_ip";r=0;t=3',
    }


def test_the_tightest_rule_is_shown_where_one_can_be_and_all_in_the_lists() -> None:
    limits = limits_of(a_rule(USER, capacity=1000), a_rule(IP, capacity=4), a_rule(GLOBAL, capacity=5))
    _, fields = ask(limits, user="u1")
    assert (fields["X-RateLimit-Limit"], fields["X-RateLimit-Remaining"]) == ("4", "3")
    assert fields["RateLimit-Policy"] == '"per_user";q=1000;w=60,"per_ip";q=4;w=60,"global";q=5;w=60'
    assert fields["RateLimit"] == '"per_user";r=999;t=1,"per_ip";r=3;t=15,"global";r=4;t=12'


def test_a_refusal_tells_of_the_violated_rules_and_the_longest_wait() -> None:
    limits = limits_of(a_rule(USER, capacity=9), a_rule(IP, capacity=1, window_s=10), a_rule(GLOBAL, capacity=1))
    ask(limits, user="u1")
    exchange = exchange_of(route=ROUTE, user="u1")
    refusal = limits.decide(exchange)
    assert refusal is not None
    assert refusal.reason is Reason.RATE_LIMITED
    assert refusal.faults == (Fault("per_ip", ""), Fault("global", ""))
    assert dict(refusal.headers)[b"Retry-After"] == b"60"
    assert dict(refusal.headers)[b"RateLimit"] == b'"per_ip";r=0;t=10,"global";r=0;t=60'
    assert exchange.reply_lines == []


@settings(max_examples=150)
@given(st.integers(1, 2000), st.integers(1, 7200), st.floats(0, 1e6), st.floats(0, 7200))
def test_who_waits_as_told_is_served_and_a_bit_earlier_is_not(
    capacity: int, window_s: int, start: float, pause: float
) -> None:
    store = BucketStore(10)
    limits = limits_of(a_rule(capacity=capacity, window_s=window_s), store=store)
    granted(limits, capacity, start)
    now = start + pause * window_s / 7200 / capacity
    passed, fields = ask(limits, now)
    if passed:
        return
    retry_after = int(fields["Retry-After"])
    assert retry_after >= max(1, int(fields["RateLimit"].partition("t=")[2]))
    token_s = window_s / capacity
    if retry_after > 1:
        assert not ask(limits, now + retry_after - 1 - 0.002 * token_s)[0]
    assert ask(limits, now + retry_after)[0]


def test_a_name_cannot_break_out_of_its_field() -> None:
    _, fields = ask(limits_of(a_rule(name='a"b\\c%d')))
    assert fields["RateLimit"] == '"a\\"b\\\\c%d";r=2;t=20'
    assert fields["RateLimit-Policy"] == '"a\\"b\\\\c%d";q=3;w=60'


@pytest.mark.parametrize(
    ("fields", "pointers"),
    [
        ({}, []),
        ({"name": ""}, ["/name"]),
        ({"name": "a\r\nX: y"}, ["/name"]),
        ({"name": "é"}, ["/name"]),
        ({"name": "x" * 65}, ["/name"]),
        ({"max_requests": 0}, ["/max_requests"]),
        ({"max_requests": 10_000_001}, ["/max_requests"]),
        ({"window_seconds": 0}, ["/window_seconds"]),
        ({"path_pattern": "a"}, ["/path_pattern"]),
        ({"max_requests": -1, "window_seconds": -1}, ["/max_requests", "/window_seconds"]),
    ],
)
def test_rule_faults_point_to_the_fields(fields: dict[str, Any], pointers: list[str]) -> None:
    faulty = a_rule(**fields)
    assert [fault.pointer for fault in rule_faults(faulty)] == pointers
    if pointers:
        with pytest.raises(ConfigurationError) as caught:
            limits_of(faulty)
        assert [fault.pointer for fault in caught.value.faults] == [f"/rules/id-per_ip{one}" for one in pointers]


# explaining


def rehearse(limits: Limits, now: float) -> tuple[Exchange, Refusal | None]:
    exchange = exchange_of(route=ROUTE, now=now)
    exchange.is_rehearsal = True
    exchange.trace = {}
    return exchange, limits.decide(exchange)


def test_ways_to_fit_some_of_many_patterns_are_not_all_remembered() -> None:
    """Strangers choose paths, and with each pattern there are twice as many ways."""
    rules = [
        a_rule(capacity=10_000, id=str(at), path_pattern="/" + "".join(f"{{x{n}}}/" for n in range(at)) + "y/*")
        for at in range(11)
    ]
    limits = limits_of(*rules, store=BucketStore(100_000))
    for number in range(1 << 11):
        path = "/" + "/".join("y" if number >> at & 1 else "n" for at in range(11))
        assert ask(limits, head=head_of(path=path))[0]
    assert 0 < len(limits._by_fit) <= 512


def test_a_rehearsal_says_what_would_happen_and_spends_nothing() -> None:
    limits = limits_of(a_rule(capacity=2), a_rule(GLOBAL, capacity=5, mode=LimitMode.OBSERVE))
    for tokens in (2.0, 1.0):
        for _ in range(3):
            exchange, refusal = rehearse(limits, 0.0)
            assert refusal is None
            assert exchange.trace is not None
            assert exchange.trace["limits"] == [
                {
                    "rule": "id-per_ip", "name": "per_ip", "limit_type": "per_ip", "mode": "enforce",
                    "subject": "192.0.2.1", "tokens": tokens, "capacity": 2, "allowed": True,
                },
                {
                    "rule": "id-global", "name": "global", "limit_type": "global", "mode": "observe",
                    "subject": "", "tokens": tokens + 3, "capacity": 5, "allowed": True,
                },
            ]  # fmt: skip
        served = exchange_of(route=ROUTE)
        assert limits.decide(served) is None
        assert served.reply_lines == exchange.reply_lines, "what explain says is what serving does"
    before = limits.status(0.0)
    exchange, refusal = rehearse(limits, 0.0)
    assert refusal == limits.decide(exchange_of(route=ROUTE))
    assert refusal is not None
    assert exchange.trace is not None
    assert [row["allowed"] for row in exchange.trace["limits"]] == [False, True]  # type: ignore[attr-defined]
    after = limits.status(0.0)
    assert after[0].pop("refused") == before[0].pop("refused") + 1, "by the one that was served"
    assert after == before


def test_the_trace_names_an_anonymous_subject_readably() -> None:
    exchange, _ = rehearse(limits_of(a_rule(USER)), 0.0)
    assert exchange.trace is not None
    rows: Any = exchange.trace["limits"]
    assert rows[0]["subject"] == "anonymous 192.0.2.1"


# a changed rule


@settings(max_examples=200)
@given(
    st.integers(1, 1000),
    st.integers(1, 5000),
    st.integers(1, 1000),
    st.integers(1, 5000),
    st.integers(1, 1000),
    st.floats(0, 1e5),
    st.floats(0, 1),
)
def test_a_changed_rule_keeps_the_fill_ratio(
    capacity: int, window_s: int, new_capacity: int, new_window_s: int, spent: int, start: float, later: float
) -> None:
    store = BucketStore(100)
    old = a_rule(capacity=capacity, window_s=window_s)
    new = replace(old, max_requests=new_capacity, window_seconds=new_window_s)
    limits = limits_of(old, store=store)
    spent = granted(limits, min(spent, capacity), start)
    now = start + later * window_s * spent / capacity
    before = tokens_of(limits, now) / capacity
    changed = limits_of(new, store=store, now=now)
    assert tokens_of(limits, now) / capacity == pytest.approx(before, abs=1e-6), "building it has changed nothing"
    changed.begin(now)
    assert tokens_of(limits, now) / capacity == pytest.approx(before, abs=1e-6), "who began before is told the same"
    assert tokens_of(changed, now) / new_capacity == pytest.approx(before, abs=1e-6)
    half = now + (1 - before) * new_window_s / 2
    assert tokens_of(changed, half) / new_capacity == pytest.approx((1 + before) / 2, abs=1e-6)


def tokens_of(limits: Limits, now: float) -> float:
    exchange, _ = rehearse(limits, now)
    assert exchange.trace is not None
    rows: Any = exchange.trace["limits"]
    return float(rows[0]["tokens"])


def test_buckets_pass_from_one_configuration_to_the_next_and_go_with_the_last() -> None:
    store = BucketStore(100)
    limits = limits_of(a_rule(capacity=1), a_rule(GLOBAL), store=store)
    assert granted(limits, 2) == 1
    limits = limits_of(a_rule(capacity=1), store=store)
    gc.collect()  # an interpreter that counts no references lets go later
    assert len(store) == 1
    assert granted(limits, 2) == 0
    del limits
    gc.collect()
    assert len(store) == 0
    assert granted(limits_of(a_rule(capacity=1), store=store), 2) == 1, "it comes back full"


def test_room_that_a_gone_rule_took_is_free_again() -> None:
    store = BucketStore(50)
    limits = limits_of(a_rule(GLOBAL), a_rule(IP), store=store)
    for number in range(100):
        ask(limits, 0.0, ip=f"10.0.0.{number}")
    limits = limits_of(a_rule(IP, id="another"), store=store)
    for number in range(50):
        ask(limits, 0.0, ip=f"10.0.1.{number}")
    assert len(store) == 50


# the store


def test_full_buckets_vanish_by_themselves_while_others_come() -> None:
    limits = limits_of(a_rule(capacity=10, window_s=100), store=(store := BucketStore(10_000)))
    for number in range(1000):
        ask(limits, 0.0, ip=f"10.0.{number >> 8}.{number & 255}")
    assert len(store) == 1000
    for number in range(400):
        ask(limits, 50.0, ip=f"10.1.{number >> 8}.{number & 255}")
    assert len(store) == 400, "only by those who came later, without a sweep"


def test_a_sweep_lets_full_buckets_go_and_keeps_what_is_in_use() -> None:
    limits = limits_of(a_rule(capacity=10, window_s=100), a_rule(GLOBAL, 1000, 100), store=(store := BucketStore(9999)))
    for number in range(30):
        granted(limits, 1 + number % 10, 0.0, ip=f"10.0.0.{number}")
    for now, left in ((9.0, 31), (17.0, 28), (40.0, 21), (99.0, 3), (107.0, 0)):
        for _ in range(3):
            store.sweep(now)
        assert len(store) == left


def test_the_fullest_go_first_when_there_is_no_room() -> None:
    limits = limits_of(a_rule(capacity=100, window_s=3600), store=(store := BucketStore(100)))
    for number in range(50):
        granted(limits, 60, 0.0, ip=f"10.0.0.{number}")
    for number in range(5000):
        ask(limits, 1.0, ip=f"10.1.{number >> 8}.{number & 255}")
        assert len(store) <= 100
    left = store.of(a_rule(), 0.0).full_at
    assert {f"10.0.0.{number}" for number in range(50)} <= set(left), "a flood frees nobody who was counted"


def test_a_small_rules_bucket_survives_a_flood_of_another_rule() -> None:
    limits = limits_of(a_rule(IP, 1000), a_rule(ENDPOINT, 10_000), store=(store := BucketStore(50)))
    for number in range(500):
        ask(limits, 0.0, ip=f"10.1.{number >> 8}.{number & 255}")
    assert len(store) == 50
    assert limits.status(0.0)[1]["lowest_tokens"] == 9500


# status


def test_the_live_fill_of_each_rule() -> None:
    limits = limits_of(a_rule(IP, 10, 100), a_rule(GLOBAL, 20, 100, path_pattern="/a/*"))
    granted(limits, 12, 0.0)
    granted(limits, 2, 0.0, ip="192.0.2.2")
    assert limits.status(20.0) == [
        {
            "id": "id-per_ip", "name": "per_ip", "limit_type": "per_ip", "path_pattern": "", "mode": "enforce",
            "max_requests": 10, "window_seconds": 100, "buckets_in_use": 2, "lowest_tokens": 2, "allowed": 12,
            "refused": 2, "observed": 0,
        },
        {
            "id": "id-global", "name": "global", "limit_type": "global", "path_pattern": "/a/*", "mode": "enforce",
            "max_requests": 20, "window_seconds": 100, "buckets_in_use": 1, "lowest_tokens": 12, "allowed": 12,
            "refused": 0, "observed": 0,
        },
    ]  # fmt: skip


def test_an_identity_on_a_public_route_counts_as_the_user() -> None:
    limits = limits_of(a_rule(USER, capacity=1))
    exchange = exchange_of(route=replace(ROUTE, is_public=True), ip="192.0.2.9")
    exchange.identity = Identity("u1")
    assert limits.decide(exchange) is None
    assert not ask(limits, user="u1")[0]
