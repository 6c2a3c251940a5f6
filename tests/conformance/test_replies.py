"""Plays the fault cases: what an upstream does, what the client gets, what the upstream saw, what the log says."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.gateway.gateway import Gateway
from tests.conformance.case import P
from tests.conformance.misbehaving import Fault, Stage
from tests.conformance.reply_bodies import CASES as BODIES
from tests.conformance.reply_bodies import EVIL
from tests.conformance.reply_heads import CASES as HEADS
from tests.conformance.reply_heads import SILENT
from tests.fakes import OK, RawClient, Reply, Seen, Upstream, Wire, raw_client
from tests.harness import ADMIN, ask, json_of, running

CASES = [*HEADS, *BODIES]
SETTINGS: dict[str, Any] = {"upstream_retry_count": 0, "breaker_failure_threshold": 1_000_000}


class Theatre:
    """An upstream that does what the case of a request's target says, and answers all others."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.upstream = Upstream(self._script, self._on_head)

    def enter(self, case: Fault, number: int, how: str = "whole") -> Stage:
        stage = Stage(case, number, how == "byte by byte")
        self.stages[stage.target] = stage
        return stage

    async def _on_head(self, seen: Seen, wire: Wire) -> None:
        stage = self.stages.get(seen.target)
        if stage is not None and stage.case.is_early:
            await stage.play(wire)

    async def _script(self, seen: Seen, wire: Wire) -> None:
        stage = self.stages.get(seen.target)
        if stage is None:
            await wire.send(OK)
        elif not stage.case.is_early:
            await stage.play(wire)

    def attempts(self, stage: Stage) -> list[Seen]:
        return [seen for seen in self.upstream.seen if seen.target == stage.target]


def test_the_table_is_a_table() -> None:
    every = [*CASES, *SILENT]
    assert len(every) >= 100
    assert [name for name, count in Counter((case.name, case.steps) for case in every).items() if count > 1] == []
    assert all(case.rule.text for case in every)


def _as_played(case: Fault, how: str) -> Fault | None:
    """The case, or the case with another reply behind the one that it holds; None where it holds none."""
    if how != "with a tail":
        return case
    is_complete = case.is_reused and not case.code and case.attempts == 1
    last = case.steps[-1]
    if not is_complete or not isinstance(last, bytes):
        return None
    return replace(case, steps=(*case.steps[:-1], last + EVIL), is_reused=False)


def _check_reply(stage: Stage, reply: Reply) -> None:
    case = stage.case
    if stage.is_in_pieces and case.is_cut_in_pieces and reply.status == 200:
        assert not reply.is_whole
        stage.case = replace(case, is_whole=False, reason="upstream_truncated")
        return
    assert (reply.status, reply.is_whole, tuple(reply.interim)) == (case.status, case.is_whole, case.interim)
    if case.code:
        assert json_of(reply)["code"] == case.code
        assert reply.one("proxy-status").startswith("engadi; error=")
    else:
        assert reply.body == case.body
    fields = [f"{name}: {value}" for name, value in reply.headers]
    assert [line for line in case.lines if line not in fields] == []
    assert [name for name in case.lacks if reply.all(name)] == []
    tokens = [token.strip() for value in reply.all("connection") for token in value.split(",")]
    assert tokens == ["close"] * case.is_closing + ["Upgrade"] * (case.status == 426)
    assert len(reply.all("date")) == len(reply.all("x-request-id")) == 1
    assert reply.one("x-request-id") != "theirs"


async def _receive(client: RawClient, stage: Stage) -> Reply:
    """The answer, telling the stage how far it is."""
    reading = asyncio.create_task(client.reply(stage.case.method))
    arriving = asyncio.create_task(client.arrived.wait())
    await asyncio.wait({reading, arriving}, return_when=asyncio.FIRST_COMPLETED)
    arriving.cancel()
    stage.has_bytes.set()
    reply = await reading
    stage.has_reply.set()
    return reply


async def _play(theatre: Theatre, stage: Stage, gateway: Gateway) -> None:
    """An idle connection first, so that the case finds one to reuse; then the case; then who comes after it."""
    case = stage.case
    assert (await ask(gateway.port, "GET", f"{P}/before")).body == b"ok"
    async with raw_client(gateway.port) as client:
        await client.send(case.sends.replace(b"{}", stage.target.encode()))
        _check_reply(stage, await _receive(client, stage))
        if case.is_closing or not case.is_whole:
            assert await client.rest() == b""
        await stage.is_played.wait()
    faults, theatre.upstream.faults = theatre.upstream.faults, []
    if case.is_early:
        assert set(faults) <= {"request cut off"}, "what is there of the request must not look whole"
        assert [seen.body for seen in theatre.attempts(stage)] in ([], [b""])
    else:
        assert faults == []
        assert len(theatre.attempts(stage)) == case.attempts
    raw_before = len(theatre.upstream.raw)
    assert (await ask(gateway.port, "GET", f"{P}/after")).body == b"ok"
    used = theatre.upstream.seen[-1].connection
    assert (used < raw_before) == case.is_reused or case.attempts > 1


async def _reason(stage: Stage, gateway: Gateway) -> str:
    reply = await ask(gateway.port, "GET", f"/api/v1/gateway/logs?path={stage.target}", bearer=ADMIN)
    (row,) = json_of(reply)["items"]
    assert row["attempts"] == stage.case.attempts
    return str(row["reason"])


@pytest.mark.parametrize("how", ["whole", "byte by byte", "with a tail"])
def test_every_fault(tmp_path: Path, how: str) -> None:
    """One after the other over one gateway: what one leaves behind would spoil the next."""

    async def run() -> list[str]:
        theatre, failures = Theatre(), []
        await theatre.upstream.start()
        async with running(tmp_path, theatre.upstream, **SETTINGS) as gateway:
            played = [case for case in (_as_played(case, how) for case in CASES) if case is not None]
            assert len(played) > 50
            stages = [theatre.enter(case, number, how) for number, case in enumerate(played)]
            for stage in stages:
                try:
                    await asyncio.wait_for(_play(theatre, stage, gateway), 10)
                    assert await _reason(stage, gateway) == stage.case.reason
                except (AssertionError, EOFError, TimeoutError, ValueError) as error:
                    failures.append(f"{stage.case.name} ({stage.case.rule.section}): {error!r}")
            assert gateway.state()["in_flight"] == 0
            (pool,) = gateway.state()["pools"].values()
            assert pool == {"active": 0, "idle": pool["idle"], "dialling": 0, "waiting": 0, "upgraded": 0}
        await theatre.upstream.stop()
        return failures

    failures = asyncio.run(run())
    assert not failures, "\n".join(failures)


def test_every_silence(tmp_path: Path) -> None:
    """These wait for time-outs, so they run side by side; each on a connection of its own."""

    async def one(theatre: Theatre, stage: Stage, gateway: Gateway) -> None:
        async with raw_client(gateway.port) as client:
            await client.send(stage.case.sends.replace(b"{}", stage.target.encode()))
            _check_reply(stage, await _receive(client, stage))
        assert len(theatre.attempts(stage)) == stage.case.attempts
        assert await _reason(stage, gateway) == stage.case.reason

    async def run() -> None:
        theatre = Theatre()
        await theatre.upstream.start()
        async with running(tmp_path, theatre.upstream, **SETTINGS, upstream_timeout=0.5) as gateway:
            stages = [theatre.enter(case, number) for number, case in enumerate(SILENT)]
            await asyncio.wait_for(asyncio.gather(*(one(theatre, stage, gateway) for stage in stages)), 30)
            assert (await ask(gateway.port, "GET", f"{P}/after")).body == b"ok"
            assert theatre.upstream.seen[-1].connection == len(SILENT), "none of theirs is used again"
        await theatre.upstream.stop()

    asyncio.run(run())
