"""A crowd begins a few at a time, and others have their turn between."""

import asyncio

import pytest

from relay.turns import A_TURN, Turns
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio

CROWD = 10 * A_TURN


async def test_a_few_begin_in_each_turn_in_the_order_they_came() -> None:
    turns, begun = Turns(), list[int]()

    async def come(number: int) -> None:
        await turns.take()
        begun.append(number)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for number in range(CROWD):
            group.create_task(come(number))
        sizes = []
        while len(begun) < CROWD:
            before = len(begun)
            await asyncio.sleep(0)  # whoever else there is
            sizes.append(len(begun) - before)
    assert begun == list(range(CROWD))
    assert max(sizes) == A_TURN


async def test_whoever_comes_alone_does_not_wait() -> None:
    turns = Turns()
    for _ in range(3):
        for _ in range(A_TURN):
            taking = turns.take()
            with pytest.raises(StopIteration):
                taking.send(None)
        await asyncio.sleep(0)


async def test_who_leaves_the_line_holds_up_nobody() -> None:
    turns = Turns()
    async with asyncio.timeout(LIMIT_S):
        tasks = [asyncio.create_task(turns.take()) for _ in range(CROWD)]
        await asyncio.sleep(0)
        for task in tasks[A_TURN:-1]:
            task.cancel()
        await tasks[-1]
        await turns.take()
    assert not turns._waiting
