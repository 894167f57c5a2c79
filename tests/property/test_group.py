# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole group against a dict model: who is asked, matched, hinted and shown what."""

import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from core_binding import PAGE_BYTES, SEGMENT_SLOTS, ffi, lib
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

NEW, PROVIDE, MATCH = range(3)

seats = st.integers(0, 2)
pages = st.integers(0, 9).map(lambda n: bytes([n + 1]) * PAGE_BYTES)
frames = st.integers(0, 3)
segments = st.integers(0, 3)


@contextmanager
def memory_for(slots: int | None) -> Iterator[None]:
    """A segment cannot grow beyond so many slots; None: no limit. Python ignores SIGXFSZ."""
    before, ceiling = resource.getrlimit(resource.RLIMIT_FSIZE)
    if slots is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (slots * PAGE_BYTES, ceiling))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, ceiling))


class Member:
    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.held: Counter[int] = Counter()
        self.shown: set[int] = set()


class Group(RuleBasedStateMachine):
    """model: hash -> (member, frame) of the first sighting, or the slot's number."""

    @initialize(
        store_pages=st.sampled_from([0, 3]),
        member_slots=st.sampled_from([0, 2]),
        on=st.booleans(),
        may_fall_short=st.booleans(),
    )
    def start(self, store_pages: int, member_slots: int, on: bool, may_fall_short: bool) -> None:
        self.store_pages, self.member_slots, self.pass_hints_on = store_pages, member_slots, on
        self.may_fall_short = may_fall_short
        self.known: dict[int, tuple[Member, int] | int] = {}
        self.contents: dict[int, bytes] = {}  # of every slot in segments that are not retired
        self.retired: dict[int, set[Member]] = {}  # and who has yet to forget it
        self.filling: int | None = None
        self.releases = 0
        self.emptying: set[int] = set()
        self.hints: list[tuple[Any, int, int]] = []
        self.retirements: list[tuple[Any, int]] = []
        self.emptyings: list[tuple[Any, int]] = []
        self.events = ffi.new("MshGroupEvents *")
        self.on_hint = ffi.callback("bool(void *, MshMember *, MshFrame, MshSlot)", self.hinted)
        self.on_retired = ffi.callback(
            "void(void *, MshMember *, uint32_t)", lambda _, m, s: self.retirements.append((m, s))
        )
        self.on_emptying = ffi.callback(
            "void(void *, MshMember *, uint32_t)", lambda _, m, s: self.emptyings.append((m, s))
        )
        self.events.hint, self.events.retired = self.on_hint, self.on_retired
        self.events.emptying = self.on_emptying
        limits = ffi.new("MshGroupLimits *", (store_pages * PAGE_BYTES, 0, member_slots))
        handle = ffi.new("MshGroup **")
        assert lib.msh_group_new(b"property", limits, self.events, handle, ffi.NULL) == 0
        self.group = handle[0]
        self.members = [self.join() for _ in range(3)]

    def hinted(self, _: Any, member: Any, frame: Any, slot: Any) -> bool:
        self.hints.append((member, frame.number, slot.number))
        return self.pass_hints_on

    def join(self) -> Member:
        handle = ffi.new("MshMember **")
        assert lib.msh_group_join(self.group, ffi.NULL, handle) == 0
        return Member(handle[0])

    def teardown(self) -> None:
        if hasattr(self, "group"):
            for member in self.members:
                lib.msh_group_leave(member.handle)
            lib.msh_group_free(self.group)

    def hash_of(self, page: bytes) -> int:
        return int(lib.msh_fingerprint(lib.msh_group_secret(self.group), ffi.from_buffer(page)))

    def may_hold_more(self, member: Member) -> bool:
        return self.member_slots == 0 or member.held.total() < self.member_slots

    def expect_match(self, member: Member, answer: int, slot: int, expected: int) -> None:
        if self.may_hold_more(member):
            assert (answer, slot) == (MATCH, expected)
            member.held[slot] += 1
        else:
            assert answer == NEW

    @rule(seat=seats, page=pages, frame=frames)
    def sight(self, seat: int, page: bytes, frame: int) -> None:
        member, hash, slot = self.members[seat], self.hash_of(page), ffi.new("MshSlot *")
        answer = lib.msh_group_sight(member.handle, hash, (frame,), slot)
        if self.is_emptying(self.known.get(hash)) and not self.is_live(self.known[hash]):
            del self.known[hash]
        known = self.known.setdefault(hash, (member, frame))
        if self.is_emptying(known):
            assert answer == (PROVIDE if self.may_hold_more(member) else NEW)
        elif isinstance(known, int):
            self.expect_match(member, answer, slot.number, known)
        elif known == (member, frame) or not self.may_hold_more(member):
            assert answer == NEW
        else:
            assert answer == PROVIDE

    @rule(count=st.integers(3, 6), kept=st.integers(1, 4))
    def fill_and_close(self, count: int, kept: int) -> None:
        """As chance rarely does: a segment that is filled no more, and few grants."""
        for number in range(count + 1):
            page = bytes([number + 1]) * PAGE_BYTES
            self.sight(0, page, 0)
            self.sight(1, page, 1)
            self.provide(1, page, 1, None, is_short=number == count)
        for seat in (0, 1):
            for slot in sorted(+self.members[seat].held)[:1]:
                self.show(seat, slot // SEGMENT_SLOTS)
            self.release_many(seat, kept)

    @rule(seat=seats, kept=st.integers(0, 2))
    def release_many(self, seat: int, kept: int) -> None:
        for _ in range(self.members[seat].held.total() - kept):
            self.release(seat, 0, 0)

    def is_emptying(self, known: tuple[Member, int] | int | None) -> bool:
        return isinstance(known, int) and known // SEGMENT_SLOTS in self.emptying

    def is_live(self, slot: Any) -> bool:
        return any(member.held[slot] for member in self.members)

    def kept_in(self, segment: int) -> set[int]:
        return {slot for slot in self.contents if slot // SEGMENT_SLOTS == segment}

    @rule(
        seat=seats,
        page=pages,
        frame=frames,
        sent=st.one_of(st.none(), pages),
        is_short=st.integers(0, 9).map(lambda n: n == 0),
    )
    def provide(
        self, seat: int, page: bytes, frame: int, sent: bytes | None, *, is_short: bool
    ) -> None:
        member, hash, slot = self.members[seat], self.hash_of(page), ffi.new("MshSlot *")
        sent = page if sent is None else sent
        self.hints.clear()
        self.emptyings.clear()
        frontier = 0 if self.filling is None else len(self.kept_in(self.filling))
        # Where memory never falls short, it is made ready for several slots at once.
        is_short = is_short and self.may_fall_short
        with memory_for(frontier + (not is_short) if self.may_fall_short else None):
            answer = lib.msh_group_provide(
                member.handle, hash, (frame,), ffi.from_buffer(sent), slot
            )
        known = self.known.get(hash)
        if isinstance(known, int) and not self.is_emptying(known):
            self.expect_match(member, answer, slot.number, known)
        elif (
            known is None
            or known == (member, frame)
            or (isinstance(known, int) and not self.is_live(known))
            or not self.may_hold_more(member)
            or 0 < self.store_pages <= len(self.contents)
            or self.hash_of(sent) != hash
        ):
            assert answer == NEW
        elif is_short:
            assert answer == NEW
            closed, self.filling = self.filling, None
            self.empty_what_is_mostly_dead(set() if closed is None else {closed})
        else:
            assert answer == MATCH
            self.slot_added(slot.number, sent)
            self.known[hash] = slot.number
            member.held[slot.number] += 1
            if not isinstance(known, int):
                self.expect_hint(*known, slot.number)
                return
        assert self.hints == []

    def slot_added(self, slot: int, page: bytes) -> None:
        segment, position = divmod(slot, SEGMENT_SLOTS)
        kept = self.kept_in(segment)
        assert position == len(kept)  # I4: in order, none twice
        assert segment == self.filling or not kept
        assert segment not in self.retired
        assert self.filling in (None, segment)
        self.filling = segment
        self.contents[slot] = page

    def expect_hint(self, first: Member, frame: int, slot: int) -> None:
        if self.may_hold_more(first):
            assert self.hints == [(first.handle, frame, slot)]
            first.held[slot] += self.pass_hints_on
        else:
            assert self.hints == []

    @rule(seat=seats, pick=st.integers(0, 20), segment=segments)
    def release(self, seat: int, pick: int, segment: int) -> None:
        member = self.members[seat]
        held = sorted(+member.held)
        slot = held[pick % len(held)] if held else segment * SEGMENT_SLOTS + pick
        self.retirements.clear()
        self.emptyings.clear()
        result = lib.msh_group_release(member.handle, (slot,))
        assert (result == 0) == (member.held[slot] > 0)
        if result == 0:
            member.held[slot] -= 1
            self.releases += 1
        segment = slot // SEGMENT_SLOTS
        self.retire_what_is_empty({segment})
        is_time = self.releases % 16 == 0 or not self.kept_in(segment)
        self.empty_what_is_mostly_dead({segment}, all_too=result == 0 and is_time)

    @rule(seat=seats)
    def leave_and_join(self, seat: int) -> None:
        member = self.members[seat]
        self.retirements.clear()
        self.emptyings.clear()
        lib.msh_group_leave(member.handle)
        self.members[seat] = self.join()
        self.known = {
            hash: known
            for hash, known in self.known.items()
            if isinstance(known, int) or known[0] is not member
        }
        for segment in list(self.retired):
            self.forgotten(segment, member)
        self.retire_what_is_empty({slot // SEGMENT_SLOTS for slot in self.contents})
        self.empty_what_is_mostly_dead({slot // SEGMENT_SLOTS for slot in self.contents})

    def retire_what_is_empty(self, candidates: set[int]) -> None:
        total: Counter[int] = sum((m.held for m in self.members), Counter())
        expected = []
        for segment in candidates & {slot // SEGMENT_SLOTS for slot in self.contents}:
            if any(slot // SEGMENT_SLOTS == segment for slot in +total):
                continue
            gone = self.kept_in(segment)
            self.emptying.discard(segment)
            self.contents = {s: page for s, page in self.contents.items() if s not in gone}
            self.known = {h: k for h, k in self.known.items() if k not in gone}
            self.filling = None if self.filling == segment else self.filling
            knowers = {m for m in self.members if segment in m.shown}
            if knowers:
                self.retired[segment] = knowers
            expected += [(m.handle, segment) for m in knowers]
        assert Counter(map(str, self.retirements)) == Counter(map(str, expected))

    def empty_what_is_mostly_dead(self, candidates: set[int], *, all_too: bool = False) -> None:
        due = {
            segment
            for segment in candidates - self.emptying - {self.filling}
            if 2 * sum(map(self.is_live, self.kept_in(segment))) < len(self.kept_in(segment))
        }
        self.emptying |= due
        if all_too:
            due |= self.deadest()
        self.emptying |= due
        expected = [
            (m.handle, segment) for segment in due for m in self.members if segment in m.shown
        ]
        assert Counter(map(str, self.emptyings)) == Counter(map(str, expected))

    def deadest(self) -> set[int]:
        kept = {slot for slot in self.contents if slot // SEGMENT_SLOTS not in self.emptying}
        dead = Counter(slot // SEGMENT_SLOTS for slot in kept if not self.is_live(slot))
        if 10 * dead.total() <= len(kept):
            return set()
        del dead[self.filling]
        if not dead:
            return set()
        segment = min(
            dead,
            key=lambda segment: (-Fraction(dead[segment], len(self.kept_in(segment))), segment),
        )
        live = sum(map(self.is_live, self.kept_in(segment)))
        has_room = not 0 < self.store_pages < len(self.contents) + live
        return {segment} if has_room else set()

    def forgotten(self, segment: int, member: Member) -> None:
        member.shown.discard(segment)
        self.retired[segment].discard(member)
        if not self.retired[segment]:
            del self.retired[segment]

    @rule(seat=seats, segment=segments)
    def show(self, seat: int, segment: int) -> None:
        member = self.members[seat]
        fd = lib.msh_member_show(member.handle, segment)
        assert (fd >= 0) == any(slot // SEGMENT_SLOTS == segment for slot in +member.held)
        if fd < 0:
            return
        try:
            for slot, page in self.contents.items():  # I3: what was provided, for ever
                if slot // SEGMENT_SLOTS == segment:
                    assert os.pread(fd, PAGE_BYTES, slot % SEGMENT_SLOTS * PAGE_BYTES) == page
        finally:
            os.close(fd)
        member.shown.add(segment)

    @rule(seat=seats, segment=segments)
    def forget(self, seat: int, segment: int) -> None:
        member = self.members[seat]
        may = member in self.retired.get(segment, set())
        assert (lib.msh_member_forgot(member.handle, segment) == 0) == may
        if may:
            self.forgotten(segment, member)

    @invariant()
    def numbers_agree(self) -> None:
        if not hasattr(self, "group"):
            return
        stats = ffi.new("MshGroupStats *")
        lib.msh_group_stats(self.group, stats)
        total = +sum((m.held for m in self.members), Counter())
        assert stats.grants == total.total()
        assert stats.slots_live == len(total)
        assert stats.slots_live + stats.slots_dead == len(self.contents)
        assert stats.store_bytes == len(self.contents) * PAGE_BYTES
        costs = 0
        for member in self.members:
            assert lib.msh_member_grants(member.handle) == member.held.total()
            for segment in range(4):
                assert lib.msh_member_was_shown(member.handle, segment) == (segment in member.shown)
            costs += lib.msh_member_cost_bytes(member.handle)
        assert abs(costs - stats.store_bytes) <= len(self.members)

    @rule()
    def audit(self) -> None:
        audit = ffi.new("MshAudit *")
        assert lib.msh_group_audit(self.group, audit) == 0
        assert audit.problems == 0, ffi.string(audit.texts[0])
        assert audit.slots == len(self.contents)
        assert audit.grants == sum(m.held.total() for m in self.members)


TestGroup = Group.TestCase
TestGroup.settings = settings(settings(), max_examples=150, stateful_step_count=60)
