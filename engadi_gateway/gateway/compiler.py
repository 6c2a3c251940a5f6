"""A snapshot of the configuration becomes what serves requests: routes that can be found, stages, pipelines.

And the state that all of these share: `State`, which outlives them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engadi_gateway.admin.api import local_routes
from engadi_gateway.admin.endpoints import ENDPOINTS
from engadi_gateway.gateway.assembly import thresholds, token_judge
from engadi_gateway.model import BreakerState, CorsPolicy, Route, Service, Snapshot
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.breaker import BreakerRegistry, BreakerStage
from engadi_gateway.pipeline.buckets import BucketStore
from engadi_gateway.pipeline.circuit import Transition
from engadi_gateway.pipeline.cors import Cors
from engadi_gateway.pipeline.identity import IdentityStage, TokenCache
from engadi_gateway.pipeline.limits import Limits
from engadi_gateway.pipeline.routing import Routing
from engadi_gateway.pipeline.table import RoutingTable
from engadi_gateway.pipeline.targets import TargetPicker, services_of, urls_of
from engadi_gateway.settings.load import Settings


@dataclass(frozen=True, slots=True)
class Ways:
    """What routes, services and CORS of a snapshot become: nearly all the work, and nothing that anybody changes."""

    routes: tuple[Route, ...]
    configured: Mapping[str, Service]
    health_path: str
    table: RoutingTable
    targets: TargetPicker
    services: Mapping[str, Service]
    urls: Mapping[str, frozenset[str]]  # with the names of the services behind them
    policy: CorsPolicy
    cors: Cors

    @classmethod
    def of(cls, snapshot: Snapshot, health_path: str, before: Ways | None = None) -> Ways:
        """Takes from those of before what has not changed, all of them if they fit. May be called in any thread.

        Raises:
            ConfigurationError, RefusedError: see `RoutingTable` and `Cors`.
        """
        policy = snapshot.cors
        cors = before.cors if before is not None and before.policy == policy else Cors(policy)
        if before is not None and before._fit(snapshot, health_path):
            return before if before.cors is cors else replace(before, policy=policy, cors=cors)
        table = RoutingTable(snapshot.routes, snapshot.services, None if before is None else before.table)
        targets = TargetPicker(table, None if before is None else before.targets)
        services = services_of(snapshot, health_path)
        urls = urls_of(targets)
        return cls(snapshot.routes, snapshot.services, health_path, table, targets, services, urls, policy, cors)

    def _fit(self, snapshot: Snapshot, health_path: str) -> bool:
        have, want = (self.configured, self.health_path), (snapshot.services, health_path)
        return have == want and (self.routes is snapshot.routes or self.routes == snapshot.routes)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Everything that one snapshot becomes; swapped as a whole."""

    pipeline: Pipeline
    admin_pipeline: Pipeline
    limits: Limits
    ways: Ways
    snapshot: Snapshot  # what it was made of


def _say_circuit(service: str, move: Transition) -> None:
    """Whoever is called at night finds in the log what happened, and when."""
    level = logging.WARNING if move.after is BreakerState.OPEN else logging.INFO
    logging.getLogger("engadi").log(
        level, "circuit of %s: %s, was %s: %s", service, move.after, move.before, move.cause
    )


@dataclass(frozen=True, slots=True)
class State:
    """What outlives every configuration: buckets, breakers, remembered tokens."""

    buckets: BucketStore
    breakers: BreakerRegistry
    tokens: TokenCache

    @classmethod
    def of(cls, settings: Settings) -> State:
        return cls(
            BucketStore(settings.limits_max_buckets),
            BreakerRegistry(thresholds(settings), _say_circuit),
            TokenCache(settings.jwt_cache_size),
        )

    def take(self, settings: Settings) -> None:
        """Other bounds for what is there."""
        self.buckets.max_buckets = settings.limits_max_buckets
        self.breakers.limits = thresholds(settings)
        self.tokens.resize(settings.jwt_cache_size)


class Compiler:
    """Makes pipelines of snapshots, with one set of settings.

    Raises:
        ConfigurationError: the keys cannot be used.
    """

    def __init__(self, settings: Settings, state: State) -> None:
        self.settings = settings
        self._state = state
        self.judge = token_judge(settings)
        own = tuple(endpoint for endpoint in ENDPOINTS if not settings.admin_listen or endpoint.is_public)
        self._public_local = RoutingTable(local_routes(own, settings.admin_role), {})
        self._admin_local = RoutingTable(local_routes(ENDPOINTS, settings.admin_role), {})

    def judges_like(self, other: Compiler) -> bool:
        """Whether tokens are judged by the same settings and key, which may be read anew from a file of that name."""
        mine, theirs = ((_of_tokens(one.settings), one.judge.keyring.key) for one in (self, other))
        return mine == theirs

    def ways(self, snapshot: Snapshot, before: Ways | None = None) -> Ways:
        """See `Ways.of`."""
        return Ways.of(snapshot, self.settings.health_path, before)

    def compile(self, snapshot: Snapshot, now: float, ways: Ways | None = None) -> Compiled:
        """Build everything a snapshot needs, but for its ways where these are there; changes no state.

        Raises:
            ConfigurationError: the snapshot cannot be served; pointers name the routes.
        """
        settings, state = self.settings, self._state
        ways = ways or self.ways(snapshot)
        cors = ways.cors
        identity = IdentityStage(self.judge, state.tokens)
        rules = snapshot.rules if settings.limits_enabled else ()
        limits = Limits(rules, state.buckets, settings.limits_ipv6_prefix, now)
        breaker = BreakerStage(state.breakers, ways.targets, settings.breaker_enabled)
        public, admin = (
            (Routing(routes, local, answers_preflight=cors.is_enabled), cors, identity, limits, breaker)
            for routes, local in ((ways.table, self._public_local), (RoutingTable((), {}), self._admin_local))
        )
        return Compiled(
            Pipeline(public, snapshot.revision, limits.charge, breaker.another_target, answers_cors=cors.is_enabled),
            Pipeline(admin, snapshot.revision, limits.charge, answers_cors=cors.is_enabled),
            limits,
            ways,
            snapshot,
        )


def _of_tokens(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in settings.values.items() if name.startswith("jwt_")}
