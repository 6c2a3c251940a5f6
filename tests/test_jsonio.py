"""JSON of strangers: what two parsers could read differently is refused, with a pointer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.admin.jsonio import listing, parse, reply
from engadi_gateway.errors import Reason, RefusedError

REFUSED = {
    "nothing": b"",
    "white space only": b"  \n",
    "no value": b"{",
    "something after it": b"{} {}",
    "single quotes": b"{'a': 1}",
    "a comma too many": b'{"a": 1,}',
    "a comment": b'{"a": 1 /* one */}',
    "NaN": b'{"a": NaN}',
    "Infinity": b"[Infinity]",
    "minus Infinity": b"[-Infinity]",
    "a float beyond all": b"[1e999]",
    "a negative float beyond all": b"[-1e999]",
    "an integer of 30 digits": b"[" + b"9" * 30 + b"]",
    "an integer of 5000 digits": b"[" + b"9" * 5000 + b"]",
    "the same name twice": b'{"a": 1, "a": 2}',
    "twice below": b'{"a": [{"b": 1, "b": 1}]}',
    "twice, spelt differently": b'{"a": 1, "\\u0061": 2}',
    "latin-1": b'{"a": "\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "an overlong encoding": b'"\xc0\xaf"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "a lone high surrogate": b'"\\ud800"',
    "a lone low surrogate": b'["\\udc00"]',
    "a lone surrogate as a name": b'{"\\ud800": 1}',
    "a control character in a string": b'"\x01"',
    "34 levels": b"[" * 34 + b"]" * 34,
    "100,000 levels of arrays": b"[" * 100_000,
    "100,000 levels of objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_refused(body: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        parse(body)
    refusal = caught.value.refusal
    assert refusal.reason is Reason.BAD_JSON
    assert refusal.detail
    assert [fault.pointer for fault in refusal.faults] == [""]
    refusal.detail.encode("utf-8")  # it goes into a reply


ACCEPTED = {
    "an object": (b'{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
    "UTF-8": ('{"ä": "€"}'.encode(), {"ä": "€"}),
    "a whole surrogate pair": (b'"\\ud83d\\ude00"', "\U0001f600"),
    "the same name in two objects": (b'[{"a": 1}, {"a": 1}]', [{"a": 1}, {"a": 1}]),
    "33 levels": (b"[" * 33 + b"]" * 33, json.loads("[" * 33 + "]" * 33)),
    "white space around it": (b"\r\n\t {} ", {}),
    "20 digits": (b"12345678901234567890", 12345678901234567890),
}


@pytest.mark.parametrize(("body", "value"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(body: bytes, value: object) -> None:
    assert parse(body) == value


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(_VALUES)
def test_what_is_sent_is_read_back(value: object) -> None:
    assert parse(reply(200, value).body) == value


@given(st.lists(_VALUES, max_size=4), _VALUES)
def test_a_listing_is_the_reply_of_the_same_to_the_letter(items: list[object], other: object) -> None:
    line = (b"Link", b"<x>")
    whole = reply(200, {"items": items, "next": other, "total": 1}, line)
    assert listing(iter(items), {"next": other, "total": 1}, line) == whole


@given(st.binary(max_size=64))
def test_any_bytes_are_a_value_or_a_refusal(body: bytes) -> None:
    try:
        value = parse(body)
    except RefusedError as error:
        assert error.refusal.reason is Reason.BAD_JSON
    else:
        assert value == json.loads(body)


def test_a_reply_is_never_cached() -> None:
    answer = reply(201, {"a": "ä"}, (b"ETag", b'"x"'))
    assert (answer.status, answer.body) == (201, '{"a": "ä"}'.encode())
    assert answer.lines == [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"), (b"ETag", b'"x"')]


def test_no_content_has_no_body() -> None:
    answer = reply(204, None)
    assert (answer.body, answer.lines) == (b"", [(b"Cache-Control", b"no-store")])


def test_a_lone_surrogate_of_our_own_does_not_break_a_reply() -> None:
    assert reply(200, {"user_id": "\ud800"}).body == b'{"user_id": "?"}'
