"""The commands that look without serving: check, config, routes, explain. They read the databases as they lie there."""

from __future__ import annotations

import time
from typing import Any

from engadi_gateway.admin.endpoints import GATE
from engadi_gateway.errors import ConfigurationError, Fault, Refusal, RefusedError
from engadi_gateway.explain import MistakenError, explain
from engadi_gateway.gateway.assembly import head_limits, header_policy
from engadi_gateway.gateway.compiler import Compiler, State
from engadi_gateway.gateway.secret import secret_faults
from engadi_gateway.gateway.trial import trial_faults
from engadi_gateway.model import Listener, Snapshot
from engadi_gateway.net.context import RequestIds
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.table import RoutingTable
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.parsing import IpNetwork
from engadi_gateway.store.catalog import snapshot_at_rest
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.journal import refuse_unusable
from engadi_gateway.store.seed import overruled, seed_of, timestamp
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import HeadLimits


def _at_rest(settings: Settings) -> Snapshot:
    return snapshot_at_rest(settings.database_url, seed_of(settings, timestamp(time.time())))


def all_faults(settings: Settings) -> list[Fault]:
    """What would keep a gateway with these settings from serving."""
    faults = trial_faults(settings) + secret_faults(settings)
    named = {fault.pointer for fault in faults}
    found = _configuration_faults(settings, is_compiled=not faults) + _log_faults(settings)
    return faults + [fault for fault in found if fault.pointer not in named]


def _configuration_faults(settings: Settings, *, is_compiled: bool) -> list[Fault]:
    """Of what is stored; what it becomes can be tried with good settings only."""
    try:
        snapshot = _at_rest(settings)
        if is_compiled:
            Compiler(settings, State.of(settings)).compile(snapshot, time.monotonic())
    except StoreError as error:
        return [Fault("database.url", str(error))]
    except ConfigurationError as error:
        return error.faults
    except RefusedError as error:
        return [Fault("database.url", error.refusal.detail)]
    return []


def _log_faults(settings: Settings) -> list[Fault]:
    try:
        refuse_unusable(settings.log_path)
    except StoreError as error:
        return [Fault("database.log_url", str(error))]
    return []


def overruled_at_rest(settings: Settings) -> list[str]:
    """The options that the API changed.

    Raises:
        StoreError: the database cannot be read.
    """
    return overruled(settings, _at_rest(settings))


class Offline:
    """What a gateway with these settings would be.

    Raises:
        ConfigurationError: with all faults.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        try:
            snapshot = _at_rest(settings)
        except StoreError as error:
            raise ConfigurationError([Fault("database.url", str(error))]) from None
        self._compiled = Compiler(settings, State.of(settings)).compile(snapshot, time.monotonic())

    @property
    def head_limits(self) -> HeadLimits:
        return head_limits(self._settings)

    @property
    def header_policy(self) -> HeaderPolicy:
        return header_policy(self._settings, RequestIds())

    @property
    def trusted(self) -> tuple[IpNetwork, ...]:
        return tuple(self._settings.server_trusted_proxies)

    @property
    def max_body_bytes(self) -> int:
        return int(self._settings.server_max_body_bytes)

    @property
    def max_local_body_bytes(self) -> int:
        return int(self._settings.admin_max_body_bytes)

    @property
    def instance(self) -> bytes:
        return b"engadi-offline"  # a running one has a name of its own at each start

    def side(self, *, is_admin: bool) -> tuple[Pipeline, Listener] | None:
        settings, compiled = self._settings, self._compiled
        scheme = "https" if settings.server_tls_certificate else "http"
        if not is_admin:
            return compiled.pipeline, Listener(scheme, settings.server_port if settings.server_host else 0, False)
        port = settings.admin_listen.rpartition(":")[2]
        return (compiled.admin_pipeline, Listener(scheme, int(port), True)) if port else None

    def routing_table(self) -> RoutingTable:
        return self._compiled.ways.table

    def local_refusal(self, exchange: Exchange) -> Refusal | None:
        return GATE.refusal(exchange, self._compiled.ways.cors)

    def routes(self) -> list[dict[str, Any]]:
        """Routes in matching order, as a person wants to see them."""
        table = self._compiled.ways.table
        return [
            {
                "priority": route.priority,
                "host": route.host or "*",
                "methods": ",".join(route.methods) or "*",
                "path_pattern": route.path_pattern,
                "target": " ".join(f"{share.target_service}:{share.weight}" for share in route.split)
                or f"{route.target_service} {table.url_of(route.target_service, route.target_url)}",
                "access": ("+".join(route.required_roles) or ("public" if route.is_public else "token"))
                + ("" if route.is_active else " (inactive)"),
                "id": route.id,
            }
            for route in table.ordered()
        ]

    def explain(self, method: str, path: str, **parts: Any) -> dict[str, Any]:
        """See explain.explain; a request that cannot be read is answered with its reason.

        Raises:
            MistakenError: there is no such request.
        """
        try:
            return explain(self, method=method, path=path, **parts)
        except MistakenError:
            raise
        except RefusedError as error:
            refusal = error.refusal
            return {
                "verdict": "refuse",
                "reason": refusal.code,
                "status": refusal.reason.status,
                "detail": refusal.detail,
            }
