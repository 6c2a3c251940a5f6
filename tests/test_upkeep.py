"""What the request log's file keeps over days and restarts."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from unittest import mock

import pytest

from engadi_gateway.gateway import upkeep
from engadi_gateway.store.errors import StoreError
from engadi_gateway.store.questions import LogFilter
from tests.fakes import upstream
from tests.harness import ADMIN, ask, json_of, running
from tests.logrows import a_row
from tests.world import a_world, until

BASE = "/api/v1/gateway"
_DAY_MS = 86_400_000


def test_old_rows_go_by_themselves_and_health_is_kept_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engadi_gateway.gateway.upkeep._PRUNE_EVERY_S", 0.01)
    caplog.set_level(logging.CRITICAL, "engadi")

    async def run() -> None:
        async with a_world(tmp_path, log_retention_days=3) as world:
            journal, prune = world.gateway.journal, world.gateway.journal.prune

            async def prune_late(now_ms: int, old_by_ms: int) -> None:
                monkeypatch.setattr(journal, "prune", prune)  # a fault is not the end of it
                raise StoreError("a fault")

            monkeypatch.setattr(journal, "prune", prune_late)
            await world.gateway.checker.check_now("auth")
            journal.put([a_row(request_id="old", created_at=int(time.time() * 1000) - 5 * _DAY_MS)])
            await journal.written(20)
            async with asyncio.timeout(20):
                while (await journal.logs(LogFilter(request_id="old"))).items:
                    await asyncio.sleep(0.01)
                while not any(row.last_check for row in await journal.load_health()):
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_health_is_known_over_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            async with running(tmp_path, auth) as gateway:
                reply = await ask(gateway.port, "GET", f"{BASE}/services/auth/health", bearer=ADMIN)
                assert json_of(reply)["status"] == "healthy"
                before = gateway.checker.status()
            async with running(tmp_path, auth) as gateway:
                assert gateway.checker.status() == before
                page = json_of(await ask(gateway.port, "GET", "/health"))
                assert page["services"] == {"auth": "healthy"}
                assert auth.url not in str(page), "names and states only"

    asyncio.run(run())


def test_retention_goes_on_after_a_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "_PRUNE_EVERY_S", 0.0)
    asked = 0

    async def prune(now_ms: int, old_by_ms: int) -> None:
        nonlocal asked
        asked += 1
        raise OverflowError("too large")

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            with mock.patch.object(gateway.journal, "prune", prune):
                await until(lambda: asked > 2)

    asyncio.run(run())
    assert any("retention" in message for message in caplog.messages)
