"""What valgrind counts: what is started, what is read of it, and what is made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench import instructions
from tests.bench.accounting import ANYWHERE
from tests.bench.loads import LOADS
from tests.bench.peers import Command
from tests.bench.peers.registry import PEERS
from tests.bench.rounds import Plan

_LOG = """==7== Cachegrind, a high-precision tracing profiler
==7== Command: python run.py serve
==7==
==7== I   refs:      1,234,567
"""


def test_what_is_counted_is_read() -> None:
    assert instructions.counted(_LOG) == 1_234_567
    assert instructions.counted(_LOG + _LOG.replace("1,234,567", "3")) == 1_234_570, "a child's too"


def test_a_program_that_was_not_counted_has_no_figure() -> None:
    with pytest.raises(SystemExit, match="counted nothing: what it said"):
        instructions.counted("what it said\n")


def test_the_program_stays_the_same() -> None:
    command = instructions.under_valgrind(Command(["nginx", "-c", "x"], {"A": "b"}), Path("/tmp/log"))
    assert command.arguments[0] == "valgrind"
    assert command.arguments[-4:] == ["--log-file=/tmp/log", "nginx", "-c", "x"]
    assert command.environment == {"A": "b", "PYTHONHASHSEED": "0"}


def test_without_valgrind_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="valgrind is not installed"):
        instructions.main([])


def test_a_form_that_a_peer_has_not_has_no_figure() -> None:
    plan = Plan(1, 1.0, 0.0, ANYWHERE, ANYWHERE)
    assert instructions.a_request(LOADS["full"], PEERS["h11 alone"], 1, 2, plan) == ""


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_this_gateway_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    cores = ["--core", str(ANYWHERE), "--load-core", str(ANYWHERE)]
    instructions.main(["--loads", "bare", "--few", "64", "--many", "192", *cores])
    head, _, row = capsys.readouterr().out.splitlines()
    assert head == "| instructions a request | bare |"
    name, figure = row.strip("| ").split(" | ")
    assert name == "engadi"
    assert 50_000 < int(figure.replace(",", "")) < 5_000_000
