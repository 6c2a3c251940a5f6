"""What follows a 101: bytes both ways, whatever they mean, until one side ends or nothing has moved for long.

It takes the place of the exchange's `Forward`, with the upstream's connection and with the client's, and lasts as long
as it likes; how it ended stands in the exchange's row.
"""

from __future__ import annotations

import time

from engadi_gateway.errors import Reason
from engadi_gateway.net.context import Context, Downstream
from engadi_gateway.net.relay import Relay
from engadi_gateway.net.upstream import UpstreamConnection
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.wire.response import ReplyHead, switching_head


class Splice(Relay):
    """Of an upstream's connection that has answered 101, and a client that is to hear it."""

    def __init__(
        self,
        context: Context,
        client: Downstream,
        exchange: Exchange,
        connection: UpstreamConnection,
        *,
        is_client_paused: bool,
    ) -> None:
        super().__init__(context, client, exchange)
        self._connection = connection
        self._is_client_paused = is_client_paused
        if is_client_paused:
            self._await_client()
        self._note()

    def begin(self, head: ReplyHead) -> None:
        """Tell the client, whose bytes go up from now on."""
        assert self._connection is not None
        self._context.flights.add(self)
        self._connection.splice(self)
        self._client.switched(self)
        self._client.write(switching_head(head, self.exchange.reply_lines))

    def _note(self) -> None:
        """Something moves. It does not help a side that does not read: that may be gone, and we would not hear it."""
        if not (self._is_client_paused or self._is_upstream_paused):
            self.deadline = time.monotonic() + self._context.timeouts.upgrade_idle_s

    # the client's side

    def up(self, data: bytes) -> None:
        self.exchange.bytes_in += len(data)
        self._note()
        if self._connection is not None:
            self._connection.send(data)

    def client_resumed(self) -> None:
        super().client_resumed()
        self._note()

    def ended_here(self, detail: str, reason: Reason = Reason.OK) -> None:
        """By the client, or by us: flush what is on its way to the upstream, then close it."""
        self.exchange.error_message = detail
        if self._connection is not None:
            self._connection.close_gracefully(self._context.timeouts.write_s)
            self._connection = None
        self._end(reason)

    def crashed(self) -> None:
        """A fault of ours: nobody waits for anything."""
        self._end(Reason.CLIENT_CLOSED)

    # the upstream's side

    def spliced(self, data: bytes) -> None:
        self.exchange.bytes_out += len(data)
        self._note()
        self._client.write(data)

    def upstream_gone(self, how: str) -> None:
        """Its connection has ended, and so the splice does."""
        self._connection = None
        self.exchange.error_message = f"{how} by the upstream"
        self._end(Reason.OK)
        self._client.finish_splice()

    def upstream_paused(self) -> None:
        super().upstream_paused()
        self.deadline = time.monotonic() + self._context.timeouts.write_s

    def upstream_resumed(self) -> None:
        super().upstream_resumed()
        self._note()

    # the end

    def expired(self, now: float) -> None:
        """Nothing has moved, or a side does not read."""
        if self._reads_on():
            self._await_client()
            return
        side = "client" if self._is_client_paused else "upstream" if self._is_upstream_paused else ""
        idle = f"nothing for {self._context.timeouts.upgrade_idle_s:g} s"
        self.exchange.error_message = f"the {side} does not read" if side else idle
        self._end(Reason.CLIENT_STALLED if self._is_client_paused else Reason.OK)
        self._client.abort()

    def _end(self, reason: Reason) -> None:
        """Leave nothing behind; the client settles the exchange."""
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
        self._context.flights.discard(self)
        self.exchange.reason = reason
