"""Runs the request cases against one running gateway over raw sockets: whole, byte by byte, and with a tail."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway.gateway.gateway import Gateway
from tests.conformance.case import Case, Got, P, Saw, head
from tests.conformance.tables import CASES
from tests.fakes import RawClient, Reply, Seen, Upstream, raw_client, upstream
from tests.harness import ADMIN, ask, json_of, running

TAIL = head(target=f"{P}/tail")
#: What the gateway says of every request, once each.
OWN = (
    "host",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-request-id",
    "via",
)
#: What never goes on, whoever says it; Connection and Upgrade only together, for an upgrade.
NEVER = ("keep-alive", "proxy-connection", "te", "trailer", "proxy-authorization", "expect", "x-user-id", "x-user-role")
ROUTES: tuple[dict[str, Any], ...] = (
    {"path_pattern": "/guarded/*", "is_public": True},
    {"path_pattern": "/guarded/closed/*", "is_public": False},
    {"path_pattern": "/only-get", "is_public": True, "methods": ["GET"]},
)


def test_the_table_is_a_table() -> None:
    """At least 250 cases, each with its rule, and no two the same in name or in bytes."""
    assert len(CASES) >= 250
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
    assert [case.name for case in CASES if sum(case.raw == other.raw for other in CASES) > 1] == []
    for case in CASES:
        assert re.fullmatch(r"[0-9]{4} [0-9A-Z.]+", case.rule.section)
        assert case.rule.level in {"MUST", "SHOULD", "MAY", "PRACTICE"}
        assert case.rule.text


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


def _got(reply: Reply, method: str) -> Got:
    """What an answer says; a problem says it as it should."""
    assert reply.is_whole
    if reply.status == 200:
        assert reply.body == (b"" if method == "HEAD" else b"ok")
    if reply.status < 400 or method == "HEAD":
        return Got(reply.status, method=method)
    problem = json_of(reply)
    assert problem["status"] == reply.status
    assert reply.one("content-type") == "application/problem+json"
    assert reply.one("cache-control") == "no-store"
    assert reply.one("x-request-id") == problem["request_id"]
    return Got(reply.status, problem["code"])


def _check_fields(seen: Seen, want: Saw) -> None:
    names = [name for name, _ in seen.headers]
    for name in set(OWN) - set(want.lacks):
        assert names.count(name) == 1, name
    for line in want.lines:
        start = line.removesuffix("*")
        assert [given for given in seen.lines if given == line or (start != line and given.startswith(start))], line
    assert not [name for name in (*want.lacks, *NEVER) if name in names]
    assert names.count("content-length") + names.count("transfer-encoding") <= 1
    assert ("connection" in names) == ("upgrade" in names)


def _may_go_on(case: Case, how: str) -> bool:
    """Whether a 100 may come: asked for, by who speaks HTTP/1.1, while its body is not there (RFC 9110 10.1.1, 15.2)."""
    return how == "byte by byte" and b"xpect: 100-c" in case.raw.lower() and b" HTTP/1.0\r\n" not in case.raw


async def _run_case(case: Case, how: str, gateway: Gateway, auth: Upstream) -> None:
    auth.seen.clear()
    client_wants, upstream_wants, is_open = list(case.client), list(case.upstream), case.is_open
    if case.in_pieces and how == "byte by byte":
        client_wants, upstream_wants, is_open = list(case.in_pieces), [], False
    if is_open and how == "with a tail":
        client_wants.append(Got(200))
        upstream_wants.append(Saw(f"{P}/tail"))
    async with raw_client(gateway.port) as client:
        await _send(client, case.raw, how)
        replies = [await client.reply(want.method) for want in client_wants]
        assert [_got(reply, want.method) for reply, want in zip(replies, client_wants, strict=True)] == client_wants
        interim = [code for reply in replies for code in reply.interim]
        assert interim == [] or (interim == [100] and _may_go_on(case, how))
        if not is_open:
            assert [reply.all("connection") for reply in replies] == [[]] * (len(replies) - 1) + [["close"]]
            assert await client.rest() == b""
    assert [Saw(seen.target, seen.method, seen.body) for seen in auth.seen] == upstream_wants
    for seen, want in zip(auth.seen, upstream_wants, strict=True):
        _check_fields(seen, want)
    # a malformed body that came in pieces was on its way already: what the upstream saw of it must never look whole
    is_in_shares = how == "byte by byte" or len(case.raw) > 8192  # which are read a share at a time
    is_cut = is_in_shares and case.client[-1].code in {"bad_request", "body_too_large"}
    assert auth.faults in ([], ["request cut off"] if is_cut else [])
    auth.faults.clear()


@asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[tuple[Gateway, Upstream]]:
    async with upstream() as auth, running(folder, auth, auth) as gateway:
        for route in ROUTES:
            body = {"target_service": "auth", "target_url": auth.url, **route}
            assert (await ask(gateway.port, "POST", "/api/v1/gateway/routes", bearer=ADMIN, body=body)).status == 201
        yield gateway, auth


@pytest.mark.parametrize("how", ["whole", "byte by byte", "with a tail"])
def test_every_case(tmp_path: Path, how: str) -> None:
    """One gateway for the whole table: what one case leaves behind would spoil the next."""

    async def run() -> list[str]:
        failures = []
        async with _gateway(tmp_path) as (gateway, auth):
            for case in CASES:
                try:
                    await asyncio.wait_for(_run_case(case, how, gateway, auth), 10)
                except (AssertionError, EOFError, TimeoutError, ValueError) as error:
                    failures.append(f"{case.name} ({case.rule.section} {case.rule.level}): {error!r}")
                    auth.faults.clear()
            await asyncio.sleep(0.05)
            assert gateway.state()["in_flight"] == 0
            assert gateway.breakers.status("auth", 0.0)["failure_count"] == 0
        return failures

    failures = asyncio.run(run())
    assert not failures, "\n".join(failures)
