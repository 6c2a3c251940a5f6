"""Upstreams that read paths and names otherwise than they should. None of this is the gateway's own code.

Paths: a reader is a row of steps in any order. Names: CGI, WSGI and their kin make variables of them, and not all keep
two apart that differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

Step = Callable[[str], str]


def _resolve(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


def _overlong(found: re.Match[str]) -> str:
    return "." if "e" in found[0].lower() or "\xae" in found[0] else "/"


STEPS: dict[str, Step] = {
    "decode": lambda path: unquote(path, "latin-1"),
    "decode again": lambda path: unquote(path, "latin-1"),
    "cut parameters": lambda path: re.sub(r";[^/]*", "", path),
    "backslash": lambda path: path.replace("\\", "/"),
    "collapse": lambda path: re.sub("/+", "/", path),
    "resolve dots": _resolve,
    "any case": str.lower,
    "trim": lambda path: re.sub(r"[ .]+(?=/|$)", lambda cut: cut[0] if cut[0] in {".", ".."} else "", path),
    "cut the query": lambda path: re.split("[?#]", path)[0],
    "no last slash": lambda path: path.rstrip("/") or "/",
    "overlong": lambda path: re.sub("(?i)%c0%(ae|af)|\xc0[\xae\xaf]", _overlong, path),
}


def landing(path: str, steps: list[str]) -> str:
    """Where a path leads once these steps were taken."""
    for step in steps:
        path = STEPS[step](path)
    return path


Variables = dict[str, str]


def _cgi(sign: str) -> str:
    return sign.upper() if sign.isalnum() and sign.isascii() else "_"


#: What each makes of a name: of WSGI, of Apache's old and lighttpd's CGI, and of who trims what it does not know.
NAMINGS: dict[str, Callable[[str], str]] = {
    "exact": lambda name: name.lower().replace("-", "_").upper(),
    "WSGI": lambda name: name.upper().replace("-", "_"),
    "CGI": lambda name: "".join(map(_cgi, name)),
    "letters only": lambda name: "_".join(re.findall("[A-Z0-9]+", name.upper())),
    "trimmed": lambda name: name.strip("\xa0\x85\xad \t_.").upper().replace("-", "_"),
}
#: What becomes of several of one name.
REPEATS: dict[str, Callable[[str, str], str]] = {
    "first": lambda old, _: old,
    "last": lambda _, new: new,
    "joined": lambda old, new: f"{old},{new}",
}


def variables(lines: list[tuple[str, str]], naming: str, repeats: str) -> Variables:
    """The header lines as such a server hands them to its programs."""
    found: Variables = {}
    for name, value in lines:
        key = NAMINGS[naming](name)
        found[key] = REPEATS[repeats](found[key], value) if key in found else value
    return found
