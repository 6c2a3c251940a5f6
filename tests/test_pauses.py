"""A pause ends with its time, or with news, be they older than it."""

from __future__ import annotations

import asyncio

import pytest

from engadi_gateway.net.pauses import Pause


def test_news_end_a_pause_once() -> None:
    async def run() -> None:
        pause = Pause()
        waiting = asyncio.create_task(pause.sleep(3600))
        await asyncio.sleep(0)
        assert not waiting.done()
        pause.cut_short()
        await asyncio.wait_for(waiting, 5)
        pause.cut_short()
        await asyncio.wait_for(pause.sleep(3600), 5)
        waiting = asyncio.create_task(pause.sleep(3600))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "old news are none"
        waiting.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("turns", range(5))
def test_a_cancellation_that_comes_with_the_news_is_not_lost(turns: int) -> None:
    async def run() -> None:
        pause = Pause()

        async def forever() -> None:
            while True:
                await pause.sleep(3600)

        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        pause.cut_short()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()

    asyncio.run(run())


def test_without_news_it_takes_its_time() -> None:
    asyncio.run(Pause().sleep(0.001))
