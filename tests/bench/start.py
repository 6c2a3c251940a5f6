"""How fast this gateway is there, and what it holds: `python -m tests.bench.start [--requests 1000000]`.

From the start of the program to its first 200 (the median of several starts, databases made before), resident memory
when idle, and after each tenth of the requests, with all duties on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.accounting import Process, resident_mib
from tests.bench.loads import LOADS
from tests.bench.peers import Place, Setup
from tests.bench.peers.engadi import command
from tests.bench.proof import ask
from tests.bench.report import table
from tests.bench.rounds import Bench, NotReadyError, Plan, Running

_LOOK_S = 0.002
_MOST_S = 30.0
_IDLE_S = 2.0
_STEPS = 10


def first_answer_s(bench: Bench, place: Place, core: int) -> tuple[float, Process]:
    """Seconds until it answers 200 to a request with a token; raises NotReadyError."""
    served = command(place, is_full=True)
    began = time.perf_counter()
    process = bench.start(served, place.folder.name, core)
    while time.perf_counter() - began < _MOST_S and process.is_running:
        try:
            if ask(place.port).is_good:
                return time.perf_counter() - began, process
        except OSError:
            time.sleep(_LOOK_S)
    raise NotReadyError(process.last_words())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = Plan(1, 3600.0, 0.0, arguments.core, arguments.load_core)
    with tempfile.TemporaryDirectory(prefix="start-") as name, Bench(Path(name), plan) as bench:
        starts = []
        for number in range(arguments.starts + 1):
            place = bench.place("engadi", Setup())
            seconds, process = first_answer_s(bench, place, plan.core)
            starts.append(seconds)
            if number < arguments.starts:
                process.stop()
        time.sleep(_IDLE_S)
        held = [(0, resident_mib(process.group))]
        running = Running(process, place.port)
        for step in range(1, _STEPS + 1):
            result = bench.load(LOADS["full"], running, requests=arguments.requests // _STEPS)
            if result["bad"]:
                raise SystemExit(f"{result['bad']} wrong answers, the first: {result['first_bad']}")
            held.append((step * arguments.requests // _STEPS, result["resident_mib"]))
    return {"starts_s": starts[1:], "resident_mib": held}  # the first start reads files and compiles


def report(document: dict[str, Any]) -> str:
    starts = document["starts_s"]
    said = f"start to first 200: {statistics.median(starts):.3f} s ({min(starts):.3f} to {max(starts):.3f})"
    rows = [[f"{requests:,}", f"{mib:.1f}"] for requests, mib in document["resident_mib"]]
    return "\n".join([said, "", *table(["requests", "resident MiB"], rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--load-core", type=int, default=min(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    document = measure(arguments)
    print(report(document), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
