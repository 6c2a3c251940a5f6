"""A gateway between clients and upstreams that do what the path says; what tests of options and wiring look at."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engadi_gateway.gateway.gateway import Gateway
from tests.fakes import OK, Reply, Seen, Upstream, Wire, upstream
from tests.harness import SECRET, ask, settings_for, token

AUTH, CONTENT, SILENT, NAMED = (f"/api/v1/{name}" for name in ("auth", "content", "projects", "search"))
APP = "https://app.example"
BEARER = token()  # one and the same, so that a verdict on it can be remembered
LATER_S = 100  # options that are times have values on both sides of it
SOON_S = 0.5  # for what asyncio's own clock ends: the values are a fiftieth of it, and a minute
LONG_SECRET = SECRET + SECRET


@dataclass
class World:
    """A gateway between clients and upstreams that do what the path says."""

    folder: Path
    auth: Upstream = field(default_factory=Upstream)
    content: Upstream = field(default_factory=Upstream)
    silent_port: int = 0
    gateway: Gateway = field(init=False)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    is_sick: bool = False

    @property
    def port(self) -> int:
        return self.gateway.port

    def settings(self, **values: Any) -> Any:
        names = {"folder": str(self.folder), "auth": self.auth.url, "content": self.content.url}
        services = {
            "auth": self.auth.url,
            "content": self.content.url,
            "projects": f"https://127.0.0.1:{self.silent_port}",
            "search": self.content.url.replace("127.0.0.1", "localhost"),
        }
        ready = {key: value.format(**names) if isinstance(value, str) else value for key, value in values.items()}
        return settings_for(self.folder, services, **{"breaker_enabled": False, **ready})

    async def script(self, seen: Seen, wire: Wire) -> None:
        word = seen.target.rpartition("/")[2]
        if word == "hold":
            await self.released.wait()
        if word == "close" or (word == "health" and self.is_sick):
            wire.close()
            return
        replies = {
            "503": b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n",
            "head": b"HTTP/1.1 200 OK\r\nX: %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % (b"x" * 3000),
            "last": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "big": b"HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\n\r\n" + bytes(1 << 24),
            "validate": b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"sub": "u"}',
            "ws": b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        }
        await wire.send(replies.get(word, OK))
        if word in {"head", "last"}:
            wire.close()
        while word == "ws" and (data := await wire.reader.read(1000)):
            await wire.send(data)


@contextlib.asynccontextmanager
async def a_world(folder: Path, **values: Any) -> AsyncIterator[World]:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()
        writer.close()

    world = World(folder)
    folder.mkdir(exist_ok=True)
    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    world.silent_port = silent.sockets[0].getsockname()[1]
    async with (
        upstream(world.script) as world.auth,
        upstream(world.script) as world.content,
        silent,
        Gateway(world.settings(**values)) as world.gateway,
    ):
        yield world


Probe = Callable[[World], Awaitable[Any]]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def get(world: World, path: str, bearer: str | None = None, method: str = "GET", **options: Any) -> Reply:
    return await ask(world.port, method, path, bearer=bearer, **options)
