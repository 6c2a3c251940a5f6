"""The listeners' certificate: what is wrong with it is said with its name, and when it ends is known."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from engadi_gateway.errors import ConfigurationError
from engadi_gateway.settings import Settings
from engadi_gateway.tls import certificate_ends_at, client_tls, server_tls
from tests.certificates import certify
from tests.harness import SECRET, running

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
    ends_at = certificate_ends_at(context, settings)
    assert ends_at is not None
    assert abs(ends_at - time.time() - days * DAY_S) < 600


def test_an_end_that_is_not_known_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certify(tmp_path, "gateway.test", usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    files = {"server_tls_certificate": str(tmp_path / "cert.pem"), "server_tls_key": str(tmp_path / "key.pem")}

    async def run() -> None:
        async with running(tmp_path, **files) as gateway:
            assert gateway.state()["certificate_ends_at"] is None

    asyncio.run(run())
    assert f"until when {tmp_path / 'cert.pem'} is good is not known" in caplog.text


def test_what_has_no_dates_is_not_known(tmp_path: Path) -> None:
    certify(tmp_path, "gateway.test")
    settings = _settings(tmp_path)
    context = server_tls(settings)
    assert context is not None
    (tmp_path / "cert.pem").write_text("gone")
    assert certificate_ends_at(context, settings) is None


def test_without_a_certificate_there_is_no_tls() -> None:
    assert server_tls(Settings.of({}, jwt_secret_key=SECRET)) is None


def test_a_fault_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certify(tmp_path, "gateway.test")
    certify(tmp_path / "other", "other.test")
    cases = {
        "key values mismatch": {"server_tls_key": str(tmp_path / "other" / "key.pem")},
        "No such file or directory": {"server_tls_certificate": str(tmp_path / "none.pem")},
    }
    for said, values in cases.items():
        settings = _settings(tmp_path, **values)
        with pytest.raises(ConfigurationError) as raised:
            server_tls(settings)
        (fault,) = raised.value.faults
        assert fault.pointer == "server.tls_certificate"
        assert f"{settings.server_tls_certificate} with {settings.server_tls_key} cannot be used: " in fault.detail
        assert said in fault.detail.lower() or said in fault.detail
    with pytest.raises(ConfigurationError, match=r"none\.pem cannot be used: No such file or directory"):
        client_tls(_settings(tmp_path, upstream_tls_ca_file=str(tmp_path / "none.pem")))


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
    said = [record.getMessage() for record in caplog.records if "is good until" in record.getMessage()]
    assert len(said) == 2 * is_said
    assert all(str(tmp_path / "cert.pem") in line for line in said)
