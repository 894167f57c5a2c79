# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that comes and goes while guests share, and machines whose memory is of several kinds.

Guests run only their firmware; what is in memory that was plugged is written from outside, as a device
would write it. Root.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lib.broker import Broker
from tests.lib.memory import PAGE_BYTES, contents, write_memory
from tests.lib.vm import Stats, Vm, plugin_arguments, running, until

from memshare.clients import ksm, procfs

RAM_BYTES = 64 << 20
MORE_BYTES = 24 << 20  # a size that no other mapping of QEMU has
MORE_PAGES = MORE_BYTES // PAGE_BYTES
SCAN_RATE_PAGES = 1_000_000


def joined(broker: Broker) -> list[str]:
    """Return -plugin for a guest in that broker's group, scanning fast."""
    return plugin_arguments(socket=str(broker.socket_path()), scan_rate=SCAN_RATE_PAGES)


def has(ram_bytes: int, shared_pages: int) -> Callable[[Stats], bool]:
    """Whether so much memory is registered and at least so much of it shared."""
    return lambda stats: bool(
        stats["ram_bytes"] == ram_bytes and stats["shared_pages"] >= shared_pages
    )


class Plugged:
    """Memory of a guest that was plugged, and what must be in it."""

    def __init__(self, vm: Vm) -> None:
        (mapping,) = (
            mapping
            for mapping in procfs.mappings(vm.pid)
            if mapping.length_bytes == MORE_BYTES and not mapping.inode
        )
        self._vm = vm
        self.start, self.end = mapping.start, mapping.end

    def write(self, data: bytes) -> None:
        """Fill it, or its first part. Pages are pinned for that, unlike where one writes to /proc/PID/mem."""
        write_memory(self._vm.pid, self.start, data)

    def read(self) -> bytes:
        """Return all of it. The kernel does not let this reader wait for a window: it ends short, or with EIO."""
        data = b""
        with Path(f"/proc/{self._vm.pid}/mem").open("rb", buffering=0) as file:
            while len(data) < MORE_BYTES:
                with contextlib.suppress(OSError):
                    data += os.pread(file.fileno(), MORE_BYTES - len(data), self.start + len(data))
        return data

    def is_mapped(self) -> bool:
        """Whether anything of the engine's is at its addresses."""
        return any(
            "memshare" in mapping.path and mapping.start < self.end and mapping.end > self.start
            for mapping in procfs.mappings(self._vm.pid)
        )


async def plug(vm: Vm) -> Plugged:
    """Plug memory into a guest, and wait until it is registered."""
    await vm.execute("object-add", qom_type="memory-backend-ram", id="more", size=MORE_BYTES)
    await vm.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    await vm.stats_when(has(RAM_BYTES + MORE_BYTES, 0))
    return Plugged(vm)


@pytest.mark.full_hash
@pytest.mark.parametrize(
    "rounds", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
async def test_I1_memory_comes_and_goes_while_it_is_shared(broker: Broker, rounds: int) -> None:
    """Deleted while it is merged, half of it written to; the guest that keeps its own loses nothing."""
    async with (
        running(*joined(broker), "-m", "64M,slots=2,maxmem=1G") as a,
        running(*joined(broker)) as b,
    ):
        data = b"".join(contents(1 + page) for page in range(MORE_PAGES))
        await b.execute("object-add", qom_type="memory-backend-ram", id="more", size=MORE_BYTES)
        await b.stats_when(has(RAM_BYTES + MORE_BYTES, 0))
        kept = Plugged(b)
        kept.write(data)
        for number in range(rounds):
            await a.execute("object-add", qom_type="memory-backend-ram", id="more", size=MORE_BYTES)
            await a.stats_when(has(RAM_BYTES + MORE_BYTES, 0))
            gone = Plugged(a)
            gone.write(data)
            assert gone.read() == data
            await a.stats_when(has(RAM_BYTES + MORE_BYTES, MORE_PAGES))
            assert gone.is_mapped()
            mine = bytes([1 + number % 255]) * (MORE_BYTES // 2)
            await a.set("scan-rate", 0)  # no page is copied while it is pinned
            gone.write(mine)
            await a.set("scan-rate", SCAN_RATE_PAGES)
            assert gone.read() == mine + data[len(mine) :]
            await a.execute("object-del", id="more")
            await a.stats_when(has(RAM_BYTES, 0))
            assert not gone.is_mapped()
            assert kept.read() == data
        await b.stats_when(has(RAM_BYTES + MORE_BYTES, MORE_PAGES))
        assert await a.quit() == 0


@pytest.mark.full_hash
async def test_a_dimm_is_registered_too(broker: Broker) -> None:
    async with running(*joined(broker), "-m", "64M,slots=2,maxmem=1G") as vm:
        dimm = await plug(vm)
        data = b"".join(contents(1 + page // 2) for page in range(MORE_PAGES))
        dimm.write(data)
        await vm.stats_when(has(RAM_BYTES + MORE_BYTES, MORE_PAGES))
        assert dimm.read() == data


def backend(name: str, options: str = "") -> list[str]:
    """Return the arguments for half of the machine's memory."""
    size = RAM_BYTES >> 21
    return [
        *("-object", f"memory-backend-ram,id={name},size={size}M{options}"),
        *("-numa", f"node,memdev={name}"),
    ]


@pytest.mark.parametrize(
    ("options", "registered_bytes"),
    [
        ("", RAM_BYTES),
        (",merge=off", RAM_BYTES // 2),
        (",share=on", RAM_BYTES // 2),
        (",host-nodes=0,policy=bind", RAM_BYTES // 2),
        (",policy=interleave,host-nodes=0", RAM_BYTES // 2),
        (",host-nodes=0,policy=preferred", RAM_BYTES // 2),
        (",prealloc=on", RAM_BYTES),
        (",dump=off", RAM_BYTES),
    ],
)
async def test_one_numa_node_may_share_and_another_not(options: str, registered_bytes: int) -> None:
    arguments = [*backend("first"), *backend("second", options)]
    async with running(*plugin_arguments(socket="/nowhere"), *arguments) as vm:
        stats = await vm.stats()
        assert stats["ram_bytes"] == registered_bytes
        assert stats["mode"] == "content"


async def test_nothing_of_a_guest_that_shares_is_left_to_ksm() -> None:
    """ROMs and video memory neither, nor those of a device that comes later: KSM has no groups."""
    async with running(*plugin_arguments(socket="/nowhere", mode="off"), "-device", "VGA") as vm:

        async def is_marked() -> bool:
            return ksm.is_marked(vm.pid)

        await vm.stats()
        assert await is_marked()
        await vm.set("mode", "content")
        await until(is_marked, lambda marked: not marked)
        await vm.execute("device_add", driver="e1000", id="late")  # has a ROM
        await until(is_marked, lambda marked: not marked)


@pytest.mark.parametrize("policy", ["bind", "preferred", "interleave"])
async def test_a_memory_policy_is_a_reason(policy: str) -> None:
    ram = f"memory-backend-ram,id=m,size=64M,host-nodes=0,policy={policy}"
    arguments = ["-machine", "memory-backend=m", "-object", ram]
    async with running(*plugin_arguments(socket="/nowhere"), *arguments) as vm:
        stats = await vm.stats()
        assert (stats["state"], stats["ram_bytes"]) == ("refused", 0)
        assert "has a memory policy (host-nodes)" in stats["refusal"]
