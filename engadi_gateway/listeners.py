"""Doors: TCP, unix and inherited sockets, TLS, and what systemd is told.

Sockets are bound before anything else is opened, so that "cannot bind" (exit 69) is said at once and nothing else has
happened yet.
"""

from __future__ import annotations

import os
import resource
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.model import Listener
from engadi_gateway.settings import Settings

_FIRST_FD = 3


class BindError(Exception):
    """Raised when an address cannot be bound; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Door:
    """A bound socket and what a connection through it is."""

    socket: socket.socket
    listener: Listener
    name: str


def open_doors(settings: Settings, inherited: list[socket.socket]) -> list[Door]:
    """Bind everything the settings name, or take what was inherited in place of it.

    Raises:
        BindError: whatever was bound is closed again.
    """
    scheme = "https" if settings.server_tls_certificate else "http"
    has_own_admin = bool(settings.admin_listen)
    doors: list[Door] = []
    try:
        if inherited:
            doors += [_door(sock, scheme, serves_admin=not has_own_admin) for sock in inherited]
        else:
            port = settings.server_port
            for host in settings.server_host:
                sock = bind_tcp(host, port, settings)
                doors.append(_door(sock, scheme, serves_admin=not has_own_admin))
                port = port or sock.getsockname()[1]  # port 0: all addresses get the one that was free
            if settings.server_unix_socket:
                sock = bind_unix(settings.server_unix_socket, settings.server_backlog)
                doors.append(_door(sock, scheme, serves_admin=not has_own_admin))
        if has_own_admin:
            host, _, port_text = settings.admin_listen.rpartition(":")
            sock = bind_tcp(host.strip("[]"), int(port_text), settings)
            doors.append(
                Door(sock, Listener(scheme, sock.getsockname()[1], True, True), f"admin {_name(sock, scheme)}")
            )
    except BindError:
        for door in doors:
            door.socket.close()
        raise
    return doors


def _door(sock: socket.socket, scheme: str, *, serves_admin: bool) -> Door:
    address = sock.getsockname()
    port = address[1] if isinstance(address, tuple) else 0
    return Door(sock, Listener(scheme, port, False, serves_admin), _name(sock, scheme))


def _name(sock: socket.socket, scheme: str) -> str:
    address = sock.getsockname()
    if not isinstance(address, tuple):
        return f"unix:{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{scheme}://{host}:{address[1]}"


def bind_tcp(host: str, port: int, settings: Settings) -> socket.socket:
    """A listening TCP socket; IPv6 ones are for IPv6 only, so that `0.0.0.0, ::` binds both."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
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
        raise BindError(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}") from None
    return sock


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
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            return


def allow_open_files(wanted: int) -> None:
    """Raise this process's own limit of open files, as far as the host lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def inherited_sockets() -> list[socket.socket]:
    """What socket activation handed over (sd_listen_fds(3)); the environment is cleaned for children."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(key, None)
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + count):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        found.append(sock)
    return found


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


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """The listeners' TLS, or None.

    Raises:
        ConfigurationError: the files cannot be used.
    """
    if not settings.server_tls_certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    renew_tls(context, settings)
    return context


def renew_tls(context: ssl.SSLContext, settings: Settings) -> None:
    """Read certificate and key into a context; handshakes from now on use them.

    Raises:
        ConfigurationError: the files cannot be used; the context may be left with half of them, unless they were just
            tried with `server_tls`.
    """
    versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    try:
        context.load_cert_chain(settings.server_tls_certificate, settings.server_tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError([Fault("server.tls_certificate", f"cannot be used: {error}")]) from None
    context.minimum_version = versions[settings.server_tls_min_version]


def client_tls(settings: Settings) -> ssl.SSLContext:
    """TLS towards upstreams: verified, always.

    Raises:
        ConfigurationError: the file of authorities cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=settings.upstream_tls_ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError([Fault("upstream.tls_ca_file", f"cannot be used: {error}")]) from None
