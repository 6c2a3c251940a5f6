"""A target's URL taken apart: what makes two connections the same, and what a request to it needs."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """Everything that makes two connections the same, and what a request to it needs."""

    scheme: str
    host: str
    port: int
    authority: bytes
    base_path: bytes
    key: tuple[str, str, int]


def target_name(key: tuple[str, str, int]) -> str:
    """How a target is written, of its scheme, host and port."""
    return "{}://{}:{}".format(*key)


def origin_of(url: str) -> Origin:
    """A configured base URL, validated when it was configured."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    host = parts.hostname or ""
    default = 443 if scheme == "https" else 80
    port = parts.port or default
    name = f"[{host}]" if ":" in host else host
    authority = name if port == default else f"{name}:{port}"
    path = parts.path.rstrip("/").encode("ascii")
    return Origin(scheme, host, port, authority.encode("ascii"), path, (scheme, host, port))
