"""Slots and queue: in order, within their limits, and nothing is lost when waiters give up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.serve.admission import Admission
from tunesmith.serve.refusals import RequestError


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_at_most_slots_run_and_the_rest_follow_in_order():
    async def scenario():
        admission = Admission(2, 10)
        order, most = [], 0

        async def work(number):
            nonlocal most
            async with admission.slot():
                order.append(number)
                most = max(most, admission.running)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(work(number) for number in range(8)))
        return order, most, admission.running, admission.waiting

    assert asyncio.run(scenario()) == (list(range(8)), 2, 0, 0)


def test_a_full_queue_is_refused_with_the_time_to_come_back():
    async def scenario():
        admission = Admission(1, 0)
        async with admission.slot():
            with pytest.raises(RequestError) as caught:
                async with admission.slot():
                    pass
        return caught.value

    error = asyncio.run(scenario())
    assert (error.http_status, error.kind, error.code) == (429, "rate_limit_error", "queue_full")
    assert int(error.headers["retry-after"]) >= 1
    assert int(error.headers["retry-after-ms"]) >= 50


def test_who_waits_too_long_is_refused_and_leaves_the_queue():
    async def scenario():
        admission = Admission(1, 1, wait_seconds=0.01)
        async with admission.slot():
            with pytest.raises(RequestError) as caught:
                async with admission.slot():
                    pass
            return caught.value.http_status, admission.waiting

    assert asyncio.run(scenario()) == (429, 0)


def test_closing_refuses_who_waits_and_who_comes_but_not_who_runs():
    async def scenario():
        admission = Admission(1, 5)
        async with admission.slot():
            waiting = asyncio.create_task(_hold(admission))
            await settle()
            admission.close()
            with pytest.raises(RequestError) as queued:
                await waiting
            with pytest.raises(RequestError) as late:
                await _hold(admission)
            running = admission.running
        return queued.value.code, late.value.code, running, admission.running

    assert asyncio.run(scenario()) == ("shutting_down", "shutting_down", 1, 0)


async def _hold(admission):
    async with admission.slot():
        await asyncio.sleep(0)


def test_a_slot_that_is_handed_to_a_waiter_who_just_left_is_passed_on():
    async def scenario():
        admission = Admission(1, 5)
        first = admission.slot()
        await first.__aenter__()
        leaver = asyncio.create_task(_hold(admission))
        stayer = asyncio.create_task(_hold(admission))
        await settle()
        await first.__aexit__(None, None, None)  # hands the slot to `leaver` ...
        leaver.cancel()  # ... who leaves before it notices
        await asyncio.gather(leaver, return_exceptions=True)
        await asyncio.wait_for(stayer, 5)
        return admission.running, admission.waiting

    assert asyncio.run(scenario()) == (0, 0)


@given(
    slots=st.integers(1, 3),
    queue=st.integers(0, 3),
    steps=st.lists(st.tuples(st.sampled_from(["come", "cancel", "step"]), st.integers(0, 9))),
)
def test_no_order_of_coming_leaving_and_cancelling_loses_a_slot(slots, queue, steps):
    async def scenario():
        admission = Admission(slots, queue)
        tasks = []

        async def work(turns):
            async with admission.slot():
                for _ in range(turns):
                    await asyncio.sleep(0)

        for action, number in steps:
            if action == "come":
                tasks.append(asyncio.create_task(work(number)))
            elif action == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            else:
                await asyncio.sleep(0)
            assert admission.running <= slots
            assert admission.waiting <= queue
        await asyncio.gather(*tasks, return_exceptions=True)
        return admission.running, admission.waiting

    assert asyncio.run(scenario()) == (0, 0)
