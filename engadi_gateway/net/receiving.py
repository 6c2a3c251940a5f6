"""A request's body as its client sends it: taken as it comes, in shares where it is all small chunks, or not read.

What would hold everybody up, and what its handler has no room for, stays here or in the socket until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from engadi_gateway.errors import RefusedError
from engadi_gateway.model import Framing
from engadi_gateway.net.batch import Batch
from engadi_gateway.net.context import Context, Handler
from engadi_gateway.net.endable import Endable, State
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.wire.request import ChunkedBody, CountedBody

_DECIDING, _BODY, _REPLY = State.DECIDING, State.BODY, State.REPLY


class Receiving(Endable):
    """See the module. `_handler` is who takes the body, once the exchange is decided on."""

    def __init__(self, context: Context, batch: Batch) -> None:
        super().__init__(context)
        self._batch = batch
        self._handler: Handler | None = None
        self._body: ChunkedBody | CountedBody | None = None

    def _await_body(self) -> None:
        if self._later:
            self._feed_later_on()
        else:
            self._set_reading(True)  # what came before the decision may have filled the buffer

    def _first_body(self, reader: ChunkedBody | CountedBody) -> tuple[bytes, bool]:
        """What of the body is there already, and whether that is all."""
        data, later = reader.share(self._buffer)
        body, rest = reader.feed(data)
        if reader.is_complete:
            self._buffer = rest + later
        else:
            self._buffer, self._later = b"", later
        return body, reader.is_complete

    def _body_bytes(self, data: bytes) -> None:
        if self._later:
            self._later += data
            return
        handler, reader = self._handler, self._body
        assert handler is not None and reader is not None
        data, later = reader.share(data)
        try:
            body, rest = reader.feed(data)
        except RefusedError as error:
            handler.abandon(error.refusal)
            return
        if later and not reader.is_complete:
            self._later = later
            self._feed_later_on()
        if body:
            handler.body(body)
        if reader.is_complete and self._handler is handler:
            self._buffer += rest + later
            self.state = _REPLY
            handler.body_end()

    def _feed_later_on(self) -> None:
        """What would hold everybody up waits for its turn, and the socket with it."""
        self._set_reading(False)
        self._batch.later(self._feed_later)

    def _feed_later(self) -> None:
        if self.state is not _BODY or self.is_upload_paused or not self._later:
            return
        later, self._later = self._later, b""
        self.data_received(later)
        if not self._later and not self.is_upload_paused:
            self._set_reading(True)

    def pause_upload(self) -> None:
        self.is_upload_paused = True
        self._set_reading(False)

    def resume_upload(self) -> None:
        self.is_upload_paused = False
        if self._later:
            self._feed_later_on()
        else:
            self._set_reading(True)

    def later(self, work: Callable[[], None]) -> None:
        self._batch.later(work)

    def _swallow_body(self, exchange: Exchange) -> bool:
        """Whether the request is behind us: a body that came whole with its head is thrown away."""
        if self.state is _REPLY:
            return True
        if self.state is _DECIDING:
            if self._body is None:  # there is none, or nobody knows how it ends
                return exchange.head.framing is Framing.NONE
            try:
                return self._first_body(self._body)[1]
            except RefusedError:
                return False
        return False
