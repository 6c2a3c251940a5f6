"""The configuration that is served, and every way in which another takes its place.

A write, a reload, what another process wrote: each is compiled first, kept where it is ours, and then swapped whole, so
that no request meets a part of one and a part of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

from engadi_gateway.errors import ConfigurationError, Reason, Refusal, RefusedError
from engadi_gateway.gateway.amiss import dead_ends, say
from engadi_gateway.gateway.compiler import Compiled, Compiler, Ways
from engadi_gateway.gateway.sharing import Sharing
from engadi_gateway.model import Snapshot
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.changes import Change, Seed, with_change
from engadi_gateway.store.errors import StoreError


class Configuration:
    """See the module.

    Args:
        catalog: open; `snapshot` is what it holds.
        compiler: of the settings that are in force.
        serve: told what is served from now on, in place of what was.

    Attributes:
        compiled: what is served.
        compiler: what made it, and makes what comes next.

    Raises:
        ConfigurationError, RefusedError: the snapshot cannot be served.
    """

    def __init__(
        self, catalog: Catalog, snapshot: Snapshot, compiler: Compiler, serve: Callable[[Compiled], None]
    ) -> None:
        self.catalog = catalog
        self.compiler = compiler
        self.compiled = compiler.compile(snapshot, time.monotonic())
        self._serve = serve
        self._log = logging.getLogger("engadi")
        self._sharing = Sharing(catalog, lambda: self.snapshot.revision, self._take_newer)

    @property
    def snapshot(self) -> Snapshot:
        return self.compiled.snapshot

    # writes

    def writing(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While in it, the configuration is the newest and nobody else changes it. Raises StoreError."""
        return self._sharing.writing()

    async def change(self, change: Change) -> Snapshot:
        """One write, within `writing`: compile what it would give, keep it, then swap it whole.

        Raises:
            RefusedError: CONFLICT or INVALID_FIELDS; STORE_UNAVAILABLE when it could not be kept.
        """
        candidate = with_change(self.snapshot, change)
        compiled = await self._tried(candidate)
        try:
            kept = await self.catalog.apply(change, candidate)
        except StoreError as error:
            self._log.error("configuration not written: %s", error)
            raise RefusedError(Refusal(Reason.STORE_UNAVAILABLE, str(error))) from None
        if kept is not candidate:
            with _refusing():  # and at once: what is written must be served, whoever gives up meanwhile
                compiled = _compiled_now(kept, self.compiler, self.compiled.ways)
        self._swap(compiled)
        word = "deleted" if change.after is None else "written"
        said = kept.revision, change.kind, change.subject, word, ascii(change.actor)  # a stranger to us chose that name
        self._log.info("configuration revision %d: %s %s %s by %s", *said)
        return kept

    async def rehearse(self, change: Change) -> None:
        """What `change` would refuse is refused; nothing is changed.

        Raises:
            RefusedError: see `change`.
        """
        await self._tried(with_change(self.snapshot, change))

    async def _tried(self, snapshot: Snapshot) -> Compiled:
        with _refusing():
            return await self._compiled_aside(snapshot, self.compiler)

    # reload

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """While in it, nobody else changes the configuration, which need not be the newest. Raises StoreError."""
        async with self._sharing.lock, self.catalog.turn():
            yield

    async def followed(self, seed: Seed, compiler: Compiler) -> Compiled:
        """What other settings make of the configuration, within `held`: kept, and there for `take`.

        Raises:
            ConfigurationError, RefusedError, StoreError: nothing is changed.
        """
        before = await self.catalog.current_revision()
        snapshot = await self.catalog.preview(seed)
        compiled = await self._compiled_aside(snapshot, compiler)
        kept = await self.catalog.follow(seed, snapshot)
        if kept.revision != before:
            self._log.info("configuration revision %d: rules written by the settings", kept.revision)
        return compiled if kept is snapshot else _compiled_now(kept, compiler, compiled.ways)

    def take(self, compiled: Compiled, compiler: Compiler) -> None:
        """Serve what was `followed`; what comes later is compiled in the same way."""
        self.compiler = compiler
        self._swap(compiled)

    # other processes

    async def run(self) -> None:
        """For ever: take what other processes write."""
        await self._sharing.run()

    async def _take_newer(self, snapshot: Snapshot) -> None:
        """Of another process, whose services may be others."""
        compiled = await self._compiled_aside(snapshot, self.compiler)
        say(dead_ends(compiled, self.compiled))
        self._swap(compiled)

    # all of them

    async def _compiled_aside(self, snapshot: Snapshot, compiler: Compiler) -> Compiled:
        """What routes become is made in a thread: thousands of them take long, and the loop serves everybody.

        Whoever calls it has the writers' lock, so that what it begins with is still served when it ends.

        Raises:
            ConfigurationError, RefusedError: see `Compiler.compile`.
        """
        ways = await asyncio.to_thread(compiler.ways, snapshot, self.compiled.ways)
        return compiler.compile(snapshot, time.monotonic(), ways)

    def _swap(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._serve(compiled)


def _compiled_now(snapshot: Snapshot, compiler: Compiler, before: Ways) -> Compiled:
    return compiler.compile(snapshot, time.monotonic(), compiler.ways(snapshot, before))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What cannot be served is told to who sent it."""
    try:
        yield
    except ConfigurationError as error:
        raise RefusedError(Refusal(Reason.INVALID_FIELDS, faults=tuple(error.faults))) from None
