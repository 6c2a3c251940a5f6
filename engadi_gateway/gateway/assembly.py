"""Settings become the values that the rooms take: one place where option names meet parameter names."""

from __future__ import annotations

import asyncio
import resource
from dataclasses import replace
from pathlib import Path

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.net.context import Context, RequestIds, RetryBudget, RetryPolicy, Timeouts, Upcalls
from engadi_gateway.net.deadlines import FixedWait
from engadi_gateway.net.pool import PoolLimits
from engadi_gateway.net.pools import Pools
from engadi_gateway.net.seats import Seats
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.circuit import Thresholds
from engadi_gateway.pipeline.claims import IdentityPolicy
from engadi_gateway.pipeline.identity import Keyring, TokenJudge, keyring_of
from engadi_gateway.settings.load import Settings
from engadi_gateway.wire.headers import HeaderPolicy
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
    """For `max_connections` clients, half as many connections upstream, and the rest."""
    most: int = settings.server_max_connections
    return most * 3 // 2 + _OTHER_FILES + 1


def context_of(
    settings: Settings, upcalls: Upcalls, pools: Pools, pipeline: Pipeline, admin_pipeline: Pipeline
) -> Context:
    """What the connections share."""
    retry = retry_policy(settings)
    waits = timeouts(settings)
    ids = RequestIds()
    return Context(
        loop=asyncio.get_running_loop(),
        upcalls=upcalls,
        pipeline=pipeline,
        admin_pipeline=admin_pipeline,
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


def thresholds(settings: Settings) -> Thresholds:
    return Thresholds(settings.breaker_failure_threshold, settings.breaker_success_threshold, settings.breaker_timeout)


def token_judge(settings: Settings) -> TokenJudge:
    """Raises ConfigurationError: the keys cannot be used."""
    return TokenJudge(identity_policy(settings), keyring(settings))
