"""Asks on behalf of the identity stage: the auth service about a token, the JWKS URL for keys.

One question at a time for one token, however many requests wait for it; answers are remembered briefly, a yes never
past `exp`. Without an answer nobody is let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.net.fetch import Fetch, FetchError
from engadi_gateway.net.pauses import Pause
from engadi_gateway.pipeline.claims import claims_fault, identity_of
from engadi_gateway.pipeline.exchange import Exchange, Identity, Wait
from engadi_gateway.pipeline.identity import NOT_OURS, TokenCache, TokenJudge, invalid, parse_jwks, stated_expiry
from engadi_gateway.pipeline.limits import network_of
from engadi_gateway.settings.load import Settings

_MAX_JWKS_BYTES = 256 << 10
_MAX_ANSWER_BYTES = 64 << 10
_MAX_QUESTIONS = 64  # at once; invented tokens must not become as many connections to the auth service
_MAX_OF_ONE = 32  # of these about tokens of one address: others have some left
_CALM_S = 10.0
_DEFAULT_PATH = "/api/v1/auth/validate"
_KEYS = "\0keys"
_NO_KEYS_COOLDOWN_S = 5.0
_LEAST_RENEWAL_S = 1.0


class Unanswered(NamedTuple):
    """Nobody could say whose a token is: why, for the log."""

    why: str


Answer = Identity | Refusal | Unanswered | None

_UNAVAILABLE = Refusal(Reason.AUTH_UNAVAILABLE, headers=((b"Retry-After", b"5"),))


class Authority:
    """Answers a `Wait`.

    Args:
        judge: whose keyring a fetched JWKS goes to.
        cache: where remote verdicts are remembered, and what is emptied when keys change.
        fetch: see net.fetch.
        clock, ticks: epoch seconds, and seconds that pass whatever is done to that clock.
    """

    def __init__(
        self,
        settings: Settings,
        judge: TokenJudge,
        cache: TokenCache,
        fetch: Fetch,
        clock: Callable[[], float] = time.time,
        *,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._cache = cache
        self._fetch = fetch
        self._clock = clock
        self._ticks = ticks
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._places = asyncio.Semaphore(_MAX_QUESTIONS)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._trouble = ""
        self._trouble_at = 0.0
        self._asked_keys_at = float("-inf")
        self._document = b""  # the JWKS that the keys are from
        self._pause = Pause()

    def replace_settings(self, settings: Settings, judge: TokenJudge) -> None:
        """Take re-read settings and the judge made of them; a JWKS that is still the one is not fetched again."""
        if _source(settings) == _source(self._settings):
            known = self._judge.keyring
            judge.keyring = replace(judge.keyring, by_kid=known.by_kid)
        else:
            self._asked_keys_at, self._document = float("-inf"), b""
        if (_source(settings), settings.jwt_jwks_cache) != (_source(self._settings), self._settings.jwt_jwks_cache):
            self._pause.cut_short()
        self._settings, self._judge = settings, judge

    async def judge(self, exchange: Exchange, wait: Wait) -> Identity | Refusal | None:
        """The verdict on a token. Never raises but for cancellation: whoever cannot be judged is not let in."""
        token = wait.token
        if wait.kind == "keys":
            await self._once(_KEYS, self._renew_keys)
            verdict = self._judge.judge(token.encode("latin-1"), exchange.wall)
            if not isinstance(verdict, Refusal) or verdict.word not in NOT_OURS:
                return verdict
            if self._judge.policy.mode != "local-then-remote":
                return verdict if self._judge.keyring.by_kid else self._unavailable(exchange, "there are no keys yet")
        answer = await self._once(token, lambda: self._asked(token, exchange.client_ip))
        return self._unavailable(exchange, answer.why) if isinstance(answer, Unanswered) else answer

    @staticmethod
    def _unavailable(exchange: Exchange, why: str) -> Refusal:
        exchange.error_message = why
        return _UNAVAILABLE

    async def _once(self, key: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Single flight; one that waits and leaves does not cancel the question for the others."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.get_running_loop().create_task(_guarded(ask))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def run(self, sleep: Callable[[float], Awaitable[None]] | None = None) -> None:
        """For ever: fetch the JWKS every `jwt.jwks_cache` seconds, so that withdrawn keys go.

        The keys that are there serve until better ones have come. Cancelled, it ends all questions under way.
        """
        sleep = sleep or self._pause.sleep
        try:
            while True:
                self._asked_keys_at = float("-inf")
                if self._settings.jwt_jwks_url:
                    await self._once(_KEYS, self._renew_keys)
                await sleep(max(self._settings.jwt_jwks_cache, _LEAST_RENEWAL_S))
        finally:
            tasks = list(self._asking.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # keys

    async def _renew_keys(self) -> None:
        """Fetch the JWKS unless that was done a moment ago; an unknown kid must not make us a load generator."""
        settings, known, now = self._settings, self._judge.keyring.by_kid, self._ticks()
        cooldown_s = settings.jwt_jwks_cooldown
        if not known:
            cooldown_s = min(cooldown_s, _NO_KEYS_COOLDOWN_S)
        if now - self._asked_keys_at < cooldown_s:
            return
        self._asked_keys_at = now
        lines = [(b"Accept", b"application/json")]
        try:
            reply = await self._fetch(settings.jwt_jwks_url, lines, settings.jwt_remote_timeout, _MAX_JWKS_BYTES)
            if reply.status != 200 or not reply.is_whole:
                raise FetchError(f"status {reply.status}, {len(reply.body)} bytes")
            keys = parse_jwks(reply.body, settings.jwt_algorithms)
        except (FetchError, ValueError) as error:
            logging.getLogger("engadi").warning("jwt.jwks_url: %s; %d keys stay", error, len(known))
            return
        if _source(settings) != _source(self._settings):
            return  # replaced while we asked
        if reply.body != self._document:
            self._document = reply.body
            self._cache.clear()  # a key that was withdrawn must not live on in remembered verdicts
        self._judge.keyring = replace(self._judge.keyring, by_kid=keys)

    # tokens

    async def _asked(self, token: str, address: str) -> Identity | Refusal | Unanswered:
        """In its turn, which is waited for as long as for an answer: or a queue would use up the time to answer."""
        try:
            async with self._turn(address):
                answer = await self._ask(token)
        except TimeoutError:
            return Unanswered("too many tokens to ask about at once")
        self._say_whether_it_answers(answer.why if isinstance(answer, Unanswered) else "")
        return answer

    @contextlib.asynccontextmanager
    async def _turn(self, address: str) -> AsyncIterator[None]:
        """One address has a share of the places, so that whoever invents tokens leaves some to others."""
        network = network_of(address, self._settings.limits_ipv6_prefix)
        share = self._shares.setdefault(network, asyncio.Semaphore(_MAX_OF_ONE))
        async with contextlib.AsyncExitStack() as places:
            async with asyncio.timeout(self._settings.jwt_remote_timeout):
                await places.enter_async_context(share)
                await places.enter_async_context(self._places)
            yield

    def _say_whether_it_answers(self, trouble: str) -> None:
        """Once, though some answers come in between."""
        log, now = logging.getLogger("engadi"), self._ticks()
        if trouble:
            if not self._trouble:
                log.warning("tokens cannot be judged: %s", trouble)
            self._trouble, self._trouble_at = trouble, now
        elif self._trouble and now - self._trouble_at >= _CALM_S:
            log.warning("tokens are judged again")
            self._trouble = ""

    async def _ask(self, token: str) -> Identity | Refusal | Unanswered:
        """GET the validation URL with the token; see `claims_of` for what may come."""
        settings = self._settings
        lines = [(b"Authorization", b"Bearer " + token.encode("latin-1")), (b"Accept", b"application/json")]
        try:
            reply = await self._fetch(_url(settings), lines, settings.jwt_remote_timeout, _MAX_ANSWER_BYTES)
        except FetchError as error:
            return Unanswered(f"the auth service: {error}")
        if (_url(settings), settings.jwt_mode) != (_url(self._settings), self._settings.jwt_mode):
            return Unanswered("the auth service was replaced meanwhile")  # it judges no more, and nothing is remembered
        if reply.status in {401, 403}:
            return self._no(token, "rejected")
        if reply.status != 200 or not reply.is_whole:
            return Unanswered(f"the auth service: {f'status {reply.status}' if reply.is_whole else 'half an answer'}")
        try:
            claims = claims_of(reply.body, self._judge.policy.role_claim)
        except ValueError as error:
            return Unanswered(f"the auth service's answer: {error}")
        return self._no(token, "rejected") if claims is None else self._yes(token, claims)

    def _no(self, token: str, word: str) -> Refusal:
        verdict = invalid(word)
        until = self._ticks() + self._settings.jwt_remote_negative_cache
        self._cache.put(token.encode("latin-1"), verdict, fresh_until=until)
        return verdict

    def _yes(self, token: str, claims: dict[str, Any]) -> Identity | Refusal | Unanswered:
        """A yes is still held to our clock; where it does not say how long it is good, the token itself may."""
        now, cache_s = self._clock(), self._settings.jwt_remote_cache
        fresh_until = self._ticks() + cache_s
        if claims.get("exp") is None:
            claims["exp"] = stated_expiry(token) or now + cache_s
        policy = replace(self._judge.policy, required_claims=("sub",), issuer="", audience="")
        word = claims_fault(claims, policy, now)
        if word:
            is_known = word in {"expired", "not_yet_valid"}
            return self._no(token, word) if is_known else Unanswered(f"the auth service's answer: {word}")
        identity = identity_of(claims, policy)
        self._cache.put(token.encode("latin-1"), identity, identity.expires_at, fresh_until)
        return identity


async def _guarded(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        return await ask()
    except Exception:
        logging.getLogger("engadi").exception("internal error in authority")
        return Unanswered("internal error")


def _source(settings: Settings) -> tuple[Any, ...]:
    """Whence the keys come, and which of them are taken."""
    return settings.jwt_jwks_url, settings.jwt_algorithms


def _url(settings: Settings) -> str:
    if settings.jwt_remote_url:
        return str(settings.jwt_remote_url)
    return settings.services["auth"].url + _DEFAULT_PATH


def claims_of(body: bytes, role_claim: str) -> dict[str, Any] | None:
    """The claims in an auth service's answer of 200; None where it says no.

    A JSON object: the claims themselves, or `{"valid": true, "user": {...}}`, or the same with `claims`; the subject as
    sub, user_id or id; the roles under the configured name, role or roles. `valid` or `active` there and not true is
    a no.

    Raises:
        ValueError: nothing of this kind.
    """
    try:
        document = json.loads(body)
    except RecursionError:
        raise ValueError("not JSON") from None
    if not isinstance(document, dict):
        raise ValueError("no object")
    inner: dict[str, Any] = next(
        (document[name] for name in ("claims", "user") if isinstance(document.get(name), dict)), {}
    )
    if any(part.get(name, True) is not True for part in (document, inner) for name in ("valid", "active")):
        return None
    claims = {**document, **{name: value for name, value in inner.items() if value is not None}}
    for wanted, others in (("sub", ("user_id", "id")), (role_claim, ("role", "roles"))):
        found = next((claims[name] for name in (wanted, *others) if claims.get(name) is not None), None)
        claims[wanted] = found
    return claims
