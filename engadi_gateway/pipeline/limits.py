"""Token buckets: who may ask how often. All rules that apply are looked at before any is spent.

A bucket holds one number: the moment at which it is full again, in units of its rule's window. A full bucket is the
same as no bucket, so only those in use exist; they live in two generations, and one that was not touched for a whole
window is full and goes with the older one, all at once. Units of windows make changing a rule free: the clock of the
rule is bent at that moment, and every bucket keeps its fill ratio.

Arithmetic, for capacity C, window w, fill f (0 to 1): tokens L = C f; one request costs 1/C; a bucket is full again
after w (1 - f) seconds. RateLimit fields after draft-ietf-httpapi-ratelimit-headers-10: r = floor(L),
t = ceil((floor(L) + 1 - L) w / C); Retry-After (RFC 9110 section 10.2.3) is never 0.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from engadi_gateway.errors import Fault, HeaderLine, Reason, Refusal
from engadi_gateway.model import LimitMode, LimitType, RateLimitRule
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.routing import parse_pattern, pattern_matches

_EPSILON = 1e-9
_MEMO_SIZE = 4096
#: Buckets looked at when the store is full, before one that is not full has to go.
_EVICTION_LOOK = 32
#: Expired buckets freed per sweep: a million at once would stall the loop for a tenth of a second.
_FREED_PER_SWEEP = 20_000
#: Refusals that ask nothing of anybody behind us.
_FREE = frozenset((Reason.PREFLIGHT, Reason.PREFLIGHT_DENIED, Reason.OPTIONS))


class Buckets:
    """The buckets of one rule. `young` was touched in this window or is new, `old` not since the last turn."""

    __slots__ = ("_base", "_dying", "_since", "_turned", "_window_s", "allowed", "observed", "old", "refused", "young")

    def __init__(self, window_s: float, now: float) -> None:
        self.young: dict[str, float] = {}
        self.old: dict[str, float] = {}
        self._dying: list[dict[str, float]] = []
        self._base = 0.0
        self._since = now
        self._window_s = window_s
        self._turned = 0.0
        self.allowed = 0
        self.refused = 0
        self.observed = 0

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def at(self, now: float) -> float:
        """The rule's own time: windows since it began."""
        return self._base + (now - self._since) / self._window_s

    def bend(self, window_s: float, now: float) -> None:
        """From now on a window is this long; what is stored stays true."""
        if window_s != self._window_s:
            self._base, self._since, self._window_s = self.at(now), now, window_s

    def full_at(self, subject: str, at: float) -> float:
        """When the subject's bucket is full again, in the rule's time; `at` when it is full now."""
        value = self.young.get(subject)
        if value is None:
            value = self.old.get(subject, at)
        return value if value > at else at

    def turn(self, at: float) -> None:
        """Once a window: the older generation is all full by now."""
        if at - self._turned >= 1.0:
            self._turned = at
            self._dying.append(self.old)
            self.old, self.young = self.young, {}

    def evict(self, at: float) -> None:
        """Make room: the generation that is surely fuller goes first, else a full one, else the oldest."""
        if self.old:
            self._dying.append(self.old)
            self.old = {}
            return
        looked = [key for key, _ in zip(self.young, range(_EVICTION_LOOK), strict=False)]
        fullest = min(looked, key=lambda key: self.young[key])
        del self.young[fullest]

    def free_some(self) -> None:
        """Give back a bounded part of what died."""
        left = _FREED_PER_SWEEP
        while self._dying and left > 0:
            dying = self._dying[-1]
            while dying and left > 0:
                dying.popitem()
                left -= 1
            if not dying:
                self._dying.pop()

    def lowest_fill(self, at: float) -> float:
        """The fill (0 to 1) of the emptiest bucket."""
        latest = max((value for part in (self.young, self.old) for value in part.values()), default=at)
        return max(0.0, 1.0 - max(0.0, latest - at))


class BucketStore:
    """All buckets, by rule id; lives as long as the process."""

    def __init__(self, max_buckets: int) -> None:
        self.max_buckets = max_buckets
        self._rules: dict[str, Buckets] = {}

    def of(self, rule: RateLimitRule, now: float) -> Buckets:
        """The rule's buckets, with the rule's present window."""
        buckets = self._rules.get(rule.id)
        if buckets is None:
            buckets = self._rules[rule.id] = Buckets(rule.window_seconds, now)
        buckets.bend(rule.window_seconds, now)
        return buckets

    def keep_only(self, ids: Iterable[str]) -> None:
        """Forget rules that are gone."""
        kept = set(ids)
        self._rules = {rule_id: buckets for rule_id, buckets in self._rules.items() if rule_id in kept}

    def __len__(self) -> int:
        return sum(len(buckets) for buckets in self._rules.values())

    def sweep(self, now: float) -> None:
        """Let full buckets go; called by the coarse clock."""
        for buckets in self._rules.values():
            buckets.turn(buckets.at(now))
            buckets.free_some()


class Rule:
    """A rule with what a request needs of it, computed once."""

    __slots__ = ("buckets", "capacity", "cost", "is_enforced", "kind", "name", "rule", "segments", "window_s")

    def __init__(self, rule: RateLimitRule, buckets: Buckets) -> None:
        self.rule = rule
        self.buckets = buckets
        self.capacity = rule.max_requests
        self.cost = 1.0 / rule.max_requests
        self.window_s = float(rule.window_seconds)
        self.kind = rule.limit_type
        self.is_enforced = rule.mode is LimitMode.ENFORCE
        self.name = rule.name.encode("ascii")
        self.segments = parse_pattern(rule.path_pattern) if rule.path_pattern else None


class Check(NamedTuple):
    """What one rule says of one request; `full_at` is before it was spent, both in the rule's time."""

    rule: Rule
    subject: str
    at: float
    full_at: float
    is_allowed: bool

    def tokens(self, spent: float = 0.0) -> float:
        return max(0.0, self.rule.capacity * (1.0 - (self.full_at + spent - self.at)))


#: Rules are asked in this order, so the global ones come last.
_ORDER = {LimitType.PER_USER: 0, LimitType.PER_IP: 1, LimitType.PER_ENDPOINT: 2, LimitType.GLOBAL: 3}


class Limits:
    """The fourth stage; refused exchanges spend too, or guessing tokens and paths would be free.

    Args:
        rules: the active ones of the snapshot.
        ipv6_prefix: IPv6 addresses count as this network.
    """

    sees_refused = True
    settles_nothing = True

    def __init__(self, rules: Iterable[RateLimitRule], store: BucketStore, ipv6_prefix: int, now: float) -> None:
        active = sorted((rule for rule in rules if rule.is_active), key=lambda rule: (_ORDER[rule.limit_type], rule.id))
        self._store = store
        self._prefix = ipv6_prefix
        self._rules = tuple(Rule(rule, store.of(rule, now)) for rule in active)
        self._has_patterns = any(rule.segments is not None for rule in self._rules)
        self._memo: dict[str, tuple[Rule, ...]] = {}

    @property
    def is_active(self) -> bool:
        """Whether any rule is enforced: then the gateway sends rate-limit fields."""
        return any(rule.is_enforced for rule in self._rules)

    def decide(self, exchange: Exchange) -> Refusal | None:
        refusal = exchange.refusal
        if refusal is not None and refusal.reason in _FREE:
            return None
        route = exchange.route
        if exchange.is_local and route is not None and route.is_public:
            return None
        rules = self._applying(exchange.head.path) if self._has_patterns else self._rules
        if not rules:
            return None
        checks = self._check(exchange, rules)
        if exchange.trace is not None:
            exchange.trace["limits"] = [_as_json(check) for check in checks]
        violated = [check for check in checks if not check.is_allowed]
        if violated and self._refuses(exchange, violated):
            return self._refuse(exchange, [check for check in violated if check.rule.is_enforced])
        if not exchange.is_rehearsal:
            self._spend(checks)
        if checks:
            _add_lines(exchange, checks)
        return None

    def _applying(self, path: str) -> tuple[Rule, ...]:
        found = self._memo.get(path)
        if found is None:
            if len(self._memo) >= _MEMO_SIZE:
                self._memo.clear()
            found = self._memo[path] = tuple(
                rule for rule in self._rules if rule.segments is None or pattern_matches(rule.segments, path)
            )
        return found

    def _check(self, exchange: Exchange, rules: tuple[Rule, ...]) -> list[Check]:
        now = exchange.now
        checks = []
        for rule in rules:
            subject = self._subject(exchange, rule.kind)
            if subject is None:
                continue
            buckets = rule.buckets
            at = buckets.at(now)
            full_at = buckets.full_at(subject, at)
            checks.append(Check(rule, subject, at, full_at, full_at + rule.cost - at <= 1.0 + _EPSILON))
        return checks

    def _subject(self, exchange: Exchange, kind: LimitType) -> str | None:
        """Whose bucket; None where the rule does not concern this exchange."""
        if kind is LimitType.PER_IP:
            return network_of(exchange.client_ip, self._prefix)
        if kind is LimitType.PER_USER:
            if exchange.identity is not None:
                return exchange.identity.user_id
            if exchange.refusal is not None:
                return None
            return f"\0{network_of(exchange.client_ip, self._prefix)}"  # no user id begins with NUL
        if kind is LimitType.PER_ENDPOINT:
            return exchange.route.id if exchange.route is not None else None
        return ""

    def _refuses(self, exchange: Exchange, violated: list[Check]) -> bool:
        is_refusing = False
        for check in violated:
            rule = check.rule
            if rule.is_enforced:
                is_refusing = True
                rule.buckets.refused += not exchange.is_rehearsal
            else:
                exchange.observed = f"observed: {rule.rule.name} would refuse"
                rule.buckets.observed += not exchange.is_rehearsal
        return is_refusing

    def _spend(self, checks: list[Check]) -> None:
        for check in checks:
            buckets = check.rule.buckets
            if not check.is_allowed:
                continue  # an observed rule's empty bucket stays empty, not in debt
            buckets.allowed += 1
            if check.subject not in buckets.young:
                self._make_room(buckets, check.at)
            buckets.young[check.subject] = check.full_at + check.rule.cost

    def _make_room(self, buckets: Buckets, at: float) -> None:
        buckets.turn(at)
        if len(buckets) * len(self._rules) >= self._store.max_buckets and len(self._store) >= self._store.max_buckets:
            buckets.evict(at)

    @staticmethod
    def _refuse(exchange: Exchange, violated: list[Check]) -> Refusal:
        wait_s = max((check.full_at + check.rule.cost - check.at - 1.0) * check.rule.window_s for check in violated)
        lines: list[HeaderLine] = [(b"Retry-After", b"%d" % max(1, math.ceil(wait_s - _EPSILON)))]
        lines += _field_lines(exchange, violated, spent=0.0)
        faults = tuple(Fault(check.rule.rule.name, "") for check in violated)
        return Refusal(Reason.RATE_LIMITED, headers=tuple(lines), faults=faults)

    def settle(self, exchange: Exchange) -> None:
        """Nothing to learn: what was spent stays spent."""

    def status(self, now: float) -> list[dict[str, Any]]:
        """The rules with their live fill, for GET /rate-limits."""
        rows = []
        for rule in self._rules:
            at = rule.buckets.at(now)
            lowest = rule.buckets.lowest_fill(at)
            rows.append(
                {
                    "id": rule.rule.id,
                    "name": rule.rule.name,
                    "limit_type": str(rule.kind),
                    "path_pattern": rule.rule.path_pattern,
                    "mode": str(rule.rule.mode),
                    "max_requests": rule.capacity,
                    "window_seconds": rule.rule.window_seconds,
                    "buckets_in_use": len(rule.buckets),
                    "lowest_tokens": math.floor(rule.capacity * lowest + _EPSILON),
                    "allowed": rule.buckets.allowed,
                    "refused": rule.buckets.refused,
                    "observed": rule.buckets.observed,
                }
            )
        return rows


def _add_lines(exchange: Exchange, checks: list[Check]) -> None:
    enforced = [check for check in checks if check.rule.is_enforced]
    if enforced:
        exchange.reply_lines += _field_lines(exchange, enforced, spent=1.0)


def _field_lines(exchange: Exchange, checks: list[Check], spent: float) -> list[HeaderLine]:
    """X-RateLimit-* of the tightest rule, and the fields of the draft for all."""
    policies, fields = [], []
    tightest = 2.0
    limit = remaining = 0
    reset_s = 0.0
    for check in checks:
        rule = check.rule
        capacity = rule.capacity
        missing = check.full_at - check.at + spent * rule.cost
        tokens = capacity * (1.0 - missing)
        whole = max(0, math.floor(tokens + _EPSILON))
        more_s = max(0, math.ceil((whole + 1 - tokens) * rule.window_s / capacity - _EPSILON))
        policies.append(b'"%b";q=%d;w=%d' % (rule.name, capacity, rule.window_s))
        fields.append(b'"%b";r=%d;t=%d' % (rule.name, whole, more_s))
        if whole / capacity < tightest:
            tightest, limit, remaining, reset_s = whole / capacity, capacity, whole, missing * rule.window_s
    return [
        (b"X-RateLimit-Limit", b"%d" % limit),
        (b"X-RateLimit-Remaining", b"%d" % remaining),
        (b"X-RateLimit-Reset", b"%d" % math.ceil(exchange.wall + reset_s)),
        (b"RateLimit-Policy", b",".join(policies)),
        (b"RateLimit", b",".join(fields)),
    ]


def _as_json(check: Check) -> dict[str, Any]:
    rule = check.rule
    return {
        "rule": rule.rule.id,
        "name": rule.rule.name,
        "limit_type": str(rule.kind),
        "mode": str(rule.rule.mode),
        "subject": check.subject.replace("\0", "anonymous "),
        "tokens": round(check.tokens(), 6),
        "capacity": rule.capacity,
        "allowed": check.is_allowed,
    }


@lru_cache(maxsize=8192)
def network_of(address: str, ipv6_prefix: int) -> str:
    """An IPv4 address itself, an IPv6 address as its network: one customer has more than one of these."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/{ipv6_prefix}", strict=False).network_address)
