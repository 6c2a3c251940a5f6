"""Serves, and notes where its main thread is: `python -m tests.bench.sampler OUT.json [arguments of run.py]`.

SIGRTMIN begins, the signal after it ends and writes OUT.json (the gateway has use for the others). A timer of CPU time (ITIMER_PROF) interrupts at each tick of the
kernel; each stack found weighs what the main thread has spent since the last one, the sampling itself left out. The
other threads are not sampled: what each spent is read from its own clock.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from engadi_gateway.cli.commands import main as cli_main

BEGIN, END = int(signal.SIGRTMIN), int(signal.SIGRTMIN) + 1
_TICK_S = 0.001  # asked for; the kernel gives what its ticks allow


class Sampler:
    """What was seen between `begin` and `end`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stacks: Counter[tuple[CodeType, ...]] = Counter()  # the innermost first; weights in ns
        self._samples = 0
        self._since_ns = 0
        self._threads: dict[str, int] = {}
        self._whole_ns = 0

    def begin(self, number: int, frame: FrameType | None) -> None:
        gc.callbacks.append(self._collector)
        self._threads = _thread_clocks()
        self._whole_ns = time.process_time_ns()
        self._since_ns = time.thread_time_ns()
        signal.setitimer(signal.ITIMER_PROF, _TICK_S, _TICK_S)
        self._path.with_suffix(".begun").touch()  # two signals sent at once can come in either order

    def sample(self, number: int, frame: FrameType | None) -> None:
        now = time.thread_time_ns()
        stack = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        self._stacks[tuple(stack)] += now - self._since_ns
        self._samples += 1
        self._since_ns = time.thread_time_ns()

    def end(self, number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        gc.callbacks.remove(self._collector)
        whole_ns = time.process_time_ns() - self._whole_ns
        threads = {name: spent - self._threads.get(name, 0) for name, spent in _thread_clocks().items()}
        document = {
            "samples": self._samples,
            "process_ns": whole_ns,
            "threads": {name: spent for name, spent in threads.items() if spent > 0},
            "stacks": [[[_name(code) for code in stack], weight] for stack, weight in self._stacks.items()],
        }
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps(document))
        unfinished.rename(self._path)  # whoever waits for it sees it whole

    def _collector(self, phase: str, info: dict[str, Any]) -> None:
        """Has nothing to do but to be there: what the collector spends is found here when it ends."""


def _thread_clocks() -> dict[str, int]:
    """CPU ns of every other thread so far, by name."""
    clocks = {}
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and thread.ident is not None:
            clocks[thread.name] = time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
    return clocks


def _name(code: CodeType) -> tuple[str, str]:
    return code.co_filename, code.co_name


def main() -> int:
    sampler = Sampler(Path(sys.argv[1]))
    signal.signal(BEGIN, sampler.begin)
    signal.signal(END, sampler.end)
    signal.signal(signal.SIGPROF, sampler.sample)
    return cli_main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
