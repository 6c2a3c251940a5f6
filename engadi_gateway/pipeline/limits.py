"""Token buckets: who may ask how often. All rules that apply are looked at before any is spent.

Arithmetic, for capacity C, window w, and m windows until a bucket is full (0 to 1): tokens L = C (1 - m), one request
adds 1/C to m. RateLimit fields after draft-ietf-httpapi-ratelimit-headers-10: r = floor(L), t = ceil((floor(L) + 1 - L)
w / C); Retry-After (RFC 9110 section 10.2.3) is never 0.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any, NamedTuple

from engadi_gateway.errors import ConfigurationError, Fault, Reason, Refusal
from engadi_gateway.model import LimitMode, LimitType, RateLimitRule
from engadi_gateway.pipeline.buckets import Buckets, BucketStore
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.patterns import parse_pattern, pattern_readings, readings, segments_match
from engadi_gateway.settings.options import MAX_REQUESTS

#: A thousandth of a token is forgiven: rounding after months must not cost a whole one.
_ROUNDING = 0.001
_CEILING = 0.999999
#: Of what gets tokens faster than that, the next one comes within a second: t is 1, whatever is left.
_FAST_S = 0.99
_MEMO_SIZE = 4096
_MEMO_PATH_LENGTH = 256
#: Of the ways in which a path may fit some of the patterns: there are twice as many with each pattern more.
_MOST_FITS = 512
#: A longer user id is kept as its hash, so that a bucket's size is bounded.
_MAX_SUBJECT_LENGTH = 64
#: Refusals that ask nothing of anybody behind us.
_FREE = frozenset((Reason.PREFLIGHT, Reason.PREFLIGHT_DENIED, Reason.OPTIONS))
_KINDS = (LimitType.PER_USER, LimitType.PER_IP, LimitType.PER_ENDPOINT, LimitType.GLOBAL)


class Rule:
    """A rule with what a request needs of it, computed once."""

    __slots__ = (
        "buckets", "capacity", "cost", "is_enforced", "is_fast", "kind", "most_missing", "name", "readings", "rule",
        "segments", "token_s", "window_s",
    )  # fmt: skip

    def __init__(self, rule: RateLimitRule, buckets: Buckets) -> None:
        self.rule = rule
        self.buckets = buckets
        self.capacity = rule.max_requests
        self.cost = 1.0 / rule.max_requests
        self.window_s = float(rule.window_seconds)
        self.token_s = self.window_s / self.capacity
        self.is_fast = self.token_s < _FAST_S
        self.most_missing = 1.0 + self.cost * _ROUNDING
        self.kind = _KINDS.index(rule.limit_type)
        self.is_enforced = rule.mode is LimitMode.ENFORCE
        self.name = b'"%b"' % rule.name.encode("ascii").replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        self.segments = parse_pattern(rule.path_pattern) if rule.path_pattern else None
        self.readings = pattern_readings(self.segments) if self.segments else []

    def fits(self, path: list[str], read: Callable[[], list[list[str]]]) -> bool:
        """Whether the rule's pattern does. Who spells a path otherwise, for a lenient upstream, is counted as well.

        Args:
            path: its segments; none for the server as a whole.
            read: its readings, which cost something where a path is long.
        """
        if self.segments is None or (path and segments_match(self.segments, path)):
            return True
        return any(segments_match(segments, one) for segments in self.readings for one in read())


class Check(NamedTuple):
    """What one rule says of one request. `missing`: windows until the bucket would be full, had this been spent."""

    rule: Rule
    subject: str
    missing: float

    @property
    def is_allowed(self) -> bool:
        return self.missing <= self.rule.most_missing

    @property
    def tokens(self) -> float:
        """Before it is spent."""
        return self.rule.capacity * (1.0 - self.missing) + 1.0


class Plan:
    """The rules that apply to one kind of request, and the reply lines that follow from that alone."""

    __slots__ = ("enforced", "observes", "rules", "template")

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self.enforced = tuple(rule for rule in rules if rule.is_enforced)
        self.observes = len(self.enforced) < len(rules)
        names = [rule.name.replace(b"%", b"%%") for rule in self.enforced]
        policies = [
            b"%b;q=%d;w=%d" % (name, rule.capacity, rule.window_s)
            for name, rule in zip(names, self.enforced, strict=True)
        ]
        items = [
            b"%b;r=%%d;t=1" % name if rule.is_fast else b"%b;r=%%d;t=%%d" % name
            for name, rule in zip(names, self.enforced, strict=True)
        ]
        #: All five lines; its numbers are limit, remaining and reset of the tightest rule, then r and t of each.
        self.template = (
            b"X-RateLimit-Limit: %%d\r\nX-RateLimit-Remaining: %%d\r\nX-RateLimit-Reset: %%d\r\n"
            b"RateLimit-Policy: %b\r\nRateLimit: %b"
        ) % (b",".join(policies), b",".join(items))


#: The plans of one path, by what is known: with or without a user to count, with or without a route.
Plans = tuple[Plan, Plan, Plan, Plan]


def rule_faults(rule: RateLimitRule) -> list[Fault]:
    """What is wrong with a rule, with JSON pointers to its fields."""
    faults = []
    if not (rule.name.isascii() and rule.name.isprintable() and 1 <= len(rule.name) <= 64):
        faults.append(Fault("/name", "1 to 64 printable ASCII characters (it stands in a header, RFC 9651)"))
    if not 1 <= rule.max_requests <= MAX_REQUESTS:
        faults.append(Fault("/max_requests", f"1 to {MAX_REQUESTS}"))
    if rule.window_seconds < 1:
        faults.append(Fault("/window_seconds", "1 or more"))
    if rule.path_pattern:
        try:
            parse_pattern(rule.path_pattern)
        except ValueError as error:
            faults.append(Fault("/path_pattern", str(error)))
    return faults


class Limits:
    """The fourth stage; refused exchanges spend too, or guessing tokens and paths would be free.

    Args:
        rules: of the snapshot; those that are not active are left out.
        store: the buckets; they outlive this stage.
        ipv6_prefix: IPv6 addresses count as this network.
        now: monotonic seconds, at which the clock of a new rule begins.

    Raises:
        ConfigurationError: what `rule_faults` finds (pointers `/rules/<id>/<field>`).
    """

    sees_refused = True
    settles_nothing = True

    def __init__(self, rules: Iterable[RateLimitRule], store: BucketStore, ipv6_prefix: int, now: float) -> None:
        active = [rule for rule in rules if rule.is_active]
        faults = [
            Fault(f"/rules/{rule.id}{found.pointer}", found.detail) for rule in active for found in rule_faults(rule)
        ]
        if faults:
            raise ConfigurationError(faults)
        self._store = store
        self._prefix = ipv6_prefix
        compiled = (Rule(rule, store.of(rule, now)) for rule in active)
        self._rules = tuple(sorted(compiled, key=lambda rule: (rule.kind, rule.rule.id)))
        self._patterned = tuple(rule for rule in self._rules if rule.segments is not None)
        self._by_fit: dict[tuple[bool, ...], Plans] = {}
        self._by_path: dict[str, Plans] = {}
        self._everywhere = None if self._patterned else _plans(self._rules)
        self.decides_nothing = not self._rules

    def decide(self, exchange: Exchange) -> Refusal | None:
        return self._weigh(exchange, exchange.refusal is not None and exchange.identity is None)

    def charge(self, exchange: Exchange) -> Refusal | None:
        """Before somebody is asked about a token: what it costs whoever sent it, whatever the answer will be.

        Or invented tokens, each of which is a question, would cost nothing before their answers came.
        """
        return None if exchange.charged else self._weigh(exchange, True, is_ahead=True)

    def _weigh(self, exchange: Exchange, is_stranger: bool, *, is_ahead: bool = False) -> Refusal | None:
        refusal, route = exchange.refusal, exchange.route
        if refusal is not None and refusal.reason in _FREE:
            return None
        if exchange.is_local and route is not None and route.is_public:
            return None
        plan = (self._everywhere or self._plans_for(exchange.head.path))[is_stranger + 2 * (route is None)]
        subjects = self._subjects(exchange)
        charged = exchange.charged
        found, has_violation = _look(plan.rules, subjects, exchange.now)
        if charged:  # these were looked at then, and what they cost is gone
            found = [(rule, who, at, missing - rule.cost * (rule in charged)) for rule, who, at, missing in found]
            has_violation = any(missing > rule.most_missing for rule, _, _, missing in found)
        spent = found
        if has_violation or exchange.trace is not None:
            refused = self._examine(exchange, [Check(rule, who, missing) for rule, who, _, missing in found])
            if refused is not None:
                return refused
            # an observed rule's empty bucket stays empty, not in debt
            spent = [one for one in found if one[3] <= one[0].most_missing]
        if not exchange.is_rehearsal:
            self._spend([one for one in spent if one[0] not in charged] if charged else spent)
        if is_ahead:
            exchange.charged = plan.rules
        elif plan.enforced:
            told = [one for one in found if one[0].is_enforced] if plan.observes else found
            exchange.rate_line = _lines(plan, told, exchange.wall)
            exchange.reply_lines.append(exchange.rate_line)
        return None

    def _spend(self, found: Found) -> None:
        for rule, subject, at, missing in found:
            buckets = rule.buckets
            buckets.allowed += 1
            full_at = buckets.full_at
            if subject in full_at:
                full_at[subject] = at + missing
            else:
                self._store.add(buckets, subject, at + missing, at)

    @staticmethod
    def _examine(exchange: Exchange, checks: list[Check]) -> Refusal | None:
        """What the checks amount to: a refusal, or at most something to note."""
        if exchange.trace is not None:
            exchange.trace["limits"] = [_as_json(check) for check in checks]
        violated = [check for check in checks if not check.is_allowed]
        observed = [check.rule.rule.name for check in violated if not check.rule.is_enforced]
        if observed:
            exchange.observed = f"observed: {', '.join(observed)} would refuse"
        for check in violated:
            rule = check.rule
            if not exchange.is_rehearsal:
                rule.buckets.refused += rule.is_enforced
                rule.buckets.observed += not rule.is_enforced
        enforced = [check for check in violated if check.rule.is_enforced]
        return _refusal(enforced, exchange.wall) if enforced else None

    def _subjects(self, exchange: Exchange) -> tuple[str, str, str, str]:
        """Whose bucket it is, in the order of `_KINDS`."""
        identity, route = exchange.identity, exchange.route
        address = exchange.client_ip
        if ":" in address:
            address = network_of(address, self._prefix)
        if identity is None:
            user = "\0" + address  # no user's id begins with NUL
        else:
            user = identity.user_id
            if len(user) > _MAX_SUBJECT_LENGTH:
                user = _digest(user)
        return user, address, "" if route is None else route.id, ""

    def _plans_for(self, path: str) -> Plans:
        plans = self._by_path.get(path)
        if plans is None:
            given = path[1:].split("/") if path[:1] == "/" else []
            read = cache(lambda: readings(path))
            fit = tuple(rule.fits(given, read) for rule in self._patterned)
            plans = self._by_fit.get(fit)
            if plans is None:
                misfits = {rule for rule, fits in zip(self._patterned, fit, strict=True) if not fits}
                if len(self._by_fit) >= _MOST_FITS:
                    self._by_fit.clear()
                plans = self._by_fit[fit] = _plans(tuple(rule for rule in self._rules if rule not in misfits))
            if len(path) <= _MEMO_PATH_LENGTH:
                if len(self._by_path) >= _MEMO_SIZE:
                    self._by_path.clear()
                self._by_path[path] = plans
        return plans

    def settle(self, exchange: Exchange) -> None:
        """Nothing to learn: what was spent stays spent."""

    def begin(self, now: float) -> None:
        """These rules hold from now on: where a window is another one, its clock goes on at that pace."""
        for rule in self._rules:
            if rule.buckets.window_s != rule.window_s:
                rule.buckets.bend(rule.window_s, now)

    def status(self, now: float) -> list[dict[str, Any]]:
        """The rules with their live fill, for GET /rate-limits."""
        return [_status(rule, now) for rule in self._rules]


#: For each rule: whose bucket, its clock, and what would be missing from the bucket afterwards.
Found = list[tuple[Rule, str, float, float]]


def _look(rules: tuple[Rule, ...], subjects: tuple[str, ...], now: float) -> tuple[Found, bool]:
    """What the rules say of these subjects, and whether any of them is violated."""
    found = []
    has_violation = False
    for rule in rules:
        buckets = rule.buckets
        at = (now - buckets.since) / buckets.window_s
        subject = subjects[rule.kind]
        full_at = buckets.full_at.get(subject, at)
        missing = full_at - at + rule.cost if full_at > at else rule.cost
        if missing > rule.most_missing:
            has_violation = True
        found.append((rule, subject, at, missing))
    return found, has_violation


def _plans(rules: tuple[Rule, ...]) -> Plans:
    not_user = tuple(rule for rule in rules if rule.kind != _KINDS.index(LimitType.PER_USER))
    endpoint = _KINDS.index(LimitType.PER_ENDPOINT)
    return (
        Plan(rules),
        Plan(not_user),
        Plan(tuple(rule for rule in rules if rule.kind != endpoint)),
        Plan(tuple(rule for rule in not_user if rule.kind != endpoint)),
    )


def _lines(plan: Plan, found: Found, wall: float) -> bytes:
    """X-RateLimit-* of the tightest rule, and the fields of the draft for all; `found` is of the enforced ones."""
    numbers = []
    tightest = 2.0
    for rule, _, _, missing in found:
        tokens = rule.capacity * (1.0 - missing)
        # what a smaller rule was forgiven may be many tokens of one that grew
        whole = int(tokens + _ROUNDING) if tokens > 0.0 else 0
        numbers.append(whole)
        if not rule.is_fast:
            numbers.append(int((whole + 1 - tokens) * rule.token_s + _CEILING))
        share = whole * rule.cost
        if share < tightest:
            tightest, limit, remaining, full_s = share, rule.capacity, whole, missing * rule.window_s
    return plan.template % (limit, remaining, int(wall + full_s + _CEILING), *numbers)


def _refusal(violated: list[Check], wall: float) -> Refusal:
    """429, which tells of the violated rules only. Retry-After is for the slowest, and never before any `t`."""
    plan = Plan(tuple(check.rule for check in violated))
    # as it is, nothing being spent
    found = [(check.rule, check.subject, 0.0, check.missing - check.rule.cost) for check in violated]
    wait_s = max((check.missing - 1.0) * check.rule.window_s for check in violated)
    retry_after = (b"Retry-After", b"%d" % max(1, int(wait_s + _CEILING)))
    names = tuple(Fault(check.rule.rule.name, "") for check in violated)
    lines = [line.partition(b": ") for line in _lines(plan, found, wall).split(b"\r\n")]
    headers = (retry_after, *((name, value) for name, _, value in lines))
    return Refusal(Reason.RATE_LIMITED, headers=headers, faults=names)


def _status(rule: Rule, now: float) -> dict[str, Any]:
    buckets = rule.buckets
    return {
        "id": rule.rule.id,
        "name": rule.rule.name,
        "limit_type": str(rule.rule.limit_type),
        "path_pattern": rule.rule.path_pattern,
        "mode": str(rule.rule.mode),
        "max_requests": rule.capacity,
        "window_seconds": rule.rule.window_seconds,
        "buckets_in_use": len(buckets),
        "lowest_tokens": int(rule.capacity * buckets.lowest_fill(buckets.at(now)) + _ROUNDING),
        "allowed": buckets.allowed,
        "refused": buckets.refused,
        "observed": buckets.observed,
    }


def _as_json(check: Check) -> dict[str, Any]:
    rule = check.rule
    return {
        "rule": rule.rule.id,
        "name": rule.rule.name,
        "limit_type": str(rule.rule.limit_type),
        "mode": str(rule.rule.mode),
        "subject": check.subject.replace("\0", "anonymous "),
        "tokens": round(max(0.0, check.tokens), 6),
        "capacity": rule.capacity,
        "allowed": check.is_allowed,
    }


def _digest(user_id: str) -> str:
    return "\1" + hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=24).hexdigest()


@lru_cache(maxsize=8192)
def network_of(address: str, ipv6_prefix: int) -> str:
    """An IPv6 address as its network, because one customer has more than one of these; an IPv4 address as it is."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/{ipv6_prefix}", strict=False).network_address)
