"""TLS on both sides: the listeners' certificate and when it ends, and how upstreams are verified."""

from __future__ import annotations

import ssl

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.settings import Settings

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
#: X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which the ssl module has no name for.
_WHATEVER_THE_TIME = 0x200000


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """The listeners' TLS, or None.

    Raises:
        ConfigurationError: the files cannot be used.
    """
    if not settings.server_tls_certificate:
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
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        detail = f"{certificate} with {key} cannot be used: {_said(error)}"
        raise ConfigurationError([Fault("server.tls_certificate", detail)]) from None
    context.minimum_version = _VERSIONS[settings.server_tls_min_version]


def client_tls(settings: Settings) -> ssl.SSLContext:
    """TLS towards upstreams: verified, always.

    Raises:
        ConfigurationError: the file of authorities cannot be read.
    """
    path = settings.upstream_tls_ca_file
    try:
        return ssl.create_default_context(cafile=path or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError([Fault("upstream.tls_ca_file", f"{path} cannot be used: {_said(error)}")]) from None


def _said(error: OSError) -> str:
    """An SSLError's reason is in its text; of others the text would name no file either."""
    return str(error) if isinstance(error, ssl.SSLError) else error.strerror or str(error)


def certificate_ends_at(context: ssl.SSLContext, settings: Settings) -> float | None:
    """Epoch seconds at which the listeners' certificate expires; None where nobody can tell.

    The standard library reads a certificate's dates in a handshake only, so one is held in memory, with a client that
    takes exactly this certificate, be it expired or somebody else's.
    """
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _WHATEVER_THE_TIME
    try:
        trust.load_verify_locations(settings.server_tls_certificate)
        dates = _certificate_in_memory(context, trust)
        return float(ssl.cert_time_to_seconds(str(dates["notAfter"])))
    except (OSError, ssl.SSLError, KeyError, ValueError):
        return None


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
