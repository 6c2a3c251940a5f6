"""Who may connect: one door's accepting, and the seats that all doors share.

The rule. Every connection takes a seat when it is accepted, before any TLS, and gives it back when it is gone.
1. An address may have `max_connections_per_ip` seats (IPv6: a network of `limits.ipv6_prefix`); trusted proxies and
   unix sockets are not counted. One more is refused.
2. Beyond `max_connections` somebody goes: who has read the last answer, or was idle longest, or else whose head is
   unfinished longest; its TLS is a part of that. Where there is none of them, the new one is refused. Nobody is given a
   least time for a handshake: an honest one takes a fraction of a second, in which others would have to come as often
   as there are seats; but with a least time of a second, so many silent ones a second would keep everybody else out.
3. Refused is a 503 over plain HTTP, at once. Over TLS, and where a tenth more than `max_connections` are there, still
   reading theirs, it is closed without a word: a handshake or a wait would cost more than the rule saves.

Accepting is not asyncio's own: in Python 3.11, out of file descriptors, that logs and sets a timer once for each of the
backlog, thousands in a second. Here accepting pauses, whoever is there is served on, and one line a minute is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable

from engadi_gateway.errors import Reason
from engadi_gateway.net.client import ClientConnection
from engadi_gateway.net.context import Context
from engadi_gateway.net.deadlines import Idle
from engadi_gateway.net.sockets import EXHAUSTED, bound_tls
from engadi_gateway.pipeline.limits import network_of
from engadi_gateway.wire.forwarded import is_trusted, plain_address

#: So much of the time is for accepting, for what an arrival sets going costs several times that; and so long at most.
_SHARE = 0.02
_MOST_S = 0.001
#: After a longer time nobody was waiting; a burst from rest begins with one.
_LONGEST_TURN_S = 0.1
_PAUSE_S = 0.2
#: The oldest may be those who lose something by it: so many are asked, and others as long as some leave the queue.
_ASKED_TO_GO = 8
_ROUNDS = 8
_WARN_EVERY_S = 60.0
#: The waits of TLS at its begin and its end; ours come sooner, and know who goes, and who still reads.
_TLS_S = 3600.0
#: What befell a connection that was to be accepted: it is gone, and the next one is not (accept(2), "Error handling").
_OF_THE_NETWORK = frozenset((
    errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP,
    errno.ENETUNREACH,
))  # fmt: skip
_UNIX_PEER = "127.0.0.1"


class Handshake:
    """A connection whose TLS is still to come, and so its head: it waits among those, and makes room as they do."""

    def __init__(self, context: Context, sock: socket.socket, connection: ClientConnection) -> None:
        self._heads = context.heads
        self._socket = sock
        self._connection = connection

    def give_way(self) -> bool:
        """Whether it goes, now; the loop hears of it next."""
        self._heads.discard(self)
        if self._connection.is_made:
            return False
        self._connection.leave_seat()
        with contextlib.suppress(OSError):  # the client was quicker
            self._socket.shutdown(socket.SHUT_RDWR)
        return True

    def timed_out(self, now: float) -> None:
        self.give_way()


class Acceptor:
    """Accepts on one listening socket, which it owns from then on."""

    def __init__(
        self,
        context: Context,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        make: Callable[[str], ClientConnection],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if tls is not None:
            bound_tls()
        self._context = context
        self._socket = sock
        self._tls = tls
        self._make = make
        self._pause: asyncio.TimerHandle | None = None
        self._warned_at = float("-inf")
        self._arriving = 0
        self._clock = clock
        self._accepted_at = clock()

    def start(self) -> None:
        self._context.loop.add_reader(self._socket.fileno(), self._ready)

    def take_in(self) -> None:
        """Accept whom the kernel has accepted and nobody has taken: closing would reset them."""
        self._socket.listen(0)  # from now on it takes in no more than one
        while self._socket.fileno() >= 0 and self._pause is None and self._ready():
            pass

    def close(self) -> None:
        """Stop accepting; who was accepted may go on."""
        if self._socket.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._context.loop.remove_reader(self._socket.fileno())
        self._socket.close()

    @property
    def is_settling(self) -> bool:
        """Whether somebody was accepted of whom the gateway will hear within a turn of the loop or two."""
        return self._arriving > 0 and self._tls is None

    def _ready(self) -> bool:
        """Accept some, at least one. Whether there may be more.

        For a share of the time that went since the last ones: in a flood, those who are there wait for few in a turn of
        the loop, and where a turn is long, for it serves hundreds, newcomers do not wait for as many turns.
        """
        began = now = self._clock()
        turn_s = began - self._accepted_at
        until = began + (min(_MOST_S, turn_s * _SHARE) if turn_s < _LONGEST_TURN_S else 0.0)
        is_more = self._accept()
        while is_more and (now := self._clock()) < until:
            is_more = self._accept()
        self._accepted_at = now
        return is_more

    def _accept(self) -> bool:
        """Whether there was one."""
        try:
            sock, address = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._exhausted(error)
            elif error.errno not in _OF_THE_NETWORK:
                raise
            return False
        sock.setblocking(False)
        self._arrive(sock, address)
        return True

    def _exhausted(self, error: OSError) -> None:
        """Who is there is served on; who wants in waits in the backlog meanwhile."""
        now = time.monotonic()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            self._context.upcalls.warn(f"accepting pauses: {error.strerror}; raise the limit of open files")
        self._context.loop.remove_reader(self._socket.fileno())
        self._pause = self._context.loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self.start()

    def _arrive(self, sock: socket.socket, address: object) -> None:
        seats = self._context.seats
        peer = plain_address(address[0]) if isinstance(address, tuple) else _UNIX_PEER
        is_counted = isinstance(address, tuple) and not is_trusted(peer, self._context.trusted)
        seat = network_of(peer, seats.ipv6_prefix) if is_counted else ""
        seats.take(seat)
        refused = ""
        if seats.are_spent_by(seat) and not self._context.lingering.make_room(seat, _ASKED_TO_GO):
            refused = "too many connections of this address"
            seats.leave(seat)
            seats.take(seat := "")  # a refusal is nobody's share
        elif seats.are_short and not self.make_room():
            refused = "too many connections"
        if refused and (self._tls is not None or seats.are_overfull):
            self._context.upcalls.unreadable(Reason.OVERLOADED)
            seats.leave(seat)
            sock.close()
            return
        connection = self._make(peer)
        connection.seat = seat
        connection.refused = refused
        self._arriving += 1
        handshake = None
        if self._tls is not None:
            handshake = Handshake(self._context, sock, connection)
            self._context.heads.add(handshake, time.monotonic())
        self._context.spawn(self._connect(sock, connection, handshake), "arrival")

    def make_room(self) -> bool:
        """Whether somebody goes: who has waited longest, or the next who loses nothing by it."""
        context = self._context
        for queue in (context.lingers, context.idle, context.heads):
            asked: list[Idle] = []
            for _ in range(_ROUNDS):
                before, asked = asked, queue.oldest(_ASKED_TO_GO)
                if asked == before:  # nobody has left the queue
                    break
                if any(isinstance(oldest, ClientConnection | Handshake) and oldest.give_way() for oldest in asked):
                    return True
        return False

    async def _connect(self, sock: socket.socket, connection: ClientConnection, handshake: Handshake | None) -> None:
        waits = {} if self._tls is None else {"ssl_handshake_timeout": _TLS_S, "ssl_shutdown_timeout": _TLS_S}
        try:
            await self._context.loop.connect_accepted_socket(lambda: connection, sock, ssl=self._tls, **waits)
        except OSError:  # the handshake failed, or took too long: nobody's request, and no news
            pass
        finally:
            self._arriving -= 1
            if handshake is not None:
                self._context.heads.discard(handshake)
            if not connection.is_made:
                connection.leave_seat()
