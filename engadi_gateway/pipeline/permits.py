"""What happens to an exchange that a circuit let pass, as far as the circuit must know before the exchange is over.

Forwarding tells it; how it ended is settled by the stage (`breaker`).
"""

from __future__ import annotations

from engadi_gateway.errors import FAILURE_STATUSES
from engadi_gateway.pipeline.circuit import Permit
from engadi_gateway.pipeline.exchange import Exchange


def may_ask_again(exchange: Exchange) -> bool:
    """Whether its target may get another attempt: a service whose circuit has opened is left alone by those too."""
    permit = exchange.permit
    return not isinstance(permit, Permit) or permit.breaker.still_passes(permit)


def ran_out_of_time(exchange: Exchange) -> None:
    """Where that was what another service had left of it, it says nothing about this one."""
    permit = exchange.permit
    if exchange.has_moved and isinstance(permit, Permit):
        exchange.permit = None
        permit.breaker.gave_up(permit)


def awaits_body(exchange: Exchange, now: float) -> bool:
    """The rest of its body is still to come, which is the client's time: no probe waits for a slow upload.

    Whether it may be sent, for of the probes one at a time may be like that.
    """
    permit = exchange.permit
    return not isinstance(permit, Permit) or permit.breaker.may_upload(permit, now)


def has_body(exchange: Exchange, now: float) -> None:
    """Its body is complete: from now on the upstream's time runs."""
    permit = exchange.permit
    if isinstance(permit, Permit):
        exchange.permit = permit.breaker.probe_again(permit, now)


def goes_on(exchange: Exchange) -> None:
    """The reply has begun and may last for hours: neither the next probe nor a row of failures waits for it.

    Nor does it keep the configuration that it began with, but for what settles it.
    """
    exchange.pipeline = exchange.pipeline.rest()
    permit = exchange.permit
    if not isinstance(permit, Permit):
        return
    if permit.probe:
        permit.breaker.makes_way(permit)
    elif permit.breaker.failures and exchange.upstream_status not in FAILURE_STATUSES:
        permit.breaker.began_well(permit)
