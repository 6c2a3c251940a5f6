"""This gateway, as it is served: `run.py serve` with a gateway.ini and databases prepared by the catalog's own code."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

from engadi_gateway import __version__
from engadi_gateway.model import LimitType, RateLimitRule, Route
from engadi_gateway.settings.load import Settings
from engadi_gateway.store import catalog_tables
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.database import Connection
from engadi_gateway.store.in_use import Database
from engadi_gateway.store.seed import seed_of, timestamp
from tests.bench.peers import ALL_DUTIES, ROOT, Command, Peer, Place, Setup
from tests.bench.requests import ORIGIN, SECRET

_KINDS = (LimitType.PER_USER, LimitType.PER_IP, LimitType.PER_ENDPOINT, LimitType.GLOBAL)
_PYPY = "pypy3"
_PYPY_VERSION = "'.'.join(map(str, sys.pypy_version_info[:3]))"
_MOST = 10_000_000  # the largest bucket there is

_INI = """
[server]
host = 127.0.0.1
port = {port}
keep_alive_requests = 0
trusted_proxies = {trusted}
loop = {loop}
[services]
content = http://127.0.0.1:{upstream}
[health]
interval = {health_interval}
[jwt]
secret_key = {secret}
cache_size = {cache_size}
[limits]
enabled = {switch}
[breaker]
enabled = {switch}
[cors]
enabled = {switch}
allow_origins = {origin}
[log]
requests = {switch}
"""


def ini_text(place: Place, *, is_full: bool) -> str:
    """Bare: every duty that can be switched off is; the route is made public beside it."""
    return _INI.format(
        port=place.port,
        upstream=place.upstream,
        secret=SECRET,
        origin=ORIGIN,
        trusted="127.0.0.1" if place.setup.trusts_addresses else "",
        loop=place.setup.loop,
        cache_size=place.setup.remembered_tokens,
        switch="yes" if is_full else "no",
        health_interval="60s" if is_full else "0",
    )


def command(place: Place, *, is_full: bool, interpreter: str = sys.executable) -> Command:
    path = place.folder / "gateway.ini"
    path.write_text(ini_text(place, is_full=is_full))
    settings = Settings.load(path.read_text(), {})
    prepare(str(place.folder / settings.database_url), settings, place, is_full=is_full)
    return Command([interpreter, str(ROOT / "run.py"), "serve", "--config", str(path)])


def prepare(database: str, settings: Settings, place: Place, *, is_full: bool) -> None:
    """Routes and rules as the setup wants them, in one transaction: over the API ten thousand would take an hour."""
    now = timestamp(time.time())
    store = Database(database, catalog_tables.SCHEMA, synchronous="FULL")
    own = Catalog(database)
    own.open(seed_of(settings, now))
    own.close()

    def write(connection: Connection) -> None:
        connection.execute("DELETE FROM rate_limit_rule")
        connection.execute("DELETE FROM route_config")
        for route in routes(place.setup, now, is_public=not is_full):
            catalog_tables.store(connection, "route", route)
        for rule in rules(place, now):
            catalog_tables.store(connection, "rule", rule)

    store.open()
    store.submit(write).result()
    store.close()


def _id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def routes(setup: Setup, now: str, *, is_public: bool) -> Iterator[Route]:
    """The one for everything, or one for each of the load's first segments."""
    patterns = [f"/api/v1/content/r{number:05d}/*" for number in range(setup.routes)] or ["/api/v1/content/*"]
    for number, pattern in enumerate(patterns):
        yield Route(_id(number), pattern, "content", is_public=is_public, created_at=now, updated_at=now)


def rules(place: Place, now: str) -> Iterator[RateLimitRule]:
    """Rules that apply to every request, the four kinds in turn."""
    window_s = place.setup.window_s
    amount = min(_MOST, place.rate * window_s)
    if place.rate < _MOST // window_s:  # where the limits are tried: so many, and no more for a while
        amount = place.rate
    for number in range(place.setup.rules):
        kind = _KINDS[number % len(_KINDS)]
        yield RateLimitRule(_id(number), f"rule {number}", kind, amount, window_s, created_at=now, updated_at=now)


def _peer(
    name: str,
    missing: Callable[[], str] = lambda: "",
    version: Callable[[], str] = lambda: f"CPython {sys.version.split()[0]}",
    *,
    loop: str = "asyncio",
    interpreter: str = sys.executable,
    note: str = "",
) -> Peer:
    def start(place: Place, *, is_full: bool) -> Command:
        on_loop = replace(place, setup=replace(place.setup, loop=loop))
        return command(on_loop, is_full=is_full, interpreter=interpreter)

    return Peer(
        name,
        missing,
        lambda: f"{__version__}, {version()}",
        lambda place: start(place, is_full=False),
        lambda place: start(place, is_full=True),
        ALL_DUTIES,
        f"on {loop}{note}",
    )


@cache
def _on_pypy(text: str) -> str:
    """What an expression is for the `pypy3` here that can run a gateway; "" where there is none."""
    program = f"import sys, h11, jwt, sqlite3; assert sys.version_info >= (3, 11); print({text})"
    try:
        asked = subprocess.run([_PYPY, "-c", program], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return asked.stdout.strip()


PEERS = (
    _peer("engadi"),
    _peer("engadi+uvloop", lambda: "" if find_spec("uvloop") else "uvloop is not installed", loop="uvloop"),
    _peer(
        "engadi on PyPy",
        lambda: "" if _on_pypy("1") else "no `pypy3` of Python 3.11 that has h11 and PyJWT",
        lambda: f"PyPy {_on_pypy(_PYPY_VERSION)}",
        interpreter=_PYPY,
        note="; compiles while it runs, so that the first hundred thousand requests cost more",
    ),
)
