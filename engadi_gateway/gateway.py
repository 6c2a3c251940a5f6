"""The composition: builds the house from settings, listens, swaps configurations, reloads, drains.

Embedding: `async with Gateway(settings) as gateway: ...`. Nothing is global; two gateways live in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from engadi_gateway import __version__
from engadi_gateway.accesslog import AccessLog
from engadi_gateway.admin.api import Api
from engadi_gateway.admin.endpoints import GATE
from engadi_gateway.assembly import (
    Compiled,
    Compiler,
    State,
    context_of,
    pinned,
    pool_limits,
    refresh,
    refuse_faults,
    waiting_for_a_restart,
)
from engadi_gateway.authority import Authority
from engadi_gateway.errors import ConfigurationError, Reason, Refusal, RefusedError
from engadi_gateway.front import Front
from engadi_gateway.health import HealthChecker
from engadi_gateway.listeners import Inherited, notify_systemd, open_doors, with_admin_door
from engadi_gateway.metrics import Metrics
from engadi_gateway.model import Listener, Service, Snapshot
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.context import LocalReply
from engadi_gateway.net.deadlines import Ticker
from engadi_gateway.net.fetch import Fetcher
from engadi_gateway.net.pool import Pools
from engadi_gateway.parsing import IpNetwork
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.cors import Cors
from engadi_gateway.pipeline.exchange import Exchange, Identity, Wait
from engadi_gateway.pipeline.routing import RoutingTable
from engadi_gateway.pipeline.targets import without_route, without_target
from engadi_gateway.recorder import Recorder
from engadi_gateway.secret import with_secret
from engadi_gateway.seed import overruled, seed_of, timestamp
from engadi_gateway.settings import Settings
from engadi_gateway.sharing import Sharing, when_free
from engadi_gateway.store.ageing import Ageing
from engadi_gateway.store.catalog import Catalog, Change, with_change
from engadi_gateway.store.database import StoreError
from engadi_gateway.store.journal import Journal
from engadi_gateway.tls import client_tls, renew_tls, server_tls, validity_of, warning_of
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import HeadLimits

_PRUNE_EVERY_S = 60.0
#: Beyond its drain, for a process before this one to let go of the databases.
_PATIENCE_S = 5.0
_FLUSHED_S = 1.0


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
        self._background: list[asyncio.Task[None]] = []

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
            await self._open_stores()
            self.settings, said = with_secret(self.settings)  # beside a database that is ours
            if said:
                self._log.warning(said)
            self._build()
            await self._restore_health()
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
            asyncio.create_task(self.authority.run(), name="keys"),
            asyncio.create_task(self._prune_forever(), name="prune"),
            asyncio.create_task(self._sharing.run(), name="sharing"),
        ]

    async def _open_stores(self) -> None:
        settings = self.settings
        self.catalog = Catalog(settings.database_url, is_shared=settings.server_reuse_port)
        self.journal = Journal(
            settings.log_path,
            retention_days=settings.log_retention_days,
            max_bytes=settings.log_max_bytes,
            queue_rows=settings.log_queue_rows,
            is_shared=settings.server_reuse_port,
        )
        patience_s = settings.gateway_drain_delay + settings.gateway_drain_timeout + _PATIENCE_S
        seed = seed_of(settings, timestamp(time.time()))
        self._snapshot = await when_free(lambda: self.catalog.open(seed), patience_s, self.catalog.give_up)
        await when_free(self.journal.open, patience_s, self.journal.give_up)

    def _build(self) -> None:
        settings = self.settings
        self._pools = Pools(pool_limits(settings), lambda: client_tls(self.settings))
        self._fetch = Fetcher(lambda: client_tls(self.settings), settings.upstream_dns_cache)
        self._state = State.of(settings)
        self.breakers = self._state.breakers
        self._compiler = Compiler(settings, self._state)
        self._compiled = self._compiler.compile(self._snapshot, time.monotonic())
        self._context = context_of(settings, self, self._pools, self._compiled)
        self._batch = Batch(self._context)
        call_later = self._context.loop.call_later
        self._recorder = Recorder(settings, self.metrics, self.journal, self.access_log, call_later)
        self.authority = Authority(settings, self._compiler.judge, self._state.tokens, self._fetch)
        self.checker = HealthChecker(
            self.services(), settings, self._fetch, self.breakers.note_healthy, tell_unhealthy=self._note_unhealthy
        )
        self.api = Api(self, GATE)
        context = self._context
        self._ticker = Ticker(
            context.loop.call_later,
            [
                context.flights.sweep,
                context.closing.sweep,
                context.heads.sweep,
                context.idle.sweep,
                context.lingers.sweep,
                context.unread.sweep,
                self._pools.sweep,
                self._state.buckets.sweep,
                self.journal.sweep,
            ],
            lambda: self.fault("sweep"),
        )
        self._sharing = Sharing(self.catalog, lambda: self._snapshot.revision, self._take_snapshot)
        self._reloads = {"success": 0, "failure": 0}

    def _note_unhealthy(self, names: frozenset[str]) -> None:
        self.breakers.unhealthy = names

    async def _restore_health(self) -> None:
        """What was known before the restart, until the first checks know better."""
        try:
            self.checker.restore(await self.journal.load_health())
        except StoreError as error:
            self._log.warning("health of before the restart is not known: %s", error)

    async def _save_health(self) -> None:
        try:
            await self.journal.save_health(list(self.checker.status().values()))
        except StoreError as error:
            self._log.warning("health not saved: %s", error)

    def _say_what_is_amiss(self) -> None:
        """Too few files, a certificate that ends, routes that lead nowhere, settings that do not hold."""
        most, wanted = self._context.seats.most, self.settings.server_max_connections
        if most < wanted:
            said = "%d client connections at most, not %d: too few files may be open (ulimit -n, LimitNOFILE=)"
            self._log.warning(said, most, wanted)
        tls = self._front.tls
        if tls is not None:
            validity = validity_of(tls, self.settings)
            self._certificate_ends_at = None if validity is None else validity.ends_at
            warning = warning_of(validity, time.time())
            if warning:
                self._log.warning("server.tls_certificate: %s %s", self.settings.server_tls_certificate, warning)
        self._say_dead_ends(_dead_ends(self._compiled))
        for name in without_route(self._snapshot.services, self._compiled.ways.table):
            self._log.info("service %s: no route leads there; POST /api/v1/gateway/routes makes one", name)
        changed = overruled(self.settings, self._snapshot)
        if changed:
            is_theirs = any(self.settings.origins[name] != "default" for name in changed)
            level = logging.WARNING if is_theirs else logging.INFO
            self._log.log(level, "the API changed these, their settings do not hold: %s", ", ".join(changed))

    def _say_dead_ends(self, found: list[tuple[str, str]]) -> None:
        for pattern, service in found:
            self._log.warning("%s: no URL for %s, requests get 503", pattern, service)

    @property
    def addresses(self) -> list[str]:
        return self._front.addresses

    @property
    def port(self) -> int:
        return self._front.port

    # what the connections ask (net.context.Upcalls)

    def settled(self, exchange: Exchange) -> None:
        try:
            exchange.pipeline.settle(exchange)
        except Exception:
            self.fault("settle")
        self._recorder.add(exchange)

    def flush(self) -> None:
        """Hand over the rows that wait."""
        self._recorder.flush()

    async def flushed(self) -> None:
        """Whoever asks about the log sees what was answered before."""
        await self._recorder.flushed(_FLUSHED_S)

    async def serve_local(self, exchange: Exchange, body: bytes) -> LocalReply:
        return await self.api.serve(exchange, body)

    async def judge(self, exchange: Exchange, wait: Wait) -> Identity | Refusal | None:
        return await self.authority.judge(exchange, wait)

    def unreadable(self, reason: Reason) -> None:
        self.metrics.unreadable(reason)

    def is_stalled(self) -> bool:
        return self._recorder.is_stalled

    def warn(self, text: str) -> None:
        self._log.warning(text)

    def fault(self, where: str) -> None:
        """Log the exception being handled; called from `except` blocks only."""
        self._log.exception("internal error in %s", where)

    # what the admin API asks (admin.api.Console)

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def head_limits(self) -> HeadLimits:
        return self._context.head_limits

    @property
    def header_policy(self) -> HeaderPolicy:
        return self._context.header_policy

    @property
    def trusted(self) -> tuple[IpNetwork, ...]:
        return self._context.trusted

    @property
    def max_body_bytes(self) -> int:
        return self._context.max_body_bytes

    @property
    def max_local_body_bytes(self) -> int:
        return self._context.max_local_body_bytes

    @property
    def instance(self) -> bytes:
        return self._context.instance

    def side(self, *, is_admin: bool) -> tuple[Pipeline, Listener] | None:
        """Of the first door of that kind."""
        pipeline = self._context.admin_pipeline if is_admin else self._context.pipeline
        listener = self._front.listener(is_admin=is_admin)
        return None if listener is None else (pipeline, listener)

    def routing_table(self) -> RoutingTable:
        return self._compiled.ways.table

    def route_names(self) -> dict[str, tuple[str, str]]:
        """Path pattern and service of every route, by its id, the built-in ones too."""
        return {route.id: (route.path_pattern, route.target_service) for route in self._snapshot.routes} | GATE.names()

    def local_refusal(self, exchange: Exchange) -> Refusal | None:
        return GATE.refusal(exchange, self.cors())

    def cors(self) -> Cors:
        return self._compiled.ways.cors

    def limits_status(self) -> list[dict[str, Any]]:
        return self._compiled.limits.status(time.monotonic())

    def services(self) -> Mapping[str, Service]:
        return self._compiled.ways.services

    def targets(self) -> Mapping[str, str]:
        """The names of the services at each `scheme://host:port` that was asked, with commas between."""
        found: dict[str, set[str]] = {}
        for url, target in self._pools.urls().items():
            found.setdefault(target, set()).update(self._compiled.ways.urls.get(url, ()))
        return {target: ",".join(sorted(names)) for target, names in found.items()}

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
            "revision": self._snapshot.revision,
        }

    async def change(self, change: Change) -> Snapshot:
        """One configuration write, within `writing`: compile what it would give, persist it, then swap it whole.

        Raises:
            RefusedError: CONFLICT or INVALID_FIELDS; STORE_UNAVAILABLE when it could not be kept.
        """
        candidate = with_change(self._snapshot, change)
        compiled = await self._compile_aside(candidate)
        try:
            kept = await self.catalog.apply(change, candidate)
        except StoreError as error:
            self._log.error("configuration not written: %s", error)
            raise RefusedError(Refusal(Reason.STORE_UNAVAILABLE, str(error))) from None
        if kept is not candidate:
            compiled = self._compile(kept)  # at once: what is written must be served, whoever gives up meanwhile
        self._swap(kept, compiled)
        word = "deleted" if change.after is None else "written"
        said = kept.revision, change.kind, change.subject, word, ascii(change.actor)  # a stranger to us chose that name
        self._log.info("configuration revision %d: %s %s %s by %s", *said)
        return kept

    def writing(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While in it, the configuration is the newest and nobody else changes it. Raises StoreError."""
        return self._sharing.writing()

    async def _take_snapshot(self, snapshot: Snapshot) -> None:
        """Of another process, whose services may be others."""
        compiled = await self._compiled_of(snapshot, self._compiler)
        known = set(_dead_ends(self._compiled))
        self._say_dead_ends([one for one in _dead_ends(compiled) if one not in known])
        self._swap(snapshot, compiled)

    async def rehearse(self, change: Change) -> None:
        """What `change` would refuse is refused; nothing is changed.

        Raises:
            RefusedError: see `change`.
        """
        await self._compile_aside(with_change(self._snapshot, change))

    async def _compile_aside(self, snapshot: Snapshot) -> Compiled:
        with _refusing():
            return await self._compiled_of(snapshot, self._compiler)

    def _compile(self, snapshot: Snapshot) -> Compiled:
        with _refusing():
            ways = self._compiler.ways(snapshot, self._compiled.ways)
            return self._compiler.compile(snapshot, time.monotonic(), ways)

    async def _compiled_of(self, snapshot: Snapshot, compiler: Compiler) -> Compiled:
        """What routes become is made in a thread: thousands of them take long, and the loop serves everybody.

        Whoever calls it has the writers' lock, so that what it begins with is still served when it ends.

        Raises:
            ConfigurationError, RefusedError: see `Compiler.compile`.
        """
        ways = await asyncio.to_thread(compiler.ways, snapshot, self._compiled.ways)
        return compiler.compile(snapshot, time.monotonic(), ways)

    def _swap(self, snapshot: Snapshot, compiled: Compiled) -> None:
        self._snapshot = snapshot
        self._compiled = compiled
        compiled.limits.begin(time.monotonic())
        context = self._context
        context.pipeline, context.admin_pipeline = compiled.pipeline, compiled.admin_pipeline
        self.checker.replace_services(self.services())
        self._pools.keep(compiled.ways.urls)
        self.breakers.keep(set(self.services()), time.monotonic())
        self.metrics.keep(self.route_names, self.services())

    # reload

    async def reload(self, settings: Settings) -> None:
        """Take re-read settings: keys, limits, time-outs, services, certificates. Addresses stay until a restart.

        Raises:
            ConfigurationError, StoreError: and everything stays as it was.
        """
        wanted = with_admin_door(settings, self._inherited)
        settings, said = with_secret(pinned(wanted, self.settings))  # the key is beside the database that is open
        async with self._sharing.lock, self.catalog.turn():
            await asyncio.to_thread(refuse_faults, pinned(settings, wanted))  # also what a restart would stumble over
            compiler = Compiler(settings, self._state)
            seed = seed_of(settings, timestamp(time.time()))
            snapshot = await self.catalog.preview(seed)
            compiled = await self._compiled_of(snapshot, compiler)
            kept = await self.catalog.follow(seed, snapshot)
            if kept is not snapshot:
                compiled = compiler.compile(kept, time.monotonic(), compiler.ways(kept, compiled.ways))
            before = self.settings
            forgets = self._take(settings, compiler)
            self._swap(kept, compiled)
            self._say_what_is_amiss()
        if said and forgets:  # another key, then
            self._log.warning(said)
        fixed = waiting_for_a_restart(before, wanted)
        if fixed:
            self._log.warning("these take a restart: %s", ", ".join(fixed))
        self._reloads["success"] += 1

    def _take(self, settings: Settings, compiler: Compiler) -> bool:
        """Nothing can fail any more. Whether what was verified is to be verified anew."""
        forgets = (
            _verdicts_hang_on(settings) != _verdicts_hang_on(self.settings)
            or compiler.judge.keyring.key != self._compiler.judge.keyring.key  # read anew from a file of the same name
        )
        if forgets:
            self._state.tokens.clear()
        self.settings, self._compiler = settings, compiler
        if self._front.tls is not None:
            try:
                renew_tls(self._front.tls, settings)
            except ConfigurationError:  # it was good a moment ago
                self.fault("renewing the certificate")
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
            saving = asyncio.create_task(self._save_health())
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
        if hasattr(self, "_ticker"):
            self._ticker.stop()
        tasks = [*self._background, *(self._context.tasks if hasattr(self, "_context") else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if hasattr(self, "_pools"):
            await self._pools.close()
            self._fetch.close()
        await asyncio.sleep(0)  # connections cut just now settle their exchanges
        if hasattr(self, "_recorder"):
            self._recorder.close()
        await asyncio.to_thread(self._close_files)

    def _close_files(self) -> None:
        """Blocking. The access lines last, for a successor waits for the databases."""
        if hasattr(self, "journal"):
            self.journal.close()
        if hasattr(self, "catalog"):
            self.catalog.close()
        self.access_log.close()
        if self.access_log.lines_lost:
            self._log.warning("%d access lines were lost: nobody took them in time", self.access_log.lines_lost)

    async def _prune_forever(self) -> None:
        ageing = Ageing(_wall_ms(), time.monotonic())
        while True:
            await asyncio.sleep(_PRUNE_EVERY_S)
            try:
                now_ms = _wall_ms()
                await self.journal.prune(now_ms, ageing.moment_ms(now_ms, time.monotonic()))
            except StoreError as error:
                self._log.error("request log not pruned: %s", error)
            except Exception:  # the next time may go well
                self.fault("retention")
            await self._save_health()


def _wall_ms() -> int:
    return int(time.time() * 1000)


def _dead_ends(compiled: Compiled) -> list[tuple[str, str]]:
    """Pattern and service of the routes that have nowhere to go."""
    return [(route.path_pattern, route.target_service) for route in without_target(compiled.ways.targets)]


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What cannot be served is told to who sent it."""
    try:
        yield
    except ConfigurationError as error:
        raise RefusedError(Refusal(Reason.INVALID_FIELDS, faults=tuple(error.faults))) from None


def _verdicts_hang_on(settings: Settings) -> list[Any]:
    """What decides on a token, as far as the settings say it."""
    return [value for name, value in settings.values.items() if name.startswith("jwt_")]
