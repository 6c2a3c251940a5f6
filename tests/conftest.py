"""What PyPy is not asked, and why. All else passes there as well."""

from __future__ import annotations

import sys

import pytest

_TOOLS = "the tools that measure use clocks and affinities that only CPython has"
_MEMORY = "PyPy keeps garbage for a while, and cannot say how large one object is"
_NOT_ON_PYPY = {
    "test_bench.py": _TOOLS,
    "test_bench_cores.py": _TOOLS,
    "test_bench_instructions.py": _TOOLS,
    "test_bench_log.py": _TOOLS,
    "test_bench_profile.py": _TOOLS,
    "test_slow_and_many": _TOOLS,
    "test_a_gibibyte_passes_": _MEMORY,
    "test_a_million_clients_cost_bounded_bytes_": _MEMORY,
    "test_over_tls_who_does_nothing_takes_little_": _MEMORY,
}


def pytest_ignore_collect(collection_path: object) -> bool | None:
    """The modules among them cannot even be imported there."""
    is_left_out = str(collection_path).rpartition("/")[2] in _NOT_ON_PYPY
    return True if is_left_out and sys.implementation.name == "pypy" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if sys.implementation.name == "pypy" else ():
        for start, reason in _NOT_ON_PYPY.items():
            if item.name.startswith(start):
                item.add_marker(pytest.mark.skip(reason=reason))
