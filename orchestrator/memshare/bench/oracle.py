# SPDX-License-Identifier: GPL-2.0-or-later
"""What sharing freed and what it could have freed, by the kernel's page tables. Needs root.

Nothing here asks an engine or the broker: page frames are counted in /proc/PID/pagemap, contents are
hashed through /proc/PID/mem, the store's size is what its files hold. The words:

held      pages of guests' RAM that would hold a frame if nothing were shared. A guest's page never
          loses its frame by itself (the demo's guests have no balloon), so a page is held from the
          first time that it was seen with a frame of its own or mapped from the store. Seen means
          looked at: a page that was first touched and then given back as zero between two looks is
          missed, so `freed` errs on the small side. Look often (`look`).
frames    distinct page frames behind all guests' RAM, plus every page that the store's files hold,
          whether mapped or not, live or dead. The kernel's zero page is none.
freed     held less frames.
oracle    held less the number of distinct nonzero contents: what exact sharing of equal pages frees
          at most. A page given back as zero counts as the zeros that the guest would read.
"""

import mmap
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from memshare.clients import procfs
from memshare.errors import MeasurementError

PAGE_BYTES = mmap.PAGESIZE
SEGMENT_BYTES = 64 << 20  # one file of the store; MSH_SEGMENT_BYTES

PAGEMAP_FRAME = np.uint64((1 << 55) - 1)
PAGEMAP_FILE = np.uint64(1 << 61)
PAGEMAP_PRESENT = np.uint64(1 << 63)
KPAGEFLAGS_ZERO_PAGE = 1 << 24

Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])
ZERO_DIGEST = np.frombuffer(xxhash.xxh3_128_digest(bytes(PAGE_BYTES)), dtype=DIGEST)[0]


class PageTable(NamedTuple):
    """One look at a guest's RAM: a flag or frame number for each of its pages."""

    frame: Words  # page frame number; 0 where none, and for the kernel's zero page
    anonymous: Flags  # holds a frame of the guest's own
    store: Flags  # lies in a mapping of the store, present or not


class Store(NamedTuple):
    """The files of the store, as all processes together map them."""

    allocated_bytes: int
    mapped_bytes: int  # of these, distinct pages in somebody's page table
    views_pss_bytes: int  # the part of the mapped ones that falls on mappings beside guests' RAM
    broker_pss_bytes: int  # the broker's part of that


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
    pagemap: Words, start: int, mappings: Iterable[procfs.Mapping], zero_page: Words
) -> PageTable:
    """Tell a guest's own frames from those of the store. Pure."""
    present = (pagemap & PAGEMAP_PRESENT) != 0
    frame = np.where(present, pagemap & PAGEMAP_FRAME, np.uint64(0))
    frame = np.where(np.isin(frame, zero_page), np.uint64(0), frame)
    store = np.zeros(pagemap.size, dtype=bool)
    end = start + pagemap.size * PAGE_BYTES
    for mapping in mappings:
        if mapping.inode and mapping.start < end and mapping.end > start:
            first = (max(mapping.start, start) - start) // PAGE_BYTES
            last = (min(mapping.end, end) - start) // PAGE_BYTES
            store[first:last] = True
    anonymous = (frame != 0) & ((pagemap & PAGEMAP_FILE) == 0)
    return PageTable(frame=frame, anonymous=anonymous, store=store)


def reckon(
    held: Sequence[Flags],
    tables: Sequence[PageTable],
    digests: Sequence[npt.NDArray[np.void]],
    store_bytes: int,
) -> Reckoning:
    """Count. digests has an entry for each held page of each guest. Pure."""
    held_pages = int(sum(int(flags.sum()) for flags in held))
    own = np.unique(np.concatenate([table.frame[table.anonymous] for table in tables]))
    contents = np.concatenate(digests)
    is_zero = contents == ZERO_DIGEST
    distinct = np.unique(contents[~is_zero]).size
    store_pages = store_bytes // PAGE_BYTES
    return Reckoning(
        held=held_pages,
        frames=int(own.size) + store_pages,
        oracle=held_pages - int(distinct),
        store=store_pages,
        held_zero=int(is_zero.sum()),
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
        table = page_table(pagemap, self.start, procfs.mappings(self.pid), zero_page)
        self.held |= table.anonymous | table.store
        return table

    def digests(self, table: PageTable) -> npt.NDArray[np.void]:
        """Hash each held page. The guest must be stopped and the engine paused.

        A held page that is neither present nor mapped from the store was given back as zero; reading it
        would make the kernel map something there, or wait in a userfaultfd, so it is not read.
        """
        result = np.full(self.held.size, ZERO_DIGEST, dtype=DIGEST)
        readable = self.held & ((table.frame != 0) | table.store)
        digest = xxhash.xxh3_128_digest
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as file:
            for first, last in runs(readable):
                length = (last - first) * PAGE_BYTES
                data = os.pread(file.fileno(), length, self.start + first * PAGE_BYTES)
                if len(data) != length:
                    raise MeasurementError(f"memory of process {self.pid} ends early")
                view = memoryview(data)
                joined = b"".join(
                    digest(view[at : at + PAGE_BYTES]) for at in range(0, length, PAGE_BYTES)
                )
                result[first:last] = np.frombuffer(joined, dtype=DIGEST)
        chosen: npt.NDArray[np.void] = result[self.held]
        return chosen


def runs(flags: Flags, longest: int = 4096) -> list[tuple[int, int]]:
    """Return the ranges of set flags, cut to at most longest. Pure."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [
        (at, min(at + longest, int(last)))
        for first, last in zip(edges[::2], edges[1::2], strict=True)
        for at in range(int(first), int(last), longest)
    ]


def read_store(
    guests: Sequence[GuestMemory], tables: Sequence[PageTable], broker_pid: int
) -> Store:
    """Find the store's files through all their mappings, and what they hold.

    A guest maps the store in its RAM and, for the engine to compare with, beside it; the broker maps
    every segment that is not retired.
    """
    allocated: dict[tuple[str, int], int] = {}
    views: list[tuple[int, procfs.Mapping, int]] = []
    for pid, ram in [*((guest.pid, guest) for guest in guests), (broker_pid, None)]:
        for mapping, figures in procfs.smaps(pid):
            in_ram = ram is not None and ram.contains(mapping)
            is_segment = (
                mapping.path.startswith("/memfd:") and mapping.length_bytes == SEGMENT_BYTES
            )
            key = (mapping.device, mapping.inode)
            if mapping.inode and (in_ram or is_segment) and key not in allocated:
                allocated[key] = procfs.allocated_bytes(pid, mapping)
            if mapping.inode and not in_ram:
                views.append((pid, mapping, figures["Pss"]))
    views = [view for view in views if (view[1].device, view[1].inode) in allocated]
    frames = [table.frame[table.store & ~table.anonymous] for table in tables]
    for pid, mapping, _ in views:
        pagemap = read_pagemap(pid, mapping.start, mapping.end)
        of_file = (pagemap & PAGEMAP_PRESENT != 0) & (pagemap & PAGEMAP_FILE != 0)
        frames.append(pagemap[of_file] & PAGEMAP_FRAME)
    mapped = np.unique(np.concatenate(frames))
    return Store(
        allocated_bytes=sum(allocated.values()),
        mapped_bytes=int((mapped != 0).sum()) * PAGE_BYTES,
        views_pss_bytes=sum(pss for _, _, pss in views),
        broker_pss_bytes=sum(pss for pid, _, pss in views if pid == broker_pid),
    )


def reckon_now(guests: Sequence[GuestMemory], broker_pid: int) -> tuple[Reckoning, Store]:
    """Count everything at this moment. Guests must be stopped and their engines paused."""
    tables = look(guests)
    digests = [guest.digests(table) for guest, table in zip(guests, tables, strict=True)]
    store = read_store(guests, tables, broker_pid)
    held = [guest.held for guest in guests]
    return reckon(held, tables, digests, store.allocated_bytes), store


def look(guests: Sequence[GuestMemory]) -> list[PageTable]:
    """Look at all guests' page tables once; cheap enough for several times a second."""
    pagemaps = [read_pagemap(guest.pid, guest.start, guest.end) for guest in guests]
    # The zero page is mapped by many, is anonymous to pagemap, and is no frame of anybody's.
    anonymous = [
        words[(words & (PAGEMAP_PRESENT | PAGEMAP_FILE)) == PAGEMAP_PRESENT] & PAGEMAP_FRAME
        for words in pagemaps
    ]
    unique, counts = np.unique(np.concatenate(anonymous), return_counts=True)
    if unique.size and not unique.any():
        raise MeasurementError("page frame numbers are hidden: this needs root")
    zero_page = zero_frames(unique[counts > 1])
    return [guest.look(words, zero_page) for guest, words in zip(guests, pagemaps, strict=True)]
