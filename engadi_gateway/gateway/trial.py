"""What of the settings only trying shows: it leaves nothing behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.gateway.assembly import token_judge
from engadi_gateway.gateway.tls import client_tls, server_tls
from engadi_gateway.pipeline.cors import cors_faults
from engadi_gateway.settings.load import Settings
from engadi_gateway.store.files import at_home
from engadi_gateway.wire.headers import RESERVED


def trial_faults(settings: Settings) -> list[Fault]:
    """Of folders, keys, claims' headers, the CORS policy, the certificate, authorities."""
    faults = _folder_faults(settings)
    faults += [
        Fault("jwt.claim_headers", f"{header} is no field for a claim: the gateway writes it, or goes by it")
        for _, header in settings.jwt_claim_headers
        if header.lower().encode("ascii") in RESERVED
    ]
    for fault in cors_faults(settings.cors_policy):
        name, _, index = fault.pointer[1:].partition("/")
        faults.append(Fault(f"cors.{name}", f"entry {int(index) + 1}: {fault.detail}" if index else fault.detail))
    attempts: list[Callable[[Settings], object]] = [token_judge, server_tls]
    attempts += [client_tls] if settings.upstream_tls_ca_file else []
    for attempt in attempts:
        try:
            attempt(settings)
        except ConfigurationError as error:
            faults += error.faults
    return faults


def _folder_faults(settings: Settings) -> list[Fault]:
    """Where databases and sockets are to be: sqlite makes files beside its own, however writable these are."""
    options: dict[Path, str] = {}
    faults = []
    for option, path in (
        ("database.url", settings.database_url),
        ("database.log_url", settings.log_path),
        ("server.unix_socket", settings.server_unix_socket),
    ):
        said = _name_fault(path) if path else ""
        if said:
            faults.append(Fault(option, said))
        elif path:
            options.setdefault(Path(at_home(path)).absolute().parent, option)
    for folder, option in options.items():
        if not folder.is_dir():
            faults.append(Fault(option, f"no such folder: {folder}"))
        elif not os.access(folder, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
            said = os.strerror(errno.EROFS if is_read_only else errno.EACCES)
            faults.append(Fault(option, f"cannot write in {folder}: {said}"))
    return faults


def _name_fault(path: str) -> str:
    """Why there can be no file of that name, or "": a folder, too long, in a folder that is closed to us."""
    try:
        return f"{path} is a folder" if stat.S_ISDIR(Path(path).stat().st_mode) else ""
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:  # which is_dir() takes for a no, since Python 3.13
        return f"{path}: {error.strerror}"


def refuse_faults(settings: Settings) -> None:
    """Raises ConfigurationError with all that `trial_faults` finds."""
    faults = trial_faults(settings)
    if faults:
        raise ConfigurationError(faults)
