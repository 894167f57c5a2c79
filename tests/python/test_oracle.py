# SPDX-License-Identifier: GPL-2.0-or-later
"""The reckoning by page tables, on made-up ones; test_oracle_memory.py has real ones."""

from pathlib import Path

import numpy as np

from memshare.bench import oracle
from memshare.bench.oracle import PAGE_BYTES, Contents, PageTable, reckon
from memshare.clients.procfs import FileMappings

START = 0x7F0000000000
PRESENT = 1 << 63
FILE = 1 << 61
SWAPPED = 1 << 62


def pagemap(*entries: int) -> np.ndarray:
    return np.array(entries, dtype=np.uint64)


def mapped(*pages: tuple[int, int]) -> FileMappings:
    """Mappings of the store from a page up to another."""
    return FileMappings(
        starts=[START + first * PAGE_BYTES for first, _ in pages],
        ends=[START + last * PAGE_BYTES for _, last in pages],
        files=[("00:01", 5)] * len(pages),
        paths=[""] * len(pages),
    )


def table(*pages: tuple[int, bool, bool]) -> PageTable:
    frame, anonymous, store = zip(*pages, strict=True)
    return PageTable(
        frame=np.array(frame, dtype=np.uint64),
        anonymous=np.array(anonymous),
        store=np.array(store),
        swapped=np.zeros(len(pages), dtype=bool),
        mappings=mapped(),
    )


def test_page_table_tells_the_states_apart() -> None:
    words = pagemap(
        PRESENT | 10,  # PRIVATE
        0,  # HOLE
        PRESENT | 7,  # the kernel's zero page
        PRESENT | FILE | 20,  # SHARED
        0,  # SHARED, not in the page table
        PRESENT | 21,  # BROKEN
        SWAPPED | 31,  # the mark on an armed hole, which reads as swapped
        SWAPPED | 99 << 5 | 1,  # swapped out
    )
    zero_page = np.array([7], dtype=np.uint64)
    found = oracle.page_table(words, START, mapped((3, 5), (5, 6)), zero_page)
    assert found.frame.tolist() == [10, 0, 0, 20, 0, 21, 0, 0]
    assert found.anonymous.tolist() == [True, False, False, False, False, True, False, False]
    assert found.store.tolist() == [False, False, False, True, True, True, False, False]
    assert found.swapped.tolist() == [False] * 7 + [True]
    assert found.readable.tolist() == [True, False, False, True, True, True, False, False]


def test_mappings_that_stick_out_of_the_range_are_cut() -> None:
    around = mapped((-9, -7), (-5, 1), (2, 50), (60, 61))
    found = oracle.page_table(pagemap(0, 0, 0), START, around, pagemap())
    assert found.store.tolist() == [True, False, True]


def test_values_that_occur() -> None:
    assert oracle.distinct([pagemap(7, 3), pagemap(), pagemap(3, 3, 9)]).tolist() == [3, 7, 9]
    assert oracle.distinct([pagemap()]).tolist() == []


def test_nothing_shared_means_nothing_freed() -> None:
    one = table((1, True, False), (2, True, False), (3, True, False))
    found = reckon([one.anonymous], [one], Contents(zero=1, distinct=1), store_bytes=0)
    assert (found.held, found.frames, found.freed) == (3, 3, 0)
    assert found.oracle == 2  # one of the two equal ones, and the zero one
    assert found.held_zero == 1


def test_sharing_frees_less_than_the_oracle_by_dead_slots() -> None:
    """Two guests share one content; one zero page was given back; the store has a dead slot."""
    first = table((100, False, True), (5, True, False), (0, False, False))
    second = table((0, False, True), (6, True, True), (0, False, False))
    held = [np.array([True, True, True]), np.array([True, True, False])]
    common_own_broken = Contents(zero=0, distinct=3)
    found = reckon(held, [first, second], common_own_broken, store_bytes=2 * PAGE_BYTES)
    assert found.held == 5
    assert found.frames == 2 + 2  # two of the guests' own, two slots
    assert found.freed == 1
    assert found.oracle == 2
    assert found.held_zero == 1


def test_a_frame_that_two_guests_map_counts_once() -> None:
    """KSM's pages are anonymous to pagemap."""
    one = table((5, True, False))
    found = reckon([one.anonymous] * 2, [one] * 2, Contents(zero=0, distinct=1), store_bytes=0)
    assert (found.held, found.frames, found.oracle) == (2, 1, 1)


def test_a_page_that_is_swapped_out_is_no_saving() -> None:
    one = table((5, True, False), (0, False, False))
    one = one._replace(swapped=np.array([False, True]))
    found = reckon([np.array([True, True])], [one], Contents(zero=0, distinct=1), store_bytes=0)
    assert (found.held, found.frames, found.oracle, found.held_zero) == (1, 1, 0, 0)


def test_files_of_the_store_are_known_by_the_name_that_the_c_side_gives_them() -> None:
    text = (Path(__file__).parents[2] / "qemu-plugin/store/segment.c").read_text()
    assert f'"{oracle.SEGMENT_PATH.removeprefix("/memfd:")}%s-%u"' in text
