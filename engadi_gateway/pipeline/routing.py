"""Which route serves a request: an immutable table, built once per configuration.

Order: priority, then a host before none, then segment by segment literal before `{name}` before `*`, longer first, then
id. A match walks a tree of segments, so it costs the same with ten routes and with ten thousand; what it found is
remembered, bounded, by (host, method, path).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from engadi_gateway.errors import ConfigurationError, Fault, Reason, Refusal
from engadi_gateway.model import Route, Service
from engadi_gateway.pipeline.exchange import Exchange, Target

LOCAL_SERVICE = "gateway"
_CACHE_SIZE = 4096
_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})+")
_HOST = re.compile(r"[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\]")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")


def parse_pattern(pattern: str) -> tuple[str, ...]:
    """The segments of a pattern: literals, "{}" for a parameter, a last "*".

    Raises:
        ValueError: with a sentence.
    """
    if not pattern.startswith("/"):
        raise ValueError("a pattern begins with /")
    segments = pattern[1:].split("/")
    parsed = []
    for index, segment in enumerate(segments):
        is_last = index == len(segments) - 1
        if segment == "*" and is_last:
            parsed.append("*")
        elif _PARAMETER.fullmatch(segment):
            parsed.append("{}")
        elif "*" in segment or "{" in segment or "}" in segment:
            raise ValueError("* only as the last segment, {name} only as a whole segment")
        elif segment in {".", ".."} or (segment and not _LITERAL.fullmatch(segment)) or not (segment or is_last):
            raise ValueError(f"segment {segment!r} can never match a normalised path")
        else:
            parsed.append(segment)
    return tuple(parsed)


def parameter_names(pattern: str) -> tuple[str, ...]:
    """The names of a pattern's parameters, in order."""
    return tuple(part[1:-1] for part in pattern.split("/") if _PARAMETER.fullmatch(part))


class Match(NamedTuple):
    """A route, its parameters in order, and the length of the path in front of a last `*` (for strip_prefix)."""

    route: Route
    params: tuple[str, ...]
    prefix_length: int


class Miss(NamedTuple):
    """No route: `allow` are the methods that the path does have, () where there is no such path."""

    allow: tuple[str, ...]


class Verdict(NamedTuple):
    """A candidate and why it lost, or "won"."""

    route: Route
    why: str


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    exact: list[int] = field(default_factory=list)  # ranks of routes that end here
    below: list[int] = field(default_factory=list)  # ranks of routes that end here with /*


def _rank(route: Route) -> tuple[object, ...]:
    segments = parse_pattern(route.path_pattern)
    kinds = tuple(2 if segment == "*" else 1 if segment == "{}" else 0 for segment in segments)
    return -route.priority, not route.host, kinds, -len(segments), route.path_pattern, route.id


def _conditions(route: Route) -> tuple[object, ...]:
    return route.priority, route.host, parse_pattern(route.path_pattern)


def route_faults(route: Route) -> list[Fault]:
    """What is wrong with a route's match conditions."""
    faults = []
    try:
        parse_pattern(route.path_pattern)
    except ValueError as error:
        faults.append(Fault("/path_pattern", str(error)))
    if route.host and not _HOST.fullmatch(route.host):
        faults.append(Fault("/host", "a host name in lower case without port"))
    faults.extend(Fault("/methods", f"not a method: {name}") for name in route.methods if not _METHOD.fullmatch(name))
    return faults


class RoutingTable:
    """Immutable but for its memo.

    Raises:
        ConfigurationError: a malformed route, or two with the same match conditions (pointer `/routes/<id>`).
    """

    def __init__(self, routes: Iterable[Route], services: Mapping[str, Service]) -> None:
        every = tuple(routes)
        faults = [
            Fault(f"/routes/{route.id}{fault.pointer}", fault.detail)
            for route in every
            for fault in route_faults(route)
        ]
        if faults:
            raise ConfigurationError(faults)
        self._ordered = tuple(sorted(every, key=_rank))
        self._services = services
        self._refuse_twins()
        self._roots: dict[str, _Node] = {}
        for rank, route in enumerate(self._ordered):
            if route.is_active:
                self._insert(rank, route)
        self._memo: dict[tuple[str, str, str], Match | Miss] = {}
        self.visits = 0  # nodes looked at, for the test that matching does not depend on the number of routes

    def _refuse_twins(self) -> None:
        seen: dict[tuple[object, ...], list[Route]] = {}
        for route in self._ordered:
            for other in seen.setdefault(_conditions(route), []):
                if not (route.methods and other.methods) or set(route.methods) & set(other.methods):
                    detail = f"matches the same requests as route {other.id}"
                    raise ConfigurationError([Fault(f"/routes/{route.id}/path_pattern", detail)])
            seen[_conditions(route)].append(route)

    def _insert(self, rank: int, route: Route) -> None:
        node = self._roots.setdefault(route.host, _Node())
        segments = parse_pattern(route.path_pattern)
        for segment in segments:
            if segment == "*":
                node.below.append(rank)
                return
            if segment == "{}":
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        node.exact.append(rank)

    def ordered(self) -> tuple[Route, ...]:
        """All routes, inactive ones too, in the order in which they are tried."""
        return self._ordered

    def url_of(self, service: str, url: str) -> str:
        """A target's URL, "" where neither the route nor the settings have one."""
        if url:
            return url
        found = self._services.get(service)
        return found.url if found is not None else ""

    def match(self, method: str, host: str, path: str) -> Match | Miss:
        """The route for a request, or what the path allows."""
        key = (host, method, path)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= _CACHE_SIZE:
                self._memo.clear()
            found = self._memo[key] = self._match(method, host, path)
        return found

    def _match(self, method: str, host: str, path: str) -> Match | Miss:
        ranks = self._candidates(host, path)
        for rank in ranks:
            route = self._ordered[rank]
            if allows(route, method):
                return _matched(route, path)
        allow = dict.fromkeys(name for rank in ranks for name in self._ordered[rank].methods)
        if "GET" in allow:
            allow["HEAD"] = None
        return Miss(tuple(allow))

    def _candidates(self, host: str, path: str) -> list[int]:
        """Ranks of all active routes whose host and path match, best first."""
        if not path.startswith("/"):
            return []
        segments = path[1:].split("/")
        ranks: list[int] = []
        for root in (self._roots.get(host) if host else None, self._roots.get("")):
            if root is not None:
                self._collect(root, segments, ranks)
        ranks.sort()
        return ranks

    def _collect(self, root: _Node, segments: list[str], ranks: list[int]) -> None:
        nodes = [root]
        for index, segment in enumerate(segments):
            following = []
            for node in nodes:
                self.visits += 1
                ranks.extend(node.below)
                literal = node.literals.get(segment)
                if literal is not None:
                    following.append(literal)
                if node.parameter is not None and segment:
                    following.append(node.parameter)
            nodes = following
            if not nodes:
                return
            if index == len(segments) - 1:
                for node in nodes:
                    ranks.extend(node.exact)
                    ranks.extend(node.below)  # /a/* matches /a as well

    def trace(self, method: str, host: str, path: str) -> list[Verdict]:
        """Every route that is a candidate by path, and why it lost; the same order and the same rules as `match`."""
        winner = self.match(method, host, path)
        verdicts = []
        for route in self._ordered:
            if pattern_matches(parse_pattern(route.path_pattern), path):
                verdicts.append(Verdict(route, _why(route, method, host, winner)))
        return verdicts


def _why(route: Route, method: str, host: str, winner: Match | Miss) -> str:
    if isinstance(winner, Match) and winner.route is route:
        return "won"
    if not route.is_active:
        return "not active"
    if route.host and route.host != host:
        return f"host is not {route.host}"
    if not allows(route, method):
        return f"method is not one of {', '.join(route.methods)}"
    return "another comes first in the order"


def pattern_matches(segments: tuple[str, ...], path: str) -> bool:
    """Whether a parsed pattern matches a normalised path: the slow way, for traces and for rules of one pattern."""
    given = path[1:].split("/")
    if segments[-1] == "*":
        segments = segments[:-1]
        if len(given) < len(segments):
            return False
        given = given[: len(segments)]
    return len(segments) == len(given) and all(
        want == have or (want == "{}" and bool(have)) for want, have in zip(segments, given, strict=True)
    )


def allows(route: Route, method: str) -> bool:
    """Whether a route serves a method; HEAD is served where GET is (RFC 9110 section 9.3.2)."""
    return not route.methods or method in route.methods or (method == "HEAD" and "GET" in route.methods)


def _matched(route: Route, path: str) -> Match:
    segments = parse_pattern(route.path_pattern)
    given = path[1:].split("/")
    params = tuple(have for want, have in zip(segments, given, strict=False) if want == "{}")
    fixed = segments[:-1] if segments[-1] == "*" else segments
    prefix_length = sum(len(part) + 1 for part in given[: len(fixed)])
    return Match(route, params, prefix_length if segments[-1] == "*" else 0)


class Routing:
    """The first stage.

    Args:
        table: the configured routes.
        local: the gateway's own endpoints, asked first: nobody can shadow them.
    """

    sees_refused = False
    settles_nothing = True

    def __init__(self, table: RoutingTable, local: RoutingTable | None = None) -> None:
        self._table = table
        self._local = local

    def decide(self, exchange: Exchange) -> Refusal | None:
        head = exchange.head
        method = head.method
        is_preflight = False
        if method == "OPTIONS" and b"origin" in head.notes and b"access-control-request-method" in head.notes:
            is_preflight = True
            method = head.notes[b"access-control-request-method"].decode("latin-1")
        found = self._find(exchange, method, head.host, head.path)
        if isinstance(found, Miss):
            return self._missed(exchange, found, is_preflight=is_preflight)
        route = exchange.route = found.route
        exchange.params = found.params
        if route.strip_prefix:
            exchange.strip_prefix_length = found.prefix_length
        if head.has_encoded_slash and not route.allow_encoded_slashes:
            return Refusal(Reason.BAD_REQUEST, "encoded slash in the path")
        return None

    def _find(self, exchange: Exchange, method: str, host: str, path: str) -> Match | Miss:
        if self._local is not None:
            found = self._local.match(method, host, path)
            if isinstance(found, Match) or found.allow:
                exchange.is_local = True
                return found
        return self._table.match(method, host, path)

    def _missed(self, exchange: Exchange, miss: Miss, *, is_preflight: bool) -> Refusal:
        if not miss.allow:
            return Refusal(Reason.NO_ROUTE)
        allow = ((b"Allow", ", ".join(miss.allow).encode("ascii")),)
        if exchange.head.method == "OPTIONS" and not is_preflight:
            return Refusal(Reason.OPTIONS, headers=allow)
        return Refusal(Reason.METHOD_NOT_ALLOWED, headers=allow)


class TargetPicker:
    """Which target of a route serves an exchange: the route's own, or a share of its split, sticky by user or address."""

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._memo: dict[str, tuple[tuple[int, Target], ...]] = {}

    def __call__(self, exchange: Exchange) -> Target | None:
        route = exchange.route
        if route is None:
            return None
        shares = self._memo.get(route.id)
        if shares is None:
            shares = self._memo[route.id] = self._shares(route)
        if len(shares) <= 1:
            return shares[0][1] if shares else None
        who = exchange.identity.user_id if exchange.identity is not None else exchange.client_ip
        point = zlib.crc32(f"{route.id}\0{who}".encode()) % shares[-1][0]
        return next(target for limit, target in shares if point < limit)

    def _shares(self, route: Route) -> tuple[tuple[int, Target], ...]:
        """Cumulative weights; a share without a URL has no place to go and is left out."""
        targets = route.split or ()
        rows = [(share.target_service, share.target_url, share.weight) for share in targets] or [
            (route.target_service, route.target_url, 1)
        ]
        shares: list[tuple[int, Target]] = []
        total = 0
        for service, configured, weight in rows:
            url = self._table.url_of(service, configured)
            if url and weight > 0:
                total += weight
                shares.append((total, Target(service, url)))
        return tuple(shares)
