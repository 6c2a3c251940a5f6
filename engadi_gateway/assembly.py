"""Settings become the values that the rooms take: one place where option names meet parameter names."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engadi_gateway.admin.api import local_routes
from engadi_gateway.admin.endpoints import ENDPOINTS
from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.model import BreakerState, CorsPolicy, Route, Service, Snapshot
from engadi_gateway.net.context import Context, RequestIds, RetryBudget, RetryPolicy, Timeouts, Upcalls
from engadi_gateway.net.deadlines import FixedWait
from engadi_gateway.net.pool import PoolLimits, Pools
from engadi_gateway.net.seats import Seats
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.breaker import BreakerRegistry, BreakerStage, Thresholds, Transition
from engadi_gateway.pipeline.buckets import BucketStore
from engadi_gateway.pipeline.claims import IdentityPolicy
from engadi_gateway.pipeline.cors import Cors, cors_faults
from engadi_gateway.pipeline.identity import IdentityStage, Keyring, TokenCache, TokenJudge, keyring_of
from engadi_gateway.pipeline.limits import Limits
from engadi_gateway.pipeline.routing import Routing, RoutingTable
from engadi_gateway.pipeline.targets import TargetPicker, services_of, urls_of
from engadi_gateway.settings import Settings
from engadi_gateway.store.files import at_home
from engadi_gateway.tls import client_tls, server_tls
from engadi_gateway.wire.headers import RESERVED, HeaderPolicy
from engadi_gateway.wire.request import HeadLimits

#: Databases, listeners, the log: what is open beside clients and upstreams.
_OTHER_FILES = 32
_LEAST_SEATS = 8


def timeouts(settings: Settings) -> Timeouts:
    return Timeouts(
        head_s=settings.server_head_timeout,
        body_s=settings.server_body_timeout,
        write_s=settings.server_write_timeout,
        keep_alive_s=settings.server_keep_alive_timeout,
        upgrade_idle_s=settings.upstream_upgrade_idle_timeout,
    )


def retry_policy(settings: Settings) -> RetryPolicy:
    return RetryPolicy(
        timeout_s=settings.upstream_timeout,
        retry_count=settings.upstream_retry_count,
        backoff_s=settings.upstream_retry_backoff,
        backoff_max_s=settings.upstream_retry_backoff_max,
        buffer_bytes=settings.upstream_retry_buffer_bytes,
        budget_percent=settings.upstream_retry_budget_percent,
        budget_min=settings.upstream_retry_budget_min,
    )


def pool_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(
        max_connections=settings.upstream_max_connections,
        max_idle=settings.upstream_max_idle,
        max_upgraded=settings.upstream_max_upgraded,
        idle_timeout_s=settings.upstream_idle_timeout,
        queue_size=settings.upstream_queue_size,
        queue_timeout_s=settings.upstream_queue_timeout,
        connect_timeout_s=settings.upstream_connect_timeout,
        max_head_bytes=settings.upstream_max_head_bytes,
        dns_cache_s=settings.upstream_dns_cache,
    )


def head_limits(settings: Settings) -> HeadLimits:
    return HeadLimits(
        max_head_bytes=settings.server_max_head_bytes,
        max_header_lines=settings.server_max_header_lines,
        max_target_bytes=settings.server_max_target_bytes,
    )


def header_policy(settings: Settings, ids: RequestIds) -> HeaderPolicy:
    """What a client may not say: the claims' own header names are among it."""
    own = [header for _, header in settings.jwt_claim_headers]
    dropped = [] if settings.jwt_forward_authorization else ["authorization"]
    return HeaderPolicy(own, settings.server_underscore_headers == "reject", dropped, ids.new_trace)


def seats(settings: Settings) -> Seats:
    """As many clients as may be, and no more than there are files for: each may need another one upstream."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = settings.server_max_connections
    if files != resource.RLIM_INFINITY:
        most = min(most, max(_LEAST_SEATS, (files - _OTHER_FILES) * 2 // 3))
    return Seats(most, settings.server_max_connections_per_ip, settings.limits_ipv6_prefix)


def files_wanted(settings: Settings) -> int:
    """For `max_connections` clients, the half as many upstream, and the rest."""
    most: int = settings.server_max_connections
    return most * 3 // 2 + _OTHER_FILES + 1


def context_of(
    settings: Settings,
    upcalls: Upcalls,
    pools: Pools,
    compiled: Compiled,
) -> Context:
    """What the connections share."""
    retry = retry_policy(settings)
    waits = timeouts(settings)
    ids = RequestIds()
    return Context(
        loop=asyncio.get_running_loop(),
        upcalls=upcalls,
        pipeline=compiled.pipeline,
        admin_pipeline=compiled.admin_pipeline,
        header_policy=header_policy(settings, ids),
        head_limits=head_limits(settings),
        timeouts=waits,
        retry=retry,
        pools=pools,
        budget=RetryBudget(retry),
        trusted=settings.server_trusted_proxies,
        max_body_bytes=settings.server_max_body_bytes,
        max_local_body_bytes=settings.admin_max_body_bytes,
        keep_alive_requests=settings.server_keep_alive_requests,
        seats=seats(settings),
        heads=FixedWait(waits.head_s),
        idle=FixedWait(waits.keep_alive_s),
        lingers=FixedWait(waits.linger_s),
        ids=ids,
    )


def refresh(context: Context, settings: Settings) -> None:
    """Apply re-read settings to connections that exist."""
    retry = retry_policy(settings)
    context.retry = retry
    context.budget.take(retry)
    context.timeouts = timeouts(settings)
    context.heads.timeout_s = context.timeouts.head_s
    if not context.is_draining:
        context.idle.timeout_s = context.timeouts.keep_alive_s
    context.header_policy = header_policy(settings, context.ids)
    context.head_limits = head_limits(settings)
    context.trusted = settings.server_trusted_proxies
    context.max_body_bytes = settings.server_max_body_bytes
    context.max_local_body_bytes = settings.admin_max_body_bytes
    context.keep_alive_requests = settings.server_keep_alive_requests
    found = seats(settings)
    context.seats.most, context.seats.most_per_address = found.most, found.most_per_address
    context.seats.ipv6_prefix = found.ipv6_prefix
    context.pools.take(pool_limits(settings))


#: What a reload cannot change, because sockets, files and threads hang on it.
FIXED = (
    "server_host", "server_port", "server_unix_socket", "server_backlog", "server_reuse_port", "server_loop",
    "admin_listen", "database_url", "database_log_url", "log_access",
)  # fmt: skip


def waiting_for_a_restart(before: Settings, after: Settings) -> list[str]:
    """The options, as `section.key`, that differ and stay as they were."""
    found = [name for name in FIXED if getattr(before, name) != getattr(after, name)]
    found += ["server_tls_certificate"] if switches_tls(before, after) else []
    return [name.replace("_", ".", 1) for name in found]


def pinned(settings: Settings, running: Settings) -> Settings:
    """Re-read settings as far as a running gateway can take them."""
    names = (*FIXED, "server_tls_certificate", "server_tls_key") if switches_tls(running, settings) else FIXED
    return replace(settings, values={**settings.values, **{name: running.values[name] for name in names}})


def switches_tls(before: Settings, after: Settings) -> bool:
    """Another certificate is taken, but not TLS instead of plain text."""
    return bool(before.server_tls_certificate) != bool(after.server_tls_certificate)


def trial_faults(settings: Settings) -> list[Fault]:
    """What only trying shows: folders, keys, the CORS policy, the certificate, authorities. Leaves nothing behind."""
    faults = _folder_faults(settings)
    faults += [
        Fault("jwt.claim_headers", f"{header} is no field for a claim: the gateway writes it, or goes by it")
        for _, header in settings.jwt_claim_headers
        if header.lower().encode("ascii") in RESERVED
    ]
    for fault in cors_faults(settings.cors_policy):
        name, _, index = fault.pointer[1:].partition("/")
        faults.append(Fault(f"cors.{name}", f"entry {int(index) + 1}: {fault.detail}" if index else fault.detail))
    attempts: list[Callable[[Settings], object]] = [token_judge, server_tls]
    attempts += [client_tls] if settings.upstream_tls_ca_file else []
    for attempt in attempts:
        try:
            attempt(settings)
        except ConfigurationError as error:
            faults += error.faults
    return faults


def _folder_faults(settings: Settings) -> list[Fault]:
    """Where databases and sockets are to be: sqlite makes files beside its own, however writable these are."""
    options: dict[Path, str] = {}
    faults = []
    for option, path in (
        ("database.url", settings.database_url),
        ("database.log_url", settings.log_path),
        ("server.unix_socket", settings.server_unix_socket),
    ):
        said = _name_fault(path) if path else ""
        if said:
            faults.append(Fault(option, said))
        elif path:
            options.setdefault(Path(at_home(path)).absolute().parent, option)
    for folder, option in options.items():
        if not folder.is_dir():
            faults.append(Fault(option, f"no such folder: {folder}"))
        elif not os.access(folder, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
            said = os.strerror(errno.EROFS if is_read_only else errno.EACCES)
            faults.append(Fault(option, f"cannot write in {folder}: {said}"))
    return faults


def _name_fault(path: str) -> str:
    """Why there can be no file of that name, or "": a folder, too long, in a folder that is closed to us."""
    try:
        return f"{path} is a folder" if stat.S_ISDIR(Path(path).stat().st_mode) else ""
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:  # which is_dir() takes for a no, since Python 3.13
        return f"{path}: {error.strerror}"


def refuse_faults(settings: Settings) -> None:
    """Raises ConfigurationError with all that `trial_faults` finds."""
    faults = trial_faults(settings)
    if faults:
        raise ConfigurationError(faults)


def identity_policy(settings: Settings) -> IdentityPolicy:
    return IdentityPolicy(
        algorithms=settings.jwt_algorithms,
        mode=settings.jwt_mode,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway_s=settings.jwt_leeway,
        required_claims=settings.jwt_required_claims,
        role_claim=settings.jwt_role_claim,
        claim_headers=settings.jwt_claim_headers,
        validates_on_public=settings.jwt_public_routes == "optional",
        max_token_bytes=settings.jwt_max_token_bytes,
    )


def keyring(settings: Settings) -> Keyring:
    """The keys that the settings name.

    Raises:
        ConfigurationError: the key file cannot be read or is none.
    """
    pem = ""
    if settings.jwt_public_key_file:
        try:
            pem = Path(settings.jwt_public_key_file).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError([Fault("jwt.public_key_file", f"cannot be read: {error}")]) from None
    has_url = bool(settings.jwt_jwks_url)
    return keyring_of(settings.jwt_algorithms, settings.jwt_secret_key, pem, has_url=has_url)


def token_judge(settings: Settings) -> TokenJudge:
    """Raises ConfigurationError: the keys cannot be used."""
    return TokenJudge(identity_policy(settings), keyring(settings))


@dataclass(frozen=True, slots=True)
class Ways:
    """What routes, services and CORS of a snapshot become: nearly all the work, and nothing that anybody changes."""

    routes: tuple[Route, ...]
    configured: Mapping[str, Service]
    health_path: str
    table: RoutingTable
    targets: TargetPicker
    services: Mapping[str, Service]
    urls: Mapping[str, frozenset[str]]  # with the services behind them
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


def say_circuit(service: str, move: Transition) -> None:
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
            BreakerRegistry(thresholds(settings), say_circuit),
            TokenCache(settings.jwt_cache_size),
        )

    def take(self, settings: Settings) -> None:
        """Other bounds for what is there."""
        self.buckets.max_buckets = settings.limits_max_buckets
        self.breakers.limits = thresholds(settings)
        self.tokens.resize(settings.jwt_cache_size)


def thresholds(settings: Settings) -> Thresholds:
    return Thresholds(settings.breaker_failure_threshold, settings.breaker_success_threshold, settings.breaker_timeout)


class Compiler:
    """Makes pipelines of snapshots, with one set of settings.

    Raises:
        ConfigurationError: the keys cannot be used.
    """

    def __init__(self, settings: Settings, state: State) -> None:
        self._settings = settings
        self._state = state
        self.judge = token_judge(settings)
        own = tuple(endpoint for endpoint in ENDPOINTS if not settings.admin_listen or endpoint.is_public)
        self._public_local = RoutingTable(local_routes(own, settings.admin_role), {})
        self._admin_local = RoutingTable(local_routes(ENDPOINTS, settings.admin_role), {})

    def ways(self, snapshot: Snapshot, before: Ways | None = None) -> Ways:
        """See `Ways.of`."""
        return Ways.of(snapshot, self._settings.health_path, before)

    def compile(self, snapshot: Snapshot, now: float, ways: Ways | None = None) -> Compiled:
        """Build everything a snapshot needs, but for its ways where these are there; changes no state.

        Raises:
            ConfigurationError: the snapshot cannot be served; pointers name the routes.
        """
        settings, state = self._settings, self._state
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
        )
