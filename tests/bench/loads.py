"""The loads, as a table: what is asked, of which form, and of whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.peers import Setup
from tests.bench.requests import Shape

KIB_100 = 102_400
#: Each token takes ten minutes to come back, so that a bucket, once made, is there until the end.
_LASTING = 31_536_000
#: More users than requests, so that nobody who remembers verified tokens has an advantage.
_EVERYBODY = 100_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """One load.

    Attributes:
        is_own: asked of this gateway alone, in that `setup`.
        warm_requests: before anything is measured; the million clients must all have been there.
    """

    name: str
    title: str
    connections: int = 64
    is_full: bool = True
    shape: Shape = field(default_factory=Shape)
    is_own: bool = False
    setup: Setup = field(default_factory=Setup)
    warm_requests: int = 0


def _routes(count: int) -> Load:
    return Load(
        f"routes-{count}", f"{count:,} routes", shape=Shape(spread=count), is_own=True, setup=Setup(routes=count)
    )


def _rules(count: int) -> Load:
    return Load(f"rules-{count}", f"{count} rules that apply", is_own=True, setup=Setup(rules=count))


def _addresses(count: int) -> Load:
    """Clients by address; the tokens are those of a thousand users."""
    setup = Setup(trusts_addresses=True, window_s=_LASTING)
    title = f"{count:,} client addresses"
    return Load(
        f"addresses-{count}", title, shape=Shape(addresses=count), is_own=True, setup=setup, warm_requests=count
    )


def _users(count: int) -> Load:
    """Clients by token: each is verified once and remembered, so that the second time costs a look-up."""
    setup = Setup(remembered_tokens=max(10_000, count), window_s=_LASTING)
    title = f"{count:,} users"
    return Load(f"users-{count}", title, shape=Shape(users=count), is_own=True, setup=setup, warm_requests=count)


LOADS: dict[str, Load] = {
    load.name: load
    for load in (
        Load("bare", "forwarding alone", is_full=False),
        Load("full", "all duties"),
        Load("full-1", "all duties, 1 connection", 1),
        Load("full-256", "all duties, 256 connections", 256),
        Load("full-1000", "all duties, 1,000 connections", 1000),
        Load("download", "all duties, replies of 100 KiB", shape=Shape(reply_bytes=KIB_100)),
        Load("upload", "all duties, uploads of 100 KiB", shape=Shape(upload_bytes=KIB_100)),
        Load("strangers", "all duties, no token seen before", shape=Shape(users=_EVERYBODY)),
        *map(_routes, (10, 1_000, 10_000)),
        *map(_rules, (1, 4, 20)),
        *map(_addresses, (1_000, 1_000_000)),
        *map(_users, (1_000, 1_000_000)),
    )
}
#: Names for several at once.
GROUPS = {
    "peers": tuple(name for name, load in LOADS.items() if not load.is_own),
    "own": tuple(name for name, load in LOADS.items() if load.is_own),
    "quick": ("bare", "full"),
    "all": tuple(LOADS),
}
