# SPDX-License-Identifier: GPL-2.0-or-later
"""The reckoning by page tables: on made-up tables, and on real memory of a child process (root)."""

import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from memshare.bench import oracle
from memshare.bench.oracle import PAGE_BYTES, PageTable, reckon, runs
from memshare.clients.procfs import Mapping

START = 0x7F0000000000
PRESENT = 1 << 63
FILE = 1 << 61


def pagemap(*entries: int) -> np.ndarray:
    return np.array(entries, dtype=np.uint64)


def mapping(first_page: int, last_page: int, inode: int) -> Mapping:
    start = START + first_page * PAGE_BYTES
    return Mapping(start, START + last_page * PAGE_BYTES, "rw-p", 0, "00:01", inode, "")


def digests(*contents: bytes) -> np.ndarray:
    pages = (content.ljust(PAGE_BYTES, b"\0") for content in contents)
    joined = b"".join(xxhash.xxh3_128_digest(page) for page in pages)
    return np.frombuffer(joined, dtype=oracle.DIGEST)


def table(*pages: tuple[int, bool, bool]) -> PageTable:
    frame, anonymous, store = zip(*pages, strict=True)
    return PageTable(
        frame=np.array(frame, dtype=np.uint64),
        anonymous=np.array(anonymous),
        store=np.array(store),
    )


def test_page_table_tells_the_states_apart() -> None:
    words = pagemap(
        PRESENT | 10,  # PRIVATE
        0,  # HOLE
        PRESENT | 7,  # the kernel's zero page
        PRESENT | FILE | 20,  # SHARED
        0,  # SHARED, not in the page table
        PRESENT | 21,  # BROKEN
        (1 << 62) | 99,  # an armed hole reads as swapped
    )
    zero_page = np.array([7], dtype=np.uint64)
    found = oracle.page_table(
        words, START, [mapping(0, 3, 0), mapping(3, 6, 5), mapping(6, 7, 0)], zero_page
    )
    assert found.frame.tolist() == [10, 0, 0, 20, 0, 21, 0]
    assert found.anonymous.tolist() == [True, False, False, False, False, True, False]
    assert found.store.tolist() == [False, False, False, True, True, True, False]


def test_mappings_that_stick_out_of_the_range_are_cut() -> None:
    found = oracle.page_table(
        pagemap(0, 0, 0), START, [mapping(-5, 1, 9), mapping(2, 50, 9)], pagemap()
    )
    assert found.store.tolist() == [True, False, True]


def test_nothing_shared_means_nothing_freed() -> None:
    one = table((1, True, False), (2, True, False), (3, True, False))
    held = [one.anonymous]
    found = reckon(held, [one], [digests(b"a", b"a", b"")], store_bytes=0)
    assert (found.held, found.frames, found.freed) == (3, 3, 0)
    assert found.oracle == 2  # one of the two equal ones, and the zero one
    assert found.held_zero == 1


def test_sharing_frees_less_than_the_oracle_by_dead_slots() -> None:
    """Two guests share one content; one zero page was given back; the store has a dead slot."""
    first = table((100, False, True), (5, True, False), (0, False, False))
    second = table((0, False, True), (6, True, True), (0, False, False))
    held = [np.array([True, True, True]), np.array([True, True, False])]
    found = reckon(
        held,
        [first, second],
        [digests(b"common", b"own", b""), digests(b"common", b"broken")],
        store_bytes=2 * PAGE_BYTES,
    )
    assert found.held == 5
    assert found.frames == 2 + 2  # two of the guests' own, two slots
    assert found.freed == 1
    assert found.oracle == 2


def test_a_frame_that_two_guests_map_counts_once() -> None:
    """KSM's pages are anonymous to pagemap."""
    one = table((5, True, False))
    found = reckon([one.anonymous] * 2, [one] * 2, [digests(b"x")] * 2, store_bytes=0)
    assert (found.held, found.frames, found.oracle) == (2, 1, 1)


def test_equal_halves_of_a_digest_are_not_equal_contents() -> None:
    one = table((5, True, False), (6, True, False))
    contents = np.array([(1, 2), (1, 3)], dtype=oracle.DIGEST)
    assert reckon([one.anonymous], [one], [contents], 0).oracle == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], []),
        ([False, False], []),
        ([True, True], [(0, 2)]),
        ([False, True, False, True, True], [(1, 2), (3, 5)]),
        ([True] * 5, [(0, 2), (2, 4), (4, 5)]),
    ],
)
def test_runs(flags: list[bool], expected: list[tuple[int, int]]) -> None:
    assert runs(np.array(flags, dtype=bool), longest=2) == expected


PAGES = 3001  # a size that no other mapping of the child has
CHILD = """
import ctypes, mmap, sys
pages = int(sys.argv[1])
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(15)  # MADV_NOHUGEPAGE
for page in range(1000):  # ten contents, a hundred times each
    memory[page * 4096] = page % 10 + 1
for page in range(1000, 1500):  # zeros that hold a frame
    memory[page * 4096] = 0
for page in range(1500, 2000):  # the kernel's zero page
    memory[page * 4096]
for page in range(2000, 2100):
    memory[page * 4096 : page * 4096 + 2] = page.to_bytes(2, "little")
print("ready", flush=True)
for line in sys.stdin:
    memory[1000 * 4096 : 1500 * 4096] = memory[1000 * 4096 : 1500 * 4096]
    memory.madvise(4, 1000 * 4096, 500 * 4096)  # MADV_DONTNEED: as given back
    print("done", flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(PAGES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_real_memory_is_counted_exactly(child: subprocess.Popen[str]) -> None:
    memory = oracle.GuestMemory(child.pid, PAGES * mmap.PAGESIZE)
    found, store = oracle.reckon_now([memory], child.pid)
    assert found.held == 1000 + 500 + 100
    assert found.frames == found.held
    assert found.oracle == 990 + 500
    assert found.held_zero == 500
    assert store.allocated_bytes == 0

    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("give back\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"
    found, _ = oracle.reckon_now([memory], child.pid)
    assert (found.held, found.freed, found.oracle) == (1600, 500, 1490)


def test_ram_that_is_not_there_is_an_error(child: subprocess.Popen[str]) -> None:
    with pytest.raises(oracle.MeasurementError, match="0 mappings"):
        oracle.GuestMemory(child.pid, (PAGES + 1) * mmap.PAGESIZE)


def test_segment_size_is_that_of_the_c_side() -> None:
    text = (Path(__file__).parents[2] / "qemu-plugin/include/memshare/units.h").read_text()
    assert f"MSH_SEGMENT_BYTES ({oracle.SEGMENT_BYTES >> 20}u << 20)" in text
