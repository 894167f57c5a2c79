# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine under a small limit of mappings; runs in a process of its own, where it reads a small one.

Argument: ``scattered``, where each common page wants a mapping of its own, or ``mixed``, where such pages
come first and long runs later.
"""

import sys

from tests.lib.memory import PAGE_BYTES, Memory, mappings, pagemap
from tests.lib.native import Faults

from memshare.engine import Engine

PAGES = 2048


RUN_PAGES = 16


def scattered(page: int) -> int:
    """Every second page is one of 64 common ones."""
    return page % 64 + 1 if page % 2 else page + 1000


def mixed(page: int) -> int:
    """The first half is scattered; in the second, every second run of pages is equal to all such runs."""
    if page < PAGES // 2:
        return scattered(page)
    return 100 + page % RUN_PAGES if page // RUN_PAGES % 2 else page + 1000


def main(kind: str) -> None:
    """Let it share what it may."""
    memory = Memory(PAGES).fill({"scattered": scattered, "mixed": mixed}[kind])
    faults = Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    limit = len(mappings()) * 5 // 4 + 400
    faults.lib.faults_set_map_count_limit(limit)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(6):
            engine.scan_once()
            assert len(mappings()) <= limit * 4 // 5, (len(mappings()), limit)
        stats = engine.stats()
        assert stats["mappings_limit"] == limit // 5 * 4, stats
        assert 0 < stats["shared_pages"] < PAGES // 2, stats
        assert abs(stats["mappings"] - len(mappings())) < 20, (stats, len(mappings()))
        memory.check()  # brings the mappings in
        if kind == "mixed":  # the lone ones were not all, and had left room for the runs
            in_runs = sum(page.is_file for page in pagemap(memory)[PAGES // 2 :])
            assert in_runs == PAGES // 4, in_runs
            hashed = stats["hashed_pages"]
            engine.scan_once()
            assert engine.stats()["hashed_pages"] == hashed, "refused pages are asked about again"
        engine.detach()
        memory.check()


if __name__ == "__main__":
    main(*sys.argv[1:])
