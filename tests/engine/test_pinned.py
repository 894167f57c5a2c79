# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that the kernel has pinned for I/O stay where they are, and what is read into them arrives."""

import os

from tests.lib.memory import PAGE_BYTES, Memory, contents, pagemap
from tests.lib.native import Pin

from memshare.engine import Engine

PAGES = 32


def test_I1_pinned_pages_stay_and_io_into_them_is_not_lost() -> None:
    """Zero and common pages alike; once let go, they merge."""
    memory = Memory(PAGES).fill(lambda page: page % 8 // 4)
    pinned = range(8)
    before = [state.frame for state in pagemap(memory)][: len(pinned)]
    pin = Pin(memory.address, len(pinned) * PAGE_BYTES)
    file = os.memfd_create("test")
    os.write(file, b"read by the kernel, ")
    with Engine() as engine:
        engine.register(memory.buffer)
        for _ in range(4):
            engine.scan_once()
        stats = engine.stats()
        assert stats["pinned_skips"] >= len(pinned)
        assert stats["shared_pages"] + stats["zero_pages"] == PAGES - len(pinned)
        assert [state.frame for state in pagemap(memory)][: len(pinned)] == before
        for page in pinned:
            at = page * PAGE_BYTES + 8 * page
            pin.read(file, at, 20)
            memory.expected[at : at + 20] = b"read by the kernel, "
        memory.check()
        pin.close()
        for page in pinned:
            memory.write(page, contents(page % 8 // 4))
        # Pages that would not go are looked at less and less often.
        for _ in range(200):
            engine.scan_once()
        stats = engine.stats()
        assert stats["shared_pages"] + stats["zero_pages"] == PAGES
        memory.check()
    os.close(file)
