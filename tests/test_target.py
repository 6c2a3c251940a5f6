"""The one normalisation; the table of CONVENTIONS runs end to end in tests/conformance, the properties here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.errors import Reason, RefusedError
from engadi_gateway.wire.target import NormalTarget, normalise

GOOD = {
    b"/": ("/", b"/"),
    b"/a/b": ("/a/b", b"/a/b"),
    b"/a//b///c": ("/a/b/c", b"/a/b/c"),
    b"/a/./b/../c": ("/a/c", b"/a/c"),
    b"/a/..": ("/", b"/"),
    b"/a/.": ("/a/", b"/a/"),
    b"/%61%2e%2E%7e": ("/a..~", b"/a..~"),
    b"/%e4%C3": ("/%E4%C3", b"/%E4%C3"),
    b"/.well-known/x": ("/.well-known/x", b"/.well-known/x"),
    b"/a?b=/../c#"[:-1]: ("/a", b"/a?b=/../c"),
    b"/a?": ("/a", b"/a?"),
    b"//": ("/", b"/"),
    b"/%252e%252e/": ("/%252e%252e/", b"/%252e%252e/"),
}


@pytest.mark.parametrize("raw", GOOD)
def test_good_targets(raw: bytes) -> None:
    path, target = GOOD[raw]
    assert normalise(raw, b"GET") == NormalTarget(target, path, False, None)


BAD = (b"", b"a", b"/%", b"/%0", b"/%g0", b"/%00", b"/%1f", b"/%7F", b"/..", b"/a/../..", b"/..;/", b"/.;x", b"/a#", b"/\xe4",
       b'/"', b"/<", b"/>", b"/\\", b"/^", b"/`", b"ftp://h/", b"http://", b"http:///a", b"*")  # fmt: skip


@pytest.mark.parametrize("raw", BAD)
def test_bad_targets(raw: bytes) -> None:
    with pytest.raises(RefusedError) as raised:
        normalise(raw, b"GET")
    assert raised.value.refusal.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    ("raw", "authority", "target"),
    [(b"http://h:1/a", b"h:1", b"/a"), (b"HTTPS://h", b"h", b"/"), (b"http://h?q", b"h", b"/?q")],
)
def test_absolute_form(raw: bytes, authority: bytes, target: bytes) -> None:
    found = normalise(raw, b"GET")
    assert (found.authority, found.target) == (authority, target)


def test_star_is_for_options() -> None:
    assert normalise(b"*", b"OPTIONS").path == "*"


def test_encoded_slashes_are_told() -> None:
    assert normalise(b"/a%2fb", b"GET") == NormalTarget(b"/a%2Fb", "/a%2Fb", True, None)
    assert normalise(b"/a%5cb", b"GET").has_encoded_slash


SEGMENTS = st.sampled_from(["a", "b", ".", "..", "", "%2e", "%2E%2e", "%41", "c;d", "%e4", "x.y", "..a", "%2f"])


@given(st.lists(SEGMENTS, max_size=8), st.sampled_from(["", "?q=1", "?/../"]))
def test_normalising_twice_is_normalising_once_and_no_dots_are_left(segments: list[str], query: str) -> None:
    raw = ("/" + "/".join(segments) + query).encode()
    try:
        once = normalise(raw, b"GET")
    except RefusedError:
        return
    assert normalise(once.target, b"GET") == once
    parts = once.path.split("/")
    assert "." not in parts
    assert ".." not in parts
    assert "//" not in once.path
    assert once.target == once.path.encode() + query.encode()
