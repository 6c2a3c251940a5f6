"""What the admin API sees of the gateway, and may do with it (`admin.api.Console`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engadi_gateway.admin.endpoints import GATE
from engadi_gateway.errors import Refusal
from engadi_gateway.gateway.configuration import Configuration
from engadi_gateway.gateway.front import Front
from engadi_gateway.health import HealthChecker
from engadi_gateway.model import Listener, Service, Snapshot
from engadi_gateway.net.context import Context
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.breaker import BreakerRegistry
from engadi_gateway.pipeline.cors import Cors
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.table import RoutingTable
from engadi_gateway.record.metrics import Metrics
from engadi_gateway.record.recorder import Recorder
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.parsing import IpNetwork
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.changes import Change
from engadi_gateway.store.journal import Journal
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import HeadLimits

_FLUSHED_S = 1.0


@dataclass(slots=True)
class GatewayConsole:
    """See the module; `state` says what the process is doing."""

    configuration: Configuration
    context: Context
    front: Front
    recorder: Recorder
    journal: Journal
    metrics: Metrics
    checker: HealthChecker
    breakers: BreakerRegistry
    state: Callable[[], dict[str, Any]]

    # what is asked about a request (explain.Explained)

    @property
    def head_limits(self) -> HeadLimits:
        return self.context.head_limits

    @property
    def header_policy(self) -> HeaderPolicy:
        return self.context.header_policy

    @property
    def trusted(self) -> tuple[IpNetwork, ...]:
        return self.context.trusted

    @property
    def max_body_bytes(self) -> int:
        return self.context.max_body_bytes

    @property
    def max_local_body_bytes(self) -> int:
        return self.context.max_local_body_bytes

    @property
    def instance(self) -> bytes:
        return self.context.instance

    def side(self, *, is_admin: bool) -> tuple[Pipeline, Listener] | None:
        """Of the first door of that kind."""
        pipeline = self.context.admin_pipeline if is_admin else self.context.pipeline
        listener = self.front.listener(is_admin=is_admin)
        return None if listener is None else (pipeline, listener)

    def local_refusal(self, exchange: Exchange) -> Refusal | None:
        return GATE.refusal(exchange, self.cors())

    def cors(self) -> Cors:
        return self.configuration.compiled.ways.cors

    # the configuration

    @property
    def settings(self) -> Settings:
        return self.configuration.compiler.settings

    @property
    def snapshot(self) -> Snapshot:
        return self.configuration.snapshot

    @property
    def catalog(self) -> Catalog:
        return self.configuration.catalog

    def routing_table(self) -> RoutingTable:
        return self.configuration.compiled.ways.table

    def route_names(self) -> dict[str, tuple[str, str]]:
        """Path pattern and service of every route, by its id, the built-in ones too."""
        return {route.id: (route.path_pattern, route.target_service) for route in self.snapshot.routes} | GATE.names()

    def services(self) -> Mapping[str, Service]:
        return self.configuration.compiled.ways.services

    def writing(self) -> contextlib.AbstractAsyncContextManager[None]:
        """See `Configuration.writing`."""
        return self.configuration.writing()

    async def change(self, change: Change) -> Snapshot:
        """See `Configuration.change`."""
        return await self.configuration.change(change)

    async def rehearse(self, change: Change) -> None:
        """See `Configuration.rehearse`."""
        await self.configuration.rehearse(change)

    # what happens

    def limits_status(self) -> list[dict[str, Any]]:
        return self.configuration.compiled.limits.status(time.monotonic())

    def targets(self) -> Mapping[str, str]:
        """The names of the services at each `scheme://host:port` that was asked, with commas between."""
        found: dict[str, set[str]] = {}
        for url, target in self.context.pools.urls().items():
            found.setdefault(target, set()).update(self.configuration.compiled.ways.urls.get(url, ()))
        return {target: ",".join(sorted(names)) for target, names in found.items()}

    async def flushed(self) -> None:
        """Whoever asks about the log sees what was answered before."""
        await self.recorder.flushed(_FLUSHED_S)
