"""One GET over real sockets: what is sent, what is read, and every way in which a peer can fail us."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from unittest import mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engadi_gateway.net.fetch import Fetcher, FetchError, FetchReply
from engadi_gateway.wire.chunked import ChunkedDecoder

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def no_tls() -> ssl.SSLContext:
    raise AssertionError("plain http needs no TLS")


@asynccontextmanager
async def origin(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server whose handler gets the raw streams after the request's head was read; yields its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sends(*pieces: bytes, received: list[bytes] | None = None) -> Handler:
    """Read a head, send the pieces each in a write of its own, close."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if received is not None:
            received.append(head)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    return handle


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def then_hangs(data: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await asyncio.Event().wait()

    return handle


def fetched(handler: Handler, path: str = "/x", max_bytes: int = 1000, timeout_s: float = 5.0) -> FetchReply:
    async def run() -> FetchReply:
        async with origin(handler) as port:
            return await Fetcher(no_tls)(f"http://127.0.0.1:{port}{path}", [(b"Accept", b"*/*")], timeout_s, max_bytes)

    return asyncio.run(run())


def test_what_is_sent() -> None:
    received: list[bytes] = []
    fetched(sends(b"HTTP/1.1 204 No Content\r\n\r\n", received=received), "/a/b?c=d")
    head = received[0]
    port = head.partition(b"Host: 127.0.0.1:")[2].partition(b"\r\n")[0]
    assert head == (
        b"GET /a/b?c=d HTTP/1.1\r\nHost: 127.0.0.1:" + port + b"\r\nAccept: */*\r\nConnection: close\r\n"
        b"User-Agent: engadi\r\n\r\n"
    )


REPLIES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", FetchReply(200, b"hello")),
    "length, bytes after it": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello", FetchReply(200, b"he")),
    "length 0": (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", FetchReply(503, b"")),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: v\r\n\r\n",
        FetchReply(200, b"hello"),
    ),
    "until the end": (b"HTTP/1.0 200 OK\r\n\r\nhello", FetchReply(200, b"hello")),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", FetchReply(204, b"")),
    "interim first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        FetchReply(200, b"ok"),
    ),
    "a redirect is an answer": (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        FetchReply(302, b""),
    ),
}


@pytest.mark.parametrize(("raw", "want"), REPLIES.values(), ids=REPLIES.keys())
def test_replies(raw: bytes, want: FetchReply) -> None:
    assert fetched(sends(raw)) == want
    assert fetched(sends(*(raw[i : i + 1] for i in range(len(raw))))) == want


BODY_OF_6 = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nabcdef",
}


@pytest.mark.parametrize("raw", BODY_OF_6.values(), ids=BODY_OF_6.keys())
@pytest.mark.parametrize(
    ("max_bytes", "want"),
    [(5, FetchReply(200, b"abcde", False)), (6, FetchReply(200, b"abcdef")), (0, FetchReply(200, b"", False))],
)
def test_the_body_is_bounded(raw: bytes, max_bytes: int, want: FetchReply) -> None:
    assert fetched(sends(raw), max_bytes=max_bytes) == want


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n", id="chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="until the end"),
    ],
)
def test_an_endless_body_is_not_read_to_its_end(start: bytes) -> None:
    assert fetched(then_hangs(start + b"x" * 2000)) == FetchReply(200, b"x" * 1000, False)


def test_a_body_of_small_chunks_is_read_in_turns_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks: list[int] = []

    class Counting(ChunkedDecoder):
        def feed(self, data: bytes, most_steps: int = sys.maxsize) -> tuple[bytes, bytes]:
            before = self.chunks
            fed = super().feed(data, most_steps)
            chunks.append(self.chunks - before)
            return fed

    monkeypatch.setattr("engadi_gateway.net.fetch.ChunkedDecoder", Counting)
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n"
    assert fetched(sends(raw), max_bytes=5000) == FetchReply(200, b"x" * 5000)
    assert sum(chunks) == 5001
    assert max(chunks) <= 65


FAILURES: dict[str, tuple[Handler, str]] = {
    "no HTTP": (sends(b"SSH-2.0-x\r\n\r\n"), "invalid reply: malformed head"),
    "bad length": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "invalid reply: bad length"),
    "bad chunk": (
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        "invalid reply: bad chunk size",
    ),
    "nothing": (sends(), "closed before the whole reply"),
    "half a head": (sends(b"HTTP/1.1 200 OK\r\nContent-"), "closed before the whole reply"),
    "half a body": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), "closed before the whole reply"),
    "half a chunked body": (
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        "closed before the whole reply",
    ),
    "silence": (hangs, "timeout"),
    "half a head and silence": (then_hangs(b"HTTP/1.1 200 OK\r\n"), "timeout"),
    "half a body and silence": (then_hangs(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), "timeout"),
    "interim for ever": (then_hangs(b"HTTP/1.1 102 P\r\n\r\n" * 50), "timeout"),
}


@pytest.mark.parametrize(("handler", "want"), FAILURES.values(), ids=FAILURES.keys())
def test_failures(handler: Handler, want: str) -> None:
    with pytest.raises(FetchError) as caught:
        fetched(handler, timeout_s=0.2)
    assert str(caught.value) == want


def test_a_head_without_end_is_not_kept() -> None:
    with pytest.raises(FetchError, match=r"^invalid reply: "):
        fetched(then_hangs(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 30_000))


def test_nobody_listens() -> None:
    async def run() -> None:
        async with origin(hangs) as port:
            pass
        await Fetcher(no_tls)(f"http://127.0.0.1:{port}/", [], 5.0, 10)

    with pytest.raises(FetchError, match=r"^connect_refused$"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "want"),
    [("http://name.invalid/", "dns_error"), (f"http://{'x' * 64}.example/", "no usable URL")],
    ids=["no such name", "no name at all"],
)
def test_urls_that_lead_nowhere_are_no_other_error(url: str, want: str) -> None:
    with pytest.raises(FetchError) as caught:
        asyncio.run(Fetcher(no_tls)(url, [], 5.0, 10))
    assert str(caught.value) == want


def test_the_next_address_is_tried_where_one_refuses() -> None:
    rows = [(0, 0, 0, "", (address, 80)) for address in ("127.0.0.2", "127.0.0.1")]

    async def run() -> FetchReply:
        async with origin(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as port:
            with mock.patch.object(socket, "getaddrinfo", return_value=rows):
                return await Fetcher(no_tls)(f"http://two.test:{port}/", [], 5.0, 10)

    assert asyncio.run(run()).status == 200


def test_names_are_remembered_for_as_long_as_was_said_last() -> None:
    async def run() -> None:
        fetch = Fetcher(no_tls, 30.0)
        async with origin(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as port:
            rows = [(0, 0, 0, "", ("127.0.0.1", port))]
            with mock.patch.object(socket, "getaddrinfo", return_value=rows) as look_up:
                for _ in range(2):
                    await fetch(f"http://one.test:{port}/", [], 5.0, 10)
                assert look_up.call_count == 1
                fetch.renew(0.0)
                for _ in range(2):
                    await fetch(f"http://two.test:{port}/", [], 5.0, 10)
                assert look_up.call_count == 3

    asyncio.run(run())


def test_a_path_that_cannot_be_sent_is_no_other_error() -> None:
    with pytest.raises(FetchError, match=r"^no usable URL$"):
        fetched(sends(b"HTTP/1.1 204 No Content\r\n\r\n"), "/\u00fc")


def test_cancelling_it_closes_the_connection() -> None:
    async def run() -> bytes:
        gone: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        arrived = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            arrived.set()
            gone.set_result(await reader.read())

        async with origin(handle) as port:
            task = asyncio.create_task(Fetcher(no_tls)(f"http://127.0.0.1:{port}/", [], 5.0, 10))
            await arrived.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            return await asyncio.wait_for(gone, 5)

    assert asyncio.run(run()) == b""


# TLS


class Certificate:
    """A self-signed one for 127.0.0.1, in a file of its own."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.path = folder / f"{host}.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        made = (
            builder.not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + made.public_bytes(serialization.Encoding.PEM)
        )

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        return context


def _general_name(host: str) -> x509.GeneralName:

    return x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)


def over_tls(handler: Handler, shown: Certificate, trusted: Certificate | None) -> FetchReply:
    async def run() -> FetchReply:
        fetch = Fetcher(lambda: ssl.create_default_context(cafile=None if trusted is None else str(trusted.path)))
        async with origin(handler, shown.server()) as port:
            return await fetch(f"https://127.0.0.1:{port}/", [], 5.0, 100)

    return asyncio.run(run())


def test_tls_to_a_trusted_origin(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    assert over_tls(sends(raw), certificate, certificate) == FetchReply(200, b"ok")


def test_a_peer_that_never_says_goodbye_delays_nothing(tmp_path: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        cast(asyncio.Transport, writer.transport).pause_reading()  # so that our close_notify is never answered
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await asyncio.Event().wait()

    certificate = Certificate(tmp_path)
    assert over_tls(deaf, certificate, certificate) == FetchReply(200, b"ok")  # and not FetchError("timeout")


@pytest.mark.parametrize("case", ["nobody vouches", "another name"])
def test_tls_is_verified(tmp_path: Path, case: str) -> None:
    shown = Certificate(tmp_path, "127.0.0.1" if case == "nobody vouches" else "other.example")
    with pytest.raises(FetchError, match=r"^tls_certificate$"):
        over_tls(sends(b"HTTP/1.1 204 x\r\n\r\n"), shown, None if case == "nobody vouches" else shown)
