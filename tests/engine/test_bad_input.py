# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot be shared is refused with one clear error, and nothing else suffers."""

import ctypes
import errno
import mmap
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.lib.memory import PAGE_BYTES, Memory, mappings_of

from memshare.engine import Engine, EngineError

PAGES = 16
LIBC = ctypes.CDLL(None, use_errno=True)


def libc(name: str, *arguments: int) -> None:
    """Call a function that returns 0 or -1."""
    result = getattr(LIBC, name)(*[ctypes.c_ulong(argument) for argument in arguments])
    assert result == 0, f"{name}: {errno.errorcode[ctypes.get_errno()]}"


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that shares some memory of its own, and must go on doing so."""
    mine = Memory(PAGES).fill(lambda page: 1)
    with Engine(nothing_pinned=True) as running:
        running.register(mine.buffer)
        for _ in range(3):
            running.scan_once()
        assert running.stats()["shared_pages"] == PAGES
        yield running
        assert running.stats()["ram_bytes"] == PAGES * PAGE_BYTES
        running.scan_once()
        assert running.stats()["shared_pages"] == PAGES
        mine.check()


def refused(call: Callable[[], object], code: int, pattern: str) -> None:
    """The call fails with that code, and one line that matches."""
    with pytest.raises(EngineError) as caught:
        call()
    text = str(caught.value)
    assert caught.value.errno == code, text
    assert re.search(pattern, text), text
    assert "\n" not in text


def test_unaligned_or_empty_memory(engine: Engine) -> None:
    """Whole pages only; the error names the address."""
    memory = Memory(PAGES)
    address, length = memory.address, PAGES * PAGE_BYTES
    for start, size in ((address + 8, PAGE_BYTES), (address, length - 1), (address, 0)):
        refused(
            partial(engine.register_range, start, size), errno.EINVAL, f"{start:#x}.*whole pages"
        )


def test_unmapped_memory_in_whole_and_in_part(engine: Engine) -> None:
    """The error names where nothing is mapped."""
    memory = Memory(PAGES)
    hole = memory.address_of(5)
    libc("munmap", hole, PAGE_BYTES)
    whole, end = (memory.address, PAGES * PAGE_BYTES), memory.address_of(PAGES)
    refused(lambda: engine.register_range(*whole), errno.ENOMEM, f"not mapped at {hole:#x}")
    refused(
        lambda: engine.register_range(hole, PAGE_BYTES), errno.ENOMEM, f"not mapped at {hole:#x}"
    )
    libc("munmap", memory.address_of(PAGES - 1), PAGE_BYTES)
    tail = memory.address_of(8)
    refused(lambda: engine.register_range(tail, end - tail), errno.ENOMEM, "not mapped")
    # What is there can be registered still.
    engine.register_range(tail, 2 * PAGE_BYTES)
    _unregister(engine, tail)


def _unregister(engine: Engine, address: int) -> None:
    """Unregister memory that is no Python buffer."""
    array = (ctypes.c_char * PAGE_BYTES).from_address(address)
    engine.unregister(array)  # type: ignore[arg-type]


def _mapping(
    flags: int, protection: int, fd: int = -1, length: int = PAGES * PAGE_BYTES
) -> mmap.mmap:
    return mmap.mmap(fd, length, flags, protection)


def test_memory_of_the_wrong_kind(engine: Engine) -> None:
    """Shared, of a file, not writable, executable: each named."""
    rw = mmap.PROT_READ | mmap.PROT_WRITE
    private, anonymous = mmap.MAP_PRIVATE, mmap.MAP_ANONYMOUS
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGES * PAGE_BYTES)
        kinds: list[tuple[mmap.mmap, str]] = [
            (_mapping(mmap.MAP_SHARED | anonymous, rw), "is shared memory"),
            (_mapping(mmap.MAP_SHARED, rw, file.fileno()), "is shared memory"),
            (_mapping(private, rw, file.fileno()), "is a file mapping"),
            (_mapping(private | anonymous, rw | mmap.PROT_EXEC), "is executable"),
        ]
    for buffer, pattern in kinds:
        refused(partial(engine.register, buffer), errno.EPERM, f"cannot be shared: .*{pattern}")
    read_only = Memory(PAGES)
    libc("mprotect", read_only.address_of(3), PAGE_BYTES, mmap.PROT_READ)
    where = f"{read_only.address_of(3):#x}.*is not readable and writable"
    refused(lambda: engine.register(read_only.buffer), errno.EPERM, where)


def test_locked_memory(engine: Engine) -> None:
    """What is locked must stay where it is."""
    memory = Memory(PAGES)
    libc("mlock", memory.address_of(2), PAGE_BYTES)
    refused(lambda: engine.register(memory.buffer), errno.EPERM, "is locked in memory")
    libc("munlock", memory.address_of(2), PAGE_BYTES)
    engine.register(memory.buffer)
    engine.unregister(memory.buffer)


def test_wiped_on_fork_and_hugetlb_memory(engine: Engine) -> None:
    """Kinds that a store mapping could not stand in for."""
    memory = Memory(PAGES)
    libc("madvise", memory.address, PAGES * PAGE_BYTES, 18)  # MADV_WIPEONFORK
    refused(lambda: engine.register(memory.buffer), errno.EPERM, "is wiped on fork")
    huge_bytes, map_hugetlb, map_noreserve = 2 << 20, 0x40000, 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_hugetlb | map_noreserve
    huge = _mapping(flags, mmap.PROT_READ | mmap.PROT_WRITE, length=huge_bytes)
    refused(lambda: engine.register(huge), errno.EPERM, "hugetlbfs")


def test_too_large_memory(engine: Engine) -> None:
    """More pages than numbers, and a range that wraps."""
    for length in (1 << 44, (1 << 64) - 2 * PAGE_BYTES):
        refused(partial(engine.register_range, 1 << 32, length), errno.E2BIG, "more than can be")


def test_one_range_twice_and_in_two_engines(engine: Engine) -> None:
    """Overlaps are refused, in the same engine and in another, until the first lets go."""
    memory = Memory(PAGES)
    with Engine() as other:
        other.register(memory.buffer)
        for where in (engine, other):
            for page, pages in ((0, PAGES), (0, 1), (PAGES - 1, 1), (4, 4)):
                address = memory.address_of(page)
                refused(
                    partial(where.register_range, address, pages * PAGE_BYTES),
                    errno.EEXIST,
                    f"{address:#x}-.* overlaps {memory.address:#x}-.*registered already",
                )
        other.unregister(memory.buffer)
        engine.register(memory.buffer)
        refused(lambda: other.register(memory.buffer), errno.EEXIST, "overlaps")
        engine.unregister(memory.buffer)


def test_unregister_what_is_not_registered(engine: Engine) -> None:
    """Named by its address."""
    memory = Memory(PAGES)
    pattern = f"{memory.address:#x}"
    refused(lambda: engine.unregister(memory.buffer), errno.ENOENT, pattern)
    engine.register(memory.buffer)
    tail = memory.address_of(1)
    refused(lambda: _unregister(engine, tail), errno.ENOENT, f"{tail:#x}")
    engine.unregister(memory.buffer)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"group": ""}, "group"),
        ({"group": "Upper"}, "Upper"),
        ({"group": ".dot"}, "dot"),
        ({"group": "x" * 64}, "1 to 63 characters"),
        ({"group": "a/b"}, "a/b"),
        ({"mode": "everything"}, "'everything' is none of off, zero, content"),
        ({"socket": ""}, "socket path ''"),
        ({"socket": "/" + "x" * 200}, "socket path"),
        ({"cpu_limit": 101}, "101"),
    ],
)
def test_bad_configuration(arguments: dict[str, Any], pattern: str) -> None:
    """Each wrong argument is named."""
    refused(lambda: Engine(**arguments), errno.EINVAL, pattern)


def test_bad_steering(engine: Engine) -> None:
    """A wrong value changes nothing."""
    before = engine.stats()
    refused(lambda: engine.set(mode="some"), errno.EINVAL, "'some'")  # type: ignore[arg-type]
    refused(lambda: engine.set(cpu_limit=101), errno.EINVAL, "")
    after = engine.stats()
    assert (before["mode"], before["cpu_limit_percent"]) == (
        after["mode"],
        after["cpu_limit_percent"],
    )


def test_a_closed_engine(engine: Engine) -> None:
    """Says so, whatever is asked of it; closing twice is fine."""
    closed = Engine()
    closed.close()
    closed.close()
    memory = Memory(PAGES)
    for call in (closed.scan_once, closed.stats, closed.detach, closed.start, closed.set):
        refused(call, errno.EBADF, "closed")
    refused(lambda: closed.register(memory.buffer), errno.EBADF, "closed")
    engine.register(memory.buffer)
    engine.unregister(memory.buffer)


def test_no_broker_is_no_error() -> None:
    """The engine waits for it, says so, and its memory works."""
    memory = Memory(PAGES).fill(lambda page: page % 2)
    with Engine("/nonexistent/broker.sock") as engine:
        engine.register(memory.buffer)
        refused(engine.scan_once, errno.ENOTCONN, "/nonexistent/broker.sock")
        stats = engine.stats()
        assert stats["state"] == "waiting-for-broker"
        assert "/nonexistent/broker.sock" in stats["refusal"]
        memory.check()


def test_refused_memory_is_left_as_it_was(engine: Engine) -> None:
    """Flags and number of mappings."""
    memory = Memory(PAGES)
    libc("mlock", memory.address_of(2), PAGE_BYTES)
    before = mappings_of(memory)
    refused(lambda: engine.register(memory.buffer), errno.EPERM, "locked")
    assert mappings_of(memory) == before
