"""What is kept in the request log's file over days and restarts: rows for as long as was said, and health."""

from __future__ import annotations

import asyncio
import logging
import time

from engadi_gateway.health import HealthChecker
from engadi_gateway.store.ageing import Ageing
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.journal import Journal

_PRUNE_EVERY_S = 60.0


class Upkeep:
    """See the module. What fails is logged: nobody is kept from serving by it."""

    def __init__(self, journal: Journal, checker: HealthChecker) -> None:
        self._journal = journal
        self._checker = checker
        self._log = logging.getLogger("engadi")

    async def restore_health(self) -> None:
        """What was known before the restart, until the first checks know better."""
        try:
            self._checker.restore(await self._journal.load_health())
        except StoreError as error:
            self._log.warning("health of before the restart is not known: %s", error)

    async def save_health(self) -> None:
        try:
            await self._journal.save_health(list(self._checker.status().values()))
        except StoreError as error:
            self._log.warning("health not saved: %s", error)

    async def run(self) -> None:
        """For ever: let old rows go, keep the health of now."""
        ageing = Ageing(_wall_ms(), time.monotonic())
        while True:
            await asyncio.sleep(_PRUNE_EVERY_S)
            try:
                now_ms = _wall_ms()
                await self._journal.prune(now_ms, ageing.moment_ms(now_ms, time.monotonic()))
            except StoreError as error:
                self._log.error("request log not pruned: %s", error)
            except Exception:  # the next time may go well
                self._log.exception("internal error in retention")
            await self.save_health()


def _wall_ms() -> int:
    return int(time.time() * 1000)
