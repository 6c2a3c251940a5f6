"""What a text of the settings means: a value, or a ValueError that says what was expected.

Durations take `ms s m h d`, sizes `KiB MiB GiB`; bare numbers are seconds or bytes.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_LONGEST_SOCKET_PATH = 107
#: What is in front of the IPv4 address in an IPv4-mapped one (RFC 4291 section 2.5.5.2).
_MAPPED_BITS = 96
#: No more digits than a float tells apart; of four hundred it makes infinity.
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-z]*)")


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
    return round(float(match[1]) * _DURATION_UNITS[match[2]], 9)  # 26 ms are not 0.026000000000000002 s


def parse_size_bytes(text: str) -> int:
    match = _QUANTITY.fullmatch(text.strip().lower())
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError("expected a size such as 65536, 64KiB, 10MiB or 1GiB")
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def parse_str(text: str) -> str:
    return text.strip()


def parse_socket_path(text: str) -> str:
    """Of a unix socket, or nothing."""
    path = text.strip()
    if len(path.encode()) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"longer than a unix socket's path may be: {_LONGEST_SOCKET_PATH} bytes (unix(7))")
    return path


def parse_path(text: str) -> str:
    if not re.fullmatch(r"/[!-~]*", text.strip()):
        raise ValueError("expected a path that begins with /")
    return text.strip()


def parse_hosts(text: str) -> tuple[str, ...]:
    """Addresses to listen on, or names that have one."""
    hosts = parse_list(text)
    for host in hosts:
        if ":" in host or re.fullmatch(r"[0-9.]+", host):
            ipaddress.ip_address(host)
        elif not _NAME.fullmatch(host):
            raise ValueError(f"no address and no host name: {host}")
    return hosts


def parse_list(text: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[,\s]+", text.strip()) if part)


def parse_algorithms(text: str) -> tuple[str, ...]:
    """Names of RFC 7518 section 3.1 and RFC 8037, at least one; never `none`."""
    names = parse_list(text)
    if not names or not all(re.fullmatch(r"(HS|RS|PS|ES)(256|384|512)|EdDSA", name) for name in names):
        raise ValueError("expected HS256 or others of HS, RS, PS, ES 256/384/512, EdDSA")
    return names


def parse_networks(text: str) -> tuple[IpNetwork, ...]:
    return tuple(_plain_network(part) for part in parse_list(text))


def _plain_network(text: str) -> IpNetwork:
    """As addresses of clients are compared: IPv4 for IPv4-mapped ones, or it would never match."""
    network = ipaddress.ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


_NO_URL = re.compile(r"[^\x21-\x7e]|%(?![0-9A-Fa-f]{2})")
_NAME = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?"
)
_LONGEST_NAME = 253


def parse_url(text: str) -> str:
    """An http(s) base URL without query, fragment or user; a last slash is cut.

    Its host is an address or a name that can be looked up (RFC 1123 section 2.1; and `_`, of container networks).
    """
    url = text.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its words repeat the text, which may hold a password
        raise ValueError("expected http://host[:port][/path] or https://...") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected http://host[:port][/path] or https://...")
    if parts.query or parts.fragment or parts.username is not None or _NO_URL.search(url):
        raise ValueError("a URL without user, query, fragment, white space or a stray %; other than ASCII is encoded")
    if "[" in parts.netloc:
        ipaddress.IPv6Address(parts.hostname)
    elif re.fullmatch(r"[0-9.]+", parts.hostname):
        ipaddress.IPv4Address(parts.hostname)
    elif len(parts.hostname) > _LONGEST_NAME or not _NAME.fullmatch(parts.hostname):
        raise ValueError(f"no host name: {parts.hostname[:_LONGEST_NAME]}")
    if port == 0:
        raise ValueError("no port: 0")
    return url.rstrip("/")


def parse_optional_url(text: str) -> str:
    return parse_url(text) if text.strip() else ""


def parse_address(text: str) -> str:
    """`host:port`, an IPv6 host in brackets; or nothing."""
    address = text.strip()
    host, _, port = address.rpartition(":")
    is_port = re.fullmatch(r"[0-9]{1,5}", port) is not None and int(port) <= 65535
    if address and not (is_port and re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host)):
        raise ValueError("expected host:port, such as 127.0.0.1:8001 or [::1]:8001")
    return address


def parse_sqlite_path(text: str) -> str:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`, or a bare path; another scheme is a fault."""
    scheme, separator, path = text.strip().partition("://")
    if separator and scheme.split("+")[0] != "sqlite":
        raise ValueError(f"only sqlite:/// is supported, not {scheme}://")
    name = path.removeprefix("/") if separator else text.strip()
    if name in {"", ":memory:"} or (separator and not path.startswith("/")):
        raise ValueError("expected a file: sqlite:///relative.db or sqlite:////absolute/path.db")
    return name


def parse_optional_sqlite_path(text: str) -> str:
    return parse_sqlite_path(text) if text.strip() else ""


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`claim:Header-Name, ...` as pairs."""
    pairs = []
    for part in parse_list(text):
        left, separator, right = part.partition(":")
        if not (separator and left and re.fullmatch(r"[A-Za-z0-9-]+", right)):
            raise ValueError("expected claim:Header-Name, claim:Header-Name")
        pairs.append((left, right))
    if len({right.lower() for _, right in pairs}) < len(pairs):
        raise ValueError("two claims for one header")
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these words, in any case."""

    words: tuple[str, ...]

    def __call__(self, text: str) -> str:
        found = {word.lower(): word for word in self.words}.get(text.strip().lower())
        if found is None:
            raise ValueError(f"expected one of {', '.join(self.words)}")
        return found


def one_of(*words: str) -> OneOf:
    return OneOf(words)


def as_text(value: object) -> str:
    """A value as the settings would say it: durations in seconds, sizes in bytes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(":".join(part) if isinstance(part, tuple) else str(part) for part in value)
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
