"""`python -m tests.soak faults [--requests 300000] [--seed 1]`: see the module of the same name."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.soak import faults


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
    flapping = commands.add_parser("faults", help="a flapping upstream under load")
    flapping.add_argument("--requests", type=int, default=300_000)
    flapping.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return show(asyncio.run(faults.soak(Path(folder), requests=args.requests, seed=args.seed)))


if __name__ == "__main__":
    sys.exit(main())
