"""Authentication served: a gateway, its auth service and its JWKS URL, end to end."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from engadi_gateway.pipeline.exchange import Exchange, Wait
from tests.fakes import Seen, Wire, raw_client, upstream
from tests.harness import ask, ask_on, json_of, running, token

FOREIGN = jwt.encode({"sub": "x", "exp": time.time() + 600}, "z" * 64, "HS512")
ROUTE = "/api/v1/content/a"


def reply_of(status: int, document: Any) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def answering(status: int, document: Any) -> Any:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(reply_of(status, document))

    return script


async def never(seen: Seen, wire: Wire) -> None:
    await asyncio.Event().wait()


YES = answering(200, {"valid": True, "user": {"id": "u9", "role": "editor"}})


def test_a_foreign_token_is_judged_by_the_auth_service_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream(YES) as auth,
            upstream() as content,
            running(tmp_path, auth, content, jwt_mode="local-then-remote") as gateway,
        ):
            for _ in range(3):
                reply = await ask(gateway.port, "GET", ROUTE, bearer=FOREIGN, headers={"X-User-ID": "root"})
                assert reply.status == 200
            assert [(seen.one("x-user-id"), seen.one("x-user-role")) for seen in content.seen] == [("u9", "editor")] * 3
            assert (await ask(gateway.port, "GET", ROUTE, bearer=token())).status == 200
            assert [(seen.target, seen.one("authorization")) for seen in auth.seen] == [
                ("/api/v1/auth/validate", f"Bearer {FOREIGN}")
            ]

    asyncio.run(run())


def test_without_an_answer_nobody_is_let_in(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream(answering(500, {})) as auth,
            upstream() as content,
            running(tmp_path, auth, content, jwt_mode="remote") as gateway,
        ):
            reply = await ask(gateway.port, "GET", ROUTE, bearer="opaque")
            assert (reply.status, json_of(reply)["code"]) == (503, "auth_unavailable")
            assert reply.one("retry-after") == "5"
            assert content.seen == []

    asyncio.run(run())


def test_a_rejected_token_spends_from_the_address(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream(answering(401, {})) as auth,
            upstream() as content,
            running(tmp_path, auth, content, jwt_mode="remote", limits_per_ip=2) as gateway,
        ):
            statuses = [(await ask(gateway.port, "GET", ROUTE, bearer=f"t{n}")).status for n in range(3)]
            assert statuses == [401, 401, 429]

    asyncio.run(run())


def test_requests_behind_one_that_waits_are_answered_in_order(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream(YES) as auth,
            upstream() as content,
            running(tmp_path, auth, content, jwt_mode="local-then-remote") as gateway,
            raw_client(gateway.port) as client,
        ):
            heads = [
                f"GET {ROUTE}?{number} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\n\r\n"
                for number, bearer in enumerate((FOREIGN, token(), FOREIGN))
            ]
            await client.send("".join(heads).encode())
            assert [(await client.reply()).status for _ in heads] == [200, 200, 200]
            assert [seen.target for seen in content.seen] == [f"{ROUTE}?{number}" for number in range(3)]

    asyncio.run(run())


def test_a_body_that_comes_while_the_token_is_judged_is_forwarded(tmp_path: Path) -> None:
    async def run() -> None:
        asked, let_go = asyncio.Event(), asyncio.Event()

        async def slow(seen: Seen, wire: Wire) -> None:
            asked.set()
            await let_go.wait()
            await YES(seen, wire)

        async with (
            upstream(slow) as auth,
            upstream() as content,
            running(tmp_path, auth, content, jwt_mode="remote") as gateway,
            raw_client(gateway.port) as client,
        ):
            head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nContent-Length: 200000\r\n\r\n"
            await client.send(head.encode())
            await asked.wait()
            sending = asyncio.create_task(client.send(b"x" * 200_000))
            await asyncio.sleep(0.01)
            let_go.set()
            assert (await client.reply("POST")).status == 200
            await sending
            assert content.seen[0].body == b"x" * 200_000

    asyncio.run(run())


def test_a_client_that_leaves_while_its_token_is_judged(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream(never) as auth, upstream() as content:
            asked = asyncio.Event()

            async def on_head(seen: Seen, wire: Wire) -> None:
                asked.set()

            auth.on_head = on_head
            async with running(tmp_path, auth, content, jwt_mode="remote") as gateway:
                ended: list[Exchange] = []
                settled = gateway._upcalls.settled

                def settle(exchange: Exchange) -> None:
                    ended.append(exchange)
                    settled(exchange)

                gateway._upcalls.settled = settle  # type: ignore[method-assign]  # listens, and passes on
                async with raw_client(gateway.port) as client:
                    await client.send(f"GET {ROUTE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n".encode())
                    await asked.wait()
                while not ended:
                    await asyncio.sleep(0.001)
                assert [(exchange.status, exchange.reason.code) for exchange in ended] == [(499, "client_closed")]
                assert content.seen == []

    asyncio.run(run())


def test_jwks_rotation_while_serving(tmp_path: Path) -> None:
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("a", "b")}
    published = ["a"]

    async def publish(seen: Seen, wire: Wire) -> None:
        rows = [{**ECAlgorithm.to_jwk(keys[name].public_key(), as_dict=True), "kid": name} for name in published]
        await wire.send(reply_of(200, {"keys": rows}))

    def signed(name: str) -> str:
        return jwt.encode({"sub": name, "exp": time.time() + 600}, keys[name], "ES256", {"kid": name})

    async def run() -> None:
        async with upstream(publish) as issuer, upstream() as auth, upstream() as content:
            values = {"jwt_algorithms": ("ES256",), "jwt_jwks_url": f"{issuer.url}/keys", "jwt_jwks_cooldown": 0.0}
            async with running(tmp_path, auth, content, **values) as gateway:
                port = gateway.port
                assert (await ask(port, "GET", ROUTE, bearer=signed("a"))).status == 200
                refused = await ask(port, "GET", ROUTE, bearer=signed("b"))
                assert (refused.status, json_of(refused)["code"]) == (401, "auth_invalid.unknown_key")
                published.append("b")
                async with raw_client(port) as client:
                    assert (await ask_on(client, "GET", ROUTE, bearer=signed("b"))).status == 200
                    assert (await ask_on(client, "GET", ROUTE, bearer=signed("a"))).status == 200
                assert [seen.one("x-user-id") for seen in content.seen] == ["a", "b", "a"]

    asyncio.run(run())


def test_a_fault_after_the_wait_is_a_500_and_the_next_request_is_served(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            upstream(YES) as auth,
            upstream() as content,
            running(tmp_path, auth, content, jwt_mode="local-then-remote") as gateway,
        ):

            async def broken(exchange: Exchange, wait: Wait) -> None:
                raise ZeroDivisionError

            gateway._upcalls.judge = broken  # a fault that nobody foresaw
            reply = await asyncio.wait_for(ask(gateway.port, "GET", ROUTE, bearer=FOREIGN), 5)
            assert (reply.status, json_of(reply)["code"]) == (500, "internal")
            assert (await ask(gateway.port, "GET", ROUTE, bearer=token())).status == 200

    asyncio.run(run())
