"""Makes the gateway's databases as the benchmark wants them: content public when bare, two more rules when full."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from engadi_gateway.model import LimitType, RateLimitRule
from engadi_gateway.seed import seed_of, timestamp
from engadi_gateway.settings import Settings
from engadi_gateway.store.catalog import Catalog, Change


async def main() -> None:
    settings = Settings.load(Path("gateway.ini").read_text(), os.environ)
    now = timestamp(time.time())
    catalog = Catalog(settings.database_url)
    snapshot = catalog.open(seed_of(settings, now))
    if sys.argv[1] == "bare":
        for route in snapshot.routes:
            await catalog.apply(Change("route", route.id, replace(route, is_public=True), "bench", "", now))
    else:
        for number, kind in enumerate((LimitType.PER_ENDPOINT, LimitType.GLOBAL)):
            rule_id = f"00000000-0000-4000-8000-00000000000{number}"
            rule = RateLimitRule(rule_id, str(kind), kind, 10_000_000, 3600, created_at=now, updated_at=now)
            await catalog.apply(Change("rule", rule.id, rule, "bench", "", now))
    catalog.close()


asyncio.run(main())
