"""Who has a sqlite file open, and whose turn it is to write: flock(2) on empty files beside it.

`<path>.lock` is held as long as the file is open, by one process alone or by all that share it. Those that share take
turns, on `<path>.turn`: whoever opens, migrates, writes, checkpoints or closes has it. Both go with the process,
however it ends. The empty files stay: to remove one is to let somebody lock another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time

from engadi_gateway.store import files

_LEAST_PAUSE_S = 0.0005
_MOST_PAUSE_S = 0.02


class FileLock:
    """One lock. Not for several threads at once, but for the event."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self.has_given_up = threading.Event()  # whoever waits for it waits no more

    def refuse_unusable(self) -> None:
        """Raises OSError where the file is there and is not ours to open."""
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CLOEXEC))

    def take(self, *, is_shared: bool = False, wait_s: float = 0.0) -> bool:
        """Whether it could be had in time. Held in the other way, it is converted, and lost if that fails.

        Raises:
            OSError: there can be no such file here, or no lock.
        """
        if not self._has_name():  # a lock on a file that somebody removed keeps nobody out
            self.close()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        operation = (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        deadline, pause_s = time.monotonic() + wait_s, _LEAST_PAUSE_S
        while True:
            try:
                fcntl.flock(self._descriptor, operation)
            except BlockingIOError:
                if time.monotonic() >= deadline or self.has_given_up.is_set():
                    return False
            else:
                return True
            self.has_given_up.wait(pause_s)  # flock knows no time-out
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)

    def _has_name(self) -> bool:
        """Whether what is open is still what others would open by its name."""
        if self._descriptor < 0:
            return False
        mine = os.fstat(self._descriptor)
        return files.identity(self._path) == (mine.st_dev, mine.st_ino)

    def give(self) -> None:
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def refuse_unusable(path: str) -> None:
    """For who only looks at a database: raises OSError where its lock is there and could not be taken."""
    FileLock(f"{path}.lock").refuse_unusable()


class Locks:
    """Both locks of one database file.

    Args:
        is_shared: other processes may have the file open too, if they say the same.
    """

    def __init__(self, path: str, *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self._presence = FileLock(f"{path}.lock")
        self._turn = FileLock(f"{path}.turn")
        self._is_held = False

    def enter(self) -> bool:
        """Whether the file may be opened: False while another has it alone, or while others have it and we want to."""
        return self._presence.take(is_shared=self.is_shared)

    def is_alone(self) -> bool:
        """Whether nobody else has the file open; who hears False has left, and enters anew."""
        if not self.is_shared or self._presence.take():
            return True
        self._presence.close()
        return False

    def leave(self) -> None:
        self._presence.close()

    def take_turn(self, wait_s: float, *, is_held: bool = False) -> bool:
        """Whether it is our turn, if need be after so long. `is_held`: until `end_turn`, whatever `give_turn` says."""
        if self.is_shared and not self._is_held:
            if not self._turn.take(wait_s=wait_s):
                return False
            self._is_held = is_held
        return True

    def give_up(self) -> None:
        """From now on a turn is had at once or not at all; from any thread."""
        self._turn.has_given_up.set()

    def give_turn(self) -> None:
        if not self._is_held:
            self._turn.give()

    def end_turn(self) -> None:
        self._is_held = False
        self._turn.give()

    def close(self) -> None:
        self._turn.close()
        self._presence.close()
