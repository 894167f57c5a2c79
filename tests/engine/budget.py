# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine under a small limit of mappings; runs in a process of its own, where it reads a small one."""

from tests.lib.memory import PAGE_BYTES, Memory, mappings
from tests.lib.native import Faults

from memshare.engine import Engine

PAGES = 2048


def main() -> None:
    """Scatter common pages, so that each wants a mapping of its own."""
    memory = Memory(PAGES).fill(lambda page: page % 64 + 1 if page % 2 else page + 1000)
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
        memory.check()
        engine.detach()
        memory.check()


if __name__ == "__main__":
    main()
