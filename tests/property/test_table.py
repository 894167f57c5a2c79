# SPDX-License-Identifier: GPL-2.0-or-later
"""The shared-page table against a dict, step by step."""

from core_binding import SEGMENT_SLOTS, ffi, lib
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

NONE, REPEAT, SIGHTING, SLOT, FULL = range(5)
AGEING_ENTRIES = 768  # a table with fewer never wants to grow, and so never sweeps

hashes = st.one_of(
    st.integers(1, 40),
    st.integers(1, 40).map(lambda n: n << 58),
    st.integers(1, 2**64 - 1),
)
members = st.integers(0, 3)
frames = st.integers(0, 5)
segments = st.integers(0, 4)


class Table(RuleBasedStateMachine):
    """model: hash -> (member, frame), or the slot's number."""

    def __init__(self) -> None:
        super().__init__()
        handle = ffi.new("MshTable **")
        assert lib.msh_table_new(0, 0xD1B54A32D192ED03, handle) == 0
        self.table = handle[0]
        self.found = ffi.new("MshFound *")
        self.model: dict[int, tuple[int, int] | int] = {}
        self.may_age = False

    def teardown(self) -> None:
        lib.msh_table_free(self.table)

    def expect(self, finding: int, known: tuple[int, int] | int) -> None:
        if isinstance(known, int):
            assert (finding, self.found.slot.number) == (SLOT, known)
        else:
            first = self.found.first
            assert (finding, (first.member, first.frame.number)) == (SIGHTING, known)

    @rule(hash=hashes, member=members, frame=frames)
    def sight(self, hash: int, member: int, frame: int) -> None:
        self.may_age = self.may_age or len(self.model) >= AGEING_ENTRIES
        finding = lib.msh_table_sight(self.table, hash, (member, (frame,)), self.found)
        known = self.model.get(hash)
        if finding == NONE:
            assert known is None or (self.may_age and isinstance(known, tuple))
            self.model[hash] = (member, frame)
        elif finding == REPEAT:
            assert known == (member, frame)
        else:
            assert known is not None and known != (member, frame)
            self.expect(finding, known)

    @rule(start=st.integers(100, 2000), count=st.integers(1, 400), member=members)
    def sight_many(self, start: int, count: int, member: int) -> None:
        for hash in range(start, start + count):
            self.sight(hash, member, 9)

    @rule(hash=hashes, segment=segments, position=st.integers(0, SEGMENT_SLOTS - 1))
    def set_slot(self, hash: int, segment: int, position: int) -> None:
        slot = segment * SEGMENT_SLOTS + position
        if lib.msh_table_set_slot(self.table, hash, (slot,)) == 0:
            assert hash in self.model
            self.model[hash] = slot
        else:
            assert self.may_age or hash not in self.model
            self.model.pop(hash, None)

    @rule(segment=segments)
    def drop_segment(self, segment: int) -> None:
        gone = ffi.callback("bool(const void *, uint32_t)", lambda _, number: number == segment)
        lib.msh_table_drop_slots(self.table, gone, ffi.NULL)
        self.model = {
            hash: known
            for hash, known in self.model.items()
            if isinstance(known, tuple) or known // SEGMENT_SLOTS != segment
        }

    @rule(member=members)
    def drop_member(self, member: int) -> None:
        lib.msh_table_drop_member(self.table, member)
        self.model = {
            hash: known
            for hash, known in self.model.items()
            if isinstance(known, int) or known[0] != member
        }

    @invariant()
    def tells_what_the_model_knows(self) -> None:
        for hash, known in list(self.model.items()):
            finding = lib.msh_table_find(self.table, hash, self.found)
            if finding == NONE:
                assert self.may_age and isinstance(known, tuple)
                del self.model[hash]
            else:
                self.expect(finding, known)
        assert lib.msh_table_entries(self.table) == len(self.model)


TestTable = Table.TestCase
