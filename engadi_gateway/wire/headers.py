"""Header lines on their way up: one pass, one table; what a stranger must not say to a service is gone.

The received fields are never copied and then cleaned: each name has an action, and what has none is forwarded as it
came. Names that are spelt to be read as another one (`X_User_Id`) have an action too (RFC 9110 section 7.6.1; the
rule that names are letters, digits and hyphens is that of nginx).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

from engadi_gateway.errors import HeaderLine, Reason, Refusal, RefusedError


class Action(IntEnum):
    KEEP = 0  # forward as it came
    DROP = 1
    NOTE = 2  # somebody decides on it; not forwarded, or written anew
    KEEP_AND_NOTE = 3
    ONCE = 4  # as KEEP_AND_NOTE, but a second one is an error
    NOTE_ONCE = 5
    REJECT = 6


#: Comparing numbers costs a third of looking members up in their class.
_KEEP, _DROP, _NOTE, _NOTE_ONCE, _REJECT = map(
    int, (Action.KEEP, Action.DROP, Action.NOTE, Action.NOTE_ONCE, Action.REJECT)
)

_TABLE: dict[bytes, Action] = {
    # hop-by-hop (RFC 9110 section 7.6.1) and framing, which is built anew
    b"connection": Action.NOTE,
    b"upgrade": Action.NOTE,
    b"transfer-encoding": Action.NOTE,
    b"content-length": Action.NOTE,
    b"keep-alive": Action.DROP,
    b"proxy-connection": Action.DROP,
    b"proxy-authenticate": Action.DROP,
    b"proxy-authorization": Action.DROP,
    b"te": Action.DROP,
    b"trailer": Action.DROP,
    b"http2-settings": Action.DROP,
    # written anew by the gateway
    b"host": Action.NOTE,
    b"expect": Action.NOTE,
    b"via": Action.NOTE,
    b"max-forwards": Action.NOTE,
    b"x-request-id": Action.NOTE,
    b"x-forwarded-for": Action.NOTE,
    b"x-forwarded-proto": Action.NOTE,
    b"x-forwarded-host": Action.NOTE,
    b"x-forwarded-port": Action.NOTE,
    b"forwarded": Action.DROP,
    b"x-real-ip": Action.DROP,
    b"x-client-ip": Action.DROP,
    b"true-client-ip": Action.DROP,
    b"x-cluster-client-ip": Action.DROP,
    b"client-ip": Action.DROP,
    b"x-real-client-ip": Action.DROP,
    b"fastly-client-ip": Action.DROP,
    b"x-azure-clientip": Action.DROP,
    b"x-azure-socketip": Action.DROP,
    b"x-envoy-external-address": Action.DROP,
    b"x-original-forwarded-for": Action.DROP,
    b"x-remote-addr": Action.DROP,
    b"x-remote-ip": Action.DROP,
    b"x-originating-ip": Action.DROP,
    b"cf-connecting-ip": Action.DROP,
    b"forwarded-for": Action.DROP,
    b"x-forwarded": Action.DROP,
    b"x-user": Action.DROP,
    b"x-auth": Action.DROP,
    b"remote-user": Action.DROP,
    b"x-remote-user": Action.DROP,
    b"x-ms-client-principal": Action.DROP,
    b"proxy": Action.DROP,  # CGI reads it as HTTP_PROXY
    b"x-original-url": Action.DROP,  # some frameworks go by these instead of the request line
    b"x-original-uri": Action.DROP,
    b"x-original-host": Action.DROP,
    b"x-rewrite-url": Action.DROP,
    b"x-override-url": Action.DROP,
    b"x-http-method": Action.DROP,
    b"x-http-method-override": Action.DROP,
    b"x-method-override": Action.DROP,
    # decided on, and forwarded
    b"authorization": Action.ONCE,
    b"content-type": Action.KEEP_AND_NOTE,
    b"origin": Action.KEEP_AND_NOTE,
    b"access-control-request-method": Action.KEEP_AND_NOTE,
    b"access-control-request-headers": Action.KEEP_AND_NOTE,
    b"if-match": Action.KEEP_AND_NOTE,
    b"traceparent": Action.KEEP_AND_NOTE,
}
#: Ours, and what other programs in front of services say of who asks, which services believe.
_DROPPED_PREFIXES = (
    b"x-user-", b"x-auth-", b"x-forwarded-", b"x-authenticated-", b"x-webauth-", b"ssl-client-", b"x-ssl-client-",
    b"x-goog-authenticated-", b"x-amzn-oidc-", b"x-ms-client-principal-",
)  # fmt: skip
#: CGI and its kin write every other sign of a name as `_`, and `-` too: what has one could be read as another name.
_PLAIN_NAME = re.compile(rb"[a-z0-9-]+")
#: Bounds the memo of spellings: a stranger who invents names must not fill memory.
_MEMO_SIZE = 2048


class HeaderPolicy(dict[bytes, Action]):
    """Name as received -> action; learns spellings as they come, so that a request costs one look-up a line.

    Args:
        claim_headers: names that the gateway itself sets from claims; never taken from a client.
        rejects_underscores: names with `_`, `.` or another odd sign are refused instead of dropped.
        note_only: names that are decided on but not forwarded.
    """

    def __init__(
        self, claim_headers: Iterable[str] = (), rejects_underscores: bool = False, note_only: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self._own = frozenset(name.lower().encode("ascii") for name in claim_headers)
        self._note_only = frozenset(name.lower().encode("ascii") for name in note_only)
        self._ambiguous = Action.REJECT if rejects_underscores else Action.DROP

    def __missing__(self, name: bytes) -> Action:
        if len(self) >= _MEMO_SIZE:
            self.clear()
        action = self[name] = self._classify(name.lower())
        return action

    def _classify(self, name: bytes) -> Action:
        if not _PLAIN_NAME.fullmatch(name):
            return self._ambiguous
        bare = b"-".join(part for part in name.split(b"-") if part)
        if bare != name:  # X--User-Id: a name like others, unless it could be read as one that matters here
            return Action.KEEP if bare and self._classify(bare) == Action.KEEP else self._ambiguous
        if name in self._own:
            return Action.DROP
        if name in self._note_only:
            return Action.NOTE_ONCE
        action = _TABLE.get(name)
        if action is not None:
            return action
        return Action.DROP if name.startswith(_DROPPED_PREFIXES) else Action.KEEP


def scan(lines: list[HeaderLine], policy: HeaderPolicy) -> tuple[list[HeaderLine], dict[bytes, bytes]]:
    """Split received lines into those to forward and the notes.

    Raises:
        RefusedError: a field that must not repeat does, or an ambiguous name where these are refused.
    """
    kept: list[HeaderLine] = []
    notes: dict[bytes, bytes] = {}
    for line in lines:  # long-hand, the usual cases first: this runs for each line of each request
        action = policy[line[0]]
        if action == _KEEP:
            kept.append(line)
        elif action != _DROP:
            name = line[0].lower()
            if action == _REJECT or name in notes:
                _note_again(name, line, action, notes)
            else:
                notes[name] = line[1]
            if action != _NOTE and action != _NOTE_ONCE:  # noqa: PLR1714 - a set costs more
                kept.append(line)
    if b"connection" in notes:
        kept = _without_named(kept, notes)
    if b"traceparent" in notes and not _is_trace(notes[b"traceparent"]):
        del notes[b"traceparent"]
        kept = [line for line in kept if line[0].lower() not in _TRACE]
    return kept, notes


def _note_again(name: bytes, line: HeaderLine, action: Action, notes: dict[bytes, bytes]) -> None:
    if action == Action.REJECT:
        raise RefusedError(Refusal(Reason.BAD_REQUEST, "header name with other than letters, digits and -"))
    if action in {Action.ONCE, Action.NOTE_ONCE}:
        raise RefusedError(Refusal(Reason.BAD_REQUEST, f"more than one {name.decode('ascii')} field"))
    notes[name] += b", " + line[1]


_TRACE = frozenset((b"traceparent", b"tracestate"))
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def _is_trace(value: bytes) -> bool:
    """Whether a trace goes on (W3C Trace Context, section 3.2); what is none, or two, is dropped with its state."""
    match = _TRACEPARENT.fullmatch(value)
    return match is not None and (match[1] != b"00" or match[2] is None)


_HARMLESS = frozenset((b"close", b"keep-alive", b"upgrade", b""))
#: Naming these in Connection changes nothing: they are not forwarded as received anyway, and the connection needs them.
_NEEDED = frozenset(
    (b"connection", b"host", b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"via", b"max-forwards",
     b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port")
)  # fmt: skip


def connection_tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip() for token in value.lower().split(b","))


def _without_named(kept: list[HeaderLine], notes: dict[bytes, bytes]) -> list[HeaderLine]:
    """Drop the fields that Connection names; runs before the gateway adds its own, so it cannot strip those."""
    named = connection_tokens(notes[b"connection"]) - _HARMLESS
    if not named:
        return kept
    for name in named - _NEEDED:
        notes.pop(name, None)
    return [line for line in kept if line[0].lower() not in named]
