# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that the kernel has swapped out stay there, in every state that they can be in."""

from collections.abc import Iterator

import pytest
from tests.lib.memory import PAGE_BYTES, Memory, pagemap
from tests.lib.swap import MADV_PAGEOUT, swap_file

from memshare.engine import Engine

PAGES = 64
SWAP_BYTES = 64 << 20


@pytest.fixture(autouse=True)
def swap() -> Iterator[None]:
    """A swap file of our own, gone again in every case."""
    with swap_file(SWAP_BYTES):
        yield


def number_of(page: int) -> int:
    """A quarter zeros, half common, a quarter unlike all others."""
    return (0, 1, 1, page + 100)[page % 4]


def page_out(memory: Memory, wanted: int) -> list[int]:
    """Swap out as much as the kernel will; the pages that are."""
    for _ in range(50):
        memory.buffer.madvise(MADV_PAGEOUT)
        swapped = [page for page, state in enumerate(pagemap(memory)) if state.swapped]
        if len(swapped) >= wanted:
            return swapped
    raise AssertionError(f"only {len(swapped)} of {wanted} pages could be swapped out")


def test_I9_swapped_pages_stay_swapped() -> None:
    """Private ones: passes neither bring them in nor merge them; what they hold is right."""
    memory = Memory(PAGES).fill(number_of)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        engine.scan_once()
        swapped = page_out(memory, PAGES // 2)
        for _ in range(5):
            engine.scan_once()
        states = pagemap(memory)
        assert [page for page in swapped if not states[page].swapped] == []
        memory.check()  # brings them in
        for _ in range(4):
            engine.scan_once()
        assert engine.stats()["shared_pages"] >= PAGES // 2
        engine.detach()
        memory.check()


def test_I9_a_swapped_copy_of_a_shared_page_is_known_as_broken() -> None:
    """What was shared, written to and swapped out is no longer counted as shared, and never lost."""
    memory = Memory(PAGES).fill(number_of)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(4):
            engine.scan_once()
        assert engine.stats()["shared_pages"] >= PAGES // 2
        written = [page for page in range(PAGES) if page % 4 in {1, 2}]
        for page in written:
            memory.write(page, b"mine now", offset=page)
        swapped = page_out(memory, len(written))
        assert set(swapped) & set(written)
        for _ in range(3):
            engine.scan_once()
        stats = engine.stats()
        assert stats["broken_pages"] >= PAGES // 2
        states = pagemap(memory)
        assert all(states[page].swapped for page in set(swapped) & set(written))
        engine.detach()  # drains: has to read them
        assert engine.stats()["broken_pages"] == 0
        memory.check()
    assert memory.expected[1 * PAGE_BYTES + 1 :][:8] == b"mine now"
