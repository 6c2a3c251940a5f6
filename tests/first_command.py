"""Runs the README's first command in a fresh copy of the tree, then its curl lines, and looks at what they print.

A command of its own (`python tests/first_command.py`), because it takes the real ports and installs from the registry.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
WAIT_S = 120.0
#: What the pasted lines must print, in their order.
EXPECTED = (
    r"HTTP/1\.1 200 OK",
    r"HTTP/1\.1 401 Unauthorized",
    r"HTTP/1\.1 200 OK(?s:.*)\"x-user-id\": \"alice\"",
    r"\"status\": \"healthy\"",
    r"\"path\": \"/api/v1/content/articles\"",
    r"200 .*429",
    r"\"verdict\": \"serve\"",
)


def blocks(readme: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)


def wait_until_it_serves() -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=1) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise SystemExit("the first command does not serve")


def main() -> int:
    first, _, pasted = blocks((ROOT / "README.md").read_text())[:3]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.db*", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONHOME"}}
        server = subprocess.Popen(["bash", "-c", first], cwd=copy, env=environment, start_new_session=True)
        try:
            wait_until_it_serves()
            script = f". .venv/bin/activate\n{pasted}"
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)
    print(done.stdout)
    position = 0
    for pattern in EXPECTED:
        match = re.search(pattern, done.stdout[position:])
        if match is None:
            print(f"not printed: {pattern}\n{done.stderr}", file=sys.stderr)
            return 1
        position += match.start() + 1
    print("the README's first command and the lines after it do what they say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
