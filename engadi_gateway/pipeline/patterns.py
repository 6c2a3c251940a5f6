"""Patterns of paths, and how a lenient upstream could read a path that they are held against.

Patterns match the path as it is forwarded, to the letter. Many servers are not so exact: they decode once more, cut
`;parameters` off, find a query behind `%3F`, take a backslash for a slash, ignore case, a last slash, or dots and
spaces at a segment's end. All of that at once is a path's reading; patterns have readings of their own. So no spelling
goes past a stricter route, or past a limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from urllib.parse import unquote

_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
#: What a normalised segment can look like: no unreserved character (RFC 3986 section 2.3) is percent-encoded in it.
_LITERAL = re.compile(
    r"(?:[A-Za-z0-9._~!$&'()*+,;=:@\[\]|-]|%(?!2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AEF])[2-9A-F][0-9A-F])+"
)
#: What every server reads alike: most paths and nearly all literals of patterns.
_PLAIN = re.compile(r"(?:/[a-z0-9_~-]+(?:\.+[a-z0-9_~-]+)*)+")
#: An escape of an escape, as deep as it goes.
_NESTED = re.compile(r"%(?:25)+(?=[0-9A-Fa-f]{2})")

#: A pattern has the readings of its segments multiplied; nobody means as many.
_MOST_READINGS = 64
_DELIMITERS = re.compile(r"[\\?#]")
_QUERY = re.compile("[?#]")


def parse_pattern(pattern: str) -> tuple[str, ...]:
    """The segments of a pattern: literals, "{}" for a parameter, a last "*".

    Raises:
        ValueError: with a sentence.
    """
    if not pattern.startswith("/"):
        raise ValueError("a pattern begins with /")
    names = parameter_names(pattern)
    if len(set(names)) != len(names):
        raise ValueError("a parameter's name stands for one segment only")
    *inner, last = pattern[1:].split("/")
    segments = (*(_parse_segment(segment, is_last=False) for segment in inner), _parse_segment(last, is_last=True))
    if math.prod(len(_segment_readings(segment)) for segment in segments) > _MOST_READINGS:
        raise ValueError(f"servers can read this in more than {_MOST_READINGS} ways; fewer encoded separators, please")
    return segments


def _parse_segment(segment: str, *, is_last: bool) -> str:
    if _PARAMETER.fullmatch(segment):
        return "{}"
    if is_last and segment in {"", "*"}:
        return segment
    if "*" in segment or "{" in segment or "}" in segment:
        raise ValueError("* only as the last segment, {name} only as a whole segment")
    if segment.split(";", 1)[0] in {".", ".."} or not _LITERAL.fullmatch(segment):
        raise ValueError(f"segment {segment!r} can never match a normalised path")
    return segment


def parameter_names(pattern: str) -> tuple[str, ...]:
    """The names of a pattern's parameters, in order."""
    return tuple(part[1:-1] for part in pattern.split("/") if _PARAMETER.fullmatch(part))


def segments_match(segments: tuple[str, ...], given: list[str]) -> bool:
    """Whether a parsed pattern matches a normalised path's segments, or one of its readings: the slow way, for traces
    and for rules of one pattern. A long path costs no more than the pattern."""
    if segments[-1] == "*":
        segments = segments[:-1]
        if len(given) < len(segments):
            return False
    elif len(given) != len(segments):
        return False
    for want, have in zip(segments, given, strict=False):  # noqa: SIM110 - of ten thousand most end at the first
        if want != have and not (want == "{}" and have):
            return False
    return True


def is_plain(path: str) -> bool:
    """Whether everybody reads a normalised path as it stands."""
    return _PLAIN.fullmatch(path) is not None


def readings(path: str) -> list[list[str]]:
    """The segments of a normalised path as lenient servers read them: nearly always one reading; [""] for the root.

    More than one where servers disagree on how many segments there are: a slash that is encoded, however often, is a
    slash or none, and a segment that is nothing but parameters is there or not.
    """
    if is_plain(path):
        return [path[1:].split("/")]
    found: list[list[str]] = []
    for text in _depths(path):
        parts = [part for part in text.split("/") if part]
        read = [_lenient(part) for part in parts]
        for segments in ([one for one in read if one], [one or part for one, part in zip(read, parts, strict=True)]):
            if segments not in found:
                found.append(segments)
    return [segments or [""] for segments in found]


def pattern_readings(segments: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The segments of a parsed pattern in the same manner; `{}` and `*` stay what they are."""
    found: list[tuple[str, ...]] = [()]
    for segment in segments:
        read = _segment_readings(segment)
        found = [(*before, *(one for one in after if one)) for before in found for after in read]
    return [segments or ("",) for segments in found]


def _segment_readings(segment: str) -> list[list[str]]:
    return [[segment]] if segment in {"{}", "*"} else readings(f"/{segment}")


def _lenient(segment: str) -> str:
    return (_decoded(segment) if "%" in segment else segment).split(";", 1)[0].rstrip(" .").lower()


def _decoded(text: str) -> str:
    return unquote(_NESTED.sub("%", text), "latin-1")


def _depths(path: str) -> Iterable[str]:
    """The path with the slashes of each depth of decoding; and where it ends for who then finds a query in it."""
    deepest = _decoded(path)
    if deepest.count("/") == path.count("/") and not _DELIMITERS.search(deepest):
        return (path,)
    texts = [path, unquote(path, "latin-1"), deepest]
    texts += [text.replace("\\", "/") for text in texts]
    texts += [_QUERY.split(text, maxsplit=1)[0] for text in texts]
    return dict.fromkeys(texts)  # most are alike
