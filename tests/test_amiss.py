"""What is said at the start and at a reload, though it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engadi_gateway.gateway.gateway import Gateway
from tests.fakes import upstream
from tests.harness import ADMIN, ask, json_of, running, settings_for, token

BASE = "/api/v1/gateway"


def test_the_route_of_a_service_that_was_taken_away_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        def said() -> int:
            return caplog.text.count("/api/v1/content/*: no URL for content")

        async with upstream() as auth, upstream() as content:
            async with running(tmp_path, auth, content) as gateway:
                assert (await ask(gateway.port, "GET", "/api/v1/content/x", bearer=token())).status == 200
            async with running(tmp_path, auth) as gateway:
                reply = await ask(gateway.port, "GET", "/api/v1/content/x", bearer=token())
                assert (reply.status, json_of(reply)["code"], said()) == (503, "no_target", 1)
                await gateway.reload(settings_for(tmp_path, {"auth": auth.url, "content": content.url}))
                assert said() == 1, "all is well again"
                await gateway.reload(settings_for(tmp_path, {"auth": auth.url}))
                assert said() == 2

    asyncio.run(run())


def test_the_start_and_a_reload_name_the_settings_that_the_api_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "engadi")

    def said() -> list[tuple[str, str]]:
        found = [(one.levelname, one.getMessage()) for one in caplog.records if "the API changed" in one.getMessage()]
        caplog.clear()
        return found

    async def run() -> None:
        text = "the API changed these, their settings do not hold: cors.max_age"
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            assert said() == []
            put = await ask(gateway.port, "PUT", f"{BASE}/config/cors", bearer=ADMIN, body={"max_age": 5})
            assert (put.status, said()) == (200, [])
            await gateway.reload(settings_for(tmp_path, {"auth": auth.url}))
            assert said() == [("INFO", text)]
            await gateway.reload(settings_for(tmp_path, {"auth": auth.url}, cors_max_age=60))
            assert said() == [("WARNING", text)], "somebody wanted it"
            await gateway.reload(settings_for(tmp_path, {"auth": auth.url}, cors_max_age=5))
            assert said() == [], "both say the same"
        async with running(tmp_path):
            assert said() == [("INFO", text)]

    asyncio.run(run())


def test_a_service_that_came_after_its_database_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "engadi")

    async def run() -> None:
        async with upstream() as auth, upstream() as events:
            async with running(tmp_path, auth):
                assert "no route leads there" not in caplog.text
            later = settings_for(tmp_path, {"auth": auth.url, "events": events.url})
            async with Gateway(later) as gateway:
                assert caplog.text.count("service events: no route leads there") == 1
                assert (await ask(gateway.port, "GET", "/api/v1/events/x", bearer=token())).status == 404
                route = {"path_pattern": "/api/v1/events/*", "target_service": "events"}
                assert (await ask(gateway.port, "POST", f"{BASE}/routes", bearer=ADMIN, body=route)).status == 201
                await gateway.reload(later)
                assert caplog.text.count("no route leads there") == 1

    asyncio.run(run())
