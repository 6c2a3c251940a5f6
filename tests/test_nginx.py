"""A real peer on both sides: Debian's nginx as the upstream, and as the proxy in front."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import random
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engadi_gateway import Gateway
from tests.fakes import Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, ask_on, json_of, running, settings_for

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")

README = Path(__file__).parent.parent / "README.md"
LOCAL = ipaddress.ip_network("127.0.0.1/32")
_CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def nginx(folder: Path, server: str) -> AsyncIterator[int]:
    port = _free_port()
    assert NGINX is not None
    path = folder / "nginx.conf"
    path.write_text(_CONFIGURATION.format(folder=folder, port=port, server=server))
    process = subprocess.Popen([NGINX, "-c", str(path), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(250):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except ConnectionError:
                await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


def test_files_of_nginx_arrive_as_they_are(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(20 << 20)
    (tmp_path / "api/v1/auth").mkdir(parents=True)
    (tmp_path / "api/v1/auth/big").write_bytes(content)
    (tmp_path / "api/v1/auth/small").write_text("hello")

    async def run() -> None:
        async with nginx(tmp_path, f"root {tmp_path};") as port:
            (tmp_path / "db").mkdir()
            settings = settings_for(tmp_path / "db", {"auth": f"http://127.0.0.1:{port}"})
            async with Gateway(settings) as gateway, raw_client(gateway.port) as client:
                small = await ask_on(client, "GET", "/api/v1/auth/small")
                assert (small.status, small.body, small.one("server").split("/")[0]) == (200, b"hello", "nginx")
                head = await ask_on(client, "HEAD", "/api/v1/auth/small")
                assert (head.one("content-length"), head.body) == ("5", b"")
                etag = small.one("etag")
                unchanged = await ask_on(client, "GET", "/api/v1/auth/small", headers={"If-None-Match": etag})
                assert (unchanged.status, unchanged.body) == (304, b"")
                part = await ask_on(client, "GET", "/api/v1/auth/small", headers={"Range": "bytes=1-3"})
                assert (part.status, part.body, part.one("content-range")) == (206, b"ell", "bytes 1-3/5")
                assert (await ask_on(client, "GET", "/api/v1/auth/none")).status == 404
                assert (await ask_on(client, "POST", "/api/v1/auth/small", body=b"x" * 100_000)).status == 405
                big = await ask_on(client, "GET", "/api/v1/auth/big")
                assert hashlib.sha256(big.body).digest() == hashlib.sha256(content).digest()
                (pool,) = gateway.state()["pools"].values()
                assert (pool["active"], pool["idle"]) == (0, 1)

    asyncio.run(run())


def test_nginx_in_front_says_whom_it_speaks_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, server_trusted_proxies=(LOCAL,)) as gateway:
            server = (
                f"location / {{ proxy_pass http://127.0.0.1:{gateway.port}; proxy_http_version 1.1;"
                " proxy_set_header X-Forwarded-For 203.0.113.9; proxy_set_header X-Forwarded-Proto https;"
                " proxy_set_header Host $host; }"
            )
            async with nginx(tmp_path, server) as port:
                assert (await ask(port, "PUT", "/api/v1/auth/x", body=b"abc")).status == 200
            seen = auth.seen[0]
            assert (seen.body, seen.one("x-real-ip"), seen.one("x-forwarded-proto")) == (b"abc", "203.0.113.9", "https")
            rows = json_of(await ask(gateway.port, "GET", "/api/v1/gateway/logs", bearer=ADMIN))["items"]
            assert rows[-1]["client_ip"] == "203.0.113.9"

    asyncio.run(run())


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_what_the_readme_tells_nginx_lets_no_cut_reply_look_whole(tmp_path: Path, version: str) -> None:
    """Over a unix socket; with HTTP/1.0 it would, for there is nothing by which to tell."""
    shown = re.search(r"```nginx\n(.*?)```", README.read_text(), re.DOTALL)
    assert shown is not None
    example = shown[1].replace("/run/engadi-gateway/gateway.sock", str(tmp_path / "s"))
    assert "proxy_http_version 1.1;" in example

    async def cut_short(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        wire.close()

    async def run() -> None:
        values = {"server_unix_socket": str(tmp_path / "s"), "server_trusted_proxies": (LOCAL,)}
        async with upstream(cut_short) as auth, running(tmp_path, auth, **values):
            server = example.replace("proxy_http_version 1.1", f"proxy_http_version {version}")
            async with nginx(tmp_path, server) as port:
                reply = await ask(port, "GET", "/api/v1/auth/x", headers={"X-Forwarded-For": "203.0.113.9"})
            assert (reply.status, reply.is_whole) == (200, version == "1.0")
            seen = auth.seen[0]
            assert (seen.one("x-forwarded-host"), seen.one("x-forwarded-proto")) == ("gateway.test", "http")
            assert seen.one("x-forwarded-port") == str(port)
            assert seen.one("x-forwarded-for") == "203.0.113.9, 127.0.0.1, 127.0.0.1"

    asyncio.run(run())
