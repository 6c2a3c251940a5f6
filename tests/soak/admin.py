"""`python -m tests.soak admin`: schemathesis against the OpenAPI document of a running gateway, as an administrator.

It makes requests that fit the document, requests that do not, and sequences of them, and holds every answer against the
document; a 5xx is a finding. `tests/schemathesis.toml` says what it is not asked.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes import upstream
from tests.harness import ADMIN, ask, running

_CONFIGURATION = Path(__file__).parent.parent / "schemathesis.toml"


@dataclass
class Report:
    """`summary` is what schemathesis says of itself; `wrong` must be empty."""

    examples: int
    summary: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def soak(folder: Path, *, examples: int, seed: int) -> Report:
    """At most so many examples for each operation and phase."""
    report = Report(examples)
    async with upstream() as server, running(folder, server, server, limits_enabled=False) as gateway:
        document = f"http://127.0.0.1:{gateway.port}/api/v1/gateway/openapi.json"
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("st")), "--config-file", str(_CONFIGURATION), "run", document,
            "--header", f"Authorization: Bearer {ADMIN}", "--max-examples", str(examples), "--seed", str(seed),
            "--phases", "examples,coverage,fuzzing,stateful", "--suppress-health-check", "all", "--no-color",
            cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        lines = output.decode("utf-8", "replace").splitlines()
        start = next((number for number, line in enumerate(lines) if " SUMMARY " in line), 0)
        report.summary = [line.strip() for line in lines[start:] if " generated" in line or "Tested" in line]
        if process.returncode != 0 or not report.summary:
            report.wrong = [line for line in lines if line.strip()]
        if (await ask(gateway.port, "GET", "/api/v1/gateway/openapi.json", bearer=ADMIN)).status != 200:
            report.wrong.append("the gateway does not serve its document any more")
    return report
