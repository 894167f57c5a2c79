# SPDX-License-Identifier: GPL-2.0-or-later
"""What sharing freed and what it could have freed, by the kernel's page tables. Needs root.

Nothing here asks an engine or the broker: page frames are counted in /proc/PID/pagemap, contents are
hashed through /proc/PID/mem (`memshare._oracle`, in C), the store's size is what its files hold. KSM's
pages are frames that several pages map; without an engine there is no store. The words:

held      pages of guests' RAM that would hold a frame if nothing were shared. A guest's page never
          loses its frame by itself (the demo's guests have no balloon), so a page is held from the
          first time that it was seen with a frame of its own or mapped from the store. Seen means
          looked at: a page that was first touched and then given back as zero between two looks is
          missed, so `freed` errs on the small side. Look often (`look`). A page that the kernel has
          swapped out is left out of every count while it is: reading it would bring it in.
frames    distinct page frames behind all guests' RAM, plus every page that the store's files hold,
          whether mapped or not, live or dead. The kernel's zero page is none.
freed     held less frames.
oracle    held less the number of distinct nonzero contents: what exact sharing of equal pages frees
          at most. A page given back as zero counts as the zeros that the guest would read.
"""

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memshare._oracle import ffi, lib
from memshare.clients import procfs
from memshare.errors import MeasurementError

PAGE_BYTES = mmap.PAGESIZE
SEGMENT_PATH = "/memfd:memshare-"  # of each file of the store

PAGEMAP_FRAME = np.uint64((1 << 55) - 1)
PAGEMAP_EXCLUSIVE = np.uint64(1 << 56)  # nobody else maps the frame; never of the zero page
PAGEMAP_FILE = np.uint64(1 << 61)
PAGEMAP_SWAPPED = np.uint64(1 << 62)
PAGEMAP_PRESENT = np.uint64(1 << 63)
# Where a swapped page is lies in the bits of a frame: first 5 of the swap area's number. Its highest numbers
# stand for other things, such as the mark on a hole that is armed; these are no swap areas.
PAGEMAP_SWAP_AREA = np.uint64(31)
SWAP_AREAS = 22
KPAGEFLAGS_ZERO_PAGE = 1 << 24

Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


class PageTable(NamedTuple):
    """One look at a guest's RAM: a flag or frame number for each of its pages."""

    frame: Words  # page frame number; 0 where none, and for the kernel's zero page
    anonymous: Flags  # holds a frame of the guest's own
    store: Flags  # lies in a mapping of the store, present or not
    swapped: Flags  # its contents are in a swap area
    mappings: procfs.FileMappings  # of the whole process

    @property
    def readable(self) -> Flags:
        """Pages whose contents reading does not make or bring in."""
        readable: Flags = ((self.frame != 0) | self.store) & ~self.swapped
        return readable


class Contents(NamedTuple):
    """What pages hold."""

    zero: int  # pages of zeros
    distinct: int  # contents other than zeros


class Store(NamedTuple):
    """The files of the store, as all processes together map them."""

    allocated_bytes: int
    mapped_bytes: int  # of these, distinct pages in somebody's page table
    files: frozenset[tuple[str, int]] = frozenset()  # device and inode of each


class Reckoning(NamedTuple):
    """Pages counted at one moment; see this module's head for the words."""

    held: int
    frames: int
    oracle: int
    store: int
    held_zero: int  # of held: pages of zeros, so what zero sharing frees at most

    @property
    def freed(self) -> int:
        """Frames that sharing freed."""
        return self.held - self.frames


def read_pagemap(pid: int, start: int, end: int) -> Words:
    """Read the pagemap entries of an address range."""
    pages = (end - start) // PAGE_BYTES
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        data = os.pread(file.fileno(), pages * 8, start // PAGE_BYTES * 8)
    if len(data) != pages * 8:
        raise MeasurementError(f"pagemap of process {pid} ends early")
    return np.frombuffer(data, dtype=np.uint64)


def zero_frames(frames: Words) -> Words:
    """Return those of these frames that are the kernel's zero page, small or huge."""
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        words = [
            int.from_bytes(os.pread(file.fileno(), 8, int(frame) * 8), "little") for frame in frames
        ]
    zero = np.array([bool(word & KPAGEFLAGS_ZERO_PAGE) for word in words], dtype=bool)
    found: Words = frames[zero]
    return found


def page_table(
    pagemap: Words, start: int, mappings: procfs.FileMappings, zero_page: Words
) -> PageTable:
    """Tell a guest's own frames from those of the store. Pure."""
    present = (pagemap & PAGEMAP_PRESENT) != 0
    frame = np.where(present, pagemap & PAGEMAP_FRAME, np.uint64(0))
    frame = np.where(np.isin(frame, zero_page), np.uint64(0), frame)
    area = pagemap & PAGEMAP_SWAP_AREA
    swapped = ~present & ((pagemap & PAGEMAP_SWAPPED) != 0) & (area < SWAP_AREAS)
    # Mappings do not overlap: the store is where one has begun and has not ended.
    edges = np.zeros(pagemap.size + 1, dtype=np.int8)
    for borders, step in ((mappings.starts, 1), (mappings.ends, -1)):
        pages = (np.array(borders, dtype=np.int64) - start) // PAGE_BYTES
        np.add.at(edges, np.clip(pages, 0, pagemap.size), step)
    store = np.cumsum(edges[:-1]) > 0
    anonymous = (frame != 0) & ((pagemap & PAGEMAP_FILE) == 0)
    return PageTable(frame, anonymous, store, swapped, mappings)


def distinct(parts: Sequence[Words]) -> Words:
    """Return the values that occur, in order; of numbers this many, in a part of numpy.unique's time. Pure."""
    values = np.sort(np.concatenate(parts))
    found: Words = values[np.concatenate(([True], values[1:] != values[:-1]))[: values.size]]
    return found


def reckon(
    held: Sequence[Flags], tables: Sequence[PageTable], read: Contents, store_bytes: int
) -> Reckoning:
    """Count. read is of those held pages that are readable; the rest was given back as zero. Pure."""
    held_pages = unread = 0
    for flags, table in zip(held, tables, strict=True):
        held_pages += int((flags & ~table.swapped).sum())
        unread += int((flags & ~table.swapped & ~table.readable).sum())
    own = distinct([table.frame[table.anonymous] for table in tables])
    store_pages = store_bytes // PAGE_BYTES
    return Reckoning(
        held=held_pages,
        frames=own.size + store_pages,
        oracle=held_pages - read.distinct,
        store=store_pages,
        held_zero=read.zero + unread,
    )


class GuestMemory:
    """The RAM of one guest, found by its size, and which of its pages were ever held."""

    def __init__(self, pid: int, ram_bytes: int) -> None:
        """Find the RAM. Do this before anything is shared: sharing splits the mapping."""
        found = [
            mapping
            for mapping in procfs.mappings(pid)
            if mapping.length_bytes == ram_bytes and not mapping.inode
        ]
        if len(found) != 1:
            raise MeasurementError(
                f"process {pid} has {len(found)} mappings of {ram_bytes} bytes, not one"
            )
        self.pid = pid
        self.start = found[0].start
        self.end = found[0].end
        self.held: Flags = np.zeros(ram_bytes // PAGE_BYTES, dtype=bool)

    def contains(self, mapping: procfs.Mapping) -> bool:
        """Whether a mapping is part of the RAM."""
        return mapping.start < self.end and mapping.end > self.start

    def look(self, pagemap: Words, zero_page: Words) -> PageTable:
        """Remember which pages hold something by this pagemap."""
        table = page_table(pagemap, self.start, procfs.file_mappings(self.pid), zero_page)
        self.held |= table.anonymous | table.store
        return table


def count_contents(
    guests: Sequence[GuestMemory], tables: Sequence[PageTable], threads: int | None = None
) -> Contents:
    """Read and compare all held pages that are readable, with a thread for each core.

    Guests must be stopped and engines paused: a page that is no longer there when it is read would be made, and in
    a range that an engine has armed it would never come.
    """
    chosen = [guest.held & table.readable for guest, table in zip(guests, tables, strict=True)]
    rams = ffi.new("MshContentsRam[]", len(guests))
    for ram, guest, flags in zip(rams, guests, chosen, strict=True):
        ram.pid, ram.start, ram.pages = guest.pid, guest.start, flags.size
        ram.chosen = ffi.from_buffer("uint8_t[]", flags)
    count = ffi.new("MshContentsCount *")
    error = ffi.new("MshError *")
    threads = threads or len(os.sched_getaffinity(0))
    if lib.msh_contents_count(rams, len(guests), threads, count, error) < 0:
        raise MeasurementError(ffi.string(error.text).decode())
    return Contents(zero=count.zero_pages, distinct=count.distinct_pages)


def read_store(
    guests: Sequence[GuestMemory], tables: Sequence[PageTable], broker_pid: int | None
) -> Store:
    """Find the store's files through all their mappings, and what they hold; no broker, no store.

    A guest maps the store in its RAM and, for the engine to compare with, beside it; the broker maps
    every segment that is not retired.
    """
    if broker_pid is None:
        return Store(allocated_bytes=0, mapped_bytes=0)
    allocated: dict[tuple[str, int], int] = {}
    views: list[tuple[int, int, int, tuple[str, int]]] = []
    parts = [
        (guest.pid, table.mappings, guest.start, guest.end)
        for guest, table in zip(guests, tables, strict=True)
    ]
    for pid, mappings, first, last in [
        *parts,
        (broker_pid, procfs.file_mappings(broker_pid), 0, 0),
    ]:
        for start, end, file, path in zip(*mappings, strict=True):
            in_ram = start < last and end > first
            is_segment = path.startswith(SEGMENT_PATH)
            if file not in allocated and (in_ram or is_segment):
                allocated[file] = procfs.allocated_bytes(pid, start, end)
            if not in_ram:
                views.append((pid, start, end, file))
    frames = [table.frame[table.store & ~table.anonymous] for table in tables]
    for pid, start, end, file in views:
        if file in allocated:
            pagemap = read_pagemap(pid, start, end)
            of_file = (pagemap & PAGEMAP_PRESENT != 0) & (pagemap & PAGEMAP_FILE != 0)
            frames.append(pagemap[of_file] & PAGEMAP_FRAME)
    mapped = distinct(frames)
    return Store(
        allocated_bytes=sum(allocated.values()),
        mapped_bytes=int((mapped != 0).sum()) * PAGE_BYTES,
        files=frozenset(allocated),
    )


def reckon_now(guests: Sequence[GuestMemory], broker_pid: int | None) -> tuple[Reckoning, Store]:
    """Count everything at this moment. Guests must be stopped and their engines paused.

    Without a broker there is no engine of ours: sharing is off, or KSM's.
    """
    tables = look(guests)
    contents = count_contents(guests, tables)
    store = read_store(guests, tables, broker_pid)
    held = [guest.held for guest in guests]
    return reckon(held, tables, contents, store.allocated_bytes), store


def look(guests: Sequence[GuestMemory]) -> list[PageTable]:
    """Look at all guests' page tables once; cheap enough for several times a second."""
    pagemaps = [read_pagemap(guest.pid, guest.start, guest.end) for guest in guests]
    present = np.concatenate([words[words & PAGEMAP_PRESENT != 0] for words in pagemaps])
    if present.size and not (present & PAGEMAP_FRAME).any():
        raise MeasurementError("page frame numbers are hidden: this needs root")
    # The zero page is anonymous to pagemap, nobody's alone, and no frame of anybody's.
    common = present[present & (PAGEMAP_FILE | PAGEMAP_EXCLUSIVE) == 0] & PAGEMAP_FRAME
    zero_page = zero_frames(distinct([common]))
    return [guest.look(words, zero_page) for guest, words in zip(guests, pagemaps, strict=True)]
