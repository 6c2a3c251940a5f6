"""Attempts at another target of a split, after one that failed: who is asked, what it gets, and whose doing it was."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.model import BreakerState
from engadi_gateway.pipeline.circuit import Breaker
from tests.fakes import OK, Reply, Script, Seen, Upstream, Wire, answer_ok, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running, token
from tests.world import until

BASE = "/api/v1/gateway"


@dataclass
class Split:
    """A route to services `a` and `b`, the latter with a path before all others, and a user of `a`'s share."""

    gateway: Gateway
    one: Upstream
    two: Upstream
    bearer: str = ""

    async def ask(self, method: str = "GET", **options: Any) -> Reply:
        return await ask(self.gateway.port, method, "/split/x", bearer=self.bearer, **options)

    async def told(self) -> str:
        """Whom explain names."""
        body = {"method": "GET", "path": "/split/x", "token": self.bearer}
        said = json_of(await ask(self.gateway.port, "POST", f"{BASE}/explain", bearer=ADMIN, body=body))
        return str(said["upstream"]["service"])

    async def row(self) -> dict[str, Any]:
        """Of the last request."""
        reply = await ask(self.gateway.port, "GET", f"{BASE}/logs?path=/split/x&limit=1", bearer=ADMIN)
        found: dict[str, Any] = json_of(reply)["items"][0]
        return found

    def trip(self, name: str) -> Breaker:
        """Open a circuit, where one failure does."""
        breaker, now = self.gateway.breakers.of(name), time.monotonic()
        breaker.failed(breaker.take_permit(now), now, self.gateway.breakers.limits, "the test's")
        assert breaker.state is BreakerState.OPEN
        return breaker

    def attempts(self) -> dict[tuple[str, str], int]:
        """As the metrics have them."""
        return {key: count for key, count in self.gateway.metrics.attempts.items() if count}

    def failures(self) -> list[int]:
        return [self.gateway.breakers.peek(name).failures for name in ("a", "b")]


@contextlib.asynccontextmanager
async def a_split(folder: Path, first: Script, second: Script, **values: Any) -> AsyncIterator[Split]:
    async with upstream(first) as one, upstream(second) as two, running(folder, one, **values) as gateway:
        shares = [
            {"target_service": "a", "target_url": one.url},
            {"target_service": "b", "target_url": f"{two.url}/base"},
        ]
        route = {"path_pattern": "/split/*", "target_service": "a", "split": shares}
        assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
        split = Split(gateway, one, two)
        for user in range(100):
            split.bearer = token(f"user{user}")
            if await split.told() == "a":
                break
        yield split
        await until(lambda: gateway.state()["in_flight"] == 0)
        assert gateway._context.budget.retrying == 0


def told_of(
    folder: Path,
    check: Callable[[Split], Awaitable[None]],
    first: Script = answer_ok,
    second: Script = answer_ok,
    **values: Any,
) -> None:
    async def run() -> None:
        async with a_split(folder, first, second, **values) as split:
            await check(split)

    asyncio.run(run())


async def leave(seen: Seen, wire: Wire) -> None:
    wire.close()


async def leave_once(seen: Seen, wire: Wire) -> None:
    if seen.connection == 0:
        wire.close()
    else:
        await wire.send(OK)


async def say_nothing(seen: Seen, wire: Wire) -> None:
    await wire.reader.read(1)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_where_one_is_not_there_the_other_serves_and_has_the_row(tmp_path: Path, method: str) -> None:
    async def check(split: Split) -> None:
        await split.one.stop()
        reply = await split.ask(method, body=b"abc")
        assert (reply.status, reply.body) == (200, b"ok")
        (seen,) = split.two.seen
        assert (seen.method, seen.target, seen.body) == (method, "/base/split/x", b"abc")
        assert seen.one("host") == f"127.0.0.1:{split.two.port}"
        assert seen.one("x-request-id") == reply.one("x-request-id")
        row = await split.row()
        assert (row["target_service"], row["reason"], row["attempts"]) == ("b", "ok", 2)
        said = f"attempt 1 failed: 127.0.0.1:{split.one.port}: Connection refused"
        assert row["error_message"] == said, "what went well at last says what had not"
        assert split.failures() == [1, 0]
        assert split.attempts() == {("a", "retried"): 1, ("b", "answered"): 1}

    told_of(tmp_path, check)


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
def test_what_may_have_been_done_by_one_is_not_asked_of_the_other(tmp_path: Path, method: str, status: int) -> None:
    async def check(split: Split) -> None:
        assert (await split.ask(method, body=b"abc")).status == status
        assert len(split.one.seen) == 1
        assert len(split.two.seen) == (status == 200)
        assert (await split.row())["target_service"] == ("b" if status == 200 else "a")
        assert split.failures() == [1, 0]

    told_of(tmp_path, check, first=leave)


def test_where_both_fail_they_are_asked_in_turn_and_the_last_is_told_of(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        await split.two.stop()
        reply = await split.ask()
        assert (reply.status, json_of(reply)["code"]) == (502, "connect_refused")
        assert reply.one("proxy-status") == "engadi; error=connection_refused"
        row = await split.row()
        assert (row["target_service"], row["attempts"]) == ("b", 2)
        assert row["error_message"] == f"127.0.0.1:{split.two.port}: Connection refused"
        assert split.failures() == [1, 1]

    told_of(tmp_path, check, first=leave, upstream_retry_count=1)


def test_after_the_last_it_is_the_firsts_turn_again(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        assert (await split.ask()).status == 200
        assert [len(server.seen) for server in (split.one, split.two)] == [2, 1]
        assert ((await split.row())["target_service"], split.failures()) == ("a", [0, 1])

    told_of(tmp_path, check, first=leave_once, second=leave)


def test_what_the_other_says_is_its_own_in_row_metrics_and_circuit(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")

    async def check(split: Split) -> None:
        await split.one.stop()
        reply = await split.ask()
        assert (reply.status, reply.one("proxy-status")) == (503, "engadi; received-status=503")
        row = await split.row()
        assert (row["target_service"], row["reason"], row["attempts"]) == ("b", "upstream_5xx", 2)
        assert split.failures() == [1, 1]
        metrics = await ask(split.gateway.port, "GET", f"{BASE}/metrics/prometheus", bearer=ADMIN)
        found = [line for line in metrics.body.decode().splitlines() if line.startswith("engadi_upstream_failures")]
        assert found == ['engadi_upstream_failures_total{service="b",reason="upstream_5xx"} 1']

    told_of(tmp_path, check, second=script)


def test_who_fails_so_is_left_alone_when_its_circuit_opens(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        await split.one.stop()
        assert [(await split.ask()).status for _ in range(3)] == [200] * 3
        assert split.gateway.breakers.peek("a").trips == 1
        assert (await split.row())["attempts"] == 1
        assert await split.told() == "b"

    told_of(tmp_path, check, breaker_failure_threshold=2)


def test_where_the_others_circuit_is_open_the_next_attempt_stays(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        split.trip("b")
        assert (await split.ask()).status == 200
        assert [len(server.seen) for server in (split.one, split.two)] == [2, 0]
        row = await split.row()
        assert (row["target_service"], row["attempts"]) == ("a", 2)
        assert split.failures() == [0, 1]

    told_of(tmp_path, check, first=leave_once, breaker_failure_threshold=1)


def test_a_connection_that_died_idle_is_no_reason_to_go_elsewhere(tmp_path: Path) -> None:
    asked: list[str] = []

    async def script(seen: Seen, wire: Wire) -> None:
        asked.append(seen.target)
        if len(asked) == 2:
            wire.close()
        else:
            await wire.send(OK)

    async def check(split: Split) -> None:
        assert [(await split.ask()).status for _ in range(2)] == [200, 200]
        assert [seen.connection for seen in split.one.seen] == [0, 0, 1]
        assert split.two.seen == []
        assert (await split.row())["target_service"] == "a"

    told_of(tmp_path, check, first=script)


def test_who_had_only_what_time_was_left_is_not_blamed(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        reply = await split.ask()
        assert (reply.status, json_of(reply)["code"]) == (504, "upstream_timeout")
        row = await split.row()
        assert (row["target_service"], row["error_message"]) == ("b", "no reply within 0.3 s")
        assert split.failures() == [1, 0]

    told_of(tmp_path, check, first=leave, second=say_nothing, upstream_timeout=0.3)


def test_but_who_had_failed_with_it_before_is(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await (leave if seen.connection == 0 else say_nothing)(seen, wire)

    async def check(split: Split) -> None:
        assert (await split.ask()).status == 504
        row = await split.row()
        assert (row["target_service"], row["attempts"], row["error_message"]) == ("b", 3, "no reply within 0.3 s")
        assert split.attempts() == {("a", "retried"): 1, ("b", "retried"): 1, ("b", "failed"): 1}
        assert [split.gateway.breakers.peek(name).trips for name in ("a", "b")] == [1, 1]

    told_of(tmp_path, check, first=leave, second=script, upstream_timeout=0.3, breaker_failure_threshold=1)


def test_where_the_other_has_no_place_that_is_said_and_is_nobodys_failure(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        route = {"path_pattern": "/direct", "target_service": "b", "target_url": split.two.url, "is_public": True}
        assert (await ask(split.gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
        async with raw_client(split.gateway.port) as client:
            await client.send(b"GET /direct HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: split.two.seen)
            reply = await split.ask()
            assert (reply.status, json_of(reply)["code"]) == (503, "overloaded")
            row = await split.row()
            assert (row["target_service"], row["attempts"]) == ("b", 1)
            assert row["error_message"] == "too many wait for a connection"
            assert split.failures() == [1, 0]
            assert split.attempts() == {("a", "retried"): 1}, "the other was not asked"

    values = {"upstream_max_connections": 1, "upstream_queue_size": 0}
    told_of(tmp_path, check, first=leave, second=say_nothing, **values)


def test_an_upload_that_goes_elsewhere_is_a_probe_there_once_its_body_has_come(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        breaker = split.trip("b")
        breaker.healthy(time.monotonic())
        await split.one.stop()
        async with raw_client(split.gateway.port) as client:
            head = f"POST /split/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {split.bearer}\r\nContent-Length: 2\r\n"
            await client.send(head.encode() + b"\r\na")
            await until(lambda: split.two.raw)
            assert breaker.probe_since is None
            await client.send(b"b")
            await until(lambda: split.two.seen)
            assert breaker.probe_since is not None
        await until(lambda: breaker.probe_since is None)

    told_of(tmp_path, check, second=say_nothing, breaker_failure_threshold=1)


def test_a_client_that_leaves_the_other_leaves_it_a_free_place_for_probes(tmp_path: Path) -> None:
    async def check(split: Split) -> None:
        breaker = split.trip("b")
        breaker.healthy(time.monotonic())
        async with raw_client(split.gateway.port) as client:
            head = f"GET /split/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {split.bearer}\r\n\r\n"
            await client.send(head.encode())
            await until(lambda: split.two.seen)
            assert breaker.probe_since is not None
        await until(lambda: breaker.probe_since is None)
        row = await split.row()
        assert (row["target_service"], row["reason"], row["attempts"]) == ("b", "client_closed", 2)
        assert breaker.state is BreakerState.HALF_OPEN

    told_of(tmp_path, check, first=leave, second=say_nothing, breaker_failure_threshold=1)
