"""Where settings come from: each source, their order, and slips in each."""

from __future__ import annotations

from functools import partial

import pytest

from engadi_gateway.errors import ConfigurationError
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.options import DEFAULT_SERVICES, OPTIONS, Option, option_env, service_env
from engadi_gateway.settings.sources import LONGEST_KEY
from tests.options import KEY, faults_of, other_text

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
    assert "ENGADI_GATEWAY_PORT" in faults_of(lambda: Settings.load("", {"ENGADI_GATEWAY_PORT": "8000"}))
    with pytest.raises(ConfigurationError) as caught:
        Settings.load("", {"ENGADI_SERVER_PROT": "9", "ENGADI_SERVER_PORT_FILE": "f"})
    assert [(fault.pointer, fault.detail) for fault in caught.value.faults] == [
        ("ENGADI_SERVER_PROT", "unknown option; did you mean ENGADI_SERVER_PORT?"),
        ("ENGADI_SERVER_PORT_FILE", "unknown option; did you mean ENGADI_SERVER_PORT?"),
    ]


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
    assert "SECRET_KEY_FILE" in faults_of(lambda: Settings.load("", {"SECRET_KEY_FILE": "/gone"}, read=read))


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
    faults = faults_of(lambda: Settings.load(ini.format(KEY, KEY)))
    assert faults == said
    assert KEY not in str(faults)


def test_no_option_has_a_name_that_would_not_be_repeated() -> None:
    assert max(len(option.key) for option in OPTIONS) < LONGEST_KEY


def test_a_key_file_that_is_no_text_is_a_fault_that_shows_nothing_of_it() -> None:
    def read(name: str) -> str:
        return (b"geheim\xff" if name == "/run/key" else b"").decode()

    for environ, pointer in (
        ({"SECRET_KEY_FILE": "/run/key"}, "SECRET_KEY_FILE"),
        ({"ENGADI_JWT_SECRET_KEY_FILE": "/run/key"}, "ENGADI_JWT_SECRET_KEY_FILE"),
    ):
        faults = faults_of(partial(Settings.load, "", environ, read=read))
        assert faults == {pointer: "/run/key cannot be read: no text in UTF-8 (random bytes: make them Base64)"}


@pytest.mark.parametrize("comment", [" ; the boss", " # the boss", "\t;x"])
def test_a_comment_behind_a_value_is_a_fault_and_not_a_part_of_it(comment: str) -> None:
    faults = faults_of(lambda: Settings.load(f"[admin]\nrole = admin{comment}\n", {"SECRET_KEY": KEY}))
    assert faults == {"admin.role": "a comment has a line of its own: here ; and # are part of the value"}
    for text in ("admin;x", "a#b"):
        assert Settings.load(f"[admin]\nrole = {text}\n", {"SECRET_KEY": KEY}).admin_role == text
    key = f"{KEY} ;x"
    assert Settings.load(f"[jwt]\nsecret_key = {key}\n", {}).jwt_secret_key == key, "a key may be anything"


def test_an_option_without_its_section_is_told_how_to_say_it() -> None:
    faults = faults_of(lambda: Settings.load("", {"SECRET_KEY": KEY}, {"port": "8000"}))
    assert faults == {"port": "unknown option; an option is SECTION.KEY, such as server.port"}
