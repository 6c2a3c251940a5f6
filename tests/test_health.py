"""Health checks against real upstreams; what follows from what is seen, as a table."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping

import pytest

from engadi_gateway.errors import HeaderLine
from engadi_gateway.health import HealthChecker, judged
from engadi_gateway.model import HealthStatus, Service, ServiceHealth
from engadi_gateway.net.fetch import Fetcher, FetchError, FetchReply
from engadi_gateway.settings.load import Settings
from tests.fakes import Seen, Upstream, Wire, upstream

UP, SLOW, DOWN, UNKNOWN = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN
WALL = 1_700_000_000.5


@pytest.mark.parametrize(
    ("seen", "want"),
    [
        pytest.param([], UNKNOWN, id="never checked"),
        pytest.param([UP], UP, id="good at once"),
        pytest.param([SLOW], SLOW, id="degraded at once"),
        pytest.param([DOWN], DOWN, id="bad from the first"),
        pytest.param([UP, DOWN], SLOW, id="one bad check is not the end"),
        pytest.param([UP, DOWN, DOWN], SLOW, id="nor are two"),
        pytest.param([UP, DOWN, DOWN, DOWN], DOWN, id="three are"),
        pytest.param([UP, DOWN, DOWN, UP, DOWN, DOWN], SLOW, id="three in a row, not in all"),
        pytest.param([UP, DOWN, UP], UP, id="one good check forgives what did not fell it"),
        pytest.param([DOWN, UP], DOWN, id="one good check does not raise it"),
        pytest.param([DOWN, UP, UP], UP, id="two do"),
        pytest.param([DOWN, UP, DOWN, UP], DOWN, id="two in a row, not in all"),
        pytest.param([DOWN, SLOW, SLOW], SLOW, id="raised to what was seen"),
        pytest.param([DOWN, SLOW, UP], UP, id="degraded counts as an answer"),
    ],
)
def test_fall_three_rise_two(seen: list[HealthStatus], want: HealthStatus) -> None:
    health = ServiceHealth("a", "http://a")
    for check in seen:
        health = judged(health, check, fall=3, rise=2)
    assert health.status is want


def status_of(code: int, body: bytes = b"") -> Callable[[Seen, Wire], Awaitable[None]]:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (code, len(body), body))

    return script


async def never(seen: Seen, wire: Wire) -> None:
    await asyncio.Event().wait()


async def resets(seen: Seen, wire: Wire) -> None:
    wire.reset()


async def without_end(seen: Seen, wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 70_000)
    await asyncio.Event().wait()


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS here")


class Healthy:
    """Remembers whom the breaker would be told about."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, now: float) -> None:
        self.names.append(name)


def checker_of(services: Mapping[str, Service], noted: Healthy | None = None, **values: object) -> HealthChecker:
    fetch = Fetcher(no_tls)
    settings = Settings.of({}, **{"health_timeout": 1.0, **values})
    return HealthChecker(services, settings, fetch, noted or Healthy(), lambda: WALL)


def checked(
    script: Callable[[Seen, Wire], Awaitable[None]], **values: object
) -> tuple[ServiceHealth, Upstream, Healthy]:
    async def run() -> tuple[ServiceHealth, Upstream, Healthy]:
        noted = Healthy()
        async with upstream(script) as server:
            checker = checker_of({"a": Service("a", server.url + "/base", "/up?x")}, noted, **values)
            health = await checker.check_now("a")
            assert health is not None
            assert checker.status() == {"a": health}
            return health, server, noted

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("script", "values", "want"),
    [
        pytest.param(status_of(200, b"fine"), {}, (UP, "", ["a"]), id="200"),
        pytest.param(status_of(204), {}, (UP, "", ["a"]), id="204"),
        pytest.param(status_of(200), {"health_slow": 0.0}, (SLOW, "slow", []), id="slow"),
        pytest.param(status_of(302), {}, (SLOW, "status 302", []), id="a redirect is not followed"),
        pytest.param(status_of(404), {}, (SLOW, "status 404", []), id="404"),
        pytest.param(status_of(500), {}, (DOWN, "status 500", []), id="500"),
        pytest.param(status_of(503), {}, (DOWN, "status 503", []), id="503"),
        pytest.param(without_end, {}, (UP, "", ["a"]), id="a body without end is not read to it"),
        pytest.param(never, {"health_timeout": 0.05}, (DOWN, "timeout", []), id="no answer in time"),
        pytest.param(resets, {}, (DOWN, "upstream_closed", []), id="reset"),
    ],
)
def test_what_one_check_says(
    script: Callable[[Seen, Wire], Awaitable[None]],
    values: dict[str, object],
    want: tuple[HealthStatus, str, list[str]],
) -> None:
    health, _, noted = checked(script, **values)
    assert (health.status, health.last_error, noted.names) == want
    is_good = health.status is not DOWN
    assert (health.success_count, health.error_count) == (int(is_good), int(not is_good))
    assert health.last_check == int(WALL * 1000)
    assert health.response_time is not None
    assert health.response_time > 0


def test_what_is_asked() -> None:
    _, server, _ = checked(status_of(200))
    assert [(seen.method, seen.target, seen.all("authorization")) for seen in server.seen] == [
        ("GET", "/base/up?x", [])
    ]


def test_nobody_listens() -> None:
    async def run() -> ServiceHealth | None:
        async with upstream() as server:
            url = server.url
        return await checker_of({"a": Service("a", url)}).check_now("a")

    began = time.monotonic()
    health = asyncio.run(run())
    assert health is not None
    assert (health.status, health.last_error) == (DOWN, "connect_refused")
    assert health.response_time is not None
    assert 0 <= health.response_time <= (time.monotonic() - began) * 1000 + 1


def test_counts_add_up() -> None:
    async def run() -> ServiceHealth:
        answers = iter([200, 500, 500, 200, 404])

        async def script(seen: Seen, wire: Wire) -> None:
            await status_of(next(answers))(seen, wire)

        async with upstream(script) as server:
            checker = checker_of({"a": Service("a", server.url)})
            for _ in range(5):
                await checker.check_now("a")
            return checker.status()["a"]

    health = asyncio.run(run())
    assert (health.success_count, health.error_count) == (3, 2)
    assert (health.consecutive_successes, health.consecutive_failures) == (2, 0)


def test_an_unknown_service_is_not_checked() -> None:
    assert asyncio.run(checker_of({}).check_now("a")) is None


# several services

Answer = Callable[[str], Awaitable[FetchReply]]


def checker_with(
    answer: Answer,
    *names: str,
    noted: Healthy | None = None,
    tell_unhealthy: Callable[[frozenset[str]], None] = lambda names: None,
    **values: object,
) -> HealthChecker:
    """With a fetch that answers by URL: for what no real peer can be timed to do."""

    async def fetch(url: str, lines: list[HeaderLine], timeout_s: float, max_bytes: int) -> FetchReply:
        return await answer(url)

    services = {name: Service(name, f"http://{name}") for name in names}
    return HealthChecker(services, Settings.of({}, **values), fetch, noted or Healthy(), lambda: WALL, tell_unhealthy)


async def ok(url: str) -> FetchReply:
    return FetchReply(200, b"")


def test_all_are_asked_at_once() -> None:
    async def run() -> list[HealthStatus]:
        asked: set[str] = set()
        all_asked = asyncio.Event()

        async def answer(url: str) -> FetchReply:
            asked.add(url)
            if len(asked) == 9:
                all_asked.set()
            await asyncio.wait_for(all_asked.wait(), 5)
            return FetchReply(200, b"")

        checker = checker_with(answer, *"abcdefghi")
        await checker.check_all()
        return [health.status for health in checker.status().values()]

    assert asyncio.run(run()) == [UP] * 9


def test_a_fault_in_one_check_is_logged_and_is_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(url: str) -> FetchReply:
        if url.startswith("http://b"):
            raise ZeroDivisionError
        return FetchReply(200, b"")

    checker = checker_with(answer, "a", "b", "c")
    with caplog.at_level(logging.ERROR, "engadi"):
        asyncio.run(checker.check_all())
    assert {name: health.status for name, health in checker.status().items()} == {"a": UP, "b": UNKNOWN, "c": UP}
    assert caplog.messages == ["health check of b failed"]


def test_a_change_is_said_once_and_a_good_start_is_no_news_but_a_bad_one_is(caplog: pytest.LogCaptureFixture) -> None:
    statuses = {"a": 200, "b": 200, "c": 500}

    async def answer(url: str) -> FetchReply:
        return FetchReply(statuses[url[7]], b"")

    async def run() -> None:
        checker = checker_with(answer, "a", "b", "c")
        for status, rounds in ((200, 2), (500, 5), (200, 4)):
            statuses["b"] = status
            for _ in range(rounds):
                await checker.check_all()

    with caplog.at_level(logging.INFO, "engadi"):
        asyncio.run(run())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "health of c: unhealthy, was unknown: status 500"),
        ("WARNING", "health of b: degraded, was healthy: status 500"),
        ("WARNING", "health of b: unhealthy, was degraded: status 500"),
        ("INFO", "health of b: healthy, was unhealthy"),
    ]


def test_who_is_down_is_told_when_that_changes_and_not_after_every_check() -> None:
    told: list[frozenset[str]] = []
    status = 200

    async def fetch(url: str, lines: list[HeaderLine], timeout_s: float, max_bytes: int) -> FetchReply:
        return FetchReply(status, b"")

    settings = Settings.of({}, health_fall=1, health_rise=1)
    services = {name: Service(name, f"http://{name}") for name in "abc"}
    checker = HealthChecker(services, settings, fetch, Healthy(), tell_unhealthy=told.append)

    async def check(times: int) -> None:
        for _ in range(times):
            await checker.check_all()

    asyncio.run(check(5))
    assert set(told) == {frozenset()}
    assert len(told) == 1 + 3, "at first, and when each was known"
    status = 500
    asyncio.run(check(5))
    assert told[-1] == frozenset("abc")
    assert len(told) == 1 + 3 + 3
    checker.replace_settings(Settings.of({}, health_interval=0.0))
    assert told[-1] == frozenset(), "what nobody looks at any more is not down for ever"


def test_the_public_page_has_names_and_states_only() -> None:
    async def answer(url: str) -> FetchReply:
        if url.startswith("http://b"):
            raise FetchError("connect_refused")
        return FetchReply(200, b"")

    checker = checker_with(answer, "b", "a")
    assert checker.aggregate() == {"status": "healthy", "services": {"a": "unknown", "b": "unknown"}}
    asyncio.run(checker.check_all())
    assert checker.aggregate() == {"status": "degraded", "services": {"a": "healthy", "b": "unhealthy"}}


def test_replaced_services_keep_what_is_known_of_those_that_stay() -> None:
    checker = checker_with(ok, "a", "b", "c")
    asyncio.run(checker.check_all())
    checker.replace_services({"a": Service("a", "http://a"), "b": Service("b", "http://elsewhere")})
    assert {name: health.status for name, health in checker.status().items()} == {"a": UP, "b": UNKNOWN}


def test_a_service_replaced_while_it_is_asked_is_not_written_over() -> None:
    noted = Healthy()

    async def answer(url: str) -> FetchReply:
        checker.replace_services({"a": Service("a", "http://elsewhere")})
        return FetchReply(200, b"")

    checker = checker_with(answer, "a", noted=noted)
    asyncio.run(checker.check_all())
    assert checker.status() == {"a": ServiceHealth("a", "http://elsewhere")}
    assert noted.names == []


def test_what_an_earlier_run_knew_counts_until_the_first_check() -> None:
    told: list[frozenset[str]] = []
    checker = checker_with(ok, "a", "b", tell_unhealthy=told.append)
    asyncio.run(checker.check_now("b"))
    now_known = checker.status()["b"]
    rows = [
        ServiceHealth("a", "http://a", DOWN, last_check=1),
        ServiceHealth("b", "http://b", DOWN, last_check=1),
        ServiceHealth("gone", "http://gone", DOWN, last_check=1),
    ]
    checker.restore(rows)
    assert checker.status() == {"a": rows[0], "b": now_known}
    assert told[-1] == frozenset("a"), "a split passes it over from the start"
    checker.replace_services({"a": Service("a", "http://elsewhere")})
    checker.restore(rows)
    assert checker.status() == {"a": ServiceHealth("a", "http://elsewhere")}


# the loop


def rounds(checker: HealthChecker, count: int) -> list[float]:
    """Run the loop for so many rounds; the waits it asked for."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == count:
            raise asyncio.CancelledError

    async def run() -> None:
        task = asyncio.create_task(checker.run(sleep))
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return waits


def test_the_interval_is_jittered_by_a_tenth() -> None:
    checker = checker_with(ok, "a", health_interval=60.0)
    waits = rounds(checker, 200)
    assert checker.status()["a"].success_count == 200
    assert 54.0 <= min(waits) < 56.0 < 64.0 < max(waits) <= 66.0


def test_short_intervals_are_kept() -> None:
    assert max(rounds(checker_with(ok, "a", health_interval=0.25), 20)) <= 0.275


def test_no_interval_no_checks_until_it_is_switched_on() -> None:
    checker = checker_with(ok, "a", health_interval=0.0)
    assert all(wait > 0.5 for wait in rounds(checker, 5))
    assert checker.status()["a"].status is UNKNOWN
    checker.replace_settings(Settings.of({}, health_interval=30.0))
    rounds(checker, 1)
    assert checker.status()["a"].status is UP


def test_the_loop_outlives_every_fault() -> None:
    async def answer(url: str) -> FetchReply:
        raise ZeroDivisionError

    assert len(rounds(checker_with(answer, "a"), 3)) == 3


def test_other_settings_are_not_waited_for() -> None:
    """Neither for the end of an hour, nor while it is switched off."""
    checks = asyncio.Queue[HealthChecker]()

    class Told(HealthChecker):
        async def check_all(self) -> None:
            await checks.put(self)

    async def run() -> None:
        settings = [Settings.of({}, health_interval=seconds) for seconds in (3600.0, 0.0, 1800.0)]
        checker = Told({}, settings[0], Fetcher(no_tls), Healthy())
        task = asyncio.create_task(checker.run())
        await asyncio.wait_for(checks.get(), 5)
        checker.replace_settings(settings[1])
        await asyncio.sleep(0.01)
        assert checks.empty()
        checker.replace_settings(settings[2])
        await asyncio.wait_for(checks.get(), 5)
        task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("interval_s", [3600.0, 0.0])
def test_who_is_new_is_not_left_unknown_until_the_next_round(interval_s: float) -> None:
    asked: list[str] = []

    async def answer(url: str) -> FetchReply:
        asked.append(url[7])
        return FetchReply(200, b"")

    async def run() -> None:
        checker = checker_with(answer, "a", health_interval=interval_s)
        watching = asyncio.create_task(checker.run_for_arrivals())
        await asyncio.sleep(0)
        assert asked == [], "the first round is not its own"
        await checker.check_now("a")
        for names in ("ab", "ab", "abc"):
            checker.replace_services({name: Service(name, f"http://{name}") for name in names})
            for _ in range(10):
                await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(run())
    assert asked == (["a", "b", "c"] if interval_s else ["a"])


def test_what_is_new_waits_for_no_other_check_and_has_one(caplog: pytest.LogCaptureFixture) -> None:
    """Neither for one that is silent, nor where a round is under way."""
    asked: list[str] = []
    gone: list[str] = []

    async def answer(url: str) -> FetchReply:
        name = url[7]
        asked.append(name)
        if name in "ab":
            try:
                await asyncio.Event().wait()
            finally:
                gone.append(name)
        return FetchReply(200, b"")

    async def run() -> None:
        checker = checker_with(answer, "a")
        tasks = [asyncio.create_task(work()) for work in (checker.run, checker.run_for_arrivals)]
        for names in ("a", "ab", "abc"):
            for _ in range(10):
                await asyncio.sleep(0)
            checker.replace_services({name: Service(name, f"http://{name}") for name in names})
        for _ in range(10):
            await asyncio.sleep(0)
        assert asked == ["a", "b", "c"]
        assert checker.status()["c"].status is UP
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert sorted(gone) == ["a", "b"], "a stop waits for none"
    assert not caplog.records


def test_a_reload_asks_each_service_once() -> None:
    asked: list[str] = []

    async def answer(url: str) -> FetchReply:
        asked.append(url[7])
        return FetchReply(200, b"")

    async def run() -> None:
        checker = checker_with(answer, "a")
        tasks = [asyncio.create_task(work()) for work in (checker.run, checker.run_for_arrivals)]
        for _ in range(10):
            await asyncio.sleep(0)
        checker.replace_settings(Settings.of({}))
        checker.replace_services({name: Service(name, f"http://{name}") for name in "ab"})
        for _ in range(20):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()

    asyncio.run(run())
    assert asked == ["a", "a", "b"]
