"""One request with its reply: what came, what the stages learned, what the reply must carry, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from engadi_gateway.errors import HeaderLine, Reason, Refusal
from engadi_gateway.model import RequestHead, Route

if TYPE_CHECKING:
    from engadi_gateway.pipeline import Pipeline


@dataclass(frozen=True)
class Identity:
    """Who asks, as a verified token says. `headers` are the claims as the upstream gets them."""

    user_id: str
    roles: tuple[str, ...] = ()
    headers: tuple[HeaderLine, ...] = ()
    expires_at: float = 0.0

    @cached_property
    def block(self) -> bytes:
        """The headers as they are sent; an identity is remembered, so this is made once a token."""
        return b"".join([b"%b: %b\r\n" % line for line in self.headers])


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

    `now` is monotonic seconds, `wall` epoch seconds, both of the moment the head was complete, or since when whoever
    had to be asked about it has answered. `is_rehearsal` marks an exchange that only asks (explain): the decisions are
    the same, nothing is spent and no permit is taken.

    What is not known yet stands on the class: most exchanges learn little, and thirty stores cost half a microsecond.
    """

    client_ip = ""
    is_rehearsal = False
    trace: dict[str, object] | None = None  # explain's notebook: stages write what they saw
    # what the stages learn
    stage = 0
    route: Route | None = None
    params: tuple[str, ...] = ()
    strip_prefix_length = 0
    is_local = False
    identity: Identity | None = None
    remote_verdict: Identity | Refusal | None = None
    rate_line: bytes | None = None  # of `reply_lines`, the one with what the rules leave
    charged: tuple[object, ...] = ()  # the rules whose tokens were spent before somebody was asked
    target: Target | None = None
    permit: object | None = None
    has_moved = False  # to another service, when an attempt had failed
    left: tuple[tuple[str, int], ...] = ()  # services that were asked before, and how often
    refusal: Refusal | None = None
    observed: str | None = None  # what a rule in observe mode would have refused
    # how it went
    waited_s = 0.0  # for somebody's answer, before it was decided
    ended = 0.0  # when it was settled
    reason = Reason.OK
    status = 0
    upstream_status = 0
    attempts = 0
    bytes_in = 0
    bytes_out = 0
    upstream_s: float | None = None
    error_message: str | None = None

    def __init__(self, head: RequestHead, request_id: str, now: float, wall: float, pipeline: Pipeline) -> None:
        self.head = head
        self.request_id = request_id
        self.id_line = b"X-Request-ID: " + request_id.encode("ascii")  # for both sides
        self.now = now
        self.wall = wall
        self.pipeline = pipeline
        self.reply_lines: list[bytes] = []  # whole header lines, several in one with CRLF between, without the last

    def waited(self, now: float) -> None:
        """Somebody was asked, and it goes on at monotonic second `now`: what took that long was no service's doing."""
        passed_s = now - self.now
        self.now = now
        self.wall += passed_s
        self.waited_s += passed_s

    @property
    def message(self) -> str | None:
        """What the row says beside its reason: what was not right, and what an observed rule would have refused."""
        message, observed = self.error_message, self.observed
        return f"{message}; {observed}" if message and observed else message or observed


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
