"""The table of options: every name, its type, default, bounds, environment name, one sentence and the default's reason.

Nothing here reads a file or the environment; `parsing` says what a text means, and `load` puts both together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from engadi_gateway.model import CorsPolicy
from engadi_gateway.settings.parsing import (
    OneOf,
    one_of,
    parse_address,
    parse_algorithms,
    parse_bool,
    parse_duration_s,
    parse_hosts,
    parse_int,
    parse_list,
    parse_networks,
    parse_optional_sqlite_path,
    parse_optional_url,
    parse_pairs,
    parse_path,
    parse_size_bytes,
    parse_socket_path,
    parse_sqlite_path,
    parse_str,
)

#: Of a bucket: beyond this a float no longer counts single requests.
MAX_REQUESTS = 10_000_000
#: A year: what is counted for longer is no rate.
MAX_WINDOW_S = 31_536_000
MAX_RETRIES = 10
SERVICE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


class Option(NamedTuple):
    """A row of the table. `default` is text, read by `parse` like any other; `low`/`high` bound numbers.

    `why` is the reason for the default, wherever another one could be thought of.
    """

    section: str
    key: str
    parse: Callable[[str], Any]
    default: str
    help: str
    env: str = ""
    low: float | None = None
    high: float | None = None
    is_secret: bool = False
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def attribute(self) -> str:
        return f"{self.section}_{self.key}"

    @property
    def words(self) -> tuple[str, ...]:
        """What may be chosen from; () where it is no choice."""
        return self.parse.words if isinstance(self.parse, OneOf) else ()


_CORS = CorsPolicy()

# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option("gateway", "name", parse_str, "Engadi Gateway", "what the health page calls this gateway", "PROJECT_NAME"),
    Option("gateway", "environment", one_of("development", "staging", "production", "test"), "development",
           "production refuses to start without a secret key", "ENVIRONMENT", why="a first run needs no key"),
    Option("gateway", "debug", parse_bool, "no", "asyncio's debug mode and debug messages", "DEBUG",
           why="asyncio's debug mode watches every step, and slows each down"),
    Option("gateway", "drain_timeout", parse_duration_s, "30s", "after SIGTERM, how long requests may finish", low=0,
           why="as long as the longest answer may take (upstream.timeout)"),
    Option("gateway", "drain_delay", parse_duration_s, "0s",
           "after SIGTERM, how long to go on accepting while readiness already says 503", low=0,
           why="only a balancer that polls readiness needs one"),

    Option("server", "host", parse_hosts, "0.0.0.0", "addresses to listen on, IPv4 or IPv6; none: no TCP listener",
           why="a gateway is there to be reached"),
    Option("server", "port", parse_int, "8000", "port of all addresses; 0 takes a free one", "PORT", low=0, high=65535,
           why="the one that Mission Engadi's clients know"),
    Option("server", "unix_socket", parse_socket_path, "",
           "path of a unix socket to listen on as well; its clients count as 127.0.0.1"),
    Option("server", "backlog", parse_int, "2048", "connections that may wait to be accepted", low=1,
           high=65_535,
           why="a burst of arrivals waits instead of being refused; the kernel has its own cap"),
    Option("server", "reuse_port", parse_bool, "no", "several processes share the port and the databases",
           why="with several processes, limits and breakers count in each"),
    Option("server", "loop", one_of("auto", "asyncio", "uvloop"), "asyncio",
           "event loop; auto takes uvloop where it is installed",
           why="the loop that ships with Python is the one to audit"),
    Option("server", "tls_certificate", parse_str, "", "PEM file; with tls_key the listeners speak TLS"),
    Option("server", "tls_key", parse_str, "", "PEM file"),
    Option("server", "tls_min_version", one_of("1.2", "1.3"), "1.2", "lowest TLS version",
           why="1.0 and 1.1 are withdrawn (RFC 8996)"),
    Option("server", "trusted_proxies", parse_networks, "",
           "networks whose X-Forwarded-For, -Proto, -Host, -Port and X-Request-ID are believed; none by default",
           why="a peer that is believed can claim any address"),
    Option("server", "head_timeout", parse_duration_s, "10s", "first byte to end of a request head", low=0.01,
           why="a head is one packet; slow heads are an attack (nginx, Traefik, Caddy: 60s)"),
    Option("server", "body_timeout", parse_duration_s, "30s", "longest silence in a request body", low=0.01,
           why="a phone in a tunnel is silent for seconds, an attacker for ever (nginx: 60s)"),
    Option("server", "write_timeout", parse_duration_s, "30s", "longest time a client may not read", low=0.01,
           why="as body_timeout, the other way"),
    Option("server", "keep_alive_timeout", parse_duration_s, "75s", "idle time between requests", low=0.01,
           why="longer than the 60s of balancers, so that they close first; nginx's"),
    Option("server", "keep_alive_requests", parse_int, "1000", "requests on one connection; 0: no end",
           why="frees what a connection has gathered; nginx's"),
    Option("server", "max_connections", parse_int, "10000", "client connections in all, handshakes included", low=1,
           why="5 GiB at the very worst and 23 MiB idle; see Memory above"),
    Option("server", "max_connections_per_ip", parse_int, "0",
           "client connections of one address, unless it is a trusted proxy; 0: no limit",
           why="offices and balancers are one address; set it where clients come directly"),
    Option("server", "max_head_bytes", parse_size_bytes, "16KiB", "longest request head", low=256,
           why="room for an 8KiB token; HAProxy and Caddy take as much"),
    Option("server", "max_header_lines", parse_int, "100", "most header lines of a request", low=1,
           why="browsers send 20; HAProxy and Envoy take as many"),
    Option("server", "max_target_bytes", parse_size_bytes, "8KiB", "longest request target", low=64,
           why="RFC 9112 section 3 asks for 8,000 at least"),
    Option("server", "max_body_bytes", parse_size_bytes, "10MiB", "longest request body; 0: no limit",
           why="a photograph passes, a disk image does not (nginx: 1MiB)"),
    Option("server", "underscore_headers", one_of("drop", "reject"), "drop",
           "header names with other characters than letters, digits and - (WSGI reads _ as -):"
           " drop the line, or answer 400",
           why="dropped as nginx does: old clients send such names in good faith"),

    Option("upstream", "timeout", parse_duration_s, "30s",
           "to the reply's head over all attempts, and the longest silence in its body", "GATEWAY_TIMEOUT", low=0.01,
           why="what the services were built for; one clock over all attempts, so retries cannot add up"),
    Option("upstream", "connect_timeout", parse_duration_s, "3s", "name look-up, connect and TLS", low=0.01,
           why="in one data centre a second is long; one lost SYN is sent again after 1s"),
    Option("upstream", "retry_count", parse_int, "2", "attempts beyond the first", "GATEWAY_RETRY_COUNT",
           high=MAX_RETRIES,
           why="two outlast a connection that just closed, or a restart; more is load on what is ill"),
    Option("upstream", "retry_backoff", parse_duration_s, "25ms", "base of the exponential backoff, full jitter",
           why="Envoy's; full jitter keeps retries from coming together"),
    Option("upstream", "retry_backoff_max", parse_duration_s, "1s", "longest backoff",
           why="a client waits no longer than it takes to ask again"),
    Option("upstream", "retry_buffer_bytes", parse_size_bytes, "64KiB", "a longer request body is not sent again",
           why="a form passes whole; larger bodies would be memory for strangers to fill"),
    Option("upstream", "retry_budget_percent", parse_int, "20",
           "most retries at once, in percent of the requests in flight", high=100,
           why="Envoy's: when a fifth is retries, retrying is the trouble"),
    Option("upstream", "retry_budget_min", parse_int, "3", "retries that are always allowed at once",
           why="Envoy's: a quiet gateway may retry too"),
    Option("upstream", "max_connections", parse_int, "100", "connections per target", "GATEWAY_MAX_CONNECTIONS", low=1,
           why="what the services were built for"),
    Option("upstream", "max_idle", parse_int, "100", "idle connections kept per target; fewer: more dialling",
           why="as many as there may be: with fewer, steady load beyond them dials for each request"),
    Option("upstream", "max_upgraded", parse_int, "1000",
           "WebSockets and other upgrades per target, beside max_connections",
           why="each lasts for hours: among the others they would leave none to requests"),
    Option("upstream", "idle_timeout", parse_duration_s, "55s", "how long an idle connection is kept",
           why="less than the 60s after which many servers close, so that we close first"),
    Option("upstream", "queue_size", parse_int, "1000", "requests that may wait for a connection, per target",
           why="ten requests a connection: a second's worth, beyond that waiting only hides overload"),
    Option("upstream", "queue_timeout", parse_duration_s, "5s", "how long a request may wait for one", low=0.01,
           why="a client gives up about then"),
    Option("upstream", "max_head_bytes", parse_size_bytes, "64KiB", "longest reply head", low=1024,
           why="replies carry more than requests: cookies, policies; Envoy takes 60KiB"),
    Option("upstream", "upgrade_idle_timeout", parse_duration_s, "1h", "longest silence of a WebSocket", low=0.01,
           why="WebSockets ping by the minute, but need not"),
    Option("upstream", "tls_ca_file", parse_str, "", "PEM file of authorities; empty: the system's",
           why="verified by default; without would be no TLS"),
    Option("upstream", "dns_cache", parse_duration_s, "30s", "how long a looked-up address is kept",
           why="a moved service is found within half a minute"),

    Option("database", "url", parse_sqlite_path, "sqlite:///engadi_gateway.db",
           "routes, rules, CORS, revisions (sqlite:///relative or sqlite:////absolute)", "DATABASE_URL"),
    Option("database", "log_url", parse_optional_sqlite_path, "",
           "request log; empty: beside the configuration database, with -log in its name"),

    Option("jwt", "secret_key", parse_str, "", "HS256 key, at least 32 bytes", "SECRET_KEY", is_secret=True,
           why="RFC 7518 section 3.2: as long as the hash; there is no default to forget"),
    Option("jwt", "algorithms", parse_algorithms, "HS256", "accepted algorithms, whatever the token says", "ALGORITHM",
           why="what Mission Engadi's auth service signs with"),
    Option("jwt", "mode", one_of("local", "local-then-remote", "remote"), "local",
           "what judges a token: the local keys; these, then the auth service; or the auth service alone",
           why="no request waits for another service"),
    Option("jwt", "issuer", parse_str, "", "required iss; empty: not checked"),
    Option("jwt", "audience", parse_str, "", "required aud; empty: not checked"),
    Option("jwt", "leeway", parse_duration_s, "30s", "tolerated clock difference",
           why="clocks that NTP keeps differ by less"),
    Option("jwt", "required_claims", parse_list, "exp, sub", "claims that must be there; exp always is",
           why="a token that never expires cannot be taken back; limits need a subject"),
    Option("jwt", "role_claim", parse_str, "role", "claim with the role, or a list of roles"),
    Option("jwt", "claim_headers", parse_pairs, "sub:X-User-ID, role:X-User-Role, email:X-User-Email",
           "claims that the upstream gets as headers", why="what the services read; nobody else can set them"),
    Option("jwt", "forward_authorization", parse_bool, "yes", "pass the Authorization header on",
           why="the services check the token themselves too"),
    Option("jwt", "public_routes", one_of("ignore", "optional"), "ignore",
           "a token on a public route: ignored, or validated where there is one",
           why="a bad token must not close what is open to everybody"),
    Option("jwt", "cache_size", parse_int, "10000", "verified tokens remembered",
           why="10 MiB when full (measured); verifying costs a hundred times a look-up"),
    Option("jwt", "max_token_bytes", parse_size_bytes, "8KiB", "longest token", low=64,
           why="a token fits in max_head_bytes with room for the rest"),
    Option("jwt", "public_key_file", parse_str, "", "PEM public key for RS/PS/ES/EdDSA (crypto extra)"),
    Option("jwt", "jwks_url", parse_optional_url, "", "https JWKS document (crypto extra); http only for loopback"),
    Option("jwt", "jwks_cache", parse_duration_s, "15m", "how long its keys are kept",
           why="KrakenD's; a withdrawn key is gone after it"),
    Option("jwt", "jwks_cooldown", parse_duration_s, "60s", "an unknown kid asks again at most this often",
           why="made-up kids must not make us ask for each"),
    Option("jwt", "remote_url", parse_optional_url, "",
           "remote validation; empty: the auth service's /api/v1/auth/validate"),
    Option("jwt", "remote_timeout", parse_duration_s, "5s", "longest time of one remote validation", low=0.01,
           why="every request of an unknown token waits for it"),
    Option("jwt", "remote_cache", parse_duration_s, "30s", "how long a remote yes is kept, never past exp",
           why="how long a withdrawn token lives on"),
    Option("jwt", "remote_negative_cache", parse_duration_s, "5s", "how long a remote no is kept",
           why="guessed tokens cost the auth service one question in so long"),

    Option("limits", "enabled", parse_bool, "yes", "rate limits", "RATE_LIMIT_ENABLED", why="the open internet"),
    Option("limits", "per_user", parse_int, "1000", "requests a user and window",
           "RATE_LIMIT_PER_USER", 1, MAX_REQUESTS, why="what Mission Engadi has promised"),
    Option("limits", "per_ip", parse_int, "500", "requests per address and window",
           "RATE_LIMIT_PER_IP", 1, MAX_REQUESTS, why="what Mission Engadi has promised; an office may need more"),
    Option("limits", "window", parse_duration_s, "1h", "the window of both", "RATE_LIMIT_WINDOW", 1, MAX_WINDOW_S,
           why="what Mission Engadi has promised"),
    Option("limits", "max_buckets", parse_int, "1000000", "buckets kept at once; the fullest go first", low=100,
           why="130 MiB when full (measured): a flood of addresses must not fill memory"),
    Option("limits", "ipv6_prefix", parse_int, "64", "IPv6 addresses count as this network", low=32, high=128,
           why="one customer has a whole /64"),

    Option("breaker", "enabled", parse_bool, "yes", "circuit breakers", "CIRCUIT_BREAKER_ENABLED",
           why="an ill service must not take all connections"),
    Option("breaker", "failure_threshold", parse_int, "5", "failures in a row that open",
           "CIRCUIT_BREAKER_FAILURE_THRESHOLD", low=1,
           why="what Mission Engadi has promised; in a row, so that a rare error opens nothing"),
    Option("breaker", "success_threshold", parse_int, "2", "successful probes that close",
           "CIRCUIT_BREAKER_SUCCESS_THRESHOLD", low=1, why="one good answer is luck"),
    Option("breaker", "timeout", parse_duration_s, "60s", "how long it stays open", "CIRCUIT_BREAKER_TIMEOUT", low=0.01,
           why="what Mission Engadi has promised; a restart takes less"),

    Option("health", "interval", parse_duration_s, "60s",
           "time between checks, 10 % jitter, new services at once; 0: no checks",
           "HEALTH_CHECK_INTERVAL", why="what Mission Engadi has promised; traffic itself tells sooner"),
    Option("health", "timeout", parse_duration_s, "5s", "longest time of one check", "HEALTH_CHECK_TIMEOUT", low=0.01,
           why="what Mission Engadi has promised"),
    Option("health", "path", parse_path, "/health", "path of a health check, unless [health_paths] says otherwise"),
    Option("health", "slow", parse_duration_s, "1s", "a slower good answer is degraded",
           why="a health check that takes longer has something to wait for"),
    Option("health", "fall", parse_int, "3", "bad checks in a row until unhealthy; one, if it was never well", low=1,
           why="HAProxy's: one lost packet is no illness"),
    Option("health", "rise", parse_int, "2", "good checks in a row until healthy again", low=1,
           why="HAProxy's: one good answer is no health"),

    Option("cors", "enabled", parse_bool, "no", "CORS; the API can change the whole section at run time",
           why="it needs a list of origins, which only you know"),
    Option("cors", "allow_origins", parse_list, "", "origins, https://*.example.com patterns, or *"),
    Option("cors", "allow_methods", parse_list, ", ".join(_CORS.allow_methods), "methods, or *"),
    Option("cors", "allow_headers", parse_list, ", ".join(_CORS.allow_headers), "headers; * leaves out Authorization"),
    Option("cors", "expose_headers", parse_list, ", ".join(_CORS.expose_headers), "reply headers scripts may read"),
    Option("cors", "allow_credentials", parse_bool, "no", "cookies and Authorization from scripts; never with *",
           why="a script could act in its visitor's name"),
    Option("cors", "max_age", parse_duration_s, "10m", "how long a browser keeps a preflight",
           why="Chromium keeps none longer than 2h; a changed policy is known soon"),
    Option("cors", "reject_denied_origin", parse_bool, "no", "403 for a request from a foreign origin",
           why="browsers enforce it themselves; other clients may send an Origin"),

    Option("log", "level", one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "INFO",
           "messages on stderr", "LOG_LEVEL", why="starts, stops, faults; a line a request is log.access"),
    Option("log", "requests", parse_bool, "yes",
           "the request log in the database, from which /logs, /errors, /stats, /performance and JSON /metrics answer",
           "ENABLE_REQUEST_LOGGING",
           why="the answer to 'why did it do that?'"),
    Option("log", "retention_days", parse_int, "30",
           "older rows go, a table at a time: up to a 24th of this later", "GATEWAY_LOG_RETENTION_DAYS", low=1,
           high=36_500, why="what Mission Engadi has promised"),
    Option("log", "max_bytes", parse_size_bytes, "2GiB", "a larger log loses its oldest rows; 0: no limit",
           why="a log must not fill the disk"),
    Option("log", "flush_interval", parse_duration_s, "250ms", "longest time a row waits in memory", low=0.01,
           why="what a power cut may cost; shorter makes more transactions"),
    Option("log", "flush_rows", parse_int, "500", "rows that are written at once", low=1,
           why="many rows share one transaction"),
    Option("log", "queue_rows", parse_int, "10000", "rows that may wait for the writer", low=1,
           why="about a second of full load"),
    Option("log", "when_full", one_of("shed", "stall"), "shed",
           "a full queue, also because the disk fails: lose and count rows, or let all requests wait for room",
           why="serving goes before logging, and what is lost is counted"),
    Option("log", "access", one_of("off", "combined", "json"), "off",
           "a line a request on stdout, in nginx's combined format or as JSON",
           why="the database has it, and can be asked"),
    Option("log", "truncate_ip", parse_bool, "no", "log /24 and /48 networks instead of addresses",
           why="limits and abuse reports need the address; see your law"),

    Option("admin", "listen", parse_address, "", "host:port of its own for the admin API; empty: the gateway's",
           why="one port to open; give it its own where the first is public"),
    Option("admin", "role", parse_str, "admin", "role that the admin API asks for",
           why="the name that the auth service gives"),
    Option("admin", "max_body_bytes", parse_size_bytes, "1MiB", "longest admin request body", low=1024,
           why="configuration is text; some thousand rules fit"),
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
