"""What a text of the settings means, and what is said of one that means nothing."""

from __future__ import annotations

import pytest

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.options import OPTIONS, Option
from engadi_gateway.settings.parsing import (
    as_text,
    parse_bool,
    parse_duration_s,
    parse_sqlite_path,
)
from engadi_gateway.wire.forwarded import is_trusted, plain_address
from tests.options import KEY, faults_of, other_text


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


@pytest.mark.parametrize(
    "address", ["foo", ":8001", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x", "::1:8001", "a b:1"]
)
def test_the_admin_door_is_an_address(address: str) -> None:
    for good in ("", "127.0.0.1:0", "[::1]:8001", "localhost:65535"):
        assert Settings.load("", {}, {"admin.listen": good}).admin_listen == good
    with pytest.raises(ConfigurationError) as caught:
        Settings.load("", {}, {"admin.listen": address})
    assert [fault.pointer for fault in caught.value.faults] == ["admin.listen"]


def test_names_of_hosts_and_addresses_of_both_kinds_can_be_listened_on() -> None:
    assert Settings.load("[server]\nhost = localhost, ::1 192.0.2.1\n").server_host == ("localhost", "::1", "192.0.2.1")


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
    faults = faults_of(lambda: Settings.load("", {"SECRET_KEY": KEY, name: text}))
    assert len(faults) == 1
    assert "hunter2" not in str(faults)


@pytest.mark.parametrize("text", ["", " ", ":memory:", "sqlite:///:memory:", "sqlite://"])
def test_a_database_is_a_file(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_sqlite_path(text)
    faults = faults_of(lambda: Settings.load("", {"SECRET_KEY": KEY, "DATABASE_URL": text}))
    assert list(faults) == ["database.url"]


@pytest.mark.parametrize("name", ["log.max_bytes", "server.max_body_bytes", "breaker.timeout", "log.retention_days"])
def test_a_number_without_end_is_a_fault(name: str) -> None:
    assert list(faults_of(lambda: Settings.load("", {"SECRET_KEY": KEY}, {name: "9" * 400}))) == [name]


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
    assert "server.unix_socket" in faults_of(lambda: Settings.of(jwt_secret_key=KEY, server_unix_socket="ä" * 54))
