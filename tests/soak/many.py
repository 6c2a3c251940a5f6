"""`python -m tests.soak many`: what slow and many clients do to everybody else.

For each attack a gateway of its own, as a process; healthy clients ask before it, while it lasts and after it. Looked
at: whether each of them is answered well, how long that takes, how much memory the gateway holds at most, and whether
connections and files are as before when it is over. Latencies are those of a machine that also runs the attack.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes import OK, RawClient, Seen, Wire, upstream
from tests.harness import ask_on
from tests.processes import ROOT, Process, environment_of, ini_of, started
from tests.soak.attacks import ATTACKS, PATH

HEALTHY = 4
_PAUSE_S = 0.02
_AFTER_S = 60.0
#: Above what it holds at rest: see the README for how it is made up.
MEMORY_BOUND_BYTES = 400 << 20
#: Idle connections to the upstream, which are kept, and a few.
FILES_KEPT = 110
_LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n" + bytes(8 << 20)
_INI = "[limits]\nenabled = no\n[log]\nrequests = no\n"


@dataclass
class Report:
    """One line an attack; `wrong` must be empty. Latencies in milliseconds, memory in MiB above rest."""

    attacks: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Healthy:
    """What the healthy clients saw: latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def p99_ms(self) -> float:
        ordered = sorted(self.latencies)
        return round(ordered[int(len(ordered) * 0.99)] * 1000, 1) if ordered else 0.0


async def soak(folder: Path, *, seconds: float, names: tuple[str, ...] = tuple(ATTACKS), scale: float = 1.0) -> Report:
    """Each attack for so long, with `scale` of its connections."""
    report = Report()
    async with upstream(_answer) as auth:
        for name in names:
            place = folder / name.replace(" ", "_")
            place.mkdir()
            async with started(place, ini_of(auth.url, _INI)) as gateway:
                await _attacked(gateway, name, seconds, scale, report)
            auth.seen.clear()
            auth.raw.clear()
    return report


async def _answer(seen: Seen, wire: Wire) -> None:
    await wire.send(_LARGE if seen.target.endswith("large") else OK)


async def _attacked(gateway: Process, name: str, seconds: float, scale: float, report: Report) -> None:
    before = await _ask_for(gateway.port, seconds)
    files, rest = _files(gateway), _memory(gateway)
    size = max(1, int(ATTACKS[name][1] * scale))
    attack = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.soak.attacks", name, str(gateway.port), str(seconds + 1), str(size),
        env=environment_of(), cwd=ROOT,
    )  # fmt: skip
    peaks = [0, 0]
    watching = asyncio.create_task(_watch(gateway, peaks))
    await asyncio.sleep(1)  # until it is in full swing
    during = await _ask_for(gateway.port, seconds)
    try:
        await asyncio.wait_for(attack.wait(), _AFTER_S)
    except TimeoutError:
        report.wrong.append(f"{name}: the attack itself did not end")
        attack.kill()
        await attack.wait()
    watching.cancel()
    await _calm(gateway, files + FILES_KEPT)
    after = await _ask_for(gateway.port, seconds)
    above = (peaks[0] - rest) >> 20
    report.attacks[name] = (
        f"{size} at once: p99 {before.p99_ms()} before, {during.p99_ms()} during, {after.p99_ms()} after; "
        f"{len(during.latencies)} asked, {len(during.failures)} failed; {above} MiB, {peaks[1]} files"
    )
    for when, seen in (("before", before), ("during", during), ("after", after)):
        report.wrong += [f"{name}, {when}: {failure}" for failure in seen.failures[:3]]
    if peaks[0] - rest > MEMORY_BOUND_BYTES:
        report.wrong.append(f"{name}: {above} MiB")
    if _files(gateway) > files + FILES_KEPT:
        report.wrong.append(f"{name}: {_files(gateway)} files open when it is over, {files} before")


async def _ask_for(port: int, seconds: float) -> Healthy:
    """Ask an upstream by way of the gateway, from a few connections that are kept."""
    healthy = Healthy()
    until = time.monotonic() + seconds
    await asyncio.gather(*(_one_healthy(port, until, healthy) for _ in range(HEALTHY)))
    return healthy


async def _one_healthy(port: int, until: float, healthy: Healthy) -> None:
    while time.monotonic() < until:
        try:
            await _one_connection(port, until, healthy)
        except (OSError, EOFError, TimeoutError) as error:
            healthy.failures.append(repr(error))
            await asyncio.sleep(_PAUSE_S)


async def _one_connection(port: int, until: float, healthy: Healthy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = RawClient(reader, writer)
    try:
        while time.monotonic() < until:
            began = time.monotonic()
            async with asyncio.timeout(20):
                reply = await ask_on(client, "GET", PATH)
            healthy.latencies.append(time.monotonic() - began)
            if reply.status != 200 or reply.body != b"ok":
                healthy.failures.append(f"{reply.status} {reply.body[:200]!r}")
            if "close" in reply.all("connection"):
                return
            await asyncio.sleep(_PAUSE_S)
    finally:
        writer.transport.abort()


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
