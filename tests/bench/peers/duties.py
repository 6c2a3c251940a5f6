"""The duties of the gateways that one would write by hand in Python, in the cheapest way that is still right.

Tokens by PyJWT, remembered in a dict; four token buckets; a log of a row a request in sqlite, in batches, by a thread.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time

import jwt

_BATCH = 500
_WAIT_S = 0.25
_MOST_TOKENS = 10_000


class Tokens:
    """Bearer tokens; `user` gives the subject, or "" for a token that is none."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._known: dict[str, tuple[str, float]] = {}

    def user(self, authorization: str) -> str:
        known = self._known.get(authorization)
        if known is not None and known[1] > time.time():
            return known[0]
        try:
            claims = jwt.decode(
                authorization.removeprefix("Bearer "), self._secret, ["HS256"], {"require": ["exp", "sub"]}
            )
        except jwt.InvalidTokenError:
            return ""
        if len(self._known) >= _MOST_TOKENS:
            self._known.clear()
        self._known[authorization] = (claims["sub"], claims["exp"])
        return str(claims["sub"])


class Buckets:
    """Four token buckets a request: its user's, its address's, its endpoint's, everybody's."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}

    def spend(self, user: str, address: str, endpoint: str) -> bool:
        now = time.monotonic()
        rate, buckets = self._rate, self._buckets
        fills = []
        for key in (f"u:{user}", f"a:{address}", f"e:{endpoint}", "all"):
            tokens, since = buckets.get(key, (rate, now))
            tokens = min(rate, tokens + (now - since) * rate)
            if tokens < 1:
                return False
            fills.append((key, tokens - 1))
        for key, tokens in fills:
            buckets[key] = (tokens, now)
        return True


class Log:
    """A row a request: time, method, path, user, address, status, milliseconds."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[object, ...]] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def add(self, method: str, path: str, user: str, address: str, status: int, began: float) -> None:
        self._queue.put((time.time(), method, path, user, address, status, (time.perf_counter() - began) * 1000))

    def _write(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(
            "CREATE TABLE log (at REAL, method TEXT, path TEXT, user TEXT, ip TEXT, status INT, ms REAL)"
        )
        while True:
            rows = [self._queue.get()]
            until = time.monotonic() + _WAIT_S
            while len(rows) < _BATCH and (left := until - time.monotonic()) > 0:
                try:
                    rows.append(self._queue.get(timeout=left))
                except queue.Empty:
                    break
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
