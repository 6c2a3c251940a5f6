"""What whoever runs a gateway should know though it serves: said at the start and at every reload."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from engadi_gateway.gateway.compiler import Compiled
from engadi_gateway.model import Snapshot
from engadi_gateway.pipeline.targets import without_route, without_target
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.seed import overruled


class Notice(NamedTuple):
    """One line for the log; `level` is logging's."""

    level: int
    text: str


def say(notices: Iterable[Notice]) -> None:
    for level, text in notices:
        logging.getLogger("engadi").log(level, text)


def amiss(settings: Settings, compiled: Compiled, most_clients: int, certificate: str) -> list[Notice]:
    """Too few files, a certificate that ends, routes that lead nowhere, settings that do not hold.

    Args:
        most_clients: for so many there are files.
        certificate: what `tls.warning_of` says.
    """
    return [
        *_too_few_seats(most_clients, settings.server_max_connections),
        *_of_certificate(settings.server_tls_certificate, certificate),
        *dead_ends(compiled),
        *_without_route(compiled),
        *_overruled(settings, compiled.snapshot),
    ]


def dead_ends(compiled: Compiled, before: Compiled | None = None) -> list[Notice]:
    """The routes that have nowhere to go, but for those that had nowhere to go before either."""
    known = set() if before is None else set(_pairs_of(before))
    return [
        Notice(logging.WARNING, f"{pattern}: no URL for {service}, requests get 503")
        for pattern, service in _pairs_of(compiled)
        if (pattern, service) not in known
    ]


def _pairs_of(compiled: Compiled) -> list[tuple[str, str]]:
    """Path pattern and service of each route without a target."""
    return [(route.path_pattern, route.target_service) for route in without_target(compiled.ways.targets)]


def _too_few_seats(most: int, wanted: int) -> list[Notice]:
    text = f"{most} client connections at most, not {wanted}: too few files may be open (ulimit -n, LimitNOFILE=)"
    return [Notice(logging.WARNING, text)] if most < wanted else []


def _of_certificate(path: str, warning: str) -> list[Notice]:
    return [Notice(logging.WARNING, f"server.tls_certificate: {path} {warning}")] if warning else []


def _without_route(compiled: Compiled) -> list[Notice]:
    return [
        Notice(logging.INFO, f"service {name}: no route leads there; POST /api/v1/gateway/routes makes one")
        for name in without_route(compiled.snapshot.services, compiled.ways.table)
    ]


def _overruled(settings: Settings, snapshot: Snapshot) -> list[Notice]:
    """A warning where somebody set one of these; the defaults nobody chose."""
    changed = overruled(settings, snapshot)
    is_theirs = any(settings.origins[name] != "default" for name in changed)
    text = f"the API changed these, their settings do not hold: {', '.join(changed)}"
    return [Notice(logging.WARNING if is_theirs else logging.INFO, text)] if changed else []
