"""What this gateway should cost beside its peers, as a table: ratios of medians, for these do not hang on the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: (load, peer, figure) -> its median, None where it was not measured.
Median = Callable[[str, str, str], float | None]
#: (load, peer, figure)
Cell = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """`value` gives what should be `most` at most; None where something was not measured."""

    title: str
    value: Callable[[Median], float | None]
    most: float


def _ratio(cell: Cell, to: Cell) -> Callable[[Median], float | None]:
    def value(median: Median) -> float | None:
        ours, theirs = median(*cell), median(*to)
        return None if ours is None or not theirs else ours / theirs

    return value


def _beside(load: str, peer: str, most: float, figure: str = "cpu_us") -> Target:
    what = "CPU" if figure == "cpu_us" else figure.removesuffix("_ms")
    value = _ratio((load, "engadi", figure), (load, peer, figure))
    return Target(f"{load}: {what} beside {peer}", value, most)


def _growth(load: str, to: str, most: float) -> Target:
    return Target(f"CPU of {load} beside {to}", _ratio((load, "engadi", "cpu_us"), (to, "engadi", "cpu_us")), most)


def _tail(load: str) -> Target:
    return Target(f"{load}: p99 beside p50", _ratio((load, "engadi", "p99_ms"), (load, "engadi", "p50_ms")), 4)


def _per_rule(median: Median) -> float | None:
    many, one = median("rules-20", "engadi", "cpu_us"), median("rules-1", "engadi", "cpu_us")
    return None if many is None or one is None else (many - one) / 19


TARGETS = (
    _beside("bare", "aiohttp", 0.25),
    _beside("bare", "nginx", 2.8),
    _beside("bare", "Envoy", 1.0),
    _beside("bare", "Traefik", 0.6),
    _beside("bare", "Caddy", 0.6),
    _beside("full", "Envoy", 1.0),
    _beside("full", "Traefik", 0.5),
    _beside("full", "Caddy", 0.7),
    _beside("full", "nginx", 2.0),
    _beside("full", "aiohttp", 0.25),
    _growth("full", "bare", 1.25),
    _beside("full-1", "nginx", 2.0, "p50_ms"),
    _growth("full-256", "full", 1.2),
    _growth("full-1000", "full", 1.2),
    _tail("full-256"),
    _tail("full-1000"),
    _beside("download", "nginx", 1.8),
    _beside("upload", "nginx", 1.2),
    _growth("routes-1000", "routes-10", 1.05),
    _growth("routes-10000", "routes-10", 1.05),
    Target("us a rule, from 1 to 20", _per_rule, 0.2),
    _growth("addresses-1000000", "addresses-1000", 1.05),
    _growth("users-1000000", "users-1000", 1.05),
)
