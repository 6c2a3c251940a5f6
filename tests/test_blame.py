"""Whose doing it was: a circuit learns of what its own service did, and of nothing that others had it wait for."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from engadi_gateway.gateway import Gateway
from engadi_gateway.pipeline.identity import make_token
from tests.fakes import OK, Seen, Wire, upstream
from tests.harness import ADMIN, ask, json_of, running
from tests.world import LONG_SECRET

LOGS = "/api/v1/gateway/logs?target_service="
LONG_AGO_S = 1000.0


async def the_row(gateway: Gateway, service: str) -> dict[str, Any]:
    (row,) = json_of(await ask(gateway.port, "GET", LOGS + service, bearer=ADMIN))["items"]
    return dict(row)


# the auth service


def _came_long_ago(gateway: Gateway) -> None:
    """As if everything that is under way had waited since then."""
    for connection in gateway._front.connections:
        if connection._exchange is not None:
            connection._exchange.now -= LONG_AGO_S
            connection._exchange.wall -= LONG_AGO_S


def test_what_the_auth_service_takes_is_no_other_services_time(tmp_path: Path) -> None:
    """Neither of the time to answer nor of a probe's; the row tells of all of it."""
    gateways: list[Gateway] = []
    waits: list[float] = []

    async def judge(seen: Seen, wire: Wire) -> None:
        _came_long_ago(gateways[0])
        await wire.send(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"sub": "u"}')

    async def serve(seen: Seen, wire: Wire) -> None:
        gateway, now = gateways[0], time.monotonic()
        waits.append(gateway.breakers.of("content").wait_s(now, gateway.breakers.limits))
        gateway._context.flights.sweep(now)
        await wire.send(OK)

    async def run() -> None:
        async with (
            upstream(judge) as auth,
            upstream(serve) as content,
            running(tmp_path, auth, content, jwt_mode="local-then-remote") as gateway,
        ):
            gateways.append(gateway)
            breaker, limits = gateway.breakers.of("content"), gateway.breakers.limits
            for _ in range(limits.failure_threshold):
                breaker.failed(breaker.take_permit(0.0), 0.0, limits, "test")
            breaker.healthy(0.0)
            began = time.time() - LONG_AGO_S / 2
            bearer = make_token(LONG_SECRET, "HS512", {"sub": "u", "exp": time.time() + 60})
            reply = await ask(gateway.port, "GET", "/api/v1/content/x", bearer=bearer)
            assert (reply.status, breaker.successes) == (200, 1)
            assert waits[0] > 0.0, "one probe at a time"
            row = await the_row(gateway, "content")
            assert row["response_time"] > LONG_AGO_S * 1000
            assert datetime.fromisoformat(row["created_at"]).timestamp() < began

    asyncio.run(run())
