# SPDX-License-Identifier: GPL-2.0-or-later
"""A segment that is mostly dead is emptied: its pages move to another, and its memory comes back."""

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lib import wire
from tests.lib.broker import Broker, Client, build_directory, wait_until
from tests.lib.memory import Memory, contents
from tests.lib.wire import SEGMENT_SLOTS, ReplyOp, build_has_weak_hash

from memshare.engine import Engine

pytestmark = pytest.mark.skipif(
    build_has_weak_hash(build_directory()),
    reason="needs more different hashes than the 8-bit build has",
)

#: Of a store as small as this.
FULL = 1024
#: One segment, and a little that goes to the next.
PAGES = FULL + 64
#: So many of the first segment's slots die.
DEAD = FULL // 2 + 32
#: And so many more have one page left.
LONE = 32


def store_files() -> set[str]:
    """The store's files that are mapped in this process, or open, by number."""
    files = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:memshare" in line:
            files.add(line.split()[4])
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "memfd:memshare" in str(entry.readlink()):
                files.add(str(entry.stat().st_ino))
    return files


def files_behind(memory: Memory, page: int | None = None) -> set[str]:
    """Those that are mapped in the memory, or at one of its pages."""
    files = set()
    first = memory.address_of(page or 0)
    end = first + (4096 if page is not None else memory.pages * 4096)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *name = line.split(maxsplit=5)
        start, stop = (int(part, 16) for part in span.split("-"))
        if start < end and first < stop and name and "memfd:memshare" in name[0]:
            files.add(inode)
    return files


@contextlib.contextmanager
def two_memories(
    kind: str, pages: int = PAGES
) -> Iterator[tuple[list[Engine], list[Memory], Broker | None]]:
    """Two memories of equal contents: of one engine that has a store of its own, or of two guests."""
    memories = [Memory(pages).fill(lambda page: page + 1) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        broker = None
        if kind == "broker":
            broker = stack.enter_context(Broker("--group", "default", "--allow-by-mode"))
            engines = [
                stack.enter_context(Engine(broker.socket_path(), nothing_pinned=True, eager=True))
                for _ in memories
            ]
        else:
            engines = [stack.enter_context(Engine(nothing_pinned=True, eager=True))]
        # The broker has room for so many hints at a time.
        step = wire.RING_ENTRIES // 2
        for first in range(0, pages, step):
            length_bytes = min(step, pages - first) * 4096
            for number, memory in enumerate(memories):
                engine = engines[number % len(engines)]
                engine.register_range(memory.address_of(first), length_bytes)
            for _ in range(4):
                scan(engines)
        yield engines, memories, broker
    for memory in memories:
        memory.check()


def scan(engines: list[Engine]) -> None:
    """Make a pass of each."""
    for engine in engines:
        engine.scan_once()


def total(engines: list[Engine], name: str) -> int:
    """Of all engines."""
    return sum(int(engine.stats()[name]) for engine in engines)


def file_of_most(engines: list[Engine], memories: list[Memory]) -> str:
    """Return the file of the segment that the pages, all shared, fill; a few are in the next."""
    assert total(engines, "shared_pages") == 2 * PAGES
    first, second = (files_behind(memory) for memory in memories)
    assert first == second
    assert len(first) == 2
    (old,) = files_behind(memories[0], DEAD)
    return old


def let_most_die(memories: list[Memory]) -> None:
    """Most pages change in both memories, some in one."""
    for number, memory in enumerate(memories):
        for page in range(DEAD):
            memory.write(page, b"own %d" % number, offset=16)
    for page in range(DEAD, DEAD + LONE):
        memories[0].write(page, b"lone", offset=16)


@pytest.mark.parametrize("kind", ["local", "broker"])
def test_I4_a_segment_that_is_mostly_dead_gives_its_memory_back(kind: str) -> None:
    """What is shared stays shared, also by one page only, and is not private in between."""
    with two_memories(kind) as (engines, memories, broker):
        old = file_of_most(engines, memories)
        merged = total(engines, "merged_pages")
        let_most_die(memories)
        unseen = 4
        for turn in range(12):
            # SHARED, and broken without the engine's having seen it, somewhere else each time.
            if turn < unseen:
                memories[1].write(DEAD + LONE + 40 * turn, b"unseen", offset=4000)
            scan(engines)
            memories[turn % 2].check()
        assert old not in store_files(), "the old segment's memory is held"
        for memory in memories:
            memory.check()
        shared = 2 * (PAGES - DEAD) - LONE - unseen
        assert total(engines, "shared_pages") == shared
        assert total(engines, "merged_pages") == merged, "none was private meanwhile"
        assert total(engines, "broken_pages") == 0, "they are plain memory again"
        # A slot for each content that has a page, and next to none without.
        slots = PAGES - DEAD
        assert (shared - slots - unseen) * 4096 <= total(engines, "saved_content_bytes")
        assert total(engines, "saved_content_bytes") <= (shared - slots) * 4096
        if broker:
            control = broker.control()
            group = control.group()
            control.close()
            assert group["segments"] == 1
            assert group["slots_live"] == slots
            assert group["slots_dead"] <= unseen
            assert group["grants"] == shared


def test_pages_that_may_not_move_now_are_asked_about_again() -> None:
    """While the engine is held nothing is replaced; afterwards they move."""
    with two_memories("local") as (engines, memories, _):
        old = file_of_most(engines, memories)
        let_most_die(memories)
        engines[0].hold(hold=True)
        for _ in range(4):
            scan(engines)
        assert files_behind(memories[1], DEAD) == {old}
        engines[0].hold(hold=False)
        for _ in range(8):
            scan(engines)
        assert old not in store_files()
        assert total(engines, "shared_pages") == 2 * (PAGES - DEAD) - LONE


def test_a_tenth_of_the_store_may_die() -> None:
    """Up to there, moving costs more than it gives."""
    with two_memories("local") as (engines, memories, _):
        old = file_of_most(engines, memories)
        for memory in memories:
            for page in range(FULL // 11):
                memory.write(page, b"own %d" % memories.index(memory), offset=16)
        for _ in range(6):
            scan(engines)
        shared = 2 * (PAGES - FULL // 11)
        assert total(engines, "shared_pages") == shared
        assert files_behind(memories[0], FULL // 2) == {old}
        # The scale tips.
        for number, memory in enumerate(memories):
            for page in range(FULL // 11, FULL // 9):
                memory.write(page, b"own %d" % number, offset=16)
        for _ in range(24):  # nothing was written for long: it may be noticed some passes later
            scan(engines)
        assert old not in store_files()
        assert total(engines, "shared_pages") == 2 * (PAGES - FULL // 9)


def test_I1_no_write_is_lost_while_segments_are_emptied() -> None:
    """Writers race with the pages' moving."""
    pages, group = 16 * FULL, 16
    others = store_files()
    with two_memories("local", pages) as (engines, memories, _):
        assert total(engines, "shared_pages") == 2 * pages
        old = store_files() - others
        assert len(old) > 8, "a segment is an eighth of the store at most, when it is begun"
        kept = [page for page in range(pages) if page % group >= group // 2 + 1]
        for number, memory in enumerate(memories):
            for page in set(range(pages)).difference(kept):
                memory.write(page, b"own %d" % number, offset=16)
        stop = threading.Event()
        wrong: list[int] = []
        written: set[int] = set()

        def write() -> None:
            chance = random.Random(1)
            while not stop.wait(0.0002):
                page = chance.choice(kept)
                at = page * 4096
                if memories[0].buffer[at : at + 4096] != memories[0].expected[at : at + 4096]:
                    wrong.append(page)
                memories[0].write(page, chance.randbytes(8), offset=chance.randrange(4088))
                written.add(page)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(30):
                scan(engines)
                if not old & store_files():
                    break
        finally:
            stop.set()
            writer.join()
        assert wrong == []
        assert len(written) > 100, "it raced"

        def are_gone() -> bool:
            scan(engines)
            return not old & store_files()

        # What did not move is asked about again after a second, and later.
        wait_until(are_gone, "the old segments' memory is back")
        for memory in memories:
            memory.check()


def test_a_client_that_does_not_know_of_it_is_not_told() -> None:
    """Its grants in the segment stay good until it gives them back."""
    with (
        Broker("--group", "default", "--allow-by-mode") as broker,
        Client(broker.socket_path()).hello("old") as client,
        Client(broker.socket_path()).hello("new", features=wire.FEATURE_EMPTYING) as other,
    ):
        slots = []
        for number in range(FULL + 1):
            page = contents(number + 1)
            hash_ = client.hash(page)
            client.sight(hash_, number)
            other.sight(hash_, number)
            slots.append(other.provide(hash_, number, page).slot)
            assert client.hint().slot == slots[-1]
        for slot in slots[: FULL // 2 + 1]:
            client.release(slot)
            other.release(slot)
        other.wait_for_emptying(1)
        client.take_messages()
        assert (client.emptying, other.emptying) == ([], [slots[0] // SEGMENT_SLOTS])
        last = contents(FULL)
        hash_ = client.hash(last)
        assert client.read_slot(slots[FULL - 1]) == last
        assert client.sight(hash_, 1).op == ReplyOp.PROVIDE, "no grant in a segment that is emptied"
        moved = client.provide(hash_, 1, last)
        assert moved.op == ReplyOp.MATCH
        assert moved.segment != slots[0] // SEGMENT_SLOTS
        assert client.read_slot(moved.slot) == last
        for slot in slots[FULL // 2 + 1 : FULL]:
            client.release(slot)
            other.release(slot)
        for one in (client, other):
            one.wait_for_retired(1)
            assert one.retired == [slots[0] // SEGMENT_SLOTS]


class Sharers:
    """Two clients, the first of which has each content at ``frames`` frames."""

    def __init__(self, one: Client, two: Client, frames: int = 1) -> None:
        self.one, self.two, self.frames = one, two, frames

    def share(self, number: int) -> int | None:
        """Return the slot, or None where nobody is asked for the bytes."""
        page = contents(number + 1)
        hash_, frame = self.one.hash(page), number * self.frames
        self.one.sight(hash_, frame)
        if self.two.sight(hash_, number).op != ReplyOp.PROVIDE:
            return None
        slot = self.two.provide(hash_, number, page).slot
        assert self.one.hint().slot == slot
        for other in range(1, self.frames):
            assert self.one.sight(hash_, frame + other).slot == slot
        return slot

    def release(self, slot: int | None) -> None:
        assert slot is not None
        for _ in range(self.frames):
            self.one.release(slot)
        self.two.release(slot)
        if slot % 64 == 0:  # releases have no answers: the broker may be far behind
            self.one.account()
            self.two.account()


def test_a_store_that_is_largely_dead_takes_nothing_new_until_that_is_gone() -> None:
    """Where contents die sooner than segments are emptied it would grow past what it saves."""
    pages, group = 5 * FULL, 9
    with (
        Broker("--group", "default", "--allow-by-mode") as broker,
        Client(broker.socket_path()).hello("one") as one,
        Client(broker.socket_path()).hello("two") as two,
    ):
        both = Sharers(one, two)
        slots = [both.share(number) for number in range(pages)]
        for number in range(pages):
            if number % group < group // 2:  # no segment is mostly dead
                both.release(slots[number])
        control = broker.control()
        refused = control.group()["refused_full"]
        assert both.share(pages) is None
        assert control.group()["refused_full"] == refused + 1
        missed = one.missed()
        for number in range(pages):
            if number % group >= group // 2:
                both.release(slots[number])
        assert both.share(pages + 1) is not None
        control.close()
        assert one.missed() > missed, "and it is told to sight its pages anew"


def test_a_store_that_is_largely_dead_takes_what_is_new_where_it_saves_far_more() -> None:
    """What is dead is to be weighed against that, not only against what is live."""
    pages, group = 5 * FULL, 9
    with (
        Broker("--group", "default", "--allow-by-mode") as broker,
        Client(broker.socket_path()).hello("one") as one,
        Client(broker.socket_path()).hello("two") as two,
    ):
        both = Sharers(one, two, frames=5)
        slots = [both.share(number) for number in range(pages)]
        for number in range(pages):
            if number % group < group // 2:
                both.release(slots[number])
        assert both.share(pages) is not None
