"""`python -m tests.soak drains` and `restarts`: SIGTERM under load, with clients that retry nothing.

A drain: every request of a connection that was accepted gets its whole answer, new connections are refused, the process
ends with 0 and the log has a row for each answer. A restart with a socket that somebody else holds open, as systemd
does: the same, and no connection is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes import Upstream, upstream
from tests.processes import PYTHON, ROOT, Process, environment_of, ini_of, started
from tests.soak.callers import Calls, callers, echo

CALLERS = 64
_DOOR_S = 0.05
_INI = "[limits]\nper_ip = 10000000\nper_user = 10000000\n"
#: As systemd does it: the socket is descriptor 3, and the pid is that of the process itself.
_LAUNCHER = """import os, sys
os.dup2({descriptor}, 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='http')
os.execv(sys.executable, [sys.executable, {program!r}])
"""


@dataclass
class Report:
    """What was done and seen; `wrong` must be empty."""

    stops: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    longest_stop_s: float = 0.0
    took_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


async def drains(folder: Path, *, rounds: int, seed: int) -> Report:
    """A new process for each round."""
    dice, report = random.Random(seed), Report()
    began = time.monotonic()
    async with upstream(echo) as auth:
        for _ in range(rounds):
            calls = Calls()
            async with started(folder, ini_of(auth.url, _INI)) as gateway:
                tasks = callers(gateway.port, CALLERS, dice, calls, asyncio.Event())
                await asyncio.sleep(0.3 + dice.random())
                await _stopped(gateway, report)
                await asyncio.gather(*tasks)
            _note_door(calls, report)
            _note(folder, calls, report)
            _forget(auth)
    report.took_s = time.monotonic() - began
    return report


async def restarts(folder: Path, *, rounds: int, seed: int) -> Report:
    """The same callers over all of them."""
    dice, report, calls, stop = random.Random(seed), Report(), Calls(), asyncio.Event()
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        async with upstream(echo) as auth:
            (folder / "gateway.ini").write_text(ini_of(auth.url, _INI))
            tasks = callers(listener.getsockname()[1], CALLERS, dice, calls, stop)
            for _ in range(rounds):
                async with _activated(folder, listener) as gateway:
                    await asyncio.sleep(0.3 + dice.random())
                    await _stopped(gateway, report)
                _forget(auth)
            async with _activated(folder, listener) as gateway:
                stop.set()
                await asyncio.gather(*tasks)
                await _stopped(gateway, report)
    _note(folder, calls, report)
    if calls.ends["refused"]:
        report.wrong.append(f"{calls.ends['refused']} connections refused")
    report.took_s = time.monotonic() - began
    return report


@contextlib.asynccontextmanager
async def _activated(folder: Path, listener: socket.socket) -> AsyncIterator[Process]:
    launcher = _LAUNCHER.format(descriptor=listener.fileno(), program=str(ROOT / "run.py"))
    process = await asyncio.create_subprocess_exec(
        PYTHON, "-c", launcher,
        cwd=folder, env=environment_of(), pass_fds=[listener.fileno()], stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    gateway = Process(process, listener.getsockname()[1], folder)
    async with gateway.watched():
        yield gateway


async def _stopped(gateway: Process, report: Report) -> None:
    began = time.monotonic()
    gateway.signal(signal.SIGTERM)
    code = await gateway.code()
    report.stops += 1
    report.longest_stop_s = round(max(report.longest_stop_s, time.monotonic() - began), 3)
    if code or any(word in line for line in gateway.lines for word in ("Traceback", "ERROR")):
        report.wrong += [f"exit code {code}", *gateway.lines]


def _note_door(calls: Calls, report: Report) -> None:
    """Where nobody holds the socket open, one that the kernel accepts between our last look and the close is reset.

    No process can help that; so one a stop is let pass, if it came as the door closed.
    """
    at_the_door = [entry for entry in calls.cut_short if abs(entry[0] - calls.refused_at) < _DOOR_S]
    if len(at_the_door) == 1:
        calls.cut_short.remove(at_the_door[0])
        calls.ends["cut short"] -= 1
        calls.ends["reset at the door"] += 1


def _note(folder: Path, calls: Calls, report: Report) -> None:
    report.ends += calls.ends
    report.wrong += calls.wrong + [text for _, text in calls.cut_short]
    with contextlib.closing(sqlite3.connect(folder / "engadi_gateway-log.db")) as connection:
        rows = {row[0] for row in connection.execute("SELECT request_id FROM gateway_log")}
    report.rows = len(rows)
    missing = calls.answered - rows
    if missing:
        report.wrong.append(f"{len(missing)} answers without a row: {sorted(missing)[:3]}")


def _forget(auth: Upstream) -> None:
    auth.seen.clear()
    auth.raw.clear()
