"""The stage that finds an exchange's route: the gateway's own endpoints first, then the configured ones."""

from __future__ import annotations

from collections.abc import Mapping

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.pipeline.table import Clash, Match, Miss, RoutingTable


class Routing:
    """The first stage.

    Args:
        table: the configured routes.
        local: the gateway's own endpoints, asked first: nobody can shadow them.
        answers_preflight: whether the next stage does; then a preflight is matched by the method that it asks about.
    """

    sees_refused = False
    decides_nothing = False
    settles_nothing = True

    def __init__(
        self, table: RoutingTable, local: RoutingTable | None = None, *, answers_preflight: bool = False
    ) -> None:
        self._table = table
        self._local = local
        self._local_beginnings = () if local is None else local.beginnings()
        self._answers_preflight = answers_preflight

    def decide(self, exchange: Exchange) -> Refusal | None:
        head = exchange.head
        method = head.method
        if head.path == "*":
            return Refusal(Reason.OPTIONS)  # the server as a whole (RFC 9110 section 9.3.7)
        asked = self._preflight_method(head.notes) if method == "OPTIONS" else None
        if exchange.trace is not None:
            exchange.trace["method"] = asked or method
        found = self._find(exchange, asked or method)
        if isinstance(found, Miss):
            return _missed(found, is_options=method == "OPTIONS" and asked is None)
        if isinstance(found, Clash):
            return Refusal(Reason.BAD_REQUEST, "the path can be read as another's, which asks for more")
        route = exchange.route = found.route
        exchange.params = found.params
        if route.strip_prefix:
            exchange.strip_prefix_length = found.prefix_length
        if head.has_encoded_slash and not route.allow_encoded_slashes:
            return Refusal(Reason.BAD_REQUEST, "encoded slash in the path")
        return None

    def _preflight_method(self, notes: Mapping[bytes, bytes]) -> str | None:
        asked = notes.get(b"access-control-request-method")
        if asked is None or b"origin" not in notes or not self._answers_preflight:
            return None
        return asked.decode("latin-1") or None

    def _find(self, exchange: Exchange, method: str) -> Match | Miss | Clash:
        head = exchange.head
        if self._local is not None and head.path.startswith(self._local_beginnings):
            found = self._local.match(method, head.host, head.path)
            if not isinstance(found, Miss) or found.allow:
                exchange.is_local = True
                return found
        return self._table.match(method, head.host, head.path)

    def settle(self, exchange: Exchange) -> None:
        """Nothing to learn."""


def _missed(miss: Miss, *, is_options: bool) -> Refusal:
    if not miss.allow:
        return Refusal(Reason.NO_ROUTE)
    allow = ((b"Allow", ", ".join(miss.allow).encode("ascii")),)
    return Refusal(Reason.OPTIONS if is_options else Reason.METHOD_NOT_ALLOWED, headers=allow)
