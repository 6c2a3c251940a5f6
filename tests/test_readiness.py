"""`run.py health`: 0 from a gateway that is ready, over whatever it listens on, and 1 from all else."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path

import pytest

from engadi_gateway import Settings
from engadi_gateway.cli.readiness import why_not_ready
from tests.certificates import certify
from tests.harness import SECRET
from tests.processes import PYTHON, ROOT, environment_of, free_port, started


async def health(folder: Path, port: int) -> tuple[int, str, str]:
    """Asked in the gateway's folder with its environment, as a container's check would."""
    done = await asyncio.to_thread(
        subprocess.run, [PYTHON, str(ROOT / "run.py"), "health"], cwd=folder, env=environment_of(PORT=str(port)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


LISTENING = {
    "an address": "host = 127.0.0.1\n",
    "every address": "host = 0.0.0.0\n",
    "every address of IPv6": "host = ::\n",
    "TLS": "host = localhost\ntls_certificate = cert.pem\ntls_key = key.pem\n",
    "a unix socket": "host =\nunix_socket = gw.sock\n",
    "TLS over a unix socket": "host =\nunix_socket = gw.sock\ntls_certificate = cert.pem\ntls_key = key.pem\n",
}


@pytest.mark.parametrize("name", LISTENING)
def test_who_is_ready_says_so_until_it_drains_and_after_that_nobody_does(tmp_path: Path, name: str) -> None:
    certify(tmp_path, "somebody.else.test", days=-1)
    ini = f"[server]\n{LISTENING[name]}[gateway]\ndrain_delay = 60s\n[health]\ninterval = 0\n"

    async def run() -> None:
        async with started(tmp_path, ini) as gateway:
            assert await health(tmp_path, gateway.port) == (0, "ready\n", "")
            gateway.signal(signal.SIGTERM)
            await gateway.wait_for("draining")
            code, _, said = await health(tmp_path, gateway.port)
            assert (code, said.endswith(" says 503\n")) == (1, True), said
            gateway.signal(signal.SIGQUIT)
            assert await gateway.code() == 0
        code, _, said = await health(tmp_path, gateway.port)
        assert (code, said.startswith("not ready: ")) == (1, True), said

    asyncio.run(run())


def test_a_slip_that_a_reload_refuses_makes_nobody_unready(tmp_path: Path) -> None:
    """Or a typing error, harmless so far, would have a container's host end a gateway that serves."""

    async def run() -> None:
        ini = f"[server]\n{LISTENING['an address']}[health]\ninterval = 0\n"
        async with started(tmp_path, ini) as gateway:
            (tmp_path / "gateway.ini").write_text(f"{ini}[nosuch]\nport = x\n")
            assert await health(tmp_path, gateway.port) == (0, "ready\n", "")
            (tmp_path / "gateway.ini").write_text(ini.replace("127.0.0.1", "256.0.0.1:x"))
            code, _, said = await health(tmp_path, gateway.port)
            assert (code, said.startswith("server.host: ")) == (78, True), said

    asyncio.run(run())


@pytest.mark.parametrize("answer", [b"", b"220 mail\r\n", None], ids=["nothing", "another protocol", "silence"])
def test_who_is_no_gateway_is_not_ready(monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    monkeypatch.setattr("engadi_gateway.cli.readiness._TIMEOUT_S", 0.1)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            await reader.read()
        else:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = Settings.of(server_host="127.0.0.1", server_port=port, jwt_secret_key=SECRET)
            assert (await asyncio.to_thread(why_not_ready, settings)).startswith(f"127.0.0.1 port {port}")

    asyncio.run(run())


def test_a_port_that_nobody_can_know_is_said() -> None:
    assert why_not_ready(Settings.of(server_port=0, jwt_secret_key=SECRET)).startswith("server.port is 0: ")
    unix = Settings.of(server_host="", server_unix_socket=f"/nowhere/{free_port()}", jwt_secret_key=SECRET)
    assert why_not_ready(unix).endswith("No such file or directory")
