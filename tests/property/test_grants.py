# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots and grants against counters, step by step."""

from collections import Counter

from core_binding import PAGE_BYTES, SEGMENT_SLOTS, ffi, lib
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

LAST = 1

segments = st.integers(0, 3)
holders = st.integers(0, 2)
slots = st.builds(lambda s, p: s * SEGMENT_SLOTS + p, segments, st.integers(0, 6))


class Grants(RuleBasedStateMachine):
    """model: how far each segment is filled; what each holder holds on each slot."""

    def __init__(self) -> None:
        super().__init__()
        handle = ffi.new("MshGrants **")
        assert lib.msh_grants_new(handle) == 0
        self.grants = handle[0]
        self.filled: dict[int, int] = {}
        self.held: list[Counter[int]] = [Counter() for _ in range(3)]
        self.holders = [self.new_holder() for _ in range(3)]

    def new_holder(self) -> object:
        handle = ffi.new("MshHolder **")
        assert lib.msh_holder_new(self.grants, handle) == 0
        return handle[0]

    def teardown(self) -> None:
        for holder in self.holders:
            lib.msh_holder_free(holder, ffi.NULL, ffi.NULL)
        lib.msh_grants_free(self.grants)

    def total(self) -> Counter[int]:
        return sum(self.held, Counter())

    def grants_in(self, segment: int) -> int:
        return sum(n for slot, n in self.total().items() if slot // SEGMENT_SLOTS == segment)

    @rule(segment=segments)
    def add_segment(self, segment: int) -> None:
        assert (lib.msh_grants_add_segment(self.grants, segment) == 0) == (
            segment not in self.filled
        )
        self.filled.setdefault(segment, 0)

    @rule(segment=segments)
    def remove_segment(self, segment: int) -> None:
        removable = segment in self.filled and self.grants_in(segment) == 0
        assert (lib.msh_grants_remove_segment(self.grants, segment) == 0) == removable
        if removable:
            del self.filled[segment]

    @rule(segment=segments)
    def fill(self, segment: int) -> None:
        slot = ffi.new("MshSlot *")
        assert (lib.msh_grants_fill(self.grants, segment, slot) == 0) == (segment in self.filled)
        if segment in self.filled:
            assert slot.number == segment * SEGMENT_SLOTS + self.filled[segment]
            self.filled[segment] += 1

    @rule(who=holders, slot=slots)
    def take(self, who: int, slot: int) -> None:
        exists = slot % SEGMENT_SLOTS < self.filled.get(slot // SEGMENT_SLOTS, 0)
        assert (lib.msh_holder_take(self.holders[who], (slot,)) == 0) == exists
        self.held[who][slot] += exists

    @rule(who=holders, slot=slots)
    def give_back(self, who: int, slot: int) -> None:
        result = lib.msh_holder_give_back(self.holders[who], (slot,))
        if self.held[who][slot] == 0:
            assert result < 0
        else:
            self.held[who][slot] -= 1
            assert result == (LAST if self.grants_in(slot // SEGMENT_SLOTS) == 0 else 0)

    @rule(who=holders)
    def end(self, who: int) -> None:
        told: list[int] = []
        emptied = ffi.callback("void(void *, uint32_t)", lambda _, segment: told.append(segment))
        lib.msh_holder_free(self.holders[who], emptied, ffi.NULL)
        had = {slot // SEGMENT_SLOTS for slot in +self.held[who]}
        self.held[who] = Counter()
        assert sorted(told) == sorted(s for s in had if self.grants_in(s) == 0)
        self.holders[who] = self.new_holder()

    @invariant()
    def numbers_agree(self) -> None:
        stats = ffi.new("MshGrantsStats *")
        lib.msh_grants_stats(self.grants, stats)
        total = +self.total()
        assert stats.segments == len(self.filled)
        assert stats.grants == total.total()
        assert stats.slots_live == len(total)
        assert stats.slots_live + stats.slots_dead == sum(self.filled.values())
        for segment in range(5):
            live = sum(slot // SEGMENT_SLOTS == segment for slot in total)
            assert lib.msh_grants_live(self.grants, segment) == live
            assert lib.msh_grants_filled(self.grants, segment) == self.filled.get(segment, 0)
            for slot in range(segment * SEGMENT_SLOTS, segment * SEGMENT_SLOTS + 8):
                assert lib.msh_grants_slot_is_live(self.grants, (slot,)) == (slot in total)
        for holder, held in zip(self.holders, self.held, strict=True):
            assert lib.msh_holder_grants(holder) == held.total()

    @invariant()
    def costs_add_up_to_what_is_filled(self) -> None:
        costs = sum(lib.msh_holder_cost_bytes(holder) for holder in self.holders)
        shared = sum(n for s, n in self.filled.items() if self.grants_in(s) > 0)
        assert abs(costs - shared * PAGE_BYTES) <= len(self.holders)


TestGrants = Grants.TestCase
