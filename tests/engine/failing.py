# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets each kernel call of merging and rebuilding fail, in each plausible way, one after the other.

Runs in a process of its own, for a bug here shows as a hang or a crash; says on stderr what it tries.
Arguments: names of points, tried one after the other. Of A+B both fail together: where the engine has
a second way, that one fails as well.
"""

import errno
import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.lib.memory import PAGE_BYTES, Memory, mappings_of
from tests.lib.native import Faults

from memshare.engine import Engine, EngineError

PAGES = 96
ERRORS = (errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.EINVAL, errno.EEXIST, errno.ENOENT)
#: More than the engine's patience with a page that will not go back.
MANY = 200
#: What fails may have done its work, or part of it: mremap unmaps first, a range has several mappings,
#: and Linux 6.18 moves pages and then says that they were there already.
HALVES = {
    "MAP_OVER": errno.ENOMEM,
    "OPEN_WINDOW": errno.ENOMEM,
    "MOVE_OUT": errno.EEXIST,
    "MOVE_IN": errno.EEXIST,
}


class Case(NamedTuple):
    """Which calls fail how, and while what is done."""

    point: str
    error: int
    after: int
    times: int
    half: bool
    phase: str

    def __str__(self) -> str:
        """Say it in a line."""
        half = ", half done" if self.half else ""
        return (
            f"{self.phase}: {self.point} fails {self.times} times after {self.after} with "
            f"{errno.errorcode[self.error]}{half}"
        )


def cases(points: list[str]) -> Iterator[Case]:
    """All that are tried."""
    for point, error, after, times in itertools.product(points, ERRORS, (0, 1, 3), (1, 3, MANY)):
        for phase in ("merge", "rebuild"):
            yield Case(point, error, after, times, False, phase)
            if HALVES.get(point) == error and times < MANY:
                yield Case(point, error, after, times, True, phase)


def number_of(page: int) -> int:
    """Zeros, common contents twice, and contents that stay alone."""
    if page < 16 or page % 11 == 0:
        return 0
    return page % 32 + 1 if page < 80 else page + 1000


def scan(engine: Engine, passes: int) -> bool:
    """Make passes; False: the engine has given up, and says why."""
    for _ in range(passes):
        try:
            engine.scan_once()
        except EngineError as error:
            assert engine.stats()["state"] == "refused", error
            assert engine.stats()["refusal"], error
            return False
    return True


def attempt(case: Case, faults: Faults) -> None:
    """One engine's life with that failure in it."""
    memory = Memory(PAGES).fill(number_of)
    faults.reset()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    # Plain memory in the place of a page is open to its guest at once: it must not hold zeros, nor
    # lose what is written to it.
    faults.sabotage("TOUCH_FIXED")
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)

        def arm(phase: str) -> None:
            if case.phase == phase:
                for point in case.point.split("+"):
                    faults.fail(
                        point,
                        case.error,
                        after=case.after,
                        times=case.times,
                        half=case.half,
                    )

        # A second visit makes candidates; a page that changes before its window goes back.
        scan(engine, 1)
        arm("merge")
        # Between a page's hash and its window, a guest writes to it.
        for page in (2, 40, 41):
            faults.poke("OPEN_WINDOW", memory.address_of(page), 7)
        works = scan(engine, 3)
        if faults.calls("OPEN_WINDOW"):
            for page in (2, 40, 41):
                memory.expected[page * PAGE_BYTES] = 7
        memory.check()
        for page in range(0, PAGES, 7):
            memory.write(page, b"written", offset=page * 8)
        # Copies of zeros in the place of shared pages: rebuilding leaves holes there.
        for page in (20, 21, 50):
            memory.write(page, bytes(PAGE_BYTES))
        memory.check()
        arm("rebuild")
        if works:
            engine.set(mode="zero")
            works = scan(engine, 2)
        memory.check()
        # Between windows nobody may fall asleep, in particular not after one that failed.
        assert not any("um" in mapping.flags for mapping in mappings_of(memory)), "stays registered"
        # However short a time other memory stands there, a guest may see its zeros or write to it.
        assert faults.calls("MAP_FIXED_OVER") == 0, "new memory was mapped over a guest's"
        faults.reset()
        if works:
            for page in range(PAGES):
                memory.write(page, bytes([page % 5]) * PAGE_BYTES)
            engine.set(mode="content")
            works = scan(engine, 4)
            assert not works or engine.stats()["merged_pages"] > 0, "it merges no more"
            memory.check()
        # Which calls may end an engine: without UNREGISTER nobody could be woken for sure.
        assert works or "CLOSE_WINDOW" in case.point, engine.stats()["refusal"]
        engine.detach()
        stats = engine.stats()
        assert stats["shared_pages"] == 0, stats
        memory.check()
    for page in range(PAGES):
        memory.write(page, bytes([page]), offset=PAGE_BYTES - 1)
    memory.check()
    for mapping in mappings_of(memory):
        assert not {"um", "uw", "ui"} & mapping.flags, f"still registered: {mapping}"


def main(points: list[str]) -> None:
    """Try all cases of those points."""
    faults = Faults()
    for case in cases(points):
        print(case, file=sys.stderr, flush=True)
        attempt(case, faults)


if __name__ == "__main__":
    main(sys.argv[1:])
