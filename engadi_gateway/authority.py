"""Asks on behalf of the identity stage: the auth service about a token, the JWKS URL for keys.

One question at a time for one token, however many requests wait for it; answers are remembered briefly, a yes never
past `exp`. Without an answer nobody is let in.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.net.fetch import Fetch, FetchError
from engadi_gateway.pipeline.exchange import Exchange, Identity, Wait
from engadi_gateway.pipeline.identity import TokenCache, TokenJudge, claims_fault, identity_of, invalid, parse_jwks
from engadi_gateway.settings import Settings

_MAX_JWKS_BYTES = 256 << 10
_MAX_ANSWER_BYTES = 64 << 10
_DEFAULT_PATH = "/api/v1/auth/validate"

_UNAVAILABLE = Refusal(Reason.AUTH_UNAVAILABLE, headers=((b"Retry-After", b"5"),))


class Authority:
    """Answers a `Wait`.

    Args:
        judge: whose keyring a fetched JWKS goes to.
        cache: where remote verdicts are remembered, and what is emptied when keys change.
        fetch: see net.fetch.
        clock: epoch seconds.
    """

    def __init__(
        self,
        settings: Settings,
        judge: TokenJudge,
        cache: TokenCache,
        fetch: Fetch,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._cache = cache
        self._fetch = fetch
        self._clock = clock
        self._asking: dict[str, asyncio.Task[Identity | Refusal | None]] = {}
        self._asked_keys_at = float("-inf")

    def replace_settings(self, settings: Settings, judge: TokenJudge) -> None:
        self._settings, self._judge = settings, judge

    async def judge(self, exchange: Exchange, wait: Wait) -> Identity | Refusal | None:
        """The verdict; None when new keys have come and the stage should look again."""
        if wait.kind == "keys":
            return await self._once("\0keys", self._renew_keys)
        return await self._once(wait.token, lambda: self._ask(wait.token))

    async def _once(
        self, key: str, ask: Callable[[], Awaitable[Identity | Refusal | None]]
    ) -> Identity | Refusal | None:
        """Single flight; one that waits and leaves does not cancel the question for the others."""
        task = self._asking.get(key)
        if task is None:

            async def run() -> Identity | Refusal | None:
                return await ask()

            task = self._asking[key] = asyncio.get_running_loop().create_task(run())
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    # keys

    async def _renew_keys(self) -> Identity | Refusal | None:
        """Fetch the JWKS unless that was done a moment ago; an unknown kid must not make us a load generator."""
        now = self._clock()
        if now - self._asked_keys_at < self._settings.jwt_jwks_cooldown:
            return self._unknown_key()
        self._asked_keys_at = now
        try:
            reply = await self._fetch(
                self._settings.jwt_jwks_url,
                [(b"Accept", b"application/json")],
                self._settings.jwt_remote_timeout,
                _MAX_JWKS_BYTES,
            )
            if reply.status != 200:
                raise FetchError(f"status {reply.status}")
            keys = parse_jwks(reply.body, self._judge.policy.algorithms)
        except (FetchError, ValueError):
            return self._unknown_key() if self._judge.keyring.by_kid else _UNAVAILABLE
        self._take_keys(keys, now)
        return None

    def _take_keys(self, keys: Mapping[str, Any], now: float) -> None:
        if set(keys) != set(self._judge.keyring.by_kid):
            self._cache.clear()  # a key that was withdrawn must not live on in remembered verdicts
        self._judge.keyring = replace(self._judge.keyring, by_kid=keys, fetched_at=now)

    def _unknown_key(self) -> Refusal:
        return invalid("unknown_key")

    async def keep_keys_fresh(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Fetch the JWKS every `jwt.jwks_cache` seconds, so that withdrawn keys go; stale keys serve on errors."""
        while self._settings.jwt_jwks_url:
            self._asked_keys_at = float("-inf")
            await self._once("\0keys", self._renew_keys)
            await sleep(self._settings.jwt_jwks_cache)

    # tokens

    async def _ask(self, token: str) -> Identity | Refusal:
        """GET the validation URL with the token.

        200 with the claims, bare or as `{"valid": true, "user"|"claims": {...}}`, is a yes; 401, 403 or
        `"valid": false` is a no; anything else is no answer.
        """
        lines = [(b"Authorization", b"Bearer " + token.encode("latin-1")), (b"Accept", b"application/json")]
        try:
            reply = await self._fetch(self._url(), lines, self._settings.jwt_remote_timeout, _MAX_ANSWER_BYTES)
        except FetchError:
            return _UNAVAILABLE
        if reply.status in {401, 403}:
            return self._remember_no(token)
        if reply.status != 200:
            return _UNAVAILABLE
        claims = _claims_of(reply.body)
        if claims is None:
            return _UNAVAILABLE
        if claims.get("valid") is False or claims.get("active") is False:
            return self._remember_no(token)
        return self._remember_yes(token, claims)

    def _url(self) -> str:
        if self._settings.jwt_remote_url:
            return str(self._settings.jwt_remote_url)
        return self._settings.services["auth"].url + _DEFAULT_PATH

    def _remember_no(self, token: str) -> Refusal:
        verdict = invalid("rejected")
        self._cache.put(token.encode("latin-1"), verdict, self._clock() + self._settings.jwt_remote_negative_cache)
        return verdict

    def _remember_yes(self, token: str, claims: dict[str, Any]) -> Identity | Refusal:
        """A yes is still held to our own rules: a token that says it has expired has."""
        now = self._clock()
        until = now + self._settings.jwt_remote_cache
        claims.setdefault("exp", until)
        policy = replace(self._judge.policy, required_claims=("sub",), issuer="", audience="")
        word = claims_fault(claims, policy, now)
        if word:
            return invalid(word)
        identity = identity_of(claims, policy)
        self._cache.put(token.encode("latin-1"), identity, min(until, identity.expires_at))
        return identity


def _claims_of(body: bytes) -> dict[str, Any] | None:
    """The claims in an answer, with `sub` from user_id or id where it has another name; None: not understood."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    inner = next((document[name] for name in ("claims", "user") if isinstance(document.get(name), dict)), {})
    claims = {**document, **inner}
    for name in ("user_id", "id"):
        if "sub" not in claims and claims.get(name) is not None:
            claims["sub"] = claims[name]
    if "role" not in claims and "roles" in claims:
        claims["role"] = claims["roles"]
    return claims
