"""Doors: TCP, unix and inherited sockets, and what systemd is told.

Sockets are bound before anything else is opened, so that "cannot bind" (exit 69) is said at once and nothing else has
happened yet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from engadi_gateway.model import Listener
from engadi_gateway.settings.load import Settings

_FIRST_FD = 3


class BindError(Exception):
    """Raised when an address cannot be bound; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Door:
    """A bound socket and what a connection through it is; `path` is the file of a unix socket that is ours alone."""

    socket: socket.socket
    listener: Listener
    name: str
    is_inherited: bool = False
    path: str = ""

    def remove_path(self) -> None:
        """Before it closes; afterwards the path may be another's."""
        if self.path and self.socket.fileno() >= 0:
            Path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        self.remove_path()
        self.socket.close()


#: A socket that was handed over, and its name (LISTEN_FDNAMES); one named `admin` is the admin API's.
Inherited = tuple[str, socket.socket]
ADMIN = "admin"


def with_admin_door(settings: Settings, inherited: Sequence[Inherited]) -> Settings:
    """An inherited admin socket is what `admin.listen` would be."""
    addresses = [_name(sock, "tcp").removeprefix("tcp://") for name, sock in inherited if name == ADMIN]
    return replace(settings, values={**settings.values, "admin_listen": addresses[0]}) if addresses else settings


def open_doors(settings: Settings, inherited: Sequence[Inherited]) -> list[Door]:
    """Bind everything the settings name, or take what was inherited in place of it.

    Raises:
        BindError: whatever was bound is closed again.
    """
    doors: list[Door] = []
    with contextlib.ExitStack() as in_vain:
        for door in _bound(settings, inherited):
            in_vain.callback(door.close)
            doors.append(door)
        in_vain.pop_all()  # it was not
    return sorted(doors, key=lambda door: door.listener.is_admin)


def _bound(settings: Settings, inherited: Sequence[Inherited]) -> Iterator[Door]:
    """Each as soon as it is."""
    scheme = "https" if settings.server_tls_certificate else "http"
    for name, sock in inherited:
        yield replace(_door(sock, scheme, is_admin=name == ADMIN), is_inherited=True)
    if all(name == ADMIN for name, _ in inherited):
        yield from _bound_for_traffic(settings, scheme)
    if settings.admin_listen and not any(name == ADMIN for name, _ in inherited):
        host, _, port = settings.admin_listen.rpartition(":")
        yield _door(bind_tcp(host.strip("[]"), int(port), settings), scheme, is_admin=True)


def _bound_for_traffic(settings: Settings, scheme: str) -> Iterator[Door]:
    port = settings.server_port
    for host in settings.server_host:
        sock = bind_tcp(host, port, settings)
        port = port or sock.getsockname()[1]  # port 0: all addresses get the one that was free
        yield _door(sock, scheme)
    if settings.server_unix_socket:
        sock = bind_unix(settings.server_unix_socket, settings.server_backlog)
        yield replace(_door(sock, scheme), path=settings.server_unix_socket)


def _door(sock: socket.socket, scheme: str, *, is_admin: bool = False) -> Door:
    address = sock.getsockname()
    port = address[1] if isinstance(address, tuple) else 0
    name = f"admin {_name(sock, scheme)}" if is_admin else _name(sock, scheme)
    return Door(sock, Listener(scheme, port, is_admin), name)


def _name(sock: socket.socket, scheme: str) -> str:
    address = sock.getsockname()
    if not isinstance(address, tuple):
        return f"unix:{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{scheme}://{host}:{address[1]}"


def bind_tcp(host: str, port: int, settings: Settings) -> socket.socket:
    """A listening TCP socket; IPv6 ones are for IPv6 only, so that `0.0.0.0, ::` binds both."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY on sockets that say that they are TCP, which accepted ones take from this one
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.server_reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(settings.server_backlog)
    except (OSError, OverflowError) as error:
        sock.close()
        why = getattr(error, "strerror", None) or error
        raise BindError(f"cannot listen on {host} port {port}: {why}{_what_helps(error)}") from None
    return sock


def _what_helps(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return {
        errno.EADDRINUSE: "; `ss -ltnp` shows by whom",
        errno.EACCES: "; ports below 1024 take a socket unit or CAP_NET_BIND_SERVICE",
    }.get(number or 0, "")


def bind_unix(path: str, backlog: int) -> socket.socket:
    """A listening unix socket; what a crashed process left behind is replaced, a living one or a file is not."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        Path(path).chmod(0o660)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise BindError(f"cannot listen on unix:{path}: {error.strerror or error}") from None
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # one whose queue is full is alive, and may never have room
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            return


def allow_open_files(wanted: int) -> None:
    """Raise this process's own limit of open files, as far as the host lets it, and make room for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        soft = max(soft, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _make_room_for_files(wanted if soft == resource.RLIM_INFINITY else min(wanted, soft))


def _make_room_for_files(count: int) -> None:
    """At the start, while there is but one thread, and at a reload that wants more: the table never shrinks.

    Linux doubles it when it is full, and where a process has several threads that waits until no processor uses the
    old one: 8 to 26 ms measured in which nobody is served, at 256, 512, 1,024 files and so on, just when many come.
    """
    with contextlib.suppress(OSError), Path(os.devnull).open("rb") as file:
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD, count - 1))


def inherited_sockets() -> list[Inherited]:
    """What socket activation handed over (sd_listen_fds(3)); the environment is cleaned for children.

    Raises:
        BindError: the environment promises what is not there.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count, names = (os.environ.get(key, "") for key in ("LISTEN_FDS", "LISTEN_FDNAMES"))
    for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(key, None)
    if not re.fullmatch(r"[0-9]{1,4}", count):
        raise BindError(f"LISTEN_FDS: expected a number, not {count!r}")
    found = []
    for fd, name in zip_longest(range(_FIRST_FD, _FIRST_FD + int(count)), names.split(":")):
        if fd is None:
            break
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
        except OSError as error:
            raise BindError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from None
        found.append((name or "", sock))
    return found


def watchdog_interval_s() -> float:
    """How often systemd wants to hear WATCHDOG=1 (sd_watchdog_enabled(3)); 0: never."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if pid not in {"", str(os.getpid())} or not re.fullmatch(r"[0-9]{1,15}", usec):
        return 0.0
    return int(usec) / 1_000_000


def notify_systemd(message: str) -> bool:
    """sd_notify(3); False where nobody listens. A vanished supervisor is not our problem."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path[0] == "@" else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(message.encode(), address)
        except OSError:
            return False
    return True
