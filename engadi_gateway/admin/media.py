"""Which of our media types a client prefers (RFC 9110 section 12.5.1)."""

from __future__ import annotations

import re

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE | re.ASCII)


def preferred(accept: bytes, offered: tuple[str, ...]) -> str:
    """The offered type with the highest quality, the first of equals; the first one where none is acceptable."""
    ranges = [_range(part) for part in accept.decode("latin-1").split(",") if part.strip()]
    if not ranges:
        return offered[0]
    qualities = [_quality(kind.partition(";")[0], ranges) for kind in offered]
    return offered[qualities.index(max(qualities))]


def _range(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip() for part in text.split(";"))
    marks = [mark for part in parameters if (mark := _QUALITY.fullmatch(part))]
    return kind.lower(), float(marks[0][1]) if marks else 1.0


def _quality(kind: str, ranges: list[tuple[str, float]]) -> float:
    """The most specific range that fits decides."""
    for wanted in (kind, kind.partition("/")[0] + "/*", "*/*"):
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0
