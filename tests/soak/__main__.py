"""`python -m tests.soak RUN [--seed 1]`; `--help` names the runs, their modules say what each shows."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.soak import admin, faults, kills, many, restarts, streams

RUNS: dict[str, Callable[[Path, int, int], Coroutine[Any, Any, Any]]] = {
    "faults": lambda folder, count, seed: faults.soak(folder, requests=count, seed=seed),
    "kills": lambda folder, count, seed: kills.soak(folder, rounds=count, seed=seed),
    "shared": lambda folder, count, seed: kills.soak(folder, rounds=count, seed=seed, processes=3),
    "admin": lambda folder, count, seed: admin.soak(folder, examples=count, seed=seed),
    "many": lambda folder, count, seed: many.soak(folder, seconds=count),
    "drains": lambda folder, count, seed: restarts.drains(folder, rounds=count, seed=seed),
    "restarts": lambda folder, count, seed: restarts.restarts(folder, rounds=count, seed=seed),
    "streams": lambda folder, count, seed: streams.soak(folder, streams=count, writes=200, reloads=20, seed=seed),
}


def show(report: Any) -> int:
    """Print the figures; 1 where something is wrong."""
    document = dict(vars(report))
    wrong = document.pop("wrong")
    for name, value in document.items():
        text = ", ".join(f"{key}: {count}" for key, count in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):22} {text}")
    print(f"{'wrong':22} {len(wrong)}")
    for line in wrong[:50]:
        print(f"  {line[:300]}")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, count, default in (
        ("faults", "a flapping upstream under load", "--requests", 300_000),
        ("kills", "kill -9 under load", "--rounds", 50),
        ("shared", "kill -9 under load, three processes over the same databases", "--rounds", 50),
        ("streams", "WebSockets and event streams over 200 writes and 20 reloads", "--streams", 400),
        ("admin", "schemathesis against the admin API", "--examples", 500),
        ("many", "slow and many clients, each kind for so long", "--seconds", 10),
        ("drains", "SIGTERM under load", "--rounds", 20),
        ("restarts", "restarts under load, the socket held open", "--rounds", 20),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(count, type=int, default=default, dest="count")
        command.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return show(asyncio.run(RUNS[args.command](Path(folder), args.count, args.seed)))


if __name__ == "__main__":
    sys.exit(main())
