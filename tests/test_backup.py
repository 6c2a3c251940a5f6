"""The README's commands that save both databases and put them back, as a shell runs them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.fakes import upstream
from tests.harness import ADMIN, ask, json_of
from tests.processes import PYTHON, ROOT, Process, environment_of, ini_of, started

BASE = "/api/v1/gateway"
SAVE, PUT_BACK = re.findall(r"```sh\n(# (?:save|put back), .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def shell(folder: Path, script: str) -> None:
    done = run(folder, script)
    assert (done.returncode, done.stderr) == (0, ""), done


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """With this Python as `python`, as in an environment that is active; -e is not asked for, as where one pastes."""
    path = f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", script],
        cwd=folder,
        env=environment_of(PATH=path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def set_max_age(process: Process, max_age: int) -> None:
    reply = await ask(process.port, "PUT", f"{BASE}/config/cors", bearer=ADMIN, body={"max_age": max_age})
    assert reply.status == 200, reply.body


async def told(process: Process) -> tuple[int, list[str]]:
    """What tells one state of both databases from another: a value of the configuration, and paths of the log."""
    policy = json_of(await ask(process.port, "GET", f"{BASE}/config/cors", bearer=ADMIN))
    rows = json_of(await ask(process.port, "GET", f"{BASE}/logs?target_service=auth", bearer=ADMIN))["items"]
    return policy["max_age"], sorted(row["path"] for row in rows)


def test_what_was_saved_while_it_ran_is_what_is_put_back_after_a_kill(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            async with started(tmp_path, ini_of(auth.url)) as process:
                await set_max_age(process, 111)
                await ask(process.port, "GET", "/api/v1/auth/before")
                assert await told(process) == (111, ["/api/v1/auth/before"])
                await asyncio.to_thread(shell, tmp_path, SAVE)
                await set_max_age(process, 222)
                await ask(process.port, "GET", "/api/v1/auth/after")
                assert await told(process) == (222, ["/api/v1/auth/after", "/api/v1/auth/before"])
                process.signal(signal.SIGKILL)
                await process.code()
            for name in ("engadi_gateway.db", "engadi_gateway-log.db"):
                assert (tmp_path / f"{name}-wal").stat().st_size, "or there would be nothing to take away"
                assert (tmp_path / "backup" / name).stat().st_mode & 0o777 == 0o600
            await asyncio.to_thread(shell, tmp_path, PUT_BACK)
            async with started(tmp_path, ini_of(auth.url)) as process:
                assert await told(process) == (111, ["/api/v1/auth/before"])

    asyncio.run(run())


def test_the_key_of_development_is_saved_with_them(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path, "[health]\ninterval = 0\n", SECRET_KEY=""):
            await asyncio.to_thread(shell, tmp_path, SAVE)
        secret = tmp_path / "engadi_gateway.db.secret"
        kept = secret.read_text()
        secret.unlink()
        await asyncio.to_thread(shell, tmp_path, PUT_BACK)
        assert (secret.read_text(), secret.stat().st_mode & 0o077) == (kept, 0)

    asyncio.run(run())


@pytest.mark.parametrize("missing", ["", "engadi_gateway.db", "engadi_gateway-log.db"])
def test_a_backup_that_is_not_whole_fails(tmp_path: Path, missing: str) -> None:
    """Also where there is one of before, which stays as it is; and the shell keeps its umask."""
    for name in ("engadi_gateway.db", "engadi_gateway-log.db"):
        if name != missing:
            sqlite3.connect(tmp_path / name).execute("CREATE TABLE t (i)").connection.close()
    done = run(tmp_path, f"umask 022\n{SAVE}\nsaved=$?; umask; exit $saved")
    assert (done.returncode == 0, done.stdout) == (not missing, "0022\n")
    assert run(tmp_path, SAVE).returncode != 0
