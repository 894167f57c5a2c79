# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that are written again after they were merged: which come back, and which are left alone."""

import pytest
from tests.lib.broker import build_directory
from tests.lib.memory import Memory, contents
from tests.lib.wire import build_has_weak_hash

from memshare.engine import Engine

pytestmark = pytest.mark.skipif(
    build_has_weak_hash(build_directory()),
    reason="needs more different hashes than the 8-bit build has",
)

PAGES = 512  # of which the second half equals the first


def test_pages_that_broke_come_back_while_others_of_their_block_break() -> None:
    """One page a pass: a busy block is never without a break, and would fill with broken pages."""
    rounds = 60
    memory = Memory(PAGES).fill(lambda page: 1 + page % (PAGES // 2))
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(6):
            engine.scan_once()
        assert engine.stats()["shared_pages"] == PAGES
        for page in range(rounds):
            memory.write(page, contents(1))
            engine.scan_once()
        stats = engine.stats()
        assert stats["breaks"] == rounds
        assert int(stats["rebuilt_pages"]) > rounds / 2, stats
        memory.check()


def rewrite(engine: Engine, memory: Memory, rounds: int) -> list[int]:
    """Write new contents to all pages, equal in both halves, and have them merged; how many were, in each round."""
    half, passes_between = PAGES // 2, 6
    merges: list[int] = []
    for number in range(rounds):
        before = int(engine.stats()["merged_pages"])
        memory.fill(lambda page, number=number: 1 + number * half + page % half)
        for _ in range(passes_between):
            engine.scan_once()
        merges.append(int(engine.stats()["merged_pages"]) - before)
    return merges


def test_where_all_that_is_merged_is_written_soon_less_and_less_is_merged() -> None:
    """Each merge that does not last costs the guest a fault and the host a hundred hashes."""
    memory = Memory(PAGES)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        merges = rewrite(engine, memory, 24)
        assert merges[0] == PAGES
        assert sum(merges[-8:]) <= PAGES, merges
        for _ in range(200):
            engine.scan_once()
        assert engine.stats()["shared_pages"] == PAGES, "what is at rest is shared after all"
        memory.check()


def test_an_eager_engine_merges_it_all_the_same() -> None:
    memory = Memory(PAGES)
    with Engine(nothing_pinned=True, eager=True) as engine:
        engine.register(memory.buffer)
        assert rewrite(engine, memory, 24) == [PAGES] * 24
        memory.check()
