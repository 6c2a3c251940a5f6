"""Header lines on their way up: each name's action, and that no spelling of a name escapes it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.errors import HeaderLine, Reason, RefusedError
from engadi_gateway.wire.headers import Action, HeaderPolicy, connection_tokens, scan

OK = (b"Ok", b"v")


def _scan(lines: list[HeaderLine], policy: HeaderPolicy) -> tuple[list[HeaderLine], dict[bytes, bytes]]:
    """What is forwarded as lines again. Twice: the second time names are remembered."""
    first = scan(lines, policy)
    fields, notes = scan([(name, value) for name, value in lines], policy)
    assert (fields, notes) == first
    assert fields == b"" or fields.endswith(b"\r\n")
    kept = [line.partition(b": ") for line in fields.split(b"\r\n")[:-1]]
    return [(name, value) for name, _, value in kept], notes


#: Name -> what becomes of it.
ACTIONS: dict[bytes, Action] = {
    b"X-User-Id": Action.DROP,
    b"x-USER-name": Action.DROP,
    b"X_User_Id": Action.DROP,
    b"X-User_Id": Action.DROP,
    b"X.User": Action.DROP,
    b"X!User!Id": Action.DROP,
    b"X~User~Id": Action.DROP,
    b"X|Forwarded`For": Action.DROP,
    b"X'Anything": Action.DROP,
    b"X-User": Action.DROP,
    b"X--User-Id": Action.DROP,
    b"-Host": Action.DROP,
    b"Authorization-": Action.DROP,
    b"--": Action.DROP,
    b"X--Other-": Action.KEEP,
    b"X-Auth": Action.DROP,
    b"X-Forwarded": Action.DROP,
    b"Remote-User": Action.DROP,
    b"X-HTTP-Method-Override": Action.DROP,
    b"CF-Connecting-IP": Action.DROP,
    b"X-Auth-Request": Action.DROP,
    b"X-Forwarded-Foo": Action.DROP,
    b"Forwarded": Action.DROP,
    b"X-Real-IP": Action.DROP,
    b"X-Mine": Action.DROP,
    b"Proxy": Action.DROP,
    b"Proxy-Authorization": Action.DROP,
    b"Keep-Alive": Action.DROP,
    b"TE": Action.DROP,
    b"Trailer": Action.DROP,
    b"X-Original-URL": Action.DROP,
    b"Connection": Action.NOTE,
    b"Transfer-Encoding": Action.NOTE,
    b"Content-Length": Action.NOTE,
    b"Host": Action.NOTE,
    b"Expect": Action.NOTE,
    b"X-Request-ID": Action.NOTE,
    b"X-Forwarded-For": Action.NOTE,
    b"Authorization": Action.ONCE,
    b"Origin": Action.KEEP_AND_NOTE,
    b"Content-Type": Action.KEEP_AND_NOTE,
    b"Cookie": Action.KEEP,
    b"X-Userland": Action.KEEP,
    b"Range": Action.KEEP,
}


@pytest.mark.parametrize("name", ACTIONS, ids=lambda name: name.decode())
def test_each_name_has_its_action_in_every_case(name: bytes) -> None:
    actions = HeaderPolicy(["X-Mine"]).actions
    assert {actions[name], actions[name.lower()], actions[name.upper()]} == {ACTIONS[name]}


@pytest.mark.parametrize("name", ACTIONS, ids=lambda name: name.decode())
def test_actions_do_what_they_say(name: bytes) -> None:
    lines, notes = _scan([(name, b"v"), OK], HeaderPolicy(["X-Mine"]))
    is_kept = ACTIONS[name] in {Action.KEEP, Action.KEEP_AND_NOTE, Action.ONCE}
    is_noted = ACTIONS[name] in {Action.NOTE, Action.KEEP_AND_NOTE, Action.ONCE}
    kept = [line for line in lines if line != OK]
    assert kept == ([(name, b"v")] if is_kept and name != b"Connection" else [])
    assert notes == ({name.lower(): b"v"} if is_noted else {})


@pytest.mark.parametrize("name", [b"a_b", b"a.b", b"X_User_Id", b"a!b", b"a'b", b"a~"])
def test_ambiguous_names_can_be_refused(name: bytes) -> None:
    with pytest.raises(RefusedError) as raised:
        scan([OK, (name, b"v")], HeaderPolicy(rejects_underscores=True))
    assert raised.value.refusal.reason is Reason.BAD_REQUEST


def test_repeats_keep_their_order_and_are_joined_only_in_notes() -> None:
    sent = [(b"Cookie", b"a"), (b"Origin", b"x"), (b"cookie", b"b"), (b"ORIGIN", b"y")]
    lines, notes = _scan(sent, HeaderPolicy())
    assert lines == sent
    assert notes == {b"origin": b"x, y"}


@pytest.mark.parametrize("note_only", [[], ["authorization"]], ids=["forwarded", "kept"])
def test_two_tokens_are_one_too_many(note_only: list[str]) -> None:
    with pytest.raises(RefusedError) as raised:
        scan([(b"Authorization", b"a"), (b"authorization", b"b")], HeaderPolicy(note_only=note_only))
    assert raised.value.refusal.detail == "more than one authorization field"


def test_authorization_can_be_kept_to_ourselves() -> None:
    lines, notes = _scan([(b"Authorization", b"t")], HeaderPolicy(note_only=["authorization"]))
    assert (lines, notes) == ([], {b"authorization": b"t"})


# what Connection names (RFC 9110 section 7.6.1)


def test_what_connection_names_goes_whatever_its_case_and_in_every_line() -> None:
    sent = [(b"Connection", b"close, X-A"), (b"x-a", b"1"), (b"X-B", b"2"), (b"connection", b" x-b ,keep-alive"), OK]
    assert _scan(sent, HeaderPolicy())[0] == [OK]


def test_what_connection_names_is_not_decided_on_either() -> None:
    lines, notes = _scan([(b"Connection", b"authorization"), (b"Authorization", b"t")], HeaderPolicy())
    assert (lines, notes) == ([], {b"connection": b"authorization"})


@pytest.mark.parametrize(
    "name",
    [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"via",
        b"x-forwarded-for",
        b"x-request-id",
    ],
)
def test_connection_cannot_take_away_what_the_message_itself_or_the_next_one_needs(name: bytes) -> None:
    notes = scan([(b"Connection", name), (name, b"v")], HeaderPolicy())[1]
    assert notes[name] == b"v"


def test_tokens_of_a_list() -> None:
    assert connection_tokens(b"Close,  X-A ,,\tb") == {b"close", b"x-a", b"", b"\tb".strip()}


# traces

TRACE_ID = b"4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"


NEW_TRACE = b"00-" + b"d" * 32 + b"-" + b"e" * 16 + b"-00"
STATE, OTHER = (b"TraceState", b"a=b"), (b"X", b"y")


def _lines_of(sent: list[bytes]) -> list[HeaderLine]:
    return [*((b"Traceparent", value) for value in sent), STATE, OTHER]


@pytest.mark.parametrize("flags", [b"00", b"01", b"03", b"ff"])
def test_a_trace_goes_on_as_it_came(flags: bytes) -> None:
    sent = b"00-" + TRACE_ID + b"-" + flags
    lines = _lines_of([sent])
    assert _scan(lines, HeaderPolicy(new_trace=lambda: NEW_TRACE)) == (lines, {b"traceparent": sent})


@pytest.mark.parametrize(
    ("sent", "flags"),
    [
        (b"01-" + TRACE_ID + b"-01", b"01"),
        (b"cc-" + TRACE_ID + b"-00-what comes later", b"00"),
        (b"fe-" + TRACE_ID + b"-fe-", b"02"),
        (b"10-" + TRACE_ID + b"-ff", b"03"),
    ],
)
def test_of_a_trace_of_a_later_version_goes_on_what_is_understood(sent: bytes, flags: bytes) -> None:
    kept, notes = _scan(_lines_of([sent]), HeaderPolicy(new_trace=lambda: NEW_TRACE))
    understood = b"00-" + TRACE_ID + b"-" + flags
    assert kept == [STATE, OTHER, (b"traceparent", understood)]
    assert notes == {b"traceparent": understood}


@pytest.mark.parametrize(
    "sent",
    [
        [b"00-" + TRACE_ID + b"-01-more"],
        [b"00-" + TRACE_ID + b"-01-"],
        [b"00-" + TRACE_ID + b"-0"],
        [b"ff-" + TRACE_ID + b"-01"],
        [b"CC-" + TRACE_ID + b"-01"],
        [b"cc-" + TRACE_ID + b"-01."],
        [b"cc-" + TRACE_ID + b"-0"],
        [b"cc-" + TRACE_ID.upper() + b"-01"],
        [b"00-" + TRACE_ID.upper() + b"-01"],
        [b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01"],
        [b"cc-" + b"0" * 32 + b"-00f067aa0ba902b7-01"],
        [b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01"],
        [b"cc-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01"],
        [b"junk"],
        [b""],
        [b"00-" + TRACE_ID + b"-01"] * 2,
        [b"cc-" + TRACE_ID + b"-01-with more"] * 2,
    ],
)
def test_in_place_of_what_is_no_trace_a_new_one_begins_without_its_state(sent: list[bytes]) -> None:
    kept, notes = _scan(_lines_of(sent), HeaderPolicy(new_trace=lambda: NEW_TRACE))
    assert kept == [OTHER, (b"traceparent", NEW_TRACE)]
    assert notes == {b"traceparent": NEW_TRACE}
    assert _scan(_lines_of(sent), HeaderPolicy()) == ([OTHER], {}), "nobody is there to make one"


@pytest.mark.parametrize(
    "connection", [[], [(b"Connection", b"Traceparent"), (b"Traceparent", b"00-" + TRACE_ID + b"-01")]]
)
def test_without_a_trace_none_begins_and_there_is_no_state(connection: list[HeaderLine]) -> None:
    kept, notes = _scan([*connection, STATE, OTHER], HeaderPolicy(new_trace=lambda: NEW_TRACE))
    assert kept == [OTHER]
    assert b"traceparent" not in notes


def test_a_trace_goes_on_without_a_state_that_is_not_for_us_to_pass_on() -> None:
    trace = (b"traceparent", b"00-" + TRACE_ID + b"-01")
    kept, _ = _scan([(b"Connection", b"tracestate"), trace, STATE, OTHER], HeaderPolicy(new_trace=lambda: NEW_TRACE))
    assert kept == [trace, OTHER]


# the memo


def test_the_memo_of_spellings_is_bounded_and_forgets_nothing_that_matters() -> None:
    policy = HeaderPolicy(["X-Mine"])
    for number in range(10_000):
        scan([(b"X-%d" % number, b"v")], policy)
        assert scan([(b"X-Mine", b"v"), (b"x-user-id", b"v")], policy) == (b"", {})
    assert len(policy) <= 512
    assert len(policy.actions) <= 2048


def test_no_memo_keeps_what_is_large() -> None:
    policy = HeaderPolicy()
    long = [(b"X-%d" % number, b"v") for number in range(400)]
    assert scan(long, policy)[0].count(b"\r\n") == 400
    assert not policy
    scan([(b"X" * 65, b"v"), (b"X" * 64, b"v")], policy)
    assert all(len(name) <= 64 for name in policy.actions)


NAMES = st.text("XxUusSeErR-_.!'~iIdD", min_size=1, max_size=10).map(str.encode)


@given(st.lists(st.tuples(NAMES, st.just(b"v")), max_size=6))
def test_what_passes_cannot_be_read_as_an_identity_of_ours(lines: list[HeaderLine]) -> None:
    """CGI and WSGI spell a name in capitals and every other sign as an underscore; so read, none may be ours."""
    kept, _ = _scan(lines, HeaderPolicy(["X-User-ID"]))
    read = [re.sub(rb"[^A-Z0-9]", b"_", name.upper()) for name, _ in kept]
    assert not [name for name in read if name.startswith((b"X_USER_", b"X_AUTH_", b"X_FORWARDED_"))]
    assert [line for line in lines if line in kept] == kept
