"""Throughput over processes: `python -m tests.bench.cores [--processes 1 2]`, all duties on.

So many gateways share a port and the databases (`[server] reuse_port`); first one that shares them with nobody. Nothing
is pinned, and load and upstream take cores of the same machine: requests/s grow only as far as they leave some. What a
process more costs is the CPU of a request; what cores of their own would give is what one core gives, times the cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.accounting import ANYWHERE
from tests.bench.loads import LOADS
from tests.bench.peers import Command, Setup
from tests.bench.peers.engadi import command
from tests.bench.report import table
from tests.bench.rounds import Bench, Plan, Running, figures, wait_until

_START_S = 60.0
_SHARED = {"ENGADI_SERVER_REUSE_PORT": "yes"}
#: They are one process group, and it ends when they have.
_LAUNCHER = """import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: None)
children = [subprocess.Popen(sys.argv[2:]) for _ in range(int(sys.argv[1]))]
sys.exit(max(child.wait() for child in children))
"""


@dataclass(slots=True)
class Row:
    """So many processes, and what each round gave."""

    name: str
    count: int
    environment: dict[str, str]
    rounds: list[dict[str, float]] = field(default_factory=list)


def rows_for(counts: list[int]) -> list[Row]:
    shared = [Row(f"{count}, sharing", count, _SHARED) for count in counts]
    return [Row("1, alone", 1, {}), *shared]


def started(bench: Bench, number: int, row: Row) -> Running:
    """The processes, listening, paused. Raises NotReadyError."""
    place = bench.place(f"{number:02d}-engadi", Setup())
    served = command(place, is_full=True)
    launched = [sys.executable, "-c", _LAUNCHER, str(row.count), *served.arguments]
    process = bench.start(Command(launched, {**served.environment, **row.environment}), place.folder.name, ANYWHERE)
    said = place.folder / "output"
    wait_until(lambda: said.read_text(errors="replace").count("listening on") == row.count, process, _START_S)
    process.pause()
    return Running(process, place.port)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Rounds go over all rows in turn. Raises SystemExit when answers are wrong."""
    plan = Plan(arguments.rounds, arguments.seconds, arguments.warm, ANYWHERE, ANYWHERE)
    rows = rows_for(arguments.processes)
    with tempfile.TemporaryDirectory(prefix="cores-") as name, Bench(Path(name), plan) as bench:
        running = [started(bench, number, row) for number, row in enumerate(rows)]
        for _ in range(plan.rounds):
            for row, ready in zip(rows, running, strict=True):
                ready.process.resume()
                result = bench.load(LOADS[arguments.load], ready)
                ready.process.pause()
                if result["bad"]:
                    raise SystemExit(f"{row.name}: {result['bad']} wrong answers, the first: {result['first_bad']}")
                row.rounds.append(figures(result))
                print(f"{row.name:12} {row.rounds[-1]['requests_per_s']:8.0f}/s", file=sys.stderr, flush=True)
    return rows


def report(rows: list[Row]) -> str:
    """Medians, and how far above the first row each is."""

    def median(row: Row, name: str) -> float:
        return statistics.median(one[name] for one in row.rounds)

    first = median(rows[0], "requests_per_s")
    head = ["processes", "requests/s", "x", "p50 ms", "p99 ms", "CPU us", "their cores", "load's cores", "a core gives"]
    lines = [
        [
            row.name,
            f"{median(row, 'requests_per_s'):,.0f}",
            f"{median(row, 'requests_per_s') / first:.2f}",
            f"{median(row, 'p50_ms'):.1f}",
            f"{median(row, 'p99_ms'):.1f}",
            f"{median(row, 'cpu_us'):.0f}",
            f"{median(row, 'core_share'):.2f}",
            f"{median(row, 'load_core_share'):.2f}",
            f"{1e6 / max(1.0, median(row, 'cpu_us')):,.0f}/s",
        ]
        for row in rows
    ]
    return "\n".join(table(head, lines)) + "\n"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.cores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--load", default="full", choices=LOADS, metavar="NAME", help="default: full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: 4)")
    parser.add_argument("--warm", type=float, default=1.0, help="seconds before each (default: 1)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    rows = measure(arguments)
    print(report(rows), end="")
    if arguments.json:
        document: list[dict[str, Any]] = [{"name": row.name, "rounds": row.rounds} for row in rows]
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
