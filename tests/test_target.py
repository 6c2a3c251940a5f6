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
    b"/%252e%252ea/%2541": ("/%252e%252ea/%2541", b"/%252e%252ea/%2541"),
    b"/a;b=c/d;/;e": ("/a;b=c/d;/;e", b"/a;b=c/d;/;e"),
    b"/a/...": ("/a/...", b"/a/..."),
    b"/%C3%A4%E0%A4%85%F0%9F%98%80": ("/%C3%A4%E0%A4%85%F0%9F%98%80", b"/%C3%A4%E0%A4%85%F0%9F%98%80"),
}


@pytest.mark.parametrize("raw", GOOD)
def test_good_targets(raw: bytes) -> None:
    path, target = GOOD[raw]
    assert normalise(raw, b"GET") == NormalTarget(target, path, False, None)


BAD = (b"", b"a", b"/%", b"/%0", b"/%g0", b"/%00", b"/%1f", b"/%7F", b"/..", b"/a/../..", b"/..;/", b"/.;x", b"/a#", b"/\xe4",
       b"/..%3b/", b"/..%3f", b"/a/..%23x/b", b"/..%253fx", b"/%2e%2e%3Bx/", b"/a/..%2f", b"/a%2f..%2fb", b"/a%5c..%5cb", b"/a%2f.", b"/..%20/", b"/%20./",
       b"/%252e%252e/", b"/%25252e%25252e/x", b"/a%252f..%252fb", b"/a%255c%252e%252e", b"/%252e%253bx", b"/;/a",
       b"/a/;b=c/d", b"/%3b/a", b"/.../a", b"/%20/a", b"/a%2f%20%2fb", b"/a;b%2fc", b"/a%252f;", b"/a%253b%5cb",
       b"/%c0%ae%c0%ae/", b"/%C0%AF", b"/%c1%9c", b"/%e0%80%af", b"/%e0%9f%bf", b"/%f0%80%80%af",
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


@pytest.mark.parametrize("raw", [b"*", b"http://h", b"HTTPS://h:8"])
def test_star_is_for_options(raw: bytes) -> None:
    """RFC 9112 section 3.2.4: a proxy is asked so for what a server is asked as *."""
    assert normalise(raw, b"OPTIONS")[:2] == (b"*", "*")


@pytest.mark.parametrize("raw", [b"http://h/", b"http://h?q"])
def test_a_path_or_a_query_is_no_star(raw: bytes) -> None:
    assert normalise(raw, b"OPTIONS").path == "/"


def test_encoded_slashes_are_told() -> None:
    assert normalise(b"/a%2fb", b"GET") == NormalTarget(b"/a%2Fb", "/a%2Fb", True, None)
    for spelt in (b"/a%5cb", b"/a%252fb", b"/a%25255Cb", b"/a%2F"):
        assert normalise(spelt, b"GET").has_encoded_slash
    for plain in (b"/a/b", b"/a%2541", b"/a%25", b"/%3b", b"/a/"):
        assert not normalise(plain, b"GET").has_encoded_slash


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
