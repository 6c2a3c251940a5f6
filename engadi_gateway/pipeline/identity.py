"""Who asks: JSON Web Tokens after RFC 8725. The only door to PyJWT.

What is accepted is fixed by configuration and never by the token: algorithms, issuer, audience, required claims; one
kind of key at a time; `jku`, `x5u` and `jwk` in a header are not looked at, and `kid` is only a name to look up. PyJWT
checks the signature; times are checked here, against the exchange's clock. A refusal says one of a few fixed words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

from engadi_gateway.errors import INVALID_REQUEST, REALM, ConfigurationError, Fault, Reason, Refusal
from engadi_gateway.pipeline.claims import IdentityPolicy, claims_fault, identity_of, is_time
from engadi_gateway.pipeline.exchange import Exchange, Identity, Wait

#: Words for tokens that our keys cannot judge, so that somebody else may.
NOT_OURS = frozenset(("wrong_alg", "unknown_key"))
_SYMMETRIC = "HS"
#: Of a JWKS document: each takes up to a tenth of a millisecond to read, and nobody publishes as many.
_MAX_KEYS = 100

#: What PyJWT raises, and the word for it; the first row that fits.
_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.InvalidSignatureError, "bad_signature"),
    (jwt.InvalidAlgorithmError, "wrong_alg"),
    (jwt.InvalidKeyError, "unknown_key"),
    (jwt.DecodeError, "malformed"),
)


@dataclass(frozen=True)
class Keyring:
    """The keys that may verify: one for all (`key`), or by `kid`.

    The keys of a JWKS are bound to their algorithm, so that none serves two (RFC 8725 section 3.1).
    """

    key: Any = None
    by_kid: Mapping[str, jwt.PyJWK] = field(default_factory=dict)
    has_url: bool = False

    def __repr__(self) -> str:
        return f"<Keyring of {len(self.by_kid) + (self.key is not None)} keys>"

    def find(self, kid: object) -> Any:
        """The key a token names, or the only one; None when there is none.

        With a JWKS a named key is that one or none: trying another would hide that new keys have to be fetched.
        """
        if isinstance(kid, str) and self.has_url:
            return self.by_kid.get(kid)
        if len(self.by_kid) == 1 and self.key is None:
            return next(iter(self.by_kid.values()))
        return self.key


def keyring_of(algorithms: tuple[str, ...], secret: str, public_key_pem: str, *, has_url: bool = False) -> Keyring:
    """The keyring that the settings alone give.

    Raises:
        ConfigurationError: the key is no key, or the crypto extra is missing.
    """
    if algorithms[0].startswith(_SYMMETRIC):
        return Keyring(key=secret.encode() if secret else None)
    _require_crypto(algorithms)
    if not public_key_pem:
        return Keyring(has_url=has_url)
    algorithm = jwt.get_algorithm_by_name(algorithms[0])
    try:
        key = algorithm.prepare_key(public_key_pem)
        weakness = algorithm.check_key_length(key)
    except Exception as error:  # PyJWT and cryptography raise a dozen kinds; all mean the same here
        raise ConfigurationError(
            [Fault("jwt.public_key_file", f"no usable public key: {error}; expected BEGIN PUBLIC KEY")]
        ) from None
    if weakness:
        raise ConfigurationError([Fault("jwt.public_key_file", weakness)])
    return Keyring(key=key, has_url=has_url)


def _require_crypto(algorithms: tuple[str, ...]) -> None:
    for name in algorithms:
        try:
            jwt.get_algorithm_by_name(name)
        except NotImplementedError:
            detail = f"{name} needs the crypto extra: python -m pip install 'PyJWT[crypto]'"
            raise ConfigurationError([Fault("jwt.algorithms", detail)]) from None


def parse_jwks(document: bytes, algorithms: tuple[str, ...]) -> dict[str, jwt.PyJWK]:
    """The usable keys of a JWKS document (RFC 7517) by kid: for signatures, and of an allowed algorithm.

    A key that does not name its algorithm gets the first allowed one that fits it. One without kid has the name "".

    Raises:
        ValueError: it is no JWKS document, holds no usable key, or more keys than anybody means.
    """
    try:
        rows = json.loads(document)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("not a JWKS document") from None
    if isinstance(rows, list) and len(rows) > _MAX_KEYS:
        raise ValueError(f"{len(rows)} keys, {_MAX_KEYS} at most")
    keys: dict[str, jwt.PyJWK] = {}
    for row in rows if isinstance(rows, list) else []:
        key = _usable(row, algorithms) if isinstance(row, dict) else None
        if key is not None:
            keys[row.get("kid", "")] = key
    if not keys:
        raise ValueError("no usable key")
    return keys


def _usable(row: dict[str, Any], algorithms: tuple[str, ...]) -> jwt.PyJWK | None:
    uses = row.get("key_ops", ["verify"])
    is_ours = (
        row.get("use", "sig") == "sig"
        and isinstance(uses, list)
        and "verify" in uses
        and isinstance(row.get("kid", ""), str)
        and row.get("kty") != "oct"  # a published symmetric key would let everybody sign
    )
    for name in algorithms if is_ours else ():
        if row.get("alg", name) != name:
            continue
        try:
            key = jwt.PyJWK(row, name)
            key.Algorithm.prepare_key(key.key)  # which refuses another algorithm's curve
            if not key.Algorithm.check_key_length(key.key):
                return key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
    return None


class TokenCache:
    """Verdicts on tokens, by the token's own bytes: bounded, never past `exp`, emptied when keys change.

    A look-up costs 0.3 us where a verification costs 30 to 90.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: dict[bytes, tuple[float, float, Identity | Refusal]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, token: bytes, wall: float, now: float) -> Identity | Refusal | None:
        """What is remembered at epoch second `wall`, monotonic second `now`."""
        entry = self._known.get(token)
        if entry is None:
            return None
        if entry[0] <= wall or entry[1] <= now:
            del self._known[token]
            return None
        return entry[2]

    def put(
        self, token: bytes, verdict: Identity | Refusal, until: float = math.inf, fresh_until: float = math.inf
    ) -> None:
        """Remember a verdict until epoch second `until`, monotonic second `fresh_until`; the oldest makes room.

        What a token says of itself is in the world's time; for how long we believe others is in our own, or a clock
        that is set back would keep a withdrawn token alive.
        """
        if self._size == 0:
            return
        if len(self._known) >= self._size and token not in self._known:
            del self._known[next(iter(self._known))]
        self._known[token] = (until, fresh_until, verdict)

    def clear(self) -> None:
        self._known.clear()

    def resize(self, size: int) -> None:
        self._size = size
        while len(self._known) > size:
            del self._known[next(iter(self._known))]


class TokenJudge:
    """Judges tokens with local keys; `keyring` may be replaced while it lives (a JWKS rotates)."""

    def __init__(self, policy: IdentityPolicy, keyring: Keyring) -> None:
        self.policy = policy
        self.keyring = keyring

    def judge(self, token: bytes, wall: float) -> Identity | Refusal:
        """Verify a token at epoch second `wall`. Never raises."""
        try:
            return self._judge(token, wall)
        except Exception as error:  # whatever a hostile token makes a parser raise is a 401, never a 500
            word = next((word for kind, word in _WORDS if isinstance(error, kind)), "malformed")
            return invalid(word)

    def _judge(self, token: bytes, wall: float) -> Identity | Refusal:
        policy = self.policy
        if len(token) > policy.max_token_bytes:
            return invalid("malformed")
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in policy.algorithms:
            return invalid("wrong_alg")
        if "crit" in header:
            return invalid("malformed")  # RFC 7515 section 4.1.11: we understand no extension
        key = self.keyring.find(header.get("kid"))
        if key is None:
            return invalid("unknown_key")
        claims = jwt.decode(
            token,
            key,
            algorithms=[header["alg"]],
            options={
                "verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_iss": False,
                "verify_aud": False, "verify_sub": False, "verify_jti": False, "enforce_minimum_key_length": True,
            },
        )  # fmt: skip
        word = claims_fault(claims, policy, wall)
        return invalid(word) if word else identity_of(claims, policy)


def stated_expiry(token: str) -> float | None:
    """The `exp` that a token states, unverified: good only for forgetting something sooner. Never raises."""
    try:
        expiry = jwt.decode(token, options={"verify_signature": False}).get("exp")
    except Exception:  # an opaque token, or a hostile one
        return None
    return expiry if is_time(expiry) else None


def invalid(word: str) -> Refusal:
    """401 for a token that was judged (RFC 6750 section 3.1)."""
    value = f'{REALM}, error="invalid_token", error_description="{word}"'.encode("ascii")
    return Refusal(Reason.AUTH_INVALID, word=word, headers=((b"WWW-Authenticate", value),))


_MISSING = Refusal(Reason.AUTH_MISSING, headers=((b"WWW-Authenticate", REALM.encode("ascii")),))
_MALFORMED = Refusal(Reason.AUTH_MALFORMED, "Authorization must be: Bearer <token>", headers=(INVALID_REQUEST,))


def _scope_missing(roles: tuple[str, ...]) -> Refusal:
    scope = "".join(letter for letter in " ".join(roles) if " " <= letter <= "~" and letter not in '"\\')
    value = f'{REALM}, error="insufficient_scope", scope="{scope}"'.encode("ascii")
    return Refusal(Reason.SCOPE_MISSING, "a required role is missing", headers=((b"WWW-Authenticate", value),))


class IdentityStage:
    """The third stage: nothing on public routes, a verified token on all others, and one of the route's roles.

    A route that asks for a role is not public, whatever else it says.
    """

    sees_refused = False
    decides_nothing = False
    settles_nothing = True

    def __init__(self, judge: TokenJudge, cache: TokenCache) -> None:
        self._judge = judge
        self._policy = judge.policy
        self._cache = cache

    def decide(self, exchange: Exchange) -> Refusal | Wait | None:
        route = exchange.route
        if route is None:
            return None
        is_public = route.is_public and not route.required_roles
        if is_public and not self._policy.validates_on_public:
            return None
        token = _bearer_token(exchange.head.notes.get(b"authorization", b""))
        if token is None:
            return None if is_public else _MISSING
        verdict = self._verdict(exchange, token)
        if exchange.trace is not None:
            exchange.trace["jwt"] = _as_json(verdict)
        if not isinstance(verdict, Identity):
            return verdict
        exchange.identity = verdict
        if route.required_roles and not set(route.required_roles) & set(verdict.roles):
            return _scope_missing(route.required_roles)
        return None

    def _verdict(self, exchange: Exchange, token: bytes) -> Identity | Refusal | Wait:
        known, exchange.remote_verdict = exchange.remote_verdict, None
        if known is None:
            known = self._cache.get(token, exchange.wall, exchange.now)
        if known is not None:
            return known  # and so the token is well formed
        if not token or b" " in token or b"," in token:
            return _MALFORMED
        if len(token) > self._policy.max_token_bytes:
            return invalid("malformed")
        if self._policy.mode == "remote":
            return Wait("remote", token.decode("latin-1"))
        verdict = self._judge.judge(token, exchange.wall)
        if isinstance(verdict, Identity):
            self._cache.put(token, verdict, verdict.expires_at)
            return verdict
        return self._elsewhere(verdict, token)

    def _elsewhere(self, verdict: Refusal, token: bytes) -> Refusal | Wait:
        """Who else may be asked about a token that our keys cannot judge; a forged or expired one is judged already."""
        if token.endswith(b"."):
            return verdict  # without a signature ("alg": "none") it is nobody's
        if verdict.word == "unknown_key" and self._judge.keyring.has_url:
            return Wait("keys", token.decode("latin-1"))
        if self._policy.mode == "local-then-remote" and verdict.word in NOT_OURS:
            return Wait("remote", token.decode("latin-1"))
        return verdict

    def settle(self, exchange: Exchange) -> None:
        """Nothing to learn."""


def _bearer_token(credentials: bytes) -> bytes | None:
    """What stands for the token in an Authorization value, perhaps b""; None where it is of another scheme."""
    if credentials[:7].lower() != b"bearer ":
        return b"" if credentials.lower() == b"bearer" else None
    return credentials[7:].strip(b" ")


def _as_json(verdict: Identity | Refusal | Wait) -> dict[str, Any]:
    if isinstance(verdict, Identity):
        return {"verdict": "accepted", "user_id": verdict.user_id, "roles": list(verdict.roles)}
    if isinstance(verdict, Wait):
        asked = "the auth service" if verdict.kind == "remote" else "the JWKS URL"
        return {"verdict": "would wait", "asks": asked}
    return {"verdict": "refused", "why": verdict.word or verdict.reason.code}


def make_token(secret: str, algorithm: str, claims: Mapping[str, Any]) -> str:
    """A signed token, for `run.py token` and for tests."""
    return jwt.encode(dict(claims), secret, algorithm=algorithm)
