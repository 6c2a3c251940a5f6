"""Starts the peers and measures them in rounds: in each round every cell (a load on a peer) once, one after the other.

So whatever the machine does for a while meets all of them alike. Who is not being measured is stopped (SIGSTOP), and
takes nothing from the core. Before it is measured, each is asked what it claims to do: a duty that cannot be seen is an
error of this benchmark, and no figure is given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.bench.accounting import Process, cores_of
from tests.bench.load import Job, failed
from tests.bench.loads import Load
from tests.bench.peers import PLENTY, ROOT, Command, Duty, Peer, Place, Setup, free_port
from tests.bench.proof import ask, breaker_fault, failing_upstream, faults_of, limit_fault

_START_S = 60.0
_SETTLE_S = 0.2
_GRACE_S = 180.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and where: `core` is the peers', `load_core` the load's and the upstream's."""

    rounds: int
    seconds: float
    warm_s: float
    core: int
    load_core: int


@dataclass(slots=True)
class Cell:
    """A load on a peer, with what each round gave; `error` says why there is nothing more."""

    load: Load
    peer: Peer
    rounds: list[dict[str, float]] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A peer's process, ready and paused."""

    process: Process
    port: int


class NotReadyError(Exception):
    """Raised when a peer does not start, or does not do what it claims."""


def figures(result: dict[str, Any]) -> dict[str, float]:
    """What is reported of one measurement."""
    requests, seconds = max(1, result["requests"]), result["seconds"]
    load_s = result["upstream_cpu_s"] + result["load_cpu_s"]
    return {
        "requests": result["requests"],
        "requests_per_s": result["requests"] / seconds,
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "max_ms": result["max_ms"],
        "cpu_us": result["cpu_s"] / requests * 1e6,
        "core_share": result["cpu_s"] / seconds,
        "load_core_share": load_s / seconds,
        "resident_mib": result["resident_mib"],
    }


class Bench:
    """The upstream, and the peers as they are needed; leaving it ends them all."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._stack = ExitStack()
        self._running: dict[tuple[str, bool, Setup], Running | NotReadyError] = {}
        self._tried: set[str] = set()
        self._upstream_port = free_port()

    def __enter__(self) -> Bench:
        command = Command(
            [sys.executable, "-m", "tests.bench.upstream", str(self._upstream_port)], {"PYTHONPATH": str(ROOT)}
        )
        self._upstream = self.start(command, "upstream", self._plan.load_core)
        wait_until(lambda: ask(self._upstream_port).is_good, self._upstream, _START_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def start(self, command: Command, name: str, core: int) -> Process:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        process = Process(command.arguments, folder, core, command.environment)
        self._stack.callback(process.stop)
        return process

    def place(self, name: str, setup: Setup, rate: int = PLENTY) -> Place:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return Place(folder, free_port(), self._upstream_port, rate, setup)

    def started(self, peer: Peer, setup: Setup, *, is_full: bool) -> Running:
        """The peer's process, started and tried the first time; raises NotReadyError every time if it is not ready."""
        key = (peer.name, is_full, setup)
        if key not in self._running:
            try:
                self._running[key] = self._first_start(peer, setup, is_full=is_full)
            except NotReadyError as error:
                self._running[key] = error
        found = self._running[key]
        if isinstance(found, NotReadyError):
            raise found
        return found

    def _first_start(self, peer: Peer, setup: Setup, *, is_full: bool) -> Running:
        name = f"{len(self._running):02d}-{peer.name.replace(' ', '-')}-{'full' if is_full else 'bare'}"
        place = self.place(name, setup)
        form = peer.full if is_full else peer.bare
        assert form is not None
        command = form(place)
        process = self.start(command, name, self._plan.core)
        wait_until(lambda: ask(place.port).is_good, process, _START_S)
        if is_full:
            faults = [*faults_of(peer, place), *self._faults_apart(peer)]
            if faults:
                raise NotReadyError("claimed, but not seen: " + "; ".join(faults))
        process.pause()
        return Running(process, place.port)

    def _faults_apart(self, peer: Peer) -> list[str]:
        """Of the duties that take a process of their own to be seen: where limits are small, where all fails."""
        if peer.name in self._tried:
            return []
        self._tried.add(peer.name)
        faults = []
        if Duty.LIMITS in peer.duties:
            place = self.place(f"limits-{peer.name.replace(' ', '-')}", Setup(), rate=1)
            faults.append(self._apart(peer, place, limit_fault))
        if Duty.BREAKER in peer.duties:
            with failing_upstream() as failing:
                place = self.place(f"breaker-{peer.name.replace(' ', '-')}", Setup())
                place = replace(place, upstream=failing.server_port)
                faults.append(self._apart(peer, place, lambda port: breaker_fault(port, failing)))
        return [fault for fault in faults if fault]

    def _apart(self, peer: Peer, place: Place, fault_of: Callable[[int], str]) -> str:
        assert peer.full is not None
        process = self.start(peer.full(place), place.folder.name, self._plan.core)
        try:
            wait_until(lambda: ask(place.port).status > 0, process, _START_S)
            return fault_of(place.port)
        finally:
            process.stop()

    def measure(self, cell: Cell) -> None:
        """One round of a cell. A wrong answer, or none, ends the cell and nothing else."""
        try:
            running = self.started(cell.peer, cell.load.setup, is_full=cell.load.is_full)
        except NotReadyError as error:
            cell.error = str(error)
            return
        except OSError as error:
            cell.error = repr(error)
            return
        running.process.resume()
        time.sleep(_SETTLE_S)
        try:
            result = self.load(cell.load, running, is_first=not cell.rounds)
        finally:
            running.process.pause()
        if result["bad"]:
            cell.error = f"{result['bad']} wrong answers, the first: {result['first_bad']}"
        else:
            cell.rounds.append(figures(result))

    def load(self, load: Load, running: Running, *, is_first: bool = True, **changes: Any) -> dict[str, Any]:
        """One run of the load generator on the load's core; `changes` are to the job."""
        plan = self._plan
        job = Job(
            port=running.port,
            connections=load.connections,
            seconds=plan.seconds,
            warm_s=plan.warm_s,
            warm_requests=load.warm_requests if is_first else 0,
            group=running.process.group,
            upstream_group=self._upstream.group,
            shape=load.shape,
        )
        return run_load(replace(job, **changes), plan.load_core)


def run_load(job: Job, core: int) -> dict[str, Any]:
    """A job in a process of its own."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores_of(core))
    limit_s = job.seconds + job.warm_s + _GRACE_S + (job.warm_requests + job.requests) / 1000
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.load", job.as_json()],
            capture_output=True, text=True, cwd=ROOT, timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return asdict(failed("the load did not end"))
    finally:
        os.sched_setaffinity(0, ours)
    if done.returncode != 0:
        return asdict(failed(done.stderr.strip().splitlines()[-1]))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def wait_until(condition: Callable[[], bool], process: Process, seconds: float) -> None:
    """Raises NotReadyError when the process ends before, or so many seconds pass."""
    deadline = time.monotonic() + seconds
    while process.is_running and time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise NotReadyError("does not answer" if process.is_running else f"ended at once: {process.last_words()}")


def cells_of(loads: list[Load], peers: list[Peer]) -> list[Cell]:
    """Every load with everybody whom it is asked of."""
    return [Cell(load, peer) for load in loads for peer in peers if _is_asked(load, peer)]


def _is_asked(load: Load, peer: Peer) -> bool:
    if load.is_own:
        return peer.name == "engadi"
    return not load.is_full or peer.full is not None


def run(bench: Bench, cells: list[Cell], rounds: int) -> Iterator[tuple[int, Cell]]:
    """Interleaved rounds; says after each measurement which it was."""
    for number in range(1, rounds + 1):
        for cell in cells:
            if not cell.error:
                bench.measure(cell)
                yield number, cell
