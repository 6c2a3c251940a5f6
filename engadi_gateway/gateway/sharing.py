"""Several processes over the same databases: each takes what the others wrote, and writes on top of it.

Nothing is sent between them. Each looks at the number of the newest revision several times a second, one short read,
and loads the configuration when it moved. Whoever writes has the turn from before it reads until it has written, so
that what If-Match was held against is what is changed, and revisions follow one from the other.

One that shares nothing may still find its databases held, by the process before it: `when_free` waits for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from engadi_gateway.errors import ConfigurationError, RefusedError
from engadi_gateway.model import Snapshot
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.catalog_tables import UnreadableError
from engadi_gateway.store.errors import HeldError, StoreError

T = TypeVar("T")
LOOK_S = 0.25
_FREE_LOOK_S = 0.1
#: Why what another process wrote may not be served here; anything else is a slip of ours, said with its traceback.
_REFUSALS = (ConfigurationError, RefusedError, UnreadableError)


class Sharing:
    """Keeps a gateway's configuration that of the catalog; without others there is nothing to do.

    Args:
        revision: of the snapshot that is served.
        take: compile a snapshot and serve it; ConfigurationError when it cannot be, and then the old one stays.
    """

    def __init__(
        self, catalog: Catalog, revision: Callable[[], int], take: Callable[[Snapshot], Awaitable[None]]
    ) -> None:
        self.lock = asyncio.Lock()  # between the writers of this process
        self._catalog = catalog
        self._revision = revision
        self._take = take
        self._refused = 0  # the newest revision that cannot be served here
        self._log = logging.getLogger("engadi")

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """What is read in the block is the newest, and nobody writes but the block.

        Raises:
            StoreError: nobody may write now.
        """
        async with self.lock, self._catalog.turn():
            if not await self._catch_up():
                raise StoreError("the configuration is one that cannot be served here")
            yield

    async def look(self) -> None:
        """Take a newer configuration, if there is one. Raises StoreError."""
        if await self._catalog.current_revision() not in {self._revision(), self._refused}:
            async with self.lock:
                await self._catch_up()

    async def _catch_up(self) -> bool:
        newest = await self._catalog.current_revision() if self._catalog.is_shared else self._revision()
        if newest == self._revision():
            return True
        try:
            await self._take(await self._catalog.load())
        except Exception as error:  # whatever another version wrote, this one goes on serving
            if isinstance(error, StoreError) and not isinstance(error, UnreadableError):
                raise  # the same may go well later
            self._refuse(newest, error)
            return False
        return True

    def _refuse(self, revision: int, error: Exception) -> None:
        if self._refused != revision:
            self._refused = revision
            said = "revision %d cannot be served here, the old one stays: %s"
            self._log.error(said, revision, error, exc_info=None if isinstance(error, _REFUSALS) else error)

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """For ever: look, wait. What goes wrong is said once, until it goes well again."""
        said = ""
        while self._catalog.is_shared:
            try:
                await self.look()
                said = ""
            except Exception as error:  # or others' writes would never be seen again
                if repr(error) != said:
                    said = repr(error)
                    is_known = isinstance(error, StoreError)
                    self._log.error(
                        "the configuration's revision cannot be read: %s", error, exc_info=None if is_known else error
                    )
            await sleep(LOOK_S)


async def when_free(open_it: Callable[[], T], patience_s: float, give_up: Callable[[], None] = lambda: None) -> T:
    """Open a database in a thread, once whoever holds it has ended.

    Args:
        open_it: blocking; raises HeldError while another process holds it.
        patience_s: how long to try again.
        give_up: ends what waits in that thread, when this is cancelled.

    Raises:
        HeldError: it is not free yet. StoreError: it cannot be used.
    """
    deadline, is_said = time.monotonic() + patience_s, False
    while True:
        try:
            return await _in_a_thread(open_it, give_up)
        except HeldError as error:
            if time.monotonic() >= deadline:
                raise
            if not is_said:
                logging.getLogger("engadi").warning("waiting at most %g s: %s", patience_s, error)
                is_said = True
        await asyncio.sleep(_FREE_LOOK_S)


async def _in_a_thread(open_it: Callable[[], T], give_up: Callable[[], None]) -> T:
    """Who is cancelled meanwhile waits for the thread, which nobody can stop: what it opens is there to be closed."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_it))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        give_up()
        await asyncio.wait((opening,))
        opening.exception()  # it failed: that is no news any more
        raise
