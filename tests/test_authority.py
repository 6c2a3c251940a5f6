"""What the identity stage cannot judge: asked of a real auth service and a real JWKS URL, fails closed."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from engadi_gateway.authority import Authority, claims_of
from engadi_gateway.errors import ConfigurationError, HeaderLine, Reason, Refusal
from engadi_gateway.model import Framing, RequestHead, Route
from engadi_gateway.net.fetch import Fetcher, FetchError, FetchReply
from engadi_gateway.pipeline import Pipeline
from engadi_gateway.pipeline.claims import IdentityPolicy
from engadi_gateway.pipeline.exchange import Exchange, Identity
from engadi_gateway.pipeline.identity import IdentityStage, Keyring, TokenCache, TokenJudge, invalid, keyring_of
from engadi_gateway.settings.load import Settings
from tests.fakes import Seen, Upstream, Wire, upstream
from tests.world import until

SECRET = "a-secret-of-thirty-two-bytes-and-more"
WALL = 1_700_000_000.0
CLAIMS: dict[str, Any] = {"sub": "u1", "exp": int(WALL) + 600, "role": "editor", "email": "u1@example.org"}
UNAVAILABLE = Refusal(Reason.AUTH_UNAVAILABLE, headers=((b"Retry-After", b"5"),))
REJECTED = invalid("rejected")


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS here")


@dataclass
class Origin:
    """The auth service: answers as told, with what it was asked in `server.seen`."""

    status: int = 200
    body: bytes = b""
    gate: asyncio.Event | None = None
    server: Upstream = field(default_factory=Upstream)

    async def script(self, seen: Seen, wire: Wire) -> None:
        status, body = self.status, self.body  # as they were when it was asked
        if self.gate is not None:
            await self.gate.wait()
        await wire.send(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    @property
    def asked(self) -> int:
        return len(self.server.seen)

    def says(self, document: Any, status: int = 200) -> None:
        self.status, self.body = status, document if isinstance(document, bytes) else json.dumps(document).encode()


@asynccontextmanager
async def origin() -> AsyncIterator[Origin]:
    made = Origin()
    async with upstream(made.script) as server:
        made.server = server
        yield made


class Clock:
    """The world's time, and our own, which goes on with it but not when it is stepped."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stepped = 0.0

    @property
    def wall(self) -> float:
        return WALL + self.now - 1000 + self.stepped

    @wall.setter
    def wall(self, wall: float) -> None:
        self.now = wall - WALL + 1000 - self.stepped

    def __call__(self) -> float:
        return self.wall

    def ticks(self) -> float:
        return self.now


@dataclass
class House:
    """A stage, its authority, and who stands behind it."""

    origin: Origin
    clock: Clock
    stage: IdentityStage
    authority: Authority
    judge: TokenJudge
    cache: TokenCache
    exchange: Exchange | None = None  # the last one

    async def ask(self, token: str | bytes, address: str = "192.0.2.1") -> Identity | Refusal:
        """As a connection does: decide, wait, decide again."""
        text = token.decode() if isinstance(token, bytes) else token
        notes = {b"authorization": b"Bearer " + text.encode()}
        head = RequestHead("GET", b"/a", "/a", "x", b"x", b"", notes, Framing.NONE, 0, False, False, True, b"")
        exchange = Exchange(head, "id", self.clock.now, self.clock.wall, Pipeline((), 1))
        exchange.route = Route("r", "/a", "content")
        exchange.client_ip = address
        self.exchange = exchange
        for _ in range(5):
            verdict = self.stage.decide(exchange)
            if verdict is None:
                assert exchange.identity is not None
                return exchange.identity
            if isinstance(verdict, Refusal):
                return verdict
            exchange.remote_verdict = await self.authority.judge(exchange, verdict)
        raise AssertionError("waits without end")


def house_of(made: Origin, **values: Any) -> House:
    settings = Settings.of(
        {"auth": made.server.url},
        **{"jwt_secret_key": SECRET, "jwt_mode": "remote", "jwt_remote_timeout": 5.0, **values},
    )
    clock, cache_of = Clock(), TokenCache(100)
    judge = judge_of(settings)
    authority = Authority(settings, judge, cache_of, Fetcher(no_tls), clock, ticks=clock.ticks)
    return House(made, clock, IdentityStage(judge, cache_of), authority, judge, cache_of)


def judge_of(settings: Settings) -> TokenJudge:
    policy = IdentityPolicy(algorithms=settings.jwt_algorithms, mode=settings.jwt_mode)
    url = bool(settings.jwt_jwks_url)
    return TokenJudge(policy, Keyring(has_url=True) if url else keyring_of(("HS256",), settings.jwt_secret_key, ""))


def with_house(test: Callable[[House], Coroutine[Any, Any, None]], **values: Any) -> None:
    async def run() -> None:
        async with origin() as made:
            await test(house_of(made, **values))

    asyncio.run(run())


# remote validation

YES = Identity(
    "u1",
    ("editor",),
    ((b"X-User-ID", b"u1"), (b"X-User-Role", b"editor"), (b"X-User-Email", b"u1@example.org")),
    CLAIMS["exp"] + 30.0,
)


@pytest.mark.parametrize(
    ("status", "answer", "want"),
    [
        pytest.param(200, CLAIMS, YES, id="claims"),
        pytest.param(200, {"valid": True, **CLAIMS}, YES, id="claims and valid"),
        pytest.param(
            200, {"valid": True, "exp": CLAIMS["exp"], "user": {**CLAIMS, "exp": None}}, YES, id="null hides nothing"
        ),
        pytest.param(
            200,
            {"valid": True, "exp": CLAIMS["exp"], "user": {"id": "u1", "role": "editor", "email": "u1@example.org"}},
            YES,
            id="a user",
        ),
        pytest.param(200, {"active": True, "claims": CLAIMS}, YES, id="claims within"),
        pytest.param(
            200,
            {"user_id": "u1", "roles": ["editor"], "email": "u1@example.org", "exp": CLAIMS["exp"]},
            YES,
            id="user_id and roles",
        ),
        pytest.param(401, {}, REJECTED, id="401"),
        pytest.param(403, CLAIMS, REJECTED, id="403"),
        pytest.param(200, {"valid": False}, REJECTED, id="not valid"),
        pytest.param(200, {"valid": False, **CLAIMS}, REJECTED, id="not valid, with claims"),
        pytest.param(
            200, {"valid": False, "user": {"valid": True, **CLAIMS}}, REJECTED, id="not valid, says the outer"
        ),
        pytest.param(
            200, {"valid": True, "user": {"active": False, **CLAIMS}}, REJECTED, id="not active, says the inner"
        ),
        pytest.param(200, {"valid": "true", **CLAIMS}, REJECTED, id="valid a text"),
        pytest.param(200, {"valid": None, **CLAIMS}, REJECTED, id="valid null"),
        pytest.param(200, {**CLAIMS, "exp": int(WALL) - 31}, invalid("expired"), id="expired"),
        pytest.param(200, {**CLAIMS, "nbf": int(WALL) + 60}, invalid("not_yet_valid"), id="not yet valid"),
        pytest.param(200, {**CLAIMS, "exp": "tomorrow"}, UNAVAILABLE, id="exp a text"),
        pytest.param(200, {"valid": True}, UNAVAILABLE, id="nobody"),
        pytest.param(200, {**CLAIMS, "sub": True}, UNAVAILABLE, id="nobody to be named"),
        pytest.param(200, [CLAIMS], UNAVAILABLE, id="a list"),
        pytest.param(200, b"", UNAVAILABLE, id="nothing"),
        pytest.param(200, b"<html>", UNAVAILABLE, id="no JSON"),
        pytest.param(200, b"[" * 50_000, UNAVAILABLE, id="deep"),
        pytest.param(200, json.dumps({**CLAIMS, "x": "y" * 70_000}).encode(), UNAVAILABLE, id="too much"),
        pytest.param(200, json.dumps(CLAIMS).encode() + b" " * 70_000, UNAVAILABLE, id="more than is read"),
        pytest.param(201, CLAIMS, UNAVAILABLE, id="201"),
        pytest.param(302, CLAIMS, UNAVAILABLE, id="302"),
        pytest.param(404, CLAIMS, UNAVAILABLE, id="404"),
        pytest.param(500, CLAIMS, UNAVAILABLE, id="500"),
    ],
)
def test_answers(status: int, answer: Any, want: Identity | Refusal) -> None:
    async def test(house: House) -> None:
        house.origin.says(answer, status)
        assert await house.ask("opaque") == want

    with_house(test)


def test_what_is_asked() -> None:
    async def test(house: House) -> None:
        await house.ask("the-token")
        seen = house.origin.server.seen[0]
        assert (seen.method, seen.target, seen.one("authorization")) == (
            "GET",
            "/api/v1/auth/validate",
            "Bearer the-token",
        )

    with_house(test)


def test_another_url_may_be_asked() -> None:
    async def test() -> None:
        async with origin() as made:
            await house_of(made, jwt_remote_url=made.server.url + "/check").ask("t")
            assert made.server.seen[0].target == "/check"

    asyncio.run(test())


def test_without_an_auth_service_a_remote_mode_is_a_fault() -> None:
    with pytest.raises(ConfigurationError, match=r"jwt.remote_url: required"):
        Settings.of({"content": "http://127.0.0.1:1"}, jwt_mode="remote")


def test_nobody_listens_nobody_gets_in() -> None:
    async def run() -> Identity | Refusal:
        async with origin() as made:
            house = house_of(made)
        return await house.ask("t")

    assert asyncio.run(run()) == UNAVAILABLE


def test_no_answer_in_time() -> None:
    async def test(house: House) -> None:
        house.origin.gate = asyncio.Event()
        assert await house.ask("t") == UNAVAILABLE

    with_house(test, jwt_remote_timeout=0.05)


def test_a_fault_of_ours_lets_nobody_in_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(url: str, lines: list[HeaderLine], timeout_s: float, max_bytes: int) -> FetchReply:
        raise ZeroDivisionError

    async def test(house: House) -> None:
        house.authority = Authority(
            Settings.of({"auth": "http://127.0.0.1:1"}, jwt_mode="remote"),
            house.judge,
            house.cache,
            broken,
            house.clock,
        )
        assert await house.ask("t") == UNAVAILABLE

    with caplog.at_level(logging.ERROR, "engadi"):
        with_house(test)
    assert caplog.messages == ["internal error in authority"]


def test_a_yes_is_remembered_for_a_while() -> None:
    async def test(house: House) -> None:
        house.origin.says(CLAIMS)
        for wait_s, asked in ((0.0, 1), (29.9, 1), (0.1, 2)):
            house.clock.wall += wait_s
            assert await house.ask("t") == YES
            assert house.origin.asked == asked

    with_house(test)


@pytest.mark.parametrize(("status", "answer"), [(200, CLAIMS), (401, {})], ids=["yes", "no"])
@pytest.mark.parametrize(
    ("values", "is_replaced"),
    [({"jwt_remote_url": "http://127.0.0.1:1/new"}, True), ({"jwt_mode": "local-then-remote"}, True), ({}, False)],
    ids=["another judge", "another mode", "something else"],
)
def test_whoever_is_replaced_while_asked_judges_no_more(
    status: int, answer: Any, values: dict[str, Any], is_replaced: bool
) -> None:
    """A reload empties what is remembered; what was asked before it must not come back in."""

    async def test(house: House) -> None:
        house.origin.says(answer, status)
        house.origin.gate = asyncio.Event()
        asking = asyncio.create_task(house.ask("t"))
        await until(lambda: house.origin.asked)
        services = {"auth": house.origin.server.url}
        settings = Settings.of(services, **{"jwt_secret_key": SECRET, "jwt_mode": "remote", **values})
        house.authority.replace_settings(settings, house.judge)
        house.origin.gate.set()
        assert (await asking == UNAVAILABLE) == is_replaced
        assert len(house.cache) == (not is_replaced)

    with_house(test)


def test_a_no_is_remembered_more_briefly() -> None:
    async def test(house: House) -> None:
        house.origin.says({}, 401)
        for wait_s, asked in ((0.0, 1), (4.9, 1), (0.1, 2)):
            house.clock.wall += wait_s
            assert await house.ask("t") == REJECTED
            assert house.origin.asked == asked

    with_house(test)


def test_a_clock_set_back_prolongs_no_answer() -> None:
    async def test(house: House) -> None:
        for status, believed_s in ((200, 30.0), (401, 5.0)):
            house.origin.says({"sub": "u1"}, status)
            before = house.origin.asked
            for wait_s, asked in ((0.0, 1), (believed_s - 0.1, 1), (0.1, 2)):
                house.clock.now += wait_s
                await house.ask(f"t{status}")
                assert house.origin.asked == before + asked
                house.clock.stepped -= 86_400

    with_house(test)


def test_no_answer_is_not_remembered() -> None:
    async def test(house: House) -> None:
        house.origin.says({}, 500)
        assert await house.ask("t") == UNAVAILABLE
        house.origin.says(CLAIMS)
        assert await house.ask("t") == YES

    with_house(test)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("opaque", id="the answer says exp"),
        pytest.param(jwt.encode({"exp": WALL + 10}, "x" * 32, "HS256"), id="only the token says exp"),
    ],
)
def test_a_yes_is_never_remembered_past_exp(token: str) -> None:
    async def test(house: House) -> None:
        house.origin.says({**CLAIMS, "exp": WALL + 10} if token == "opaque" else {"sub": "u1"})
        assert isinstance(await house.ask(token), Identity)
        house.clock.wall = WALL + 39.9  # exp and the leeway of 30 s
        assert house.cache.get(token.encode(), house.clock.wall, house.clock.now) is not None
        house.clock.wall = WALL + 40
        assert await house.ask(token) == invalid("expired")

    with_house(test, jwt_remote_cache=1000.0)


def test_one_question_for_one_token() -> None:
    async def test(house: House) -> None:
        house.origin.says(CLAIMS)
        house.origin.gate = asyncio.Event()
        asking = [asyncio.create_task(house.ask(f"t{number % 2}")) for number in range(20)]
        while len(house.origin.server.seen) < 2:
            await asyncio.sleep(0)
        house.origin.gate.set()
        assert await asyncio.gather(*asking) == [YES] * 20
        assert sorted(seen.one("authorization") for seen in house.origin.server.seen) == ["Bearer t0", "Bearer t1"]

    with_house(test)


def test_one_that_leaves_does_not_take_the_answer_from_the_others() -> None:
    async def test(house: House) -> None:
        house.origin.says(CLAIMS)
        house.origin.gate = asyncio.Event()
        first, second = (asyncio.create_task(house.ask("t")) for _ in range(2))
        while not house.origin.server.seen:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        house.origin.gate.set()
        assert await second == YES
        assert house.origin.asked == 1

    with_house(test)


@pytest.mark.parametrize(("of", "at_once"), [(100, 64), (1, 32)])
def test_invented_tokens_do_not_become_as_many_connections(of: int, at_once: int) -> None:
    """And those of one address leave some of these to others."""

    async def test(house: House) -> None:
        under_way, most = 0, 0

        async def counting(url: str, lines: list[HeaderLine], timeout_s: float, max_bytes: int) -> FetchReply:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            under_way -= 1
            return FetchReply(401, b"")

        settings = Settings.of({"auth": house.origin.server.url}, jwt_mode="remote")
        house.authority = Authority(settings, house.judge, house.cache, counting, house.clock)
        addresses = [f"192.0.2.{number % of}" for number in range(500)]
        verdicts = await asyncio.gather(*(house.ask(f"t{at}", address) for at, address in enumerate(addresses)))
        assert verdicts == [REJECTED] * 500
        assert most == at_once

    with_house(test)


def test_who_waits_for_a_turn_uses_up_nobodys_time_to_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has a turn is answered, though that takes nearly all the time and others were in front."""

    async def test(house: House) -> None:
        released = asyncio.Event()
        asked = 0

        async def held(url: str, lines: list[HeaderLine], timeout_s: float, max_bytes: int) -> FetchReply:
            nonlocal asked
            asked += 1
            await released.wait()
            return FetchReply(401, b"")

        settings = Settings.of({"auth": house.origin.server.url}, jwt_mode="remote", jwt_remote_timeout=0.1)
        house.authority = Authority(settings, house.judge, house.cache, held, house.clock)
        first = [asyncio.create_task(house.ask(f"t{at}", f"192.0.2.{at}")) for at in range(64)]
        await until(lambda: asked == 64)
        assert await house.ask("late", "192.0.2.99") == UNAVAILABLE
        assert house.exchange is not None
        assert house.exchange.error_message == "too many tokens to ask about at once"
        released.set()
        assert await asyncio.gather(*first) == [REJECTED] * 64
        assert caplog.records == [], "the auth service is well"

    with_house(test)


WHY = {
    "status 500": (500, b"", "the auth service: status 500"),
    "no JSON": (200, b"<html>", "the auth service's answer: "),
    "nobody": (200, {"role": "user"}, "the auth service's answer: missing_claim"),
}


@pytest.mark.parametrize(("status", "answer", "why"), WHY.values(), ids=WHY.keys())
def test_why_nobody_can_say_whose_it_is_stands_in_the_row_and_once_in_the_log(
    status: int, answer: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(house: House) -> None:
        house.origin.says(answer, status)
        for number in range(3):
            assert await house.ask(f"t{number}") == UNAVAILABLE
            assert house.exchange is not None
            assert (house.exchange.error_message or "").startswith(why)
        house.origin.says(CLAIMS)
        await house.ask("good")
        assert len(caplog.records) == 1, "others may still get none"
        house.clock.now += 10
        await house.ask("as-good")
        said = [record.getMessage() for record in caplog.records]
        assert [text.partition(": ")[0] for text in said] == ["tokens cannot be judged", "tokens are judged again"]
        assert why in said[0]

    with_house(test)


def test_locally_judged_first_then_remotely() -> None:
    async def test(house: House) -> None:
        house.origin.says(CLAIMS)
        ours = jwt.encode({**CLAIMS, "sub": "local"}, SECRET, "HS256")
        forged = jwt.encode(CLAIMS, "y" * 32, "HS256")
        foreign = jwt.encode(CLAIMS, "z" * 64, "HS512")
        verdicts = [await house.ask(token) for token in (ours, forged, foreign)]
        assert [v.user_id if isinstance(v, Identity) else v.word for v in verdicts] == ["local", "bad_signature", "u1"]
        assert house.origin.asked == 1

    with_house(test, jwt_mode="local-then-remote")


def test_the_role_claim_of_the_settings_goes_first() -> None:
    assert claims_of(b'{"sub":"u","groups":["a"],"role":"b"}', "groups") == {"sub": "u", "groups": ["a"], "role": "b"}
    assert claims_of(b'{"id":7,"roles":["b"]}', "groups") == {"id": 7, "sub": 7, "roles": ["b"], "groups": ["b"]}


# JWKS


@cache
def private(name: str) -> Any:
    """A key by its name, the same each time."""
    return rsa.generate_private_key(65537, 2048) if name.startswith("rsa") else ec.generate_private_key(ec.SECP256R1())


def jwks(*names: str) -> dict[str, Any]:
    rows = []
    for name in names:
        kind: Any = RSAAlgorithm if name.startswith("rsa") else ECAlgorithm
        rows.append({**kind.to_jwk(private(name).public_key(), as_dict=True), "kid": name, "use": "sig"})
    return {"keys": rows}


def signed(name: str, **claims: Any) -> str:
    algorithm = "RS256" if name.startswith("rsa") else "ES256"
    return jwt.encode({**CLAIMS, **claims}, private(name), algorithm, {"kid": name})


def with_jwks(test: Callable[[House], Coroutine[Any, Any, None]], **values: Any) -> None:
    async def run() -> None:
        async with origin() as made:
            url = made.server.url + "/jwks.json"
            keys: dict[str, Any] = {"jwt_mode": "local", "jwt_algorithms": ("RS256", "ES256"), "jwt_jwks_url": url}
            await test(house_of(made, **{**keys, **values}))

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_keys_are_fetched_when_first_needed_and_then_known(kind: str) -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks(f"{kind}-1", f"{kind}-2"))
        for name in (f"{kind}-1", f"{kind}-2", f"{kind}-1"):
            assert isinstance(await house.ask(signed(name)), Identity)
        assert [(seen.method, seen.target, seen.all("authorization")) for seen in house.origin.server.seen] == [
            ("GET", "/jwks.json", [])
        ]

    with_jwks(test)


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_rotation(kind: str) -> None:
    """New key published, used, old one withdrawn; nobody with a good token is refused, the old one ends."""
    old, new = f"{kind}-1", f"{kind}-2"

    async def test(house: House) -> None:
        house.origin.says(jwks(old))
        assert isinstance(await house.ask(signed(old)), Identity)
        house.clock.wall += 61
        house.origin.says(jwks(old, new))
        assert isinstance(await house.ask(signed(new)), Identity)
        assert isinstance(await house.ask(signed(old)), Identity)
        house.clock.wall += 61
        house.origin.says(jwks(new))
        assert isinstance(await house.ask(signed(old)), Identity)  # remembered, and nobody has told us yet
        await one_round(house)
        assert await house.ask(signed(old)) == invalid("unknown_key")
        assert isinstance(await house.ask(signed(new)), Identity)

    with_jwks(test)


async def one_round(house: House) -> float:
    """The renewal's loop until it sleeps; how long it wanted to."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise asyncio.CancelledError

    await asyncio.gather(asyncio.create_task(house.authority.run(sleep)), return_exceptions=True)
    return waits[0]


def test_another_key_under_the_same_name_ends_what_is_remembered() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        token = signed("ec-1")
        assert isinstance(await house.ask(token), Identity)
        document = jwks("ec-2")
        document["keys"][0]["kid"] = "ec-1"
        house.origin.says(document)
        await one_round(house)
        assert await house.ask(token) == invalid("bad_signature")

    with_jwks(test)


def test_the_same_keys_again_end_nothing() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        for _ in range(2):
            await house.ask(signed("ec-1", sub="same"))
        token = signed("ec-1")
        await house.ask(token)
        await one_round(house)
        assert house.origin.asked == 2
        assert isinstance(house.cache.get(token.encode(), WALL, 0.0), Identity)

    with_jwks(test)


def test_an_unknown_kid_asks_again_but_not_at_will() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        assert isinstance(await house.ask(signed("ec-1")), Identity)
        for wait_s, asked in ((0.0, 1), (59.9, 1), (0.1, 2), (59.9, 2), (0.1, 3)):
            house.clock.wall += wait_s
            house.clock.stepped -= 1000  # a clock that is set changes nothing
            for name in ("ec-7", "ec-8"):
                assert await house.ask(signed(name)) == invalid("unknown_key")
            assert house.origin.asked == asked

    with_jwks(test)


def test_many_unknown_kids_at_once_ask_once() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1", "ec-2"))
        verdicts = await asyncio.gather(*(house.ask(signed(f"ec-{number % 3}")) for number in range(30)))
        assert [isinstance(verdict, Identity) for verdict in verdicts] == [number % 3 != 0 for number in range(30)]
        assert house.origin.asked == 1

    with_jwks(test)


BAD_DOCUMENTS: dict[str, tuple[int, Any]] = {
    "500": (500, {}),
    "a redirect": (302, {}),
    "no JSON": (200, b"<html>"),
    "no keys": (200, {"keys": []}),
    "symmetric keys": (200, {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "ec-1", "alg": "HS256"}]}),
    "too large": (200, json.dumps({**jwks("ec-2"), "x": "y" * (256 << 10)}).encode()),
}


@pytest.mark.parametrize(("status", "document"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS.keys())
def test_keys_stay_when_no_better_ones_come(status: int, document: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        assert isinstance(await house.ask(signed("ec-1")), Identity)
        house.origin.says(document, status)
        await one_round(house)
        assert house.origin.asked == 2
        assert isinstance(await house.ask(signed("ec-1", sub="u2")), Identity)

    with_jwks(test)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; 1 keys stay")


@pytest.mark.parametrize(("status", "document"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS.keys())
def test_without_any_keys_nobody_is_judged_and_it_is_tried_again_soon(status: int, document: Any) -> None:
    async def test(house: House) -> None:
        house.origin.says(document, status)
        assert await house.ask(signed("ec-1")) == UNAVAILABLE
        house.origin.says(jwks("ec-1"))
        assert await house.ask(signed("ec-1")) == UNAVAILABLE
        house.clock.wall += 5
        assert isinstance(await house.ask(signed("ec-1")), Identity)
        assert house.origin.asked == 2

    with_jwks(test)


def test_a_kid_unknown_to_the_jwks_too_is_asked_remotely_where_that_is_the_mode() -> None:
    async def test(house: House) -> None:
        async def by_path(seen: Seen, wire: Wire) -> None:
            house.origin.says(jwks("ec-1") if seen.target == "/jwks.json" else CLAIMS)
            await house.origin.script(seen, wire)

        house.origin.server.script = by_path
        assert await house.ask(signed("ec-2", sub="who cares")) == YES
        assert isinstance(await house.ask(signed("ec-1")), Identity)
        assert [seen.target for seen in house.origin.server.seen] == ["/jwks.json", "/api/v1/auth/validate"]

    with_jwks(test, jwt_mode="local-then-remote")


def test_an_expired_token_of_a_new_key_is_expired() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        assert await house.ask(signed("ec-1", exp=1)) == invalid("expired")

    with_jwks(test, jwt_mode="local-then-remote")


def test_the_loop_renews_by_the_settings() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        assert await one_round(house) == 900.0
        assert list(house.judge.keyring.by_kid) == ["ec-1"]

    with_jwks(test)


def test_without_a_jwks_the_loop_asks_nobody() -> None:
    async def test(house: House) -> None:
        await one_round(house)
        assert house.origin.asked == 0

    with_house(test)


def test_the_loop_never_spins() -> None:
    async def test(house: House) -> None:
        assert await one_round(house) >= 1.0

    with_jwks(test, jwt_jwks_cache=0.0)


def test_the_loop_s_end_ends_the_questions() -> None:
    async def test(house: House) -> None:
        house.origin.gate = asyncio.Event()
        asking = asyncio.create_task(house.ask(signed("ec-1")))
        while not house.origin.server.seen:
            await asyncio.sleep(0)
        await one_round_without_fetch(house)
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()

    with_jwks(test)


def test_another_time_to_keep_keys_is_not_waited_for() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        task = asyncio.create_task(house.authority.run())
        for asked, cache_s in ((1, 900.0), (1, 900.0), (2, 600.0)):
            reloaded(house, jwt_jwks_cache=cache_s)
            while house.origin.asked < asked:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            assert house.origin.asked == asked
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with_jwks(test)


async def one_round_without_fetch(house: House) -> None:
    task = asyncio.create_task(house.authority.run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# reload


def reloaded(house: House, **values: Any) -> None:
    settings = Settings.of(
        {"auth": house.origin.server.url},
        **{
            "jwt_secret_key": SECRET,
            "jwt_algorithms": ("RS256", "ES256"),
            "jwt_jwks_url": house.origin.server.url + "/jwks.json",
            **values,
        },
    )
    house.judge = judge_of(settings)
    house.stage = IdentityStage(house.judge, house.cache)
    house.cache.clear()
    house.authority.replace_settings(settings, house.judge)


def test_a_reload_keeps_the_keys_of_the_same_url() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        await house.ask(signed("ec-1"))
        reloaded(house, jwt_leeway=5.0)
        assert isinstance(await house.ask(signed("ec-1")), Identity)
        assert house.origin.asked == 1

    with_jwks(test)


def test_a_reload_to_another_url_forgets_them_and_asks_at_once() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        await house.ask(signed("ec-1"))
        house.origin.says(jwks("ec-2"))
        reloaded(house, jwt_jwks_url=house.origin.server.url + "/other.json")
        assert isinstance(await house.ask(signed("ec-2")), Identity)
        assert await house.ask(signed("ec-1")) == invalid("unknown_key")
        assert [seen.target for seen in house.origin.server.seen] == ["/jwks.json", "/other.json"]

    with_jwks(test)


def test_keys_that_come_after_a_reload_to_another_url_are_not_taken() -> None:
    async def test(house: House) -> None:
        house.origin.says(jwks("ec-1"))
        house.origin.gate = asyncio.Event()
        asking = asyncio.create_task(house.ask(signed("ec-1")))
        while not house.origin.server.seen:
            await asyncio.sleep(0)
        reloaded(house, jwt_jwks_url=house.origin.server.url + "/other.json")
        house.origin.gate.set()
        await asyncio.gather(asking, return_exceptions=True)
        assert house.judge.keyring.by_kid == {}

    with_jwks(test)


def test_a_failed_fetch_says_no_token_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(url: str, lines: list[HeaderLine], timeout_s: float, max_bytes: int) -> FetchReply:
        raise FetchError("timeout")

    async def test(house: House) -> None:
        settings = Settings.of({}, jwt_jwks_url="http://127.0.0.1:1/jwks.json")
        house.authority = Authority(settings, house.judge, house.cache, failing, house.clock)
        token = signed("ec-1")
        assert await house.ask(token) == UNAVAILABLE
        assert token not in caplog.text

    with_jwks(test)
    assert caplog.messages == ["jwt.jwks_url: timeout; 0 keys stay"]
