"""A gateway's life: its rooms are built from settings and connected, started, reloaded and stopped.

Embedding: `async with Gateway(settings) as gateway: ...`. Nothing is global; two gateways live in one process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from engadi_gateway import __version__
from engadi_gateway.admin.api import Api
from engadi_gateway.admin.endpoints import GATE
from engadi_gateway.authority import Authority
from engadi_gateway.errors import ConfigurationError
from engadi_gateway.gateway.amiss import amiss, say
from engadi_gateway.gateway.assembly import context_of, pinned, pool_limits, refresh, waiting_for_a_restart
from engadi_gateway.gateway.compiler import Compiled, Compiler, State
from engadi_gateway.gateway.configuration import Configuration
from engadi_gateway.gateway.console import GatewayConsole
from engadi_gateway.gateway.front import Front
from engadi_gateway.gateway.listeners import Inherited, notify_systemd, open_doors, with_admin_door
from engadi_gateway.gateway.secret import with_secret
from engadi_gateway.gateway.sharing import when_free
from engadi_gateway.gateway.tls import client_tls, renew_tls, server_tls, validity_of, warning_of
from engadi_gateway.gateway.trial import refuse_faults
from engadi_gateway.gateway.upcalls import GatewayUpcalls
from engadi_gateway.gateway.upkeep import Upkeep
from engadi_gateway.health import HealthChecker
from engadi_gateway.model import Snapshot
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.deadlines import Ticker
from engadi_gateway.net.fetch import Fetcher
from engadi_gateway.net.pools import Pools
from engadi_gateway.record.accesslog import AccessLog
from engadi_gateway.record.metrics import Metrics
from engadi_gateway.record.recorder import Recorder
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.journal import Journal
from engadi_gateway.store.seed import seed_of, timestamp

#: Beyond its drain, for a process before this one to let go of the databases.
_PATIENCE_S = 5.0


class Lifecycle(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


class Gateway:
    """One gateway. `addresses` are what it listens on, once started; `port` is the first TCP port.

    Args:
        settings: see `Settings.load` and `Settings.of`.
        inherited: sockets handed over, with names, in place of the settings' addresses; `admin` is the admin API's.
    """

    def __init__(self, settings: Settings, *, inherited: Sequence[Inherited] = ()) -> None:
        settings = with_admin_door(settings, inherited)
        self.settings = settings
        self.lifecycle = Lifecycle.STARTING
        self.metrics = Metrics()
        self.access_log = AccessLog(settings.log_access)
        self._inherited = inherited
        self._log = logging.getLogger("engadi")
        self._front = Front()
        self._started_at = 0.0
        self._certificate_ends_at: float | None = None
        self._reloads = {"success": 0, "failure": 0}
        self._background: list[asyncio.Task[None]] = []
        self._stores: tuple[Journal | Catalog, ...] = ()  # to be closed in this order
        self._is_built = False

    async def __aenter__(self) -> Gateway:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop(grace_s=self.settings.gateway_drain_timeout)

    # start

    async def start(self) -> None:
        """Bind, open the databases, build, listen.

        Raises:
            BindError: an address cannot be had. ConfigurationError, StoreError: nothing is left open.
        """
        self._front = Front(open_doors(self.settings, self._inherited))
        try:
            refuse_faults(self.settings)
            snapshot = await self._open_stores()
            self.settings, said = with_secret(self.settings)  # beside a database that is ours
            if said:
                self._log.warning(said)
            self._build(snapshot)
            await self._upkeep.restore_health()
            self._front.prepare(self._context, self._batch, server_tls(self.settings))
            self._say_what_is_amiss()
            self._front.start()
        except BaseException:
            await self._close_all()
            raise
        self._started_at = time.monotonic()
        self.lifecycle = Lifecycle.RUNNING
        self._ticker.start()
        self._background = [
            asyncio.create_task(self.checker.run(), name="health"),
            asyncio.create_task(self.checker.run_for_arrivals(), name="health of new services"),
            asyncio.create_task(self.authority.run(), name="keys"),
            asyncio.create_task(self._upkeep.run(), name="upkeep"),
            asyncio.create_task(self.configuration.run(), name="sharing"),
        ]

    async def _open_stores(self) -> Snapshot:
        settings = self.settings
        self.catalog = Catalog(settings.database_url, is_shared=settings.server_reuse_port)
        self.journal = Journal(
            settings.log_path,
            retention_days=settings.log_retention_days,
            max_bytes=settings.log_max_bytes,
            queue_rows=settings.log_queue_rows,
            is_shared=settings.server_reuse_port,
        )
        self._stores = (self.journal, self.catalog)
        patience_s = settings.gateway_drain_delay + settings.gateway_drain_timeout + _PATIENCE_S
        seed = seed_of(settings, timestamp(time.time()))
        snapshot = await when_free(lambda: self.catalog.open(seed), patience_s, self.catalog.give_up)
        await when_free(self.journal.open, patience_s, self.journal.give_up)
        return snapshot

    def _build(self, snapshot: Snapshot) -> None:
        settings = self.settings
        self._state = State.of(settings)
        self.breakers = self._state.breakers
        compiler = Compiler(settings, self._state)
        self.configuration = Configuration(self.catalog, snapshot, compiler, self._serve)
        self._pools = Pools(pool_limits(settings), lambda: client_tls(self.settings))
        self._fetch = Fetcher(lambda: client_tls(self.settings), settings.upstream_dns_cache)
        call_later = asyncio.get_running_loop().call_later
        self._recorder = Recorder(settings, self.metrics, self.journal, self.access_log, call_later)
        self.authority = Authority(settings, compiler.judge, self._state.tokens, self._fetch)
        services = self.configuration.compiled.ways.services
        self.checker = HealthChecker(
            services, settings, self._fetch, self.breakers.note_healthy, tell_unhealthy=self._note_unhealthy
        )
        self._upkeep = Upkeep(self.journal, self.checker)
        self._connect()
        self._ticker = Ticker(call_later, self._sweeps(), lambda: self._upcalls.fault("sweep"))
        self._is_built = True

    def _connect(self) -> None:
        """What connections share asks the API, which looks at what connections share: it comes last."""
        self._upcalls = GatewayUpcalls(
            self.configuration,
            self._recorder,
            self.metrics,
            judge=self.authority.judge,
            serve_local=lambda exchange, body: self.api.serve(exchange, body),  # noqa: PLW0108 - it is not there yet
        )
        compiled = self.configuration.compiled
        self._context = context_of(
            self.settings, self._upcalls, self._pools, compiled.pipeline, compiled.admin_pipeline
        )
        self._batch = Batch(self._context)
        self._console = GatewayConsole(
            configuration=self.configuration,
            context=self._context,
            front=self._front,
            recorder=self._recorder,
            journal=self.journal,
            metrics=self.metrics,
            checker=self.checker,
            breakers=self.breakers,
            state=self.state,
        )
        self.api = Api(self._console, GATE)

    def _sweeps(self) -> list[Callable[[float], None]]:
        """What ends by itself when its time has come."""
        context = self._context
        return [
            context.flights.sweep,
            context.closing.sweep,
            context.heads.sweep,
            context.idle.sweep,
            context.lingers.sweep,
            context.unread.sweep,
            self._pools.sweep,
            self._state.buckets.sweep,
            self.journal.sweep,
        ]

    def _note_unhealthy(self, names: frozenset[str]) -> None:
        self.breakers.unhealthy = names

    def _serve(self, compiled: Compiled) -> None:
        """What was compiled takes the place of what is served; see `Configuration`."""
        compiled.limits.begin(time.monotonic())
        context, ways = self._context, compiled.ways
        context.pipeline, context.admin_pipeline = compiled.pipeline, compiled.admin_pipeline
        self.checker.replace_services(ways.services)
        self._pools.keep(ways.urls)
        self.breakers.keep(set(ways.services), time.monotonic())
        self.metrics.keep(self._console.route_names, ways.services)

    def _say_what_is_amiss(self) -> None:
        warning = ""
        if self._front.tls is not None:
            validity = validity_of(self._front.tls, self.settings)
            self._certificate_ends_at = None if validity is None else validity.ends_at
            warning = warning_of(validity, time.time())
        say(amiss(self.settings, self.configuration.compiled, self._context.seats.most, warning))

    # while it serves

    @property
    def addresses(self) -> list[str]:
        return self._front.addresses

    @property
    def port(self) -> int:
        return self._front.port

    def flush(self) -> None:
        """Hand over the rows that wait."""
        self._recorder.flush()

    def state(self) -> dict[str, Any]:
        """What the process is doing, for the health page and the metrics."""
        return {
            "lifecycle": str(self.lifecycle),
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started_at, 3) if self._started_at else 0.0,
            "connections": len(self._front.connections),
            "in_flight": len(self._context.flights),
            "loop_lag_s": round(self._ticker.lag_s, 6),
            "pools": self._pools.counts(),
            "log": {**asdict(self.journal.stats()), "is_shedding": self._recorder.is_shedding},
            "access_lines_lost": self.access_log.lines_lost,
            "certificate_ends_at": self._certificate_ends_at,
            "reloads": dict(self._reloads),
            "revision": self.configuration.snapshot.revision,
        }

    # reload

    async def reload(self, settings: Settings) -> None:
        """Take re-read settings: keys, limits, time-outs, services, certificates. Addresses stay until a restart.

        Raises:
            ConfigurationError, StoreError: and everything stays as it was.
        """
        wanted = with_admin_door(settings, self._inherited)
        settings, said = with_secret(pinned(wanted, self.settings))  # the key is beside the database that is open
        async with self.configuration.held():
            await asyncio.to_thread(refuse_faults, pinned(settings, wanted))  # also what a restart would stumble over
            compiler = Compiler(settings, self._state)
            compiled = await self.configuration.followed(seed_of(settings, timestamp(time.time())), compiler)
            before = self.settings
            forgets = self._take(settings, compiler)
            self.configuration.take(compiled, compiler)
            self._say_what_is_amiss()
        if said and forgets:  # another key, then
            self._log.warning(said)
        fixed = waiting_for_a_restart(before, wanted)
        if fixed:
            self._log.warning("these take a restart: %s", ", ".join(fixed))
        self._reloads["success"] += 1

    def _take(self, settings: Settings, compiler: Compiler) -> bool:
        """Nothing can fail any more. Whether what was verified is to be verified anew."""
        forgets = not compiler.judges_like(self.configuration.compiler)
        if forgets:
            self._state.tokens.clear()
        self.settings = settings
        if self._front.tls is not None:
            try:
                renew_tls(self._front.tls, settings)
            except ConfigurationError:  # it was good a moment ago
                self._upcalls.fault("renewing the certificate")
        self._state.take(settings)
        self._recorder.take(settings)
        self._fetch.renew(settings.upstream_dns_cache)
        refresh(self._context, settings)
        self._front.make_room()
        self.authority.replace_settings(settings, compiler.judge)
        self.checker.replace_settings(settings)
        self.journal.retention_days = settings.log_retention_days
        self.journal.max_bytes = settings.log_max_bytes
        self.journal.queue_rows = settings.log_queue_rows
        return forgets

    def note_failed_reload(self) -> None:
        self._reloads["failure"] += 1

    # stop

    async def stop(self, *, grace_s: float) -> None:
        """Drain, then close everything; what was accepted is answered within `grace_s`, then cut."""
        if self.lifecycle is Lifecycle.STOPPED:
            return
        if self.lifecycle is Lifecycle.RUNNING:
            await self._drain(grace_s)
            saving = asyncio.create_task(self._upkeep.save_health())
            await asyncio.sleep(0)  # it is handed over; a log that is locked ends the wait by closing
            self.lifecycle = Lifecycle.STOPPED
            await self._close_all()
            await saving
            return
        self.lifecycle = Lifecycle.STOPPED
        await self._close_all()

    async def _drain(self, grace_s: float) -> None:
        notify_systemd("STOPPING=1")
        self.lifecycle = Lifecycle.DRAINING
        self._say_cut(await self._front.drain(delay_s=self.settings.gateway_drain_delay, grace_s=grace_s))

    def cut(self) -> None:
        """End the drain's patience now."""
        self._say_cut(self._front.cut())

    def _say_cut(self, count: int) -> None:
        if count:
            self._log.warning("%d requests were cut off", count)

    async def _close_all(self) -> None:
        self._front.close()
        if self._is_built:
            self._ticker.stop()
            await _ended([*self._background, *self._context.tasks])
            await self._pools.close()
            self._fetch.close()
            await asyncio.sleep(0)  # connections cut just now settle their exchanges
            self._recorder.close()
        await asyncio.to_thread(self._close_files)

    def _close_files(self) -> None:
        """Blocking. The access lines last, for a successor waits for the databases."""
        for store in self._stores:
            store.close()
        self.access_log.close()
        if self.access_log.lines_lost:
            self._log.warning("%d access lines were lost: nobody took them in time", self.access_log.lines_lost)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
