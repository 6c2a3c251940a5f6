"""What client connections ask of the gateway while they serve (`net.context.Upcalls`), handed on to who knows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from engadi_gateway.admin.endpoints import GATE
from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.gateway.configuration import Configuration
from engadi_gateway.net.context import LocalReply
from engadi_gateway.pipeline.exchange import Exchange, Identity, Wait
from engadi_gateway.record.metrics import Metrics
from engadi_gateway.record.recorder import Recorder


class GatewayUpcalls:
    """See the module, and `net.context.Upcalls` for each call.

    Args:
        judge: whose a token is, where a stage has to wait for that.
        serve_local: the admin API and the health pages.
    """

    def __init__(
        self,
        configuration: Configuration,
        recorder: Recorder,
        metrics: Metrics,
        *,
        judge: Callable[[Exchange, Wait], Coroutine[Any, Any, Identity | Refusal | None]],
        serve_local: Callable[[Exchange, bytes], Coroutine[Any, Any, LocalReply]],
    ) -> None:
        self.judge = judge
        self.serve_local = serve_local
        self._configuration = configuration
        self._recorder = recorder
        self._metrics = metrics
        self._log = logging.getLogger("engadi")

    def settled(self, exchange: Exchange) -> None:
        try:
            exchange.pipeline.settle(exchange)
        except Exception:
            self.fault("settle")
        self._recorder.add(exchange)

    def local_refusal(self, exchange: Exchange) -> Refusal | None:
        return GATE.refusal(exchange, self._configuration.compiled.ways.cors)

    def unreadable(self, reason: Reason) -> None:
        self._metrics.unreadable(reason)

    def is_stalled(self) -> bool:
        return self._recorder.is_stalled

    def warn(self, text: str) -> None:
        self._log.warning(text)

    def fault(self, where: str) -> None:
        """Log the exception being handled; called from `except` blocks only."""
        self._log.exception("internal error in %s", where)
