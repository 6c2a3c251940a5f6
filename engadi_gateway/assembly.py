"""Settings become the values that the rooms take: one place where option names meet parameter names."""

from __future__ import annotations

import asyncio

from engadi_gateway.net.context import Context, RetryBudget, RetryPolicy, Timeouts, Upcalls
from engadi_gateway.net.deadlines import FixedWait
from engadi_gateway.net.pool import PoolLimits, Pools
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.settings import Settings
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import HeadLimits
from engadi_gateway.wire.response import ReplyParser


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


def header_policy(settings: Settings) -> HeaderPolicy:
    """What a client may not say: the claims' own header names are among it."""
    own = [header for _, header in settings.jwt_claim_headers]
    dropped = [] if settings.jwt_forward_authorization else ["authorization"]
    return HeaderPolicy(own, settings.server_underscore_headers == "reject", note_only=dropped)


def context_of(
    settings: Settings,
    upcalls: Upcalls,
    pools: Pools,
    pipelines: tuple[Pipeline, Pipeline],
    reply_parser: ReplyParser,
) -> Context:
    """What the connections share; `pipelines` are the public door's and the admin door's."""
    retry = retry_policy(settings)
    waits = timeouts(settings)
    return Context(
        loop=asyncio.get_running_loop(),
        upcalls=upcalls,
        pipeline=pipelines[0],
        admin_pipeline=pipelines[1],
        reply_parser=reply_parser,
        header_policy=header_policy(settings),
        head_limits=head_limits(settings),
        timeouts=waits,
        retry=retry,
        pools=pools,
        budget=RetryBudget(retry),
        trusted=settings.server_trusted_proxies,
        max_body_bytes=settings.server_max_body_bytes,
        max_local_body_bytes=settings.admin_max_body_bytes,
        keep_alive_requests=settings.server_keep_alive_requests,
        max_connections=settings.server_max_connections,
        max_connections_per_ip=settings.server_max_connections_per_ip,
        heads=FixedWait(waits.head_s),
        idle=FixedWait(waits.keep_alive_s),
    )


def refresh(context: Context, settings: Settings) -> None:
    """Apply re-read settings to connections that exist; pools and sockets keep theirs until a restart."""
    retry = retry_policy(settings)
    context.retry = retry
    context.budget = RetryBudget(retry)
    context.timeouts = timeouts(settings)
    context.heads.timeout_s = context.timeouts.head_s
    context.idle.timeout_s = context.timeouts.keep_alive_s
    context.header_policy = header_policy(settings)
    context.head_limits = head_limits(settings)
    context.trusted = settings.server_trusted_proxies
    context.max_body_bytes = settings.server_max_body_bytes
    context.max_local_body_bytes = settings.admin_max_body_bytes
    context.keep_alive_requests = settings.server_keep_alive_requests
    context.max_connections = settings.server_max_connections
    context.max_connections_per_ip = settings.server_max_connections_per_ip
