"""`python -m tests.soak many`: what slow and many clients do to everybody else.

For each attack a gateway of its own, as a process; healthy clients, in another, ask before it, while it lasts and after
it. Looked at: whether each of them is answered well, how long that takes, how much memory the gateway holds at most,
and whether connections and files are as before when it is over.

The attack would come from other machines. Where there are processors enough, the gateway has one and everything else
the others, with the healthy clients before the attackers. What is left of the attackers' weight is seen by the same
attack *aside*: on a socket that throws away what it gets, while the gateway serves the healthy clients alone. Their p99
during it may be twice what it is before it or aside, and no more; afterwards all is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engadi_gateway.gateway.listeners import allow_open_files
from tests.fakes import OK, Seen, Wire, upstream
from tests.processes import ROOT, Process, environment_of, ini_of, started
from tests.soak.attacks import ATTACKS
from tests.soak.healthy import HOST, Answers

_AFTER_S = 60.0
#: Above what it holds at rest, whatever is done to it: far from the README's bound, which none of these fills.
MEMORY_BOUND_BYTES = 100 << 20
#: Of that, what may be left when all is over: free memory that Python's allocator keeps.
_KEPT_BYTES = 32 << 20
_MOST_TIMES = 2.0
#: Idle connections to the upstream, which are kept, and a few.
FILES_KEPT = 110
_LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n" + bytes(8 << 20)
#: All duties; nobody is refused for asking often, or for having asked 1,000 times on one connection.
_INI = "[limits]\nper_ip = 10000000\nper_user = 10000000\n"


@dataclass
class Report:
    """One line an attack; `wrong` must be empty. Latencies in milliseconds, memory in MiB above rest."""

    attacks: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


async def soak(
    folder: Path, *, seconds: float, names: tuple[str, ...] = tuple(ATTACKS), scale: float = 1.0, is_timed: bool = True
) -> Report:
    """Each attack for so long, with `scale` of its connections; where it is not timed, nothing is wrong with being slow."""
    report = Report()
    with _elsewhere() as processors:
        async with upstream(_answer) as auth, _healthy() as healthy:
            ini = ini_of(auth.url, _INI).replace(
                "[services]", f"keep_alive_requests = 0\n[services]\ncontent = http://127.0.0.1:{healthy.upstream}"
            )
            for name in names:
                place = folder / name.replace(" ", "_")
                place.mkdir()
                async with started(place, ini) as gateway:
                    os.sched_setaffinity(gateway.process.pid, processors[:1])
                    attacked = _Attacked(gateway, healthy, name, seconds, max(1, int(ATTACKS[name][1] * scale)))
                    await attacked.run(report, is_timed=is_timed)
                auth.seen.clear()
                auth.raw.clear()
    return report


async def _answer(seen: Seen, wire: Wire) -> None:
    await wire.send(_LARGE if seen.target.endswith("large") else OK)


class Healthy:
    """The process of the healthy clients; `upstream` is the port of what they ask for."""

    def __init__(self, process: asyncio.subprocess.Process, upstream: int) -> None:
        self._process = process
        self.upstream = upstream

    async def ask(self, port: int, seconds: float) -> Answers:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{port} {seconds}\n".encode())
        return Answers(**json.loads(await self._process.stdout.readline()))


@contextlib.asynccontextmanager
async def _healthy() -> AsyncIterator[Healthy]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.soak.healthy",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment_of(), cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Healthy(process, int(await process.stdout.readline()))
    finally:
        process.stdin.close()
        await process.wait()


@contextlib.contextmanager
def _elsewhere() -> Iterator[list[int]]:
    """What runs from here on leaves the first processor alone, if there is another; gives all."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[1:] or processors)
    try:
        yield processors
    finally:
        os.sched_setaffinity(0, processors)


@dataclass
class _Attacked:
    """One attack on one gateway."""

    gateway: Process
    healthy: Healthy
    name: str
    seconds: float
    size: int

    async def run(self, report: Report, *, is_timed: bool) -> None:
        gateway = self.gateway
        seen = {"before": await self._asked()}
        if is_timed:
            async with _bystander() as port, self._attack(port, report):
                seen["aside"] = await self._asked()
        files, rest = _files(gateway), _memory(gateway)
        peaks = [0, 0]
        watching = asyncio.create_task(_watch(gateway, peaks))
        async with self._attack(gateway.port, report):
            seen["during"] = await self._asked()
        watching.cancel()
        await _calm(gateway, files + FILES_KEPT)
        seen["after"] = await self._asked()
        above, kept = peaks[0] - rest, _memory(gateway) - rest
        report.attacks[self.name] = (
            f"{self.size} at once: p99 {', '.join(f'{answers.p99_ms} {when}' for when, answers in seen.items())}; "
            f"p50 {', '.join(str(answers.p50_ms) for answers in seen.values())}; "
            f"{seen['during'].asked} asked, {len(seen['during'].failures)} failed; "
            f"{above >> 20} MiB, {max(0, kept) >> 20} of it kept, {peaks[1]} files"
        )
        for when, answers in seen.items():
            report.wrong += [f"{self.name}, {when}: {failure}" for failure in answers.failures[:3]]
        if above > MEMORY_BOUND_BYTES or kept > _KEPT_BYTES:
            report.wrong.append(f"{self.name}: {above >> 20} MiB, {kept >> 20} of it kept")
        if _files(gateway) > files + FILES_KEPT:
            report.wrong.append(f"{self.name}: {_files(gateway)} files open when it is over, {files} before")
        if is_timed:
            report.wrong += self._slow(seen)

    async def _asked(self) -> Answers:
        return await self.healthy.ask(self.gateway.port, self.seconds)

    def _slow(self, seen: dict[str, Answers]) -> list[str]:
        most_ms = _MOST_TIMES * max(seen["before"].p99_ms, seen["aside"].p99_ms)
        return [
            f"{self.name}: p99 {seen[when].p99_ms} {when}"
            for when in ("during", "after")
            if seen[when].p99_ms > most_ms
        ]

    @contextlib.asynccontextmanager
    async def _attack(self, port: int, report: Report) -> AsyncIterator[None]:
        """A second until it is in full swing, then for so long, and one more, so that its end is not taken for it."""
        attack = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.soak.attacks", self.name, str(port), str(self.seconds + 2), str(self.size),
            env=environment_of(), cwd=ROOT,
        )  # fmt: skip
        await asyncio.sleep(1)
        yield
        try:
            await asyncio.wait_for(attack.wait(), _AFTER_S)
        except TimeoutError:
            report.wrong.append(f"{self.name}: the attack itself did not end")
            attack.kill()
            await attack.wait()


class _Sink(asyncio.Protocol):
    """Throws away what it gets."""


@contextlib.asynccontextmanager
async def _bystander() -> AsyncIterator[int]:
    allow_open_files(15_000)
    server = await asyncio.get_running_loop().create_server(_Sink, HOST, 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _memory(gateway: Process) -> int:
    text = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) << 10


def _files(gateway: Process) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


async def _watch(gateway: Process, peaks: list[int]) -> None:
    """The most memory and files."""
    while True:
        peaks[0] = max(peaks[0], _memory(gateway))
        peaks[1] = max(peaks[1], _files(gateway))
        await asyncio.sleep(0.1)


async def _calm(gateway: Process, files: int) -> None:
    """Wait until what the attack left is gone."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_AFTER_S):
            while _files(gateway) > files:
                await asyncio.sleep(0.1)
