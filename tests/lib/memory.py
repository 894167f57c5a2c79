# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of this process, and what the kernel says about it."""

import ctypes
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import cffi

PAGE_BYTES = 4096
BLOCK_BYTES = 2 << 20  # MSH_HUGE_PAGE_BYTES; blocks start at its multiples
_FFI = cffi.FFI()


def contents(number: int) -> bytes:
    """A page of contents that no other number has; 0 is the zero page."""
    return struct.pack("<Q", number) * (PAGE_BYTES // 8)


def _address(buffer: mmap.mmap) -> int:
    return int(_FFI.cast("uintptr_t", _FFI.from_buffer(buffer)))


def _map(length_bytes: int, protection: int) -> mmap.mmap:
    """Map memory; a little of it lies in one of the engine's blocks, whose pages are visited at once.

    Else a test would see another order of things now and then, by where the kernel puts it.
    """
    others = []  # kept until the end, so that each is put elsewhere
    while True:
        buffer = mmap.mmap(-1, length_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)
        start = _address(buffer)
        in_one = start // BLOCK_BYTES == (start + length_bytes - 1) // BLOCK_BYTES
        if in_one or length_bytes > BLOCK_BYTES // 2:
            return buffer
        others.append(buffer)


class Memory:
    """Private anonymous memory, and the bytes it must hold."""

    def __init__(self, pages: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> None:
        self.pages = pages
        self.buffer = _map(pages * PAGE_BYTES, protection)
        self.expected = bytearray(pages * PAGE_BYTES)

    @property
    def address(self) -> int:
        """Where it starts."""
        return _address(self.buffer)

    def address_of(self, page: int) -> int:
        """Where a page starts."""
        return self.address + page * PAGE_BYTES

    def write(self, page: int, data: bytes, offset: int = 0) -> None:
        """Write into a page, and remember it."""
        at = page * PAGE_BYTES + offset
        self.buffer[at : at + len(data)] = data
        self.expected[at : at + len(data)] = data

    def fill(self, number_of: Callable[[int], int]) -> Self:
        """Give each page the contents of that number."""
        for page in range(self.pages):
            self.write(page, contents(number_of(page)))
        return self

    def check(self) -> None:
        """Fail, naming the first wrong page, unless every byte is right."""
        if self.buffer[:] == self.expected:
            return
        for page in range(self.pages):
            at = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
            assert self.buffer[at] == self.expected[at], f"page {page} of {self.pages} is wrong"


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def write_memory(pid: int, address: int, data: bytes) -> None:
    """Write into another process, as a device would: the kernel pins the pages meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = _Vector(ctypes.cast(data, ctypes.c_void_p), len(data))
    there = _Vector(address, len(data))
    written = libc.process_vm_writev(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if written != len(data):
        raise OSError(ctypes.get_errno(), f"{written} of {len(data)} bytes were written")


class Mapping(NamedTuple):
    """One mapping (VMA) of this process."""

    start: int
    end: int
    permissions: str
    name: str
    flags: frozenset[str]


def mappings() -> list[Mapping]:
    """All of them."""
    found: list[Mapping] = []
    head: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if words[0] == "VmFlags:":
            start, end = (int(part, 16) for part in head[0].split("-"))
            found.append(Mapping(start, end, head[1], " ".join(head[5:]), frozenset(words[1:])))
        elif not words[0].endswith(":"):
            head = words
    return found


def mappings_of(memory: Memory) -> list[Mapping]:
    """Those that lie in that memory, and of each what lies there: the kernel joins it with neighbours that are like it."""
    end = memory.address + memory.pages * PAGE_BYTES
    return [
        m._replace(start=max(m.start, memory.address), end=min(m.end, end))
        for m in mappings()
        if m.start < end and memory.address < m.end
    ]


class PageState(NamedTuple):
    """A page as pagemap shows it."""

    present: bool
    swapped: bool
    is_file: bool
    frame: int


def pagemap(memory: Memory) -> list[PageState]:
    """The state of each page; frames as root only."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        raw = os.pread(file.fileno(), memory.pages * 8, memory.address // PAGE_BYTES * 8)
    return [
        PageState(bool(v >> 63 & 1), bool(v >> 62 & 1), bool(v >> 61 & 1), v & ((1 << 55) - 1))
        for (v,) in struct.iter_unpack("<Q", raw)
    ]
