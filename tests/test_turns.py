from __future__ import annotations

import asyncio
from collections.abc import Hashable

from streamer.turns import Turns


class Race:
    """Notes who gets a place, and keeps it until told to leave."""

    def __init__(self, most: int) -> None:
        self.turns = Turns(most)
        self.order: list[Hashable] = []
        self.tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._leave: dict[Hashable, asyncio.Event] = {}

    async def enter(self, *names: str) -> None:
        """`a1` waits in lane `a`."""
        for name in names:
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
        await settle()

    async def _run(self, name: str) -> None:
        async with self.turns.turn(name[0]):
            self.order.append(name)
            await self._leave[name].wait()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self.tasks[name]
        await settle()

    async def leave_all(self) -> None:
        """In the order in which they came, until nobody is left."""
        for event in self._leave.values():
            event.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_lanes_take_turns_and_keep_their_own_order() -> None:
    race = Race(1)
    await race.enter("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    await race.leave_all()
    assert race.order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_newcomer_waits_for_one_place_per_waiting_lane() -> None:
    race = Race(2)
    await race.enter(*(f"a{n}" for n in range(50)), *(f"b{n}" for n in range(50)))
    await race.enter("c")
    await race.leave("a0")
    await race.leave("a1")
    assert "c" not in race.order
    await race.leave("a2")
    assert race.order[-1] == "c"
    await race.leave_all()


async def test_no_more_than_the_limit_at_once() -> None:
    race = Race(3)
    await race.enter(*(f"{lane}{n}" for lane in "abcd" for n in range(5)))
    assert race.order == ["a0", "a1", "a2"]
    await race.leave_all()
    await race.enter("x1", "x2", "x3", "x4")
    assert race.order[-3:] == ["x1", "x2", "x3"]
    await race.leave_all()


async def test_those_that_stop_waiting_are_passed_over() -> None:
    race = Race(1)
    await race.enter("a1", "b1", "b2", "c1")
    race.tasks["b1"].cancel()
    race.tasks["b2"].cancel()
    await settle()
    assert race.order == ["a1"]  # who stops waiting frees no place
    await race.leave("a1")
    assert race.order == ["a1", "c1"]
    await race.leave_all()


async def test_a_place_given_to_someone_just_cancelled_goes_on_to_the_next() -> None:
    race = Race(1)
    await race.enter("a1", "b1", "c1")
    race._leave["a1"].set()
    await asyncio.sleep(0)  # a1 leaves: b1 has the place, but has not run yet
    assert race.tasks["a1"].done()
    assert race.order == ["a1"]
    race.tasks["b1"].cancel()
    await settle()
    assert race.order == ["a1", "c1"]
    await race.leave_all()
    await race.enter("d1")
    assert race.order[-1] == "d1"
    await race.leave_all()
