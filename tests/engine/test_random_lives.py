# SPDX-License-Identifier: GPL-2.0-or-later
"""Random lives of two engines in one process against plain bytes: every byte, after each step."""

import mmap

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.lib.memory import PAGE_BYTES, Memory, contents, mappings_of, pagemap

from memshare.engine import Engine

PAGES = 48
pages = st.integers(0, PAGES - 1)
engines = st.integers(0, 1)
memories = st.integers(0, 2)


class EnginesAndMemory(RuleBasedStateMachine):
    """Engine 0 may rebuild; engine 1 was not promised that nothing is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.engines = [Engine(nothing_pinned=True), Engine(nothing_pinned=False)]
        self.memories = [Memory(PAGES).fill(lambda page: page // 4 % 5) for _ in range(3)]
        self.owner: list[int | None] = [None, None, None]
        self.held = [False, False]

    def teardown(self) -> None:
        """Close the engines; their memory goes on."""
        for engine in self.engines:
            engine.close()
        for memory in self.memories:
            memory.check()
            assert not any({"um", "uw"} & mapping.flags for mapping in mappings_of(memory))

    @rule(e=engines, m=memories)
    def register(self, e: int, m: int) -> None:
        """Memory in which no store mapping was left behind."""
        if self.owner[m] is None:
            self.engines[e].register(self.memories[m].buffer)
            self.owner[m] = e

    @rule(m=memories)
    def unregister(self, m: int) -> None:
        """Where pages were not rebuilt, which needs the promise and no hold, other memory is used from then on."""
        owner = self.owner[m]
        if owner is None:
            return
        self.engines[owner].unregister(self.memories[m].buffer)
        self.memories[m].check()
        assert not any({"um", "uw"} & mapping.flags for mapping in mappings_of(self.memories[m]))
        if any(mapping.name for mapping in mappings_of(self.memories[m])):
            assert owner == 1 or self.held[owner]
            self.memories[m] = Memory(PAGES).fill(lambda page: page % 3)
        self.owner[m] = None

    @rule(m=memories, page=pages, count=st.integers(1, 16), number=st.integers(0, 6))
    def fill(self, m: int, page: int, count: int, number: int) -> None:
        """Whole pages of contents that others may have as well."""
        for at in range(page, min(page + count, PAGES)):
            self.memories[m].write(at, contents(number))

    @rule(
        m=memories,
        page=pages,
        offset=st.integers(0, PAGE_BYTES - 1),
        value=st.binary(min_size=1, max_size=9),
    )
    def write(self, m: int, page: int, offset: int, value: bytes) -> None:
        """A few bytes anywhere in a page."""
        self.memories[m].write(page, value[: PAGE_BYTES - offset], offset)

    @rule(m=memories, page=pages)
    def discard(self, m: int, page: int) -> None:
        """Legal in plain memory only: elsewhere what the store holds would appear."""
        memory = self.memories[m]
        at = memory.address_of(page)
        if any(
            mapping.name for mapping in mappings_of(memory) if mapping.start <= at < mapping.end
        ):
            return
        memory.buffer.madvise(mmap.MADV_DONTNEED, page * PAGE_BYTES, PAGE_BYTES)
        memory.expected[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)

    @rule(e=engines, passes=st.integers(1, 5))
    def scan(self, e: int, passes: int) -> None:
        """As often as pages need to be taken for settled, and more."""
        for _ in range(passes):
            self.engines[e].scan_once()

    @rule(e=engines, mode=st.sampled_from(["off", "zero", "content"]))
    def set_mode(self, e: int, mode: str) -> None:
        """Takes effect with the next pass."""
        self.engines[e].set(mode=mode)  # type: ignore[arg-type]

    @rule(e=engines, hold=st.booleans())
    def hold(self, e: int, *, hold: bool) -> None:
        """Nothing is registered while held."""
        self.engines[e].hold(hold=hold)
        self.held[e] = hold
        if hold:
            for m, owner in enumerate(self.owner):
                flags = [mapping.flags for mapping in mappings_of(self.memories[m])]
                assert owner != e or not any({"um", "uw"} & each for each in flags)

    @rule(e=engines)
    def detach(self, e: int) -> None:
        """Nothing is shared afterwards."""
        self.engines[e].detach()
        assert self.engines[e].stats()["shared_pages"] == 0
        for m, owner in enumerate(self.owner):
            if owner == e:
                assert not any(state.is_file for state in pagemap(self.memories[m]))

    @precondition(lambda self: None not in self.owner)
    @rule(e=engines)
    def converge(self, e: int) -> None:
        """All together, at the end of the day, in mode content."""
        self.engines[e].hold(hold=False)
        self.held[e] = False
        self.engines[e].set(mode="content")
        for _ in range(4):
            self.engines[e].scan_once()

    @invariant()
    def every_byte_is_right(self) -> None:
        """Each memory, registered or not."""
        for memory in self.memories:
            memory.check()

    @invariant()
    def gauges_fit_in_memory(self) -> None:
        """No page is counted twice, none below zero."""
        for e, engine in enumerate(self.engines):
            stats = engine.stats()
            most = self.owner.count(e) * PAGES
            assert stats["ram_bytes"] == most * PAGE_BYTES
            counted = stats["shared_pages"] + stats["broken_pages"] + stats["zero_pages"]
            assert counted <= most, stats


TestModel = EnginesAndMemory.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
