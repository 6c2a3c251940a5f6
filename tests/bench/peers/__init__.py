"""Who is measured: each peer in its best form, one process with one worker, with as many of the duties as it can have.

A module a peer (or a family) says what is missing on this machine, which duties its full form has, and how it is
started. Whatever cannot be had without another product (a plugin, a paid edition) it does not have.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent
_PORTS = range(18_100, 32_768)
#: Requests a second that no limit will stop.
PLENTY = 1_000_000


class Duty(StrEnum):
    """What a gateway does beyond forwarding."""

    JWT = "JWT"
    LIMITS = "limits"
    CORS = "CORS"
    BREAKER = "breaker"
    LOG = "log"


ALL_DUTIES = tuple(Duty)


@dataclass(frozen=True, slots=True)
class Setup:
    """How this gateway is set up for a load of its own; the peers have no use for it.

    Attributes:
        routes: that many routes below the service instead of the one it is seeded with; 0: that one.
        rules: that many rules, the four kinds in turn.
        window_s: over which a rule's tokens come back.
        remembered_tokens: `[jwt] cache_size`.
        trusts_addresses: X-Forwarded-For is believed.
        loop: the event loop.
    """

    routes: int = 0
    rules: int = 4
    window_s: int = 3600
    remembered_tokens: int = 10_000
    trusts_addresses: bool = False
    loop: str = "asyncio"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is to run: a folder of its own, its port, the upstream's, and how many requests a second it lets
    pass for each of its limits: far more than can come, except where the limits themselves are tried."""

    folder: Path
    port: int
    upstream: int
    rate: int = PLENTY
    setup: Setup = field(default_factory=Setup)


@dataclass(frozen=True, slots=True)
class Command:
    """What starts it."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """One program.

    Attributes:
        missing: why it cannot run here; "" when it can.
        version: what it calls itself.
        bare, full: write its configuration and give its command; no `full`: it is asked for bare forwarding alone.
        duties: what the full form has.
        note: what the full form does about the rest, in a few words.
    """

    name: str
    missing: Callable[[], str]
    version: Callable[[], str]
    bare: Callable[[Place], Command]
    full: Callable[[Place], Command] | None
    duties: tuple[Duty, ...]
    note: str = ""


def free_port() -> int:
    """A port that nobody has, below those that the kernel gives to clients; another run beside this one looks elsewhere."""
    for port in random.sample(_PORTS, len(_PORTS)):
        if port not in _given:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _given.add(port)
            return port
    raise SystemExit("no free port")


_given: set[int] = set()
