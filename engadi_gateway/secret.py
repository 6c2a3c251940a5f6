"""The secret key: from the settings, or in development one that is made once and kept beside the database."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.settings import Settings

_KEY_BYTES = 48  # 64 characters, enough for HS512 too


def secret_path(settings: Settings) -> Path:
    return Path(f"{settings.database_url}.secret")


def needs_own_secret(settings: Settings) -> bool:
    """Whether symmetric tokens are to be judged and no key was given; production never gets here."""
    return not settings.jwt_secret_key and any(name.startswith("HS") for name in settings.jwt_algorithms)


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


def _read_or_make(path: Path) -> tuple[str, str]:
    if path.exists():
        return path.read_text(encoding="ascii").strip(), f"no SECRET_KEY: using the development key in {path}"
    key = secrets.token_urlsafe(_KEY_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key, f"no SECRET_KEY: made a development key and kept it in {path}"
