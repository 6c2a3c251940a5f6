"""Settings become the values that the rooms take."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest

from engadi_gateway.gateway import assembly
from engadi_gateway.net.context import RetryPolicy, Timeouts
from engadi_gateway.net.pool import PoolLimits
from engadi_gateway.pipeline.circuit import Thresholds
from engadi_gateway.pipeline.claims import IdentityPolicy
from engadi_gateway.settings.load import Settings
from engadi_gateway.wire.request import HeadLimits

SETTINGS = Settings.of(jwt_secret_key="k" * 32)


def test_what_the_rooms_take_by_themselves_is_what_the_table_of_options_says() -> None:
    assert assembly.timeouts(SETTINGS) == Timeouts()
    assert assembly.retry_policy(SETTINGS) == RetryPolicy()
    assert assembly.pool_limits(SETTINGS) == PoolLimits()
    assert assembly.head_limits(SETTINGS) == HeadLimits()
    assert assembly.thresholds(SETTINGS) == Thresholds()
    assert assembly.identity_policy(SETTINGS) == IdentityPolicy()


@pytest.mark.parametrize(
    ("files", "most"), [(resource.RLIM_INFINITY, 900), (10_000, 900), (1_032, 666), (100, 45), (20, 8)]
)
def test_there_are_seats_for_whom_there_are_three_files_to_two(
    files: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, values={**SETTINGS.values, "server_max_connections": 900})
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    assert assembly.seats(settings).most == most
    if most == 900:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (assembly.files_wanted(settings),) * 2)
        assert assembly.seats(settings).most == 900, "as many files as it asks for are enough"


def test_a_running_gateway_takes_no_other_address_and_no_tls_instead_of_plain_text() -> None:
    wanted = Settings.of(
        jwt_secret_key="k" * 32, server_port=1, server_tls_certificate="c", server_tls_key="k", log_flush_rows=7
    )
    taken = assembly.pinned(wanted, SETTINGS)
    assert (taken.server_port, taken.server_tls_certificate, taken.log_flush_rows) == (8000, "", 7)
    assert assembly.waiting_for_a_restart(SETTINGS, wanted) == ["server.port", "server.tls_certificate"]
    renewed = replace(wanted, values={**wanted.values, "server_tls_certificate": "another"})
    assert assembly.pinned(renewed, wanted).server_tls_certificate == "another"
    assert assembly.waiting_for_a_restart(wanted, renewed) == []
