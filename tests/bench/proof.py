"""Asks a peer what it claims to do: a forged token, a foreign origin, a log that grows, limits that end.

A benchmark of duties that are configured but not carried out would flatter somebody.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import Duty, Peer, Place
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


#: The limits take a process of their own (`limit_fault`), the breaker an upstream that fails: neither is seen from here.
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
