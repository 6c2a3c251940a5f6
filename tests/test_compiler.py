"""What a snapshot becomes: all of it new, or as much of the one before as still holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engadi_gateway.errors import ConfigurationError
from engadi_gateway.gateway.compiler import Compiler, State, Ways
from engadi_gateway.model import CorsPolicy, Route, Service, Snapshot
from engadi_gateway.settings.load import Settings

KEY = "k" * 64
ROUTE = Route("r", "/a/*", "auth")
SNAPSHOT = Snapshot(1, (ROUTE,), (), CorsPolicy(), {"auth": Service("auth", "http://127.0.0.1:1")})


def compiler_of(state: State | None = None, **values: Any) -> Compiler:
    settings = Settings.of(**{"jwt_secret_key": KEY, **values})
    return Compiler(settings, state or State.of(settings))


def test_what_has_not_changed_is_not_made_anew() -> None:
    ways = Ways.of(SNAPSHOT, "/health")
    assert Ways.of(replace(SNAPSHOT, revision=2), "/health", ways) is ways
    other_cors = Ways.of(replace(SNAPSHOT, cors=CorsPolicy(max_age=1)), "/health", ways)
    assert (other_cors.table is ways.table, other_cors.cors is ways.cors) == (True, False)
    other_routes = Ways.of(replace(SNAPSHOT, routes=()), "/health", ways)
    assert (other_routes.table is ways.table, other_routes.cors is ways.cors) == (False, True)
    assert Ways.of(SNAPSHOT, "/up", ways).services is not ways.services, "another health path"


def test_compiling_changes_no_state_and_serves_what_it_was_made_of() -> None:
    state = State.of(Settings.of(jwt_secret_key=KEY))
    compiled = compiler_of(state).compile(SNAPSHOT, 0.0)
    assert compiled.snapshot is SNAPSHOT
    assert compiled.pipeline.revision == compiled.admin_pipeline.revision == 1
    assert (state.breakers.names(), len(state.buckets)) == ([], 0)


def test_what_cannot_be_served_names_the_route() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compiler_of().compile(replace(SNAPSHOT, routes=(replace(ROUTE, path_pattern="a"),)), 0.0)
    assert [fault.pointer for fault in caught.value.faults] == ["/routes/r/path_pattern"]


def test_tokens_are_judged_alike_by_the_same_settings_and_the_same_key() -> None:
    assert compiler_of().judges_like(compiler_of(server_port=1))
    assert not compiler_of().judges_like(compiler_of(jwt_leeway=1.0))
    assert not compiler_of().judges_like(compiler_of(jwt_secret_key="x" * 64))
