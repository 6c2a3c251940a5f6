"""Opening a connection to an upstream: its name, its addresses one after the other, TLS, and what may go wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from engadi_gateway.errors import Reason
from engadi_gateway.net.blame import Failure
from engadi_gateway.net.origin import Origin
from engadi_gateway.net.resolver import Resolver
from engadi_gateway.net.sockets import EXHAUSTED
from engadi_gateway.net.upstream import UpstreamConnection


@dataclass(frozen=True, slots=True)
class Dial:
    """How to connect to a target: what it trusts (None: plain), and what is to speak on the connection."""

    origin: Origin
    tls: ssl.SSLContext | None
    make: Callable[[], UpstreamConnection]

    async def connect(self, resolver: Resolver, timeout_s: float) -> UpstreamConnection:
        """Look up and connect, within one time for both; raises what `dial_failure` has a row for."""
        stage = Reason.DNS_TIMEOUT
        try:
            ends_at = asyncio.get_running_loop().time() + timeout_s
            async with asyncio.timeout_at(ends_at):
                addresses = await resolver.resolve(self.origin.host, self.origin.port)
                stage = Reason.CONNECT_TIMEOUT
                return await self._try_all(addresses, ends_at)
        except TimeoutError:
            raise DialTimeoutError(stage) from None

    async def _try_all(self, addresses: list[str], ends_at: float) -> UpstreamConnection:
        """Each address has its share of the time that is left: one that is silent must not use up all."""
        clock = asyncio.get_running_loop().time
        error: Exception = OSError("no address")
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                async with asyncio.timeout((ends_at - clock()) / left):
                    return await self._try_one(address)
            except OSError as failure:  # a TimeoutError is one
                error = failure
        raise error

    async def _try_one(self, address: str) -> UpstreamConnection:
        loop, tls = asyncio.get_running_loop(), self.tls
        _, connection = await loop.create_connection(
            self.make,
            address,
            self.origin.port,
            ssl=tls,
            server_hostname=self.origin.host if tls else None,
        )
        connection.tls = tls
        if tls is not None:
            await self._past_the_handshake(connection)
        return connection

    @staticmethod
    async def _past_the_handshake(connection: UpstreamConnection) -> None:
        """Read what came right behind it: tickets (RFC 8446 section 4.6.1) are fine, and whatever else closes it.

        A poll could not tell them apart. Two turns: what the first one finds readable is read in the second.
        """
        try:
            for _ in range(2):
                await asyncio.sleep(0)
        except BaseException:
            connection.drop()
            raise


class DialTimeoutError(Exception):
    """Raised when a connection was not there in time; says which part took too long."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.title)
        self.reason = reason


def dial_failure(error: Exception) -> Failure:
    """The row of the table for what a dial raised, and a word on it."""
    if isinstance(error, DialTimeoutError):
        return error.reason, error.reason.title
    if isinstance(error, ssl.SSLError):
        is_certificate = isinstance(error, ssl.SSLCertVerificationError)
        reason = Reason.TLS_CERTIFICATE if is_certificate else Reason.TLS_ERROR
        said = getattr(error, "verify_message", "") or getattr(error, "reason", "") or "TLS failed"
        return reason, "it does not speak TLS" if said == "WRONG_VERSION_NUMBER" else said
    if isinstance(error, socket.gaierror | UnicodeError):  # the latter for a name that could never be one
        return Reason.DNS_ERROR, "name not found"
    if isinstance(error, OSError):
        return _socket_failure(error)
    return Reason.INTERNAL, type(error).__name__


def _socket_failure(error: OSError) -> Failure:
    if error.errno in EXHAUSTED:
        return Reason.OVERLOADED, "no file descriptor left"
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):  # who is not there, refuses
        return Reason.UPSTREAM_CLOSED, "closed while connecting (does it speak TLS?)"
    return Reason.CONNECT_REFUSED, os.strerror(error.errno) if error.errno else "not reachable"
