"""Names to addresses: who is asked how often, and that a name that nobody answers for holds up no other."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any
from unittest import mock

import pytest

from engadi_gateway.net.resolver import Resolver
from tests.world import until


@pytest.mark.parametrize(("cache_s", "times"), [(30.0, 1), (0.0, 2)])
def test_a_name_is_looked_up_once_in_a_while(cache_s: float, times: int) -> None:
    rows = [(0, 0, 0, "", (address, 80)) for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]

    async def run() -> None:
        resolver = Resolver(cache_s)
        with mock.patch.object(socket, "getaddrinfo", return_value=rows) as look_up:
            for _ in range(2):
                assert await resolver.resolve("a.test", 80) == ["192.0.2.1", "192.0.2.2"]
            assert look_up.call_count == times
            await resolver.resolve("b.test", 80)
            assert look_up.call_count == times + 1
        resolver.close()

    asyncio.run(run())


def test_an_address_is_not_looked_up_and_a_failure_is_not_remembered() -> None:
    async def run() -> None:
        resolver = Resolver(30.0)
        with mock.patch.object(socket, "getaddrinfo", side_effect=socket.gaierror(-2, "x")) as look_up:
            assert await resolver.resolve("192.0.2.1", 80) == ["192.0.2.1"]
            assert await resolver.resolve("2001:db8::1", 80) == ["2001:db8::1"]
            assert look_up.call_count == 0
            for _ in range(2):
                with pytest.raises(socket.gaierror):
                    await resolver.resolve("a.test", 80)
            assert look_up.call_count == 2
        resolver.close()

    asyncio.run(run())


def test_a_name_is_looked_up_once_for_all_who_ask_and_a_dead_one_holds_up_no_other() -> None:
    dead, asked = threading.Event(), Counter[str]()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked[host] += 1
        if host == "dead.test":
            dead.wait(20)
            raise socket.gaierror(-3, "x")
        return [(0, 0, 0, "", ("192.0.2.1", 80))]

    async def run() -> None:
        resolver = Resolver(30.0)
        with mock.patch.object(socket, "getaddrinfo", look_up):
            waiting = [asyncio.create_task(resolver.resolve("dead.test", 80)) for _ in range(8)]
            await asyncio.sleep(0)
            assert await resolver.resolve("good.test", 80) == ["192.0.2.1"]
            waiting[0].cancel()
            dead.set()
            found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in found] == [asyncio.CancelledError, *[socket.gaierror] * 7]
        assert asked == {"dead.test": 1, "good.test": 1}
        resolver.close()

    asyncio.run(run())


def test_a_thousand_names_that_hang_take_a_bounded_number_of_threads_and_then_all_are_asked() -> None:
    resolver_is_back, asked = threading.Event(), Counter[str]()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked[host] += 1
        resolver_is_back.wait(20)
        return [(0, 0, 0, "", ("192.0.2.1", 80))]

    async def run() -> None:
        resolver = Resolver(30.0)
        with mock.patch.object(socket, "getaddrinfo", look_up):
            waiting = [asyncio.create_task(resolver.resolve(f"n{number}.test", 80)) for number in range(1000)]
            await until(lambda: len(asked) == 32)
            assert sum(thread.name == "engadi-dns" for thread in threading.enumerate()) == 32
            resolver_is_back.set()
            assert await asyncio.gather(*waiting) == [["192.0.2.1"]] * 1000
        assert set(asked.values()) == {1}
        resolver.close()

    asyncio.run(run())


_HANGS = """
import asyncio, socket, time
from engadi_gateway.net.resolver import Resolver
socket.getaddrinfo = lambda *asked, **_: print("asked", flush=True) or time.sleep(1000)
async def run():
    resolver = Resolver(30.0)
    try:
        await asyncio.wait_for(resolver.resolve("dead.test", 80), 0.2)
    except TimeoutError:
        resolver.close()
asyncio.run(run())
"""


def test_a_look_up_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == (b"asked\n", b"")


def test_the_resolver_forgets_what_is_too_old_to_be_told() -> None:
    async def run() -> None:
        resolver = Resolver(30.0)
        await resolver.resolve("localhost", 80)
        now = time.monotonic()
        for later, count in ((0.0, 1), (31.0, 0)):
            resolver.forget(now + later)
            assert len(resolver._known) == count

    asyncio.run(run())
