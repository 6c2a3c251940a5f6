"""The listeners' certificate: what is wrong with it is said with its name, and when it ends is known."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from engadi_gateway.errors import ConfigurationError
from engadi_gateway.gateway.tls import Validity, client_tls, server_tls, validity_of, warning_of
from engadi_gateway.settings.load import Settings
from tests.certificates import certify
from tests.harness import SECRET, running
from tests.processes import PYTHON, ROOT, environment_of

DAY_S = 86_400


def _settings(folder: Path, **values: str) -> Settings:
    files = {"server_tls_certificate": str(folder / "cert.pem"), "server_tls_key": str(folder / "key.pem")}
    return Settings.of({}, jwt_secret_key=SECRET, **{**files, **values})


@pytest.mark.parametrize("days", [100.0, 1.0, -3.0], ids=["good", "good for a day", "expired"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_when_a_certificate_ends_is_known(tmp_path: Path, days: float, version: str) -> None:
    certify(tmp_path, "gateway.test", days)
    settings = _settings(tmp_path, server_tls_min_version=version)
    context = server_tls(settings)
    assert context is not None
    validity = validity_of(context, settings)
    assert validity is not None
    assert abs(validity.ends_at - time.time() - days * DAY_S) < 600
    assert abs(validity.begins_at - time.time() + 30 * DAY_S) < 600


def test_an_end_that_is_not_known_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certify(tmp_path, "gateway.test", usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    files = {"server_tls_certificate": str(tmp_path / "cert.pem"), "server_tls_key": str(tmp_path / "key.pem")}

    async def run() -> None:
        async with running(tmp_path, **files) as gateway:
            assert gateway.state()["certificate_ends_at"] is None

    asyncio.run(run())
    assert f"{tmp_path / 'cert.pem'} until when it is good is not known" in caplog.text


@pytest.mark.parametrize(
    ("validity", "said"),
    [
        (None, "until when it is good is not known"),
        (Validity(0, 100), "has expired: it was good until 1970-01-01T00:01:40Z"),
        (Validity(300, 900), "is not good before 1970-01-01T00:05:00Z"),
        (Validity(0, 201), "is good until 1970-01-01T00:03:21Z only"),
        (Validity(0, 200 + 15 * DAY_S), ""),
    ],
)
def test_what_is_said_of_a_certificate(validity: Validity | None, said: str) -> None:
    assert warning_of(validity, 200.0) == said


def test_what_has_no_dates_is_not_known(tmp_path: Path) -> None:
    certify(tmp_path, "gateway.test")
    settings = _settings(tmp_path)
    context = server_tls(settings)
    assert context is not None
    (tmp_path / "cert.pem").write_text("gone")
    assert validity_of(context, settings) is None


def test_without_a_certificate_there_is_no_tls() -> None:
    assert server_tls(Settings.of({}, jwt_secret_key=SECRET)) is None


def test_a_fault_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certify(tmp_path, "gateway.test")
    certify(tmp_path / "other", "other.test")
    settings = _settings(tmp_path, server_tls_key=str(tmp_path / "other" / "key.pem"))
    with pytest.raises(
        ConfigurationError, match=r"cert\.pem with .*other/key\.pem cannot be used: .*(?i:key.values.mismatch)"
    ):
        server_tls(settings)
    with pytest.raises(ConfigurationError) as raised:
        server_tls(_settings(tmp_path, server_tls_certificate="/no/cert.pem", server_tls_key="/no/key.pem"))
    assert [(fault.pointer, fault.detail) for fault in raised.value.faults] == [
        ("server.tls_certificate", "/no/cert.pem cannot be read: No such file or directory"),
        ("server.tls_key", "/no/key.pem cannot be read: No such file or directory"),
    ]
    with pytest.raises(ConfigurationError, match=r"none\.pem cannot be read: No such file or directory"):
        client_tls(_settings(tmp_path, upstream_tls_ca_file=str(tmp_path / "none.pem")))


def test_an_encrypted_key_is_a_fault_and_nobody_is_asked_for_its_passphrase(tmp_path: Path) -> None:
    """On a terminal of its own, where OpenSSL would ask, and stop everything until somebody answers."""
    certify(tmp_path, "localhost")
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    (tmp_path / "gateway.ini").write_text("[server]\ntls_certificate = cert.pem\ntls_key = key.pem\n")
    ours, theirs = os.openpty()
    program = (
        "import os, runpy, sys; os.open(sys.argv.pop(), os.O_RDWR); runpy.run_path(sys.argv.pop(), None, '__main__')"
    )
    done = subprocess.run(
        [PYTHON, "-c", program, "--check", str(ROOT / "run.py"), os.ttyname(theirs)],
        check=False, cwd=tmp_path, env=environment_of(), capture_output=True, text=True, timeout=30, start_new_session=True,
    )  # fmt: skip
    for descriptor in (ours, theirs):
        os.close(descriptor)
    assert done.returncode == 78
    assert done.stderr.startswith("server.tls_certificate: cert.pem with key.pem cannot be used: ")
    assert done.stderr.endswith("and its key without a passphrase\n")


@pytest.mark.parametrize(("days", "is_said"), [(15.0, False), (13.0, True), (-1.0, True)])
def test_a_certificate_that_ends_soon_is_said_at_the_start_and_again_at_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: float, is_said: bool
) -> None:
    certify(tmp_path, "gateway.test", days)
    files = {"server_tls_certificate": str(tmp_path / "cert.pem"), "server_tls_key": str(tmp_path / "key.pem")}

    async def run() -> None:
        with caplog.at_level(logging.WARNING, "engadi"):
            async with running(tmp_path, **files) as gateway:
                first = gateway.state()["certificate_ends_at"]
                assert abs(first - time.time() - days * DAY_S) < 600
                certify(tmp_path, "gateway.test", 99.0)
                await gateway.reload(gateway.settings)
                assert gateway.state()["certificate_ends_at"] > first
                certify(tmp_path, "gateway.test", days)
                await gateway.reload(gateway.settings)

    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records if "server.tls_certificate: " in record.getMessage()]
    assert len(said) == 2 * is_said
    assert all(str(tmp_path / "cert.pem") in line for line in said)
