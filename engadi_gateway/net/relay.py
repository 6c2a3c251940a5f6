"""An exchange between a client and an upstream's connection, whatever passes: who is slow holds up the other side.

A client that is not ready has so long to read on as a write may take; so `Forward` is, and after a 101 `Splice`.
"""

from __future__ import annotations

import time

from engadi_gateway.net.context import Context, Downstream
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.pipeline.exchange import Exchange


class Relay:
    """See the module. `deadline` is what the sweep of those in flight looks at."""

    # how each begins; on the class, because most end without having changed
    _connection: UpstreamConnection | None = None
    _is_client_paused = False
    _is_upstream_paused = False
    _taken_mark = 0

    deadline: float

    def __init__(self, context: Context, client: Downstream, exchange: Exchange) -> None:
        self._context = context
        self._client = client
        self.exchange = exchange

    def client_paused(self) -> None:
        self._is_client_paused = True
        if self._connection is not None:
            self._connection.pause_reading()
        self._await_client()

    def _await_client(self) -> None:
        """It has so long to read on; who reads slowly is not who does not read."""
        self._taken_mark = self._client.taken_mark()
        self.deadline = time.monotonic() + self._context.timeouts.write_s

    def _reads_on(self) -> bool:
        return self._is_client_paused and self._client.taken_mark() != self._taken_mark

    def client_resumed(self) -> None:
        self._is_client_paused = False
        if self._connection is not None:
            self._connection.resume_reading()

    def upstream_paused(self) -> None:
        self._is_upstream_paused = True
        self._client.pause_upload()

    def upstream_resumed(self) -> None:
        self._is_upstream_paused = False
        self._client.resume_upload()
