"""Which upstream serves a request: the route's own, or a share of its split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from engadi_gateway.model import Route, Service, Snapshot, SplitTarget
from engadi_gateway.pipeline.exchange import Exchange, Target
from engadi_gateway.pipeline.table import RoutingTable


class TargetPicker:
    """Which targets may serve an exchange, the first before the others: the route's own, or the shares of its split.

    A share is sticky by user, else by address: the same hash of the same words gives the same point of the line on
    which the shares lie side by side. Who is in a share stays there when another route changes. The next ones are for
    when its circuit is open, or an attempt there failed; they are drawn in the same way among those that are left, so
    that the load of a share goes to the others by their weights, and back when it is well.

    Args:
        before: of the configuration before this one: what is known of routes that are in both is taken as it is.
    """

    def __init__(self, table: RoutingTable, before: TargetPicker | None = None) -> None:
        self._services: Mapping[str, Service] = table.services
        known = before._ways if before is not None and before._services == table.services else {}
        self._ways: dict[str, Way] = {}
        for route in table.ordered():
            way = known.get(route.id)
            self._ways[route.id] = way if way is not None and way.route is route else _way(route, table)

    def __call__(self, exchange: Exchange) -> Iterable[Target]:
        """The targets; none where no share has a URL and a weight."""
        route = exchange.route
        if route is None:
            return ()
        way = self._ways.get(route.id)
        if way is None or way.only:
            return () if way is None else way.only
        who = f"u{exchange.identity.user_id}" if exchange.identity is not None else f"a{exchange.client_ip}"
        return _drawn(f"{route.id}\0{who}", way.shares)

    def active(self) -> list[Way]:
        """Of the routes that are."""
        return [way for way in self._ways.values() if way.route.is_active]


class Share(NamedTuple):
    target: Target
    weight: int


class Way(NamedTuple):
    """Where a route's requests may go; `only` is that place where there is no other, else ()."""

    route: Route
    shares: tuple[Share, ...]
    only: tuple[Target, ...]


def services_of(snapshot: Snapshot, health_path: str) -> Mapping[str, Service]:
    """By name: the settings' services, and those that only routes name, with the URL of the first that has one."""
    found = dict(snapshot.services)
    for one in _serving(snapshot.routes):
        if one.target_url and one.target_service not in found:
            found[one.target_service] = Service(one.target_service, one.target_url, health_path)
    return found


def urls_of(targets: TargetPicker) -> Mapping[str, frozenset[str]]:
    """The names of the services behind each URL that requests may be sent to."""
    found: dict[str, set[str]] = defaultdict(set)
    for way in targets.active():
        for share in way.shares:
            found[share.target.url].add(share.target.service)
    return {url: frozenset(names) for url, names in found.items()}


def without_target(targets: TargetPicker) -> list[Route]:
    """Active routes that have nowhere to go."""
    return [way.route for way in targets.active() if not way.shares]


def without_route(services: Iterable[str], table: RoutingTable) -> list[str]:
    """Of these services, those to which no active route leads."""
    named = {one.target_service for one in _serving(table.ordered())}
    return [name for name in services if name not in named]


def _serving(routes: Iterable[Route]) -> Iterator[Route | SplitTarget]:
    """Who may be asked: the shares of a split, else the route itself; nobody for one that is not active."""
    for route in routes:
        if route.is_active:
            yield from route.split or (route,)


def _drawn(words: str, shares: tuple[Share, ...]) -> Iterator[Target]:
    left = list(shares)
    while left:
        point = _point(words, sum(share.weight for share in left))
        for share in left:
            point -= share.weight
            if point < 0:
                break
        yield share.target
        left.remove(share)
        words += "\0"


def _point(words: str, length: int) -> int:
    digest = hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % length


def _way(route: Route, table: RoutingTable) -> Way:
    """A share without a URL has no place to go and is left out."""
    rows = [(share.target_service, share.target_url, share.weight) for share in route.split]
    found = [
        Share(Target(service, table.url_of(service, configured)), weight)
        for service, configured, weight in rows or [(route.target_service, route.target_url, 1)]
    ]
    shares = tuple(share for share in found if share.target.url and share.weight > 0)
    return Way(route, shares, (shares[0].target,) if len(shares) == 1 else ())
