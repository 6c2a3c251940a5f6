"""README.md and gateway.ini against the tables they describe, and the first screen of the README against `.ci/run`."""

from __future__ import annotations

import asyncio
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from engadi_gateway.cli.commands import EX_CONFIG, build_parser
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.options import OPTIONS
from tests.docs import ROOT, filled, ini_text
from tests.harness import ADMIN, ask, json_of, running
from tests.processes import PYTHON, environment_of

README = (ROOT / "README.md").read_text()


def test_the_tables_of_the_readme_are_the_tables_of_the_code() -> None:
    assert filled(README) == README, "python -m tests.docs writes them anew"


def test_gateway_ini_has_every_option_at_its_default() -> None:
    text = (ROOT / "gateway.ini").read_text()
    assert text == ini_text(), "python -m tests.docs writes it anew"
    uncommented = re.sub(r"(?m)^;(?=[a-z_-]+ =)", "", text)
    assert Settings.load(uncommented.replace("content = /healthz", "")).values == Settings.load("").values


def test_every_option_has_a_sentence() -> None:
    assert all(option.help for option in OPTIONS)


def test_every_word_of_a_choice_can_be_read_before_it_is_needed() -> None:
    choices = [option for option in OPTIONS if len(option.words) > 1]
    assert {"jwt.mode", "jwt.public_routes", "log.access", "server.underscore_headers"} <= {one.name for one in choices}
    ini = (ROOT / "gateway.ini").read_text()
    for option in choices:
        (row,) = re.findall(rf"(?m)^\| `\[{option.section}\] {option.key}` .*$", README)
        (comment,) = re.findall(rf"(?m)^\[{option.section}\](?:\n.+)*?\n; (.*)\n;{option.key} =", ini)
        for word in option.words:
            assert (f"`{word}`" in row.partition("one of")[2], word in comment) == (True, True), (option.name, word)


def test_every_default_that_could_be_another_has_its_reason() -> None:
    """Numbers, durations, sizes, yes or no, choices; names, paths and lists of one's own have none."""
    named = {"name", "path", "url", "role_claim", "allow_methods", "allow_headers", "expose_headers"}
    without = {option.name for option in OPTIONS if option.default and not option.why and option.key not in named}
    assert not without


def test_the_writes_that_the_readme_shows_are_taken(tmp_path: Path) -> None:
    shown = re.findall(r"http://127\.0\.0\.1:8000(/api/v1/gateway/\S+) \\\n  -d '(.*)'", README)
    assert len(shown) == 2

    async def run() -> None:
        async with running(tmp_path) as gateway:
            for path, body in shown:
                reply = await ask(gateway.port, "POST", path, bearer=ADMIN, body=json.loads(body))
                assert reply.status == 201, reply.body

    asyncio.run(run())


def test_the_unit_starts_a_gateway_and_does_not_start_again_what_cannot_go_well() -> None:
    unit = re.search(r"```ini\n# /etc/systemd/(.*?)```", README, re.DOTALL)
    assert unit is not None
    service = dict(line.split("=", 1) for line in unit[1].splitlines() if re.match(r"[A-Z]\w+=", line))
    python, program, *arguments = service["ExecStart"].split()
    assert (Path(python).name, Path(program).name) == ("python", "run.py")
    assert build_parser().parse_args(arguments).config == "/etc/engadi-gateway/gateway.ini"
    with pytest.raises(SystemExit) as usage:
        build_parser().parse_args(["--no-such-option"])
    assert service["RestartPreventExitStatus"].split() == [str(EX_CONFIG), str(usage.value.code)]
    settings = Settings.load()
    assert float(service["TimeoutStopSec"]) > settings.gateway_drain_delay + settings.gateway_drain_timeout


def test_the_two_commands_are_on_the_first_screen() -> None:
    screen = "\n".join(README.splitlines()[:40])
    assert "python run.py --demo" in screen
    assert re.search(r"(?m)^python -m pip install .*&& python -m pytest$", screen)


def test_the_embedding_example_runs_as_a_file(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    (tmp_path / "embedding.py").write_text(example[1])

    async def run() -> None:
        process = await asyncio.create_subprocess_exec(
            PYTHON,
            "-u",
            "embedding.py",
            cwd=tmp_path,
            env=environment_of(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            port = int(await asyncio.wait_for(process.stdout.readline(), 20))
            assert json_of(await ask(port, "GET", "/health"))["services"].keys() == {"shop"}
        finally:
            process.kill()
            await process.communicate()

    asyncio.run(run())


def test_nothing_else_stands_at_the_top_level() -> None:
    allowed = {
        "engadi_gateway",
        "tests",
        "gateway.ini",
        "run.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    }
    produced = [pattern.rstrip("/") for pattern in (ROOT / ".gitignore").read_text().split()]
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in found if not any(fnmatch(name, pattern) for pattern in produced)} <= allowed
