"""Serving as a process: a gateway from its start to its end, and what signals do meanwhile."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable

from engadi_gateway import __version__
from engadi_gateway.errors import ConfigurationError, RefusedError
from engadi_gateway.gateway.assembly import files_wanted
from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.gateway.listeners import allow_open_files, notify_systemd, watchdog_interval_s
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.database import SQLITE_VERSION
from engadi_gateway.store.errors import StoreError

#: What is said whatever `log.level` is: starts, stops, reloads.
_LOG = logging.getLogger("engadi.cli")


class Process:
    """A gateway that signals stop, reload and ask. Until it serves, they stop its start, or wait for its end.

    Args:
        gateway: not started yet.
        read: the settings anew, for a reload. Raises ConfigurationError: with all faults.
        taken: told the settings of a reload that went well.
        say: writes a line.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        read: Callable[[], Settings],
        taken: Callable[[Settings], None],
        say: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._read = read
        self._taken = taken
        self._say = say
        self._is_serving = False
        self._is_reload_due = False
        self._stopping = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()
        self._handlers = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGQUIT: self._stop_at_once,
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._flush,
            signal.SIGUSR2: self._tell_state,
        }

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; a second one, or SIGQUIT, stops at once. SIGHUP reads the configuration again.

        Raises:
            BindError, ConfigurationError, StoreError: it cannot start.
        """
        self._handle_signals()
        try:
            await self._serve()
        finally:
            self._deafen()

    async def _serve(self) -> None:
        if await self._start():
            watchdog = asyncio.create_task(_feed_watchdog(watchdog_interval_s() / 2))
            try:
                self._begin()
                await self._stopping.wait()
                _LOG.info("draining")
            finally:
                await self._gateway.stop(grace_s=self._gateway.settings.gateway_drain_timeout)
                watchdog.cancel()
        else:
            notify_systemd("STOPPING=1")
        _LOG.info("stopped")

    def _handle_signals(self) -> None:
        for number, handler in self._handlers.items():
            asyncio.get_running_loop().add_signal_handler(number, handler)

    def _deafen(self) -> None:
        """It ends in any case: what still comes, be it another SIGTERM, must not make that look like a crash."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        for number in self._handlers:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handlers)

    async def _start(self) -> bool:
        """Whether it serves: one that is stopped while it waits for its predecessor does not."""
        starting = asyncio.create_task(self._gateway.start())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in (starting, stopping):
            task.cancel()
        await asyncio.wait((starting, stopping))
        if starting.cancelled():
            return False
        starting.result()
        return True

    def _begin(self) -> None:
        _LOG.info("engadi-gateway %s, Python %s, sqlite %s", __version__, platform.python_version(), SQLITE_VERSION)
        for name in self._gateway.addresses:
            _LOG.info("listening on %s", name)
        notify_systemd("READY=1")
        # what is here now stays, and requests leave no cycles: the collector need not look so often (2 to 7 % of CPU)
        if sys.implementation.name == "cpython":
            gc.freeze()
            gc.set_threshold(2_000, 50, 50)
        self._is_serving = True
        if self._is_reload_due:
            self._reload()

    # signals

    def _stop(self) -> None:
        if self._stopping.is_set():
            _LOG.info("stopping at once")
            self._gateway.cut()
        self._stopping.set()

    def _stop_at_once(self) -> None:
        self._stopping.set()
        self._stop()

    def _reload(self) -> None:
        if self._stopping.is_set():
            return
        if not self._is_serving:
            self._is_reload_due = True  # what the start has read may be old by then
            return
        task = asyncio.get_running_loop().create_task(self._reloaded())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def _flush(self) -> None:
        """What others call reopening the logs: they go to stdout and stderr, there is nothing to open."""
        if self._is_serving:
            self._gateway.flush()

    def _tell_state(self) -> None:
        if not self._is_serving:
            self._say(json.dumps({"lifecycle": str(self._gateway.lifecycle)}))
            return
        now, breakers = time.monotonic(), self._gateway.breakers
        circuits = {name: breakers.status(name, now)["state"] for name in breakers.names()}
        self._say(json.dumps({**self._gateway.state(), "circuits": circuits}))

    # reload

    async def _reloaded(self) -> None:
        """What goes wrong keeps the old configuration and says why; systemd hears that it is over in any case."""
        notify_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            settings = self._read()
            allow_open_files(files_wanted(settings))
            await self._gateway.reload(settings)
            self._taken(self._gateway.settings)
            _LOG.info("configuration reloaded")
        except (ConfigurationError, StoreError, RefusedError) as error:
            self._not_reloaded(str(error))
        except Exception as error:  # nobody thought of it
            self._not_reloaded(_where(error))
        notify_systemd("READY=1")

    def _not_reloaded(self, why: str) -> None:
        self._gateway.note_failed_reload()
        _LOG.error("configuration NOT reloaded, the old one stays: %s", why)


def _where(error: Exception) -> str:
    """What it is and where it came from, without its text: that may hold a key."""
    return f"internal error {type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}".rstrip()


async def _feed_watchdog(every_s: float) -> None:
    """From the loop, so that a loop that hangs is seen; 0: nobody watches."""
    while every_s:
        notify_systemd("WATCHDOG=1")
        await asyncio.sleep(every_s)
