# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration and snapshots over QMP, and the whole memory of a guest."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

from tests.lib.vm import DEADLINE_SECONDS, Vm, until

#: Fast enough for any guest that writes, and slow enough for none.
UNLIMITED, CRAWL = 1 << 40, 1 << 20

#: Memory that can be migrated under TCG while the guest writes. QEMU before 9.0 misses writes, with or without
#: us, where a block is a multiple of 64 pages: it clears their dirty bits and leaves its TLBs as they are
#: (cpu_physical_memory_sync_dirty_bitmap).
MEMORY_BYTES = (64 << 20) + (8 << 10)
MEMORY = ("-m", f"{MEMORY_BYTES >> 10}K")


class Machine(Protocol):
    """A QEMU that is steered here: a Vm, or a guest of a fleet."""

    @property
    def messages(self) -> str: ...
    async def execute(self, command: str, **arguments: object) -> Any: ...


async def set_capabilities(vm: Machine, *names: str) -> None:
    """Switch these capabilities on."""
    await vm.execute(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": True} for name in names],
    )


async def set_bandwidth(vm: Machine, bytes_per_second: int) -> None:
    """Say how fast an outgoing migration may be."""
    await vm.execute(
        "migrate-set-parameters",
        max_bandwidth=bytes_per_second,
        max_postcopy_bandwidth=bytes_per_second,
    )


async def migration_is(
    vm: Machine, *wanted: str, deadline_seconds: float = DEADLINE_SECONDS
) -> str:
    """Wait for a status of a migration, outgoing or incoming; fails when it has failed."""

    async def look() -> dict[str, Any]:
        info: dict[str, Any] = await vm.execute("query-migrate")
        assert info.get("status") != "failed" or "failed" in wanted, (info, vm.messages)
        return info

    info = await until(look, lambda info: info.get("status") in wanted, deadline_seconds)
    return str(info["status"])


async def memory_digest(vm: Vm, directory: Path) -> str:
    """Digest all that a stopped guest's MEMORY holds."""
    path = directory / "memory"
    await vm.execute("pmemsave", val=0, size=MEMORY_BYTES, filename=str(path))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.unlink()
    return digest
