"""Instructions a request takes: `python -m tests.bench.instructions [--peers engadi,nginx] [--loads bare,full]`.

Valgrind counts what a program does outside the kernel, so that a figure is the same however busy the machine is: it
tells a change of a hundredth, where times differ by a tenth from run to run. It knows nothing of the kernel, and little
of caches: what a request costs says `python -m tests.bench`. Each peer is served twice under the same load, with fewer
and with more requests, and the difference is divided by theirs; so what is done once is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.bench.__main__ import chosen_loads, chosen_peers
from tests.bench.loads import Load
from tests.bench.peers import Command, Peer
from tests.bench.proof import ask
from tests.bench.report import table
from tests.bench.rounds import Bench, Plan, Running, wait_until

_VALGRIND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
_COUNT = re.compile(r"^==\d+== I +refs: +([\d,]+)$", re.MULTILINE)
#: A program takes fifty times as long to start.
_START_S = 300.0


def counted(text: str) -> int:
    """The instructions that a log of valgrind's states; raises SystemExit where it states none."""
    found = _COUNT.findall(text)
    if not found:
        raise SystemExit(f"valgrind has counted nothing: {text.strip()[-300:]}")
    return sum(int(number.replace(",", "")) for number in found)


def under_valgrind(command: Command, log: Path) -> Command:
    """The same program, counted; with hashes that are the same each time, where it is Python."""
    arguments = [*_VALGRIND, f"--log-file={log}", *command.arguments]
    return Command(arguments, {**command.environment, "PYTHONHASHSEED": "0"})


def instructions(load: Load, peer: Peer, requests: int, plan: Plan) -> int:
    """Of a whole run, from start to stop, with so many requests. Raises SystemExit when answers are wrong."""
    with tempfile.TemporaryDirectory(prefix="counted-") as name, Bench(Path(name), plan) as bench:
        place = bench.place("counted", load.setup)
        form = peer.full if load.is_full else peer.bare
        assert form is not None
        log = place.folder / "valgrind.log"
        process = bench.start(under_valgrind(form(place), log), "counted", plan.core)
        wait_until(lambda: ask(place.port).is_good, process, _START_S)
        running = Running(process, place.port)
        result = bench.load(replace(load, warm_requests=0), running, requests=requests)
        if result["bad"]:
            raise SystemExit(f"{result['bad']} wrong answers, the first: {result['first_bad']}")
        process.stop()
        return counted(log.read_text())


def a_request(load: Load, peer: Peer, few: int, many: int, plan: Plan) -> str:
    """Instructions of one of those by which `many` are more than `few`; "" where the peer has no such form."""
    if load.is_full and peer.full is None:
        return ""
    more = instructions(load, peer, many, plan) - instructions(load, peer, few, plan)
    return f"{more / (many - few):,.0f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", default="engadi", help="names, with commas between them (default: engadi)")
    parser.add_argument("--loads", default="bare,full", help="names, with commas between them (default: bare,full)")
    parser.add_argument("--few", type=int, default=2000, help="requests; all users have asked then (default: 2000)")
    parser.add_argument("--many", type=int, default=6000, help="requests (default: 6000)")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--load-core", type=int, default=min(os.sched_getaffinity(0)))
    arguments = parser.parse_args(argv)
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed (Debian: valgrind)")
    plan = Plan(1, 3600.0, 0.0, arguments.core, arguments.load_core)
    loads, peers = chosen_loads(arguments.loads), chosen_peers(arguments.peers)
    rows = [
        [peer.name, *(a_request(load, peer, arguments.few, arguments.many, plan) for load in loads)] for peer in peers
    ]
    print("\n".join(table(["instructions a request", *(load.name for load in loads)], rows)))


if __name__ == "__main__":
    main()
