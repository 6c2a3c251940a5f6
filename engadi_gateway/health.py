"""Health checks: every interval a GET on each service, all at once, jittered; what they saw, and what follows.

One that is new is checked as soon as it is there.

healthy: 2xx in time. degraded: another answer below 500, or a slow one. unhealthy: `fall` bad checks in a row; healthy
again after `rise` good ones. unknown: never checked.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from engadi_gateway.model import HealthStatus, Service, ServiceHealth
from engadi_gateway.net.fetch import Fetch, FetchError
from engadi_gateway.net.pauses import Pause
from engadi_gateway.settings.load import Settings

_MAX_BODY_BYTES = 64 << 10
_JITTER = 0.1
_OFF_S = 60.0  # other settings end it early
_LONG_S = 3600.0


def judged(health: ServiceHealth, seen: HealthStatus, fall: int, rise: int) -> ServiceHealth:
    """The state after one more check; `seen` is what this check alone says."""
    if seen is HealthStatus.UNHEALTHY:
        failures = health.consecutive_failures + 1
        is_down = failures >= fall or health.status in {HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN}
        status = HealthStatus.UNHEALTHY if is_down else HealthStatus.DEGRADED
        return replace(health, status=status, consecutive_failures=failures, consecutive_successes=0)
    successes = health.consecutive_successes + 1
    is_recovering = health.status is HealthStatus.UNHEALTHY and successes < rise
    status = HealthStatus.UNHEALTHY if is_recovering else seen
    return replace(health, status=status, consecutive_failures=0, consecutive_successes=successes)


def _say(health: ServiceHealth, before: HealthStatus) -> None:
    """A first check that is good is no news."""
    if before is HealthStatus.UNKNOWN and not health.consecutive_failures:
        return
    level = logging.WARNING if health.status is not HealthStatus.HEALTHY else logging.INFO
    error = health.last_error and f": {health.last_error}"
    text = "health of %s: %s, was %s%s"
    logging.getLogger("engadi").log(level, text, health.service_name, health.status, before, error)


class HealthChecker:
    """Checks all services and keeps what it saw.

    Args:
        note_healthy: told of (service, monotonic now) after a good check; the breaker probes early then.
        clock: epoch seconds.
        tell_unhealthy: told of all services that are down, whenever that may have changed.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        settings: Settings,
        fetch: Fetch,
        note_healthy: Callable[[str, float], None],
        clock: Callable[[], float] = time.time,
        tell_unhealthy: Callable[[frozenset[str]], None] = lambda names: None,
    ) -> None:
        self._settings = settings
        self._fetch = fetch
        self._note_healthy = note_healthy
        self._clock = clock
        self._tell_unhealthy = tell_unhealthy
        self._services: dict[str, Service] = {}
        self._health: dict[str, ServiceHealth] = {}
        self._pause = Pause()
        self._arrivals = Pause()
        self._asked: set[tuple[str, str]] = set()  # the services, with their URLs, that are being looked at
        self._take(services)

    def replace_services(self, services: Mapping[str, Service]) -> None:
        """Take another set; what is known of those that stay at their address is kept."""
        self._take(services)
        if self._unseen():
            self._arrivals.cut_short()

    def _unseen(self) -> list[str]:
        """Those of which nothing is known, nor about to be."""
        return [
            name
            for name, health in self._health.items()
            if health.last_check is None and (name, health.service_url) not in self._asked
        ]

    def _take(self, services: Mapping[str, Service]) -> None:
        self._services = dict(services)
        self._health = {
            name: known
            if (known := self._health.get(name)) is not None and known.service_url == service.url
            else ServiceHealth(name, service.url)
            for name, service in services.items()
        }
        self._tell()

    def _tell(self) -> None:
        """Who is down; nobody, while nobody checks."""
        down = (name for name, health in self._health.items() if health.status is HealthStatus.UNHEALTHY)
        self._tell_unhealthy(frozenset(down if self._settings.health_interval > 0 else ()))

    def replace_settings(self, settings: Settings) -> None:
        self._settings = settings
        self._tell()
        self._pause.cut_short()

    def restore(self, rows: list[ServiceHealth]) -> None:
        """What a run before this one knew."""
        for row in rows:
            known = self._health.get(row.service_name)
            if known is not None and known.service_url == row.service_url and known.last_check is None:
                self._health[row.service_name] = row
        self._tell()

    def of(self, name: str) -> ServiceHealth | None:
        """What the last probes of a service say; None where there is no such service."""
        return self._health.get(name)

    def status(self) -> dict[str, ServiceHealth]:
        return dict(self._health)

    def aggregate(self) -> dict[str, Any]:
        """Names and states only: this is shown to everybody."""
        states = {name: str(health.status) for name, health in sorted(self._health.items())}
        bad = {HealthStatus.UNHEALTHY, HealthStatus.DEGRADED}
        is_degraded = any(health.status in bad for health in self._health.values())
        return {"status": "degraded" if is_degraded else "healthy", "services": states}

    async def check_now(self, name: str) -> ServiceHealth | None:
        """Check one service; None when there is none of that name."""
        service = self._services.get(name)
        if service is None:
            return None
        asked = name, service.url
        self._asked.add(asked)
        try:
            seen, took_s, error = await self._look(service)
        finally:
            self._asked.discard(asked)
        known = self._health.get(name)
        if known is None or known.service_url != service.url:
            return known  # replaced while we looked
        is_good = seen is not HealthStatus.UNHEALTHY
        health = replace(
            judged(known, seen, self._settings.health_fall, self._settings.health_rise),
            response_time=round(took_s * 1000, 3),
            last_check=int(self._clock() * 1000),
            error_count=known.error_count + (not is_good),
            success_count=known.success_count + is_good,
            last_error=error,
        )
        self._health[name] = health
        if health.status is not known.status:
            self._tell()
            _say(health, known.status)
        if seen is HealthStatus.HEALTHY:
            self._note_healthy(name, time.monotonic())
        return health

    async def _look(self, service: Service) -> tuple[HealthStatus, float, str]:
        began = time.monotonic()
        try:
            reply = await self._fetch(
                service.url + service.health_path,
                [(b"Accept", b"*/*")],
                self._settings.health_timeout,
                _MAX_BODY_BYTES,
            )
        except FetchError as error:
            return HealthStatus.UNHEALTHY, time.monotonic() - began, str(error)
        took_s = time.monotonic() - began
        if reply.status >= 500:
            return HealthStatus.UNHEALTHY, took_s, f"status {reply.status}"
        if not 200 <= reply.status < 300:
            return HealthStatus.DEGRADED, took_s, f"status {reply.status}"
        if took_s > self._settings.health_slow:
            return HealthStatus.DEGRADED, took_s, "slow"
        return HealthStatus.HEALTHY, took_s, ""

    async def check_all(self) -> None:
        """All services at once; one check's fault is not the others'."""
        await self._check(list(self._services))

    async def _check(self, names: list[str]) -> None:
        ended = await asyncio.gather(*(self.check_now(name) for name in names), return_exceptions=True)
        for name, end in zip(names, ended, strict=True):
            if isinstance(end, Exception):
                logging.getLogger("engadi").error("health check of %s failed", name, exc_info=end)

    async def run(self, sleep: Callable[[float], Awaitable[None]] | None = None) -> None:
        """For ever: check all, wait an interval with 10 % jitter. An interval of 0 checks nothing."""
        sleep = sleep or self._pause.sleep
        while True:
            interval_s = self._settings.health_interval
            if interval_s > 0:
                await self.check_all()
            jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter, not a secret
            await sleep((interval_s or _OFF_S) * jitter)

    async def run_for_arrivals(self) -> None:
        """For ever: check services that are new, or at another address, before the next round does.

        One that does not answer is not waited for, or the next to come would be.
        """
        async with asyncio.TaskGroup() as checks:
            while True:
                await self._arrivals.sleep(_LONG_S)
                if self._settings.health_interval > 0:
                    checks.create_task(self._check_unseen())

    async def _check_unseen(self) -> None:
        await asyncio.sleep(0)  # a round that begins just now, as after a reload, asks for them too
        await self._check(self._unseen())
