"""Who is measured, and how each is started in its best form with as many of the duties as it can have."""

from __future__ import annotations

import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from engadi_gateway.pipeline.identity import make_token

ROOT = Path(__file__).parent.parent.parent
UPSTREAM = 18100
SECRET = "the key of the benchmark, of more than 32 bytes"


@dataclass
class Peer:
    """`command` runs in a folder of its own; `missing` says why it cannot."""

    name: str
    port: int
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    token: str = ""
    missing: str = ""


def every(folder: Path) -> Iterator[Peer]:
    token = make_token(SECRET, "HS256", {"sub": "bench", "role": "user", "exp": time.time() + 3600})
    yield engadi(folder, "engadi bare", 18101, is_full=False)
    full = engadi(folder, "engadi full", 18102, is_full=True)
    full.token = token
    yield full
    yield nginx(folder, "nginx bare", 18103, is_full=False)
    yield nginx(folder, "nginx log+limit", 18104, is_full=True)
    yield Peer(
        "aiohttp",
        18105,
        [sys.executable, "-m", "tests.bench.aiohttp_proxy", "18105", str(UPSTREAM)],
        {"PYTHONPATH": str(ROOT)},
        missing="" if find_spec("aiohttp") else "aiohttp is not installed (python -m pip install --group bench)",
    )


def engadi(folder: Path, name: str, port: int, *, is_full: bool) -> Peer:
    """Full: JWT, the two default rules and two more kinds, CORS, breaker, log with all its indexes."""
    own = folder / name.replace(" ", "-")
    own.mkdir(exist_ok=True)
    switch = "yes" if is_full else "no"
    (own / "gateway.ini").write_text(
        f"[server]\nhost = 127.0.0.1\nport = {port}\nkeep_alive_requests = 0\n"
        f"[services]\ncontent = http://127.0.0.1:{UPSTREAM}\n[health]\ninterval = 0\n"
        f"[limits]\nenabled = {switch}\nper_user = 10000000\nper_ip = 10000000\n"
        f"[log]\nrequests = {switch}\n[cors]\nenabled = {switch}\nallow_origins = https://app.test\n"
        f"[breaker]\nenabled = {switch}\n[jwt]\nsecret_key = {SECRET}\n"
    )
    prepare = [sys.executable, str(ROOT / "tests" / "bench" / "prepare.py"), "full" if is_full else "bare"]
    script = f"{json.dumps(prepare[0])} {prepare[1]} {prepare[2]} && exec {prepare[0]} {ROOT / 'run.py'}"
    return Peer(name, port, ["sh", "-c", script], {"PYTHONPATH": str(ROOT)})


_NGINX = """
worker_processes 1;
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log {access};
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests 100000000;
    {zone}
    upstream content {{ server 127.0.0.1:{upstream}; keepalive 100; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            {limit}
            proxy_pass http://content; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Real-IP $remote_addr;
        }}
    }}
}}
"""


def nginx(folder: Path, name: str, port: int, *, is_full: bool) -> Peer:
    """With an access log and one limit rule, or bare. Debian's nginx has no JWT without another module."""
    own = folder / name.replace(" ", "-")
    own.mkdir(exist_ok=True)
    text = _NGINX.format(
        folder=own,
        port=port,
        upstream=UPSTREAM,
        access=f"{own}/access.log combined" if is_full else "off",
        zone="limit_req_zone $binary_remote_addr zone=ip:10m rate=1000000r/s;" if is_full else "",
        limit="limit_req zone=ip burst=1000000 nodelay;" if is_full else "",
    )
    (own / "nginx.conf").write_text(text)
    found = shutil.which("nginx") or "/usr/sbin/nginx"
    is_there = Path(found).exists()
    command = [found, "-c", str(own / "nginx.conf"), "-p", str(own)]
    return Peer(name, port, command, missing="" if is_there else "nginx is not installed (Debian: nginx-light)")


def wait_for(peer: Peer) -> None:
    """Until it answers."""
    deadline = time.monotonic() + 20
    request = urllib.request.Request(f"http://127.0.0.1:{peer.port}/api/v1/content/a/1?id=w")
    if peer.token:
        request.add_header("Authorization", f"Bearer {peer.token}")
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=1) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise SystemExit(f"{peer.name} does not answer")
