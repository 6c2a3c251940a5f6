"""Options in tests: another good text for each, and faults by what they point at."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from engadi_gateway.errors import ConfigurationError
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.options import Option

KEY = "k" * 64


def faults_of(make: Callable[[], Settings]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as raised:
        make()
    return {fault.pointer: fault.detail for fault in raised.value.faults}


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
