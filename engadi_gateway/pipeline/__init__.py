"""Decisions about a request: pure functions of the exchange, the snapshot, the state handed in, and `now`.

No socket, clock, file, thread or `async` in this room. The order is fixed, and stands in `gateway.compiler`.

what is decided on   exchange (one request, and what the stages learn)
the stages           routing  cors  identity (JWT)  limits (token buckets)  breaker
what they go by      table (routes)  patterns (paths)  targets (shares)  claims  buckets  circuit
while it goes on     permits (what a circuit must know before the exchange is over)
"""

from __future__ import annotations

from collections.abc import Callable

from engadi_gateway.errors import Reason, Refusal
from engadi_gateway.pipeline.exchange import Exchange, Stage, Wait


class Pipeline:
    """The stages in their order, built from one snapshot; replaced whole when the configuration changes.

    `charge`: who asks for somebody else's time pays before; a refusal, and nobody is asked.
    `another_target`: after an attempt that failed for a reason at a time, whether the next goes to another target.
    `answers_cors`: whether the replies' CORS fields are its stage's, so that an upstream's must not stand beside them.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        revision: int,
        charge: Callable[[Exchange], Refusal | None] = lambda exchange: None,
        another_target: Callable[[Exchange, Reason, float], bool] = lambda exchange, reason, now: False,
        *,
        answers_cors: bool = False,
    ) -> None:
        self.stages = stages
        self._charge = charge
        self.another_target = another_target
        self.answers_cors = answers_cors
        self.revision = revision
        deciding = [stage for stage in stages if not stage.decides_nothing]
        self._steps = tuple((index, stage.decide, stage.sees_refused) for index, stage in enumerate(deciding))
        self._settlers = tuple(stage.settle for stage in stages if not stage.settles_nothing)
        self._rest: Pipeline | None = None

    def decide(self, exchange: Exchange) -> Wait | None:
        """Walk the stages; the verdict is `exchange.refusal`. After a `Wait`, call again: it goes on where it stood."""
        refusal = exchange.refusal
        for index, decide, sees_refused in self._steps[exchange.stage :]:
            if refusal is not None and not sees_refused:
                continue
            verdict = decide(exchange)
            if verdict is None:
                continue
            if isinstance(verdict, Wait):
                exchange.stage = index
                exchange.refusal = self._charge(exchange)
                return verdict if exchange.refusal is None else None
            exchange.refusal = refusal = verdict
        return None

    def rest(self) -> Pipeline:
        """Of this one what a decided exchange still needs: not its tables, which are large, and are soon replaced."""
        if self._rest is None:
            self._rest = Pipeline((), self.revision)
            self._rest._settlers = self._settlers
            self._rest._rest = self._rest
        return self._rest

    def settle(self, exchange: Exchange) -> None:
        for settle in self._settlers:
            settle(exchange)
