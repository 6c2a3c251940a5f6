"""What a team would write by hand: on aiohttp, on FastAPI with httpx, on fastify; and the least there is on h11."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

from tests.bench.peers import ROOT, Command, Duty, Peer, Place
from tests.bench.requests import ORIGIN, SECRET

_DUTIES = (Duty.JWT, Duty.LIMITS, Duty.CORS, Duty.LOG)
_INSTALL_S = 300


def _absent(*modules: str) -> Callable[[], str]:
    def ask() -> str:
        lacking = [name for name in modules if find_spec(name) is None]
        return f"{', '.join(lacking)} not installed (python -m pip install --group bench)" if lacking else ""

    return ask


def _versions(*packages: str) -> Callable[[], str]:
    def ask() -> str:
        try:
            return ", ".join(f"{name} {version_of(name)}" for name in packages)
        except PackageNotFoundError:
            return ""

    return ask


# Python


def _aiohttp(place: Place, form: str, loop: str) -> Command:
    module = "tests.bench.peers.aiohttp_proxy"
    arguments = [sys.executable, "-m", module, str(place.port), str(place.upstream), form, loop, str(place.rate)]
    return Command(arguments, {"PYTHONPATH": str(ROOT)})


def _least(place: Place) -> Command:
    arguments = [sys.executable, "-m", "tests.bench.peers.least", str(place.port), str(place.upstream)]
    return Command(arguments, {"PYTHONPATH": str(ROOT)})


def _fastapi(place: Place, form: str) -> Command:
    arguments = [
        sys.executable, "-m", "uvicorn", "tests.bench.peers.fastapi_proxy:app", "--host", "127.0.0.1", "--port",
        str(place.port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error",
        "--backlog", "4096", "--timeout-keep-alive", "3600",
    ]  # fmt: skip
    values = {"UPSTREAM": str(place.upstream), "FORM": form, "RATE": str(place.rate), "PYTHONPATH": str(ROOT)}
    return Command(arguments, values)


# node

_PACKAGES = {
    "fastify": "^5.0.0",
    "@fastify/http-proxy": "^11.0.0",
    "@fastify/jwt": "^10.0.0",
    "@fastify/rate-limit": "^11.0.0",
    "@fastify/cors": "^11.0.0",
}


def cache_folder() -> Path:
    """Where the node packages go: outside the repository, kept from run to run."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "engadi-gateway-bench" / "node"


@cache
def _fastify_missing() -> str:
    """Installs the packages where node is there, and they are not."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node or npm is not installed"
    folder = cache_folder()
    document = json.dumps({"name": "bench", "private": True, "type": "module", "dependencies": _PACKAGES}, indent=2)
    wanted = folder / "package.json"
    if all((folder / "node_modules" / name).is_dir() for name in _PACKAGES) and wanted.read_text() == document:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    wanted.write_text(document)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        return f"npm install took longer than {_INSTALL_S} s"
    return "" if done.returncode == 0 else f"npm install failed: {(done.stderr or done.stdout).strip()[:200]}"


def _fastify_version() -> str:
    found = []
    for name in ("fastify", "@fastify/http-proxy"):
        path = cache_folder() / "node_modules" / name / "package.json"
        found.append(f"{name} {json.loads(path.read_text())['version']}" if path.exists() else name)
    return ", ".join(found)


def _fastify(place: Place, form: str) -> Command:
    script = cache_folder() / "proxy.mjs"
    script.write_text((Path(__file__).parent / "fastify_proxy.mjs").read_text())  # beside its packages
    values = {
        "PORT": str(place.port), "UPSTREAM": str(place.upstream), "FORM": form, "RATE": str(place.rate),
        "SECRET": SECRET, "ORIGIN": ORIGIN, "LOG": str(place.folder / "access.log"), "NODE_ENV": "production",
    }  # fmt: skip
    return Command([shutil.which("node") or "node", str(script)], values)


PEERS = (
    Peer("h11 alone", lambda: "", _versions("h11"), _least, None, (), "reads with h11 and sends on, nothing else"),
    Peer(
        "aiohttp",
        _absent("aiohttp"),
        _versions("aiohttp"),
        lambda place: _aiohttp(place, "bare", "asyncio"),
        lambda place: _aiohttp(place, "full", "asyncio"),
        _DUTIES,
        "PyJWT with a memory, four buckets, rows in sqlite",
    ),
    Peer(
        "aiohttp+uvloop",
        _absent("aiohttp", "uvloop"),
        _versions("aiohttp", "uvloop"),
        lambda place: _aiohttp(place, "bare", "uvloop"),
        lambda place: _aiohttp(place, "full", "uvloop"),
        _DUTIES,
        "the same on uvloop",
    ),
    Peer(
        "fastify",
        _fastify_missing,
        _fastify_version,
        lambda place: _fastify(place, "bare"),
        lambda place: _fastify(place, "full"),
        _DUTIES,
        "its own plugins, one limit, a log by pino",
    ),
    Peer(
        "FastAPI+httpx",
        _absent("fastapi", "httpx", "uvicorn", "uvloop", "httptools"),
        _versions("fastapi", "httpx", "uvicorn"),
        lambda place: _fastapi(place, "bare"),
        lambda place: _fastapi(place, "full"),
        _DUTIES,
        "under uvicorn with uvloop and httptools; the same duties as aiohttp",
    ),
)
