# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages: split only where that saves enough, never while hot, and nothing is lost on the way."""

import errno
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lib.broker import Broker, build_directory, wait_until
from tests.lib.memory import PAGE_BYTES, Memory, contents, mappings_of, pagemap
from tests.lib.wire import build_has_weak_hash

from memshare.engine import Engine, Mode

BLOCK_PAGES = 512
BLOCK_BYTES = BLOCK_PAGES * PAGE_BYTES
ENOUGH = BLOCK_PAGES // 4
PASSES = 8
MADV_COLLAPSE = 25
WEAK = build_has_weak_hash(build_directory())


class HugeMemory(Memory):
    """Memory backed by huge pages; blocks are counted from its first aligned address."""

    def __init__(self, blocks: int, number_of: Callable[[int, int], int]) -> None:
        """Fill it; ``number_of`` gets block and page therein."""
        super().__init__((blocks + 1) * BLOCK_PAGES)
        self.blocks = blocks
        self.first = -self.address % BLOCK_BYTES // PAGE_BYTES
        self.buffer.madvise(mmap.MADV_HUGEPAGE)
        for block in range(blocks):
            for page in range(BLOCK_PAGES):
                self.write(self.page(block, page), contents(number_of(block, page)))
        assert self.huge_blocks() == blocks, "this host gives no huge pages"

    def page(self, block: int, page: int) -> int:
        """Number of a page of a block."""
        return self.first + block * BLOCK_PAGES + page

    def huge_blocks(self) -> int:
        """How many huge pages are mapped."""
        end = self.address + self.pages * PAGE_BYTES
        total_kib, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                start, stop = (int(part, 16) for part in words[0].split("-"))
                inside = start < end and self.address < stop
            elif inside and words[0] == "AnonHugePages:":
                total_kib += int(words[1])
        return total_kib * 1024 // BLOCK_BYTES

    def frames(self) -> int:
        """Distinct page frames that it holds; the kernel's one page of zeros is not its own."""
        empty = Memory(1)
        empty.buffer.madvise(mmap.MADV_NOHUGEPAGE)
        assert empty.buffer[0] == 0
        found = {state.frame for state in pagemap(self) if state.present}
        return len(found - {pagemap(empty)[0].frame})


def unique(block: int, page: int) -> int:
    """Contents of no other page."""
    return 1000 + block * BLOCK_PAGES + page


def zeros(pages: int) -> Callable[[int, int], int]:
    """So many zero pages in each block, far from each other; the others are unlike all."""
    step = BLOCK_PAGES // pages
    return lambda block, page: (
        0 if page % step == 0 and page // step < pages else unique(block, page)
    )


def converge(engine: Engine) -> None:
    """Make passes enough for anything that is going to happen."""
    for _ in range(PASSES):
        engine.scan_once()


def test_a_huge_page_with_too_few_zero_pages_stays() -> None:
    """One page less than the threshold."""
    memory = HugeMemory(2, zeros(ENOUGH - 1))
    with Engine(mode="zero") as engine:
        engine.register(memory.buffer)
        converge(engine)
        assert memory.huge_blocks() == 2
        assert memory.frames() == 2 * BLOCK_PAGES
        assert engine.stats()["zeroed_pages"] == 0
        assert engine.stats()["saved_zero_bytes"] == 0
    memory.check()


@pytest.mark.parametrize("zero_pages", [ENOUGH, BLOCK_PAGES // 2, BLOCK_PAGES])
def test_I10_a_huge_page_with_enough_zero_pages_is_split_and_all_that_is_freed_is_counted(
    zero_pages: int,
) -> None:
    """Also what the kernel frees by itself when it splits."""
    memory = HugeMemory(2, zeros(zero_pages))
    with Engine(mode="zero") as engine:
        engine.register(memory.buffer)
        before = memory.frames()
        assert before == 2 * BLOCK_PAGES
        converge(engine)
        assert memory.huge_blocks() == 0
        freed = before - memory.frames()
        assert freed == 2 * zero_pages
        assert engine.stats()["saved_zero_bytes"] == freed * PAGE_BYTES
        assert engine.stats()["zeroed_pages"] == freed
        memory.check()
    memory.check()


@pytest.mark.skipif(WEAK, reason="a weak hash promises matches that are none")
def test_matches_count_towards_the_threshold_and_stay_out_below_it() -> None:
    """Two blocks that share a few pages stay huge; more zeros in the one that was asked for them tip that one only."""
    common, more = ENOUGH // 2, ENOUGH // 2

    def number_of(block: int, page: int) -> int:
        return page + 1 if page < common else unique(block, page)

    memory = HugeMemory(2, number_of)
    with Engine() as engine:
        engine.register(memory.buffer)
        converge(engine)
        assert memory.huge_blocks() == 2
        assert engine.stats()["shared_pages"] == 0
        asked = engine.stats()["merged_pages"], engine.stats()["windows"]
        converge(engine)
        assert (engine.stats()["merged_pages"], engine.stats()["windows"]) == asked
        for page in range(BLOCK_PAGES - more, BLOCK_PAGES):
            memory.write(memory.page(1, page), contents(0))
        converge(engine)
        assert memory.huge_blocks() == 1
        assert engine.stats()["zero_pages"] == more
        memory.check()
    memory.check()


@pytest.mark.skipif(WEAK, reason="a weak hash promises matches that are none")
def test_what_stays_for_its_huge_page_is_never_put_into_the_store(broker: Broker) -> None:
    """It would be dead there at once, and a store in which too much is dead takes nothing."""

    def number_of(block: int, page: int) -> int:
        return page + 1 if page < ENOUGH // 2 else unique(block, page)

    memory = HugeMemory(2, number_of)
    with Engine(broker.socket_path()) as engine:
        engine.register(memory.buffer)
        converge(engine)
        control = broker.control()
        assert control.group()["sightings"] >= 2 * BLOCK_PAGES
        engine.detach()
        engine.set(mode="content")
        converge(engine)
        assert engine.stats()["passes"] == 2 * PASSES
        assert memory.huge_blocks() == 2
        assert control.group()["provides"] == 0
        control.close()
    memory.check()


def test_content_matches_above_the_threshold_split_and_free_memory() -> None:
    """Half of the pages are the same in all blocks."""
    blocks, common = 4, BLOCK_PAGES // 2
    memory = HugeMemory(
        blocks, lambda block, page: page + 1 if page < common else unique(block, page)
    )
    with Engine() as engine:
        engine.register(memory.buffer)
        converge(engine)
        converge(engine)
        assert memory.huge_blocks() == 0
        assert engine.stats()["shared_pages"] >= blocks * common * (0.5 if WEAK else 1)
        memory.check()  # which makes the mapped slots present
        if not WEAK:
            assert memory.frames() == blocks * (BLOCK_PAGES - common) + common
        memory.check()
    memory.check()


@pytest.mark.parametrize("mode", ["zero", "content"])
def test_a_hot_huge_page_is_split_only_once_it_is_quiet(mode: Mode) -> None:
    """An eighth of it is written between any two visits, for longer than any back-off lasts; a quiet
    huge page beside it is split.
    """
    memory = HugeMemory(2, zeros(BLOCK_PAGES // 2))
    number_of = zeros(BLOCK_PAGES // 2)
    hot = [memory.page(0, page) for page in range(BLOCK_PAGES) if number_of(0, page)]
    hot = hot[: BLOCK_PAGES // 8]
    with Engine(mode=mode) as engine:
        engine.register(memory.buffer)
        for turn in range(150):
            for page in hot:
                memory.write(page, contents(10_000 + 1000 * page + turn))
            engine.scan_once()
        assert memory.huge_blocks() == 1
        assert engine.stats()["zeroed_pages"] == BLOCK_PAGES // 2
        converge(engine)
        assert memory.huge_blocks() == 0
        assert engine.stats()["zeroed_pages"] == BLOCK_PAGES
        memory.check()
    memory.check()


def collapse(memory: HugeMemory) -> bool:
    """Ask the kernel for what khugepaged does, with more zeal; whether it made a huge page."""
    try:
        memory.buffer.madvise(MADV_COLLAPSE, memory.first * PAGE_BYTES, BLOCK_BYTES)
    except OSError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


def test_holes_are_not_filled_with_huge_pages_while_shared() -> None:
    """The owner had asked for huge pages; on detach it has its way again."""
    memory = HugeMemory(1, zeros(BLOCK_PAGES // 2))
    with Engine(mode="zero", nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        converge(engine)
        assert engine.stats()["zero_pages"] == BLOCK_PAGES // 2
        assert all("nh" in mapping.flags for mapping in mappings_of(memory))
        assert not collapse(memory)
        assert memory.frames() == BLOCK_PAGES // 2
    assert all("hg" in mapping.flags for mapping in mappings_of(memory))
    assert collapse(memory)
    memory.check()


def voluntary_switches(thread_name: str) -> int:
    """How often a thread of this process has gone to sleep."""
    (task,) = (
        task
        for task in Path("/proc/self/task").iterdir()
        if (task / "comm").read_text().strip() == thread_name
    )
    (line,) = (
        line for line in (task / "status").read_text().splitlines() if line.startswith("voluntary_")
    )
    return int(line.split()[1])


def test_a_slow_rate_is_not_a_wake_up_a_page() -> None:
    """Waking up costs as much as dozens of pages. Huge pages are not tracked, and so visited page by page."""
    memory = HugeMemory(2, lambda block, page: 1 + block * BLOCK_PAGES + page)
    with Engine(scan_rate=1_000_000) as engine:
        engine.register(memory.buffer)
        engine.start()
        wait_until(
            lambda: engine.stats()["passes"] > 2, "the first visits, of whole blocks, are over"
        )
        engine.set(scan_rate=0)
        slept = voluntary_switches("memshare-scan")
        wait_until(lambda: voluntary_switches("memshare-scan") >= slept + 2, "it has paused")
        ahead = engine.stats()["scanned_pages"] + BLOCK_PAGES  # what was saved up
        engine.set(scan_rate=200)
        wait_until(lambda: engine.stats()["scanned_pages"] >= ahead, "that is spent")
        scanned, slept = engine.stats()["scanned_pages"], voluntary_switches("memshare-scan")
        wait_until(lambda: engine.stats()["scanned_pages"] >= scanned + 256, "256 pages later")
        assert voluntary_switches("memshare-scan") - slept < 256 / 8
