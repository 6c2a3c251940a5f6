"""This gateway against its peers: `python -m tests.bench`; `--help` says what can be chosen, `--list` from what.

Every peer is one process with one worker, pinned to one core; the load and the upstream have another. CPU per request
is read from the kernel's accounting of the peer's processes. No two requests are alike, and every answer is compared
with what its request must get. Rounds go over all peers in turn, the median is shown, and how far the rounds lie apart.
What is not installed is named, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import picture
from tests.bench.loads import GROUPS, LOADS, Load
from tests.bench.peers import Peer
from tests.bench.peers.registry import PEERS
from tests.bench.report import markdown
from tests.bench.rounds import Bench, Cell, Plan, cells_of, run


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    last = max(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default="all", help="names, with commas between them (default: all)")
    parser.add_argument("--loads", default="quick", help=f"names, or one of {', '.join(GROUPS)} (default: quick)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: 4)")
    parser.add_argument("--warm", type=float, default=1.0, help="seconds before each (default: 1)")
    parser.add_argument("--core", type=int, default=last, help=f"the peers' (default: {last})")
    parser.add_argument("--load-core", type=int, default=min(os.sched_getaffinity(0)), help="the load's (default: 0)")
    parser.add_argument("--json", type=Path, help="write every round here")
    parser.add_argument("--picture", type=Path, help="draw it: .svg or .png")
    parser.add_argument("--list", action="store_true", help="name the loads and the peers, and stop")
    return parser.parse_args(argv)


def chosen_loads(text: str) -> list[Load]:
    """Raises SystemExit for a name that there is not."""
    names = [name for word in text.split(",") for name in GROUPS.get(word, (word,))]
    return [LOADS[name] for name in _known(names, LOADS)]


def chosen_peers(text: str) -> list[Peer]:
    return [PEERS[name] for name in _known(list(PEERS) if text == "all" else text.split(","), PEERS)]


def _known(names: list[str], table: Iterable[str]) -> list[str]:
    unknown = [name for name in names if name not in table]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(table)}")
    return list(dict.fromkeys(names))


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def document_of(cells: list[Cell], peers: list[Peer], missing: dict[str, str], plan: Plan) -> dict[str, Any]:
    """Everything that is known of the run, for JSON."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "plan": {"rounds": plan.rounds, "seconds": plan.seconds, "warm_s": plan.warm_s},
        "missing": missing,
        "peers": {
            peer.name: {"version": peer.version(), "duties": list(peer.duties), "note": peer.note} for peer in peers
        },
        "cells": [
            {
                "load": cell.load.name,
                "title": cell.load.title,
                "peer": cell.peer.name,
                "is_own": cell.load.is_own,
                "connections": cell.load.connections,
                "error": cell.error,
                "rounds": cell.rounds,
            }
            for cell in cells
        ],
    }


def line_of(number: int, cell: Cell) -> str:
    if cell.error:
        return f"round {number}  {cell.load.name:18} {cell.peer.name:15} {cell.error}"
    last = cell.rounds[-1]
    return (
        f"round {number}  {cell.load.name:18} {cell.peer.name:15} {last['requests_per_s']:8.0f}/s"
        f"  p50 {last['p50_ms']:8.2f}  p99 {last['p99_ms']:8.2f} ms  CPU {last['cpu_us']:7.1f} us"
        f"  cores {last['core_share']:.2f} {last['load_core_share']:.2f}  {last['resident_mib']:.0f} MiB"
    )


def list_all() -> None:
    print("loads:")
    for load in LOADS.values():
        print(f"  {load.name:18} {load.title}{' (this gateway only)' if load.is_own else ''}")
    print("peers:")
    for peer in PEERS.values():
        print(f"  {peer.name:18} {peer.missing() or peer.version()}: {', '.join(peer.duties)}")
        if peer.note:
            print(f"  {'':18} {peer.note}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = Plan(arguments.rounds, arguments.seconds, arguments.warm, arguments.core, arguments.load_core)
    loads, peers = chosen_loads(arguments.loads), chosen_peers(arguments.peers)
    missing = {peer.name: why for peer in peers if (why := peer.missing())}
    for name, why in missing.items():
        say(f"{name} is left out: {why}")
    if plan.core == plan.load_core:
        say("one core for everything: requests/s and latency say little here, CPU per request more")
    there = [peer for peer in peers if peer.name not in missing]
    cells = cells_of(loads, there)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Bench(Path(folder), plan) as bench:
        for number, cell in run(bench, cells, plan.rounds):
            say(line_of(number, cell))
    return document_of(cells, there, missing, plan)


def main() -> int:
    arguments = parse()
    if arguments.list:
        list_all()
        return 0
    document = measure(arguments)
    print(markdown(document), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1))
    if arguments.picture and (why := picture.missing()):
        say(f"no picture: {why}")
    elif arguments.picture:
        picture.draw(document, arguments.picture)
    return 1 if any(cell["error"] for cell in document["cells"]) else 0


if __name__ == "__main__":
    sys.exit(main())
