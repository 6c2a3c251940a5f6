"""What the options mean together: faults that one of them alone cannot show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from engadi_gateway.errors import Fault


def coherence_faults(values: Mapping[str, Any]) -> list[Fault]:
    """Of the parsed values, by their attributes' names."""
    key, algorithms = values["jwt_secret_key"], values["jwt_algorithms"]
    asks_only = values["jwt_mode"] == "remote"
    symmetric = [name for name in algorithms if re.fullmatch(r"HS(256|384|512)", name)]
    checks = (
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
            bool(key) or not symmetric or asks_only or values["gateway_environment"] != "production",
            "jwt.secret_key",
            "required in production: set SECRET_KEY to at least 32 random bytes",
        ),
        (
            bool(symmetric) or asks_only or bool(values["jwt_public_key_file"] or values["jwt_jwks_url"]),
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
        (
            not _is_servers(values["admin_listen"], values),
            "admin.listen",
            "the server's own address; leave it empty for the admin API to be there",
        ),
        (
            bool(values["admin_role"]),
            "admin.role",
            "a role's name: empty, it would be everybody's whose role is empty",
        ),
        (
            values["log_queue_rows"] >= values["log_flush_rows"],
            "log.queue_rows",
            "below log.flush_rows: one batch would not find room",
        ),
    )
    return [Fault(name, detail) for is_good, name, detail in checks if not is_good]


def _is_servers(address: str, values: Mapping[str, Any]) -> bool:
    host, _, port = address.rpartition(":")
    everywhere = "::" if ":" in host else "0.0.0.0"  # each is for addresses of its own kind alone
    is_there = not {host.strip("[]"), everywhere}.isdisjoint(values["server_host"])
    return bool(address) and int(port) == values["server_port"] != 0 and is_there


def _is_https_or_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in {"127.0.0.1", "::1", "localhost"}
