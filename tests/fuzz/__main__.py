"""`python -m tests.fuzz [--seconds 60 | --rounds N] [--seed N] [replies] [chunks] [streams] [names] [paths] [live]`: bytes made up.

Everything follows from the seed: a fault is printed with the part and the round in which it is found again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz import identity, live, offline

OFFLINE: dict[str, Callable[[Random], list[str]]] = {
    "replies": offline.replies,
    "chunks": offline.chunks,
    "streams": offline.streams,
    "names": identity.names,
    "paths": identity.paths,
}
PARTS = (*OFFLINE, "live")
_ROUNDS_PER_WORLD = 20
_SHOWN = 20


@dataclass(frozen=True)
class Bounds:
    """When a part ends: after so many rounds, or so many seconds, whichever comes first."""

    rounds: int
    seconds: float

    def allows(self, done: int, started: float) -> bool:
        return done < self.rounds and time.monotonic() - started < self.seconds


def run_offline(part: str, seed: int, bounds: Bounds) -> tuple[str, list[str]]:
    """What was done, and what was wrong."""
    started, done = time.monotonic(), 0
    wrong: list[str] = []
    while bounds.allows(done, started) and len(wrong) < _SHOWN:
        wrong += [f"{part}, round {done}: {fault}" for fault in OFFLINE[part](Random(f"{seed} {part} {done}"))]
        done += 1
    return f"{done} made up", wrong


def run_live(seed: int, bounds: Bounds) -> tuple[str, list[str]]:
    """The same with a gateway; a round is eight connections."""
    started, done, tally = time.monotonic(), 0, live.Tally()
    while bounds.allows(done, started) and not tally.wrong:
        rounds = min(_ROUNDS_PER_WORLD, bounds.rounds - done)
        with tempfile.TemporaryDirectory() as folder:
            world = live.World(Path(folder), Random(f"{seed} live {done}"), tally)
            asyncio.run(world.run(rounds))
        done += rounds
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(tally.statuses.items()))
    text = f"{tally.requests} requests logged, {tally.answers} answers ({statuses}), {tally.sent_up} sent up"
    return text, [f"live, rounds to {done}: {fault}" for fault in tally.wrong]


def run(part: str, seed: int, bounds: Bounds) -> tuple[str, list[str]]:
    return run_live(seed, bounds) if part == "live" else run_offline(part, seed, bounds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of them together")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="for each of them, at most")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    args = parser.parse_args()
    parts = args.parts or PARTS
    wrong: list[str] = []
    print(f"seed {args.seed}")
    for part in parts:
        text, faults = run(part, args.seed, Bounds(args.rounds, args.seconds / len(parts)))
        print(f"{part:8} {text}, {len(faults)} wrong", flush=True)
        wrong += faults
    for fault in wrong[:_SHOWN]:
        print(f"  {fault[:3000]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
