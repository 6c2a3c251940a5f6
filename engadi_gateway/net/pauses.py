"""Sleeping between two rounds of what is done for ever."""

from __future__ import annotations

import asyncio
import contextlib


class Pause:
    """A sleep that ends early where there is news: also such as came while nobody slept."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def cut_short(self) -> None:
        self._news.set()

    async def sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # `wait_for` can swallow a cancellation that comes with the news
                await self._news.wait()
        self._news.clear()
