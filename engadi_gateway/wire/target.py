"""The one normalisation of a request target: the string that is matched is the string that is forwarded.

RFC 3986 section 6.2.2, and a refusal where two servers could read a path differently. Nothing is ever decoded twice.
The query is forwarded as received.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

from engadi_gateway.errors import Reason, Refusal, RefusedError

#: For `translate`: in the shape of a path, `.` stands for what no segment may begin with, `#` for what is not plain.
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~!$&'()*+,=:@/"
_SHAPE = bytes(code if code in _PLAIN else ord(".") if code in b".;" else ord("#") for code in range(256))
_HASH = ord("#")
_FORBIDDEN = re.compile(rb'["<>\\^`#\x00-\x20\x7f-\xff]')
_BAD_TRIPLET = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_TRIPLET = re.compile(rb"%([0-9A-Fa-f]{2})")
_SLASHES = re.compile(rb"//+")
#: ASCII in more bytes than UTF-8 has for it; decoders that take it find dots and slashes nobody else sees.
_OVERLONG = re.compile(rb"%C[01]%[89AB]|%E0%[89]|%F0%8")
#: An escape of an escape, as deep as it goes.
_NESTED = re.compile(rb"%(?:25)+(?=[0-9A-Fa-f]{2})")
_SEPARATORS = re.compile(rb"[/\\]")
_CUT = re.compile(rb"[;?#]")
_DOTS = (b".", b"..")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)", re.DOTALL)


class NormalTarget(NamedTuple):
    """`target` is path and query as forwarded; `authority` that of an absolute-form target, or None."""

    target: bytes
    path: str
    has_encoded_slash: bool
    authority: bytes | None


def _refuse(detail: str) -> NoReturn:
    raise RefusedError(Refusal(Reason.BAD_REQUEST, detail))


def normalise(target: bytes, method: bytes) -> NormalTarget:
    """Normalise a request target (RFC 9112 section 3.2).

    Raises:
        RefusedError: BAD_REQUEST where the target is malformed or ambiguous.
    """
    raw_path, mark, query = target.partition(b"?")
    shape = raw_path.translate(_SHAPE).decode("ascii")  # looking for a string is a quarter of looking for bytes
    if shape[:1] == "/" and not ("#" in shape or "//" in shape or "/." in shape or _HASH in query):
        return NormalTarget(target, raw_path.decode("ascii"), False, None)
    if b"#" in target:
        _refuse("fragment in the request target")
    authority = None
    if target[:1] != b"/":
        if target == b"*":
            if method != b"OPTIONS":
                _refuse("* is a target for OPTIONS only")
            return NormalTarget(target, "*", False, None)
        authority, target = _absolute_form(target)
        if not target and method == b"OPTIONS":
            return NormalTarget(b"*", "*", False, authority)  # RFC 9112 section 3.2.4
        if target[:1] != b"/":
            target = b"/" + target
    raw_path, mark, query = target.partition(b"?")
    path, has_encoded_slash = _normalise_path(raw_path)
    return NormalTarget(path + mark + query, path.decode("ascii"), has_encoded_slash, authority)


def _absolute_form(target: bytes) -> tuple[bytes, bytes]:
    match = _ABSOLUTE.fullmatch(target)
    if match is None or not match[1]:
        _refuse("the request target must begin with /, http:// or https://")
    return match[1], match[2]


def _normalise_path(raw: bytes) -> tuple[bytes, bool]:
    if _FORBIDDEN.search(raw):
        _refuse("forbidden character in the path")
    if _BAD_TRIPLET.search(raw):
        _refuse("bad percent-encoding in the path")
    path = _TRIPLET.sub(_normal_triplet, raw)
    if _OVERLONG.search(path):
        _refuse("overlong UTF-8 in the path")
    path = _remove_dot_segments(_SLASHES.sub(b"/", path))
    return path, _has_hidden_slash(path)


def _has_hidden_slash(path: bytes) -> bool:
    """Whether a slash or a backslash is encoded, however often; what servers cannot agree on behind that is refused.

    None should decode this far, or cut parameters off where they do not mean it, but several do.
    """
    parts = _SEPARATORS.split(unquote_to_bytes(_NESTED.sub(b"%", path)))
    bare = [_CUT.split(part, maxsplit=1)[0].strip() for part in parts]
    if any(part in _DOTS for part in bare):
        _refuse("hidden dot segment in the path")
    if any(part and not rest.strip(b" .") for part, rest in zip(parts[:-1], bare, strict=False)):
        _refuse("empty segment with parameters in the path")
    has_slash = len(parts) > path.count(b"/") + 1
    if has_slash and any(b";" in part for part in parts):
        _refuse("encoded slash beside parameters in the path")
    return has_slash


def _normal_triplet(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16)
    if code < 0x20 or code == 0x7F:
        _refuse("control character in the path")
    return bytes((code,)) if code in _UNRESERVED else match[0].upper()


def _remove_dot_segments(path: bytes) -> bytes:
    """RFC 3986 section 5.2.4, but what leaves the root is refused."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment not in _DOTS:
            kept.append(segment)
        elif segment == b"..":
            if not kept:
                _refuse("the path leaves the root")
            kept.pop()
    if segments[-1] in _DOTS:
        kept.append(b"")
    return b"/" + b"/".join(kept)
