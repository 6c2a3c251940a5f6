"""Access lines: their formats, and that nobody forges one or finds a secret in it."""

from __future__ import annotations

import json
import re
import threading

import pytest

from engadi_gateway.accesslog import AccessLog, Extra, as_json, combined, redacted
from engadi_gateway.model import LogRow

ROW = LogRow(
    "id-1",
    "GET",
    "/a",
    "content",
    "alice",
    "203.0.113.9",
    200,
    1.5,
    None,
    1_795_539_310_790,
    "ok",
    "r",
    1,
    0,
    42,
    1.0,
    7,
)
EXTRA = Extra("/a?b=c", "h", "1.1", "", "curl/8")


def test_combined() -> None:
    assert (
        combined(ROW, EXTRA)
        == '203.0.113.9 - alice [24/Nov/2026:16:55:10 +0000] "GET /a?b=c HTTP/1.1" 200 42 "-" "curl/8"'
    )


def test_json() -> None:
    document = json.loads(as_json(ROW, EXTRA))
    assert document["ts"] == "2026-11-24T16:55:10.790Z"
    assert (document["path"], document["status"], document["user"], document["revision"]) == ("/a?b=c", 200, "alice", 7)


@pytest.mark.parametrize("evil", ['"', "\n", "\r\n127.0.0.1 - - [", "\\", "\x1b[31m", "\x85", "\0"])
def test_no_line_is_forged(evil: str) -> None:
    row = ROW._replace(user_id=f"a{evil}b c")
    extra = Extra(f"/x{evil}", "h", "1.1", f"r{evil}", f"u{evil}")
    line = combined(row, extra)
    assert len(line.splitlines()) == 1
    assert line.count('"') == 6
    assert re.fullmatch(r"[ -~]*", line)
    assert len(as_json(row, extra).splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/a?token=x", "/a?token=***"),
        ("/a?b=1&Access_Token=x&c=2", "/a?b=1&Access_Token=***&c=2"),
        ("/a?api_key=x&sig=y&code=z&password=p&secret=s", "/a?api_key=***&sig=***&code=***&password=***&secret=***"),
        ("/token=x?b=1", "/token=x?b=1"),
        ("/a?monkey", "/a?monkey"),
    ],
)
def test_secrets_in_queries_are_hidden(target: str, shown: str) -> None:
    assert redacted(target) == shown


def test_a_pipe_that_nobody_reads_loses_lines_and_counts_them() -> None:
    blocked = threading.Event()
    log = AccessLog("combined", lambda text: blocked.wait(10))
    log._queue.maxsize = 2
    for _ in range(10):
        log._extras.append(EXTRA)
        log.write([ROW])
    assert log.lines_lost >= 7
    blocked.set()
    log.close()


def test_off_keeps_nothing() -> None:
    log = AccessLog("off")
    log.write([ROW])
    assert log._thread is None
