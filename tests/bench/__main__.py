"""This gateway against its peers: `python -m tests.bench [--seconds 4] [--rounds 3] [--connections 64]`.

Every peer is one process pinned to one core; the load and the upstream run on the other. Rounds are interleaved, the
median is shown. CPU per request comes from the process's own accounting (/proc/<pid>/stat, with its children). URLs and
headers differ from request to request. A peer that is not installed is named, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench import peers
from tests.bench.peers import Peer

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its living children (a worker is a child)."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(entry.name) == pid or int(fields[1]) == pid:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def process(command: list[str], core: int, folder: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A pinned process; its pid."""
    pinned = ["taskset", "-c", str(core), *command] if shutil.which("taskset") else command
    log = (folder / "log").open("ab")
    child = subprocess.Popen(pinned, cwd=folder, env={**os.environ, **(environment or {})}, stdout=log, stderr=log)
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        log.close()


def load(port: int, arguments: argparse.Namespace, token: str, core: int, seconds: float) -> dict[str, Any]:
    """One measurement by the load generator in a process of its own."""
    command = [
        sys.executable, "-m", "tests.bench.load", "--port", str(port), "--connections", str(arguments.connections),
        "--seconds", str(seconds), "--token", token,
    ]  # fmt: skip
    pinned = ["taskset", "-c", str(core), *command] if shutil.which("taskset") else command
    done = subprocess.run(pinned, capture_output=True, text=True, check=True, cwd=HERE.parent.parent)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(peer: Peer, pid: int, arguments: argparse.Namespace) -> dict[str, float]:
    load(peer.port, arguments, peer.token, 0, 0.5)  # warm
    before = cpu_s(pid)
    result = load(peer.port, arguments, peer.token, 0, arguments.seconds)
    spent = cpu_s(pid) - before
    if result["bad"]:
        raise SystemExit(f"{peer.name}: {result['bad']} wrong answers, the first: {result['first_bad']}")
    return {
        "requests_per_s": result["requests"] / result["seconds"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "cpu_us": spent / result["requests"] * 1e6,
        "rss_mib": resident_mib(pid),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--only", help="comma-separated names")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    core = 1 if (os.cpu_count() or 1) > 1 else 0
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        upstream = [sys.executable, "-m", "tests.bench.upstream", str(peers.UPSTREAM)]
        stack.enter_context(process(upstream, 0, folder, {"PYTHONPATH": str(HERE.parent.parent)}))
        running: list[tuple[Peer, int]] = []
        for peer in peers.every(folder):
            if arguments.only and peer.name not in arguments.only.split(","):
                continue
            if peer.missing:
                print(f"{peer.name}: {peer.missing}, left out", file=sys.stderr)
                continue
            own = folder / peer.name.replace(" ", "-")
            own.mkdir(exist_ok=True)
            running.append((peer, stack.enter_context(process(peer.command, core, own, peer.environment))))
        for peer, _ in running:
            peers.wait_for(peer)
        for _ in range(arguments.rounds):
            for peer, pid in running:
                rows.setdefault(peer.name, []).append(measure(peer, pid, arguments))
    report(rows, arguments)
    return 0


def report(rows: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items()
    }
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}"
    print(f"{date}, {machine}, {arguments.connections} connections, 1 KiB, median of {arguments.rounds} rounds")
    print("| | requests/s | p50 ms | p99 ms | CPU us/request | range | RSS MiB |\n|---|---|---|---|---|---|---|")
    for name, row in medians.items():
        cpu = sorted(run["cpu_us"] for run in rows[name])
        print(
            f"| {name} | {row['requests_per_s']:.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |"
            f" {row['cpu_us']:.0f} | {cpu[0]:.0f}-{cpu[-1]:.0f} | {row['rss_mib']:.0f} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"date": date, "rows": rows}, indent=2))


if __name__ == "__main__":
    if find_spec("engadi_gateway") is None:
        raise SystemExit("run it from the project's root")
    sys.exit(main())
