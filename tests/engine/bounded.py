# SPDX-License-Identifier: GPL-2.0-or-later
"""Windows whose work takes too long, and pages that change a little before theirs.

Runs in a process of its own. Argument: a key of SCENARIOS.
"""

import mmap
import sys
from collections.abc import Callable

from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Faults

from memshare.engine import Engine

PAGES = 128
#: Several times as long as a window may begin new runs.
SLOW_NS = 1_000_000
#: Windows begin small, and are small again where the machine is busy: among so many pages most would like to move several
#: hauls in one call.
MANY_PAGES, HAUL_PAGES = 16384, 64


def slow() -> None:
    """Scatter common pages, so that each is a run of its own, and let each mapping call be slow."""
    memory = Memory(PAGES).fill(lambda page: page % 8 + 1 if page % 2 else page + 1000)
    faults = Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    faults.linger("MAP_OVER", SLOW_NS)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(4):
            engine.scan_once()
        stats, mapped = engine.stats(), faults.calls("MAP_OVER") - 1  # which made the twin
        assert mapped >= PAGES // 2, (mapped, stats)
        assert stats["windows"] >= mapped, (mapped, stats)
        memory.check()


def bytes_() -> None:
    """Between a page's hash and its window one byte changes: the last, the first, one between."""
    for number in (0, 1):
        memory = Memory(32).fill(lambda _, number=number: number)  # type: ignore[misc]
        faults = Faults()
        faults.reset()
        faults.watch(memory.address, 32 * PAGE_BYTES)
        with Engine(nothing_pinned=True) as engine:
            engine.register(memory.buffer)
            engine.scan_once()
            for page, offset in ((2, PAGE_BYTES - 1), (9, 0), (13, 2049)):
                faults.poke("OPEN_WINDOW", memory.address_of(page) + offset, 0x77)
            engine.scan_once()
            assert faults.calls("OPEN_WINDOW"), "nothing was to be merged"
            for page, offset in ((2, PAGE_BYTES - 1), (9, 0), (13, 2049)):
                memory.expected[page * PAGE_BYTES + offset] = 0x77
            for _ in range(3):
                engine.scan_once()
                memory.check()
            assert engine.stats()["compare_failures"] >= 3, engine.stats()


def hauls() -> None:
    """Zero pages that all follow each other."""
    memory = Memory(MANY_PAGES)
    memory.buffer.madvise(mmap.MADV_NOHUGEPAGE)
    memory.fill(lambda _: 0)
    faults = Faults()
    faults.watch(memory.address, MANY_PAGES * PAGE_BYTES)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(4):
            engine.scan_once()
        stats, moves = engine.stats(), faults.calls("MOVE_OUT")
        assert stats["zero_pages"] == MANY_PAGES, stats
        assert moves >= MANY_PAGES // HAUL_PAGES, (moves, stats)
        memory.check()


SCENARIOS: dict[str, Callable[[], None]] = {"slow": slow, "bytes": bytes_, "hauls": hauls}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
