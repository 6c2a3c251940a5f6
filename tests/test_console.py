"""What the admin API sees of a gateway, and may do with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from engadi_gateway.admin.endpoints import GATE
from engadi_gateway.model import Route
from engadi_gateway.store.changes import Change
from tests.fakes import upstream
from tests.harness import ask, running

ROUTE = Route("6f1b7a52-0000-4000-8000-000000000000", "/made/*", "made", is_public=True)


@pytest.mark.parametrize("listen", ["", "127.0.0.1:0"])
def test_who_comes_in_by_which_door_is_decided_on_by_what(tmp_path: Path, listen: str) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, admin_listen=listen) as gateway:
            console, compiled = gateway._console, gateway.configuration.compiled
            traffic, admin = console.side(is_admin=False), console.side(is_admin=True)
            assert traffic is not None
            assert (traffic[0] is compiled.pipeline, traffic[1].port) == (True, gateway.port)
            assert (admin is None) is (listen == "")
            assert admin is None or (admin[0] is compiled.admin_pipeline and admin[1].is_admin)

    asyncio.run(run())


def test_what_is_written_is_what_it_then_sees(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth) as gateway:
            console = gateway._console
            route = replace(ROUTE, target_url=auth.url)
            change = Change("route", route.id, route, "alice", "req", "2026-01-01T00:00:00Z")
            async with console.writing():
                await console.rehearse(change)
                assert route.id not in console.route_names()
                kept = await console.change(change)
            assert console.snapshot is kept
            assert console.route_names().items() >= {route.id: ("/made/*", "made"), **GATE.names()}.items()
            assert console.services()["made"].url == auth.url
            assert console.targets() == {}, "nobody was asked yet"
            assert (await ask(gateway.port, "GET", "/made/x")).status == 200
            assert console.targets() == {auth.url: "auth,made"}, "one target of two services"

    asyncio.run(run())
