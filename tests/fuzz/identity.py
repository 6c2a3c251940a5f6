"""The parts of the fuzz about who asks: no spelling of a name gets a forged identity upstream, none of a path round a
token."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from engadi_gateway.errors import RefusedError
from engadi_gateway.model import Listener, Route
from engadi_gateway.pipeline.routing import Routing
from engadi_gateway.pipeline.table import Match, RoutingTable
from engadi_gateway.wire.forwarded import resolve_client, upstream_head
from engadi_gateway.wire.headers import HeaderPolicy
from engadi_gateway.wire.request import HeadLimits, first_head, parse_head
from engadi_gateway.wire.target import normalise
from tests.exchanges import exchange_of, head_of
from tests.fuzz import lenient

# names

CLAIMS = ("X-User-ID", "X-User-Role", "X-Tenant")
OWN = (
    resolve_client("192.0.2.1", Listener("http", 8000, False), head_of(host="h"), ()).lines
    + b"X-Request-ID: ours\r\nX-User-ID: alice\r\n"
)
#: Variables that no client may set, and what the gateway says instead, if anything.
PROTECTED: dict[str, str] = {
    "X_USER_ID": "alice", "X_USER_ROLE": "", "X_USER_ANYTHING": "", "X_TENANT": "", "X_AUTH_USER": "", "X_AUTH_REQUEST_EMAIL": "", "X_FORWARDED_FOR": "192.0.2.1",
    "X_FORWARDED_PROTO": "http", "X_FORWARDED_HOST": "h", "X_FORWARDED_PORT": "8000", "X_FORWARDED_USER": "", "X_FORWARDED_PREFIX": "", "X_REAL_IP": "192.0.2.1", "FORWARDED": "",
    "X_REQUEST_ID": "ours", "REMOTE_USER": "", "X_ORIGINAL_URL": "", "X_HTTP_METHOD_OVERRIDE": "", "PROXY": "", "TRANSFER_ENCODING": "", "CONTENT_LENGTH": "", "HOST": "up",
}  # fmt: skip
_SIGNS = ["-"] * 6 + list("_.!#$%&'*+^`|~ \t\xa0\x85\xad\xff/:;,\\\0\r\n\x0b") + ["--", "", "\r\n ", "%2d", "-_"]
_VALUE = "forged"


def spelling(rng: Random) -> str:
    """A name that somebody, somewhere, takes for one of those."""
    parts = rng.choice(sorted(PROTECTED)).split("_")
    name = "".join(part + (rng.choice(_SIGNS) if at < len(parts) - 1 else "") for at, part in enumerate(parts))
    name = "".join(rng.choice((str.upper, str.lower))(sign) for sign in name)
    before, after = (rng.choice(["", "", "", "", *_SIGNS]) for _ in range(2))
    return before + name + after


def names(rng: Random) -> list[str]:
    """A head of forged lines: refused, or nothing of them is believed, whoever reads what goes on."""
    forged = [f"{spelling(rng)}:{rng.choice(('', ' ', chr(9), '  '))}{_VALUE}" for _ in range(rng.randint(1, 4))]
    listed = ", ".join(rng.choice((spelling(rng), "close", "X-User-ID", "Host")) for _ in range(rng.randint(0, 3)))
    lines = [*forged, "Host: h", *([f"Connection: {listed}"] if listed else [])]
    rng.shuffle(lines)
    raw = "\r\n".join(["GET /x HTTP/1.1", *lines, "", ""]).encode("latin-1", "replace")
    try:
        whole = first_head(raw, HeadLimits())
        if whole != raw:
            return []  # an empty line in the middle: what follows is another request's
        head, _ = parse_head(raw, HeadLimits(), HeaderPolicy(CLAIMS))
    except RefusedError:
        return []
    sent = upstream_head(head, head.target, b"up", OWN, head.framing).decode("latin-1")
    return [f"{raw!r} goes on as {sent!r}: {fault}" for fault in _believed(sent)]


def _believed(sent: str) -> list[str]:
    pairs = [line.split(": ", 1) for line in sent.split("\r\n")[1:] if line]
    lines = [(pair[0], pair[1]) for pair in pairs]
    faults = []
    for naming in lenient.NAMINGS:
        for repeats in lenient.REPEATS:
            found = lenient.variables(lines, naming, repeats)
            faults += [
                f"{naming}, {repeats}: {name} is {found[name]!r}"
                for name, said in PROTECTED.items()
                if found.get(name, said) != said
            ]
    return faults


# paths


def _route(pattern: str, name: str, **fields: object) -> Route:
    return replace(Route(name, pattern, "shop"), **fields)  # type: ignore[arg-type]  # fields of a table's row


TABLE = RoutingTable(
    [
        _route("/shop/*", "open", is_public=True, allow_encoded_slashes=True),
        _route("/shop/admin/*", "closed"),
        _route("/shop/{id}/keys", "keys"),
        _route("/pub/*", "pub", is_public=True),
        _route("/private/*", "private", required_roles=("admin",)),
    ],
    {},
)
GUARDED = ("/shop/admin", "/private")
SEGMENTS = (
    "shop", "shop", "pub", "admin", "admin", "private", "x", "keys", "ADMIN", "aDmin", "%61dmin", "%2561dmin", "adm%69n", "admin;a=b", "admin%3b", "admin.", "admin%20", "admin;",
    "admin%253bx", ";x", "..", "..", ".", "%2e%2e", "%252e%252e", "..;", "..;a", "..%3b", ".;", "..%20", "%c0%ae%c0%ae", "...", "", "x;", "%2525", "a%20b", "Shop", "admin%3Fx", "admin%23", "admin%253f", "x%3f", "%73hop", "admin%00",
)  # fmt: skip
SLASHES = (*["/"] * 6, "//", "%2f", "%2F", "%5c", "%252f", "%255c", "/./", "/;/", "\\", "%c0%af", "/x/../")


def paths(rng: Random) -> list[str]:
    """A path in some spelling, and an upstream that reads it in some manner."""
    parts = [(rng.choice(SLASHES), rng.choice(SEGMENTS)) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.7:
        parts[0] = ("/", rng.choice(("shop", "pub")))
    steps = rng.sample(sorted(lenient.STEPS), rng.randint(0, len(lenient.STEPS)))
    return astray("".join(slash + segment for slash, segment in parts), steps)


def astray(raw: str, steps: list[str]) -> list[str]:
    """Whether a path that a public route lets through is something that another guards, once it was read like this."""
    try:
        target = normalise(raw.encode(), b"GET")
    except RefusedError:
        return []
    exchange = exchange_of(replace(head_of(path=target.path), has_encoded_slash=target.has_encoded_slash))
    if Routing(TABLE).decide(exchange) is not None or exchange.route is None or not exchange.route.is_public:
        return []
    if target.target.decode() != target.path:
        return [f"{raw!r}: matched {target.path!r}, forwarded {target.target!r}"]
    landed = lenient.landing(target.path, steps)
    match = TABLE.match("GET", "", landed)
    is_keys = isinstance(match, Match) and match.route.id == "keys"
    if is_keys or any(landed == guard or landed.startswith(f"{guard}/") for guard in GUARDED):
        return [f"{raw!r} goes on as {target.path!r} and lands at {landed!r} by {steps}"]
    return []
