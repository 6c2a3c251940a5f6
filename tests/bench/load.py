"""The load: `python -m tests.bench.load JOB`, JOB being a `Job` as JSON; prints a `Result` as JSON.

One thread on epoll; connections are kept alive and have one request under way each. Every answer must be 200, have the
right length, and be byte by byte the body that belongs to its request. After a warm-up, requests are counted and the
CPU clocks of the measured process group, of the upstream and of this process are read at both ends of the same span.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tests.bench.accounting import readings, resident_mib, spent_s
from tests.bench.requests import Requests, Shape

_RECEIVE_BYTES = 262_144
_STALLED_S = 10.0
_DRAIN_S = 5.0
_SHOWN_BYTES = 300


@dataclass(frozen=True, slots=True)
class Job:
    """What to do. `group` and `upstream_group` are process groups; 0: nobody's.

    The warm-up lasts `warm_s` and `warm_requests` at least; what is measured `seconds`, or until `requests`.
    """

    port: int
    connections: int
    seconds: float
    warm_s: float = 0.0
    warm_requests: int = 0
    requests: int = 0
    group: int = 0
    upstream_group: int = 0
    shape: Shape = field(default_factory=Shape)

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Job:
        document = json.loads(text)
        return cls(**{**document, "shape": Shape(**document["shape"])})


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen between the end of the warm-up and the end; `bad` counts over the whole run."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: float
    upstream_cpu_s: float
    load_cpu_s: float
    resident_mib: float
    bad: int
    first_bad: str


def failed(why: str) -> Result:
    """Of a load that could not be run."""
    return Result(0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1, why)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least so many percent do not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[max(0, -int(-percent * len(ordered) // 100) - 1)]


def parsed(data: bytes) -> tuple[int, bytes] | None:
    """Status and body of a reply by its own framing; None while it is not complete."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    status = int(head[9:12])
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return _chunked(status, body)
    length = int(fields.get(b"content-length", b"0"))
    return (status, body) if len(body) >= length else None


def _chunked(status: int, data: bytes) -> tuple[int, bytes] | None:
    body: list[bytes] = []
    position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        size = int(data[position:end], 16)
        if size == 0:
            return (status, b"".join(body)) if data.endswith(b"\r\n\r\n") else None
        body.append(data[end + 2 : end + 2 + size])
        position = end + 4 + size
    return None


class Connection:
    """One connection, and what must come back on it."""

    __slots__ = ("began", "expected", "received", "sock", "unsent")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.received = self.unsent = self.expected = b""
        self.began = 0.0

    def ask(self, request: tuple[bytes, bytes], now: float) -> bool:
        """Send; whether all of it went."""
        data, self.expected = request
        self.began = now
        return self.send(data)

    def send(self, data: bytes) -> bool:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self.unsent = data[sent:] if sent < len(data) else b""
        return not self.unsent

    def read(self, length_line: bytes) -> tuple[int, bytes] | None:
        """The whole answer (status, body), or None. Raises EOFError at the end of the connection."""
        data = self.sock.recv(_RECEIVE_BYTES)
        if not data:
            raise EOFError
        if self.received:
            data = self.received + data
        # the common case costs two searches in the head; anything else is parsed
        if data.startswith(b"HTTP/1.1 200 ") and length_line in data:
            length = len(data) - data.find(b"\r\n\r\n") - 4
            if length == len(self.expected) and data.endswith(self.expected):
                self.received = b""
                return 200, self.expected
            if length < len(self.expected):
                self.received = data
                return None
        answer = parsed(data)
        self.received = data if answer is None else b""
        return answer


class Load:
    """A run of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = Requests(job.shape)
        self._length_line = b"ength: %d\r\n" % job.shape.reply_bytes
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._latencies: list[float] = []
        self._bad = 0
        self._first_bad = ""

    def run(self) -> Result:
        job = self._job
        self._connect()
        began = time.perf_counter()
        self._pump(began + job.warm_s, job.warm_requests)
        groups = {"peer": job.group, "upstream": job.upstream_group}
        before = {name: readings([group] if group else []) for name, group in groups.items()}
        self._latencies.clear()
        own, began = time.process_time(), time.perf_counter()
        self._pump(began + job.seconds, job.requests, is_both=not job.requests)
        took, own = time.perf_counter() - began, time.process_time() - own
        spent = {name: spent_s(before[name], readings([group] if group else [])) for name, group in groups.items()}
        latencies = sorted(self._latencies)
        self._drain()
        return Result(
            requests=len(latencies),
            seconds=took,
            p50_ms=percentile(latencies, 50) * 1000,
            p99_ms=percentile(latencies, 99) * 1000,
            max_ms=percentile(latencies, 100) * 1000,
            cpu_s=spent["peer"],
            upstream_cpu_s=spent["upstream"],
            load_cpu_s=own,
            resident_mib=resident_mib(job.group) if job.group else 0.0,
            bad=self._bad,
            first_bad=self._first_bad,
        )

    def _connect(self) -> None:
        for _ in range(self._job.connections):
            connection = Connection(self._job.port)
            self._open[connection.sock.fileno()] = connection
            self._epoll.register(connection.sock.fileno(), select.EPOLLIN)
        for number in list(self._open):
            self._ask(number)

    def _pump(self, until: float, requests: int, *, is_both: bool = True) -> None:
        """Until that moment and that many answers; with `is_both` False, until the first of the two."""
        while self._open:
            is_late, is_enough = time.perf_counter() >= until, len(self._latencies) >= requests
            if (is_late and is_enough) if is_both else (is_late or is_enough):
                return
            self._turn(is_asking=True)

    def _drain(self) -> None:
        """Take the answers that are still to come, so that nobody sees a client that left."""
        deadline = time.perf_counter() + _DRAIN_S
        while any(connection.expected for connection in self._open.values()) and time.perf_counter() < deadline:
            self._turn(is_asking=False)
        for connection in self._open.values():
            connection.sock.close()

    def _turn(self, *, is_asking: bool) -> None:
        ready = self._epoll.poll(_STALLED_S)
        if not ready:
            for number in list(self._open):
                self._lose(number, f"no answer within {_STALLED_S:.0f} s")
        for number, events in ready:
            connection = self._open[number]
            if events & select.EPOLLOUT and connection.send(connection.unsent):
                self._epoll.modify(number, select.EPOLLIN)
            if not events & ~select.EPOLLOUT:
                continue
            try:
                answer = connection.read(self._length_line)
            except (OSError, EOFError, ValueError) as error:
                self._lose(number, f"connection lost: {error!r}")
                continue
            if answer is None:
                continue
            now = time.perf_counter()
            self._latencies.append(now - connection.began)
            if answer != (200, connection.expected):
                self._wrong(f"{answer[0]}, {len(answer[1])} bytes: {answer[1][:_SHOWN_BYTES].decode('latin-1')}")
            connection.expected = b""
            if is_asking:
                self._ask(number)

    def _ask(self, number: int) -> None:
        try:
            if not self._open[number].ask(self._requests.next(), time.perf_counter()):
                self._epoll.modify(number, select.EPOLLIN | select.EPOLLOUT)
        except OSError as error:
            self._lose(number, f"connection lost: {error!r}")

    def _wrong(self, what: str) -> None:
        self._bad += 1
        self._first_bad = self._first_bad or what

    def _lose(self, number: int, why: str) -> None:
        self._wrong(why)
        self._epoll.unregister(number)
        self._open.pop(number).sock.close()


def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(asdict(Load(Job.of(sys.argv[1])).run())))


if __name__ == "__main__":
    main()
