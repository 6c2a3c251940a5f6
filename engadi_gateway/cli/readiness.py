"""Whether the gateway that the settings name is ready: what `run.py health` asks, for checks of containers."""

from __future__ import annotations

import contextlib
import http
import re
import socket
import ssl
import time

from engadi_gateway.settings.load import Settings

#: Less than Docker's checks have (30 s); those of Kubernetes ask /readyz themselves.
_TIMEOUT_S = 3.0
_LEAST_S = 0.001
_LONGEST_LINE = 1024
_START_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
#: Who listens everywhere is asked here.
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def why_not_ready(settings: Settings) -> str:
    """Ask /readyz at the first address, or the unix socket where there is none: "" for 200, else why not. Blocking."""
    where = f"{settings.server_host[0]} port {settings.server_port}" if settings.server_host else "unix_socket"
    if settings.server_host and not settings.server_port:
        return "server.port is 0: only the gateway itself knows which one it took"
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        with contextlib.closing(_connected(settings)) as sock, contextlib.closing(_with_tls(sock, settings)) as stream:
            status = _status(stream, deadline)
    except OSError as error:
        return f"{where}: {error}"
    return "" if status == http.HTTPStatus.OK else f"{where} says {status or 'nothing that is HTTP'}"


def _connected(settings: Settings) -> socket.socket:
    if settings.server_host:
        host = settings.server_host[0]
        return socket.create_connection((_HERE.get(host, host), settings.server_port), _TIMEOUT_S)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(settings.server_unix_socket)
    except OSError:
        sock.close()
        raise
    return sock


def _with_tls(sock: socket.socket, settings: Settings) -> socket.socket:
    """Whatever the certificate: nothing secret is said, and one that has expired is no reason for a restart."""
    if not settings.server_tls_certificate:
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(sock)


def _status(stream: socket.socket, deadline: float) -> int:
    """Of the reply; 0 for what is none."""
    stream.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    said = b""
    while b"\r\n" not in said and len(said) < _LONGEST_LINE:
        stream.settimeout(max(deadline - time.monotonic(), _LEAST_S))
        more = stream.recv(_LONGEST_LINE)
        if not more:
            break
        said += more
    match = _START_LINE.match(said)
    return int(match[1]) if match else 0
