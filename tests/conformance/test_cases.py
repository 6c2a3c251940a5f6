"""Runs the table against a running gateway over raw sockets: whole, byte by byte, and with a tail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engadi_gateway.gateway import Gateway
from tests.conformance.cases import CASES, Case
from tests.fakes import RawClient, Upstream, raw_client, upstream
from tests.harness import json_of, running

TAIL = b"GET /api/v1/auth/tail HTTP/1.1\r\nHost: h\r\n\r\n"


def test_the_table_is_a_table() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 150


async def _send(client: RawClient, raw: bytes, how: str) -> None:
    if how != "byte by byte":
        await client.send(raw + (TAIL if how == "with a tail" else b""))
        return
    try:
        for at in range(len(raw)):
            client.writer.write(raw[at : at + 1])
            if at % 64 == 0:
                await client.writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass  # it was refused before the end: the answer is there to be read


async def _run_case(case: Case, how: str, gateway: Gateway, auth: Upstream) -> None:
    auth.seen.clear()
    status = 0
    async with raw_client(gateway.port) as client:
        await _send(client, case.raw, how)
        for status in case.statuses:
            reply = await client.reply(
                case.raw.lstrip(b"\r\n").split(b" ")[0].decode("latin-1") if status == 200 else "GET"
            )
            assert reply.status == status
            if status >= 400 and status == case.statuses[-1]:
                assert json_of(reply)["code"] == case.code
                assert reply.one("content-type") == "application/problem+json"
                assert reply.one("cache-control") == "no-store"
                assert reply.one("x-request-id") == json_of(reply)["request_id"]
        if case.is_open and how == "with a tail":
            assert (await client.reply()).status == 200
        if not case.is_open:
            assert reply.all("connection") == ["close"]
            assert await client.rest() == b""
    wanted = list(case.targets) + (["/api/v1/auth/tail"] if case.is_open and how == "with a tail" else [])
    assert [seen.target for seen in auth.seen] == wanted
    # a malformed body that came in pieces was on its way already: what the upstream saw of it must never look whole
    allowed = ["request cut off"] if how == "byte by byte" and case.code and not case.targets else []
    assert auth.faults in ([], allowed)
    auth.faults.clear()


@pytest.mark.parametrize("how", ["whole", "byte by byte", "with a tail"])
def test_every_case(tmp_path: Path, how: str) -> None:
    """One gateway for the whole table: what one case leaves behind would spoil the next."""

    async def run() -> list[str]:
        failures = []
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            for case in CASES:
                try:
                    await asyncio.wait_for(_run_case(case, how, gateway, auth), 10)
                except (AssertionError, EOFError, TimeoutError, ValueError) as error:
                    failures.append(f"{case.name} ({case.rule} {case.level}): {error!r}")
                    auth.faults.clear()
            await asyncio.sleep(0.05)
            assert gateway.state()["in_flight"] == 0
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0
        return failures

    failures = asyncio.run(run())
    assert not failures, "\n".join(failures)
