# SPDX-License-Identifier: GPL-2.0-or-later
"""Single guests of a fleet: commands to their monitors, their figures, their memory, their disks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.lib.vm import until

from memshare.bench import oracle
from memshare.bench.fleet import ANSWER_SECONDS, Guest, read_stats
from memshare.clients import procfs
from memshare.model import PageStats

AIO = ("native", "threads", "io_uring")
DISK_BYTES = 4 << 20


def drive(path: Path, aio: str) -> list[str]:
    """Return the arguments for a disk without a cache."""
    return ["-drive", f"file={path},format=raw,if=virtio,cache=none,aio={aio}"]


def disks(folder: Path, name: str, ways: tuple[str, ...] = AIO) -> list[str]:
    """Make a disk for each way of direct I/O."""
    arguments = []
    for aio in ways:
        path = folder / f"{name}-{aio}.raw"
        path.write_bytes(bytes(DISK_BYTES))
        path.chmod(0o666)
        arguments += drive(path, aio)
    return arguments


async def stats_when(
    guest: Guest,
    accept: Callable[[PageStats], bool],
    deadline_seconds: float = ANSWER_SECONDS,
) -> PageStats:
    """Wait for a guest's stats that are accepted."""

    async def look() -> PageStats:
        return (await read_stats([guest]))[0]

    return await until(look, accept, deadline_seconds)


async def execute(guest: Guest, command: str, **arguments: object) -> Any:
    """Give a guest's monitor a command; an underscore in an argument's name stands for a dash."""
    async with guest.monitor() as monitor:
        return await monitor.execute(
            command, **{name.replace("_", "-"): value for name, value in arguments.items()}
        )


class Machine(NamedTuple):
    """A guest's QEMU, for what steers a Vm of tests/lib/vm.py too."""

    guest: Guest

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run one QMP command."""
        return await execute(self.guest, command, **arguments)

    @property
    def messages(self) -> str:
        """What QEMU, or else the guest, has said last."""
        return self.guest.last_words()


def has_no_slots(stats: PageStats) -> bool:
    """Whether all is plain memory."""
    return stats.shared_pages + stats.broken_pages == 0


def store_mappings(guest: Guest, memory: oracle.GuestMemory) -> list[procfs.Mapping]:
    """Return the parts of a guest's RAM that are mapped from the store, by the kernel's word."""
    return [
        mapping
        for mapping in procfs.mappings(guest.pid)
        if memory.contains(mapping) and mapping.inode
    ]
