"""Header lines on their way up: one table; what a stranger must not say to a service is gone.

The received fields are never copied and then cleaned: each name has an action, and what has none is forwarded as it
came. Names that are spelt to be read as another one (`X_User_Id`) have an action too (RFC 9110 section 7.6.1; the
rule that names are letters, digits and hyphens is that of nginx). What the names of a head come to is remembered by
those names: clients differ in values, and send the same names in the same order again and again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from operator import itemgetter

from engadi_gateway.errors import INVALID_REQUEST, HeaderLine, Reason, Refusal, RefusedError
from engadi_gateway.wire.text import remember


class Action(IntEnum):
    KEEP = 0  # forward as it came
    DROP = 1
    NOTE = 2  # somebody decides on it; not forwarded, or written anew
    KEEP_AND_NOTE = 3
    ONCE = 4  # as KEEP_AND_NOTE, but a second one is an error
    NOTE_ONCE = 5
    REJECT = 6


_FORWARDED = frozenset((Action.KEEP, Action.KEEP_AND_NOTE, Action.ONCE))
_NOTED = frozenset((Action.NOTE, Action.KEEP_AND_NOTE, Action.ONCE, Action.NOTE_ONCE))
_SINGLE = frozenset((Action.ONCE, Action.NOTE_ONCE))

#: Hop-by-hop (RFC 9110 section 7.6.1) and framing, which is built anew.
_HOP_BY_HOP: dict[bytes, Action] = {
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
}
_TABLE: dict[bytes, Action] = {
    **_HOP_BY_HOP,
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
#: What no claim may be sent as: framing, what the gateway writes itself, and what it decides on.
RESERVED = frozenset(_HOP_BY_HOP) | {name for name, action in _TABLE.items() if action is not Action.DROP}
#: Ours, and what other programs in front of services say of who asks, which services believe.
_DROPPED_PREFIXES = (
    b"x-user-", b"x-auth-", b"x-forwarded-", b"x-authenticated-", b"x-webauth-", b"ssl-client-", b"x-ssl-client-",
    b"x-goog-authenticated-", b"x-amzn-oidc-", b"x-ms-client-principal-",
)  # fmt: skip
#: CGI and its kin write every other sign of a name as `_`, and `-` too: what has one could be read as another name.
_PLAIN_NAME = re.compile(rb"[a-z0-9-]+")
#: Bounds the memos: a stranger who invents names must not fill memory.
_MEMO_SIZE = 2048
_NAMES_MEMO_SIZE = 512
_NAMES_MEMO_BYTES = 1024

Values = tuple[bytes, ...]


class Actions(dict[bytes, Action]):
    """Name as received -> action; learns spellings as they come. The arguments are those of `HeaderPolicy`."""

    def __init__(self, claim_headers: Iterable[str], rejects_underscores: bool, note_only: Iterable[str]) -> None:
        super().__init__()
        self._own = frozenset(name.lower().encode("ascii") for name in claim_headers)
        self._note_only = frozenset(name.lower().encode("ascii") for name in note_only)
        self._ambiguous = Action.REJECT if rejects_underscores else Action.DROP

    def __missing__(self, name: bytes) -> Action:
        action = self._classify(name.lower())
        remember(self, name, action, _MEMO_SIZE)
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


class Names:
    """What the names of a head's fields, in their order, come to, whatever their values are.

    Attributes:
        fault: a name that is refused, or one too many.
        kept, noted: names in lower case of what is forwarded, and of what is decided on.
        template: the lines to forward, with a place for each value that `pick_kept` picks.
        has_repeats: among the noted.
    """

    __slots__ = ("fault", "has_repeats", "kept", "noted", "pick_kept", "pick_noted", "template")

    def __init__(self, names: Values, actions: Actions) -> None:
        kept = [index for index, name in enumerate(names) if actions[name] in _FORWARDED]
        if b"traceparent" not in [name.lower() for name in names]:  # the state of no trace says nothing
            kept = [index for index in kept if names[index].lower() != b"tracestate"]
        noted = [index for index, name in enumerate(names) if actions[name] in _NOTED]
        self.fault = _fault(names, actions)
        self.kept = tuple(names[index].lower() for index in kept)
        self.noted = tuple(names[index].lower() for index in noted)
        self.template = b"".join([b"%b: %%b\r\n" % names[index].replace(b"%", b"%%") for index in kept])
        self.pick_kept = _picker(kept)
        self.pick_noted = _picker(noted)
        self.has_repeats = len(set(self.noted)) < len(self.noted)


def _fault(names: Values, actions: Actions) -> Refusal | None:
    """The first one."""
    seen = set()
    for name in names:
        action, lower = actions[name], name.lower()
        if action == Action.REJECT:
            return Refusal(Reason.BAD_REQUEST, "header name with other than letters, digits and -")
        if action in _SINGLE and lower in seen:
            challenge = (INVALID_REQUEST,) if lower == b"authorization" else ()
            return Refusal(Reason.BAD_REQUEST, f"more than one {lower.decode('ascii')} field", headers=challenge)
        seen.add(lower)
    return None


def _picker(indexes: Sequence[int]) -> Callable[[Values], Values]:
    """What takes the values at these places; `itemgetter` gives no tuple of one or none."""
    if len(indexes) > 1:
        return itemgetter(*indexes)
    return itemgetter(slice(indexes[0], indexes[0] + 1) if indexes else slice(0))


class HeaderPolicy(dict[Values, Names]):
    """The names of a head -> what they come to; learns as they come.

    Args:
        claim_headers: names that the gateway itself sets from claims; never taken from a client.
        rejects_underscores: names with `_`, `.` or another odd sign are refused instead of dropped.
        note_only: names that are decided on but not forwarded.
        new_trace: makes the traceparent that is sent in place of one that is none; b"": none is sent.
    """

    def __init__(
        self,
        claim_headers: Iterable[str] = (),
        rejects_underscores: bool = False,
        note_only: Iterable[str] = (),
        new_trace: Callable[[], bytes] = lambda: b"",
    ) -> None:
        super().__init__()
        self.actions = Actions(claim_headers, rejects_underscores, note_only)
        self.new_trace = new_trace

    def __missing__(self, names: Values) -> Names:
        if len(self) >= _NAMES_MEMO_SIZE:
            self.clear()
        found = Names(names, self.actions)
        if sum(map(len, names)) <= _NAMES_MEMO_BYTES:
            self[names] = found
        return found


def scan(lines: list[HeaderLine], policy: HeaderPolicy) -> tuple[bytes, dict[bytes, bytes]]:
    """Sort received lines into those to forward, whole and with their ends, and the notes.

    Raises:
        RefusedError: a field that must not repeat does, or an ambiguous name where these are refused.
    """
    names, values = zip(*lines, strict=True) if lines else ((), ())
    found = policy[names]
    if found.fault is not None:
        raise RefusedError(found.fault)
    kept = found.pick_kept(values)
    notes = dict(zip(found.noted, found.pick_noted(values)))  # noqa: B905 - as many by their making, and a check costs
    if found.has_repeats:
        notes = joined(zip(found.noted, found.pick_noted(values), strict=True))
    gone = _NOTHING
    if b"connection" in notes:
        gone = connection_tokens(notes[b"connection"]) - _HARMLESS
        if gone:
            gone = _TRACE | gone if b"traceparent" in gone else gone
            for name in gone - _NEEDED:
                notes.pop(name, None)
    if b"traceparent" in notes and not _is_current(notes[b"traceparent"]):
        return _with_another_trace(found, kept, gone, notes, policy.new_trace), notes
    return _without(gone, found, kept) if gone else found.template % kept, notes


def joined(lines: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The value of each name; lines of one name are one list (RFC 9110, section 5.3)."""
    notes: dict[bytes, bytes] = {}
    for name, value in lines:
        notes[name] = notes[name] + b", " + value if name in notes else value
    return notes


def _without(gone: frozenset[bytes], found: Names, kept: Values) -> bytes:
    lines = (found.template % kept).split(b"\r\n")[:-1]
    return b"".join([line + b"\r\n" for name, line in zip(found.kept, lines, strict=True) if name not in gone])


def _with_another_trace(
    found: Names, kept: Values, gone: frozenset[bytes], notes: dict[bytes, bytes], new_trace: Callable[[], bytes]
) -> bytes:
    """The lines, and in the notes too, with what is understood of a later version; else with a new trace, no state."""
    sent = notes.pop(b"traceparent")
    trace = b"" if found.noted.count(b"traceparent") > 1 else _understood(sent)
    fields = _without(gone | (_TRACEPARENT if trace else _TRACE), found, kept)
    trace = trace or new_trace()
    if trace:
        notes[b"traceparent"] = trace
        fields += b"traceparent: %b\r\n" % trace
    return fields


_NOTHING: frozenset[bytes] = frozenset()
_TRACE = frozenset((b"traceparent", b"tracestate"))
_TRACEPARENT = frozenset((b"traceparent",))
_LATER_TRACE = re.compile(rb"(?!00|ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
#: Sampled, and random; what the other bits say is not known of any version (W3C Trace Context, section 3.2.2.5).
_KNOWN_FLAGS = 0b11
_NO_TRACE, _NO_PARENT = b"0" * 32, b"0" * 16
#: A trace of version 00 with a 0 for each digit, and what makes them so.
_TRACE_SHAPE = b"00-" + _NO_TRACE + b"-" + _NO_PARENT + b"-00"
_DIGITS_AS_0 = bytes(ord("0") if code in b"0123456789abcdef" else code for code in range(256))


def _is_current(value: bytes) -> bool:
    """Whether it is one trace of version 00, as most are, which goes on as it came; half an expression's cost."""
    return (
        value[:3] == b"00-"
        and value.translate(_DIGITS_AS_0) == _TRACE_SHAPE
        and value[3:35] != _NO_TRACE
        and value[36:52] != _NO_PARENT
    )


def _understood(value: bytes) -> bytes:
    """What a later version says as version 00 says it (W3C Trace Context, section 3.2.4); b"" where it is no trace."""
    later = _LATER_TRACE.fullmatch(value)
    return b"00-%b-%02x" % (later[1], int(later[2], 16) & _KNOWN_FLAGS) if later is not None else b""


_HARMLESS = frozenset((b"close", b"keep-alive", b"upgrade", b""))
#: Naming these in Connection changes nothing: they are not forwarded as received anyway, and the connection needs them.
_NEEDED = frozenset(
    (b"connection", b"host", b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"via", b"max-forwards",
     b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port")
)  # fmt: skip


def connection_tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip() for token in value.lower().split(b","))
