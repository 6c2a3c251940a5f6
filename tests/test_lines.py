"""Lines that a thread writes: whoever reads them, or does not, nobody waits, and what is lost is counted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from engadi_gateway.record.lines import LineWriter, descriptor_of, stream_to
from tests.fakes import upstream
from tests.harness import ask
from tests.processes import PYTHON, ROOT, environment_of, free_port, ini_of, started


class Pipe:
    """Both its ends; `fill` leaves no room in it, `read` takes all that is there."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def fill(self) -> int:
        """How many bytes went in."""
        os.set_blocking(self.writing, False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += os.write(self.writing, b"\0" * 4096)
        os.set_blocking(self.writing, True)
        return count

    def read(self) -> bytes:
        os.set_blocking(self.reading, False)
        found = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reading, 65_536):
                found += data
        return found.lstrip(b"\0")

    def close_reading(self) -> None:
        os.close(self.reading)
        self.reading = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for descriptor in (pipe.reading, pipe.writing):
        if descriptor >= 0:
            os.close(descriptor)


def _read(pipe: Pipe, is_enough: Callable[[bytes], bool]) -> bytes:
    """Read until that is so."""
    os.set_blocking(pipe.reading, True)
    poll = select.poll()
    poll.register(pipe.reading, select.POLLIN)
    found = b""
    while not is_enough(found):
        assert poll.poll(20_000), f"nothing more after {found[-100:]!r}"
        data = os.read(pipe.reading, 65_536)
        assert data, found
        found += data
    return found


def test_lines_come_in_their_order_and_whole(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, "lines")
    lines = [b"%d %b\n" % (number, b"x" * 300) for number in range(1_000)]
    for line in lines:
        writer.write(line)
    assert _read(pipe, lambda found: found.count(b"\n") == 1_000) == b"".join(lines), "more than the pipe holds at once"
    writer.close()
    assert writer.lost == 0


def test_a_pipe_without_room_is_waited_for_and_what_waits_is_bounded(pipe: Pipe) -> None:
    pipe.fill()
    writer = LineWriter(pipe.writing, "lines", max_bytes=40)
    for number in range(6):
        writer.write(b"line %d\nmore %d\n" % (number, number))
    assert writer.lost == 8, "two of fourteen bytes fit into forty"
    kept = _read(pipe, lambda found: b"more 1\n" in found).lstrip(b"\0")
    assert kept == b"line 0\nmore 0\nline 1\nmore 1\n"
    writer.close()
    assert writer.lost == 8


def test_the_end_waits_so_long_and_counts_what_did_not_go(pipe: Pipe) -> None:
    pipe.fill()
    writer = LineWriter(pipe.writing, "lines")
    for _ in range(3):
        writer.write(b"a\nb\n")
    for _ in range(2):
        writer.close(within_s=0.01)
    writer.write(b"too late\n")
    assert writer.lost == 7
    _read(pipe, lambda found: b"b\n" in found)  # what the thread had begun with still goes
    assert writer._thread is not None
    writer._thread.join(20)
    assert not writer._thread.is_alive()
    assert pipe.read() == b"", "and nothing of what was given up"


def test_only_what_did_not_go_is_lost(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, "lines")
    writer.write(b"x\n" * 100_000)
    writer.close(within_s=0.2)
    gone = pipe.read().count(b"\n")
    assert 100_000 - gone <= writer.lost < 100_000


def test_a_line_that_was_lost_half_way_spoils_no_other(pipe: Pipe) -> None:
    """A disk that is full takes a part; what comes once there is room again begins a line of its own."""
    writer = LineWriter(pipe.writing, "test")
    real, left = os.write, [3]

    def full(descriptor: int, data: bytes) -> int:
        if descriptor != pipe.writing or left[0] < 0:
            return real(descriptor, data)
        if left[0] == 0:
            left[0] = -1
            raise OSError(errno.ENOSPC, "full")
        taken, left[0] = left[0], 0
        return real(descriptor, data[:taken])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engadi_gateway.record.lines.os.write", full)
        writer.write(b"lost\n")
        _read(pipe, lambda found: found == b"los")
        while writer.lost == 0:
            time.sleep(0.001)
        writer.write(b"good\n")
        assert _read(pipe, lambda found: found.endswith(b"good\n")) == b"\ngood\n"
    writer.close()
    assert writer.lost == 1


def test_a_long_line_and_its_end_are_taken_or_lost_together(pipe: Pipe) -> None:
    pipe.fill()
    writer = LineWriter(pipe.writing, "test", max_bytes=30_000)
    stream = stream_to(writer, "utf-8")
    for _ in range(3):
        print("x" * 20_000, file=stream)
    assert writer.lost == 2
    assert len(_read(pipe, lambda found: found.endswith(b"\n")).lstrip(b"\0")) == 20_001
    writer.close()


def test_a_descriptor_that_does_not_wait_is_waited_for(pipe: Pipe) -> None:
    """Whoever shares it can have made it so."""
    pipe.fill()
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing, "lines")
    writer.write(b"here\n" * 50_000)
    assert _read(pipe, lambda found: found.count(b"\n") == 50_000).lstrip(b"\0") == b"here\n" * 50_000
    writer.close()
    assert writer.lost == 0


def test_a_reader_that_left_costs_lines_and_the_next_is_tried(pipe: Pipe) -> None:
    pipe.close_reading()
    writer = LineWriter(pipe.writing, "lines")
    for _ in range(2):
        writer.write(b"a\nb\n")
    writer.close()
    assert writer.lost == 4


def test_how_many_were_lost_is_said_once_there_is_room_again(pipe: Pipe) -> None:
    pipe.fill()
    writer = LineWriter(pipe.writing, "lines", note="{} were lost".format, max_bytes=4)
    for text in (b"one\n", b"two\n", b"three\n"):
        writer.write(text)
    _read(pipe, lambda found: b"one\n" in found)
    while writer._bytes:  # until the thread has noticed
        threading.Event().wait(0.002)
    for text in (b"four\n", b"five\n"):
        writer.write(text)
    writer.close()
    assert pipe.read().splitlines()[:2] == [b"2 were lost", b"four"]


def test_a_stream_hands_on_whole_lines_whatever_is_in_them(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, "lines")
    stream = stream_to(writer, "ascii")
    print("a", "\u20ac", file=stream)
    stream.write("b" * 20_000 + "\n")
    assert _read(pipe, lambda found: found.count(b"\n") == 2) == b"a \\u20ac\n" + b"b" * 20_000 + b"\n"
    stream.write("half a line")
    writer.close()
    assert pipe.read() == b""


def test_a_stream_that_was_closed_before_the_start_has_no_number(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert descriptor_of(None, file) == file.fileno()
    assert descriptor_of(file, None) is None, "its number may be a database's by now"
    writer = LineWriter(None, "lines")
    writer.write(b"a\n")
    writer.close()
    assert writer.lost == 1


# the process


async def _asked_and_stopped(folder: Path, pipe: Pipe) -> tuple[int, list[str]]:
    async with (
        upstream() as auth,
        started(folder, ini_of(auth.url, "[log]\naccess = json\n"), pipe.writing) as gateway,
    ):
        os.close(pipe.writing)
        pipe.writing = -1
        assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
        gateway.signal(signal.SIGTERM)
        return await gateway.code(), gateway.lines


def test_a_stop_ends_though_nobody_reads_stdout(tmp_path: Path, pipe: Pipe) -> None:
    pipe.fill()
    code, lines = asyncio.run(_asked_and_stopped(tmp_path, pipe))
    assert code == 0
    assert any("1 access lines were lost" in line for line in lines)
    assert lines[-1].endswith("stopped")


def test_a_stop_is_clean_though_stdout_was_closed_by_its_reader(tmp_path: Path, pipe: Pipe) -> None:
    pipe.close_reading()
    code, lines = asyncio.run(_asked_and_stopped(tmp_path, pipe))
    assert (code, lines[-1].endswith("stopped")) == (0, True)


def test_access_lines_are_there_after_a_clean_stop(tmp_path: Path, pipe: Pipe) -> None:
    code, _ = asyncio.run(_asked_and_stopped(tmp_path, pipe))
    assert (code, pipe.read().count(b'"path": "/api/v1/auth/x"')) == (0, 1)


async def _answers(port: int) -> None:
    """Once it listens, it answers."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ConnectionError):
                assert (await ask(port, "GET", "/api/v1/auth/x")).status == 200
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _started_with(folder: Path, pipe: Pipe) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A process whose stderr is this pipe, and its port."""
    async with upstream() as auth:
        (folder / "gateway.ini").write_text(ini_of(auth.url))
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            PYTHON, str(ROOT / "run.py"), cwd=folder, env=environment_of(PORT=str(port)), stderr=pipe.writing
        )
        os.close(pipe.writing)
        pipe.writing = -1
        try:
            yield process, port
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def test_nobody_waits_for_who_does_not_read_stderr(tmp_path: Path, pipe: Pipe) -> None:
    """Not the start, nor traffic, nor a reload, nor the end."""
    pipe.fill()

    async def run() -> None:
        async with _started_with(tmp_path, pipe) as (process, port):
            for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM):
                await _answers(port)
                process.send_signal(number)
            assert await asyncio.wait_for(process.wait(), 20) == 0

    asyncio.run(run())


def test_a_stderr_that_its_reader_closed_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with upstream() as auth, started(tmp_path, ini_of(auth.url)) as gateway:
            assert gateway.process.stderr is not None
            gateway.process._transport.get_pipe_transport(2).close()  # type: ignore[attr-defined]  # no other way
            gateway.signal(signal.SIGUSR2)
            for _ in range(3):
                assert (await ask(gateway.port, "GET", "/api/v1/auth/x")).status == 200
            gateway.signal(signal.SIGTERM)
            assert await asyncio.wait_for(gateway.process.wait(), 20) == 0

    asyncio.run(run())


def test_every_line_is_there_where_stderr_is_read_late(tmp_path: Path, pipe: Pipe) -> None:
    """What the pipe does not take waits in the process, and the end waits for it."""

    async def run() -> None:
        async with _started_with(tmp_path, pipe) as (process, port):
            for _ in range(200):
                await _answers(port)
                process.send_signal(signal.SIGUSR2)
            await _answers(port)
            process.send_signal(signal.SIGTERM)
            said = await asyncio.to_thread(_read, pipe, lambda found: found.endswith(b"stopped\n"))
            assert len(said) > 65_536
            assert said.count(b'"circuits"') == 200
            assert await asyncio.wait_for(process.wait(), 20) == 0

    asyncio.run(run())
