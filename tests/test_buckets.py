"""The store of token buckets: what it holds, lets go and costs."""

from __future__ import annotations

import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engadi_gateway.model import LimitType, RateLimitRule
from engadi_gateway.pipeline.buckets import Buckets, BucketStore


def a_rule(rule_id: str = "r", capacity: int = 3, window_s: int = 60) -> RateLimitRule:
    return RateLimitRule(rule_id, "name", LimitType.PER_IP, capacity, window_s)


def fill_store(store: BucketStore, buckets: Buckets, subjects: list[str], full_at: float, at: float) -> None:
    for subject in subjects:
        store.add(buckets, subject, full_at, at)


def test_a_sweep_does_a_bounded_amount_of_work() -> None:
    store = BucketStore(10**6)
    buckets = store.of(a_rule(), 0.0)
    fill_store(store, buckets, [str(number) for number in range(25_000)], 0.5, 0.0)
    left = []
    for _ in range(3):
        store.sweep(600.0)
        left.append(len(store))
    assert left == [15_000, 5_000, 0]


class StoreMachine(RuleBasedStateMachine):
    """Whatever happens, each bucket is filed exactly once, the cap holds, and only full ones are reaped."""

    @initialize(cap=st.integers(2, 12), windows=st.lists(st.integers(1, 50), min_size=1, max_size=3))
    def begin(self, cap: int, windows: list[int]) -> None:
        self.now = 0.0
        self.store = BucketStore(cap)
        self.cap = cap
        self.all = [self.store.of(a_rule(f"r{i}", window_s=window), 0.0) for i, window in enumerate(windows)]

    @rule(index=st.integers(0, 2), subject=st.integers(0, 30), missing=st.floats(0.01, 1), pause=st.floats(0, 30))
    def spend(self, index: int, subject: int, missing: float, pause: float) -> None:
        self.now += pause
        buckets = self.all[index % len(self.all)]
        at = buckets.at(self.now)
        name = str(subject)
        if name in buckets.full_at:
            buckets.full_at[name] = max(buckets.full_at[name], at) + missing
        else:
            self.store.add(buckets, name, at + missing, at)
        assert buckets.full_at[name] >= at + missing

    @rule(pause=st.floats(0, 200))
    def sweep(self, pause: float) -> None:
        self.now += pause
        used = [{name for name, full in one.full_at.items() if full > one.at(self.now)} for one in self.all]
        self.store.sweep(self.now)
        for one, names in zip(self.all, used, strict=True):
            assert names <= set(one.full_at)
            edge = int(one.at(self.now) * 16) / 16
            assert all(full > edge - 1e-9 for full in one.full_at.values()), "a full one was left"

    @rule(index=st.integers(0, 2), window_s=st.integers(1, 50))
    def bend(self, index: int, window_s: int) -> None:
        buckets = self.all[index % len(self.all)]
        before = buckets.at(self.now)
        buckets.bend(window_s, self.now)
        assert buckets.at(self.now) == pytest.approx(before)

    @invariant()
    def is_bounded_and_tidy(self) -> None:
        assert len(self.store) == self.store._held <= self.cap
        for one in self.all:
            filed = [name for file in one._files.values() for name in file]
            assert sorted(filed) == sorted(one.full_at)
            assert all(one._files.values()), "an empty file was left"


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_sweep_does_no_more_for_many_rules_and_goes_on_where_it_stopped() -> None:
    store = BucketStore(1_000_000)
    rules = [store.of(a_rule(str(number)), 0.0) for number in range(7)]
    for buckets in rules:
        fill_store(store, buckets, [f"s{number}" for number in range(4_000)], 0.01, 0.0)
    left = [len(store)]
    while left[-1]:
        store.sweep(60.0)
        left.append(len(store))
    assert left == [28_000, 18_000, 8_000, 0]
    assert store._held == 0


def size_of(buckets: Buckets) -> int:
    """Bytes of everything that a rule's buckets hold: tables, subjects, numbers."""
    tables = sys.getsizeof(buckets.full_at) + sys.getsizeof(buckets._files)
    subjects = sum(map(sys.getsizeof, buckets.full_at))
    numbers = sum(map(sys.getsizeof, buckets.full_at.values()))
    return tables + subjects + numbers + sum(map(sys.getsizeof, buckets._files.values()))


def test_a_million_clients_cost_bounded_bytes_vanish_when_idle_and_never_exceed_the_cap() -> None:
    count = 1_000_000
    store = BucketStore(count)
    buckets = store.of(a_rule(capacity=500, window_s=3600), 0.0)
    for number in range(count):
        store.add(buckets, f"{number >> 16}.{number >> 8 & 255}.{number & 255}.200", number / count, 0.0)
    assert len(store) == count
    assert size_of(buckets) / count < 150
    for number in range(10):
        store.add(buckets, f"192.0.2.{number}", 0.002, 0.0)
    assert len(store) == count, "the cap holds"
    sweeps = 0
    while len(store):
        store.sweep(3600.0)
        sweeps += 1
    assert sweeps <= count / 10_000
    assert size_of(buckets) < 1000, "nothing of it is kept"
