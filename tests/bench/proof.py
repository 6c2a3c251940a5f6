"""Asks a peer what it claims to do: a forged token, a foreign origin, a log that grows, limits that end.

A benchmark of duties that are configured but not carried out would flatter somebody.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.bench.peers import Duty, Peer, Place, free_port
from tests.bench.requests import ORIGIN, token
from tests.bench.upstream import REPLY_BYTES, body_of

_MARK = b"proof"
_PATH = f"/api/v1/content/r00000/0?id={_MARK.decode()}"
_LOG_S = 5.0
_TRIES = 60


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_good(self) -> bool:
        return self.status == 200 and self.body == body_of(_MARK, REPLY_BYTES)


def ask(port: int, bearer: bytes = token(0), origin: str = ORIGIN) -> Answer:
    """One request on a connection of its own. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Origin": origin, "Host": "bench.test"}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer.decode()}"
    try:
        connection.request("GET", _PATH, headers=headers)
        reply = connection.getresponse()
        fields = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, fields, reply.read())
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from None
    finally:
        connection.close()


def _jwt(place: Place) -> str:
    for what, bearer in (("no token", b""), ("a forged one", token(0, "another key, also of more than 32 bytes"))):
        status = ask(place.port, bearer).status
        if status != 401:
            return f"{what} gives {status} and not 401"
    return ""


def _cors(place: Place) -> str:
    allowed = ask(place.port).headers.get("access-control-allow-origin")
    foreign = ask(place.port, origin="https://evil.test").headers.get("access-control-allow-origin", "")
    if allowed != ORIGIN:
        return f"the allowed origin gets {allowed}"
    return f"a foreign origin gets {foreign}" if foreign in {"*", "https://evil.test"} else ""


def _log(place: Place) -> str:
    """Whether anything in its folder grows when it is asked."""
    before, deadline = _size(place.folder), time.monotonic() + _LOG_S
    while time.monotonic() < deadline:
        for _ in range(50):
            ask(place.port)
        time.sleep(0.3)
        if _size(place.folder) > before:
            return ""
    return "no log grows"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


#: Limits and breaker take a process of their own: `limit_fault`, `breaker_fault`.
_PROOFS: dict[Duty, Callable[[Place], str]] = {Duty.JWT: _jwt, Duty.CORS: _cors, Duty.LOG: _log}


def faults_of(peer: Peer, place: Place) -> list[str]:
    """What a peer in its full form does not do though it claims to."""
    found = []
    for duty in peer.duties:
        proof = _PROOFS.get(duty)
        if proof is not None and (fault := proof(place)):
            found.append(f"{duty}: {fault}")
    return found


def limit_fault(port: int) -> str:
    """Of a peer whose limits are one request a second: whether they end what one client asks."""
    for _ in range(_TRIES):
        if ask(port).status == 429:
            return ""
    return f"{Duty.LIMITS}: {_TRIES} requests passed where one a second may"


class Failing(ThreadingHTTPServer):
    """An upstream that answers 503 to everything, and counts."""

    daemon_threads = True
    asked = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Failing)
        self.server.asked += 1
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@contextmanager
def failing_upstream() -> Iterator[Failing]:
    server = Failing(("127.0.0.1", free_port()), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def breaker_fault(port: int, upstream: Failing) -> str:
    """Of a peer before an upstream that fails: whether it stops asking it."""
    for _ in range(_TRIES):
        ask(port)
    before = upstream.asked
    for _ in range(_TRIES):
        ask(port)
    went = upstream.asked - before
    return (
        f"{Duty.BREAKER}: {went} of {_TRIES} requests still went to an upstream that fails"
        if went > _TRIES // 4
        else ""
    )
