"""Random writes of the configuration, over the admin API: routes, rules, the CORS policy."""

from __future__ import annotations

import random
from typing import Any

from tests.fakes import Reply

BASE = "/api/v1/gateway"


def some_write(dice: random.Random, mine: list[str]) -> tuple[str, str, Any]:
    """Method, target and body of one; `mine` is what was made by earlier ones."""
    kind = dice.choice(("new route", "new rule", "change", "change", "delete", "cors"))
    tag = f"{dice.getrandbits(64):016x}"
    if kind == "cors":
        return "PUT", f"{BASE}/config/cors", {"enabled": True, "allow_origins": [f"https://{tag}.test"]}
    if kind == "new rule":
        rule = {"name": tag, "limit_type": "global", "max_requests": 10_000_000, "window_seconds": 1}
        return "POST", f"{BASE}/config/rate-limits", rule
    if kind == "new route" or not mine:
        route = {"path_pattern": f"/soak/{tag}/*", "target_service": "auth", "is_public": True}
        return "POST", f"{BASE}/routes", route
    target = dice.choice(mine)
    if kind == "delete" and len(mine) > 5:
        return "DELETE", target, None
    number = dice.randrange(1, 1_000_000)
    return "PUT", target, {"priority": number} if "/routes/" in target else {"window_seconds": number}


def remember(method: str, target: str, reply: Reply, mine: list[str]) -> None:
    """Note what a write that was confirmed made or deleted."""
    if method == "POST":
        mine.append(reply.one("location"))
    elif method == "DELETE":
        mine.remove(target)
