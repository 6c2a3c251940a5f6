"""TLS on both sides: the listeners' certificate and when it ends, and how upstreams are verified."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.settings.load import Settings

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
#: X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which the ssl module has no name for.
_WHATEVER_THE_TIME = 0x200000
_WARNED_BEFORE_S = 14 * 86_400.0


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """The listeners' TLS, or None.

    Raises:
        ConfigurationError: the files cannot be used.
    """
    if not settings.server_tls_certificate or not settings.server_tls_key:  # the latter is a fault of the settings
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    renew_tls(context, settings)
    return context


def renew_tls(context: ssl.SSLContext, settings: Settings) -> None:
    """Read certificate and key into a context; handshakes from now on use them.

    Raises:
        ConfigurationError: the files cannot be used; the context may be left with half of them, unless they were just
            tried with `server_tls`.
    """
    certificate, key = settings.server_tls_certificate, settings.server_tls_key
    faults = _unreadable("server.tls_certificate", certificate) + _unreadable("server.tls_key", key)
    if faults:
        raise ConfigurationError(faults)
    try:
        context.load_cert_chain(certificate, key, password="")  # or OpenSSL would ask the terminal, and wait for it
    except OSError as error:  # an SSLError is one
        wanted = "expected a PEM chain, the server's certificate first, and its key without a passphrase"
        detail = f"{certificate} with {key} cannot be used: {error}; {wanted}"
        raise ConfigurationError([Fault("server.tls_certificate", detail)]) from None
    context.minimum_version = _VERSIONS[settings.server_tls_min_version]


def client_tls(settings: Settings) -> ssl.SSLContext:
    """TLS towards upstreams: verified, always.

    Raises:
        ConfigurationError: the file of authorities cannot be read.
    """
    path = settings.upstream_tls_ca_file
    faults = _unreadable("upstream.tls_ca_file", path) if path else []
    if faults:
        raise ConfigurationError(faults)
    try:
        return ssl.create_default_context(cafile=path or None)
    except OSError as error:
        raise ConfigurationError([Fault("upstream.tls_ca_file", f"{path} cannot be used: {error}")]) from None


def _unreadable(option: str, path: str) -> list[Fault]:
    try:
        with Path(path).open("rb"):
            return []
    except OSError as error:
        return [Fault(option, f"{path} cannot be read: {error.strerror}")]


@dataclass(frozen=True, slots=True)
class Validity:
    """From when, and until when, a certificate is good, in epoch seconds."""

    begins_at: float
    ends_at: float


def warning_of(validity: Validity | None, now: float) -> str:
    """What whoever runs it should know of a certificate that is used; "" where all is well."""
    if validity is None:
        return "until when it is good is not known"
    begins, ends = (
        f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}" for at in (validity.begins_at, validity.ends_at)
    )
    if validity.ends_at < now:
        return f"has expired: it was good until {ends}"
    if validity.begins_at > now:
        return f"is not good before {begins}"
    return f"is good until {ends} only" if validity.ends_at < now + _WARNED_BEFORE_S else ""


def validity_of(context: ssl.SSLContext, settings: Settings) -> Validity | None:
    """Of the listeners' certificate; None where nobody can tell.

    The standard library reads a certificate's dates in a handshake only, so one is held in memory, with a client that
    takes exactly this certificate, be it expired or somebody else's.
    """
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _WHATEVER_THE_TIME
    try:
        trust.load_verify_locations(settings.server_tls_certificate)
        dates = _certificate_in_memory(context, trust)
        begins_at, ends_at = (float(ssl.cert_time_to_seconds(str(dates[name]))) for name in ("notBefore", "notAfter"))
    except (OSError, KeyError, ValueError):
        return None
    return Validity(begins_at, ends_at)


def _certificate_in_memory(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, object]:
    """What a client sees of the server's certificate."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True))
    for _ in range(4):  # flights of a handshake
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(ends[0].getpeercert() or {})
