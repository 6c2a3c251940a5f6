"""The secret key: who needs one, and the one that is made for development."""

from __future__ import annotations

from pathlib import Path

import pytest

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.gateway.secret import needs_own_secret, secret_faults, secret_path, with_secret
from engadi_gateway.settings.load import Settings


@pytest.mark.parametrize(("mode", "is_needed"), [("local", True), ("local-then-remote", True), ("remote", False)])
def test_who_leaves_tokens_to_the_auth_service_needs_no_key(mode: str, is_needed: bool) -> None:
    ini = f"[gateway]\nenvironment = production\n[jwt]\nmode = {mode}\n"
    found: list[Fault] = []
    Settings.load(ini, faults=found)
    assert [fault.pointer for fault in found] == ["jwt.secret_key"] * is_needed
    assert needs_own_secret(Settings.of(jwt_mode=mode)) == is_needed


def test_one_is_made_once_for_each_database_and_is_its_owners_alone(tmp_path: Path) -> None:
    one, other = (Settings.of(database_url=str(tmp_path / name)) for name in ("one.db", "other.db"))
    assert secret_faults(one) == []
    assert list(tmp_path.iterdir()) == [], "looking makes none"
    made, said = with_secret(one)
    assert "made a development key" in said
    assert secret_path(one).stat().st_mode & 0o777 == 0o600
    found, said = with_secret(one)
    assert "made a development key" not in said
    assert found.jwt_secret_key == made.jwt_secret_key != with_secret(other)[0].jwt_secret_key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.db.secret", "other.db.secret"]


def test_a_given_one_is_left_alone(tmp_path: Path) -> None:
    settings = Settings.of(database_url=str(tmp_path / "x.db"), jwt_secret_key="k" * 32)
    assert with_secret(settings) == (settings, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"half", b"\xff" * 64], ids=["empty", "half", "no text"])
def test_a_file_without_a_whole_key_is_a_fault_for_who_looks_too(tmp_path: Path, content: bytes) -> None:
    settings = Settings.of(database_url=str(tmp_path / "x.db"))
    secret_path(settings).write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        with_secret(settings)
    assert caught.value.faults == secret_faults(settings)
    assert [fault.pointer for fault in caught.value.faults] == ["jwt.secret_key"]
    assert secret_path(settings).read_bytes() == content, "it may be somebody's"
