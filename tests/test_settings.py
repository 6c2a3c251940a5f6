"""Every option, from every source; all faults at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.gateway.secret import needs_own_secret
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.options import DEFAULT_SERVICES, OPTIONS, Option, option_env, service_env
from engadi_gateway.settings.parsing import (
    as_text,
    parse_bool,
    parse_duration_s,
    parse_list,
    parse_socket_path,
    parse_sqlite_path,
    parse_str,
)
from engadi_gateway.settings.sources import LONGEST_KEY
from engadi_gateway.wire.forwarded import is_trusted, plain_address

KEY = "k" * 64


def _faults(make: Callable[[], Settings]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as raised:
        make()
    return {fault.pointer: fault.detail for fault in raised.value.faults}


SEED_NAMES = [
    "PROJECT_NAME",
    "PORT",
    "ENVIRONMENT",
    "DEBUG",
    "SECRET_KEY",
    "ALGORITHM",
    "DATABASE_URL",
    "GATEWAY_TIMEOUT",
    "GATEWAY_RETRY_COUNT",
    "GATEWAY_MAX_CONNECTIONS",
    "RATE_LIMIT_ENABLED",
    "RATE_LIMIT_PER_USER",
    "RATE_LIMIT_PER_IP",
    "RATE_LIMIT_WINDOW",
    "CIRCUIT_BREAKER_ENABLED",
    "CIRCUIT_BREAKER_FAILURE_THRESHOLD",
    "CIRCUIT_BREAKER_SUCCESS_THRESHOLD",
    "CIRCUIT_BREAKER_TIMEOUT",
    "HEALTH_CHECK_INTERVAL",
    "HEALTH_CHECK_TIMEOUT",
    "LOG_LEVEL",
    "GATEWAY_LOG_RETENTION_DAYS",
    "ENABLE_REQUEST_LOGGING",
]
SEED_SERVICES = [
    "AUTH_SERVICE_URL",
    "CONTENT_SERVICE_URL",
    "PARTNERS_CRM_SERVICE_URL",
    "PROJECTS_SERVICE_URL",
    "SOCIAL_MEDIA_SERVICE_URL",
    "NOTIFICATION_SERVICE_URL",
    "ANALYTICS_SERVICE_URL",
    "AI_SERVICE_URL",
    "SEARCH_SERVICE_URL",
]


def test_the_original_services_names_are_all_there() -> None:
    assert sorted(option.env for option in OPTIONS if option.env) == sorted(SEED_NAMES)
    assert [service_env(name) for name in DEFAULT_SERVICES] == SEED_SERVICES


#: Another good text for options whose default cannot simply be repeated with a change.
OTHER: dict[str, str] = {
    "gateway.environment": "staging", "server.host": "::1", "server.loop": "auto", "server.tls_min_version": "1.3",
    "server.trusted_proxies": "10.0.0.0/8", "server.underscore_headers": "reject", "database.url": "sqlite:////tmp/x.db",
    "database.log_url": "sqlite:///y.db", "jwt.secret_key": KEY, "jwt.algorithms": "HS384", "jwt.mode": "remote",
    "jwt.required_claims": "sub, x", "jwt.claim_headers": "sub:X-Sub", "jwt.public_routes": "optional",
    "jwt.jwks_url": "https://h/k", "jwt.remote_url": "http://h/v", "health.path": "/up", "cors.allow_origins": "https://a.b",
    "cors.allow_methods": "GET", "cors.allow_headers": "X-A", "cors.expose_headers": "X-B", "log.level": "ERROR",
    "log.when_full": "stall", "log.access": "json", "server.tls_certificate": "c.pem", "server.tls_key": "k.pem",
    "server.port": "8001", "limits.ipv6_prefix": "56", "admin.listen": "127.0.0.1:8001",
}  # fmt: skip


def other_text(option: Option) -> str:
    if option.name in OTHER:
        return OTHER[option.name]
    if option.default in {"yes", "no"}:
        return "no" if option.default == "yes" else "yes"
    quantity = re.fullmatch(r"([0-9]+)([A-Za-z]*)", option.default)
    if quantity is not None:
        return f"{int(quantity[1]) + 1}{quantity[2]}"
    return "something"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_option_is_read_from_each_source_in_their_order(option: Option) -> None:
    text = other_text(option)
    wanted = option.parse(text)
    assert wanted != option.parse(option.default)
    with_key = {"SECRET_KEY": KEY} if option.name != "jwt.secret_key" else {}
    pair = {"server.tls_certificate": "[server]\ntls_key = k\n", "server.tls_key": "[server]\ntls_certificate = c\n"}
    ini = pair.get(option.name, f"[{option.section}]\n") + f"{option.key} = {text}\n"
    plain = pair.get(option.name, "")
    assert getattr(Settings.load(ini, with_key), option.attribute) == wanted
    names = [option_env(option), *([option.env] if option.env else [])]
    for name in names:
        loaded = Settings.load(plain, {**with_key, name: text})
        assert getattr(loaded, option.attribute) == wanted
        assert loaded.origins[option.name] == name
    if option.name not in pair:
        over = Settings.load(ini, with_key, {option.name: option.default})
        assert getattr(over, option.attribute) == option.parse(option.default)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_what_is_shown_of_a_value_says_the_same_value(option: Option) -> None:
    for text in (option.default, other_text(option)):
        value = option.parse(text)
        assert option.parse(as_text(value)) == value


@pytest.mark.parametrize("text", ["30d", "1234567", "123456.789", "100ms", "0.000001", "0"])
def test_a_duration_is_shown_as_it_can_be_said(text: str) -> None:
    assert parse_duration_s(as_text(parse_duration_s(text))) == parse_duration_s(text)


@pytest.mark.parametrize("word", ["true", "Yes", "ON", "1"])
def test_yes(word: str) -> None:
    assert parse_bool(word) is True


@pytest.mark.parametrize("word", ["false", "No", "OFF", "0"])
def test_no(word: str) -> None:
    assert parse_bool(word) is False


@pytest.mark.parametrize("word", ["", "maybe", "2", "y", "t", "truee", "None"])
def test_neither(word: str) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        parse_bool(word)


def test_all_faults_are_said_at_once() -> None:
    ini = "[sever]\nx = 1\n[server]\nprot = 1\nport = 70000\n[limits]\nper_ip = 0\n[services]\nBad_Name = x\nauth = ftp://h\n"
    faults = _faults(lambda: Settings.load(ini))
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
    assert pointer in _faults(lambda: Settings.load(ini, {"SECRET_KEY": KEY} if "jwt" not in ini else {}))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("::ffff:10.1.0.0/112", "10.1.2.3", "10.2.0.0"),
        ("::ffff:10.1.2.3", "::ffff:10.1.2.3", "10.1.2.4"),
        ("::ffff:0:0/96", "192.0.2.1", "2001:db8::1"),
        ("::/0", "::1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth1", "fe80::2"),
        ("fe80::%eth0/64", "fe80::9", "fe81::"),
    ],
)
def test_a_proxy_is_trusted_in_whichever_way_its_address_is_written(text: str, inside: str, outside: str) -> None:
    networks = Settings.load(f"[server]\ntrusted_proxies = {text}", {"SECRET_KEY": KEY}).server_trusted_proxies
    assert is_trusted(plain_address(inside), networks)
    assert not is_trusted(plain_address(outside), networks)


def test_the_command_line_can_name_services_and_nothing_unknown() -> None:
    loaded = Settings.load(
        "", {}, {"services.content": "http://c:1", "health_paths.content": "/up", "server.port": "9"}
    )
    assert (loaded.services["content"].url, loaded.services["content"].health_path) == ("http://c:1", "/up")
    assert (loaded.server_port, loaded.origins["server.port"]) == (9, "command line")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load("", {}, {"server.prot": "9", "services.": "x", "services": "x"})
    assert [fault.pointer for fault in caught.value.faults] == ["server.prot", "services.", "services"]


def test_a_slip_in_the_environment_is_a_fault() -> None:
    known = {"ENGADI_JWT_SECRET_KEY_FILE": "f", "ENGADI_SERVER_PORT": "9", "ENGADIX": "", "SERVER_PROT": "9"}
    assert Settings.load("", known, read=lambda name: KEY).server_port == 9
    kubernetes = {
        "ENGADI_GATEWAY_SERVICE_HOST": "10.0.0.1", "ENGADI_GATEWAY_SERVICE_PORT": "8000",
        "ENGADI_GATEWAY_SERVICE_PORT_HTTP": "8000", "ENGADI_GATEWAY_PORT": "tcp://10.0.0.1:8000",
        "ENGADI_GATEWAY_PORT_8000_TCP": "tcp://10.0.0.1:8000", "ENGADI_GATEWAY_PORT_8000_TCP_PROTO": "tcp",
        "ENGADI_GATEWAY_PORT_8000_TCP_PORT": "8000", "ENGADI_GATEWAY_PORT_8000_TCP_ADDR": "10.0.0.1",
    }  # fmt: skip
    Settings.load("", kubernetes)
    assert "ENGADI_GATEWAY_PORT" in _faults(lambda: Settings.load("", {"ENGADI_GATEWAY_PORT": "8000"}))
    with pytest.raises(ConfigurationError) as caught:
        Settings.load("", {"ENGADI_SERVER_PROT": "9", "ENGADI_SERVER_PORT_FILE": "f"})
    assert [(fault.pointer, fault.detail) for fault in caught.value.faults] == [
        ("ENGADI_SERVER_PROT", "unknown option; did you mean ENGADI_SERVER_PORT?"),
        ("ENGADI_SERVER_PORT_FILE", "unknown option; did you mean ENGADI_SERVER_PORT?"),
    ]


@pytest.mark.parametrize(
    "address", ["foo", ":8001", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x", "::1:8001", "a b:1"]
)
def test_the_admin_door_is_an_address(address: str) -> None:
    for good in ("", "127.0.0.1:0", "[::1]:8001", "localhost:65535"):
        assert Settings.load("", {}, {"admin.listen": good}).admin_listen == good
    with pytest.raises(ConfigurationError) as caught:
        Settings.load("", {}, {"admin.listen": address})
    assert [fault.pointer for fault in caught.value.faults] == ["admin.listen"]


def test_faults_can_be_gathered_with_what_is_good() -> None:
    faults: list[Fault] = []
    loaded = Settings.load("[server]\nport = x\nbacklog = 7\n", {}, faults=faults)
    assert ([fault.pointer for fault in faults], loaded.server_port, loaded.server_backlog) == (
        ["server.port"],
        8000,
        7,
    )


def test_a_percent_sign_in_a_secret_is_a_percent_sign() -> None:
    assert Settings.load(f"[jwt]\nsecret_key = %(x)s%%{KEY}\n").jwt_secret_key == f"%(x)s%%{KEY}"


def test_secrets_from_files_and_credentials() -> None:
    files = {"/run/key": f"{KEY}\n", "/creds/secret_key": f"c{KEY}"}

    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(2, "No such file", path)
        return files[path]

    assert Settings.load("", {"SECRET_KEY_FILE": "/run/key"}, read=read).jwt_secret_key == KEY
    assert Settings.load("", {"CREDENTIALS_DIRECTORY": "/creds"}, read=read).jwt_secret_key == f"c{KEY}"
    assert Settings.load("", {"CREDENTIALS_DIRECTORY": "/none"}, read=read).jwt_secret_key == ""
    assert "SECRET_KEY_FILE" in _faults(lambda: Settings.load("", {"SECRET_KEY_FILE": "/gone"}, read=read))


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
    assert _faults(lambda: Settings.load("x", ini_name="etc/my.ini")).keys() == {"etc/my.ini"}


def test_faults_of_services_show_what_was_said_but_no_password() -> None:
    ini = "[services]\nai = nonsense\nshop = http://u:geheim@h\n[health_paths]\nsearch = up\nshpo = /x\n"
    faults = _faults(lambda: Settings.load(ini, {"AUTH_SERVICE_URL": "no"}))
    assert faults["services.ai"].endswith("; gateway.ini says 'nonsense'")
    assert faults["services.auth"].endswith("; AUTH_SERVICE_URL says 'no'")
    assert faults["health_paths.search"] == "expected a path that begins with /; gateway.ini says 'up'"
    assert "geheim" not in str(faults)
    assert set(faults) == {f"services.{name}" for name in ("ai", "auth", "shop")} | {
        "health_paths.search",
        "health_paths.shpo",
    }
    assert list(_faults(lambda: Settings.load("[health]\npath = x\n"))) == ["health.path"], "and not each service's"
    above = _faults(lambda: Settings.load("[log]\nretention_days = 40000\n"))["log.retention_days"]
    assert above == "40000 is above 36500; gateway.ini says '40000'"


def test_the_admin_api_may_have_the_servers_port_on_an_address_of_the_other_kind() -> None:
    for host, admin in (("0.0.0.0", "[::1]:8000"), ("::", "127.0.0.1:8000"), ("127.0.0.1", "127.0.0.2:8000")):
        assert Settings.load("", {}, {"server.host": host, "admin.listen": admin}).admin_listen == admin
    for host, admin in (("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000")):
        given = {"server.host": host, "admin.listen": admin}
        assert "admin.listen" in _faults(partial(Settings.load, "", {}, given))


def test_names_of_hosts_and_addresses_of_both_kinds_can_be_listened_on() -> None:
    assert Settings.load("[server]\nhost = localhost, ::1 192.0.2.1\n").server_host == ("localhost", "::1", "192.0.2.1")


@pytest.mark.parametrize(("mode", "is_needed"), [("local", True), ("local-then-remote", True), ("remote", False)])
def test_who_leaves_tokens_to_the_auth_service_needs_no_key(mode: str, is_needed: bool) -> None:
    ini = f"[gateway]\nenvironment = production\n[jwt]\nmode = {mode}\n"
    found: list[Fault] = []
    Settings.load(ini, faults=found)
    assert [fault.pointer for fault in found] == ["jwt.secret_key"] * is_needed
    assert needs_own_secret(Settings.of(jwt_mode=mode)) == is_needed


@pytest.mark.parametrize(
    ("ini", "said"),
    [
        (
            "secret_key = {}\n[jwt]\n",
            {"gateway.ini": "line 1: above the first [section], or a [section] that is not whole"},
        ),
        (
            "[jwt\nsecret_key = {}\n",
            {"gateway.ini": "line 1: above the first [section], or a [section] that is not whole"},
        ),
        ("[jwt]\nsecret_key\n{}\n", {"gateway.ini": "line 2, 3: neither [section] nor name = value"}),
        (
            "[jwt]\nsecret_key = {}\nsecret_key = {}\n",
            {"gateway.ini": "line 3: an option that is there already"},
        ),
        ("[jwt]\n[log]\n[jwt]\nsecret_key = {}\n", {"gateway.ini": "line 3: a section that is there already"}),
        (
            "[jwt]\nsecret_key =\n{}=\n",
            {"jwt": "a name longer than any option's; a value that slipped to the next line?"},
        ),
    ],
    ids=[
        "above all sections",
        "a section without its end",
        "on a line of its own",
        "twice",
        "section twice",
        "Base64 on a line of its own",
    ],
)
def test_a_slip_in_the_file_is_told_by_its_line_and_shows_no_secret(ini: str, said: dict[str, str]) -> None:
    faults = _faults(lambda: Settings.load(ini.format(KEY, KEY)))
    assert faults == said
    assert KEY not in str(faults)


def test_no_option_has_a_name_that_would_not_be_repeated() -> None:
    assert max(len(option.key) for option in OPTIONS) < LONGEST_KEY


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
        faults = _faults(make)
        assert said in faults[option.name]
        assert not (option.is_secret and KEY in str(faults))


def test_a_key_file_that_is_no_text_is_a_fault_that_shows_nothing_of_it() -> None:
    def read(name: str) -> str:
        return (b"geheim\xff" if name == "/run/key" else b"").decode()

    for environ, pointer in (
        ({"SECRET_KEY_FILE": "/run/key"}, "SECRET_KEY_FILE"),
        ({"ENGADI_JWT_SECRET_KEY_FILE": "/run/key"}, "ENGADI_JWT_SECRET_KEY_FILE"),
    ):
        faults = _faults(partial(Settings.load, "", environ, read=read))
        assert faults == {pointer: "/run/key cannot be read: no text in UTF-8 (random bytes: make them Base64)"}


@pytest.mark.parametrize("name", ["DATABASE_URL", "ENGADI_JWT_JWKS_URL", "ENGADI_JWT_REMOTE_URL", "AUTH_SERVICE_URL"])
@pytest.mark.parametrize(
    "text",
    [
        "postgresql+asyncpg://engadi:hunter2@db/gateway",
        "http://user:hunter2@host/",
        "http://user:hunter2/x@host",
        "http://user:hunter2[@host",
        "http://user:hunter2\uff0f@host",
        "https://user:hunter2@host:port",
    ],
)
def test_no_fault_of_a_url_repeats_a_password(name: str, text: str) -> None:
    faults = _faults(lambda: Settings.load("", {"SECRET_KEY": KEY, name: text}))
    assert len(faults) == 1
    assert "hunter2" not in str(faults)


@pytest.mark.parametrize("text", ["", " ", ":memory:", "sqlite:///:memory:", "sqlite://"])
def test_a_database_is_a_file(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_sqlite_path(text)
    faults = _faults(lambda: Settings.load("", {"SECRET_KEY": KEY, "DATABASE_URL": text}))
    assert list(faults) == ["database.url"]


@pytest.mark.parametrize("name", ["log.max_bytes", "server.max_body_bytes", "breaker.timeout", "log.retention_days"])
def test_a_number_without_end_is_a_fault(name: str) -> None:
    assert list(_faults(lambda: Settings.load("", {"SECRET_KEY": KEY}, {name: "9" * 400}))) == [name]


@pytest.mark.parametrize("comment", [" ; the boss", " # the boss", "\t;x"])
def test_a_comment_behind_a_value_is_a_fault_and_not_a_part_of_it(comment: str) -> None:
    faults = _faults(lambda: Settings.load(f"[admin]\nrole = admin{comment}\n", {"SECRET_KEY": KEY}))
    assert faults == {"admin.role": "a comment has a line of its own: here ; and # are part of the value"}
    for text in ("admin;x", "a#b"):
        assert Settings.load(f"[admin]\nrole = {text}\n", {"SECRET_KEY": KEY}).admin_role == text
    key = f"{KEY} ;x"
    assert Settings.load(f"[jwt]\nsecret_key = {key}\n", {}).jwt_secret_key == key, "a key may be anything"


def test_an_option_without_its_section_is_told_how_to_say_it() -> None:
    faults = _faults(lambda: Settings.load("", {"SECRET_KEY": KEY}, {"port": "8000"}))
    assert faults == {"port": "unknown option; an option is SECTION.KEY, such as server.port"}


def test_a_bad_list_of_algorithms_says_where_it_stands_and_leaves_the_default() -> None:
    for text in ("", "none", "HS256, nine"):
        found: list[Fault] = []
        loaded = Settings.load("", {"ALGORITHM": text}, faults=found)
        assert [(fault.pointer, fault.detail.rpartition("; ")[2]) for fault in found] == [
            ("jwt.algorithms", f"ALGORITHM says {text!r}")
        ]
        assert loaded.jwt_algorithms == ("HS256",)


def test_the_path_of_a_unix_socket_has_an_end() -> None:
    assert Settings.of(jwt_secret_key=KEY, server_unix_socket="s" * 107).server_unix_socket == "s" * 107
    assert "server.unix_socket" in _faults(lambda: Settings.of(jwt_secret_key=KEY, server_unix_socket="ä" * 54))


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
        assert "did you mean content?" in _faults(slip)["services.contnet"]
    assert "health_paths.ai" in _faults(lambda: Settings.load("[services]\nai =\n[health_paths]\nai = /x\n"))


@pytest.mark.parametrize(
    ("url", "log"),
    [("a/b.db", "a/b-log.db"), ("a.d/b", "a.d/b-log"), ("b.sqlite3", "b-log.sqlite3")],
)
def test_the_log_is_beside_the_configuration(url: str, log: str) -> None:
    assert Settings.of(jwt_secret_key=KEY, database_url=url).log_path == log


def test_of_knows_its_options_and_has_the_names_of_the_table() -> None:
    assert "prot" in _faults(lambda: Settings.of(prot=1))
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
    assert pointer in _faults(lambda: Settings.of(**dict[str, Any]({"jwt_secret_key": KEY, name: value})))


def test_a_list_and_a_whole_number_will_do() -> None:
    loaded = Settings.of(jwt_secret_key=KEY, upstream_timeout=3, cors_allow_origins=["https://a"])
    assert (loaded.upstream_timeout, loaded.cors_allow_origins) == (3, ("https://a",))
    networks = Settings.of(jwt_secret_key=KEY, server_trusted_proxies=["10.0.0.0/8"]).server_trusted_proxies
    assert networks == Settings.of(jwt_secret_key=KEY, server_trusted_proxies="10.0.0.0/8").server_trusted_proxies
    assert Settings.of(jwt_secret_key=KEY, server_trusted_proxies=networks).server_trusted_proxies == networks
    pairs = (("sub", "X-A"), ("role", "X-B"))
    assert Settings.of(jwt_secret_key=KEY, jwt_claim_headers=pairs).jwt_claim_headers == pairs
    assert (loaded.origins["upstream.timeout"], loaded.origins["upstream.retry_count"]) == ("given", "default")
