"""The admin API against those who should not use it: guessing, comparing in time, pages of other sites, made-up input."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.pipeline.identity import make_token
from tests.fakes import Seen, Wire, raw_client, upstream
from tests.harness import ADMIN, ask, ask_on, json_of, running, token
from tests.soak import admin

BASE = "/api/v1/gateway"
PACKAGE = Path(__file__).parent.parent / "engadi_gateway"


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    report = asyncio.run(admin.soak(tmp_path, examples=4, seed=5))
    assert report.wrong == []


# guessing


@pytest.mark.parametrize("has_own_port", [False, True], ids=["the gateway's port", "a port of its own"])
def test_guessing_admin_tokens_ends_in_429(tmp_path: Path, has_own_port: bool) -> None:
    """With the default rules: the address's bucket is spent by 401 and 403 alike, and a good token waits as well."""

    async def run() -> None:
        values: dict[str, Any] = {"limits_per_ip": 20, "limits_window": 3600.0}
        if has_own_port:
            values["admin_listen"] = "127.0.0.1:0"
        async with upstream() as auth, running(tmp_path, auth, **values) as gateway:
            port = gateway._front.doors[-1].listener.port
            assert gateway._front.doors[-1].listener.is_admin is has_own_port
            wrong = make_token("another secret, just as long as the other", "HS256", {"sub": "root", "role": "admin"})
            guesses = [None, wrong, "x.y.z", token("alice", "user")]
            async with raw_client(port) as client:
                statuses = [
                    (await ask_on(client, "GET", f"{BASE}/routes", bearer=guesses[number % 4])).status
                    for number in range(24)
                ]
                assert set(statuses[:20]) == {401, 403}
                assert statuses[20:] == [429] * 4
                late = await ask_on(client, "GET", f"{BASE}/routes", bearer=ADMIN)
                assert (late.status, json_of(late)["violated-policies"]) == (429, ["per_ip"])

    asyncio.run(run())


def test_a_global_rule_bounds_guessing_from_many_addresses(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            rule = {"name": "all", "limit_type": "global", "max_requests": 5, "window_seconds": 3600,
                    "path_pattern": f"{BASE}/*"}  # fmt: skip
            created = await ask(gateway.port, "POST", f"{BASE}/config/rate-limits", bearer=ADMIN, body=rule)
            assert created.status == 201
            statuses = [(await ask(gateway.port, "GET", f"{BASE}/stats")).status for _ in range(7)]
            assert statuses == [401] * 5 + [429] * 2

    asyncio.run(run())


# comparing


def test_signatures_are_compared_in_constant_time() -> None:
    """HS256 signatures are the one secret that strangers' input is held against; the library compares them."""
    assert "hmac.compare_digest(" in inspect.getsource(jwt.algorithms.HMACAlgorithm.verify)
    assert "compare_digest" not in "".join(path.read_text() for path in PACKAGE.rglob("*.py"))


def test_no_line_of_ours_compares_a_secret() -> None:
    """Keys are handed to the library, or held against what the operator wrote: never against what came in."""
    compared = re.compile(
        r"(secret|signature|password)\w*(\[[^\]]*\])?\s*(==|!=|\bin\b)|(==|!=)\s*\w*(secret|signature)"
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if compared.search(line.partition("#")[0]) and "import" not in line
    ]
    assert found == []


# pages of other sites

_PAGE = """<!doctype html><meta charset="utf-8"><iframe name="sink"></iframe><script>
const base = "{base}", token = "{token}";
const body = JSON.stringify({{path_pattern: "/evil/*", target_service: "auth", is_public: true}});
const json = {{"Content-Type": "application/json"}}, bearer = {{Authorization: "Bearer " + token}};
const tries = [];
for (const mode of ["cors", "no-cors"])
  for (const credentials of ["omit", "include"]) {{
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"])
      tries.push([mode + " POST " + type, "/routes", {{method: "POST", mode, credentials, body, headers: {{"Content-Type": type}}}}]);
    tries.push([mode + " GET", "/routes", {{mode, credentials}}]);
    tries.push([mode + " bearer GET", "/routes", {{mode, credentials, headers: bearer}}]);
    tries.push([mode + " bearer POST", "/routes", {{method: "POST", mode, credentials, body, headers: {{...json, ...bearer}}}}]);
    if (mode === "cors") {{
      tries.push(["PUT", "/config/cors", {{method: "PUT", mode, credentials, body: '{{"enabled":true}}', headers: {{...json, ...bearer}}}}]);
      tries.push(["DELETE", "/routes/{route}", {{method: "DELETE", mode, credentials, headers: bearer}}]);
      tries.push(["override", "/routes/{route}", {{method: "POST", mode, credentials, headers: {{...bearer, "X-HTTP-Method-Override": "DELETE"}}}}]);
    }}
  }}
async function attempt([name, path, options]) {{
  try {{
    const reply = await fetch(base + path, options);
    return [name, reply.type, reply.status, (await reply.text()).length];
  }} catch (error) {{ return [name, "blocked", 0, 0]; }}
}}
function form(enctype, method) {{
  const form = document.createElement("form");
  Object.assign(form, {{action: base + "/routes", method, enctype, target: "sink"}});
  const field = document.createElement("input");
  [field.name, field.value] = ['{{"path_pattern":"/evil/*","target_service":"auth","x":"', '"}}'];
  form.append(field);
  document.body.append(form);
  const loaded = new Promise(done => document.querySelector("iframe").addEventListener("load", done, {{once: true}}));
  form.submit();
  return loaded;
}}
(async () => {{
  const results = [];
  for (const one of tries) results.push(await attempt(one));
  for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
    await form(enctype, "post");
  navigator.sendBeacon(base + "/routes", body);
  await new Promise(done => {{ const image = new Image(); image.onerror = image.onload = done; image.src = base + "/routes"; }});
  await fetch("/done", {{method: "POST", body: JSON.stringify(results)}});
}})();
</script>"""


class Site:
    """A web site with one page, which tells what it saw. Its origin is another than whatever it talks to."""

    def __init__(self) -> None:
        self.html = ""
        self.told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            sent = await reader.readexactly(int(length[1])) if length else b""
            if head.startswith(b"POST /done") and not self.told.done():
                self.told.set_result(json.loads(sent))
            body = self.html.encode() if head.startswith(b"GET / ") else b""
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + body)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[tuple[Site, str]]:
    """The site and its origin."""
    page = Site()
    server = await asyncio.start_server(page.serve, "127.0.0.1", 0)
    try:
        yield page, f"http://localhost:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@contextlib.asynccontextmanager
async def browsing(folder: Path, url: str) -> AsyncIterator[None]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip(
            "no chromium here: whether a page of another site can drive the admin API is not tried in a browser"
        )
    process = await asyncio.create_subprocess_exec(
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder / 'browser'}", url,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def configuration(gateway: Gateway) -> list[Any]:
    paths = ("/config/revisions", "/routes", "/config/rate-limits", "/config/cors")
    return [json_of(await ask(gateway.port, "GET", BASE + path, bearer=ADMIN)) for path in paths]


@pytest.mark.parametrize("allowed", ["", "*", "this site"], ids=["no CORS", "CORS for *", "CORS for this site"])
def test_a_page_of_another_site_cannot_drive_it(tmp_path: Path, allowed: str) -> None:
    """Not even with a good token, unless its origin is allowed by name; which also shows that the page could do it."""

    async def run() -> None:
        async with site() as (page, origin), upstream() as auth:
            origins = (origin if allowed == "this site" else allowed,)
            cors: dict[str, Any] = {"cors_enabled": bool(allowed), "cors_allow_origins": origins if allowed else ()}
            cors["cors_allow_credentials"] = allowed == "this site"
            async with running(tmp_path, auth, **cors) as gateway:
                before = await configuration(gateway)
                base, route = f"http://127.0.0.1:{gateway.port}{BASE}", before[1]["items"][0]["id"]
                page.html = _PAGE.format(base=base, token=ADMIN, route=route)
                async with browsing(tmp_path, f"{origin}/"):
                    results = await asyncio.wait_for(page.told, 60)
                after = await configuration(gateway)
                log = await ask(gateway.port, "GET", f"{BASE}/logs?path={BASE}/routes&limit=500", bearer=ADMIN)
            done = {name for name, kind, status, _ in results if kind not in {"blocked", "opaque"} and status < 300}
            assert len(results) > 20
            assert sum(row["method"] == "POST" for row in json_of(log)["items"]) >= 10, "the page's requests came in"
            if allowed == "this site":
                assert done == {"cors bearer GET", "cors bearer POST", "PUT", "DELETE"}
                assert after[0] != before[0]
            else:
                assert done == set()
                assert after == before

    asyncio.run(run())


@pytest.mark.parametrize("target", ["/api/v1/content/x", "/api/v1/gateway/routes"])
def test_who_has_no_tokens_left_has_nobody_asked_about_his(tmp_path: Path, target: str) -> None:
    """Each invented token is a question to the auth service; all of a flood at once are no more than its bucket has."""
    released = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await released.wait()
        await wire.send(b"HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n")

    async def run() -> None:
        values = {"limits_per_ip": 5, "jwt_mode": "remote", "jwt_remote_url": "", "admin_listen": "127.0.0.1:0"}
        async with upstream(script) as auth, running(tmp_path, auth, auth, **values) as gateway:
            doors = [int(name.rpartition(":")[2]) for name in gateway.addresses]
            port = doors["gateway" in target]  # the admin API's is the last
            flood = [asyncio.create_task(ask(port, "GET", target, bearer=f"t{n}")) for n in range(40)]
            done, _ = await asyncio.wait(flood, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 35:
                more, _ = await asyncio.wait(set(flood) - done, timeout=20, return_when=asyncio.FIRST_COMPLETED)
                assert more
                done |= more
            assert {task.result().status for task in done} == {429}
            released.set()
            assert sorted([(await task).status for task in flood]) == [401] * 5 + [429] * 35
            assert len(auth.seen) == 5

    asyncio.run(run())
