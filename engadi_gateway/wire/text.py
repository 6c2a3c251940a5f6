"""What heads of both directions have in common: bytes that no line may hold, and memories of what strangers send."""

from __future__ import annotations

from typing import TypeVar

_MEMO_TEXT_BYTES = 64
T = TypeVar("T")

#: For `translate`: control characters, but tabs, become LF, so that one count finds them beside the ends of lines.
_CONTROLS_AS_LF = bytes(0x0A if (code < 0x20 and code != 0x09) or code == 0x7F else code for code in range(256))


def is_tame(head: bytes, line_ends: int) -> bool:
    """Whether a head with so many CRLF in it has no other control characters than these and tabs."""
    return head.translate(_CONTROLS_AS_LF).count(b"\n") == 2 * line_ends


def remember(memo: dict[bytes, T], text: bytes, meaning: T, most: int) -> None:
    """Keep what a text means, unless it is long. Strangers choose the texts: where they are too many, all go."""
    if len(text) > _MEMO_TEXT_BYTES:
        return
    if len(memo) >= most:
        memo.clear()
    memo[text] = meaning
