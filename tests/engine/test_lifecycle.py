# SPDX-License-Identifier: GPL-2.0-or-later
"""What an engine leaves behind, and what it must leave alone."""

import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lib.broker import build_directory, wait_until
from tests.lib.memory import (
    PAGE_BYTES,
    Mapping,
    Memory,
    contents,
    mappings,
    mappings_of,
    pagemap,
)
from tests.lib.native import run_scenario
from tests.lib.wire import build_has_weak_hash

from memshare.engine import Engine

PAGES = 64
WEAK = build_has_weak_hash(build_directory())
MADV_HUGEPAGE, MADV_PAGEOUT, MADV_DONTFORK, MADV_DONTDUMP = 14, 21, 10, 16


@pytest.fixture
def memory() -> Iterator[Memory]:
    """A quarter zeros, half common, a quarter unlike all others."""
    memory = Memory(PAGES).fill(number_of)
    yield memory
    memory.check()


def number_of(page: int) -> int:
    """Which contents."""
    return (0, 1, 1, page + 100)[page % 4]


def is_shared(engine: Engine, pages: int) -> bool:
    """Whether so many pages are. A weak hash takes unlike pages for equal, so that one of them may get
    a slot, which no other page then equals.
    """
    shared = int(engine.stats()["shared_pages"])
    return shared == pages or (WEAK and shared > pages)


def other_number_of(page: int) -> int:
    """The same for a second region, whose unlike pages are also unlike those of the first."""
    return number_of(page) + (1000 if page % 4 == 3 else 0)


def flags_of(memory: Memory) -> list[frozenset[str]]:
    """VmFlags of each mapping, less "soft dirty", which any write sets."""
    return [mapping.flags - {"sd"} for mapping in mappings_of(memory)]


def store_mappings() -> list[Mapping]:
    """Mappings of any store in this process."""
    return [mapping for mapping in mappings() if "memshare-" in mapping.name]


def fill_gaps(memory: Memory) -> list[Memory]:
    """Pages in use in every gap above the lowest mapping, so that what is mapped next lies beside them."""
    lowest = min(m.start for m in mappings() if m.start >> 40 == memory.address >> 40)
    pages: list[Memory] = []
    while not pages or pages[-1].address > lowest:
        pages.append(Memory(1).fill(lambda _: 1))
    return pages


def descriptors() -> list[str]:
    """What this process has open, of the kinds an engine opens."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return sorted(name for name in names if "userfaultfd" in name or "memshare-" in name)


def threads() -> set[str]:
    """Names of the engine's threads."""
    tasks = Path("/proc/self/task").iterdir()
    return {
        name for task in tasks if (name := (task / "comm").read_text().strip())[:9] == "memshare-"
    }


def converge(engine: Engine) -> None:
    """Make passes enough to share all that can be."""
    for _ in range(4):
        engine.scan_once()


@pytest.mark.parametrize("started", [False, True])
def test_I12_detach_leaves_memory_as_it_was(memory: Memory, started: bool) -> None:
    """One plain mapping again, no descriptor, no thread, no store."""
    for advice in (MADV_HUGEPAGE, MADV_DONTFORK, MADV_DONTDUMP):
        memory.buffer.madvise(advice)
    before = flags_of(memory)
    others_before = store_mappings(), descriptors(), threads()
    engine = Engine(nothing_pinned=True)
    engine.register(memory.buffer)
    if started:
        engine.start()
        wait_until(lambda: engine.stats()["shared_pages"] >= PAGES // 2, "it shares")
    else:
        converge(engine)
    wait_until(lambda: engine.stats()["zero_pages"] == PAGES // 4, "zero pages are given back")
    assert is_shared(engine, PAGES // 2)
    assert store_mappings() != []
    memory.check()
    engine.detach()
    stats = engine.stats()
    assert (stats["shared_pages"], stats["broken_pages"]) == (0, 0)
    memory.check()
    wait_until(lambda: set(store_mappings()) <= set(others_before[0]), "the store is unmapped")
    assert len(flags_of(memory)) == len(before)
    assert not any({"um", "uw"} & flags for flags in flags_of(memory))
    engine.close()
    assert flags_of(memory) == before
    for now, then in zip((store_mappings(), descriptors(), threads()), others_before, strict=True):
        assert set(now) <= set(then)
    for page in range(PAGES):
        memory.write(page, b"mine")


def test_I12_without_the_promise_pages_become_private_copies(memory: Memory) -> None:
    """Nothing shared is left, though store mappings stay."""
    with Engine() as engine:
        engine.register(memory.buffer)
        converge(engine)
        assert is_shared(engine, PAGES // 2)
        memory.check()  # or the kernel would show nothing where nothing has been read
        assert any(state.is_file for state in pagemap(memory))
        engine.detach()
        stats = engine.stats()
        assert stats["shared_pages"] == 0
        assert stats["broken_pages"] >= PAGES // 2
        states = pagemap(memory)
        assert not any(state.is_file for state in states)
        memory.check()
        # Zero pages that were read map the kernel's one zero frame.
        frames = [s.frame for page, s in enumerate(states) if s.present and number_of(page)]
        assert len(set(frames)) == len(frames) == PAGES * 3 // 4
    memory.check()


def test_I12_a_moment_without_pins_is_enough_for_plain_memory(memory: Memory) -> None:
    """The promise can be given for a while only, in the middle of I/O; nothing is done in mode content."""
    with Engine() as engine:
        engine.register(memory.buffer)
        before = flags_of(memory)
        converge(engine)
        assert is_shared(engine, PAGES // 2)
        engine.release()
        assert is_shared(engine, PAGES // 2)
        engine.set(mode="off")
        assert engine.release(budget_ns=0)
        assert is_shared(engine, PAGES // 2)
        assert not engine.release()
        stats = engine.stats()
        assert (stats["shared_pages"], stats["broken_pages"]) == (0, 0)
        memory.check()
        assert len(flags_of(memory)) == len(before)


def test_I12_memory_is_one_mapping_again_wherever_the_kernel_maps_new_memory(
    memory: Memory,
) -> None:
    """Beside some that is in use it could become a part of that."""
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        before = flags_of(memory)
        beside = fill_gaps(memory)
        converge(engine)
        assert is_shared(engine, PAGES // 2)
        beside += fill_gaps(memory)
        engine.detach()
        assert len(flags_of(memory)) == len(before)
        memory.check()
        for page in beside:
            page.check()


def test_I12_what_is_rebuilt_from_end_to_end_is_joined_and_so_is_the_next() -> None:
    """What makes new memory like the old is not used up."""
    pages = 512
    memory = Memory(pages).fill(lambda page: 1000 + page)
    before = len(mappings_of(memory))
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for first, last in ((0, pages - 1), (5, 9)):
            for page in (first, last):
                memory.write(page, contents(1 + first))
            for _ in range(6):
                engine.scan_once()
            assert engine.stats()["shared_pages"] >= 2
            engine.set(mode="off")
            engine.scan_once()
            assert engine.stats()["shared_pages"] == 0
            assert len(mappings_of(memory)) == before, (first, last)
            engine.set(mode="content")
    memory.check()


def test_I12_unregister_restores_flags(memory: Memory) -> None:
    """Also while the engine goes on with other memory."""
    memory.buffer.madvise(MADV_HUGEPAGE)
    before = flags_of(memory)
    other = Memory(PAGES).fill(other_number_of)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        engine.register(other.buffer)
        converge(engine)
        engine.unregister(memory.buffer)
        assert flags_of(memory) == before
        assert engine.stats()["ram_bytes"] == PAGES * PAGE_BYTES
        converge(engine)
        assert is_shared(engine, PAGES // 2)
        other.check()


def test_each_region_keeps_its_own_flags() -> None:
    """Common contents in one region for children and one that is not for them, page by page."""
    mine, for_children = Memory(PAGES).fill(number_of), Memory(PAGES).fill(other_number_of)
    mine.buffer.madvise(MADV_DONTFORK)
    for_children.buffer.madvise(MADV_DONTDUMP)
    with Engine(nothing_pinned=True) as engine:
        engine.register(mine.buffer)
        engine.register(for_children.buffer)
        converge(engine)
        assert is_shared(engine, PAGES)
        for flags in flags_of(mine):
            assert ("dc" in flags, "dd" in flags) == (True, False), flags
        for flags in flags_of(for_children):
            assert ("dc" in flags, "dd" in flags) == (False, True), flags


def test_I9_absent_pages_stay_absent(memory: Memory) -> None:
    """Never touched and discarded pages are not brought in by any number of passes."""
    sparse = Memory(PAGES)
    for page in range(0, PAGES, 4):
        sparse.write(page, bytes([page + 1]) * PAGE_BYTES)
    # The kernel gives back what is discarded, and so does its owner's knowledge of it.
    sparse.buffer.madvise(mmap.MADV_DONTNEED, 8 * PAGE_BYTES, 8 * PAGE_BYTES)
    sparse.expected[8 * PAGE_BYTES : 16 * PAGE_BYTES] = bytes(8 * PAGE_BYTES)
    before = [state.present for state in pagemap(sparse)]
    assert sum(before) == PAGES // 4 - 2
    with Engine(nothing_pinned=True) as engine:
        engine.register(sparse.buffer)
        engine.register(memory.buffer)
        converge(engine)
        # A page whose 8-bit hash another one has is shared with itself, so it may be absent now.
        now = [state.present for state in pagemap(sparse)]
        assert not any(is_in and not was_in for is_in, was_in in zip(now, before, strict=True))
        engine.detach()
        assert [state.present for state in pagemap(sparse)] == before
    sparse.check()


def test_I10_savings_are_what_the_kernel_counts(memory: Memory) -> None:
    """Zero and content savings together are the frames that are gone, the store's counted once."""
    more = Memory(PAGES).fill(other_number_of)
    frames_before = len({s.frame for m in (memory, more) for s in pagemap(m) if s.present})
    assert frames_before == 2 * PAGES
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        engine.register(more.buffer)
        converge(engine)
        for m in (memory, more):
            m.check()  # maps every shared page, so that each shows its frame
        converge(engine)
        states = [state for m in (memory, more) for state in pagemap(m)]
        stats = engine.stats()
        assert is_shared(engine, PAGES)
        # Zero pages that were read map the kernel's one zero frame, which is no memory of ours.
        shared_frames = {state.frame for state in states if state.is_file}
        private = sum(state.present and not state.is_file for state in states) - stats["zero_pages"]
        freed_bytes = (frames_before - len(shared_frames) - private) * PAGE_BYTES
        assert stats["saved_zero_bytes"] + stats["saved_content_bytes"] == freed_bytes
        assert stats["saved_zero_bytes"] == PAGES // 2 * PAGE_BYTES


def test_I8_windows_are_counted_by_their_time(memory: Memory) -> None:
    """Each window is in one bucket, and every one that was opened is closed."""
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        converge(engine)
        stats = engine.stats()
        assert stats["windows"] > 0
        assert sum(stats["window_time_ns"]) == stats["windows"]
        assert not any("um" in flags for flags in flags_of(memory))


def test_hold_leaves_nothing_registered_and_changes_nothing(memory: Memory) -> None:
    """While held pages stay as they are; afterwards merging goes on."""
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        engine.scan_once()
        engine.hold(hold=True)
        converge(engine)
        assert engine.stats()["windows"] == 0
        engine.hold(hold=False)
        converge(engine)
        assert is_shared(engine, PAGES // 2)
        engine.hold(hold=True)
        rebuilt = engine.stats()["rebuilt_pages"]
        engine.detach()
        assert (engine.stats()["rebuilt_pages"], engine.stats()["shared_pages"]) == (rebuilt, 0)
        memory.check()


def test_a_pass_by_hand_is_not_starved_by_the_threads(memory: Memory) -> None:
    """scan_once, detach and unregister come through while two threads scan at full speed."""
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        engine.start()
        done = threading.Event()

        def by_hand() -> None:
            for _ in range(10):
                engine.scan_once()
            engine.detach()
            engine.unregister(memory.buffer)
            done.set()

        threading.Thread(target=by_hand, daemon=True).start()
        assert done.wait(60), "never got its turn"


def test_zero_pages_are_counted_once(memory: Memory) -> None:
    """However often the threads see a page before its window comes, and whatever is written."""
    with Engine(mode="zero", nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        engine.start()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for page in range(0, PAGES, 4):
                memory.write(page, b"x")
                memory.write(page, b"\0")
            zero_pages = engine.stats()["zero_pages"]
            assert zero_pages <= PAGES
        wait_until(lambda: engine.stats()["zero_pages"] == PAGES // 4, "zero pages settle")


def test_a_ceiling_limits_the_mode_and_says_why(memory: Memory) -> None:
    """Zero at most: contents are un-shared, zero pages stay away."""
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        converge(engine)
        engine.set_ceiling("zero", "a test does not like contents")
        converge(engine)
        stats = engine.stats()
        assert (stats["mode"], stats["refusal"]) == ("zero", "a test does not like contents")
        assert (stats["shared_pages"], stats["zero_pages"]) == (0, PAGES // 4)
        engine.set_ceiling("content", "")
        converge(engine)
        stats = engine.stats()
        assert (stats["mode"], stats["refusal"]) == ("content", "")
        assert is_shared(engine, PAGES // 2)


@pytest.mark.parametrize(
    "kind",
    [
        "scattered",
        pytest.param(
            "mixed",
            marks=pytest.mark.skipif(
                build_has_weak_hash(build_directory()),
                reason="pages that collide leave no long runs",
            ),
        ),
    ],
)
def test_I11_mappings_stay_within_the_budget(kind: str) -> None:
    """Some pages are shared, long runs first; the rest stay private; the engine's count is the kernel's."""
    run = run_scenario("tests.engine.budget", kind)
    assert run.returncode == 0, run.stderr
