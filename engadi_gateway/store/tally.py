"""Which rows are in the statistics: those up to an id that is kept beside them and changes with them.

To add each batch to its minutes and hours at once costs twice what the rows themselves do, so batches are summed in
memory and stored together. The sums know the ids of their rows. Only if those are the very ones that follow what is
stored are they used; otherwise (after a kill, a batch of another process, a new file) the rows are read again. So
nothing is lost, and nothing counted twice, whatever happens to the memory.

All calls come from the thread that writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from engadi_gateway.model import LogRow
from engadi_gateway.store import rollup, segments
from engadi_gateway.store.database import Connection
from engadi_gateway.store.sums import Sums

#: So many rows are stored together, and read again at most at once.
STORED_ROWS = 10_000
#: Sums that cannot be stored are let go: their rows are read again.
_MOST_ROWS = 10 * STORED_ROWS


class Tally:
    """Sums of the rows that came last.

    Args:
        is_shared: other processes write rows too, between ours: then nothing is kept in memory, for it never fits.
    """

    def __init__(self, *, is_shared: bool = False) -> None:
        self._is_shared = is_shared
        self._sums = Sums()
        self._first_id, self._last_id = 1, 0  # none
        self._waiting = 0

    @property
    def is_due(self) -> bool:
        return self._waiting >= STORED_ROWS

    def add(self, first_id: int, rows: Sequence[LogRow]) -> None:
        """Rows that were committed, with ids from that one on."""
        self._waiting += len(rows)
        if self._is_shared:
            return
        if first_id != self._last_id + 1 or first_id - self._first_id > _MOST_ROWS:
            self._sums.clear()
            self._first_id = first_id
        self._sums.add(rows)
        self._last_id = first_id + len(rows) - 1

    def store(self, connection: Connection) -> bool:
        """Add what is not yet in the statistics, some of it if it must be read; whether there is more.

        The transaction it runs in must be committed before the next call, and `stored` be called then.
        """
        stored_id, last_id = segments.summed_id(connection), segments.last_id(connection)
        if stored_id == last_id:
            return False
        if (self._first_id, self._last_id) == (stored_id + 1, last_id):
            sums, upto_id = self._sums, last_id
        else:
            upto_id, rows = segments.rows_after(connection, stored_id, STORED_ROWS)
            sums = Sums()
            sums.add(rows)
        rollup.add(connection, sums)
        segments.set_summed_id(connection, upto_id)
        return upto_id < last_id

    def stored(self) -> None:
        """What `store` did is committed."""
        self._sums.clear()
        self._first_id = self._last_id + 1
        self._waiting = 0
