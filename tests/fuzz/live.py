"""The part of the fuzz that runs a gateway: many clients at once, pipelines of good and bent requests, an upstream that
answers in every way there is, well and badly, over few connections, so that all wait for each other's.

Every request carries a mark, and so does its answer. What must hold, whatever is sent:

- the n-th answer on a connection belongs to the n-th request that the bytes hold;
- nobody gets bytes that an upstream sent beyond a reply;
- in what the upstream received, h11 as a strict server finds exactly the requests that were logged as sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from engadi_gateway.model import RequestHead
from engadi_gateway.wire.request import HeadLimits
from tests.fakes import RawClient, Reply, Seen, Upstream, Wire, raw_client
from tests.fuzz import grammar
from tests.fuzz.oracle import MARK, Asked, Intake, requests_by_h11
from tests.harness import running, token

_CLIENTS = 8
_MAX_BODY_BYTES = 4096
_PATIENCE_S = 30.0
#: What the gateway reads at once: a reply of just this size leaves what follows it in the socket.
_READ_BYTES = 65536
EVIL = b"HTTP/1.1 200 OK\r\nX-Mark: evil\r\nContent-Length: 4\r\n\r\nevil"


@dataclass
class Tally:
    """What was done, and what was wrong."""

    requests: int = 0
    answers: int = 0
    sent_up: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def answer_of(seen: Seen) -> bytes:
    """What stands in the body of the answer to a request: nobody else's answer has it."""
    digest = hashlib.sha256(seen.body).hexdigest()[:16]
    return f"{seen.method} {seen.target} {','.join(seen.all(MARK))} {digest}".encode("latin-1")


async def play(seen: Seen, wire: Wire) -> None:
    """Answer as the path says."""
    text = answer_of(seen)
    marks = "".join(f"X-Mark: {mark}\r\n" for mark in seen.all(MARK)).encode("latin-1")
    start = b"HTTP/1.1 200 OK\r\n" + marks
    body = b"" if seen.method == "HEAD" else text
    whole = start + b"Content-Length: %d\r\n\r\n%b" % (len(text), body)
    kind = seen.target.rpartition("/")[0].rpartition("/")[2].partition("?")[0]
    if kind == "chunked":
        chunks = b"" if seen.method == "HEAD" else b"%x;a=b\r\n%b\r\n0\r\nT: u\r\n\r\n" % (len(text), text)
        await wire.send(start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    elif kind == "empty":
        await wire.send(b"HTTP/1.1 204 x\r\n" + marks + b"\r\n")
    elif kind == "interim":
        await wire.send(b"HTTP/1.1 103 x\r\n\r\n" + whole)
    elif kind in {"eof", "close"}:
        await wire.send(
            start
            + (b"\r\n" if kind == "eof" else b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(text))
            + body
        )
        wire.close()
    elif kind == "brim" and seen.method != "HEAD":
        length = _READ_BYTES - len(start) - len(b"Content-Length: 65000\r\n\r\n")
        await wire.send(start + b"Content-Length: %d\r\n\r\n%b" % (length, text.ljust(length)) + EVIL)
    elif kind == "stray":
        await wire.send(whole + EVIL)
    elif kind == "late":
        if not await wire.is_asked_again_after(whole):  # else nobody could tell it from an answer
            await wire.send(EVIL)
    elif kind == "short" and seen.method != "HEAD":
        await wire.send(whole[:-1])
        wire.close()
    elif kind == "reset":
        wire.reset()
    else:
        await wire.send(whole)


class World:
    """A gateway with its upstream for a while; `orderly` upstreams close nothing, so that all can be counted."""

    def __init__(self, folder: Path, rng: Random, tally: Tally) -> None:
        self._folder = folder
        self._rng = rng
        self._tally = tally
        self.is_orderly = rng.random() < 0.5
        self._rows = 0
        self._token = token()
        self._number = 0

    async def run(self, rounds: int) -> None:
        settings: dict[str, Any] = {
            "upstream_max_connections": self._rng.choice((1, 2, 8)),
            "upstream_retry_count": 0,
            "breaker_enabled": False,
            "server_max_body_bytes": _MAX_BODY_BYTES,
            "server_keep_alive_requests": 0,
        }
        upstream = Upstream(play)
        await upstream.start()
        async with running(self._folder, upstream, upstream, **settings) as gateway:
            for _ in range(rounds):
                clients = [self._client(gateway.port, Random(self._rng.random())) for _ in range(_CLIENTS)]
                await asyncio.gather(*clients)
                if self._tally.wrong:
                    break
        await upstream.stop()
        self.count(upstream)

    async def _client(self, port: int, rng: Random) -> None:
        """One connection: what it sends, in the reads that chance makes of it, and what it gets."""
        self._number += 1
        marks = [f"c{self._number}r{number}" for number in range(rng.randint(1, 6))]
        raw = grammar.stream(rng, marks, grammar.ORDERLY if self.is_orderly else grammar.KINDS, self._token)
        intake = Intake(HeadLimits(), _MAX_BODY_BYTES)
        intake.feed(raw)
        try:
            async with raw_client(port) as client, asyncio.timeout(_PATIENCE_S):
                sending = asyncio.create_task(self._send(client, raw, grammar.cuts(rng, len(raw))))
                await self._answers(client, intake, raw)
                await sending
        except TimeoutError:
            self._tally.wrong.append(f"no end of {raw!r}")

    @staticmethod
    async def _send(client: RawClient, raw: bytes, cuts: list[int]) -> None:
        with contextlib.suppress(ConnectionError):
            for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
                await client.send(raw[start:end])
                await asyncio.sleep(0)

    async def _answers(self, client: RawClient, intake: Intake, raw: bytes) -> None:
        """In the order of the heads; whatever ends the connection ends them."""
        expected = len(intake.heads) - intake.is_in_body + (intake.refusal is not None)
        for number in range(expected):
            head = intake.heads[number] if number < len(intake.heads) else None
            method = head.method if head is not None else "HEAD" if raw.rfind(b"HEAD ") >= 0 else "GET"
            try:
                reply = await client.reply(method)
            except EOFError:
                if head is not None and self.is_orderly:
                    self._tally.wrong.append(f"answer {number} of {expected} did not come: {raw!r}")
                return
            self.check(reply, head, number, intake, raw)
            if not reply.is_whole or "close" in reply.all("connection"):
                return

    def check(self, reply: Reply, head: RequestHead | None, number: int, intake: Intake, raw: bytes) -> None:
        self._tally.answers += 1
        self._tally.statuses[reply.status] += 1
        marks = reply.all(MARK)
        if head is None:
            is_right = reply.status >= 400 and not marks
        elif not marks and (reply.status >= 400 or reply.status == 204):
            is_right = True  # the gateway's own, or the upstream's to a request whose mark was bent away
        else:
            lines = [line.partition(": ") for line in head.fields.decode("latin-1").split("\r\n")]
            sent = [value for name, _, value in lines if name.lower() == MARK]
            text = self._text(head, sent, intake.bodies[number])
            body = reply.body.rstrip(b" ") if head.method != "HEAD" and reply.status == 200 else text
            is_right = marks == sent and (body == text or (not reply.is_whole and text.startswith(body)))
        if not is_right:
            self._tally.wrong.append(f"answer {number} is {reply.status} {marks} {reply.body[:80]!r} to {raw!r}")

    @staticmethod
    def _text(head: RequestHead, marks: list[str], body: bytes) -> bytes:
        target = head.target.decode("latin-1")
        headers = [(MARK, mark) for mark in marks]
        return answer_of(Seen(head.method, target, headers, body, b"", 0))

    def count(self, upstream: Upstream) -> None:
        """What h11 finds in the upstream's bytes is what was logged as sent, no more and no less."""
        asked: list[Asked] = []
        for raw in upstream.raw:
            found, is_refused = requests_by_h11(bytes(raw))
            asked += found
            if is_refused:
                self._tally.wrong.append(f"a strict server refuses {bytes(raw)!r}")
        self._tally.sent_up += len(asked)
        seen = Counter((one.method, one.target.partition("?")[0]) for one in asked)
        logged = self.logged()
        self._tally.requests += self._rows
        missing, unknown = logged - seen, seen - logged
        if unknown or (missing and self.is_orderly):
            self._tally.wrong.append(f"the upstream saw {dict(unknown)} more and {dict(missing)} less than was logged")

    def logged(self) -> Counter[tuple[str, str]]:
        (path,) = self._folder.glob("*-log.db")
        with contextlib.closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT method, path, attempts FROM gateway_log").fetchall()
        self._rows = len(rows)
        counts: Counter[tuple[str, str]] = Counter()
        for method, target, attempts in rows:
            counts[method, target] += attempts
        return counts
