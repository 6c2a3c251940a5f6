"""Engadi Gateway: one process between strangers and nine services that trust it.

Four floors; a file imports only from lower floors or its own room (`tests/test_floors.py` proves it):

    words      model  errors  settings/
    decisions  pipeline/  wire/
    effects    net/  store/
    flow       health  authority  explain  record/  admin/  gateway/  cli/
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engadi_gateway.gateway.gateway import Gateway
    from engadi_gateway.settings.load import Settings

__all__ = ["Gateway", "Settings", "__version__"]
__version__ = "0.1.0"

_HOMES = {"Gateway": "engadi_gateway.gateway.gateway", "Settings": "engadi_gateway.settings.load"}


def __getattr__(name: str) -> Any:
    """Load the embedding names when asked for, so that `--version` works where a dependency is missing."""
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(import_module(_HOMES[name]), name)
