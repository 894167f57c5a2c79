# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says about memory and processes in /proc. Sizes in bytes.

Functions named `parse_*` are pure; the others read the file and call them. Names of programs and files may hold any
byte: those that are not UTF-8 are replaced.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Mapping(NamedTuple):
    """One line of /proc/PID/maps. inode is 0 for anonymous memory."""

    start: int
    end: int
    permissions: str
    offset_bytes: int
    device: str
    inode: int
    path: str

    @property
    def length_bytes(self) -> int:
        """How many bytes of addresses it covers."""
        return self.end - self.start

    @property
    def file(self) -> tuple[str, int]:
        """Which file it maps: device and inode."""
        return self.device, self.inode


class FileMappings(NamedTuple):
    """All mappings of files that a process has, kept as columns: there may be tens of thousands."""

    starts: list[int]
    ends: list[int]
    files: list[tuple[str, int]]  # as `Mapping.file`
    paths: list[str]


class CpuTicks(NamedTuple):
    """What all CPUs of the host have done since its start, in clock ticks."""

    busy: int
    total: int


def parse_mapping(line: str) -> Mapping:
    """Parse the line that /proc/PID/maps and smaps share."""
    fields = line.split(None, 5)
    start, _, end = fields[0].partition("-")
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        permissions=fields[1],
        offset_bytes=int(fields[2], 16),
        device=fields[3],
        inode=int(fields[4]),
        path=fields[5].strip() if len(fields) > 5 else "",
    )


def parse_kb_lines(lines: Iterable[str]) -> dict[str, int]:
    """Parse `Name: 12 kB` lines into bytes; other lines are left out."""
    values = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            values[name] = int(words[0]) * 1024
    return values


def parse_smaps(lines: Iterable[str]) -> Iterator[tuple[Mapping, dict[str, int]]]:
    """Yield each mapping with its figures in bytes."""
    mapping = None
    figures: dict[str, int] = {}
    for line in lines:
        first = line.split(None, 1)[0]
        if first[-1] == ":":
            name, _, rest = line.partition(":")
            words = rest.split()
            if words[-1:] == ["kB"]:
                figures[name] = int(words[0]) * 1024
        else:
            if mapping is not None:
                yield mapping, figures
            mapping, figures = parse_mapping(line), {}
    if mapping is not None:
        yield mapping, figures


def parse_slabinfo(lines: Iterable[str]) -> dict[str, int]:
    """Bytes in live objects of each slab cache."""
    values = {}
    for line in lines:
        fields = line.split()
        if len(fields) > 4 and fields[1].isdigit():
            values[fields[0]] = int(fields[1]) * int(fields[3])
    return values


FILE_MAPPING = re.compile(r"^(\w+)-(\w+) \S+ \w+ (\S+) ([1-9]\d*) *(.*)$", re.MULTILINE)


def parse_file_mappings(text: str) -> FileMappings:
    """Parse /proc/PID/maps, in a quarter of the time that a `Mapping` for each line takes."""
    found = FILE_MAPPING.findall(text)
    return FileMappings(
        starts=[int(line[0], 16) for line in found],
        ends=[int(line[1], 16) for line in found],
        files=[(line[2], int(line[3])) for line in found],
        paths=[line[4] for line in found],
    )


def mappings(pid: int) -> list[Mapping]:
    """All mappings of a process."""
    with (PROC / str(pid) / "maps").open(errors="replace") as file:
        return [parse_mapping(line) for line in file]


def file_mappings(pid: int) -> FileMappings:
    """All mappings of files that a process has."""
    return parse_file_mappings((PROC / str(pid) / "maps").read_text(errors="replace"))


def smaps(pid: int) -> list[tuple[Mapping, dict[str, int]]]:
    """All mappings of a process with their figures."""
    with (PROC / str(pid) / "smaps").open(errors="replace") as file:
        return list(parse_smaps(file))


def smaps_rollup(pid: int) -> dict[str, int]:
    """Sums over a process: `Pss`, `Pss_Anon`, `Rss`, ..."""
    return parse_kb_lines((PROC / str(pid) / "smaps_rollup").read_text().splitlines())


def status(pid: int) -> dict[str, int]:
    """The byte figures of /proc/PID/status: `VmPTE`, `VmRSS`, ..."""
    return parse_kb_lines((PROC / str(pid) / "status").read_text(errors="replace").splitlines())


def meminfo() -> dict[str, int]:
    """The host's memory, by the names of /proc/meminfo."""
    return parse_kb_lines((PROC / "meminfo").read_text().splitlines())


def slab_bytes(caches: Iterable[str]) -> int:
    """Bytes in live objects of the named caches; those merged into another cache count as none."""
    with (PROC / "slabinfo").open() as file:
        live = parse_slabinfo(file)
    return sum(live.get(name, 0) for name in caches)


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(PROC / str(pid) / "task"))


def parse_cpu_ticks(lines: Iterable[str]) -> CpuTicks:
    """Parse /proc/stat. Time of guests is in that of their processes; waiting for a disk is rest."""
    fields = next(line for line in lines if line.startswith("cpu ")).split()[1:9]
    user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in fields)
    busy = user + nice + system + irq + softirq + steal
    return CpuTicks(busy=busy, total=busy + idle + iowait)


def cpu_ticks() -> CpuTicks:
    """Read what all CPUs have done since the host's start."""
    return parse_cpu_ticks((PROC / "stat").read_text().splitlines())


def cpu_seconds(pid: int, *, with_children: bool = False) -> float:
    """User and system time that a process used, with all its threads, and with children that it has waited for."""
    fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11 : 15 if with_children else 13])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_ns(pid: int) -> int:
    """User and system time that a process used, with all its threads, to the nanosecond.

    The number of a process's CPU clock is made as clock_getcpuclockid(3) makes it.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def start_ticks(pid: int) -> int:
    """When a process has started, in clock ticks since the host did."""
    return int(
        (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    )


def thread_cpu_ns(pid: int, thread: int) -> int:
    """User and system time of one thread, at most a timer tick old."""
    return int((PROC / str(pid) / "task" / str(thread) / "schedstat").read_text().split()[0])


def allocated_bytes(pid: int, start: int, end: int) -> int:
    """Bytes that the file behind a mapping holds, whether any page table shows them or not."""
    link = PROC / str(pid) / "map_files" / f"{start:x}-{end:x}"
    return os.stat(link).st_blocks * 512
