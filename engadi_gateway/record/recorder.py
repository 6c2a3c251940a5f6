"""Where exchanges go when they are over: rows for the metrics, the request log and the access log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from engadi_gateway.model import LogRow
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.record.accesslog import AccessLog
from engadi_gateway.record.metrics import Metrics
from engadi_gateway.record.rows import rows_of
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.journal import Journal

#: Made into rows at once, a third of a millisecond's worth: a whole batch would hold everybody up for ten times that.
_ROWS_AT_ONCE = 32
#: Rows that were shed so long ago are over: a burst is shed in many pieces, and is told of once.
CALM_S = 60.0


class Recorder:
    """Rows are made a few at a time, and handed over in batches: by size, or by time.

    Args:
        call_later: the loop's.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        journal: Journal,
        access_log: AccessLog,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
    ) -> None:
        self._metrics = metrics
        self._journal = journal
        self._access_log = access_log
        self._call_later = call_later
        self._ended: list[Exchange] = []
        self._rows: list[LogRow] = []
        self._timer: asyncio.TimerHandle | None = None
        self._calming: asyncio.TimerHandle | None = None  # while rows are shed
        self._shed = 0
        self._log = logging.getLogger("engadi")
        self.take(settings)

    def take(self, settings: Settings) -> None:
        """Other settings, from the next row on."""
        self._batch_rows: int = settings.log_flush_rows
        self._interval_s: float = settings.log_flush_interval
        self._truncates_ip: bool = settings.log_truncate_ip
        self._is_kept: bool = settings.log_requests
        self._can_stall = settings.log_requests and settings.log_when_full == "stall"

    @property
    def is_shedding(self) -> bool:
        """Whether rows were shed within the last minute."""
        return self._calming is not None

    @property
    def is_stalled(self) -> bool:
        """Whether new requests must wait for the request log."""
        return self._can_stall and self._journal.is_full(len(self._ended) + len(self._rows))

    def add(self, exchange: Exchange) -> None:
        """One exchange that is settled."""
        ended = self._ended
        ended.append(exchange)
        if len(ended) >= _ROWS_AT_ONCE or len(ended) + len(self._rows) >= self._batch_rows:
            self._make_rows()
        if self._timer is None:
            self._timer = self._call_later(self._interval_s, self.flush)

    def _make_rows(self) -> None:
        ended, self._ended = self._ended, []
        rows = rows_of(ended, truncates_ip=self._truncates_ip)
        moved = [number for number, exchange in enumerate(ended) if exchange.left]
        self._metrics.observe(self._without_what_they_left(moved, ended, rows) if moved else rows)
        self._access_log.write(ended, rows)
        self._rows += rows
        if len(self._rows) >= self._batch_rows:
            self._hand_over()

    def _without_what_they_left(self, moved: list[int], ended: list[Exchange], rows: list[LogRow]) -> list[LogRow]:
        """A row names the service that was asked last; in the metrics each attempt is of the service that it asked."""
        found = rows[:]
        for number in moved:
            left = ended[number].left
            self._metrics.left(left)
            elsewhere = sum(attempts for _, attempts in left)
            found[number] = found[number]._replace(attempts=found[number].attempts - elsewhere)
        return found

    def _hand_over(self) -> None:
        rows, self._rows = self._rows, []
        if self._is_kept:
            shed = self._journal.put(rows, sheds=not self._can_stall)
            if shed:
                self._note_shed(shed)
        self._access_log.flush()

    def _note_shed(self, count: int) -> None:
        if self._calming is None:
            self._log.warning("request log: the queue is full, rows are shed")
        else:
            self._calming.cancel()
        self._shed += count
        self._calming = self._call_later(CALM_S, self._calmed)

    def _calmed(self) -> None:
        self._log.warning("request log: no more rows are shed; %d were lost", self._shed)
        self._calming, self._shed = None, 0

    def flush(self) -> None:
        """Hand over what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ended:
            self._make_rows()
        if self._rows:
            self._hand_over()

    def close(self) -> None:
        """Hand over what there is, and say now what would be said later."""
        self.flush()
        if self._calming is not None:
            self._calming.cancel()
            self._calmed()

    async def flushed(self, within_s: float) -> None:
        """Whoever asks about the log sees what was answered before: write what waits, or wait so long for it."""
        self.flush()
        if self._is_kept:
            await self._journal.written(within_s)
