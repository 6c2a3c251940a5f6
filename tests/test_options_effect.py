"""Every option does something: a row an option, two values, and what each of them shows through a running gateway.

Each row is also a reload: what SIGHUP applies is seen on the next request, and for what it does not apply it says that
a restart is needed. An option without a row is named with the test that shows its effect.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from engadi_gateway.cli.commands import _loop_factory
from engadi_gateway.errors import ConfigurationError
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.options import OPTIONS
from tests import probes_stages as stages
from tests import probes_traffic as traffic
from tests.fakes import raw_client, upstream
from tests.harness import SECRET
from tests.probes_stages import a_token, headers_seen, preflight, reply_field
from tests.probes_traffic import sizes_taken, status_of, times_sent
from tests.processes import ini_of, started
from tests.world import APP, AUTH, BEARER, CONTENT, LONG_SECRET, Probe, a_world, get, until


class Row(NamedTuple):
    """With `one` the probe sees `sees_one`, with `other` it sees `sees_other`; `beside` are further settings."""

    probe: Probe
    one: Any
    sees_one: Any
    other: Any
    sees_other: Any
    beside: dict[str, Any] = {}  # noqa: RUF012 - never written to


ON = {"cors_enabled": True, "cors_allow_origins": (APP,)}
ALLOW = "access-control-allow-"
BEHIND_PROXY = {"server_trusted_proxies": "127.0.0.1"}
ONE_AT_A_TIME = {"upstream_max_connections": 1}
TRIPS = {"breaker_enabled": True, "breaker_failure_threshold": 1, "upstream_retry_count": 0}
POLICY, SHOWN = "ratelimit-policy", "x-ratelimit-limit"
FIVE_LINES = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
REMOTE = {"jwt_mode": "local-then-remote"}
ROLES = a_token(role="user", groups="admin")
LATE = a_token(exp=1_700_000_000)
_WITH_KEY = status_of(CONTENT + "/x", BEARER)

ROWS: dict[str, Row] = {
    "gateway.name": Row(traffic.health_name, "One", "One", "Other", "Other"),

    "server.backlog": Row(traffic.backlog, 7, 7, 9, 9),
    "server.trusted_proxies": Row(
        traffic.whom_the_upstream_sees,
        "127.0.0.0/8", "203.0.113.9", "127.0.0.1, 203.0.113.0/24", "198.51.100.7"),
    "server.head_timeout": Row(traffic.late_head, 50.0, 408, 200.0, 200),
    "server.body_timeout": Row(traffic.late_body, 50.0, 408, 200.0, 200),
    "server.write_timeout": Row(traffic.late_reader, 50.0, False, 200.0, True),
    "server.keep_alive_timeout": Row(traffic.late_next_request, 50.0, False, 200.0, True),
    "server.keep_alive_requests": Row(traffic.requests_of_a_connection, 2, 2, 4, 4),
    "server.max_connections": Row(traffic.first_of_two_connections, 1, False, 9, True),
    "server.max_connections_per_ip": Row(traffic.second_of_two_connections, 1, False, 0, True),
    "server.max_head_bytes": Row(status_of(headers={"X": "y" * 300}), 300, 431, 16384, 200),
    "server.max_header_lines": Row(status_of(headers=FIVE_LINES), 5, 431, 6, 200),
    "server.max_target_bytes": Row(status_of(AUTH + "/" + "x" * 100), 100, 414, 8192, 200),
    "server.max_body_bytes": Row(sizes_taken(AUTH + "/x", None, 5, 6, 7), 5, [5], 6, [5, 6]),
    "server.underscore_headers": Row(status_of(headers={"X_User": "1"}), "drop", 200, "reject", 400),

    "upstream.timeout": Row(traffic.late_upstream, 50.0, 504, 200.0, 200),
    "upstream.connect_timeout": Row(traffic.dial_ends_soon, 0.01, True, 60.0, False, {"upstream_retry_count": 0}),
    "upstream.retry_count": Row(times_sent(), 0, 1, 2, 3),
    "upstream.retry_backoff": Row(traffic.backoffs, 0.003, [0.003, 0.006], 0.004, [0.004, 0.008]),
    "upstream.retry_backoff_max": Row(traffic.backoffs, 0.0015, [0.001, 0.0015], 1.0, [0.001, 0.002]),
    "upstream.retry_buffer_bytes": Row(times_sent(method="PUT", body=b"x" * 100), 99, 1, 100, 3),
    "upstream.retry_budget_percent": Row(times_sent(), 0, 1, 100, 3, {"upstream_retry_budget_min": 0}),
    "upstream.retry_budget_min": Row(times_sent(), 0, 1, 1, 3, {"upstream_retry_budget_percent": 0}),
    "upstream.max_connections": Row(traffic.connections_at_once, 1, 1, 2, 2),
    "upstream.max_idle": Row(traffic.kept_idle, 1, 1, 3, 3),
    "upstream.max_upgraded": Row(traffic.upgraded, 1, [101, 503, 200], 2, [101, 101, 200], ONE_AT_A_TIME),
    "upstream.idle_timeout": Row(traffic.idle_later, 50.0, 0, 200.0, 1),
    "upstream.queue_size": Row(traffic.turned_away, 0, 2, 1, 1, ONE_AT_A_TIME),
    "upstream.queue_timeout": Row(traffic.turned_away_later, 50.0, 1, 200.0, 0, ONE_AT_A_TIME),
    "upstream.max_head_bytes": Row(status_of(AUTH + "/head"), 1024, 502, 65536, 200),
    "upstream.upgrade_idle_timeout": Row(traffic.late_splice, 50.0, b"", 200.0, b"ping"),
    "upstream.dns_cache": Row(traffic.look_ups, 0.0, 2, 30.0, 1),

    "database.url": Row(traffic.databases, "{folder}/a.db", ["a-log.db", "a.db"], "{folder}/b.db", ["b-log.db", "b.db"]),
    "database.log_url": Row(
        traffic.databases, "{folder}/a.db", ["a.db", "config.db"], "{folder}/b.db", ["b.db", "config.db"]),

    "jwt.secret_key": Row(_WITH_KEY, SECRET, 200, "another secret, long enough for HS256", 401),
    "jwt.algorithms": Row(
        status_of(CONTENT + "/x", a_token(LONG_SECRET, "HS512")), ("HS256",), 401, ("HS256", "HS512"), 200,
        {"jwt_secret_key": LONG_SECRET}),
    "jwt.mode": Row(stages.who_is_asked, "local", ["401"], "local-then-remote", ["200", "auth"]),
    "jwt.issuer": Row(_WITH_KEY, "", 200, "me", 401),
    "jwt.audience": Row(_WITH_KEY, "", 200, "me", 401),
    "jwt.leeway": Row(status_of(CONTENT + "/x", LATE), 0.0, 401, 1e10, 200),
    "jwt.required_claims": Row(_WITH_KEY, ("exp", "sub"), 200, ("exp", "sub", "email"), 401),
    "jwt.role_claim": Row(status_of("/api/v1/gateway/routes", ROLES), "role", 403, "groups", 200),
    "jwt.claim_headers": Row(
        headers_seen("x-user-id", "x-who"),
        (("sub", "X-User-ID"),), {"x-user-id": "alice", "x-who": "mallory"}, (("sub", "X-Who"),), {"x-who": "alice"}),
    "jwt.forward_authorization": Row(
        headers_seen("authorization"), True, {"authorization": f"Bearer {BEARER}"}, False, {}),
    "jwt.public_routes": Row(
        headers_seen("x-user-id", path=AUTH + "/x"), "ignore", {}, "optional", {"x-user-id": "alice"}),
    "jwt.cache_size": Row(stages.remembered_tokens, 1, 1, 10, 2),
    "jwt.max_token_bytes": Row(_WITH_KEY, 64, 401, 8192, 200),
    "jwt.remote_url": Row(stages.who_is_asked, "", ["200", "auth"], "{content}/validate", ["200", "content"], REMOTE),

    "limits.enabled": Row(reply_field(SHOWN), True, ["1000000"], False, []),
    "limits.per_user": Row(reply_field(SHOWN, CONTENT + "/x", BEARER), 7, ["7"], 9, ["9"]),
    "limits.per_ip": Row(reply_field(SHOWN), 7, ["7"], 9, ["9"]),
    "limits.window": Row(
        reply_field(POLICY), 60.0, ['"per_user";q=1000000;w=60,"per_ip";q=1000000;w=60'],
        90.0, ['"per_user";q=1000000;w=90,"per_ip";q=1000000;w=90']),
    "limits.max_buckets": Row(
        stages.are_buckets_few, 100, True, 1000, False, {**BEHIND_PROXY, "limits_per_user": 9, "limits_per_ip": 9}),
    "limits.ipv6_prefix": Row(
        stages.neighbours_of_a_network, 64, [200, 200, 64], 32, [200, 429, 32], {**BEHIND_PROXY, "limits_per_ip": 1}),

    "breaker.enabled": Row(stages.failures_until_open, False, 4, True, 1, {**TRIPS, "breaker_enabled": None}),
    "breaker.failure_threshold": Row(stages.failures_until_open, 3, 3, 2, 2, TRIPS),
    "breaker.success_threshold": Row(stages.state_after_a_probe, 1, "closed", 2, "half_open", TRIPS),
    "breaker.timeout": Row(stages.told_to_wait, 60.0, 60, 300.0, 300, TRIPS),

    "health.path": Row(stages.health_path, "/health", "/health", "/up", "/up"),
    "health.timeout": Row(stages.health_of_the_slow, 0.01, "unhealthy", 60.0, "healthy", {"health_path": "/hold", "health_rise": 1}),
    "health.slow": Row(stages.health, 0.0, "degraded", 60.0, "healthy"),
    "health.fall": Row(stages.health_after_a_fall, 1, "unhealthy", 2, "degraded", {"health_rise": 1}),
    "health.rise": Row(stages.health_after_a_rise, 1, "healthy", 2, "unhealthy", {"health_fall": 1}),

    "cors.enabled": Row(reply_field("vary"), False, [], True, ["Origin"]),
    "cors.allow_origins": Row(preflight(ALLOW + "origin"), (APP,), [APP], ("https://other.example",), [], ON),
    "cors.allow_methods": Row(preflight(asks="PURGE"), ("GET",), 403, ("GET", "PURGE"), 204, ON),
    "cors.allow_headers": Row(preflight(headers="x-a"), ("X-B",), 403, ("X-A",), 204, ON),
    "cors.expose_headers": Row(
        reply_field("access-control-expose-headers", headers={"Origin": APP}), ("X-A",), ["X-A"], (), [], ON),
    "cors.allow_credentials": Row(preflight(ALLOW + "credentials"), True, ["true"], False, [], ON),
    "cors.max_age": Row(preflight("access-control-max-age"), 60.0, ["60"], 600.0, ["600"], ON),
    "cors.reject_denied_origin": Row(status_of(headers={"Origin": "https://x.example"}), False, 200, True, 403, ON),

    "log.requests": Row(stages.rows_written, True, 1, False, 0),
    "log.retention_days": Row(stages.is_an_old_row_kept, 3, False, 30, True),
    "log.max_bytes": Row(stages.is_an_old_row_kept, 1, False, 0, True),
    "log.flush_interval": Row(stages.waits_long_for_a_batch, 0.02, False, 100.0, True),
    "log.flush_rows": Row(stages.rows_that_wait, 2, 0, 500, 2, {"log_flush_interval": 100.0}),
    "log.queue_rows": Row(stages.rows_shed, 2, 3, 5, 0, {"log_flush_rows": 1}),
    "log.when_full": Row(stages.is_stalled_when_full, "shed", False, "stall", True, {"log_queue_rows": 1, "log_flush_rows": 1}),
    "log.truncate_ip": Row(stages.logged_address, False, "127.0.0.1", True, "127.0.0.0"),

    "admin.role": Row(status_of("/api/v1/gateway/routes", a_token(role="boss")), "admin", 403, "boss", 200),
    "admin.max_body_bytes": Row(
        sizes_taken("/api/v1/gateway/routes", a_token(role="admin"), 1024, 2048, 3072),
        1024, [1024], 2048, [1024, 2048]),
}  # fmt: skip

#: Options whose effect another test shows.
ELSEWHERE = {
    "gateway.environment": "test_process.test_a_bad_configuration_is_exit_78_and_says_what",
    "gateway.debug": "test_options_effect.test_a_reload_says_as_much_as_it_asks_for",
    "gateway.drain_timeout": "test_options_effect.test_a_drain_waits_as_long_as_was_said",
    "gateway.drain_delay": "test_options_effect.test_after_the_signal_it_goes_on_accepting_as_long_as_was_said",
    "server.host": "test_process.test_ipv4_ipv6_and_unix_listeners_at_once",
    "server.port": "test_process.test_a_taken_port_is_exit_69_and_one_line",
    "server.unix_socket": "test_process.test_ipv4_ipv6_and_unix_listeners_at_once",
    "server.reuse_port": "test_upstream.test_two_processes_can_share_a_port_when_asked_to",
    "server.loop": "test_options_effect.test_the_event_loop_is_the_one_that_was_asked_for",
    "server.tls_certificate": "test_process.test_tls_with_a_lowest_version_and_certificates_renewed_on_sighup",
    "server.tls_key": "test_process.test_tls_with_a_lowest_version_and_certificates_renewed_on_sighup",
    "server.tls_min_version": "test_process.test_tls_with_a_lowest_version_and_certificates_renewed_on_sighup",
    "upstream.tls_ca_file": "test_dial.test_https_upstreams_are_verified",
    "jwt.public_key_file": "test_options_effect.test_the_key_file_says_whose_tokens_are_good",
    "jwt.jwks_url": "test_authenticated.test_jwks_rotation_while_serving",
    "jwt.jwks_cache": "test_authority.test_the_loop_renews_by_the_settings",
    "jwt.jwks_cooldown": "test_authority.test_an_unknown_kid_asks_again_but_not_at_will",
    "jwt.remote_timeout": "test_authority.test_no_answer_in_time",
    "jwt.remote_cache": "test_authority.test_a_yes_is_remembered_for_a_while",
    "jwt.remote_negative_cache": "test_authority.test_a_no_is_remembered_more_briefly",
    "health.interval": "test_health.test_no_interval_no_checks_until_it_is_switched_on",
    "log.level": "test_options_effect.test_what_is_said_on_stderr",
    "log.access": "test_accesslog.test_access_lines_on_stdout_without_secrets",
    "admin.listen": "test_gateway.test_the_admin_api_can_have_a_door_of_its_own",
}


def test_every_option_has_a_row_or_a_test_elsewhere() -> None:
    names = {option.name for option in OPTIONS}
    assert sorted([*ROWS, *ELSEWHERE]) == sorted(names)
    for place in ELSEWHERE.values():
        module, _, function = place.partition(".")
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, place


@pytest.mark.parametrize("name", ROWS)
def test_an_option_has_its_effect_and_a_reload_gives_it_or_says_that_it_cannot(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    row, attribute = ROWS[name], name.replace(".", "_")
    assert row.sees_one != row.sees_other

    async def run() -> None:
        async with a_world(tmp_path / "one", **{**row.beside, attribute: row.one}) as world:
            assert await row.probe(world) == row.sees_one
            with caplog.at_level(logging.WARNING, "engadi"):
                await world.gateway.reload(world.settings(**{**row.beside, attribute: row.other}))
            if attribute not in caplog.text and name not in caplog.text:
                assert await row.probe(world) == row.sees_other
                return
            assert await row.probe(world) == row.sees_one
        async with a_world(tmp_path / "other", **{**row.beside, attribute: row.other}) as world:
            assert await row.probe(world) == row.sees_other

    asyncio.run(run())


# what no row can show


@pytest.mark.parametrize(("timeout_s", "is_whole"), [(0.0, False), (20.0, True)])
def test_a_drain_waits_as_long_as_was_said(tmp_path: Path, timeout_s: float, is_whole: bool) -> None:
    async def run() -> None:
        async with a_world(tmp_path, gateway_drain_timeout=timeout_s) as world, raw_client(world.port) as client:
            await client.send(b"GET /api/v1/auth/hold HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: world.auth.seen)
            stopping = asyncio.create_task(world.gateway.__aexit__())
            if not is_whole:
                async with asyncio.timeout(15):  # or else it waits for what is never answered
                    await stopping
            await until(lambda: world.gateway.lifecycle != "running")
            world.released.set()
            assert (await client.rest()).endswith(b"\r\n\r\nok") is is_whole
            await stopping

    asyncio.run(run())


def test_the_process_does_too(tmp_path: Path) -> None:
    """Its patience with this client is 0 s; the 20 s in which it must have ended are fewer than the default's 30."""

    async def run() -> None:
        async with a_world(tmp_path / "upstreams") as world:
            ini = ini_of(world.auth.url, "[gateway]\ndrain_timeout = 0\n")
            async with started(tmp_path, ini) as gateway, raw_client(gateway.port) as client:
                await client.send(b"GET /api/v1/auth/hold HTTP/1.1\r\nHost: h\r\n\r\n")
                await until(lambda: world.auth.seen)
                gateway.signal(signal.SIGTERM)
                assert await gateway.code() == 0

    asyncio.run(run())


@pytest.mark.parametrize(("delay_s", "is_accepted"), [(0.0, False), (0.3, True)])
def test_after_the_signal_it_goes_on_accepting_as_long_as_was_said(
    tmp_path: Path, delay_s: float, is_accepted: bool
) -> None:
    async def run() -> None:
        async with a_world(tmp_path, gateway_drain_delay=delay_s) as world, raw_client(world.port) as busy:
            await busy.send(b"GET /api/v1/auth/hold HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: world.auth.seen)
            stopping = asyncio.create_task(world.gateway.stop(grace_s=20))
            await until(lambda: world.gateway.lifecycle == "draining")
            try:
                assert (await get(world, AUTH + "/x")).status == 200
                was_accepted = True
            except OSError:
                was_accepted = False
            world.released.set()
            await stopping
            assert was_accepted is is_accepted

    asyncio.run(run())


@pytest.mark.parametrize(
    ("more", "has_debug_words", "is_asyncio_debugging"),
    [
        ("[log]\nlevel = INFO", False, False),
        ("[log]\nlevel = CRITICAL", False, False),
        ("[log]\nlevel = DEBUG", True, False),
        ("[log]\nlevel = INFO\n[gateway]\ndebug = yes", True, True),
    ],
    ids=["info", "critical", "debug", "debugging"],
)
def test_what_is_said_on_stderr(tmp_path: Path, more: str, has_debug_words: bool, is_asyncio_debugging: bool) -> None:
    async def run() -> None:
        loop = {"ENGADI_SERVER_LOOP": "asyncio"}  # whose words these are
        async with upstream() as auth, started(tmp_path, ini_of(auth.url, more), **loop) as gateway:
            gateway.signal(signal.SIGTERM)
            assert await gateway.code() == 0
            said = "".join(gateway.lines)
            assert all(word in said for word in ("listening on", "draining", "stopped")), "whatever the level"
            assert ("Using selector" in said) is has_debug_words
            assert ("debug=True" in said) is is_asyncio_debugging  # the loop's farewell

    asyncio.run(run())


@pytest.mark.parametrize(("before", "after"), [("no", "yes"), ("yes", "no")])
def test_a_reload_says_as_much_as_it_asks_for(tmp_path: Path, before: str, after: str) -> None:
    async def run() -> None:
        ini, loop = ini_of("http://127.0.0.1:9", f"[gateway]\ndebug = {before}\n"), {"ENGADI_SERVER_LOOP": "asyncio"}
        async with started(tmp_path, ini, **loop) as gateway:
            (tmp_path / "gateway.ini").write_text(ini.replace(f"= {before}\n", f"= {after}\n"))
            gateway.signal(signal.SIGHUP)
            await gateway.wait_for("configuration reloaded")
            gateway.signal(signal.SIGTERM)
            assert await gateway.code() == 0
            assert ("debug=True" in "".join(gateway.lines)) is (after == "yes")  # the loop's farewell

    asyncio.run(run())


def test_the_event_loop_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _loop_factory(Settings.of(server_loop="asyncio")) is None
    if find_spec("uvloop") is not None:
        for word in ("uvloop", "auto"):
            factory = _loop_factory(Settings.of(server_loop=word))
            assert factory is not None
            loop = factory()
            loop.close()
            assert type(loop).__module__ == "uvloop"
    monkeypatch.setattr("engadi_gateway.cli.commands.find_spec", lambda name: None)
    assert _loop_factory(Settings.of(server_loop="auto")) is None
    with pytest.raises(ConfigurationError, match="uvloop is not installed"):
        _loop_factory(Settings.of(server_loop="uvloop"))


def test_the_key_file_says_whose_tokens_are_good(tmp_path: Path) -> None:
    """As a row, but for keys that have to be made first."""

    def a_pair(name: str) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / name).write_bytes(public)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    ours, _ = a_pair("ours.pem"), a_pair("others.pem")
    probe = status_of(CONTENT + "/x", a_token(ours, "ES256"))
    values = {"jwt_algorithms": ("ES256",), "jwt_public_key_file": f"{tmp_path}/ours.pem"}

    async def run() -> None:
        async with a_world(tmp_path, **values) as world:
            assert await probe(world) == 200
            await world.gateway.reload(world.settings(**{**values, "jwt_public_key_file": f"{tmp_path}/others.pem"}))
            assert await probe(world) == 401

    asyncio.run(run())
