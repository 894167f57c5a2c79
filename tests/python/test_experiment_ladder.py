# SPDX-License-Identifier: GPL-2.0-or-later
"""When a ladder ends and what counts, on a host of figures: no guest, no waiting."""

import asyncio
import itertools
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memshare.errors import MemshareError
from memshare.experiment import ladder as ladders
from memshare.experiment.engine import Engine, Lab
from memshare.experiment.guest import Guest
from memshare.experiment.ladder import BUDGET, FINISHED, Climb
from memshare.experiment.plan import Ladder, decode
from memshare.experiment.sampler import Sampler
from memshare.experiment.stage import Stage

MIB = 1 << 20
RAM = 1024 * MIB
BUDGET_MIB = 4000


class FakeGuest:
    """Touches its memory; fails to, once it was killed."""

    name = "guest"
    ram_bytes = RAM

    def __init__(self, host: "FakeHost") -> None:
        self.host = host
        self.is_running = True
        self.is_counted = False

    async def touch(self, fraction: float) -> float:
        return fraction

    async def watch(self, _seconds: float, work: Coroutine[Any, Any, float]) -> float:
        touched = await work
        self.host.used += self.host.peak
        if self.host.used > BUDGET_MIB * MIB:
            self.host.kill(self)
            raise MemshareError("guest ended")
        self.host.used -= self.host.peak - self.host.growth
        return touched

    async def has_ended(self) -> bool:
        return not self.is_running

    def last_words(self) -> str:
        return "killed"


class FakeHost:
    """Memory that each guest takes: so much for good, more while it touches."""

    def __init__(self, growth_mib: int, peak_mib: int) -> None:
        self.growth, self.peak = growth_mib * MIB, peak_mib * MIB
        self.used = 100 * MIB
        self.oom_kills = 0
        self.counts = 0
        self.guests: list[FakeGuest] = []
        self.scans: list[int] | None = None

    def kill(self, guest: FakeGuest) -> None:
        guest.is_running = False
        self.oom_kills += 1
        self.used -= self.peak

    async def take(self) -> SimpleNamespace:
        up = sum(guest.is_running for guest in self.guests)
        return SimpleNamespace(used_bytes=self.used, seconds=1.0, ram_given_bytes=up * RAM)

    async def rounds(self) -> int | None:
        return self.scans.pop(0) if self.scans else None

    async def add(self, _index: int) -> Guest:
        self.guests.append(FakeGuest(self))
        return cast(Guest, self.guests[-1])

    async def count(self) -> None:
        self.counts += 1

    def climb(self, guests: int = 32) -> tuple[str, Climb]:
        """Climb; how it ended and what was counted."""
        plan = decode(
            {
                "name": "l",
                "guests": {"count": guests, "ram": "1G"},
                "engines": ["off"],
                "budget": f"{BUDGET_MIB}M",
                "ladder": {},
            },
            "here",
        )
        lab = Lab(Path(), Path(), plan, cast(Any, self), cast(Any, self.guests))
        climb = Climb(lab, cast(Engine, self), Stage(), cast(Sampler, self))
        return asyncio.run(climb.up(Ladder(), self.add, self.count)), climb


def test_it_ends_where_even_the_smallest_growth_would_not_fit() -> None:
    host = FakeHost(growth_mib=1000, peak_mib=1000)
    ended, climb = host.climb()
    assert ended == BUDGET
    assert len(climb.steps) == len(host.guests) == 3, "a fourth one is not begun"
    assert climb.steps[-1].ram_given_bytes == 3 * RAM
    assert climb.steps[-1].used_bytes == 3100 * MIB
    assert host.oom_kills == 0
    assert host.counts == 3, "an oracle a step"


def test_a_guest_that_is_killed_while_it_is_added_does_not_count() -> None:
    host = FakeHost(growth_mib=200, peak_mib=1100)
    ended, climb = host.climb()
    assert (ended, host.oom_kills) == (BUDGET, 1)
    assert len(climb.steps) == len(host.guests) - 1
    assert [guest.is_counted for guest in host.guests] == [True] * len(climb.steps) + [False]
    assert climb.steps[-1].guests == len(climb.steps)


def test_it_ends_with_the_plans_last_guest() -> None:
    ended, climb = FakeHost(growth_mib=1, peak_mib=2).climb(guests=2)
    assert (ended, len(climb.steps)) == (FINISHED, 2)
    assert climb.steps[0].touched_fraction == 0.9


def test_what_is_not_for_want_of_memory_is_an_error() -> None:
    host = FakeHost(growth_mib=200, peak_mib=1100)

    def crash(guest: FakeGuest) -> None:
        guest.is_running = False

    host.kill = crash  # type: ignore[method-assign]
    with pytest.raises(MemshareError, match="guest ended"):
        host.climb()


@pytest.mark.parametrize(
    ("scans", "left"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], 4),  # two rounds from the first on, and two without a gain
        ([0, 0, 0, 0], 0),  # no round at all: the time is up
    ],
)
def test_savings_rest_after_two_rounds_without_gain(
    scans: list[int], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost(growth_mib=1, peak_mib=1)
    host.scans = scans
    monkeypatch.setattr(ladders, "REST_SECONDS", 0)
    clock = itertools.count()
    monkeypatch.setattr(Stage, "now", property(lambda _: float(next(clock))))
    ended, _ = host.climb(guests=1)
    assert ended == FINISHED
    assert len(host.scans) == left
