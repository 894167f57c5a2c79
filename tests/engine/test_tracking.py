# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel tells what was written: nothing else is hashed again, whatever was merged beside it."""

import ctypes
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.lib.broker import build_directory
from tests.lib.memory import Memory, contents
from tests.lib.wire import build_has_weak_hash

from memshare.engine import Engine

pytestmark = pytest.mark.skipif(
    build_has_weak_hash(build_directory()),
    reason="needs more different hashes than the 8-bit build has",
)

RUN, ROW = 16, 64  # of each row a run of common pages and one of zeros, the rest is unique
PAGES = 4 * ROW
COMMON = range(2)  # these rows' runs are equal to those of the next two


def content(page: int) -> int:
    """Runs of pages that the other half has too, zeros, and pages unlike all others."""
    row, at = divmod(page, ROW)
    if at < RUN:
        return 1 + row % len(COMMON) * RUN + at
    return 0 if at < 2 * RUN else 1000 + page


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(PAGES).fill(content)
    yield memory
    memory.check()


def converge(engine: Engine, passes: int = 6) -> dict[str, int]:
    """Make passes; the numbers at their end."""
    for _ in range(passes):
        engine.scan_once()
    return {name: value for name, value in engine.stats().items() if isinstance(value, int)}


def converged(engine: Engine, memory: Memory) -> dict[str, int]:
    """Share all that can be shared."""
    engine.register(memory.buffer)
    numbers = converge(engine)
    assert numbers["shared_pages"] == PAGES // ROW * RUN
    assert numbers["zero_pages"] == PAGES // ROW * RUN
    return numbers


def test_merging_leaves_the_rest_tracked_and_hashed_once(memory: Memory) -> None:
    with Engine(nothing_pinned=True) as engine:
        numbers = converged(engine, memory)
        assert numbers["tracked_pages"] == PAGES
        assert numbers["hashed_pages"] == PAGES - numbers["zero_pages"]
        before = converge(engine, 1)
        idle = converge(engine, 1)
        # What nobody wrote to is passed over, and told so: by it the scan rate is paid, too.
        assert idle["scanned_pages"] == before["scanned_pages"]
        assert idle["skipped_pages"] == before["skipped_pages"] + PAGES


def test_what_is_written_after_a_merge_is_noticed(memory: Memory) -> None:
    """In pages that a window let go of, and in others; the engine asks about nothing else."""
    with Engine(nothing_pinned=True) as engine:
        before = converged(engine, memory)
        pages = [2 * RUN, 2 * RUN + 1, ROW - 1, 3 * ROW + 40]
        for page in pages:
            memory.write(page, bytes(memory.expected[:4096]))
        numbers = converge(engine)
        assert numbers["shared_pages"] == before["shared_pages"] + len(pages)
        assert numbers["tracked_pages"] == PAGES
        assert numbers["hashed_pages"] <= before["hashed_pages"] + 2 * len(pages)
        assert numbers["changed_pages"] == before["changed_pages"] + len(pages)


def test_pages_between_those_that_merge_are_hashed_once_more(memory: Memory) -> None:
    """They lie in the window; no row of such windows has the engine ask and hash for ever."""
    with Engine(nothing_pinned=True) as engine:
        converged(engine, memory)
        pages = range(2 * RUN, ROW, 4)
        for page in pages:
            memory.write(page, bytes(memory.expected[:4096]))
        volatile = [converge(engine, 1)["volatile_pages"] for _ in range(6)]
        assert max(volatile) <= len(pages), "none that was not written"
        numbers = converge(engine, 1)
        assert numbers["shared_pages"] == PAGES // ROW * RUN + len(pages)
        assert converge(engine)["hashed_pages"] == numbers["hashed_pages"]


def test_a_write_to_memory_that_was_calm_for_long_is_noticed_some_passes_later(
    memory: Memory,
) -> None:
    with Engine(nothing_pinned=True) as engine:
        before = converged(engine, memory)
        converge(engine, 24)
        memory.write(2 * RUN, bytes(memory.expected[:4096]))
        memory.write(0, b"own")
        numbers = converge(engine, 12)
        assert numbers["breaks"] == 1
        assert numbers["shared_pages"] == before["shared_pages"], "one more, one less"


def test_rebuilding_lets_go_of_what_it_rebuilds_only(memory: Memory) -> None:
    with Engine(nothing_pinned=True) as engine:
        before = converged(engine, memory)
        memory.write(5, b"own")
        numbers = converge(engine)
        assert numbers["rebuilt_pages"] == 1
        assert numbers["tracked_pages"] == PAGES
        assert numbers["hashed_pages"] <= before["hashed_pages"] + 2


def write_while_passing(engine: Engine, writer: Callable[[], None]) -> None:
    """Make passes for as long as the writer runs, and some more."""
    thread = threading.Thread(target=writer)
    thread.start()
    while thread.is_alive():
        engine.scan_once()
    thread.join()
    converge(engine, 8)


def test_what_is_touched_while_its_block_comes_to_be_tracked_is_shared() -> None:
    """Looked at before it was there and protected once it was, a page would never be looked at again."""
    pages, rounds = 8192, 12
    data = b"".join(contents(1 + page // 2) for page in range(pages))
    for _ in range(rounds):
        memory = Memory(pages)
        memory.expected[:] = data
        with Engine(nothing_pinned=True, eager=True) as engine:
            engine.register(memory.buffer)
            address = memory.address
            write_while_passing(engine, lambda: ctypes.memmove(address, data, len(data)))  # noqa: B023
            assert engine.stats()["shared_pages"] == pages
        memory.check()


def test_what_is_written_while_others_are_protected_is_shared() -> None:
    """Between two pages that are known to be written, and so protected with them."""
    pages, rounds = 8192, 12
    common = contents(1)
    for _ in range(rounds):
        memory = Memory(pages).fill(lambda page: 2 + page)
        with Engine(nothing_pinned=True, eager=True) as engine:
            engine.register(memory.buffer)
            assert converge(engine)["tracked_pages"] == pages

            def write(memory: Memory = memory) -> None:
                for first in (8, 0, 12, 4):
                    for page in range(first, pages, 16):
                        memory.write(page, common)

            write_while_passing(engine, write)
            assert engine.stats()["shared_pages"] == pages // 4
        memory.check()
