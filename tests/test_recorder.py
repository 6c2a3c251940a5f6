"""What becomes of rows that find no room: told once when it begins and once when it has ended, and a state that ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.record.accesslog import AccessLog
from engadi_gateway.record.metrics import Metrics
from engadi_gateway.record.recorder import CALM_S, Recorder
from engadi_gateway.store.journal import Journal
from tests.exchanges import exchange_of
from tests.fakes import upstream
from tests.harness import ask, json_of, running, settings_for

BEGUN = "request log: the queue is full, rows are shed"
ENDED = "request log: no more rows are shed; %d were lost"


class Timers:
    """A loop's `call_later` whose calls are made by hand; the real timers are hours away."""

    def __init__(self) -> None:
        self.set: list[tuple[float, asyncio.TimerHandle, Callable[[], None]]] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        handle = asyncio.get_running_loop().call_later(10_000, call)
        self.set.append((delay_s, handle, call))
        return handle

    def pass_time(self, delay_s: float) -> None:
        """What was to happen after so long, and was not called off, happens."""
        due = [one for one in self.set if one[0] == delay_s and not one[1].cancelled()]
        self.set = [one for one in self.set if one[0] != delay_s]
        for _, handle, call in due:
            handle.cancel()
            call()


def test_shedding_is_said_once_and_ends_a_minute_after_the_last_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        settings = settings_for(tmp_path, {}, log_queue_rows=2, log_flush_rows=1)
        journal = Journal(settings.log_path, retention_days=1, max_bytes=0, queue_rows=2)
        journal.open()
        hold, timers = threading.Event(), Timers()
        recorder = Recorder(settings, Metrics(), journal, AccessLog("off"), timers.call_later)
        try:
            journal._database.submit(lambda connection: hold.wait(20))
            for _ in range(2):
                recorder.add(exchange_of())
            assert not recorder.is_shedding
            for _ in range(3):
                recorder.add(exchange_of())
            assert recorder.is_shedding
            assert (
                len([handle for after_s, handle, _ in timers.set if after_s == CALM_S and not handle.cancelled()]) == 1
            )
            assert caplog.messages == [BEGUN]
            timers.pass_time(CALM_S)
            assert not recorder.is_shedding
            assert caplog.messages == [BEGUN, ENDED % 3]
            recorder.add(exchange_of())
            assert recorder.is_shedding
            recorder.close()
            assert not recorder.is_shedding
            assert caplog.messages == [BEGUN, ENDED % 3, BEGUN, ENDED % 1]
            timers.pass_time(CALM_S)
            assert len(caplog.messages) == 4, "a recorder that is closed says no more"
        finally:
            hold.set()
            journal.close()

    with caplog.at_level(logging.WARNING, "engadi"):
        asyncio.run(run())


def test_a_gateway_that_stops_says_what_was_shed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        hold = threading.Event()
        async with upstream() as auth, running(tmp_path, auth, log_queue_rows=2, log_flush_rows=1) as gateway:
            gateway.journal._database.submit(lambda connection: hold.wait(20))
            for _ in range(5):
                await ask(gateway.port, "GET", "/api/v1/auth/x")
            hold.set()

    with caplog.at_level(logging.WARNING, "engadi"):
        asyncio.run(run())
    assert [text for text in caplog.messages if text.startswith("request log")] == [BEGUN, ENDED % 3]


def test_the_health_page_is_well_again_and_keeps_the_count(tmp_path: Path) -> None:
    async def page_of(gateway: Gateway) -> tuple[str, str, int]:
        page = json_of(await ask(gateway.port, "GET", "/health"))
        return page["status"], page["request_log"]["status"], page["request_log"]["rows_shed"]

    async def run() -> None:
        hold = threading.Event()
        async with upstream() as auth, running(tmp_path, auth, log_queue_rows=2, log_flush_rows=1) as gateway:
            gateway.journal._database.submit(lambda connection: hold.wait(20))
            for _ in range(5):
                await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert await page_of(gateway) == ("degraded", "shedding", 3)
            hold.set()
            await gateway._console.flushed()
            gateway._recorder._calmed()
            status, log_status, shed = await page_of(gateway)
            assert (status, log_status) == ("healthy", "ok")
            assert shed >= 3

    asyncio.run(run())
