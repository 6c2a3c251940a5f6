"""Settings: one table of options; text from four sources becomes frozen `Settings`, or every fault at once.

Order: command line > `ENGADI_<SECTION>_<KEY>` > the original service's name (`PORT`, `SECRET_KEY`, ...) > gateway.ini
> default. An unknown section or key is a fault. Durations take `ms s m h d`, sizes `KiB MiB GiB`; bare numbers are
seconds or bytes. A secret can come from a file: `<NAME>_FILE`, or a file of its key's name in
`$CREDENTIALS_DIRECTORY`.

This module reads no file: the caller passes the ini text, the environment and a `read` function.
"""

from __future__ import annotations

import configparser
import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.model import CorsPolicy, Service

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
SERVICE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


def parse_bool(text: str) -> bool:
    """true/false/yes/no/on/off/1/0 in any case, nothing else."""
    value = BOOLEANS.get(text.strip().lower())
    if value is None:
        raise ValueError("expected one of true, false, yes, no, on, off, 1, 0")
    return value


def parse_int(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text.strip()):
        raise ValueError("expected a whole number, 0 or more")
    return int(text)


def parse_duration_s(text: str) -> float:
    match = _QUANTITY.fullmatch(text.strip().lower())
    if match is None or match[2] not in _DURATION_UNITS:
        raise ValueError("expected a duration such as 30, 30s, 250ms, 5m, 1h or 7d")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_size_bytes(text: str) -> int:
    match = _QUANTITY.fullmatch(text.strip().lower())
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError("expected a size such as 65536, 64KiB, 10MiB or 1GiB")
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def parse_str(text: str) -> str:
    return text.strip()


def parse_list(text: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[,\s]+", text.strip()) if part)


def parse_networks(text: str) -> tuple[IpNetwork, ...]:
    return tuple(ipaddress.ip_network(part, strict=False) for part in parse_list(text))


def parse_url(text: str) -> str:
    """An http(s) base URL without query, fragment or user; a last slash is cut."""
    url = text.strip()
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected http://host[:port][/path] or https://...")
    if parts.query or parts.fragment or parts.username is not None or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError("a URL without user, query, fragment or white space")
    _ = parts.port
    return url.rstrip("/")


def parse_optional_url(text: str) -> str:
    return parse_url(text) if text.strip() else ""


def parse_sqlite_path(text: str) -> str:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`, or a bare path; another scheme is a fault."""
    scheme, separator, path = text.strip().partition("://")
    if not separator:
        return text.strip()
    if scheme.split("+")[0] != "sqlite":
        raise ValueError(f"only sqlite:/// is supported, not {scheme}://")
    if not path.startswith("/") or path == "/":
        raise ValueError("expected sqlite:///relative.db or sqlite:////absolute/path.db")
    return path[1:]


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`claim:Header-Name, ...` as pairs."""
    pairs = []
    for part in parse_list(text):
        left, separator, right = part.partition(":")
        if not (separator and left and re.fullmatch(r"[A-Za-z0-9-]+", right)):
            raise ValueError("expected claim:Header-Name, claim:Header-Name")
        pairs.append((left, right))
    return tuple(pairs)


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = text.strip()
        found = {candidate.lower(): candidate for candidate in words}.get(word.lower())
        if found is None:
            raise ValueError(f"expected one of {', '.join(words)}")
        return found

    return parse


class Option(NamedTuple):
    """A row of the table. `default` is text, read by `parse` like any other; `low`/`high` bound numbers."""

    section: str
    key: str
    parse: Callable[[str], Any]
    default: str
    help: str
    env: str = ""
    low: float | None = None
    high: float | None = None
    is_secret: bool = False

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def attribute(self) -> str:
        return f"{self.section}_{self.key}"


_CORS = CorsPolicy()

# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option("gateway", "name", parse_str, "Engadi Gateway", "what the health page calls this gateway", "PROJECT_NAME"),
    Option("gateway", "environment", one_of("development", "staging", "production", "test"), "development",
           "production refuses to start without a secret key", "ENVIRONMENT"),
    Option("gateway", "debug", parse_bool, "no", "asyncio's debug mode and debug messages", "DEBUG"),
    Option("gateway", "drain_timeout", parse_duration_s, "30s", "after SIGTERM, how long requests may finish", low=0),
    Option("gateway", "drain_delay", parse_duration_s, "0s",
           "after SIGTERM, how long to go on accepting while readiness already says 503", low=0),

    Option("server", "host", parse_list, "0.0.0.0", "addresses to listen on, IPv4 or IPv6; none: no TCP listener"),
    Option("server", "port", parse_int, "8000", "port of all addresses; 0 takes a free one", "PORT", low=0, high=65535),
    Option("server", "unix_socket", parse_str, "", "path of a unix socket to listen on as well"),
    Option("server", "backlog", parse_int, "2048", "connections that may wait to be accepted", low=1),
    Option("server", "reuse_port", parse_bool, "no", "SO_REUSEPORT: several processes share the port"),
    Option("server", "loop", one_of("auto", "asyncio", "uvloop"), "asyncio",
           "event loop; auto takes uvloop where it is installed"),
    Option("server", "tls_certificate", parse_str, "", "PEM file; with tls_key the listeners speak TLS"),
    Option("server", "tls_key", parse_str, "", "PEM file"),
    Option("server", "tls_min_version", one_of("1.2", "1.3"), "1.2", "lowest TLS version"),
    Option("server", "trusted_proxies", parse_networks, "",
           "networks whose X-Forwarded-* and X-Request-ID are believed; none by default"),
    Option("server", "head_timeout", parse_duration_s, "10s", "first byte to end of a request head", low=0.01),
    Option("server", "body_timeout", parse_duration_s, "30s", "longest silence in a request body", low=0.01),
    Option("server", "write_timeout", parse_duration_s, "30s", "longest time a client may not read", low=0.01),
    Option("server", "keep_alive_timeout", parse_duration_s, "75s", "idle time between requests", low=0.01),
    Option("server", "keep_alive_requests", parse_int, "1000", "requests on one connection; 0: no end"),
    Option("server", "max_connections", parse_int, "10000", "client connections in all", low=1),
    Option("server", "max_connections_per_ip", parse_int, "0", "client connections of one address; 0: no limit"),
    Option("server", "max_head_bytes", parse_size_bytes, "16KiB", "longest request head", low=256),
    Option("server", "max_header_lines", parse_int, "100", "most header lines of a request", low=1),
    Option("server", "max_target_bytes", parse_size_bytes, "8KiB", "longest request target", low=64),
    Option("server", "max_body_bytes", parse_size_bytes, "10MiB", "longest request body; 0: no limit"),
    Option("server", "underscore_headers", one_of("drop", "reject"), "drop",
           "header names with _ or . (WSGI and CGI read X_User_Id as X-User-Id)"),

    Option("upstream", "timeout", parse_duration_s, "30s",
           "to the reply's head over all attempts, and the longest silence in its body", "GATEWAY_TIMEOUT", low=0.01),
    Option("upstream", "connect_timeout", parse_duration_s, "3s", "name look-up, connect and TLS", low=0.01),
    Option("upstream", "retry_count", parse_int, "2", "attempts beyond the first", "GATEWAY_RETRY_COUNT", high=10),
    Option("upstream", "retry_backoff", parse_duration_s, "25ms", "base of the exponential backoff, full jitter"),
    Option("upstream", "retry_backoff_max", parse_duration_s, "1s", "longest backoff"),
    Option("upstream", "retry_buffer_bytes", parse_size_bytes, "64KiB", "a longer request body is not sent again"),
    Option("upstream", "retry_budget_percent", parse_int, "20", "retries, of the requests in flight", high=100),
    Option("upstream", "retry_budget_min", parse_int, "3", "retries that are always allowed at once"),
    Option("upstream", "max_connections", parse_int, "100", "connections per target", "GATEWAY_MAX_CONNECTIONS", low=1),
    Option("upstream", "max_idle", parse_int, "100", "idle connections kept per target; fewer are dialled anew under load"),
    Option("upstream", "idle_timeout", parse_duration_s, "55s", "how long an idle connection is kept"),
    Option("upstream", "queue_size", parse_int, "1000", "requests that may wait for a connection, per target"),
    Option("upstream", "queue_timeout", parse_duration_s, "5s", "how long one may wait", low=0.01),
    Option("upstream", "max_head_bytes", parse_size_bytes, "64KiB", "longest reply head", low=1024),
    Option("upstream", "upgrade_idle_timeout", parse_duration_s, "1h", "longest silence of a WebSocket", low=0.01),
    Option("upstream", "tls_ca_file", parse_str, "", "PEM file of authorities; empty: the system's"),
    Option("upstream", "dns_cache", parse_duration_s, "30s", "how long a looked-up address is kept"),

    Option("database", "url", parse_sqlite_path, "sqlite:///engadi_gateway.db",
           "routes, rules, CORS, revisions (sqlite:///relative or sqlite:////absolute)", "DATABASE_URL"),
    Option("database", "log_url", parse_sqlite_path, "", "request log; empty: beside the other, with -log in its name"),

    Option("jwt", "secret_key", parse_str, "", "HS256 key, at least 32 bytes", "SECRET_KEY", is_secret=True),
    Option("jwt", "algorithms", parse_list, "HS256", "what is accepted; never what the token says", "ALGORITHM"),
    Option("jwt", "mode", one_of("local", "local-then-remote", "remote"), "local", "who judges a token"),
    Option("jwt", "issuer", parse_str, "", "required iss; empty: not checked"),
    Option("jwt", "audience", parse_str, "", "required aud; empty: not checked"),
    Option("jwt", "leeway", parse_duration_s, "30s", "tolerated clock difference"),
    Option("jwt", "required_claims", parse_list, "exp, sub", "claims that must be there; exp always is"),
    Option("jwt", "role_claim", parse_str, "role", "claim with the role, or a list of roles"),
    Option("jwt", "claim_headers", parse_pairs, "sub:X-User-ID, role:X-User-Role, email:X-User-Email",
           "claims that the upstream gets as headers"),
    Option("jwt", "forward_authorization", parse_bool, "yes", "pass the Authorization header on"),
    Option("jwt", "public_routes", one_of("ignore", "optional"), "ignore",
           "a token on a public route: ignored, or validated if present"),
    Option("jwt", "cache_size", parse_int, "10000", "verified tokens remembered"),
    Option("jwt", "max_token_bytes", parse_size_bytes, "8KiB", "longest token", low=64),
    Option("jwt", "public_key_file", parse_str, "", "PEM public key for RS/PS/ES/EdDSA (crypto extra)"),
    Option("jwt", "jwks_url", parse_optional_url, "", "https JWKS document (crypto extra); http only for loopback"),
    Option("jwt", "jwks_cache", parse_duration_s, "15m", "how long its keys are kept"),
    Option("jwt", "jwks_cooldown", parse_duration_s, "60s", "an unknown kid asks again at most this often"),
    Option("jwt", "remote_url", parse_optional_url, "",
           "remote validation; empty: the auth service's /api/v1/auth/validate"),
    Option("jwt", "remote_timeout", parse_duration_s, "5s", "for one remote validation", low=0.01),
    Option("jwt", "remote_cache", parse_duration_s, "30s", "how long a remote yes is kept, never past exp"),
    Option("jwt", "remote_negative_cache", parse_duration_s, "5s", "how long a remote no is kept"),

    Option("limits", "enabled", parse_bool, "yes", "rate limits", "RATE_LIMIT_ENABLED"),
    Option("limits", "per_user", parse_int, "1000", "requests per user and window", "RATE_LIMIT_PER_USER", 1, 10_000_000),
    Option("limits", "per_ip", parse_int, "500", "requests per address and window", "RATE_LIMIT_PER_IP", 1, 10_000_000),
    Option("limits", "window", parse_duration_s, "1h", "the window of both", "RATE_LIMIT_WINDOW", 1, 31_536_000),
    Option("limits", "max_buckets", parse_int, "1000000", "buckets kept at once; the fullest go first", low=100),
    Option("limits", "ipv6_prefix", parse_int, "64", "IPv6 addresses count as this network", low=32, high=128),

    Option("breaker", "enabled", parse_bool, "yes", "circuit breakers", "CIRCUIT_BREAKER_ENABLED"),
    Option("breaker", "failure_threshold", parse_int, "5", "failures in a row that open",
           "CIRCUIT_BREAKER_FAILURE_THRESHOLD", low=1),
    Option("breaker", "success_threshold", parse_int, "2", "successful probes that close",
           "CIRCUIT_BREAKER_SUCCESS_THRESHOLD", low=1),
    Option("breaker", "timeout", parse_duration_s, "60s", "open for so long", "CIRCUIT_BREAKER_TIMEOUT", low=0.01),

    Option("health", "interval", parse_duration_s, "60s", "between checks, 10 % jitter; 0: none",
           "HEALTH_CHECK_INTERVAL"),
    Option("health", "timeout", parse_duration_s, "5s", "for one check", "HEALTH_CHECK_TIMEOUT", low=0.01),
    Option("health", "path", parse_str, "/health", "what is asked, unless [health_paths] says otherwise"),
    Option("health", "slow", parse_duration_s, "1s", "a slower good answer is degraded"),
    Option("health", "fall", parse_int, "3", "bad checks in a row until unhealthy", low=1),
    Option("health", "rise", parse_int, "2", "good checks in a row until healthy again", low=1),

    Option("cors", "enabled", parse_bool, "no", "CORS; the API can change the whole section at run time"),
    Option("cors", "allow_origins", parse_list, "", "origins, https://*.example.com patterns, or *"),
    Option("cors", "allow_methods", parse_list, ", ".join(_CORS.allow_methods), "methods, or *"),
    Option("cors", "allow_headers", parse_list, ", ".join(_CORS.allow_headers), "headers; * leaves out Authorization"),
    Option("cors", "expose_headers", parse_list, ", ".join(_CORS.expose_headers), "reply headers scripts may read"),
    Option("cors", "allow_credentials", parse_bool, "no", "cookies and Authorization from scripts; never with *"),
    Option("cors", "max_age", parse_duration_s, "10m", "how long a browser keeps a preflight"),
    Option("cors", "reject_denied_origin", parse_bool, "no", "403 for a request from a foreign origin"),

    Option("log", "level", one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "INFO",
           "messages on stderr", "LOG_LEVEL"),
    Option("log", "requests", parse_bool, "yes", "the request log in the database", "ENABLE_REQUEST_LOGGING"),
    Option("log", "retention_days", parse_int, "30", "older rows go", "GATEWAY_LOG_RETENTION_DAYS", low=1),
    Option("log", "max_bytes", parse_size_bytes, "2GiB", "a larger log loses its oldest rows; 0: no limit"),
    Option("log", "flush_interval", parse_duration_s, "250ms", "longest time a row waits in memory", low=0.01),
    Option("log", "flush_rows", parse_int, "500", "rows that are written at once", low=1),
    Option("log", "queue_rows", parse_int, "10000", "rows that may wait for the writer", low=1),
    Option("log", "when_full", one_of("shed", "stall"), "shed", "a full queue: lose and count rows, or stall requests"),
    Option("log", "access", one_of("off", "combined", "json"), "off", "a line a request on stdout"),
    Option("log", "truncate_ip", parse_bool, "no", "log /24 and /48 networks instead of addresses"),

    Option("admin", "listen", parse_str, "", "host:port of its own for the admin API; empty: the gateway's"),
    Option("admin", "role", parse_str, "admin", "role that the admin API asks for"),
    Option("admin", "max_body_bytes", parse_size_bytes, "1MiB", "longest admin request body", low=1024),
)
# fmt: on

#: The nine services of Mission Engadi and the environment names of their URLs.
DEFAULT_SERVICES: dict[str, str] = {
    "auth": "http://127.0.0.1:8002",
    "content": "http://127.0.0.1:8003",
    "partners-crm": "http://127.0.0.1:8005",
    "projects": "http://127.0.0.1:8006",
    "social-media": "http://127.0.0.1:8007",
    "notification": "http://127.0.0.1:8008",
    "analytics": "http://127.0.0.1:8009",
    "ai": "http://127.0.0.1:8010",
    "search": "http://127.0.0.1:8011",
}
FREE_SECTIONS = ("services", "health_paths")
SECTIONS = tuple(dict.fromkeys(option.section for option in OPTIONS)) + FREE_SECTIONS


def service_env(service: str) -> str:
    """`partners-crm` -> `PARTNERS_CRM_SERVICE_URL`."""
    return service.upper().replace("-", "_") + "_SERVICE_URL"


def option_env(option: Option) -> str:
    return f"ENGADI_{option.section}_{option.key}".upper()


@dataclass(frozen=True)
class Settings:
    """Every option as an attribute `<section>_<key>`, and the services. Build it with `Settings.load` or `.of`.

    `origins` tells for each option where its value came from.
    """

    values: Mapping[str, Any]
    services: Mapping[str, Service]
    origins: Mapping[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{key}={value}' for key, value in self.masked().items())})"

    def masked(self) -> dict[str, Any]:
        """All values by `section.key`, secrets as ***."""
        return {
            option.name: "***" if option.is_secret and self.values[option.attribute] else self.values[option.attribute]
            for option in OPTIONS
        }

    @property
    def log_path(self) -> str:
        if self.values["database_log_url"]:
            return str(self.values["database_log_url"])
        stem, dot, suffix = str(self.values["database_url"]).rpartition(".")
        return f"{stem}-log.{suffix}" if dot and "/" not in suffix else f"{self.values['database_url']}-log"

    @property
    def cors_policy(self) -> CorsPolicy:
        """What the settings say; the database has its own once the API changed it."""
        get = self.values
        return CorsPolicy(
            enabled=get["cors_enabled"],
            allow_origins=get["cors_allow_origins"],
            allow_methods=get["cors_allow_methods"],
            allow_headers=get["cors_allow_headers"],
            expose_headers=get["cors_expose_headers"],
            allow_credentials=get["cors_allow_credentials"],
            max_age=int(get["cors_max_age"]),
            reject_denied_origin=get["cors_reject_denied_origin"],
        )

    @classmethod
    def of(cls, services: Mapping[str, str] | None = None, **values: Any) -> Settings:
        """Settings for embedding and tests: `Settings.of(server_port=0, jwt_secret_key="...")`.

        A value is the parsed one (or text, which is parsed); `services` maps names to URLs and replaces the nine.

        Raises:
            ConfigurationError: with all faults.
        """
        known = {option.attribute: option for option in OPTIONS}
        texts = {known[name].name: value for name, value in values.items() if name in known and isinstance(value, str)}
        ready = {name: value for name, value in values.items() if not isinstance(value, str)}
        faults = [Fault(name, "unknown option" + _hint(name, known)) for name in values if name not in known]
        settings = _build(
            texts, {} if services is None else services, {}, {}, faults, replace_services=services is not None
        )
        return cls({**settings.values, **ready}, settings.services, settings.origins)

    @classmethod
    def load(
        cls,
        ini: str = "",
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, str] | None = None,
        read: Callable[[str], str] | None = None,
    ) -> Settings:
        """Read all sources.

        Args:
            ini: the text of gateway.ini.
            environ: the environment.
            overrides: `section.key` -> text, from the command line.
            read: reads a file for `*_FILE` and credentials; raises OSError.

        Raises:
            ConfigurationError: with all faults.
        """
        environ = {} if environ is None else environ
        faults: list[Fault] = []
        texts, services, paths = _read_ini(ini, faults)
        origins = dict.fromkeys(texts, "gateway.ini")
        for option in OPTIONS:
            for name in (option.env, option_env(option)):
                text = _from_environment(name, option, environ, read, faults)
                if text is not None:
                    texts[option.name], origins[option.name] = text, name
        for service in {**DEFAULT_SERVICES, **services}:
            if environ.get(service_env(service), "") != "":
                services[service] = environ[service_env(service)]
        for name, text in (overrides or {}).items():
            texts[name], origins[name] = text, "command line"
        return _build(texts, services, paths, origins, faults)


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _from_environment(
    name: str,
    option: Option,
    environ: Mapping[str, str],
    read: Callable[[str], str] | None,
    faults: list[Fault],
) -> str | None:
    if not name or name in environ or not (option.is_secret and read):
        return environ.get(name) if name else None
    path = environ.get(f"{name}_FILE", "")
    credentials = environ.get("CREDENTIALS_DIRECTORY", "") if name == option.env else ""
    try:
        if path:
            return read(path).strip()
        return read(f"{credentials}/{option.key}").strip() if credentials else None
    except FileNotFoundError:
        if not path:
            return None  # other services' credentials may be there without ours
        faults.append(Fault(f"{name}_FILE", "no such file"))
    except OSError as error:
        faults.append(Fault(f"{name}_FILE", f"cannot be read: {error.strerror}"))
    return None


def _read_ini(text: str, faults: list[Fault]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        parser.read_string(text, "gateway.ini")
    except configparser.Error as error:
        faults.append(Fault("gateway.ini", " ".join(str(error).split())))
        return {}, {}, {}
    known = {option.name for option in OPTIONS}
    texts: dict[str, str] = {}
    free: dict[str, dict[str, str]] = {section: {} for section in FREE_SECTIONS}
    if parser.defaults():
        faults.append(Fault("DEFAULT", "unknown section"))
    for section in parser.sections():
        if section not in SECTIONS:
            faults.append(Fault(section, "unknown section" + _hint(section, SECTIONS)))
            continue
        for key, value in parser.items(section):
            name = f"{section}.{key}"
            if section in free:
                free[section][key] = value
            elif name in known:
                texts[name] = value
            else:
                faults.append(Fault(name, "unknown option" + _hint(name, known)))
    return texts, free["services"], free["health_paths"]


def _build(
    texts: Mapping[str, str],
    services: Mapping[str, str],
    paths: Mapping[str, str],
    origins: Mapping[str, str],
    faults: list[Fault],
    *,
    replace_services: bool = False,
) -> Settings:
    values: dict[str, Any] = {}
    for option in OPTIONS:
        try:
            values[option.attribute] = _parse_option(option, texts.get(option.name, option.default))
        except ValueError as error:
            faults.append(Fault(option.name, str(error)))
            values[option.attribute] = option.parse(option.default)
    urls = dict(services) if replace_services else {**DEFAULT_SERVICES, **services}
    built = _services(urls, paths, values["health_path"], faults)
    _check_together(values, faults)
    if values["jwt_mode"] != "local" and not values["jwt_remote_url"] and "auth" not in urls:
        faults.append(Fault("jwt.remote_url", "required: there is no auth service to ask"))
    if faults:
        raise ConfigurationError(faults)
    return Settings(values, built, {option.name: origins.get(option.name, "default") for option in OPTIONS})


def _parse_option(option: Option, text: str) -> Any:
    value = option.parse(text)
    if option.low is not None and value < option.low:
        raise ValueError(f"{text} is below {option.low:g}")
    if option.high is not None and value > option.high:
        raise ValueError(f"{text} is above {option.high:g}")
    return value


def _services(
    urls: Mapping[str, str], paths: Mapping[str, str], default_path: str, faults: list[Fault]
) -> dict[str, Service]:
    services = {}
    for name, url in urls.items():
        if not SERVICE_NAME.fullmatch(name):
            faults.append(Fault(f"services.{name}", "a name of a-z, 0-9 and -"))
            continue
        try:
            services[name] = Service(name, parse_url(url), paths.get(name, default_path).strip())
        except ValueError as error:
            faults.append(Fault(f"services.{name}", str(error)))
    faults.extend(
        Fault(f"health_paths.{name}", "no such service" + _hint(name, urls)) for name in paths if name not in urls
    )
    faults.extend(
        Fault(f"health_paths.{service.name}", "a path that begins with /")
        for service in services.values()
        if not re.fullmatch(r"/[!-~]*", service.health_path)
    )
    return services


_ALGORITHM = re.compile(r"(HS|RS|PS|ES)(256|384|512)|EdDSA")


def _check_together(values: Mapping[str, Any], faults: list[Fault]) -> None:
    """What one option alone cannot show."""
    key, algorithms = values["jwt_secret_key"], values["jwt_algorithms"]
    symmetric = [name for name in algorithms if re.fullmatch(r"HS(256|384|512)", name)]
    checks = (
        (
            bool(algorithms) and all(_ALGORITHM.fullmatch(name) for name in algorithms),
            "jwt.algorithms",
            "expected HS256 or others of HS, RS, PS, ES 256/384/512, EdDSA",
        ),
        (
            len(symmetric) in {0, len(algorithms)},
            "jwt.algorithms",
            "HS and public-key algorithms never in one list (RFC 8725)",
        ),
        (
            not key or len(key.encode()) >= max((int(name[2:]) // 8 for name in symmetric), default=0),
            "jwt.secret_key",
            "too short: at least 32 bytes for HS256, 48 for HS384, 64 for HS512 (RFC 7518 section 3.2)",
        ),
        (
            bool(key) or not symmetric or values["gateway_environment"] != "production",
            "jwt.secret_key",
            "required in production: set SECRET_KEY to at least 32 random bytes",
        ),
        (
            bool(symmetric)
            or values["jwt_mode"] == "remote"
            or bool(values["jwt_public_key_file"] or values["jwt_jwks_url"]),
            "jwt.algorithms",
            "public-key algorithms need jwt.public_key_file or jwt.jwks_url",
        ),
        (
            not values["jwt_jwks_url"] or _is_https_or_loopback(values["jwt_jwks_url"]),
            "jwt.jwks_url",
            "https only (http only for loopback)",
        ),
        (
            not (values["cors_allow_credentials"] and "*" in values["cors_allow_origins"]),
            "cors.allow_credentials",
            "never together with allow_origins = *",
        ),
        (
            bool(values["server_tls_certificate"]) == bool(values["server_tls_key"]),
            "server.tls_key",
            "tls_certificate and tls_key go together",
        ),
        (
            bool(values["server_host"] or values["server_unix_socket"]),
            "server.host",
            "nothing to listen on: give host or unix_socket",
        ),
    )
    faults.extend(Fault(name, detail) for is_good, name, detail in checks if not is_good)


def _is_https_or_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in {"127.0.0.1", "::1", "localhost"}
