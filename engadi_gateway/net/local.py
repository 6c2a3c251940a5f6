"""An exchange that the gateway answers itself: the admin API and the health pages. Same duties as `Forward`."""

from __future__ import annotations

import asyncio
import math
import time

from engadi_gateway.errors import Reason, Refusal, RefusedError
from engadi_gateway.net.context import Context, Downstream, LocalReply
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.wire.forwarded import Client


def too_long(length_bytes: int, most_bytes: int) -> Refusal | None:
    """What is said of a body of that length, be it announced or received."""
    return Refusal(Reason.BODY_TOO_LARGE, f"longer than {most_bytes} bytes") if length_bytes > most_bytes else None


class LocalCall:
    """Gathers the whole body, bounded, then runs the handler as a task: these are rare, and may read databases."""

    def __init__(self, context: Context, client: Downstream, exchange: Exchange) -> None:
        self._context = context
        self._client = client
        self.exchange = exchange
        self._body: list[bytes] = []
        self._keeps_body = exchange.route is not None and not exchange.route.is_public
        self._task: asyncio.Task[None] | None = None
        self.deadline = math.inf

    def start(self, who: Client, body: bytes, *, is_complete: bool) -> None:
        self.deadline = time.monotonic() + self._context.timeouts.body_s
        self._context.flights.add(self)
        refusal = too_long(self.exchange.head.content_length, self._context.max_local_body_bytes)
        if refusal is None and not is_complete:
            refusal = self._context.upcalls.local_refusal(self.exchange)  # rather than wait for a body in vain
        if refusal is not None:
            self.abandon(refusal)
        elif self._gather(body) and is_complete:
            self.body_end()

    def body(self, data: bytes) -> None:
        self.deadline = time.monotonic() + self._context.timeouts.body_s
        self._gather(data)

    def _gather(self, data: bytes) -> bool:
        self.exchange.bytes_in += len(data)
        if self._keeps_body:  # what is public takes none, and strangers could fill the memory with it
            self._body.append(data)
        refusal = too_long(self.exchange.bytes_in, self._context.max_local_body_bytes)
        if refusal is not None:
            self.abandon(refusal)
        return refusal is None

    def body_end(self) -> None:
        self.deadline = math.inf
        self._task = self._context.spawn(self._serve(), "local")

    async def _serve(self) -> None:
        try:
            reply = await self._context.upcalls.serve_local(self.exchange, b"".join(self._body))
        except RefusedError as error:
            self._leave()
            self._client.refuse(self.exchange, error.refusal)
        except Exception:  # the handler's fault must not look like silence to the client
            self._context.upcalls.fault(f"local {self.exchange.head.path}")
            self._leave()
            self._client.refuse(self.exchange, Refusal(Reason.INTERNAL))
        else:
            self._reply(reply)

    def _reply(self, reply: LocalReply) -> None:
        self._leave()
        self._client.answer(self.exchange, reply)

    def _leave(self) -> None:
        self._context.flights.discard(self)

    def abandon(self, refusal: Refusal) -> None:
        self._leave()
        self._client.refuse(self.exchange, refusal)

    def client_gone(self) -> None:
        """An admin write under way is finished, for its outcome must not hang on a connection; a read is cancelled."""
        self._leave()
        self.exchange.reason = Reason.CLIENT_CLOSED
        if self._task is not None and self.exchange.head.method in {"GET", "HEAD"}:
            self._task.cancel()

    def client_paused(self) -> None:
        """The reply is one write; there is nothing to slow down."""

    def client_resumed(self) -> None:
        """See `client_paused`."""

    def expired(self, now: float) -> None:
        self._leave()
        self._client.refuse(self.exchange, Refusal(Reason.CLIENT_TIMEOUT))
