"""The identity stage against the attacks of RFC 8725, real PyJWT and real keys; time is an argument."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from engadi_gateway.errors import ConfigurationError, Reason, Refusal
from engadi_gateway.model import Framing, RequestHead, Route
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.claims import IdentityPolicy
from engadi_gateway.pipeline.exchange import Exchange, Identity, Wait
from engadi_gateway.pipeline.identity import (
    IdentityStage,
    Keyring,
    TokenCache,
    TokenJudge,
    invalid,
    keyring_of,
    make_token,
    parse_jwks,
)

SECRET = "a-secret-of-thirty-two-bytes-and-more"
WALL = 1_700_000_000.0
CLAIMS: dict[str, Any] = {"sub": "u1", "exp": int(WALL) + 600, "role": "editor", "email": "u1@example.org"}
POLICY = IdentityPolicy()
STRICT = IdentityPolicy(issuer="https://auth.example", audience="gateway")
PROTECTED = Route("r1", "/a/*", "content")
PUBLIC = Route("r2", "/p/*", "content", is_public=True)
BARE = b'Bearer realm="engadi"'


def token(claims: Mapping[str, Any] = CLAIMS, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> bytes:
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers=header or None).encode()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def forged(header: bytes, payload: bytes, secret: bytes = SECRET.encode()) -> bytes:
    """Signed with HS256 over bytes that no library would write."""
    signed = b64(header) + b"." + b64(payload)
    return signed + b"." + b64(hmac.new(secret, signed, hashlib.sha256).digest())


def signed(payload: bytes) -> bytes:
    return forged(b'{"alg":"HS256"}', payload)


def judge_of(policy: IdentityPolicy = POLICY, keyring: Keyring | None = None) -> TokenJudge:
    return TokenJudge(policy, keyring or keyring_of(("HS256",), SECRET, ""))


def word(verdict: Identity | Refusal | Wait | None) -> str:
    """What a verdict says, in one word."""
    if isinstance(verdict, Refusal):
        return verdict.word or verdict.reason.code
    if isinstance(verdict, Wait):
        return f"wait {verdict.kind}"
    return "accepted"


def exchange_of(authorization: bytes | None, route: Route | None = PROTECTED, wall: float = WALL) -> Exchange:
    notes = {} if authorization is None else {b"authorization": authorization}
    head = RequestHead("GET", b"/a", "/a", "x", b"x", b"", notes, Framing.NONE, 0, False, False, True, b"")
    exchange = Exchange(head, "id", 0.0, wall, Pipeline((), 1))
    exchange.route = route
    return exchange


def stage_of(policy: IdentityPolicy = POLICY, keyring: Keyring | None = None, size: int = 10) -> IdentityStage:
    return IdentityStage(judge_of(policy, keyring), TokenCache(size))


# keys


JWK_KINDS: tuple[tuple[type, Any], ...] = (
    (rsa.RSAPrivateKey, RSAAlgorithm),
    (ec.EllipticCurvePrivateKey, ECAlgorithm),
    (ed25519.Ed25519PrivateKey, OKPAlgorithm),
)


class Key(NamedTuple):
    private: Any
    pem: str

    def jwk(self, **more: Any) -> dict[str, Any]:
        kind = next(kind for private, kind in JWK_KINDS if isinstance(self.private, private))
        return {**kind.to_jwk(self.private.public_key(), as_dict=True), **more}


def key_of(private: Any) -> Key:
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Key(private, pem.decode())


class Keys(NamedTuple):
    rsa: Key
    weak_rsa: Key
    p256: Key
    other_p256: Key
    p384: Key
    ed25519: Key


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys(
        key_of(rsa.generate_private_key(65537, 2048)),
        key_of(rsa.generate_private_key(65537, 1024)),
        key_of(ec.generate_private_key(ec.SECP256R1())),
        key_of(ec.generate_private_key(ec.SECP256R1())),
        key_of(ec.generate_private_key(ec.SECP384R1())),
        key_of(ed25519.Ed25519PrivateKey.generate()),
    )


def jwks(*rows: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": rows}).encode()


def ring(document: bytes, *algorithms: str) -> Keyring:
    return Keyring(by_kid=parse_jwks(document, algorithms), has_url=True)


# tokens that are good


def test_a_good_token_gives_the_identity_and_its_headers() -> None:
    assert judge_of().judge(token(), WALL) == Identity(
        "u1",
        ("editor",),
        ((b"X-User-ID", b"u1"), (b"X-User-Role", b"editor"), (b"X-User-Email", b"u1@example.org")),
        CLAIMS["exp"] + 30.0,
    )


@pytest.mark.parametrize(
    ("claims", "policy"),
    [
        pytest.param({**CLAIMS, "iss": STRICT.issuer, "aud": "gateway"}, STRICT, id="issuer and audience"),
        pytest.param({**CLAIMS, "iss": STRICT.issuer, "aud": ["x", "gateway"]}, STRICT, id="audience in a list"),
        pytest.param({**CLAIMS, "iss": "x", "aud": "y"}, POLICY, id="neither asked for"),
        pytest.param({**CLAIMS, "exp": WALL + 0.5}, POLICY, id="exp with a fraction"),
        pytest.param({**CLAIMS, "exp": int(WALL) - 29}, POLICY, id="expired within the leeway"),
        pytest.param({**CLAIMS, "nbf": int(WALL) + 30, "iat": int(WALL) + 30}, POLICY, id="early within the leeway"),
        pytest.param(without("sub"), replace(POLICY, required_claims=("exp",)), id="no sub where none is asked"),
        pytest.param({**CLAIMS, "typ": "x", "jti": 7}, POLICY, id="unknown and odd claims"),
    ],
)
def test_accepted(claims: dict[str, Any], policy: IdentityPolicy) -> None:
    assert word(judge_of(policy).judge(signed(json.dumps(claims).encode()), WALL)) == "accepted"


def test_a_number_as_sub_is_text_afterwards() -> None:
    verdict = judge_of().judge(token({**CLAIMS, "sub": 42}), WALL)
    assert isinstance(verdict, Identity)
    assert (verdict.user_id, verdict.headers[0]) == ("42", (b"X-User-ID", b"42"))


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c"])
def test_keys_that_a_token_brings_along_are_not_looked_at(name: str) -> None:
    header: dict[str, Any] = {name: "https://evil.example/keys"}
    assert word(judge_of().judge(token(**header), WALL)) == "accepted"
    assert word(judge_of().judge(token(key="x" * 32, **header), WALL)) == "bad_signature"


# RFC 8725: tokens that are not

ATTACKS: tuple[tuple[str, bytes, str], ...] = (
    ("none", b64(b'{"alg":"none"}') + b"." + b64(json.dumps(CLAIMS).encode()) + b".", "wrong_alg"),
    ("None", b64(b'{"alg":"nOnE"}') + b"." + b64(json.dumps(CLAIMS).encode()) + b".", "wrong_alg"),
    ("none with a signature", forged(b'{"alg":"none"}', json.dumps(CLAIMS).encode()), "wrong_alg"),
    ("lower case", forged(b'{"alg":"hs256"}', json.dumps(CLAIMS).encode()), "wrong_alg"),
    ("another HMAC", token(key=SECRET * 2, algorithm="HS512"), "wrong_alg"),
    ("a list of algorithms", forged(b'{"alg":["HS256"]}', json.dumps(CLAIMS).encode()), "wrong_alg"),
    ("no algorithm", forged(b"{}", json.dumps(CLAIMS).encode()), "wrong_alg"),
    ("another key", token(key="y" * 32), "bad_signature"),
    ("no signature", token().rpartition(b".")[0] + b".", "bad_signature"),
    ("half a signature", token()[:-19], "bad_signature"),
    (
        "other claims",
        b".".join((token().split(b".")[0], b64(b'{"sub":"root"}'), token().split(b".")[2])),
        "bad_signature",
    ),
    ("kid with a path", token(key="y" * 32, kid="../../dev/null"), "bad_signature"),
    ("kid no text", forged(b'{"alg":"HS256","kid":7}', json.dumps(CLAIMS).encode()), "malformed"),
    ("crit", forged(b'{"alg":"HS256","crit":["exp"]}', json.dumps(CLAIMS).encode()), "malformed"),
    ("crit b64", forged(b'{"alg":"HS256","crit":["b64"],"b64":true}', json.dumps(CLAIMS).encode()), "malformed"),
    ("two parts", token().rpartition(b".")[0], "malformed"),
    ("encrypted", b"a.b.c.d.e", "malformed"),
    ("dots", b"..", "malformed"),
    ("no base64", b"!.!.!", "malformed"),
    ("not ASCII", b"\xff\xfe.\xff.\xff", "malformed"),
    ("header no object", forged(b"[]", b"{}"), "malformed"),
    ("payload no object", signed(b"[]"), "malformed"),
    ("payload no JSON", signed(b"{"), "malformed"),
    ("payload not UTF-8", signed(b'{"sub":"\xff"}'), "malformed"),
    ("deep header", forged(b"[" * 3000, b"{}"), "malformed"),
    ("deep payload", signed(b'{"a":' + b"[" * 3000), "malformed"),
    ("a number of 5000 digits", signed(b'{"exp":' + b"9" * 5000 + b"}"), "malformed"),
    ("too long", token({**CLAIMS, "x": "y" * 8192}), "malformed"),
    ("no exp", token(without("exp")), "missing_claim"),
    ("exp null", token({**CLAIMS, "exp": None}), "missing_claim"),
    ("no sub", token(without("sub")), "missing_claim"),
    ("exp a text", token({**CLAIMS, "exp": str(CLAIMS["exp"])}), "malformed"),
    ("exp true", token({**CLAIMS, "exp": True}), "malformed"),
    ("exp infinite", signed(b'{"sub":"u","exp":1e999}'), "malformed"),
    ("exp Infinity", signed(b'{"sub":"u","exp":Infinity}'), "malformed"),
    ("exp NaN", signed(b'{"sub":"u","exp":NaN}'), "malformed"),
    ("exp beyond time", token({**CLAIMS, "exp": 10**30}), "malformed"),
    ("nbf true", token({**CLAIMS, "nbf": True}), "malformed"),
    ("nbf null", token({**CLAIMS, "nbf": None}), "malformed"),
    ("iat a text", token({**CLAIMS, "iat": "0"}), "malformed"),
    ("sub a list", token({**CLAIMS, "sub": ["u1"]}), "malformed"),
    ("sub true", token({**CLAIMS, "sub": True}), "malformed"),
    ("sub empty", token({**CLAIMS, "sub": ""}), "malformed"),
    ("sub half a surrogate pair", signed(b'{"sub":"\\ud800","exp":1800000000}'), "malformed"),
    ("expired", token({**CLAIMS, "exp": int(WALL) - 30}), "expired"),
    ("expired before time began", token({**CLAIMS, "exp": -1}), "expired"),
    ("not yet", token({**CLAIMS, "nbf": int(WALL) + 31}), "not_yet_valid"),
    ("from the future", token({**CLAIMS, "iat": int(WALL) + 31}), "not_yet_valid"),
)


@pytest.mark.parametrize(("attack", "want"), [pytest.param(t, w, id=name) for name, t, w in ATTACKS])
def test_refused(attack: bytes, want: str) -> None:
    assert judge_of().judge(attack, WALL) == invalid(want)


@pytest.mark.parametrize(
    ("more", "want"),
    [
        pytest.param({"aud": "gateway"}, "wrong_issuer", id="no issuer"),
        pytest.param({"iss": "https://auth.example/", "aud": "gateway"}, "wrong_issuer", id="nearly the issuer"),
        pytest.param({"iss": ["https://auth.example"], "aud": "gateway"}, "wrong_issuer", id="issuer in a list"),
        pytest.param({"iss": "https://auth.example"}, "wrong_audience", id="no audience"),
        pytest.param({"iss": "https://auth.example", "aud": "gate"}, "wrong_audience", id="part of the audience"),
        pytest.param({"iss": "https://auth.example", "aud": []}, "wrong_audience", id="audience empty"),
        pytest.param({"iss": "https://auth.example", "aud": {"gateway": 1}}, "wrong_audience", id="audience object"),
    ],
)
def test_issuer_and_audience(more: dict[str, Any], want: str) -> None:
    assert word(judge_of(STRICT).judge(signed(json.dumps({**CLAIMS, **more}).encode()), WALL)) == want


@pytest.mark.parametrize("secret", ["", "short"])
def test_a_missing_or_short_key_opens_nothing(secret: str) -> None:
    judge = judge_of(keyring=keyring_of(("HS256",), secret, ""))
    assert word(judge.judge(forged(b'{"alg":"HS256"}', b"{}", secret.encode()), WALL)) == "unknown_key"


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    assert isinstance(judge_of().judge(data, WALL), Refusal)


@given(st.integers(0, len(token()) - 1), st.sampled_from(b"AZaz09-_.=+ "))
def test_one_changed_byte_never_gives_another_identity(position: int, byte: int) -> None:
    changed = bytearray(token())
    changed[position] = byte
    verdict = judge_of().judge(bytes(changed), WALL)
    assert isinstance(verdict, Refusal) or verdict == judge_of().judge(token(), WALL)


# public keys


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("rsa", "RS256"), ("rsa", "PS256"), ("p256", "ES256"), ("p384", "ES384"), ("ed25519", "EdDSA")],
)
def test_a_pem_key_verifies(keys: Keys, name: str, algorithm: str) -> None:
    key: Key = getattr(keys, name)
    judge = judge_of(IdentityPolicy(algorithms=(algorithm,)), keyring_of((algorithm,), "", key.pem))
    assert word(judge.judge(token(key=key.private, algorithm=algorithm, kid="any"), WALL)) == "accepted"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_the_public_key_is_no_hmac_secret(keys: Keys, algorithm: str) -> None:
    key = keys.rsa if algorithm == "RS256" else keys.p256
    judge = judge_of(IdentityPolicy(algorithms=(algorithm,)), keyring_of((algorithm,), SECRET, key.pem))
    attack = forged(b'{"alg":"HS256"}', json.dumps(CLAIMS).encode(), key.pem.encode())
    assert word(judge.judge(attack, WALL)) == "wrong_alg"
    assert word(judge.judge(token(), WALL)) == "wrong_alg"


def test_a_signature_of_zeros_is_none(keys: Keys) -> None:
    judge = judge_of(IdentityPolicy(algorithms=("ES256",)), keyring_of(("ES256",), "", keys.p256.pem))
    head = token(key=keys.p256.private, algorithm="ES256").rpartition(b".")[0]
    assert word(judge.judge(head + b"." + b64(bytes(64)), WALL)) == "bad_signature"


@pytest.mark.parametrize(
    ("algorithm", "pem", "pointer"),
    [
        pytest.param("RS256", "no key", "jwt.public_key_file", id="no PEM"),
        pytest.param("ES256", "rsa", "jwt.public_key_file", id="another kind of key"),
        pytest.param("RS256", "weak_rsa", "jwt.public_key_file", id="1024 bits"),
    ],
)
def test_unusable_keys_are_found_at_start(keys: Keys, algorithm: str, pem: str, pointer: str) -> None:
    text = getattr(keys, pem).pem if pem in Keys._fields else pem
    with pytest.raises(ConfigurationError) as caught:
        keyring_of((algorithm,), "", text)
    assert [fault.pointer for fault in caught.value.faults] == [pointer]


def test_without_the_extra_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def known_without_cryptography(name: str) -> Any:
        raise NotImplementedError(name)

    monkeypatch.setattr(jwt, "get_algorithm_by_name", known_without_cryptography)
    with pytest.raises(ConfigurationError, match=r"pip install 'PyJWT\[crypto\]'"):
        keyring_of(("RS256",), "", "")


# JWKS


def test_jwks_picks_the_key_by_its_name(keys: Keys) -> None:
    document = jwks(keys.p256.jwk(kid="a", alg="ES256"), keys.other_p256.jwk(kid="b"), keys.rsa.jwk(kid="c"))
    judge = judge_of(IdentityPolicy(algorithms=("ES256", "RS256")), ring(document, "ES256", "RS256"))
    made: Callable[..., bytes] = token
    table = {
        "a by its name": (made(key=keys.p256.private, algorithm="ES256", kid="a"), "accepted"),
        "b by its name": (made(key=keys.other_p256.private, algorithm="ES256", kid="b"), "accepted"),
        "c of another kind": (made(key=keys.rsa.private, algorithm="RS256", kid="c"), "accepted"),
        "b under the name of a": (made(key=keys.other_p256.private, algorithm="ES256", kid="a"), "bad_signature"),
        "c's algorithm under a": (made(key=keys.rsa.private, algorithm="RS256", kid="a"), "wrong_alg"),
        "c with another padding": (made(key=keys.rsa.private, algorithm="PS256", kid="c"), "wrong_alg"),
        "no such name": (made(key=keys.p256.private, algorithm="ES256", kid="d"), "unknown_key"),
        "no name, several keys": (made(key=keys.p256.private, algorithm="ES256"), "unknown_key"),
    }
    assert {name: word(judge.judge(row[0], WALL)) for name, row in table.items()} == {
        name: row[1] for name, row in table.items()
    }


def test_a_single_key_needs_no_name(keys: Keys) -> None:
    judge = judge_of(IdentityPolicy(algorithms=("ES256",)), ring(jwks(keys.p256.jwk()), "ES256"))
    assert word(judge.judge(token(key=keys.p256.private, algorithm="ES256"), WALL)) == "accepted"


def test_only_usable_keys_of_a_jwks_are_taken(keys: Keys) -> None:
    rows: list[Any] = [
        keys.p256.jwk(kid="good", use="sig", key_ops=["verify"]),
        keys.p256.jwk(kid="for encryption", use="enc"),
        keys.p256.jwk(kid="for signing", key_ops=["sign"]),
        keys.p256.jwk(kid="odd ops", key_ops=7),
        keys.p256.jwk(kid=7),
        keys.p256.jwk(kid="an algorithm not allowed", alg="ES384"),
        keys.p384.jwk(kid="another curve"),
        keys.weak_rsa.jwk(kid="weak"),
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U", "kid": "symmetric", "alg": "HS256"},
        {"kty": "EC", "kid": "empty"},
        {"kty": "martian", "kid": "unknown kind"},
        "no object",
    ]
    assert list(parse_jwks(jwks(*rows), ("ES256", "RS256"))) == ["good"]


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys":7}', b'{"keys":[]}', b'{"keys":[{"kty":"oct","k":"eA"}]}', b"[" * 100_000, b"\xff"],
)
def test_what_is_no_jwks_is_an_error(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(not a JWKS document|no usable key)$"):
        parse_jwks(document, ("RS256",))


def test_more_keys_than_anybody_means_are_none_of_them_read(keys: Keys) -> None:
    rows = [keys.p256.jwk(kid=f"{n}") for n in range(100)]
    assert len(parse_jwks(jwks(*rows), ("ES256",))) == 100
    with pytest.raises(ValueError, match=r"^101 keys, 100 at most$"):
        parse_jwks(jwks(*rows, {}), ("ES256",))


def test_a_published_symmetric_key_is_not_taken_whatever_is_allowed() -> None:
    row = {"kty": "oct", "k": b64(SECRET.encode()).decode(), "kid": "a", "alg": "HS256"}
    with pytest.raises(ValueError, match=r"^no usable key$"):
        parse_jwks(jwks(row), ("HS256",))


def test_before_a_jwks_has_come_there_is_no_key() -> None:
    keyring = keyring_of(("RS256",), "", "", has_url=True)
    assert (keyring.find("a"), keyring.find(None), keyring.has_url) == (None, None, True)


def test_a_keyring_says_nothing_of_its_keys() -> None:
    assert SECRET not in repr(keyring_of(("HS256",), SECRET, ""))


# the stage

MALFORMED = (b"WWW-Authenticate", BARE + b', error="invalid_request"')


@pytest.mark.parametrize(
    ("authorization", "want"),
    [
        pytest.param(None, Refusal(Reason.AUTH_MISSING, headers=((b"WWW-Authenticate", BARE),)), id="none"),
        pytest.param(b"", Refusal(Reason.AUTH_MISSING, headers=((b"WWW-Authenticate", BARE),)), id="empty"),
        pytest.param(b"Basic dTpw", Refusal(Reason.AUTH_MISSING, headers=((b"WWW-Authenticate", BARE),)), id="basic"),
        pytest.param(b"Bearer " + token(), None, id="bearer"),
        pytest.param(b"bEARER   " + token() + b" ", None, id="bearer in any case"),
        pytest.param(b"Bearer a.b.c", invalid("malformed"), id="no JWT"),
        pytest.param(b"Bearer " + token(without("exp")), invalid("missing_claim"), id="invalid"),
    ],
)
def test_what_authorization_gets(authorization: bytes | None, want: Refusal | None) -> None:
    assert stage_of().decide(exchange_of(authorization)) == want


@pytest.mark.parametrize("credentials", [b"Bearer", b"Bearer ", b"Bearer a b", b"Bearer a, Bearer b", b"Bearer a,b"])
def test_credentials_that_cannot_be_read_are_a_400(credentials: bytes) -> None:
    refusal = stage_of().decide(exchange_of(credentials))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason.status, refusal.headers) == (400, (MALFORMED,))


def test_the_challenge_says_the_word() -> None:
    assert invalid("expired").headers == (
        (b"WWW-Authenticate", BARE + b', error="invalid_token", error_description="expired"'),
    )


def test_a_good_token_is_the_exchange_s_identity() -> None:
    exchange = exchange_of(b"Bearer " + token())
    stage_of().decide(exchange)
    assert exchange.identity == judge_of().judge(token(), WALL)


OPTIONAL = IdentityPolicy(validates_on_public=True)


@pytest.mark.parametrize(
    ("policy", "authorization", "want", "is_known"),
    [
        pytest.param(POLICY, None, "accepted", False, id="nothing"),
        pytest.param(POLICY, b"Bearer bad", "accepted", False, id="a bad token is ignored"),
        pytest.param(POLICY, b"Bearer " + token(), "accepted", False, id="a good one too"),
        pytest.param(OPTIONAL, None, "accepted", False, id="optional: nothing"),
        pytest.param(OPTIONAL, b"Basic x", "accepted", False, id="optional: another scheme"),
        pytest.param(OPTIONAL, b"Bearer bad", "malformed", False, id="optional: bad"),
        pytest.param(OPTIONAL, b"Bearer " + token(), "accepted", True, id="optional: good"),
    ],
)
def test_public_routes(policy: IdentityPolicy, authorization: bytes | None, want: str, is_known: bool) -> None:
    exchange = exchange_of(authorization, PUBLIC)
    assert word(stage_of(policy).decide(exchange)) == want
    assert (exchange.identity is not None) == is_known


@pytest.mark.parametrize(
    ("roles", "role", "want"),
    [
        pytest.param(("editor",), "editor", "accepted", id="the role"),
        pytest.param(("admin", "editor"), ["x", "editor"], "accepted", id="one of them"),
        pytest.param(("admin",), "editor", "scope_missing", id="another"),
        pytest.param(("admin",), "administrator", "scope_missing", id="part of a word"),
        pytest.param(("admin",), ["ADMIN"], "scope_missing", id="another case"),
        pytest.param(("admin",), None, "scope_missing", id="none"),
        pytest.param(("admin",), {"admin": True}, "scope_missing", id="an object"),
    ],
)
@pytest.mark.parametrize("is_public", [False, True])
def test_required_roles(roles: tuple[str, ...], role: object, want: str, is_public: bool) -> None:
    route = replace(PROTECTED, required_roles=roles, is_public=is_public)
    assert word(stage_of().decide(exchange_of(b"Bearer " + token({**CLAIMS, "role": role}), route))) == want


def test_a_missing_role_is_named_in_the_challenge() -> None:
    route = replace(PROTECTED, required_roles=("admin", 'o"dd\r\nX: y'))
    refusal = stage_of().decide(exchange_of(b"Bearer " + token(), route))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.headers) == (
        Reason.SCOPE_MISSING,
        ((b"WWW-Authenticate", BARE + b', error="insufficient_scope", scope="admin oddX: y"'),),
    )


def test_without_a_route_there_is_nothing_to_decide() -> None:
    assert stage_of().decide(exchange_of(None, None)) is None


def test_the_trace_tells_the_verdict_and_never_the_token() -> None:
    for authorization, want in (
        (b"Bearer " + token(), {"verdict": "accepted", "user_id": "u1", "roles": ["editor"]}),
        (b"Bearer a.b.c", {"verdict": "refused", "why": "malformed"}),
        (b"Bearer", {"verdict": "refused", "why": "auth_malformed"}),
    ):
        exchange = exchange_of(authorization)
        exchange.trace = {}
        stage_of().decide(exchange)
        assert exchange.trace == {"jwt": want}


# the cache


def test_a_verified_token_is_not_verified_again() -> None:
    judge, cache = judge_of(), TokenCache(10)
    stage = IdentityStage(judge, cache)
    first = exchange_of(b"Bearer " + token())
    stage.decide(first)
    judge.keyring = Keyring()  # whoever asks it again is refused
    second = exchange_of(b"Bearer " + token())
    assert stage.decide(second) is None
    assert second.identity is first.identity is not None


@given(st.integers(-100, 100), st.floats(0, 60))
@settings(max_examples=200)
def test_the_cache_ends_when_the_judge_would(offset: int, leeway_s: float) -> None:
    judge, cache = judge_of(IdentityPolicy(leeway_s=leeway_s)), TokenCache(1)
    made = token({**CLAIMS, "exp": int(WALL)})
    verdict = judge.judge(made, WALL - 1000)
    assert isinstance(verdict, Identity)
    cache.put(made, verdict, verdict.expires_at)
    assert (cache.get(made, WALL + offset, 0.0) is None) == (word(judge.judge(made, WALL + offset)) == "expired")


def test_refused_tokens_take_no_place() -> None:
    cache = TokenCache(10)
    IdentityStage(judge_of(), cache).decide(exchange_of(b"Bearer " + token(key="z" * 32)))
    assert len(cache) == 0


@pytest.mark.parametrize("size", [0, 1, 3])
def test_the_cache_is_bounded_and_the_oldest_goes(size: int) -> None:
    cache = TokenCache(size)
    for number in range(5):
        cache.put(b"%d" % number, Identity(str(number)), WALL)
    assert [number for number in range(5) if cache.get(b"%d" % number, 0.0, 0.0)] == list(range(5 - size, 5))


def test_a_new_verdict_on_a_known_token_drives_nobody_out() -> None:
    cache = TokenCache(2)
    for name in (b"a", b"b", b"b"):
        cache.put(name, Identity("x"), WALL)
    assert cache.get(b"a", 0.0, 0.0) == Identity("x")


def test_an_emptied_cache_knows_nothing() -> None:
    cache = TokenCache(2)
    cache.put(b"a", Identity("x"), WALL)
    cache.clear()
    assert cache.get(b"a", 0.0, 0.0) is None


# who else is asked

HERE = keyring_of(("HS256",), SECRET, "")
ELSEWHERE = token(key="w" * 64, algorithm="HS512")


@pytest.mark.parametrize(
    ("mode", "asked", "want"),
    [
        pytest.param("local", ELSEWHERE, "wrong_alg", id="local: foreign"),
        pytest.param("local-then-remote", token(), "accepted", id="ours"),
        pytest.param("local-then-remote", ELSEWHERE, "wait remote", id="foreign"),
        pytest.param("local-then-remote", token(key="z" * 32), "bad_signature", id="forged"),
        pytest.param("local-then-remote", token({**CLAIMS, "exp": 1}), "expired", id="expired"),
        pytest.param("local-then-remote", b"opaque", "malformed", id="no JWT"),
        pytest.param("local-then-remote", ATTACKS[0][1], "wrong_alg", id="unsigned"),
        pytest.param("remote", token(), "wait remote", id="remote: ours"),
        pytest.param("remote", b"opaque", "wait remote", id="remote: no JWT"),
        pytest.param("remote", b"x" * 8193, "malformed", id="remote: too long"),
    ],
)
def test_who_is_asked(mode: str, asked: bytes, want: str) -> None:
    assert word(stage_of(IdentityPolicy(mode=mode), HERE).decide(exchange_of(b"Bearer " + asked))) == want


@pytest.mark.parametrize("mode", ["local", "local-then-remote"])
def test_an_unknown_key_is_looked_for_at_the_jwks_url(keys: Keys, mode: str) -> None:
    policy = IdentityPolicy(algorithms=("ES256",), mode=mode)
    made = token(key=keys.p256.private, algorithm="ES256", kid="new")
    stage = stage_of(policy, ring(jwks(keys.other_p256.jwk(kid="old")), "ES256"))
    assert stage.decide(exchange_of(b"Bearer " + made)) == Wait("keys", made.decode())


@pytest.mark.parametrize(
    ("keyring", "mode", "asks"),
    [(HERE, "remote", "the auth service"), (Keyring(has_url=True), "local", "the JWKS URL")],
    ids=["remote", "keys"],
)
def test_a_rehearsal_is_told_who_would_be_asked(keyring: Keyring, mode: str, asks: str) -> None:
    exchange = exchange_of(b"Bearer " + token(kid="a"))
    exchange.trace = {}
    stage_of(IdentityPolicy(mode=mode), keyring).decide(exchange)
    assert exchange.trace == {"jwt": {"verdict": "would wait", "asks": asks}}


def test_after_the_wait_the_answer_counts() -> None:
    stage = stage_of(IdentityPolicy(mode="remote"))
    for answer, want in ((Identity("u9", ("admin",)), None), (invalid("rejected"), invalid("rejected"))):
        exchange = exchange_of(b"Bearer opaque")
        exchange.remote_verdict = answer
        assert stage.decide(exchange) == want
        assert exchange.identity == (answer if want is None else None)


def test_a_remembered_answer_needs_no_wait() -> None:
    cache = TokenCache(10)
    stage = IdentityStage(judge_of(IdentityPolicy(mode="remote")), cache)
    cache.put(b"yes", Identity("u9"), WALL + 5)
    cache.put(b"no", invalid("rejected"), WALL + 5)
    assert [word(stage.decide(exchange_of(b"Bearer " + name))) for name in (b"yes", b"no")] == ["accepted", "rejected"]
    assert word(stage.decide(exchange_of(b"Bearer yes", wall=WALL + 5))) == "wait remote"


def test_make_token_is_what_the_stage_accepts() -> None:
    made = make_token(SECRET, "HS256", CLAIMS).encode()
    assert stage_of().decide(exchange_of(b"Bearer " + made)) is None
