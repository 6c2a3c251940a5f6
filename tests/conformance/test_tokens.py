"""Attacks on tokens (RFC 8725), served: each is a 401 with its word in the challenge, the problem and the log.

Time is bounded by size: a head is at most 16 KiB, a token at most 8 KiB before anything of it is parsed, and what is
parsed is parsed once. The same table as values, and more of it, is in tests/test_identity.py.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from engadi_gateway.gateway.gateway import Gateway
from tests.fakes import Upstream, raw_client, upstream
from tests.harness import ADMIN, SECRET, ask, json_of, running, token

NOW = int(time.time())
CLAIMS: dict[str, Any] = {"sub": "alice", "role": "admin", "exp": NOW + 3600}
TARGET = "/api/v1/content/x"
LEEWAY_S = 30
#: Up to Python 3.12 its parser gives up at such a depth; later ones read it, and find nothing in it.
_IS_SHALLOW = sys.implementation.name == "cpython" and sys.version_info < (3, 13)
_DEEP = "malformed" if _IS_SHALLOW else "missing_claim"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw(header: bytes, payload: bytes, key: bytes = SECRET.encode()) -> str:
    """Signed with HS256 whatever the header says, over bytes that no library would write."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def headed(key: bytes = SECRET.encode(), **header: Any) -> str:
    return raw(json.dumps({"alg": "HS256", **header}).encode(), json.dumps(CLAIMS).encode(), key)


def claiming(**claims: Any) -> str:
    return raw(b'{"alg":"HS256"}', json.dumps({**CLAIMS, **claims}).encode())


def without(name: str) -> str:
    return raw(b'{"alg":"HS256"}', json.dumps({key: value for key, value in CLAIMS.items() if key != name}).encode())


def payload(text: bytes) -> str:
    return raw(b'{"alg":"HS256"}', text)


GOOD = claiming()
BODY = GOOD.split(".")[1]
NONE = b64(b'{"alg":"none"}')
OTHER = rsa.generate_private_key(65537, 2048)
OURS = rsa.generate_private_key(65537, 2048)
PEM = OURS.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Attack:
    """A token, the section of RFC 8725 that is about it, and the word that it gets; "" where it is good."""

    name: str
    section: str
    token: str
    word: str


def each(name: str, section: str, make: Callable[[Any], str], values: tuple[Any, ...], word: str) -> list[Attack]:
    """One attack for each value."""
    return [Attack(f"{name} {str(value)[:20]!r}", section, make(value), word) for value in values]


ATTACKS = [
    Attack("good", "3.1", GOOD, ""),
    Attack("none", "3.2", f"{NONE}.{BODY}.", "wrong_alg"),
    *each("none spelt", "3.2", lambda alg: f"{b64(json.dumps({'alg': alg}).encode())}.{BODY}.", ("None", "NONE", "nOnE", "none ", "", "\0none"), "wrong_alg"),
    Attack("none with a signature", "3.2", headed(alg="none"), "wrong_alg"),
    Attack("none without its dot", "3.2", f"{NONE}.{BODY}", "malformed"),
    Attack("the signature cut off", "3.2", GOOD.rpartition(".")[0] + ".", "bad_signature"),
    Attack("half the signature", "3.3", GOOD[:-19], "bad_signature"),
    *each("algorithm", "3.1", lambda alg: headed(alg=alg), ("hs256", "HS256 ", "HS384", "RS256", "ES256", "dir", None, 256, ["HS256"], {"a": 1}, True), "wrong_alg"),
    Attack("no algorithm", "3.1", raw(b"{}", BODY.encode()), "wrong_alg"),
    Attack("two algorithms", "3.1", raw(b'{"alg":"HS256","alg":"none"}', json.dumps(CLAIMS).encode()), "wrong_alg"),
    Attack("another HMAC with our key", "3.1", jwt.encode(CLAIMS, SECRET * 2, "HS512"), "wrong_alg"),
    Attack("another key", "3.3", headed(b"k" * 32), "bad_signature"),
    Attack("an empty key", "3.5", headed(b""), "bad_signature"),
    Attack("our key's prefix", "3.5", headed(SECRET.encode()[:-1]), "bad_signature"),
    Attack("other claims under a good signature", "3.3", ".".join((GOOD.split(".")[0], b64(b'{"sub":"root","exp":9999999999}'), GOOD.split(".")[2])), "bad_signature"),
    Attack("signed with RSA", "3.1", jwt.encode(CLAIMS, OTHER, "RS256"), "wrong_alg"),
    Attack("a key of its own, RSA", "3.10", jwt.encode(CLAIMS, OTHER, "RS256", {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}), "wrong_alg"),
    Attack("a key of its own, HMAC", "3.10", headed(b"k" * 32, jwk={"kty": "oct", "k": b64(b"k" * 32)}), "bad_signature"),
    Attack("a key at a URL", "3.10", headed(b"k" * 32, jku="http://127.0.0.1:1/keys", x5u="http://127.0.0.1:1/c"), "bad_signature"),
    *(
        Attack(f"kid {kid[:20]!r}", "3.10", headed(key, kid=kid), "bad_signature")
        for kid, key in (("/dev/null", b""), ("../../../../dev/null", b""), ("' UNION SELECT 'k", b"k"), ("| sleep 10", b"k"), ("http://127.0.0.1/k", b"k"), ("\0", b"\0"), ("x" * 3000, b"x"), ("", b""))
    ),
    *each("kid", "3.10", lambda kid: headed(kid=kid), (7, True, ["a"], {"a": "b"}), "malformed"),
    *each("crit", "3.10", lambda crit: headed(crit=crit), (["exp"], ["b64"], ["http://evil"], [], "exp", None, {}), "malformed"),
    Attack("crit and its b64", "3.10", headed(crit=["b64"], b64=False), "malformed"),
    Attack("b64 alone", "3.10", headed(b64=False), "malformed"),
    Attack("a token in a token", "3.11", payload(GOOD.encode()), "malformed"),
    Attack("a token in a token that says so", "3.11", raw(b'{"alg":"HS256","cty":"JWT"}', GOOD.encode()), "malformed"),
    Attack("an encrypted one", "3.11", "e30.e30.e30.e30.e30", "malformed"),
    Attack("two of them", "3.11", f"{GOOD}.{GOOD}", "malformed"),
    *each("no token", "2.1", str, ("x", ".", "..", "a.b.c", "....", f".{BODY}.", "null", "e30", "=.=.=", "%2e.%2e.%2e", "x" * 8000), "malformed"),
    Attack("8 bits", "2.1", "\xe4.\xe4.\xe4", "malformed"),
    Attack("too long by one byte", "2.1", GOOD + "x" * (8193 - len(GOOD)), "malformed"),
    Attack("good, but too long", "2.1", claiming(x="y" * 7000), "malformed"),
    Attack("nested lists in the header", "2.1", raw(b'{"alg":' + b"[" * 4000, b"{}"), "malformed"),
    Attack("nested lists in the claims", "2.1", payload(b'{"a":' + b"[" * 4000), "malformed"),
    Attack("nested lists that end", "2.1", payload(b'{"a":' + b"[" * 2500 + b"]" * 2500 + b"}"), _DEEP),
    Attack("nested objects", "2.1", payload(b'{"a":' * 1100), "malformed"),
    Attack("a number of 5000 digits", "2.1", payload(b'{"exp":' + b"9" * 5000 + b"}"), "malformed"),
    *each("claims", "2.1", payload, (b"", b"{", b"[]", b'"x"', b"1", b"null", b"\xff", b'{"sub":"\xff"}'), "malformed"),
    *each("header", "2.1", lambda text: raw(text, b"{}"), (b"", b"{", b"[]", b'"HS256"', b"1", b"null", b"\xff"), "malformed"),
    Attack("no exp", "3.10", without("exp"), "missing_claim"),
    Attack("no sub", "3.10", without("sub"), "missing_claim"),
    *each("null for", "3.10", lambda name: claiming(**{name: None}), ("exp", "sub"), "missing_claim"),
    *each("exp", "3.10", lambda exp: claiming(exp=exp), (str(NOW + 3600), True, [NOW], {"a": 1}, 10**30, "never", ""), "malformed"),
    *each("exp of JSON's", "3.10", lambda exp: payload(b'{"sub":"a","exp":' + exp + b"}"), (b"NaN", b"Infinity", b"1e999", b"-Infinity"), "malformed"),
    *each("nbf", "3.10", lambda nbf: claiming(nbf=nbf), (str(NOW), True, [], None), "malformed"),
    *each("iat", "3.10", lambda iat: claiming(iat=iat), (str(NOW), True, [], None), "malformed"),
    *each("sub", "3.10", lambda sub: claiming(sub=sub), (["alice"], {"a": 1}, True, 1.5, ""), "malformed"),
    *each("sub that no field can say", "3.10", lambda sub: claiming(sub=sub), ("root\n", "root\r\nX-User-Role: admin", "a\0", "a\x7f"), "malformed"),
    Attack("sub half a surrogate pair", "3.10", payload(b'{"sub":"\\ud800","exp":9999999999}'), "malformed"),
    Attack("expired by a second", "3.10", claiming(exp=NOW - LEEWAY_S - 1), "expired"),
    Attack("expired when time began", "3.10", claiming(exp=0), "expired"),
    Attack("expired before time began", "3.10", claiming(exp=-1), "expired"),
    Attack("not yet", "3.10", claiming(nbf=NOW + LEEWAY_S + 600), "not_yet_valid"),
    Attack("from the future", "3.10", claiming(iat=NOW + LEEWAY_S + 600), "not_yet_valid"),
]  # fmt: skip

KEY_CONFUSION = [
    Attack("good", "3.1", jwt.encode(CLAIMS, OURS, "RS256"), ""),
    Attack("the public key as HMAC's", "3.1", raw(b'{"alg":"HS256"}', json.dumps(CLAIMS).encode(), PEM), "wrong_alg"),
    Attack("the public key without its last line end", "3.1", raw(b'{"alg":"HS256"}', json.dumps(CLAIMS).encode(), PEM.strip()), "wrong_alg"),
    Attack("HMAC that says RSA", "3.1", raw(b'{"alg":"RS256"}', json.dumps(CLAIMS).encode(), PEM), "bad_signature"),
    Attack("HMAC with the gateway's own secret", "3.1", GOOD, "wrong_alg"),
    Attack("another key pair", "3.3", jwt.encode(CLAIMS, OTHER, "RS256"), "bad_signature"),
    Attack("another key pair that it brings along", "3.10", jwt.encode(CLAIMS, OTHER, "RS256", {"jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER.public_key()))}), "bad_signature"),
    Attack("another padding", "3.1", jwt.encode(CLAIMS, OURS, "PS256"), "wrong_alg"),
    Attack("a longer hash", "3.1", jwt.encode(CLAIMS, OURS, "RS512"), "wrong_alg"),
    Attack("none", "3.2", f"{NONE}.{BODY}.", "wrong_alg"),
    Attack("no signature", "3.3", jwt.encode(CLAIMS, OURS, "RS256").rpartition(".")[0] + ".", "bad_signature"),
    Attack("a signature of noughts", "3.3", jwt.encode(CLAIMS, OURS, "RS256").rpartition(".")[0] + "." + b64(bytes(256)), "bad_signature"),
]  # fmt: skip


def test_the_tables_are_tables() -> None:
    for table in (ATTACKS, KEY_CONFUSION):
        assert len({attack.name for attack in table}) == len({attack.token for attack in table}) == len(table)


async def _refused(attack: Attack, gateway: Gateway, content: Upstream) -> None:
    before = len(content.seen)
    reply = await ask(gateway.port, "GET", TARGET, bearer=attack.token, headers={"X-User-ID": "root"})
    code = f"auth_invalid.{attack.word}" if attack.word else "ok"
    logs = await ask(gateway.port, "GET", f"/api/v1/gateway/logs?request_id={reply.one('x-request-id')}", bearer=ADMIN)
    (row,) = json_of(logs)["items"]
    assert (row["reason"], row["user_id"]) == (code, None if attack.word else "alice")
    if not attack.word:
        assert (reply.status, content.seen[-1].all("x-user-id")) == (200, ["alice"])
        return
    assert (reply.status, json_of(reply)["code"]) == (401, code)
    challenge = f'Bearer realm="engadi", error="invalid_token", error_description="{attack.word}"'
    assert reply.one("www-authenticate") == challenge
    assert len(content.seen) == before, "nothing of it reached the upstream"
    assert len(attack.token) < 20 or attack.token not in reply.body.decode("latin-1")


async def _run(folder: Path, attacks: list[Attack], **settings: Any) -> list[str]:
    failures = []
    async with upstream() as auth, upstream() as content, running(folder, auth, content, **settings) as gateway:
        for attack in attacks:
            try:
                await asyncio.wait_for(_refused(attack, gateway, content), 10)
            except (AssertionError, EOFError, TimeoutError, ValueError) as error:
                failures.append(f"{attack.name} (8725 {attack.section}): {error!r}")
    return failures


def test_every_attack(tmp_path: Path) -> None:
    failures = asyncio.run(_run(tmp_path, ATTACKS))
    assert not failures, "\n".join(failures)


def test_every_confusion_of_keys(tmp_path: Path) -> None:
    """The gateway has a public key; its admin's token is signed with the private one."""
    key_file = tmp_path / "key.pem"
    key_file.write_bytes(PEM)
    admin = jwt.encode({**CLAIMS, "sub": "root"}, OURS, "RS256")
    failures = asyncio.run(
        _run_as(tmp_path, admin, KEY_CONFUSION, jwt_algorithms=("RS256",), jwt_public_key_file=str(key_file))
    )
    assert not failures, "\n".join(failures)


async def _run_as(folder: Path, admin: str, attacks: list[Attack], **settings: Any) -> list[str]:
    failures = []
    async with upstream() as auth, upstream() as content, running(folder, auth, content, **settings) as gateway:
        for attack in attacks:
            reply = await ask(gateway.port, "GET", TARGET, bearer=attack.token)
            want = (401, f"auth_invalid.{attack.word}") if attack.word else (200, "")
            got = (reply.status, json_of(reply)["code"] if reply.status != 200 else "")
            if got != want:
                failures.append(f"{attack.name} (8725 {attack.section}): {got}")
        assert len(content.seen) == sum(not attack.word for attack in attacks)
        assert (await ask(gateway.port, "GET", "/api/v1/gateway/routes", bearer=admin)).status == 200
        assert (await ask(gateway.port, "GET", "/api/v1/gateway/routes", bearer=token(role="admin"))).status == 401
    return failures


_CHALLENGE = 'Bearer realm="engadi"'
_AMBIGUOUS = f'{_CHALLENGE}, error="invalid_request"'
#: What a client sends -> status, code, WWW-Authenticate (RFC 6750 section 3; without credentials no error is named).
CHALLENGES: dict[str, tuple[list[str], int, str, str]] = {
    "nothing": ([], 401, "auth_missing", _CHALLENGE),
    "nothing in the field": ([""], 401, "auth_missing", _CHALLENGE),
    "another scheme": (["Basic eDp5"], 401, "auth_missing", _CHALLENGE),
    "no token": (["bearer"], 400, "auth_malformed", _AMBIGUOUS),
    "a token of two words": (["Bearer a b"], 400, "auth_malformed", _AMBIGUOUS),
    "two tokens in a field": (["Bearer a, Bearer b"], 400, "auth_malformed", _AMBIGUOUS),
    "two tokens in two fields": (["Bearer a", "Bearer b"], 400, "bad_request", _AMBIGUOUS),
    "one token in two fields": ([f"Bearer {token()}"] * 2, 400, "bad_request", _AMBIGUOUS),
    "another's role": ([f"bEARER {token()}"], 403, "scope_missing", f'{_CHALLENGE}, error="insufficient_scope", scope="admin"'),
}  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", CHALLENGES)
def test_whoever_is_refused_is_told_how_to_ask(tmp_path: Path, name: str, method: str) -> None:
    credentials, status, code, challenge = CHALLENGES[name]
    lines = "".join(f"Authorization: {one}\r\n" for one in credentials)

    async def run() -> None:
        async with running(tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(f"{method} /api/v1/gateway/routes HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())
            reply = await client.reply(method)
            assert (reply.status, reply.one("www-authenticate")) == (status, challenge)
            assert reply.body == b"" if method == "HEAD" else json_of(reply)["code"] == code

    asyncio.run(run())


def test_a_token_is_judged_up_to_its_limit_and_not_beyond(tmp_path: Path) -> None:
    """Of two good tokens only the shorter one is looked at: what is longer costs nothing but reading its length."""

    async def run() -> list[tuple[int, str]]:
        found = []
        async with upstream() as auth, running(tmp_path, auth, auth, jwt_max_token_bytes=len(GOOD)) as gateway:
            for bearer in (GOOD, claiming(role="admins")):
                reply = await ask(gateway.port, "GET", TARGET, bearer=bearer)
                found.append((reply.status, "" if reply.status == 200 else json_of(reply)["code"]))
        return found

    assert asyncio.run(run()) == [(200, ""), (401, "auth_invalid.malformed")]
