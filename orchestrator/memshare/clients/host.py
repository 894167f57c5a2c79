# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory the host has left, or the cgroup that bounds its guests, and whether somebody waits for it.

Figures of a cgroup are of version 2 or 1, by the files that are there. Sources: the kernel's
admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst, accounting/psi.rst.
"""

import asyncio
import os
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from memshare.clients import procfs
from memshare.errors import HostError
from memshare.policy import Host

PRESSURE = procfs.PROC / "pressure" / "memory"
#: Of memory.stat: page cache, clean or not. Pages of memfds and tmpfs are not in it, as swap is their only way out.
CACHE_V2 = ("active_file", "inactive_file")
CACHE_V1 = ("total_active_file", "total_inactive_file")
UNCLEAN_V2 = ("file_dirty", "file_writeback")
UNCLEAN_V1 = ("total_dirty", "total_writeback")


def parse_figures(lines: Iterable[str]) -> dict[str, int]:
    """Parse `name 12` lines, as vmstat and memory.stat have them."""
    values = {}
    for line in lines:
        name, _, number = line.partition(" ")
        if number.strip().isdigit():
            values[name] = int(number)
    return values


def parse_pressure(lines: Iterable[str]) -> dict[str, int]:
    """Parse a pressure file: nanoseconds that `some` and `full` have lasted so far."""
    values = {}
    for line in lines:
        kind, *pairs = line.split()
        for pair in pairs:
            if pair.startswith("total="):
                values[kind] = int(pair.removeprefix("total=")) * 1000
    return values


def pressure_file(cgroup: Path | None) -> Path:
    """Return the file that tells of tasks waiting for memory: the cgroup's where it has one."""
    own = cgroup / "memory.pressure" if cgroup else PRESSURE
    return own if own.exists() else PRESSURE


class CgroupMemory(NamedTuple):
    """What a cgroup holds, in bytes. limit 0: none. kernel None: this kernel does not tell."""

    limit_bytes: int
    total_bytes: int
    clean_cache_bytes: int  # page cache of files that the kernel would give back first
    kernel_bytes: int | None

    @property
    def used_bytes(self) -> int:
        """What cannot be had back at once."""
        return self.total_bytes - self.clean_cache_bytes


def read_cgroup(cgroup: Path) -> CgroupMemory:
    """Read what a cgroup holds; HostError for one that is not there."""
    try:
        stat = parse_figures((cgroup / "memory.stat").read_text().splitlines())
        if (cgroup / "memory.max").exists():
            text = (cgroup / "memory.max").read_text().strip()
            limit = 0 if text == "max" else int(text)
            total = int((cgroup / "memory.current").read_text())
            kernel = stat.get("kernel")  # Linux 5.18
            cache, unclean = CACHE_V2, UNCLEAN_V2
        else:
            limit = int((cgroup / "memory.limit_in_bytes").read_text())
            total = int((cgroup / "memory.usage_in_bytes").read_text())
            of_kernel = cgroup / "memory.kmem.usage_in_bytes"
            kernel = int(of_kernel.read_text()) if of_kernel.exists() else None
            cache, unclean = CACHE_V1, UNCLEAN_V1
    except (OSError, ValueError) as error:
        raise HostError(
            f"{cgroup}: {getattr(error, 'strerror', None) or error}",
            "name the folder of a cgroup with the memory controller, below /sys/fs/cgroup",
        ) from error
    clean = sum(stat.get(name, 0) for name in cache) - sum(stat.get(name, 0) for name in unclean)
    return CgroupMemory(limit, total, max(0, clean), kernel)


def read_host(cgroup: Path | None = None) -> Host:
    """Look at the host; raises HostError for a cgroup that is not there."""
    memory = procfs.meminfo()
    bound = read_cgroup(cgroup) if cgroup else CgroupMemory(0, 0, 0, None)
    try:
        pressure = parse_pressure(pressure_file(cgroup).read_text().splitlines())
    except OSError:
        pressure = {}  # a kernel without PSI: headroom has to do
    vmstat = parse_figures((procfs.PROC / "vmstat").read_text().splitlines())
    return Host(
        cpus=len(os.sched_getaffinity(0)),
        total_bytes=memory["MemTotal"],
        available_bytes=memory["MemAvailable"],
        limit_bytes=bound.limit_bytes,
        limit_used_bytes=bound.used_bytes,
        psi_some_ns=pressure.get("some", 0),
        psi_full_ns=pressure.get("full", 0),
        swapped_in_pages=vmstat.get("pswpin", 0),
    )


def _arm(descriptor: int, path: Path, triggers: Sequence[str]) -> None:
    for trigger in triggers:
        try:
            os.write(descriptor, trigger.encode() + b"\0")
            return
        except OSError as error:
            refused = error
    raise HostError(f"{path}: {refused.strerror}: {triggers[-1]}") from refused


@contextmanager
def pressure_alarm(
    path: Path, triggers: Sequence[str], on_alarm: Callable[[], None]
) -> Iterator[None]:
    """Have on_alarm called, in asyncio's thread, each time that PSI fires. HostError.

    The first of the triggers counts that the kernel takes.

    The kernel tells it by POLLPRI, for which asyncio has no name: an epoll of our own asks for that, and becomes
    readable for asyncio's.
    """
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    try:
        _arm(descriptor, path, triggers)
        with select.epoll(flags=select.EPOLL_CLOEXEC) as alarm:
            alarm.register(descriptor, select.EPOLLPRI)

            def ring() -> None:
                # A cgroup that has gone is in error for ever: heeding that would be a loop without a rest.
                if any(event & select.EPOLLERR for _, event in alarm.poll(0)):
                    loop.remove_reader(alarm.fileno())
                on_alarm()

            loop.add_reader(alarm.fileno(), ring)
            try:
                yield
            finally:
                loop.remove_reader(alarm.fileno())
    finally:
        os.close(descriptor)
