"""JSON in and out, strictly: no NaN, no key twice, no depth that breaks a parser, UTF-8 only (RFC 8259)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NoReturn

from engadi_gateway.errors import Fault, HeaderLine, Reason, Refusal, RefusedError
from engadi_gateway.net.context import LocalReply

_MAX_DEPTH = 32


def _refuse(detail: str) -> NoReturn:
    raise RefusedError(Refusal(Reason.BAD_JSON, detail, faults=(Fault("", detail),)))


def _constant(name: str) -> NoReturn:
    _refuse(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        _refuse("a number out of range")
    return value


def _int(text: str) -> int:
    if len(text) > 20:
        _refuse("a number out of range")
    return int(text)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        _refuse("the same key twice in an object")
    return document


def parse(body: bytes) -> Any:
    """The value in a body.

    Raises:
        RefusedError: BAD_JSON, with what is wrong.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_pairs)
    except UnicodeDecodeError:
        _refuse("not UTF-8")
    except json.JSONDecodeError as error:
        _refuse(f"{error.msg} at line {error.lineno} column {error.colno}")
    except RecursionError:
        _refuse("nested too deeply")
    _check(value)
    return value


def _check(value: Any) -> None:
    """Level by level: a body can hold a million values."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        below: list[Any] = []
        for part in level:
            kind = type(part)
            if kind is str:
                if not part.isascii():
                    _refuse_halves(part)
            elif kind is list:
                below += part
            elif kind is dict:
                below += part
                below += part.values()
        if not below:
            return
        level = below
    _refuse("nested too deeply")


def _refuse_halves(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        _refuse("half of a surrogate pair")


def reply(status: int, value: Any, *lines: HeaderLine) -> LocalReply:
    """A JSON reply; None with 204 has no body. Nothing of the admin API is ever cached."""
    head: list[HeaderLine] = [(b"Cache-Control", b"no-store"), *lines]
    if status == 204:
        return LocalReply(204, head, b"")
    return LocalReply(status, [(b"Content-Type", b"application/json"), *head], _dumped(value))


def listing(items: Iterable[Any], others: dict[str, Any], *lines: HeaderLine) -> LocalReply:
    """A reply of `items` and others beside them, piece by piece: for a thread, which others need not wait for."""
    pieces = b", ".join([_dumped(item) for item in items])
    body = b'{"items": [%b], %b' % (pieces, _dumped(others)[1:])
    return LocalReply(200, [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"), *lines], body)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")
