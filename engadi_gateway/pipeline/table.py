"""Which route serves a request: an immutable table, built once per configuration.

Order: priority, then a host before a `*.` host before none, then segment by segment literal before `{name}` before `*`,
longer first, then id. A match walks a tree of segments, so it costs the same with ten routes and with ten thousand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from engadi_gateway.errors import ConfigurationError, Fault, Reason, Refusal, RefusedError
from engadi_gateway.model import Route, Service
from engadi_gateway.pipeline.patterns import is_plain, parse_pattern, pattern_readings, readings, segments_match

_HOST = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]{2,45}\]")
#: Case-sensitive (RFC 9110 section 9.1), and all that are registered are in capitals.
METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
#: Places of a pattern in the order in which they win; END is before `*`, so `/a` wins over `/a/*` for `/a`.
_LITERAL_PLACE, _PARAMETER_PLACE, _END, _REST = range(4)


class Match(NamedTuple):
    """A route, its parameters in order, and the length of the path in front of a last `*` (for strip_prefix)."""

    route: Route
    params: tuple[str, ...]
    prefix_length: int


class Miss(NamedTuple):
    """No route: `allow` are the methods that the path does have, () where there is no such path."""

    allow: tuple[str, ...]


_NOWHERE = Miss(())


class Clash(NamedTuple):
    """The route that matched asks for less than one that a lenient upstream would find: see `patterns`."""

    route: Route
    stricter: Route


class Verdict(NamedTuple):
    """A candidate and why it lost, or "won"."""

    route: Route
    why: str


class _Compiled(NamedTuple):
    """A route with what matching needs of it. `methods` is empty for all, and has HEAD where GET is.

    `match` is what every path of a pattern without parameters gives; `readings` those of the pattern; `rank` the sort
    key, whose last part is the id: routes with the same match conditions have all others in common.
    """

    route: Route
    segments: tuple[str, ...]
    methods: frozenset[str]
    match: Match | None
    readings: list[tuple[str, ...]]
    rank: tuple[object, ...]


@dataclass(slots=True)
class _Node:
    """A place in the tree of segments; the numbers are ranks in the order, best first."""

    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    exact: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)  # patterns that go on with /*


def _compile(route: Route) -> _Compiled:
    methods = frozenset(route.methods)
    if "GET" in methods:
        methods |= {"HEAD"}  # RFC 9110 section 9.3.2
    segments = parse_pattern(route.path_pattern)
    match = None if "{}" in segments else _match(route, segments, list(segments))
    return _Compiled(route, segments, methods, match, pattern_readings(segments), _rank(route, segments))


def _places(segments: tuple[str, ...]) -> tuple[int, ...]:
    kinds = {"{}": _PARAMETER_PLACE, "*": _REST}
    places = tuple(kinds.get(segment, _LITERAL_PLACE) for segment in segments)
    return places if places[-1] == _REST else (*places, _END)


def _rank(route: Route, segments: tuple[str, ...]) -> tuple[object, ...]:
    """The sort key. Host and segments before the id only keep the listing readable: where they differ, no request fits
    both routes."""
    is_wildcard = route.host.startswith("*.")
    host = (not route.host, is_wildcard, -len(route.host) if is_wildcard else 0, route.host)
    return -route.priority, host, _places(segments), segments, route.id


def route_faults(route: Route) -> list[Fault]:
    """What is wrong with a route's match conditions, with JSON pointers to its fields."""
    try:
        parse_pattern(route.path_pattern)
    except ValueError as error:
        return [Fault("/path_pattern", str(error)), *_other_faults(route)]
    return _other_faults(route)


def _other_faults(route: Route) -> list[Fault]:
    """But for the pattern's."""
    faults = []
    if route.host and (len(route.host) > 253 or not _HOST.fullmatch(route.host)):
        faults.append(Fault("/host", "a host name in lower case without port, or *.name for all below it"))
    faults.extend(
        Fault(f"/methods/{index}", "not a method, which is in upper case")
        for index, name in enumerate(route.methods)
        if not METHOD.fullmatch(name)
    )
    return faults


def _insert(roots: dict[str, _Node], rank: int, host: str, segments: tuple[str, ...]) -> None:
    node = roots.setdefault(host, _Node())
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


def _asks_more(route: Route, other: Route) -> bool:
    """Whether a route wants a token, or a role, of which the other does not want as much."""
    if other.is_public and not other.required_roles:
        return bool(route.required_roles) or not route.is_public
    wanted, enough = frozenset(route.required_roles), frozenset(other.required_roles)
    return bool(wanted) and not (enough and enough <= wanted)


def _outdone(routes: Iterable[Route]) -> frozenset[str]:
    """Ids of the routes that ask for less than some other one."""
    kinds: dict[tuple[object, ...], list[Route]] = {}
    for route in routes:
        kinds.setdefault((route.is_public, frozenset(route.required_roles)), []).append(route)
    firsts = [alike[0] for alike in kinds.values()]
    outdone = (alike for alike in kinds.values() if any(_asks_more(one, alike[0]) for one in firsts))
    return frozenset(route.id for alike in outdone for route in alike)


def _compiled(routes: Iterable[Route], known: Mapping[str, _Compiled]) -> list[_Compiled]:
    """Of each route; what is known of one that has not changed is taken as it is.

    Raises:
        ConfigurationError: malformed routes.
    """
    found: list[_Compiled] = []
    faults: list[Fault] = []
    for route in routes:
        one = known.get(route.id)
        if one is not None and (one.route is route or one.route == route):
            found.append(one)
            continue
        try:
            found.append(_compile(route))
            wrong = _other_faults(route)
        except ValueError:
            wrong = route_faults(route)
        faults += [Fault(f"/routes/{route.id}{fault.pointer}", fault.detail) for fault in wrong]
    if faults:
        raise ConfigurationError(faults)
    return found


class RoutingTable:
    """Immutable.

    Args:
        before: of the configuration before this one: routes that are in both are not compiled anew.

    Raises:
        ConfigurationError: malformed routes (pointers `/routes/<id>/<field>`).
        RefusedError: CONFLICT, two active routes with the same match conditions.
    """

    def __init__(
        self, routes: Iterable[Route], services: Mapping[str, Service], before: RoutingTable | None = None
    ) -> None:
        known = {} if before is None else {one.route.id: one for one in before._compiled}
        wanted = {id(one): one for one in _compiled(routes, known)}
        # in the order of before: what is nearly sorted is sorted soon
        stay = [one for one in known.values() if wanted.pop(id(one), None) is not None]
        self.services = services
        self._compiled: tuple[_Compiled, ...] = tuple(sorted([*stay, *wanted.values()], key=attrgetter("rank")))
        self._refuse_twins()
        self._roots: dict[str, _Node] = {}
        self._readings: dict[str, _Node] = {}
        self._has_plain_patterns = True
        self._has_hosts = any(one.route.host for one in self._compiled)
        self._outdone = _outdone(one.route for one in self._compiled if one.route.is_active)
        for rank, compiled in enumerate(self._compiled):
            if compiled.route.is_active:
                self._insert(rank, compiled)
        self.visits = 0  # nodes looked at, for the test that matching does not depend on the number of routes

    def _refuse_twins(self) -> None:
        """Nothing but the id would decide between them, and nobody means that."""
        twins: list[_Compiled] = []
        for one in self._compiled:
            if not one.route.is_active:
                continue
            if twins and twins[0].rank[:-1] != one.rank[:-1]:
                twins = []
            for other in twins:
                if not (one.methods and other.methods) or one.methods & other.methods:
                    names = " and ".join(f"{route.id} ({route.path_pattern})" for route in (other.route, one.route))
                    detail = f"routes {names} match the same requests: priority, host or methods must tell them apart"
                    raise RefusedError(Refusal(Reason.CONFLICT, detail))
            twins.append(one)

    def _insert(self, rank: int, compiled: _Compiled) -> None:
        segments, host = compiled.segments, compiled.route.host
        _insert(self._roots, rank, host, segments)
        if self._outdone:
            self._has_plain_patterns &= compiled.readings == [segments]
            for one in compiled.readings:
                _insert(self._readings, rank, host, one)

    def ordered(self) -> tuple[Route, ...]:
        """All routes, inactive ones too, in the order in which they are tried."""
        return tuple(compiled.route for compiled in self._compiled)

    def beginnings(self) -> tuple[str, ...]:
        """How every path begins that an active route could match: the patterns up to their first variable segment."""
        patterns = (one.route.path_pattern for one in self._compiled if one.route.is_active)
        return tuple({re.split(r"/\*|\{", pattern, maxsplit=1)[0] for pattern in patterns})

    def url_of(self, service: str, url: str) -> str:
        """A target's URL, "" where neither the route nor the settings have one."""
        if url:
            return url
        found = self.services.get(service)
        return found.url if found is not None else ""

    def match(self, method: str, host: str, path: str) -> Match | Miss | Clash:
        """The route for a request, or what the path allows, or why its path is refused."""
        if path[:1] != "/":
            return _NOWHERE
        segments = path[1:].split("/")
        ranks = self._candidates(self._roots, host, segments)
        found = self._first(method, ranks) if ranks else None
        if found is None:
            return Miss(self._allowed(ranks)) if ranks else _NOWHERE
        if found.route.id in self._outdone and not (self._has_plain_patterns and is_plain(path)):
            stricter = self._stricter(method, host, path, found.route)
            if stricter is not None:
                return Clash(found.route, stricter)
        return found.match or _match(found.route, found.segments, segments)

    def _stricter(self, method: str, host: str, path: str, found: Route) -> Route | None:
        for segments in readings(path):
            read = self._first(method, self._candidates(self._readings, host, segments))
            if read is not None and _asks_more(read.route, found):
                return read.route
        return None

    def _first(self, method: str, ranks: list[int]) -> _Compiled | None:
        for rank in ranks:
            compiled = self._compiled[rank]
            if not compiled.methods or method in compiled.methods:
                return compiled
        return None

    def _allowed(self, ranks: list[int]) -> tuple[str, ...]:
        allow: dict[str, None] = {}
        for rank in ranks:
            for name in self._compiled[rank].route.methods:
                allow[name] = None
                if name == "GET":
                    allow["HEAD"] = None
        return tuple(allow)

    def _candidates(self, roots: dict[str, _Node], host: str, segments: list[str]) -> list[int]:
        """Ranks of all active routes whose host and segments match, best first."""
        ranks: list[int] = []
        if not self._has_hosts:
            if roots:
                self._collect(roots[""], segments, ranks)
        else:
            for name in _host_names(host):
                if name in roots:
                    self._collect(roots[name], segments, ranks)
        if len(ranks) > 1:
            ranks.sort()
        return ranks

    def _collect(self, root: _Node, segments: list[str], ranks: list[int]) -> None:
        """Long-hand while there is one way to go, as there mostly is."""
        node, depth = root, 0
        for depth, segment in enumerate(segments, 1):
            if node.parameter is not None:
                self._collect_all([node], segments[depth - 1 :], ranks)
                return
            if node.below:
                ranks += node.below
            following = node.literals.get(segment)
            if following is None:
                break
            node = following
        else:
            ranks += node.exact
            ranks += node.below  # /a/* matches /a as well
        self.visits += depth

    def _collect_all(self, nodes: list[_Node], segments: list[str], ranks: list[int]) -> None:
        for segment in segments:
            following = []
            for node in nodes:
                self.visits += 1
                ranks += node.below
                literal = node.literals.get(segment)
                if literal is not None:
                    following.append(literal)
                if node.parameter is not None and segment:
                    following.append(node.parameter)
            nodes = following
            if not nodes:
                return
        for node in nodes:
            ranks += node.exact
            ranks += node.below

    def trace(self, method: str, host: str, path: str) -> list[Verdict]:
        """Every route whose pattern fits the path, in order, and why it lost, or "won"."""
        if path[:1] != "/":
            return []
        winner, segments = self.match(method, host, path), path[1:].split("/")  # once: a path may be long
        return [
            Verdict(compiled.route, _why(compiled, method, host, winner))
            for compiled in self._compiled
            if segments_match(compiled.segments, segments)
        ]


def _host_names(host: str) -> list[str]:
    """Under which names the routes of a host are filed: itself, `*.` and each of its parents, "" for any."""
    if not host:
        return [""]
    labels = host.split(".")
    return [host, *(f"*.{'.'.join(labels[index:])}" for index in range(1, len(labels))), ""]


def _why(compiled: _Compiled, method: str, host: str, winner: Match | Miss | Clash) -> str:
    route = compiled.route
    if isinstance(winner, Match) and winner.route is route:
        return "won"
    if isinstance(winner, Clash) and winner.route is route:
        return f"the path can be read as one of route {winner.stricter.id}, which asks for more"
    if not route.is_active:
        return "not active"
    if route.host not in _host_names(host):
        return f"host is not {route.host}"
    if compiled.methods and method not in compiled.methods:
        return f"method is not one of {', '.join(route.methods)}"
    return "another comes first in the order"


def _match(route: Route, segments: tuple[str, ...], given: list[str]) -> Match:
    params = tuple(have for want, have in zip(segments, given, strict=False) if want == "{}")
    if segments[-1] != "*":
        return Match(route, params, 0)
    return Match(route, params, sum(len(part) + 1 for part in given[: len(segments) - 1]))
