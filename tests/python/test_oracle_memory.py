# SPDX-License-Identifier: GPL-2.0-or-later
"""The reckoning against real memory of processes, whose contents are known; needs root.

What must come out is counted from what the processes were told to hold. Looking must leave each page table
as it was.
"""

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lib.holder import PAGE_BYTES, Holder
from tests.lib.swap import MADV_PAGEOUT, swap_file

from memshare.bench import oracle
from memshare.bench.oracle import GuestMemory, Reckoning
from memshare.errors import MeasurementError

Page = tuple[str] | tuple[str, int, int]
SOME_PAGES = 301  # a size that no other mapping of a holder has
HUGE_PAGES = 512
KSM = Path("/sys/kernel/mm/ksm")

HOLE: Page = ("hole",)
SEEN: Page = ("seen",)
ZERO: Page = ("zero",)
# Few contents, so that equal ones are common; they differ in one byte, wherever that lies.
PAGES = st.one_of(
    st.sampled_from([HOLE, SEEN, ZERO]),
    st.tuples(
        st.just("byte"), st.sampled_from([0, 7, 8, 2048, 4095]), st.sampled_from([1, 2, 128])
    ),
)


def expected(held: Sequence[Page]) -> tuple[int, int, int]:
    """Count by the definition: held, oracle and zero pages of what has frames."""
    nonzero = [page for page in held if page[0] == "byte"]
    distinct = len(set(nonzero))
    return len(held), len(held) - distinct, len(held) - len(nonzero)


def found(reckoning: Reckoning) -> tuple[int, int, int]:
    return reckoning.held, reckoning.oracle, reckoning.held_zero


def with_frames(pages: Sequence[Page]) -> list[Page]:
    return [page for page in pages if page[0] in ("zero", "byte")]


def look_and_compare(holders: Sequence[Holder], memories: Sequence[GuestMemory]) -> Reckoning:
    """Reckon; nothing may have changed."""
    before = [h.page_table(m.start) for h, m in zip(holders, memories, strict=True)]
    reckoning, _ = oracle.reckon_now(memories, None)
    after = [h.page_table(m.start) for h, m in zip(holders, memories, strict=True)]
    assert after == before
    return reckoning


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Holder]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(Holder(SOME_PAGES, mmap.MADV_NOHUGEPAGE)),
            stack.enter_context(Holder(SOME_PAGES, mmap.MADV_NOHUGEPAGE)),
        ]


def memory_of(holder: Holder) -> GuestMemory:
    return GuestMemory(holder.pid, holder.pages * PAGE_BYTES)


@settings(max_examples=40)
@given(
    layouts=st.tuples(*[st.lists(PAGES, max_size=SOME_PAGES)] * 2),
    given_back=st.tuples(st.integers(0, SOME_PAGES - 1), st.integers(1, SOME_PAGES)),
    threads=st.integers(1, 4),
)
def test_any_memory_is_counted_exactly(
    pair: list[Holder],
    layouts: tuple[list[Page], list[Page]],
    given_back: tuple[int, int],
    threads: int,
) -> None:
    for holder, layout in zip(pair, layouts, strict=True):
        holder.hold(layout)
    memories = [memory_of(holder) for holder in pair]
    reckoning = look_and_compare(pair, memories)
    assert found(reckoning) == expected([p for layout in layouts for p in with_frames(layout)])
    assert reckoning.frames == reckoning.held
    contents = oracle.count_contents(memories, oracle.look(memories), threads)
    assert contents.distinct == reckoning.held - reckoning.oracle

    # What one gives back was held, and reads as zeros.
    first, count = given_back
    count = min(count, SOME_PAGES - first)
    pair[0].advise(mmap.MADV_DONTNEED, first, count)
    gone = range(first, first + count)
    later = [
        ZERO if page in gone and with_frames([kind]) else kind
        for page, kind in enumerate(layouts[0])
    ]
    reckoning = look_and_compare(pair, memories)
    assert found(reckoning) == expected(
        [p for layout in (later, layouts[1]) for p in with_frames(layout)]
    )
    kept = [kind for page, kind in enumerate(layouts[0]) if page not in gone]
    assert reckoning.frames == len(with_frames(kept)) + len(with_frames(layouts[1]))


def test_more_pages_than_a_block_and_than_a_huge_page() -> None:
    """A huge page holds frames where nothing was written, too."""
    pages = 3 * HUGE_PAGES
    with Holder(pages, mmap.MADV_HUGEPAGE) as holder:
        holder.hold([("byte", 5, 1 + page % 200) for page in range(pages - HUGE_PAGES // 2)])
        memory = memory_of(holder)
        reckoning = look_and_compare([holder], [memory])
        # A block of the host's huge pages lies in it whole, so more is held than was written.
        written = pages - HUGE_PAGES // 2
        assert written <= reckoning.held <= pages
        assert reckoning.held - reckoning.oracle == 200
        assert reckoning.held_zero == reckoning.held - written
        assert reckoning.frames == reckoning.held


@pytest.mark.parametrize("advice", [mmap.MADV_NOHUGEPAGE, mmap.MADV_HUGEPAGE])
def test_the_zero_page_is_nobodys_frame(advice: int) -> None:
    """Not even one that a single page maps; the huge one neither."""
    with Holder(2 * HUGE_PAGES, advice) as holder:
        holder.hold([SEEN] * (1 if advice == mmap.MADV_NOHUGEPAGE else 2 * HUGE_PAGES))
        reckoning = look_and_compare([holder], [memory_of(holder)])
    assert (found(reckoning), reckoning.frames) == ((0, 0, 0), 0)


def test_pages_that_are_swapped_out_are_neither_read_nor_counted() -> None:
    with swap_file(64 << 20), Holder(SOME_PAGES, mmap.MADV_NOHUGEPAGE) as holder:
        holder.hold([("byte", 0, 1 + page % 250) for page in range(SOME_PAGES)])
        memory = memory_of(holder)
        assert found(look_and_compare([holder], [memory])) == (301, 51, 0)
        is_swapped = [False]
        for _ in range(50):
            holder.advise(MADV_PAGEOUT, 0, 200)
            is_swapped = [bool(entry >> 62 & 1) for entry in holder.page_table(memory.start)]
            if sum(is_swapped) >= 100:
                break
        left = [page for page in range(SOME_PAGES) if not is_swapped[page]]
        assert len(left) <= SOME_PAGES - 100
        reckoning = look_and_compare([holder], [memory])
        assert found(reckoning) == expected([("byte", 0, 1 + page % 250) for page in left])
        assert reckoning.frames == len(left)


def test_what_an_engine_shares_is_read_where_it_is_mapped_and_armed_holes_are_left() -> None:
    """Reading an armed hole would wait for a process that waits for nothing."""
    layout: list[Page] = [
        (HOLE, ZERO, ("byte", 9, 1), ("byte", 9, 2), ("byte", 4095, 1 + page % 100))[page % 5]
        for page in range(SOME_PAGES)
    ]
    with Holder(SOME_PAGES, mmap.MADV_NOHUGEPAGE) as holder:
        holder.hold(layout)
        memory = memory_of(holder)
        oracle.look([memory])
        holder.share(passes=6)
        absent = [~entry >> 63 for entry in holder.page_table(memory.start)]
        reckoning, store = oracle.reckon_now([memory], holder.pid)
        (table,) = oracle.look([memory])
        came = [page for page in range(SOME_PAGES) if absent[page] & 1 and table.frame[page]]
        assert [page for page in came if not table.store[page]] == []
        assert (
            np.count_nonzero(table.frame == 0) >= SOME_PAGES * 2 // 5
        )  # holes, and zeros given back
        assert found(reckoning) == expected(with_frames(layout))
        assert reckoning.freed >= reckoning.oracle * 0.9
        assert store.allocated_bytes > 0


@contextmanager
def ksmd() -> Iterator[None]:
    """KSM at full speed; its knobs put back."""
    wanted = {"sleep_millisecs": "0", "pages_to_scan": "10000", "run": "1"}
    before = {name: (KSM / name).read_text() for name in wanted}
    try:
        for name, value in wanted.items():
            (KSM / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (KSM / name).write_text(value)


def test_ksm_pages_count_once_and_stay_merged() -> None:
    """Whoever pins a merged page to read it, as process_vm_readv does, takes it apart."""
    layout: list[Page] = [("byte", 77, 1 + page % 10) for page in range(SOME_PAGES)]
    with (
        Holder(SOME_PAGES, mmap.MADV_NOHUGEPAGE) as one,
        Holder(SOME_PAGES, mmap.MADV_NOHUGEPAGE) as other,
    ):
        holders = [one, other]
        memories = [memory_of(holder) for holder in holders]
        for holder in holders:
            holder.hold(layout)
            holder.advise(mmap.MADV_MERGEABLE, 0, SOME_PAGES)
        with ksmd():
            deadline = time.monotonic() + 60
            while True:
                tables = oracle.look(memories)
                if len({int(frame) for table in tables for frame in table.frame}) == 10:
                    break
                assert time.monotonic() < deadline, "ksmd merged too little in a minute"
                time.sleep(0.05)
            (KSM / "run").write_text("0")  # what is merged stays so, and nothing is merged again
            reckoning = look_and_compare(holders, memories)
    assert found(reckoning) == expected([*layout, *layout])
    assert (reckoning.frames, reckoning.freed) == (10, reckoning.oracle)


def test_ram_that_is_not_there_is_an_error(pair: list[Holder]) -> None:
    with pytest.raises(MeasurementError, match="0 mappings"):
        GuestMemory(pair[0].pid, (SOME_PAGES + 1) * PAGE_BYTES)


def test_a_process_that_is_gone_is_named() -> None:
    with Holder(SOME_PAGES, mmap.MADV_NOHUGEPAGE) as holder:
        holder.hold([ZERO])
        memory = memory_of(holder)
        tables = oracle.look([memory])
    assert not os.path.exists(f"/proc/{holder.pid}")
    with pytest.raises(MeasurementError, match=f"/proc/{holder.pid}/mem cannot be opened"):
        oracle.count_contents([memory], tables)


def test_memory_that_was_unmapped_is_an_error(pair: list[Holder]) -> None:
    pair[0].hold([ZERO])
    memory = memory_of(pair[0])
    tables = oracle.look([memory])
    memory.start = 1 << 20  # nothing is mapped there
    with pytest.raises(MeasurementError, match=f"process {pair[0].pid} cannot be read"):
        oracle.count_contents([memory], tables)
