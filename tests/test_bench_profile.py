"""The profile's parts: which stage a stack belongs to, and what is made of the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.peers import ROOT
from tests.bench.profile import OTHER, STAGES, functions, report, shares, stage_of
from tests.bench.sampler import BEGIN, END

_SELECTOR = "/usr/lib/python3.11/asyncio/selector_events.py"
_CLIENT = "/x/engadi_gateway/net/client.py"


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ([("/lib/site-packages/h11/_readers.py", "f"), ("/x/engadi_gateway/wire/request.py", "g")], "request: h11"),
        ([("/lib/python3.11/re.py", "f"), ("/x/engadi_gateway/wire/target.py", "g")], "request: target"),
        ([(_SELECTOR, "write"), (_CLIENT, "write")], "send"),
        ([(_CLIENT, "data_received"), (_SELECTOR, "_read_ready__data_received")], "client connection"),
        ([(_SELECTOR, "_read_ready__data_received"), ("/lib/python3.11/asyncio/events.py", "_run")], "recv"),
        ([("/lib/python3.11/selectors.py", "select"), ("/lib/python3.11/asyncio/base_events.py", "_run_once")], "loop"),
        ([("/lib/python3.11/json.py", "dumps")], OTHER),
    ],
)
def test_a_stack_belongs_to_the_innermost_stage(stack: list[tuple[str, str]], expected: str) -> None:
    assert stage_of(stack) == expected


def test_stages_name_files_that_there_are() -> None:
    parts = [part for _, part, _ in STAGES if part.startswith(("engadi_gateway/", "tests/"))]
    assert len(parts) > 20
    assert all((ROOT / part).exists() for part in parts)


def test_every_file_of_a_request_has_a_stage_of_its_own() -> None:
    """Otherwise a new file's cost would vanish in what is left."""
    files = [*ROOT.glob("engadi_gateway/pipeline/*.py"), *ROOT.glob("engadi_gateway/wire/*.py")]
    nameless = [path.name for path in files if stage_of([(str(path), "f")]) in {"other of ours", OTHER}]
    assert nameless == ["__init__.py"]  # the wire's, which is empty


def test_weights_are_scaled_to_what_was_spent() -> None:
    stacks = [([(_CLIENT, "a")], 30), ([(_SELECTOR, "write"), (_CLIENT, "b")], 10)]
    assert shares(stacks) == {"send": 10, "client connection": 30}
    assert functions(stacks, 1) == [("net/client.py:a", 30)]
    document = {"samples": 2, "process_ns": 1_000_000, "threads": {"engadi-writer": 200_000}, "stacks": stacks}
    text = report(document, requests=100, most=1)
    assert "| send | 2.00 | 20.0 % |" in text
    assert "| client connection | 6.00 | 60.0 % |" in text
    assert "| thread: engadi-writer | 2.00 | 20.0 % |" in text
    assert "| all | 10.00 | 100 % |" in text
    assert "| `net/client.py:a` | 6.00 | 60.0 % |" in text


def test_the_sampler_sees_where_the_main_thread_is(tmp_path: Path) -> None:
    found = tmp_path / "stacks.json"
    (tmp_path / "gateway.ini").write_text("[server]\nhost = 127.0.0.1\nport = 0\n[health]\ninterval = 0\n")
    command = [sys.executable, "-m", "tests.bench.sampler", str(found), "serve", "--config", "gateway.ini"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            while "listening on" not in process.stderr.readline():
                assert process.poll() is None
            deadline = time.monotonic() + 20
            process.send_signal(BEGIN)
            while not found.with_suffix(".begun").exists():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.01)
            process.send_signal(END)
            while not found.exists():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.01)
            document = json.loads(found.read_text())
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode == 0
    assert document["process_ns"] >= 0
    assert all(weight >= 0 for _, weight in document["stacks"])
