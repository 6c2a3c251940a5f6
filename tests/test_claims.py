"""What a verified token's claims become: an identity, and fields for the upstream."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engadi_gateway.pipeline.claims import IdentityPolicy, header_value, identity_of

CLAIMS: dict[str, Any] = {"sub": "u1", "exp": 1_700_000_600, "role": "editor", "email": "u1@example.org"}


@pytest.mark.parametrize(
    ("value", "want"),
    [
        pytest.param("plain text", b"plain text", id="plain"),
        pytest.param(" edges  ", b"%20edges%20%20", id="white space at the edges"),
        pytest.param("a, b", b"a, b", id="comma"),
        pytest.param("Zoë 100%", b"Zo%C3%AB 100%25", id="not ASCII, and the escape itself"),
        pytest.param(7, b"7", id="number"),
        pytest.param(["a", "b", 3], b"a,b,3", id="list"),
        pytest.param(["a,admin"], b"a%2Cadmin", id="one part cannot be read as two"),
        pytest.param(["a", "b\r\nX-User-Role: admin", {}, True, ["c"]], b"a", id="parts that cannot be said"),
        pytest.param("a\r\nX-User-Role: admin", None, id="line end"),
        pytest.param("a\n", None, id="line end last"),
        pytest.param("a\x00", None, id="NUL"),
        pytest.param("a\x7f", None, id="DEL"),
        pytest.param("\ud800", None, id="half a surrogate pair"),
        pytest.param("", None, id="empty"),
        pytest.param("  ", b"%20%20", id="blank"),
        pytest.param(["a", "admin "], b"a,admin%20", id="white space at the edges of a part"),
        pytest.param([], None, id="empty list"),
        pytest.param(True, None, id="boolean"),
        pytest.param(1.5, None, id="fraction"),
        pytest.param({"a": 1}, None, id="object"),
        pytest.param(None, None, id="null"),
    ],
)
def test_header_value(value: object, want: bytes | None) -> None:
    assert header_value(value) == want


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_claim_makes_a_bad_field_value(value: object) -> None:
    line = header_value(value)
    assert line is None or (line.strip() == line != b"" and all(0x20 <= byte < 0x7F for byte in line))


def test_a_claim_that_cannot_be_said_costs_only_its_header() -> None:
    found = identity_of({**CLAIMS, "email": "x\r\ny"}, IdentityPolicy())
    assert found.headers == ((b"X-User-ID", b"u1"), (b"X-User-Role", b"editor"))


def test_the_role_claim_may_have_another_name_and_be_a_list() -> None:
    policy = IdentityPolicy(role_claim="groups", claim_headers=(("role", "X-Role"), ("tenant", "X-Tenant")))
    claims = {**CLAIMS, "groups": ["a", "b", 7], "tenant": "t1"}
    found = identity_of(claims, policy)
    assert (found.roles, found.headers) == (("a", "b"), ((b"X-Role", b"a,b,7"), (b"X-Tenant", b"t1")))


def test_a_role_with_a_comma_is_one_role_upstream_too() -> None:
    found = identity_of({**CLAIMS, "role": "admin,editor"}, IdentityPolicy())
    assert found.roles == ("admin,editor",)
    assert (b"X-User-Role", b"admin%2Ceditor") in found.headers
