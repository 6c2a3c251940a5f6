"""The rules that the cases are held against: section, level, and what it asks for, in our words.

PRACTICE is the house's own choice where the RFCs leave one, or say nothing: the stricter one, because it is what two
readers disagree about that attacks are made of.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """`section` names an RFC by its number; `level` is MUST, SHOULD, MAY or PRACTICE."""

    section: str
    level: str
    text: str


# the request line

BLANK = Rule("9112 2.2", "SHOULD", "a server ignores at least one empty line before a request line")
LINE = Rule(
    "9112 3",
    "PRACTICE",
    "a request line is method SP target SP version and nothing else; who parses more leniently invites smuggling",
)
TARGET_LENGTH = Rule("9112 3", "MUST", "a target longer than what is parsed is answered with 414")
TARGET_8000 = Rule("9112 3", "SHOULD", "request lines of at least 8000 octets are supported")
VERSION_CASE = Rule("9112 2.3", "MUST", "HTTP-name is case-sensitive, the version is digit dot digit")
VERSION = Rule("9110 15.6.6", "MAY", "another major version of HTTP is refused with 505")
MINOR = Rule("9110 2.5", "PRACTICE", "a minor version that there is not is refused with 505 instead of guessed at")
METHOD = Rule(
    "9110 9.1", "MUST", "a method is a token, is case-sensitive, and an unknown one is the upstream's to judge"
)
METHOD_CASE = Rule(
    "9110 9.1",
    "PRACTICE",
    "`get` is another method than GET; as some upstreams take them for one, it is answered with 501",
)
NO_CONNECT = Rule("9110 9.3.6", "PRACTICE", "no tunnels: CONNECT is answered with 501")
NO_TRACE = Rule("9110 9.3.8", "PRACTICE", "TRACE would show the client what only the upstream may see: 501")
ORIGIN_FORM = Rule(
    "9112 3.2.1", "MUST", "a target that goes to an origin begins with a slash; a fragment is never sent"
)
ABSOLUTE = Rule("9112 3.2.2", "MUST", "absolute-form is accepted, and its authority replaces the Host field")
ABSOLUTE_SCHEME = Rule("9110 4.2", "PRACTICE", "only http and https are served")
USERINFO = Rule("9110 4.2.4", "SHOULD", "userinfo in an http URI is an error: it obscures the authority")
AUTHORITY_FORM = Rule("9112 3.2.3", "MUST", "authority-form is for CONNECT only")
ASTERISK = Rule("9112 3.2.4", "MUST", "asterisk-form is for OPTIONS only")
PREFACE = Rule("9113 3.4", "PRACTICE", "the preface of HTTP/2 is no request of HTTP/1.1")

# Host

HOST = Rule("9112 3.2", "MUST", "HTTP/1.1 without Host, with several, or with a malformed one is answered with 400")
HOST_OK = Rule("9110 7.2", "MUST", "a Host is uri-host with an optional port")
HOST_10 = Rule("9112 3.2", "MAY", "HTTP/1.0 needs no Host")

# field lines

CRLF = Rule("9112 2.2", "PRACTICE", "a bare LF may be taken for a line end; here it is refused, for not all take it")
BARE_CR = Rule("9112 2.2", "MUST", "a bare CR makes an element invalid, or is replaced by SP")
LEADING_SPACE = Rule(
    "9112 2.2",
    "MUST",
    "white space between the start line and the first field is refused, or its lines are not processed",
)
CONTROLS = Rule("9110 5.5", "MUST", "CR, LF and NUL in a value are refused or replaced")
OTHER_CONTROLS = Rule(
    "9110 5.5", "PRACTICE", "other control characters may be kept where that is safe; nobody knows where that is"
)
COLON = Rule("9112 5.1", "MUST", "white space between a name and its colon is answered with 400")
FIELD = Rule("9112 5", "MUST", "a field line is token colon value")
FOLD = Rule("9112 5.2", "MUST", "obs-fold is answered with 400, or each is replaced by SP; here 400")
VALUE = Rule(
    "9110 5.5", "MUST", "white space around a value is no part of it; obs-text is opaque; an empty value is one"
)
HEAD_SIZE = Rule("6585 5", "PRACTICE", "a head that is larger than the limits is answered with 431")
SINGLETON = Rule("9110 5.3", "PRACTICE", "a field that is no list must not be sent twice; two tokens are refused")
EXPECT = Rule("9110 10.1.1", "MAY", "an expectation that is not understood is answered with 417")
NAMES = Rule(
    "9110 5.1",
    "PRACTICE",
    "names that CGI reads as another's (other than letters, digits and hyphen) are not forwarded",
)

# framing

BOTH = Rule(
    "9112 6.1",
    "PRACTICE",
    "Transfer-Encoding beside Content-Length may be an attack; it is refused and the connection closed",
)
CODING_10 = Rule("9112 6.1", "MUST", "Transfer-Encoding on HTTP/1.0 is faulty framing: the connection is closed")
CODING = Rule("9112 6.1", "SHOULD", "a transfer coding that is not understood is answered with 501")
LAST_CODING = Rule(
    "9112 6.3",
    "MUST",
    "a request whose last coding is not chunked has no reliable length: an error, and the connection is closed",
)
CODING_NAME = Rule("9112 7", "MUST", "names of codings are case-insensitive")
LENGTH = Rule("9112 6.3", "MUST", "an invalid Content-Length is unrecoverable: 400, and the connection is closed")
LENGTH_TWICE = Rule("9112 6.3", "MAY", "the same decimal repeated may be taken as that one, or refused")
LENGTH_LIMIT = Rule("9110 15.5.14", "PRACTICE", "a body larger than the limit is answered with 413 before it is read")
NO_BODY = Rule("9112 6.3", "MUST", "a request with neither field has no body")
ANY_METHOD = Rule("9110 9.3.1", "PRACTICE", "a body is framed by its fields whatever the method")
CHUNKS = Rule("9112 7.1", "MUST", "the chunked coding is parsed: hexadecimal size, CRLF, data, CRLF, a last chunk of 0")
CHUNK_OVERFLOW = Rule("9112 7.1", "MUST", "large chunk sizes are anticipated, and neither overflow nor lose precision")
EXTENSIONS = Rule(
    "9112 7.1.1", "MUST", "unrecognised chunk extensions are ignored; they are held to their grammar and bounded"
)
TRAILERS = Rule("9112 7.1.2", "MAY", "trailer fields are discarded; never are they merged into the header section")
TRAILER_FRAMING = Rule("9110 6.5.1", "MUST", "fields that frame a message are not sent as trailers")
REFRAME = Rule("9112 6.3", "PRACTICE", "framing is never copied: what goes on has one length that both ends read alike")

# targets

NORMAL = Rule(
    "3986 6.2.2", "SHOULD", "case of escapes, escapes of unreserved characters and dot segments are normalised"
)
SLASHES = Rule("3986 6.2.3", "PRACTICE", "empty segments are merged, as most servers do")
QUERY = Rule("3986 3.4", "PRACTICE", "the query is forwarded as it came")
ESCAPES = Rule(
    "3986 2.1", "MUST", "an escape is % and two hexadecimal digits, and characters outside the grammar are escaped"
)
ESCAPED_CONTROL = Rule(
    "3986 7.3", "PRACTICE", "control characters in a path are refused, escaped or not: a NUL ends strings"
)
ROOT = Rule("3986 5.2.4", "PRACTICE", "what would climb over the root is refused instead of clipped")
HIDDEN = Rule("3986 7.3", "PRACTICE", "dots and slashes that only some decoders find are refused")
SEGMENTS = Rule("3986 3.3", "PRACTICE", "patterns end at segment borders, and the path is matched to the letter")
GUARDED = Rule("9110 15.5.2", "PRACTICE", "no spelling of a path goes round the credentials that it needs")
NO_ROUTE = Rule("9110 15.5.5", "MUST", "what is not there is a 404")
ALLOW = Rule("9110 15.5.6", "MUST", "405 comes with Allow")

# connections

CLOSE = Rule("9112 9.6", "MUST", "close is answered with close, and no further request is processed")
PERSIST_10 = Rule("9112 9.3", "MUST", "HTTP/1.0 closes unless keep-alive was said")
PIPELINE = Rule("9112 9.3.2", "MUST", "answers come in the order of their requests")
AFTER_ERROR = Rule("9112 9.3.2", "PRACTICE", "after a request that could not be read nothing more of the connection is")
HOP = Rule("9110 7.6.1", "MUST", "fields of the hop, and those that Connection names, are not forwarded")
UPGRADE = Rule("9110 7.8", "MUST", "an upgrade is asked for with Connection: Upgrade on HTTP/1.1 and ignored on 1.0")
NO_H2C = Rule("9110 7.8", "PRACTICE", "no upgrade to another HTTP: its requests would pass unseen")
CONTINUE = Rule(
    "9110 10.1.1", "MUST", "a proxy answers 100-continue itself or forwards it; here it answers, after deciding"
)
VIA = Rule("9110 7.6.3", "MUST", "a proxy adds itself to Via")
DATE = Rule("9110 6.6.1", "MUST", "a recipient with a clock adds a missing Date")

# identity

SPOOF = Rule("7239 8.1", "PRACTICE", "what says who asks, and from where, comes from the gateway alone")
BEARER = Rule("6750 2.1", "MUST", "credentials are one scheme and one token")

# replies

NO_REPLY = Rule("9110 15.6.3", "MUST", "an invalid answer, or none, from the upstream is a 502")
TIMEOUT = Rule("9110 15.6.5", "MUST", "an answer that does not come in time is a 504")
INCOMPLETE = Rule("9112 8", "MUST", "a reply that was cut short never looks whole")
ONCE = Rule("9110 9.2.2", "MUST", "a method that is not idempotent is not sent again by itself")
AGAIN = Rule("9112 9.3.1", "MAY", "an idempotent request is sent again when its reused connection was closed under it")
REPLY_LENGTH = Rule(
    "9112 6.3", "MUST", "a reply with an invalid length is discarded and answered with 502, its connection closed"
)
REPLY_BOTH = Rule(
    "9112 6.3",
    "MUST",
    "Transfer-Encoding overrides Content-Length, which is not forwarded, and the connection is closed",
)
REPLY_CODING = Rule("9112 6.3", "PRACTICE", "a reply in a coding that we do not speak is a 502")
STATUS_LINE = Rule("9112 4", "MUST", "a status line is version SP three digits SP reason; the reason may be empty")
REPLY_FIELD = Rule("9112 5.1", "PRACTICE", "what is no field line makes the whole head untrustworthy: 502")
REPLY_FOLD = Rule("9112 5.2", "MUST", "obs-fold in a reply is a 502, or each is replaced by SP; here 502")
REPLY_SIZE = Rule("9110 5.4", "PRACTICE", "a reply's head is bounded")
LEFT_OVER = Rule(
    "9112 9.3", "PRACTICE", "a connection with bytes left over serves nobody again: they would be another's answer"
)
NO_CONTENT = Rule("9112 6.3", "MUST", "replies to HEAD, and 1xx, 204 and 304, have no body, whatever their fields say")
NO_LENGTH = Rule("9110 8.6", "MUST", "no Content-Length in 1xx and 204; it stays in answers to HEAD and in 304")
BY_CLOSE = Rule("9112 6.3", "MUST", "without a length a reply's body ends with its connection")
INTERIM = Rule("9110 15.2", "MUST", "1xx are forwarded, but not to HTTP/1.0, and not the 100 that was not asked for")
INTERIM_FLOOD = Rule("9110 15.2", "PRACTICE", "1xx are bounded in number")
UPGRADE_REQUIRED = Rule("9110 15.5.22", "MUST", "a 426 says in Upgrade to what")
SWITCHING = Rule("9110 15.2.2", "MUST", "101 only to what was asked for")
EARLY = Rule("9112 9.5", "PRACTICE", "an answer before the request's end is relayed, and both connections end with it")
REPLY_CLOSE = Rule("9112 9.6", "MUST", "an upstream that says close is not asked again on that connection")
REPLY_HOP = Rule("9110 7.6.1", "MUST", "a reply's fields of the hop are not forwarded")
