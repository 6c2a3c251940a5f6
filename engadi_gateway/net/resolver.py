"""Names to addresses: looked up in threads, one for each name however many ask, and remembered a while."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from concurrent.futures import Future
from threading import Thread
from typing import Any

#: At once; a name that nobody answers for takes a place for as long as the system's resolver goes on asking.
_MAX_LOOK_UPS = 32


class Resolver:
    """Name look-ups in threads of their own, so that a slow resolver starves nobody; remembered a while.

    No executor: its threads would be waited for at the process's end, and nobody can end a look-up that hangs.
    """

    def __init__(self, cache_s: float) -> None:
        self.cache_s = cache_s
        self._known: dict[tuple[str, int], tuple[float, list[str]]] = {}
        self._asked: dict[tuple[str, int], asyncio.Task[list[Any]]] = {}
        self._places = asyncio.Semaphore(_MAX_LOOK_UPS)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Addresses to try in order. Raises socket.gaierror."""
        if _is_address(host):
            return [host]
        known = self._known.get((host, port))
        if known is not None and known[0] > time.monotonic():
            return known[1]
        addresses = list(dict.fromkeys(str(row[4][0]) for row in await asyncio.shield(self._look_up(host, port))))
        self._known[host, port] = (time.monotonic() + self.cache_s, addresses)
        return addresses

    def forget(self, now: float) -> None:
        """Let go of answers that are too old to be given."""
        self._known = {name: known for name, known in self._known.items() if known[0] > now}

    def _look_up(self, host: str, port: int) -> asyncio.Task[list[Any]]:
        """One at a time for each name, whoever asks: a dead one has one thread, and not all."""
        asked = self._asked.get((host, port))
        if asked is None:
            asked = self._asked[host, port] = asyncio.get_running_loop().create_task(self._ask(host, port))
            asked.add_done_callback(lambda done: self._answered((host, port), done))
        return asked

    async def _ask(self, host: str, port: int) -> list[Any]:
        async with self._places:
            answer: Future[list[Any]] = Future()
            answer.set_running_or_notify_cancel()  # it takes an answer even when nobody waits any more
            Thread(target=_look_up, args=(host, port, answer), name="engadi-dns", daemon=True).start()
            return await asyncio.wrap_future(answer)

    def _answered(self, name: tuple[str, int], done: asyncio.Task[list[Any]]) -> None:
        del self._asked[name]
        if not done.cancelled():
            done.exception()  # whoever still waits is told; where nobody does, that is no news

    def close(self) -> None:
        """Wait for none of them any more."""
        for asked in self._asked.values():
            asked.cancel()


def _look_up(host: str, port: int, answer: Future[list[Any]]) -> None:
    try:
        answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except Exception as error:
        answer.set_exception(error)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
