"""The secret key: from the settings, or in development one that is made once and kept beside the database."""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import replace
from pathlib import Path

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.settings.load import Settings

_KEY_BYTES = 48  # 64 characters, enough for HS512 too
_LEAST_CHARACTERS = 32


def secret_path(settings: Settings) -> Path:
    return Path(f"{settings.database_url}.secret")


def needs_own_secret(settings: Settings) -> bool:
    """Whether symmetric tokens are to be judged and no key was given; production never gets here."""
    is_judging = settings.jwt_mode != "remote" and any(name.startswith("HS") for name in settings.jwt_algorithms)
    return is_judging and not settings.jwt_secret_key


def with_secret(settings: Settings) -> tuple[Settings, str]:
    """The settings with a key, and a sentence when the key is one of our own making ("" otherwise).

    Raises:
        ConfigurationError: the file can be neither read nor made.
    """
    if not needs_own_secret(settings):
        return settings, ""
    path = secret_path(settings)
    try:
        key, said = _read_or_make(path)
    except OSError as error:
        raise ConfigurationError([Fault("jwt.secret_key", f"{path}: {error.strerror}")]) from None
    return replace(settings, values={**settings.values, "jwt_secret_key": key}), said


def secret_faults(settings: Settings) -> list[Fault]:
    """What `with_secret` would raise of a key that is there; makes none."""
    path = secret_path(settings)
    try:
        if needs_own_secret(settings):
            _read(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Fault("jwt.secret_key", f"{path}: {error.strerror}")]
    return []


def _read_or_make(path: Path) -> tuple[str, str]:
    try:
        return _read(path), f"no SECRET_KEY: using the development key in {path}"
    except FileNotFoundError:
        pass
    key = secrets.token_urlsafe(_KEY_BYTES)
    whole = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key + "\n")
        path.hardlink_to(whole)  # all of it or nothing, whatever happens meanwhile, and never in place of another's
    except FileExistsError:
        return _read(path), f"no SECRET_KEY: using the development key in {path}"
    finally:
        whole.unlink(missing_ok=True)
    return key, f"no SECRET_KEY: made a development key and kept it in {path}; other databases have others"


def _read(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if len(key) < _LEAST_CHARACTERS:
        raise OSError(errno.EINVAL, "holds no whole key; delete it, and another is made")
    return key
