"""All request cases together."""

from __future__ import annotations

from tests.conformance import attacks, connection, fields, framing, request_line, targets

CASES = [
    *request_line.CASES,
    *fields.CASES,
    *framing.CASES,
    *targets.CASES,
    *connection.CASES,
    *attacks.CASES,
]
