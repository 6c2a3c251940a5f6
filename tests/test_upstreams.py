"""Towards upstreams: verified TLS, the retry budget, names, idle connections, nothing left behind; the log's lines."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engadi_gateway import Gateway
from tests.fakes import OK, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, ask_on, json_of, running, settings_for, token

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"


def _certificate(folder: Path) -> ssl.SSLContext:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "k.pem"), "-out", str(folder / "c.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "c.pem", folder / "k.pem")
    return context


@pytest.mark.parametrize(
    ("host", "is_known", "status"),
    [("localhost", True, 200), ("localhost", False, 502), ("127.0.0.1", True, 502)],
    ids=["verified", "unknown authority", "wrong name"],
)
def test_https_upstreams_are_verified(tmp_path: Path, host: str, is_known: bool, status: int) -> None:
    context = _certificate(tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "localhost", 0, ssl=context, family=2)
        port = server.sockets[0].getsockname()[1]
        ca_file = str(tmp_path / "c.pem") if is_known else ""
        settings = settings_for(tmp_path, {"auth": f"https://{host}:{port}"}, upstream_tls_ca_file=ca_file)
        async with server, Gateway(settings) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert reply.status == status
            if status != 200:
                assert json_of(reply)["code"] == "tls_error"

    asyncio.run(run())


def test_retries_are_budgeted(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        wire.close()

    async def run() -> None:
        values: dict[str, Any] = {
            "upstream_retry_count": 10,
            "upstream_retry_budget_min": 1,
            "upstream_retry_budget_percent": 0,
            "upstream_retry_backoff": 0.05,
            "breaker_enabled": False,
        }
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            asking = [ask(gateway.port, "GET", "/api/v1/auth/x") for _ in range(20)]
            assert {reply.status for reply in await asyncio.gather(*asking)} == {502}
            assert len(auth.seen) < 20 + 20, "twenty requests with ten retries each would be 220"

    asyncio.run(run())


def test_a_name_that_is_not_found_is_a_502_of_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        settings = settings_for(tmp_path, {"auth": "http://no-such-name.invalid:80"}, upstream_retry_count=0)
        async with Gateway(settings) as gateway:
            reply = await ask(gateway.port, "GET", "/api/v1/auth/x")
            assert (reply.status, json_of(reply)["code"]) in {(502, "dns_error"), (504, "dns_timeout")}
            assert reply.one("proxy-status") in {"engadi; error=dns_error", "engadi; error=dns_timeout"}

    asyncio.run(run())


def test_idle_connections_are_let_go(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, upstream_idle_timeout=0.2) as gateway:
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            assert auth.open_connections == 1
            for _ in range(100):
                if auth.open_connections == 0:
                    break
                await asyncio.sleep(0.02)
            assert auth.open_connections == 0

    asyncio.run(run())


def test_a_connection_closed_while_idle_costs_a_get_nothing(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(OK)
        wire.close()

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, upstream_retry_count=0) as gateway:
            async with raw_client(gateway.port) as client:
                for _ in range(20):
                    assert (await ask_on(client, "GET", "/api/v1/auth/x")).status == 200
            assert len(auth.seen) == 20

    asyncio.run(run())


def test_no_reply_is_ever_mixed_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """Connections are cut at random; each reply that comes must bear its request's mark, and no POST is sent twice."""
    dice = random.Random(20)
    posts: dict[str, int] = {}

    async def script(seen: Seen, wire: Wire) -> None:
        mark = seen.target.rpartition("/")[2]
        if seen.method == "POST":
            posts[mark] = posts.get(mark, 0) + 1
        body = mark.encode() * 20
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        fate = dice.random()
        if fate < 0.1:
            wire.reset()
        elif fate < 0.2:
            await wire.send(reply[: dice.randrange(len(reply))])
            wire.close()
        else:
            await wire.send(reply)
            if fate < 0.3:
                wire.close()

    async def client(port: int, number: int) -> int:
        whole = 0
        for count in range(60):
            mark = f"{number}-{count}"
            method = "POST" if count % 3 == 0 else "GET"
            try:
                reply = await ask(port, method, f"/api/v1/auth/{mark}", body=b"x" if method == "POST" else None)
            except EOFError:
                continue
            if reply.status == 200 and reply.is_whole:
                assert reply.body == mark.encode() * 20
                whole += 1
            elif reply.status == 200:
                assert (mark.encode() * 20).startswith(reply.body)
        return whole

    async def run() -> None:
        async with upstream(script) as auth, running(tmp_path, auth, breaker_enabled=False) as gateway:
            counts = await asyncio.gather(*(client(gateway.port, number) for number in range(16)))
            assert sum(counts) > 400
            assert set(posts.values()) == {1}
            await asyncio.sleep(0.1)
            state = gateway.state()
            assert (state["in_flight"], gateway._context.budget.retrying) == (0, 0)
            (pool,) = state["pools"].values()
            assert (pool["active"], pool["waiting"], pool["dialling"]) == (0, 0, 0)
            assert auth.faults == [] or set(auth.faults) == {"request cut off"}

    asyncio.run(run())


def test_half_open_permits_come_back_when_the_client_leaves(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        if seen.target.endswith("fail"):
            await wire.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
        elif seen.target.endswith("hang"):
            await wire.reader.read(1)
        else:
            await wire.send(OK)

    async def run() -> None:
        values = {"breaker_failure_threshold": 1, "breaker_success_threshold": 1, "breaker_timeout": 0.1}
        async with upstream(script) as auth, running(tmp_path, auth, **values) as gateway:
            await ask(gateway.port, "GET", "/api/v1/auth/fail")
            await asyncio.sleep(0.15)
            async with raw_client(gateway.port) as client:
                await client.send(GET.replace(b"/x", b"/hang"))
                while len(auth.seen) < 2:
                    await asyncio.sleep(0.005)
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 503, "one probe at a time"
            await asyncio.sleep(0.05)
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


def test_access_lines_on_stdout_without_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, log_access="json") as gateway:
            headers = {"User-Agent": 'evil" \\ agent', "Referer": "http://r/?token=hidden", "Cookie": "hidden=1"}
            await ask(gateway.port, "GET", "/api/v1/auth/x?token=hidden&a=b", headers=headers, bearer="hidden")

    asyncio.run(run())
    out = capsys.readouterr().out
    assert "hidden" not in out
    (line,) = [json.loads(text) for text in out.splitlines()]
    assert (line["status"], line["path"], line["client_ip"]) == (200, "/api/v1/auth/x?token=***&a=b", "127.0.0.1")


def test_the_database_log_keeps_no_query_and_no_token(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, auth) as gateway:
            secret = token("alice")
            head, payload, signature = secret.split(".")
            await ask(gateway.port, "GET", "/api/v1/content/x?password=hidden", bearer=secret)
            await ask(gateway.port, "GET", "/api/v1/content/x", bearer=f"{head}.{payload}.{'A' * len(signature)}")
            await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN)
            path = gateway.settings.log_path
        data = b"".join(Path(f"{path}{suffix}").read_bytes() for suffix in ("",))
        assert b"hidden" not in data
        assert secret.encode()[:60] not in data
        assert b"auth_invalid.bad_signature" in data

    asyncio.run(run())


def test_two_processes_can_share_a_port_when_asked_to(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            for name in ("a", "b"):
                (tmp_path / name).mkdir()
            first = Gateway(settings_for(tmp_path / "a", {"auth": auth.url}, server_reuse_port=True))
            async with first:
                values = {"server_reuse_port": True, "server_port": first.port}
                second = Gateway(settings_for(tmp_path / "b", {"auth": auth.url}, **values))
                async with second:
                    assert first.port == second.port
                    for _ in range(8):
                        assert (await ask(first.port, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())
