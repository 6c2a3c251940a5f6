"""Where this gateway's CPU goes, by stage, under real load: `python -m tests.bench.profile`.

It is served as `run.py serve` would, with a sampler of stacks in its process (`tests.bench.sampler`), whose own cost is
left out. A stack belongs to the innermost function that a stage is named for, so that what a stage calls in the standard
library is its own. Shares are good to about a percent; a C function's time is its caller's line's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.accounting import Process
from tests.bench.loads import LOADS, Load
from tests.bench.peers import ROOT, Command, Setup
from tests.bench.peers.engadi import command
from tests.bench.proof import ask
from tests.bench.report import table
from tests.bench.rounds import Bench, Plan, Running, wait_until
from tests.bench.sampler import BEGIN, END

_WAIT_S = 30.0
Code = Sequence[str]  # file name, function name

_READS = ("_read_ready", "_read_ready__data_received", "_read_ready__on_eof")
_WRITES = ("write", "writelines", "_write_ready", "_write_send", "_write_sendmsg")
#: (stage, part of the file's path, functions of it or () for all); in the order of a request's life.
STAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("recv", "asyncio/selector_events.py", _READS),
    ("send", "asyncio/selector_events.py", _WRITES),
    ("loop", "asyncio/", ()),
    ("loop", "/selectors.py", ()),
    ("client connection", "engadi_gateway/net/client.py", ()),
    ("client connection", "engadi_gateway/net/answering.py", ()),
    ("client connection", "engadi_gateway/net/receiving.py", ()),
    ("client connection", "engadi_gateway/net/endable.py", ()),
    ("client connection", "engadi_gateway/net/batch.py", ()),
    ("request: h11", "/h11/", ()),
    ("request: checks", "engadi_gateway/wire/request.py", ()),
    ("request: header lines", "engadi_gateway/wire/headers.py", ()),
    ("heads: control characters", "engadi_gateway/wire/text.py", ()),
    ("request: target", "engadi_gateway/wire/target.py", ()),
    ("request: chunks", "engadi_gateway/wire/chunked.py", ()),
    ("forwarding fields, upstream's head", "engadi_gateway/wire/forwarded.py", ()),
    ("forwarding fields, upstream's head", "engadi_gateway/net/outgoing.py", ()),
    ("stages: the walk", "engadi_gateway/pipeline/__init__.py", ()),
    ("stages: the walk", "engadi_gateway/pipeline/exchange.py", ()),
    ("stages: routing", "engadi_gateway/pipeline/routing.py", ()),
    ("stages: routing", "engadi_gateway/pipeline/table.py", ()),
    ("stages: routing", "engadi_gateway/pipeline/patterns.py", ()),
    ("stages: CORS", "engadi_gateway/pipeline/cors.py", ()),
    ("stages: JWT", "engadi_gateway/pipeline/identity.py", ()),
    ("stages: JWT", "engadi_gateway/pipeline/claims.py", ()),
    ("stages: limits", "engadi_gateway/pipeline/limits.py", ()),
    ("stages: limits", "engadi_gateway/pipeline/buckets.py", ()),
    ("stages: breaker", "engadi_gateway/pipeline/breaker.py", ()),
    ("stages: breaker", "engadi_gateway/pipeline/circuit.py", ()),
    ("stages: breaker", "engadi_gateway/pipeline/permits.py", ()),
    ("stages: breaker", "engadi_gateway/pipeline/targets.py", ()),
    ("forwarding", "engadi_gateway/net/forward.py", ()),
    ("forwarding", "engadi_gateway/net/giving_up.py", ()),
    ("forwarding", "engadi_gateway/net/relay.py", ()),
    ("forwarding", "engadi_gateway/net/upload.py", ()),
    ("pool", "engadi_gateway/net/pool.py", ()),
    ("pool", "engadi_gateway/net/pools.py", ()),
    ("pool", "engadi_gateway/net/origin.py", ()),
    ("upstream connection", "engadi_gateway/net/upstream.py", ()),
    ("reply: its head", "engadi_gateway/wire/response.py", ()),
    ("replies of our own", "engadi_gateway/wire/problem.py", ()),
    ("settling, log rows", "engadi_gateway/gateway/upcalls.py", ()),
    ("settling, log rows", "engadi_gateway/record/rows.py", ()),
    ("settling, log rows", "engadi_gateway/record/recorder.py", ()),
    ("settling, log rows", "engadi_gateway/record/accesslog.py", ()),
    ("settling, log rows", "engadi_gateway/store/", ()),
    ("metrics", "engadi_gateway/record/metrics.py", ()),
    ("connections, deadlines", "engadi_gateway/net/", ()),
    ("other of ours", "engadi_gateway/", ()),
    ("garbage collector", "tests/bench/sampler.py", ("_collector",)),
)
OTHER = "other"
_ORDER = tuple(dict.fromkeys(stage for stage, _, _ in STAGES))


def stage_of(stack: Iterable[Code]) -> str:
    """Of a stack with the innermost function first."""
    for path, function in stack:
        for stage, part, functions in STAGES:
            if part in path and (not functions or function in functions):
                return stage
    return OTHER


def shares(stacks: Sequence[tuple[Sequence[Code], float]]) -> dict[str, float]:
    """Weight of each stage, in the order of a request's life."""
    found: defaultdict[str, float] = defaultdict(float)
    for stack, weight in stacks:
        found[stage_of(stack)] += weight
    return {stage: found[stage] for stage in (*_ORDER, OTHER) if found[stage]}


def functions(stacks: Sequence[tuple[Sequence[Code], float]], most: int) -> list[tuple[str, float]]:
    """The heaviest functions by what is spent in themselves, with the C functions that they call."""
    found: defaultdict[str, float] = defaultdict(float)
    for stack, weight in stacks:
        path, function = stack[0]
        found[f"{'/'.join(Path(path).parts[-2:])}:{function}"] += weight
    return sorted(found.items(), key=lambda item: -item[1])[:most]


def report(document: dict[str, Any], requests: int, most: int) -> str:
    """Tables: stages, then functions; us are of CPU time a request."""
    stacks = document["stacks"]
    main_ns = max(1, document["process_ns"] - sum(document["threads"].values()))
    sampled = max(1, sum(weight for _, weight in stacks))
    whole_us = document["process_ns"] / requests / 1000

    def row(name: str, nanoseconds: float) -> list[str]:
        return [name, f"{nanoseconds / requests / 1000:.2f}", f"{nanoseconds / document['process_ns'] * 100:.1f} %"]

    rows = [row(stage, weight / sampled * main_ns) for stage, weight in shares(stacks).items()]
    rows += [row(f"thread: {name}", spent) for name, spent in sorted(document["threads"].items())]
    rows.append(["all", f"{whole_us:.2f}", "100 %"])
    parts = [f"{requests:,} requests, {document['samples']:,} samples"]
    parts += ["", *table(["stage", "us", "share"], rows)]
    heavy = [row(f"`{name}`", weight / sampled * main_ns) for name, weight in functions(stacks, most)]
    return "\n".join([*parts, "", *table(["function, by itself", "us", "share"], heavy)]) + "\n"


def profile(load: Load, arguments: argparse.Namespace) -> str:
    """Serve under the load and say where the time went. Raises SystemExit when answers are wrong."""
    plan = Plan(1, arguments.seconds, 2.0, arguments.core, arguments.load_core)
    with tempfile.TemporaryDirectory(prefix="profile-") as name, Bench(Path(name), plan) as bench:
        place = bench.place("engadi", replace(load.setup, loop=arguments.loop))
        found = place.folder / "stacks.json"
        served = command(place, is_full=load.is_full)
        sampled = [sys.executable, "-m", "tests.bench.sampler", str(found), *served.arguments[2:]]
        process = bench.start(Command(sampled, {"PYTHONPATH": str(ROOT)}), "engadi", plan.core)
        wait_until(lambda: ask(place.port).is_good, process, _WAIT_S)
        running = Running(process, place.port)
        bench.load(load, running)  # what is made once is made now
        os.kill(process.group, BEGIN)
        result = bench.load(replace(load, warm_requests=0), running, warm_s=0.0)
        os.kill(process.group, END)
        if result["bad"]:
            raise SystemExit(f"{result['bad']} wrong answers, the first: {result['first_bad']}")
        return report(_written(found, process), result["requests"], arguments.top)


def _written(path: Path, process: Process) -> dict[str, Any]:
    deadline = time.monotonic() + _WAIT_S
    while not path.exists():
        if not process.is_running or time.monotonic() > deadline:
            raise SystemExit(f"no samples: {process.last_words()}")
        time.sleep(0.02)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", default="full", choices=LOADS, metavar="NAME", help="default: full")
    parser.add_argument("--seconds", type=float, default=20.0, help="default: 20")
    parser.add_argument("--top", type=int, default=25, help="how many functions (default: 25)")
    parser.add_argument("--loop", default=Setup().loop, choices=("asyncio", "uvloop"))
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--load-core", type=int, default=min(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    print(profile(LOADS[arguments.load], arguments), end="")


if __name__ == "__main__":
    main()
