"""The process: `run.py` as users start it, its signals, exit codes, listeners and what systemd is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engadi_gateway import Gateway, Settings
from engadi_gateway.gateway.listeners import bind_tcp
from engadi_gateway.model import CorsPolicy, Route
from engadi_gateway.store.catalog import Catalog
from engadi_gateway.store.changes import Change, Seed
from engadi_gateway.store.seed import seed_of, timestamp
from tests.certificates import certify
from tests.fakes import OK, RawClient, Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, ask_on, json_of, running, settings_for
from tests.processes import PYTHON, ROOT, environment_of, free_port, ini_of, started

GET = b"GET /api/v1/auth/x HTTP/1.1\r\nHost: h\r\n\r\n"


def _run(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, str(ROOT / "run.py"), *args],
        cwd=folder,
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_sigterm_finishes_what_was_accepted_and_exits_0(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await release.wait()
        await wire.send(OK)

    async def run() -> None:
        async with upstream(script) as auth, started(tmp_path, ini_of(auth.url)) as gateway:
            async with raw_client(gateway.port) as busy, raw_client(gateway.port) as idle:
                await busy.send(GET)
                while not auth.seen:
                    await asyncio.sleep(0.01)
                gateway.signal(signal.SIGTERM)
                await gateway.wait_for("draining")
                assert await idle.rest() == b""
                with pytest.raises(OSError):
                    async with raw_client(gateway.port):
                        pass
                release.set()
                reply = await busy.reply()
                assert (reply.status, reply.one("connection")) == (200, "close")
            assert await gateway.code() == 0

    asyncio.run(run())


def test_a_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        async with (
            upstream(script) as auth,
            started(tmp_path, ini_of(auth.url)) as gateway,
            raw_client(gateway.port) as busy,
        ):
            await busy.send(GET)
            while not auth.seen:
                await asyncio.sleep(0.01)
            gateway.signal(signal.SIGTERM)
            await gateway.wait_for("draining")
            began = time.monotonic()
            gateway.signal(signal.SIGTERM)
            told = await busy.reply()
            assert (told.status, told.one("connection"), json_of(told)["code"]) == (503, "close", "draining")
            assert await gateway.code() == 0
            assert time.monotonic() - began < 15  # the drain alone would take thirty
            assert any("1 requests were cut off" in line for line in gateway.lines)

    asyncio.run(run())


def test_sighup_takes_a_good_file_and_keeps_the_old_one_for_a_bad_one(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream() as auth,
            upstream() as other,
            started(tmp_path, ini_of(auth.url)) as gateway,
            raw_client(gateway.port) as client,
        ):
            assert (await ask_on(client, "GET", "/api/v1/auth/1")).status == 200
            (tmp_path / "gateway.ini").write_text("[server]\nhots = x\n")
            gateway.signal(signal.SIGHUP)
            await gateway.wait_for("NOT reloaded")
            assert "server.hots" in gateway.lines[-1]
            assert "did you mean server.host" in gateway.lines[-1]
            assert (await ask_on(client, "GET", "/api/v1/auth/2")).status == 200
            (tmp_path / "gateway.ini").write_text(ini_of(other.url))
            gateway.signal(signal.SIGHUP)
            await gateway.wait_for("configuration reloaded")
            assert (await ask_on(client, "GET", "/api/v1/auth/3")).status == 200
            assert [seen.target[-1] for seen in auth.seen] == ["1", "2"]
            assert [seen.target[-1] for seen in other.seen] == ["3"]
            page = await ask_on(client, "GET", "/api/v1/gateway/metrics/prometheus", bearer=ADMIN)
            for result in ("success", "failure"):
                assert f'engadi_config_reloads_total{{result="{result}"}} 1\n' in page.body.decode()

    asyncio.run(run())


def test_a_file_that_is_gone_is_no_reload(tmp_path: Path) -> None:
    """Nobody means all options' defaults by moving a file."""

    async def run() -> None:
        async with upstream() as auth, started(tmp_path, ini_of(auth.url)) as gateway:
            (tmp_path / "gateway.ini").rename(tmp_path / "moved.ini")
            gateway.signal(signal.SIGHUP)
            await gateway.wait_for("NOT reloaded")
            assert "gateway.ini: no such file" in gateway.lines[-1]
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            (tmp_path / "moved.ini").rename(tmp_path / "gateway.ini")
            with (tmp_path / "gateway.ini").open("a") as file:
                file.write("[log]\nlevel = ERROR\n[admin]\nlisten = 127.0.0.1:0\n")
            for _ in range(2):
                gateway.signal(signal.SIGHUP)
                await gateway.wait_for("configuration reloaded")
            told = [line for line in gateway.lines if "these take a restart: admin.listen" in line]
            assert len(told) == 1, "at the new level a warning is not said again"

    asyncio.run(run())


def test_an_option_on_the_command_line_is_before_all_others(tmp_path: Path) -> None:
    (tmp_path / "gateway.ini").write_text("[jwt]\nrole_claim = a\n")
    token = ("token", "--sub", "x")

    def role_claims(*args: str, **environment: str) -> set[str]:
        done = _run(tmp_path, *args, **environment)
        payload = done.stdout.split(".")[1]
        return set(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))) - {"sub", "iat", "exp"}

    assert role_claims(*token, ENGADI_JWT_ROLE_CLAIM="b") == {"b"}
    assert role_claims(*token, "--set", "jwt.role_claim=c=d", ENGADI_JWT_ROLE_CLAIM="b") == {"c=d"}
    assert role_claims("--set", "jwt.role_claim=e", *token) == {"e"}
    wrong = _run(tmp_path, "--check", "--set", "jwt.rol_claim=c", "--set", "server.port=x")
    assert wrong.returncode == 78
    assert wrong.stderr.splitlines() == [
        "jwt.rol_claim: unknown option; did you mean jwt.role_claim?",
        "server.port: expected a whole number, 0 or more; command line says 'x'",
    ]
    assert _run(tmp_path, "--check", "--set", "server.port").returncode == 2


async def _common_name(port: int, maximum: ssl.TLSVersion | None = None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if maximum is not None:
        context.maximum_version = maximum
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        client = RawClient(reader, writer)
        await client.send(GET)
        assert (await client.reply()).status == 200
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(certificate, bytes)
        return certificate
    finally:
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


def test_tls_with_a_lowest_version_and_certificates_renewed_on_sighup(tmp_path: Path) -> None:
    certify(tmp_path, "one.test")
    tls = "[server]\nhost = 127.0.0.1\ntls_certificate = cert.pem\ntls_key = key.pem\ntls_min_version = 1.3\n"

    async def run() -> None:
        async with upstream() as auth:
            ini = f"{tls}[services]\nauth = {auth.url}\n[health]\ninterval = 0\n"
            async with started(tmp_path, ini) as gateway:
                assert b"one.test" in await _common_name(gateway.port)
                assert auth.seen[0].one("x-forwarded-proto") == "https"
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await _common_name(gateway.port, ssl.TLSVersion.TLSv1_2)
                certify(tmp_path, "two.test")
                gateway.signal(signal.SIGHUP)
                await gateway.wait_for("configuration reloaded")
                assert b"two.test" in await _common_name(gateway.port)
                (tmp_path / "cert.pem").write_text("no certificate")
                gateway.signal(signal.SIGHUP)
                await gateway.wait_for("NOT reloaded")
                assert b"two.test" in await _common_name(gateway.port)

    asyncio.run(run())


def test_ipv4_ipv6_and_unix_listeners_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            ini = f"[server]\nhost = 127.0.0.1, ::1\nunix_socket = gw.sock\n[services]\nauth = {auth.url}\n"
            async with started(tmp_path, ini) as gateway:
                await gateway.wait_for("unix:")
                for host in ("127.0.0.1", "::1"):
                    async with raw_client(gateway.port, host) as client:
                        await client.send(GET)
                        assert (await client.reply()).status == 200
                reader, writer = await asyncio.open_unix_connection(str(tmp_path / "gw.sock"))
                client = RawClient(reader, writer)
                await client.send(GET)
                assert (await client.reply()).status == 200
                await client.close()
            addresses = [seen.one("x-forwarded-for") for seen in auth.seen if seen.target.endswith("x")]
            assert addresses == ["127.0.0.1", "::1", "127.0.0.1"]

    asyncio.run(run())


def test_sigquit_stops_at_once_and_cleanly(tmp_path: Path) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        more = "[gateway]\ndrain_delay = 60s\n[log]\nflush_interval = 60s\n"
        socket_at = {"ENGADI_SERVER_UNIX_SOCKET": "gw.sock"}
        async with upstream(script) as auth, started(tmp_path, ini_of(auth.url, more), **socket_at) as gateway:
            async with raw_client(gateway.port) as busy:
                await busy.send(GET)
                while not auth.seen:
                    await asyncio.sleep(0.01)
                assert (tmp_path / "gw.sock").is_socket()
                gateway.signal(signal.SIGQUIT)
                assert (await busy.rest()).startswith(b"HTTP/1.1 503 ")
            assert await gateway.code() == 0
            assert not (tmp_path / "gw.sock").exists()
        with contextlib.closing(sqlite3.connect(tmp_path / "engadi_gateway-log.db")) as log:
            assert log.execute("SELECT reason FROM gateway_log").fetchall() == [("draining",)]

    asyncio.run(run())


def test_sigusr1_writes_what_waits_and_sigusr2_tells_the_state(tmp_path: Path) -> None:
    async def run() -> None:
        ini = "[log]\nflush_interval = 60s\naccess = off\n"
        async with upstream() as auth, started(tmp_path, ini_of(auth.url, ini)) as gateway:
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            gateway.signal(signal.SIGUSR1)
            rows: list[object] = []
            while not rows:
                with contextlib.closing(sqlite3.connect(tmp_path / "engadi_gateway-log.db")) as log:
                    rows = log.execute("SELECT path FROM gateway_log").fetchall()
                await asyncio.sleep(0.01)
            assert rows == [("/api/v1/auth/x",)]
            gateway.signal(signal.SIGUSR2)
            await gateway.wait_for('"lifecycle"')
            told = json.loads(gateway.lines[-1])
            assert (told["lifecycle"], told["circuits"], told["log"]["rows_written"]) == (
                "running",
                {"auth": "closed"},
                1,
            )
            assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS: expected a number, not 'many'\n"),
        ({"LISTEN_FDS": "1"}, "LISTEN_FDS: descriptor 3: "),
    ],
)
def test_sockets_that_were_promised_and_are_not_there(tmp_path: Path, environment: dict[str, str], said: str) -> None:
    (tmp_path / "gateway.ini").write_text("")
    launcher = (
        "import os, sys\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()))\n"
        f"os.execv(sys.executable, [sys.executable, {str(ROOT / 'run.py')!r}])\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", launcher], cwd=tmp_path, env=environment_of(**environment), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.startswith(said), done.stderr.count("\n")) == (69, True, 1)


def test_an_inherited_socket_named_admin_is_the_admin_door(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth:
            admin = bind_tcp("127.0.0.1", 0, Settings.of())
            settings = settings_for(tmp_path, {"auth": auth.url})
            async with Gateway(settings, inherited=[("admin", admin)]) as gateway:
                admin_port = admin.getsockname()[1]
                assert gateway.port != admin_port
                for _ in range(2):
                    assert (await ask(admin_port, "GET", "/api/v1/gateway/routes", bearer=ADMIN)).status == 200
                    assert (await ask(admin_port, "GET", "/api/v1/auth/x")).status == 404
                    assert (await ask(gateway.port, "GET", "/api/v1/gateway/routes", bearer=ADMIN)).status == 404
                    assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
                    await gateway.reload(settings)

    asyncio.run(run())


def test_systemd_is_told_and_its_socket_is_used(tmp_path: Path) -> None:
    async def run() -> None:
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener = socket.socket()
        with notify, listener:
            notify.bind(str(tmp_path / "notify.sock"))
            notify.settimeout(20)

            async def told() -> bytes:
                """What is told besides that the loop is alive."""
                while (message := await asyncio.to_thread(notify.recv, 1024)) == b"WATCHDOG=1":
                    pass
                return message

            listener.bind(("127.0.0.1", 0))
            listener.listen(16)
            # what systemd does: the socket is descriptor 3, and the pid is that of the process itself
            launcher = (
                "import os, sys\n"
                f"os.dup2({listener.fileno()}, 3)\n"
                "os.set_inheritable(3, True)\n"
                "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='http')\n"
                f"os.execv(sys.executable, [sys.executable, {str(ROOT / 'run.py')!r}])\n"
            )
            async with upstream() as auth:
                (tmp_path / "gateway.ini").write_text(ini_of(auth.url))
                process = subprocess.Popen(
                    [PYTHON, "-c", launcher],
                    cwd=tmp_path,
                    env=environment_of(NOTIFY_SOCKET=str(tmp_path / "notify.sock"), WATCHDOG_USEC="200000"),
                    pass_fds=[listener.fileno()],
                    stderr=subprocess.DEVNULL,
                )
                try:
                    assert await told() == b"READY=1"
                    for _ in range(3):
                        assert await asyncio.to_thread(notify.recv, 1024) == b"WATCHDOG=1"
                    reply = await ask(listener.getsockname()[1], "GET", "/api/v1/auth/x")
                    assert reply.status == 200
                    process.send_signal(signal.SIGHUP)
                    assert (await told()).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                    assert await told() == b"READY=1"
                    process.send_signal(signal.SIGTERM)
                    assert await told() == b"STOPPING=1"
                    assert await asyncio.to_thread(process.wait, 20) == 0
                finally:
                    process.kill()
                    process.wait()

    asyncio.run(run())


def test_a_taken_port_is_exit_69_and_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _run(tmp_path, PORT=str(port), ENGADI_SERVER_HOST="127.0.0.1")
    assert done.returncode == 69
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr


def test_a_start_that_fails_leaves_no_socket_behind(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        admin = f"127.0.0.1:{taken.getsockname()[1]}"
        done = _run(
            tmp_path, PORT="0", ENGADI_SERVER_HOST="127.0.0.1", ENGADI_SERVER_UNIX_SOCKET="gw.sock",
            ENGADI_ADMIN_LISTEN=admin,
        )  # fmt: skip
    assert (done.returncode, (tmp_path / "gw.sock").exists()) == (69, False)


BAD_STARTS = {
    "unknown section": ("[sever]\nport = 1\n", {}, "sever: unknown section; did you mean server?"),
    "unknown key": ("[server]\nprot = 1\n", {}, "server.prot: unknown option; did you mean server.port?"),
    "bad value": ("[server]\nport = x\n", {}, "server.port: expected a whole number"),
    "bad environment": ("", {"RATE_LIMIT_ENABLED": "maybe"}, "limits.enabled: expected one of"),
    "no UTF-8": ("", {"SECRET_KEY": "k" * 32 + "\udcff"}, "jwt.secret_key: expected text in UTF-8\n"),
    "no algorithm": ("", {"ALGORITHM": ""}, "jwt.algorithms: expected HS256 or others"),
    "short key": ("", {"SECRET_KEY": "short"}, "jwt.secret_key: too short: at least 32 bytes"),
    "postgres": ("", {"DATABASE_URL": "postgresql://u@h/db"}, "database.url: only sqlite:///"),
    "no key in production": (
        "",
        {"SECRET_KEY": "", "ENVIRONMENT": "production"},
        "jwt.secret_key: required in production",
    ),
}


@pytest.mark.parametrize("name", BAD_STARTS)
@pytest.mark.parametrize("arguments", [(), ("--check",)], ids=["serve", "check"])
def test_a_bad_configuration_is_exit_78_and_says_what(tmp_path: Path, name: str, arguments: tuple[str, ...]) -> None:
    ini, environment, message = BAD_STARTS[name]
    (tmp_path / "gateway.ini").write_text(ini)
    done = _run(tmp_path, *arguments, **environment)
    assert done.returncode == 78
    assert message in done.stderr
    assert not list(tmp_path.glob("*.db")), "nothing was opened"


def test_check_tries_what_a_start_would_and_says_what_is_not_wrong_yet(tmp_path: Path) -> None:
    for line, said in (
        ("[server]\nunix_socket = no/x.sock", f"server.unix_socket: no such folder: {tmp_path}/no"),
        (f"[database]\nurl = sqlite:///{tmp_path.name}", ""),
        ("[database]\nurl = sqlite:///folder", "database.url: folder is a folder"),
    ):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "gateway.ini").write_text(line)
        done = _run(tmp_path, "--check")
        assert (done.returncode, said in done.stderr) == (78 if said else 0, True), done.stderr
    certify(tmp_path, "one.test", days=-1)
    (tmp_path / "gateway.ini").write_bytes(b"\xef\xbb\xbf[server]\ntls_certificate = cert.pem\ntls_key = key.pem\n")
    done = _run(tmp_path, "--check")
    assert (done.returncode, "cert.pem has expired: it was good until " in done.stderr) == (0, True), done.stderr
    assert _run(tmp_path, "token", "--sub", " ").returncode == 2


@pytest.mark.parametrize("arguments", [(), ("--check",)], ids=["serve", "check"])
def test_texts_that_no_file_and_no_key_can_be_are_faults_all_at_once(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "bin.key").write_bytes(b"geheim" + bytes(range(128, 160)))
    long = "x" * 5000
    (tmp_path / "gateway.ini").write_text(
        f"[database]\nurl = {long}\nlog_url = {long}/log\n[server]\nunix_socket = {long}\n"
        f"[upstream]\ntls_ca_file = ca\0.pem\n[jwt]\nalgorithms =\npublic_key_file = {long}\n"
    )
    every = [
        "ENGADI_JWT_SECRET_KEY_FILE", "database.log_url", "database.url", "jwt.algorithms", "jwt.public_key_file",
        "server.unix_socket", "upstream.tls_ca_file",
    ]  # fmt: skip
    done = _run(tmp_path, *arguments, ENGADI_JWT_SECRET_KEY_FILE="bin.key")
    pointers = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert (done.returncode, sorted(pointers)) == (78, every), done.stderr[:2000]
    assert "geheim" not in done.stderr


def test_check_says_all_faults_at_once_and_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "gateway.ini").write_text("[server]\nport = x\nprot = 1\n[limits]\nper_ip = 0\n")
    done = _run(tmp_path, "--check")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "server.prot",
        "server.port",
        "limits.per_ip",
    ]
    (tmp_path / "gateway.ini").write_text(
        "[server]\nport = x\ntls_certificate = no.pem\ntls_key = no.pem\n[upstream]\ntls_ca_file = no.pem\n"
        "[database]\nurl = sqlite:///no/x.db\n[jwt]\nalgorithms = RS256\npublic_key_file = no.pem\n"
        "claim_headers = sub:Transfer-Encoding, role:X-Role, email:Authorization\n"
        "[cors]\nallow_origins = https://a.test, https://b.test/\n[admin]\nlisten = foo\n"
    )
    every = {
        "server.port", "admin.listen", "database.url", "cors.allow_origins", "jwt.public_key_file",
        "server.tls_certificate", "server.tls_key", "upstream.tls_ca_file", "jwt.claim_headers",
    }  # fmt: skip
    for arguments in (("--check",), ("serve",)):
        bad = _run(tmp_path, *arguments)
        assert (bad.returncode, {line.partition(":")[0] for line in bad.stderr.splitlines()}) == (78, every)
    (tmp_path / "gateway.ini").write_text("")
    good = _run(tmp_path, "--check")
    assert (good.returncode, good.stdout) == (0, "configuration ok\n")
    assert not list(tmp_path.glob("*.db"))


def _table(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


#: What lies there, what a start says of it (last), and its exit code; None: it serves.
LIES_THERE: dict[str, tuple[str, Callable[[Path], object], str, int | None]] = {
    "a log of a newer version": ("-log.db", _newer, "made by a newer version", 78),
    "a log of another program": ("-log.db", _table, "a database of another application", 78),
    "a broken log": ("-log.db", lambda path: path.write_bytes(b"no database" * 999), "", None),
    "an empty log": ("-log.db", Path.touch, "", None),
    "a configuration of a newer version": (".db", _newer, "made by a newer version", 78),
    "a configuration of another program": (".db", _table, "a database of another application", 78),
    "a broken configuration": (".db", lambda path: path.write_bytes(b"no database" * 999), "not a database", 78),
    "an empty configuration": (".db", Path.touch, "", None),
    "a link that leads nowhere": (".db", lambda path: path.symlink_to("nowhere/x"), "no such folder", 78),
    "a lock that nobody can take": (".db.lock", Path.mkdir, "engadi_gateway.db.lock: Is a directory", 78),
    "such a lock of the log": ("-log.db.lock", Path.mkdir, "engadi_gateway-log.db.lock: Is a directory", 78),
    "half a key": (".db.secret", lambda path: path.write_text("half"), "holds no whole key", 78),
}


@pytest.mark.parametrize("name", LIES_THERE)
def test_check_and_the_start_agree_about_what_lies_there(tmp_path: Path, name: str) -> None:
    suffix, make, said, code = LIES_THERE[name]
    make(tmp_path / f"engadi_gateway{suffix}")
    environment = {"SECRET_KEY": "", "ENGADI_SERVER_HOST": "127.0.0.1"}
    checked = _run(tmp_path, "--check", **environment)
    assert (checked.returncode, said in checked.stderr) == (code or 0, True), checked.stderr

    async def serves() -> None:
        async with started(tmp_path, "", **environment) as gateway:
            gateway.signal(signal.SIGTERM)
            assert await gateway.code() == 0

    if code is None:
        asyncio.run(serves())
    else:
        served = _run(tmp_path, PORT="0", **environment)
        assert (served.returncode, said in served.stderr) == (code, True), served.stderr


def test_check_asks_for_the_loop_that_a_start_would_take(tmp_path: Path) -> None:
    program = (
        "import importlib.util, runpy, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'uvloop' else found(name)\n"
        "sys.argv[1:] = ['--check']\n"
        f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", program], cwd=tmp_path, env=environment_of(ENGADI_SERVER_LOOP="uvloop"), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "server.loop: uvloop is not installed" in done.stderr) == (78, True), done.stderr


def test_routes_that_cannot_be_told_apart_are_one_line_for_every_command(tmp_path: Path) -> None:
    (tmp_path / "gateway.ini").write_text("[database]\nurl = gateway.db\n")
    catalog = Catalog(str(tmp_path / "gateway.db"))
    route = Route("00000000-0000-4000-8000-000000000001", "/twin/*", "auth", created_at="", updated_at="")
    try:
        catalog.open(Seed({}, (), CorsPolicy(), ""))
        for number in (1, 2):
            twin = replace(route, id=f"00000000-0000-4000-8000-00000000000{number}")
            asyncio.run(catalog.apply(Change("route", twin.id, twin, "alice", "req", "")))
    finally:
        catalog.close()
    for arguments in (("--check",), ("routes",), ("explain", "GET", "/x"), ("serve",)):
        done = _run(tmp_path, *arguments, SECRET_KEY="k" * 32)
        assert done.returncode == 78, done.stderr
        assert done.stderr.splitlines()[-1].startswith("database.url: routes ")
        assert "match the same requests" in done.stderr


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    done = _run(tmp_path, "--check", "--config", "nowhere.ini")
    assert (done.returncode, done.stderr) == (78, "nowhere.ini: no such file\n")


def test_version_routes_token_and_explain(tmp_path: Path) -> None:
    assert _run(tmp_path, "--version").stdout.startswith("engadi-gateway ")
    routes = _run(tmp_path, "routes", "--json")
    listed = json.loads(routes.stdout)
    assert len(listed) == 9
    assert {row["path_pattern"] for row in listed} >= {"/api/v1/auth/*", "/api/v1/partners-crm/*"}
    assert "path_pattern" in _run(tmp_path, "routes").stdout.splitlines()[0]
    token = _run(tmp_path, "token", "--sub", "alice", "--role", "admin", "--ttl", "5m").stdout.strip()
    assert token.count(".") == 2
    told = _run(tmp_path, "explain", "GET", "/api/v1/content/../content/x", "--token", token, "--header", "X-A: b")
    answer = json.loads(told.stdout)
    assert (answer["verdict"], answer["path"]) == ("serve", "/api/v1/content/x")
    assert answer["jwt"]["user_id"] == "alice"
    assert "X-User-ID: alice" in answer["upstream"]["head"]
    refused = json.loads(_run(tmp_path, "explain", "GET", "/api/v1/content/x").stdout)
    assert (refused["verdict"], refused["status"], refused["reason"]) == ("refuse", 401, "auth_missing")


@pytest.mark.parametrize("command", [("routes",), ("config",), ("explain", "GET", "/"), ("--check",)], ids=str)
def test_who_looks_where_no_database_is_is_told_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    note = "no engadi_gateway.db here: what is shown is what a start would make"
    assert note in _run(tmp_path, *command).stderr
    catalog = Catalog(str(tmp_path / "engadi_gateway.db"))
    catalog.open(seed_of(Settings.of(jwt_secret_key="x" * 32), timestamp(0)))
    catalog.close()
    assert note not in _run(tmp_path, *command).stderr


def test_the_package_can_be_run_by_its_name(tmp_path: Path) -> None:
    environment = {**environment_of(), "PYTHONPATH": str(ROOT)}
    for arguments, said in ((["--version"], "engadi-gateway "), (["--help"], "usage: python -m engadi_gateway ")):
        done = subprocess.run(
            [PYTHON, "-m", "engadi_gateway", *arguments],
            check=False, cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout.startswith(said)) == (0, True), done.stdout


def test_an_older_python_is_told_which_one_is_needed() -> None:
    path = str(ROOT / "run.py")
    program = f"import runpy, sys; sys.version_info = (3, 10, 1); runpy.run_path({path!r}, run_name='__main__')"
    done = subprocess.run([PYTHON, "-c", program], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "engadi-gateway: needs Python 3.11 or later, this is 3.10\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("GET", "/", "--ip", "zzz"), "the client's address is none"),
        (("GET", "/", "--admin"), "admin.listen is empty"),
        (("GET", "/", "--header", "bad"), "not a header: 'bad'"),
        (("GET", "/", "--header", "X: \u20ac"), "only ISO 8859-1"),
        (("GET", "/\nX: y"), "line break in a part of the request"),
    ],
)
def test_what_explain_cannot_be_asked_is_exit_2_and_no_verdict(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = _run(tmp_path, "explain", *arguments)
    assert (done.returncode, done.stdout, said in done.stderr) == (2, "", True), done.stderr


def test_config_says_what_holds_and_whence(tmp_path: Path) -> None:
    (tmp_path / "gateway.ini").write_text(
        "[server]\nport = 8080\n[services]\nai = http://ai:1\n[health_paths]\nai = /up\n"
    )
    environment = {"SECRET_KEY": "k" * 32, "AUTH_SERVICE_URL": "http://a:9"}
    done = _run(tmp_path, "config", "--json", "--set", "log.level=debug", **environment)
    told = {row["option"]: (row["from"], row["value"]) for row in json.loads(done.stdout)}
    assert told["server.port"] == ("gateway.ini", "8080")
    assert told["log.level"] == ("command line", "DEBUG")
    assert told["jwt.secret_key"] == ("SECRET_KEY", "***")
    assert told["upstream.retry_backoff"] == ("default", "0.025")
    assert (told["services.ai"], told["services.auth"], told["services.search"]) == (
        ("gateway.ini", "http://ai:1"),
        ("AUTH_SERVICE_URL", "http://a:9"),
        ("default", "http://127.0.0.1:8011"),
    )
    assert (told["health_paths.ai"], told["health_paths.search"]) == (("gateway.ini", "/up"), ("default", "/health"))
    lines = _run(tmp_path, "config", **environment).stdout.splitlines()
    assert (lines[0].split(), len(lines)) == (["option", "from", "value"], 1 + len(told))
    assert "k" * 32 not in done.stdout + "".join(lines)


def test_config_says_what_the_api_changed(tmp_path: Path) -> None:
    async def change() -> None:
        async with running(tmp_path) as gateway:
            policy = {"enabled": True, "allow_origins": ["https://a.test"]}
            assert (
                await ask(gateway.port, "PUT", "/api/v1/gateway/config/cors", bearer=ADMIN, body=policy)
            ).status == 200

    def marked() -> dict[str, str]:
        done = _run(tmp_path, "config", "--json", "--set", f"database.url={tmp_path}/config.db")
        rows = {row["option"]: row["from"] for row in json.loads(done.stdout)}
        return {name: whence for name, whence in rows.items() if "API" in whence}

    (tmp_path / "gateway.ini").write_text("[cors]\nenabled = no\n")
    assert marked() == {}, "no database yet"
    asyncio.run(change())
    assert marked() == {
        "cors.enabled": "gateway.ini; the API changed it",
        "cors.allow_origins": "default; the API changed it",
    }
    (tmp_path / "config.db").write_bytes(b"no database" * 100)
    done = _run(tmp_path, "config", "--set", f"database.url={tmp_path}/config.db")
    assert (done.returncode, "what the API changed cannot be told" in done.stderr) == (0, True)


def test_help_names_every_command(tmp_path: Path) -> None:
    text = _run(tmp_path, "--help").stdout
    for word in (
        "serve",
        "config",
        "routes",
        "explain",
        "token",
        "health",
        "--config",
        "--demo",
        "--check",
        "--version",
    ):
        assert word in text


@pytest.fixture
def bare_python(tmp_path: Path) -> Iterator[list[str]]:
    """An interpreter that finds neither h11 nor PyJWT."""
    yield [PYTHON, "-I", "-S", str(ROOT / "run.py")]


def test_a_missing_dependency_is_one_line(tmp_path: Path, bare_python: list[str]) -> None:
    done = subprocess.run(bare_python, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "missing h11>=0.16,<0.17, PyJWT>=2.14,<3" in done.stderr
    assert "python -m pip install 'h11>=0.16,<0.17' 'PyJWT>=2.14,<3'" in done.stderr


def test_development_without_a_key_makes_one_and_says_so(tmp_path: Path) -> None:
    first = _run(tmp_path, "token", "--sub", "a", SECRET_KEY="")
    assert "made a development key" in first.stderr
    secret = tmp_path / "engadi_gateway.db.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    key = secret.read_text()
    assert "using the development key" in _run(tmp_path, "token", "--sub", "a", SECRET_KEY="").stderr
    assert secret.read_text() == key


def test_the_demonstration_works_as_the_readme_says(tmp_path: Path) -> None:
    async def run() -> None:
        services = {name: free_port() for name in ("AUTH", "CONTENT")}
        environment = {f"{name}_SERVICE_URL": f"http://127.0.0.1:{port}" for name, port in services.items()}
        async with started(
            tmp_path, "[server]\nhost = 127.0.0.1\n", ENGADI_LIMITS_PER_IP="1000", **environment
        ) as gateway:
            assert (await ask(gateway.port, "GET", "/health")).status == 200
            reply = await ask(gateway.port, "GET", "/api/v1/gateway/stats", bearer=ADMIN)
            assert json_of(reply)["hours"] == 24

    asyncio.run(run())
