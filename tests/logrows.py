"""Log rows for tests: one with every field given, and many at random."""

from __future__ import annotations

import random
from typing import Any

from engadi_gateway.model import LogRow

SERVICES = ("auth", "content", "search")
PATHS = ("/api/v1/content/{}", "/api/v1/search", "/api/v1/auth/login", "/api/v1/content/{}/comments/{}")
#: Statuses with a reason each, as they come together.
ENDS = (
    (401, "auth_invalid.expired"),
    (200, "ok"),
    (201, "ok"),
    (404, "ok"),
    (401, "auth_missing"),
    (429, "rate_limited"),
    (502, "connect_refused"),
)


def a_row(**fields: Any) -> LogRow:
    base = LogRow(
        request_id="req-1",
        method="GET",
        path="/api/v1/content/7",
        target_service="content",
        user_id="alice",
        client_ip="192.0.2.1",
        status_code=200,
        response_time=1.5,
        error_message=None,
        created_at=1_790_000_000_000,
        reason="ok",
        route_id="route-1",
        attempts=1,
        bytes_in=10,
        bytes_out=20,
        upstream_time=1.0,
        revision=3,
    )
    return base._replace(**fields)


def random_rows(count: int, first_ms: int, last_ms: int, seed: int = 1) -> list[LogRow]:
    """In the order of their time; latencies are spread over five decades."""
    choose = random.Random(seed)
    rows = []
    for number, moment in enumerate(sorted(choose.randrange(first_ms, last_ms) for _ in range(count))):
        status, reason = choose.choice(ENDS)
        rows.append(
            a_row(
                request_id=f"req-{number}",
                method=choose.choice(("GET", "POST")),
                path=choose.choice(PATHS).format(choose.randrange(50), choose.randrange(9)),
                target_service=choose.choice((*SERVICES, None)),
                user_id=choose.choice(("alice", "bob", None)),
                client_ip=f"192.0.2.{choose.randrange(5)}",
                status_code=status,
                response_time=round(choose.lognormvariate(2, 2), 3),
                created_at=moment,
                reason=reason,
                bytes_in=choose.randrange(1000),
                bytes_out=choose.randrange(100_000),
            )
        )
    return rows
