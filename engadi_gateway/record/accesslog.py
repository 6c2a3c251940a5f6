"""A line a request on stdout, for those who want one beside the database: combined or JSON.

Written by a thread of its own (`lines`): a pipe that nobody reads must not stop traffic.
Times are UTC and the month names fixed, whatever the locale; every byte that could forge a line is escaped.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote

from engadi_gateway.model import LogRow
from engadi_gateway.pipeline.exchange import Exchange
from engadi_gateway.record.lines import LineWriter, descriptor_of

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UNSAFE = re.compile(r'["\\]|[^ -~]')
_SECRET_NAME = re.compile(r"(?i)token|key|secret|password|code|sig")


class Extra(NamedTuple):
    """What the line shows and the database does not keep."""

    target: str
    host: str
    version: str
    referer: str
    user_agent: str
    trace_id: str | None = None
    upstream: str | None = None


def redacted(target: str) -> str:
    """A target whose query values that smell of secrets are gone; in linear time, for strangers choose the text."""
    path, mark, query = target.partition("?")
    return path + mark + "&".join(map(_without_secret, query.split("&")))


def _without_secret(parameter: str) -> str:
    """`name=value`, or several of them with `;` between, which some still read: all behind the first secret goes."""
    shown = ""
    for part in parameter.split(";"):
        name, mark, _ = part.partition("=")
        if mark and _SECRET_NAME.search(unquote(name)):
            return f"{shown}{name}=***"
        shown += part + ";"
    return parameter


def escaped(text: str) -> str:
    """Safe between quotes on one line, in every encoding of the terminal behind it."""
    return _UNSAFE.sub(_as_bytes, text)


def _as_bytes(match: re.Match[str]) -> str:
    """Header bytes as they came (they were read as ISO 8859-1), anything beyond as UTF-8."""
    code = ord(match[0])
    octets = (code,) if code < 0x100 else match[0].encode("utf-8", "surrogatepass")
    return "".join(f"\\x{octet:02X}" for octet in octets)


def combined(row: LogRow, extra: Extra) -> str:
    """The combined format of nginx."""
    moment = time.gmtime(row.created_at // 1000)
    stamp = f"{moment.tm_mday:02d}/{_MONTHS[moment.tm_mon - 1]}/{moment.tm_year}" + time.strftime(":%H:%M:%S", moment)
    user = escaped(row.user_id or "-").replace(" ", "\\x20")
    request = f"{escaped(row.method)} {escaped(extra.target)} HTTP/{extra.version}"
    return (
        f'{row.client_ip or "-"} - {user} [{stamp} +0000] "{request}" {row.status_code} {row.bytes_out}'
        f' "{escaped(extra.referer) or "-"}" "{escaped(extra.user_agent) or "-"}"'
    )


def as_json(row: LogRow, extra: Extra) -> str:
    """One JSON object."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row.created_at // 1000))
    document = {
        "ts": f"{moment}.{row.created_at % 1000:03d}Z",
        "level": "info",
        "msg": "request",
        "request_id": row.request_id,
        "trace_id": extra.trace_id,
        "method": row.method,
        "host": extra.host,
        "path": extra.target,
        "route": row.route_id,
        "service": row.target_service,
        "target": extra.upstream,
        "status": row.status_code,
        "reason": row.reason,
        "error": row.error_message or None,
        "attempts": row.attempts,
        "ms_total": row.response_time,
        "ms_upstream": row.upstream_time,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "client_ip": row.client_ip,
        "user": row.user_id,
        "revision": row.revision,
        "http_version": extra.version,
        "referer": extra.referer,
        "user_agent": extra.user_agent,
    }
    return json.dumps(document)


def extra_of(exchange: Exchange) -> Extra:
    """What of an exchange only the line shows."""
    head = exchange.head

    def value(name: bytes) -> str:
        return head.value(name).decode("latin-1")

    version = "1.0" if head.is_http10 else "1.1"
    target = redacted(head.target.decode("latin-1"))
    trace = head.notes.get(b"traceparent")
    return Extra(
        target,
        head.host,
        version,
        redacted(value(b"referer")),
        value(b"user-agent"),
        trace[3:35].decode("ascii") if trace is not None else None,
        exchange.target.url if exchange.target is not None else None,
    )


_FORMATS: dict[str, Callable[[LogRow, Extra], str]] = {"combined": combined, "json": as_json}


class AccessLog:
    """Lines are made with their rows, and written with the batch. `kind` off does nothing."""

    def __init__(self, kind: str, writer: LineWriter | None = None) -> None:
        self._format = _FORMATS.get(kind)
        self._writer = writer or LineWriter(descriptor_of(sys.stdout, sys.__stdout__), "engadi-access")
        self._lines: list[str] = []

    @property
    def lines_lost(self) -> int:
        return self._writer.lost

    def write(self, ended: list[Exchange], rows: list[LogRow]) -> None:
        """Write the lines of these exchanges and their rows, with the next `flush`."""
        if self._format is not None:
            self._lines += [self._format(row, extra_of(exchange)) for exchange, row in zip(ended, rows, strict=True)]

    def flush(self) -> None:
        """Let the thread write what there is."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._writer.write("".join([f"{line}\n" for line in lines]).encode())

    def close(self) -> None:
        """Write what waits. Blocking, for a bounded time."""
        self.flush()
        self._writer.close()
