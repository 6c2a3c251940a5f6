"""nginx, HAProxy and Caddy, as Debian has them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.peers import Command, Duty, Peer, Place
from tests.bench.requests import ORIGIN, SECRET

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NJS = ("/usr/lib/nginx/modules/ngx_http_js_module.so", "/usr/share/nginx/modules/ngx_http_js_module.so")


def program(name: str) -> str:
    """Its path, also where a user's PATH has no sbin; the name itself when it is nowhere."""
    return shutil.which(name) or shutil.which(name, path=_PATH) or name


def absent(name: str, how: str) -> Callable[[], str]:
    return lambda: "" if Path(program(name)).exists() else f"not installed ({how})"


def version(path: Callable[[], str], argument: str) -> Callable[[], str]:
    """The first thing like a version that a program says."""

    def ask() -> str:
        done = subprocess.run([path(), argument], capture_output=True, text=True, timeout=30, check=False)
        found = re.search(r"(?<![\w.-])\d+\.\d+\.\d+", done.stdout + done.stderr)
        return found[0] if found else ""

    return ask


# nginx

_JWT_JS = """
import crypto from 'crypto';
const KEY = '%(secret)s';
function text(part) { return Buffer.from(part, 'base64url').toString(); }
function user(r) {
    try {
        const value = r.headersIn.Authorization;
        if (!value.startsWith('Bearer ')) { return ''; }
        const token = value.substring(7), end = token.lastIndexOf('.');
        const signature = crypto.createHmac('sha256', KEY).update(token.substring(0, end)).digest('base64url');
        if (signature !== token.substring(end + 1)) { return ''; }
        const middle = token.indexOf('.');
        if (JSON.parse(text(token.substring(0, middle))).alg !== 'HS256') { return ''; }
        const claims = JSON.parse(text(token.substring(middle + 1, end)));
        return claims.exp * 1000 > Date.now() ? String(claims.sub) : '';
    } catch (error) { return ''; }
}
export default { user };
"""

_NGINX = """
%(load_module)s
worker_processes 1; daemon off; master_process off; pid %(folder)s/nginx.pid; error_log %(folder)s/error.log;
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    access_log %(access)s;
    client_body_temp_path %(folder)s/b; proxy_temp_path %(folder)s/p; fastcgi_temp_path %(folder)s/f;
    uwsgi_temp_path %(folder)s/u; scgi_temp_path %(folder)s/s;
    keepalive_requests 1000000000; tcp_nodelay on;
    upstream content {
        server 127.0.0.1:%(upstream)d;
        keepalive 1024; keepalive_requests 1000000000; keepalive_time 24h;
    }
    %(http)s
    server {
        listen 127.0.0.1:%(port)d backlog=4096;
        location / {
            %(location)s
            proxy_pass http://content; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-ID $request_id;
            proxy_request_buffering off; client_max_body_size 10m; client_body_buffer_size 128k;
            proxy_buffer_size 8k; proxy_buffers 16 16k; proxy_busy_buffers_size 64k; proxy_max_temp_file_size 0;
        }
    }
}
"""
_NGINX_HTTP = """
    js_import jwt from %(folder)s/jwt.js; js_set $user jwt.user;
    map $http_origin $allowed { %(origin)s $http_origin; default ""; }
    limit_req_zone $user zone=user:16m rate=%(rate)dr/s;
    limit_req_zone $binary_remote_addr zone=ip:16m rate=%(rate)dr/s;
    limit_req_zone $proxy_host zone=endpoint:1m rate=%(rate)dr/s;
    limit_req_zone $server_port zone=all:1m rate=%(rate)dr/s;
"""
_NGINX_LOCATION = """
            if ($user = "") { return 401; }
            limit_req_status 429;
            limit_req zone=user burst=%(rate)d nodelay; limit_req zone=ip burst=%(rate)d nodelay;
            limit_req zone=endpoint burst=%(rate)d nodelay; limit_req zone=all burst=%(rate)d nodelay;
            add_header Access-Control-Allow-Origin $allowed always; add_header Vary Origin always;
            proxy_set_header X-User-ID $user;
"""


def _nginx_missing() -> str:
    if not Path(program("nginx")).exists():
        return "not installed (Debian: nginx-light libnginx-mod-http-js)"
    if not any(map(Path.exists, map(Path, _NJS))):
        return "its njs module is not installed (Debian: libnginx-mod-http-js)"
    return ""


def _nginx(place: Place, *, is_full: bool) -> Command:
    values: dict[str, object] = {
        "folder": place.folder, "port": place.port, "upstream": place.upstream, "rate": place.rate, "secret": SECRET,
        "origin": ORIGIN, "http": "", "location": "", "load_module": "", "access": "off",
    }  # fmt: skip
    if is_full:
        (place.folder / "jwt.js").write_text(_JWT_JS % values)
        module = next(path for path in _NJS if Path(path).exists())
        values |= {
            "http": _NGINX_HTTP % values,
            "location": _NGINX_LOCATION % values,
            "load_module": f"load_module {module};",
            "access": f"{place.folder}/access.log combined buffer=64k flush=1s",
        }
    path = place.folder / "nginx.conf"
    path.write_text(_NGINX % values)
    return Command([program("nginx"), "-c", str(path), "-p", str(place.folder)])


# HAProxy

_HAPROXY = """
global
    nbthread 1
    maxconn 8000
    %(log_to)s
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 3s
    http-reuse always
    %(log)s
%(tables)s
frontend front
    bind 127.0.0.1:%(port)d backlog 4096
    %(front)s
    http-request set-header X-Forwarded-For %%[src]
    http-request set-header X-Request-ID %%[uuid]
    default_backend content
backend content
    server one 127.0.0.1:%(upstream)d %(server)s
"""
_HAPROXY_TABLES = """
backend users
    stick-table type string len 64 size 1m expire 10m store http_req_rate(10s)
backend addresses
    stick-table type ip size 1m expire 10m store http_req_rate(10s)
backend endpoints
    stick-table type string len 64 size 10k expire 10m store http_req_rate(10s)
"""
_HAPROXY_FRONT = """
    http-request set-var(txn.token) http_auth_bearer
    http-request set-var(txn.user) var(txn.token),jwt_payload_query('$.sub')
    http-request set-var(txn.exp) var(txn.token),jwt_payload_query('$.exp','int')
    http-request set-var(txn.now) date()
    http-request deny deny_status 401 unless { var(txn.token),jwt_header_query('$.alg') -m str HS256 }
    http-request deny deny_status 401 unless { var(txn.token),jwt_verify("HS256","%(secret)s") -m int 1 }
    http-request deny deny_status 401 if { var(txn.exp),sub(txn.now) -m int lt 0 }
    http-request track-sc0 var(txn.user) table users
    http-request track-sc1 src table addresses
    http-request track-sc2 fe_name table endpoints
    http-request deny deny_status 429 if { sc_http_req_rate(0) gt %(rate)d0 }
    http-request deny deny_status 429 if { sc_http_req_rate(1) gt %(rate)d0 }
    http-request deny deny_status 429 if { sc_http_req_rate(2) gt %(rate)d0 }
    http-request deny deny_status 429 if { fe_req_rate gt %(rate)d }
    http-request set-header X-User-ID %%[var(txn.user)]
    http-request set-var(txn.origin) req.hdr(origin)
    http-response set-header Access-Control-Allow-Origin %%[var(txn.origin)] if { var(txn.origin) -m str %(origin)s }
    http-response add-header Vary Origin
"""


def _haproxy(place: Place, *, is_full: bool) -> Command:
    values: dict[str, object] = {
        "port": place.port, "upstream": place.upstream, "rate": place.rate, "secret": SECRET, "origin": ORIGIN,
        "tables": "", "front": "", "log": "", "log_to": "", "server": "",
    }  # fmt: skip
    if is_full:
        values |= {
            "tables": _HAPROXY_TABLES,
            "front": _HAPROXY_FRONT % values,
            "log_to": "log stdout format raw local0",  # a file: what it is started with
            "log": "log global\n    option httplog",
            "server": "check inter 60s observe layer7 error-limit 5 on-error mark-down",
        }
    path = place.folder / "haproxy.cfg"
    path.write_text(_HAPROXY % values)
    return Command([program("haproxy"), "-db", "-f", str(path)])


# Caddy

_CADDY = """
{
    admin off
    auto_https off
    log {
        level ERROR
    }
}
:%(port)d {
    bind 127.0.0.1
    %(full)s
    reverse_proxy 127.0.0.1:%(upstream)d {
        transport http {
            keepalive_idle_conns 2048
            keepalive_idle_conns_per_host 2048
        }
        %(breaker)s
    }
}
"""
_CADDY_FULL = """
    log {
        output file %(folder)s/access.log {
            roll_disabled
        }
    }
    @foreign header Origin %(origin)s
    header @foreign Access-Control-Allow-Origin %(origin)s
    header +Vary Origin
"""


def _caddy(place: Place, *, is_full: bool) -> Command:
    values: dict[str, object] = {
        "port": place.port,
        "upstream": place.upstream,
        "folder": place.folder,
        "origin": ORIGIN,
    }
    breaker = "fail_duration 60s\n        max_fails 5\n        unhealthy_status 502 503 504"
    values |= {"full": _CADDY_FULL % values if is_full else "", "breaker": breaker if is_full else ""}
    path = place.folder / "Caddyfile"
    path.write_text(_CADDY % values)
    environment = {
        "GOMAXPROCS": "1",
        "HOME": str(place.folder),
        "XDG_DATA_HOME": str(place.folder),
        "XDG_CONFIG_HOME": str(place.folder),
    }
    return Command([program("caddy"), "run", "--config", str(path), "--adapter", "caddyfile"], environment)


PEERS = (
    Peer(
        "nginx",
        _nginx_missing,
        version(lambda: program("nginx"), "-v"),
        lambda place: _nginx(place, is_full=False),
        lambda place: _nginx(place, is_full=True),
        (Duty.JWT, Duty.LIMITS, Duty.CORS, Duty.LOG),
        "njs for the JWT, limit_req, a buffered access log; max_fails is ignored where there is one server",
    ),
    Peer(
        "HAProxy",
        absent("haproxy", "Debian: haproxy"),
        version(lambda: program("haproxy"), "-v"),
        lambda place: _haproxy(place, is_full=False),
        lambda place: _haproxy(place, is_full=True),
        (Duty.JWT, Duty.LIMITS, Duty.CORS, Duty.BREAKER, Duty.LOG),
        "jwt_verify, stick tables, observe layer7, httplog",
    ),
    Peer(
        "Caddy",
        absent("caddy", "Debian: caddy"),
        version(lambda: program("caddy"), "version"),
        lambda place: _caddy(place, is_full=False),
        lambda place: _caddy(place, is_full=True),
        (Duty.CORS, Duty.BREAKER, Duty.LOG),
        "JWT and limits take plugins",
    ),
)
