"""What connections share: how much may be retried at once, ids, the Date line, tasks whose faults are logged."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from engadi_gateway.net.context import DateLine, RequestIds, RetryBudget, RetryPolicy
from engadi_gateway.wire.headers import HeaderPolicy, scan
from tests.exchanges import WALL
from tests.world import a_world, until


@pytest.mark.parametrize(
    ("percent", "least", "in_flight", "allowed"),
    [(20, 3, 0, 3), (20, 3, 15, 3), (20, 3, 20, 4), (20, 3, 100, 20), (0, 3, 1000, 3), (0, 0, 1000, 0), (100, 0, 7, 7)],
)
def test_retries_at_once_are_a_share_of_what_is_in_flight_and_at_least_a_few(
    percent: int, least: int, in_flight: int, allowed: int
) -> None:
    budget = RetryBudget(RetryPolicy(budget_percent=percent, budget_min=least))
    while not budget.is_spent(in_flight):
        budget.retrying += 1
    assert budget.retrying == allowed


def test_ids_are_uuids_of_version_4_and_never_the_same() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(80_000)]  # some four hundred blocks of random bytes
    assert len(set(made)) == len(made)
    for text in made[::40]:
        assert str(uuid.UUID(text)) == text
        assert uuid.UUID(text).version == 4
        assert uuid.UUID(text).variant == uuid.RFC_4122
    assert {text[19] for text in made} == set("89ab")
    for place in range(36):
        if place not in {8, 13, 14, 18, 19, 23}:
            assert len({text[place] for text in made}) == 16, f"all digits come at {place}"


def test_each_new_trace_is_one_of_version_00_that_nobody_asked_to_record() -> None:
    ids = RequestIds()
    made = [ids.new_trace() for _ in range(20_000)]
    lines = [[(b"traceparent", trace)] for trace in made]
    assert [scan(line, HeaderPolicy())[1] for line in lines] == [{b"traceparent": trace} for trace in made], "all go on"
    assert all(trace.startswith(b"00-") and trace.endswith(b"-00") for trace in made)
    assert len({trace[3:35] for trace in made}) == len({trace[36:52] for trace in made}) == len(made)


def test_the_date_is_the_second_that_it_is() -> None:
    line = DateLine()
    for wall in (WALL, WALL + 0.9, WALL + 1, WALL + 86400, WALL):
        value = line.at(wall).decode()
        assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", value)
        assert parsedate_to_datetime(value).timestamp() == int(wall)


def test_a_tasks_fault_is_logged_and_a_task_that_ended_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks() -> None:
        raise ZeroDivisionError("a fault of ours")

    async def run() -> None:
        async with a_world(tmp_path) as world:
            context = world.gateway._context
            with caplog.at_level(logging.ERROR, "engadi"):
                context.spawn(breaks(), "a task")
                assert {task.get_name() for task in context.tasks} == {"a task"}
                await until(lambda: not context.tasks)
            assert "internal error in a task" in caplog.text
            assert "a fault of ours" in caplog.text

    asyncio.run(run())
