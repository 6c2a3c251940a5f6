"""A pause ends with its time, or with news, be they older than it."""

from __future__ import annotations

import asyncio

from engadi_gateway.pauses import Pause


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


def test_without_news_it_takes_its_time() -> None:
    asyncio.run(Pause().sleep(0.001))
