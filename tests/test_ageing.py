"""A clock that is set: what is old by it, step by step."""

from __future__ import annotations

import pytest

from engadi_gateway.store.ageing import Ageing

DAY_MS = 86_400_000
HOUR_S = 3600.0

#: What the clock is off by at each hour, and what the moment is then off by, in hours.
STEPS: dict[str, tuple[list[float], list[float]]] = {
    "right": ([0, 0, 0], [0, 0, 0]),
    "ahead for two hours": ([8760, 8760, 0, 0], [1, 2, 0, 0]),
    "ahead for a day": ([8760.0] * 25, [*range(1, 24), 8760.0, 8760.0]),
    "ahead for two times half a day": ([99.0] * 12 + [0.0] + [99.0] * 12, [*range(1, 13), 0.0, *range(1, 13)]),
    "ahead by little": ([0.5, 0.5], [0.5, 0.5]),
    "set right after it was behind": ([3, 3, 3, 3], [1, 2, 3, 3]),
    "set back": ([-5, -5, 0], [-5, -5, -4]),
    "slower than time": ([-0.5, -1], [-0.5, -1]),
}


@pytest.mark.parametrize(("clock", "moment"), STEPS.values(), ids=STEPS.keys())
def test_the_clock_is_believed_as_far_as_twice_the_time_that_passed(clock: list[float], moment: list[float]) -> None:
    ageing = Ageing(DAY_MS, 100.0)
    found = []
    for hour, off in enumerate(clock, 1):
        wall_ms = DAY_MS + int((hour + off) * HOUR_S * 1000)
        found.append((ageing.moment_ms(wall_ms, 100.0 + hour * HOUR_S) - DAY_MS) / HOUR_S / 1000 - hour)
    assert found == moment
