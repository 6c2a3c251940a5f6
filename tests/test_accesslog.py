"""Access lines: their formats, and that nobody forges one or finds a secret in it."""

from __future__ import annotations

import asyncio
import json
import os
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from engadi_gateway.model import LogRow
from engadi_gateway.pipeline.exchange import Target
from engadi_gateway.record.accesslog import AccessLog, Extra, as_json, combined, extra_of, redacted
from engadi_gateway.record.lines import LineWriter
from tests.exchanges import exchange_of, head_of
from tests.fakes import upstream
from tests.harness import ask, running

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
EXTRA = Extra("/a?b=c", "h", "1.1", "", "curl/8", "0af7651916cd43dd8448eb211c80319c", "http://c:1")


def test_combined() -> None:
    assert (
        combined(ROW, EXTRA)
        == '203.0.113.9 - alice [24/Nov/2026:16:55:10 +0000] "GET /a?b=c HTTP/1.1" 200 42 "-" "curl/8"'
    )


def test_combined_has_a_dash_for_what_was_not_sent() -> None:
    assert combined(ROW, EXTRA._replace(referer="http://r/", user_agent="")).endswith(' 200 42 "http://r/" "-"')


def test_json() -> None:
    document = json.loads(as_json(ROW, EXTRA))
    assert document == {
        "ts": "2026-11-24T16:55:10.790Z",
        "level": "info",
        "msg": "request",
        "request_id": "id-1",
        "method": "GET",
        "host": "h",
        "path": "/a?b=c",
        "route": "r",
        "service": "content",
        "status": 200,
        "reason": "ok",
        "error": None,
        "attempts": 1,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "target": "http://c:1",
        "ms_total": 1.5,
        "ms_upstream": 1.0,
        "bytes_in": 0,
        "bytes_out": 42,
        "client_ip": "203.0.113.9",
        "user": "alice",
        "revision": 7,
        "http_version": "1.1",
        "referer": "",
        "user_agent": "curl/8",
    }


@pytest.mark.parametrize(("message", "said"), [("name not found", "name not found"), ("", None)])
def test_json_says_what_was_not_right(message: str, said: str | None) -> None:
    assert json.loads(as_json(ROW._replace(error_message=message), EXTRA))["error"] == said


@pytest.mark.parametrize("month", range(1, 13))
def test_months_do_not_follow_the_locale(month: int) -> None:
    """The names of RFC 9110 section 5.6.7, taken from a source of their own."""
    moment = datetime(2026, month, 1, 0, 0, 0, tzinfo=UTC)
    name = format_datetime(moment, usegmt=True).split()[2]
    assert f"[01/{name}/2026:00:00:00 +0000]" in combined(
        ROW._replace(created_at=int(moment.timestamp() * 1000)), EXTRA
    )


@pytest.mark.parametrize(
    "evil", ['"', "\n", "\r\n127.0.0.1 - - [", "\\", "\x1b[31m", "\x85", "\0", "\xe9", "\u2028", "\ud800"]
)
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
        ("/a?%74oken=x", "/a?%74oken=***"),
        ("/a?b=1;token=x;c=2&d=3", "/a?b=1;token=***&d=3"),
        ("/a?b=c;d=e", "/a?b=c;d=e"),
        ("/a?token", "/a?token"),
        ("/a?", "/a?"),
        ("/a", "/a"),
    ],
)
def test_secrets_in_queries_are_hidden(target: str, shown: str) -> None:
    assert redacted(target) == shown


def test_hiding_secrets_takes_linear_time() -> None:
    """A target of 8 KiB once took twenty seconds, on the event loop; anything but linear would not end here."""
    evil = "/" + "?token" * 200_000
    assert redacted(evil) == evil
    assert redacted("/?" + ";" * 200_000 + "token=x").endswith(";token=***")


def test_a_client_without_an_address_and_a_name_beyond_latin() -> None:
    assert combined(ROW._replace(client_ip="", user_id="ü €"), EXTRA).startswith("- - \\xFC\\x20\\xE2\\x82\\xAC [")


def test_only_what_the_line_shows_is_kept_of_an_exchange() -> None:
    head = head_of(path="/a?key=1")
    head.fields = b"Referer: http://h/?sig=2\r\nUSER-AGENT: \xe9\r\n"
    head.is_http10 = True
    assert extra_of(exchange_of(head)) == Extra("/a?key=***", "api.example", "1.0", "http://h/?sig=***", "\xe9")
    assert extra_of(exchange_of()) == Extra("/a", "api.example", "1.1", "", "")
    trace = {b"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    forwarded = exchange_of(head_of(notes=trace))
    forwarded.target = Target("content", "http://c:1")
    assert extra_of(forwarded)[5:] == ("0af7651916cd43dd8448eb211c80319c", "http://c:1")


def test_lines_are_written_in_the_order_of_the_rows() -> None:
    reading, writing = os.pipe()
    log = AccessLog("combined", LineWriter(writing, "lines"))
    log.write([exchange_of(head_of(path=name)) for name in ("/a", "/b")], [ROW, ROW])
    log.flush()
    log.write([exchange_of(head_of(path="/c"))], [ROW])
    log.close()
    os.close(writing)
    with os.fdopen(reading) as file:
        assert [line.split('"')[1] for line in file] == [f"GET /{name} HTTP/1.1" for name in "abc"]
    assert log.lines_lost == 0


def test_what_cannot_be_written_is_counted() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = AccessLog("json", LineWriter(writing, "lines"))
    for count in (1, 2):
        log.write([exchange_of()] * count, [ROW] * count)
        log.flush()
    log.close()
    os.close(writing)
    assert log.lines_lost == 3


def test_off_keeps_nothing() -> None:
    log = AccessLog("off", LineWriter(None, "lines"))
    log.write([exchange_of()], [ROW])
    log.close()
    assert log.lines_lost == 0, "nobody was asked to write it"


def test_access_lines_on_stdout_without_secrets(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, log_access="json") as gateway:
            headers = {"User-Agent": 'evil" \\ agent', "Referer": "http://r/?token=hidden", "Cookie": "hidden=1"}
            await ask(gateway.port, "GET", "/api/v1/auth/x?token=hidden&a=b", headers=headers, bearer="hidden")

    asyncio.run(run())
    out = capfd.readouterr().out
    assert "hidden" not in out
    (line,) = [json.loads(text) for text in out.splitlines()]
    assert (line["status"], line["path"], line["client_ip"]) == (200, "/api/v1/auth/x?token=***&a=b", "127.0.0.1")


def test_in_place_of_a_broken_trace_a_new_one_is_sent_and_stands_in_the_access_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = f"{'a' * 32}-{'b' * 16}"
    traces: list[list[str]] = []

    async def run() -> None:
        async with upstream() as auth, running(tmp_path, auth, log_access="json") as gateway:
            for sent in (None, f"00-{ids}-01", f"01-{ids}-03-more", "00-1-2-3", ""):
                trace = {} if sent is None else {"traceparent": sent}
                await ask(gateway.port, "GET", "/api/v1/auth/x", headers={"tracestate": "a=b", **trace})
                await gateway.reload(gateway.settings)
            assert [seen.all("tracestate") for seen in auth.seen] == [[], ["a=b"], ["a=b"], [], []]
            traces.extend(seen.all("traceparent") for seen in auth.seen)

    asyncio.run(run())
    none, good, later, broken, empty = traces
    assert (none, good, later) == ([], [f"00-{ids}-01"], [f"00-{ids}-03"])
    (one,), (other,) = broken, empty
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace) for trace in (one, other))
    assert one[3:35] != other[3:35]
    shown = [json.loads(text)["trace_id"] for text in capfd.readouterr().out.splitlines()]
    assert shown == [None, "a" * 32, "a" * 32, one[3:35], other[3:35]]
