"""What a verified token says: whether its claims hold, who its bearer is, and what the upstream is told of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from engadi_gateway.errors import HeaderLine
from engadi_gateway.pipeline.exchange import Identity


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """The settings that judge a token; times in seconds."""

    algorithms: tuple[str, ...] = ("HS256",)
    mode: str = "local"
    issuer: str = ""
    audience: str = ""
    leeway_s: float = 30.0
    required_claims: tuple[str, ...] = ("exp", "sub")
    role_claim: str = "role"
    claim_headers: tuple[tuple[str, str], ...] = (
        ("sub", "X-User-ID"),
        ("role", "X-User-Role"),
        ("email", "X-User-Email"),
    )
    validates_on_public: bool = False
    max_token_bytes: int = 8192


def claims_fault(claims: Mapping[str, Any], policy: IdentityPolicy, wall: float) -> str:
    """The word for what is wrong with verified claims, or "" (RFC 7519 section 4.1)."""
    missing = [name for name in ("exp", *policy.required_claims) if claims.get(name) is None]
    times = {name: claims.get(name, 0) for name in ("exp", "nbf", "iat")}
    subject, issuer, audience = claims.get("sub", 0), claims.get("iss"), claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    checks = (
        (bool(missing), "missing_claim"),
        (not all(is_time(value) for value in times.values()), "malformed"),
        (header_value(subject, is_list=False) is None, "malformed"),  # nobody could be told who it is
        (is_time(times["exp"]) and times["exp"] + policy.leeway_s <= wall, "expired"),
        (is_time(times["nbf"]) and times["nbf"] - policy.leeway_s > wall, "not_yet_valid"),
        (is_time(times["iat"]) and times["iat"] - policy.leeway_s > wall, "not_yet_valid"),
        (bool(policy.issuer) and issuer != policy.issuer, "wrong_issuer"),
        (bool(policy.audience) and policy.audience not in audiences, "wrong_audience"),
    )
    return next((word for is_wrong, word in checks if is_wrong), "")


def is_time(value: object) -> bool:
    """A finite number of a sane size; a string or a boolean is none, though PyJWT takes them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _is_text(text: str) -> bool:
    """Not empty, and UTF-8 can say it: JSON's lone surrogates are no text, and no database takes them."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def identity_of(claims: Mapping[str, Any], policy: IdentityPolicy) -> Identity:
    """What a verified token says of its bearer, and the lines that the upstream gets."""
    role = claims.get(policy.role_claim)
    roles = role if isinstance(role, list) else [role]
    lines: list[HeaderLine] = []
    for claim, header in policy.claim_headers:
        text = header_value(roles if claim == "role" else claims.get(claim))
        if text is not None:
            lines.append((header.encode("ascii"), text))
    return Identity(
        str(claims.get("sub", "")),
        tuple(name for name in roles if isinstance(name, str)),
        tuple(lines),
        float(claims["exp"]) + policy.leeway_s,
    )


_VISIBLE = " !\"#$&'()*+/:;<=>?@[\\]^`{|}~"


def header_value(value: object, *, is_list: bool = True) -> bytes | None:
    """A claim as a field value, None where it cannot be one (control bytes, objects, booleans, nothing).

    Other than ASCII is percent-encoded, and so are "%" and spaces at either end, which whoever reads the field would
    cut off: no two claims become one value. The parts of a list are joined with ",": a comma inside a part is encoded,
    or one role could be read as two.
    """
    if is_list and isinstance(value, list):
        parts = [_encoded(part, _VISIBLE) for part in value]
        return b",".join(part for part in parts if part is not None) or None
    return _encoded(value, _VISIBLE + ",")


def _encoded(value: object, safe: str) -> bytes | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    if not _is_text(text) or any(character < " " or character == "\x7f" for character in text):
        return None
    inner = text.strip(" ")
    before, _, after = text.partition(inner) if inner else (text, "", "")
    return b"%20" * len(before) + quote(inner, safe=safe).encode("ascii") + b"%20" * len(after)
