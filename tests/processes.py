"""A gateway as a process of its own, as users start it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.harness import SECRET

ROOT = Path(__file__).parent.parent
#: Runs the gateways; another one than runs the tests with `-p tests.on_pypy`.
PYTHON = os.environ.get("PYTHON_OF_GATEWAYS", sys.executable)


def environment_of(**extra: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "ENGADI_SERVER_LOOP") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "SECRET_KEY": SECRET, **extra}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """A gateway as a process; `lines` is what it said on stderr."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.folder = folder
        self.lines: list[str] = []

    async def wait_for(self, text: str) -> None:
        assert self.process.stderr is not None
        while True:
            line = (await asyncio.wait_for(self.process.stderr.readline(), 20)).decode()
            assert line, f"ended without {text!r}: {self.lines}"
            self.lines.append(line)
            if text in line:
                return

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    @contextlib.asynccontextmanager
    async def watched(self, since: str = "listening on") -> AsyncIterator[Process]:
        """From when it has said that; killed in the end, unless it has ended."""
        try:
            await self.wait_for(since)
            yield self
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            assert self.process.stderr is not None
            await self.process.stderr.read()
            self.process._transport.close()  # type: ignore[attr-defined]  # asyncio 3.11 leaves it to the collector

    async def code(self) -> int:
        assert self.process.stderr is not None
        self.lines += (await asyncio.wait_for(self.process.stderr.read(), 20)).decode().splitlines()
        return await asyncio.wait_for(self.process.wait(), 20)


@contextlib.asynccontextmanager
async def started(
    folder: Path, ini: str, stdout: int | None = None, /, *, since: str = "listening on", **environment: str
) -> AsyncIterator[Process]:
    port = free_port()
    (folder / "gateway.ini").write_text(ini)
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        str(ROOT / "run.py"),
        cwd=folder,
        env=environment_of(**{"PORT": str(port), **environment}),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    async with Process(process, port, folder).watched(since) as running:
        yield running


def ini_of(auth_url: str, more: str = "") -> str:
    """One public service, and no health checks."""
    return f"[server]\nhost = 127.0.0.1\n[services]\nauth = {auth_url}\n[health]\ninterval = 0\n{more}"
