"""One request with its reply: what came, what the stages learned, what the reply must carry, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engadi_gateway.errors import HeaderLine, Reason, Refusal
from engadi_gateway.model import Listener, RequestHead, Route

if TYPE_CHECKING:
    from engadi_gateway.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, as a verified token says. `headers` are the claims as the upstream gets them."""

    user_id: str
    roles: tuple[str, ...] = ()
    headers: tuple[HeaderLine, ...] = ()
    expires_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Wait:
    """The identity stage cannot judge this token by itself: the connection asks and resumes the walk.

    `kind` is "remote" (ask the auth service) or "keys" (fetch the JWKS).
    """

    kind: str
    token: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes: `url` is a base URL, its path is put before the request's."""

    service: str
    url: str


class Exchange:
    """Created when a head was read, settled exactly once. Stages read and write it; none reads a clock.

    `now` is monotonic seconds, `wall` epoch seconds, both of the moment the head was complete. `is_rehearsal` marks
    an exchange that only asks (explain): the decisions are the same, nothing is spent and no permit is taken.
    """

    __slots__ = (
        "attempts",
        "bytes_in",
        "bytes_out",
        "client_ip",
        "ended",
        "error_message",
        "head",
        "identity",
        "is_local",
        "is_rehearsal",
        "listener",
        "now",
        "observed",
        "params",
        "peer_ip",
        "permit",
        "pipeline",
        "reason",
        "refusal",
        "remote_verdict",
        "reply_lines",
        "request_id",
        "route",
        "stage",
        "status",
        "strip_prefix_length",
        "target",
        "trace",
        "upstream_s",
        "upstream_status",
        "wall",
    )

    def __init__(self, head: RequestHead, request_id: str, now: float, wall: float, pipeline: Pipeline) -> None:
        self.head = head
        self.request_id = request_id
        self.now = now
        self.ended = now  # when it was settled
        self.wall = wall
        self.pipeline = pipeline
        self.listener: Listener | None = None
        self.peer_ip = ""
        self.client_ip = ""
        self.is_rehearsal = False
        self.trace: dict[str, object] | None = None  # explain's notebook: stages write what they saw
        # what the stages learn
        self.stage = 0
        self.route: Route | None = None
        self.params: tuple[str, ...] = ()
        self.strip_prefix_length = 0
        self.is_local = False
        self.identity: Identity | None = None
        self.remote_verdict: Identity | Refusal | None = None
        self.target: Target | None = None
        self.permit: object | None = None
        self.refusal: Refusal | None = None
        self.reply_lines: list[HeaderLine] = []
        self.observed: str | None = None  # what a rule in observe mode would have refused
        # how it went
        self.reason = Reason.OK
        self.status = 0
        self.upstream_status = 0
        self.attempts = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.upstream_s: float | None = None
        self.error_message: str | None = None


class Stage(Protocol):
    """Every stage, and nothing more.

    `sees_refused`: whether it also decides on an exchange that an earlier stage refused. Routing comes first because
    policies belong to routes, yet a 404 must carry the CORS lines, and a 401 or 404 must spend tokens, or guessing
    would be free. `decides_nothing`, `settles_nothing`: as it is configured, that call can be left out.
    """

    sees_refused: bool
    decides_nothing: bool
    settles_nothing: bool

    def decide(self, exchange: Exchange) -> Refusal | Wait | None:
        """Refuse, wait, or let pass."""
        ...

    def settle(self, exchange: Exchange) -> None:
        """Learn how it ended; called once for every exchange that was decided."""
        ...
