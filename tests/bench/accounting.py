"""What a group of processes costs, from the kernel's own accounting, and how one is started on a core of its own.

CPU time is read from each process's CPU clock (`clock_getcpuclockid`, nanoseconds, all threads, those that ended too);
/proc/<pid>/stat counts the same in hundredths of a second. Memory is what is resident, from /proc/<pid>/status.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_STOP_S = 15.0
#: In place of a core: any of them.
ANYWHERE = -1


def members(group: int) -> list[int]:
    """The process ids of a process group, without those that have ended and wait to be reaped."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _group_of(entry) == group:
            found.append(int(entry.name))
    return sorted(found)


def _group_of(entry: Path) -> int:
    try:
        state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:  # it has just ended
        return -1
    return -1 if state == "Z" else int(group)


def cpu_s(pid: int) -> float:
    """CPU seconds of one process since its start; 0 when it is gone."""
    clock = ctypes.c_int32()
    if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        return 0.0
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return 0.0


def readings(groups: Iterable[int]) -> dict[int, float]:
    """CPU seconds so far, by process id, of every member of these groups."""
    return {pid: cpu_s(pid) for group in groups for pid in members(group)}


def spent_s(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """CPU seconds between two readings; a process that began in between counts whole."""
    return sum(value - before.get(pid, 0.0) for pid, value in after.items() if value)


def resident_mib(group: int) -> float:
    """Resident memory of a process group in MiB; pages that its members share count once for each."""
    return sum(map(_resident_kib, members(group))) / 1024


def _resident_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def cores_of(core: int) -> set[int]:
    """What that stands for."""
    return os.sched_getaffinity(0) if core == ANYWHERE else {core}


class Process:
    """A program in a session of its own, pinned to one core; what it says goes to `folder`/output."""

    def __init__(self, command: Sequence[str], folder: Path, core: int, environment: Mapping[str, str]) -> None:
        self._path = folder / "output"
        self._output = self._path.open("ab")
        ours = os.sched_getaffinity(0)
        os.sched_setaffinity(
            0, cores_of(core)
        )  # inherited; a child that pins itself would need a hook between fork and exec
        try:
            self._child = subprocess.Popen(
                list(command),
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, ours)

    @property
    def group(self) -> int:
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def last_words(self) -> str:
        """The first line that speaks of an error, or else the last one that it said."""
        lines = self._path.read_text(errors="replace").strip().splitlines() or ["nothing said"]
        return next((line for line in lines if "error" in line.lower()), lines[-1])[:300]

    def pause(self) -> None:
        """Take it off the core while another is measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, and whatever it started; a second time does nothing."""
        if self._output.closed:
            return
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)
        self._child.wait()
        self._output.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.group, number)
        except ProcessLookupError:
            pass
