# SPDX-License-Identifier: GPL-2.0-or-later
"""Sharing that lasts: pages move to the store of a new broker, and what was broken merges again."""

import os
from pathlib import Path

import pytest
from tests.lib.broker import Broker, build_directory
from tests.lib.memory import Memory, contents
from tests.lib.wire import build_has_weak_hash

from memshare.engine import Engine

pytestmark = pytest.mark.skipif(
    build_has_weak_hash(build_directory()),
    reason="pages that collide are shared by chance, and these tests count them",
)

PAGES = 256
COMMON = PAGES // 4


def number_of(page: int, guest: int) -> int:
    """Zeros, common contents, and contents of one guest's own, in runs of 16."""
    kind = page // 16 % 4
    return (0, 1000 + page, 10_000 * guest + page, 20_000 * guest + page)[kind]


def store_files(memory: Memory) -> set[str]:
    """The files, by number, that lie behind the memory now."""
    end = memory.address + memory.pages * 4096
    files = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *name = line.split(maxsplit=5)
        start = int(span.split("-")[0], 16)
        if memory.address <= start < end and name and "memfd:memshare" in name[0]:
            files.add(inode)
    return files


@pytest.mark.parametrize("nothing_pinned", [True, False])
def test_I7_pages_move_to_the_store_of_a_new_broker(*, nothing_pinned: bool) -> None:
    """Without becoming private in between; the old store's memory goes with its last mapping."""
    memories = [
        Memory(PAGES).fill(lambda page, guest=guest: number_of(page, guest)) for guest in (1, 2)
    ]
    options = ("--group", "default", "--allow-by-mode")
    with Broker(*options) as first:
        engines = [Engine(first.socket_path(), nothing_pinned=nothing_pinned) for _ in memories]
        for engine, memory in zip(engines, memories, strict=True):
            engine.register(memory.buffer)
        for _ in range(4):
            for engine in engines:
                engine.scan_once()
        assert [engine.stats()["shared_pages"] for engine in engines] == [COMMON, COMMON]
        before = store_files(memories[0])
        assert len(before) == 1
        first.process.kill()
        first.process.wait()
        memories[0].write(16, b"broken")  # SHARED, and the engine has not seen it break
        merged = [engine.stats()["merged_pages"] for engine in engines]
        with Broker(*options, directory=first.directory):
            for _ in range(6):
                for engine in engines:
                    engine.scan_once()
                for memory in memories:
                    memory.check()
            stats = [engine.stats() for engine in engines]
            assert [one["shared_pages"] for one in stats] == [COMMON - 1, COMMON]
            assert [one["merged_pages"] for one in stats] == merged, "none was private meanwhile"
            saved = sum(one["saved_content_bytes"] for one in stats)
            assert (COMMON - 3) * 4096 <= saved <= (COMMON - 1) * 4096
            # The page broken and its twin keep the old store's file, as no other guest has them.
            now = store_files(memories[0]) | store_files(memories[1])
            assert len(now - before) == 1
            memories[0].write(16, contents(1016)[:6])
            for _ in range(8):
                for engine in engines:
                    engine.scan_once()
            for memory in memories:
                memory.check()
            if nothing_pinned:
                assert [engine.stats()["shared_pages"] for engine in engines] == [COMMON, COMMON]
                assert (store_files(memories[0]) | store_files(memories[1])) & before == set()
            for engine in engines:
                engine.close()
    for memory in memories:
        memory.check()


def test_what_was_broken_merges_again() -> None:
    """Rebuilt into plain memory when it has been left alone, and shared once more when it is equal."""
    memory = Memory(PAGES).fill(lambda page: page % 128 // 16 % 4 and 100 + page % 128)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(3):
            engine.scan_once()
        shared = engine.stats()["shared_pages"]
        assert shared == PAGES * 3 // 4
        mappings = engine.stats()["mappings"]
        for round_number in range(3):
            for page in range(16, 128, 5):
                memory.write(page, os.urandom(8), offset=8)
            engine.scan_once()
            assert engine.stats()["breaks"] > round_number
            for page in range(16, 128, 5):
                memory.write(page, contents(memory_number(page)))
            for _ in range(12 << round_number):  # longer each time
                engine.scan_once()
            stats = engine.stats()
            assert stats["rebuilt_pages"] > 0
            assert (stats["shared_pages"], stats["broken_pages"]) == (shared, 0)
            memory.check()
        assert engine.stats()["mappings"] <= mappings + 2 * len(range(16, 128, 5))


def memory_number(page: int) -> int:
    """What test_what_was_broken_merges_again filled a page with."""
    return page % 128 // 16 % 4 and 100 + page % 128


def test_what_breaks_time_and_again_is_left_alone_for_longer() -> None:
    """Merging it at each chance would cost copies, and a dead slot each time."""
    memory = Memory(PAGES).fill(memory_number)
    passes = []
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(3):
            engine.scan_once()
        shared = engine.stats()["shared_pages"]
        for _ in range(5):
            for page in range(16, 128, 5):
                memory.write(page, os.urandom(8), offset=8)
            engine.scan_once()
            for page in range(16, 128, 5):
                memory.write(page, contents(memory_number(page)))
            passes.append(0)
            while engine.stats()["shared_pages"] < shared:
                assert passes[-1] < 100, "it is merged at last"
                engine.scan_once()
                passes[-1] += 1
    assert max(passes) > passes[0], passes
    memory.check()
