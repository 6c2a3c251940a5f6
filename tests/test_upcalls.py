"""What client connections ask of the gateway, handed on to who knows."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engadi_gateway.errors import Reason
from engadi_gateway.gateway.upcalls import GatewayUpcalls
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.record.metrics import Metrics
from tests.exchanges import exchange_of


class Rows:
    """In a recorder's place."""

    def __init__(self) -> None:
        self.added: list[Exchange] = []
        self.is_stalled = True

    def add(self, exchange: Exchange) -> None:
        self.added.append(exchange)


def upcalls_of(rows: Rows, metrics: Metrics) -> GatewayUpcalls:
    nobody = cast(Any, None)
    return GatewayUpcalls(nobody, cast(Any, rows), metrics, judge=nobody, serve_local=nobody)


@pytest.mark.parametrize("is_broken", [False, True])
def test_an_exchange_that_a_stage_cannot_settle_still_has_its_row(
    is_broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settled: list[Exchange] = []

    def settle(exchange: Exchange) -> None:
        settled.append(exchange)
        if is_broken:
            raise RuntimeError("a fault of ours")

    exchange, rows = exchange_of(), Rows()
    stage = SimpleNamespace(decide=None, settle=settle, decides_nothing=True, settles_nothing=False, sees_refused=False)
    exchange.pipeline = Pipeline((cast(Any, stage),), 1)
    with caplog.at_level(logging.ERROR):
        upcalls_of(rows, Metrics()).settled(exchange)
    assert (settled, rows.added) == ([exchange], [exchange])
    assert [record.getMessage() for record in caplog.records] == ["internal error in settle"] * is_broken


def test_heads_that_are_none_are_counted_and_the_log_says_whether_requests_wait() -> None:
    rows, metrics = Rows(), Metrics()
    upcalls = upcalls_of(rows, metrics)
    upcalls.unreadable(Reason.CLIENT_TIMEOUT)
    upcalls.unreadable(Reason.CLIENT_TIMEOUT)
    assert dict(metrics.unread) == {"client_timeout": 2}
    assert upcalls.is_stalled()
    rows.is_stalled = False
    assert not upcalls.is_stalled()
