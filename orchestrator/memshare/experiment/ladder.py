# SPDX-License-Identifier: GPL-2.0-or-later
"""Adding guests until memory within the budget is used up.

A guest counts when it has booted, has touched its memory, and savings have come to rest. The last one to be added is
the one that the kernel kills when memory is at its end: that is the end of the ladder, and those that count live on. No
other is begun where even the smallest growth that was seen would not fit.
"""

import asyncio
from collections.abc import Awaitable, Callable

from memshare.errors import MemshareError
from memshare.experiment.engine import Engine, Lab
from memshare.experiment.guest import TOUCH_SECONDS, Guest
from memshare.experiment.plan import Ladder
from memshare.experiment.record import Step
from memshare.experiment.sampler import Sampler
from memshare.experiment.stage import Stage

BUDGET, FINISHED = "budget", "finished"
REST_SECONDS = 1.0
ROUNDS = 2  # of all memory, in which next to nothing more is saved
STILL_RATIO = 0.002  # of one guest's RAM


class Climb:
    """One ascent; steps are those made so far."""

    def __init__(self, lab: Lab, engine: Engine, stage: Stage, sampler: Sampler) -> None:
        """Stand at its foot."""
        self._lab = lab
        self._engine = engine
        self._stage = stage
        self._sampler = sampler
        self.steps: list[Step] = []

    async def up(
        self,
        ladder: Ladder,
        add: Callable[[int], Awaitable[Guest]],
        count: Callable[[], Awaitable[None]],
    ) -> str:
        """Add guests; why it ended."""
        growth: list[int] = []
        for index in range(self._lab.plan.guests.count):
            before = (await self._sampler.take()).used_bytes
            if growth and before + min(growth) > (self._lab.plan.budget_bytes or 0):
                return BUDGET
            kills = self._lab.cgroup.oom_kills
            try:
                step = await self._step(ladder, await add(index), count)
            except MemshareError:
                if self._lab.cgroup.oom_kills == kills:
                    raise
                was_started = len(self._lab.guests) > index
                if was_started and not await self._lab.guests[-1].has_ended():
                    raise
                return BUDGET
            if self.steps:  # the first one pays for what all have in common
                growth.append(max(0, step.used_bytes - before))
            self.steps.append(step)
        return FINISHED

    async def _step(
        self, ladder: Ladder, guest: Guest, count: Callable[[], Awaitable[None]]
    ) -> Step:
        fraction = await guest.watch(
            TOUCH_SECONDS, asyncio.ensure_future(guest.touch(ladder.touch_fraction))
        )
        await self._rest(guest, ladder.settle_seconds)
        await count()
        sample = await self._sampler.take()
        guest.is_counted = True
        return Step(
            guests=len(self.steps) + 1,
            seconds=sample.seconds,
            ram_given_bytes=sample.ram_given_bytes,
            used_bytes=sample.used_bytes,
            touched_fraction=round(fraction, 4),
        )

    async def _rest(self, guest: Guest, seconds: float) -> None:
        """Wait until two rounds of the engine in a row save next to nothing more, or so long."""
        until = self._stage.now + seconds
        first = rounds_then = await self._engine.rounds()
        if first is None or rounds_then is None:
            return
        used_then = (await self._sampler.take()).used_bytes
        while self._stage.now < until:
            await asyncio.sleep(REST_SECONDS)
            if not guest.is_running:
                raise MemshareError(f"guest {guest.name} ended: {guest.last_words()}")
            rounds = await self._engine.rounds()
            if rounds is not None and rounds >= rounds_then + ROUNDS:
                used = (await self._sampler.take()).used_bytes
                is_still = used_then - used <= STILL_RATIO * guest.ram_bytes
                if is_still and rounds_then > first:
                    return
                rounds_then, used_then = rounds, used
