"""What heads of both directions have in common: bytes that no line may hold, and memories of what strangers send."""

from __future__ import annotations

from typing import TypeVar

_MEMO_TEXT_BYTES = 64
T = TypeVar("T")

#: For `translate`: makes control characters spaces, but tabs, CR and LF, so that one comparison finds them.
TAME = bytes(0x20 if (code < 0x20 and code not in b"\t\r\n") or code == 0x7F else code for code in range(256))


def remember(memo: dict[bytes, T], text: bytes, meaning: T, most: int) -> None:
    """Keep what a text means, unless it is long. Strangers choose the texts: where they are too many, all go."""
    if len(text) > _MEMO_TEXT_BYTES:
        return
    if len(memo) >= most:
        memo.clear()
    memo[text] = meaning
