"""The doors while a gateway serves: who comes in, who is inside, and how both end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Sequence
from functools import partial

from engadi_gateway.gateway.listeners import Door
from engadi_gateway.model import Listener
from engadi_gateway.net.accept import Acceptor
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.client import ClientConnection
from engadi_gateway.net.context import Context

_LOOK_S = 0.02
#: While draining: a connection that asked nothing for so long is idle, and closed.
_DRAIN_IDLE_S = 1.0
#: While draining: a handshake that was begun is waited for; its connection is not yet one of ours.
_HANDSHAKE_S = 1.0


class Front:
    """All doors, and all client connections.

    Attributes:
        doors: bound; the order is that of the settings, the admin API's last.
        connections: those that are made; each adds and removes itself.
        tls: what every door speaks; None: nothing but plain HTTP.
    """

    def __init__(self, doors: Sequence[Door] = ()) -> None:
        self.doors = doors
        self.connections: set[ClientConnection] = set()
        self.tls: ssl.SSLContext | None = None
        self._acceptors: list[Acceptor] = []
        self._hurry = asyncio.Event()

    @property
    def addresses(self) -> list[str]:
        return [door.name for door in self.doors]

    @property
    def port(self) -> int:
        """The first TCP port, or 0."""
        return next((door.listener.port for door in self.doors if door.listener.port), 0)

    def listener(self, *, is_admin: bool) -> Listener | None:
        """Of the first door of that kind."""
        listeners = (door.listener for door in self.doors)
        return next((listener for listener in listeners if listener.is_admin is is_admin), None)

    def prepare(self, context: Context, batch: Batch, tls: ssl.SSLContext | None) -> None:
        """Who comes in from `start` on will be served there."""
        self._context = context
        self.tls = tls
        for door in self.doors:
            make = partial(ClientConnection, context, batch, door.listener, self.connections)
            self._acceptors.append(Acceptor(context, door.socket, tls, make))

    def start(self) -> None:
        """Open the doors."""
        for acceptor in self._acceptors:
            acceptor.start()

    def make_room(self) -> None:
        """There are fewer seats than before: as many as are idle go at once, the others when they are."""
        seats = self._context.seats
        for _ in range(seats.taken - seats.most):
            if not self._acceptors[0].make_room():
                break

    # the end

    async def drain(self, *, delay_s: float, grace_s: float) -> int:
        """No new connections after the delay, but whoever has one is served; whoever asks nothing is let go.

        Returns how many requests were cut off in the end; see `cut`.
        """
        context = self._context
        context.is_draining = True
        if delay_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), delay_s)
        deadline = time.monotonic() + grace_s
        self._close_doors()
        settled = time.monotonic() + (_HANDSHAKE_S if self.tls else _LOOK_S)
        context.idle.timeout_s = min(context.idle.timeout_s, _DRAIN_IDLE_S)
        while not self._hurry.is_set() and (now := time.monotonic()) < deadline:
            if not self.connections and now >= settled and not any(one.is_settling for one in self._acceptors):
                break
            await asyncio.sleep(_LOOK_S)  # a set that empties has no event to wait for
        return self.cut()

    def _close_doors(self) -> None:
        """Take in who stands before a door that nobody else keeps open, and close it."""
        for door, acceptor in zip(self.doors, self._acceptors, strict=True):
            door.remove_path()
            if not door.is_inherited:
                acceptor.take_in()
            acceptor.close()

    def cut(self) -> int:
        """End the drain's patience now; how many requests were under way."""
        self._hurry.set()
        return sum([connection.cut() for connection in list(self.connections)])

    def close(self) -> None:
        """Whatever it was prepared for, or not."""
        for door in self.doors:
            door.remove_path()
        for acceptor in self._acceptors:
            acceptor.close()
        for door in self.doors:
            door.socket.close()
