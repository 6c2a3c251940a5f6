"""Which media type a client prefers: what real clients send."""

from __future__ import annotations

import pytest

from engadi_gateway.admin.media import preferred
from engadi_gateway.record.metrics import OPENMETRICS, TEXT

JSON = "application/json"
ASKED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", JSON),
    "curl": (b"*/*", JSON),
    "axios": (b"application/json, text/plain, */*", JSON),
    "a browser": (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
    "text": (b"text/plain", TEXT),
    "any text": (b"text/*", TEXT),
    "in capitals": (b"TEXT/PLAIN", TEXT),
    "OpenMetrics": (b"application/openmetrics-text", OPENMETRICS),
    "Prometheus 2": (
        b"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
        OPENMETRICS,
    ),
    "an older Prometheus": (b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1", TEXT),
    "anything but JSON": (b"application/json;q=0, */*;q=0.1", TEXT),
    "JSON a little less": (b"application/json;q=0.9, text/plain", TEXT),
    "JSON refused": (b"application/json;q=0.0, text/plain;q=0.001", TEXT),
    "nothing that we have": (b"image/png", JSON),
    "nonsense": (b";;,,q=1,/", JSON),
    "no such quality": (b"text/plain;q=7", TEXT),
}


@pytest.mark.parametrize(("accept", "want"), ASKED.values(), ids=ASKED.keys())
def test_preferred(accept: bytes, want: str) -> None:
    assert preferred(accept, (JSON, TEXT, OPENMETRICS)) == want
