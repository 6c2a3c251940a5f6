"""A request's body on its way up: kept as long as it may have to be sent again, held back while it is slow.

The silence in it is the client's, unless somebody here holds it up; so it is known when it was heard of last.
"""

from __future__ import annotations

import time

from engadi_gateway.model import Framing
from engadi_gateway.net.relay import Relay
from engadi_gateway.wire.chunked import LAST_CHUNK, chunk


class Upload(Relay):
    """What an exchange's forwarding knows of the request's body; see the module."""

    # how each begins; on the class, because most end without having changed
    _body_bytes = 0
    _heard_at = 0.0  # when the last of an unfinished body came
    _is_upload_paused = False
    _is_held = False  # a slow one takes none of the last connections before it is complete, or too long to keep

    _framing: Framing
    _is_body_complete: bool
    _body: list[bytes] | None  # what was received so far, while it may have to be sent again
    _head_bytes: bytes
    _started: float  # when the attempt of now was sent

    def _heard(self, now: float) -> None:
        self._heard_at = now
        self.deadline = now + self._context.timeouts.body_s

    def _is_body_awaited(self) -> bool:
        """There is more of it to come, and nobody holds it up."""
        return not self._is_body_complete and not self._client.is_upload_paused

    def _not_sent_s(self) -> float:
        """For so long the client has sent nothing, since the upstream was asked."""
        return time.monotonic() - max(self._heard_at, self._started) if self._is_body_awaited() else 0.0

    def upstream_resumed(self) -> None:
        super().upstream_resumed()
        if not self._is_body_complete:
            self._heard(time.monotonic())  # the client's time was not running

    def _is_too_long_to_hold(self) -> bool:
        return self._body_bytes > self._context.retry.buffer_bytes

    def _keep(self, data: bytes) -> None:
        self.exchange.bytes_in += len(data)
        if self._body is None or not data:
            return
        self._body_bytes += len(data)
        if self._is_too_long_to_hold() and self._connection is not None:
            self._body = None  # too much to be sent again
        else:
            self._body.append(data)
        if self._connection is None and self._is_too_long_to_hold():
            self._is_upload_paused = True
            self._client.pause_upload()

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if self._framing is Framing.CHUNKED else data

    def _with_body(self) -> bytes:
        """The head, and what there is of the body."""
        parts = [self._head_bytes]
        assert self._body is not None
        parts += [self._framed(data) for data in self._body]
        if self._framing is Framing.CHUNKED and self._is_body_complete:
            parts.append(LAST_CHUNK)
        if self._is_too_long_to_hold():
            self._body = None
        return b"".join(parts)
