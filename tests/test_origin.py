"""What makes two connections the same, of a target's URL."""

from __future__ import annotations

import pytest

from engadi_gateway.net.origin import origin_of


@pytest.mark.parametrize(
    ("url", "key", "authority", "base_path"),
    [
        ("http://h", ("http", "h", 80), b"h", b""),
        ("https://h", ("https", "h", 443), b"h", b""),
        ("http://h:80/", ("http", "h", 80), b"h", b""),
        ("http://h:443", ("http", "h", 443), b"h:443", b""),
        ("https://h:8443/base/", ("https", "h", 8443), b"h:8443", b"/base"),
        ("HTTP://Host:1/A/b", ("http", "host", 1), b"host:1", b"/A/b"),
        ("http://[::1]:8000", ("http", "::1", 8000), b"[::1]:8000", b""),
        ("http://[::1]", ("http", "::1", 80), b"[::1]", b""),
    ],
)
def test_what_makes_two_connections_the_same(
    url: str, key: tuple[str, str, int], authority: bytes, base_path: bytes
) -> None:
    origin = origin_of(url)
    assert (origin.key, origin.authority, origin.base_path) == (key, authority, base_path)
    assert (origin.scheme, origin.host, origin.port) == key
