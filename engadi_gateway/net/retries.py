"""What follows a failed attempt: whether there is another, and when. Made at an exchange's first failure.

Idempotent methods only once something was sent; as many as the route allows, with exponential backoff and full jitter,
before the deadline, and within a budget that all exchanges share.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from engadi_gateway.errors import Reason
from engadi_gateway.net.blame import Failure
from engadi_gateway.net.context import Context
from engadi_gateway.pipeline.exchange import Exchange

#: Methods that may be sent twice (RFC 9110 section 9.2.2); TRACE is not served.
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
#: Failures after which another attempt can go better. A time-out of the whole is none: no time is left.
_RETRYABLE = frozenset((
    Reason.UPSTREAM_CLOSED, Reason.CONNECT_REFUSED, Reason.CONNECT_TIMEOUT, Reason.DNS_ERROR, Reason.DNS_TIMEOUT,
))  # fmt: skip


class Retries:
    """Of one exchange.

    Attributes:
        failure: of the last attempt; None where another target is asked since.
    """

    def __init__(self, context: Context, exchange: Exchange) -> None:
        assert exchange.route is not None
        policy, of_route = context.retry, exchange.route.retry_count
        self.failure: Failure | None = None
        self._context = context
        self._exchange = exchange
        self._left = policy.retry_count if of_route is None else of_route
        self._is_counted = False

    def may_follow(self, reason: Reason, deadline: float, *, was_sent: bool, is_free: bool) -> bool:
        """Whether another attempt may follow one that failed for that reason.

        is_free: it takes nothing of what the route and the budget allow.
        """
        if reason not in _RETRYABLE or (was_sent and self._exchange.head.method not in _IDEMPOTENT):
            return False
        if is_free:
            return True
        if self._left <= 0 or time.monotonic() >= deadline:
            return False
        return not self._context.budget.is_spent(len(self._context.flights))

    def later(self, attempt: Callable[[], None]) -> None:
        """Make it after a while, counted in the budget until `end`."""
        policy = self._context.retry
        self._left -= 1
        self._is_counted = True
        self._context.budget.retrying += 1
        longest_s = min(policy.backoff_s * 2 ** (self._exchange.attempts - 1), policy.backoff_max_s)
        self._context.loop.call_later(random.uniform(0, longest_s), attempt)  # noqa: S311 - jitter

    def end(self) -> None:
        """The attempt has ended, or its reply has begun."""
        if self._is_counted:
            self._is_counted = False
            self._context.budget.retrying -= 1
