"""The turn of the loop in which heads came: all are read first, then all are acted on."""

from __future__ import annotations

import time
from typing import Protocol

from engadi_gateway.net.context import Context

_STALL_S = 0.05


class Batched(Protocol):
    """A client's connection with at least a part of a head."""

    def read_head(self, now: float, wall: float) -> bool:
        """Parse one head and decide on it; whether there is something to act on."""
        ...

    def act(self) -> None: ...
    def crash(self) -> None:
        """An exception came out of one of these."""
        ...


class Batch:
    """Heads that arrive in one turn of the loop are parsed first, then acted on: 13 to 15 % less at 64 connections.

    Each entry is guarded: one failure never takes its neighbours along.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ready: list[Batched] = []

    def add(self, connection: Batched) -> None:
        if not self._ready:
            self._context.loop.call_soon(self._run)
        self._ready.append(connection)

    def _run(self) -> None:
        if self._context.upcalls.is_stalled():
            self._context.loop.call_later(_STALL_S, self._run)
            return
        ready, self._ready = self._ready, []
        now, wall = time.monotonic(), time.time()
        acting = []
        for connection in ready:
            try:
                if connection.read_head(now, wall):
                    acting.append(connection)
            except Exception:
                self._crash(connection)
        for connection in acting:
            try:
                connection.act()
            except Exception:
                self._crash(connection)

    def _crash(self, connection: Batched) -> None:
        self._context.upcalls.fault("request")
        connection.crash()
