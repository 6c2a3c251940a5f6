"""What holds for all tests: made-up examples have no clock; and what PyPy is not asked, and why."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no fault of an example
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_IS_PYPY = sys.implementation.name == "pypy"
_TOOLS = "the tools that measure use clocks and affinities that only CPython has"
_MEMORY = "PyPy keeps garbage for a while, and cannot say how large one object is"
_NOT_ON_PYPY = {
    "test_slow_and_many": _TOOLS,
    "test_a_gibibyte_passes_": _MEMORY,
    "test_a_million_clients_cost_bounded_bytes_": _MEMORY,
    "test_over_tls_who_does_nothing_takes_little_": _MEMORY,
}
#: pytest's own name for it. These are tests of the tools, and cannot even be imported there.
collect_ignore_glob = ["test_bench*.py"] if _IS_PYPY else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if _IS_PYPY else ():
        for start, reason in _NOT_ON_PYPY.items():
            if item.name.startswith(start):
                item.add_marker(pytest.mark.skip(reason=reason))
