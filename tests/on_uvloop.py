"""`python -m pytest -p tests.on_uvloop`: the same tests with uvloop, also in the gateways that are processes.

Needs uvloop (`python -m pip install uvloop`), which the gateway itself does not.
"""

from __future__ import annotations

import asyncio
import os

import uvloop

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
os.environ["ENGADI_SERVER_LOOP"] = "uvloop"
