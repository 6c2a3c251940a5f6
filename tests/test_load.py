"""Settings as a whole: what is built of all sources, and all faults at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from engadi_gateway.errors import Fault
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.options import DEFAULT_SERVICES, OPTIONS, Option, option_env
from engadi_gateway.settings.parsing import (
    parse_list,
    parse_socket_path,
    parse_sqlite_path,
    parse_str,
)
from tests.options import KEY, faults_of


def test_all_faults_are_said_at_once() -> None:
    ini = "[sever]\nx = 1\n[server]\nprot = 1\nport = 70000\n[limits]\nper_ip = 0\n[services]\nBad_Name = x\nauth = ftp://h\n"
    faults = faults_of(lambda: Settings.load(ini))
    assert set(faults) == {"sever", "server.prot", "server.port", "limits.per_ip", "services.bad_name", "services.auth"}
    assert faults["sever"].endswith("did you mean server?")
    assert faults["server.prot"].endswith("did you mean server.port?")


@pytest.mark.parametrize(
    ("ini", "pointer"),
    [
        ("port = 1", "gateway.ini"),
        ("[server]\nport = 1\nport = 2", "gateway.ini"),
        ("[DEFAULT]\nport = 1", "DEFAULT"),
        ("[health_paths]\nnobody = /x", "health_paths.nobody"),
        ("[health_paths]\nauth = x", "health_paths.auth"),
        ("[cors]\nallow_origins = *\nallow_credentials = yes", "cors.allow_credentials"),
        ("[server]\ntls_key = x", "server.tls_key"),
        ("[server]\nhost =", "server.host"),
        ("[server]\ntrusted_proxies = nonsense", "server.trusted_proxies"),
        ("[jwt]\nalgorithms = none", "jwt.algorithms"),
        ("[jwt]\nalgorithms = HS256, RS256", "jwt.algorithms"),
        ("[jwt]\nalgorithms = RS256", "jwt.algorithms"),
        ("[jwt]\njwks_url = http://h/k", "jwt.jwks_url"),
        ("[jwt]\nclaim_headers = sub", "jwt.claim_headers"),
        ("[upstream]\ntimeout = soon", "upstream.timeout"),
        ("[server]\nmax_body_bytes = 1 parsec", "server.max_body_bytes"),
        ("[database]\nurl = postgresql://u:p@h/d", "database.url"),
        ("[database]\nurl = sqlite://x.db", "database.url"),
        ("[database]\nurl = a.db\nlog_url = ./a.db", "database.log_url"),
        ("[log]\nretention_days = 40000", "log.retention_days"),
        ("[log]\nqueue_rows = 499", "log.queue_rows"),
        ("[admin]\nrole =", "admin.role"),
        ("[admin]\nlisten = 127.0.0.1:8000", "admin.listen"),
        ("[admin]\nlisten = [::1]:9\n[server]\nhost = ::1\nport = 9", "admin.listen"),
        ("[server]\nhost = 999.1.1.1", "server.host"),
        ('[server]\nhost = "127.0.0.1"', "server.host"),
        ("[health]\npath = health", "health.path"),
        ("[jwt]\nclaim_headers = sub:X-A, role:x-a", "jwt.claim_headers"),
    ],
)
def test_faults(ini: str, pointer: str) -> None:
    assert pointer in faults_of(lambda: Settings.load(ini, {"SECRET_KEY": KEY} if "jwt" not in ini else {}))


def test_faults_can_be_gathered_with_what_is_good() -> None:
    faults: list[Fault] = []
    loaded = Settings.load("[server]\nport = x\nbacklog = 7\n", {}, faults=faults)
    assert ([fault.pointer for fault in faults], loaded.server_port, loaded.server_backlog) == (
        ["server.port"],
        8000,
        7,
    )


def test_a_fault_says_where_the_bad_text_stands_unless_it_is_a_secret() -> None:
    found: list[Fault] = []
    ini = "[limits]\nper_ip = 0\n[log]\nlevel = loud\n"
    Settings.load(ini, {"PORT": "abc"}, {"server.backlog": "0"}, None, found, "etc/my.ini")
    assert {fault.pointer: fault.detail.rpartition("; ")[2] for fault in found} == {
        "server.port": "PORT says 'abc'",
        "server.backlog": "command line says '0'",
        "limits.per_ip": "etc/my.ini says '0'",
        "log.level": "etc/my.ini says 'loud'",
    }
    assert faults_of(lambda: Settings.load("x", ini_name="etc/my.ini")).keys() == {"etc/my.ini"}


def test_faults_of_services_show_what_was_said_but_no_password() -> None:
    ini = "[services]\nai = nonsense\nshop = http://u:geheim@h\n[health_paths]\nsearch = up\nshpo = /x\n"
    faults = faults_of(lambda: Settings.load(ini, {"AUTH_SERVICE_URL": "no"}))
    assert faults["services.ai"].endswith("; gateway.ini says 'nonsense'")
    assert faults["services.auth"].endswith("; AUTH_SERVICE_URL says 'no'")
    assert faults["health_paths.search"] == "expected a path that begins with /; gateway.ini says 'up'"
    assert "geheim" not in str(faults)
    assert set(faults) == {f"services.{name}" for name in ("ai", "auth", "shop")} | {
        "health_paths.search",
        "health_paths.shpo",
    }
    assert list(faults_of(lambda: Settings.load("[health]\npath = x\n"))) == ["health.path"], "and not each service's"
    above = faults_of(lambda: Settings.load("[log]\nretention_days = 40000\n"))["log.retention_days"]
    assert above == "40000 is above 36500; gateway.ini says '40000'"


def test_the_admin_api_may_have_the_servers_port_on_an_address_of_the_other_kind() -> None:
    for host, admin in (("0.0.0.0", "[::1]:8000"), ("::", "127.0.0.1:8000"), ("127.0.0.1", "127.0.0.2:8000")):
        assert Settings.load("", {}, {"server.host": host, "admin.listen": admin}).admin_listen == admin
    for host, admin in (("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000")):
        given = {"server.host": host, "admin.listen": admin}
        assert "admin.listen" in faults_of(partial(Settings.load, "", {}, given))


#: Options whose default is text that stands for itself.
_TEXTS = [option for option in OPTIONS if option.parse in {parse_str, parse_socket_path, parse_sqlite_path, parse_list}]


@pytest.mark.parametrize("option", _TEXTS, ids=lambda option: option.name)
@pytest.mark.parametrize(("bad", "said"), [("\0", "without NUL"), ("\udcff", "in UTF-8")], ids=["NUL", "no UTF-8"])
def test_no_text_holds_a_nul_or_what_is_no_utf_8_wherever_it_is_from(option: Option, bad: str, said: str) -> None:
    text = f"x{bad}" + KEY
    sources: list[Callable[[], Settings]] = [
        lambda: Settings.load(f"[{option.section}]\n{option.key} = {text}\n"),
        lambda: Settings.load("", {option_env(option): text}),
        lambda: Settings.load("", {}, {option.name: text}),
        lambda: Settings.of(**dict[str, Any]({option.attribute: text})),
    ]
    if option.parse is parse_list:
        sources.append(lambda: Settings.of(**dict[str, Any]({option.attribute: ("a", text)})))
    if option.is_secret:
        sources.append(lambda: Settings.load("", {f"{option_env(option)}_FILE": "f"}, read=lambda name: text))
    for make in sources:
        faults = faults_of(make)
        assert said in faults[option.name]
        assert not (option.is_secret and KEY in str(faults))


def test_secrets_are_never_shown() -> None:
    loaded = Settings.load("", {"SECRET_KEY": KEY})
    assert KEY not in repr(loaded)
    assert loaded.masked()["jwt.secret_key"] == "***"


def test_services_add_to_the_nine_and_have_health_paths() -> None:
    loaded = Settings.load(
        "[services]\nshop = http://h:1/base/\n[health_paths]\nshop = /up\n", {"AUTH_SERVICE_URL": "http://a:9"}
    )
    assert len(loaded.services) == 10
    assert (loaded.services["shop"].url, loaded.services["shop"].health_path) == ("http://h:1/base", "/up")
    assert loaded.services["auth"].url == "http://a:9"


def test_a_service_without_a_url_is_none() -> None:
    loaded = Settings.load("[services]\nai =\nshop = http://h:1\n", {}, {"services.search": " "})
    assert {"ai", "search"} & set(loaded.services) == set()
    assert len(loaded.services) == 8
    assert (
        Settings.load("[services]\nshop = http://h:1\n", {}, {"services.shop": ""}).services.keys()
        == DEFAULT_SERVICES.keys()
    )
    assert len(Settings.load("", {"CONTENT_SERVICE_URL": " "}).services) == 9, "nothing was said"
    for slip in (
        lambda: Settings.load("[services]\ncontnet =\n"),
        lambda: Settings.load("", {}, {"services.contnet": ""}),
    ):
        assert "did you mean content?" in faults_of(slip)["services.contnet"]
    assert "health_paths.ai" in faults_of(lambda: Settings.load("[services]\nai =\n[health_paths]\nai = /x\n"))


@pytest.mark.parametrize(
    ("url", "log"),
    [("a/b.db", "a/b-log.db"), ("a.d/b", "a.d/b-log"), ("b.sqlite3", "b-log.sqlite3")],
)
def test_the_log_is_beside_the_configuration(url: str, log: str) -> None:
    assert Settings.of(jwt_secret_key=KEY, database_url=url).log_path == log


def test_of_knows_its_options_and_has_the_names_of_the_table() -> None:
    assert "prot" in faults_of(lambda: Settings.of(prot=1))
    values: dict[str, Any] = {"server_port": 0, "jwt_secret_key": KEY}
    assert Settings.of({"a": "http://h"}, **values).services["a"].url == "http://h"
    with pytest.raises(AttributeError):
        _ = Settings.of(**values).nothing


@pytest.mark.parametrize(
    ("name", "value", "pointer"),
    [
        ("server_port", 65_536, "server.port"),
        ("server_port", None, "server.port"),
        ("server_port", True, "server.port"),
        ("upstream_timeout", -1.0, "upstream.timeout"),
        ("upstream_timeout", b"1", "upstream.timeout"),
        ("cors_enabled", 1, "cors.enabled"),
        ("cors_allow_origins", {"https://a"}, "cors.allow_origins"),
        ("jwt_secret_key", KEY.encode(), "jwt.secret_key"),
        ("jwt_algorithms", ["HS256", "RS256"], "jwt.algorithms"),
        ("log_queue_rows", 1, "log.queue_rows"),
        ("upstream_timeout", float("nan"), "upstream.timeout"),
        ("upstream_idle_timeout", float("inf"), "upstream.idle_timeout"),
        ("server_trusted_proxies", ("10.0.0.0/99",), "server.trusted_proxies"),
        ("jwt_claim_headers", ["sub"], "jwt.claim_headers"),
    ],
)
def test_values_are_held_to_what_holds_for_text(name: str, value: object, pointer: str) -> None:
    assert pointer in faults_of(lambda: Settings.of(**dict[str, Any]({"jwt_secret_key": KEY, name: value})))


def test_a_list_and_a_whole_number_will_do() -> None:
    loaded = Settings.of(jwt_secret_key=KEY, upstream_timeout=3, cors_allow_origins=["https://a"])
    assert (loaded.upstream_timeout, loaded.cors_allow_origins) == (3, ("https://a",))
    networks = Settings.of(jwt_secret_key=KEY, server_trusted_proxies=["10.0.0.0/8"]).server_trusted_proxies
    assert networks == Settings.of(jwt_secret_key=KEY, server_trusted_proxies="10.0.0.0/8").server_trusted_proxies
    assert Settings.of(jwt_secret_key=KEY, server_trusted_proxies=networks).server_trusted_proxies == networks
    pairs = (("sub", "X-A"), ("role", "X-B"))
    assert Settings.of(jwt_secret_key=KEY, jwt_claim_headers=pairs).jwt_claim_headers == pairs
    assert (loaded.origins["upstream.timeout"], loaded.origins["upstream.retry_count"]) == ("given", "default")
