"""The pool of one target: who gets which connection, what is opened, what is closed, who waits and how long."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import replace
from unittest import mock

from engadi_gateway.errors import Reason
from engadi_gateway.net.pool import Pool
from engadi_gateway.net.upstream import UpstreamConnection
from tests.fakes import Upstream, underneath
from tests.pooled import LIMITS, Names, Waits, a_pool, ask, asked, told_in_pool
from tests.world import until


def test_all_that_wait_for_a_target_that_is_gone_are_told_in_their_order() -> None:
    async def run() -> None:
        async with a_pool(replace(LIMITS, max_connections=1)) as (pool, server):
            await server.stop()
            waiters = [ask(pool) for _ in range(3)]
            assert pool.counts() == {"active": 0, "idle": 0, "dialling": 1, "waiting": 3, "upgraded": 0}
            await until(lambda: waiters[0].got is not None)
            await until(lambda: waiters[2].got is not None)
            assert [waiter.got for waiter in waiters] == [Reason.CONNECT_REFUSED] * 3
            await server.start()

    asyncio.run(run())


# who gets which


def test_the_connection_used_last_goes_first() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = await asked(pool), await asked(pool)
        assert pool.counts() == {"active": 2, "idle": 0, "dialling": 0, "waiting": 0, "upgraded": 0}
        pool.give_back(first.connection)
        pool.give_back(second.connection)
        assert pool.counts() == {"active": 0, "idle": 2, "dialling": 0, "waiting": 0, "upgraded": 0}
        assert [ask(pool).got, ask(pool).got] == [second.got, first.got]

    told_in_pool(check)


def test_beyond_the_bound_they_wait_in_order_and_beyond_the_queue_they_are_refused() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = await asked(pool), await asked(pool)
        third, fourth = ask(pool), ask(pool)
        assert ask(pool).got is Reason.OVERLOADED
        assert pool.counts() == {"active": 2, "idle": 0, "dialling": 0, "waiting": 2, "upgraded": 0}
        pool.give_back(second.connection)
        assert (third.got, fourth.got) == (second.got, None)
        pool.give_back(first.connection)
        assert fourth.got is first.got
        assert len(server.raw) == 2

    told_in_pool(check)


def test_those_whose_connection_is_being_made_take_no_place_in_the_queue() -> None:
    async def run() -> None:
        names = Names("127.0.0.1")
        names.may_answer.clear()
        async with a_pool(names=names) as (pool, _):
            waiters = [ask(pool) for _ in range(5)]
            assert [waiter.got for waiter in waiters] == [None, None, None, None, Reason.OVERLOADED]
            assert pool.counts()["dialling"] == 2
            pool.sweep(time.monotonic() + 3600)  # nor are they turned away: the dial has a time of its own
            assert [waiter.got for waiter in waiters[:4]].count(Reason.OVERLOADED) == 2
            names.may_answer.set()
            await until(lambda: pool.counts()["dialling"] == 0)
            assert sum(isinstance(waiter.got, UpstreamConnection) for waiter in waiters) == 2

    asyncio.run(run())


def test_who_only_waits_is_whoever_has_no_dial_of_his_own() -> None:
    async def run() -> None:
        names = Names("127.0.0.1")
        async with a_pool(names=names) as (pool, _):
            await asked(pool)
            names.may_answer.clear()
            dialled_for, behind = ask(pool), ask(pool)
            assert [pool.only_waits(waiter) for waiter in (dialled_for, behind)] == [False, True]
            pool.leave(dialled_for)
            assert not pool.only_waits(behind), "now it is dialled for this one"
            names.may_answer.set()
            await until(lambda: behind.got is not None)

    asyncio.run(run())


def test_who_left_gets_nothing_and_the_connection_made_for_it_is_kept() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        gone = ask(pool)
        pool.leave(gone)
        await until(lambda: pool.counts()["idle"])
        assert gone.got is None
        assert pool.counts() == {"active": 0, "idle": 1, "dialling": 0, "waiting": 0, "upgraded": 0}

    told_in_pool(check)


def test_what_died_idle_is_not_given_out() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first = (await asked(pool)).connection
        pool.give_back(first)
        with underneath(first.transport) as sock:
            sock.shutdown(socket.SHUT_RD)  # as if the upstream had closed just now
        second = await asked(pool)
        assert second.got is not first
        assert len(server.raw) == 2

    told_in_pool(check)


def test_what_its_upstream_closed_is_forgotten() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        pool.give_back((await asked(pool)).connection)
        await server.stop()
        await until(lambda: not pool.counts()["idle"])
        assert not any(pool.counts().values())
        await server.start()

    told_in_pool(check)


def test_what_has_served_and_died_is_not_given_to_who_waits_but_another_is_made() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first = (await asked(pool)).connection
        waiter = ask(pool)
        first.served = 1
        with underneath(first.transport) as sock:
            sock.shutdown(socket.SHUT_RD)
        pool.give_back(first)
        await until(lambda: waiter.got is not None)
        assert waiter.connection is not first
        assert pool.counts() == {"active": 1, "idle": 0, "dialling": 0, "waiting": 0, "upgraded": 0}

    told_in_pool(check, limits=replace(LIMITS, max_connections=1))


def test_who_met_a_dead_connection_gets_one_that_nobody_has_used() -> None:
    """Or the next may be dead as well, where an upstream closes each after one reply and does not say so."""
    names = Names("127.0.0.1")

    async def check(pool: Pool, server: Upstream) -> None:
        used = (await asked(pool)).connection
        used.served = 1
        names.may_answer.clear()
        plain, wary, last = Waits(), Waits(), Waits()
        assert [pool.take(plain), pool.take(wary, is_new=True), pool.take(last)] == [None, None, None]
        for waiter in (plain, last):
            pool.give_back(used)
            assert (waiter.got, wary.got) == (used, None)
        pool.give_back(used)
        assert (wary.got, pool.counts()["idle"]) == (None, 1)
        names.may_answer.set()
        await until(lambda: wary.got is not None)
        assert wary.connection is not used

    told_in_pool(check, limits=replace(LIMITS, max_connections=3, queue_size=3), names=names)


def test_who_met_a_dead_connection_of_a_full_pool_gets_the_one_in_its_place() -> None:
    """Who waited before is served by the others."""
    names = Names("127.0.0.1")

    async def check(pool: Pool, server: Upstream) -> None:
        used, dead = (await asked(pool)).connection, (await asked(pool)).connection
        used.served = 1
        names.may_answer.clear()
        plain = ask(pool)
        dead.drop()
        await until(lambda: pool.counts()["dialling"] == 1)
        wary, other = Waits(), Waits()
        assert [pool.take(wary, is_new=True), pool.take(other, is_new=True)] == [None, None]
        for waiter in (plain, other):
            pool.give_back(used)
            assert (waiter.got, wary.got) == (used, None), "of one dial the other would wait in vain"
        pool.give_back(used)
        assert (wary.got, pool.counts()["idle"]) == (None, 1)
        names.may_answer.set()
        await until(lambda: wary.got is not None)
        assert wary.connection is not used

    told_in_pool(check, limits=replace(LIMITS, queue_size=3), names=names)


def test_a_new_connection_goes_first_to_who_met_a_dead_one() -> None:
    names = Names("127.0.0.1")
    order: list[Waits] = []

    class Noted(Waits):
        def connected(self, connection: UpstreamConnection) -> None:
            super().connected(connection)
            order.append(self)

    async def check(pool: Pool, server: Upstream) -> None:
        names.may_answer.clear()
        plain, wary = Noted(), Noted()
        assert [pool.take(plain), pool.take(wary, is_new=True)] == [None, None]
        names.may_answer.set()
        await until(lambda: len(order) == 2)
        assert order == [wary, plain]

    told_in_pool(check, names=names)


# what is closed


def test_what_was_idle_too_long_goes_the_oldest_first() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = (await asked(pool)).connection, (await asked(pool)).connection
        pool.give_back(first)
        pool.give_back(second)
        first.idle_since, second.idle_since = 100.0, 200.0
        pool.sweep(155.0)
        assert pool.counts()["idle"] == 2
        pool.sweep(155.1)
        assert pool.counts()["idle"] == 1
        assert ask(pool).got is second

    told_in_pool(check, limits=replace(LIMITS, idle_timeout_s=55.0))


def test_who_waited_too_long_is_turned_away_the_others_wait_on() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        with mock.patch.object(time, "monotonic", return_value=100.0):
            early = ask(pool)
        with mock.patch.object(time, "monotonic", return_value=200.0):
            late = ask(pool)
        pool.sweep(105.0)
        assert early.got is None
        pool.sweep(105.1)
        assert [early.got, late.got] == [Reason.OVERLOADED, None]
        pool.leave(late)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_timeout_s=5.0))


def test_whoever_leaves_a_long_queue_is_found_at_once() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        waiters, uploads = [ask(pool) for _ in range(3)], [Waits() for _ in range(4)]
        for upload in uploads:
            assert pool.take(upload, is_upload=True) is None
        queues = pool._waiters, pool._late
        pool.leave(waiters[1])
        assert pool.upload_ends(uploads[2])
        assert not pool.upload_ends(uploads[2])
        assert (pool._waiters is queues[0], pool._late is queues[1]) == (True, True), "nobody else is looked at"
        assert (list(pool._waiters), list(pool._late)) == (
            [waiters[0], waiters[2], uploads[0]],
            [uploads[1], uploads[3]],
        )
        for waiter in (waiters[0], waiters[2], *uploads):
            pool.leave(waiter)
            pool.upload_ends(waiter)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_size=20))


class Uploads(Waits):
    """One that tells the pool when it was turned away, as all do who ask."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def not_connected(self) -> None:
        super().not_connected()
        self.pool.upload_ends(self)


def test_uploads_that_wait_for_others_are_not_turned_away_all_at_once() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        await asked(pool)
        first, late = Uploads(pool), [Uploads(pool) for _ in range(1000)]
        assert pool.take(first, is_upload=True) is None
        assert [pool.take(upload, is_upload=True) for upload in late] == [None] * 1000
        waiters = [ask(pool) for _ in range(999)]
        assert ask(pool).got is Reason.OVERLOADED
        pool.upload_ends(first)
        assert [upload.got for upload in late] == [None] * 1000
        pool.leave(waiters[0])
        pool.sweep(time.monotonic())
        assert (list(pool._waiters)[-1], len(pool._late)) == (late[0], 999)
        for waiter in list(pool._waiters):
            pool.leave(waiter)
        for upload in late:
            pool.leave(upload)
            pool.upload_ends(upload)
            pool.leave(upload)

    told_in_pool(check, limits=replace(LIMITS, max_connections=1, queue_size=1000))


def test_no_more_are_kept_idle_than_were_asked_for() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first, second = await asked(pool), await asked(pool)
        pool.give_back(first.connection)
        pool.give_back(second.connection)
        await until(lambda: pool.counts() == {"active": 0, "idle": 1, "dialling": 0, "waiting": 0, "upgraded": 0})
        assert ask(pool).got is first.got

    told_in_pool(check, limits=replace(LIMITS, max_idle=1))


def test_the_end_takes_dials_and_connections_along() -> None:
    async def run() -> None:
        names = Names("127.0.0.1")
        limits = replace(LIMITS, max_connections=3, connect_timeout_s=60.0)
        async with a_pool(limits, names) as (pool, server), asyncio.timeout(10):
            idle = (await asked(pool)).connection
            await asked(pool)
            pool.give_back(idle)
            names.may_answer.clear()
            assert ask(pool).got is idle
            pool.give_back(idle)
            waiter = ask(pool)
            assert waiter.got is idle
            under_way = ask(pool)
            assert pool.counts()["dialling"] == 1
            await asyncio.sleep(0)  # it is waiting for the name
            pool.leave(under_way)
            await pool.close()
            await until(lambda: not any(pool.counts().values()))
            assert under_way.got is None
            await until(lambda: not server.open_connections)

    asyncio.run(run())


# other limits


def test_other_limits_hold_at_once() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        first = await asked(pool)
        second = ask(pool)
        assert pool.counts()["waiting"] == 1
        pool.take_limits(LIMITS, None)
        await until(lambda: second.got is not None)
        pool.give_back(first.connection)
        pool.give_back(second.connection)
        pool.take_limits(replace(LIMITS, max_idle=1), None)
        assert pool.counts()["idle"] == 1
        assert ask(pool).got is second.got

    told_in_pool(check, limits=replace(LIMITS, max_connections=1))


def test_under_other_authorities_nothing_that_was_opened_before_is_used_again() -> None:
    async def check(pool: Pool, server: Upstream) -> None:
        idle, busy = (await asked(pool)).connection, (await asked(pool)).connection
        pool.give_back(idle)
        pool.take_limits(LIMITS, ssl.create_default_context())
        pool.give_back(busy)
        assert pool.counts()["idle"] == 0
        await until(lambda: not server.open_connections)
        pool.take_limits(LIMITS, None)
        assert (await asked(pool)).connection not in {idle, busy}

    told_in_pool(check)
